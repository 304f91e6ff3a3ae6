"""Side by side: what may stand in one table, and the table, picture and page."""

import base64
import dataclasses
import io
import json
import math
import re

import pytest
from PIL import Image
from rich.console import Console

from dim.config import DataConfig, ProtocolConfig, to_dict
from dim.data.real import load_data
from dim.errors import InputError
from dim.io import write_json
from dim.score.compare import Comparison, require_made_from, require_one_data
from dim.score.record import Score, read_scores
from dim.score.report import scores_to_json

PROTOCOL = ProtocolConfig(students=("convnet:width=4", "alexnet:width=2"), epochs=2, batch_size=16, augment="crop")


def score(name: str = "sets/mtt-10", ipc: int | None = 10, student: str = "convnet", **changes) -> Score:
    values = {
        "track": "fixed",
        "labels": "hard",
        "accuracies": (90.0, 92.0),
        "seeds": (0, 1),
        "steps": 2000,
        "batch_size": 16,
        "images_seen": 32000,
        "distinct_images": 100,
        "bytes": {"images": 640 * (ipc or 100), "labels": 10},
        "seconds": 1.5,
        "protocol": to_dict(dataclasses.replace(PROTOCOL, students=(student,))),
        "data": {"name": "toy", "fingerprint": "f" * 8},
        "made": {"seconds": 12.34},
    }
    return Score(name=name, ipc=ipc, student=student, **{**values, **changes})


def stored(scores) -> list[Score]:
    """As they come back from a file."""
    return [Score.from_dict(row) for row in json.loads(json.dumps(scores_to_json(scores)))["scores"]]


# --- what may stand side by side ---------------------------------------------------------------------------------------------


def test_rows_of_other_data_or_another_part_are_refused():
    other = score(data={"name": "toy", "fingerprint": "0" * 8}, name="sets/other")
    with pytest.raises(
        InputError, match=r"row sets/other is of toy \(fingerprint 00000000\): expected toy \(fingerprint ffffffff\)"
    ):
        Comparison([score(), other])
    with pytest.raises(InputError, match=r"row sets/other is val accuracy: expected test accuracy .* --split test"):
        Comparison([score(), score("sets/other", split="val")])
    with pytest.raises(InputError, match="nothing to compare"):
        Comparison([])
    with pytest.raises(InputError, match="says no protocol"):
        Comparison([score(protocol={})])


def test_subjects_and_rows_must_be_of_the_real_data(digits, digits_gan):
    require_made_from({"runs/b": digits_gan}, digits.spec)
    other = load_data(DataConfig(split_seed=1))
    with pytest.raises(InputError, match=r"runs/b was made from digits .* expected digits .* same data and split"):
        require_made_from({"runs/b": digits_gan}, other.spec)
    row = score(data={"name": "digits", "fingerprint": digits.spec.fingerprint})
    require_one_data([row], "runs/b", digits, "test")
    for data, split in ((other, "test"), (digits, "val")):
        with pytest.raises(InputError, match=r"row sets/mtt-10 is .* as runs/b"):
            require_one_data([row], "runs/b", data, split)


def test_rows_of_other_test_images_are_refused(digits):
    facts = {"name": "digits", "fingerprint": digits.spec.fingerprint}
    old, row = score(data=facts), score(data={**facts, "scored": digits.digest("test")})
    changed = score("sets/other", data={**facts, "scored": "0" * 32})
    Comparison([old, row])  # rows of earlier versions do not say it
    require_one_data([old, row], "runs/b", digits, "test")
    for rows in ([row, changed], [old, row, changed], [changed, row]):
        with pytest.raises(InputError, match=r"row \S+ is of other test images of digits \(digest .*expected those with digest"):
            Comparison(rows)
    with pytest.raises(InputError, match=r"row sets/other is of other test images of digits \(digest 0{32}\): .* as runs/b;"):
        require_one_data([old, changed], "runs/b", digits, "test")


def test_files_of_scores(tmp_path):
    rows = [score(), score(student="alexnet")]
    write_json(tmp_path / "scores.json", scores_to_json(rows))
    assert read_scores(tmp_path / "scores.json") == stored(rows)
    # Files of earlier versions do not say how the images came about.
    old = scores_to_json(rows)
    for row in old["scores"]:
        del row["made"]
    write_json(tmp_path / "old.json", old)
    assert Comparison(read_scores(tmp_path / "old.json")).table("fixed")[1][0][4] == "-"
    for content, said in (
        ({"kind": "coverage", "scores": []}, "holds no scores"),
        ([], "expected a JSON object"),
        ({"kind": "scores", "format": 2, "scores": [{}]}, "does not match its checksum"),
        ({"kind": "scores", "checksum": "0", "scores": [{}]}, "does not match its checksum"),
        ({"kind": "scores", "scores": []}, "holds no row"),
        ({"kind": "scores", "format": 3, "scores": [{}]}, "upgrade"),
        ({"kind": "scores", "scores": [{"name": "a"}]}, "is damaged"),
        ({"kind": "scores", "scores": ["a"]}, "is damaged"),
    ):
        write_json(tmp_path / "wrong.json", content)
        with pytest.raises(InputError, match=said):
            read_scores(tmp_path / "wrong.json")
    with pytest.raises(InputError, match="no file"):
        read_scores(tmp_path / "none.json")


