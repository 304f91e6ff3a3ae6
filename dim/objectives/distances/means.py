"""Squared distance of the class means."""

import torch.nn.functional as F
from torch import Tensor

from dim.config import MatchingConfig
from dim.spec import DataSpec

__all__ = ["Means"]


def mean_distance(real: Tensor, generated: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Squared distance of the class means of log-probabilities or features, estimated without bias (a U-statistic).

    For every class, products of *different* rows only: with a_i real and b_i generated, n of each, the mean over i != j of
    a_i a_j + b_i b_j - 2 a_i b_j. Its expectation is |E a - E b|^2 whatever the spread, so nothing is gained by collapsing; a_i
    and b_i, which share an augmentation draw and so are correlated, never meet. Classes are weighted by their images; one with a
    single image in the batch counts as 0, see `dim.objectives.statistics`.

    Args:
        real, generated: float (B, F) log-probabilities or features.
        labels: int64 (B,) in [0, classes), the class of both images of a row.
        classes: of the data; F may be smaller or larger.

    Returns:
        A scalar, averaged over the F outputs like `paired_distance`. A single estimate may be negative. Classes with fewer
        than two images in the batch have no such estimate and count as 0.
    """
    outputs = real.shape[1]
    # Columns of classes that do not exist add 0. They keep the order of summation that seeded runs have had.
    members = F.one_hot(labels, max(classes, outputs)).to(real.dtype)  # (B, classes)
    count = members.sum(0)
    pairs = (count * (count - 1)).clamp(min=1)  # with one image of a class, the sum below is 0
    # With d = a - b: the mean over i != j of d_i d_j.
    difference = real - generated
    total = (members.T @ difference).square().sum(1) - members.T @ difference.square().sum(1)
    return (total / pairs * count).sum() / (len(real) * outputs)


class Means:
    """See `dim.objectives.logit.MatchingDistance`."""

    def __init__(self, config: MatchingConfig, spec: DataSpec, *, seed: int) -> None:
        self._classes = spec.num_classes

    def __call__(self, real: Tensor, generated: Tensor, labels: Tensor, step: int) -> Tensor:
        return mean_distance(real, generated, labels, self._classes)
