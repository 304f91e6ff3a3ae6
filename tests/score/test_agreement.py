"""The test of claims: its error rate and power against simulation, and what it makes of few students and forged spreads."""

import math
import statistics

import numpy as np
import pytest
import scipy.stats

from dim.errors import InputError
from dim.score.agreement import ASSUMED, CLEAR, FLOOR, LEVEL, Agreement, Stated, look, unclear

TRIALS = 2000


def stated(values: np.ndarray) -> Stated:
    return Stated(mean=float(values.mean()), std=float(values.std(ddof=1)) if len(values) > 1 else None, n=len(values))


def refused(claim: Stated, fresh: list[float], planned: int) -> int:
    """After how many of the fresh students a claim is refused; 0: it is not. There are twice as many as planned, if need be."""
    for count in range(1, 2 * planned + 1):
        at = look(claim, fresh[:count], planned)
        if not at.agrees:
            return count
        if count == planned and not unclear(at, planned):
            return 0
    return 0


def rate(claimed: int, fresh: int, shift: float = 0.0, *, std: float = 1.0, forged: float | None = None) -> tuple[float, float]:
    """How often claims of so many students, `shift` points too high, are refused by so many others; and after how many."""
    source = np.random.default_rng(0)
    looks = []
    for _ in range(TRIALS):
        claim = stated(source.normal(50, std, claimed))
        claim = Stated(mean=claim.mean + shift, std=forged or claim.std, n=claim.n)
        looks.append(refused(claim, source.normal(50, std, 2 * fresh).tolist(), fresh))
    stops = [number for number in looks if number]
    return len(stops) / TRIALS, statistics.fmean(stops) if stops else math.nan


@pytest.mark.parametrize(("claimed", "fresh"), [(5, 5), (3, 3), (3, 5), (1, 5), (5, 1), (10, 2)])
def test_a_true_claim_is_refused_at_most_as_often_as_stated(claimed, fresh):
    """Also with all looks together; three standard errors above."""
    most = LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / TRIALS)
    found, _ = rate(claimed, fresh)
    assert found <= most
    assert rate(claimed, fresh, std=0.05)[0] <= found  # below the floor it is refused less often


def test_the_level_of_one_student_is_used_up():
    """Against the interval for one more student of a claim, computed here: no look is lost."""
    claim = Stated(mean=50.0, std=1.0, n=5)
    width = scipy.stats.t.ppf(1 - LEVEL / 2, 4) * math.sqrt(1 + 1 / 5)
    for sign in (-1, 1):
        assert look(claim, [50 + sign * 0.999 * width], 1).agrees
        assert not look(claim, [50 + sign * 1.001 * width], 1).agrees
    assert look(claim, [51.0], 1).interval == pytest.approx((1 - width, 1 + width))


@pytest.mark.parametrize(
    ("claimed", "fresh", "shift", "least"),
    [(5, 5, 3, 0.97), (5, 5, -3, 0.97), (10, 5, 3, 0.99), (3, 5, 5, 0.99), (5, 2, 4, 0.9)],
)
def test_a_false_claim_is_refused(claimed, fresh, shift, least):
    assert rate(claimed, fresh, shift)[0] >= least


def test_an_interval_that_is_wide_takes_as_many_students_again():
    """Half of these claims, three standard deviations too high, are refused by five students; nearly all by ten."""
    assert unclear(Agreement(difference=1.0, half_width=CLEAR + 0.1), 5)
    assert not unclear(Agreement(difference=1.0, half_width=CLEAR - 0.1), 5)
    assert not unclear(Agreement(difference=5.0, half_width=CLEAR + 0.1), 5), "refused already"
    assert not unclear(Agreement(difference=1.0, half_width=9.0), 1), "a quick answer"
    claim, fresh = Stated(mean=53.0, std=1.0, n=5), [50.0, 51.5, 49.0, 52.0, 50.5, 49.5, 51.0, 50.0, 50.5, 51.0]
    assert [look(claim, fresh[:count], 5).agrees for count in range(5, 11)] == [True, True, True, True, True, False]
    assert look(claim, fresh[:7], 5).half_width == math.inf


def test_a_claim_far_off_needs_few_students():
    found, students = rate(5, 5, 12.0)
    assert found > 0.999
    assert students < 1.6
    assert rate(5, 5, 3.0)[1] > 3


def test_claims_of_one_student_get_a_wider_interval():
    fresh = [50.0, 51.0, 49.0, 50.5, 49.5]
    widths = [look(Stated(mean=50.0, std=std, n=n), fresh, 5).half_width for std, n in ((0.8, 5), (None, 5), (None, 1))]
    assert widths == sorted(widths)
    assert widths[2] > 1.5 * widths[0]
    assert look(Stated(mean=50.0), fresh[:1], 5).half_width == math.inf  # one against one, and more to come
    assert look(Stated(mean=50.0), [50.0], 1).half_width == pytest.approx(
        scipy.stats.norm.ppf(1 - LEVEL / 2) * ASSUMED * math.sqrt(2)
    )


def test_a_forged_spread_does_not_buy_acceptance():
    """A spread of six times the true one, and eight standard deviations too high."""
    assert rate(5, 5, 8 * 0.5, std=0.5, forged=3.0)[0] > 0.95


def test_students_that_agree_by_chance_have_the_floor():
    width = look(Stated(mean=50.0, std=0.0, n=3), [50.0, 50.0, 50.0], 3).half_width
    assert width > 3 * FLOOR * math.sqrt(2 / 3)
    assert look(Stated(mean=50.4, std=0.0, n=3), [50.0, 50.0, 50.0], 3).agrees
    assert not look(Stated(mean=52.0, std=0.0, n=3), [50.0, 50.0, 50.0], 3).agrees


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mean": 101.0}, "claimed is 101: expected an accuracy"),
        ({"mean": 50.0, "n": 0}, "claimed-n is 0"),
        ({"mean": 50.0, "std": -1.0, "n": 3}, "claimed-sd is -1"),
        ({"mean": 50.0, "std": 1.0}, "claimed-n of 2 or more"),
    ],
)
def test_what_cannot_be_claimed_is_refused(values, said):
    with pytest.raises(InputError, match=said):
        Stated(**values)
