"""Commands that several processes share: what they make is what one process makes, it is written once, and it resumes."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from launching import launch, run_command

import dim
from dim.commands.cli import main
from dim.config import (
    AdversarialConfig,
    DataConfig,
    DiscriminatorConfig,
    DistillConfig,
    ExpertsConfig,
    GeneratorConfig,
    LabelsConfig,
    MatchingConfig,
    PathMatchingConfig,
    PoolConfig,
    RecordConfig,
    TrainConfig,
    TrajectoryConfig,
    TrajectoryRecipe,
    to_dict,
    to_toml,
)
from dim.io import load_tensors, read_document
from dim.run_folder import load_run_config, read_metrics
from dim.runs.train import Trainer, fit

ROOT = Path(__file__).parents[2]


def recipe(folder: Path, config) -> str:
    """A file with a configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(to_toml(config))
    return str(folder / "recipe.toml")


def timeless(run: Path) -> list[dict]:
    """The numbers that a run recorded, but its times."""
    return [{k: v for k, v in record.items() if k not in ("seconds", "stage")} for record in read_metrics(run)]


def succeed(ended) -> None:
    assert [process.status for process in ended] == [0] * len(ended), [process.error for process in ended]


# --- train ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def configs(six_steps, digits_experts) -> dict[str, TrainConfig]:
    """Runs without batch norm, whose statistics are those of each process's images."""
    ada = {"augment": "color|crop", "augment_target": 0.5, "augment_images": 100}
    pool = PoolConfig(students=("convnet:width=4",), members=2, images="generated")
    path = PathMatchingConfig(weight=0.1, experts=str(digits_experts), steps=2, epochs=0.5, every=2)
    gan = six_steps(adversarial=AdversarialConfig(**ada), pool=pool, path_matching=path, matching=MatchingConfig(weight=1.0))
    other = {"generator": GeneratorConfig(name="diffusion", width=4, steps=2), "discriminator": DiscriminatorConfig()}
    diffusion = dataclasses.replace(six_steps(pool=pool), **other)
    return {"gan": gan, "diffusion": diffusion}


@pytest.fixture(scope="module")
def pairs(configs, digits, tmp_path_factory):
    """For every name the folder of a run of one process, and of the same run of two, with what these printed."""
    made = {}
    for name, config in configs.items():
        folder = tmp_path_factory.mktemp(name)
        command = ("train", "--recipe", recipe(folder, config), "--out", folder / "two")
        made[name] = fit(config, digits, folder / "one"), folder / "two", launch(folder / "launch", run_command, *command)
    return made


