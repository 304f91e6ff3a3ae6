"""Distances between distributions within classes."""

import itertools
import math

import pytest
import torch

from dim import rng
from dim.config import MatchingConfig
from dim.nets.student import build_student
from dim.objectives.distances.characteristic import waves
from dim.objectives.distances.kernel import gaussians
from dim.objectives.distances.means import mean_distance
from dim.objectives.distances.moments import moments
from dim.objectives.logit import PoolMatching
from dim.objectives.statistics import class_distance, standardised

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


# Squared distances at which every bandwidth has a share of its own, and exp(-|x - y|^2 / (2 s^2)) for s = 1/2, 1, 2.
BY_HAND = [
    (0.0, (1.0, 1.0, 1.0)),
    (0.5, (0.36787944117144233, 0.7788007830714049, 0.9394130628134758)),  # e^-1, e^-1/4, e^-1/16
    (2.0, (0.01831563888873418, 0.36787944117144233, 0.7788007830714049)),  # e^-4, e^-1, e^-1/4
    (8.0, (1.1253517471925912e-07, 0.01831563888873418, 0.36787944117144233)),  # e^-16, e^-4, e^-1
    (32.0, (1.603810890548638e-28, 1.1253517471925912e-07, 0.01831563888873418)),  # e^-64, e^-16, e^-4
]


@pytest.mark.parametrize(("square", "parts"), BY_HAND)
def test_gaussians_by_hand(square, parts):
    """The bandwidths are 1/2, 1 and 2, with equal weights: at 32 only the widest is left, at 1/2 all three count."""
    x = torch.tensor([[3.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    y = x[:1] + torch.tensor([[(square / 2) ** 0.5, -((square / 2) ** 0.5)]], dtype=torch.float64)
    result = gaussians(x, y)
    assert result.shape == (2, 1)
    assert float(result[0]) == pytest.approx(sum(parts) / 3, rel=1e-12)
    far = math.dist((0.0, 0.0), y[0].tolist()) ** 2
    assert float(result[1]) == pytest.approx(sum(math.exp(-far / (2 * s * s)) for s in (0.5, 1, 2)) / 3, rel=1e-12)


def test_waves_by_hand(monkeypatch):
    """With frequencies of 1 in place of Gaussian ones the scales are bare: the mean of cos(2 d), cos(d), cos(d / 2), in turn."""
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: torch.ones(shape))
    x, y = (torch.tensor([values], dtype=torch.float64) for values in ([1.0, 0.5], [0.25, 0.75]))  # d = 1.5 - 1 = 0.5
    source = torch.Generator()
    cosines = (0.5403023058681398, 0.8775825618903728, 0.9689124217106447)  # of 1, 1/2, 1/4
    for count, expected in ((1, cosines[0]), (2, sum(cosines[:2]) / 2), (3, sum(cosines) / 3), (4, sum(cosines, cosines[0]) / 4)):
        assert float(waves(2, source, count)(x, y)) == pytest.approx(expected, rel=1e-12)


def test_waves_are_a_sum_over_frequencies():
    """Against cosines summed one by one, of 512 Gaussian frequencies that are scaled by 2, 1 and 1/2 in turn."""
    x, y = values(3, 5)
    drawn = torch.randn(5, 512, generator=rng.generator(7, "test")).double().T.tolist()
    result = waves(5, rng.generator(7, "test"))(x, y)
    for i, j in itertools.product(range(3), repeat=2):
        gaps = (x[i] - y[j]).tolist()
        terms = [
            math.cos((2.0, 1.0, 0.5)[place % 3] * sum(w * gap for w, gap in zip(frequency, gaps, strict=True)))
            for place, frequency in enumerate(drawn)
        ]
        assert float(result[i, j]) == pytest.approx(sum(terms) / 512, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("square", "parts"), BY_HAND)
def test_waves_have_the_bandwidths_of_the_gaussians_in_the_limit(square, parts):
    """E cos(<w, d>) over w of standard deviation 1/s is exp(-|d|^2 / (2 s^2)). Within four standard errors of 90,000 cosines."""
    x = torch.zeros(1, 2, dtype=torch.float64)
    y = torch.tensor([[(square / 2) ** 0.5] * 2], dtype=torch.float64)
    assert float(waves(2, rng.generator(1, "test"), 90_000)(x, y)) == pytest.approx(sum(parts) / 3, abs=4 * 0.71 / 300)


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
