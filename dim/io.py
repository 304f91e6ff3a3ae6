"""Files: JSON documents, and safetensors with JSON metadata, written atomically and verified when read. Nothing is ever
unpickled."""

import contextlib
import hashlib
import json
import math
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dim.errors import InputError
from dim.launch import say_once
from dim.outputs import write_bytes

_METADATA_KEY = "dim"
_DIGEST_KEY = "digest"
_CHECKSUM_KEY = "checksum"
_FORMAT = 2  # of JSON documents
_MOST_JSON = 256 * 2**20
# What parsers and PyTorch raise for content that they cannot read.
_UNREADABLE = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError, SyntaxError, RuntimeError, MemoryError),
    *(zlib.error, zipfile.BadZipFile, tarfile.TarError, safetensors.SafetensorError),
)


def write_json(path: Path | str, value: Any) -> None:
    """Write indented JSON atomically. Non-finite numbers are refused: they are not JSON."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path | str) -> Any:
    """Parse a JSON file.

    Raises:
        InputError: if it is missing, larger than 256 MiB, or not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}")
    if (size := path.stat().st_size) > _MOST_JSON:
        raise InputError(f"{path} has {size:,} bytes: expected JSON of at most {_MOST_JSON:,}; it is no file of this package")
    with reading(path, "not valid JSON"):
        return parse_json(path.read_bytes())


def parse_json(text: bytes | str) -> Any:
    """Parse JSON, of which Python's own reader takes more than there is.

    Raises:
        ValueError: if it is none, or holds a number that is not finite.
    """

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"{number[:20]} is no number that JSON can hold")
        return float(number)

    return json.loads(text, parse_constant=finite, parse_float=finite)


def write_document(path: Path | str, values: Mapping[str, Any]) -> None:
    """Write a JSON object with the number of its format and a checksum over its content, atomically; see `read_document`."""
    content = {"format": _FORMAT, **{key: value for key, value in values.items() if key not in ("format", _CHECKSUM_KEY)}}
    write_json(path, {**content, _CHECKSUM_KEY: checksum(content)})


def read_document(path: Path | str) -> dict[str, Any]:
    """Parse a file that `write_document` wrote, or one of an earlier version (format 1, or none), which had no checksum.

    Raises:
        InputError: if it is missing, damaged, of a later format, or was changed after it was written.
    """
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("format", 1), int):
        raise InputError(f"{path} is damaged: expected a JSON object with the number of its format; restore it or make it again")
    if values.get("format", 1) > _FORMAT:
        newer = values["format"]
        raise InputError(f"{path} has format {newer}: this version reads up to {_FORMAT}; upgrade dim-distill")
    checked = _CHECKSUM_KEY in values or values.get("format", 1) != 1  # no single flipped bit takes both away
    if checked and values.pop(_CHECKSUM_KEY, None) != checksum(values):
        raise InputError(f"{path} was damaged or edited: it does not match its checksum; restore it or make it again")
    return values


def checksum(value: Any) -> str:
    """BLAKE2b digest over a JSON value; the order of keys does not count."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@contextlib.contextmanager
def reading(path: Path | str, what: str = "") -> Iterator[None]:
    """The boundary at which the content of a file from outside becomes values: what it cannot mean is an InputError, with the
    file's name, whatever the library that parses it raises."""
    try:
        yield
    except InputError:
        raise
    except (OSError, *_UNREADABLE) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file may not be read, or the disk is full
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        reason = f"no entry {reason}" if isinstance(error, KeyError) else reason
        reason = f"{what}: {reason}" if what else reason
        raise InputError(f"{path} is damaged ({reason}): restore it or make it again") from error


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """BLAKE2b digest over names, dtypes, shapes and bytes of tensors, and over `text`."""
    state = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write one safetensors file atomically, with JSON `metadata` and a digest of all content inside it."""
    text = json.dumps(metadata, allow_nan=False)
    # Copies, where tensors share memory: the format stores each on its own.
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    header = {_METADATA_KEY: text, _DIGEST_KEY: digest(stored, text)}
    write_bytes(path, safetensors.torch.save(stored, metadata=header))


def load_tensors(path: Path | str, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file written by `save_tensors`: its tensors, on `device`, and its metadata.

    Raises:
        InputError: if the file is missing, truncated, corrupted, or was not written by this package.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}: expected a .safetensors file written by dim")
    with reading(path, "truncated or no safetensors"), safetensors.safe_open(path, framework="pt") as handle:
        header = handle.metadata() or {}
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (no iterator of its own)
    if _METADATA_KEY not in header:
        raise InputError(f"{path} has no dim metadata: expected a file written by dim")
    if digest(tensors, header[_METADATA_KEY]) != header.get(_DIGEST_KEY):
        raise InputError(f"{path} is damaged: its content does not match its checksum; restore it or make it again")
    with reading(path, "its metadata is not valid JSON"):
        metadata = parse_json(header[_METADATA_KEY])
    if not isinstance(metadata, dict):
        raise InputError(f"{path} is damaged: its metadata is no JSON object; restore it or make it again")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, metadata


def cache_folder(kind: str) -> Path:
    """Where what is learned once for a data set is kept: `dim/KIND` in `$XDG_CACHE_HOME` or `~/.cache`; a place in which nothing
    can be kept where neither is known, as in a container whose user has no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    folder = given if os.path.isabs(given) else os.path.expanduser("~/.cache")  # which the standard says of relative paths, too
    return Path(folder if os.path.isabs(folder) else os.devnull) / "dim" / kind


def keep_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a file into the cache folder, see `save_tensors`; where that is impossible, say so once and go on."""
    try:
        save_tensors(path, tensors, metadata)
    except OSError as error:
        say_once(f"dim: {error.filename or path}: {error.strerror or error}: not kept, so the next start does this work again")
