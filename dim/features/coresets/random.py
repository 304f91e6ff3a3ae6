"""Real images, drawn at random."""

from torch import Tensor

from dim.features.coreset import End, Rule

__all__ = ["Random"]


class Random(Rule):
    """See `dim.features.coreset.Rule`: the images that `dim.data.real.per_class_indices` draws."""

    stream = "per-class"

    def rank(self, values: Tensor | None, order: Tensor, count: int, end: End) -> Tensor:
        return order[:count]
