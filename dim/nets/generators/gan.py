"""Residual one-step network without normalisation, modulated by latent and class, after R3GAN (Huang et al. 2024) and StyleGAN2
(Karras et al. 2020)."""

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim.config import GeneratorConfig, require
from dim.config.settings import MOST_BLOCKS
from dim.errors import InputError
from dim.nets.generator import Generator
from dim.nets.layers import ImageConv2d
from dim.spec import DataSpec

__all__ = ["GAN"]


@dataclass(frozen=True, kw_only=True)
class GANOptions:
    """Of the generator `gan`."""

    latent_dim: int = 64
    """Gaussian inputs beside the class."""
    width: int = 64
    """Channels at full resolution, doubled at the next two halvings."""
    blocks: int = 1
    """Residual blocks per resolution."""

    def __post_init__(self) -> None:
        for name in ("latent_dim", "width"):
            require(getattr(self, name) >= 1, f"generator.{name}", getattr(self, name), "at least 1")
        require(1 <= self.blocks <= MOST_BLOCKS, "generator.blocks", self.blocks, f"1 to {MOST_BLOCKS}")


MOST_CHANNELS = 4
"""Channels grow from full resolution to the smallest map up to this multiple."""


def halvings(spec: DataSpec) -> list[tuple[int, int]]:
    """Sizes from the image to the smallest map, each half of the last: (28, 28), (14, 14), (7, 7). At least two halvings, and
    more while both sides are even and one exceeds 7.

    Raises:
        InputError: if a side is not a multiple of 4.
    """
    height, width = spec.height, spec.width
    if height % 4 or width % 4:
        remedy = "choose a --resolution that is a multiple of 4, or the generator 'dim2023', which takes any"
        raise InputError(f"images of {height}x{width} pixels: these networks halve sizes exactly, at least twice; {remedy}")
    sizes = [(height, width)]
    while len(sizes) < 3 or (max(height, width) > 7 and height % 2 == width % 2 == 0):
        height, width = height // 2, width // 2
        sizes.append((height, width))
    return sizes


def channels_at(level: int, width: int) -> int:
    """Channels after so many halvings."""
    return width * min(2**level, MOST_CHANNELS)


class ResidualBlock(nn.Module):
    """x + conv(lrelu(conv(lrelu(x * (1 + s))))), where s depends on a style vector if there is one.

    Initialised as without normalisation (Fixup, Zhang et al. 2019): the second convolution is zero, the first is scaled down by
    the root of the number of blocks.

    Args:
        channels: of input and output.
        depth: residual blocks in the network.
        style: width of the style vector; 0: none.
    """

    def __init__(self, channels: int, depth: int, style: int = 0) -> None:
        super().__init__()
        self.first, self.second = ImageConv2d(channels, channels, 3, 1, 1), ImageConv2d(channels, channels, 3, 1, 1)
        scaled_init(self.first, depth**-0.5)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)
        self.style = nn.Linear(style, channels) if style else None
        if self.style is not None:
            scaled_init(self.style, 0.5)

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        y = x if self.style is None else x * (1 + self.style(style)[:, :, None, None])
        return x + self.second(F.leaky_relu(self.first(F.leaky_relu(y, 0.2)), 0.2))


def scaled_init(layer: nn.Module, gain: float = 1.0) -> None:
    """He initialisation for leaky ReLU, times `gain`; biases are 0."""
    nn.init.kaiming_normal_(layer.weight, a=0.2)
    with torch.no_grad():
        layer.weight *= gain
        layer.bias.zero_()


class GAN(Generator):
    """Latent and class become a style vector and the smallest map; residual blocks, modulated by the style, and bilinear
    doublings lead to the image; tanh.

    Raises:
        InputError: if a side of the image is not a multiple of 4.
    """

    Options: ClassVar = GANOptions

    def __init__(self, spec: DataSpec, config: GeneratorConfig) -> None:
        super().__init__(spec, config.latent_dim, class_dim=config.latent_dim)
        sizes = halvings(spec)[::-1]
        levels = range(len(sizes) - 1, -1, -1)
        depth = len(sizes) * config.blocks
        style = config.latent_dim
        channels = [channels_at(level, config.width) for level in levels]
        # Few maps from the latent, then more by a 1x1 convolution: otherwise the linear layer holds most of the weights.
        self.base = (config.width, *sizes[0])
        self.embedding = nn.Embedding(spec.num_classes, style)
        self.mapping = nn.Linear(2 * style, style)
        self.linear = nn.Linear(2 * style, math.prod(self.base))
        scaled_init(self.mapping)
        scaled_init(self.linear, 0.7)
        self.enter = ImageConv2d(config.width, channels[0], 1)
        self.narrow = nn.ModuleList(ImageConv2d(before, after, 1) for before, after in itertools.pairwise(channels))
        self.stages = nn.ModuleList(
            nn.ModuleList(ResidualBlock(count, depth, style) for _ in range(config.blocks)) for count in channels
        )
        self.output = ImageConv2d(channels[-1], spec.channels, 3, 1, 1)
        for layer in (self.enter, *self.narrow, self.output):
            scaled_init(layer, 0.7)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        inputs = self.conditioned(self.embedding(y), z)
        style = F.leaky_relu(self.mapping(inputs), 0.2)
        x = self.linear(inputs).view(-1, *self.base)
        if self.output.weight.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.enter(x)
        for index, stage in enumerate(self.stages):
            if index > 0:
                # Fewer channels before more pixels: a 1x1 convolution and bilinear doubling commute.
                x = F.interpolate(self.narrow[index - 1](x), scale_factor=2, mode="bilinear")
            for block in stage:
                x = block(x, style)
        return torch.tanh(self.output(F.leaky_relu(x, 0.2)))
