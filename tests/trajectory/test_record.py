"""Recording experts: they are ordinary training, they are stored as promised, and a recording that is stopped goes on exactly."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dim import rng
from dim.augment import Augment
from dim.commands.cli import main
from dim.config import DataConfig, ExpertsConfig, RecordConfig, TrajectoryRecipe, to_dict, to_toml
from dim.data.real import EpochBatches, load_data
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.features.classifier import accuracy
from dim.io import load_tensors, read_json
from dim.loop import Interrupted, NonFiniteError
from dim.nets.student import build_student
from dim.run_folder import read_metrics
from dim.trajectory import record as module
from dim.trajectory.record import gsam_gradient, record
from dim.trajectory.store import ExpertRecord, ExpertStore, to_waypoints

STUDENT = "convnet:width=8,depth=2"


def known(store: ExpertStore) -> dict[int, ExpertRecord]:
    """Records without the digests of the weights."""
    return {expert: dataclasses.replace(record, digests=()) for expert, record in store.records.items()}


def settings(*, student: str = STUDENT, zca: bool = False, **experts) -> RecordConfig:
    """Two short experts."""
    short = {"count": 2, "epochs": 2.0, "batch_size": 256, "lr": 0.05, "augment": "", "checkpoint_minutes": 0.0}
    return RecordConfig(student=student, zca=zca, experts=ExpertsConfig(**{**short, **experts}))


def all_weights(store: ExpertStore) -> torch.Tensor:
    """(experts, checkpoints, P)."""
    places = range(len(store.layout.moments))
    return torch.stack([torch.stack([store.weights(expert, k) for k in places]) for expert in range(store.layout.experts)])


def flat(net: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in net.parameters()])


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """Two experts that learn something."""
    config = settings(epochs=4.0, batch_size=64, lr=0.1, momentum=0.5)
    return record(config, digits, tmp_path_factory.mktemp("trained") / "store")


# --- what is recorded --------------------------------------------------------------------------------------------------------


def test_weights_change_from_moment_to_moment_and_from_expert_to_expert(trained):
    weights = all_weights(trained)
    assert weights.shape == (2, 5, trained.layout.parameters)
    assert weights.isfinite().all()
    assert ((weights[:, 1:] - weights[:, :-1]).norm(dim=2) > 0.05).all()
    assert (weights[0] - weights[1]).norm(dim=1).min() > 1


def test_the_layout_and_the_run_say_what_was_recorded(trained, digits):
    assert trained.layout.moments == (0, 1, 2, 3, 4)
    assert trained.layout.full
    assert trained.complete
    net = build_student(STUDENT, digits.spec, seed=0)
    assert trained.layout.tensors == tuple((name, p.numel()) for name, p in net.named_parameters())
    description = read_json(trained.folder / "run.json")
    assert description["kind"] == "experts"
    assert description["spec"]["fingerprint"] == digits.spec.fingerprint
    assert description["config"]["experts"]["momentum"] == 0.5
    assert sorted(file.name for file in trained.folder.iterdir()) == [
        ".lock",
        "experts.json",
        "metrics.jsonl",
        "run.json",
        "weights.bin",
    ]


def test_path_lengths_are_those_of_the_weights(trained):
    sizes = [size for _, size in trained.layout.tensors]
    for expert, weights in enumerate(all_weights(trained)):
        expected = torch.stack([part.norm(dim=1) for part in weights.diff(dim=0).split(sizes, dim=1)], dim=1)
        torch.testing.assert_close(torch.tensor(trained.records[expert].lengths), expected, rtol=1e-4, atol=1e-5)


def test_accuracies_are_those_of_the_networks(trained, digits):
    net = build_student(STUDENT, digits.spec, seed=0).eval()
    for expert, weights in enumerate(all_weights(trained)):
        own = trained.records[expert]
        for position, theta in enumerate(weights):
            torch.nn.utils.vector_to_parameters(theta, net.parameters())
            expected = accuracy(net, digits.val, torch.device("cpu"))
            assert own.accuracies[position] == pytest.approx(expected, abs=0.01)
        assert own.test_accuracy == pytest.approx(accuracy(net, digits.test, torch.device("cpu")), abs=0.01)
        assert own.accuracies[0] < 35  # nothing learnt yet
        assert own.accuracies[-1] > 75
        assert own.test_accuracy > 75


def test_accuracy_is_of_training_images_if_nothing_is_held_out(tmp_path):
    config = dataclasses.replace(settings(count=1, epochs=1.0), data=DataConfig(val_fraction=0.0))
    data = load_data(config.data)
    store = record(config, data, tmp_path / "store")
    net = build_student(STUDENT, data.spec, seed=0).eval()
    torch.nn.utils.vector_to_parameters(store.weights(0, 1), net.parameters())
    expected = accuracy(net, data.train, torch.device("cpu"))  # fewer than 2,000 images: all of them
    assert store.records[0].accuracies[1] == pytest.approx(expected, abs=0.01)


def test_metrics_have_a_record_for_every_moment_and_losses_fall(trained):
    records = read_metrics(trained.folder)
    assert [(r["expert"], r["moment"]) for r in records] == [(expert, moment) for expert in range(2) for moment in range(1, 5)]
    assert [r["step"] for r in records] == sorted({r["step"] for r in records})
    for expert in range(2):
        losses = [r["loss"] for r in records if r["expert"] == expert]
        assert losses[-1] < 0.7 * losses[0]


def test_an_expert_is_a_function_of_its_number_and_the_seed(digits, tmp_path):
    one = all_weights(record(settings(count=1, epochs=1.0), digits, tmp_path / "one"))
    two = all_weights(record(settings(count=2, epochs=1.0), digits, tmp_path / "two"))
    other = all_weights(record(settings(count=1, epochs=1.0, seed=1), digits, tmp_path / "other"))
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[0, 0], other[0, 0])


# --- training is what it says ------------------------------------------------------------------------------------------------


def trained_by_torch(config: RecordConfig, data, member: int, steps: int) -> torch.Tensor:
    """The path of an expert by `torch.optim.SGD` on the module, and GSAM written out for its tensors: (steps + 1, P)."""
    experts = config.experts
    data = Whitening.fit(data.train, data.spec).data(data) if config.zca else data
    net = build_student(config.student, data.spec, seed=rng.fold(experts.seed, "expert", member))
    optimizer = torch.optim.SGD(net.parameters(), lr=experts.lr, momentum=experts.momentum, weight_decay=experts.weight_decay)
    seed = rng.fold(experts.seed, "expert-batches", member)
    batches = EpochBatches(data.train, experts.batch_size, seed=seed, purpose="expert")
    augment = Augment(experts.augment, data.spec)
    path = [flat(net)]
    for step in range(steps):
        images, labels = batches.at(step)
        images = augment(images, rng.generator(experts.seed, "expert-augment", member, step))
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        if experts.optimizer == "gsam":
            add_gsam(net, images, labels, experts)
        optimizer.step()
        path.append(flat(net))
    return torch.stack(path)


@torch.no_grad()
def add_gsam(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, experts: ExpertsConfig) -> None:
    """Replace gradients by those of GSAM (Zhuang et al. 2022, algorithm 1; scaled as in Kwon et al. 2021 if adaptive)."""
    parameters = list(net.parameters())
    before = [p.clone() for p in parameters]
    plain = [p.grad.clone() for p in parameters]
    scales = [p.abs() if experts.adaptive else torch.ones_like(p) for p in parameters]
    norm = sum(float((t * g).square().sum()) for t, g in zip(scales, plain, strict=True)) ** 0.5
    for p, t, g in zip(parameters, scales, plain, strict=True):
        p.add_(t**2 * g, alpha=experts.rho / norm)
        p.grad = None
    with torch.enable_grad():
        F.cross_entropy(net(images), labels).backward()
    inner = sum(float((p.grad * g).sum()) for p, g in zip(parameters, plain, strict=True))
    square = sum(float(p.grad.square().sum()) for p in parameters)
    for p, old, g in zip(parameters, before, plain, strict=True):
        p.copy_(old)
        p.grad = p.grad - experts.alpha * (g - inner / square * p.grad)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.9, "weight_decay": 0.01},
        {"augment": "color|crop|scale|rotate"},
        {"zca": True, "lr": 0.01},
        {"optimizer": "gsam", "rho": 0.05, "alpha": 0.3},
        {"optimizer": "gsam", "rho": 0.05, "alpha": 0.0, "adaptive": False, "momentum": 0.5},
    ],
    ids=["plain", "momentum and decay", "augmented", "whitened", "gsam", "sam with momentum"],
)
def test_an_expert_is_trained_as_by_an_ordinary_optimiser(digits, tmp_path, changes):
    every = 64 / len(digits.train)  # every step is a moment
    config = settings(**{"epochs": 6 * every, "every": every, "batch_size": 64, **changes})
    own = all_weights(record(config, digits, tmp_path / "store"))
    assert own.shape[1] == 7
    for member in range(2):
        torch.testing.assert_close(own[member], trained_by_torch(config, digits, member, 6), rtol=1e-5, atol=1e-5)
    assert (own[:, 1:] - own[:, :-1]).norm(dim=2).min() > 1e-3


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="needs a C++ compiler")
@pytest.mark.parametrize("changes", [{"momentum": 0.9, "weight_decay": 0.01}, {"together": 2}], ids=["momentum", "together"])
def test_a_compiled_recording_equals_an_eager_one(digits, tmp_path, changes):
    every = 64 / len(digits.train)
    common = {"epochs": 3 * every, "every": every, "batch_size": 64, **changes}
    eager, compiled = (
        all_weights(record(settings(**common, compile=compile), digits, tmp_path / compile)) for compile in ("off", "on")
    )
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


def test_training_in_bfloat16_is_close_to_training_in_float32(trained, digits, tmp_path):
    config = settings(epochs=4.0, batch_size=64, lr=0.1, momentum=0.5, precision="bf16")
    rough = record(config, digits, tmp_path / "rough")
    true, near = all_weights(trained), all_weights(rough)
    assert near.dtype == torch.float32
    assert torch.equal(near[:, 0], true[:, 0])
    assert not torch.equal(near, true)
    moved = [(part[:, -1] - part[:, 0]).flatten() for part in (true, near)]
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.95
    assert read_json(rough.folder / "run.json")["config"]["experts"]["precision"] == "bf16"


def test_a_moment_is_as_many_steps_as_fit_into_it(digits, tmp_path):
    config = settings(count=1, epochs=2.0, every=0.5, batch_size=200)
    store = record(config, digits, tmp_path / "store")
    assert store.layout.moments == (0, 1, 2, 3, 4)
    steps = round(0.5 * len(digits.train) / 200)
    expected = trained_by_torch(config, digits, 0, 4 * steps)[::steps]
    torch.testing.assert_close(all_weights(store)[0], expected, rtol=1e-5, atol=1e-5)


def quartic(theta: torch.Tensor) -> torch.Tensor:
    """Gradient of sum(c x^4) + sum(x_i x_{i+1}), row by row."""
    weights = torch.arange(1.0, theta.shape[1] + 1, dtype=theta.dtype)
    return 4 * weights * theta**3 + theta.roll(1, 1) + theta.roll(-1, 1)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_gsam_gradient_is_its_formula(alpha, adaptive):
    theta = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient = quartic(theta)
    result = gsam_gradient(theta, gradient, quartic, rho=0.1, alpha=alpha, adaptive=adaptive)
    for row in range(3):
        x, g = theta[row], gradient[row]
        t = x.abs() if adaptive else torch.ones_like(x)
        sharp = quartic((x + 0.1 * t**2 * g / (t * g).norm())[None])[0]
        along = (g @ sharp) / (sharp @ sharp) * sharp
        torch.testing.assert_close(result[row], sharp - alpha * (g - along), rtol=1e-9, atol=1e-9)


def test_gsam_without_its_two_additions_is_sharpness_aware_minimisation():
    """Foret et al. 2021: the gradient where the loss is highest, to first order, within rho."""
    theta = torch.randn(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradient = quartic(theta)
    own = gsam_gradient(theta, gradient, quartic, rho=0.2, alpha=0.0, adaptive=False)
    torch.testing.assert_close(own, quartic(theta + 0.2 * F.normalize(gradient, dim=1)), rtol=1e-9, atol=1e-9)


def test_gsam_is_finite_where_the_gradient_is_zero():
    zero = torch.zeros(1, 4)
    assert gsam_gradient(zero, zero, lambda theta: theta, rho=0.1, alpha=0.3, adaptive=True).isfinite().all()


@pytest.mark.parametrize("optimizer", ["sgd", "gsam"])
def test_experts_side_by_side_are_those_one_after_another(digits, tmp_path, optimizer):
    """Three experts two at a time: the last group is smaller."""
    common = {"count": 3, "optimizer": optimizer, "momentum": 0.9, "augment": "color|crop"}
    apart = record(settings(**common), digits, tmp_path / "apart")
    together = record(settings(**common, together=2), digits, tmp_path / "together")
    torch.testing.assert_close(all_weights(together), all_weights(apart), rtol=1e-4, atol=1e-4)
    for expert in range(3):
        first, second = apart.records[expert], together.records[expert]
        torch.testing.assert_close(torch.tensor(second.lengths), torch.tensor(first.lengths), rtol=1e-3, atol=1e-4)
        assert second.accuracies == pytest.approx(first.accuracies, abs=1.0)


# --- storage -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("waypoints", "smooth"), [(3, False), (5, False), (2, True), (4, True)])
def test_recorded_waypoints_are_those_of_the_whole_path(trained, digits, tmp_path, waypoints, smooth):
    config = settings(epochs=4.0, batch_size=64, lr=0.1, momentum=0.5, waypoints=waypoints, smooth=smooth)
    recorded = record(config, digits, tmp_path / "recorded")
    converted = to_waypoints(trained, tmp_path / "converted", waypoints, smooth=smooth)
    assert recorded.layout == converted.layout
    assert recorded.layout.moments == {2: (0, 4), 3: (0, 2, 4), 4: (0, 2, 3, 4), 5: (0, 1, 2, 3, 4)}[waypoints]
    assert torch.equal(all_weights(recorded), all_weights(converted))
    assert known(recorded) == known(converted) == known(trained)
    assert recorded.records == converted.records
    assert read_json(converted.folder / "run.json")["config"] == read_json(recorded.folder / "run.json")["config"]


def test_bfloat16_halves_the_bytes(trained, digits, tmp_path):
    config = settings(epochs=4.0, batch_size=64, lr=0.1, momentum=0.5, storage="bfloat16")
    half = record(config, digits, tmp_path / "half")
    assert (half.folder / "weights.bin").stat().st_size * 2 == (trained.folder / "weights.bin").stat().st_size
    assert half.bytes() * 2 == trained.bytes()
    assert torch.equal(all_weights(half), all_weights(trained).bfloat16().float())  # training itself is in float32
    assert known(half) == known(trained)


# --- a recording that is stopped ---------------------------------------------------------------------------------------------

# Two experts that are recorded in full; and three, two at a time, with all that has a state. Both are 18 steps, three a moment.
_SHORT = {"epochs": 1.5, "every": 0.5, "checkpoint_minutes": 1e-9}
VARIANTS = {
    "one by one": {**_SHORT, "momentum": 0.9, "augment": "color|crop"},
    "side by side": {
        **_SHORT,
        "count": 3,
        "together": 2,
        "momentum": 0.9,
        "optimizer": "gsam",
        "waypoints": 3,
        "smooth": True,
    },
}


@pytest.fixture(scope="module")
def wholes(digits, tmp_path_factory):
    """For every variant settings that save the state after every step, and the recording that was not stopped."""
    configs = {name: settings(**changes) for name, changes in VARIANTS.items()}
    return {
        name: (config, record(config, digits, tmp_path_factory.mktemp("whole") / "store").folder)
        for name, config in configs.items()
    }


@pytest.fixture(params=VARIANTS)
def whole(request, wholes):
    return wholes[request.param]


def require_same_store(store: Path, whole: Path) -> None:
    assert sorted(file.name for file in store.iterdir()) == [".lock", "experts.json", "metrics.jsonl", "run.json", "weights.bin"]
    assert (store / "weights.bin").read_bytes() == (whole / "weights.bin").read_bytes()
    assert read_json(store / "experts.json") == read_json(whole / "experts.json")
    timeless = [[{**line, "seconds": 0} for line in read_metrics(folder)] for folder in (store, whole)]
    assert timeless[0] == timeless[1]


class Fault(Exception):
    pass


def at_step(monkeypatch, count: int, act) -> None:
    """Do something before the step of that number, counted from 0 in this process."""
    original, calls = module._Recorder._step, 0

    def step(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == count + 1:
            act()
        return original(self, *arguments)

    monkeypatch.setattr(module._Recorder, "_step", step)


def fail():
    raise Fault


@pytest.mark.parametrize(
    ("steps", "minutes"), [((0,), 0.0), ((2, 5), 0.0), ((2, 5), 1e-9), ((8, 3), 1e-9), ((9,), 0.0), ((17,), 1e-9)]
)
def test_a_recording_that_fails_and_resumes(whole, digits, tmp_path, monkeypatch, steps, minutes):
    """With a state saved after every step, or with finished experts alone to go on from."""
    config, folder = whole
    config = dataclasses.replace(config, experts=dataclasses.replace(config.experts, checkpoint_minutes=minutes))
    for count in steps:
        with monkeypatch.context() as patch:
            at_step(patch, count, fail)
            with pytest.raises(Fault):
                record(config, digits, tmp_path / "store", resume=True)
    record(config, digits, tmp_path / "store", resume=True)
    require_same_store(tmp_path / "store", folder)


@pytest.mark.parametrize(("count", "moment"), [(1, "before"), (1, "after"), (2, "after")])
def test_a_recording_that_fails_while_an_expert_is_declared_finished(whole, digits, tmp_path, monkeypatch, count, moment):
    """After it, the state of a finished expert is still there, and must not be taken for that of the next."""
    config, folder = whole
    original, calls = ExpertStore.finish, 0

    def finish(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == count and moment == "before":
            raise Fault
        original(self, *arguments)
        if calls == count:
            raise Fault

    with monkeypatch.context() as patch:
        patch.setattr(ExpertStore, "finish", finish)
        with pytest.raises(Fault):
            record(config, digits, tmp_path / "store")
    assert (tmp_path / "store" / "state.safetensors").is_file()
    record(config, digits, tmp_path / "store", resume=True)
    require_same_store(tmp_path / "store", folder)


# Each child is killed by the kernel when it calls something for the n-th time; `after:n` kills it from outside, n ms after
# it started, wherever it is then. Children are forked, so that everything is imported once.
_KILLS = """
import json, os, pathlib, signal, sys, time
import torch._dynamo
from dim.recipes.load import load_recipe_for
from dim.data.real import load_data
from dim.trajectory import record, store

