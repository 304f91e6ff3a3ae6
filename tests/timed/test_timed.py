"""Students by time: steps from a timed probe, settings from the validation part, courses around refined images, the verdict."""

import copy
import dataclasses
import json
import math

import pytest
import torch
from scipy import stats

from dim.commands.cli import main
from dim.config import DataConfig, ProtocolConfig, to_dict
from dim.config.timed import OWN, PLAIN, TimedConfig, spreads
from dim.data.real import load_data
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.io import read_document
from dim.sampler import sample_set
from dim.score.feeds import courses_of, of_generator, of_real, of_set
from dim.spec import to_uint8
from dim.timed import score as timed_score
from dim.timed.score import TimedEvaluator, TimedScore
from dim.timed.table import difference, print_timed, verdict, verdicts

PROTOCOL = ProtocolConfig(
    students=("convnet:width=4,depth=1",), batch_size=32, lr=0.1, augment="crop", precision="fp32", compile="off"
)
ONCE = TimedConfig(lr_factors=(1.0,), batch_sizes=(), schedules=(), augmentation="protocol", courses=(OWN,), probe_seconds=1e-4)


@pytest.fixture
def anchored(digits_gan):
    anchors = torch.arange(20.0).reshape(10, 2, 1).expand(-1, -1, digits_gan.latent_dim) / 10
    return copy.deepcopy(digits_gan).anchor(anchors.contiguous(), 0.5)


def evaluator(data, timed=ONCE, **options):
    options = {"budgets": (0.02,), "seeds": (0, 1), **options}
    return TimedEvaluator(data, options.pop("protocol", PROTOCOL), timed, **options)


def measured(by_time, **subjects):
    return [measure() for measure in by_time.rows(subjects)]


# --- settings ----------------------------------------------------------------------------------------------------------------


def test_courses_are_read():
    assert spreads("0.3") == (0.3, 0.3)
    assert spreads("0:1") == (0.0, 1.0)
    assert spreads(OWN) is spreads(PLAIN) is None


@pytest.mark.parametrize("course", ["", "x", "-1", "1:", ":1", "0:inf", "nan", "0:1:2"])
def test_a_course_that_is_none_is_refused_in_one_line(course):
    with pytest.raises(InputError, match=r"timed.courses has .*: expected a spread such as 0.3"):
        TimedConfig(courses=(course,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_factors": ()}, "timed.lr_factors"),
        ({"lr_factors": (0.0,)}, "timed.lr-factors"),
        ({"lr_factors": (1.0, 1.0)}, "each once"),
        ({"batch_sizes": (0,)}, "timed.batch-sizes"),
        ({"courses": ()}, "timed.courses"),
        ({"probe_seconds": 0.0}, "timed.probe-seconds"),
    ],
)
def test_settings_outside_their_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        TimedConfig(**changes)


def test_data_protocols_and_budgets_that_do_not_fit_are_refused(digits):
    with pytest.raises(InputError, match="no validation part"):
        evaluator(load_data(DataConfig(val_fraction=0.0)), split="val")
    with pytest.raises(InputError, match=r"protocol.zca is on"):
        evaluator(digits, protocol=dataclasses.replace(PROTOCOL, zca=True))
    for budgets in ((), (0.0,), (1.0, -1.0)):
        with pytest.raises(InputError, match="student-seconds is"):
            evaluator(digits, budgets=budgets)


# --- batches -----------------------------------------------------------------------------------------------------------------


def test_a_course_sets_how_far_from_the_refined_images_the_stream_is(anchored):
    cpu = anchored.device
    exact = sample_set(anchored, ipc=2).images.to(cpu)

    def nearest(course, steps=3):
        """By step, the largest distance of an image to the nearest refined one."""
        feed = of_generator(anchored, 1024, course)(steps, 0)
        found = []
        for step in range(steps):
            images, _ = feed(step)
            pixels = to_uint8(images).flatten(1).float()
            found.append(float(torch.cdist(pixels, exact.flatten(1).float()).min(1).values.max()))
        return found

    assert max(nearest("0")) < 2, "up to rounding, the refined images alone"
    first, middle, last = nearest("0:2")
    assert first < 2 < middle < last
    own, plain = nearest(OWN), nearest(PLAIN)
    assert min(own) > 2
    assert own == nearest("0.5"), "its own spread"
    assert plain != own
    assert float(anchored.spread) == 0.5, "left as it is"


