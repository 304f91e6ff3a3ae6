"""A network as a function of one flat vector: the same values as the module, and refusals of what is no such function."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import vmap

from dim.config import STUDENTS
from dim.errors import InputError
from dim.nets.student import Student, build_student
from dim.trajectory.flat import FlatNetwork
from dim.trajectory.hypergrad import Derivatives

CONVNET = "convnet:width=8,depth=2"


@pytest.fixture(scope="module")
def network(spec) -> FlatNetwork:
    return FlatNetwork(CONVNET, spec(3, 16, 4))


def _batch(spec, count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, *spec.image_shape, generator=generator) * 2 - 1, torch.arange(count) % spec.num_classes


@pytest.mark.parametrize(
    "student",
    [
        CONVNET,
        "convnet:width=8,depth=2,norm=layer",
        "convnet:width=8,norm=none,pool=max",
        "resnet18:width=8,norm=batchstats",
        "resnet18:width=8,norm=instance",
        "resnetap10:width=8,norm=group",
        "vgg11:width=4,norm=batchstats",
        "alexnet:width=4",
    ],
)
def test_logits_are_those_of_the_module(spec, student):
    data = spec(3, 16, 4)
    network = FlatNetwork(student, data)
    images, _ = _batch(data)
    for seed in (3, 4):
        net = build_student(student, data, seed=seed)
        theta = network.initial(seed)
        assert theta.shape == (network.size,)
        assert theta.dtype == torch.float32
        assert torch.equal(theta, torch.cat([parameter.detach().flatten() for parameter in net.parameters()]))
        torch.testing.assert_close(network.logits(theta, images), net(images).detach())


def test_unflatten_names_every_parameter(network, spec):
    net = build_student(CONVNET, spec(3, 16, 4), seed=7)
    parts = network.unflatten(network.initial(7))
    named = dict(net.named_parameters())
    assert list(parts) == list(named) == network.names
    assert all(torch.equal(parts[name], named[name]) for name in named)
    assert network.sizes == [parameter.numel() for parameter in named.values()]


def test_initial_weights_follow_from_the_seed(network):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = network.initial(1), network.initial(1), network.initial(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_logits_depend_on_theta_alone(network, spec):
    """Neither the module's own weights nor what it saw before matter, and it is never written to."""
    images, _ = _batch(spec(3, 16, 4))
    held = [parameter.clone() for parameter in network.net.parameters()]
    theta = network.initial(1)
    first = network.logits(theta, images)
    network.logits(network.initial(2), images * 3)
    assert torch.equal(network.logits(theta, images), first)
    assert all(torch.equal(*pair) for pair in zip(held, network.net.parameters(), strict=True))


def test_double_precision_and_side_by_side(network, spec):
    images, _ = _batch(spec(3, 16, 4))
    theta = torch.stack([network.initial(seed) for seed in (0, 1)])
    double = network.logits(theta[0].double(), images.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), network.logits(theta[0], images))
    together = vmap(network.logits, (0, None))(theta, images)
    torch.testing.assert_close(together, torch.stack([network.logits(weights, images) for weights in theta]))


def test_losses(network, spec):
    images, labels = _batch(spec(3, 16, 4))
    theta = network.initial(0)
    logs = network.logits(theta, images).log_softmax(1)
    soft = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    probabilities = soft.exp() / soft.exp().sum(1, keepdim=True)
    torch.testing.assert_close(network.loss(theta, images, labels), -logs[torch.arange(5), labels].mean())
    torch.testing.assert_close(network.loss(theta, images, probabilities), -(probabilities * logs).sum(1).mean())
    torch.testing.assert_close(network.loss_of_label_logits(theta, images, soft), network.loss(theta, images, probabilities))
    torch.testing.assert_close(network.loss(theta, images, F.one_hot(labels, 4).float()), network.loss(theta, images, labels))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_predictions_do_not_depend_on_the_batch(network, spec, batch_size, monkeypatch):
    monkeypatch.setattr("dim.trajectory.flat.JUDGED", batch_size)
    images, _ = _batch(spec(3, 16, 4))
    theta = network.initial(0).requires_grad_()
    logits = network.predict(theta, images)
    assert not logits.requires_grad
    torch.testing.assert_close(logits, network.logits(theta, images).detach())


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_tensor_norms(network, shape):
    theta = torch.randn(*shape, network.size, generator=torch.Generator().manual_seed(2))
    norms = network.tensor_norms(theta)
    assert norms.shape == (*shape, len(network.names))
    for own, weights in zip(norms.reshape(-1, len(network.names)), theta.reshape(-1, network.size), strict=True):
        expected = [float(part.square().sum().sqrt()) for part in network.unflatten(weights).values()]
        assert own.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("student", ["resnet18:width=8", "convnet:width=4,norm=batch", "vgg11:width=4"])
def test_running_statistics_are_refused(spec, student):
    with pytest.raises(InputError, match=f"student '{student}' keeps running statistics.*use norm=instance, .* or batchstats"):
        FlatNetwork(student, spec(3, 16, 4))


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout])
def test_dropout_is_refused(spec, kind):
    def dropped(spec, *, keep: int = 0) -> Student:
        return Student(spec, nn.Sequential(nn.Flatten(), kind(0.0 if keep else 0.5), nn.Linear(12, 3)), 3)

    name = STUDENTS.admit(dropped)
    with pytest.raises(InputError, match=f"'{name}' has dropout, so its gradient is random: use an architecture without it"):
        FlatNetwork(name, spec(3, 2, 4))
    assert FlatNetwork(f"{name}:keep=1", spec(3, 2, 4)).size == 12 * 3 + 3 + 3 * 4 + 4


def test_unknown_students_are_refused(spec):
    with pytest.raises(InputError, match="Did you mean 'convnet'"):
        FlatNetwork("convnat", spec())


@pytest.mark.parametrize("compiled", [False, True])
def test_bfloat16_trains_in_it_and_keeps_weights_and_logits_in_float32(compiled, spec):
    """Eager here, arranged or not: every derivative is close to that of float32, and comes in the weights' own format."""
    exact = FlatNetwork(CONVNET, spec(3, 16, 4))
    rough = FlatNetwork(CONVNET, spec(3, 16, 4), compiled=compiled, precision="bf16")
    theta, direction = exact.initial(0), exact.initial(1)
    source = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 3, 16, 16, generator=source), torch.arange(8) % 4
    torch.testing.assert_close(rough.logits(theta, images), exact.logits(theta, images), rtol=1e-4, atol=1e-5)
    for order in ("reverse-over-forward", "forward-over-reverse"):
        parts = []
        for network in (exact, rough):
            derivatives = Derivatives(network.loss, order=order)
            _, by_theta, by_x, _ = derivatives.pull(theta, images, labels, direction)
            parts.append((derivatives.gradient(theta, images, labels), by_theta, by_x))
        for true, near in zip(*parts, strict=True):
            assert near.dtype == torch.float32
            assert not torch.equal(true, near)
            assert torch.nn.functional.cosine_similarity(true.flatten(), near.flatten(), dim=0) > 0.97
