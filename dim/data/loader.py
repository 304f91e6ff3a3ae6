"""A generator in place of a data set: endless fresh images with exactly balanced labels, for any training loop."""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset

from dim import rng
from dim.chunks import chunk_size, require_memory
from dim.classes import whole_number
from dim.errors import InputError
from dim.nets.generator import Generator, require_generator


def stream_position(position: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Place in a stream -> class and index: classes take turns. int64 (B,) -> int64 (B,), int64 (B,)."""
    return position % num_classes, position // num_classes


class GeneratedDataset(Dataset):
    """A map-style Dataset of `length` generated images; item n is image n // classes of class n % classes.

    Any DataLoader takes it, with any number of workers and any sampler; an item is bit by bit the same in all of them.
    Give a shuffling DataLoader a `torch.Generator` for an epoch that can be repeated. Workers generate on the CPU; to
    generate on a GPU use `GeneratedLoader`.

    Args:
        generator: on the CPU if the DataLoader has workers.
        length: number of images.
        seed: names the stream.
        start: place in the stream of item 0. `set_epoch` moves on from there, so that every epoch has fresh images.
        transform: applied to an item's image.
        relabel: (B, C, H, W) images -> (B, K) soft labels, such as `Teacher.labels`; items give these in place of the class.

    Raises:
        InputError: if `length` is below 1 or `start` is negative.
    """

    def __init__(
        self,
        generator: Generator,
        length: int,
        *,
        seed: int = 0,
        start: int = 0,
        transform: Callable[[Tensor], Any] | None = None,
        relabel: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        require_generator(generator)
        length, start = whole_number(length, "length", 1), whole_number(start, "start", 0)
        self.generator, self.length, self.seed = generator, length, whole_number(seed, "seed")
        self.transform, self.relabel, self._first = transform, relabel, start
        # In shared memory: workers that are kept (`persistent_workers=True`) have a copy of the data set, and notice a new epoch.
        self._start = torch.tensor(start).share_memory_()

    @property
    def start(self) -> int:
        """Place in the stream of item 0, in the present epoch."""
        return int(self._start)

    def set_epoch(self, epoch: int) -> None:
        """Go to the images of an `epoch`, 0 or more; each has its own. Call it before a DataLoader is iterated again."""
        first = self._first + whole_number(epoch, "epoch", 0) * self.length
        self._start.fill_(whole_number(first, f"the place in the stream where epoch {epoch} begins"))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, Any]]:
        """A whole batch at once: what a DataLoader calls."""
        for index in map(operator.index, indices):
            if not -self.length <= index < self.length:
                raise IndexError(f"index {index} is out of range for {self.length} images")
        positions = torch.tensor([index % self.length for index in indices]) + self.start
        labels, numbers = stream_position(positions, self.generator.spec.num_classes)
        images = self.generator.images(labels, numbers, seed=self.seed)
        targets = labels.tolist() if self.relabel is None else _relabelled(self.relabel, images).cpu()
        images = images.cpu()
        items = images if self.transform is None else map(self.transform, images)
        return list(zip(items, targets, strict=True))


# Settings that a place in the stream depends on. It is the same in all processes, so that any may continue from what one saved.
_STREAM = ("seed", "batch_size", "steps", "shuffle", "world")


class GeneratedLoader:
    """An iterable of `steps` batches, generated on the device in this process when they are asked for.

    Every image of an epoch is new, labels are exactly balanced over the epoch (each class differs by one at most), and
    with `shuffle` the order within it is random. Iterating again gives the next epoch; `set_epoch` goes to any, and
    `state_dict` says where to go on after a restart, to the batch. Several processes have batches of their own: together, those
    that one process would have with so many times the batch size.

    Args:
        generator: moved to `device`.
        batch_size: images per batch, in each process.
        steps: batches per epoch, in each process.
        seed: names the stream and its order.
        device: where images appear. Default: where the generator is.
        shuffle: mix classes within windows of about a thousand images (of large ones, 64 MiB); off: classes take turns.
        transform: applied to the images of a batch, after `relabel` has seen them.
        relabel: (B, C, H, W) images -> (B, K) soft labels, such as `Teacher.labels`, in place of classes.
        rank, world: number of this process among so many. Default: as `torch.distributed` has them, if it is initialised before
            an epoch begins; else there is one.

    Yields:
        float32 (batch_size, C, H, W) in [-1, 1], and int64 (batch_size,) or float (batch_size, K), on the device.

    Raises:
        InputError: if `batch_size` or `steps` is below 1, or `rank` is not among `world`.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        batch_size: int,
        steps: int,
        seed: int = 0,
        device: torch.device | str | None = None,
        shuffle: bool = True,
        transform: Callable[[Tensor], Any] | None = None,
        relabel: Callable[[Tensor], Tensor] | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        require_generator(generator)
        batch_size, steps = whole_number(batch_size, "batch_size", 1), whole_number(steps, "steps", 1)
        if (rank is None) != (world is None):
            raise InputError(f"rank is {rank} and world is {world}: expected both, or none")
        self._joins = rank is None or world is None
        self.rank, self.world = (0, 1) if self._joins else (whole_number(rank, "rank"), whole_number(world, "world"))
        self._join()
        if not 0 <= self.rank < self.world:
            raise InputError(f"rank is {rank}: expected 0 to {self.world - 1}, as there are {world} processes")
        require_memory(batch_size * (4 * generator.spec.image_bytes + 64), f"batch_size {batch_size:,}", "lower it")
        self.generator = generator if device is None else generator.to(device)
        self.batch_size, self.steps, self.seed, self.shuffle = batch_size, steps, whole_number(seed, "seed"), shuffle
        self.epoch, self.transform, self.relabel = 0, transform, relabel
        self._step = 0  # of the epoch that is, or is to be, iterated
        self._within: int | None = None  # that epoch, once it is begun

    def __len__(self) -> int:
        return self.steps

    @property
    def _window(self) -> int:
        """Batches that are generated together, so that the generator's blocks are full, and among which images are mixed: about a
        thousand images of all processes, as one process would have them."""
        return max(1, chunk_size(4 * self.generator.spec.image_bytes, 1024) // (self.batch_size * self.world))

    def _join(self) -> None:
        """Take the place among processes that `torch.distributed` has by now, unless one was given: Lightning and others start
        it after their user has made the loader."""
        if self._joins and dist.is_available() and dist.is_initialized():
            self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def set_epoch(self, epoch: int) -> None:
        """Choose which `epoch`, 0 or more, the next iteration gives: from its first batch, or from where `load_state_dict` went
        within it, as loops that go on after a restart name their epoch again."""
        epoch = whole_number(epoch, "epoch", 0)
        if epoch != self.epoch or self._within is not None:
            self.epoch, self._step, self._within = epoch, 0, None

    def state_dict(self) -> dict[str, int]:
        """Where the stream is: after the last batch that it gave. Given to `load_state_dict` of a loader that is made alike, the
        next iteration of that goes on there. The state of one process does for all."""
        self._join()
        state = {"epoch": self.epoch if self._within is None else self._within, "step": self._step}
        return {**state, **{name: int(getattr(self, name)) for name in _STREAM}}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state_dict` was, which gave `state`.

        Raises:
            InputError: if that was of another stream, or is no such state.
        """
        self._join()
        wanted = ("epoch", "step", *_STREAM)
        if not isinstance(state, Mapping) or not set(wanted) <= set(state):
            found = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise InputError(f"the state is {found or 'empty'}: expected what state_dict gave, with {', '.join(wanted)}")
        for name in _STREAM:
            if state[name] != int(getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)}: the state is of a stream with {state[name]}; make them alike")
        epoch, step = (whole_number(state[name], f"{name} of the state", 0) for name in ("epoch", "step"))
        if step >= self.steps:
            raise InputError(f"step of the state is {step}: expected 0 to {self.steps - 1}, as an epoch has {self.steps} batches")
        self.epoch, self._step, self._within = epoch, step, None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self._join()
        epoch, skipped = self.epoch, self._step if self._within is None else 0  # one that was left begins no other in its midst
        self.epoch, self._within, self._step = epoch + 1, epoch, skipped
        for window in range(skipped // self._window, -(-self.steps // self._window)):
            images, targets = self._made(epoch, window * self._window)
            for step, (own, target) in enumerate(zip(images, targets, strict=True), start=window * self._window):
                if step < skipped:
                    continue
                # An epoch that has given its last batch is over.
                self._step, self._within = (step + 1, epoch) if step + 1 < self.steps else (0, None)
                yield own if self.transform is None else self.transform(own), target

    def _made(self, epoch: int, first: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The batches of a window, which begins with step `first`: their images and their targets."""
        batches = min(self._window, self.steps - first)
        steps = epoch * self.steps + first + torch.arange(batches)
        if self.shuffle:  # among all processes: classes stand in turns, and one that always took the same places could miss some
            positions = steps[0] * self.world * self.batch_size + torch.arange(batches * self.world * self.batch_size)
            source = rng.generator(self.seed, "stream-order", epoch, first)
            positions = positions[torch.randperm(len(positions), generator=source)[self.rank :: self.world]]
        else:
            place = (steps * self.world + self.rank) * self.batch_size
            positions = (place[:, None] + torch.arange(self.batch_size)).flatten()
        labels, numbers = stream_position(positions, self.generator.spec.num_classes)
        images = self.generator.images(labels, numbers, seed=self.seed)
        targets = (labels if self.relabel is None else _relabelled(self.relabel, images)).to(images.device, non_blocking=True)
        return images.split(self.batch_size), targets.split(self.batch_size)


def _relabelled(relabel: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Labels that a function makes of images.

    Raises:
        InputError: if they are not as many.
    """
    targets = relabel(images)
    if len(targets) != len(images):
        raise InputError(f"relabel gave {len(targets)} labels of {len(images)} images: expected one for each")
    return targets


class Positions:
    """A stand-in for a split where only the number of images matters."""

    streams = False

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count
