"""Files: safetensors with JSON metadata, written atomically and verified when read. Nothing is ever unpickled."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dim.errors import InputError

_METADATA_KEY = "dim"
_DIGEST_KEY = "digest"


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes its place, on failure it is removed.

    A reader sees the old file or the new one, never a part, also after a kill or a full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes its place, on failure it is removed.

    Raises:
        InputError: if `path` exists and is not an empty folder, unless `overwrite`, which then replaces it.
    """
    path = Path(path).absolute()
    require_free(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            retired = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
            os.replace(path, retired)
            try:
                os.replace(temporary, path)
            except BaseException:
                os.replace(retired, path)
                raise
            shutil.rmtree(retired)
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def require_free(path: Path | str, *, overwrite: bool = False) -> None:
    """Raise InputError if something other than an empty folder is at `path` and `overwrite` is not set."""
    path = Path(path)
    if path.is_dir():
        if any(path.iterdir()) and not overwrite:
            raise InputError(f"output folder {path} is not empty: name a new folder, or pass --overwrite to replace it")
    elif path.exists():
        raise InputError(f"output {path} is a file: expected a folder that does not exist yet")


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path | str, value: Any) -> None:
    """Write indented JSON atomically. Non-finite numbers are refused: they are not JSON."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path | str) -> Any:
    """Parse a JSON file.

    Raises:
        InputError: if it is missing or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: not valid JSON ({error}); restore it or make it again") from None


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
    try:
        with safetensors.safe_open(path, framework="pt") as handle:
            header = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (no iterator of its own)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is truncated or damaged ({error}): restore it or make it again") from None
    if _METADATA_KEY not in header:
        raise InputError(f"{path} has no dim metadata: expected a file written by dim")
    if digest(tensors, header[_METADATA_KEY]) != header.get(_DIGEST_KEY):
        raise InputError(f"{path} is damaged: its content does not match its checksum; restore it or make it again")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, json.loads(header[_METADATA_KEY])


def cache_folder(kind: str) -> Path:
    """Where what is learned once for a data set is kept: `dim/KIND` in `$XDG_CACHE_HOME` or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dim" / kind


def is_no_space(error: OSError) -> bool:
    """Whether an operating-system error means that a disk, a quota or a file-size limit is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
