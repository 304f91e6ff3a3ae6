"""Two clouds compared: against slow formulas as they are printed, against known values, and against statistics."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch

from dim.errors import InputError
from dim.features import distances as clouds
from dim.features.distances import distances, expected_coverage, frechet_distance, neighbour_metrics


def cloud(count: int, width: int = 4, *, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + shift


def by_the_book(real: np.ndarray, generated: np.ndarray, precision_k: int = 3, coverage_k: int = 5) -> dict[str, float]:
    """Loops over the definitions."""

    def distance(a, b):
        return float(np.sqrt(((a - b) ** 2).sum()))

    def radius(points, i, k):
        return sorted(distance(points[i], other) for j, other in enumerate(points) if j != i)[k - 1]

    def in_manifold(point, points):
        return any(distance(point, other) <= radius(points, i, precision_k) for i, other in enumerate(points))

    inside = [
        [distance(x, y) < radius(real, i, coverage_k) for y in generated]
        for i, x in enumerate(real)
    ]  # fmt: skip
    return {
        "precision": np.mean([in_manifold(y, real) for y in generated]),
        "recall": np.mean([in_manifold(x, generated) for x in real]),
        "density": np.sum(inside) / (coverage_k * len(generated)),
        "coverage": np.mean(np.any(inside, axis=1)),
    }


@pytest.mark.parametrize(("real", "generated"), [(14, 9), (9, 14), (12, 12)])
@pytest.mark.parametrize("chunk", [1, 30, 10**6])
def test_neighbour_metrics_are_those_of_the_book(monkeypatch, real, generated, chunk):
    monkeypatch.setattr(clouds, "_CHUNK", chunk)
    first, second = cloud(real, 3), cloud(generated, 3, seed=1, shift=0.4, scale=0.8)
    found = neighbour_metrics(first, second)
    assert found == pytest.approx(by_the_book(first.numpy(), second.numpy()))
    assert len({*found.values()} - {0.0, 1.0}) > 1  # the case decides something


def test_neighbour_metrics_by_hand():
    """Reals at 0, 1, ..., 6 and one generated image far away, six near 0: only the balls around the first reals hold any."""
    real = torch.arange(7.0)[:, None]
    generated = torch.tensor([[0.1], [0.12], [0.14], [0.16], [0.18], [0.2], [100.0]])
    found = neighbour_metrics(real, generated)
    assert found["precision"] == pytest.approx(6 / 7)
    # Fifth neighbours are at 5, 4, 3, 3, 3, 4, 5: of the open balls those around 0, 1 and 2 hold the six, and that around 3.
    assert found["coverage"] == pytest.approx(4 / 7)
    assert found["density"] == pytest.approx(4 * 6 / (5 * 7))


@pytest.mark.parametrize("width", [1, 6])
def test_the_frechet_distance_is_that_of_the_formula(width):
    real, generated = cloud(60, width), cloud(50, width, seed=1, shift=0.3, scale=1.7)
    covariances = [np.cov(points.numpy().T).reshape(width, width) for points in (real, generated)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    mean = ((real.mean(0) - generated.mean(0)) ** 2).sum()
    expected = float(mean) + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-9)


def test_the_frechet_distance_of_fewer_images_than_features():
    """The covariances are singular; the trace of the root is then a sum over the few directions that there are."""
    real, generated = cloud(5, 40), cloud(4, 40, seed=1)
    centred = [(points - points.mean(0)) / (len(points) - 1) ** 0.5 for points in (real, generated)]
    cross = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    trace = sum(part.square().sum() for part in centred) - 2 * cross
    expected = (real.mean(0) - generated.mean(0)).square().sum() + trace
    assert frechet_distance(real, generated) == pytest.approx(float(expected), rel=1e-7)


def test_a_shift_adds_its_square_to_the_frechet_distance():
    real = cloud(100, 5)
    assert frechet_distance(real, real + 2) == pytest.approx(5 * 4, rel=1e-9)


def test_a_cloud_and_itself():
    real = cloud(200).float()
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    found = neighbour_metrics(real, real)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)


def test_nothing_depends_on_where_the_clouds_are_or_in_which_order():
    """Features far from the origin lose digits if distances are taken there."""
    real, generated = cloud(80), cloud(80, seed=1, shift=0.5)
    expected = neighbour_metrics(real, generated)
    assert neighbour_metrics(real + 1e6, generated + 1e6) == expected
    assert neighbour_metrics(real.flip(0), generated.flip(0)) == expected
    assert frechet_distance(real.flip(0), generated) == pytest.approx(frechet_distance(real, generated), rel=1e-9)


def test_two_halves_of_one_distribution_are_as_expected():
    """Density and coverage have known expectations; the mean over 40 draws comes near them."""
    found = [neighbour_metrics(cloud(100, 3, seed=2 * i), cloud(60, 3, seed=2 * i + 1)) for i in range(40)]
    coverage, density = (torch.tensor([values[name] for values in found]) for name in ("coverage", "density"))
    assert float(coverage.mean()) == pytest.approx(expected_coverage(100, 60), abs=4 * float(coverage.std()) / 40**0.5)
    assert float(density.mean()) == pytest.approx(1, abs=4 * float(density.std()) / 40**0.5)
    assert float(coverage.std()) < 0.1


def test_expected_coverage_by_counting():
    """A ball of the k-th neighbour stays empty if the k nearest of all others are real: all orders are equally likely."""
    for real, generated, k in ((4, 3, 2), (5, 2, 3)):
        orders = list(itertools.combinations(range(real - 1 + generated), real - 1))  # where the reals stand, nearest first
        empty = sum(set(range(k)) <= set(order) for order in orders)
        assert expected_coverage(real, generated, k) == pytest.approx(1 - empty / len(orders))


def test_one_mode_of_two_is_precise_and_covers_half():
    real = torch.cat((cloud(100), cloud(100, seed=1, shift=50)))
    found = neighbour_metrics(real, cloud(200, seed=2))
    assert found["precision"] > 0.8
    assert found["recall"] < 0.55
    assert 0.4 < found["coverage"] < 0.55


def test_a_collapsed_generator_covers_little():
    found = neighbour_metrics(cloud(200), cloud(1).expand(200, -1) + cloud(200, seed=3, scale=1e-3))
    assert found["coverage"] < 0.2
    assert found["recall"] < 0.05


def test_distances_are_in_float64_and_by_parts(monkeypatch):
    monkeypatch.setattr(clouds, "_CHUNK", 25)
    queries, points = cloud(7), cloud(10, seed=1)
    parts = list(distances(queries, points))
    assert [len(table) for _, table in parts] == [2, 2, 2, 1]
    table = torch.cat([table for _, table in parts])
    assert table.dtype == torch.float64
    assert torch.allclose(table, (queries[:, None] - points[None]).norm(dim=2), atol=1e-12)


@pytest.mark.parametrize(("real", "generated"), [(5, 100), (100, 5), (0, 100)])
def test_too_few_images_for_five_neighbours(real, generated):
    with pytest.raises(InputError, match="at least 6"):
        neighbour_metrics(cloud(real), cloud(generated))


def test_too_few_images_for_a_covariance():
    with pytest.raises(InputError, match="at least 2"):
        frechet_distance(cloud(1), cloud(9))
