"""A policy of your own: the brightest candidates come first.

dim sample runs/digits --policy.steps own_policy:Brightest --ipc 10 --out sets/bright
"""

from torch import Tensor

from dim.emit.policy import Candidates, Step


class Brightest(Step):
    """See `dim.emit.policy.Step`."""

    def __call__(self, candidates: Candidates, left: Tensor) -> Tensor:
        """int64 (n,) numbers of candidates that are left -> the same, brightest first."""
        brightness = candidates.images.flatten(1).mean(1).cpu()
        return left[brightness[left].argsort(descending=True, stable=True)]
