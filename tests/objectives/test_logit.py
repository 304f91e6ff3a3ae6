"""Logit matching: an estimate without bias, and the published one with its pull towards collapse."""

import itertools

import pytest
import torch
from torch import nn

from dim.config import MatchingConfig, PoolConfig, from_dict
from dim.data.real import RealData
from dim.errors import InputError
from dim.objectives.distances.means import mean_distance
from dim.objectives.distances.pairs import paired_distance
from dim.objectives.logit import PoolMatching
from dim.pool import build_pool


def _values(rows: int = 7, outputs: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, outputs, generator=generator, dtype=torch.float64) for _ in range(2))


LABELS = torch.tensor([0, 2, 0, 1, 2, 2, 0])  # class 1 has one image, class 3 none
CLASSES = 4


def _slow_mean_distance(real, generated, labels) -> float:
    """Explicit sums over pairs of different images, class by class."""
    batch, outputs = real.shape
    total = 0.0
    for label in set(labels.tolist()):
        rows = [i for i in range(batch) if labels[i] == label]
        n = len(rows)
        if n < 2:
            continue
        pairs = [(i, j) for i in rows for j in rows if i != j]
        products = [real[i] @ real[j] + generated[i] @ generated[j] - 2 * real[i] @ generated[j] for i, j in pairs]
        total += n * float(sum(products)) / (n * (n - 1))
    return total / (batch * outputs)


def test_mean_distance_by_hand():
    """One class, two images: a = 1, 3; b = 0, 5; one output of two used: (1*3 + 0*5 - (1*5 + 3*0)) / 2."""
    real = torch.tensor([[1.0, 0], [3, 0]])
    generated = torch.tensor([[0.0, 0], [5, 0]])
    assert float(mean_distance(real, generated, torch.tensor([1, 1]), 2)) == pytest.approx((3 + 0 - 5) / 2)


def test_mean_distance_equals_a_sum_over_pairs():
    real, generated = _values()
    assert float(mean_distance(real, generated, LABELS, CLASSES)) == pytest.approx(
        _slow_mean_distance(real, generated, LABELS), rel=1e-12
    )


