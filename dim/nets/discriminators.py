"""Discriminators: the published one with two heads (AC-GAN, Odena et al. 2017; DiM, Wang et al. 2023), and a projection one."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dim import rng
from dim.config import DiscriminatorConfig
from dim.nets.generators.dim2023 import resolution_chain
from dim.nets.generators.gan import ResidualBlock, channels_at, halvings, scaled_init
from dim.nets.layers import ImageConv2d, ImageLayerNorm
from dim.spec import DataSpec


class _ConvBlock(nn.Module):
    """Convolution 3x3, layer norm over (C, H, W), leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.conv = ImageConv2d(inputs, outputs, 3, stride, 1)
        self.norm = ImageLayerNorm([outputs, *size])

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)))


class Discriminator(nn.Module):
    """Eight convolutions of one width, max pooling, and two linear heads: real or fake, and class.

    With 32x32x3 images and 10 classes it has 3,137,971 parameters, as published. Larger images get one more strided
    convolution per doubling. Layer norm keeps images apart, which the gradient penalty needs.
    """

    def __init__(self, spec: DataSpec, config: DiscriminatorConfig) -> None:
        super().__init__()
        width = config.width
        sizes = resolution_chain(spec.height, spec.width)[::-1]
        # Published, as (stride, size): 1 @ 32, 2 @ 16, 1 @ 16, 2 @ 8, 1 @ 8 (three times), 2 @ 4.
        blocks = [_ConvBlock(spec.channels, width, 1, sizes[0])]
        for index, size in enumerate(sizes[1:], start=1):
            blocks.append(_ConvBlock(width, width, 2, size))
            plain = 0 if index == len(sizes) - 1 else 3 if index == len(sizes) - 2 else 1
            blocks += [_ConvBlock(width, width, 1, size) for _ in range(plain)]
        self.blocks = nn.Sequential(*blocks)
        self.critic = nn.Linear(width, 1)
        self.classifier = nn.Linear(width, spec.num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) images in [-1, 1] -> (B,) critic values (higher: more real) and (B, classes) logits."""
        features = self.blocks(images).flatten(2).max(dim=2).values
        return self.critic(features).squeeze(1), self.classifier(features)


class ProjectionDiscriminator(nn.Module):
    """Residual blocks without normalisation and 2x2 means down to the smallest map, a convolution over all of it per channel, and
    a class-conditional value by projection (Miyato & Koyama 2018): w.f + e_y.f / sqrt(d). In the line of R3GAN.

    Raises:
        InputError: if a side of the image is not a multiple of 4.
    """

    def __init__(self, spec: DataSpec, config: DiscriminatorConfig) -> None:
        super().__init__()
        sizes = halvings(spec)
        channels = [channels_at(level, config.width) for level in range(len(sizes))]
        depth = len(sizes) * config.blocks
        self.input = ImageConv2d(spec.channels, channels[0], 3, 1, 1)
        self.stages = nn.ModuleList(
            nn.ModuleList(ResidualBlock(count, depth) for _ in range(config.blocks)) for count in channels
        )
        self.widen = nn.ModuleList(ImageConv2d(before, after, 1) for before, after in itertools.pairwise(channels))
        last = channels[-1]
        self.gather = nn.Parameter(torch.randn(last, *sizes[-1]) / (sizes[-1][0] * sizes[-1][1]) ** 0.5)
        self.features = nn.Linear(last, last)
        self.value = nn.Linear(last, 1)
        self.embedding = nn.Embedding(spec.num_classes, last)
        for layer in (self.input, *self.widen, self.features, self.value):
            scaled_init(layer, 0.7)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """(B, C, H, W) images in [-1, 1], (B,) int64 labels -> (B,) values; higher: more like a real image of its class."""
        x = self.input(images)
        for index, stage in enumerate(self.stages):
            if index > 0:
                x = self.widen[index - 1](F.avg_pool2d(x, 2))
            for block in stage:
                x = block(x)
        x = self.features((F.leaky_relu(x, 0.2) * self.gather).sum((2, 3)))
        return self.value(x).squeeze(1) + (x * self.embedding(labels)).sum(1) / x.shape[1] ** 0.5


def build_discriminator(network: type[nn.Module], config: DiscriminatorConfig, spec: DataSpec, *, seed: int) -> nn.Module:
    """Build a discriminator with weights initialised from `seed`, on the CPU."""
    with rng.initialisation(seed, "discriminator"):
        return network(spec, config)


def training_flops(discriminator: nn.Module, spec: DataSpec) -> int:
    """Floating-point operations of one step per image without penalties, those of convolutions and matrix products."""
    labels = () if isinstance(discriminator, Discriminator) else (torch.zeros(1, dtype=torch.int64),)
    device = next(discriminator.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        discriminator(*(value.to(device) for value in (torch.zeros(1, *spec.image_shape), *labels)))
    return 3 * counter.get_total_flops()