# --- the table ---------------------------------------------------------------------------------------------------------------


def test_a_line_has_every_student_and_all_that_it_depends_on():
    rows = [
        score("random real", accuracies=(70.0, 71.0, 72.0), seeds=(0, 1, 2), made={"method": "random", "seconds": 0.0}),
        score("sets/mtt-10", 10, labels="soft (resnet18)", bytes={"images": 6400, "labels": 400}),
        score("sets/mtt-1", 1, accuracies=(50.0,), seeds=(0,), made={}),
        score("sets/mtt-10", 10, "alexnet", labels="soft (resnet18)", bytes={"images": 6400, "labels": 400}),
    ]
    columns, cells = Comparison(rows).table("fixed")
    assert columns == ["trained on", "IPC", "labels", "stored", "seconds to produce", "steps", "convnet", "alexnet"]
    soft = "soft (resnet18)"
    assert cells == [
        ["sets/mtt-1", "1", "hard", "650 B", "-", "2,000", "50.0 (1)", ""],
        ["sets/mtt-10", "10", soft, "6.8 kB", "12.3", "2,000", "91.0 ± 1.4 (2)", "91.0 ± 1.4 (2)"],
        ["random real", "10", "hard", "6.41 kB", "0.0", "2,000", "71.0 ± 1.0 (3)", ""],  # controls come last
    ]


def test_tracks_have_tables_of_their_own():
    rows = [score(track="stream"), score("full data", None, track="full"), score()]
    comparison = Comparison(rows)
    assert comparison.tracks == ["fixed", "stream", "full"]
    console = Console(file=io.StringIO(), width=200)
    comparison.show(console)
    parts = re.split("(toy, .* test accuracy)", console.file.getvalue())
    assert [re.sub(" +", " ", part) for part in parts[1::2]] == [
        "toy, fixed track: test accuracy",
        "toy, stream track: test accuracy",
        "toy, full data: test accuracy",
    ]
    assert ["sets/mtt-10" in part for part in parts[2::2]] == [True, True, False]
    assert "2 epochs at batch size 16" in parts[-1]


def test_another_protocol_is_said_in_its_line():
    other = to_dict(dataclasses.replace(PROTOCOL, epochs=500, zca=True))
    made = {"step_size": 0.0312, "protocol_lr": PROTOCOL.lr}
    rows = [
        score("a"),
        score("b", protocol=other),
        score("c", protocol={**score().protocol, "lr": 0.0312}, made=made),
        score("d", protocol={**score().protocol, "lr": 0.0312}),
        score("e", protocol={**score().protocol, "full_epochs": 9}),
    ]
    columns, cells = Comparison(rows).table("fixed")
    assert columns[-1] == "differs in"
    assert [line[-1] for line in cells] == [
        "",
        "epochs 500 (first row: 2), zca True (first row: False)",
        "own step size 0.0312",
        "lr 0.0312 (first row: 0.01)",
        "",
    ]


def test_equal_rows_are_one_and_others_of_the_same_name_stay():
    rows = [score(), score(), score(accuracies=(10.0, 20.0)), score(student="alexnet"), score(student="alexnet")]
    comparison = Comparison(rows)
    assert [line[-2:] for line in comparison.table("fixed")[1]] == [
        ["91.0 ± 1.4 (2)", "91.0 ± 1.4 (2)"],
        ["15.0 ± 7.1 (2)", ""],
    ]
    assert comparison.scores == [rows[0], rows[2], rows[3]]


@pytest.mark.parametrize(
    ("name", "ipc", "method"),
    [
        ("sets/mtt-10", 10, "sets/mtt"),
        ("sets/mtt_10", 10, "sets/mtt"),
        ("sets/demo/ipc-50", 50, "sets/demo"),
        ("sets/demo/1", 1, "sets/demo"),
        ("sets/digits10", 10, "sets/digits"),
        ("sets/x110", 10, "sets/x110"),
        ("sets/mtt-10", 1, "sets/mtt-10"),
        ("runs/cifar10", 1, "runs/cifar10"),
        ("10", 10, "10"),
        ("random real", 10, "random real"),
    ],
)
def test_sets_whose_names_differ_in_their_size_are_one_method(name, ipc, method):
    (row,) = Comparison([score(name, ipc)])._rows
    assert row.method == method


# --- the picture and the page ------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """The figure, in place of its bytes."""
    figures = []
    monkeypatch.setattr("dim.score.compare.figure_png", lambda figure: figures.append(figure) or b"")
    return figures


def lines(axes) -> dict[str, list[tuple[float, float, float, float]]]:
    """Points of the error bars by label: x, mean, and the ends of the bar."""
    found = {}
    for container in axes.containers:
        line, _, (bars,) = container.lines
        ends = [(float(low), float(high)) for (_, low), (_, high) in bars.get_segments()]
        found[container.get_label()] = [(float(x), float(y), *end) for x, y, end in zip(*line.get_data(), ends, strict=True)]
    return found


