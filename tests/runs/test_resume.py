"""A run that is stopped in any way and resumed is, bit by bit, the run that was not."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import dim
from dim.config import (
    AdversarialConfig,
    DataConfig,
    DiscriminatorConfig,
    FitConfig,
    GeneratorConfig,
    MatchingConfig,
    PoolConfig,
    StageConfig,
    TrainConfig,
    to_toml,
)
from dim.data.real import from_dataset, load_data
from dim.errors import InputError
from dim.io import load_tensors
from dim.loop import Interrupted
from dim.nets.generator_file import FILE_NAME, rewrite_claims
from dim.run_folder import read_metrics
from dim.runs import beside
from dim.runs.train import Trainer, fit

ONE, TWO, BATCH = 12, 14, 8


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig())


@pytest.fixture(scope="module")
def config(data):
    """A run of ONE and TWO steps, with everything that has a state: average, cosine, clipping, a pool that is renewed."""
    per_step = BATCH / len(data.train)
    return TrainConfig(
        generator=GeneratorConfig(width=4, latent_dim=6),
        discriminator=DiscriminatorConfig(width=4),
        stage_one=StageConfig(epochs=ONE * per_step, batch_size=BATCH, lr=1e-3),
        stage_two=StageConfig(epochs=TWO * per_step, batch_size=BATCH, lr=1e-3, lr_end=1e-4),
        matching=MatchingConfig(weight=1.0),
        pool=PoolConfig(students=("convnet:width=4", "resnet10:width=8"), members=3, max_age=4, upkeep_every=1),
        fit=FitConfig(
            ema=0.9,
            clip_norm=5.0,
            trackers=(),
            device="cpu",
            log_steps=1,
            sample_steps=5,
            checkpoint_minutes=0.0,
            checkpoint_steps=3,
        ),
    )


@pytest.fixture(scope="module")
def whole(config, data, tmp_path_factory):
    """The run that was not stopped."""
    return fit(config, data, tmp_path_factory.mktemp("whole") / "run")


def require_same_run(run: Path, whole: Path) -> None:
    for name in ("generator.safetensors", "checkpoint.safetensors"):
        own, _ = load_tensors(run / name)
        expected, _ = load_tensors(whole / name)
        assert own.keys() == expected.keys()
        different = [key for key in own if not torch.equal(own[key], expected[key])]
        assert not different, f"{name}: {different[:5]}"
    records = [read_metrics(path) for path in (run, whole)]
    for own, expected in zip(*records, strict=True):
        assert {**own, "seconds": 0} == {**expected, "seconds": 0}
    assert sorted(f.name for f in (run / "samples").iterdir()) == sorted(f.name for f in (whole / "samples").iterdir())
    assert not [file for file in run.rglob("*") if file.name.endswith((".tmp", ".old"))]


def test_the_run_is_long_enough_to_be_stopped_everywhere(whole):
    tensors, metadata = load_tensors(whole / "checkpoint.safetensors")
    assert metadata["step"] == ONE + TWO
    generations = [int(value[0]) for name, value in tensors.items() if name.startswith("pool.") and name.endswith("counts")]
    assert max(generations) >= 1  # a member has been renewed


# --- a fault within the process: every moment is cheap ---------------------------------------------------------------------


class Fault(Exception):
    pass


def fail_before(monkeypatch, step: int) -> None:
    original = Trainer.train_step

    def train_step(self, *arguments):
        if self.step == step:
            raise Fault
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", train_step)


@pytest.mark.parametrize("steps", [(1,), (3,), (4, 11), (ONE,), (13,), (16, 20, 25)])
def test_a_run_that_fails_and_resumes(config, data, whole, tmp_path, monkeypatch, steps):
    for position, step in enumerate(steps):
        with monkeypatch.context() as patch:
            fail_before(patch, step)
            with pytest.raises(Fault):
                fit(config, data, tmp_path / "run", resume=position > 0)
    fit(config, data, tmp_path / "run", resume=True)
    require_same_run(tmp_path / "run", whole)


_ADVERSARIAL = {"loss": "relativistic", "augment": "color_crop", "augment_target": 0.5, "augment_images": 50, "gamma_end": 0.01}
_GENERATORS = {
    "dim2023": {"generator": GeneratorConfig(width=4, latent_dim=6)},
    "gan": {
        "generator": GeneratorConfig(name="gan", width=4, latent_dim=6),
        "adversarial": AdversarialConfig(**_ADVERSARIAL, penalty_every=2),
    },
    "diffusion": {"generator": GeneratorConfig(name="diffusion", width=4, steps=2)},
}


@pytest.mark.parametrize("name", _GENERATORS)
@pytest.mark.parametrize(("shape", "classes"), [((1, 28, 28), 2), ((3, 32, 32), 10), ((3, 64, 64), 100)])
def test_every_generator_is_trained_stopped_resumed_and_emitted_from(name, shape, classes, tmp_path, monkeypatch):
    source = torch.Generator().manual_seed(0)
    items = [(torch.randint(0, 256, shape, generator=source, dtype=torch.uint8), n % classes) for n in range(2 * classes)]
    names = [f"class {n}" for n in range(classes)]
    data = from_dataset(items, items, name="toy", class_names=names, config=DataConfig(val_fraction=0.0))
    steps = {"epochs": 3 * 4 / len(data.train), "batch_size": 4, "lr": 1e-3, "beta2_end": 0.99}
    config = TrainConfig(
        **_GENERATORS[name],
        discriminator=DiscriminatorConfig(width=64 if name == "diffusion" else 4),
        stage_one=StageConfig(**steps),
        stage_two=StageConfig(**steps),
        pool=PoolConfig(students=("convnet:width=4",), members=2),
        fit=FitConfig(
            ema=0.9, trackers=(), device="cpu", log_steps=1, sample_steps=0, checkpoint_minutes=0.0, checkpoint_steps=2
        ),
    )
    whole = fit(config, data, tmp_path / "whole")
    with monkeypatch.context() as patch:
        fail_before(patch, 3)
        with pytest.raises(Fault):
            fit(config, data, tmp_path / "run")
    fit(config, data, tmp_path / "run", resume=True)
    require_same_run(tmp_path / "run", whole)
    losses = {key for record in read_metrics(whole) for key in record}
    assert losses >= {"flow", "mean_flow", "matching"} if name == "diffusion" else losses >= {"critic", "adversarial", "matching"}
    sample = dim.sample_set(dim.load_generator(whole), ipc=2)
    assert sample.images.shape == (2 * classes, *shape)


@pytest.mark.parametrize("file_name", ["checkpoint.safetensors", "generator.safetensors"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_run_that_fails_while_saving_and_resumes(config, data, whole, tmp_path, monkeypatch, file_name, moment):
    """The fault strikes at the second checkpoint, before or after a file takes its place."""
    original, count = os.replace, 0

    def replace(source, target):
        nonlocal count
        count += Path(target).name == file_name
        strike = Path(target).name == file_name and count == 2
        if strike and moment == "before":
            raise Fault
        original(source, target)
        if strike:
            raise Fault

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Fault):
            fit(config, data, tmp_path / "run")
    fit(config, data, tmp_path / "run", resume=True)
    require_same_run(tmp_path / "run", whole)


def test_what_a_kill_leaves_behind_is_cleaned_up(config, data, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_before(patch, 8)
        with pytest.raises(Fault):
            fit(config, data, tmp_path / "run")
    run = tmp_path / "run"
    (run / ".checkpoint.safetensors.0a1b2c3d.tmp").write_bytes(b"half")
    (run / "samples" / ".step-0000005.png.0a1b2c3d.tmp").write_bytes(b"half")
    with open(run / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 9, "stage": "one", "crit')
    fit(config, data, run, resume=True)
    require_same_run(run, whole)


@pytest.mark.parametrize("left", [(), (".run.json.0a1b2c3d.tmp",)])
def test_a_run_that_was_killed_before_it_wrote_anything_can_be_resumed(config, data, whole, tmp_path, left):
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).write_text('{"format"')
    fit(config, data, tmp_path / "run", resume=True)
    require_same_run(tmp_path / "run", whole)


def test_a_finished_run_resumes_to_itself(config, data, whole, tmp_path):
    run = fit(config, data, tmp_path / "run")
    rewrite_claims(run / FILE_NAME, [{"a": "claim"}])
    fit(config, data, run, resume=True)
    require_same_run(run, whole)
    assert load_tensors(run / FILE_NAME)[1]["claims"] == [{"a": "claim"}], "it is of the same weights"


def test_a_run_with_experts_goes_on_where_no_compiler_is_found(config, data, tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "_FEWEST", 35)
    config = dataclasses.replace(config, fit=dataclasses.replace(config.fit, experts=1))
    monkeypatch.setattr(beside, "compiler_found", lambda device: True)
    run = fit(config, data, tmp_path / "run")
    before = (run / "experts" / "weights.bin").read_bytes()
    monkeypatch.setattr(beside, "compiler_found", lambda device: False)
    fit(config, data, run, resume=True)
    assert (run / "experts" / "weights.bin").read_bytes() == before
    more = dataclasses.replace(config, fit=dataclasses.replace(config.fit, experts=2))
    with pytest.raises(InputError, match=r"fit.experts is 2 and the run in .* has begun 1: expected 1; remove"):
        fit(more, data, run, resume=True)


def test_a_run_may_be_stopped_from_another_thread_of_python(config, data, tmp_path):
    """Signal handlers belong to the main thread; elsewhere training goes without."""
    failures = []

    def work():
        try:
            fit(config, data, tmp_path / "run")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


# --- signals within the process --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [4, 17])
def test_a_signal_finishes_the_step_saves_and_stops(config, data, whole, tmp_path, monkeypatch, number, step):
    original = Trainer.train_step
    before = signal.getsignal(number)

    def train_step(self, *arguments):
        if self.step == step:
            signal.raise_signal(number)
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        with pytest.raises(Interrupted, match=f"step {step + 1} of {ONE + TWO}.*--resume") as caught:
            fit(config, data, tmp_path / "run")
    assert caught.value.signal_number == number
    assert signal.getsignal(number) == before
    assert load_tensors(tmp_path / "run" / "checkpoint.safetensors")[1]["step"] == step + 1
    fit(config, data, tmp_path / "run", resume=True)
    require_same_run(tmp_path / "run", whole)


def test_a_second_interrupt_stops_at_once_and_can_be_resumed(config, data, whole, tmp_path, monkeypatch):
    original = Trainer.train_step

    def train_step(self, *arguments):
        if self.step == 8:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        with pytest.raises((Interrupted, KeyboardInterrupt)):
            fit(config, data, tmp_path / "run")
    fit(config, data, tmp_path / "run", resume=True)
    require_same_run(tmp_path / "run", whole)


def test_an_interrupt_in_the_middle_of_a_step_does_not_spoil_the_run(config, data, whole, tmp_path, monkeypatch):
    """The second Ctrl-C comes between the discriminator's and the generator's update: half a step must not be saved."""
    original = Trainer._finish_gradients

    def finish(self, parameters):
        parameters = list(parameters)
        if self.step == 8 and parameters[0] is next(self.generator.parameters()):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return original(self, parameters)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_finish_gradients", finish)
        with pytest.raises((Interrupted, KeyboardInterrupt)):
            fit(config, data, tmp_path / "run")
    fit(config, data, tmp_path / "run", resume=True)
    require_same_run(tmp_path / "run", whole)


# --- processes that are killed ---------------------------------------------------------------------------------------------

# Kills its own process, as the kernel would, when a step is reached; so the moment does not depend on the machine's speed.
_SUICIDE = """
import os, signal, sys
import dim.commands.cli
from dim.runs.train import Trainer

