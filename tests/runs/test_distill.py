"""Distilling pixels: initial sets, the loop and its guards, what is stored, exact resumption, and what is refused."""

import dataclasses
import importlib
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import dim
from dim import rng
from dim.config import DataConfig, ExpertsConfig, GeneratorConfig, RecordConfig, TrajectoryRecipe, from_dict, to_dict, to_toml
from dim.data.real import RealData, from_dataset, load_data
from dim.data.splits import ArraySplit
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.io import load_tensors, read_document, write_document
from dim.loop import Interrupted, NonFiniteError
from dim.nets.generator import build_generator
from dim.nets.student import build_student
from dim.objectives.trajectory import TrajectoryMatching
from dim.run_folder import read_metrics
from dim.runs.distill import Distiller, distill
from dim.trajectory.flat import FlatNetwork
from dim.trajectory.initial import confident_images, ensemble_logits
from dim.trajectory.record import record
from dim.trajectory.store import ExpertStore, to_waypoints

STUDENT = "convnet:width=8,depth=2"
BASE = {
    "trajectory": {"steps": 3, "epochs": 1, "max_start": 3, "augment": "color|crop"},
    "images": {"lr": 50.0},
    "step_size": {"initial": 0.05, "lr": 1e-3},
    "distill": {"iterations": 3, "checkpoint_minutes": 0.0, "sample_steps": 0, "log_steps": 1},
    "protocol": {"students": [STUDENT], "epochs": 2, "augment": ""},
}


def recipe(*, student: str = STUDENT, zca: bool = False, **sections) -> TrajectoryRecipe:
    """Three iterations of three student steps; sections are laid over that."""
    merged = {name: {**BASE.get(name, {}), **sections.get(name, {})} for name in {*BASE, *sections}}
    return from_dict(TrajectoryRecipe, {"student": student, "zca": zca, **merged})


def recorded(data, folder: Path, *, zca: bool = False, **changes) -> Path:
    settings = {"count": 3, "epochs": 4.0, "batch_size": 64, "lr": 0.1, "momentum": 0.5, "augment": "", **changes}
    return record(RecordConfig(student=STUDENT, zca=zca, experts=ExpertsConfig(**settings)), data, folder).folder


@pytest.fixture(scope="module")
def experts(digits, tmp_path_factory):
    """Three experts of four epochs."""
    return recorded(digits, tmp_path_factory.mktemp("experts") / "store")


@pytest.fixture(scope="module")
def white_experts(digits, tmp_path_factory):
    """Two experts of two epochs on whitened images."""
    return recorded(digits, tmp_path_factory.mktemp("white") / "store", zca=True, count=2, epochs=2.0, lr=0.02)


@pytest.fixture(scope="module")
def network(digits):
    return FlatNetwork(STUDENT, digits.spec)


def metrics(out: Path) -> list[dict]:
    return read_metrics(out)


def state(out: Path) -> dict[str, torch.Tensor]:
    return load_tensors(out / "checkpoint.safetensors")[0]


def real_images(data) -> torch.Tensor:
    return data.train.batch(torch.arange(len(data.train)))[0]


# --- initial sets ------------------------------------------------------------------------------------------------------------


def initial(digits, experts, out: Path, init: str, kind: str = "hard", ipc: int = 2, seed: int = 0):
    """The set of no iterations."""
    sections = {"images": {"init": init, "ipc": ipc}, "labels": {"kind": kind}, "distill": {"iterations": 0, "seed": seed}}
    distill(recipe(**sections), digits, experts, out)
    return dim.load_set(out)


