"""The denoising loss of pretrained pipelines: against diffusers' noise and targets, label dropout, what it leaves alone."""

import pytest
import torch
from diffusers import DDIMScheduler

from dim import rng
from dim.config import GeneratorConfig
from dim.nets.generator import build_generator
from dim.objectives.denoising import Denoising


def build(folder, data):
    return build_generator(GeneratorConfig(name="pipeline", pretrained=str(folder), steps=2), data, seed=0)


def batch(count: int = 6, channels: int = 3):
    source = torch.Generator().manual_seed(1)
    return torch.rand(count, channels, 8, 8, generator=source) * 2 - 1, torch.arange(count) % 3


def gradients(net):
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["transformer", "unet"])
def test_the_loss_is_the_ordinary_one(pretrained, spec, tmp_path, kind, prediction):
    """Image by image, with the noise and the velocities of diffusers' scheduler, in float64."""
    scheduler = DDIMScheduler(clip_sample=False, prediction_type=prediction, num_train_timesteps=50)
    folder = pretrained(tmp_path / "p", kind=kind, scheduler=scheduler)
    net, (real, y) = build(folder, spec(3, 8, 3)), batch()
    losses = Denoising(label_dropout=0.5, seed=3).regress(net, real, y, step=7)
    found = gradients(net)

    source = rng.generator(3, "denoising", 7, 0)
    latents = net.encode(real, source).double()
    noise = torch.randn(latents.shape, generator=source).double()
    times = torch.randint(50, (6,), generator=source)
    dropped = torch.rand(6, generator=source) < 0.5
    assert 0 < int(dropped.sum()) < 6
    net.double().zero_grad()
    total = 0
    for i in range(6):
        noisy = scheduler.add_noise(latents[i : i + 1], noise[i : i + 1], times[i : i + 1])
        label = torch.tensor([3]) if dropped[i] and kind == "transformer" else y[i : i + 1]
        given = net.denoiser(noisy, times[i : i + 1], label).sample[:, :4]
        velocity = scheduler.get_velocity(latents[i : i + 1], noise[i : i + 1], times[i : i + 1])
        wanted = {"epsilon": noise[i : i + 1], "v_prediction": velocity, "sample": latents[i : i + 1]}[prediction]
        total = total + (given - wanted).square().mean() / 6
    total.backward()
    assert losses.keys() == {"denoising"}
    assert not losses["denoising"].requires_grad
    torch.testing.assert_close(losses["denoising"].double(), total.detach(), rtol=1e-4, atol=1e-5)
    expected = gradients(net)
    assert found.keys() == expected.keys()
    assert all(name.startswith("denoiser.") for name in found)
    for name, value in found.items():
        torch.testing.assert_close(
            value.double(), expected[name], rtol=1e-3, atol=1e-4 * float(expected[name].abs().max()) + 1e-7
        )


def test_a_head_for_variances_is_left_as_it_is(pretrained, spec, tmp_path):
    net = build(pretrained(tmp_path / "p"), spec(3, 8, 3))
    Denoising(label_dropout=0.0, seed=0).regress(net, *batch(), step=0)
    rows = net.denoiser.proj_out_2.weight.grad.view(2, 2, 8, -1)  # a patch of 2x2 pixels of 8 channels
    assert rows[:, :, 4:].abs().max() == 0
    assert rows[:, :, :4].abs().min() > 0


@pytest.mark.parametrize(
    ("kind", "dropout", "expected"), [("transformer", 1.0, 3), ("transformer", 0.0, None), ("unet", 1.0, None)]
)
def test_labels_are_dropped_to_the_class_for_none(pretrained, spec, tmp_path, monkeypatch, kind, dropout, expected):
    net, (real, y) = build(pretrained(tmp_path / "p", kind=kind), spec(3, 8, 3)), batch()
    seen, predict = [], net.predict
    monkeypatch.setattr(net, "predict", lambda x, times, classes: seen.append(classes) or predict(x, times, classes))
    Denoising(label_dropout=dropout, seed=0).regress(net, real, y, step=0)
    assert seen[0].tolist() == (y.tolist() if expected is None else [expected] * 6)


def test_draws_are_functions_of_seed_and_step(pretrained, spec, tmp_path):
    net, (real, y) = build(pretrained(tmp_path / "p"), spec(3, 8, 3)), batch()
    state = torch.get_rng_state()

    def loss(seed=0, step=0):
        return float(Denoising(label_dropout=0.1, seed=seed).regress(net, real, y, step=step)["denoising"])

    assert loss() == loss()
    assert len({loss(), loss(seed=1), loss(step=1)}) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_training_lowers_the_loss(pretrained, spec, tmp_path):
    """On grey images of another size, so that they are brought to the autoencoder's."""
    net, (real, y) = build(pretrained(tmp_path / "p", kind="unet"), spec(1, 8, 3)), batch(12, channels=1)
    objective = Denoising(label_dropout=0.1, seed=0)
    optimizer = torch.optim.Adam(net.denoiser.parameters(), lr=1e-2)
    losses = []
    for step in range(150):
        losses.append(float(objective.regress(net, real, y, step=step)["denoising"]))
        optimizer.step()
        optimizer.zero_grad()
    assert sum(losses[-20:]) < 0.6 * sum(losses[:5]) / 5 * 20
