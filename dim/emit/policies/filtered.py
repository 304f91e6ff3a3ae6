"""Leaves the candidates in which the teacher sees their class most surely."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dim.config import PolicyConfig, require
from dim.emit.policy import Candidates, Given, Step

__all__ = ["Filtered"]


@dataclass(frozen=True, kw_only=True)
class FilteredOptions:
    """Of the policy `filtered`."""

    keep: float = 0.8
    """filtered: the share of candidates that is left, in (0, 1]."""

    def __post_init__(self) -> None:
        require(0 < self.keep <= 1, "policy.keep", self.keep, "a number in (0, 1]")


def filtered(sure: Tensor, keep: float) -> Tensor:
    """Places of the share `keep` of highest confidence, in the order in which they came.

    Args:
        sure: float (n,) in [0, 1].
        keep: in (0, 1].
    """
    count = max(1, round(keep * len(sure)))
    return torch.argsort(sure, descending=True, stable=True)[:count].sort().values


class Filtered(Step):
    """See `dim.emit.policy.Step`."""

    Options: ClassVar = FilteredOptions
    needs = ("teacher",)

    def __init__(self, config: PolicyConfig, given: Given) -> None:
        self._keep = config.keep

    def __call__(self, candidates: Candidates, left: Tensor) -> Tensor:
        return left[filtered(candidates.confidence[left], self._keep)]
