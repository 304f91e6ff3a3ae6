"""Trajectory matching of a generator's weights."""

import dataclasses

import pytest
import torch

from dim.config import (
    MatchingConfig,
    PathMatchingConfig,
)
from dim.errors import InputError
from dim.io import load_tensors
from dim.objectives.path_matching import PathMatching
from dim.run_folder import read_metrics
from dim.runs.train import fit

STEP = 7


def make(store, data, **changes) -> PathMatching:
    settings = {"weight": 0.5, "steps": 3, "epochs": 0.5, "starts": (0.0, 1.0), "step_size": 0.05, "augment": "", **changes}
    return PathMatching(PathMatchingConfig(experts=str(store), **settings), data, first_step=5, seed=0)


def batch(data, count: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise: the digits' even corners make normalisation so steep that differences tell nothing of the slope."""
    images = 2 * torch.rand(count, *data.spec.image_shape, generator=torch.Generator().manual_seed(0)) - 1
    return images.requires_grad_(), torch.arange(count) % 10


@pytest.mark.parametrize(("distance", "zca"), [("endpoint", False), ("endpoint", True), ("direction", False)])
def test_adds_the_weighted_gradient_of_the_loss(distance, zca, digits_experts, record_digits, digits, tmp_path):
    """Against a central difference of the loss along the gradient, also through the whitening that students see."""
    store = record_digits(tmp_path / "zca", zca=True) if zca else digits_experts
    matching = make(store, digits, distance=distance)
    images, labels = batch(digits)
    images.grad = torch.ones_like(images)
    losses = matching.accumulate(images, labels, real=images, step=STEP)
    assert losses.keys() == {"trajectory"}
    assert float(losses["trajectory"]) > 0
    assert not losses["trajectory"].requires_grad
    gradient = images.grad - 1
    direction = gradient / gradient.norm()
    moved = [(images + sign * 5e-4 * direction).detach().requires_grad_() for sign in (1, -1)]
    up, down = (float(matching.accumulate(x, labels, real=x, step=STEP)["trajectory"]) for x in moved)
    assert float(gradient.norm()) == pytest.approx(0.5 * (up - down) / 1e-3, rel=0.02)


def test_is_exact_in_mixed_precision(digits_experts, digits):
    (images, labels), (others, _) = batch(digits), batch(digits)
    make(digits_experts, digits).accumulate(images, labels, real=images, step=STEP)
    with torch.autocast("cpu", torch.bfloat16):
        make(digits_experts, digits).accumulate(others, labels, real=others, step=STEP)
    assert torch.equal(images.grad, others.grad)


def test_a_loss_of_one_means_that_the_student_stays(digits_experts, digits):
    """The distance is in units of the expert's own way, so a step size of almost 0 gives 1."""
    images, labels = batch(digits)
    losses = make(digits_experts, digits, step_size=1e-12).accumulate(images, labels, real=images, step=STEP)
    assert float(losses["trajectory"]) == pytest.approx(1, abs=1e-3)


def test_the_direction_of_one_step_does_not_depend_on_the_step_size(digits_experts, digits):
    images, labels = batch(digits)
    losses = []
    for step_size in (1e-4, 2e-4):
        matching = make(digits_experts, digits, steps=1, step_size=step_size, distance="direction")
        losses.append(float(matching.accumulate(images, labels, real=images, step=STEP)["trajectory"]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0] < 0.99


def test_is_due_at_every_so_many_steps(digits_experts, digits):
    matching = make(digits_experts, digits, every=3)
    due = []
    for step in range(5, 12):
        images, labels = batch(digits, 10)
        losses = matching.accumulate(images, labels, real=images, step=step)
        assert bool(losses) == (images.grad is not None)
        due.append(bool(losses))
    assert due == [True, False, False, True, False, False, True]


def test_refusals(digits_experts, digits, tmp_path):
    config = PathMatchingConfig(weight=1.0)
    with pytest.raises(InputError, match=r"path_matching\.experts is not given: name a folder"):
        PathMatching(config, digits, first_step=0, seed=0)
    with pytest.raises(InputError, match="holds no experts"):
        make(tmp_path, digits)
    with pytest.raises(InputError, match=r"path_matching\.starts .* reaches moment 3\.5 and .* was recorded to 3: lower it"):
        make(digits_experts, digits, starts=(0.0, 3.0))
    with pytest.raises(InputError, match=r"path_matching\.starts is \(1\.0, 1\.0\)"):
        make(digits_experts, digits, starts=(1.0, 1.0))


def test_a_run_uses_it_in_stage_two_resumes_and_refuses_other_experts(six_steps, digits_experts, other_experts, digits, tmp_path):
    config = six_steps(
        matching=MatchingConfig(weight=0.0),
        path_matching=PathMatchingConfig(weight=1.0, experts=str(digits_experts), steps=2, epochs=0.5, every=2),
        fit={"checkpoint_steps": 3},
    )
    run = fit(config, digits, tmp_path / "run")
    records = read_metrics(run)
    assert ["trajectory" in record for record in records] == [False, False, True, False, True, False]
    off = dataclasses.replace(config, path_matching=PathMatchingConfig())
    without, _ = load_tensors(fit(off, digits, tmp_path / "off") / "generator.safetensors")
    having, _ = load_tensors(run / "generator.safetensors")
    assert any(not torch.equal(having[name], value) for name, value in without.items())
    fit(config, digits, run, resume=True)
    different = dataclasses.replace(config.path_matching, experts=str(other_experts))
    with pytest.raises(InputError, match="holds other experts than the run began with"):
        fit(dataclasses.replace(config, path_matching=different), digits, run, resume=True)
