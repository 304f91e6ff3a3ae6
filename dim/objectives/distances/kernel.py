"""Distance of the distributions within classes, by a mixture of Gaussian kernels (maximum mean discrepancy, Gretton et al.
2012)."""

import torch
from torch import Tensor

from dim.config import MatchingConfig
from dim.objectives.statistics import class_distance, standardised
from dim.spec import DataSpec

__all__ = ["Kernel"]


def gaussians(x: Tensor, y: Tensor) -> Tensor:
    """Mean of exp(-|x - y|^2 / (2 s^2)) over s = 1/2, 1, 2; standardised outputs have E|x|^2 = 1."""
    square = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)
    return sum(torch.exp(square / (-2 * scale**2)) for scale in (0.5, 1.0, 2.0)) / 3


class Kernel:
    """See `dim.objectives.logit.MatchingDistance`."""

    def __init__(self, config: MatchingConfig, spec: DataSpec, *, seed: int) -> None:
        pass

    def __call__(self, real: Tensor, generated: Tensor, labels: Tensor, step: int) -> Tensor:
        return class_distance(gaussians, *standardised(real, generated), labels)
