"""The few-step generator."""

import subprocess
import sys

import pytest
import torch

from dim.config import DataConfig, GeneratorConfig, ProtocolConfig
from dim.errors import InputError
from dim.nets.generator import build_generator
from dim.nets.generator_file import load_generator_file, save_generator_file

SMALL = GeneratorConfig(name="diffusion", width=4)


def build(spec, **settings):
    config = GeneratorConfig(**{"name": "diffusion", "width": 4, **settings})
    return build_generator(config, spec, seed=0).eval()


@pytest.mark.parametrize("size", [8, 28, 32, 64, (20, 28)])
@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (3, 100)])
def test_every_multiple_of_four_and_number_of_classes(spec, size, channels, classes):
    data = spec(channels, size, classes)
    net = build(data)
    images = net(torch.randn(2, net.latent_dim), torch.tensor([0, classes - 1]))
    assert images.shape == (2, *data.image_shape)
    assert images.abs().max() <= 1


def test_other_sizes_are_refused(spec):
    with pytest.raises(InputError, match=r"30x30 pixels.*multiple of 4"):
        build(spec(1, 30))
    with pytest.raises(InputError, match=r"generator\.width is 5: expected an even number"):
        build(spec(1, 8), width=5)


@pytest.mark.parametrize("scheduler", ["mean", "euler", "heun"])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_straight_flow_is_followed_exactly(spec, scheduler, steps, monkeypatch):
    """Where the velocity is noise - image for one image, every solver arrives at that image."""
    net = build(spec(1, 8), scheduler=scheduler, steps=steps)
    target = torch.rand(1, 1, 8, 8) * 2 - 1

    def velocity(x, r, t, y):
        return (x - target) / t.view(-1, 1, 1, 1).clamp(min=1e-3)

    monkeypatch.setattr(net, "average_velocity", velocity)
    images = net(torch.randn(3, 64), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(images, target.expand(3, -1, -1, -1), atol=2e-3, rtol=0)


def test_mean_jumps_ask_for_the_interval_and_solvers_for_the_instant(spec, monkeypatch):
    for scheduler, expected in (("mean", [(0.5, 1.0), (0.0, 0.5)]), ("euler", None)):
        net = build(spec(1, 8), scheduler=scheduler, steps=2)
        asked = []

        def record(x, r, t, y, asked=asked):
            asked.append((float(r[0]), float(t[0])))
            return torch.zeros_like(x)

        monkeypatch.setattr(net, "average_velocity", record)
        net(torch.randn(1, 64), torch.tensor([0]))
        assert asked == expected if expected else all(r == t for r, t in asked) and len(asked) == 2


def test_guidance_extrapolates_from_no_class(spec):
    net = build(spec(1, 8)).double()
    x, y = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 2])
    r, t = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    own, free = net.average_velocity(x, r, t, y), net.average_velocity(x, r, t, torch.full((2,), net.null))
    assert not torch.allclose(own, free)
    for weight in (0.0, 1.0, 2.5):
        torch.testing.assert_close(net.configure(guidance=weight).guided(x, 0.0, 1.0, y), free + weight * (own - free))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("guidance", [1.0, 1.7])
def test_gradient_through_the_sampler_by_finite_differences(spec, steps, guidance):
    """In latents and in weights, float64."""
    net = build(spec(1, 8, 3), steps=steps, guidance=guidance).double()
    y = torch.tensor([0, 2])
    z = (0.3 * torch.randn(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()
    mix = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(z):
        return (net(z, y) * mix).sum()

    wanted = [z, net.classes.weight, net.unet.conv_in.weight, net.interval.linear_1.weight]
    gradients = torch.autograd.grad(loss(z), wanted)
    source = torch.Generator().manual_seed(2)
    for value, gradient in zip(wanted, gradients, strict=True):
        direction = torch.randn(value.shape, generator=source, dtype=torch.float64)
        direction /= direction.norm()
        sides = []
        for sign in (1e-6, -1e-6):
            with torch.no_grad():
                value += sign * direction
                sides.append(loss(z))
                value -= sign * direction
        slope = (sides[0] - sides[1]) / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("scheduler", ["mean", "heun"])
def test_images_do_not_depend_on_what_else_is_asked_for(spec, scheduler):
    """Blocks run in several threads, and a scheduler of diffusers has a state."""
    net = build(spec(1, 8, 5), scheduler=scheduler, steps=2)
    labels, indices = torch.arange(5).repeat_interleave(9), torch.arange(9).repeat(5)
    together = net.images(labels, indices, seed=3)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    assert torch.equal(net.images(labels[order[:17]], indices[order[:17]], seed=3), together[order[:17]])


def test_sampler_options_are_checked_and_kept(spec, tmp_path):
    net = build(spec(1, 8), steps=2)
    assert net.sampler == {"steps": 2, "guidance": 1.0, "scheduler": "mean"}
    for options, message in (
        ({"steps": 0}, r"generator\.steps is 0: expected at least 1"),
        ({"scheduler": "ddim"}, r"generator\.scheduler is 'ddim': expected one of"),
        ({"eta": 1.0}, "unknown sampler option eta.*it has steps, guidance, scheduler"),
    ):
        with pytest.raises(InputError, match=message):
            net.configure(**options)
    assert net.configure(steps=3).sampler["steps"] == 3
    path = tmp_path / "g.safetensors"
    save_generator_file(path, net, config=net.config, data=DataConfig(), protocol=ProtocolConfig(), about={})
    assert load_generator_file(path).sampler == net.sampler


def test_diffusers_is_loaded_for_this_generator_only():
    code = "import sys, dim; dim.fit, dim.load_generator, dim.TrainConfig(); assert 'diffusers.models' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
