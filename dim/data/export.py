"""Synthetic sets on disk: a folder with `set.json` and the images in one of six formats.

- imagefolder: `<class>/<number>.png` and `metadata.jsonl`; torchvision's ImageFolder and the `datasets` library read it.
- safetensors: `data.safetensors` with images, labels and soft labels.
- npz: `data.npz` with the same arrays, for NumPy.
- webdataset: `data-000000.tar`, ... with a PNG, its label and its soft labels per image; parquet: `data.parquet` as the
  `datasets` library writes and reads it. Writing either, and reading the second, needs the extra `export`.
- latents: `data.safetensors` with latents, labels and soft labels, and `generator.safetensors`, which makes the images.
"""

import importlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dim.errors import InputError, nearest
from dim.io import atomic_folder, digest, load_tensors, read_json, save_tensors, write_json
from dim.nets.generator import Generator
from dim.nets.generator_file import FILE_NAME, save_again
from dim.spec import DataSpec

FORMATS = ("imagefolder", "safetensors", "npz", "webdataset", "parquet", "latents")
_EIGHT_BITS = ("imagefolder", "webdataset", "parquet")
_SHARD = 10_000  # images in a tar file
DESCRIPTION = "set.json"
_VERSION = 1


def write_folder(
    path: Path | str,
    content: Mapping[str, Tensor],
    spec: DataSpec,
    info: Mapping[str, Any],
    format: str,
    *,
    overwrite: bool = False,
    generator: Generator | None = None,
) -> Path:
    """Write a set; see `SyntheticSet.save`."""
    if format not in FORMATS:
        raise InputError(f"unknown format {format!r}. {nearest(format, FORMATS)}")
    if format in _EIGHT_BITS and content["images"].dtype != torch.uint8:
        raise InputError(f"format {format!r} holds 8 bits per channel and these images are float32: use safetensors or npz")
    description = _describe(content, spec, info, format)
    with atomic_folder(path, overwrite=overwrite) as folder:
        if format == "imagefolder":
            _write_images(folder, content, spec)
        elif format in ("safetensors", "latents"):
            save_tensors(folder / "data.safetensors", content, {"kind": "set-data"})
            if format == "latents":
                save_again(folder / FILE_NAME, generator)
        elif format == "webdataset":
            _write_webdataset(folder, content)
        elif format == "parquet":
            _write_parquet(folder / "data.parquet", content, spec)
        else:
            np.savez(folder / "data.npz", **{name: tensor.numpy() for name, tensor in content.items()})
        write_json(folder / DESCRIPTION, description)
    return Path(path)


def write_into(folder: Path, content: Mapping[str, Tensor], spec: DataSpec, info: Mapping[str, Any]) -> None:
    """Put a set into a folder that holds other things too, as safetensors, in place of the set that was there.

    The data file is named by its content and the description changes last, so a reader sees the old set or the new one.
    """
    description = _describe(content, spec, info, "safetensors")
    description["file"] = f"data-{description['digest'][:12]}.safetensors"
    save_tensors(folder / description["file"], content, {"kind": "set-data"})
    write_json(folder / DESCRIPTION, description)
    for old in folder.glob("data-*.safetensors"):
        if old.name != description["file"]:
            old.unlink()


def _describe(content: Mapping[str, Tensor], spec: DataSpec, info: Mapping[str, Any], format: str) -> dict[str, Any]:
    return {
        "format": _VERSION,
        "kind": "set",
        "storage": format,
        "digest": digest(content),
        "count": len(content["labels"]),
        "spec": spec.to_dict(),
        "info": dict(info),
    }


