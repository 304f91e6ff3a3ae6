"""ReplayMemory: what a learner keeps of earlier tasks, in a fixed number of bytes that is never exceeded.

The images of a class have an order, that of the set or generator they come from: the first n are the set of n images per class.
So a memory makes room by dropping the last images of every class. Nothing is chosen, coded or stored anew, and what stays is what
the source would have given at that size.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dim.classes import class_number, whole_number
from dim.data.loader import Positions
from dim.data.real import EpochBatches
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.io import load_tensors, reading, save_tensors
from dim.launch import say_once
from dim.nets.generator import Generator
from dim.replay.coding import coding_of
from dim.sampler import sample_set
from dim.spec import DataSpec, to_uint8

_KIND, _FORMAT = "replay memory", 1
_MOST_ADDITIONS = 255  # of a class that are told apart, as their number is held in a byte
_SHARE_BYTES = 4


class _Item(NamedTuple):
    code: bytes
    soft: Tensor | None
    addition: int = 0
    """Of its class, which one brought it."""


class ReplayMemory:
    """Images of every class in a fixed number of bytes.

    When a set is added and the budget would be exceeded, every class is cut to the same number of images: its first ones. A
    class that was given fewer keeps all of them. What counts is what `state_dict` holds: images, labels, and a byte per class
    (and four for every addition to a class that was added to more than once).

    Args:
        spec: the data, with all classes that may come; see `RealData.spec` and `SyntheticSet.spec`.
        bytes: the budget.
        webp: hold images in WebP of this quality, 1 to 100, coded once, when they are added. Default: 8 bits per channel.

    Raises:
        InputError: for a budget below 1 or another quality.
    """

    def __init__(self, spec: DataSpec, *, bytes: int, webp: int | None = None) -> None:
        self.spec, self.bytes = spec, whole_number(bytes, "bytes")
        if self.bytes < 1:
            raise InputError(f"bytes is {self.bytes}: expected 1 or more")
        self.webp = None if webp is None else whole_number(webp, "webp")
        self.top_k: int | None = None
        """Of soft labels, see `Teacher`; None while labels are hard."""
        self._coding = coding_of(spec, self.webp)
        self._content: dict[int, list[_Item]] = {}

    def __len__(self) -> int:
        """Images."""
        return sum(map(len, self._content.values()))

    @property
    def counts(self) -> dict[int, int]:
        """Images of every class that has any."""
        return {label: len(items) for label, items in sorted(self._content.items())}

    def bytes_stored(self) -> dict[str, int]:
        """Bytes of images, of labels, and of what says which addition brought which images: at most the budget."""
        images = sum(len(item.code) for items in self._content.values() for item in items)
        return {
            "images": images,
            "labels": len(self) * self._label_bytes(self.top_k),
            "additions": self._addition_bytes(self._content),
        }

    def _label_bytes(self, top_k: int | None) -> int:
        return self.spec.label_bytes + (0 if top_k is None else self.spec.soft_label_bytes(top_k))

    def _addition_bytes(self, content: Mapping[int, list[_Item]]) -> int:
        counts = [1 + max(item.addition for item in items) for items in content.values() if items]
        return self.spec.num_classes + _SHARE_BYTES * sum(count for count in counts if count > 1)

    # --- adding ----------------------------------------------------------------------------------------------------------------

    def add(self, subject: SyntheticSet | Generator, classes: Sequence[int | str] | None = None, *, seed: int = 0) -> int:
        """Add a task: the images of a set, class by class in its order, or as many of a generator as there is room for.

        Where a class was added to before, old and new images take turns, so that every addition has an equal share of what
        stays; once there are as many additions as images of a class have room, later ones leave nothing of it, which is said.
        Learned pixels are rounded to 8 bits.

        Args:
            subject: of the memory's data, or of some of its classes under the same names, as that of a task has them.
            classes: only these, by number or by name as the memory has them. Default: all of the set.
            seed: of a generator's images.

        Returns:
            Images of the largest class now: every class has as many, or all that it was given.

        Raises:
            InputError: if the subject has other image sizes or class names, or no image of a class that was named; if some sets
                have soft labels and others not; or if the budget does not hold one image of every class. The memory is then as
                it was.
        """
        places = self._places(subject.spec)
        wanted = self._wanted(subject.spec, places, classes)
        if not isinstance(subject, Generator):
            if classes is not None and (empty := wanted.keys() - set(subject.labels.tolist())):
                raise InputError(
                    f"class {subject.spec.class_names[min(empty)]!r} has no image in the set: leave it out of classes"
                )
            return self._hold(*self._with(subject, places, wanted))
        # One more than there is room for, if images have 8 bits. Coded ones are smaller: then twice as many, until some are cut.
        count = self.bytes // (len(wanted) * (self.spec.image_bytes + self.spec.label_bytes)) + 1
        while True:
            drawn = sample_set(subject, ipc=count, classes=list(wanted), seed=seed)
            content, top_k = self._with(drawn, places, wanted)
            if self._room(content, top_k) < count:
                return self._hold(content, top_k)
            count *= 2

    def _places(self, spec: DataSpec) -> list[int | None]:
        """The memory's number of every class of a set or generator; None for one that it does not have."""
        names, mine = spec.class_names, self.spec.class_names
        if spec.image_shape != self.spec.image_shape:
            raise InputError(f"images are {spec.image_shape}: expected {self.spec.image_shape}, as {self.spec.name!r} has them")
        if names == mine:
            return list(range(len(names)))
        if len(set(names)) < len(names) or len(set(mine)) < len(mine):
            raise InputError(f"two classes of {self.spec.name!r} share a name: expected sets with all its classes, in its order")
        return [mine.index(name) if name in mine else None for name in names]

    def _wanted(self, spec: DataSpec, places: Sequence[int | None], classes: Sequence[int | str] | None) -> dict[int, int]:
        """The memory's number of every class that is to be added, by its number in a set or generator."""
        mine = self.spec.class_names
        wanted = {own: label for own, label in enumerate(places) if label is not None}
        if classes is None:
            if None in places:
                other = spec.class_names[places.index(None)]
                raise InputError(f"class {other!r} is none of the memory's: expected {', '.join(mine[:5])}, ...; or give classes")
            return wanted
        only = {class_number(label, mine, "classes") for label in classes}
        if not only or (missing := sorted(only - set(wanted.values()))):
            asked = repr(mine[missing[0]]) if only else "none"
            raise InputError(
                f"classes is {asked}: expected one or more of {', '.join(spec.class_names[:5])}, ..., as the set has"
            )
        return {own: label for own, label in wanted.items() if label in only}

    def _with(
        self, subject: SyntheticSet, places: Sequence[int | None], wanted: Mapping[int, int]
    ) -> tuple[dict[int, list[_Item]], int | None]:
        """What the memory would hold with a set, without a limit: content and `top_k`."""
        top_k = None if subject.soft is None else int(subject.info.get("top_k") or 0)
        if len(self) and top_k != self.top_k:
            kinds = ["hard labels" if k is None else f"soft labels (top_k {k})" for k in (self.top_k, top_k)]
            raise InputError(f"the memory has {kinds[0]} and what is added {kinds[1]}: label all sets alike")
        if top_k is not None and None in places:
            raise InputError("soft labels are over classes that the memory does not have: expected those that it has")
        if top_k and (most := int((subject.soft > 0).sum(1).max())) > top_k:
            raise InputError(
                f"soft labels of {most} classes in a set that says top_k {top_k}: expected at most so many; label it again"
            )
        content = dict(self._content)
        for own, label in wanted.items():
            if new := self._items(subject, own, places):
                content[label] = _in_turns(content.get(label, []), new)
        return content, top_k

    def _items(self, subject: SyntheticSet, own: int, places: Sequence[int | None]) -> list[_Item]:
        """Those of one class, in the set's order."""
        chosen = (subject.labels == own).nonzero().squeeze(1)
        images = subject.images[chosen]
        codes = map(self._coding.encode, images if images.dtype == torch.uint8 else to_uint8(images))
        if subject.soft is None:
            return [_Item(code, None) for code in codes]
        soft = torch.zeros(len(chosen), self.spec.num_classes)
        soft[:, places] = subject.soft[chosen]
        return list(map(_Item, codes, soft))

    def _room(self, content: Mapping[int, list[_Item]], top_k: int | None) -> int:
        """Images of every class that the budget holds."""
        label, used, longest = self._label_bytes(top_k), self._addition_bytes(content), max(map(len, content.values()), default=0)
        for place in range(longest):
            used += sum(len(items[place].code) + label for items in content.values() if place < len(items))
            if used > self.bytes:
                if place == 0:
                    need = f"one image of each of {len(content)} classes takes {used:,}"
                    raise InputError(f"bytes is {self.bytes:,} and {need}: raise it" + ("" if self.webp else ", or give webp"))
                return place
        return longest

    def _hold(self, content: Mapping[int, list[_Item]], top_k: int | None) -> int:
        """Put the first images of every class in place of what is held, as many as there is room for."""
        ipc = self._room(content, top_k)
        for label, items in content.items():
            if items and max(item.addition for item in items) not in {item.addition for item in items[:ipc]}:
                room = f"has room for {ipc} image{'s' if ipc > 1 else ''} of class {self.spec.class_names[label]!r}"
                remedy = "add more at a time, or raise bytes"
                say_once(f"dim: the memory {room}, which was added to more often: nothing of its last addition is kept; {remedy}")
        self._content = {label: _renumbered(items[:ipc]) for label, items in content.items()}
        self.top_k = top_k
        return ipc

    # --- replaying -------------------------------------------------------------------------------------------------------------

    def dataset(self) -> SyntheticSet:
        """The images as a map-style data set, by their place and then by class, as a drawn set has them.

        Raises:
            InputError: if there are none.
        """
        if not len(self):
            raise InputError("the memory holds no images: add a set or a generator first")
        order = sorted((place, label) for label, items in self._content.items() for place in range(len(items)))
        items = [self._content[label][place] for place, label in order]
        info = {"method": _KIND, "bytes": self.bytes_stored(), "webp": self.webp, "top_k": self.top_k}
        soft = None if self.top_k is None else torch.stack([item.soft for item in items])
        images = torch.stack([self._coding.decode(item.code) for item in items])
        return SyntheticSet(images, torch.tensor([label for _, label in order]), self.spec, soft=soft, info=info)

    def batches(self, size: int, *, seed: int = 0, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """Endless shuffled batches of what is held now; every image comes once per pass.

        Args:
            size: images per batch; they may be more than the memory holds.
            seed: of the order.
            device: where batches are put.

        Yields:
            float32 (size, C, H, W) in [-1, 1], and int64 (size,) classes or float32 (size, K) soft labels.

        Raises:
            InputError: for a size below 1, or if there are no images.
        """
        if whole_number(size, "size") < 1:
            raise InputError(f"size is {size}: expected 1 or more images per batch")
        images, targets = (tensor.to(device) for tensor in self.dataset().tensors())
        order = EpochBatches(Positions(len(images)), size, seed=seed, purpose="replay")

        def endless() -> Iterator[tuple[Tensor, Tensor]]:
            step = 0
            while True:
                chosen = order.indices(step).to(device)
                yield images[chosen], targets[chosen]
                step += 1

        return endless()

    # --- keeping ---------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """All that is held, as tensors whose bytes are those of `bytes_stored`: `images` uint8 (codes one after another, class by
        class), `labels` (N,), `additions` uint8 (K,), how many of a class left images; where there are several, `shares` int32,
        how many images each of them left, class by class; and of soft labels `soft` (N, K) or, of the k largest, (N, k)
        with `soft_classes` (N, k). It can be saved, or sent."""
        items = [(label, item) for label, held in sorted(self._content.items()) for item in held]
        dtype = torch.uint8 if self.spec.label_bytes == 1 else torch.uint16
        codes = np.frombuffer(b"".join(item.code for _, item in items), dtype=np.uint8)
        shares = [Counter(item.addition for item in self._content.get(label, [])) for label in range(self.spec.num_classes)]
        several = [each[number] for each in shares if len(each) > 1 for number in range(len(each))]
        state = {
            "images": torch.tensor(codes),
            "labels": torch.tensor([label for label, _ in items], dtype=dtype),
            "additions": torch.tensor([len(each) for each in shares], dtype=torch.uint8),
        }
        if several:
            state["shares"] = torch.tensor(several, dtype=torch.int32)
        if self.top_k is not None and items:
            state["soft"] = torch.stack([item.soft for _, item in items])
            if self.top_k:
                largest = state["soft"].topk(self.top_k, dim=1)
                state |= {"soft": largest.values, "soft_classes": largest.indices.to(dtype)}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Hold what `state_dict` of a memory of the same classes and coding gave, in place of what is held. If this one has a
        smaller budget, it is cut.

        Args:
            state: its tensors, by name.

        Raises:
            InputError: if they are no such state, or not a single image of every class fits. The memory is then as it was.
        """
        with reading("the state of a replay memory"):
            content, top_k = self._read(state)
        self._hold(content, top_k)

    def _read(self, state: Mapping[str, Tensor]) -> tuple[dict[int, list[_Item]], int | None]:
        """What a state holds: content and `top_k`."""
        labels, additions = state["labels"].long().tolist(), state["additions"].long().tolist()
        codes = self._coding.split(state["images"].cpu().numpy().tobytes())
        if len(additions) != self.spec.num_classes or len(codes) != len(labels) or labels != sorted(labels):
            raise ValueError(f"{len(codes)} images, {len(labels)} labels and {len(additions)} classes do not belong together")
        counts = [labels.count(label) for label in range(self.spec.num_classes)]
        if sum(counts) < len(labels) or any(bool(count) != bool(times) for count, times in zip(counts, additions, strict=True)):
            raise ValueError("a label is none of the memory's classes")
        for code in codes:
            self._coding.decode(code)
        soft, top_k = self._soft_of(state, len(labels))
        brought = [number for each in _shares_of(state, counts, additions) for number in _order(each)]
        content: dict[int, list[_Item]] = {}
        for label, *item in zip(labels, codes, soft, brought, strict=True):
            content.setdefault(label, []).append(_Item(*item))
        return content, top_k

    def _soft_of(self, state: Mapping[str, Tensor], count: int) -> tuple[Sequence[Tensor | None], int | None]:
        """Soft labels of every image, float32 (K,) each, and how many of the largest are kept."""
        if "soft" not in state:
            return [None] * count, None
        soft, top_k = state["soft"].float().cpu(), 0
        if "soft_classes" in state:
            top_k = soft.shape[1]
            soft = torch.zeros(count, self.spec.num_classes).scatter(1, state["soft_classes"].long().cpu(), soft)
        if soft.shape != (count, self.spec.num_classes) or not bool(soft.isfinite().all()):
            raise ValueError(f"soft labels of shape {tuple(soft.shape)} for {count} images")
        return list(soft), top_k

    def save(self, path: Path | str) -> Path:
        """Write one safetensors file, atomically and with a checksum; beside what `bytes_stored` counts it holds about a kilobyte
        that describes the data.

        Args:
            path: of the file. What is there is replaced.
        """
        about = {"kind": _KIND, "format": _FORMAT, "spec": self.spec.to_dict(), "bytes": self.bytes, "webp": self.webp}
        save_tensors(path, self.state_dict(), about)
        return Path(path)

    @classmethod
    def load(cls, path: Path | str) -> "ReplayMemory":
        """Read a file that `save` wrote.

        Args:
            path: of the file.

        Raises:
            InputError: if it is missing, damaged, or holds something else.
        """
        state, about = load_tensors(path)
        if about.get("kind") != _KIND or about.get("format") != _FORMAT:
            found = f"{about.get('kind')!r}, format {about.get('format')}"
            raise InputError(f"{path} holds {found:.80}: expected {_KIND!r}, format {_FORMAT}, as ReplayMemory.save writes it")
        with reading(path):
            memory = cls(DataSpec.from_dict(about["spec"]), bytes=about["bytes"], webp=about["webp"])
            memory.load_state_dict(state)
        return memory


