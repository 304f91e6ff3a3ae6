"""A distance of your own for stage two: the largest difference of a class mean, over the outputs of a model.

dim train --recipe digits-dim --matching.distance own_distance:Largest --matching.weight 1 --out runs/largest
"""

import torch
from torch import Tensor

from dim.config import MatchingConfig
from dim.spec import DataSpec


class Largest:
    """See `dim.objectives.logit.MatchingDistance`."""

    def __init__(self, config: MatchingConfig, spec: DataSpec, *, seed: int) -> None:
        self.classes = spec.num_classes

    def __call__(self, real: Tensor, generated: Tensor, labels: Tensor, step: int) -> Tensor:
        """float (B, F) outputs for real and for generated images, (B,) classes -> a scalar."""
        gaps = [(real[labels == label].mean(0) - generated[labels == label].mean(0)).abs().max() for label in labels.unique()]
        return torch.stack(gaps).mean()
