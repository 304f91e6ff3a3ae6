"""A small training, its recipe and a run of it, for the tests of commands."""

import pytest

from dim.commands.cli import main
from dim.config import (
    AboutConfig,
    DiscriminatorConfig,
    FitConfig,
    GeneratorConfig,
    PoolConfig,
    ProtocolConfig,
    StageConfig,
    TrainConfig,
    to_toml,
)


@pytest.fixture(scope="module")
def tiny() -> TrainConfig:
    return TrainConfig(
        about=AboutConfig(title="tiny"),
        generator=GeneratorConfig(width=4, latent_dim=6),
        discriminator=DiscriminatorConfig(width=4),
        stage_one=StageConfig(epochs=0.02, batch_size=8, lr=1e-3),
        stage_two=StageConfig(epochs=0.02, batch_size=8, lr=1e-3),
        pool=PoolConfig(students=("convnet:width=4",), members=2),
        fit=FitConfig(trackers=(), device="cpu", log_steps=1, sample_steps=0, checkpoint_minutes=0.0),
        protocol=ProtocolConfig(students=("convnet:width=4",), epochs=1, augment="crop"),
    )


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(to_toml(tiny))
    return str(path)


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """A trained run."""
    path = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "--recipe", recipe, "--out", str(path)]) == 0
    return path