def require_real(subject, data) -> None:
    """Every image is another real training image of its class."""
    images, _ = subject.tensors()
    distances = torch.cdist(images.flatten(1), real_images(data).flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.argmin(1)
    assert distances.min(1).values.max() < 1e-4
    assert torch.equal(data.train.labels[nearest], subject.labels)
    assert len(set(nearest.tolist())) == len(subject)


def test_no_iterations_leave_the_initial_set(digits, experts, tmp_path):
    subject = initial(digits, experts, tmp_path / "set", "real")
    assert subject.labels.tolist() == list(range(10)) * 2
    assert subject.ipc == 2
    assert subject.soft is None
    assert subject.info["iterations"] == 0
    assert subject.info["step_size"] == pytest.approx(0.05)
    require_real(subject, digits)
    assert len(list((tmp_path / "set" / "samples").iterdir())) == 1
    other = initial(digits, experts, tmp_path / "other", "real", seed=1)
    assert not torch.equal(subject.images, other.images)


def test_confident_images_are_real_ones_that_the_judge_gets_right(digits, experts, network, tmp_path):
    subject = initial(digits, experts, tmp_path / "set", "confident", ipc=12)
    require_real(subject, digits)
    judge = ExpertStore.open(experts).weights(rng.fold(0, "init-expert") % 3, 4)
    assert torch.equal(network.predict(judge, subject.images).argmax(1), subject.labels)
    # Not for nothing: there are real images that it gets wrong.
    assert not torch.equal(network.predict(judge, real_images(digits)).argmax(1), digits.train.labels)


class Judges:
    """Stands in for a store and its network: which training images every expert gets right is a table. Image number n has the
    value n in all its pixels, and logits say its class or another one."""

    device = torch.device("cpu")
    layout = SimpleNamespace(moments=(0, 1), experts=3)

    def __init__(self, labels: torch.Tensor, right: list[set[int]]) -> None:
        images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
        train = ArraySplit(images, labels, "cpu")
        spec = SimpleNamespace(num_classes=2, image_bytes=1)
        self.data, self.right, self.asked = RealData(spec, train, train, train), right, []

    def weights(self, expert: int, position: int) -> torch.Tensor:
        assert position == 1, "not the last moment"
        return torch.tensor(expert)

    def numbers(self, images: torch.Tensor) -> list[int]:
        return ((images[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()

    def predict(self, theta: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        numbers = self.numbers(images)
        assert numbers, "asked about no images"
        self.asked.append((int(theta), tuple(numbers)))
        labels = self.data.train.labels[numbers]
        right = torch.tensor([number in self.right[int(theta)] for number in numbers])
        return F.one_hot(torch.where(right, labels, 1 - labels), 2).float()

    def chosen(self, ipc: int, seed: int = 0) -> dict[int, list[int]]:
        """Numbers of the chosen images of either class."""
        images = confident_images(self, self, self.data, ipc, seed)
        numbers = self.numbers(images)
        return {0: numbers[0::2], 1: numbers[1::2]}


def shuffled(members: list[int], label: int, seed: int = 0) -> list[int]:
    """The order in which images of a class are looked at."""
    order = torch.randperm(len(members), generator=rng.generator(seed, "init-confident", label))
    return [members[place] for place in order.tolist()]


@pytest.mark.parametrize("seed", range(6))
def test_experts_are_asked_in_turn_until_there_are_enough_confident_images(seed):
    """Images 0 to 9 are of class 0, 10 to 19 of class 1. Of class 0 every expert gets three right, of class 1 nine. Of the first
    come as many as the drawn expert gets right, then those that the next one does, without repeats; the second is the drawn
    expert's alone."""
    labels = torch.arange(20) // 10
    right = [{0, 1, 2}, {2, 3, 4}, {4, 5, 6}]
    first = rng.fold(seed, "init-expert") % 3
    order = shuffled(list(range(10)), 0, seed)
    wanted = []
    for expert in (first, (first + 1) % 3, (first + 2) % 3):
        wanted += [number for number in order if number in right[expert] and number not in wanted]
    assert len(wanted) == 7
    judges = Judges(labels, [some | set(range(10, 19)) for some in right])
    sure = [number for number in shuffled(list(range(10, 20)), 1, seed) if number != 19]
    for ipc in range(1, 8):
        judges.asked.clear()
        assert judges.chosen(ipc, seed) == {0: wanted[:ipc], 1: sure[:ipc]}
        experts = [expert for expert, numbers in judges.asked if min(numbers) < 10]
        needed = 1 if ipc <= 3 else 2 if ipc <= len(right[first] | right[(first + 1) % 3]) else 3
        assert experts == [(first + place) % 3 for place in range(needed)], "asked more experts than it had to"
    with pytest.raises(InputError, match=r"the experts get 7 training images of class 0 right: 8 were.*--images\.init real"):
        judges.chosen(8, seed)


def test_confident_images_are_refused_only_where_all_experts_together_have_too_few():
    """Also where they get a whole class right, and the class is too small."""
    labels = torch.tensor([0, 0, 1, 1])
    none = Judges(labels, [{0, 1}, {0, 1}, {0, 1}])
    with pytest.raises(InputError, match="the experts get 0 training images of class 1 right: 1 were asked for"):
        none.chosen(1)
    first = rng.fold(0, "init-expert") % 3
    assert [expert for expert, numbers in none.asked if min(numbers) > 1] == [first, (first + 1) % 3, (first + 2) % 3]
    for place in range(3):  # the expert that gets everything right is asked first, second or last
        sure = (first + place) % 3
        only = Judges(labels, [{0, 1, 2, 3} if expert == sure else set() for expert in range(3)])
        assert only.chosen(2) == {0: shuffled([0, 1], 0), 1: shuffled([2, 3], 1)}
        with pytest.raises(InputError, match="the experts get 2 training images of class 0 right: 3 were asked for"):
            only.chosen(3)


def test_confident_images_of_recorded_experts(digits, experts, network):
    """As many as the drawn expert gets right of its worst class are all its own; one more is another expert's, if it has it."""
    store = ExpertStore.open(experts)
    first = rng.fold(0, "init-expert") % 3
    every = torch.stack([network.predict(store.weights(expert, 4), real_images(digits)).argmax(1) for expert in range(3)])
    right = every == digits.train.labels
    counts = torch.bincount(digits.train.labels[right[first]], minlength=10)
    fewest = int(counts.min())
    some = torch.bincount(digits.train.labels[right.any(0)], minlength=10)
    judge = store.weights(first, 4)
    images = confident_images(store, network, digits, fewest, 0)
    labels = torch.arange(10).repeat(fewest)
    assert torch.equal(network.predict(judge, images).argmax(1), labels)
    assert int(some[counts.argmin()]) > fewest, "the case below does not occur"
    images = confident_images(store, network, digits, fewest + 1, 0)
    wrong = network.predict(judge, images).argmax(1) != torch.arange(10).repeat(fewest + 1)
    assert wrong.nonzero().squeeze(1).tolist() == [10 * fewest + label for label in range(10) if counts[label] == fewest]
    with pytest.raises(
        InputError, match=rf"the experts get {int(some.min())} training images of class {int(some.argmin())} right"
    ):
        confident_images(store, network, digits, int(some.min()) + 1, 0)


def test_noise_is_gaussian_in_the_students_coordinates(digits, experts, tmp_path):
    subject = initial(digits, experts, tmp_path / "set", "noise", ipc=20)
    pixels = state(tmp_path / "set")["values"]
    assert float(pixels.mean()) == pytest.approx(0, abs=0.03)
    assert float(pixels.std()) == pytest.approx(1, abs=0.03)
    student = build_student(STUDENT, digits.spec, seed=0)
    torch.testing.assert_close((subject.images - student.mean) / student.std, pixels, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("init", ["real", "confident", "noise"])
def test_learned_labels_begin_as_the_mean_over_experts_that_are_right(digits, experts, network, tmp_path, init):
    subject = initial(digits, experts, tmp_path / "set", init, kind="learned", ipc=4)
    store = ExpertStore.open(experts)
    logits = torch.stack([network.predict(store.weights(expert, 4), subject.images) for expert in range(3)])
    expected = []
    for position, label in enumerate(subject.labels.tolist()):
        own = [each[position] for each in logits if int(each[position].argmax()) == label]
        expected.append(torch.stack(own or list(logits[:, position])).mean(0))
    torch.testing.assert_close(state(tmp_path / "set")["logits"], torch.stack(expected), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(subject.soft, torch.stack(expected).softmax(1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("init", ["real", "confident", "noise"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learned_labels_may_begin_as_those_of_one_expert(digits, experts, network, tmp_path, init, seed):
    """Of the expert that is drawn from the store, at its last moment, whether it is right or not."""
    sections = {"images": {"init": init, "ipc": 12}, "labels": {"kind": "learned", "init": "one"}}
    distill(recipe(**sections, distill={"iterations": 0, "seed": seed}), digits, experts, tmp_path / "set")
    subject, other = dim.load_set(tmp_path / "set"), initial(digits, experts, tmp_path / "other", init, "learned", 12, seed)
    assert torch.equal(subject.images, other.images)
    judge = ExpertStore.open(experts).weights(rng.fold(seed, "init-expert") % 3, 4)
    expected = network.predict(judge, subject.images)
    torch.testing.assert_close(state(tmp_path / "set")["logits"], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(subject.soft, expected.softmax(1), rtol=1e-3, atol=1e-3)
    right = expected.argmax(1) == subject.labels
    assert right.all() if init == "confident" else not right.all(), "the case of a wrong expert does not occur"
    assert (state(tmp_path / "other")["logits"] - expected).abs().max() > 0.1


def test_latents_labels_may_begin_as_those_of_one_expert(digits, experts, network, tmp_path):
    """Also where images are a generator's."""
    generator = build_generator(GeneratorConfig(name="gan", width=4, latent_dim=6), digits.spec, seed=0).eval()
    sections = {**LATENTS, "labels": {"kind": "learned", "init": "one"}, "distill": {"iterations": 0}}
    subject = distill(recipe(**sections), digits, experts, tmp_path / "set", generator=generator)
    judge = ExpertStore.open(experts).weights(rng.fold(0, "init-expert") % 3, 4)
    expected = network.predict(judge, subject.images)
    torch.testing.assert_close(state(tmp_path / "set")["logits"], expected, rtol=1e-3, atol=1e-3)


def test_label_logits_of_images_that_only_some_experts_get_right(digits, experts, network):
    """All three cases occur: all are right, some are, none is."""
    store = ExpertStore.open(experts)
    images = torch.cat((real_images(digits)[:300], torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))))
    labels = torch.cat((digits.train.labels[:300], torch.arange(50) % 10))
    every = torch.stack([network.predict(store.weights(expert, 4), images) for expert in range(3)])
    right = every.argmax(2) == labels
    assert set(right.sum(0).tolist()) >= {0, 3}
    assert {1, 2} & set(right.sum(0).tolist())
    own = ensemble_logits(store, network, images, labels)
    for position in range(350):
        chosen = right[:, position] if right[:, position].any() else torch.ones(3, dtype=torch.bool)
        torch.testing.assert_close(own[position], every[chosen, position].mean(0), rtol=1e-4, atol=1e-4)


# --- iterations --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "gradient"), [("hard", "adjoint"), ("learned", "adjoint"), ("hard", "frozen")])
def test_the_loss_falls(digits, experts, tmp_path, gradient, kind):
    sections = {
        "trajectory": {"steps": 5, "epochs": 1, "max_start": 1, "augment": "", "gradient": gradient},
        "labels": {"kind": kind},
        "distill": {"iterations": 30},
    }
    distill(recipe(**sections), digits, experts, tmp_path / "set")
    losses = [record["trajectory"] for record in metrics(tmp_path / "set")]
    assert len(losses) == 30
    assert statistics.fmean(losses[-5:]) < 0.95 * statistics.fmean(losses[:5])


@pytest.mark.parametrize("gradient", ["adjoint", "unroll", "frozen"])
@pytest.mark.parametrize("kind", ["hard", "learned", "teacher"])
def test_every_gradient_and_kind_of_label_runs(digits, experts, tmp_path, gradient, kind):
    start = initial(digits, experts, tmp_path / "start", "real", kind, ipc=1)
    config = recipe(trajectory={"gradient": gradient, "batch_size": 4}, labels={"kind": kind})
    distill(config, digits, experts, tmp_path / "set")
    subject = dim.load_set(tmp_path / "set")
    assert subject.images.isfinite().all()
    assert (subject.images - start.images).abs().max() > 1e-3
    assert subject.info["step_size"] != start.info["step_size"]
    if kind != "hard":
        torch.testing.assert_close(subject.soft.sum(1), torch.ones(10))
        assert (subject.soft - start.soft).abs().max() > 1e-6


@pytest.mark.parametrize("kind", ["hard", "learned", "teacher"])
def test_adjoint_and_unroll_give_the_same_set(digits, experts, tmp_path, kind):
    for gradient in ("adjoint", "unroll"):
        config = recipe(trajectory={"gradient": gradient, "batch_size": 5}, labels={"kind": kind}, images={"lr": 20.0})
        distill(config, digits, experts, tmp_path / gradient)
    first, second = (dim.load_set(tmp_path / gradient) for gradient in ("adjoint", "unroll"))
    start = initial(digits, experts, tmp_path / "start", "real", ipc=1)
    torch.testing.assert_close(first.images, second.images, rtol=1e-4, atol=1e-4)
    assert (first.images - start.images).abs().max() > 1e-2  # far more than they differ
    if kind != "hard":
        torch.testing.assert_close(first.soft, second.soft, rtol=1e-4, atol=1e-4)
    assert first.info["step_size"] == pytest.approx(second.info["step_size"], rel=1e-4)


@pytest.mark.parametrize("together", [True, False])
def test_several_experts_in_one_iteration(digits, experts, tmp_path, together):
    distill(recipe(trajectory={"experts": 2, "together": together}), digits, experts, tmp_path / "two")
    distill(recipe(), digits, experts, tmp_path / "one")
    assert state(tmp_path / "two")["values"].isfinite().all()
    assert not torch.equal(state(tmp_path / "two")["values"], state(tmp_path / "one")["values"])


def test_experts_on_convex_paths(digits, experts, tmp_path):
    """From a store of waypoints, and from the same waypoints of a full one."""
    to_waypoints(ExpertStore.open(experts), tmp_path / "waypoints", 3)
    settings = {"path": "convex", "waypoints": 3, "continuous": True, "max_start": 2.5}
    for name, folder in (("own", tmp_path / "waypoints"), ("full", experts)):
        distill(recipe(trajectory=settings), digits, folder, tmp_path / name)
    assert torch.equal(state(tmp_path / "own")["values"], state(tmp_path / "full")["values"])


def test_updates_are_those_of_sgd_with_momentum(digits, experts, tmp_path, monkeypatch):
    """Of pixels and label logits, in the students' coordinates; the step size moves along with it, to first order."""
    gradients = []
    original = TrajectoryMatching.accumulate

    def accumulate(self, images, targets, *, real, step):
        losses = original(self, images, targets, real=real, step=step)
        gradients.append((images.grad.clone(), targets.grad.clone(), self.step_size.grad.clone()))
        return losses

    monkeypatch.setattr(TrajectoryMatching, "accumulate", accumulate)
    sections = {
        "images": {"lr": 3.0, "momentum": 0.7},
        "labels": {"kind": "learned", "lr": 0.5, "momentum": 0.3},
        "step_size": {"initial": 0.05, "lr": 1e-7, "momentum": 0.6},
    }
    distill(recipe(**sections), digits, experts, tmp_path / "set")
    distill(recipe(**sections, distill={"iterations": 0}), digits, experts, tmp_path / "start")
    assert len(gradients) == 3
    start, end = state(tmp_path / "start"), state(tmp_path / "set")
    std = 2 * torch.tensor(digits.spec.std).view(1, -1, 1, 1)
    for name, place, rate, momentum in (("values", 0, 3.0, 0.7), ("logits", 1, 0.5, 0.3), ("step_size", 2, 1e-7, 0.6)):
        value, velocity = start[name].double(), 0.0
        for each in gradients:
            gradient = each[place].double() * (std.double() if name == "values" else 1)
            velocity = momentum * velocity + gradient
            value = value - rate * velocity
        torch.testing.assert_close(end[name].double(), value, rtol=1e-5, atol=1e-6 if name != "step_size" else 1e-9)
    assert float(end["step_momentum"]) == pytest.approx(float(velocity), rel=1e-5)
    assert gradients[0][2] != 0


@pytest.mark.parametrize("rate", [1.0, 1e6, 1e30])
def test_the_learned_step_size_stays_positive_and_takes_no_leap(digits, experts, tmp_path, rate):
    config = recipe(step_size={"lr": rate}, distill={"iterations": 12}, images={"lr": 0.0})
    distill(config, digits, experts, tmp_path / "set")
    sizes = [0.05, *(record["step_size"] for record in metrics(tmp_path / "set"))]
    assert min(sizes) > 0
    for before, after in itertools.pairwise(sizes):
        assert 0.499 < after / before < 2.001
    assert max(sizes) / min(sizes) > 1.5


def test_a_run_is_a_function_of_its_seed(digits, experts, tmp_path):
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        distill(recipe(distill={"seed": seed}), digits, experts, tmp_path / name)
    first, again, other = (state(tmp_path / name)["values"] for name in ("first", "again", "other"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- guards ------------------------------------------------------------------------------------------------------------------


def test_updates_with_a_loss_above_the_limit_are_skipped_and_counted(digits, experts, tmp_path):
    distill(recipe(distill={"iterations": 8}), digits, experts, tmp_path / "free")
    limit = statistics.median(record["trajectory"] for record in metrics(tmp_path / "free"))
    config = recipe(distill={"iterations": 8, "skip_above": limit, "sample_steps": 1})
    distill(config, digits, experts, tmp_path / "set")
    records = metrics(tmp_path / "set")
    above = [record["trajectory"] > limit for record in records]
    assert 0 < sum(above) < 8
    assert [record["skipped"] for record in records] == [sum(above[: count + 1]) for count in range(8)]
    assert dim.load_set(tmp_path / "set").info["skipped"] == sum(above)
    sizes = [pytest.approx(0.05), *(record["step_size"] for record in records)]
    assert [before == after for before, after in itertools.pairwise(sizes)] == above  # a skipped one changes nothing


@pytest.mark.parametrize("name", ["images", "step_size", "loss"])
def test_an_update_that_is_not_finite_is_left_out(digits, experts, tmp_path, monkeypatch, name):
    """Everything after it is as if it had not been, momentum included."""
    original = TrajectoryMatching.accumulate

    def run(out, fault):
        def accumulate(self, images, targets, *, real, step):
            losses = original(self, images, targets, real=real, step=step)
            if step == 1:
                if fault == "images":
                    images.grad[0, 0, 0, 0] = float("nan")
                elif fault == "step_size":
                    self.step_size.grad.fill_(float("inf"))
                else:
                    losses["trajectory"] = losses["trajectory"] * float("nan")
            return losses

        with monkeypatch.context() as patch:
            patch.setattr(TrajectoryMatching, "accumulate", accumulate)
            distill(recipe(distill={"log_steps": 3}), digits, experts, out)
        return state(out)

    tensors = run(tmp_path / name, name)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    expected = run(tmp_path / "other", {"images": "loss", "loss": "step_size", "step_size": "images"}[name])
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert metrics(tmp_path / name)[-1]["skipped"] == 1
    finite = [record["trajectory"] for record in metrics(tmp_path / name)]
    assert finite
    assert all(loss == loss for loss in finite)


def test_a_hundred_unusable_updates_in_a_row_give_up(digits, experts, tmp_path):
    config = recipe(trajectory={"steps": 1}, distill={"iterations": 150, "skip_above": 1e-9, "checkpoint_steps": 40})
    with pytest.raises(NonFiniteError, match=r"^100 iterations in a row.*at most 1e-09.*failed\.safetensors.*Try") as caught:
        distill(config, digits, experts, tmp_path / "set")
    assert "\n" not in str(caught.value)
    _, metadata = load_tensors(tmp_path / "set" / "failed.safetensors")
    assert (metadata["step"], metadata["skipped"], metadata["bad"]) == (100, 100, 100)
    assert load_tensors(tmp_path / "set" / "checkpoint.safetensors")[1]["step"] == 80  # the last one that was whole


def test_losses_that_are_not_finite_give_up(digits, experts, tmp_path):
    config = recipe(trajectory={"steps": 1}, step_size={"initial": 1e30}, distill={"iterations": 120})
    with pytest.raises(NonFiniteError, match=r"a finite loss and gradient.*--step-size\.initial"):
        distill(config, digits, experts, tmp_path / "set")
    assert (tmp_path / "set" / "failed.safetensors").is_file()


def test_a_usable_update_starts_the_count_again(digits, experts, tmp_path, monkeypatch):
    def accumulate(self, images, targets, *, real, step):
        images.grad, self.step_size.grad = torch.zeros_like(images), torch.zeros(())
        return {"trajectory": torch.tensor(0.5 if step == 60 else float("inf"))}

    monkeypatch.setattr(TrajectoryMatching, "accumulate", accumulate)
    config = recipe(distill={"iterations": 150, "log_steps": 50})
    assert distill(config, digits, experts, tmp_path / "set").info["skipped"] == 149


# --- what is stored ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def white(digits, white_experts, tmp_path_factory):
    """A set that was learned in whitened coordinates, with learned labels."""
    out = tmp_path_factory.mktemp("white") / "set"
    config = recipe(zca=True, images={"ipc": 2, "lr": 10.0}, labels={"kind": "learned"}, trajectory={"epochs": 1, "max_start": 1})
    return out, distill(config, digits, white_experts, out), config


def test_whitened_pixels_are_stored_as_natural_images(digits, white):
    out, returned, _ = white
    subject = dim.load_set(out)
    assert torch.equal(subject.images, returned.images)
    assert subject.spec == digits.spec
    whitening = Whitening.fit(digits.train, digits.spec)
    torch.testing.assert_close(whitening.whiten(subject.images), state(out)["values"], rtol=0, atol=1e-3)
    # Natural images, near the real ones that they began as: after three iterations still.
    nearest = torch.cdist(subject.images.flatten(1), real_images(digits).flatten(1)).min(1).values
    assert nearest.max() < 0.5 * torch.pdist(real_images(digits)[:50].flatten(1)).mean()


def test_a_set_carries_what_its_score_needs(digits, white):
    out, _, config = white
    subject = dim.load_set(out)
    assert subject.info["protocol"] == json.loads(json.dumps(to_dict(dataclasses.replace(config.protocol, zca=True))))
    assert subject.info["step_size"] == pytest.approx(float(state(out)["step_size"]))
    assert subject.info["step_size"] > 0
    assert subject.info["teacher"] == "learned"
    assert subject.info["iterations"] == 3
    assert subject.info["experts"]["count"] == 2
    assert subject.info["data"]["root"] is None
    torch.testing.assert_close(subject.soft.sum(1), torch.ones(20))
    assert torch.equal(subject.soft, state(out)["logits"].softmax(1))
    (score,) = dim.evaluate(subject, seeds=1, data=digits)
    assert score.labels == "soft (learned)"
    assert score.protocol["zca"]
    assert score.protocol["lr"] == subject.info["step_size"]
    assert (score.ipc, score.steps) == (2, 2)


def test_a_plain_set_says_so(digits, experts, tmp_path):
    config = recipe(protocol={"zca": True})  # the protocol follows the recipe, since that is how it was learned
    distill(config, digits, experts, tmp_path / "set")
    subject = dim.load_set(tmp_path / "set")
    assert subject.info["protocol"]["zca"] is False
    assert "teacher" not in subject.info
    assert subject.info["experts"] == {"count": 3, "bytes": ExpertStore.open(experts).bytes()}
    mean, std = digits.spec.mean_std(subject.images)
    torch.testing.assert_close(subject.images, state(tmp_path / "set")["values"] * std + mean)


def test_teacher_labels_are_the_mean_of_experts_at_the_last_target(digits, experts, network, tmp_path):
    config = recipe(labels={"kind": "teacher"}, trajectory={"max_start": 2, "epochs": 2})
    distill(config, digits, experts, tmp_path / "set")
    subject, store = dim.load_set(tmp_path / "set"), ExpertStore.open(experts)
    expected = torch.stack([network.predict(store.weights(expert, 3), subject.images).softmax(1) for expert in range(3)]).mean(0)
    torch.testing.assert_close(subject.soft, expected, rtol=1e-4, atol=1e-5)
    assert subject.info["teacher"] == "mean of 3 experts"


def test_a_run_leaves_all_that_is_promised(digits, experts, tmp_path):
    out = tmp_path / "set"
    distill(recipe(distill={"iterations": 5, "sample_steps": 2, "log_steps": 2}), digits, experts, out)
    assert sorted(file.name for file in (out / "samples").iterdir()) == [f"step-{step:07d}.png" for step in (2, 4, 5)]
    assert [record["step"] for record in metrics(out)] == [2, 4, 5]
    description = read_document(out / "run.json")
    assert description["kind"] == "distillation"
    assert description["experts"] == str(experts)
    (data_file,) = out.glob("data-*.safetensors")
    names = {".lock", "run.json", "metrics.jsonl", "checkpoint.safetensors", "set.json", "samples", data_file.name}
    assert {file.name for file in out.iterdir()} == names


# --- a run that is stopped ---------------------------------------------------------------------------------------------------

ITERATIONS = 10
VARIANTS = {
    "hard": {"images": {"ipc": 2, "momentum": 0.5}, "trajectory": {"batch_size": 7}},
    "learned": {
        "images": {"init": "confident"},
        "labels": {"kind": "learned"},
        "trajectory": {"experts": 2, "gradient": "unroll"},
    },
    "teacher": {"labels": {"kind": "teacher"}, "trajectory": {"gradient": "frozen", "max_start_at_first": 1, "grows_for": 6}},
}


@pytest.fixture(scope="module")
def wholes(digits, experts, tmp_path_factory):
    """For every variant a recipe that skips about every second update, and its run that was not stopped."""
    found = {}
    for name, sections in VARIANTS.items():
        folder = tmp_path_factory.mktemp(name)
        loop = {"iterations": ITERATIONS, "checkpoint_steps": 3, "sample_steps": 4}
        distill(recipe(**sections, distill=loop), digits, experts, folder / "free")
        limit = statistics.median(record["trajectory"] for record in metrics(folder / "free"))
        config = recipe(**sections, distill={**loop, "skip_above": limit})
        distill(config, digits, experts, folder / "set")
        found[name] = (config, folder / "set")
    return found


@pytest.fixture(params=VARIANTS)
def whole(request, wholes):
    return wholes[request.param]


def plain(values: dict) -> dict:
    return {**values, "seconds": 0}


def require_same_run(run: Path, whole: Path) -> None:
    (own, metadata), (expected, expected_metadata) = (load_tensors(out / "checkpoint.safetensors") for out in (run, whole))
    assert own.keys() == expected.keys()
    different = [key for key in own if not torch.equal(own[key], expected[key])]
    assert not different
    assert plain(metadata) == plain(expected_metadata)
    first, second = dim.load_set(run), dim.load_set(whole)
    assert first.content().keys() == second.content().keys()
    assert all(torch.equal(first.content()[key], second.content()[key]) for key in first.content())
    assert plain(first.info) == plain(second.info)
    assert list(map(plain, metrics(run))) == list(map(plain, metrics(whole)))
    names = [sorted(str(file.relative_to(out)) for file in out.rglob("*")) for out in (run, whole)]
    assert names[0] == names[1]


def test_the_run_has_all_that_has_a_state(whole):
    config, folder = whole
    tensors, metadata = load_tensors(folder / "checkpoint.safetensors")
    expected = {"values", "step_size", "step_momentum", "values.momentum_buffer"}
    assert tensors.keys() == expected | ({"logits", "logits.momentum_buffer"} if config.labels.kind == "learned" else set())
    assert 0 < metadata["skipped"] < ITERATIONS
    assert metadata["step"] == ITERATIONS
    assert all(float(tensor.abs().max()) > 0 for tensor in tensors.values())


class Fault(Exception):
    pass


def at_step(monkeypatch, step: int, act) -> None:
    """Do something before an iteration."""
    original = Distiller.iterate

    def iterate(self):
        if self.step == step:
            act()
        return original(self)

    monkeypatch.setattr(Distiller, "iterate", iterate)


def fail():
    raise Fault


@pytest.mark.parametrize("steps", [(0,), (4, 5), (3, 9)])
def test_a_run_that_fails_and_resumes(whole, digits, experts, tmp_path, monkeypatch, steps):
    config, folder = whole
    for step in steps:
        with monkeypatch.context() as patch:
            at_step(patch, step, fail)
            with pytest.raises(Fault):
                distill(config, digits, experts, tmp_path / "set", resume=True)
    distill(config, digits, experts, tmp_path / "set", resume=True)
    require_same_run(tmp_path / "set", folder)


@pytest.mark.parametrize("name", ["save_png", "save_tensors", "write_into"])
def test_a_run_that_fails_while_saving_and_resumes(wholes, digits, experts, tmp_path, monkeypatch, name):
    """At a step where a checkpoint and a picture are due; nothing is missing afterwards."""
    config, folder = wholes["learned"]
    often = dataclasses.replace(config, distill=dataclasses.replace(config.distill, checkpoint_steps=4))
    module = importlib.import_module("dim.loop" if name == "save_tensors" else "dim.runs.distill")
    with monkeypatch.context() as patch:
        patch.setattr(module, name, lambda *_: fail())
        with pytest.raises(Fault):
            distill(often, digits, experts, tmp_path / "set")
    assert metrics(tmp_path / "set")[-1]["step"] == 4
    distill(config, digits, experts, tmp_path / "set", resume=True)
    require_same_run(tmp_path / "set", folder)


# Each child is killed by the kernel when it calls something for the n-th time; `after:n` kills it from outside, n ms after
# it started, wherever it is then. Children are forked, so that everything is imported once.
_KILLS = """
import json, os, pathlib, signal, sys, time, warnings
import torch._dynamo
from dim.recipes.load import load_recipe
from dim.data.real import load_data
from dim.runs.distill import Distiller, distill

warnings.simplefilter("ignore")
import torch._decomp.decompositions_for_jvp

owners = {
    "step": (Distiller, "iterate"),
    "update": (Distiller, "_update_step_size"),
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

for moments, recipe, experts, out in json.loads(sys.argv[1]):
    config = load_recipe(recipe)
    data = load_data(config.data)
    for moment in moments.split():
        name, count = moment.split(":")
        child = os.fork()
        if child == 0:
            if name in owners:
                die_at(*owners[name], int(count))
            distill(config, data, experts, out, resume=True)
            os._exit(0)
        if name == "after":
            time.sleep(int(count) / 1000)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if name in owners and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"the child that was to die at {moment} ended with status {status}")
"""
CHAINS = {
    "planned": "replace:1 step:5 replace:3 replace:4 update:1 unlink:1",
    "whenever": "after:60 after:120",
}


@pytest.fixture(scope="module")
def killed(wholes, experts, tmp_path_factory):
    """Folders of runs that were killed again and again, as processes: at planned moments, and whenever it was."""
    folder, jobs = tmp_path_factory.mktemp("killed"), []
    for variant, (config, _) in wholes.items():
        (folder / f"{variant}.toml").write_text(to_toml(config))
        for name, moments in CHAINS.items():
            jobs.append((moments, *map(str, (folder / f"{variant}.toml", experts, folder / variant / name))))
    command = [sys.executable, "-c", _KILLS, json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_process_that_is_killed_again_and_again(wholes, killed, digits, experts, variant, name):
    config, folder = wholes[variant]
    distill(config, digits, experts, killed / variant / name, resume=True)
    require_same_run(killed / variant / name, folder)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_signal_saves_the_set_and_says_how_to_continue(wholes, digits, experts, tmp_path, monkeypatch, variant):
    config, folder = wholes[variant]
    number = signal.SIGTERM if variant == "hard" else signal.SIGINT
    out, before = tmp_path / "set", signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: signal.raise_signal(number))
        said = rf"interrupted at iteration 5 of {ITERATIONS}; continue with: dim distill --out {out} --resume"
        with pytest.raises(Interrupted, match=said) as caught:
            distill(config, digits, experts, out)
    assert caught.value.signal_number == number
    assert signal.getsignal(number) == before
    assert load_tensors(out / "checkpoint.safetensors")[1]["step"] == 5
    assert dim.load_set(out).info["iterations"] == 5  # it can be scored as it is
    distill(config, digits, experts, out, resume=True)
    require_same_run(out, folder)


def test_a_signal_in_the_last_iteration_is_no_interruption(whole, digits, experts, tmp_path, monkeypatch):
    config, folder = whole
    at_step(monkeypatch, ITERATIONS - 1, lambda: signal.raise_signal(signal.SIGINT))
    distill(config, digits, experts, tmp_path / "set")
    require_same_run(tmp_path / "set", folder)


def test_the_count_of_unusable_updates_survives(digits, experts, tmp_path, monkeypatch):
    config = recipe(trajectory={"steps": 1}, distill={"iterations": 150, "skip_above": 1e-9})
    with monkeypatch.context() as patch:
        at_step(patch, 59, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted, match="iteration 60"):
            distill(config, digits, experts, tmp_path / "set")
    with pytest.raises(NonFiniteError):
        distill(config, digits, experts, tmp_path / "set", resume=True)
    assert load_tensors(tmp_path / "set" / "failed.safetensors")[1]["step"] == 100


def test_a_finished_run_resumes_to_itself(whole, digits, experts, tmp_path, monkeypatch):
    config, folder = whole
    shutil.copytree(folder, tmp_path / "set")
    at_step(monkeypatch, ITERATIONS, fail)
    distill(config, digits, experts, tmp_path / "set", resume=True)
    require_same_run(tmp_path / "set", folder)


@pytest.fixture(scope="module")
def halted(wholes, digits, experts, tmp_path_factory):
    """A run that was stopped in its seventh iteration."""
    out = tmp_path_factory.mktemp("halted") / "set"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 7, fail)
        with pytest.raises(Fault):
            distill(wholes["learned"][0], digits, experts, out)
    return out


@pytest.fixture
def stopped(wholes, halted, tmp_path):
    """A recipe, the whole run, and a copy of the one that was stopped."""
    shutil.copytree(halted, tmp_path / "stopped")
    return *wholes["learned"], tmp_path / "stopped"


def test_what_the_result_does_not_depend_on_may_change(stopped, digits, experts, tmp_path):
    """How often to save, what to aim at, how experts were to be trained, and where they lie."""
    config, folder, out = stopped
    changed = dataclasses.replace(
        config,
        about=dataclasses.replace(config.about, title="renamed"),
        experts=ExpertsConfig(count=5),
        protocol=dataclasses.replace(config.protocol, epochs=7),
        distill=dataclasses.replace(config.distill, checkpoint_steps=1, checkpoint_minutes=1.0, device="cpu"),
    )
    shutil.copytree(experts, tmp_path / "moved")
    distill(changed, digits, tmp_path / "moved", out, resume=True)
    assert dim.load_set(out).info["protocol"]["epochs"] == 7
    own, expected = state(out), state(folder)
    assert all(torch.equal(own[key], expected[key]) for key in expected)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("trajectory", "steps", 4),
        ("trajectory", "max_start", 2.0),
        ("images", "ipc", 3),
        ("images", "lr", 51.0),
        ("labels", "lr", 2.5),
        ("step_size", "momentum", 0.4),
        ("distill", "iterations", 11),
        ("distill", "seed", 1),
        ("distill", "skip_above", 0.0),
    ],
)
def test_other_settings_are_refused_and_named(stopped, digits, experts, section, key, value):
    config, _, out = stopped
    before = contents(out)
    changed = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{key: value})})
    with pytest.raises(InputError, match=rf"{section}\.{key}.*same settings") as caught:
        distill(changed, digits, experts, out, resume=True)
    assert "\n" not in str(caught.value)
    assert contents(out) == before


def test_other_experts_are_refused(stopped, digits, tmp_path):
    """They fit, but they are not those that the run began with."""
    config, _, out = stopped
    before = contents(out)
    others = recorded(digits, tmp_path / "others", seed=1)
    with pytest.raises(InputError, match="experts"):
        distill(config, digits, others, out, resume=True)
    assert contents(out) == before


@pytest.mark.parametrize("damage", [lambda content: content[:-30], lambda content: b""])
def test_a_damaged_checkpoint_is_refused(stopped, digits, experts, damage):
    config, _, out = stopped
    checkpoint = out / "checkpoint.safetensors"
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(InputError, match=r"checkpoint\.safetensors"):
        distill(config, digits, experts, out, resume=True)


# --- what is refused ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(digits, experts, tmp_path):
    """Distill something that must be refused: the single line that is said."""

    def call(*, data=None, store: Path = experts, **changes) -> str:
        out = tmp_path / "refused"
        with pytest.raises(InputError) as caught:
            distill(recipe(**changes), data or digits, store, out)
        assert "\n" not in str(caught.value)
        assert not out.exists()
        return str(caught.value)

    return call


def test_experts_of_another_architecture(refused, experts):
    message = refused(student="convnet:width=7,depth=2")
    assert str(experts) in message
    assert "student 'convnet:width=8,depth=2': expected 'convnet:width=7,depth=2'" in message


def test_experts_that_saw_other_images(refused, white_experts):
    assert "zca False: expected True" in refused(zca=True)
    assert "zca True: expected False" in refused(store=white_experts)


def test_experts_of_another_resolution(refused):
    message = refused(data=load_data(DataConfig(resolution=12)))
    assert "digits at (1, 8, 8): expected digits at (1, 12, 12)" in message


def test_experts_of_another_data_set(refused):
    source = torch.Generator().manual_seed(0)
    items = [(torch.randint(0, 256, (1, 8, 8), generator=source, dtype=torch.uint8), n % 10) for n in range(60)]
    message = refused(data=from_dataset(items, items, name="letters", class_names="abcdefghij"))
    assert "experts of digits" in message
    assert "expected letters" in message


@pytest.mark.parametrize("data", [DataConfig(split_seed=1), DataConfig(val_fraction=0.2)])
def test_experts_of_another_split(refused, data):
    assert "another split" in refused(data=load_data(data))


def test_an_unfinished_store(refused, experts, tmp_path):
    shutil.copytree(experts, tmp_path / "store")
    values = read_document(tmp_path / "store" / "experts.json")
    del values["records"]["2"]
    write_document(tmp_path / "store" / "experts.json", values)
    message = refused(store=tmp_path / "store")
    assert "2 of 3 experts" in message
    assert "--resume" in message


@pytest.mark.parametrize("keep", [0, 1000, -1])
def test_a_store_that_was_cut_short(refused, experts, tmp_path, keep):
    shutil.copytree(experts, tmp_path / "store")
    whole = (experts / "weights.bin").stat().st_size
    os.truncate(tmp_path / "store" / "weights.bin", keep % whole)
    message = refused(store=tmp_path / "store")
    assert "cut short" in message
    assert f"{whole:,}" in message


@pytest.mark.parametrize("missing", ["weights.bin", "experts.json", "run.json"])
def test_a_store_that_lacks_a_file(refused, experts, tmp_path, missing):
    shutil.copytree(experts, tmp_path / "store")
    (tmp_path / "store" / missing).unlink()
    assert str(tmp_path / "store") in refused(store=tmp_path / "store")


@pytest.mark.parametrize(
    ("changed", "said"), [({"waypoints": 2}, "waypoints 3, and .*waypoints is 2"), ({"smooth": True}, "smooth")]
)
def test_waypoints_that_were_recorded_otherwise(digits, experts, tmp_path, changed, said):
    few = to_waypoints(ExpertStore.open(experts), tmp_path / "waypoints", 3).folder
    path = {"path": "convex", "waypoints": 3}
    distill(recipe(trajectory=path, distill={"iterations": 0}), digits, few, tmp_path / "fits")
    with pytest.raises(InputError, match=said):
        distill(recipe(trajectory={**path, **changed}), digits, few, tmp_path / "out")
    distill(recipe(trajectory={**path, **changed}, distill={"iterations": 0}), digits, experts, tmp_path / "whole")


def test_a_folder_that_is_no_store(refused, tmp_path):
    (tmp_path / "photos").mkdir()
    for path in (tmp_path / "photos", tmp_path / "nowhere"):
        message = refused(store=path)
        assert f"{path} holds no experts" in message
        assert "dim experts" in message


@pytest.mark.parametrize(
    ("window", "reaches"),
    [
        ({"max_start": 4, "epochs": 2}, 5),
        ({"max_start": 3, "epochs": 3}, 5),
        ({"max_start": 9, "epochs": 1, "max_start_at_first": 1, "grows_for": 100}, 9),
        ({"max_start": 4.5, "epochs": 1, "continuous": True}, 4.5),
    ],
)
def test_a_window_beyond_the_recorded_epochs(refused, window, reaches):
    message = refused(trajectory=window)
    assert f"reaches epoch {reaches:g} and the experts were recorded to 4" in message


def test_waypoints_where_every_checkpoint_is_needed(refused, experts, tmp_path):
    to_waypoints(ExpertStore.open(experts), tmp_path / "waypoints", 3)
    message = refused(store=tmp_path / "waypoints")
    assert "waypoints only" in message
    assert "--trajectory.path convex" in message


def test_more_images_than_a_class_has(refused):
    assert "500 were asked for" in refused(images={"ipc": 500})
    assert "500 were asked for" in refused(images={"ipc": 500, "init": "confident"})


def test_a_folder_that_holds_something_else_is_left_alone(digits, experts, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(InputError, match=str(tmp_path)):
            distill(recipe(), digits, experts, tmp_path, resume=resume)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_holds_a_run_is_left_alone(digits, experts, tmp_path):
    distill(recipe(distill={"iterations": 1}), digits, experts, tmp_path / "set")
    before = contents(tmp_path / "set")
    with pytest.raises(InputError, match="--resume"):
        distill(recipe(), digits, experts, tmp_path / "set")
    assert contents(tmp_path / "set") == before


@pytest.mark.parametrize("resume", [False, True])
def test_the_folder_of_the_experts_is_left_alone(digits, experts, tmp_path, resume):
    """The same folder for --experts and --out: nothing may be lost."""
    shutil.copytree(experts, tmp_path / "store")
    before = contents(tmp_path / "store")
    with pytest.raises(InputError, match=str(tmp_path / "store")):
        distill(recipe(), digits, tmp_path / "store", tmp_path / "store", resume=resume)
    assert contents(tmp_path / "store") == before


# --- latents of a generator ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator(digits):
    return build_generator(GeneratorConfig(name="gan", width=4, latent_dim=6), digits.spec, seed=0).eval()


LATENTS = {"images": {"space": "latents", "optimizer": "adam", "lr": 0.05, "ipc": 2}}


def test_latents_begin_as_the_first_images_of_every_class(digits, experts, generator, tmp_path):
    subject = distill(recipe(**LATENTS, distill={"iterations": 0}), digits, experts, tmp_path / "set", generator=generator)
    expected, _ = dim.sample_set(generator, ipc=2, seed=0).tensors()
    torch.testing.assert_close(subject.images, expected, rtol=0, atol=0.005)  # 8 bits there
    assert torch.equal(subject.labels, torch.arange(10).repeat(2))
    assert subject.info["latents"] == 4 * 20 * 6
    assert subject.info["generator"] == sum(4 * value.numel() for value in generator.state_dict().values())


@pytest.mark.parametrize("zca", [False, True])
def test_latents_move_and_images_stay_the_generators(digits, experts, white_experts, generator, tmp_path, zca):
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    changes = {"trajectory": {"steps": 3, "epochs": 1, "max_start": 1, "augment": ""}} if zca else {}
    config = recipe(zca=zca, **LATENTS, **changes, labels={"kind": "learned"})
    subject = distill(config, digits, white_experts if zca else experts, tmp_path / "set", generator=generator)
    latents = state(tmp_path / "set")["values"]
    start = generator.latents(subject.labels, torch.arange(2).repeat_interleave(10), seed=0)
    assert (latents - start).abs().max() > 0.01
    with torch.no_grad():
        torch.testing.assert_close(subject.images, generator(latents, subject.labels), rtol=0, atol=2e-3 if zca else 1e-5)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


def test_latents_follow_the_gradient_of_the_trajectory_loss(digits, experts, generator, tmp_path):
    """The first step of SGD, against the chain rule written out."""
    sections = {"images": {**LATENTS["images"], "optimizer": "sgd", "lr": 2.0, "momentum": 0.0}, "distill": {"iterations": 1}}
    distill(recipe(**sections), digits, experts, tmp_path / "set", generator=generator)
    run = Distiller(
        recipe(**sections), digits, experts, tmp_path / "other", generator=generator, resume=False, device=torch.device("cpu")
    )
    latents = run.values.detach().clone().requires_grad_()
    images = generator(latents, run.labels)
    cut = images.detach().requires_grad_()
    run.objective.accumulate(cut, run.labels, step=0)
    (gradient,) = torch.autograd.grad(images, latents, cut.grad)
    assert gradient.abs().sum() > 0
    torch.testing.assert_close(state(tmp_path / "set")["values"], latents.detach() - 2.0 * gradient, rtol=1e-4, atol=1e-6)


def test_a_run_of_latents_resumes_exactly(digits, experts, generator, tmp_path, monkeypatch):
    config = recipe(**LATENTS, distill={"iterations": 5, "checkpoint_steps": 2})
    distill(config, digits, experts, tmp_path / "whole", generator=generator)
    original = Distiller.iterate

    def iterate(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Distiller, "iterate", iterate)
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            distill(config, digits, experts, tmp_path / "run", generator=generator)
    distill(config, digits, experts, tmp_path / "run", generator=generator, resume=True)
    own, whole = state(tmp_path / "run"), state(tmp_path / "whole")
    assert own.keys() == whole.keys()
    assert all(torch.equal(own[name], whole[name]) for name in own)
    other = build_generator(GeneratorConfig(name="gan", width=4, latent_dim=6), digits.spec, seed=1).eval()
    with pytest.raises(InputError, match="the generator is another than the run"):
        distill(config, digits, experts, tmp_path / "run", generator=other, resume=True)


def test_a_generator_belongs_to_latents(digits, experts, generator, spec, tmp_path):
    with pytest.raises(InputError, match=r"images\.space is 'latents' and no generator was given: give --generator"):
        distill(recipe(**LATENTS), digits, experts, tmp_path / "set")
    with pytest.raises(InputError, match=r"images\.space is 'pixels' and a generator was given"):
        distill(recipe(), digits, experts, tmp_path / "set", generator=generator)
    other = build_generator(GeneratorConfig(name="gan", width=4, latent_dim=6), spec(1, 12, 10), seed=0)
    with pytest.raises(InputError, match="made for 'toy'"):
        distill(recipe(**LATENTS), digits, experts, tmp_path / "set", generator=other)