@pytest.mark.parametrize("name", ["gan", "diffusion"])
def test_two_processes_train_the_generator_of_one(pairs, name):
    """At the same batch size, which is that over all processes: all networks, and the losses that are recorded.

    Biases that cancel out, as those before a norm do, have a gradient of rounding errors alone, of which Adam makes steps; so
    weights and images are compared.
    """
    one, two, both = pairs[name]
    succeed(both)
    first, second = (load_tensors(run / "checkpoint.safetensors")[0] for run in (one, two))
    assert first.keys() == second.keys()
    compared = [key for key in first if not key.startswith("optimizer") and not key.endswith("bias")]
    assert len(compared) > 50
    for key in compared:
        torch.testing.assert_close(second[key], first[key], rtol=0, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    images = [dim.load_generator(run).sample(torch.arange(10).repeat(5)) for run in (one, two)]
    torch.testing.assert_close(*images, rtol=0, atol=1e-5)
    assert len(timeless(one)) == 6
    for ours, theirs in zip(timeless(two), timeless(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_what_two_processes_leave_is_written_and_told_once(pairs):
    one, two, both = pairs["gan"]
    assert both[0].out.count("generator: ") == 1
    assert both[0].error == both[1].out == both[1].error == ""
    assert sorted(file.name for file in two.iterdir()) == sorted([*(file.name for file in one.iterdir()), "report.html"])
    for run, count in ((one, 1), (two, 2)):
        description = read_document(run / "run.json")
        assert description["processes"] == count
        assert description["began"] == {"processes": count, "threads": torch.get_num_threads()}


def _die_at(step: int, number: int, *command: str) -> None:
    """`dim` with a signal to process 1 before a step."""
    original = Trainer.train_step

    def train_step(self, *arguments):
        if self.step == step and self.processes.rank == 1:
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    Trainer.train_step = train_step
    run_command(*command)


@pytest.fixture
def stopped(configs, tmp_path):
    """Stops the run of two processes before its fourth step by a signal to the second, and says how it ended."""

    def stop(number: int):
        config = dataclasses.replace(configs["gan"], fit=dataclasses.replace(configs["gan"].fit, checkpoint_steps=2))
        command = ("train", "--recipe", recipe(tmp_path, config), "--out", tmp_path / "run")
        return launch(tmp_path / "launch", _die_at, 3, number, *command, seconds=60)

    return stop


def test_a_run_of_which_one_process_is_killed_ends_and_resumes(pairs, stopped, tmp_path):
    first, second = stopped(signal.SIGKILL)
    assert (first.status, second.status) == (1, -signal.SIGKILL)
    assert first.error.splitlines()[0].startswith("dim: the other process has ended without a word (killed")
    assert first.error.count("\n") == 1
    run = tmp_path / "run"
    assert load_tensors(run / "checkpoint.safetensors")[1]["step"] == 2
    succeed(launch(tmp_path / "again", run_command, "train", "--out", run, "--resume"))
    _, two, _ = pairs["gan"]
    before, after = (load_tensors(folder / "checkpoint.safetensors")[0] for folder in (two, run))
    assert all(torch.equal(after[key], value) for key, value in before.items()), "bit by bit, with as many processes"
    assert timeless(run) == timeless(two)


def test_a_signal_to_one_process_stops_all_after_the_same_step_and_one_process_goes_on(pairs, stopped, tmp_path, capsys):
    first, second = stopped(signal.SIGTERM)
    assert (first.status, second.status) == (128 + signal.SIGTERM,) * 2
    assert first.error == f"dim: interrupted at step 5 of 6; continue with: dim train --out {tmp_path / 'run'} --resume\n"
    assert second.error == ""
    assert load_tensors(tmp_path / "run" / "checkpoint.safetensors")[1]["step"] == 5
    capsys.readouterr()
    assert main(["train", "--out", str(tmp_path / "run"), "--resume"]) == 0
    warning = "goes on with other means than it began with (processes 2, now 1): it does not end the same bit by bit"
    assert capsys.readouterr().err == f"dim: {tmp_path / 'run'} {warning}\n"
    assert read_document(tmp_path / "run" / "run.json")["began"]["processes"] == 2
    images = [dim.load_generator(run).sample(torch.arange(10)) for run in (pairs["gan"][1], tmp_path / "run")]
    torch.testing.assert_close(*images, rtol=0, atol=1e-5)


def test_a_batch_that_cannot_be_shared_is_refused_before_anything_is_made(configs, tmp_path):
    odd = dataclasses.replace(configs["gan"], stage_two=dataclasses.replace(configs["gan"].stage_two, batch_size=15))
    both = launch(tmp_path, run_command, "train", "--recipe", recipe(tmp_path, odd), "--out", tmp_path / "run")
    assert [process.status for process in both] == [2, 2]
    assert both[0].error.startswith("dim: stage_two.batch_size is 15 and there are 2 processes: expected a multiple")
    assert both[0].error.count("\n") == 1
    assert both[1].error == ""
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_refused_by_all_processes(pairs, tmp_path):
    one, _, _ = pairs["gan"]
    before = {file: file.stat().st_mtime_ns for file in one.rglob("*")}
    both = launch(tmp_path, run_command, "train", "--recipe", recipe(tmp_path, load_run_config(one)), "--out", one)
    assert [process.status for process in both] == [2, 2]
    assert "already holds a run" in both[0].error
    assert both[1].error == ""
    assert {file: file.stat().st_mtime_ns for file in one.rglob("*")} == before


# --- experts -------------------------------------------------------------------------------------------------------------------


def short(**experts) -> RecordConfig:
    """Five short experts, which save their state after every step."""
    settings = {"count": 5, "epochs": 1.5, "every": 0.5, "batch_size": 256, "augment": "color|crop", "momentum": 0.9}
    return RecordConfig(
        student="convnet:width=4,depth=2",
        experts=ExpertsConfig(**{**settings, "checkpoint_minutes": 1e-9, "device": "cpu", "compile": "off", **experts}),
    )


VARIANTS = {"one by one": short(), "side by side": short(together=2, waypoints=3, smooth=True, storage="bfloat16")}


@pytest.fixture(scope="module", params=VARIANTS)
def alone(request, tmp_path_factory) -> tuple[RecordConfig, Path]:
    """What one process records."""
    config, folder = VARIANTS[request.param], tmp_path_factory.mktemp("alone")
    assert main(["experts", "--recipe", recipe(folder, config), "--out", str(folder / "store")]) == 0
    return config, folder / "store"


def require_same_store(store: Path, alone: Path) -> None:
    names = {file.name for file in store.iterdir()} - {".lock"}
    assert names == {"experts.json", "metrics.jsonl", "run.json", "weights.bin"}
    assert (store / "weights.bin").read_bytes() == (alone / "weights.bin").read_bytes()
    assert read_document(store / "experts.json") == read_document(alone / "experts.json")
    assert timeless(store) == timeless(alone)


def _killed_at(counts: dict[int, int], *command: str, states: int = 0) -> None:
    """`dim` with processes killed before their n-th step, by rank, when so many have saved a state."""
    from dim.trajectory.record import _Recorder

    original, calls = _Recorder._step, 0

    def step(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == counts.get(self.processes.rank):
            store, end = Path(command[command.index("--out") + 1]), time.monotonic() + 60
            while len(list(store.glob("recording-*/state.safetensors"))) < states and time.monotonic() < end:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments)

    _Recorder._step = step
    run_command(*command)


def test_two_processes_record_the_store_of_one(alone, tmp_path):
    config, store = alone
    both = launch(tmp_path, run_command, "experts", "--recipe", recipe(tmp_path, config), "--out", tmp_path / "store")
    succeed(both)
    require_same_store(tmp_path / "store", store)
    assert both[0].out.count("5 experts of ") == 1
    assert both[1].out == both[1].error == ""


@pytest.mark.parametrize("later", [2, 1, 3])
def test_a_recording_of_which_processes_are_killed_is_resumed_by_any_number(alone, tmp_path, later):
    """Killed in their first and second experts, with one finished; the state that each had saved is gone on from."""
    config, store = alone
    command = ("experts", "--recipe", recipe(tmp_path, config), "--out", tmp_path / "store")
    ended = launch(tmp_path / "first", _killed_at, {0: 12, 1: 5}, *command, seconds=60)
    assert ended[1].status == -signal.SIGKILL
    assert ended[0].status != 0
    begun = [folder.name for folder in (tmp_path / "store").glob("recording-*/state.safetensors")]
    assert begun
    if later == 1:
        assert main([*map(str, command), "--resume"]) == 0
    else:
        ended = launch(tmp_path / "later", run_command, *command, "--resume", world=later)
        succeed(ended)
        assert all(process.error == "" for process in ended), "an expert is the same whatever the number of processes"
    require_same_store(tmp_path / "store", store)


def test_a_recording_that_one_process_began_is_finished_by_two(alone, tmp_path):
    config, store = alone
    command = ("experts", "--recipe", recipe(tmp_path, config), "--out", tmp_path / "store")
    (ended,) = launch(tmp_path / "first", _killed_at, {0: 12}, *command, world=1)
    assert ended.status == -signal.SIGKILL
    assert (tmp_path / "store" / "state.safetensors").is_file()
    succeed(launch(tmp_path / "later", run_command, *command, "--resume"))
    require_same_store(tmp_path / "store", store)


def _ended_between(group: int, *command: str) -> None:
    """`dim` of which the main process is asked to end when it has taken a group's experts into the store, and works on none."""
    from dim.trajectory import record

    original, calls = record.collect, 0

    def collect(store):
        nonlocal calls
        original(store)
        calls += 1  # the first is before all groups
        if calls == group + 1:
            os.kill(os.getpid(), signal.SIGTERM)

    record.collect = collect
    run_command(*command)


@pytest.mark.parametrize("group", [1, 3], ids=["before another", "after its last"])
def test_a_recording_that_is_asked_to_end_between_two_experts_says_how_to_go_on(alone, tmp_path, group):
    config, store = alone
    groups = -(-config.experts.count // (2 * config.experts.together))  # of the main process
    command = ("experts", "--recipe", recipe(tmp_path, config), "--out", tmp_path / "store")
    ended = launch(tmp_path / "first", _ended_between, min(group, groups), *command, seconds=60)
    assert ended[0].status == 128 + signal.SIGTERM
    where = "while the processes were recording experts"
    assert ended[0].error == f"dim: interrupted {where}; continue with: dim experts --out {tmp_path / 'store'} --resume\n"
    succeed(launch(tmp_path / "later", run_command, *command, "--resume"))
    require_same_store(tmp_path / "store", store)


def torchrun(*command, seconds: float) -> subprocess.CompletedProcess:
    """A program on two processes, as a user starts it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *map(str, command)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False)


@pytest.mark.parametrize("alone", ["one by one"], indirect=True)
def test_torchrun_records_experts(alone, tmp_path):
    config, store = alone
    options = ("--recipe", recipe(tmp_path, config), "--out", tmp_path / "store")
    done = torchrun("train/experts.py", *options, seconds=240)
    assert done.returncode == 0, done.stderr
    require_same_store(tmp_path / "store", store)


_SUICIDE = """
import sys
sys.path[:0] = {paths!r}
from test_together import _killed_at

_killed_at({{1: 5}}, *sys.argv[1:], states=2)
"""


def test_torchrun_ends_the_processes_of_which_one_is_killed(tmp_path):
    """It asks the others to end as soon as one is gone; they save their state first."""
    (tmp_path / "suicide.py").write_text(_SUICIDE.format(paths=[str(ROOT / "tests" / "runs"), str(ROOT / "tests")]))
    store = tmp_path / "store"
    options = ("experts", "--recipe", recipe(tmp_path, short(count=200)), "--out", store)
    done = torchrun(tmp_path / "suicide.py", *options, seconds=100)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("dim: ")]
    where = "while the processes were recording experts"
    assert line == f"dim: interrupted {where}; continue with: dim experts --out {store} --resume"
    assert list(store.glob("recording-*/state.safetensors")), "the other may just have finished an expert, which leaves none"


# --- distill -------------------------------------------------------------------------------------------------------------------


def distilled(**changes) -> TrajectoryRecipe:
    """Two iterations on experts of the fixture `digits_experts`."""
    settings = {"steps": 2, "epochs": 1, "max_start": 1, "experts": 4, **changes.pop("trajectory", {})}
    return TrajectoryRecipe(
        student="convnet:width=4,depth=2",
        trajectory=TrajectoryConfig(**settings, compile="off"),
        distill=DistillConfig(iterations=3, device="cpu", log_steps=1, checkpoint_minutes=0.0),
        **changes,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trajectory": {"together": True}, "labels": LabelsConfig(kind="teacher")},
        {"labels": LabelsConfig(kind="learned", init="right"), "trajectory": {"batch_size": 5}},
    ],
    ids=["one by one", "together, labelled by them", "learned labels"],
)
def test_two_processes_distill_the_set_of_one(digits_experts, tmp_path, changes):
    command = ["distill", "--recipe", recipe(tmp_path, distilled(**changes)), "--experts", str(digits_experts)]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    both = launch(tmp_path / "launch", run_command, *command, "--out", tmp_path / "two")
    succeed(both)
    assert both[0].out.count("10 images in ") == 1
    assert both[1].out == both[1].error == ""
    first, second = (load_tensors(tmp_path / run / "checkpoint.safetensors")[0] for run in ("one", "two"))
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-5)
    assert not torch.equal(first["values"], dim.load_set(tmp_path / "one").images)
    for ours, theirs in zip(timeless(tmp_path / "two"), timeless(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)


def test_processes_that_cannot_share_the_experts_of_an_iteration_are_refused(digits_experts, tmp_path):
    config = distilled(trajectory={"experts": 1})
    command = ("distill", "--recipe", recipe(tmp_path, config), "--experts", digits_experts, "--out", tmp_path / "set")
    both = launch(tmp_path / "launch", run_command, *command)
    assert [process.status for process in both] == [2, 2]
    assert both[0].error.startswith(
        "dim: trajectory.experts, which they share in every iteration, is 1 and there are 2 processes"
    )
    assert both[0].error.count("\n") == 1
    assert both[1].error == ""
    assert not (tmp_path / "set").exists()


# --- evaluate, compare, coverage -----------------------------------------------------------------------------------------------

PROTOCOL = ("--seeds", "3", "--students", "convnet:width=4,depth=2", "--protocol.epochs", "3")


@pytest.fixture(scope="module")
def scored(digits_gan, tmp_path_factory):
    """A set of an untrained generator."""
    folder = tmp_path_factory.mktemp("scored")
    subject = dim.sample_set(digits_gan, ipc=2)
    subject.info["data"] = to_dict(DataConfig())
    subject.save(folder / "set")
    return folder / "set"


def scores(path: Path, kind: str = "scores") -> list[dict]:
    """Rows without their times."""
    return [{**row, "seconds": 0, "made": {**row.get("made", {}), "seconds": 0}} for row in read_document(path)[kind]]


def test_two_processes_score_as_one(scored, tmp_path):
    """Rows of the set, a coreset that is chosen anew for every seed, and the real data."""
    command = ("evaluate", scored, *PROTOCOL, "--controls", "random", "full", "--protocol.full-epochs", "1", "--json")
    command = list(map(str, command))
    assert main([*command, str(tmp_path / "one.json")]) == 0
    both = launch(tmp_path / "launch", run_command, *command, tmp_path / "two.json")
    succeed(both)
    assert scores(tmp_path / "one.json") == scores(tmp_path / "two.json")
    assert [len(row["accuracies"]) for row in scores(tmp_path / "two.json")] == [3, 3, 3]
    assert both[0].out.count("accuracy, last epoch") == 1
    assert both[0].error.count("convnet:width=4,depth=2: ") == 3
    assert both[1].out == both[1].error == ""
    assert sorted(file.name for file in tmp_path.iterdir()) == ["launch", "one.json", "two.json"]


@pytest.mark.parametrize("name", ["compare", "coverage"])
def test_what_processes_do_not_share_is_done_by_the_main_one(scored, tmp_path, name):
    options = PROTOCOL if name == "compare" else ("--samples", "10")
    both = launch(tmp_path / "launch", run_command, name, scored, *options, "--json", tmp_path / "table.json")
    succeed(both)
    assert (tmp_path / "table.json").is_file()
    assert both[0].out
    assert both[1].out == both[1].error == ""
