"""A generator of your own: two linear layers.

dim train --recipe digits-dim --generator.name own_generator:TwoLayers --generator.hidden 64 --out runs/two-layers
dim sample runs/two-layers --code own_generator:TwoLayers --ipc 10 --out sets/two-layers
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim.config import GeneratorConfig, require
from dim.nets.generator import Generator
from dim.spec import DataSpec


@dataclass(frozen=True, kw_only=True)
class TwoLayersOptions:
    """What only this generator has; each becomes an option, as in `--generator.hidden`."""

    latent_dim: int = 32
    """Gaussian inputs."""
    hidden: int = 128
    """Units of the hidden layer."""

    def __post_init__(self) -> None:
        require(self.hidden >= 1, "generator.hidden", self.hidden, "at least 1")


class TwoLayers(Generator):
    """Latent and one-hot class -> hidden units -> pixels."""

    Options: ClassVar = TwoLayersOptions

    def __init__(self, spec: DataSpec, config: GeneratorConfig) -> None:
        super().__init__(spec, config.latent_dim)
        self.first = nn.Linear(config.latent_dim + spec.num_classes, config.hidden)
        self.second = nn.Linear(config.hidden, math.prod(spec.image_shape))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """(B, Z) latents and (B,) labels -> (B, C, H, W) images in [-1, 1]."""
        inputs = torch.cat((z, F.one_hot(y, self.spec.num_classes).to(z.dtype)), dim=1)
        return torch.tanh(self.second(torch.relu(self.first(inputs)))).view(-1, *self.spec.image_shape)
