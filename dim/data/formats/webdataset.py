"""`data-000000.tar`, ... with a PNG, its label and its soft labels per image; writing it needs the extra `export`."""

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dim.data.format import Format
from dim.data.png import from_pngs, to_pngs
from dim.errors import InputError
from dim.nets.generator import Generator
from dim.spec import DataSpec

__all__ = ["WebDataset"]

_LIBRARY = "webdataset"
_SHARD = 10_000  # images in a tar file


class WebDataset(Format):
    """See `dim.data.format.Format`: keys are the places of the images in the set."""

    needs = (_LIBRARY,)
    eight_bits = True

    def write(self, folder: Path, content: Mapping[str, Tensor], spec: DataSpec, *, generator: Generator | None = None) -> None:
        library = self.library(_LIBRARY)
        for shard, positions in enumerate(torch.arange(len(content["labels"])).split(_SHARD)):
            with library.TarWriter(str(folder / f"data-{shard:06d}.tar"), mtime=0) as writer:
                for position, file in zip(positions.tolist(), to_pngs(content["images"][positions]), strict=True):
                    sample = {"__key__": f"{position:09d}", "png": file}
                    sample["cls"] = str(int(content["labels"][position])).encode()
                    if "soft" in content:
                        sample["soft.json"] = json.dumps(content["soft"][position].tolist()).encode()
                    writer.write(sample)

    def read(self, folder: Path, spec: DataSpec, description: Mapping[str, Any]) -> dict[str, Tensor]:
        files: dict[str, bytes] = {}
        try:
            for shard in sorted(folder.glob("data-*.tar")):
                with tarfile.open(shard, "r:") as archive:
                    members = [member for member in archive if member.isfile() and not member.issparse()]
                    files |= {member.name: archive.extractfile(member).read() for member in members}
            keys = sorted(name.removesuffix(".png") for name in files if name.endswith(".png"))
            content = {
                "images": from_pngs([files[f"{key}.png"] for key in keys], spec),
                "labels": torch.tensor([int(files[f"{key}.cls"]) for key in keys]),
            }
            if f"{keys[0]}.soft.json" in files:
                content["soft"] = torch.tensor([json.loads(files[f"{key}.soft.json"]) for key in keys])
        except (OSError, ValueError, KeyError, IndexError, SyntaxError, tarfile.TarError) as error:
            written = "its tar files are not those that were written"
            raise InputError(f"{folder} is damaged ({error}): {written}; make it again") from None
        return content
