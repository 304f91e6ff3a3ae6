"""DD-Ranking's scores: differences of rows that are there, and nothing where they are not."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from dim.config import ProtocolConfig, to_dict
from dim.score.compare import Comparison
from dim.score.record import Score
from dim.score.recovery import recovery
from dim.score.report import print_scores, scores_to_json

PROTOCOL = ProtocolConfig(students=("convnet",), epochs=2)
SOFT = "soft (2 experts)"


def score(
    name="set", mean=50.0, *, method="imported", track="fixed", ipc=10, labels="hard", student="convnet", **changes
) -> Score:
    made = {"method": method, "seconds": 1.0} | ({"digest": name} if method in ("imported", "generator") else {})
    protocol = dataclasses.replace(PROTOCOL, **changes.pop("protocol", {}))
    values = {"steps": 10, "batch_size": 16, "images_seen": 160, "distinct_images": 100, "bytes": {"images": 9}, "seconds": 1.0}
    values |= {"protocol": to_dict(protocol), "data": {"name": "toy", "fingerprint": "f"}, "made": made}
    accuracies = (mean - 1, mean + 1)
    return Score(
        name=name,
        track=track,
        ipc=ipc,
        student=student,
        labels=labels,
        accuracies=accuracies,
        seeds=(0, 1),
        **{**values, **changes},
    )


def random(mean=40.0, **changes) -> Score:
    return score("random real", mean, method="random", **changes)


def full(mean=80.0, **changes) -> Score:
    return score("full data", mean, method="real data", track="full", ipc=None, **changes)


def test_both_are_differences_of_means():
    found = recovery([score(mean=50), random(40), full(80)])
    assert found == [{"hlr": pytest.approx(30), "ior": pytest.approx(10)}, {}, {}]
    assert recovery([full(80), score(mean=85)])[1] == {"hlr": pytest.approx(-5)}


def test_without_a_control_nothing_is_said():
    assert recovery([score(), score("other", 60)]) == [{}, {}]
    assert recovery([score(), random()])[0].keys() == {"ior"}
    assert recovery([score(), full()])[0].keys() == {"hlr"}


@pytest.mark.parametrize(
    "change",
    [
        {"student": "alexnet"},
        {"split": "val"},
        {"data": {"name": "toy", "fingerprint": "g"}},
        {"protocol": {"lr": 0.5}},
        {"protocol": {"zca": True}},
        {"diverged": (3, None), "accuracies": (None, 3.0)},
    ],
)
def test_controls_of_another_setting_do_not_count(change):
    if "accuracies" in change:
        controls = [dataclasses.replace(row, **change) for row in (random(), full())]
    else:
        controls = [random(**change), full(**change)]
    assert recovery([score(), *controls])[0] == {}


def test_arithmetic_and_the_budget_of_full_data_may_differ():
    assert recovery([score(), full(protocol={"compile": "on", "precision": "bf16", "full_epochs": 7})])[0].keys() == {"hlr"}


def test_random_images_are_of_the_same_size_and_labels():
    assert recovery([score(), random(ipc=1)])[0] == {}
    assert recovery([score(labels=SOFT), random()])[0] == {}
    assert recovery([score(labels=SOFT), random(), random(60, labels=SOFT)])[0] == {"ior": pytest.approx(-10)}


def test_recovery_is_of_hard_labels_and_improvement_of_sets():
    assert recovery([score(labels=SOFT), full()])[0] == {}
    assert recovery([score(track="stream", method="generator"), random(), full()])[0].keys() == {"hlr"}


def test_a_learned_step_size_stands_for_the_protocols():
    made = {"method": "imported", "digest": "x", "step_size": 0.5, "protocol_lr": PROTOCOL.lr}
    assert recovery([score(protocol={"lr": 0.5}, made=made), full()])[0].keys() == {"hlr"}


def test_the_table_and_json_have_them_only_where_they_are():
    rows = [score(), random(40), full(80)]

    def printed(scores) -> str:
        console = Console(file=io.StringIO(), width=220)
        print_scores(scores, console)
        return console.file.getvalue()

    assert "HLR" not in printed(rows[:1])
    assert "DD-Ranking" not in printed(rows[:1])
    text = printed(rows)
    assert all(word in text for word in ("HLR", "IOR", "DD-Ranking"))
    assert [cell.strip() for cell in next(line for line in text.splitlines() if "set " in line).split("│")][-3:-1] == [
        "30.0",
        "10.0",
    ]
    assert "hlr" not in scores_to_json(rows[:1])["scores"][0]
    stored = json.loads(json.dumps(scores_to_json(rows)))["scores"]
    assert stored[0]["hlr"] == pytest.approx(30)
    assert [Score.from_dict(row).accuracies for row in stored] == [row.accuracies for row in rows]


def test_a_comparison_shows_them_for_each_student():
    rows = [score(), random(40), full(80)]
    columns, cells = Comparison(rows).table("fixed")
    assert columns[-2:] == ["HLR", "IOR"]
    assert [line[-2:] for line in cells] == [["30.0", "10.0"], ["-", "-"]]
    assert "DD-Ranking" in Comparison(rows).note()
    assert Comparison(rows[:1]).table("fixed")[0][-1] == "convnet"
    assert "DD-Ranking" not in Comparison(rows[:1]).note()
    other = {"student": "alexnet", "protocol": {"students": ("alexnet",)}}
    columns, _ = Comparison([*rows, score(mean=30, **other), random(20, **other)]).table("fixed")
    assert columns[-3:] == ["HLR convnet", "IOR convnet", "IOR alexnet"]
