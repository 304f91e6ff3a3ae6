"""Files of `torch.save`, as other projects publish and read sets: nothing in them is run, and none takes more memory than it has
bytes."""

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dim.errors import InputError
from dim.io import reading
from dim.outputs import write_bytes

_MOST_STRUCTURE = 16 * 2**20  # bytes of the pickle, in which tensors are names; their values lie beside it
_RESAVE = "load it with PyTorch and save its tensors again"


class _Inert:
    """What takes the place of NumPy's numbers and arrays: published sets carry accuracies as such, which nobody asks for."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_NUMPY = [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
_STAND_INS = [(_Inert, name) for name in (*_NUMPY, "numpy.dtype", "numpy.ndarray")]


def read_torch(path: Path | str) -> Any:
    """Read what `torch.save` wrote: tensors in lists, tuples and dicts, with `weights_only`, on the CPU.

    The file is checked first and then mapped into memory, so that a tensor cannot be larger than the bytes that are there for it.
    Tensors are views of the file: copy what is kept.

    Raises:
        InputError: if it is missing, damaged, older than PyTorch 1.6, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}: expected one that torch.save wrote")
    with reading(path, "no file of torch.save"):
        if not zipfile.is_zipfile(path):
            raise InputError(f"{path} is no file of torch.save since PyTorch 1.6: {_RESAVE}")
        _require_plain(path)
        try:
            with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of kinds of tensors that are then refused
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # PyTorch has kinds of its own, and its messages advise to trust the file
            if isinstance(error, OSError) and error.errno is not None:
                raise
            lines = [line.strip() for line in str(error).splitlines() if "Unsupported" in line] or [type(error).__name__]
            raise InputError(f"{path} holds more than tensors, or is damaged ({lines[0][:100]}): {_RESAVE}") from None


def _require_plain(path: Path) -> None:
    """Raise ValueError if a file is not as torch.save writes it: uncompressed, its parts apart from each other and undamaged."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size for member in members):
            raise ValueError("parts of it are compressed")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its parts claim more bytes than it has")
        structure = [member.file_size for member in members if member.filename.endswith("data.pkl")]
        if len(structure) != 1 or structure[0] > _MOST_STRUCTURE:
            raise ValueError(f"expected one data.pkl of at most {_MOST_STRUCTURE:,} bytes")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"its part {damaged} does not match its checksum")


def require_dense(tensor: Tensor, path: Path | str) -> Tensor:
    """The tensor, if its file holds each of its values: a few bytes can be repeated to any size, and are then no images.

    Raises:
        InputError: if it is sparse, quantised, without values, or larger than its bytes.
    """
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(f"{path} has a tensor of shape {tuple(tensor.shape)} without its values: {_RESAVE}")
    return tensor.detach()


def write_torch(path: Path | str, content: Any) -> None:
    """Write tensors in lists and dicts with `torch.save`, atomically, for programs that read no other files."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())
