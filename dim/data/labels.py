"""Labels in a file beside images, as the `datasets` library, StyleGAN and spreadsheets have them."""

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dim.classes import resembling
from dim.config import DataConfig
from dim.data.files import EXTENSIONS, Listing, file_items, image_files
from dim.data.items import Items
from dim.data.names import part_of
from dim.errors import InputError
from dim.launch import say_once

FILES = ("dataset.json", "metadata.jsonl", "metadata.csv", "labels.csv")
_FILE_KEYS = ("file_name", "filename", "file", "image", "path")
_LABEL_KEYS = ("label", "labels", "class", "class_name", "category", "target")
_MOST_BYTES = 2**30


def label_file(folder: Path) -> Path | None:
    """The file with labels in a folder, if there is one."""
    return next(iter(_label_files(folder)), None)


def _label_files(folder: Path) -> list[Path]:
    return [folder / name for name in FILES if (folder / name).is_file()]


def labels_within_folders(source: Path) -> bool:
    """Whether a file gives images of one folder several labels, so that folders are no classes; False for one that is damaged."""
    labels: dict[str, set[str]] = {}
    with contextlib.suppress(InputError):
        for file, label in _rows(source):
            labels.setdefault(file.partition("/")[0] if "/" in file else "", set()).add(label)
    return any(len(own) > 1 for folder, own in labels.items() if folder)


def _require_one_part(source: Path, files: Sequence[str]) -> None:
    """Refuse a file that names images of several parts, which would all be trained on."""
    folders = {file.partition("/")[0] for file in files if "/" in file}
    parts = {part: name for name in folders if (part := part_of(name))}
    if len(parts) > 1 and "train" in parts:
        found = " and ".join(f"{name}/" for name in sorted(parts.values()))
        raise InputError(f"{source} names images in {found}: expected a file of labels in each of these folders")


def labelled_items(folder: Path, config: DataConfig, names: tuple[str, ...] | None = None) -> Items:
    """Items of the images that a folder's file of labels names; with `names`, the classes must be among those.

    Images without a label, `null` in dataset.json, are left out, and so are images that the file does not name; both are said.

    Raises:
        InputError: if there is no such file, it is damaged, names an image that is not there, or one twice.
    """
    source, *unread = _label_files(folder) or [None]
    if source is None:
        raise InputError(f"{folder} has no file of labels: expected one of {', '.join(FILES)}; class folders: --dataset folder")
    if unread:
        say_once(f"dim: {folder}: labels are those of {source.name}; {', '.join(file.name for file in unread)} is not read")
    rows = list(_rows(source))
    if names is None:
        _require_one_part(source, [file for file, _ in rows])
    labels: dict[str, str] = {}
    for file, label in rows:
        if file in labels:
            raise InputError(f"{source} names {file} twice: expected each image once")
        labels[file] = label
    known = tuple(sorted(set(labels.values()), key=_order)) if names is None else names
    if len(known) < 2:
        raise InputError(f"{source} has labels of {len(known)} class: expected at least 2")
    if unknown := sorted(set(labels.values()) - set(known)):
        near = resembling(unknown[0], known)
        raise InputError(f"{source} has class {unknown[0]!r} that the training part lacks{near}: remove or rename it")
    if names is not None and (missing := sorted(set(known) - set(labels.values()))):
        raise InputError(f"{source} has no image of class {missing[0]!r}, which the training part has: add one")
    listing, place, numbers = Listing(), {name: number for number, name in enumerate(known)}, []
    for file, label in labels.items():
        path = folder / file
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise InputError(f"{source} names {file!r}: expected paths that begin at {folder}, without / or .. in front")
        if path.suffix.lower() not in EXTENSIONS:
            raise InputError(f"{source} names {file!r}: expected an image, whose name ends in {', '.join(sorted(EXTENSIONS))}")
        if not path.exists() and not path.is_symlink():
            raise InputError(
                f"{source} names {file!r}, which is missing from {folder}: copy it there, or remove it from the file"
            )
        listing.add(str(path))
        numbers.append(place[label])
    others = len(set(image_files(folder).paths) - set(listing.paths))
    if others:
        say_once(f"dim: {folder}: {others} image{'s are' if others > 1 else ' is'} not named in {source.name}: left out")
    return file_items(listing, numbers, known, config)


