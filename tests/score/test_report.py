"""Tables and the page of a run."""

import base64
import io
import json
import re

import pytest
import torch
from PIL import Image
from rich.console import Console

from dim.config import (
    AboutConfig,
    DataConfig,
    DiscriminatorConfig,
    FitConfig,
    GeneratorConfig,
    ProtocolConfig,
    StageConfig,
    TrainConfig,
    to_dict,
)
from dim.data.real import from_dataset, load_data
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.features.spaces import Features
from dim.run_folder import append_metrics
from dim.runs.train import fit
from dim.score.coverage import CoverageScore, nearest_real
from dim.score.record import ORACLE, REAL, Score
from dim.score.report import (
    coverage_rows,
    coverage_to_json,
    format_accuracy,
    format_bytes,
    print_coverage,
    print_scores,
    real_grid,
    rows,
    score_findings,
    scores_to_json,
    write_report,
)
from dim.spec import to_uint8


@pytest.fixture(scope="module")
def data():
    source = torch.Generator().manual_seed(0)
    items = [(torch.randint(0, 256, (1, 8, 8), generator=source, dtype=torch.uint8), n % 3) for n in range(30)]
    return from_dataset(items, items[:12], name="toy", class_names="abc", config=DataConfig(val_fraction=0.0))


@pytest.fixture
def run(data, tmp_path):
    config = TrainConfig(
        about=AboutConfig(title="<b>bold</b> & co"),
        generator=GeneratorConfig(width=2, latent_dim=2),
        discriminator=DiscriminatorConfig(width=2),
        stage_one=StageConfig(epochs=0.8, batch_size=8),
        stage_two=StageConfig(epochs=0),
        fit=FitConfig(trackers=(), device="cpu", log_steps=1, checkpoint_minutes=0.0),
    )
    return fit(config, data, tmp_path / "run")


def score(*accuracies: float, **changes) -> Score:
    values = {
        "name": "sets/<a>",
        "track": "fixed",
        "ipc": 10,
        "student": "convnet",
        "labels": "hard",
        "accuracies": accuracies,
        "seeds": tuple(range(len(accuracies))),
        "steps": 2000,
        "batch_size": 16,
        "images_seen": 32000,
        "distinct_images": 100,
        "bytes": {"images": 6400, "labels": 100},
        "seconds": 1.5,
        "data": {"name": "toy", "fingerprint": "x"},
    }
    return Score(**{**values, **changes})


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (6500, "6.5 kB"), (1234567, "1.23 MB"), (3 * 10**9, "3 GB")]
)
def test_bytes_are_readable(count, text):
    assert format_bytes(count) == text


def test_accuracies_are_readable():
    assert format_accuracy(score(90.0, 92.0, 97.0)) == "93.0 ± 3.6"
    assert format_accuracy(score(90.04)) == "90.0"


def test_a_row_says_all_that_a_score_must_tell():
    row = rows([score(90.0, 92.0)])[0]
    assert row == ("sets/<a>", "fixed", "10", "convnet", "hard", "91.0 ± 1.4", "2", "2,000", "32,000", "100", "6.5 kB", "1.5")
    assert rows([score(90.0, ipc=None, track="full")])[0][1:3] == ("full", "-")


def test_the_printed_table_has_every_row():
    console = Console(file=io.StringIO(), width=200)
    print_scores([score(90.0, 92.0), score(50.0, name="other", split="test")], console)
    text = console.file.getvalue()
    assert "toy: test accuracy" in text
    assert "91.0 ± 1.4" in text
    assert "other" in text


def test_scores_as_json():
    content = json.loads(json.dumps(scores_to_json([score(90.0, 92.0)])))
    assert content["kind"] == "scores"
    assert content["scores"][0]["mean"] == 91
    assert content["scores"][0]["n"] == 2


def test_the_page_is_self_contained(run, data):
    path = write_report(run, data, [score(90.0, 92.0)])
    assert path == run / "report.html"
    page = path.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 3  # generated, real, curves
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            image.load()
    assert "91.0 ± 1.4" in page
    assert "sets/&lt;a&gt;" in page
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; co" in page
    assert "latent_dim" in page


