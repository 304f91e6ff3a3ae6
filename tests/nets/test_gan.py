"""The residual one-step generator and the projection discriminator."""

import pytest
import torch

from dim.config import DiscriminatorConfig, GeneratorConfig
from dim.errors import InputError
from dim.nets.discriminators import ProjectionDiscriminator, build_discriminator
from dim.nets.generator import build_generator
from dim.nets.generators.gan import ResidualBlock, channels_at, halvings

SMALL = GeneratorConfig(name="gan", width=4, latent_dim=6)
SIZES = [8, 12, 28, 32, 64, (20, 28)]


def perturbed(net):
    """Every weight moved, as training would: at first the second convolution of a block is zero."""
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += torch.randn(parameter.shape, generator=source) * 0.2
    return net.eval()


def discriminator(spec, **settings):
    config = DiscriminatorConfig(**{"width": 4, **settings})
    return perturbed(build_discriminator(ProjectionDiscriminator, config, spec, seed=0))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (3, 10), (3, 100)])
def test_every_multiple_of_four_and_number_of_classes(spec, size, channels, classes):
    data = spec(channels, size, classes)
    labels = torch.tensor([0, 1, classes - 1])
    images = perturbed(build_generator(SMALL, data, seed=0))(torch.randn(3, 6), labels)
    assert images.shape == (3, *data.image_shape)
    assert images.abs().max() <= 1
    values = discriminator(data)(images, labels)
    assert values.shape == (3,)
    assert values.isfinite().all()


@pytest.mark.parametrize("size", [7, 30, (28, 30), 33])
def test_other_sizes_are_refused_with_the_remedy(spec, size):
    with pytest.raises(InputError, match=r"multiple of 4.*dim2023"):
        build_generator(SMALL, spec(1, size), seed=0)
    with pytest.raises(InputError, match="multiple of 4"):
        build_discriminator(ProjectionDiscriminator, DiscriminatorConfig(width=4), spec(1, size), seed=0)


def test_maps_halve_at_least_twice_and_channels_grow_at_most_fourfold(spec):
    assert halvings(spec(1, 28)) == [(28, 28), (14, 14), (7, 7)]
    assert halvings(spec(1, 8)) == [(8, 8), (4, 4), (2, 2)]
    assert halvings(spec(1, 64)) == [(64, 64), (32, 32), (16, 16), (8, 8), (4, 4)]
    assert [channels_at(level, 8) for level in range(5)] == [8, 16, 32, 32, 32]


def test_more_blocks_are_more_layers(spec):
    counts = []
    for blocks in (1, 2):
        net = build_generator(GeneratorConfig(name="gan", width=4, latent_dim=6, blocks=blocks), spec(1, 8), seed=0)
        counts.append(sum(isinstance(module, ResidualBlock) for module in net.modules()))
        judge = discriminator(spec(1, 8), blocks=blocks)
        counts.append(sum(isinstance(module, ResidualBlock) for module in judge.modules()))
    assert counts == [3, 3, 6, 6]


def test_latent_and_class_both_matter(spec):
    net = perturbed(build_generator(SMALL, spec(3, 8, 4), seed=0))
    z = torch.randn(2, 6)
    one = net(z, torch.tensor([1, 1]))
    assert not torch.allclose(one[0], one[1])
    assert not torch.allclose(one[0], net(z, torch.tensor([2, 1]))[0])


def test_the_style_modulates_blocks(spec):
    """Not only the first map: with the same map, another style gives another image."""
    block = ResidualBlock(4, 1, style=3)
    torch.nn.init.normal_(block.second.weight)
    x = torch.randn(2, 4, 5, 5)
    assert not torch.allclose(block(x, torch.ones(2, 3)), block(x, -torch.ones(2, 3)))


def test_images_of_a_batch_do_not_see_each_other(spec):
    net = discriminator(spec(1, 8)).double()
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    together = net(images, labels)
    for i in range(3):
        torch.testing.assert_close(net(images[i : i + 1], labels[i : i + 1]), together[i : i + 1])


def test_projection_is_linear_in_the_class_embedding(spec):
    """Value(y) - value(y') is (e_y - e_y').f / sqrt(d) with the features f of the image."""
    net = discriminator(spec(1, 8, 3)).double()
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    caught = []
    net.features.register_forward_hook(lambda _, __, output: caught.append(output))
    difference = net(images, torch.tensor([0, 0])) - net(images, torch.tensor([2, 2]))
    expected = caught[0] @ (net.embedding.weight[0] - net.embedding.weight[2]) / caught[0].shape[1] ** 0.5
    torch.testing.assert_close(difference, expected)


def test_images_do_not_depend_on_what_else_is_asked_for(spec):
    net = perturbed(build_generator(SMALL, spec(1, 28, 5), seed=0))
    labels, indices = torch.arange(5).repeat_interleave(9), torch.arange(9).repeat(5)
    together = net.images(labels, indices, seed=3)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    assert torch.equal(net.images(labels[order[:17]], indices[order[:17]], seed=3), together[order[:17]])


def test_gradients_reach_the_latents(spec):
    net = perturbed(build_generator(SMALL, spec(1, 8, 3), seed=0)).double()
    z = torch.randn(2, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: net(v, torch.tensor([0, 2])).square().mean(), (z,))


def test_options_of_another_architecture_are_refused():
    with pytest.raises(InputError, match=r"generator\.blocks is 2.*'dim2023' and this is an option of 'diffusion' and 'gan'"):
        GeneratorConfig(name="dim2023", blocks=2)
    with pytest.raises(InputError, match=r"generator\.label_scale is 3\.0.*dim2023"):
        GeneratorConfig(name="gan", label_scale=3.0)
    with pytest.raises(InputError, match=r"generator\.steps is 4.*diffusion"):
        GeneratorConfig(name="gan", steps=4)


def test_a_generator_of_one_pass_has_no_sampler_options(spec):
    net = build_generator(SMALL, spec(1, 8), seed=0)
    assert net.sampler == {}
    assert net.configure() is net
    with pytest.raises(InputError, match="unknown sampler option steps"):
        net.configure(steps=4)