def _order(name: str) -> tuple[bool, int, str]:
    """Classes that are numbers stand in the order of their values, others in that of their names."""
    return (False, int(name), name) if name.removeprefix("-").isdecimal() and len(name) < 10 else (True, 0, name)


def _rows(source: Path) -> Iterator[tuple[str, str]]:
    """Names of images, with / between folders, and their labels as text."""
    if source.stat().st_size > _MOST_BYTES:
        raise InputError(f"{source} has more than {_MOST_BYTES // 2**20} MiB: expected names of images and labels")
    try:
        text = source.read_text("utf-8-sig")
        kind = {".json": _stylegan, ".jsonl": _json_lines, ".csv": _csv}[source.suffix]
        unlabelled = 0
        for file, label in kind(text):
            if label is None:
                unlabelled += 1
                continue
            yield _plain(file), label
    except (ValueError, TypeError, RecursionError, csv.Error) as error:
        reason = "it is not text in UTF-8" if isinstance(error, UnicodeDecodeError) else str(error) or type(error).__name__
        raise InputError(f"{source} cannot be read ({reason:.150}): mend it") from None
    if unlabelled:
        say_once(f"dim: {source}: {unlabelled} image{'s have' if unlabelled > 1 else ' has'} no label: left out")


def _plain(file: str) -> str:
    """One name for each image: with / between folders, once, and without those called `.`."""
    parts = file.replace("\\", "/").split("/")
    return "/".join(part for place, part in enumerate(parts) if part != "." and (part or place == 0))


def _stylegan(text: str) -> Iterator[tuple[str, str | None]]:
    content = json.loads(text)
    rows = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise TypeError("expected {'labels': [['image.png', 0], ...]}")
    for row in rows:
        if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)):
            raise ValueError(f"its row {row!r:.60} is no pair of a file and a label")
        yield row[0], None if row[1] is None else _label(row[1], row[0])


def _json_lines(text: str) -> Iterator[tuple[str, str | None]]:
    for number, line in enumerate(text.split("\n"), 1):  # other marks of a line's end may stand in names
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise TypeError(f"line {number} is no JSON object")
        yield _pair(row, f"line {number}")


def _csv(text: str) -> Iterator[tuple[str, str | None]]:
    """Cells stand between commas, semicolons or tabs: what the first line has most of."""
    first = text.lstrip("\r\n").split("\n", 1)[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=max(",;\t", key=first.count))
    columns = [name.strip().lower() for name in reader.fieldnames or ()]
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise ValueError(f"two columns are named {twice!r}")
    for row in reader:
        if any(row.pop(None, ())):
            raise ValueError(f"line {reader.line_num} has more cells than the first line has names: quote what has a comma in it")
        yield _pair(row, f"line {reader.line_num}")


def _pair(row: Mapping[str, Any], where: str) -> tuple[str, str | None]:
    """The image and the label of a row, by the usual names of the columns."""
    columns = {key.strip().lower(): value for key, value in row.items()}
    if (split := str(columns.get("split") or "").strip()) and part_of(split) not in (None, "train"):
        raise ValueError(f"{where} has the split {split!r}: give each part a folder, train/ and test/, with a file of its own")
    found = []
    for kind, keys in (("an image", _FILE_KEYS), ("a label", _LABEL_KEYS)):
        key = next((key for key in keys if key in columns), None)
        if key is None:
            raise ValueError(f"{where} has {', '.join(map(repr, list(row)[:6]))}, and {kind} is named {' or '.join(keys)}")
        if others := [other for other in keys if other in columns and other != key]:
            say_once(f"dim: {kind} is taken from {key!r}, and not from {' or '.join(map(repr, others))}")
        found.append(columns[key])
    file, label = found
    if not isinstance(file, str) or not file:
        raise ValueError(f"{where} names no image")
    return file, None if label is None or not str(label).strip() else _label(label, where)


def _label(label: Any, where: str) -> str:
    """A label as text: numbers that tables have as 2.0, as soon as one label is missing, are whole."""
    if isinstance(label, bool) or not isinstance(label, int | float | str) or (isinstance(label, float) and label % 1 != 0):
        raise TypeError(f"{where} has the label {label!r:.40}: expected a whole number or a name")
    text = str(label).strip()
    return text.partition(".")[0] if re.fullmatch(r"-?\d+\.0*", text) else text
