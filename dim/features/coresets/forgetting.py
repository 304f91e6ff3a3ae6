"""Images that are forgotten least often in a training run (Toneva et al. 2019), or most often."""

import torch
from torch import Tensor

from dim.config import ScoringConfig
from dim.features.coreset import ScoreRule, Training

__all__ = ["Forgetting"]


def forgetting_events(right: Tensor) -> Tensor:
    """Forgetting events (Toneva et al. 2019, algorithm 1): how often an image was right in one epoch and wrong in the next.

    Args:
        right: bool (epochs, N): whether an image was classified correctly when it was in the batch.

    Returns:
        float64 (N,): events; for images that were never right, which Toneva et al. rank hardest, the number of epochs.
    """
    events = (right[:-1] & ~right[1:]).sum(0).double()
    return torch.where(right.any(0), events, float(len(right)))


class Forgetting(ScoreRule):
    """See `dim.features.coreset.ScoreRule`: events are small integers, so that many images are equal."""

    # Published: over the 200 epochs of a whole training. Shorter here, so that it costs minutes, but as far as the end of a
    # training, where the learning rate falls.
    scoring = ScoringConfig()
    watches = True

    def score(self, training: Training) -> Tensor:
        return forgetting_events(training.right)
