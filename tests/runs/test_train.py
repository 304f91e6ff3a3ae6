"""The training loop: what a run leaves, the two stages, schedules, the average, and the guard against non-finite values."""

import dataclasses
import json
import math
import time
from pathlib import Path

import pytest
import torch
from launching import launch, results
from PIL import Image
from torch import nn

import dim
from dim.config import (
    AdversarialConfig,
    DataConfig,
    DiscriminatorConfig,
    FitConfig,
    GeneratorConfig,
    MatchingConfig,
    PathMatchingConfig,
    PoolConfig,
    StageConfig,
    TrainConfig,
    to_dict,
    to_toml,
)
from dim.data.real import from_dataset, load_data
from dim.errors import InputError
from dim.io import load_tensors, read_json
from dim.loop import NonFiniteError
from dim.nets.discriminators import Discriminator
from dim.objectives.adversaries.acgan_wgangp import Adversarial
from dim.pool import TrainedPool
from dim.recipes.load import load_recipe
from dim.run_folder import read_metrics
from dim.runs.accelerator import make_accelerator
from dim.runs.average import update_average
from dim.runs.train import Trainer, fit
from dim.score.coverage import Coverage


@pytest.fixture(scope="module")
def data():
    """Sixty 8x8 images of three classes; 48 are trained on, so that a stage of 0.5 epochs at batch 8 has three steps."""
    source = torch.Generator().manual_seed(0)
    items = [(torch.randint(0, 256, (1, 8, 8), generator=source, dtype=torch.uint8), n % 3) for n in range(60)]
    return from_dataset(items, items[:12], name="toy", class_names="abc", config=DataConfig(val_fraction=0.2))


def tiny(one: int = 3, two: int = 3, *, images: int = 48, **changes) -> TrainConfig:
    """A run of `one` and `two` steps on `images` training images."""
    fit_settings = {"trackers": (), "ema": 0.0, "device": "cpu", "log_steps": 1, "sample_steps": 0, "checkpoint_minutes": 0.0}
    settings = {
        "generator": GeneratorConfig(name="dim2023", width=4, latent_dim=6),
        "discriminator": DiscriminatorConfig(width=4),
        "adversarial": AdversarialConfig(loss="acgan-wgangp"),
        "stage_one": StageConfig(epochs=one * 8 / images, batch_size=8, lr=1e-3),
        "stage_two": StageConfig(epochs=two * 8 / images, batch_size=8, lr=1e-3),
        "pool": PoolConfig(students=("convnet:width=4",), members=2, max_age=3),
        "fit": FitConfig(**{**fit_settings, **changes.pop("fit", {})}),
    }
    return TrainConfig(**{**settings, **changes})


def metrics(run: Path) -> list[dict]:
    return read_metrics(run)


def weights(run: Path, part: str = "generator") -> dict[str, torch.Tensor]:
    tensors, _ = load_tensors(run / "checkpoint.safetensors")
    return {name: value for name, value in tensors.items() if name.startswith(f"{part}.")}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- what a run leaves -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    data = load_data(DataConfig())
    config = tiny(4, 4, images=len(data.train), fit={"ema": 0.9, "sample_steps": 3, "trackers": ("tensorboard",)})
    return fit(config, data, tmp_path_factory.mktemp("fit") / "run"), config, data


def test_a_run_on_digits_leaves_all_that_is_promised(digits_run):
    run, config, data = digits_run
    generator = dim.load_generator(run)
    assert generator.spec == data.spec
    images = generator.sample(torch.arange(10), seed=0)
    assert images.shape == (10, 1, 8, 8)
    assert images.isfinite().all()
    description = read_json(run / "run.json")
    assert description["config"] == json.loads(json.dumps(to_dict(config)))
    assert description["spec"]["fingerprint"] == data.spec.fingerprint
    assert {"torch", "python", "dim-distill"} <= description["versions"].keys()
    assert description["hardware"]["device"] == "cpu"
    assert (run / "checkpoint.safetensors").is_file()
    assert generator.info["about"]["step"] == generator.info["about"]["total_steps"] == 8


def test_sample_grids_are_made_at_intervals_and_at_the_end(digits_run):
    run, _, _ = digits_run
    assert sorted(file.name for file in (run / "samples").iterdir()) == [f"step-{step:07d}.png" for step in (3, 6, 8)]
    with Image.open(run / "samples" / "step-0000008.png") as picture:
        width, height = picture.size
    assert width == height  # ten classes of ten images
    assert width >= 10 * 48