@pytest.mark.parametrize("classes", [3, 4, 12])
@pytest.mark.parametrize("outputs", [1, 2, 4, 9])
def test_mean_distance_takes_any_number_of_classes_and_outputs(classes, outputs):
    """Features need not be as many as classes: more classes than features, as many, and fewer, with the last class present."""
    real, generated = _values(outputs=outputs)
    labels = torch.tensor([0, 2, 0, classes - 1, 2, 2, classes - 1])
    expected = _slow_mean_distance(real, generated, labels)
    assert expected != 0
    assert float(mean_distance(real, generated, labels, classes)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("outputs", [10, 32, 128])
def test_mean_distance_keeps_its_bits_where_outputs_are_not_fewer_than_classes(outputs):
    """Logged losses of seeded runs repeat: sums are over as many columns as there are outputs, as they always were."""
    for seed in range(8):
        real, generated = (values.float() for values in _values(64, outputs, seed))
        labels = torch.randint(0, 10, (64,), generator=torch.Generator().manual_seed(seed))
        members = torch.eye(outputs)[labels]
        count, difference = members.sum(0), real - generated
        total = (members.T @ difference).square().sum(1) - members.T @ difference.square().sum(1)
        expected = (total / (count * (count - 1)).clamp(min=1) * count).sum() / (len(real) * outputs)
        assert torch.equal(mean_distance(real, generated, labels, 10), expected)


@pytest.mark.parametrize("n", [2, 3])
def test_mean_distance_is_unbiased_exactly(n):
    """The average over all equally likely draws from two finite distributions is |E a - E b|^2 / K, for any spread."""
    a = torch.tensor([[0.0, 1.0], [2.0, -3.0]], dtype=torch.float64)
    b = torch.tensor([[5.0, 1.0], [-1.0, 0.5], [0.5, 0.0]], dtype=torch.float64)
    labels = torch.ones(n, dtype=torch.int64)
    draws = [
        float(mean_distance(a[list(i)], b[list(j)], labels, CLASSES))
        for i in itertools.product(range(len(a)), repeat=n)
        for j in itertools.product(range(len(b)), repeat=n)
    ]
    expected = float((a.mean(0) - b.mean(0)).square().sum()) / 2
    assert sum(draws) / len(draws) == pytest.approx(expected, rel=1e-12)


def test_only_the_published_pairing_rewards_collapse():
    """Real images at -1 and 1; generated at -s and s have the right mean at any s. Averages over all draws of two."""
    labels = torch.zeros(2, dtype=torch.int64)

    def expected(distance, spread):
        draws = [
            distance(torch.tensor([[x, 0.0] for x in real]), torch.tensor([[spread * y, 0.0] for y in fake]))
            for real in itertools.product((-1.0, 1.0), repeat=2)
            for fake in itertools.product((-1.0, 1.0), repeat=2)
        ]
        return float(torch.stack(draws).mean())

    spreads = (0.0, 0.5, 1.0, 2.0)
    paired = [expected(paired_distance, spread) for spread in spreads]
    assert paired == pytest.approx([(1 + spread**2) / 2 for spread in spreads])
    assert min(paired) == paired[0], "collapse is the published optimum"
    unbiased = [expected(lambda a, b: mean_distance(a, b, labels, CLASSES), spread) for spread in spreads]
    assert unbiased == pytest.approx([0.0] * 4, abs=1e-6)


def test_classes_with_fewer_than_two_images_count_as_zero():
    real, generated = _values(3)
    labels = torch.tensor([0, 1, 2])
    assert float(mean_distance(real, generated, labels, CLASSES)) == 0
    generated.requires_grad_()
    values = torch.cat((generated, generated[:1] + 1))
    mean_distance(torch.cat((real, real[:1])), values, torch.tensor([0, 1, 2, 0]), CLASSES).backward()
    assert generated.grad[0].abs().sum() > 0
    assert generated.grad[1:].abs().sum() == 0


def test_classes_are_weighted_by_their_images():
    real, generated = _values(5)
    labels = torch.tensor([0, 0, 3, 3, 3])
    parts = [mean_distance(real[labels == k], generated[labels == k], labels[labels == k], CLASSES) for k in (0, 3)]
    torch.testing.assert_close(mean_distance(real, generated, labels, CLASSES), (2 * parts[0] + 3 * parts[1]) / 5)


@pytest.mark.parametrize("distance", [mean_distance, lambda a, b, labels, classes: paired_distance(a, b)])
def test_gradients(distance):
    real, generated = _values()
    assert torch.autograd.gradcheck(
        lambda a, b: distance(a, b, LABELS, CLASSES), (real.requires_grad_(), generated.requires_grad_())
    )


def test_order_does_not_matter_to_mean_distance():
    real, generated = _values()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    expected = mean_distance(real, generated, LABELS, CLASSES)
    torch.testing.assert_close(mean_distance(real[order], generated[order], LABELS[order], CLASSES), expected)


def test_mean_distance_is_unbiased_where_rows_share_an_augmentation():
    """Equal distributions whose rows are equal, the strongest correlation that there is: over all draws of two the mean is 0."""
    a, labels = torch.tensor([[0.0, 1.0], [2.0, -3.0]], dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    draws = [float(mean_distance(a[list(i)], a[list(i)], labels, CLASSES)) for i in itertools.product(range(2), repeat=2)]
    assert sum(draws) == pytest.approx(0, abs=1e-12)


def test_adding_the_same_to_both_sides_does_not_change_the_expected_distance():
    """The estimate itself is symmetric in its two sides."""
    real, generated = _values()
    torch.testing.assert_close(mean_distance(real, generated, LABELS, CLASSES), mean_distance(generated, real, LABELS, CLASSES))
    torch.testing.assert_close(paired_distance(real + 3, generated + 3), paired_distance(real, generated))


def test_paired_distance_by_hand():
    assert float(paired_distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]]))) == pytest.approx((4 + 9) / 2)


def test_shapes_that_disagree_are_refused():
    real, generated = _values()
    with pytest.raises(RuntimeError):
        mean_distance(real, generated[:, :3], LABELS, CLASSES)
    with pytest.raises(RuntimeError):
        mean_distance(real, generated, LABELS[:5], CLASSES)
    with pytest.raises(RuntimeError):
        paired_distance(real, generated[:5])


