"""What of a table has to be measured, and what was measured before."""

import dataclasses
import importlib
import json
import math

import pytest
import torch
from torch import nn

import dim
from dim.config import CORESETS, GeneratorConfig, ProtocolConfig
from dim.data.real import RealData
from dim.data.splits import ArraySplit
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.features.coreset import Rule
from dim.nets.generator import build_generator
from dim.score.compare import Comparison
from dim.score.evaluate import Evaluator
from dim.score.measure import score_all
from dim.score.record import Score, protocol_of
from dim.score.report import scores_to_json

PROTOCOL = ProtocolConfig(
    precision="fp32", compile="off", students=("convnet:width=4", "alexnet:width=2"), epochs=2, batch_size=16, augment="crop"
)


def stored(scores) -> list[Score]:
    """As they come back from a file."""
    return [Score.from_dict(row) for row in json.loads(json.dumps(scores_to_json(scores)))["scores"]]


@pytest.fixture(scope="module")
def generator(digits):
    network = build_generator(GeneratorConfig(width=8, latent_dim=6), digits.spec, seed=0)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(30):  # batch norm gets to know its inputs; without that, images hardly differ
            network(torch.randn(64, 6, generator=source), torch.arange(64) % 10)
    return network.eval()


@pytest.fixture
def trained(monkeypatch):
    """Count the students that are trained, by name and seed; they are not."""
    record = []

    def train(student, feed, steps, protocol, data, seed, device):
        record.append((student, seed))
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(data.spec.image_shape), data.spec.num_classes))

    monkeypatch.setattr(importlib.import_module("dim.score.evaluate"), "train_student", train)
    return record


def kinds(rows) -> list[tuple]:
    return [(row.name, row.track, row.ipc, row.student) for row in rows if row.student == PROTOCOL.students[0]]


def test_every_set_generator_and_control_has_its_rows(digits, generator, trained):
    subjects = {"sets/a": dim.sample_set(generator, ipc=3, seed=1), "runs/b": generator}
    evaluator = Evaluator(digits, PROTOCOL, seeds=1)
    controls = ("full", "random", "oracle")
    rows = score_all(evaluator, subjects, ipc=(1, 2), tracks=("stream", "fixed"), controls=controls)
    student = PROTOCOL.students[0]
    assert kinds(rows) == [
        ("sets/a", "fixed", 3, student),
        ("runs/b", "stream", 1, student),
        ("runs/b", "fixed", 1, student),
        ("runs/b", "stream", 2, student),
        ("runs/b", "fixed", 2, student),
        ("random real", "fixed", 3, student),
        ("random real", "fixed", 1, student),
        ("random real", "fixed", 2, student),
        ("real stream (oracle)", "stream", 1, student),
        ("real stream (oracle)", "stream", 2, student),
        ("full data", "full", None, student),
    ]
    assert len(rows) == len(trained) == 22
    assert rows[-1].steps == max(row.steps for row in rows[:-2])


class Last(Rule):
    """A coreset of somebody's own: the last images of every class."""

    def rank(self, values, order, count, end):
        return torch.arange(len(order)).flip(0)[:count]


def test_a_coreset_of_somebodys_own_is_a_control(digits, generator, trained, monkeypatch):
    monkeypatch.setattr(CORESETS, "_external", {})
    name = CORESETS.admit(Last)
    subjects = {"sets/a": dim.sample_set(generator, ipc=2)}
    rows = score_all(Evaluator(digits, PROTOCOL, seeds=1), subjects, controls=("random", name))
    expected = ["sets/a", "random real", f"{name} real"]
    assert [row[0] for row in kinds(rows)] == expected
    monkeypatch.setattr(CORESETS, "_external", {})
    _, cells = Comparison(stored(rows[::-1])).table("fixed")  # in a process that does not know it; controls are last all the same
    assert [line[0] for line in cells] == ["sets/a", f"{name} real", "random real"]


def test_an_unknown_control_is_refused_before_training(digits, generator, trained):
    subjects, evaluator = {"runs/b": generator}, Evaluator(digits, PROTOCOL, seeds=1)
    for control, said in (("randm", "Did you mean 'random'"), ("ful", "Did you mean 'full'"), ("a.b:C", "outside this package")):
        with pytest.raises(InputError, match=said):
            score_all(evaluator, subjects, controls=("random", control))
    assert trained == []


