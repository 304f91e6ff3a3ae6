"""Images that are farthest from all before, greedily (Sener & Savarese 2018), in features; the first is drawn at random."""

import torch
from torch import Tensor

from dim.features.coreset import End, Rule

__all__ = ["KCenter"]


def k_center(points: Tensor, count: int, *, first: int) -> Tensor:
    """K-center greedy (Gonzalez 1985; Sener & Savarese 2018, algorithm 1): the next centre is the point farthest from all so far.

    The largest distance of a point to its centre is at most twice the smallest possible one.

    Args:
        points: float (N, F) of one class.
        count: how many to choose, 1 to N.
        first: the centre to begin with.

    Returns:
        int64 (count,), in the order of choice.
    """
    points = points.double()
    chosen = [first]
    distance = torch.full_like(points[:, 0], torch.inf)
    while len(chosen) < count:
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
        distance[chosen[-1]] = -1  # not again, also where points coincide
        chosen.append(int(distance.argmax()))
    return torch.tensor(chosen)


class KCenter(Rule):
    """See `dim.features.coreset.Rule`: the seed draws the first centre."""

    by_features = True

    def rank(self, values: Tensor | None, order: Tensor, count: int, end: End) -> Tensor:
        return k_center(values, count, first=int(order[0]))
