"""Rates, areas and their intervals: known answers, and that intervals hold what they claim to hold."""

import math

import pytest
import torch
from scipy import stats

from dim.audit.rates import area, proportion, rates, true_positive_rate
from dim.errors import InputError


def draws(count: int, *, seed: int, shift: float = 0.0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return (torch.randn(count, generator=source, dtype=torch.float64) + shift).sort().values


def test_a_rate_by_hand():
    """Of 200 others 1 % are two: the threshold is the third largest, 197, and ten of forty members lie above it."""
    others, members = torch.arange(200.0), torch.cat((torch.full((10,), 198.5), torch.full((30,), 197.0)))
    found = true_positive_rate(members.sort().values, others, 0.01)
    assert found.value == 10 / 40
    assert found.low < 0.25 < found.high


def test_all_members_are_told_from_all_others():
    found, whole, members, others = rates(torch.arange(4000.0), torch.arange(4000) >= 1000, (0.001, 0.01))
    assert (members, others) == (3000, 1000)
    assert {rate: one.value for rate, one in found.items()} == {"0.001": 1.0, "0.01": 1.0}
    assert found["0.01"].low > 0.99
    assert whole.value == whole.high == 1.0
    assert 0.99 < whole.low < 1.0


def test_no_threshold_is_strict_enough_with_few_others():
    """Above the largest of 1000 others more than 0.1 % of all others may well lie."""
    assert true_positive_rate(torch.full((3000,), 9.0), draws(1000, seed=0), 0.001).low == 0.0
    assert true_positive_rate(torch.full((3000,), 9.0), draws(9000, seed=0), 0.001).low > 0.99


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_an_interval_holds_the_true_rate_at_least_as_often_as_it_says(rate):
    """Members are normal around 1: their true rate at any threshold of the others is known."""
    true = float(stats.norm.sf(stats.norm.isf(rate) - 1))
    found = [true_positive_rate(draws(600, seed=2 * n, shift=1.0), draws(600, seed=2 * n + 1), rate) for n in range(200)]
    assert sum(one.low <= true <= one.high for one in found) >= 190
    assert all(one.low < one.value < one.high for one in found)


def test_an_area_holds_chance_as_often_as_it_says():
    held = [area(draws(300, seed=2 * n), draws(500, seed=2 * n + 1)) for n in range(300)]
    assert 276 <= sum(one.low <= 0.5 <= one.high for one in held) <= 294  # 285 are to be expected, with a deviation of 3.8


def test_an_area_is_the_rank_sum_with_ties():
    members, others = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([0.0, 2.0, 3.0])
    wins = sum((m > o) + 0.5 * (m == o) for m in members.tolist() for o in others.tolist())
    assert area(members, others).value == pytest.approx(wins / 12)


def test_an_area_s_interval_is_that_of_the_rank_sum_at_chance():
    """The deviation of the rank sum without a difference is the root of (M + N + 1) / (12 M N)."""
    size, ties = 500, torch.zeros(500)
    found = area(ties, ties)
    half = 1.96 * math.sqrt((2 * size + 1) / (12 * size**2))
    assert (found.value, found.high - 0.5, 0.5 - found.low) == pytest.approx((0.5, half, half), rel=0.01)


def test_a_proportion_by_hand():
    """The rule of three: of none in n, the upper end is about 3.7 / n for both ends at 95 %."""
    none = proportion(0, 100)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert proportion(100, 100).high == 1.0


def test_images_that_cannot_be_judged_do_not_count():
    scores = torch.tensor([1.0, torch.nan, 2.0, 0.0])
    _, whole, members, others = rates(scores, torch.tensor([True, True, True, False]), (0.01,))
    assert (members, others, whole.value) == (2, 1, 1.0)
    with pytest.raises(InputError, match="2 members and 0 others"):
        rates(scores[:3], torch.tensor([True, True, True]), (0.01,))
