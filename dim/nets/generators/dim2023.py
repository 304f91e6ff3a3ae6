"""The published network (DiM, Wang et al. 2023, arXiv 2303.04707), for any image size and number of classes."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim.config import GeneratorConfig, require
from dim.nets.generator import Generator
from dim.spec import DataSpec

__all__ = ["DiM2023"]


@dataclass(frozen=True, kw_only=True)
class DiM2023Options:
    """Of the generator `dim2023`."""

    latent_dim: int = 64
    """Gaussian inputs beside the label. Published for DiM: 90, after the one-hot label of 10."""
    label_scale: float = 1.0
    """Value of the one-hot label's entry. Published: 1, which is little beside 90 Gaussian inputs, so that the class is learned
    late."""
    width: int = 64
    """Channels of every hidden layer (published: 196)."""

    def __post_init__(self) -> None:
        require(self.label_scale > 0, "generator.label_scale", self.label_scale, "a positive number")
        for name in ("latent_dim", "width"):
            require(getattr(self, name) >= 1, f"generator.{name}", getattr(self, name), "at least 1")


def resolution_chain(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes from the smallest map to the image, each at most twice the last: (4, 4), (8, 8), (16, 16), (32, 32).

    At least three doublings, as published, and more until neither side of the smallest map exceeds 7.
    """
    sizes = [(height, width)]
    while len(sizes) < 4 or max(sizes[-1]) > 7:
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))  # type: ignore[arg-type]
    return sizes[::-1]


class DiM2023(Generator):
    """Linear to the smallest map, then transposed and plain 3x3 convolutions of one width, batch norm, ReLU, tanh.

    With 32x32x3 images and 10 classes it has 3,559,363 parameters, as published. The published code overwrites the
    first 10 of 100 Gaussian inputs with the one-hot label; here label and noise are concatenated, so that data with 100
    classes keeps its noise. Sizes beyond 32 px get one more (transposed, plain) pair per doubling. Where a size is odd, the
    transposed convolution before it has kernel 3 in place of 4, as published for 28 px.
    """

    Options: ClassVar = DiM2023Options

    def __init__(self, spec: DataSpec, config: GeneratorConfig) -> None:
        super().__init__(spec, config.latent_dim, class_dim=spec.num_classes)
        self.label_scale, width = config.label_scale, config.width
        sizes = resolution_chain(spec.height, spec.width)
        self.base = (width, *sizes[0])
        self.linear = nn.Linear(spec.num_classes + config.latent_dim, width * sizes[0][0] * sizes[0][1])
        self.linear_norm = nn.BatchNorm1d(self.linear.out_features)
        layers: list[nn.Module] = []
        last = len(sizes) - 2
        for index, (small, large) in enumerate(itertools.pairwise(sizes)):
            kernel = tuple(4 if big == 2 * little else 3 for little, big in zip(small, large, strict=True))
            layers.append(nn.ConvTranspose2d(width, width, kernel, stride=2, padding=1))
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            # Published: three plain convolutions after the first doubling, one after the second, none after the last.
            for _ in range(3 if index == 0 else 0 if index == last else 1):
                layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        layers.append(nn.Conv2d(width, spec.channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        inputs = self.conditioned(F.one_hot(y, self.spec.num_classes) * self.label_scale, z)
        x = torch.relu(self.linear_norm(self.linear(inputs))).view(-1, *self.base)
        return torch.tanh(self.layers(x))
