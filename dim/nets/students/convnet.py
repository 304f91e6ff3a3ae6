"""ConvNet-D (Gidaris & Komodakis 2018), the network of the data-set-distillation literature; options width, depth, norm, pool."""

import math

from torch import nn

from dim.config.settings import MOST_BLOCKS
from dim.errors import InputError
from dim.nets.student import Student, flat_features, norm_layer
from dim.spec import DataSpec

__all__ = ["convnet"]


def default_depth(spec: DataSpec) -> int:
    """Depth of ConvNet-D by resolution: 3 up to 32 px, 4 at 64, 5 at 128; never below one final pixel."""
    size = min(spec.height, spec.width)
    return max(1, min(max(3, round(math.log2(size)) - 2), int(math.log2(size))))


def convnet(spec: DataSpec, *, width: int = 128, depth: int | None = None, norm: str = "instance", pool: str = "avg") -> Student:
    """ConvNet-D (Gidaris & Komodakis 2018): D blocks of conv 3x3, norm, ReLU, pool 2, then one linear layer.

    Args:
        width: channels of every block.
        depth: number of blocks. Default: by resolution, see `default_depth`.
        norm: see `norm_layer`.
        pool: avg, max, or none.
    """
    pools = {"avg": lambda: nn.AvgPool2d(2), "max": lambda: nn.MaxPool2d(2), "none": nn.Identity}
    if pool not in pools:
        raise InputError(f"pool is {pool!r}: expected avg, max or none")
    depth = default_depth(spec) if depth is None else depth
    if not 1 <= depth <= MOST_BLOCKS:
        raise InputError(f"depth is {depth}: expected 1 to {MOST_BLOCKS} blocks")
    if pool != "none" and min(spec.height, spec.width) >> depth < 1:
        most = int(math.log2(min(spec.height, spec.width)))
        raise InputError(f"depth is {depth}: {spec.height}x{spec.width} images allow at most {most} poolings")
    layers: list[nn.Module] = []
    channels = spec.channels
    for _ in range(depth):
        layers += [nn.Conv2d(channels, width, 3, padding=1), norm_layer(norm, width), nn.ReLU(inplace=True), pools[pool]()]
        channels = width
    body = nn.Sequential(*layers)
    return Student(spec, body, flat_features(body, spec))
