"""The published two-headed discriminator (AC-GAN, Odena et al. 2017; DiM, Wang et al. 2023)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim import rng
from dim.config import DiscriminatorConfig
from dim.nets.generators.dim2023 import resolution_chain
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
        features = torch.amax(self.blocks(images), dim=(2, 3))
        return self.critic(features).squeeze(1), self.classifier(features)


def build_discriminator(config: DiscriminatorConfig, spec: DataSpec, *, seed: int) -> Discriminator:
    """Build a discriminator with weights initialised from `seed`, on the CPU."""
    with rng.initialisation(seed, "discriminator"):
        return Discriminator(spec, config)
