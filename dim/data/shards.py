"""WebDataset shards: tar files of images and labels, indexed once and read at random without being unpacked."""

import contextlib
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dim.config import DataConfig
from dim.data.files import EXTENSIONS, Listing, counted, decode_picture, is_litter, picture_header
from dim.data.items import Items
from dim.data.pillow import reason
from dim.data.survey import Reading
from dim.errors import InputError
from dim.io import cache_folder, digest, keep_tensors, load_tensors, read_json
from dim.launch import say_once

_FORMAT = 2  # of kept indexes; to be raised when another index would be made of the same shards
_BLOCK, _PART = tarfile.BLOCKSIZE, 2**20
_LARGEST_LABEL_FILE = 2**20  # bytes
_IMAGE, _NUMBER, _JSON = "<image>", "cls", "json"


def class_names(root: Path) -> tuple[str, ...] | None:
    """The names in `classes.txt` (one in a line) or `classes.json` (a list, or an object of numbers by name); None without both.

    Raises:
        InputError: if it is damaged, has fewer than two names, or one twice.
    """
    text, table = root / "classes.txt", root / "classes.json"
    if text.is_file():
        path = text
        try:
            names = [line.strip() for line in text.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{text} cannot be read ({reason(error)}): expected a class name in each line") from None
    elif table.is_file():
        path, names = table, read_json(table)
        if isinstance(names, dict) and sorted(map(str, names.values())) == sorted(map(str, range(len(names)))):
            names = sorted(names, key=lambda name: int(names[name]))
    else:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise InputError(
            f"{path} holds no class names: expected a list of different names, or an object of numbers from 0 by name"
        )
    if len(names) < 2:
        raise InputError(f"{path} names {len(names)} class(es): expected at least 2")
    return tuple(names)


def shard_items(paths: Sequence[Path], names: tuple[str, ...] | None, config: DataConfig) -> Items:
    """Items of shards, decoded when asked for.

    Args:
        paths: of the shards, in order.
        names: of the classes. Default: their numbers, up to the largest label.
        config: size and channels of images.

    Raises:
        InputError: if a shard is damaged, an image has no label or a label no image, or a label is out of range.
    """
    listing = Listing()
    for path in paths:
        listing.add(str(path))
    index, others = _index(listing, names, config.dataset)
    if others:
        whole, place = sum(others.values()), Path(listing.paths[0]).parent
        files = "1 file is of no image" if whole == 1 else f"{whole} files are of no images"
        say_once(f"dim: {place}: {files} that can be read, left out: {counted(others)}")
    labels = index["label"]
    if names is None:
        classes = int(labels.max()) + 1
        if classes > len(labels):
            raise InputError(f"labels go up to {classes - 1} and there are {len(labels)} images: number the classes from 0")
        names = tuple(map(str, range(classes)))

    def content(item: int) -> tuple[io.BytesIO, Callable[[], str]]:
        path, offset = listing.paths[int(index["shard"][item])], int(index["offset"][item])
        with open(path, "rb") as shard:
            shard.seek(offset)
            return io.BytesIO(shard.read(int(index["size"][item]))), lambda: f"{_name_at(path, offset)} in {path}"

    def decode(item: int) -> tuple[Tensor, int]:
        return decode_picture(*content(item), config)

    def header(item: int) -> tuple[int, int, str]:
        return picture_header(*content(item))

    return Items(labels, names, decode=decode, state=listing.state(), header=header)


def _index(listing: Listing, names: tuple[str, ...] | None, what: str) -> tuple[dict[str, Tensor], Counter[str]]:
    """Of all images int64 (N,) `shard`, `offset` and `size` in bytes, and `label`; and how many files belong to none, by their
    endings. From the cache folder if it is there."""
    state = listing.state()
    path = cache_folder("data") / f"index-{digest({}, json.dumps([_FORMAT, state, names]))}.safetensors"
    if state:
        try:
            kept, about = load_tensors(path)
            return kept, Counter(about["others"])
        except InputError:  # absent, or damaged: made again
            pass
    parts: list[Tensor] = []
    others: Counter[str] = Counter()
    positions = None if names is None else {name: number for number, name in enumerate(names)}
    with Reading(f"{what}, index", len(listing.paths), "shard") as reading:
        for number, shard in enumerate(listing.paths):
            try:
                rows = [(number, *row) for row in _samples(shard, positions, others)]
                parts.append(torch.tensor(rows, dtype=torch.int64).view(-1, 4))
            except _Unlabelled as error:
                raise InputError(f"shard {shard} cannot be read ({error})") from None
            except Exception as error:  # tarfile raises almost anything at damaged bytes
                raise InputError(f"shard {shard} cannot be read ({reason(error)}): copy or make it again") from None
            reading.advance()
    columns = torch.cat(parts).T.contiguous()
    if not columns.numel():
        raise InputError(
            f"{Path(listing.paths[0]).parent} has shards without images: expected {', '.join(sorted(EXTENSIONS))} in them"
        )
    index = dict(zip(("shard", "offset", "size", "label"), columns, strict=True))
    if state:
        keep_tensors(path, index, {"kind": "index", "others": others})
    return index, others


def _samples(path: str, positions: Mapping[str, int] | None, others: Counter[str]) -> list[tuple[int, int, int]]:
    """Offset, size and label of all images of a shard, in its order. What belongs to no image is counted in `others`."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    beside: list[tuple[str, str]] = []
    with _Shard(path) as shard:
        for member in _members(shard):
            folder, _, name = member.name.rpartition("/")
            key, _, suffix = name.partition(".")
            kind = _IMAGE if f".{suffix.lower()}" in EXTENSIONS else suffix.lower()
            if not key or is_litter(name) or member.isdir():
                continue
            if kind not in (_IMAGE, _NUMBER, _JSON):
                beside.append((f"{folder}/{key}", kind))
                continue
            if not member.isreg() or member.issparse():
                raise ValueError(f"its member {member.name[:60]!r} is a link or has holes")
            sample = found.setdefault(f"{folder}/{key}", {})
            if kind in sample:
                raise ValueError(f"it has two files of the kind {kind!r} for {key[:60]!r}")
            sample[kind] = member.offset_data, member.size
        samples = []
        for key, sample in found.items():
            key = key.removeprefix("/")[:60]
            if _IMAGE in sample:
                samples.append((*sample[_IMAGE], _label(shard, sample, positions, key)))
            elif _NUMBER in sample:
                raise ValueError(f"{key!r} has a label and no image")
    others.update(f".{kind}" if kind else "without an ending" for key, kind in beside if _IMAGE not in found.get(key, {}))
    return samples


def _label(shard: io.BufferedReader, sample: Mapping[str, tuple[int, int]], positions: Mapping[str, int] | None, key: str) -> int:
    """The class of a sample: what `cls` holds, or `label` in `json`; a number, or a name."""
    offset, size = sample.get(_NUMBER, sample.get(_JSON, (0, 0)))
    if not size:
        remedy = "; class folders are read where they are unpacked" if "/" in key else ""
        raise _Unlabelled(f"{key!r} has no label: expected a file .cls, or .json with 'label'{remedy}")
    if size > _LARGEST_LABEL_FILE:
        raise ValueError(f"the label of {key!r} has {size} bytes")
    shard.seek(offset)
    value = shard.read(size).decode().strip()
    if _NUMBER not in sample:
        value = json.loads(value)
        value = value.get("label") if isinstance(value, dict) else None
    if isinstance(value, str):
        whole = re.fullmatch(r"(\d{1,9})(\.0*)?", value)
        value = int(whole[1]) if whole else (positions or {}).get(value, value)
    largest = 10**9 if positions is None else len(positions) - 1
    if type(value) is not int or not 0 <= value <= largest:
        names = "a number of a class, or a name if a classes.txt beside the shards has the names, one in each line"
        expected = names if positions is None else f"a number from 0 to {largest}, or a name of classes"
        raise _Unlabelled(f"the label of {key!r} is {value!r:.40}: expected {expected}")
    return value


class _Unlabelled(ValueError):
    """A sound shard whose images have no label that is understood."""


class _Shard(io.BufferedReader):
    """A file that never allocates for more bytes than it has: headers of damaged archives may claim any size."""

    def __init__(self, path: str) -> None:
        super().__init__(io.FileIO(path))
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _members(shard: _Shard) -> Iterator[tarfile.TarInfo]:
    """The members of an archive up to its end mark; a damaged header, which `tarfile` takes for the end, is refused."""
    with tarfile.open(fileobj=shard, mode="r:") as archive:
        reached = 0
        while (member := archive.next()) is not None:
            archive.members = []  # which would keep them all
            if member.size < 0 or member.offset_data < reached or member.offset_data + member.size > shard.size:
                raise ValueError(f"its member {member.name[:60]!r} lies outside")
            reached = member.offset_data + member.size
            yield member
        shard.seek(archive.offset)
        if shard.read(_BLOCK) != bytes(_BLOCK):
            raise ValueError(f"it is truncated or damaged at byte {archive.offset}")
        while rest := shard.read(_PART):
            if rest.count(0) != len(rest):
                raise ValueError("more follows its end, as in archives put one behind the other: give each as a file")


def _name_at(path: str, offset: int) -> str:
    """The name of the member whose content is at an offset, for messages; its place if the shard has changed since."""
    with contextlib.suppress(Exception), _Shard(path) as shard:
        return next(member.name for member in _members(shard) if member.offset_data == offset)
    return f"byte {offset}"
