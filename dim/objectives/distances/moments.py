"""Distance of the class means and second moments, without bias."""

from torch import Tensor

from dim.config import MatchingConfig
from dim.objectives.statistics import class_distance, standardised
from dim.spec import DataSpec

__all__ = ["Moments"]


def moments(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = <x, y> + <x, y>^2: equal means and equal second moments have distance 0."""
    inner = x @ y.T
    return inner + inner.square()


class Moments:
    """See `dim.objectives.logit.MatchingDistance`."""

    def __init__(self, config: MatchingConfig, spec: DataSpec, *, seed: int) -> None:
        pass

    def __call__(self, real: Tensor, generated: Tensor, labels: Tensor, step: int) -> Tensor:
        return class_distance(moments, *standardised(real, generated), labels)
