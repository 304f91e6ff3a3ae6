"""Windows of start points: what is drawn, how the bound grows, and what is refused."""

import pytest
import torch

from dim.errors import InputError
from dim.trajectory.window import Window

FAR = 1000.0


def _draws(window: Window, count: int = 400, last: float = FAR) -> list[tuple[float, float]]:
    return [window.draw(0, iteration, 0, last) for iteration in range(count)]


def test_whole_start_points_are_below_the_upper_bound():
    draws = _draws(Window(low=2, high=7, span=3))
    starts = [start for start, _ in draws]
    assert set(starts) == {2.0, 3.0, 4.0, 5.0, 6.0}
    assert all(target == start + 3 for start, target in draws)
    assert min(map(starts.count, set(starts))) > 0.5 * len(starts) / 5


def test_one_start_point():
    assert set(_draws(Window(low=3, high=4, span=2), 20)) == {(3.0, 5.0)}


def test_continuous_start_points_fill_the_range():
    draws = _draws(Window(low=0.5, high=2.25, span=1.5, continuous=True))
    starts = [start for start, _ in draws]
    assert all(0.5 <= start < 2.25 for start in starts)
    assert len(set(starts)) == len(starts)
    assert min(starts) < 0.55
    assert max(starts) > 2.2
    assert sum(starts) / len(starts) == pytest.approx((0.5 + 2.25) / 2, abs=0.1)
    assert all(target == start + 1.5 for start, target in draws)


def test_targets_are_cut_off_at_the_end():
    window = Window(low=0, high=10, span=4, continuous=True)
    draws = _draws(window, last=10.0)
    assert all(target == min(start + 4, 10.0) for start, target in draws)
    assert all(start < target for start, target in draws)
    assert any(target == 10.0 for _, target in draws)
    assert any(target < 10.0 for _, target in draws)


@pytest.mark.parametrize("continuous", [False, True])
def test_the_bound_grows_linearly(continuous):
    window = Window(low=0, high=40, span=2, continuous=continuous, high_at_first=10, grows_for=300)
    assert [window.bound(iteration) for iteration in (0, 100, 150, 200, 300, 9999)] == [10, 20, 25, 30, 40, 40]
    bounds = [window.bound(iteration) for iteration in range(310)]
    assert bounds == sorted(bounds)
    assert window.bound(1) == pytest.approx(10.1) if continuous else window.bound(1) == 10
    for iteration in range(310):
        start, target = window.draw(0, iteration, 0, FAR)
        assert 0 <= start < bounds[iteration]
        assert target == start + 2
    late = [window.draw(0, iteration, 0, FAR)[0] for iteration in range(300, 500)]
    assert max(late) > 35


@pytest.mark.parametrize(
    ("iteration", "bound"), [(0, 10), (99, 10), (100, 11), (150, 11), (199, 11), (200, 12), (950, 19), (999, 19), (1000, 20)]
)
def test_a_growing_bound_is_truncated(iteration, bound):
    """DATM's bound from 10 to 20 within 1,000 iterations: a moment joins when the bound has reached it, not half a moment
    before."""
    window = Window(low=0, high=20, span=2, high_at_first=10, grows_for=1000)
    assert window.bound(iteration) == bound
    starts = {window.draw(0, iteration, member, FAR)[0] for member in range(400)}
    assert starts == set(map(float, range(bound)))


