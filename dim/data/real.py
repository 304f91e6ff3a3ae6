"""Real data: any image classification data set as three parts that give batches by index (`dim.data.splits`)."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dim import rng
from dim.classes import class_list, twins
from dim.config import DATASETS, DataConfig
from dim.config.data import require_no_root
from dim.data.items import Items
from dim.data.python import class_names_of, dataset_items, require_same_classes
from dim.data.roots import keep_root
from dim.data.splits import ArraySplit, HeldSplit, JoinedSplit, Split, StreamSplit, in_chunks
from dim.data.survey import Reading, Survey, keep, recall, survey, survey_key, tell
from dim.errors import InputError
from dim.launch import say_once, without_repeats
from dim.processes import ALONE, Processes
from dim.spec import DataSpec

Part = Literal["train", "val", "test"]


@dataclass(frozen=True)
class RealData:
    """A data set: what describes it, and its three parts. Choices are made on `val`; `test` is for the last figure.

    `config` is how `load_data` finds it again; None for data that were given in Python.
    """

    spec: DataSpec
    train: Split
    val: Split
    test: Split
    config: DataConfig | None = None
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

    @property
    def sizes(self) -> dict[Part, int]:
        """Images of each part."""
        return {part: len(getattr(self, part)) for part in ("train", "val", "test")}

    def about(self, scored: Part | None = None) -> dict[str, Any]:
        """What a figure says of the data: name, fingerprint, number of training images, and the digest of the part that was
        `scored`, which scores of earlier versions lack."""
        facts = {"name": self.spec.name, "fingerprint": self.spec.fingerprint, "train_images": len(self.train)}
        return facts if scored is None else {**facts, "scored": self.digest(scored)}


class EpochBatches:
    """Endless shuffled batches as a function of the step: step s is the s-th slice of the permutations of all epochs.

    With several processes the batch is split among them; `batch_size` is the batch over all of them.

    `class_power` says how often classes of different sizes are shown: in proportion to their number of images to this power.
    1 shows every image once per epoch, 0 every class equally often; the images of a class take turns.

    Raises:
        InputError: if they cannot have equal shares.
    """

    def __init__(
        self, split: Split, batch_size: int, *, seed: int, purpose: str, processes: Processes = ALONE, class_power: float = 1.0
    ) -> None:
        processes.require_even(batch_size, "batch_size")
        self.split, self.batch_size = split, batch_size
        self._turns = None if class_power == 1 else _Turns(split.labels, class_power, seed, f"{purpose}-class")
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
            order = torch.randperm(len(self.split), generator=source)
            self._permutations[epoch] = order if self._turns is None else self._turns.epoch(epoch)[order]
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


class _Turns:
    """Which images an epoch shows where classes are drawn in proportion to a power of their number of images."""

    def __init__(self, labels: Tensor, power: float, seed: int, purpose: str) -> None:
        self._members = [(labels == label).nonzero().squeeze(1) for label in labels.unique()]
        self._seed, self._purpose = seed, purpose
        weights = torch.tensor([len(members) for members in self._members], dtype=torch.float64) ** power
        ends = (len(labels) * weights.cumsum(0) / weights.sum() + 0.5).floor().long()
        self._counts = torch.diff(ends, prepend=torch.zeros(1, dtype=torch.long)).tolist()

    def epoch(self, number: int) -> Tensor:
        """As many indices as there are images, int64 (N,), class by class: the next ones of each."""
        return torch.cat([self._next(k, number * count, count) for k, count in enumerate(self._counts)])

    def _next(self, k: int, start: int, count: int) -> Tensor:
        """Of the endless permutations of a class, `count` indices from `start`."""
        members = self._members[k]
        first, last = start // len(members), (start + count - 1) // len(members)
        sources = (rng.generator(self._seed, self._purpose, k, turn) for turn in range(first, last + 1))
        turns = torch.cat([members[torch.randperm(len(members), generator=source)] for source in sources])
        return turns[start - first * len(members) :][:count]


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

    Args:
        config: which data, where they lie, their size in pixels and their parts.
        device: where images are held.

    Returns:
        The data: `spec`, and the parts `train`, `val` and `test`. A part gives float32 (B, C, H, W) images in [-1, 1] and int64
        (B,) labels by `batch(indices)`.

    Raises:
        InputError: if the name is unknown, the root is missing or does not hold the data, there are fewer than two
            classes, a class is empty, or an image cannot be read.
    """
    require_no_root(config)
    with without_repeats():
        data = _assemble(config, *DATASETS.load(config.dataset)(config), device=device)
    if config.root is not None:
        keep_root(data.spec.fingerprint, config.root)
    return data