def test_the_page_says_what_was_made_and_how_to_go_on(run, data):
    page = write_report(run, data).read_text()
    assert "data: toy: 3 classes, grey, 8x8 pixels; images: 30 train, 0 val, 12 test" in page
    assert f"{(run / 'generator.safetensors').stat().st_size / 1000:.3g} kB" in page
    for command in ("train --out", "sample", "evaluate", "coverage"):
        assert f"dim {command}" in page
    for name in "abc":
        assert page.count(f"<li>{name}</li>") >= 2  # rows of synthetic and of real images
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_what_rows_say_beside_their_controls():
    rows = [
        score(80.0, 82.0, name="mine"),
        score(70.0, name="random real", made={"method": REAL}),
        score(60.0, name="random real", ipc=50, made={"method": REAL}),
        score(90.0, name="random real", labels="soft (2 experts)", made={"method": REAL}),  # which is no control of hard labels
        score(75.0, name="herding real", made={"method": "herding"}),
        score(45.0, name="mine", track="stream"),
        score(50.0, name=ORACLE, track="stream", made={"method": REAL}),
        score(None, name="bad", diverged=(3,)),
        score(10.0, name="alone", ipc=1),
    ]
    first, second = score_findings(rows)
    assert first == "At 10 images per class, mine trains convnet to 81.0 %, as many random real images to 70.0 %: +11.0 points."
    assert "The stream of mine gives convnet 90 % of the accuracy that real images give in as many steps" in second


def test_accuracy_is_drawn_against_size_where_there_are_several(run, data):
    def pictures(*rows):
        return write_report(run, data, rows).read_text().count("accuracy against images per class")

    told = {"protocol": to_dict(ProtocolConfig())}
    smaller = {"ipc": 1, "bytes": {"images": 640}}
    assert pictures(score(90.0, **told), score(80.0, name="random real", **told)) == 0
    assert pictures(score(90.0, **told), score(70.0, **smaller, **told)) == 1
    assert pictures(score(90.0), score(70.0, **smaller)) == 0  # as earlier versions have them


def test_values_that_were_recorded_once_have_no_curve(run, data):
    append_metrics(run, {"step": 9, "seconds": 9.0, "stage": "two", "critic": 1.0, "only_once": 1.0})
    path, seen = run, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dim.score.report.curves", lambda metrics, names: seen.extend(names) or b"")
        write_report(path, data)
    assert "critic" in seen
    assert "only_once" not in seen


def test_the_page_of_a_run_without_scores(run, data):
    assert "<h2>Scores" not in write_report(run, data).read_text()


def test_the_page_of_a_run_that_was_stopped_early(run, data):
    """A run stopped before its first record has a generator, and a killed one may end in half a line."""
    metrics = run / "metrics.jsonl"
    with open(metrics, "a") as handle:
        handle.write('{"step": 99, "cri')
    assert "<h2>Training" in write_report(run, data).read_text()
    metrics.unlink()
    assert "<h2>Training" not in write_report(run, data).read_text()


def test_a_folder_that_is_no_run_is_refused(data, tmp_path):
    with pytest.raises(InputError, match="no run"):
        write_report(tmp_path, data)
    assert list(tmp_path.iterdir()) == []


def test_real_images_are_shown_one_row_per_class(data):
    picture = real_grid(data, per_class=4)
    assert picture.width == 4 * 50 + 2
    assert picture.height == 3 * 50 + 2


# --- coverage --------------------------------------------------------------------------------------------------------------


def coverage_score(name: str = "runs/<a>", **changes) -> CoverageScore:
    metrics = {"fid": 1.2345, "precision": 0.9, "recall": 0.5, "density": 1.1, "coverage": 0.8764}
    values = {
        "name": name,
        "images": 5000,
        "seed": 0,
        "features": {"name": "resnet10", "accuracy": 88.71, "split": "val", "digest": "0" * 32},
        "metrics": metrics,
        "expected": {"density": 1.0, "coverage": 0.969},
        "per_class": (
            {"class": "<b>", "images": 3, **dict.fromkeys(metrics)},
            {"class": "c", "images": 9, **metrics, "fid": None},
        ),
        "seconds": 1.0,
        "data": {"name": "toy", "fingerprint": "x"},
    }
    return CoverageScore(**{**values, **changes})


