"""The two-headed discriminator."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dim.config import DiscriminatorConfig
from dim.nets.discriminators import Discriminator, build_discriminator
from dim.nets.layers import ImageLayerNorm
from dim.recipes.load import load_recipe


def _build(spec, width: int = 4, seed: int = 0):
    return build_discriminator(Discriminator, DiscriminatorConfig(width=width), spec, seed=seed)


def _images(spec, batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, *spec.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_published_parameter_count(spec):
    net = build_discriminator(Discriminator, load_recipe("cifar10-dim2023").discriminator, spec(3, 32, 10), seed=0)
    assert sum(parameter.numel() for parameter in net.parameters()) == 3_137_971


def test_published_layout(spec):
    """Eight convolutions, of which the second, fourth and eighth halve the map."""
    net = _build(spec(3, 32, 10))
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.stride[0] for conv in convs] == [1, 2, 1, 2, 1, 1, 1, 2]


@pytest.mark.parametrize("size", [8, 28, 30, 32, 64, (20, 28)])
@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (3, 100)])
def test_every_size_gives_a_critic_and_logits(spec, size, channels, classes):
    data = spec(channels, size, classes)
    critic, logits = _build(data)(_images(data))
    assert critic.shape == (3,)
    assert logits.shape == (3, classes)
    assert critic.isfinite().all()
    assert logits.isfinite().all()


def test_equals_plain_layers(spec):
    """Against nn.Conv2d and nn.LayerNorm functions, leaky ReLU 0.01 and a maximum over the map, in float64."""
    data = spec(3, 16)
    net = _build(data).double()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, ImageLayerNorm):
                module.weight.normal_(generator=torch.Generator().manual_seed(1))
        x = _images(data).double()
        expected = x
        for block in net.blocks:
            expected = F.conv2d(expected, block.conv.weight, block.conv.bias, block.conv.stride, 1)
            expected = F.layer_norm(expected, expected.shape[1:], block.norm.weight, block.norm.bias)
            expected = torch.where(expected > 0, expected, 0.01 * expected)
        expected = expected.flatten(2).max(2).values
        critic, logits = net(x)
        torch.testing.assert_close(critic, expected @ net.critic.weight[0] + net.critic.bias)
        torch.testing.assert_close(logits, expected @ net.classifier.weight.T + net.classifier.bias)


def test_images_of_a_batch_do_not_see_each_other(spec):
    """The gradient penalty is per image only if no image's critic value depends on another image."""
    data = spec(3, 8)
    images = _images(data).requires_grad_()
    critic, _ = _build(data)(images)
    (gradient,) = torch.autograd.grad(critic[1], images)
    assert gradient[1].abs().sum() > 0
    assert gradient[[0, 2]].abs().sum() == 0


def test_a_seed_gives_the_same_weights_and_leaves_the_global_state_alone(spec):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (_build(spec(), seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["critic.weight"], other["critic.weight"])


def test_images_of_a_wrong_shape_are_refused(spec):
    with pytest.raises(RuntimeError):
        _build(spec(3, 8))(torch.zeros(2, 3, 16, 16))
