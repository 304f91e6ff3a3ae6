"""Images and labels of one part of a data set, before they are split and placed on a device; what all sources give."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dim.config import DataConfig
from dim.errors import InputError

DECODE_THREADS = min(8, os.cpu_count() or 1)


@dataclass
class Items:
    """A part of a data set before it is placed: labels, and either all images or a way to decode one."""

    labels: Tensor
    names: Sequence[str]
    images: Tensor | None = None
    decode: Callable[[int], Tensor] | None = None
    identity: str = ""
    """What a part made of files is recognised by, without reading them all."""


def decode_all(items: Items) -> Tensor:
    """All images, uint8 (N, C, H, W).

    Raises:
        InputError: if they differ in size or channels.
    """
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        images = list(pool.map(items.decode, range(len(items.labels))))
    if len({image.shape for image in images}) > 1:
        raise InputError("images differ in size or channels: give --resolution N (pixels), and --data.channels if need be")
    return torch.stack(images)


def fit_size(images: Tensor, config: DataConfig) -> Tensor:
    """Bring uint8 (N, C, H, W) to the configured size and number of channels: shorter side resized, centre cropped."""
    if config.channels == 1 and images.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601 luma, as PIL's "L"
        images = (images.float() * weights).sum(1, keepdim=True).round().to(torch.uint8)
    elif config.channels == 3 and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    size = config.resolution
    if size is None or images.shape[2:] == (size, size):
        return images.contiguous()
    height, width = images.shape[2:]
    scale = size / min(height, width)
    target = (max(size, round(height * scale)), max(size, round(width * scale)))
    parts = []
    for part in images.split(2048):
        part = F.interpolate(part.float(), target, mode="bilinear", antialias=True, align_corners=False)
        top, left = (target[0] - size) // 2, (target[1] - size) // 2
        parts.append(part[:, :, top : top + size, left : left + size].round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)