def test_metrics_are_one_record_per_interval(digits_run):
    run, _, _ = digits_run
    records = metrics(run)
    assert [record["step"] for record in records] == list(range(1, 9))
    assert [record["seconds"] for record in records] == sorted(record["seconds"] for record in records)
    for record in records:
        assert {"stage", "adversarial", "class", "critic", "distance", "lr"} <= record.keys()
        assert all(math.isfinite(value) for value in record.values() if isinstance(value, float))


def test_tensorboard_has_the_same_losses(digits_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _, _ = digits_run
    folders = {file.parent for file in run.rglob("events.out.tfevents.*")}
    found = {}
    for folder in folders:
        events = EventAccumulator(str(folder)).Reload()
        if "critic" in events.Tags()["scalars"]:
            found = {event.step: event.value for event in events.Scalars("critic")}
    assert found == pytest.approx({record["step"]: record["critic"] for record in metrics(run)}, rel=1e-5)


def test_no_half_written_files_are_left(digits_run):
    run, _, _ = digits_run
    assert not list(run.rglob("*.tmp"))


def test_metric_records_are_means_over_their_interval(data, tmp_path):
    fine = metrics(fit(tiny(4, 2), data, tmp_path / "fine"))
    coarse = metrics(fit(tiny(4, 2, fit={"log_steps": 4}), data, tmp_path / "coarse"))
    assert [record["step"] for record in coarse] == [4, 6]
    mean = sum(record["critic"] for record in fine[:4]) / 4
    assert coarse[0]["critic"] == pytest.approx(mean, rel=1e-5)


# --- stages ----------------------------------------------------------------------------------------------------------------


def test_stage_one_is_adversarial_alone_and_stage_two_matches_logits(data, tmp_path):
    records = metrics(fit(tiny(3, 4), data, tmp_path / "run"))
    assert [record["stage"] for record in records] == ["one"] * 3 + ["two"] * 4
    for record in records:
        assert ("matching" in record) == (record["stage"] == "two")
        assert "adversarial" in record
    # Upkeep is due at every second step of the stage.
    assert ["pool" in record for record in records] == [False] * 3 + [True, False, True, False]


def test_stage_two_uses_the_pool(data, tmp_path):
    off = fit(tiny(2, 3, matching=MatchingConfig(weight=0.0)), data, tmp_path / "off")
    weak = fit(tiny(2, 3, matching=MatchingConfig(weight=1.0)), data, tmp_path / "weak")
    strong = fit(tiny(2, 3, matching=MatchingConfig(weight=100.0)), data, tmp_path / "strong")
    assert weights(off, "pool") == {}
    assert any(name.endswith("counts") for name in weights(weak, "pool"))
    assert not any("matching" in record or "pool" in record for record in metrics(off))
    assert not same(weights(off), weights(weak))
    assert not same(weights(weak), weights(strong))
    assert metrics(off)[1] == {**metrics(weak)[1], "seconds": metrics(off)[1]["seconds"]}  # stage one is the same


def test_the_published_pool_trains(data, tmp_path):
    pool = PoolConfig(source="fresh", students=("convnet:width=4", "resnet10:width=8"), upkeep_steps=2, upkeep_every=1)
    records = metrics(fit(tiny(1, 8, pool=pool, matching=MatchingConfig(distance="pairs")), data, tmp_path / "run"))
    assert all("pool" in record and record["matching"] >= 0 for record in records[1:])


@pytest.mark.parametrize("images", ["real", "generated"])
def test_what_the_pool_learns_from(images, data, tmp_path, monkeypatch):
    seen = []
    advance = TrainedPool.advance
    monkeypatch.setattr(TrainedPool, "advance", lambda pool, *batch: seen.append(batch) or advance(pool, *batch))
    pool = PoolConfig(students=("convnet:width=4",), members=2, images=images, upkeep_steps=2, upkeep_every=1)
    fit(tiny(1, 3, pool=pool), data, tmp_path / "run")
    real = data.train.batch(torch.arange(len(data.train)))[0].flatten(1)
    batches = [batch[0].flatten(1) for batch in seen]
    assert len(batches) == 3 * 2
    for batch in batches:
        assert bool((batch[:, None] == real).all(2).any(1).all()) == (images == "real")
        assert not batch.requires_grad
    assert not torch.equal(batches[0], batches[1])


def test_a_stage_of_no_epochs_is_skipped(data, tmp_path):
    assert {record["stage"] for record in metrics(fit(tiny(0, 2), data, tmp_path / "two"))} == {"two"}
    assert {record["stage"] for record in metrics(fit(tiny(2, 0), data, tmp_path / "one"))} == {"one"}
    with pytest.raises(InputError, match=r"stage_one\.epochs is 0 and stage_two\.epochs 0: no step of training"):
        fit(tiny(0, 0), data, tmp_path / "none")


def test_a_stage_whose_epochs_are_no_step_is_refused(data, tmp_path):
    few = dataclasses.replace(tiny(2, 2), stage_two=StageConfig(epochs=0.01, batch_size=16, lr=1e-3))
    message = r"stage_two\.epochs is 0\.01, which is no step for \d+ images in batches of 16: expected 0\.\d+ or more"
    with pytest.raises(InputError, match=message):
        fit(few, data, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_stage_has_the_steps_of_its_epochs(data, tmp_path):
    config = dataclasses.replace(tiny(1, 1), stage_one=StageConfig(epochs=2.0, batch_size=16, lr=1e-3))
    records = metrics(fit(config, data, tmp_path / "run"))
    assert sum(record["stage"] == "one" for record in records) == 2 * 48 // 16


def test_learning_rates_follow_their_schedules(data, tmp_path):
    config = tiny(4, 4)
    config = dataclasses.replace(config, stage_two=dataclasses.replace(config.stage_two, lr=1e-2, lr_end=1e-4))
    rates = [record["lr"] for record in metrics(fit(config, data, tmp_path / "run"))]
    assert rates[:4] == [1e-3] * 4
    cosine = [1e-4 + (1e-2 - 1e-4) * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert rates[4:] == pytest.approx(cosine)


def test_the_learning_rate_is_used(data, tmp_path):
    start = Trainer(tiny(1, 0), data, tmp_path / "start", make_accelerator(tiny(), tmp_path), resume=False).generator
    before = {f"generator.{name}": value.clone() for name, value in start.named_parameters()}
    steps = {}
    for lr in (1e-3, 1e-4):
        config = tiny(1, 0)
        config = dataclasses.replace(config, stage_one=dataclasses.replace(config.stage_one, lr=lr))
        after = weights(fit(config, data, tmp_path / str(lr)))
        steps[lr] = sum(float((after[name] - value.detach()).abs().sum()) for name, value in before.items())
    assert steps[1e-3] == pytest.approx(10 * steps[1e-4], rel=0.01)  # the first step of Adam is the sign, times lr


def test_a_run_is_a_function_of_its_seed(data, tmp_path):
    first, again = (fit(tiny(), data, tmp_path / name) for name in ("first", "again"))
    other = fit(tiny(fit={"seed": 1}), data, tmp_path / "other")
    for part in ("generator", "discriminator", "pool", "optimizer.generator"):
        assert same(weights(first, part), weights(again, part))
        assert weights(first, part)
    assert not same(weights(first), weights(other))


def test_an_objective_that_is_not_due_leaves_a_step_to_the_others(data, tmp_path, digits_experts):
    matching = PathMatchingConfig(weight=1.0, every=2, steps=2, epochs=0.5, experts=str(digits_experts))
    config = tiny(
        0,
        4,
        generator=GeneratorConfig(name="diffusion", width=8),
        discriminator=DiscriminatorConfig(),
        adversarial=AdversarialConfig(),
        pool=PoolConfig(),
        images=1295,
        matching=MatchingConfig(weight=0.0),
        path_matching=matching,
    )
    found = [record for record in metrics(fit(config, load_data(DataConfig()), tmp_path / "run")) if "trajectory" in record]
    assert len(found) == 2


def test_training_does_not_touch_the_callers_random_state(data, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    fit(tiny(1, 1), data, tmp_path / "run")
    assert torch.equal(torch.rand(4), expected)


def test_images_come_to_look_like_the_data(tmp_path):
    """One run sees images with a bright left half, the other with a bright right half; nothing else differs.

    The two contrasts are 3.87 apart, with a standard deviation of 0.04 over five seeds.
    """
    contrasts = []
    for side in ("left", "right"):
        image = torch.full((1, 8, 8), 15, dtype=torch.uint8)
        image[..., :4] = 240
        items = [(image if side == "left" else image.flip(2), n % 3) for n in range(60)]
        data = from_dataset(items, items[:12], name=side, class_names="abc", config=DataConfig(val_fraction=0.2))
        networks = {"generator": GeneratorConfig(width=4, latent_dim=6), "discriminator": DiscriminatorConfig(width=8)}
        config = tiny(60, 0, **networks, adversarial=AdversarialConfig(gamma=1.0))
        config = dataclasses.replace(config, stage_one=dataclasses.replace(config.stage_one, lr=3e-3))
        images = dim.load_generator(fit(config, data, tmp_path / side)).sample(torch.arange(30) % 3)
        contrasts.append(float(images[..., :4].mean() - images[..., 4:].mean()))
    assert contrasts[0] > contrasts[1] + 2


@pytest.mark.parametrize("size", [16, 11])
def test_other_sizes_channels_and_many_classes_train(tmp_path, size):
    items = [(torch.full((3, size, size), n % 256, dtype=torch.uint8), n % 100) for n in range(300)]
    data = from_dataset(items, items[:100], name="many", class_names=[str(n) for n in range(100)])
    run = fit(tiny(1, 1, images=len(data.train)), data, tmp_path / "run")
    assert dim.load_generator(run).sample(torch.tensor([0, 99])).shape == (2, 3, size, size)


# --- the average -----------------------------------------------------------------------------------------------------------


def test_the_average_follows_its_formula():
    source, average = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2))
    expected = {name: value.double().clone() for name, value in average.state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    for step in range(40):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
        source(torch.randn(8, 3, generator=draw))
        update_average(average, source, step, 0.8)
        decay = min(0.8, (1 + step) / (10 + step))
        for name, value in source.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(value, source.state_dict()[name])


def test_the_average_is_the_result_if_there_is_one(data, tmp_path):
    for name, ema in (("plain", 0.0), ("average", 0.9)):
        run = fit(tiny(3, 0, fit={"ema": ema}), data, tmp_path / name)
        result = {f"generator.{key}": value for key, value in dim.load_generator(run).state_dict().items()}
        assert same(result, weights(run)) == (ema == 0)
        stored = {key.replace("average.", "generator.", 1): value for key, value in weights(run, "average").items()}
        assert same(result, stored) == (ema > 0)
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "average"))  # it only watches


# --- gradients -------------------------------------------------------------------------------------------------------------


def test_clipping_bounds_the_gradient_and_records_its_norm(data, tmp_path):
    free, clipped = (metrics(fit(tiny(3, 0, fit={"clip_norm": norm}), data, tmp_path / str(norm))) for norm in (0.0, 1e-9))
    assert "gradient_norm" not in free[0]
    assert clipped[0]["gradient_norm"] > 1e-3  # the norm before clipping
    start = Trainer(tiny(), data, tmp_path / "start", make_accelerator(tiny(), tmp_path), resume=False).generator
    moved = {norm: weights(tmp_path / str(norm)) for norm in (0.0, 1e-9)}
    distance = {
        norm: sum(float((after[f"generator.{name}"] - value.detach()).abs().sum()) for name, value in start.named_parameters())
        for norm, after in moved.items()
    }
    assert distance[1e-9] < 0.8 * distance[0.0]  # Adam divides by the norm, but not below its epsilon


def nan_at(monkeypatch, step_of_fault: int) -> None:
    """Make a loss NaN at one step."""
    original = Adversarial.accumulate

    def accumulate(self, images, targets, *, real, step):
        losses = original(self, images, targets, real=real, step=step)
        return losses | {"class": losses["class"] * math.nan} if step == step_of_fault else losses

    monkeypatch.setattr(Adversarial, "accumulate", accumulate)


@pytest.mark.parametrize("log_steps", [1, 100])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(data, tmp_path, monkeypatch, log_steps):
    config = tiny(9, 0, fit={"checkpoint_steps": 3, "log_steps": log_steps})
    good = fit(tiny(3, 0), data, tmp_path / "good")
    nan_at(monkeypatch, 4)
    with pytest.raises(NonFiniteError, match=r"loss 'class' is nan.*failed\.safetensors.*checkpoint\.safetensors"):
        fit(config, data, tmp_path / "run")
    tensors, metadata = load_tensors(tmp_path / "run" / "checkpoint.safetensors")
    assert metadata["step"] == 3
    assert same(weights(tmp_path / "run"), weights(good))
    failed, metadata = load_tensors(tmp_path / "run" / "failed.safetensors")
    assert failed.keys() == tensors.keys()
    assert metadata["step"] == (5 if log_steps == 1 else 6)


def test_a_fault_before_the_first_checkpoint_says_so(data, tmp_path, monkeypatch):
    nan_at(monkeypatch, 0)
    with pytest.raises(NonFiniteError, match="no checkpoint"):
        fit(tiny(), data, tmp_path / "run")
    assert (tmp_path / "run" / "failed.safetensors").is_file()


def test_a_learning_rate_out_of_bounds_stops_the_run(data, tmp_path):
    config = tiny(12, 0, fit={"log_steps": 12})
    config = dataclasses.replace(config, stage_one=dataclasses.replace(config.stage_one, lr=1e30))
    with pytest.raises(NonFiniteError, match="lower learning rate"):
        fit(config, data, tmp_path / "run")
    assert not (tmp_path / "run" / "generator.safetensors").exists()


@pytest.mark.parametrize("fault", [2, 5])
def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint_or_the_result(data, tmp_path, monkeypatch, fault):
    """At step 2 a checkpoint follows, at step 5 the end; the losses of these steps are finite still."""
    original = Trainer._finish_gradients

    def finish(self, parameters):
        parameters = list(parameters)
        if self.step == fault and parameters[0] is next(self.generator.parameters()):
            parameters[0].grad.fill_(math.nan)
        return original(self, parameters)

    monkeypatch.setattr(Trainer, "_finish_gradients", finish)
    with pytest.raises(NonFiniteError):
        fit(tiny(6, 0, fit={"checkpoint_steps": 3}), data, tmp_path / "run")
    for name in ("checkpoint.safetensors", "generator.safetensors"):
        if (tmp_path / "run" / name).exists():
            tensors, _ = load_tensors(tmp_path / "run" / name)
            assert all(value.isfinite().all() for value in tensors.values())


# --- what is refused -------------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_something_else_is_left_alone(data, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        fit(tiny(), data, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_holds_a_run_is_left_alone(data, tmp_path):
    run = fit(tiny(1, 1), data, tmp_path / "run")
    before = (run / "generator.safetensors").read_bytes()
    with pytest.raises(InputError, match="--resume"):
        fit(tiny(1, 2), data, run)
    assert (run / "generator.safetensors").read_bytes() == before


@pytest.mark.parametrize("device", ["tpu", "cuda:1"])
def test_an_unknown_device_is_refused(tmp_path, device):
    with pytest.raises(InputError, match=f"'{device}'"):
        make_accelerator(tiny(fit={"device": device}), tmp_path)


# --- two processes ---------------------------------------------------------------------------------------------------------


def _trained(recipe: str, out: str) -> torch.Tensor:
    """All weights and running statistics that this process ends with."""
    config = load_recipe(recipe)
    accelerator = make_accelerator(config, Path(out))
    trainer = Trainer(config, load_data(config.data), Path(out), accelerator, resume=False)
    trainer.run()
    networks = [trainer.generator, trainer.discriminator, *(member.net for member in trainer.pool.slots.values())]
    return torch.cat([value.detach().float().flatten() for network in networks for value in network.state_dict().values()])


def test_two_processes_end_with_the_same_weights(tmp_path):
    """Batch norms of the generator and of the pool's models included, though each process sees other images."""
    images = len(load_data(DataConfig()).train)
    config = tiny(2, 3, images=images, pool=PoolConfig(students=("convnet:width=4,norm=batch",), members=2))
    (tmp_path / "recipe.toml").write_text(to_toml(config))
    both = launch(tmp_path / "launch", _trained, str(tmp_path / "recipe.toml"), str(tmp_path / "run"))
    first, second = results(both)
    assert len(first) > 1000
    assert torch.equal(first, second)
    assert len(metrics(tmp_path / "run")) == 5  # written once
    assert dim.load_generator(tmp_path / "run").info["about"]["step"] == 5


# --- coverage along the way ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(data, tmp_path_factory):
    """The same run without measures, and with one at every other step."""
    folder = tmp_path_factory.mktemp("measured")
    common = {"ema": 0.9, "checkpoint_steps": 2}
    without = fit(tiny(4, 3, fit=common), data, folder / "without")
    settings = {**common, "coverage_steps": 2, "coverage_samples": 30, "trackers": ("tensorboard",)}
    return without, fit(tiny(4, 3, fit=settings), data, folder / "with")


def test_coverage_is_recorded_at_intervals_and_at_the_end(measured):
    without, run = measured
    records = [record for record in metrics(run) if "coverage" in record]
    assert [(record["step"], record["stage"]) for record in records] == [(2, "one"), (4, "one"), (6, "two"), (7, "two")]
    for record in records:
        assert record.keys() == {"step", "stage", "seconds", "fid", "precision", "recall", "density", "coverage"}
    assert not any("coverage" in record for record in metrics(without))


def test_coverage_is_that_of_the_result(measured, data):
    _, run = measured
    score = dim.coverage(dim.load_generator(run), data=data, samples=30)
    last = metrics(run)[-1]
    assert {name: last[name] for name in score.metrics} == pytest.approx(score.metrics, rel=1e-4)


def test_measuring_coverage_changes_nothing_else(measured):
    without, run = measured
    tensors = [load_tensors(folder / "checkpoint.safetensors")[0] for folder in measured]
    assert same(*tensors)
    others = [{**record, "seconds": 0} for record in metrics(run) if "coverage" not in record]
    assert others == [{**record, "seconds": 0} for record in metrics(without)]


def test_trackers_get_coverage_too(measured):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, run = measured
    found = {}
    for folder in {file.parent for file in run.rglob("events.out.tfevents.*")}:
        events = EventAccumulator(str(folder)).Reload()
        if "coverage" in events.Tags()["scalars"]:
            found = {event.step: event.value for event in events.Scalars("coverage")}
    assert found == pytest.approx({record["step"]: record["coverage"] for record in metrics(run) if "coverage" in record})


def test_the_time_of_measuring_is_not_training_time(data, tmp_path, monkeypatch):
    score = Coverage.score

    def slow(*arguments):
        time.sleep(1.0)
        return score(*arguments)

    monkeypatch.setattr(Coverage, "score", slow)
    records = metrics(fit(tiny(3, 0, fit={"coverage_steps": 1, "coverage_samples": 30}), data, tmp_path / "run"))
    assert len(records) == 6
    assert records[-1]["seconds"] < 3.0


def test_a_run_that_is_resumed_has_the_measures_once(data, tmp_path, monkeypatch, measured):
    """Killed after the measure and the checkpoint of step 4; what may be measured may change."""
    settings = {"ema": 0.9, "checkpoint_steps": 2, "coverage_steps": 2, "coverage_samples": 30}
    step = Trainer.train_step

    def fail(self, *arguments):
        if self.step == 5:
            raise RuntimeError("killed")
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", fail)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tiny(4, 3, fit=settings), data, tmp_path / "run")
    monkeypatch.undo()
    fit(tiny(4, 3, fit=settings), data, tmp_path / "run", resume=True)
    assert [{**record, "seconds": 0} for record in metrics(tmp_path / "run")] == [
        {**record, "seconds": 0} for record in metrics(measured[1])
    ]
    fit(tiny(4, 3, fit={**settings, "coverage_steps": 0}), data, tmp_path / "run", resume=True)


def test_impossible_measures_are_found_before_training(data, tmp_path):
    with pytest.raises(InputError, match=r"fit\.coverage_steps is -1"):
        tiny(fit={"coverage_steps": -1})
    with pytest.raises(InputError, match=r"fit\.coverage_samples is 5: expected at least 6"):
        tiny(fit={"coverage_samples": 5})


class OwnAdversary(Adversarial):
    """Somebody else's loss, which knows nothing of compiling and has a network of its own."""

    compiles = False

    class network(Discriminator):
        def forward(self, images):
            assert len(images) > 1, "asked about a single image, which such a network need not take"
            return super().forward(images)

    def __init__(self, *common, seed, finish, processes):
        super().__init__(*common, seed=seed, finish=finish, processes=processes)


def test_an_adversary_of_ones_own_need_not_compile(data, tmp_path):
    config = tiny(2, 0, adversarial=AdversarialConfig(loss=OwnAdversary))
    assert (fit(config, data, tmp_path / "run") / "generator.safetensors").is_file()