def from_dataset(
    train: Any,
    test: Any = None,
    *,
    name: str,
    class_names: Sequence[str] | None = None,
    config: DataConfig | None = None,
    device: torch.device | str = "cpu",
) -> RealData:
    """Use any map-style data set, such as those of torchvision and Hugging Face, or a list of pairs.

    It is recognised by all its images. So it is read once at every start, and twice where nothing in it keeps the labels alone
    (`targets`, or a column), as these are needed first. PIL images are used as a viewer shows them, see `dim.data.pillow.shown`.

    Args:
        train: an object with `__len__` and `__getitem__`. Items are pairs, or mappings (see `dim.data.python.IMAGE_KEYS` and
            `LABEL_KEYS`). An image is a PIL image, a tensor (C, H, W), or an array (C, H, W), (H, W, C) or (H, W), of uint8 or
            of floats in [0, 1]. A label is an integer in [0, classes), a class name, or a vector with a 1 in the class's place.
        test: the same. Default: a part of `train` of `config.test_fraction`.
        name: name of the data.
        class_names: one per class, in label order. Default: `train.classes`, or the names of its ClassLabel.
        config: resolution, channels, held-out fractions and memory limit; its `dataset` and `root` are not used.
        device: where images are held.

    Raises:
        InputError: if an item is of another form, or labels are out of range or change.
    """
    config = config or DataConfig()
    class_names = class_names_of(train, name) if class_names is None else class_list(class_names, repr(name))
    require_same_classes(name, class_names, train=train, test=test)
    with without_repeats():
        own = dataset_items(train, name, class_names, config)
        parts = own, None if test is None else dataset_items(test, name, class_names, config)
        return _assemble(config, *parts, device=device, name=name)


def _assemble(
    config: DataConfig,
    train: Items,
    test: Items | None,
    val: Items | None = None,
    *,
    device: torch.device | str,
    name: str | None = None,
) -> RealData:
    """Divide, place on the device, and describe."""
    pieces = divided(config, train, test, val)
    shape = tuple(train.images.shape[1:]) if train.images is not None else tuple(train.image(0).shape)
    total = sum(len(items.labels) for items in (train, test, val) if items is not None) * int(np.prod(shape))
    stream, origin = total > config.memory_gib * 2**30, config if name is None else None
    name = name or config.dataset

    def split(items: Items, indices: Tensor) -> Split:
        if items.images is not None:
            return ArraySplit(items.images[indices], items.labels[indices], device)
        key = survey_key(items.state, f"{config.resolution} {config.channels}", indices, items.labels[indices])
        return (StreamSplit if stream else HeldSplit)(items, indices, shape, device, key)

    parts: dict[Part, Split] = {part: split(*own) for part, own in pieces.items()}
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
    data = RealData(spec, **parts, config=origin)
    data._digests.update({part: own.digest for part, own in looked.items()})
    return data