@pytest.fixture(scope="module")
def nearest():
    data = load_data(DataConfig())
    features = Features(network=torch.nn.Flatten(), name="pixels", digest="0" * 32, device=torch.device("cpu"))
    images, labels = data.val.batch(torch.arange(len(data.val)))
    return nearest_real(SyntheticSet(to_uint8(images), labels, data.spec), data, features)


def pictures(page: str) -> int:
    return len(re.findall(r'src="data:image/png;base64,', page))


def test_a_row_says_all_that_a_figure_of_coverage_must_tell():
    assert coverage_rows([coverage_score()]) == [("runs/<a>", "5,000", "1.234", "0.900", "0.500", "1.100", "0.876", "0.969")]


@pytest.mark.parametrize(
    ("accuracy", "said"), [(88.71, "features of resnet10, 88.7 % right on its val images"), (None, "resnet10")]
)
def test_the_printed_coverage_table_names_the_features(accuracy, said):
    console = Console(file=io.StringIO(), width=200)
    features = {"name": "resnet10", "accuracy": accuracy, "split": "val", "digest": "0" * 32}
    print_coverage([coverage_score(features=features), coverage_score("real, held out")], console)
    text = console.file.getvalue()
    assert said in text
    assert ("right" in text) == (accuracy is not None)
    for cell in ("real, held out", "0.876", "coverage to expect"):
        assert cell in text


def test_coverage_as_json():
    content = json.loads(json.dumps(coverage_to_json([coverage_score()]), allow_nan=False))
    assert content["kind"] == "coverage"
    assert CoverageScore.from_dict(content["scores"][0]) == coverage_score()


def test_the_page_shows_coverage(run, data, nearest):
    scores = [coverage_score(), coverage_score("real, held out")]
    page = write_report(run, data, coverage=scores, nearest=nearest).read_text()
    assert pictures(page) == 5  # generated, real, nearest, distances, losses
    for text in (
        "<h2>Coverage",
        "runs/&lt;a&gt;",
        "real, held out",
        "&lt;b&gt;",
        "0.876",
        f"{100 * nearer(nearest):.1f} % of the images",
    ):
        assert text in page
    assert "<b>" not in page
    with Image.open(run / "samples" / "nearest.png") as picture:
        assert picture.size == nearest.panel().size


def nearer(nearest) -> float:
    return nearest.to_dict()["nearer_than_1_percent"]


def test_a_later_report_keeps_what_was_measured(run, data, nearest):
    """`dim evaluate` and `dim coverage` write the same page."""
    write_report(run, data, [score(90.0, 92.0)])
    write_report(run, data, coverage=[coverage_score()], nearest=nearest)
    page = write_report(run, data).read_text()
    assert "91.0 ± 1.4" in page
    assert "0.876" in page
    assert pictures(page) == 5
    assert "Measured at step" not in page
    page = write_report(run, data, [score(70.0, 70.0)]).read_text()
    assert "70.0 ± 0.0" in page
    assert "91.0 ± 1.4" not in page
    assert "0.876" in page


def test_a_run_that_was_trained_further_says_when_it_was_measured(run, data):
    write_report(run, data, [score(90.0)], coverage=[coverage_score()])
    append_metrics(run, {"step": 99, "critic": 1.0})
    page = write_report(run, data).read_text()
    assert page.count("Measured at step 3; the run is now at step 99.") == 2


def test_coverage_over_training_has_a_picture_of_its_own(run, data):
    before = pictures(write_report(run, data).read_text())
    for step in (1, 2):
        append_metrics(run, {"step": step, "stage": "one", "seconds": 1.0, "fid": 2.0 / step, "coverage": 0.1 * step})
    page = write_report(run, data).read_text()
    assert pictures(page) == before + 1
    assert "coverage over training" in page