def test_the_picture_has_a_line_for_each_method_with_its_spread(drawn):
    rows = [
        score("sets/mtt-10", 10),
        score("sets/mtt-1", 1, accuracies=(50.0,), seeds=(0,)),
        score("sets/some", None, accuracies=(30.0, 30.0)),  # not as many of every class: it has no place along IPC
        score("runs/b", 10, track="stream", bytes={"generator": 5000}),
        score("runs/b", 1, track="stream", accuracies=(60.0, 60.0), bytes={"generator": 5000}),
        score("full data", None, track="full", accuracies=(99.0,), seeds=(0,)),
        score("sets/mtt-1", 1, "alexnet"),
    ]
    Comparison(rows).picture()
    panels = drawn[0].axes
    titles = [axes.get_title(loc="left") for axes in panels[::2]]
    assert titles == ["fixed track, convnet", "fixed track, alexnet", "stream track, convnet"]
    deviation = math.sqrt(2)
    mtt = [(1, 50, 50, 50), (10, 91, pytest.approx(91 - deviation), pytest.approx(91 + deviation))]
    assert lines(panels[0]) == {"sets/mtt": mtt}
    by_bytes = lines(panels[1])
    assert [point[:2] for point in by_bytes["sets/mtt"]] == [(650, 50), (6410, 91)]
    assert [point[:2] for point in by_bytes["sets/some"]] == [(64010, 30)]
    assert lines(panels[2]) == {"sets/mtt": [(1, 91, *mtt[1][2:])]}
    assert [point[:2] for point in lines(panels[4])["runs/b"]] == [(1, 60), (10, 91)]
    assert [point[0] for point in lines(panels[5])["runs/b"]] == [5000, 5000]
    full = [[line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"] for axes in panels]
    assert full == [[99], [99], [], [], [99], [99]]
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert sorted(legend) == ["full data (2,000 steps)", "runs/b", "sets/mtt", "sets/some"]


def test_another_protocol_is_another_line(drawn):
    other = to_dict(dataclasses.replace(PROTOCOL, epochs=500))
    Comparison([score("a-1", 1), score("a-10", 10, protocol=other)]).picture()
    assert {label: len(points) for label, points in lines(drawn[0].axes[0]).items()} == {
        "a": 1,
        "a [epochs 500 (first row: 2)]": 1,
    }


def test_other_labels_are_another_line(drawn):
    Comparison([score("a-1", 1), score("a-10", 10), score("a-10", 10, labels="soft (2 experts)")]).picture()
    assert {label: len(points) for label, points in lines(drawn[0].axes[0]).items()} == {"a": 2, "a [soft (2 experts)]": 1}


def test_a_name_that_ends_in_a_size_by_chance_is_one_line():
    """As runs have them, whose name is the same at every size."""
    sizes = (1, 10, 50)
    comparison = Comparison([*(score("runs/cifar10", ipc) for ipc in sizes), *(score(f"sets/mtt-{ipc}", ipc) for ipc in sizes)])
    assert [row.method for row in comparison._rows] == ["runs/cifar10"] * 3 + ["sets/mtt"] * 3


def test_the_picture_is_a_png():
    with Image.open(io.BytesIO(Comparison([score()]).picture())) as image:
        image.load()
        assert image.format == "PNG"


def test_full_data_alone_has_no_picture():
    comparison = Comparison([score("full data", None, track="full")])
    with pytest.raises(InputError, match="no row of the fixed or the stream track"):
        comparison.picture()
    assert "<img" not in comparison.page()


def test_the_page_is_self_contained():
    page = Comparison([score("sets/<a>"), score("runs/b", track="stream")]).page()
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        image.load()
    for text in ("<h2>toy, fixed track", "<h2>toy, stream track", "sets/&lt;a&gt;", "91.0 ± 1.4 (2)", "weight_decay"):
        assert text in page
    assert "<a>" not in page


@pytest.mark.parametrize("name", ["x[/red]y", "a[b]c", "$x^{$", "_hidden", "sets/\x1b[31m\nx", "<b>x</b>"])
def test_names_are_text_in_tables_pictures_and_pages(name, monkeypatch):
    from matplotlib.figure import Figure

    shown = name.encode("unicode_escape").decode() if "\x1b" in name else name
    legends, legend = [], Figure.legend
    monkeypatch.setattr(Figure, "legend", lambda *args, **more: legends.append(legend(*args, **more)) or legends[-1])
    comparison = Comparison([score(name), score(f"{name}2", track="full", ipc=None), score(name, track="stream")])
    output = io.StringIO()
    comparison.show(Console(file=output, width=400))
    assert output.getvalue().count(shown) == 3
    assert "\x1b" not in output.getvalue()
    with Image.open(io.BytesIO(comparison.picture())) as picture:
        picture.load()
    labels = [text.get_text() for text in legends[0].get_texts()]
    assert labels == [shown.replace("$", r"\$"), f"{shown.replace('$', chr(92) + '$')}2 (2,000 steps)"]
    page = comparison.page()
    assert "<b>" not in page
    assert "\x1b" not in page
