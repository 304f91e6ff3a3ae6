"""Easy candidates first and harder ones later, by the teacher's confidence, so that only large sets hold hard images."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dim.config import PolicyConfig, require
from dim.emit.policy import Candidates, Given, Step

__all__ = ["Graded"]


@dataclass(frozen=True, kw_only=True)
class GradedOptions:
    """Of the policy `graded`."""

    half: int = 50
    """graded: the place in the ranking that a candidate of median difficulty gets."""

    def __post_init__(self) -> None:
        require(self.half >= 1, "policy.half", self.half, "at least 1")


def graded(sure: Tensor, half: int) -> Tensor:
    """Places in an order from easy to hard: turn i takes the free candidate nearest to the quantile i / (i + half) counted from
    the most confident one. The first is the easiest, turn `half` a median one, and late turns are hard.

    Args:
        sure: float (n,), confidence.
        half: 1 or more.

    Returns:
        int64 (n,), a permutation.
    """
    ranked = torch.argsort(sure, descending=True, stable=True)
    free, order = list(range(len(sure))), []
    for turn in range(len(sure)):
        wanted = turn / (turn + half) * (len(sure) - 1)
        order.append(free.pop(min(range(len(free)), key=lambda place: abs(free[place] - wanted))))
    return ranked[torch.tensor(order)]


class Graded(Step):
    """See `dim.emit.policy.Step`."""

    Options: ClassVar = GradedOptions
    needs = ("teacher",)

    def __init__(self, config: PolicyConfig, given: Given) -> None:
        self._half = config.half

    def __call__(self, candidates: Candidates, left: Tensor) -> Tensor:
        return left[graded(candidates.confidence[left], self._half)]