def test_without_refined_images_there_is_one_course(digits_gan, anchored):
    assert courses_of(digits_gan, ("0", OWN)) == (OWN,)
    assert courses_of(anchored, ("0", OWN)) == ("0", OWN)


def test_sets_and_real_images_come_with_their_labels(digits, digits_gan):
    stored = sample_set(digits_gan, ipc=3)
    for source, known in (
        (of_set(stored, 16, torch.device("cpu")), (stored.images, stored.labels)),
        (
            of_real(digits.train, 16, torch.device("cpu")),
            (to_uint8(digits.train.batch(torch.arange(len(digits.train)))[0]), digits.train.labels),
        ),
    ):
        images, labels = source(2, 7)(0)
        again, _ = source(2, 7)(0)
        other, _ = source(2, 8)(0)
        assert images.shape == (16, 1, 8, 8)
        assert torch.equal(images, again)
        assert not torch.equal(images, other)
        for image, label in zip(to_uint8(images), labels, strict=True):
            assert bool(((known[0] == image).flatten(1).all(1) & (known[1] == label)).any())


# --- the search --------------------------------------------------------------------------------------------------------------


def test_the_best_of_each_kind_is_kept_and_the_next_kind_begins_there(digits, anchored, monkeypatch):
    def train(self, subject, student, choice, steps, seed, split):
        asked.append((split, choice))
        value = (
            50
            + 5 * (choice.lr == 0.2)
            + 3 * (choice.batch_size == 64)
            + 2 * (choice.course == "0:1")
            - 1 * (choice.augment == "")
        )
        return (None if choice.lr == 0.4 else float(value)), 1.0

    asked = []
    monkeypatch.setattr(TimedEvaluator, "_train", train)
    monkeypatch.setattr(TimedEvaluator, "_time", lambda *arguments: 0.01)
    timed = TimedConfig(lr_factors=(1.0, 2.0, 4.0), batch_sizes=(64, 128), courses=(OWN, "0:1"))
    real, row = measured(evaluator(digits, timed, budgets=(3.0,)), made=anchored)
    assert row.chosen == {"lr": 0.2, "batch_size": 64, "schedule": "step", "augment": "crop", "course": "0:1"}
    assert real.chosen == {**row.chosen, "course": OWN}
    assert (len(real.tried), len(row.tried)) == (7, 8)
    assert [tried["accuracy"] for tried in row.tried][:3] == [50.0, 55.0, None]
    assert row.steps == 300
    assert {split for split, choice in asked if (split, choice) not in [("test", choice)]} == {"val"}
    assert sum(split == "test" for split, _ in asked) == 4, "two seeds for each of two rows"


@pytest.mark.parametrize(("learned_lr", "rates"), [(True, [0.3, 0.6]), (False, [0.1, 0.2])])
def test_a_learned_step_size_is_where_the_search_begins(digits, anchored, learned_lr, rates):
    drawn = sample_set(anchored, ipc=4)
    drawn.info["step_size"] = 0.3
    timed = dataclasses.replace(ONCE, lr_factors=(1.0, 2.0))
    protocol = dataclasses.replace(PROTOCOL, learned_lr=learned_lr)
    real, row = measured(evaluator(digits, timed, protocol=protocol, seeds=(0,)), made=drawn)
    assert sorted(choice["lr"] for choice in row.tried) == pytest.approx(rates)
    assert sorted(choice["lr"] for choice in real.tried) == pytest.approx([0.1, 0.2])


