"""The group of every size whose feature statistics are nearest to those of the real class, greedily (herding)."""

import time
from typing import Any

import torch
from torch import Tensor

from dim.config import PolicyConfig
from dim.emit.policy import Candidates, Given, Step
from dim.features.coresets.herding import herding

__all__ = ["Matched"]


class Matched(Step):
    """See `dim.emit.policy.Step`: means and mean squares of standardised features are compared."""

    needs = ("data", "features")

    def __init__(self, config: PolicyConfig, given: Given) -> None:
        started = time.perf_counter()
        self._features, train = given.features, given.data.train
        points = self._features.of(train).double()
        self._mean, self._std = points.mean(0), points.std(0).clamp(min=1e-6)
        labels = train.labels.to(points.device)
        classes = range(given.data.spec.num_classes)
        self._targets = [self._statistics(points[labels == label]).mean(0) for label in classes]
        self.seconds = time.perf_counter() - started

    def _statistics(self, points: Tensor) -> Tensor:
        """What is matched of features (N, F): standardised, beside their squares; float64 (N, 2 F) on the CPU."""
        values = (points.double() - self._mean) / self._std
        return torch.cat((values, values.square()), dim=1).cpu()

    def __call__(self, candidates: Candidates, left: Tensor) -> Tensor:
        images = candidates.images
        points = self._statistics(self._features(images[left.to(images.device)]))
        return left[herding(points, len(points), mean=self._targets[candidates.label])]

    def about(self) -> dict[str, Any]:
        return {"policy_features": {**self._features.to_dict(), "seconds": self._features.seconds}}
