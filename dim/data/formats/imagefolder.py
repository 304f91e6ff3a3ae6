"""PNG files in class folders, with `images.jsonl`; torchvision's ImageFolder and the `datasets` library read it."""

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dim.data.format import Format
from dim.data.items import DECODE_THREADS, in_parts
from dim.data.png import pixels, to_png
from dim.errors import InputError
from dim.nets.generator import Generator
from dim.spec import DataSpec

__all__ = ["ImageFolder"]

_LEFT_OUT = re.compile(r"[^\w.-]+")
_NAME = 60  # characters, of up to four bytes each, while file systems take 255 bytes
_ROWS = "images.jsonl"
_EARLIER_ROWS = "metadata.jsonl"  # of earlier versions; for a file of that name `datasets` gives no ClassLabel


def class_folders(spec: DataSpec) -> list[str]:
    """A folder name per class: its number, so that sorting keeps the order, and its name as far as file systems allow."""
    width = len(str(spec.num_classes - 1))
    kept = [_LEFT_OUT.sub("-", name)[:_NAME].strip("-.") for name in spec.class_names]
    return [f"{label:0{width}d}_{name}".rstrip("_") for label, name in enumerate(kept)]


class ImageFolder(Format):
    """See `dim.data.format.Format`: `<class>/<number>.png`, and a row for each image in the order of the set."""

    eight_bits, by_folder = True, True

    def write(self, folder: Path, content: Mapping[str, Tensor], spec: DataSpec, *, generator: Generator | None = None) -> None:
        labels = content["labels"].tolist()
        folders = class_folders(spec)
        seen = [0] * spec.num_classes
        names = []
        for label in labels:
            names.append(f"{folders[label]}/{seen[label]:05d}.png")
            seen[label] += 1
        for label, count in enumerate(seen):
            if count:
                (folder / folders[label]).mkdir()

        def write(position: int) -> None:
            (folder / names[position]).write_bytes(to_png(content["images"][position]))

        with ThreadPoolExecutor(DECODE_THREADS) as pool:
            in_parts(write, len(labels), pool)
        with open(folder / _ROWS, "w") as handle:
            for position, (name, label) in enumerate(zip(names, labels, strict=True)):
                record = {"file_name": name, "label": label, "class_name": spec.class_names[label]}
                if "soft" in content:
                    record["soft"] = content["soft"][position].tolist()
                handle.write(json.dumps(record) + "\n")

    def read(self, folder: Path, spec: DataSpec, description: Mapping[str, Any]) -> dict[str, Tensor]:
        records = _records(folder / (_ROWS if (folder / _ROWS).exists() else _EARLIER_ROWS))
        images = torch.empty(len(records), *spec.image_shape, dtype=torch.uint8)

        def read(number: int) -> None:
            file = folder / records[number]["file_name"]
            try:
                images[number] = pixels(file, spec)
            except ValueError as error:
                raise InputError(f"image {file} is missing or damaged ({error}); make the set again") from None

        with ThreadPoolExecutor(DECODE_THREADS) as pool:
            in_parts(read, len(records), pool)
        content = {
            "images": images,
            "labels": torch.tensor([record["label"] for record in records]),
        }
        if "soft" in records[0]:
            content["soft"] = torch.tensor([record["soft"] for record in records])
        return content


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        records = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is missing or damaged ({error}); make the set again") from None
    if not records or not all({"file_name", "label"} <= record.keys() for record in records):
        raise InputError(f"{path} is damaged: expected a file_name and a label in every row; make the set again")
    return records
