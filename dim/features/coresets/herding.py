"""Images whose mean follows the mean of the class (Welling 2009), in features."""

import torch
from torch import Tensor

from dim.features.coreset import End, Rule

__all__ = ["Herding"]


def herding(points: Tensor, count: int, *, mean: Tensor | None = None) -> Tensor:
    """Herding (Welling 2009): the next point is the one that brings the mean of the chosen ones nearest to the mean of all.

    In the form without repetition of Rebuffi et al. 2017 (iCaRL, equation 4). The points are taken as they are, not scaled to
    length one, so that the mean is the one of the class.

    Args:
        points: float (N, F) of one class.
        count: how many to choose, 1 to N.
        mean: float (F,), what the mean of the chosen ones should be near. Default: the mean of all points.

    Returns:
        int64 (count,), in the order of choice.
    """
    points = points.double()
    mean, total = points.mean(0) if mean is None else mean, torch.zeros_like(points[0])
    free = torch.ones(len(points), dtype=torch.bool, device=points.device)
    chosen = []
    for number in range(1, count + 1):
        # |mean - (total + x) / number| is least for the x nearest to this:
        wanted = number * mean - total
        distance = (points - wanted).square().sum(1).masked_fill(~free, torch.inf)
        chosen.append(int(distance.argmin()))
        free[chosen[-1]] = False
        total += points[chosen[-1]]
    return torch.tensor(chosen)


class Herding(Rule):
    """See `dim.features.coreset.Rule`: nothing is random."""

    by_features = True

    def rank(self, values: Tensor | None, order: Tensor, count: int, end: End) -> Tensor:
        return herding(values, count)
