"""What somebody's data are, found without reading all of them: classes with their images, parts, sizes, grey or colour."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dim.config import DATASETS, DataConfig
from dim.config.data import needs_size, require_no_root
from dim.data.items import Items
from dim.data.real import Part, divided
from dim.errors import InputError

_HEADERS = 1000  # files whose headers are read
_DECODED = 100  # pictures of colour modes that are decoded to see whether they are grey
_CLASSES = 8  # that are named with their counts
_SAME = 4  # levels of 255 by which the channels of a grey JPEG may differ
_PROVISIONAL = 32  # pixels at which pictures are decoded while no size has been chosen


@dataclass(frozen=True)
class Look:
    """What was found.

    Attributes:
        name: of the data set.
        classes: their names, in label order.
        counts: images per class, of all parts together.
        parts: images of the training, the validation and the test part.
        own: the parts that the data bring themselves; the others are taken from the training part.
        sides: shorter sides in pixels of the images that were looked at, sorted.
        square: whether all of these are square and of one size.
        modes: how many of these have which of Pillow's modes; empty where the source has none.
        grey: whether no colour was found.
    """

    name: str
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    parts: dict[Part, int]
    own: tuple[Part, ...]
    sides: tuple[int, ...]
    square: bool
    modes: dict[str, int]
    grey: bool

    @property
    def median(self) -> int:
        """Median of the shorter sides, in pixels."""
        return self.sides[len(self.sides) // 2]

    def to_dict(self) -> dict[str, Any]:
        """What was found, for a JSON file; of the sides only the smallest, the median and the largest."""
        sides = {"smallest": self.sides[0], "median": self.median, "largest": self.sides[-1]}
        counts = dict(zip(self.classes, self.counts, strict=True))
        facts = {name: getattr(self, name) for name in ("name", "parts", "own", "square", "modes", "grey")}
        return {**facts, "classes": counts, "shorter_side": sides, "images_looked_at": len(self.sides)}

    def lines(self) -> list[str]:
        """What was found, for people."""
        few, many = min(self.counts), max(self.counts)
        each = ", ".join(f"{name} {count:,}" for name, count in zip(self.classes[:_CLASSES], self.counts, strict=False))
        if len(self.classes) > _CLASSES:
            fewest = self.classes[self.counts.index(few)]
            each = f"{few:,} in each" if few == many else f"{few:,} (in {fewest}) to {many:,} in a class"
        taken = [part for part in ("val", "test") if part not in self.own]
        from_it = f"; {' and '.join(taken)} {'are' if len(taken) > 1 else 'is'} taken from the training images" if taken else ""
        parts = ", ".join(f"{count:,} {part}" for part, count in self.parts.items())
        size = f"{self.sides[0]}" if self.sides[0] == self.sides[-1] else f"{self.sides[0]} to {self.sides[-1]}"
        middle = "" if self.sides[0] == self.sides[-1] else f" (median {self.median})"
        kinds = ", ".join(f"{count:,} {mode}" for mode, count in self.modes.items())
        looked = f"{len(self.sides):,} images looked at: " if sum(self.counts) > len(self.sides) else ""
        colours = "grey" if self.grey else "in colour"
        return [
            f"{self.name}: {len(self.classes):,} classes, {sum(self.counts):,} images: {each}",
            f"parts: {parts}{from_it}",
            f"{looked}{colours}{f' ({kinds})' if kinds else ''}, shorter side {size} pixels{middle}",
        ]


def look(config: DataConfig) -> Look:
    """Look at the data that a configuration names. Its size and its channels count only where they are given.

    Raises:
        InputError: as `dim.data.real.load_data` does, but for images that are damaged behind their headers.
    """
    require_no_root(config)
    source = DATASETS.load(config.dataset)
    if config.resolution is None and needs_size(config.dataset):
        config = replace(config, resolution=_PROVISIONAL)
    train, test, val = (*source(config), None)[:3]
    parts = divided(config, train, test, val)
    own: dict[Part, Items] = {part: items for part, items in (("val", val), ("test", test)) if items is not None}
    whole = [train, *own.values()]
    sizes, modes = _sizes(whole)
    sides = sorted(min(size) for size in sizes)
    total = sum(torch.bincount(items.labels, minlength=len(train.names)) for items in whole)
    return Look(
        name=config.root if needs_size(config.dataset) and config.root else config.dataset,
        classes=tuple(train.names),
        counts=tuple(total.tolist()),
        parts={part: len(indices) for part, (_, indices) in parts.items()},
        own=tuple(own),
        sides=tuple(sides),
        square=len(set(sizes)) == 1 and sizes[0][0] == sizes[0][1],
        modes=dict(modes.most_common()),
        grey=_grey(train, modes),
    )


def _sizes(parts: Sequence[Items]) -> tuple[list[tuple[int, int]], Counter[str]]:
    """Width and height, and the modes, of images from everywhere in the parts."""
    sizes, modes = [], Counter()
    for items in parts:
        if items.header is None:
            held = items.images if items.images is not None else items.image(0)[None]
            sizes += [(held.shape[3], held.shape[2])] * len(items.labels)
            continue
        for index in _spread(len(items.labels), _HEADERS):
            width, height, mode = items.header(index)
            sizes.append((width, height))
            modes[mode] += 1
    if not sizes:
        raise InputError("there are no images")
    return sizes, modes


def _grey(items: Items, modes: Counter[str]) -> bool:
    """Whether all are grey by their modes, or by their pixels where they could be in colour."""
    if items.images is not None:
        return items.images.shape[1] == 1
    if modes and all(mode in ("1", "L", "LA", "La") or mode.startswith("I") for mode in modes):
        return True
    for index in _spread(len(items.labels), _DECODED):
        image = items.image(index).short()
        if int((image.amax(0) - image.amin(0)).max()) > _SAME:
            return False
    return True


def _spread(count: int, most: int) -> list[int]:
    """At most so many indices below `count`, evenly spread."""
    return list(range(count)) if count <= most else torch.linspace(0, count - 1, most).long().tolist()
