"""Distances between distributions within classes."""

import itertools

import pytest
import torch

from dim import rng
from dim.config import MatchingConfig
from dim.nets.students import build_student
from dim.objectives.logit import PoolMatching, mean_distance
from dim.objectives.statistics import class_distance, gaussians, moments, standardised, waves

LABELS = torch.tensor([0, 2, 0, 1, 2, 2, 0])


def values(rows: int = 7, outputs: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, outputs, generator=generator, dtype=torch.float64) for _ in range(2))


def fixed_waves(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return waves(x.shape[1], rng.generator(0, "test"), 64)(x, y)


KERNELS = {"moments": moments, "kernel": gaussians, "characteristic": fixed_waves}


def slow(kernel, real, generated, labels) -> float:
    """Explicit sums over pairs of different images, class by class."""
    total = 0.0
    for label in set(labels.tolist()):
        rows = [i for i in range(len(labels)) if labels[i] == label]
        n = len(rows)
        if n < 2:
            continue

        def k(x, y):
            return float(kernel(x[None], y[None]))

        pairs = [(i, j) for i in rows for j in rows if i != j]
        terms = [k(real[i], real[j]) + k(generated[i], generated[j]) - 2 * k(real[i], generated[j]) for i, j in pairs]
        total += n * sum(terms) / (n * (n - 1))
    return total / len(labels)


@pytest.mark.parametrize("name", KERNELS)
def test_equals_a_sum_over_pairs(name):
    real, generated = values()
    result = class_distance(KERNELS[name], real, generated, LABELS)
    assert float(result) == pytest.approx(slow(KERNELS[name], real, generated, LABELS), rel=1e-9)


def test_the_linear_kernel_is_the_distance_of_means():
    real, generated = values()
    result = class_distance(lambda x, y: x @ y.T, real, generated, LABELS)
    torch.testing.assert_close(result, 4 * mean_distance(real, generated, LABELS, 3))


@pytest.mark.parametrize("name", KERNELS)
def test_is_unbiased_exactly(name):
    """The average over all draws of two is the distance of the distributions, which is 0 if they are the same."""
    a = torch.tensor([[0.0, 1.0], [2.0, -3.0], [0.5, 0.5]], dtype=torch.float64)
    b = torch.tensor([[5.0, 1.0], [-1.0, 0.5]], dtype=torch.float64)
    kernel, labels = KERNELS[name], torch.zeros(2, dtype=torch.int64)
    for first, second in ((a, b), (a, a)):
        draws = [
            float(class_distance(kernel, first[list(i)], second[list(j)], labels))
            for i in itertools.product(range(len(first)), repeat=2)
            for j in itertools.product(range(len(second)), repeat=2)
        ]
        expected = float(kernel(first, first).mean() + kernel(second, second).mean() - 2 * kernel(first, second).mean())
        assert sum(draws) / len(draws) == pytest.approx(expected, abs=1e-9)
        assert expected > 1e-3 or first is second


@pytest.mark.parametrize("name", KERNELS)
def test_is_unbiased_where_rows_share_an_augmentation(name):
    """Equal distributions whose rows are equal, the strongest correlation that there is: over all draws of two the mean is 0."""
    a, labels = torch.tensor([[0.0, 1.0], [2.0, -3.0]], dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    draws = [float(class_distance(KERNELS[name], a[list(i)], a[list(i)], labels)) for i in itertools.product(range(2), repeat=2)]
    assert sum(draws) == pytest.approx(0, abs=1e-9)


def spread_distance(kernel, spread: float) -> float:
    """Expected distance of standard normal values to those of another spread, from one large sample each."""
    source = torch.Generator().manual_seed(0)
    real, generated = (torch.randn(1500, 1, generator=source, dtype=torch.float64) for _ in range(2))
    return float(class_distance(kernel, real, spread * generated, torch.zeros(1500, dtype=torch.int64)))


def test_only_the_distance_of_means_is_blind_to_spread():
    for kernel in KERNELS.values():
        assert spread_distance(kernel, 0.3) > 10 * abs(spread_distance(kernel, 1.0))
    assert spread_distance(lambda x, y: x @ y.T, 0.3) == pytest.approx(0, abs=0.01)


def test_characteristic_functions_and_gaussian_kernels_agree_in_the_limit():
    real, generated = values(12, 3)
    labels = torch.zeros(12, dtype=torch.int64)
    many = waves(3, rng.generator(0, "test"), 60_000)
    expected = class_distance(gaussians, real, generated, labels)
    assert float(class_distance(many, real, generated, labels)) == pytest.approx(float(expected), abs=0.01)


def test_standardised_outputs_have_unit_length_on_average_and_constants_are_left_out():
    real, generated = values(50, 6)
    real, generated = real * 30 + 4, generated * 30 + 4
    real[:, 2] = 7.0
    ours, theirs = standardised(real, generated)
    assert float(ours.square().sum(1).mean()) == pytest.approx(5 / 6)
    assert (ours[:, 2] == 0).all()
    assert (theirs[:, 2] == 0).all()


@pytest.mark.parametrize("distance", ["pairs", "means", "moments", "kernel", "characteristic"])
@pytest.mark.parametrize("outputs", ["logits", "features"])
def test_every_distance_moves_images_towards_real_ones(spec, distance, outputs):
    """Generated images that begin darker: descent on any of them brings the model's outputs together."""
    data = spec(1, 8, 3)
    member = build_student("convnet:width=8", data, seed=0).eval().requires_grad_(False)

    class Pool:
        def outputs(self, images, step, kind):
            return (member.embed(images) if kind == "features" else member(images))[None]

    matching = PoolMatching(Pool(), MatchingConfig(weight=1.0, distance=distance, outputs=outputs, augment=""), data, seed=0)
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 3
    real = torch.rand(24, 1, 8, 8, generator=source) * 2 - 1
    images = (real[torch.arange(24).roll(3)] * 0.3 - 0.5).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.02)
    losses = []
    for _ in range(40):
        losses.append(float(matching.accumulate(images, labels, real=real, step=0)["matching"]))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.2 * abs(losses[0])


def test_frequencies_follow_the_step(spec):
    data = spec(1, 8, 2)
    member = build_student("convnet:width=8", data, seed=0).eval().requires_grad_(False)

    class Pool:
        def outputs(self, images, step, kind):
            return (member.embed(images) if kind == "features" else member(images))[None]

    matching = PoolMatching(Pool(), MatchingConfig(distance="characteristic", augment=""), data, seed=0)
    images, real = (torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(n)) * 2 - 1 for n in (0, 1))
    labels = torch.arange(8) % 2
    results = [float(matching.accumulate(images.requires_grad_(), labels, real=real, step=s)["matching"]) for s in (1, 1, 2)]
    assert results[0] == results[1] != results[2]