def read_folder(path: Path | str) -> tuple[dict[str, Tensor], DataSpec, dict[str, Any]]:
    """Read a set: its tensors, its data specification, and what is known of its making."""
    path = Path(path)
    if not (path / DESCRIPTION).is_file():
        raise InputError(f"{path} is no synthetic set: expected a folder made by 'dim sample' (it has no {DESCRIPTION})")
    description = read_json(path / DESCRIPTION)
    wanted = {"format", "storage", "digest", "spec", "info"}
    if not isinstance(description, dict) or not wanted <= description.keys():
        raise InputError(f"{path / DESCRIPTION} is damaged: expected {', '.join(sorted(wanted))}; make the set again")
    if description.get("format", 0) > _VERSION:
        raise InputError(f"{path} has format {description['format']}: this version reads up to {_VERSION}; upgrade dim-distill")
    spec = DataSpec.from_dict(description["spec"])
    if description["storage"] == "imagefolder":
        content = _read_images(path, spec)
    elif description["storage"] in ("safetensors", "latents"):
        content, _ = load_tensors(path / description.get("file", "data.safetensors"))
    elif description["storage"] == "webdataset":
        content = _read_webdataset(path, spec)
    elif description["storage"] == "parquet":
        content = _read_parquet(path / "data.parquet", spec)
    else:
        content = _read_npz(path / "data.npz")
    if digest(content) != description["digest"]:
        raise InputError(f"{path} is damaged: its images or labels are not those that were written; make it again")
    return content, spec, description["info"]


def _class_folders(spec: DataSpec) -> list[str]:
    """A folder name per class: its number, so that sorting keeps the order, and its name as far as file systems allow."""
    width = len(str(spec.num_classes - 1))
    return [
        f"{label:0{width}d}_{re.sub(r'[^A-Za-z0-9.-]+', '-', name).strip('-.')}".rstrip("_")
        for label, name in enumerate(spec.class_names)
    ]


def _write_images(folder: Path, content: Mapping[str, Tensor], spec: DataSpec) -> None:
    labels = content["labels"].tolist()
    folders = _class_folders(spec)
    seen = [0] * spec.num_classes
    names = []
    for label in labels:
        names.append(f"{folders[label]}/{seen[label]:05d}.png")
        seen[label] += 1
    for label, count in enumerate(seen):
        if count:
            (folder / folders[label]).mkdir()

    def write(position: int) -> None:
        array = content["images"][position].permute(1, 2, 0).numpy()
        image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
        image.save(folder / names[position], format="PNG", compress_level=1)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(len(labels))))
    with open(folder / "metadata.jsonl", "w") as handle:
        for position, (name, label) in enumerate(zip(names, labels, strict=True)):
            record = {"file_name": name, "label": label, "class_name": spec.class_names[label]}
            if "soft" in content:
                record["soft"] = content["soft"][position].tolist()
            handle.write(json.dumps(record) + "\n")


def _read_images(path: Path, spec: DataSpec) -> dict[str, Tensor]:
    try:
        records = [json.loads(line) for line in (path / "metadata.jsonl").read_text().splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path / 'metadata.jsonl'} is missing or damaged ({error}); make the set again") from None

    if not records or not all({"file_name", "label"} <= record.keys() for record in records):
        raise InputError(
            f"{path / 'metadata.jsonl'} is damaged: expected a file_name and a label in every row; make the set again"
        )

    def read(record: dict[str, Any]) -> np.ndarray:
        file = path / record["file_name"]
        try:
            with Image.open(file) as image:
                array = np.array(image.convert("L" if spec.channels == 1 else "RGB"))
                if array.shape[:2] != (spec.height, spec.width):
                    raise ValueError(f"it has {array.shape[1]}x{array.shape[0]} pixels")
                return array
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            raise InputError(f"image {file} is missing or damaged ({error}); make the set again") from None

    with ThreadPoolExecutor() as pool:
        images = torch.from_numpy(np.stack(list(pool.map(read, records)))).view(len(records), spec.height, spec.width, -1)
    content = {
        "images": images.permute(0, 3, 1, 2).contiguous(),
        "labels": torch.tensor([record["label"] for record in records]),
    }
    if records and "soft" in records[0]:
        content["soft"] = torch.tensor([record["soft"] for record in records])
    return content


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is missing or damaged ({error}); make the set again") from None


