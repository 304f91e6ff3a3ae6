"""Real data: any image classification data set as splits that give batches by index.

A split either holds its images as one uint8 tensor on the device (the usual case; a batch is a gather), or, when they are too
large for that, decodes them batch by batch. Both have the same interface, so nothing above knows which it has.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from dim import rng
from dim.chunks import IMAGES, chunk_size
from dim.config import DATASETS, DataConfig, from_dict
from dim.config.data import located, reads_files
from dim.data.items import DECODE_THREADS, Items, decode
from dim.data.pillow import count_converted
from dim.data.python import dataset_items
from dim.data.survey import Reading, Survey, keep, recall, survey, survey_key, tell
from dim.errors import InputError
from dim.processes import ALONE, Processes
from dim.spec import DataSpec, to_unit_range


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
        self._hold(torch.arange(len(self)))
        return self._held.images

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


Part = Literal["train", "val", "test"]


@dataclass(frozen=True)
class RealData:
    """A data set: what describes it, and its three parts. Choices are made on `val`; `test` is for the last figure."""

    spec: DataSpec
    train: Split
    val: Split
    test: Split
    _digests: dict[Part, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def digest(self, part: Part) -> str:
        """Digest of all images of a part, as 8 bits per channel in order, and of their labels.

        That of the training part is the fingerprint. Another part is read for it when it is first asked for.
        """
        if part == "train":
            return self.spec.fingerprint
        if part not in self._digests:
            self._digests[part] = _look_at(getattr(self, part), f"{self.spec.name}, {part} part").digest
        return self._digests[part]

    def about(self, scored: Part | None = None) -> dict[str, Any]:
        """What a figure says of the data: name, fingerprint, number of training images, and the digest of the part that was
        `scored`, which scores of earlier versions lack."""
        facts = {"name": self.spec.name, "fingerprint": self.spec.fingerprint, "train_images": len(self.train)}
        return facts if scored is None else {**facts, "scored": self.digest(scored)}


class EpochBatches:
    """Endless shuffled batches as a function of the step: step s is the s-th slice of the permutations of all epochs.

    With several processes the batch is split among them; `batch_size` is the batch over all of them.

    Raises:
        InputError: if they cannot have equal shares.
    """

    def __init__(self, split: Split, batch_size: int, *, seed: int, purpose: str, processes: Processes = ALONE) -> None:
        processes.require_even(batch_size, "batch_size")
        self.split, self.batch_size = split, batch_size
        self._seed, self._purpose, self._processes = seed, purpose, processes
        self._permutations: dict[int, Tensor] = {}
        self._ahead: tuple[int, Future] | None = None
        self._pool = ThreadPoolExecutor(1) if split.streams else None

    def indices(self, step: int) -> Tensor:
        """Indices of this process's share of batch `step`: int64 (batch_size / processes,)."""
        size = len(self.split)
        start = step * self.batch_size
        parts, needed = [], self.batch_size
        while needed:
            epoch, offset = divmod(start, size)
            part = self._permutation(epoch)[offset : offset + needed]
            parts.append(part)
            needed -= len(part)
            start += len(part)
        return self._processes.part(torch.cat(parts))

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            source = rng.generator(self._seed, f"{self._purpose}-epoch", epoch)
            self._permutations[epoch] = torch.randperm(len(self.split), generator=source)
        return self._permutations[epoch]

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Images float32 (B, C, H, W) in [-1, 1] and labels int64 (B,) of batch `step`, on the split's device."""
        if self._pool is None or not self.split.streams:
            return self.split.batch(self.indices(step))
        if self._ahead is not None and self._ahead[0] == step:
            batch = self._ahead[1].result()
        else:
            batch = self.split.batch(self.indices(step))
        self._ahead = (step + 1, self._pool.submit(self.split.batch, self.indices(step + 1)))
        return batch


def per_class_indices(labels: Tensor, ipc: int, num_classes: int, *, seed: int) -> Tensor:
    """Random indices of `ipc` images of every class, class by class; nested in `ipc` for one seed.

    Raises:
        InputError: if `ipc` is below 1 or a class has fewer images.
    """
    if ipc < 1:
        raise InputError(f"images per class is {ipc}: expected 1 or more")
    chosen = []
    for label in range(num_classes):
        members = (labels == label).nonzero().squeeze(1)
        if len(members) < ipc:
            raise InputError(f"class {label} has {len(members)} images: {ipc} were asked for; ask for at most {len(members)}")
        chosen.append(members[torch.randperm(len(members), generator=rng.generator(seed, "per-class", label))[:ipc]])
    return torch.stack(chosen, dim=1).flatten()


def load_data(config: DataConfig, device: torch.device | str = "cpu") -> RealData:
    """Load a data set by configuration.

    Raises:
        InputError: if the name is unknown, the root is missing or does not hold the data, there are fewer than two
            classes, a class is empty, or an image cannot be read.
    """
    train, test = DATASETS.load(config.dataset)(config)
    return _assemble(config, train, test, device)


