"""Images whose error early in training is smallest, mean of a few runs (Paul et al. 2021), or largest."""

import torch
from torch import Tensor

from dim.config import ScoringConfig
from dim.features.coreset import ScoreRule, Training

__all__ = ["El2n"]


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """EL2N (Paul et al. 2021, definition 3.1): the distance of the predicted probabilities from the one-hot label.

    Args:
        logits: float (N, classes).
        labels: int64 (N,).

    Returns:
        float64 (N,) in [0, sqrt(2)].
    """
    errors = logits.double().softmax(1)
    errors[torch.arange(len(labels), device=labels.device), labels] -= 1
    return errors.norm(dim=1)


class El2n(ScoreRule):
    """See `dim.features.coreset.ScoreRule`."""

    # Published: at epoch 20 of 200, mean of 10 runs. Fewer here, so that it costs minutes, and early, where the learning rate
    # does not fall yet.
    scoring = ScoringConfig(epochs=5, runs=3, schedule="constant")

    def score(self, training: Training) -> Tensor:
        return el2n(training.logits, training.labels)
