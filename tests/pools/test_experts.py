"""The pool of recorded experts."""

import dataclasses
import shutil

import pytest
import torch

from dim.config import (
    MatchingConfig,
    PoolConfig,
)
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.pool import build_pool
from dim.pools.experts import ExpertPool
from dim.run_folder import read_metrics
from dim.runs.train import fit
from dim.trajectory.store import ExpertStore, to_waypoints


def make(store, data, *, steps: int = 10, first_step: int = 5, seed: int = 0, **changes) -> ExpertPool:
    config = PoolConfig(source="experts", experts=str(store), **changes)
    return build_pool(config, data, steps=steps, first_step=first_step, seed=seed)


def test_members_are_points_of_recorded_paths(digits_experts, digits):
    pool = make(digits_experts, digits, together=3)
    thetas = pool.thetas(7)
    assert thetas.shape == (3, pool.network.size)
    table = ExpertStore.open(digits_experts)
    checkpoints = torch.stack([table.weights(expert, moment) for expert in range(2) for moment in range(4)])
    ends = make(digits_experts, digits, ages=(1.0, 1.0), oldest_at_first=1.0).thetas(7)[0]
    assert any(torch.equal(ends, checkpoints[index]) for index in (3, 7)), "the oldest of either expert"
    start = make(digits_experts, digits, ages=(0.0, 0.0), oldest_at_first=0.0).thetas(7)[0]
    assert any(torch.equal(start, checkpoints[index]) for index in (0, 4)), "freshly initialised"


def test_the_window_grows_while_the_stage_lasts(digits_experts, digits):
    pool = make(digits_experts, digits, ages=(0.2, 0.9), oldest_at_first=0.4)
    assert pool.window(5) == pytest.approx((0.2, 0.4))
    assert pool.window(10) == pytest.approx((0.2, 0.65))
    assert pool.window(15) == pytest.approx((0.2, 0.9))
    assert pool.window(99) == pytest.approx((0.2, 0.9))


def test_members_follow_seed_and_step(digits_experts, digits):
    first, again, other = (make(digits_experts, digits, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.thetas(7), again.thetas(7))
    assert not torch.equal(first.thetas(7), first.thetas(8))
    assert not torch.equal(first.thetas(7), other.thetas(7))


@pytest.mark.parametrize("kind", ["logits", "features"])
def test_one_batched_evaluation_equals_one_by_one(digits_experts, digits, kind):
    pool = make(digits_experts, digits, together=3)
    images = digits.train.batch(torch.arange(6))[0].requires_grad_()
    outputs = pool.outputs(images, 9, kind)
    assert outputs.shape[:2] == (3, 6)
    (gradient,) = torch.autograd.grad(outputs.square().sum(), images)
    function = pool.network.features if kind == "features" else pool.network.logits
    expected = torch.stack([function(theta, images) for theta in pool.thetas(9)])
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), images)[0], rtol=1e-3, atol=1e-5)
    if kind == "logits":
        torch.testing.assert_close(pool.draw(9)(images), outputs[0], rtol=1e-4, atol=1e-5)


def test_features_and_the_last_layer_make_the_logits(digits_experts, digits):
    pool = make(digits_experts, digits)
    images = digits.train.batch(torch.arange(4))[0]
    theta = pool.thetas(6)[0]
    last = pool.network.unflatten(theta)
    logits = pool.network.features(theta, images) @ last["head.weight"].T + last["head.bias"]
    torch.testing.assert_close(logits, pool.network.logits(theta, images), rtol=1e-4, atol=1e-5)


def test_nothing_is_trained(digits_experts, digits):
    pool = make(digits_experts, digits)
    assert [len(pool.due(step)) for step in range(5, 12)] == [0] * 7
    with pytest.raises(RuntimeError, match="no upkeep"):
        pool.advance(*digits.train.batch(torch.arange(4)), 5)


def test_old_members_know_more_than_young_ones(digits_experts, digits):
    images, labels = digits.test.batch(torch.arange(200))
    scores = []
    for age in (0.0, 1.0):
        pool = make(digits_experts, digits, ages=(age, age), oldest_at_first=age)
        scores.append(float((pool.draw(6)(images).argmax(1) == labels).float().mean()))
    assert scores[1] > scores[0] + 0.2


def test_waypoints_serve_too(digits_experts, digits, tmp_path):
    fewer = to_waypoints(ExpertStore.open(digits_experts), tmp_path / "few", 3).folder
    pool = make(fewer, digits, ages=(1.0, 1.0), oldest_at_first=1.0)
    full = make(digits_experts, digits, ages=(1.0, 1.0), oldest_at_first=1.0)
    torch.testing.assert_close(pool.thetas(7), full.thetas(7))


def test_experts_of_whitened_images_see_whitened_images(record_digits, digits, tmp_path):
    pool = make(record_digits(tmp_path / "zca", zca=True), digits)
    images = digits.train.batch(torch.arange(5))[0].requires_grad_()
    whitened = Whitening.fit(digits.train, digits.spec).whiten(images)
    torch.testing.assert_close(pool.draw(6)(images), pool.network.logits(pool.thetas(6)[0], whitened))
    (gradient,) = torch.autograd.grad(pool.outputs(images, 6, "logits").sum(), images)
    assert gradient.abs().sum() > 0


def test_refusals(digits_experts, digits, spec, tmp_path):
    with pytest.raises(InputError, match=r"pool\.experts is not given.*dim experts"):
        build_pool(PoolConfig(source="experts"), digits, seed=0)
    with pytest.raises(InputError, match="holds no experts"):
        make(tmp_path, digits)
    other = dataclasses.replace(digits, spec=spec(1, 8, 10))
    with pytest.raises(InputError, match=r"experts of digits.*expected toy"):
        make(digits_experts, other)
    with pytest.raises(InputError, match=r"pool\.ages is \(0\.5, 0\.2\)"):
        PoolConfig(source="experts", ages=(0.5, 0.2))
    with pytest.raises(InputError, match=r"pool\.oldest_at_first is 0\.4: expected a number in \[0\.5, 1\.0\]"):
        PoolConfig(source="experts", ages=(0.5, 1.0))
    with pytest.raises(InputError, match=r"pool\.together is 0"):
        PoolConfig(source="experts", together=0)


def test_a_run_with_experts_resumes_and_refuses_other_experts(six_steps, digits_experts, other_experts, digits, tmp_path):
    config = six_steps(
        matching=MatchingConfig(distance="kernel", outputs="features"),
        pool=PoolConfig(source="experts", experts=str(digits_experts), together=2),
    )
    run = fit(config, digits, tmp_path / "run")
    records = read_metrics(run)
    assert [("matching" in entry, "pool" in entry) for entry in records] == [(False, False)] * 2 + [(True, False)] * 4
    moved = shutil.copytree(digits_experts, tmp_path / "moved")
    elsewhere = dataclasses.replace(config, pool=dataclasses.replace(config.pool, experts=str(moved)))
    fit(elsewhere, digits, run, resume=True)  # the same experts, elsewhere
    different = dataclasses.replace(config, pool=dataclasses.replace(config.pool, experts=str(other_experts)))
    with pytest.raises(InputError, match="holds other experts than the run began with"):
        fit(different, digits, run, resume=True)
