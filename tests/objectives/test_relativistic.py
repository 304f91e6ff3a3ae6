"""The relativistic loss, its penalties, and augmentation with an adaptive probability."""

import copy

import pytest
import torch
import torch.nn.functional as F

from dim.config import AdversarialConfig, DiscriminatorConfig
from dim.errors import InputError
from dim.nets.discriminators import ProjectionDiscriminator, build_discriminator
from dim.objectives.adversaries.relativistic import Relativistic
from dim.processes import ALONE, Processes

TARGETS = torch.tensor([0, 3, 1, 1, 2])


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(5, 1, 8, 8, generator=generator) * 2 - 1 for _ in range(2))


@pytest.fixture
def net(spec):
    net = build_discriminator(ProjectionDiscriminator, DiscriminatorConfig(width=4), spec(1, 8, 4), seed=0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.1
    return net


def make(net, spec, *, gamma=lambda step: 0.7, lr: float = 0.1, processes=ALONE, **settings) -> Relativistic:
    return Relativistic(
        net,
        torch.optim.SGD(net.parameters(), lr=lr),
        AdversarialConfig(loss="relativistic", **settings),
        spec(1, 8, 4),
        seed=0,
        finish=lambda parameters: None,
        gamma=gamma,
        processes=processes,
    )


def expected_loss(net, images, real, gamma: float) -> torch.Tensor:
    """The loss written out image by image."""
    total = 0.0
    for image, other, label in zip(images, real, TARGETS, strict=True):
        values, norms = [], 0.0
        for value in (image, other):
            value = value[None].clone().requires_grad_()
            result = net(value, label[None])
            (gradient,) = torch.autograd.grad(result.sum(), value, create_graph=True)
            norms = norms + gradient.square().sum()
            values.append(result)
        total = total + F.softplus(values[0] - values[1]).sum() + gamma / 2 * norms
    return total / len(images)


def test_advance_is_a_step_down_the_published_loss(net, spec):
    images, real = batch()
    other = copy.deepcopy(net)
    expected_loss(other, images, real, 0.7).backward()
    losses = make(net, spec).advance(images, TARGETS, real=real, step=0)
    assert losses["penalty"] > 0
    for own, wanted in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own, wanted - 0.1 * wanted.grad, rtol=1e-4, atol=1e-6)


def test_lazy_penalties_are_as_many_times_as_strong(net, spec):
    images, real = batch()
    other = copy.deepcopy(net)
    lazy = make(net, spec, penalty_every=4)
    assert "penalty" not in lazy.advance(images, TARGETS, real=real, step=3)
    net.load_state_dict(other.state_dict())
    expected_loss(other, images, real, 4 * 0.7).backward()
    lazy.advance(images, TARGETS, real=real, step=4)
    for own, wanted in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own, wanted - 0.1 * wanted.grad, rtol=1e-4, atol=1e-6)


def test_accumulate_adds_the_slope_of_the_generators_loss(net, spec):
    images, real = batch()
    images.requires_grad_()
    images.grad = torch.ones_like(images)
    losses = make(net, spec).accumulate(images, TARGETS, real=real, step=0)
    loss = F.softplus(net(real, TARGETS) - net(images, TARGETS)).mean()
    (expected,) = torch.autograd.grad(loss, images)
    torch.testing.assert_close(images.grad, 1 + expected)
    torch.testing.assert_close(losses["adversarial"], loss.detach())


def test_gamma_is_that_of_the_step(net, spec):
    images, real = batch()
    objective = make(net, spec, gamma=lambda step: float(step))
    assert "penalty" not in objective.advance(images, TARGETS, real=real, step=0)
    assert "penalty" in objective.advance(images, TARGETS, real=real, step=1)


class Ranked(Processes):
    """Processes whose mean over the signs of margins is known."""

    def __init__(self, share):
        super().__init__()
        object.__setattr__(self, "share", share)

    def mean(self, value):
        return value * 0 + self.share


