"""How well scores tell members from others: the true positive rate at a low false positive rate, and the area under the curve,
each with an interval in which it lies with 95 % confidence.

The average over all images says little of privacy: what counts is whether some members can be named with few false alarms
(Carlini et al. 2022, "Membership inference attacks from first principles", arXiv 2112.03570). The intervals are of the images:
the members and others that were asked about are taken as a sample of all that might have been.
"""

import math

import torch
from scipy import optimize, stats  # which scikit-learn brings
from torch import Tensor

from dim.errors import InputError
from dim.score.privacy import Interval

_OUTSIDE = 0.05  # probability that an interval misses


def rates(scores: Tensor, member: Tensor, false_positives: tuple[float, ...]) -> tuple[dict[str, Interval], Interval, int, int]:
    """True positive rates and area under the curve of an attack.

    Args:
        scores: float (N,), larger for images that the attack takes for members; NaN for those that it cannot judge, which do not
            count.
        member: bool (N,), whether they are.
        false_positives: rates in (0, 1).

    Returns:
        By false positive rate, as text, the `true_positive_rate`; the `area`; the numbers of members and of others that count.

    Raises:
        InputError: if there are no members or no others.
    """
    known = ~scores.isnan()
    inside, outside = (scores[known & mask].double().sort().values for mask in (member, ~member))
    if min(len(inside), len(outside)) == 0:
        raise InputError(f"{len(inside)} members and {len(outside)} others can be judged: expected at least one of each")
    found = {f"{rate:g}": true_positive_rate(inside, outside, rate) for rate in false_positives}
    return found, area(inside, outside), len(inside), len(outside)


def true_positive_rate(members: Tensor, others: Tensor, rate: float) -> Interval:
    """Part of the members above the threshold that a part `rate` of the others is above.

    The value is the plain one: the threshold is the lowest that no more than `rate` of these others are above. But that threshold
    is itself an estimate. So the lower end of the interval is taken at a threshold whose false positive rate is at most `rate`
    with high confidence, whatever the distribution, and the upper end at one whose rate is at least that (order statistics: the
    rate above the j-th largest of n is Beta(j, n - j + 1)); at both, the ends are those of Clopper and Pearson 1934. Each of
    these four statements fails with a probability of 1/80, so the interval misses in at most 5 %. With fewer others than about
    4 / `rate` no threshold is known to be strict enough, and the lower end is 0.

    Args:
        members: float (M,), sorted upwards.
        others: float (N,), sorted upwards.
        rate: in (0, 1).
    """
    count, tail = len(others), _OUTSIDE / 4
    value = _above(members, others, math.floor(rate * count) + 1, strictly=True) / len(members)
    ranks = torch.arange(1, count + 1).double().numpy()
    at_most = stats.beta.cdf(
        rate, ranks, count - ranks + 1
    )  # probability that the rate above the rank-th largest is below `rate`
    strict, loose = (at_most >= 1 - tail).nonzero()[0], (at_most <= tail).nonzero()[0]
    low, high = 0.0, 1.0
    if len(strict):
        low = _clopper_pearson(_above(members, others, int(strict[-1]) + 1, strictly=True), len(members), tail)[0]
    if len(loose):
        high = _clopper_pearson(_above(members, others, int(loose[0]) + 1, strictly=False), len(members), tail)[1]
    return Interval(value=value, low=low, high=high)


def _above(members: Tensor, others: Tensor, rank: int, *, strictly: bool) -> int:
    """Members above (or at, unless `strictly`) the rank-th largest of the others; all, where there are fewer others."""
    if rank > len(others):
        return len(members)
    threshold = others[len(others) - rank]
    return len(members) - int(torch.searchsorted(members, threshold, right=strictly))


def proportion(successes: int, trials: int) -> Interval:
    """A part, with the 95 % interval of Clopper and Pearson 1934."""
    low, high = _clopper_pearson(successes, trials, _OUTSIDE / 2)
    return Interval(value=successes / trials, low=low, high=high)


def _clopper_pearson(successes: int, trials: int, tail: float) -> tuple[float, float]:
    low = float(stats.beta.ppf(tail, successes, trials - successes + 1)) if successes else 0.0
    high = float(stats.beta.ppf(1 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def area(members: Tensor, others: Tensor) -> Interval:
    """Area under the curve: the probability that a member scores higher than another image, ties counting half.

    The interval has the variance of Hanley and McNeil 1982, solved for the area as Wilson's is for a proportion (Newcombe 2006,
    method 5). Without a difference it is that of the rank-sum test, and it does not shrink to a point where all are told apart.

    Args:
        members: float (M,), sorted upwards.
        others: float (N,), sorted upwards.
    """
    below = torch.searchsorted(others, members).double()
    up_to = torch.searchsorted(others, members, right=True).double()
    value = float((below + up_to).mean() / (2 * len(others)))
    size, pairs = (len(members) + len(others)) / 2 - 1, len(members) * len(others)
    reach = float(stats.norm.ppf(1 - _OUTSIDE / 2))

    def excess(guess: float) -> float:
        spread = 1 + size * ((1 - guess) / (2 - guess) + guess / (1 + guess))
        return abs(value - guess) - reach * math.sqrt(guess * (1 - guess) * spread / pairs)

    inner = min(max(value, 1e-12), 1 - 1e-12)  # 0 and 1 are roots of their own
    low = 0.0 if value == 0 else optimize.brentq(excess, 0.0, inner)
    high = 1.0 if value == 1 else optimize.brentq(excess, inner, 1.0)
    return Interval(value=value, low=float(low), high=float(high))
