"""Paths of experts: recorded checkpoints, and convex combinations of waypoints by arc length."""

import itertools
import math

import pytest
import torch

from dim.config import RecordConfig, to_dict
from dim.errors import InputError
from dim.io import write_document
from dim.trajectory.path import ConvexPath, RecordedPath
from dim.trajectory.store import ExpertRecord, ExpertStore, Layout, to_waypoints, waypoint_moments

# "still" never moves, "late" only in the second half.
TENSORS = {"weight": slice(0, 4), "bias": slice(4, 5), "still": slice(5, 8), "late": slice(8, 10)}
LAST = 11


def _walk(last: int = LAST, seed: int = 0) -> torch.Tensor:
    """Weights (last + 1, 10) of an expert whose tensors move at speeds of their own."""
    generator = torch.Generator().manual_seed(seed)
    moves = torch.randn(last, 10, generator=generator) * torch.rand(last, 1, generator=generator)
    moves[:, TENSORS["still"]] = 0
    moves[: last // 2, TENSORS["late"]] = 0
    return torch.cat((torch.randn(1, 10, generator=generator), moves)).cumsum(0)


def _lengths(walk: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    moves = walk.diff(dim=0)
    return tuple(tuple(math.hypot(*move[part].tolist()) for part in TENSORS.values()) for move in moves)


@pytest.fixture
def store(tmp_path) -> ExpertStore:
    return _store(tmp_path / "experts", [_walk(seed=seed) for seed in (0, 1)])


def _store(folder, walks) -> ExpertStore:
    last = len(walks[0]) - 1
    tensors = tuple((name, part.stop - part.start) for name, part in TENSORS.items())
    store = ExpertStore.create(folder, Layout(experts=len(walks), moments=tuple(range(last + 1)), every=1.0, tensors=tensors))
    for expert, walk in enumerate(walks):
        for moment, theta in enumerate(walk):
            store.write(expert, moment, theta)
        record = ExpertRecord(lengths=_lengths(walk), accuracies=(50.0,) * (last + 1), test_accuracy=50.0)
        store.finish(expert, record)
    write_document(folder / "run.json", {"kind": "experts", "config": to_dict(RecordConfig()), "spec": {}})
    return store


def _times(last: int = LAST) -> list[float]:
    return [min(last, step * 0.23) for step in range(math.ceil(last / 0.23) + 1)]


def test_a_recorded_path_goes_straight_from_checkpoint_to_checkpoint(store):
    path, walk = RecordedPath(store, 1), _walk(seed=1)
    assert path.last == LAST
    for moment in range(LAST + 1):
        assert torch.equal(path.theta(moment), walk[moment])
        assert torch.equal(path.theta(float(moment)), walk[moment])
    for t in (0.25, 3.5, LAST - 0.125):
        before, part = int(t), t - int(t)
        torch.testing.assert_close(path.theta(t), (1 - part) * walk[before] + part * walk[before + 1])


def test_a_recorded_path_needs_every_checkpoint(store, tmp_path):
    with pytest.raises(InputError, match=r"holds waypoints only: use --trajectory\.path convex, or record every checkpoint"):
        RecordedPath(to_waypoints(store, tmp_path / "waypoints", 4), 0)


@pytest.mark.parametrize("waypoints", [2, 3, 4, LAST + 1])
@pytest.mark.parametrize("expert", [0, 1])
def test_waypoints_are_hit_exactly(store, waypoints, expert):
    path, walk = ConvexPath.of(store, expert, waypoints=waypoints), _walk(seed=expert)
    moments = waypoint_moments(LAST, waypoints)
    assert path.last == LAST
    assert {0, LAST} <= set(moments)
    for moment in moments:
        assert torch.equal(path.theta(moment), walk[moment])
        assert torch.equal(path.theta(float(moment)), walk[moment])


@pytest.mark.parametrize("waypoints", [2, 3, 4, LAST + 1])
def test_progress_is_the_arc_length_of_each_tensor(store, waypoints):
    path, walk, lengths = ConvexPath.of(store, 0, waypoints=waypoints), _walk(), _lengths(_walk())
    moments = waypoint_moments(LAST, waypoints)
    for t in _times():
        start, stop = next((a, b) for a, b in itertools.pairwise(moments) if a <= t <= b)
        theta = path.theta(t)
        assert theta.isfinite().all()
        for index, part in enumerate(TENSORS.values()):
            walked, whole = (
                sum(lengths[moment][index] * min(1.0, max(0.0, to - moment)) for moment in range(start, stop)) for to in (t, stop)
            )
            beta = walked / whole if whole else 0.0
            expected = (1 - beta) * walk[start][part] + beta * walk[stop][part]
            torch.testing.assert_close(theta[part], expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("kind", [RecordedPath, ConvexPath])
def test_paths_do_not_jump(store, kind, smooth):
    """A step in time moves the weights no more than the walk is long, times the step."""
    path = ConvexPath.of(store, 0, smooth=smooth) if kind is ConvexPath else RecordedPath(store, 0)
    length = sum(map(sum, _lengths(_walk())))
    times = [moment + shift for moment in range(LAST + 1) for shift in (-1e-3, 0.0, 1e-3)][1:-1]
    for before, after in itertools.pairwise(times):
        assert float((path.theta(after) - path.theta(before)).norm()) < (after - before) * length


def test_the_end_is_valid_and_beyond_it_nothing_is(store):
    for path in (RecordedPath(store, 0), ConvexPath.of(store, 0)):
        assert torch.equal(path.theta(path.last), _walk()[LAST])
        for t in (-0.1, LAST + 1e-6, math.inf, math.nan):
            with pytest.raises(InputError, match=r"time .* is outside the recorded path: expected 0 to 11"):
                path.theta(t)


def test_a_tensor_that_does_not_move_stays(store):
    walk = _walk()
    for smooth in (False, True):
        path = ConvexPath.of(store, 0, smooth=smooth)
        for t in _times():
            torch.testing.assert_close(path.theta(t)[TENSORS["still"]], walk[0][TENSORS["still"]])
    path = ConvexPath.of(store, 0)
    for t in (0.5, 2.7, 4):
        torch.testing.assert_close(path.theta(t)[TENSORS["late"]], walk[0][TENSORS["late"]])


def test_an_expert_that_does_not_move_at_all(tmp_path):
    walk = torch.ones(LAST + 1, 10)
    path = ConvexPath.of(_store(tmp_path / "still", [walk]), 0)
    assert all(torch.equal(path.theta(t), walk[0]) for t in _times())


def test_smoothed_waypoints_are_means_of_their_neighbours(store):
    """Published: moments before and after, without the moment itself; at the end the last two; the beginning as it is."""
    path, walk = ConvexPath.of(store, 0, waypoints=4, smooth=True), _walk()
    assert waypoint_moments(LAST, 4) == (0, 4, 8, 11)
    torch.testing.assert_close(path.theta(0), walk[0])
    torch.testing.assert_close(path.theta(4), (walk[3] + walk[5]) / 2)
    torch.testing.assert_close(path.theta(8), (walk[7] + walk[9]) / 2)
    torch.testing.assert_close(path.theta(11), (walk[10] + walk[11]) / 2)
    assert not torch.allclose(path.theta(4), walk[4])


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("waypoints", [2, 4, 6])
def test_a_waypoint_store_gives_the_path_of_the_full_one(store, tmp_path, waypoints, smooth):
    converted = to_waypoints(store, tmp_path / "waypoints", waypoints, smooth=smooth)
    for expert in (0, 1):
        full = ConvexPath.of(store, expert, waypoints=waypoints, smooth=smooth)
        for other in ({}, {"waypoints": 3}, {"smooth": True}):
            few = ConvexPath.of(converted, expert, **other)
            assert few.last == full.last
            assert all(torch.equal(few.theta(t), full.theta(t)) for t in _times())


def test_a_waypoint_store_in_bfloat16_gives_nearly_the_same_path(store, tmp_path):
    full = ConvexPath.of(store, 0, waypoints=4)
    few = ConvexPath.of(to_waypoints(store, tmp_path / "waypoints", 4, dtype="bfloat16"), 0)
    for t in _times():
        torch.testing.assert_close(few.theta(t), full.theta(t), rtol=1e-2, atol=1e-2)
        assert few.theta(t).dtype == torch.float32


def test_the_shortest_store_has_a_straight_path(tmp_path):
    walk = _walk(last=1)
    path = ConvexPath.of(_store(tmp_path / "short", [walk]), 0)
    assert torch.equal(path.theta(0), walk[0])
    assert torch.equal(path.theta(1), walk[1])
    torch.testing.assert_close(path.theta(0.25), 0.75 * walk[0] + 0.25 * walk[1])


@pytest.mark.parametrize("waypoints", [1, LAST + 2])
def test_more_waypoints_than_moments_are_refused(store, waypoints):
    with pytest.raises(InputError, match=f"waypoints is {waypoints}: expected 2 to {LAST + 1}"):
        ConvexPath.of(store, 0, waypoints=waypoints)
