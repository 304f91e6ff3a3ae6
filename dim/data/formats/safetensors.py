"""`data.safetensors` with images, labels and soft labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dim.data.format import Format
from dim.io import load_tensors, save_tensors
from dim.nets.generator import Generator
from dim.spec import DataSpec

__all__ = ["Safetensors"]

DATA = "data.safetensors"


def save_data(path: Path, content: Mapping[str, Tensor]) -> None:
    """Write the tensors of a set, by name, to one file."""
    save_tensors(path, content, {"kind": "set-data"})


class Safetensors(Format):
    """See `dim.data.format.Format`: one file; the description may say which (`file`), see `dim.data.stored.write_into`."""

    def write(self, folder: Path, content: Mapping[str, Tensor], spec: DataSpec, *, generator: Generator | None = None) -> None:
        save_data(folder / DATA, content)

    def read(self, folder: Path, spec: DataSpec, description: Mapping[str, Any]) -> dict[str, Tensor]:
        return load_tensors(folder / description.get("file", DATA))[0]
