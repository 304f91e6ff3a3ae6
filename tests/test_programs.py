"""The programs in train/ and sample/, run as a reader of the README runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dim
from dim.config import (
    DiscriminatorConfig,
    DistillConfig,
    ExpertsConfig,
    FitConfig,
    GeneratorConfig,
    PoolConfig,
    StageConfig,
    TrainConfig,
    TrajectoryConfig,
    TrajectoryRecipe,
    to_toml,
)
from dim.trajectory.store import ExpertStore

_ROOT = Path(__file__).parent.parent


def program(*arguments) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    config = TrainConfig(
        generator=GeneratorConfig(width=4, latent_dim=6),
        discriminator=DiscriminatorConfig(width=4),
        stage_one=StageConfig(epochs=0.02, batch_size=8),
        stage_two=StageConfig(epochs=0.02, batch_size=8),
        pool=PoolConfig(students=("convnet:width=4",), members=2),
        fit=FitConfig(trackers=(), device="cpu"),
    )
    (folder / "recipe.toml").write_text(to_toml(config))
    assert str(folder / "run") in program("train/generator.py", "--recipe", folder / "recipe.toml", "--out", folder / "run")
    return folder / "run"


def test_train_generator(run):
    for name in ("generator.safetensors", "checkpoint.safetensors", "run.json", "metrics.jsonl", "report.html"):
        assert (run / name).is_file()


def test_sample_emit(run, tmp_path):
    assert "20 images" in program("sample/emit.py", run, "--ipc", 2, "--out", tmp_path / "set", "--device", "cpu")
    assert torch.equal(dim.load_set(tmp_path / "set").images, dim.sample_set(dim.load_generator(run), ipc=2).images)


def test_sample_stream(run):
    losses = re.findall(r"step (\d+): loss (\d+\.\d+)", program("sample/stream.py", run, 3))
    assert [int(step) for step, _ in losses] == [0, 2]
    assert float(losses[0][1]) == pytest.approx(2.3, abs=0.5)  # ten classes, nothing learnt yet


def test_train_experts_and_distill(tmp_path):
    config = TrajectoryRecipe(
        student="convnet:width=8,depth=2",
        experts=ExpertsConfig(count=1, epochs=2.0, device="cpu"),
        trajectory=TrajectoryConfig(steps=2, epochs=1, max_start=1),
        distill=DistillConfig(iterations=2, device="cpu"),
    )
    (tmp_path / "recipe.toml").write_text(to_toml(config))
    store, out = tmp_path / "experts", tmp_path / "set"
    assert "1 experts" in program("train/experts.py", "--recipe", tmp_path / "recipe.toml", "--out", store)
    assert ExpertStore.open(store).complete
    arguments = ("--recipe", tmp_path / "recipe.toml", "--experts", store, "--out", out)
    assert f"10 images in {out}" in program("train/distill.py", *arguments)
    assert dim.load_set(out).info["iterations"] == 2


@pytest.mark.parametrize("name", ["train/generator.py", "train/experts.py", "train/distill.py", "sample/emit.py"])
def test_programs_explain_themselves(name):
    assert "usage: dim" in program(name, "--help")
