"""The file of everything coded: `DIMZ`, the number of its format, a checksum, a packed JSON header, and streams of bytes.

    4 bytes   DIMZ
    1 byte    format, 1
    8 bytes   BLAKE2b of all that follows
    4 bytes   length of the header, little-endian
    header    JSON, deflated with a preset dictionary of usual words; `parts` are [name, length] of the streams
    streams   one after another

Nothing is unpickled, and lengths are checked before there is memory for what they say.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dim.errors import InputError
from dim.io import parse_json, reading
from dim.outputs import write_bytes

SUFFIX = ".dimz"
MAGIC = b"DIMZ"
FORMAT = 1
KINDS = ("generator", "set", "student")
_DIGEST = 8
_START = struct.Struct(f"<4sB{_DIGEST}s")
_LENGTH = struct.Struct("<I")
_MOST_HEADER, _MOST_FILE = 2**20, 2**30
# Part of format 1: a header of usual words costs little. Those that stand last are found first.
_USUAL = (
    b'"class_names":["airplane","automobile","bird","cat","deer","dog","frog","horse","ship","truck"],"mean":[0.4914,'
    b'"T-shirt/top","Trouser","Pullover","Dress","Coat","Sandal","Shirt","Sneaker","Bag","Ankle boot"]'
    b'"0","1","2","3","4","5","6","7","8","9"],"0 - zero","1 - one","2 - two","cifar100""svhn""folder""digits""mnist"'
    b'"policy_settings":{"steps":["refined","matched"],"candidates":200},"policy_seconds":"anchors":50,"spread":0.3,"policy_seed":0'
    b'"teacher":"experts at 100 % of their path, temperature 1","top_k":"step_size":"seconds":"total_steps":"recipe":"method":'
    b'{"name":"dim2023","latent_dim":64,"label_scale":1.0,"width":64},"architecture":{},"diffusion""pipeline""guidance""steps":'
    b'{"kind":"generator","bits":4,"anchors":0,"width":0,"spec":{"generator":{"name":"gan","latent_dim":32,"width":24,"blocks":1},'
    b'"data":{"dataset":"cifar10","root":null,"resolution":null,"channels":null,"val_fraction":0.1,"split_seed":0,"memory_gib":1.5,'
    b'"download":false},"protocol":{"students":["convnet"],"epochs":1000,"full_epochs":0,"batch_size":64,"lr":0.01,"momentum":0.9,'
    b'"weight_decay":0.0005,"schedule":"step","augment":"color|crop|cutout|flip|scale|rotate","learned_lr":true,"precision":"auto",'
    b'"compile":"auto","zca":false},"about":{"info":{"method":"generator","policy":"plain","seed":0,"sampler":{},'
    b'"spec":{"name":"fashion-mnist","channels":1,"height":28,"width":28,"class_names":["],"mean":[0.2860],"std":[0.3530],'
    b'"fingerprint":"{"kind":"set","count":100,"codec":["webp",30,false],"labels":"turns","soft":0,"pixels":"'
    b'"parts":[["weights",["vectors",["scales",["exact",["anchors",["images",["labels",["soft",'
)


def pack(header: Mapping[str, Any], parts: Mapping[str, bytes]) -> bytes:
    """The whole content of a file.

    Args:
        header: JSON values, with `kind`.
        parts: streams by name; empty ones are left out.
    """
    parts = {name: part for name, part in parts.items() if part}
    text = json.dumps(
        {**header, "parts": [[name, len(part)] for name, part in parts.items()]}, separators=(",", ":"), allow_nan=False
    )
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, _USUAL)
    packed = squeezer.compress(text.encode()) + squeezer.flush()
    body = _LENGTH.pack(len(packed)) + packed + b"".join(parts.values())
    return _START.pack(MAGIC, FORMAT, _checksum(body)) + body


def write(path: Path | str, content: bytes) -> None:
    """Write a packed file, atomically."""
    write_bytes(path, content)


def is_coded(path: Path | str) -> bool:
    """Whether a path is a file that begins as coded ones do."""
    path = Path(path)
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as handle:
            return handle.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):  # which nobody may read, or is no path
        return False


def read(path: Path | str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Header and streams of a file.

    Raises:
        InputError: if it is missing, too large, damaged, of a later format, or no coded file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}: expected a {SUFFIX} file made by 'dim sample --bytes' or 'dim export --bytes'")
    if (size := path.stat().st_size) > _MOST_FILE:
        raise InputError(f"{path} has {size:,} bytes: expected at most {_MOST_FILE:,} of a coded file")
    content = path.read_bytes()
    if content[: len(MAGIC)] != MAGIC or len(content) < _START.size:
        raise InputError(f"{path} is no coded file: expected one made by 'dim sample --bytes' or 'dim export --bytes'")
    _, number, checksum = _START.unpack_from(content)
    body = content[_START.size :]
    if _checksum(body) != checksum:
        raise InputError(f"{path} is damaged: its content does not match its checksum; restore it or make it again")
    if number != FORMAT:
        raise InputError(f"{path} has format {number}: this version reads {FORMAT}; upgrade dim-distill")
    with reading(path, "its header"):
        return _unpacked(body)


def _unpacked(body: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    (length,) = _LENGTH.unpack_from(body) if len(body) >= _LENGTH.size else (-1,)
    if not 0 < length <= len(body) - _LENGTH.size:
        raise ValueError(f"{length} bytes in a file of {len(body)}")
    opener = zlib.decompressobj(-15, _USUAL)
    text = opener.decompress(body[_LENGTH.size : _LENGTH.size + length], _MOST_HEADER)
    if not opener.eof:
        raise ValueError(f"more than {_MOST_HEADER:,} bytes, or cut short")
    header = parse_json(text)
    if not isinstance(header, dict) or header.get("kind") not in KINDS:
        raise ValueError(f"expected a JSON object with one of the kinds {', '.join(KINDS)}")
    parts, place = {}, _LENGTH.size + length
    for name, size in header.pop("parts"):
        if not isinstance(name, str) or isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= len(body) - place:
            raise ValueError(f"stream {str(name)[:20]!r} has {str(size)[:20]} bytes")
        parts[name], place = body[place : place + size], place + size
    if place != len(body):
        raise ValueError(f"{len(body) - place} bytes belong to no stream")
    return header, parts


def require(header: Mapping[str, Any], **kinds: type | tuple[type, ...]) -> None:
    """Raise ValueError for a field of a header that is missing or of another type; a boolean is no number."""
    for name, kind in kinds.items():
        value = header.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{name} is {str(value)[:40]!r}")


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST).digest()
