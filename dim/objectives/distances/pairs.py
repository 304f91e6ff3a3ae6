"""Squared difference of one real and one generated image of the same class, paired at random (published). Its optimum is the
class mean, a pull towards collapse."""

from torch import Tensor

from dim.config import MatchingConfig
from dim.spec import DataSpec

__all__ = ["Pairs"]


def paired_distance(real: Tensor, generated: Tensor) -> Tensor:
    """Published: mean over images and classes of the squared difference of log-probabilities of two paired images.

    Pairs are of one class and otherwise random, so in expectation this is the distance of the class means *plus the
    variances of both sides*: lowering the spread of generated images lowers it. See `dim.objectives.distances.means`.

    Args:
        real, generated: float (B, K) log-probabilities, paired by row.

    Returns:
        A scalar, 0 or more.
    """
    return (real - generated).square().mean()


class Pairs:
    """See `dim.objectives.logit.MatchingDistance`."""

    def __init__(self, config: MatchingConfig, spec: DataSpec, *, seed: int) -> None:
        pass

    def __call__(self, real: Tensor, generated: Tensor, labels: Tensor, step: int) -> Tensor:
        return paired_distance(real, generated)