@pytest.mark.parametrize(("target", "direction"), [(0.01, 1), (0.99, -1)])
def test_probability_moves_towards_the_target_and_stays_in_range(net, spec, target, direction):
    images, real = batch()
    ranked = Ranked(0.5)  # three pairs of four are ranked rightly
    objective = make(net, spec, augment="crop", augment_target=target, augment_images=20, lr=0.0, processes=ranked)
    for start, expected in ((0.5, 0.5 + direction / 4), (0.0, max(0, direction) / 4), (1.0, 1 + min(0, direction) / 4)):
        objective.probability = torch.tensor(start)
        objective.advance(images, TARGETS, real=real, step=0)
        assert float(objective.probability) == pytest.approx(expected)


def test_probability_moves_by_images_over_augment_images(net, spec):
    images, real = batch()
    ranked = Ranked(1.0)
    objective = make(net, spec, augment="crop", augment_target=0.5, augment_images=20, lr=0.0, processes=ranked)
    objective.advance(images, TARGETS, real=real, step=0)
    assert float(objective.probability) == pytest.approx(5 / 20)
    other = make(net, spec, augment="crop", augment_target=0.5)
    other.load(objective.state())
    assert float(other.probability) == pytest.approx(5 / 20)


def test_a_share_of_images_is_augmented(net, spec):
    objective = make(net, spec, augment="cutout", augment_target=0.5)
    images = torch.ones(2000, 1, 8, 8)
    for probability in (0.0, 0.3, 1.0):
        objective.probability = torch.tensor(probability)
        changed = (objective._augmented(images, "generator", 7) != images).flatten(1).any(1)
        assert float(changed.float().mean()) == pytest.approx(probability, abs=0.04)


def test_draws_are_functions_of_seed_and_step(net, spec):
    images, real = batch()
    results = []
    for step in (1, 1, 2):
        objective = make(copy.deepcopy(net), spec, augment="color_crop_cutout")
        results.append(float(objective.advance(images, TARGETS, real=real, step=step)["critic"]))
    assert results[0] == results[1] != results[2]


def test_the_discriminator_learns_to_rank_pairs(net, spec):
    images, real = batch()
    objective = make(net, spec, gamma=lambda step: 0.01)
    losses = [float(objective.advance(images, TARGETS, real=real, step=step)["critic"]) for step in range(60)]
    assert losses[-1] < 0.3 * losses[0]


def test_bad_options_are_refused():
    with pytest.raises(InputError, match=r"adversarial\.augment_target is 0\.6: expected an augmentation beside it"):
        AdversarialConfig(augment_target=0.6)
    with pytest.raises(InputError, match=r"adversarial\.augment_target is 1\.5"):
        AdversarialConfig(loss="relativistic", augment="crop", augment_target=1.5)
    with pytest.raises(InputError, match=r"adversarial\.penalty_every is 0"):
        AdversarialConfig(loss="relativistic", penalty_every=0)


@pytest.mark.parametrize("step", [0, 1])
def test_a_compiled_step_is_the_plain_one_to_rounding(net, spec, step):
    images, real = batch()
    ends = []
    for compile in (False, True):
        own = copy.deepcopy(net)
        objective = make(own, spec, penalty_every=2)
        if compile:
            objective = Relativistic(
                own,
                objective.optimizer,
                objective.config,
                spec(1, 8, 4),
                seed=0,
                finish=lambda parameters: None,
                gamma=lambda step: 0.7,
                compile=True,
            )
        losses = objective.advance(images, TARGETS, real=real, step=step)
        ends.append(([value.detach() for value in own.parameters()], losses))
    (plain, losses), (compiled, others) = ends
    for given, wanted in zip(compiled, plain, strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-6)
    assert losses.keys() == others.keys() >= ({"penalty"} if step == 0 else set())
    for name in losses:
        torch.testing.assert_close(others[name], losses[name], rtol=1e-4, atol=1e-6)


def test_the_generators_turn_leaves_the_discriminators_gradients_alone(net, spec):
    images, real = batch()
    images.requires_grad_()
    make(net, spec).accumulate(images, TARGETS, real=real, step=0)
    assert images.grad is not None
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