def test_no_batch_is_larger_than_what_is_stored(digits, digits_gan, monkeypatch):
    monkeypatch.setattr(TimedEvaluator, "_train", lambda *arguments: (50.0, 1.0))
    monkeypatch.setattr(TimedEvaluator, "_time", lambda *arguments: 0.01)
    timed = TimedConfig(lr_factors=(1.0,), batch_sizes=(16, 64))
    _, small, tiny = measured(evaluator(digits, timed), small=sample_set(digits_gan, ipc=4), tiny=sample_set(digits_gan, ipc=1))
    assert {tried["batch_size"] for tried in small.tried} == {32, 16}
    assert {tried["batch_size"] for tried in tiny.tried} == {10}


def test_steps_follow_from_the_time_of_a_probe(digits, monkeypatch):
    now = [0.0]
    trained = []

    def train_student(student, feed, steps, protocol, *rest):
        trained.append((steps, protocol.lr))
        now[0] += 0.25 * steps
        return torch.nn.Identity()

    monkeypatch.setattr(timed_score.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timed_score, "train_student", train_student)
    monkeypatch.setattr(timed_score, "accuracy", lambda *_, **__: 70.0)
    timed = dataclasses.replace(ONCE, probe_seconds=2.0)
    (row,) = measured(evaluator(digits, timed, budgets=(10.0,)))
    assert row.steps == 40
    assert row.seconds == (10.0, 10.0)
    assert [steps for steps, lr in trained if lr == 0.1] == [40, 40, 40], "the choice, and two seeds"


def test_a_student_that_diverges_is_no_choice_and_no_number(digits):
    protocol = dataclasses.replace(PROTOCOL, lr=1e9)
    (row,) = measured(evaluator(digits, protocol=protocol))
    assert row.accuracies == (None, None)
    assert row.mean is row.std is None
    assert row.tried[0]["accuracy"] is None
    timed = dataclasses.replace(ONCE, lr_factors=(1.0, 1e-10))
    (row,) = measured(evaluator(digits, timed, protocol=protocol))
    assert row.chosen["lr"] == pytest.approx(0.1)


# --- the table ---------------------------------------------------------------------------------------------------------------


def row(kind, budget, *accuracies, name="made", **changes):
    return TimedScore(
        name=name,
        kind=kind,
        labels="hard",
        student="convnet",
        budget=budget,
        seconds=changes.pop("seconds", (budget,) * len(accuracies)),
        accuracies=accuracies,
        seeds=tuple(range(len(accuracies))),
        steps=10,
        chosen={"lr": 0.1, "batch_size": 64, "schedule": "step", "augment": "", "course": "0:1"},
        tried=({},),
        split="test",
        protocol={},
        data={"name": "digits"},
        made={},
        hardware={"device": "cpu", "threads": 1},
        versions={},
    )


def test_the_interval_is_welchs():
    first, second = (80.0, 82.0, 81.0, 83.5), (78.0, 77.0, 79.5)
    apart, half = difference(row("set", 1.0, *first), row("real", 1.0, *second))
    wanted = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert (apart - half, apart + half) == pytest.approx((wanted.low, wanted.high))
    assert difference(row("set", 1.0, 80.0), row("real", 1.0, *second)) == (pytest.approx(80 - 78.1667, abs=1e-3), math.inf)
    assert difference(row("set", 1.0, 80.0, None), row("real", 1.0, *second)) is None
    alike = row("set", 1.0, 90.1, 90.1), row("real", 1.0, 90.0, 90.0)  # students that agree by chance are not certain
    assert verdict(*alike) == "no difference found"
    assert difference(*alike)[1] == pytest.approx(float(stats.t.ppf(0.975, 2)) * 0.2)


def test_it_is_said_which_of_the_two_diverged():
    real, made = row("real", 1.0, 50.0, 51.0, name="real data"), row("set", 1.0, 60.0, 61.0)
    assert verdict(row("set", 1.0, 60.0, None), real) == "diverged"
    assert verdict(made, row("real", 1.0, 50.0, None, name="real data")) == "the real data diverged"


