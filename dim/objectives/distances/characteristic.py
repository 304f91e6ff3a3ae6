"""Distance of the distributions within classes, by characteristic functions at random frequencies (NCFM, Wang et al. 2025, with
frequencies drawn in place of learned)."""

import torch
from torch import Tensor

from dim import rng
from dim.config import MatchingConfig
from dim.objectives.statistics import Kernel, class_distance, standardised
from dim.spec import DataSpec

__all__ = ["Characteristic"]


def waves(outputs: int, source: torch.Generator, count: int = 512) -> Kernel:
    """k(x, y) = mean over frequencies of cos(<w, x - y>), so that the distance is the mean of |characteristic functions'
    difference|^2; the frequencies are Gaussian, with the three scales of `gaussians`.

    Args:
        outputs: F.
        source: of the frequencies, on the device of the outputs.
        count: how many.
    """
    frequencies = torch.randn(outputs, count, generator=source, device=source.device)
    scales = torch.tensor((2.0, 1.0, 0.5), device=source.device)[torch.arange(count, device=source.device) % 3]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        ours, others = (values @ (frequencies * scales).to(values.dtype) for values in (x, y))
        return (ours.cos() @ others.cos().T + ours.sin() @ others.sin().T) / count

    return kernel


class Characteristic:
    """See `dim.objectives.logit.MatchingDistance`: new frequencies at every step."""

    def __init__(self, config: MatchingConfig, spec: DataSpec, *, seed: int) -> None:
        self._seed = seed

    def __call__(self, real: Tensor, generated: Tensor, labels: Tensor, step: int) -> Tensor:
        real, generated = standardised(real, generated)
        source = rng.generator(self._seed, "matching-frequencies", step, device=real.device)
        return class_distance(waves(real.shape[1], source), real, generated, labels)
