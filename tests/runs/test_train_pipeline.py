"""Runs that start from a pretrained pipeline: both stages, stage two alone, resuming, and sets drawn from them."""

import shutil

import pytest
import torch

import dim
from dim.commands.cli import main
from dim.config import DataConfig, FitConfig, GeneratorConfig, MatchingConfig, PoolConfig, StageConfig, TrainConfig, to_toml
from dim.data.real import from_dataset
from dim.data.synthetic import load_set
from dim.io import load_tensors
from dim.nets.generator import build_generator
from dim.run_folder import read_metrics
from dim.runs.train import Trainer, fit


@pytest.fixture(scope="module")
def data():
    """Sixty grey 8x8 images of three classes; 48 are trained on."""
    source = torch.Generator().manual_seed(0)
    items = [(torch.randint(0, 256, (1, 8, 8), generator=source, dtype=torch.uint8), n % 3) for n in range(60)]
    return from_dataset(items, items[:12], name="toy", class_names="abc", config=DataConfig(val_fraction=0.2))


@pytest.fixture(scope="module")
def folder(pretrained, tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("pretrained") / "tiny-dit")


def config_of(folder, one: int = 3, two: int = 3, *, generator=None, **fit_settings) -> TrainConfig:
    """A run of `one` and `two` steps."""
    settings = {"trackers": (), "device": "cpu", "log_steps": 1, "sample_steps": 0, "checkpoint_minutes": 0.0, **fit_settings}
    return TrainConfig(
        generator=GeneratorConfig(**{"name": "pipeline", "pretrained": str(folder), "steps": 2, **(generator or {})}),
        stage_one=StageConfig(epochs=one * 8 / 48, batch_size=8, lr=1e-3),
        stage_two=StageConfig(epochs=two * 8 / 48, batch_size=8, lr=1e-3),
        matching=MatchingConfig(weight=1.0),
        pool=PoolConfig(students=("convnet:width=4",), members=2, max_age=3),
        fit=FitConfig(**settings),
    )


def metrics(run) -> list[dict]:
    return read_metrics(run)


def weights(run) -> dict[str, torch.Tensor]:
    tensors, _ = load_tensors(run / "checkpoint.safetensors")
    return {name.removeprefix("generator."): value for name, value in tensors.items() if name.startswith("generator.")}


def test_both_stages_train_the_denoiser_alone(data, folder, tmp_path):
    records = metrics(fit(config_of(folder, 3, 4), data, tmp_path / "run"))
    assert [record["stage"] for record in records] == ["one"] * 3 + ["two"] * 4
    for record in records:
        assert record["denoising"] > 0
        assert ("matching" in record) == (record["stage"] == "two")
    before = build_generator(config_of(folder).generator, data.spec, seed=0).state_dict()
    after = weights(tmp_path / "run")
    assert after.keys() == before.keys()
    assert {name for name in after if torch.equal(after[name], before[name])} == {name for name in before if "vae." in name}


def test_matching_moves_the_denoiser_through_the_sampler(data, folder, tmp_path):
    """Stage two alone, from the pretrained weights right away."""
    matched = fit(config_of(folder, 0, 2), data, tmp_path / "matched")
    assert {record["stage"] for record in metrics(matched)} == {"two"}
    longer = fit(config_of(folder, 0, 2, generator={"steps": 4}), data, tmp_path / "longer")
    assert metrics(matched)[0]["denoising"] == metrics(longer)[0]["denoising"]
    assert metrics(matched)[0]["matching"] != metrics(longer)[0]["matching"]
    assert any(not torch.equal(v, weights(longer)[k]) for k, v in weights(matched).items())


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_that_fails_resumes_without_the_pipeline(data, pretrained, tmp_path, monkeypatch, precision):
    """Bitwise, and the pipeline's folder is gone by then."""
    folder = pretrained(tmp_path / "p", dropout=0.2)
    config = config_of(folder, 3, 4, checkpoint_steps=2, ema=0.9, clip_norm=1.0, precision=precision, generator={"guidance": 1.5})
    whole = fit(config, data, tmp_path / "whole")
    original = Trainer.train_step
    for position, fault in enumerate((3, 6)):

        def train_step(self, *arguments, fault=fault):
            if self.step == fault:
                raise RuntimeError("a fault")
            return original(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", train_step)
            with pytest.raises(RuntimeError, match="a fault"):
                fit(config, data, tmp_path / "run", resume=position > 0)
        shutil.rmtree(folder, ignore_errors=True)
    fit(config, data, tmp_path / "run", resume=True)
    for name in ("generator.safetensors", "checkpoint.safetensors"):
        own, expected = (load_tensors(run / name)[0] for run in (tmp_path / "run", whole))
        assert own.keys() == expected.keys()
        assert [key for key in own if not torch.equal(own[key], expected[key])] == []
    own, expected = ([{**record, "seconds": 0} for record in metrics(run)] for run in (tmp_path / "run", whole))
    assert own == expected


def test_the_commands(pretrained, tmp_path, capsys):
    """From the command line: train on the bundled digits from a recipe of one's own, then sample with other options."""
    folder = pretrained(tmp_path / "p", num_embeds_ada_norm=12)
    config = config_of(folder, 0, 3, generator={"pretrained_classes": (11, *range(9))})
    (tmp_path / "mine.toml").write_text(to_toml(config))
    run = str(tmp_path / "run")
    command = ["train", "--recipe", str(tmp_path / "mine.toml"), "--out", run, "--stage-two.epochs", "0.02"]
    assert main([*command, "--generator.pretrained-classes", *map(str, range(2, 12)), "--generator.guidance", "2"]) == 0
    assert dim.load_generator(run).classes.tolist() == list(range(2, 12))
    shutil.rmtree(folder)
    images = []
    for name, options in {"a": [], "b": ["--sampler.steps", "5"], "c": ["--sampler.guidance", "1"]}.items():
        out = str(tmp_path / name)
        assert main(["sample", run, "--ipc", "2", "--out", out, "--format", "safetensors", *options]) == 0
        images.append(load_set(out).images)
        assert images[-1].shape == (20, 1, 8, 8)
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    capsys.readouterr()
    for option, message in {"scheduler": "unknown sampler option scheduler", "steps": "generator.steps is 1:"}.items():
        refused = ["sample", run, "--ipc", "2", "--out", str(tmp_path / "d"), f"--sampler.{option}", "1"]
        assert main(refused) == 2
        assert message in capsys.readouterr().err
