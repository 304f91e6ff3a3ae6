"""AC-GAN with the WGAN-GP loss."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dim.config import AdversarialConfig, DiscriminatorConfig
from dim.errors import InputError
from dim.nets.discriminators import Discriminator, build_discriminator
from dim.objectives.adversaries.acgan_wgangp import Adversarial, gradient_penalty

TARGETS = torch.tensor([0, 3, 1, 1, 2])


def _batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(5, 1, 8, 8, generator=generator) * 2 - 1 for _ in range(2))


class _Linear(nn.Module):
    """critic = <w, x>, logits = V x."""

    def __init__(self, norm: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        w = torch.randn(64, generator=generator)
        self.w = nn.Parameter(w / w.norm() * norm)
        self.v = nn.Parameter(torch.randn(64, 4, generator=generator) / 8)

    def forward(self, images):
        x = images.flatten(1)
        return x @ self.w, x @ self.v


@pytest.mark.parametrize("norm", [0.0, 0.25, 1.0, 3.0])
def test_penalty_of_a_linear_critic(norm):
    """(|w| - 1)^2 at any points."""
    images, real = _batch()
    penalty = gradient_penalty(_Linear(norm), real, images, torch.rand(5, 1, 1, 1, generator=torch.Generator().manual_seed(2)))
    assert float(penalty.detach()) == pytest.approx((norm - 1) ** 2, abs=1e-5)


def test_penalty_of_a_constant_critic_has_a_finite_gradient():
    images, real = _batch()
    net = _Linear(0.0)
    gradient_penalty(net, real, images, torch.zeros(5, 1, 1, 1)).backward()
    assert net.w.grad.isfinite().all()


class _Quadratic(nn.Module):
    """critic = |x|^2 / 2, so its gradient at x is x itself."""

    def forward(self, images):
        return images.square().flatten(1).sum(1) / 2, None


def test_penalty_is_taken_at_the_mixture():
    """m of the real image and 1 - m of the generated one, each image with its own m."""
    images, real = _batch()
    mixture = torch.tensor([0.0, 1.0, 0.25, 0.5, 0.9]).view(5, 1, 1, 1)
    expected = [
        (float((m * r.double() + (1 - m) * g.double()).norm()) - 1) ** 2
        for m, r, g in zip(mixture.flatten().double().tolist(), real, images, strict=True)
    ]
    assert float(gradient_penalty(_Quadratic(), real, images, mixture).detach()) == pytest.approx(sum(expected) / 5, rel=1e-5)


def _slow_judge(net, image):
    """One image through plain layers, in float64."""
    x = image.double()[None]
    for block in net.blocks:
        x = F.conv2d(x, block.conv.weight.double(), block.conv.bias.double(), block.conv.stride, 1)
        x = F.layer_norm(x, x.shape[1:], block.norm.weight.double(), block.norm.bias.double())
        x = F.leaky_relu(x)
    x = x.flatten(2).max(2).values[0]
    critic = net.critic.weight.double()[0] @ x + net.critic.bias.double()[0]
    return critic, net.classifier.weight.double() @ x + net.classifier.bias.double()


def _slow_penalty(net, real, images, mixture):
    total = 0
    for r, g, m in zip(real, images, mixture, strict=True):
        point = (m * r + (1 - m) * g).double().requires_grad_()
        critic, _ = _slow_judge(net, point)
        (gradient,) = torch.autograd.grad(critic, point, create_graph=True)
        total = total + (gradient.square().sum().sqrt() - 1) ** 2
    return total / len(real)


@pytest.fixture
def net(spec):
    return build_discriminator(Discriminator, DiscriminatorConfig(width=6), spec(1, 8), seed=0)


def test_penalty_and_its_gradient_equal_a_loop_over_images(net):
    images, real = _batch()
    mixture = torch.rand(5, 1, 1, 1, generator=torch.Generator().manual_seed(2))
    parameters = list(net.parameters())
    fast = gradient_penalty(net, real, images, mixture)
    slow = _slow_penalty(net, real, images, mixture)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True) for loss in (fast, slow)]
    assert sum(float(gradient.detach().abs().sum()) for gradient in gradients[0]) > 0.01
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_penalty_does_not_depend_on_the_order(net):
    images, real = _batch()
    mixture = torch.rand(5, 1, 1, 1, generator=torch.Generator().manual_seed(2))
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(
        gradient_penalty(net, real[order], images[order], mixture[order]), gradient_penalty(net, real, images, mixture)
    )


def _adversarial(net, spec, *, lr=0.1, seed=0, finish=lambda parameters: None, **config):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    return Adversarial(net, optimizer, AdversarialConfig(loss="acgan-wgangp", **config), spec(1, 8), seed=seed, finish=finish)


def test_accumulate_adds_minus_critic_and_class_loss(net, spec):
    """Against one image at a time in float64; the gradient of image i only knows image i; added to what is there."""
    images, real = _batch()
    leaf = images.clone().requires_grad_()
    leaf.grad = torch.ones_like(leaf)
    losses = _adversarial(net, spec, class_weight=0.7).accumulate(leaf, TARGETS, real=real, step=0)
    total, class_total = 0.0, 0.0
    for i, target in enumerate(TARGETS):
        point = images[i].double().requires_grad_()
        critic, logits = _slow_judge(net, point)
        class_loss = logits.logsumexp(0) - logits[target]
        loss = (0.7 * class_loss - critic) / 5
        (gradient,) = torch.autograd.grad(loss, point)
        torch.testing.assert_close(leaf.grad[i].double(), 1 + gradient, rtol=1e-4, atol=1e-6)
        total, class_total = total + float(loss.detach()), class_total + float(class_loss.detach()) / 5
    assert float(losses["adversarial"]) == pytest.approx(total, rel=1e-4)
    assert float(losses["class"]) == pytest.approx(class_total, rel=1e-4)
    assert not any(loss.requires_grad for loss in losses.values())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_accumulate_is_the_slope_of_its_loss(spec):
    """Central differences through a linear network in float64."""
    images, real = (values.double() for values in _batch())
    net = _Linear().double()

    def loss(x):
        critic, logits = net(x)
        return float((F.cross_entropy(logits, TARGETS) - critic.mean()).detach())

    leaf = images.clone().requires_grad_()
    _adversarial(net, spec).accumulate(leaf, TARGETS, real=real, step=0)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    slope = (loss(images + 1e-4 * direction) - loss(images - 1e-4 * direction)) / 2e-4
    assert float((leaf.grad * direction).sum()) == pytest.approx(slope, rel=1e-4)


def test_accumulate_does_not_depend_on_the_order(net, spec):
    images, real = _batch()
    order = torch.tensor([3, 0, 4, 2, 1])
    first, second = images.clone().requires_grad_(), images[order].clone().requires_grad_()
    _adversarial(net, spec).accumulate(first, TARGETS, real=real, step=0)
    _adversarial(net, spec).accumulate(second, TARGETS[order], real=real, step=0)
    torch.testing.assert_close(second.grad, first.grad[order], rtol=1e-4, atol=1e-6)


def test_advance_by_hand(spec):
    """A linear critic under SGD: w <- w + lr (mean real - mean generated - 10 * 2 (|w| - 1) w / |w|)."""
    images, real = _batch()
    net = _Linear(2.0)
    w = net.w.detach().clone()
    losses = _adversarial(net, spec, class_weight=0.0).advance(images, TARGETS, real=real, step=0)
    pull = real.flatten(1).mean(0) - images.flatten(1).mean(0)
    torch.testing.assert_close(net.w.detach(), w + 0.1 * (pull - 10 * 2 * (2 - 1) * w / 2), rtol=1e-4, atol=1e-5)
    distance = float(pull @ w)
    assert float(losses["distance"]) == pytest.approx(distance, rel=1e-3, abs=1e-5)
    assert float(losses["critic"]) == pytest.approx(10 - distance, rel=1e-4)


def test_advance_teaches_classes_on_both_sides(spec):
    """V moves by the cross-entropy of real images and, by its own weight, of generated ones."""
    images, real = _batch()
    for generated_weight in (1.0, 0.25, 0.0):
        net = _Linear()
        v = net.v.detach().clone()

        def slope(batch, weights=v):
            x = batch.flatten(1)
            error = (x @ weights).softmax(1) - F.one_hot(TARGETS, 4)
            return x.T @ error / 5

        settings = {"class_weight": 0.5, "class_weight_generated": generated_weight, "gradient_penalty": 0.0}
        _adversarial(net, spec, **settings).advance(images, TARGETS, real=real, step=0)
        expected = v - 0.1 * 0.5 * (slope(real) + generated_weight * slope(images))
        torch.testing.assert_close(net.v.detach(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("augment", ["", "color_crop_cutout"])
def test_advance_leaves_the_images_gradient_alone(net, spec, augment):
    images, real = _batch()
    leaf = images.clone().requires_grad_()
    adversarial = _adversarial(net, spec, augment=augment)
    adversarial.accumulate(leaf, TARGETS, real=real, step=0)
    before = leaf.grad.clone()
    adversarial.advance(leaf, TARGETS, real=real, step=0)
    assert torch.equal(leaf.grad, before)


@pytest.mark.parametrize("augment", ["", "color_crop_cutout"])
def test_sharing_the_pass_changes_nothing(net, spec, augment):
    """accumulate and advance on the same images teach the discriminator what advance alone on a copy would."""
    images, real = _batch()
    other = copy.deepcopy(net)
    leaf = images.clone().requires_grad_()
    shared = _adversarial(net, spec, augment=augment)
    shared.accumulate(leaf, TARGETS, real=real, step=4)
    losses = shared.advance(leaf, TARGETS, real=real, step=4)
    alone = _adversarial(other, spec, augment=augment).advance(leaf.detach().clone(), TARGETS, real=real, step=4)
    for name in losses:
        torch.testing.assert_close(losses[name], alone[name])
    start = build_discriminator(Discriminator, DiscriminatorConfig(width=6), spec(1, 8), seed=0)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(a, c) for a, c in zip(net.parameters(), start.parameters(), strict=True))


def test_other_images_are_not_taken_for_the_shared_ones(net, spec):
    images, real = _batch()
    other = copy.deepcopy(net)
    adversarial = _adversarial(net, spec)
    adversarial.accumulate(real.clone().requires_grad_(), TARGETS, real=real, step=0)
    losses = adversarial.advance(images, TARGETS, real=real, step=0)
    expected = _adversarial(other, spec).advance(images, TARGETS, real=real, step=0)
    torch.testing.assert_close(losses, expected)
    assert float(losses["distance"]) != 0


def test_repeated_steps_do_not_reuse_a_stale_pass(net, spec):
    """The second advance on the same images must see the discriminator that the first one changed."""
    images, real = _batch()
    leaf = images.clone().requires_grad_()
    adversarial = _adversarial(net, spec)
    adversarial.accumulate(leaf, TARGETS, real=real, step=0)
    adversarial.advance(leaf, TARGETS, real=real, step=0)
    reference = copy.deepcopy(net)
    second = adversarial.advance(leaf, TARGETS, real=real, step=1)
    expected = _adversarial(reference, spec).advance(leaf.detach().clone(), TARGETS, real=real, step=1)
    torch.testing.assert_close(second, expected)


def test_finish_stands_between_gradient_and_step(net, spec):
    """It sees every parameter with its gradient; what it does to them is what the optimiser uses."""
    images, real = _batch()
    before = [parameter.detach().clone() for parameter in net.parameters()]

    def erase(parameters):
        for parameter in parameters:
            assert parameter.grad.abs().sum() >= 0
            parameter.grad.zero_()

    _adversarial(net, spec, finish=erase).advance(images, TARGETS, real=real, step=0)
    assert all(torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in net.parameters()), "gradients are left for the next step"


def test_draws_are_functions_of_seed_and_step(net, spec):
    images, real = _batch()

    def critic(seed, step):
        adversarial = _adversarial(copy.deepcopy(net), spec, seed=seed)
        return float(adversarial.advance(images, TARGETS, real=real, step=step)["critic"])

    assert critic(0, 0) == critic(0, 0)
    assert len({critic(0, 0), critic(1, 0), critic(0, 1)}) == 3


def test_the_discriminator_learns_to_tell_real_from_generated(net, spec):
    images, real = _batch()
    adversarial = _adversarial(net, spec, gradient_penalty=0.1, class_weight=0.0)
    adversarial.optimizer = torch.optim.Adam(net.parameters(), lr=0.005, betas=(0.0, 0.9))
    distances = [float(adversarial.advance(images, TARGETS, real=real, step=step)["distance"]) for step in range(12)]
    assert distances[-1] > distances[0] + 0.3


def test_bad_batches_and_options_are_refused(net, spec):
    images, real = _batch()
    adversarial = _adversarial(net, spec)
    with pytest.raises(ValueError, match="batch_size"):
        adversarial.accumulate(images.requires_grad_(), TARGETS[:3], real=real, step=0)
    with pytest.raises(RuntimeError):
        adversarial.advance(images.detach(), TARGETS, real=real[:, :, :4], step=0)
    with pytest.raises(InputError, match="unknown augmentation"):
        _adversarial(net, spec, augment="colour")
    with pytest.raises(InputError, match="gradient_penalty"):
        AdversarialConfig(loss="acgan-wgangp", gradient_penalty=-1)


def test_a_compiled_step_is_the_plain_one_to_rounding(net, spec):
    images, real = _batch()
    ends = []
    for compile in (False, True):
        own = copy.deepcopy(net)
        objective = Adversarial(
            own,
            torch.optim.SGD(own.parameters(), lr=0.01),
            AdversarialConfig(loss="acgan-wgangp"),
            spec(1, 8),
            seed=0,
            finish=lambda parameters: None,
            compile=compile,
        )
        losses = objective.advance(images, TARGETS, real=real, step=0)
        ends.append([*(value.detach() for value in own.parameters()), *losses.values()])
    for given, wanted in zip(*ends[::-1], strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-6)


def test_a_compiled_step_in_bfloat16_comes_close_to_the_plain_one(spec):
    """Compiled code may compute a map again without rounding it: a maximum whose derivative looks for equal values finds none
    then, and is not finite."""
    source = torch.Generator().manual_seed(0)
    images, real = (torch.rand(5, 1, 32, 32, generator=source) * 2 - 1 for _ in range(2))
    net = build_discriminator(Discriminator, DiscriminatorConfig(width=8), spec(1, 32), seed=0)
    ends = []
    for compile in (False, True):
        own = copy.deepcopy(net)
        optimizer, config = torch.optim.SGD(own.parameters(), lr=0.01), AdversarialConfig(loss="acgan-wgangp")
        objective = Adversarial(own, optimizer, config, spec(1, 32), seed=0, finish=lambda parameters: None, compile=compile)
        with torch.autocast("cpu", torch.bfloat16):
            losses = objective.advance(images, TARGETS, real=real, step=0)
        ends.append([*(value.detach() for value in own.parameters()), *losses.values()])
    for given, wanted in zip(*ends[::-1], strict=True):
        torch.testing.assert_close(given, wanted, rtol=0.02, atol=0.02)