@pytest.mark.parametrize(
    ("first", "high", "length"), [(10, 20, 1000), (20, 40, 2000), (30, 50, 2000), (15, 20, 2000), (5, 10, 66)]
)
def test_every_published_bound_is_that_of_whole_numbers(first, high, length):
    """Against integer division, at every iteration: no rounding of the division moves a bound."""
    window = Window(low=0, high=high, span=2, high_at_first=first, grows_for=length)
    bounds = [window.bound(iteration) for iteration in range(length + 3)]
    assert bounds == [min(high, first + (high - first) * iteration // length) for iteration in range(length + 3)]


def test_a_bound_between_two_moments_leaves_the_first_start_point():
    """Truncated, a bound of 2.5 above a lowest start of 2 would leave none."""
    window = Window(low=2, high=4, span=1, high_at_first=2.5, grows_for=10)
    assert [window.bound(iteration) for iteration in (0, 3, 4, 9, 10)] == [3, 3, 3, 3, 4]
    assert {window.draw(0, 0, member, FAR)[0] for member in range(20)} == {2.0}


def test_a_bound_that_does_not_grow():
    window = Window(low=1, high=5, span=1)
    assert {window.bound(iteration) for iteration in (0, 1, 10**6)} == {5}


def test_a_growing_bound_always_leaves_a_start_point():
    window = Window(low=0, high=2, span=1, high_at_first=1, grows_for=10)
    assert all(window.bound(iteration) >= 1 for iteration in range(12))
    assert {window.draw(0, 0, member, FAR)[0] for member in range(20)} == {0.0}


@pytest.mark.parametrize("continuous", [False, True])
def test_draws_are_a_function_of_seed_iteration_and_member(continuous):
    window = Window(low=0, high=10**6, span=1, continuous=continuous)
    last = 2e6
    first = window.draw(1, 2, 3, last)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    window.draw(9, 9, 9, last)
    again = Window(low=0, high=10**6, span=1, continuous=continuous).draw(1, 2, 3, last)
    assert again == first
    assert torch.equal(before, torch.get_rng_state())
    assert len({first, window.draw(2, 2, 3, last), window.draw(1, 3, 3, last), window.draw(1, 2, 4, last)}) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": 5, "high": 5, "span": 1}, r"window 5 to 5, growing to 5: expected 0 <= min < max at first <= max"),
        ({"low": 6, "high": 5, "span": 1}, "window 6 to 5"),
        ({"low": -1, "high": 5, "span": 1}, "window -1 to 5"),
        ({"low": 0, "high": 5, "span": 1, "high_at_first": 6, "grows_for": 9}, "window 0 to 6, growing to 5"),
        ({"low": 2, "high": 5, "span": 1, "high_at_first": 2, "grows_for": 9}, "window 2 to 2, growing to 5"),
        ({"low": 0, "high": 5, "span": 0}, "window span is 0: expected a positive number of epochs"),
        ({"low": 0, "high": 5, "span": -2, "continuous": True}, "window span is -2"),
        ({"low": 0, "high": 5, "span": 1.5}, r"span 1\.5: expected whole numbers, or continuous=true"),
        ({"low": 0.5, "high": 5, "span": 1}, r"window 0\.5 to 5, span 1: expected whole numbers"),
        ({"low": 0, "high": 4.5, "span": 1}, r"window 0 to 4\.5, span 1: expected whole numbers"),
        ({"low": float("nan"), "high": 5, "span": 1, "continuous": True}, "window nan to 5"),
    ],
)
def test_empty_and_broken_windows_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Window(**settings)


def test_a_window_must_lie_on_the_recorded_path():
    whole = Window(low=0, high=20, span=2)
    whole.require_inside(21)
    with pytest.raises(InputError, match=r"reaches epoch 21 and the experts were recorded to 20: lower --trajectory\.max-start"):
        whole.require_inside(20)
    continuous = Window(low=0, high=20, span=2, continuous=True)
    continuous.require_inside(20)
    with pytest.raises(InputError, match=r"reaches epoch 20 and the experts were recorded to 19\.5: .* or record longer"):
        continuous.require_inside(19.5)


@pytest.mark.parametrize("continuous", [False, True])
def test_no_draw_of_a_window_that_fits_leaves_the_path(continuous):
    window = Window(low=0, high=20, span=2, continuous=continuous)
    last = 20.0 if continuous else 21.0
    window.require_inside(last)
    for start, target in _draws(window, last=last):
        assert 0 <= start < target <= last