def real_data_of(info: dict[str, Any], root: str | None, device: torch.device | str) -> RealData:
    """The real data that a set or a generator says it was made from.

    Raises:
        InputError: if it says nothing.
    """
    if not info.get("data"):
        raise InputError("this set or generator does not say which data it was made from: give the real data")
    config = from_dict(DataConfig, info["data"])
    if root and reads_files(config.dataset):
        config = replace(config, root=root)
    return load_data(located(config), device)


def from_dataset(
    train: Any,
    test: Any,
    *,
    name: str,
    class_names: Sequence[str],
    config: DataConfig | None = None,
    device: torch.device | str = "cpu",
) -> RealData:
    """Use any map-style Dataset of (image, label) pairs.

    It is recognised by all its images. So it is read once at every start, and without an attribute `targets` twice, as labels are
    needed first. PIL images are used as a viewer shows them, see `dim.data.pillow.shown`.

    Args:
        train, test: objects with `__len__` and `__getitem__`; an image is a PIL image, a uint8 tensor or array
            (C, H, W), or a float one in [0, 1]; a label an integer in [0, classes).
        name: name of the data.
        class_names: one per class, in label order.
        config: resolution, channels, held-out fraction and memory limit; its `dataset` and `root` are not used.
        device: where images are held.

    Raises:
        InputError: if an item is of another form, or labels are out of range.
    """
    config = config or DataConfig()
    parts = [dataset_items(part, name, class_names, config) for part in (train, test)]
    return _assemble(config, *parts, device, name=name)


def _assemble(
    config: DataConfig, train: Items, test: Items | None, device: torch.device | str, name: str | None = None
) -> RealData:
    """Split, place on the device, and describe."""
    num_classes = len(train.names)
    for label, count in enumerate(torch.bincount(train.labels, minlength=num_classes).tolist()):
        if count < 2:
            raise InputError(f"class {train.names[label]!r} has {count} training image(s): expected at least 2")
    rest = torch.arange(len(train.labels))
    if test is None:
        held, rest = stratified(train.labels, getattr(config, "test_fraction", 0.2), rng.fold(config.split_seed, "test-split"))
        test_source, test_indices = train, held
    else:
        test_source, test_indices = test, torch.arange(len(test.labels))
    held, kept = stratified(train.labels[rest], config.val_fraction, rng.fold(config.split_seed, "val-split"))
    val_indices, train_indices = rest[held], rest[kept]

    shape = tuple(train.images.shape[1:]) if train.images is not None else tuple(train.image(0).shape)
    total = (len(train.labels) + (len(test.labels) if test else 0)) * int(np.prod(shape))
    stream, name = total > config.memory_gib * 2**30, name or config.dataset

    def split(items: Items, indices: Tensor) -> Split:
        if items.images is not None:
            return ArraySplit(items.images[indices], items.labels[indices], device)
        key = survey_key(items.state, f"{config.resolution} {config.channels}", indices, items.labels[indices])
        return (StreamSplit if stream else HeldSplit)(items, indices, shape, device, key)

    parts: dict[Part, Split] = {
        "train": split(train, train_indices),
        "val": split(train, val_indices),
        "test": split(test_source, test_indices),
    }
    # Images that are held are read at the first start, so that a damaged one is not met in the middle of the work.
    wanted = [part for part, own in parts.items() if part == "train" or (isinstance(own, HeldSplit) and len(own))]
    looked = {part: _look_at(parts[part], f"{name}, {part} part") for part in wanted}
    found = looked["train"]
    spec = DataSpec(
        name=name,
        channels=shape[0],
        height=shape[1],
        width=shape[2],
        class_names=tuple(train.names),
        mean=found.mean,
        std=found.std,
        fingerprint=found.digest,
    )
    data = RealData(spec, **parts)
    data._digests.update({part: own.digest for part, own in looked.items()})
    return data


def _look_at(split: Split, what: str) -> Survey:
    """Read all images of a part once, or recall what was found when they were read; say what had to be done to them."""
    key = split.key if isinstance(split, StreamSplit) else ""
    found = recall(key) if key else None
    if found is None:
        with Reading(what, len(split)) as reading:

            def chunks() -> Iterator[Tensor]:
                for _, images, _ in in_chunks(split):
                    yield images
                    reading.advance(len(images))

            found = survey(split.labels, chunks())
        if isinstance(split, StreamSplit):
            found = replace(found, converted=split.converted())
        if key:
            keep(key, found)
    tell(what, found.converted)
    return found


def stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a held-out part of every class (rounded, at least one if `fraction` is positive) and of the rest, sorted."""
    held = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        count = max(1, round(len(members) * fraction)) if fraction > 0 else 0
        held.append(members[torch.randperm(len(members), generator=rng.generator(seed, "stratified", label))[:count]])
    chosen = torch.cat(held).sort().values
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[chosen] = False
    return chosen, mask.nonzero().squeeze(1)