@pytest.mark.parametrize(
    ("tracks", "control", "said"),
    [
        (("stream",), "random", "random: there is no set of equally many images per class; a generator has one"),
        (("fixed",), "oracle", "oracle: there is no stream; a generator has one"),
    ],
)
def test_a_control_that_belongs_to_no_row_is_told(digits, generator, trained, capsys, tracks, control, said):
    score_all(Evaluator(digits, PROTOCOL, seeds=1), {"runs/b": generator}, tracks=tracks, controls=(control,))
    assert f"dim: controls are left out, {said} with --track" in capsys.readouterr().err


def test_what_was_measured_is_not_measured_again(digits, generator, trained):
    subjects = {"sets/a": dim.sample_set(generator, ipc=3, seed=1), "runs/b": generator}
    plan = {"ipc": (1, 2), "tracks": ("stream", "fixed"), "controls": ("random", "oracle", "full")}
    evaluator = Evaluator(digits, PROTOCOL, seeds=2)
    known = stored(score_all(evaluator, subjects, **plan))
    trained.clear()
    assert score_all(evaluator, subjects, **plan, known=known) == []
    assert score_all(Evaluator(digits, PROTOCOL, seeds=1), subjects, **plan, known=known) == []  # fewer seeds are there too
    assert trained == []
    # One size more of the generator: its own rows, and its controls; full data has the longest budget, which has grown.
    more = score_all(evaluator, subjects, **{**plan, "ipc": (1, 2, 4)}, known=known)
    assert [row[:3] for row in kinds(more)] == [
        ("runs/b", "stream", 4),
        ("runs/b", "fixed", 4),
        ("random real", "fixed", 4),
        ("real stream (oracle)", "stream", 4),
        ("full data", "full", None),
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"seeds": 3},
        {"protocol": dataclasses.replace(PROTOCOL, epochs=3)},
        {"protocol": dataclasses.replace(PROTOCOL, students=(*PROTOCOL.students, "convnet:width=2"))},
        {"split": "val"},
    ],
)
def test_what_was_measured_otherwise_is_measured_again(digits, generator, trained, changed):
    subjects = {"sets/a": dim.sample_set(generator, ipc=1)}
    known = stored(score_all(Evaluator(digits, PROTOCOL, seeds=2), subjects, controls=("random",)))
    settings = {"protocol": PROTOCOL, "seeds": 2, **changed}
    rows = score_all(Evaluator(digits, **settings), subjects, controls=("random",), known=known)
    assert {row.name for row in rows} == {"sets/a", "random real"}


def test_rows_of_other_test_images_are_measured_again(digits, generator, trained):
    subjects = {"sets/a": dim.sample_set(generator, ipc=1)}
    known = stored(score_all(Evaluator(digits, PROTOCOL, seeds=1), subjects))
    assert {row.data["scored"] for row in known} == {digits.digest("test")}
    of_val = stored(score_all(Evaluator(digits, PROTOCOL, seeds=1, split="val"), subjects))
    assert {row.data["scored"] for row in of_val} == {digits.digest("val")}
    unsaid = [dataclasses.replace(row, data={**row.data, "scored": None}) for row in known]  # rows of earlier versions
    images = digits.test.images.clone()
    images[-1] = 255 - images[-1]
    other = RealData(digits.spec, digits.train, digits.val, ArraySplit(images, digits.test.labels, "cpu"))
    for data, rows, again in ((digits, known, 0), (digits, unsaid, 0), (other, known, 2)):
        assert len(score_all(Evaluator(data, PROTOCOL, seeds=1), subjects, known=rows)) == again


def test_a_set_that_was_changed_is_measured_again(digits, generator, trained):
    evaluator = Evaluator(digits, PROTOCOL, seeds=1)
    known = stored(score_all(evaluator, {"sets/a": dim.sample_set(generator, ipc=1)}))
    rows = score_all(evaluator, {"sets/a": dim.sample_set(generator, ipc=1, seed=1)}, known=known)
    assert [row.name for row in rows] == ["sets/a"] * 2


