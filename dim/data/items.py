"""Images and labels of one part of a data set, before they are split and placed on a device; what all sources give."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dim.chunks import chunk_size, require_memory
from dim.config import DataConfig
from dim.errors import InputError

T = TypeVar("T")
DECODE_THREADS = min(8, os.cpu_count() or 1)
_LONGEST = 16  # times the shorter side
_MOST_AT_ONCE, _TURNS = 64, 4  # images that a thread takes at a time, and how often each thread's turn comes at least


@dataclass
class Items:
    """A part of a data set before it is placed: labels, and either all images or a way to decode one."""

    labels: Tensor
    names: Sequence[str]
    images: Tensor | None = None
    decode: Callable[[int], tuple[Tensor, int]] | None = None
    """The image at an index, uint8 (C, H, W), and what had to be done to it; see `dim.data.pillow.shown`."""
    state: str = ""
    """Digest of the names, sizes and times of the files, which change whenever an image changes; empty: not known."""
    header: Callable[[int], tuple[int, int, str]] | None = None
    """Width, height and Pillow's mode of the image at an index as it lies in its file, without decoding it; None: not known."""
    converted: np.ndarray = field(init=False)
    """uint8 (N,): what had to be done to each image that was decoded so far."""

    def __post_init__(self) -> None:
        self.converted = np.zeros(len(self.labels), dtype=np.uint8)

    def image(self, index: int) -> Tensor:
        """Decode an image: uint8 (C, H, W)."""
        image, self.converted[index] = self.decode(index)
        return image


def in_parts(function: Callable[[int], T], count: int, pool: Executor) -> list[T]:
    """What a function gives for 0 to `count` - 1, in their order. Threads take some numbers at a time, as handing over small
    images singly costs more than coding them."""
    size = max(1, min(_MOST_AT_ONCE, count // (_TURNS * DECODE_THREADS)))
    parts = (range(start, min(start + size, count)) for start in range(0, count, size))
    return [value for values in pool.map(lambda part: [function(number) for number in part], parts) for value in values]


def decode(items: Items, indices: Tensor, shape: tuple[int, ...], pool: Executor) -> Tensor:
    """The images at int64 (N,) `indices`, all of shape (C, H, W): uint8 (N, C, H, W).

    Raises:
        InputError: if they differ in size or channels.
    """
    result = torch.empty(len(indices), *shape, dtype=torch.uint8)

    def put(place: int) -> None:
        image = items.image(int(indices[place]))
        if tuple(image.shape) != shape:
            raise InputError("images differ in size or channels: give --resolution N (pixels), and --data.channels if need be")
        result[place] = image

    in_parts(put, len(indices), pool)
    return result


def fit_size(images: Tensor, config: DataConfig) -> Tensor:
    """Bring uint8 (N, C, H, W) to the configured size and number of channels: shorter side resized, centre cropped.

    Raises:
        InputError: if memory cannot hold them at that size.
    """
    if config.channels == 1 and images.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601 luma, as PIL's "L"
        images = (images.float() * weights).sum(1, keepdim=True).round().to(torch.uint8)
    elif config.channels == 3 and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    size = config.resolution
    if size is None or images.shape[2:] == (size, size):
        return images.contiguous()
    images = _central(images)
    height, width = images.shape[2:]
    scale = size / min(height, width)
    held = images.shape[0] * images.shape[1] * size**2
    require_memory(2 * held, f"{len(images):,} images of {size}x{size} pixels", "lower --resolution")  # parts, and all of them
    target = (max(size, round(height * scale)), max(size, round(width * scale)))
    parts = []
    for part in images.split(chunk_size(4 * images.shape[1] * max(height * width, target[0] * target[1]), 2048)):
        part = F.interpolate(part.float(), target, mode="bilinear", antialias=True, align_corners=False)
        top, left = (target[0] - size) // 2, (target[1] - size) // 2
        parts.append(part[:, :, top : top + size, left : left + size].round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


def _central(images: Tensor) -> Tensor:
    """Cut the ends off (N, C, H, W) strips, which would take much memory when they are resized and are then cropped anyway."""
    height, width = images.shape[2:]
    longest = _LONGEST * min(height, width)
    if max(height, width) <= longest:
        return images
    top, left = (max(0, (side - longest) // 2) for side in (height, width))
    return images[:, :, top : top + longest, left : left + longest]