# --- the extra `export` ----------------------------------------------------------------------------------------------------


def require_libraries(format: str) -> None:
    """Raise InputError if a library that a format needs is not installed."""
    for name in {"webdataset": ("webdataset",), "parquet": ("datasets", "pyarrow.parquet")}.get(format, ()):
        _library(name, format)


def _library(name: str, format: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"format {format!r} needs the library {name!r}: pip install 'dim-distill[export]'") from None


def _to_png(image: Tensor) -> bytes:
    array = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _from_pngs(encoded: list[bytes], spec: DataSpec) -> Tensor:
    arrays = []
    for content in encoded:
        with Image.open(io.BytesIO(content)) as image:
            arrays.append(np.array(image.convert("L" if spec.channels == 1 else "RGB")).reshape(spec.height, spec.width, -1))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _write_webdataset(folder: Path, content: Mapping[str, Tensor]) -> None:
    library = _library("webdataset", "webdataset")
    for shard, positions in enumerate(torch.arange(len(content["labels"])).split(_SHARD)):
        with library.TarWriter(str(folder / f"data-{shard:06d}.tar"), mtime=0) as writer:
            for position in positions.tolist():
                sample = {"__key__": f"{position:09d}", "png": _to_png(content["images"][position])}
                sample["cls"] = str(int(content["labels"][position])).encode()
                if "soft" in content:
                    sample["soft.json"] = json.dumps(content["soft"][position].tolist()).encode()
                writer.write(sample)


def _read_webdataset(path: Path, spec: DataSpec) -> dict[str, Tensor]:
    files: dict[str, bytes] = {}
    try:
        for shard in sorted(path.glob("data-*.tar")):
            with tarfile.open(shard, "r:") as archive:
                files |= {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
        keys = sorted(name.removesuffix(".png") for name in files if name.endswith(".png"))
        content = {
            "images": _from_pngs([files[f"{key}.png"] for key in keys], spec),
            "labels": torch.tensor([int(files[f"{key}.cls"]) for key in keys]),
        }
        if f"{keys[0]}.soft.json" in files:
            content["soft"] = torch.tensor([json.loads(files[f"{key}.soft.json"]) for key in keys])
    except (OSError, ValueError, KeyError, IndexError, SyntaxError, tarfile.TarError) as error:
        raise InputError(f"{path} is damaged ({error}): its tar files are not those that were written; make it again") from None
    return content


def _write_parquet(path: Path, content: Mapping[str, Tensor], spec: DataSpec) -> None:
    library = _library("datasets", "parquet")
    columns = {"image": [{"bytes": _to_png(image)} for image in content["images"]], "label": content["labels"].tolist()}
    features = {"image": library.Image(), "label": library.ClassLabel(names=list(spec.class_names))}
    if "soft" in content:
        columns["soft"] = content["soft"].tolist()
        features["soft"] = library.Sequence(library.Value("float32"), length=spec.num_classes)
    table = library.Dataset.from_dict(columns, features=library.Features(features)).data.table
    # The library's own metadata travels along, so it reads images and class names back as such.
    _library("pyarrow.parquet", "parquet").write_table(table, str(path))


def _read_parquet(path: Path, spec: DataSpec) -> dict[str, Tensor]:
    parquet = _library("pyarrow.parquet", "parquet")
    try:
        columns = parquet.read_table(str(path)).to_pydict()
        content = {
            "images": _from_pngs([image["bytes"] for image in columns["image"]], spec),
            "labels": torch.tensor(columns["label"]),
        }
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        raise InputError(f"{path} is missing or damaged ({error}); make the set again") from None
    if "soft" in columns:
        content["soft"] = torch.tensor(columns["soft"])
    return content