def test_the_same_images_by_another_name_are_trained_on_once(digits, generator, trained):
    subjects = {"sets/a": dim.sample_set(generator, ipc=2), "runs/b": generator}
    rows = score_all(Evaluator(digits, PROTOCOL, seeds=1), subjects, ipc=(2,), tracks=("fixed",))
    assert len(trained) == 2
    assert [row.name for row in rows] == ["sets/a", "sets/a", "runs/b", "runs/b"]
    assert [row.accuracies for row in rows[:2]] == [row.accuracies for row in rows[2:]]


def test_the_same_images_in_another_form_have_bytes_of_their_own(digits, generator, trained):
    images = dim.sample_set(generator, ipc=2)
    latents = SyntheticSet(images.images, images.labels, images.spec, info=images.info, latents=torch.zeros(20, 6))
    rows = score_all(Evaluator(digits, PROTOCOL, seeds=1), {"sets/a": images, "sets/b": latents})
    assert len(trained) == 2
    assert [row.name for row in rows] == ["sets/a", "sets/a", "sets/b", "sets/b"]
    for row, subject in zip(rows[1:3], (images, latents), strict=True):
        assert row.bytes == subject.bytes_stored()
    assert "generator" in rows[2].bytes


def test_controls_are_made_for_the_sizes_of_known_rows(digits, generator, trained):
    evaluator = Evaluator(digits, PROTOCOL, seeds=1)
    known = score_all(evaluator, {"sets/a": dim.sample_set(generator, ipc=2)})
    rows = score_all(evaluator, {"sets/b": dim.sample_set(generator, ipc=3)}, controls=("random",), known=known)
    assert sorted({(row.name, row.ipc) for row in rows}) == [("random real", 2), ("random real", 3), ("sets/b", 3)]


def test_a_learned_step_size_is_said_and_is_no_other_protocol(digits, generator, trained):
    drawn = dim.sample_set(generator, ipc=1)
    learned = SyntheticSet(drawn.images, drawn.labels, drawn.spec, info={"step_size": 0.3, "method": "trajectory matching"})
    evaluator = Evaluator(digits, PROTOCOL, seeds=1)
    (first, _) = rows = score_all(evaluator, {"sets/a": learned})
    assert first.protocol["lr"] == 0.3
    assert protocol_of(stored(rows)[0]) == dataclasses.replace(PROTOCOL, students=PROTOCOL.students[:1])
    assert score_all(evaluator, {"sets/a": learned}, known=stored(rows)) == []
    assert len(score_all(evaluator, {"sets/b": drawn}, known=stored(rows))) == 2  # the same images at another rate


def test_all_rows_of_a_table_are_computed_alike(digits, generator, trained, monkeypatch):
    """What the longest row takes settles the arithmetic of all; alone, a short one would be computed otherwise."""

    def settled(protocol, student, spec, device, *, steps, batch):
        long = steps * batch >= PROTOCOL.steps(100) * PROTOCOL.batch_size
        return dataclasses.replace(protocol, precision="bf16" if long else "fp32")

    monkeypatch.setattr(importlib.import_module("dim.score.evaluate"), "settled", settled)
    (alone,) = score_all(Evaluator(digits, PROTOCOL, seeds=1), {"run": generator}, ipc=(1,))[:1]
    rows = score_all(
        Evaluator(digits, PROTOCOL, seeds=1), {"run": generator}, ipc=(1, 10), controls=("random",), tracks=("fixed",)
    )
    assert alone.protocol["precision"] == "fp32"
    assert {row.ipc for row in rows} == {1, 10}
    assert {row.protocol["precision"] for row in rows} == {"bf16"}


def test_rows_in_another_precision_are_no_rows_of_this_table(digits, generator, trained):
    first, again = (
        Evaluator(digits, dataclasses.replace(PROTOCOL, precision=precision), seeds=1) for precision in ("fp32", "bf16")
    )
    rows = score_all(first, {"run": generator}, ipc=(1,))
    assert score_all(first, {"run": generator}, ipc=(1,), known=stored(rows)) == []
    assert len(score_all(again, {"run": generator}, ipc=(1,), known=stored(rows))) == len(rows)
