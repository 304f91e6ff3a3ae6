"""`data.npz` with images, labels and soft labels, for NumPy."""

import math
import zipfile
import zlib
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
                for member in arrays.zip.infolist():
                    _require_filled(arrays.zip, member)
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        except (OSError, EOFError, ValueError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path} is missing or damaged ({error}); make the set again") from None


def _require_filled(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise ValueError if the header of an array asks for other bytes than the file has: memory is taken by the header."""
    with archive.open(member) as handle:
        version = np.lib.format.read_magic(handle)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(handle)
        if math.prod(shape) * dtype.itemsize != member.file_size - handle.tell():
            raise ValueError(f"{member.filename} claims {math.prod(shape) * dtype.itemsize:,} bytes")
