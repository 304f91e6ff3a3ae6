"""The parts of real data as they give batches: held as one uint8 tensor on the device (the usual case; a batch is a gather), or,
when they are too large for that, decoded batch by batch. All have the same interface, so nothing above knows which it has.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from dim.chunks import IMAGES, chunk_size
from dim.data.items import DECODE_THREADS, Items, decode
from dim.data.pillow import count_converted
from dim.spec import to_unit_range


class Split(Protocol):
    """One part of a data set."""

    labels: Tensor
    """int64 (N,), on the CPU."""
    streams: bool
    """Whether a batch is decoded when asked for; a reader then does well to ask one batch ahead."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """int64 (B,) -> float32 (B, C, H, W) images in [-1, 1] and int64 (B,) labels, on the device."""
        ...


class ArraySplit:
    """A split held as one uint8 tensor (N, C, H, W) on the device."""

    streams = False

    def __init__(self, images: Tensor, labels: Tensor, device: torch.device | str) -> None:
        self.images = images.to(device)
        self.labels = labels.cpu()
        self._labels = labels.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Split.batch`."""
        indices = indices.to(self.images.device, non_blocking=True)
        return to_unit_range(self.images[indices]), self._labels[indices]


class StreamSplit:
    """A split whose images are decoded by a pool of threads when a batch is asked for.

    Args:
        items: which can be decoded.
        indices: int64 (N,), those of them that are the split.
        shape: (C, H, W) of all images.
        device: where batches are put.
        key: by which a survey of the split is kept in the cache folder; see `dim.data.survey`. Empty: it is not.
    """

    streams = True

    def __init__(self, items: Items, indices: Tensor, shape: tuple[int, ...], device: torch.device | str, key: str = "") -> None:
        self._items, self._indices, self._shape, self._device, self.key = items, indices, shape, device, key
        self.labels = items.labels[indices]
        self._pool = ThreadPoolExecutor(DECODE_THREADS)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Split.batch`."""
        indices = indices.cpu()
        images = decode(self._items, self._indices[indices], self._shape, self._pool)
        return to_unit_range(images).to(self._device), self.labels[indices].to(self._device)

    def converted(self) -> dict[int, int]:
        """What had to be done to the images that were decoded so far; see `dim.data.pillow.count_converted`."""
        return count_converted(self._items.converted[self._indices])


class HeldSplit(StreamSplit):
    """A split whose images are decoded when they are first asked for, and then held as one uint8 tensor on the device. So a start
    that knows the data from an earlier one need not wait for its images.
    """

    def __init__(self, items: Items, indices: Tensor, shape: tuple[int, ...], device: torch.device | str, key: str = "") -> None:
        super().__init__(items, indices, shape, device, key)
        self._held = ArraySplit(torch.empty(len(indices), *shape, dtype=torch.uint8, device=device), self.labels, device)
        self._missing = torch.ones(len(indices), dtype=torch.bool)
        self._lock = Lock()

    @property
    def streams(self) -> bool:
        """See `Split.streams`: until all images are there."""
        return self._missing is not None

    @property
    def images(self) -> Tensor:
        """All images: uint8 (N, C, H, W) on the device."""
        self.hold()
        return self._held.images

    def hold(self) -> None:
        """Decode all images that are not there yet."""
        self._hold(torch.arange(len(self)))

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Split.batch`."""
        self._hold(indices)
        return self._held.batch(indices)

    def _hold(self, indices: Tensor) -> None:
        """Decode those of the images that are not there."""
        if self._missing is None:
            return
        with self._lock:  # a batch may be asked for ahead, by another thread
            if self._missing is None:
                return
            indices = indices.cpu()
            wanted = indices[self._missing[indices]].unique()
            if len(wanted):
                images = decode(self._items, self._indices[wanted], self._shape, self._pool)
                self._held.images[wanted.to(self._held.images.device)] = images.to(self._held.images.device)
                self._missing[wanted] = False
            if not bool(self._missing.any()):
                self._missing = None


class JoinedSplit:
    """Images of several splits, one after another, or some of them.

    Args:
        splits: on one device.
        indices: int64 (N,), which of all their images, and in which order. Default: all.
    """

    def __init__(self, splits: Sequence[Split], indices: Tensor | None = None) -> None:
        labels = torch.cat([split.labels for split in splits])
        self._splits, self._indices = splits, torch.arange(len(labels)) if indices is None else indices
        self._ends = torch.tensor([len(split) for split in splits]).cumsum(0)
        self.labels = labels[self._indices]

    @property
    def streams(self) -> bool:
        """See `Split.streams`."""
        return any(split.streams for split in self._splits)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Split.batch`."""
        wanted = self._indices[indices.cpu()]
        owner = torch.searchsorted(self._ends, wanted, right=True)
        found = [(owner == number).nonzero().squeeze(1) for number in range(len(self._splits))]
        parts = [
            split.batch(wanted[places] - (end - len(split)))
            for split, places, end in zip(self._splits, found, self._ends.tolist(), strict=True)
            if len(places)
        ]
        back = torch.cat(found).argsort().to(parts[0][0].device)
        images, labels = (torch.cat(each) if len(parts) > 1 else each[0] for each in zip(*parts, strict=True))
        return (images, labels) if len(parts) == 1 else (images[back], labels[back])


def asked_in_parts(
    answer: Callable[[Tensor, Tensor], Tensor], split: Split, parts: Sequence[Tensor], *, largest: int, budget: int
) -> Tensor:
    """What `answer` says of images and labels, (B, C, H, W) and (B,) -> (B, ...), asked part by part of a split's indices, which
    are all of them; on the CPU, in the order of the split. For the rest see `in_chunks`."""
    chunks = itertools.chain(*(in_chunks(split, part, largest=largest, budget=budget) for part in parts))
    return torch.cat([answer(images, labels).cpu() for _, images, labels in chunks])[torch.argsort(torch.cat(list(parts)))]


def in_chunks(
    split: Split, indices: Tensor | None = None, *, largest: int = 4096, budget: int = IMAGES
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The images of a split, as many at a time as a budget of bytes allows.

    Args:
        split: the images; one is read before, for its size.
        indices: int64 (N,), which images and in which order. Default: all.
        largest: the most images at a time.
        budget: bytes of float32 images at a time, see `dim.chunks`.

    Yields:
        int64 (B,) indices, float32 (B, C, H, W) images in [-1, 1] and int64 (B,) labels, the last two on the split's device.
    """
    indices = torch.arange(len(split)) if indices is None else indices
    if len(indices):
        one = split.batch(indices[:1])[0]
        for part in indices.split(chunk_size(4 * one.numel(), largest, budget)):
            yield part, *split.batch(part)