step, original = int(sys.argv[1]), Trainer.train_step

def train_step(self, *arguments):
    if self.step == step:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *arguments)

Trainer.train_step = train_step
sys.exit(dim.commands.cli.main(sys.argv[2:]))
"""


def train_arguments(config: TrainConfig, run: Path, *more: str) -> list[str]:
    recipe = run.parent / "recipe.toml"
    recipe.write_text(to_toml(config))
    return ["train", "--recipe", str(recipe), "--out", str(run), *more]


def steps_done(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_text().count("\n")
    except FileNotFoundError:
        return 0


def start_and_wait(arguments: list[str], run: Path, steps: int) -> subprocess.Popen:
    """Start a process and return when the folder shows so many steps."""
    command = [sys.executable, "-m", "dim.commands.cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while steps_done(run) < steps and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return process


def test_a_process_that_kills_itself_at_several_steps(config, data, whole, tmp_path):
    run = tmp_path / "run"
    for position, step in enumerate((7, 19)):
        arguments = train_arguments(config, run, *["--resume"] * (position > 0))
        done = subprocess.run([sys.executable, "-c", _SUICIDE, str(step), *arguments], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert steps_done(run) == step
    fit(config, data, run, resume=True)
    require_same_run(run, whole)


@pytest.fixture(scope="module")
def long(config, data, tmp_path_factory):
    """A longer run, so that a signal from outside arrives before the end."""
    longer = dataclasses.replace(config.stage_two, epochs=90 * BATCH / len(data.train))
    config = dataclasses.replace(config, stage_two=longer, fit=dataclasses.replace(config.fit, sample_steps=0))
    return config, fit(config, data, tmp_path_factory.mktemp("long") / "run")


def test_a_process_that_is_killed_from_outside(long, data, tmp_path):
    """Once in stage one and once in stage two, wherever the process is at that moment."""
    config, whole = long
    run = tmp_path / "run"
    for position, steps in enumerate((2, ONE + 20)):
        process = start_and_wait(train_arguments(config, run, *["--resume"] * (position > 0)), run, steps)
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        assert steps_done(run) < ONE + 90
    fit(config, data, run, resume=True)
    require_same_run(run, whole)


def test_a_process_that_is_terminated_saves_and_resumes(long, data, tmp_path):
    config, whole = long
    run = tmp_path / "run"
    rare = dataclasses.replace(config, fit=dataclasses.replace(config.fit, checkpoint_steps=0))
    process = start_and_wait(train_arguments(rare, run), run, ONE + 3)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert errors.startswith("dim: interrupted at step ")
    assert errors.count("\n") == 1
    assert load_tensors(run / "checkpoint.safetensors")[1]["step"] == steps_done(run) > ONE
    fit(config, data, run, resume=True)
    require_same_run(run, whole)


# --- what may change, and what is refused ------------------------------------------------------------------------------------


@pytest.fixture
def stopped(config, data, tmp_path, monkeypatch):
    """A run that was stopped in stage two."""
    with monkeypatch.context() as patch:
        fail_before(patch, 16)
        with pytest.raises(Fault):
            fit(config, data, tmp_path / "stopped")
    return tmp_path / "stopped"


def contents(run: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_how_often_to_save_and_what_to_aim_at_may_change(config, data, whole, stopped):
    changed = dataclasses.replace(
        config,
        about=dataclasses.replace(config.about, title="renamed"),
        protocol=dataclasses.replace(config.protocol, epochs=7),
        fit=dataclasses.replace(config.fit, checkpoint_steps=0, checkpoint_minutes=1.0),
    )
    fit(changed, data, stopped, resume=True)
    assert dim.load_generator(stopped).info["protocol"]["epochs"] == 7
    require_same_run(stopped, whole)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("generator", "width", 5),
        ("stage_one", "lr", 2e-3),
        ("stage_two", "epochs", 9.0),
        ("stage_two", "betas", (0.5, 0.9)),
        ("pool", "members", 4),
        ("fit", "seed", 1),
        ("fit", "ema", 0.0),
        ("matching", "distance", "pairs"),
    ],
)
def test_other_settings_are_refused_and_named(config, data, stopped, section, key, value):
    before = contents(stopped)
    changed = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{key: value})})
    with pytest.raises(InputError, match=rf"{section}\.{key}.*same settings"):
        fit(changed, data, stopped, resume=True)
    assert contents(stopped) == before


def test_other_data_is_refused(config, stopped):
    before = contents(stopped)
    other = load_data(DataConfig(split_seed=1))
    with pytest.raises(InputError, match="other data"):
        fit(config, other, stopped, resume=True)
    assert contents(stopped) == before


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"x" * 99])
def test_a_damaged_checkpoint_is_refused(config, data, stopped, damage):
    checkpoint = stopped / "checkpoint.safetensors"
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(InputError, match=r"checkpoint\.safetensors"):
        fit(config, data, stopped, resume=True)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"config": {}}'])
def test_a_damaged_description_is_refused(config, data, stopped, content):
    (stopped / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json"):
        fit(config, data, stopped, resume=True)