class _StubPool:
    """A pool with one model, which remembers the steps it was asked for."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.steps = net, []

    def draw(self, step: int) -> nn.Module:
        self.steps.append(step)
        return self.net

    def outputs(self, images, step, kind):
        return self.draw(step)(images)[None]


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(64, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.register_buffer("weight", weight)

    def forward(self, images):
        return torch.tanh(images.flatten(1) @ self.weight)


def _batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(7, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(2))


def _matching(spec, distance="means", augment="", weight=0.01, seed=0):
    config = MatchingConfig(distance=distance, outputs="logits", augment=augment, weight=weight)
    return PoolMatching(_StubPool(_Net()), config, spec(1, 8), seed=seed)


@pytest.mark.parametrize("distance", ["pairs", "means"])
def test_accumulate_adds_the_weighted_gradient(spec, distance):
    """Value from log-probabilities by the definition; gradient by central differences; added to what is there."""
    images, real = _batch()
    matching = _matching(spec, distance, weight=0.5)

    def slow(x):
        a, b = (values.exp() / values.exp().sum(1, keepdim=True) for values in (_Net()(real), _Net()(x)))
        a, b = a.log(), b.log()
        return float((a - b).square().mean()) if distance == "pairs" else _slow_mean_distance(a, b, LABELS)

    leaf = images.clone().requires_grad_()
    leaf.grad = torch.ones_like(leaf)
    losses = matching.accumulate(leaf, LABELS, real=real, step=6)
    assert float(losses["matching"]) == pytest.approx(slow(images), rel=1e-9)
    assert not losses["matching"].requires_grad
    assert set(matching.pool.steps) == {6}
    for place in [(0, 0, 0, 0), (4, 0, 3, 5), (6, 0, 7, 7)]:
        shift = torch.zeros_like(images)
        shift[place] = 1e-5
        slope = (slow(images + shift) - slow(images - shift)) / 2e-5
        assert float(leaf.grad[place]) == pytest.approx(1 + 0.5 * slope, abs=1e-7)
    if distance == "means":
        assert torch.equal(leaf.grad[3], torch.ones_like(leaf.grad[3])), "a class with one image moved"


@pytest.mark.parametrize("distance", ["pairs", "means", "moments", "kernel", "characteristic"])
@pytest.mark.parametrize(("kind", "width"), [("features", 1), ("features", 3), ("features", 40), ("logits", 12)])
def test_every_distance_takes_features_of_any_width(spec, distance, kind, width):
    """A narrow model may have fewer features than the data have classes."""
    weight = torch.randn(64, width, generator=torch.Generator().manual_seed(4))

    class Pool:
        def outputs(self, images, step, kind):
            return torch.tanh(images.flatten(1) @ weight)[None]

    config = MatchingConfig(distance=distance, outputs=kind, augment="")
    images, real = (values.float() for values in _batch())
    leaf, labels = images.requires_grad_(), torch.tensor([0, 11, 0, 7, 11, 11, 0])
    loss = PoolMatching(Pool(), config, spec(1, 8, 12), seed=0).accumulate(leaf, labels, real=real, step=0)["matching"]
    assert loss.isfinite()
    assert leaf.grad.isfinite().all()
    assert leaf.grad.abs().sum() > 0


def test_accumulate_without_an_earlier_gradient(spec):
    images, real = _batch()
    grads = []
    for start in (None, torch.zeros_like(images)):
        leaf = images.clone().requires_grad_()
        leaf.grad = start
        _matching(spec).accumulate(leaf, LABELS, real=real, step=0)
        grads.append(leaf.grad)
    assert torch.equal(*grads)
    assert grads[0].abs().sum() > 0


def test_both_sides_get_the_same_augmentation(spec):
    """Generated images equal to their real partners are at distance 0, whatever the draw."""
    images, _ = _batch()
    matching = _matching(spec, "pairs", "color_crop_cutout_scale_rotate")
    leaf = images.clone().requires_grad_()
    assert float(matching.accumulate(leaf, LABELS, real=images, step=3)["matching"]) == 0
    assert leaf.grad.abs().sum() == 0


def test_augmentation_is_a_function_of_seed_and_step(spec):
    images, real = _batch()

    def loss(seed, step):
        leaf = images.clone().requires_grad_()
        return float(_matching(spec, augment="color_crop", seed=seed).accumulate(leaf, LABELS, real=real, step=step)["matching"])

    assert loss(0, 1) == loss(0, 1)
    assert len({loss(0, 1), loss(0, 2), loss(1, 1)}) == 3


def test_a_real_pool_is_left_as_it_was(spec):
    """Members collect no gradients and do not learn from generated images."""
    config = PoolConfig(students=("convnet:width=2,depth=1",), members=1)
    pool = build_pool(config, RealData(spec(1, 8), None, None, None), steps_per_epoch=4, seed=0)
    before = [parameter.clone() for parameter in pool.draw(0).parameters()]
    images, real = (values.float() for values in _batch())
    leaf = images.requires_grad_()
    PoolMatching(pool, MatchingConfig(), spec(1, 8), seed=0).accumulate(leaf, LABELS, real=real, step=0)
    assert leaf.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in pool.draw(0).parameters())
    assert all(torch.equal(*pair) for pair in zip(before, pool.draw(0).parameters(), strict=True))


def test_bad_batches_and_options_are_refused(spec):
    images, real = _batch()
    leaf = images.requires_grad_()
    with pytest.raises(ValueError, match="7 images: expected 5"):
        _matching(spec, augment="color").accumulate(leaf, LABELS, real=real[:5], step=0)
    with pytest.raises(InputError, match="unknown augmentation"):
        _matching(spec, augment="colour")
    with pytest.raises(InputError, match="distance is 'mean'"):
        from_dict(MatchingConfig, {"distance": "mean"})
    with pytest.raises(InputError, match=r"matching\.weight"):
        MatchingConfig(weight=-1)