def _shares_of(state: Mapping[str, Tensor], counts: Sequence[int], additions: Sequence[int]) -> list[list[int]]:
    """Images that every addition to a class left there, of every class."""
    told = state["shares"].long().tolist() if "shares" in state else []
    shares = []
    for count, times in zip(counts, additions, strict=True):
        shares.append([count] if times == 1 else told[:times])
        told = told if times == 1 else told[times:]
        if sum(shares[-1]) != count or len(shares[-1]) != times or min(shares[-1], default=1) < 1:
            raise ValueError(f"additions that left {shares[-1]} images of the {count} of a class")
    if told:
        raise ValueError("shares of more additions than there are")
    return shares


def _order(shares: Sequence[int]) -> list[int]:
    """Which addition brought each image of a class, if they take turns and left so many each."""
    return [number for _, number in sorted((turn, number) for number, count in enumerate(shares) for turn in range(count))]


def _in_turns(old: Sequence[_Item], new: Sequence[_Item]) -> list[_Item]:
    """Old images and new ones: one of each addition in turn."""
    addition = min(1 + max((item.addition for item in old), default=-1), _MOST_ADDITIONS - 1)
    items = [*old, *(item._replace(addition=addition) for item in new)]
    seen: Counter[int] = Counter()
    turns = []
    for item in items:
        turns.append(seen[item.addition])
        seen[item.addition] += 1
    return [items[place] for place in sorted(range(len(items)), key=lambda place: (turns[place], items[place].addition))]


def _renumbered(items: Sequence[_Item]) -> list[_Item]:
    """The same, with additions numbered from 0 without gaps, as some may have left nothing."""
    number = {addition: place for place, addition in enumerate(sorted({item.addition for item in items}))}
    return [item._replace(addition=number[item.addition]) for item in items]
