"""The layers under a gradient penalty against PyTorch's own, to second order, in float64."""

import pytest
import torch
from torch import nn

from dim.nets.layers import CompiledAvgPool2d, CompiledImageConv2d, ImageConv2d, ImageLayerNorm, arrange


def _pair(ours: nn.Module, theirs: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Both in float64 with the same random parameters."""
    torch_generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch_generator, dtype=torch.float64)
    ours.double().load_state_dict(theirs.state_dict())
    return ours, theirs


def _conv(stride: int) -> tuple[nn.Module, nn.Module]:
    return _pair(ImageConv2d(2, 3, 3, stride, 1), nn.Conv2d(2, 3, 3, stride, 1))


def _norm() -> tuple[nn.Module, nn.Module]:
    return _pair(ImageLayerNorm([2, 5, 6]), nn.LayerNorm([2, 5, 6]))


PAIRS = pytest.mark.parametrize("pair", [lambda: _conv(1), lambda: _conv(2), _norm], ids=["conv", "strided conv", "layer norm"])


def _images(size: tuple[int, ...] = (3, 2, 5, 6)) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _close(ours, theirs) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@PAIRS
def test_values_and_first_derivatives(pair):
    results = []
    for layer in pair():
        images = _images().requires_grad_()
        out = layer(images)
        results.append((out, *torch.autograd.grad(out.sin().sum(), (images, *layer.parameters()))))
    _close(*results)


def _penalty(layer: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """A nonlinear function of the gradient with respect to the images, as WGAN-GP has."""
    (gradient,) = torch.autograd.grad(layer(images).sin().sum(), images, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


@PAIRS
def test_second_derivatives_of_a_gradient_penalty(pair):
    results = []
    for layer in pair():
        images = _images().requires_grad_()
        wanted = (images, *layer.parameters())
        results.append(torch.autograd.grad(_penalty(layer, images), wanted, allow_unused=True, materialize_grads=True))
    _close(*results)


@PAIRS
def test_second_derivatives_through_two_layers(pair):
    """As inside a discriminator: the second layer's input depends on the first one's weights."""
    results = []
    for layers in zip(pair(), _pair(ImageConv2d(2, 2, 3, 1, 1), nn.Conv2d(2, 2, 3, 1, 1)), strict=True):
        net = nn.Sequential(layers[1], nn.LeakyReLU(), layers[0])
        images = _images().requires_grad_()
        results.append(
            torch.autograd.grad(_penalty(net, images), tuple(net.parameters()), allow_unused=True, materialize_grads=True)
        )
    _close(*results)


@pytest.mark.parametrize("stride", [1, 2])
def test_conv_derivatives_are_finite_differences(stride):
    layer, _ = _conv(stride)
    images = _images((2, 2, 3, 4)).requires_grad_()
    parameters = tuple(layer.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (images, *parameters), fast_mode=True)
    layer.requires_grad_(False)
    assert torch.autograd.gradgradcheck(lambda x: layer(x).sin(), (images,), fast_mode=True)


def test_layer_norm_derivatives_are_finite_differences():
    layer, _ = _pair(ImageLayerNorm([2, 3, 2]), nn.LayerNorm([2, 3, 2]))
    images = _images((2, 2, 3, 2)).requires_grad_()
    inputs = (images, *layer.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: layer(x), inputs, fast_mode=True)


def test_conv_refuses_to_differentiate_the_gradient_of_its_weights():
    """A silent zero there would be a wrong gradient."""
    layer, _ = _conv(1)
    (gradient,) = torch.autograd.grad(layer(_images()).sin().sum(), layer.weight, create_graph=True)
    with pytest.raises(RuntimeError, match=r"use nn\.Conv2d"):
        torch.autograd.grad(gradient.square().sum(), layer.weight)


@PAIRS
def test_channels_last_images_give_the_same(pair):
    ours, theirs = pair()
    images = _images().to(memory_format=torch.channels_last)
    _close(ours.to(memory_format=torch.channels_last)(images), theirs(_images()))


@PAIRS
def test_a_wrong_number_of_channels_is_refused(pair):
    with pytest.raises(RuntimeError):
        pair()[0](_images((3, 4, 5, 6)))


@pytest.mark.parametrize("stride", [1, 2])
def test_autocast_computes_convolutions_in_bfloat16_as_pytorch_does(stride):
    results = []
    for layer in _conv(stride):
        layer.float()
        images = _images().float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(images)
        out.float().sin().sum().backward()
        assert out.dtype == torch.bfloat16
        assert images.grad.dtype == layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
        results.append((out, images.grad, layer.weight.grad))
    torch.testing.assert_close(*results, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_norm_keeps_the_dtype_it_was_given_under_autocast(dtype):
    layer = ImageLayerNorm([2, 5, 6])
    images = _images().to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(images)
    assert out.dtype == dtype
    expected = nn.functional.layer_norm(images.float(), (2, 5, 6))
    torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)


def _second(net: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The value and the derivatives of a nonlinear function of the gradient in all parameters."""
    wanted = (images, *net.parameters())
    value = net(images)
    first = torch.autograd.grad(value.sin().sum(), wanted, create_graph=True)
    length = sum(part.square().sum() for part in first)
    return [value, *first, *torch.autograd.grad(length, wanted)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("norms", [True, False])
def test_an_arranged_network_has_the_same_parameters_values_and_derivatives(stride, norms):
    def make() -> nn.Sequential:
        first = nn.Conv2d(2, 4, 3, stride=stride, padding=(1, 0))
        return nn.Sequential(first, nn.GroupNorm(4, 4), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.Tanh())

    theirs, ours = make().double(), make().double()
    arrange(ours, norms=norms)
    assert [type(ours[0]), type(ours[3])] == [CompiledImageConv2d, CompiledAvgPool2d]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = _images((3, 2, 11, 9))
    _close(*(_second(net, images.clone().requires_grad_()) for net in (ours, theirs)))


@pytest.mark.parametrize(
    "layer",
    [
        nn.AvgPool2d(3, stride=2),
        nn.AvgPool2d(2, padding=1),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.AvgPool2d((2, 1)),
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 4, 3, groups=2),
        nn.Conv2d(2, 4, 3, dilation=2),
        nn.Conv2d(2, 4, 3, padding="same"),
    ],
)
def test_arranging_keeps_what_other_layers_compute(layer):
    images = _images((3, 2, 7, 5)).float()
    net = nn.Sequential(layer)
    expected = net(images)
    arrange(net)
    torch.testing.assert_close(net(images), expected)