owners = {
    "step": (record._Recorder, "_step"),
    "write": (store.ExpertStore, "write"),
    "replace": (os, "replace"),
    "unlink": (pathlib.Path, "unlink"),
}

def die_at(owner, name, count):
    original, calls = getattr(owner, name), 0

    def call(*arguments, **settings):
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **settings)

    setattr(owner, name, call)

for moments, recipe, out in json.loads(sys.argv[1]):
    config = load_recipe_for("experts", recipe)
    data = load_data(config.data)
    for moment in moments.split():
        name, count = moment.split(":")
        child = os.fork()
        if child == 0:
            if name in owners:
                die_at(*owners[name], int(count))
            record.record(config, data, out, resume=True)
            os._exit(0)
        if name == "after":
            time.sleep(int(count) / 1000)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if name in owners and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"the child that was to die at {moment} ended with status {status}")
"""
CHAINS = {
    "planned": "replace:1 replace:2 step:3 step:4 replace:4 write:3 step:4 unlink:1",
    "whenever": "after:60 after:120",
}


@pytest.fixture(scope="module")
def killed(wholes, tmp_path_factory):
    """Stores whose recording was killed again and again, as processes: at planned moments, and whenever it was."""
    folder, jobs = tmp_path_factory.mktemp("killed"), []
    for variant, (config, _) in wholes.items():
        (folder / f"{variant}.toml").write_text(to_toml(config))
        for name, moments in CHAINS.items():
            jobs.append((moments, *map(str, (folder / f"{variant}.toml", folder / variant / name))))
    command = [sys.executable, "-c", _KILLS, json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_process_that_is_killed_again_and_again(wholes, killed, digits, variant, name):
    config, folder = wholes[variant]
    record(config, digits, killed / variant / name, resume=True)
    require_same_store(killed / variant / name, folder)


@pytest.mark.parametrize(
    ("step", "where", "number"),
    [(4, "in expert 0, step 5 of 9", signal.SIGINT), (8, "after [12] of [23] experts", signal.SIGTERM)],
)
def test_a_signal_saves_the_state_and_says_how_to_continue(whole, digits, tmp_path, monkeypatch, number, step, where):
    config, folder = whole
    config = dataclasses.replace(config, experts=dataclasses.replace(config.experts, checkpoint_minutes=0.0))
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: signal.raise_signal(number))
        with pytest.raises(Interrupted, match=rf"{where}; continue with: dim experts --out .*store --resume") as caught:
            record(config, digits, tmp_path / "store")
    assert caught.value.signal_number == number
    assert signal.getsignal(number) == before
    if step == 4:
        tensors, metadata = load_tensors(tmp_path / "store" / "state.safetensors")
        assert metadata["step"] == 5
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    record(config, digits, tmp_path / "store", resume=True)
    require_same_store(tmp_path / "store", folder)


def test_a_signal_in_the_last_step_is_no_interruption(whole, digits, tmp_path, monkeypatch):
    config, folder = whole
    at_step(monkeypatch, 17, lambda: signal.raise_signal(signal.SIGINT))
    assert record(config, digits, tmp_path / "store").complete
    require_same_store(tmp_path / "store", folder)


def test_a_second_interrupt_stops_at_once_and_can_be_resumed(whole, digits, tmp_path, monkeypatch):
    config, folder = whole

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        at_step(patch, 4, twice)
        with pytest.raises(Interrupted, match="stopped at once in step 5 of 18, without saving; continue with: dim experts"):
            record(config, digits, tmp_path / "store")
    record(config, digits, tmp_path / "store", resume=True)
    require_same_store(tmp_path / "store", folder)


def test_a_finished_recording_has_nothing_left_to_do(whole, digits, tmp_path, monkeypatch):
    config, folder = whole
    record(config, digits, tmp_path / "store")
    at_step(monkeypatch, 0, fail)
    assert record(config, digits, tmp_path / "store", resume=True).complete
    require_same_store(tmp_path / "store", folder)


def test_how_often_to_save_may_change(whole, digits, tmp_path, monkeypatch):
    config, folder = whole
    with monkeypatch.context() as patch:
        at_step(patch, 6, fail)
        with pytest.raises(Fault):
            record(config, digits, tmp_path / "store")
    changed = dataclasses.replace(config.experts, checkpoint_minutes=5.0, device="cpu")
    record(dataclasses.replace(config, experts=changed), digits, tmp_path / "store", resume=True)
    require_same_store(tmp_path / "store", folder)


# --- what is refused ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(digits, tmp_path, monkeypatch):
    """Settings and folder of a recording that was stopped in its second expert."""
    config = settings(**VARIANTS["one by one"])
    with monkeypatch.context() as patch:
        at_step(patch, 11, fail)
        with pytest.raises(Fault):
            record(config, digits, tmp_path / "stopped")
    return config, tmp_path / "stopped"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.04), ("count", 3), ("epochs", 4.0), ("seed", 1), ("optimizer", "gsam"), ("together", 2), ("storage", "bfloat16")],
)
def test_other_settings_are_refused_and_named(digits, stopped, name, value):
    config, folder = stopped
    before = contents(folder)
    changed = dataclasses.replace(config, experts=dataclasses.replace(config.experts, **{name: value}))
    with pytest.raises(InputError, match=rf"experts\.{name}.*same settings"):
        record(changed, digits, folder, resume=True)
    assert contents(folder) == before


@pytest.mark.parametrize(("name", "value"), [("student", "convnet:width=7,depth=2"), ("zca", True)])
def test_another_architecture_or_whitening_is_refused(digits, stopped, name, value):
    config, folder = stopped
    with pytest.raises(InputError, match=rf"{name}.*same settings"):
        record(dataclasses.replace(config, **{name: value}), digits, folder, resume=True)


@pytest.mark.parametrize("other", [DataConfig(split_seed=1), DataConfig(resolution=12)])
def test_other_data_is_refused(stopped, other):
    config, folder = stopped
    before = contents(folder)
    with pytest.raises(InputError, match="other data"):
        record(config, load_data(other), folder, resume=True)
    assert contents(folder) == before


def test_a_folder_that_holds_experts_is_left_alone(digits, stopped):
    config, folder = stopped
    before = contents(folder)
    with pytest.raises(InputError, match="--resume"):
        record(config, digits, folder)
    assert contents(folder) == before


def test_a_folder_that_holds_something_else_is_left_alone(digits, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(InputError, match=str(tmp_path)):
            record(settings(), digits, tmp_path, resume=resume)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize("kind", ["run", "distillation"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_holds_another_kind_of_run_is_left_alone(digits, tmp_path, kind, resume):
    description = {"format": 1, "kind": kind, "config": to_dict(settings()), "spec": digits.spec.to_dict()}
    (tmp_path / "run.json").write_text(json.dumps(description))
    (tmp_path / "checkpoint.safetensors").write_bytes(b"weeks of work")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=str(tmp_path)):
        record(settings(), digits, tmp_path, resume=resume)
    assert contents(tmp_path) == before


def test_a_damaged_state_is_refused(digits, stopped):
    config, folder = stopped
    state = folder / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"state\.safetensors"):
        record(config, digits, folder, resume=True)


@pytest.mark.parametrize("student", ["resnet18:width=8", "resnet10:width=8,norm=batch", "convnet:width=4,norm=batch"])
def test_a_student_with_running_statistics_is_refused(digits, tmp_path, student):
    with pytest.raises(InputError, match=r"running statistics.*norm=") as caught:
        record(settings(student=student), digits, tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("waypoints", "smooth", "most"), [(4, False, 3), (9, False, 3), (3, True, 2)])
def test_more_waypoints_than_moments_are_refused(digits, tmp_path, waypoints, smooth, most):
    with pytest.raises(InputError, match=f"waypoints is {waypoints}: expected 2 to {most}"):
        record(settings(waypoints=waypoints, smooth=smooth), digits, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_weights_that_are_not_finite_stop_the_recording(digits, tmp_path, lr):
    with pytest.raises(NonFiniteError, match=r"expert 0.*not finite at moment 1.*--experts\.lr"):
        record(settings(lr=lr), digits, tmp_path / "store")
    assert ExpertStore.open(tmp_path / "store").records == {}


def test_finished_experts_outlive_one_that_diverges(digits, tmp_path, monkeypatch):
    original, calls = module._Recorder._gradients, 0

    def gradients(self, *arguments):
        nonlocal calls
        gradient, loss = original(self, *arguments)
        calls += 1
        return (gradient * float("nan"), loss) if calls > 12 else (gradient, loss)

    with monkeypatch.context() as patch:
        patch.setattr(module._Recorder, "_gradients", gradients)
        with pytest.raises(NonFiniteError, match="expert 1"):
            record(settings(), digits, tmp_path / "store")
    assert list(ExpertStore.open(tmp_path / "store").records) == [0]
    assert record(settings(), digits, tmp_path / "store", resume=True).complete


def test_a_full_disk_is_found_before_training(digits, tmp_path, monkeypatch, capfd):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    config = settings(count=1, epochs=1.0)
    (tmp_path / "recipe.toml").write_text(to_toml(TrajectoryRecipe(**config.__dict__)))
    arguments = [
        "experts",
        "--recipe",
        str(tmp_path / "recipe.toml"),
        "--out",
        str(tmp_path / "store"),
        "--experts.device",
        "cpu",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        at_step(patch, 0, fail)
        assert main(arguments) == 1
    errors = capfd.readouterr().err
    assert errors.startswith(f"dim: no space left for {tmp_path / 'store' / 'weights.bin'}")
    assert errors.count("\n") == 1
    assert main([*arguments, "--resume"]) == 0
    assert ExpertStore.open(tmp_path / "store").complete
