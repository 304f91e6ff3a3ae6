"""A generator in place of a data set: endless fresh images with exactly balanced labels, for any training loop."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dim import rng
from dim.chunks import chunk_size, require_memory
from dim.errors import InputError
from dim.nets.generator import Generator


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
        start: place in the stream of item 0; `epoch * length` gives every epoch fresh images.
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
        if length < 1:
            raise InputError(f"length is {length}: expected 1 or more images")
        if start < 0:
            raise InputError(f"start is {start}: expected 0 or more")
        self.generator, self.length, self.seed, self.start = generator, length, seed, start
        self.transform, self.relabel = transform, relabel

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, Any]]:
        """A whole batch at once: what a DataLoader calls."""
        for index in indices:
            if not -self.length <= index < self.length:
                raise IndexError(f"index {index} is out of range for {self.length} images")
        positions = torch.tensor([index % self.length for index in indices]) + self.start
        labels, numbers = stream_position(positions, self.generator.spec.num_classes)
        images = self.generator.images(labels, numbers, seed=self.seed)
        targets = labels.tolist() if self.relabel is None else self.relabel(images).cpu()
        images = images.cpu()
        items = images if self.transform is None else map(self.transform, images)
        return list(zip(items, targets, strict=True))


class GeneratedLoader:
    """An iterable of `steps` batches, generated on the device in this process when they are asked for.

    Every image of an epoch is new, labels are exactly balanced over the epoch (each class differs by one at most), and
    with `shuffle` the order within it is random. Iterating again gives the next epoch; `set_epoch` goes to any.

    Args:
        generator: moved to `device`.
        batch_size: images per batch.
        steps: batches per epoch.
        seed: names the stream and its order.
        device: where images appear. Default: where the generator is.
        shuffle: mix classes within windows of about a thousand images (of large ones, 64 MiB); off: classes take turns.
        relabel: (B, C, H, W) images -> (B, K) soft labels, such as `Teacher.labels`, in place of classes.

    Yields:
        float32 (batch_size, C, H, W) in [-1, 1], and int64 (batch_size,) or float (batch_size, K), on the device.

    Raises:
        InputError: if `batch_size` or `steps` is below 1.
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
        relabel: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("steps", steps)):
            if value < 1:
                raise InputError(f"{name} is {value}: expected 1 or more")
        require_memory(batch_size * (4 * generator.spec.image_bytes + 64), f"batch_size {batch_size:,}", "lower it")
        self.generator = generator if device is None else generator.to(device)
        self.batch_size, self.steps, self.seed, self.shuffle = batch_size, steps, seed, shuffle
        self.epoch, self.relabel = 0, relabel
        # Batches of one window are generated together: the generator's blocks stay full, and the window can be shuffled.
        self._window = max(1, chunk_size(4 * generator.spec.image_bytes, 1024) // batch_size)

    def __len__(self) -> int:
        return self.steps

    def set_epoch(self, epoch: int) -> None:
        """Choose which epoch the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        first = epoch * self.steps * self.batch_size
        num_classes = self.generator.spec.num_classes
        for window_start in range(0, self.steps, self._window):
            batches = min(self._window, self.steps - window_start)
            start = first + window_start * self.batch_size
            labels, numbers = stream_position(torch.arange(start, start + batches * self.batch_size), num_classes)
            if self.shuffle:
                source = rng.generator(self.seed, "stream-order", epoch, window_start)
                order = torch.randperm(len(labels), generator=source)
                labels, numbers = labels[order], numbers[order]
            images = self.generator.images(labels, numbers, seed=self.seed)
            targets = (labels if self.relabel is None else self.relabel(images)).to(images.device, non_blocking=True)
            yield from zip(images.split(self.batch_size), targets.split(self.batch_size), strict=True)


class Positions:
    """A stand-in for a split where only the number of images matters."""

    streams = False

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count