def divided(config: DataConfig, train: Items, test: Items | None, val: Items | None) -> dict[Part, tuple[Items, Tensor]]:
    """Divide: items of every part and int64 (N,) indices into them; a part that is not there is taken from the training part."""
    num_classes = len(train.names)
    if alike := twins(train.names):
        more = f", as do {len(alike) - 1} more pairs" if len(alike) > 1 else ""
        pair = f"classes {alike[0][0]!a} and {alike[0][1]!a}"
        say_once(f"dim: {pair} differ in capitals, spaces, accents or zeros only{more}: taken as classes of their own")
    for label, count in enumerate(torch.bincount(train.labels, minlength=num_classes).tolist()):
        if count < 2:
            raise InputError(f"class {train.names[label]!r} has {count} training image(s): expected at least 2")
    rest, parts = torch.arange(len(train.labels)), {}
    if test is None:
        held, rest = stratified(train.labels, getattr(config, "test_fraction", 0.2), rng.fold(config.split_seed, "test-split"))
        parts["test"] = train, held
    else:
        parts["test"] = test, torch.arange(len(test.labels))
    if val is None:
        held, kept = stratified(train.labels[rest], config.val_fraction, rng.fold(config.split_seed, "val-split"))
        parts["val"], rest = (train, rest[held]), rest[kept]
    else:
        parts["val"] = val, torch.arange(len(val.labels))
    for part, items in (("test", test), ("validation", val)):
        counts = torch.bincount(train.labels if items is None else items.labels, minlength=num_classes)
        if not bool(counts.all()):
            lacking = f"no image of class {train.names[int(counts.argmin())]!r}, which the training part has"
            raise InputError(f"the {part} part has {lacking}: add one, or leave that part out")
    left = torch.bincount(train.labels[rest], minlength=num_classes)
    if not bool(left.all()):
        label = int(left.argmin())
        count = int((train.labels == label).sum())
        taken = " and ".join(["test"] * (test is None) + ["validation"] * (val is None and config.val_fraction > 0))
        remedy = f"expected at least {count + 1}, as every class has an image in the {taken} part"
        raise InputError(f"class {train.names[label]!r} has {count} images, and none is left to train on: {remedy}")
    train = _with_canaries(train, rest, config)
    used = part_of_classes(train.labels[rest], config.fraction, config.fraction_seed)
    return {"train": (train, rest[used]), "val": parts["val"], "test": parts["test"]}


def part_of_classes(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Which images of the whole training part, of int64 (N,) `labels`, are kept by `data.fraction` and `data.fraction_seed`:
    int64 (M,) indices, sorted."""
    return torch.arange(len(labels)) if fraction == 1 else stratified(labels, fraction, rng.fold(seed, "data-fraction"))[0]


def canary_indices(size: int, config: DataConfig) -> Tensor:
    """Which of the `size` images of the whole training part get a wrong label: int64 (canaries,) indices. They are the same ones
    for every `data.fraction_seed`.

    Raises:
        InputError: if there are fewer images.
    """
    if config.canaries > size:
        raise InputError(f"data.canaries is {config.canaries}: expected at most {size}, the number of training images")
    return torch.randperm(size, generator=rng.generator(config.split_seed, "data-canaries"))[: config.canaries]


def _with_canaries(train: Items, rest: Tensor, config: DataConfig) -> Items:
    """The items with wrong labels for the canaries among `rest`, the indices of the whole training part."""
    if config.canaries == 0:
        return train
    chosen, classes = rest[canary_indices(len(rest), config)], len(train.names)
    source = rng.generator(config.split_seed, "data-canary-labels")
    labels = train.labels.clone()
    labels[chosen] = (labels[chosen] + torch.randint(1, classes, (len(chosen),), generator=source)) % classes
    return replace(train, labels=labels)


def with_training_part(data: RealData, train: Split) -> RealData:
    """The same data set with another training part, which is read once to describe it."""
    found = _look_at(train, f"{data.spec.name}, another training part")
    spec = replace(data.spec, mean=found.mean, std=found.std, fingerprint=found.digest)
    made = replace(data, spec=spec, train=train, config=None)
    made._digests.update({part: digest for part, digest in data._digests.items() if part != "train"})
    return made


def with_validation(data: RealData, *, apart: bool) -> RealData:
    """Data with a validation part. Where they have none, a tenth of every class of the training part stands for one, which is no
    longer trained on if `apart`."""
    if len(data.val):
        return data
    held, rest = stratified(data.train.labels, 0.1, rng.fold(0, "reproduce-held-out"))
    train = JoinedSplit([data.train], rest) if apart else data.train
    return RealData(data.spec, train, JoinedSplit([data.train], held), data.test, data.config)


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