def test_a_win_is_claimed_only_where_the_intervals_are_apart(capsys):
    table = [
        *(
            row("real", budget, *values, name="real data")
            for budget, values in ((1.0, (50.0, 51.0)), (2.0, (60.0, 70.0)), (4.0, (80.0, 81.0)), (8.0, (90.0, 90.5)))
        ),
        *(
            row("set", budget, *values)
            for budget, values in ((1.0, (60.0, 61.0)), (2.0, (66.0, 67.0)), (4.0, (70.0, 71.0)), (8.0, (95.0, None)))
        ),
    ]
    assert [verdict(one, real) for one, real in zip(table[4:], table[:4], strict=True)] == [
        "better",
        "no difference found",
        "worse",
        "diverged",
    ]
    (line,) = verdicts(table)
    assert line == "made, convnet, beside real data: better at 1 s; no difference found at 2 s; worse at 4 s; diverged at 8 s"
    print_timed(table)
    output = capsys.readouterr().out
    assert line in output.replace("\n", " ")
    assert "were given" not in output
    print_timed([row("real", 1.0, 50.0, name="real data", seconds=(1.5,))])
    assert "1.5 s were taken where 1 s were given" in capsys.readouterr().out


def test_rows_are_read_again():
    one = row("generator", 1.0, 50.0, None)
    values = json.loads(json.dumps(one.to_dict()))
    assert TimedScore.from_dict(values).to_dict() == one.to_dict()
    with pytest.raises(ValueError, match="accuracies"):
        TimedScore.from_dict({**values, "seeds": [0]})
    with pytest.raises(TypeError):
        TimedScore.from_dict({**values, "more": 1})


# --- the command -------------------------------------------------------------------------------------------------------------

QUICK = ("--seeds", "2", "--timed.probe-seconds", "0.001", "--timed.lr-factors", "1", "--timed.augmentation", "protocol")


@pytest.fixture
def stored(digits_gan, tmp_path):
    made = sample_set(digits_gan, ipc=10)
    info = {"data": to_dict(DataConfig()), "protocol": to_dict(PROTOCOL)}
    return SyntheticSet(made.images, made.labels, made.spec, info=info).save(tmp_path / "set")


def test_the_command_prints_the_table_and_goes_on_after_a_kill(stored, tmp_path, capsys, monkeypatch):
    out = tmp_path / "scores.json"
    command = ["evaluate", str(stored), "--student-seconds", "0.02", "0.05", *QUICK, "--json", str(out)]
    original, calls = TimedEvaluator._row, 0

    def killed(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(TimedEvaluator, "_row", killed)
    assert main(command) == 130
    assert not out.exists()
    assert main(command) == 0
    assert calls == 5, "three rows had been kept"
    output = capsys.readouterr().out
    for words in ("after so many seconds of training", "minus real data", "beside real data: ", "chosen on the validation part"):
        assert words in output
    rows = read_document(out)["scores"]
    assert [(one["name"], one["budget"]) for one in rows] == [
        ("real data", 0.02),
        ("real data", 0.05),
        (str(stored), 0.02),
        (str(stored), 0.05),
    ]
    assert all(len(one["tried"]) >= 2 and one["n"] == 2 for one in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ipc", "1"), "--ipc changes nothing beside --student-seconds: leave it out"),
        (("--controls", "random"), "--controls changes nothing"),
        (("--track", "fixed"), "--track changes nothing"),
        (("--claim",), "--claim changes nothing"),
        (("--student-seconds", "0"), "student-seconds is 0.0: expected a number above 0"),
        (("--student-seconds", "1", "1"), "student-seconds"),
        (("--teacher.folder", "experts"), "teacher.folder is 'experts': expected its default"),
    ],
)
def test_options_that_would_change_nothing_are_refused(stored, options, message, capsys):
    given = [] if options[0] == "--student-seconds" else ["--student-seconds", "1"]
    assert main(["evaluate", str(stored), *given, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_is_tried_needs_a_time(stored, capsys):
    assert main(["evaluate", str(stored), "--timed.probe-seconds", "1"]) == 2
    assert "without --student-seconds" in capsys.readouterr().err
