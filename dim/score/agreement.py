"""Whether fresh students agree with a claimed score: the test of `dim verify`, and nothing about how they are trained.

A claim says mean, sample standard deviation s_c and number n_c of its students' accuracies. If it is true, fresh students are
draws from the same distribution, so that, for normal accuracies, the difference of means over its standard error is Student's t:

    measured mean - claimed mean,  with the interval  ± t(1 - level / 2, df) * s * sqrt(1 / n_c + 1 / k)

after k fresh students. A claim is refused where this interval leaves out zero. s is

- pooled over both, df = n_c + k - 2. With n_c = 1 the claim adds nothing to s, and its interval is wider; with k = 1 this is the
  prediction interval for one more student of the claim.
- at the last look also that of the fresh students alone, df = k - 1: whoever states a large s_c does not widen this one.

An interval at the last look that is wider than `CLEAR` says little. Then there are as many students again, and one more look.

The levels of all looks add up to `LEVEL`, so by Bonferroni's inequality a true claim is refused at most that often, however
early the looks are.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import ndtri, stdtrit

from dim.errors import InputError

LEVEL = 0.02
"""How often a true claim is refused, at most."""
_EARLY, _OWN = 0.002, 0.001  # of it, for all looks before the last, and for the fresh students' own spread at each of two last
_LAST = (LEVEL - _EARLY) / 2 - _OWN  # for each of these
CLEAR = 1.5
"""Half-width of the interval, in points, with which a claim that is three points too high is hardly ever accepted."""
FLOOR = 0.2
"""Smallest standard deviation that is reckoned with, in points: nineteen of twenty sets that were scored for this package have
more (benchmarks/verify.py computes that). Two or three students can be closer to each other by chance, and rounding differs
between machines."""
ASSUMED = 2.0
"""Standard deviation where one student stands against one, in points: nineteen of twenty sets have less."""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What is claimed of students' accuracies, in percent.

    Raises:
        InputError: for an accuracy outside 0 to 100, a spread that is negative or that of one student, or fewer than one student.
    """

    mean: float
    """Of the students."""
    std: float | None = None
    """Sample standard deviation; None: unknown, or of one student."""
    n: int = 1
    """Students."""

    def __post_init__(self) -> None:
        if not 0 <= self.mean <= 100:
            raise InputError(f"claimed is {self.mean:g}: expected an accuracy in percent, 0 to 100")
        if self.n < 1:
            raise InputError(f"claimed-n is {self.n}: expected 1 or more students")
        if self.std is not None and not 0 <= self.std <= 100:
            raise InputError(f"claimed-sd is {self.std:g}: expected a standard deviation in points, 0 to 100")
        if self.std is not None and self.n < 2:
            raise InputError(f"claimed-sd is {self.std:g} of {self.n} student: expected --claimed-n of 2 or more beside it")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A look at the students so far."""

    difference: float
    """Measured mean minus claimed mean, in points."""
    half_width: float
    """Of the interval around it; infinite where nothing can be said yet."""

    @property
    def interval(self) -> tuple[float, float]:
        """In which the true difference lies."""
        return self.difference - self.half_width, self.difference + self.half_width

    @property
    def agrees(self) -> bool:
        """Whether the interval holds zero."""
        return abs(self.difference) <= self.half_width


def look(stated: Stated, found: Sequence[float], planned: int) -> Agreement:
    """Compare a claim with the accuracies of fresh students.

    Args:
        stated: the claim.
        found: accuracies in percent, at least one.
        planned: how many students there are to be; the last look is the one at all of them, and, if that was `unclear`, the one
            at twice as many. Between these two nothing is said.
    """
    count, last = len(found), len(found) in (planned, 2 * planned)
    if not last and count > planned:
        return Agreement(difference=statistics.fmean(found) - stated.mean, half_width=math.inf)
    known = stated.n - 1 if stated.std is not None else 0
    mean = statistics.fmean(found)
    own = math.fsum((value - mean) ** 2 for value in found) / max(1, count - 1)
    freedom = known + count - 1
    pooled = (known * (stated.std or 0.0) ** 2 + (count - 1) * own) / freedom if freedom else 0.0
    level = _EARLY / (planned - 1) if not last else _LAST if planned > 1 else LEVEL
    widths = [_quantile(level, freedom, pooled, last)]
    if last and count > 1:
        widths.append(_quantile(_OWN, count - 1, own, last))
    width = min(widths) * math.sqrt(1 / stated.n + 1 / count)
    return Agreement(difference=mean - stated.mean, half_width=width)


def unclear(at: Agreement, planned: int) -> bool:
    """Whether the look at all `planned` students, if it agrees, leaves so much open that it takes as many again; a single one is
    for a quick answer."""
    return planned > 1 and at.agrees and at.half_width > CLEAR


def _quantile(level: float, freedom: int, variance: float, last: bool) -> float:
    """Half-width for one student against infinitely many."""
    if freedom == 0:
        return ASSUMED * float(ndtri(1 - level / 2)) if last else math.inf
    return float(stdtrit(freedom, 1 - level / 2)) * max(math.sqrt(variance), FLOOR)
