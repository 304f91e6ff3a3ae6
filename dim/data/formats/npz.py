"""`data.npz` with images, labels and soft labels, for NumPy."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dim.data.format import Format
from dim.errors import InputError
from dim.nets.generator import Generator
from dim.spec import DataSpec

__all__ = ["Npz"]

_FILE = "data.npz"


class Npz(Format):
    """See `dim.data.format.Format`: an array for each tensor, by the same name."""

    def write(self, folder: Path, content: Mapping[str, Tensor], spec: DataSpec, *, generator: Generator | None = None) -> None:
        np.savez(folder / _FILE, **{name: tensor.numpy() for name, tensor in content.items()})

    def read(self, folder: Path, spec: DataSpec, description: Mapping[str, Any]) -> dict[str, Tensor]:
        path = folder / _FILE
        try:
            with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is missing or damaged ({error}); make the set again") from None
