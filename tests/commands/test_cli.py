"""The command line: what it prints, and one clear line for every mistake."""

import dataclasses
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dim
from dim.commands.cli import main
from dim.commands.making import _class_number
from dim.commands.parsing import subjects_first
from dim.config import (
    CORESETS,
    FORMATS,
    AboutConfig,
    DataConfig,
    DistillConfig,
    ExpertsConfig,
    ImagesConfig,
    ProtocolConfig,
    RecordConfig,
    ScoringConfig,
    TrajectoryConfig,
    TrajectoryRecipe,
    to_toml,
)
from dim.data.real import load_data
from dim.errors import InputError
from dim.io import load_tensors, read_document, read_json
from dim.recipes.load import load_recipe, load_recipe_for, recipe_names
from dim.runs.distill import Distiller
from dim.trajectory import record
from dim.trajectory.store import ExpertStore

TINY_TRAJECTORY = TrajectoryRecipe(
    about=AboutConfig(title="tiny"),
    student="convnet:width=8,depth=2",
    experts=ExpertsConfig(count=2, epochs=3.0, batch_size=256, lr=0.05, augment="", device="cpu"),
    trajectory=TrajectoryConfig(steps=2, epochs=1, max_start=2, augment=""),
    images=ImagesConfig(lr=10.0),
    distill=DistillConfig(iterations=3, sample_steps=0, device="cpu"),
    protocol=ProtocolConfig(students=("convnet:width=4",), epochs=2, augment=""),
)


@pytest.fixture(scope="module", autouse=True)
def surroundings():
    """One thread, since networks this small take many times longer on several; no network; no data root."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("DIM_DATA_ROOT", raising=False)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small_set(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("sets") / "two"
    assert main(["sample", str(run), "--ipc", "2", "--out", str(path), "--format", "safetensors"]) == 0
    return path


@pytest.fixture
def wrong(capfd):
    """Run a command that must fail: the single line it prints, without `dim: `."""

    def call(*arguments) -> str:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        output, errors = capfd.readouterr()
        assert status != 0
        assert errors.startswith("dim: "), errors
        assert errors.endswith("\n")
        assert errors.count("\n") == 1, errors
        assert output.count("\n") == output.startswith("data: ")  # a run that had begun has said what it reads
        return errors.removeprefix("dim: ")

    return call


def dim_process(*arguments, **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dim.commands.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **settings)


def write_images(folder: Path, count: int, seed: int = 0) -> None:
    source = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(source.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")


@pytest.fixture
def photos(tmp_path):
    for seed, name in enumerate(("cat", "dog")):
        write_images(tmp_path / "photos" / name, 12, seed)
    return tmp_path / "photos"


# --- start -------------------------------------------------------------------------------------------------------------------


def test_a_command_starts_without_the_libraries_that_compute():
    """Help, completion and refusals are there at once, and signals are handled before anything long begins."""
    program = "import sys; import dim.commands.cli; print([name for name in ('torch', 'scipy', 'PIL') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- the happy path --------------------------------------------------------------------------------------------------------


def test_help_and_version_as_a_process():
    done = dim_process("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("train", "sample", "evaluate", "compare", "coverage", "experts", "distill", "recipes"):
        assert f"  {name} " in done.stdout
    done = dim_process("--version")
    assert (done.returncode, done.stdout) == (0, f"{dim.__version__}\n")


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "compare", "coverage", "experts", "distill", "recipes"])
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help-all"])
    assert stop.value.code in (0, None)
    text = capsys.readouterr().out
    assert f"usage: dim {command}" in text
    assert "More options" not in text
    options = {
        "train": ("--recipe", "--generator.width", "--stage-two.lr-end", "--data-root", "--fit.trackers", "--resume"),
        "experts": ("--recipe", "--student", "--zca", "--experts.optimizer", "--to-waypoints", "--data-root", "--resume"),
        "distill": ("--recipe", "--experts", "--trajectory.gradient", "--labels.kind", "--step-size.initial", "--resume"),
        "evaluate": ("--protocol.learned-lr", "--protocol.zca", "--controls", "--coreset-end"),
        "compare": ("--ipc", "--track", "--controls", "--picture", "--html", "--json", "--protocol.epochs"),
        "coverage": ("--samples", "--features", "--panel", "--json", "--data-root"),
    }
    for option in options.get(command, ()):
        assert option in text
    assert ("--experts.count" in text) == (command == "experts")


@pytest.mark.parametrize("arguments", [["train", "--recipe", "{}", "--help-all"], ["recipes", "{}"]])
def test_texts_of_a_recipe_do_not_steer_the_terminal(arguments, capsys, tmp_path):
    recipe = tmp_path / "from-a-stranger.toml"
    recipe.write_text('[about]\ntitle = "before \\u001b[2Jafter \\u202e"\n[protocol]\naugment = "crop\\u001b"\n')
    status = 0
    try:
        status = main([text.format(recipe) for text in arguments])
    except SystemExit as stop:
        status = stop.code or 0
    output, errors = capsys.readouterr()
    assert (status, errors) == (0, "")
    assert "before" in output
    assert not {"\x1b", "\u202e"} & set(output)


def test_no_command_prints_the_overview(capsys):
    assert main([]) == 0
    assert "usage: dim COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("name", recipe_names())
def test_a_printed_recipe_is_that_recipe(name, capsys, tmp_path):
    assert main(["recipes", name]) == 0
    (tmp_path / "copy.toml").write_text(capsys.readouterr().out)
    assert load_recipe(str(tmp_path / "copy.toml")) == load_recipe(name)


def test_a_dry_run_prints_what_would_be_done_and_does_nothing(capsys, tmp_path):
    options = ["--generator.width", "24", "--seed", "5", "--data.val-fraction", "0.2", "--fit.trackers"]
    out = tmp_path / "run"
    assert main(["train", "--recipe", "digits-dim", "--out", str(out), "--dry-run", *options]) == 0
    (tmp_path / "resolved.toml").write_text(capsys.readouterr().out)
    base = load_recipe("digits-dim")
    assert load_recipe(str(tmp_path / "resolved.toml")) == dataclasses.replace(
        base,
        generator=dataclasses.replace(base.generator, width=24),
        data=dataclasses.replace(base.data, val_fraction=0.2),
        fit=dataclasses.replace(base.fit, seed=5, trackers=()),
    )
    assert not out.exists()


def test_the_data_root_comes_from_the_environment(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DIM_DATA_ROOT", str(tmp_path / "data"))
    assert main(["train", "--recipe", "mnist-dim2023", "--dry-run"]) == 0
    assert f'root = "{tmp_path / "data"}"' in capsys.readouterr().out
    assert main(["train", "--recipe", "mnist-dim2023", "--data-root", "here", "--dry-run"]) == 0
    assert 'root = "here"' in capsys.readouterr().out


def test_train_sample_and_evaluate(run, tmp_path, capsys):
    assert (run / "report.html").is_file()
    assert main(["sample", str(run), "--ipc", "3", "--out", str(tmp_path / "set")]) == 0
    assert "30 images of 10 classes" in capsys.readouterr().out
    subject = dim.load_set(tmp_path / "set")
    expected = dim.sample_set(dim.load_generator(run), ipc=3)
    assert torch.equal(subject.images, expected.images)

    arguments = ["evaluate", str(tmp_path / "set"), str(run), "--ipc", "2", "--track", "stream", "fixed", "--seeds", "2"]
    controls = ["--controls", "random", "oracle", "full", "--json", str(tmp_path / "scores.json"), "--split", "val"]
    assert main([*arguments, *controls]) == 0
    table = capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    kinds = [(score["name"], score["track"], score["ipc"]) for score in scores]
    assert kinds == [
        (str(tmp_path / "set"), "fixed", 3),
        (str(run), "stream", 2),
        (str(run), "fixed", 2),
        ("random real", "fixed", 3),
        ("random real", "fixed", 2),
        ("real stream (oracle)", "stream", 2),
        ("full data", "full", None),
    ]
    for score in scores:
        assert (score["n"], score["seeds"], score["split"], score["student"]) == (2, [0, 1], "val", "convnet:width=4")
        assert score["mean"] == pytest.approx(sum(score["accuracies"]) / 2)
        assert sum(score["bytes"].values()) > 0
        assert score["protocol"]["epochs"] == 1
    for text in ("oracle", "stream", "fixed", f"{scores[0]['mean']:.1f}"):
        assert text in table
    assert "<h2>Scores" in (run / "report.html").read_text()


def test_coresets_beside_a_set(small_set, tmp_path, capsys, monkeypatch):
    """One row each, of as many images; and scored by the end that was asked for."""
    for method in ("forgetting", "el2n"):
        quick = ScoringConfig(student="convnet:width=4", epochs=1, min_steps=0)
        monkeypatch.setattr(CORESETS.load(method), "scoring", quick)
    arguments = ["evaluate", str(small_set), "--seeds", "1", "--json", str(tmp_path / "scores.json")]
    controls = ["random", "herding", "k-center", "forgetting", "el2n", "oracle", "full"]
    assert main([*arguments, "--controls", *controls, "--coreset-end", "hardest"]) == 0
    table = capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    names = ["random real", "herding real", "k-center real", "hardest forgetting real", "hardest el2n real"]
    assert [score["name"] for score in scores] == [str(small_set), *names, "full data"]  # no stream row, so no oracle
    for score in scores[1:-1]:
        assert (score["track"], score["ipc"], score["bytes"]) == ("fixed", 2, {"images": 1280, "labels": 20})
        assert score["name"] in table
    assert scores[2]["made"]["features"]["accuracy"] > 90
    assert scores[4]["made"]["scoring"]["student"] == "convnet:width=4"


@pytest.mark.parametrize("name", ["x[/red]y", "a[b]c $x^{$", "_\x1b[31m\nline", "<b>bold</b>"])
def test_names_of_sets_are_text(small_set, name, tmp_path, capsys, monkeypatch):
    """After training, too, when a table, a picture and a page are made."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_set, name)
    quick = ["--seeds", "1", "--protocol.epochs", "1"]
    assert main(["evaluate", name, *quick, "--json", "scores.json"]) == 0
    output, told = capsys.readouterr()
    shown = name.encode("unicode_escape").decode() if "\x1b" in name else name
    assert shown in output
    assert told.startswith(f"{shown}, fixed IPC 2, ")
    assert main(["compare", name, *quick, "--ipc", "1", "--picture", "all.png", "--html", "all.html"]) == 0
    output, told = capsys.readouterr()
    assert shown in output
    assert "\x1b" not in output + told
    assert "<b>" not in Path("all.html").read_text()


def test_compare_sets_runs_and_scores(run, small_set, tmp_path, capsys):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    protocol = ["--seeds", "2", "--protocol.epochs", "2"]
    assert main(["evaluate", str(small_set), "--controls", "random", "--json", str(first), *protocol]) == 0
    before = (run / "report.html").read_bytes()
    arguments = ["compare", str(first), str(small_set), str(run), "--ipc", "1", "2", "--controls", "random", "oracle", "full"]
    outputs = ["--json", str(second), "--picture", str(tmp_path / "out.png"), "--html", str(tmp_path / "out.html")]
    capsys.readouterr()
    assert main([*arguments, *outputs, "--seeds", "2"]) == 0  # the protocol is that of the rows in the file
    tables, told = capsys.readouterr()
    measured = json.loads(first.read_text())["scores"]
    scores = json.loads(second.read_text())["scores"]
    assert "hlr" in scores[0]  # follows from the row of the full data, which is new
    assert [{key: value for key, value in score.items() if key != "hlr"} for score in scores[:2]] == measured
    assert [(score["name"], score["track"], score["ipc"]) for score in scores[2:]] == [
        (str(run), "stream", 1),
        (str(run), "fixed", 1),
        (str(run), "stream", 2),
        (str(run), "fixed", 2),
        ("random real", "fixed", 1),
        ("real stream (oracle)", "stream", 1),
        ("real stream (oracle)", "stream", 2),
        ("full data", "full", None),
    ]
    assert {score["protocol"]["epochs"] for score in scores} == {2}
    # The set was drawn from the run, so that the run's own of this size is the same and was not trained on again.
    assert scores[5]["accuracies"] == measured[0]["accuracies"]
    assert told.count("fixed") == 2
    training = dim.load_generator(run).info["about"]["seconds"]
    assert scores[0]["made"]["seconds"] == training + dim.load_set(small_set).info["seconds"]
    assert scores[2]["made"]["seconds"] == training
    for text in (
        "digits, fixed track",
        "digits, stream track",
        "digits, full data",
        "seconds to produce",
        "2 epochs at batch size",
    ):
        assert text in tables
    with Image.open(tmp_path / "out.png") as picture:
        picture.load()
    assert "<h2>digits, stream track" in (tmp_path / "out.html").read_text()
    assert (run / "report.html").read_bytes() == before
    # The tables again, from the file alone; and nothing is measured twice.
    assert main(["compare", str(second)]) == 0
    assert capsys.readouterr() == (tables, "")
    assert main(["compare", str(second), str(run), "--ipc", "2", "--seeds", "2"]) == 0
    assert capsys.readouterr() == (tables, "")


def test_a_row_of_another_protocol_is_marked(small_set, tmp_path, capsys):
    for epochs in (1, 2):
        arguments = ["evaluate", str(small_set), "--seeds", "1", "--protocol.epochs", str(epochs)]
        assert main([*arguments, "--json", str(tmp_path / f"{epochs}.json")]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "1.json"), str(tmp_path / "2.json")]) == 0
    table = capsys.readouterr().out
    assert "differs in" in table
    assert "epochs 2" in table


def test_coverage_of_a_run_and_a_set(run, small_set, tmp_path, capsys):
    options = ["--samples", "200", "--seed", "3", "--json", str(tmp_path / "out.json"), "--panel", str(tmp_path / "out.png")]
    assert main(["coverage", str(small_set), str(run), *options]) == 0
    table = capsys.readouterr().out
    rows = json.loads((tmp_path / "out.json").read_text())["scores"]
    names = [(row["name"], row["images"], row["seed"]) for row in rows]
    # One control for each size, so that every row has one that it may be compared with.
    expected = [(str(small_set), 20, 3), (str(run), 200, 3), ("real, held out", 20, 3), ("real, held out", 200, 3)]
    assert names == expected
    assert rows[3]["metrics"]["coverage"] > 0.9
    for row in rows:
        assert row["features"] == rows[0]["features"]
        assert row["features"]["accuracy"] > 90
    assert f"{rows[3]['metrics']['coverage']:.3f}" in table
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.height == 20 * 50 + 2
    assert "<h2>Coverage" in (run / "report.html").read_text()
    # The report's own row comes first: the classes are its own.
    assert json.loads((run / "report.json").read_text())["coverage"]["rows"][0]["name"] == str(run)


def test_coverage_of_a_folder_of_photos(recipe, photos, tmp_path):
    data = ["--dataset", "folder", "--data-root", str(photos), "--resolution", "8"]
    path = tmp_path / "run"
    assert (
        main(["train", "--recipe", recipe, "--out", str(path), *data, "--stage-one.epochs", "1", "--stage-two.epochs", "1"]) == 0
    )
    assert main(["coverage", str(path)]) == 0  # the run knows where its data lay


def test_the_protocol_can_be_changed(small_set, tmp_path):
    arguments = ["evaluate", str(small_set), "--seeds", "1", "--json", str(tmp_path / "scores.json")]
    assert main([*arguments, "--students", "alexnet:width=2", "convnet:width=2", "--protocol.epochs", "3"]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert [(score["student"], score["steps"]) for score in scores] == [("alexnet:width=2", 3), ("convnet:width=2", 3)]


def test_subjects_may_stand_behind_an_option_that_takes_several_values(small_set, tmp_path):
    scores = tmp_path / "scores.json"
    arguments = ["--seeds", "1", "--json", str(scores), "--protocol.epochs", "1", "--students", "convnet:width=2", str(small_set)]
    assert main(["evaluate", *arguments]) == 0
    assert [score["name"] for score in read_json(scores)["scores"]] == [str(small_set)]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("--students convnet . hub:a/b", ". hub:a/b --students convnet"),
        ("--students convnet", "--students convnet"),
        ("--students .", "--students ."),
        ("--json . .", ". --json ."),
        (". --students convnet .", ". --students convnet ."),
        ("--students convnet nowhere-at-all", "--students convnet nowhere-at-all"),
        ("--students convnet . --seeds 1", ". --students convnet --seeds 1"),
        ("--students convnet resnet18 . --seeds 1", ". --students convnet resnet18 --seeds 1"),
        ("--ipc 1 2 . hub:a/b --track stream .", ". hub:a/b . --ipc 1 2 --track stream"),
        ("--controls random full . --json out.json", ". --controls random full --json out.json"),
        ("--seeds=1 . --ipc 1", "--seeds=1 . --ipc 1"),
        ("", ""),
    ],
)
def test_only_what_is_there_is_taken_for_a_subject(given, wanted):
    assert subjects_first(given.split()) == wanted.split()


def test_counts_classes_seed_and_format(run, tmp_path):
    whole = dim.sample_set(dim.load_generator(run), ipc=5, seed=4)
    arguments = ["sample", str(run), "--seed", "4", "--format", "npz", "--batch-size", "3"]
    assert main([*arguments, "--counts", "3=2", "7=5", "--out", str(tmp_path / "counts")]) == 0
    counts = dim.load_set(tmp_path / "counts")
    assert (tmp_path / "counts" / "data.npz").is_file()
    for label, count in ((3, 2), (7, 5)):
        assert torch.equal(counts.images[counts.labels == label], whole.images[whole.labels == label][:count])
    assert len(counts) == 7
    assert main([*arguments, "--ipc", "5", "--classes", "0", "9", "--out", str(tmp_path / "classes")]) == 0
    assert dim.load_set(tmp_path / "classes").labels.tolist() == [0, 9] * 5


@pytest.mark.parametrize(("text", "number"), [("1", 0), ("2", 1), ("0", 0), ("3", 3), ("cat", 3)])
def test_a_class_is_its_name_before_it_is_a_number(text, number, capsys):
    names = ("1", "2", "10", "cat")  # folders that are numbered from 1
    assert _class_number(text, names) == number
    told = capsys.readouterr().err
    assert ("taken as the class of that name" in told) == (text in ("1", "2"))


def test_some_classes_in_folders_are_refused_before_any_is_drawn(wrong, run, tmp_path):
    for size in (("--ipc", 2, "--classes", 2, 7), ("--counts", "3=2")):
        message = wrong("sample", run, *size, "--out", tmp_path / "set")
        assert "readers number the folders that they find, so labels would be others; use --format " in message
    assert not (tmp_path / "set").exists()


def test_a_format_of_somebodys_own(run, tmp_path, monkeypatch):
    (tmp_path / "own_format.py").write_text("from dim.data.formats.npz import Npz\n\n\nclass Own(Npz):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(FORMATS, "_external", {})
    assert main(["sample", str(run), "--ipc", "1", "--out", str(tmp_path / "set"), "--format", "own_format:Own"]) == 0
    assert json.loads((tmp_path / "set" / "set.json").read_text())["storage"] == "own_format:Own"
    assert len(dim.load_set(tmp_path / "set")) == 10


def test_overwrite(run, small_set, tmp_path, wrong):
    arguments = ["sample", run, "--ipc", 1, "--out", tmp_path / "set"]
    assert main([str(argument) for argument in arguments]) == 0
    assert "--overwrite" in wrong(*arguments)
    assert main([*map(str, arguments), "--overwrite"]) == 0


def test_a_run_resumes_by_its_own_configuration(recipe, run, tmp_path):
    path = tmp_path / "run"
    assert main(["train", "--recipe", recipe, "--out", str(path)]) == 0
    (path / "generator.safetensors").unlink()
    assert main(["train", "--out", str(path), "--resume"]) == 0
    first, second = (load_tensors(folder / "generator.safetensors")[0] for folder in (run, path))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_folder_of_photos_from_training_to_scores(recipe, photos, tmp_path, capfd, wrong):
    data = ["--dataset", "folder", "--data-root", str(photos), "--resolution", "8"]
    path, fixed = tmp_path / "run", tmp_path / "set"
    given = ["train", "--recipe", recipe, "--out", str(path), *data]
    assert "stage_one.epochs is 0.02, which is no step for " in wrong(*given)
    assert main([*given, "--stage-one.epochs", "1", "--stage-two.epochs", "0"]) == 0
    said = capfd.readouterr().err
    assert "steps of training in all, as " in said
    assert "was made for digits and these are " in said
    assert "try --stage-one.epochs " in said
    about = read_document(path / "run.json")["config"]["about"]
    assert about == {"title": f"folder, with the settings of {recipe}", "source": "", "expect": ""}
    assert main(["sample", str(path), "--classes", "dog", "--counts", "--ipc", "2", "--out", str(fixed), "--format", "npz"]) == 0
    assert dim.load_set(fixed).labels.tolist() == [1, 1]
    assert main(["evaluate", str(path), "--ipc", "2", "--seeds", "1", "--data-root", str(photos)]) == 0
    # A set does not say where its data lie, and finds them where they were found before.
    assert main(["sample", str(path), "--ipc", "2", "--out", str(tmp_path / "both")]) == 0
    assert str(photos) not in (tmp_path / "both" / "set.json").read_text()
    assert main(["evaluate", str(tmp_path / "both"), "--controls", "random", "--seeds", "1"]) == 0


def test_shards_from_training_to_scores(recipe, photos, tmp_path):
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for number, file in enumerate(sorted(photos.rglob("*.png"))):
            archive.add(file, f"{number}.png")
            label = file.parent.name.encode()
            member = tarfile.TarInfo(f"{number}.cls")
            member.size = len(label)
            archive.addfile(member, io.BytesIO(label))
    (tmp_path / "classes.txt").write_text("\n".join(sorted(folder.name for folder in photos.iterdir())))
    data = ["--dataset", "webdataset", "--data-root", str(tmp_path), "--resolution", "8", "--data.memory-gib", "0"]
    path, scores = tmp_path / "run", tmp_path / "scores.json"
    assert (
        main(["train", "--recipe", recipe, "--out", str(path), *data, "--stage-one.epochs", "1", "--stage-two.epochs", "1"]) == 0
    )
    assert main(["train", "--out", str(path), "--resume"]) == 0
    evaluate = ["evaluate", str(path), "--ipc", "2", "--seeds", "1", "--controls", "random", "--data-root", str(tmp_path)]
    assert main([*evaluate, "--json", str(scores)]) == 0
    assert {row["data"]["name"] for row in json.loads(scores.read_text())["scores"]} == {"webdataset"}


# --- trajectory matching -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trajectory_recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "trajectory.toml"
    path.write_text(to_toml(TINY_TRAJECTORY))
    return str(path)


@pytest.fixture(scope="module")
def store(trajectory_recipe, tmp_path_factory):
    """Recorded experts."""
    path = tmp_path_factory.mktemp("experts") / "store"
    assert main(["experts", "--recipe", trajectory_recipe, "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def distilled(trajectory_recipe, store, tmp_path_factory):
    """A distilled set."""
    path = tmp_path_factory.mktemp("distilled") / "set"
    assert main(["distill", "--recipe", trajectory_recipe, "--experts", str(store), "--out", str(path)]) == 0
    return path


@pytest.fixture
def refused(capfd):
    """Run a command that must end with status 2: the single line it prints, without `dim: `."""

    def call(*arguments) -> str:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        output, errors = capfd.readouterr()
        assert (status, output) == (2, ""), errors
        assert errors.startswith("dim: "), errors
        assert errors.endswith("\n")
        assert errors.count("\n") == 1, errors
        return errors.removeprefix("dim: ")

    return call


def test_experts_say_what_was_recorded(trajectory_recipe, tmp_path, capsys):
    assert main(["experts", "--recipe", trajectory_recipe, "--out", str(tmp_path / "store")]) == 0
    text = capsys.readouterr().out
    made = ExpertStore.open(tmp_path / "store")
    assert f"2 experts of {made.layout.parameters:,} weights" in text
    assert str(tmp_path / "store") in text
    assert "checkpoints at moments 0 to 3, which are 1 epochs apart" in text
    accuracy = made.summary()["accuracy"]
    assert f"{accuracy[0]:.1f} at 0" in text
    assert f"{accuracy[3]:.1f} at 3" in text
    assert f"on the test part at the end: {made.summary()['test_accuracy']:.1f}" in text


def test_from_experts_to_scores(trajectory_recipe, store, tmp_path, capsys):
    out = tmp_path / "set"
    assert main(["distill", "--recipe", trajectory_recipe, "--experts", str(store), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"10 images in {out}" in text
    assert f"dim evaluate {out}" in text
    page = (out / "report.html").read_text()
    for heading in ("Samples", "Commands", "Configuration"):
        assert f"<h2>{heading}" in page
    assert "<h2>Scores" not in page
    arguments = ["evaluate", str(out), "--seeds", "2", "--controls", "random", "--json", str(tmp_path / "scores.json")]
    assert main(arguments) == 0
    first, second = json.loads((tmp_path / "scores.json").read_text())["scores"]
    step_size = dim.load_set(out).info["step_size"]
    assert [(score["name"], score["track"], score["ipc"], score["steps"]) for score in (first, second)] == [
        (str(out), "fixed", 1, 2),
        ("random real", "fixed", 1, 2),
    ]
    assert (first["protocol"]["lr"], second["protocol"]["lr"]) == (step_size, TINY_TRAJECTORY.protocol.lr)
    assert "<h2>Scores" in (out / "report.html").read_text()
    assert main([*arguments, "--protocol.no-learned-lr", "--protocol.lr", "0.25"]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["scores"][0]["protocol"]["lr"] == 0.25


def test_options_are_laid_over_the_recipe(trajectory_recipe, store, tmp_path):
    options = ["--images.ipc", "3", "--labels.kind", "learned", "--trajectory.gradient", "frozen", "--seed", "4"]
    arguments = ["distill", "--recipe", trajectory_recipe, "--experts", str(store), "--out", str(tmp_path / "set")]
    assert main([*arguments, *options, "--distill.iterations", "1"]) == 0
    subject = dim.load_set(tmp_path / "set")
    assert (subject.ipc, subject.info["iterations"]) == (3, 1)
    assert subject.soft is not None
    config = read_json(tmp_path / "set" / "run.json")["config"]
    assert (config["distill"]["seed"], config["trajectory"]["gradient"], config["trajectory"]["steps"]) == (4, "frozen", 2)


def test_a_store_is_converted_to_waypoints(store, trajectory_recipe, tmp_path, capsys):
    arguments = ["experts", "--recipe", trajectory_recipe, "--to-waypoints", str(store), "--out", str(tmp_path / "few")]
    assert main([*arguments, "--experts.waypoints", "3", "--experts.smooth", "--experts.storage", "bfloat16"]) == 0
    assert "checkpoints at moments 0, 2, 3" in capsys.readouterr().out
    few, whole = ExpertStore.open(tmp_path / "few"), ExpertStore.open(store)
    assert (few.layout.moments, few.layout.dtype) == ((0, 2, 3), "bfloat16")
    mean = (whole.weights(1, 1) + whole.weights(1, 3)) / 2
    assert torch.equal(few.weights(1, 1), mean.bfloat16().float())
    options = ["--trajectory.path", "convex", "--trajectory.continuous", "--experts", str(tmp_path / "few")]
    made = ["--trajectory.waypoints", "3", "--trajectory.smooth"]
    assert main(["distill", "--recipe", trajectory_recipe, "--out", str(tmp_path / "set"), *options, *made]) == 0


def test_converting_needs_no_recipe(store, tmp_path):
    """Nothing in one would matter."""
    assert main(["experts", "--to-waypoints", str(store), "--out", str(tmp_path / "few"), "--experts.waypoints", "2"]) == 0
    assert ExpertStore.open(tmp_path / "few").layout.moments == (0, 3)


def interrupted(monkeypatch, owner, name: str, count: int, arguments: list[str], capfd) -> str:
    """Ctrl-C in the middle of a command: what it prints."""
    original, calls = getattr(owner, name), 0

    def call(*given):
        nonlocal calls
        calls += 1
        if calls == count:
            signal.raise_signal(signal.SIGINT)
        return original(*given)

    capfd.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, call)
        assert main(arguments) == 130
    output, errors = capfd.readouterr()
    assert output.startswith("data: digits: 10 classes")  # and no more
    assert output.count("\n") == 1
    assert errors.startswith("dim: interrupted")
    assert errors.count("\n") == 1
    return errors.rpartition("continue with: dim ")[2].strip()


def test_experts_that_are_interrupted_are_continued_by_what_is_printed(trajectory_recipe, store, tmp_path, monkeypatch, capfd):
    """Without the recipe: the folder has the configuration."""
    arguments = ["experts", "--recipe", trajectory_recipe, "--out", str(tmp_path / "store")]
    remedy = interrupted(monkeypatch, record._Recorder, "_step", 7, arguments, capfd)
    assert remedy == f"experts --out {tmp_path / 'store'} --resume"
    assert main(remedy.split()) == 0
    assert (tmp_path / "store" / "weights.bin").read_bytes() == (store / "weights.bin").read_bytes()
    assert read_json(tmp_path / "store" / "experts.json") == read_json(store / "experts.json")


def test_a_distillation_that_is_interrupted_is_continued_by_what_is_printed(
    trajectory_recipe, store, distilled, tmp_path, monkeypatch, capfd
):
    """Without the recipe, and without the experts: the folder has both."""
    out = tmp_path / "set"
    arguments = ["distill", "--recipe", trajectory_recipe, "--experts", str(store), "--out", str(out)]
    remedy = interrupted(monkeypatch, Distiller, "iterate", 2, arguments, capfd)
    assert remedy == f"distill --out {out} --resume"
    assert main(remedy.split()) == 0
    (own, _), (expected, _) = (load_tensors(folder / "checkpoint.safetensors") for folder in (out, distilled))
    assert all(torch.equal(own[name], expected[name]) for name in expected)


@pytest.mark.parametrize("command", ["experts", "distill"])
def test_a_dry_run_prints_a_recipe_for_the_same_command(command, trajectory_recipe, capsys, tmp_path):
    options = {
        "experts": ["--student", "convnet:width=9", "--zca", "--experts.every", "0.5", "--experts.device", "cuda"],
        "distill": ["--student", "convnet:width=9", "--zca", "--images.lr", "3", "--trajectory.max-start-at-first", "1"],
    }[command]
    options += ["--trajectory.grows-for", "7"] * (command == "distill") + ["--data.split-seed", "3"]
    out = tmp_path / "out"
    assert main([command, "--recipe", trajectory_recipe, "--out", str(out), "--dry-run", *options]) == 0
    (tmp_path / "resolved.toml").write_text(capsys.readouterr().out)
    changes = {"student": "convnet:width=9", "zca": True}
    data = dataclasses.replace(TINY_TRAJECTORY.data, split_seed=3)
    if command == "experts":
        experts = dataclasses.replace(TINY_TRAJECTORY.experts, every=0.5, device="cuda")
        expected = RecordConfig(about=TINY_TRAJECTORY.about, data=data, experts=experts, **changes)
    else:
        trajectory = dataclasses.replace(TINY_TRAJECTORY.trajectory, max_start_at_first=1.0, grows_for=7)
        images = dataclasses.replace(TINY_TRAJECTORY.images, lr=3.0)
        expected = dataclasses.replace(TINY_TRAJECTORY, data=data, trajectory=trajectory, images=images, **changes)
    loaded = load_recipe_for(command, str(tmp_path / "resolved.toml"))
    for field in dataclasses.fields(expected):
        assert getattr(loaded, field.name) == getattr(expected, field.name)
    assert main([command, "--recipe", str(tmp_path / "resolved.toml"), "--dry-run"]) == 0
    assert capsys.readouterr().out == (tmp_path / "resolved.toml").read_text()
    assert not out.exists()


@pytest.mark.parametrize("command", ["experts", "distill"])
@pytest.mark.parametrize("name", ["cifar10-mtt-ipc1", "cifar10-mct-ipc1", "cifar100-datm-ipc10", "imagenet1k-tesla-ipc1"])
def test_a_dry_run_of_a_published_recipe_finds_the_data_root(command, name, capsys, monkeypatch, tmp_path):
    for place in (f"{part}/{name}/{number}.png" for part in ("train", "val") for name in "ab" for number in range(4)):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"x")  # a dry run opens none
    assert main([command, "--recipe", name, "--dry-run", "--data-root", "here"]) == 0
    assert 'root = "here"' in capsys.readouterr().out
    monkeypatch.setenv("DIM_DATA_ROOT", str(tmp_path))
    assert main([command, "--recipe", name, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert f'root = "{tmp_path}"' in text
    assert f"[{'experts' if command == 'experts' else 'trajectory'}]" in text


def test_a_recipe_for_another_command(refused, recipe, trajectory_recipe, store, tmp_path):
    for name in ("digits-mtt-ipc1", trajectory_recipe):
        assert "'dim experts' and 'dim distill'" in refused("train", "--recipe", name, "--out", tmp_path / "run")
    for name in ("digits-dim", recipe):
        assert "is for 'dim train'" in refused("experts", "--recipe", name, "--out", tmp_path / "run")
        assert "is for 'dim train'" in refused("distill", "--recipe", name, "--experts", store, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_distillation_without_experts(refused, trajectory_recipe, tmp_path):
    arguments = ["distill", "--recipe", trajectory_recipe, "--out", tmp_path / "set"]
    for more in ([], ["--resume"]):
        assert "--experts" in refused(*arguments, *more)
    for path in (tmp_path, tmp_path / "nowhere"):
        message = refused(*arguments, "--experts", path)
        assert f"{path} holds no experts" in message
    assert list(tmp_path.iterdir()) == []


def test_a_distillation_without_experts_as_a_process(tmp_path):
    done = dim_process("distill", "--recipe", "digits-mtt-ipc1", "--out", tmp_path / "set")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dim: no experts: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["experts", "distill"])
def test_a_trajectory_command_without_a_recipe_or_a_folder(refused, trajectory_recipe, store, tmp_path, command):
    more = ["--experts", store] * (command == "distill")
    assert "--recipe" in refused(command, "--out", tmp_path / "new", *more)
    assert "--out" in refused(command, "--recipe", trajectory_recipe, *more)
    assert f"'dim {command}'" in refused(command, "--out", tmp_path / "new", "--resume")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("command", "option", "nearest"),
    [
        ("experts", "--experts.cuont", "--experts.count"),
        ("experts", "--to-waypoint", "--to-waypoints"),
        ("distill", "--expert", "--experts"),
        ("distill", "--trajectory.step", "--trajectory.steps"),
        ("distill", "--step-size.inital", "--step-size.initial"),
    ],
)
def test_an_unknown_trajectory_option_names_the_nearest(refused, trajectory_recipe, tmp_path, command, option, nearest):
    message = refused(command, "--recipe", trajectory_recipe, "--out", tmp_path / "new", option, "3")
    assert option in message
    assert nearest in message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("experts", "--experts.count", "0"),
        ("experts", "--experts.count", "many"),
        ("experts", "--experts.optimizer", "adam"),
        ("experts", "--experts.augment", "crops"),
        ("experts", "--experts.waypoints", "9"),
        ("experts", "--experts.device", "tpu"),
        ("experts", "--student", "convnett"),
        ("experts", "--student", "resnet18"),
        ("experts", "--dataset", "digitz"),
        ("distill", "--trajectory.gradient", "exact"),
        ("distill", "--trajectory.path", "straight"),
        ("distill", "--trajectory.augment", "crops"),
        ("distill", "--trajectory.max-start", "0"),
        ("distill", "--trajectory.max-start", "7"),
        ("distill", "--trajectory.epochs", "0.5"),
        ("distill", "--images.init", "random"),
        ("distill", "--images.ipc", "500"),
        ("distill", "--labels.kind", "soft"),
        ("distill", "--step-size.initial", "0"),
        ("distill", "--distill.device", "tpu"),
        ("distill", "--student", "convnet:width=9,depth=2"),
        ("distill", "--protocol.students", "convnett"),
        ("distill", "--protocol.augment", "crops"),
    ],
)
def test_an_impossible_value_of_a_trajectory_option(refused, trajectory_recipe, store, tmp_path, command, option, value):
    """Found before anything is trained or written."""
    more = ["--experts", store] * (command == "distill")
    message = refused(command, "--recipe", trajectory_recipe, "--out", tmp_path / "new", *more, option, value)
    assert value in message
    assert not (tmp_path / "new").exists()


def test_experts_that_cannot_be_converted(refused, store, trajectory_recipe, tmp_path):
    arguments = ["experts", "--recipe", trajectory_recipe, "--out", tmp_path / "few", "--to-waypoints"]
    assert "--experts.waypoints N" in refused(*arguments, store)
    assert "waypoints is 5: expected 2 to 4" in refused(*arguments, store, "--experts.waypoints", 5)
    assert "no experts" in refused(*arguments, tmp_path, "--experts.waypoints", 2)
    assert not (tmp_path / "few").exists()
    assert main([str(argument) for argument in (*arguments, store, "--experts.waypoints", 2)]) == 0
    before = {file: file.read_bytes() for file in (tmp_path / "few").iterdir()}
    assert str(tmp_path / "few") in refused(*arguments, store, "--experts.waypoints", 3)
    again = [*arguments[:4], tmp_path / "fewer", "--to-waypoints", tmp_path / "few", "--experts.waypoints", 2]
    assert "holds waypoints already" in refused(*again)
    assert {file: file.read_bytes() for file in (tmp_path / "few").iterdir()} == before


def test_resuming_with_other_settings_or_data(refused, store, distilled, tmp_path):
    cases = [
        (("experts", "--out", store, "--experts.lr", "0.01"), "experts.lr"),
        (("experts", "--out", store, "--student", "convnet"), "student"),
        (("experts", "--out", store, "--data.split-seed", "1"), "other data"),
        (("distill", "--out", distilled, "--images.lr", "1"), "images.lr"),
        (("distill", "--out", distilled, "--distill.iterations", "5"), "distill.iterations"),
        (("distill", "--out", distilled, "--data.split-seed", "1"), "split"),
    ]
    before = {file: file.read_bytes() for folder in (store, distilled) for file in folder.rglob("*") if file.is_file()}
    for arguments, said in cases:
        assert said in refused(*arguments, "--resume")
    assert {file: file.read_bytes() for file in before} == before


def test_folders_of_one_kind_of_run_are_not_taken_for_another(
    refused, run, store, distilled, recipe, trajectory_recipe, tmp_path
):
    """Nothing is written into them either: what they hold may have taken weeks."""
    folders = {"train": tmp_path / "run", "experts": tmp_path / "store", "distill": tmp_path / "set"}
    for source, copy in zip((run, store, distilled), folders.values(), strict=True):
        shutil.copytree(source, copy)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for command, option in (("train", recipe), ("experts", trajectory_recipe), ("distill", trajectory_recipe)):
        more = ["--experts", store] * (command == "distill")
        for kind, folder in folders.items():
            assert str(folder) in refused(command, "--recipe", option, "--out", folder, *more)
            if kind != command:
                assert f"'dim {kind}'" in refused(command, "--out", folder, "--resume")
                assert f"'dim {kind}'" in refused(command, "--recipe", option, "--out", folder, *more, "--resume")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_folders_that_hold_no_generator(refused, store, distilled, tmp_path):
    for folder in (store, distilled):
        assert str(folder) in refused("sample", folder, "--ipc", 1, "--out", tmp_path / "set")
    assert str(store) in refused("evaluate", store)
    assert not (tmp_path / "set").exists()


def test_experts_that_diverge(wrong, trajectory_recipe, tmp_path):
    message = wrong("experts", "--recipe", trajectory_recipe, "--out", tmp_path / "store", "--experts.lr", "1e30")
    assert "not finite" in message
    assert "--experts.lr" in message


def test_a_distillation_that_diverges(wrong, trajectory_recipe, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["distill", "--recipe", trajectory_recipe, "--experts", store, "--out", "set"]
    message = wrong(*arguments, "--step-size.initial", "1e30", "--distill.iterations", "120", "--trajectory.steps", "2")
    assert "--step-size.initial" in message
    assert "set/failed.safetensors" in message


def test_a_page_is_written_again(run, capsys, tmp_path):
    (run / "report.html").unlink(missing_ok=True)
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    assert "<h2>Samples" in (run / "report.html").read_text()
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run" in capsys.readouterr().err


# --- mistakes ----------------------------------------------------------------------------------------------------------------


def test_an_unknown_command(wrong):
    assert "'train'" in wrong("trian")


def test_an_unknown_recipe(wrong, tmp_path):
    assert "'digits-dim'" in wrong("train", "--recipe", "digit-dim", "--out", tmp_path / "run")
    assert "'digits-dim'" in wrong("recipes", "digit-dim")
    assert "nothing.toml" in wrong("train", "--recipe", tmp_path / "nothing.toml", "--out", tmp_path / "run")


def test_an_unknown_recipe_as_a_process(tmp_path):
    done = dim_process("train", "--recipe", "digit-dim", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.startswith("dim: unknown recipe 'digit-dim'. Did you mean 'digits-dim'?")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[generator]\nwidht = 3\n", "'width'"),
        ("[generatr]\nwidth = 3\n", "'generator'"),
        ("[generator]\nwidth = 0\n", "at least 1"),
        ('[generator]\nwidth = "wide"\n', "generator.width"),
        ("[generator\n", "not valid TOML"),
        ("", "is empty: expected tables of settings"),
        ("# nothing but a remark\n", "is empty: expected tables of settings"),
        (b"[about]\ntitle = '\xff'\n", "is not text in UTF-8 (byte 17): save it so"),
        ("[generator]\nwidth = " + "9" * 5000, "is not valid TOML"),
        ("x = " + "[" * 100_000, "is nested too deeply"),
        ("[fit]\nseed = " + "9" * 25, "fit.seed is 1.000e+25: expected a whole number of at most"),
        ('[about]\ntitle = "\\u0000"', "about.title is '\\x00': expected text without a NUL character"),
        ("#" * (2**20 + 1), "has more than 1 MiB"),
    ],
)
def test_a_recipe_with_a_mistake(wrong, tmp_path, content, said):
    (tmp_path / "mine.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in wrong("train", "--recipe", tmp_path / "mine.toml", "--out", tmp_path / "run")


def test_a_title_with_bytes_that_are_no_text_is_no_recipe(wrong):
    """As the system gives the name of a file that is not UTF-8."""
    assert "which TOML cannot hold" in wrong("train", "--recipe", "digits-dim", "--about.title", "\udcff", "--dry-run")


@pytest.mark.parametrize(
    ("command", "option", "nearest"),
    [
        ("train", "--generator.widht", "--generator.width"),
        ("train", "--stage_two.lrr", "--stage-two.lr"),
        ("train", "--data-rot", "--data-root"),
        ("sample", "--ipcs", "--ipc"),
        ("evaluate", "--seedz", "--seeds"),
        ("evaluate", "--protocol.epoch", "--protocol.epochs"),
    ],
)
def test_an_unknown_option_names_the_nearest(wrong, run, tmp_path, command, option, nearest):
    given = {"train": ["--recipe", "digits-dim", "--out", tmp_path / "new"], "sample": [run, "--out", tmp_path / "new"]}
    message = wrong(command, *given.get(command, [run]), option, "3")
    assert option in message
    assert nearest in message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--generator.width", "wide"),
        ("--generator.width", "0"),
        ("--stage-one.lr", "-1"),
        ("--pool.source", "old"),
        ("--data.channels", "2"),
        ("--fit.device", "tpu"),
        ("--fit.ema", "1.0"),
        ("--dataset", "digitz"),
        ("--adversarial.augment", "crops"),
        ("--matching.augment", "crops"),
        ("--pool.augment", "crops"),
        ("--protocol.augment", "crops"),
        ("--protocol.students", "convnett"),
        ("--pool.students", "convnett"),
    ],
)
def test_an_impossible_value(wrong, recipe, tmp_path, option, value):
    """Found before the first step, also where it would matter in stage two only."""
    message = wrong("train", "--recipe", recipe, "--out", tmp_path / "run", option, value)
    assert value.removesuffix(".0") in message
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_missing_arguments(wrong, recipe, run, tmp_path):
    assert "--recipe" in wrong("train", "--out", tmp_path / "run")
    assert "--out" in wrong("train", "--recipe", recipe)
    assert "--out" in wrong("sample", run, "--ipc", 1)
    assert "--ipc" in wrong("sample", run, "--out", tmp_path / "set")
    wrong("evaluate")


def test_a_missing_data_root(wrong, tmp_path):
    arguments = ["train", "--recipe", "mnist-dim2023", "--out", tmp_path / "run", "--device", "cpu"]
    assert "--data-root" in wrong(*arguments)
    assert str(tmp_path / "nowhere") in wrong(*arguments, "--data-root", tmp_path / "nowhere")
    assert str(tmp_path) in wrong(*arguments, "--data-root", tmp_path)
    assert not (tmp_path / "run").exists()


def train_on(root: Path, recipe: str) -> list:
    return ["train", "--recipe", recipe, "--out", root.parent / "run", "--dataset", "folder", "--data-root", root]


@pytest.mark.parametrize("classes", [0, 1])
def test_a_folder_with_one_class_or_none(wrong, recipe, tmp_path, classes):
    (tmp_path / "photos").mkdir()
    for number in range(classes):
        write_images(tmp_path / "photos" / f"class{number}", 3)
    assert f"has {classes} class folder" in wrong(*train_on(tmp_path / "photos", recipe), "--resolution", 8)


def test_a_folder_without_a_resolution(wrong, recipe, photos):
    assert "--resolution" in wrong(*train_on(photos, recipe))


def test_an_unreadable_image(wrong, recipe, photos):
    (photos / "dog" / "3.png").write_bytes((photos / "dog" / "3.png").read_bytes()[:70])
    assert str(photos / "dog" / "3.png") in wrong(*train_on(photos, recipe), "--resolution", 8)


def test_a_class_with_fewer_images_than_asked(wrong, run, tmp_path):
    """Found before anything is trained, and not after hours."""
    arguments = ["evaluate", run, "--track", "fixed", "--ipc", 1, 150, "--controls", "random", "--seeds", 1]
    message = wrong(*arguments, "--json", tmp_path / "scores.json")
    assert "150 were asked for" in message


@pytest.mark.parametrize("ipc", ["0", "-3"])
def test_no_images_per_class(wrong, run, tmp_path, ipc):
    assert ipc in wrong("sample", run, "--ipc", ipc, "--out", tmp_path / "set")
    assert ipc in wrong("sample", run, "--counts", f"3={ipc}", "--out", tmp_path / "set")
    assert ipc in wrong("evaluate", run, "--ipc", ipc)
    assert ipc in wrong("evaluate", run, "--track", "fixed", "--ipc", ipc)
    assert not (tmp_path / "set").exists()


def test_what_cannot_be_compared(wrong, run, small_set, tmp_path, tiny):
    scores, other = tmp_path / "scores.json", tmp_path / "run"
    assert main(["evaluate", str(small_set), "--seeds", "1", "--split", "val", "--json", str(scores)]) == 0
    assert "nothing to compare" in wrong("compare")
    assert "no file" in wrong("compare", tmp_path / "none.json")
    assert "no run, folder or file" in wrong("compare", scores, tmp_path / "none")
    assert "is val accuracy: expected test accuracy" in wrong("compare", scores, small_set)
    assert "controls need the real data" in wrong("compare", scores, "--controls", "random")
    assert "ends in .png" in wrong("compare", scores, "--picture", tmp_path / "out.pdf")
    assert "ipc is 0" in wrong("compare", run, "--ipc", "0")
    assert "150 were asked for" in wrong("compare", run, "--ipc", "150", "--controls", "herding")
    assert "seeds is 0" in wrong("compare", small_set, "--seeds", "0")
    assert "Did you mean '--picture'" in wrong("compare", scores, "--pictures", "a.png")
    scores.write_text("{")
    assert "damaged" in wrong("compare", scores)
    # Digits too, but another part of them for training.
    (tmp_path / "other.toml").write_text(to_toml(dataclasses.replace(tiny, data=DataConfig(split_seed=1))))
    assert main(["train", "--recipe", str(tmp_path / "other.toml"), "--out", str(other)]) == 0
    message = wrong("compare", small_set, other, "--ipc", "1")
    assert "was made from digits" in message
    assert "same data and split" in message


def test_a_coreset_end_without_a_coreset_that_has_one(wrong, small_set):
    message = wrong("evaluate", small_set, "--controls", "random", "herding", "--coreset-end", "hardest")
    assert "add one of them" in message
    for command in ("evaluate", "compare"):
        assert "unknown control 'herdin'. Did you mean 'herding'?" in wrong(command, small_set, "--controls", "random", "herdin")
        assert "Did you mean 'oracle'?" in wrong(command, small_set, "--controls", "orcale")


def test_coverage_that_cannot_be_measured(wrong, run, tmp_path):
    (tmp_path / "text.safetensors").write_text("text")
    assert "nothing to measure" in wrong("coverage")
    assert "no run, folder or file" in wrong("coverage", tmp_path / "nothing")
    assert "samples is 5: expected at least 10" in wrong("coverage", run, "--samples", "5")
    assert "no safetensors file" in wrong("coverage", run, "--features", tmp_path / "text.safetensors")
    assert "no file" in wrong("coverage", run, "--features", "inception")
    assert "Did you mean '--samples'" in wrong("coverage", run, "--sample", "5")


@pytest.mark.parametrize("seeds", ["0", "-1"])
def test_no_seeds(wrong, small_set, seeds):
    assert seeds in wrong("evaluate", small_set, "--seeds", seeds)


def test_an_unknown_format(wrong, tmp_path):
    """Refused at once, not when the images are there."""
    arguments = ("sample", tmp_path / "none", "--ipc", 1, "--out", tmp_path / "set", "--format")
    assert "Did you mean 'safetensors'?" in wrong(*arguments, "safetensor")
    assert "package.module:Name" in wrong(*arguments, "no_such_module:Format")


@pytest.mark.parametrize("option", [("--classes", "ten"), ("--classes", "10"), ("--counts", "3"), ("--counts", "ten=3")])
def test_impossible_classes_and_counts(wrong, run, tmp_path, option):
    size = ("--ipc", 1) if option[0] == "--classes" else ()
    assert repr(option[1].partition("=")[0]) in wrong("sample", run, *size, *option, "--out", tmp_path / "set")


def test_a_run_folder_that_is_no_run(wrong, tmp_path):
    (tmp_path / "photos").mkdir()
    for path in (tmp_path / "photos", tmp_path / "nowhere"):
        for arguments in (["sample", path, "--ipc", 1, "--out", tmp_path / "set"], ["evaluate", path]):
            assert str(path) in wrong(*arguments)
        assert str(path) in wrong("train", "--out", path, "--resume")
    assert not (tmp_path / "set").exists()
    assert not (tmp_path / "nowhere").exists()


def test_a_relative_name_that_is_nothing_as_a_process(tmp_path):
    """It has the form of a repository of the Hub, which is not asked."""
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = dim_process("sample", "runs/digts", "--ipc", 1, "--out", "set", cwd=tmp_path, env=environment)
    assert done.returncode == 2
    expected = (
        "dim: no run, folder or file 'runs/digts': expected a set, or a run made by 'dim train'. Did you mean 'runs/digits'?"
    )
    assert done.stderr == f"{expected}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_classes_that_are_named_twice(wrong, run, tmp_path):
    given = ["sample", run, "--out", tmp_path / "set"]
    assert "counts has '3=1' and '3=2', which are one class" in wrong(*given, "--counts", "3=1", "4=1", "3=2")
    # Its name and its number.
    assert "classes has '3' and '03', which are one class" in wrong(*given, "--ipc", 1, "--classes", "3", "03")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ipc", 10**9], "10,000,000,000 images"),
        (["--ipc", 10**17], "1,000,000,000,000,000,000 images"),
        (["--counts", f"3={10**11}"], "100,000,000,000 images"),
        (["--ipc", 1, "--policy.steps", "graded", "--policy.candidates", 10**12], "1,000,000,000,000 candidates of a class"),
    ],
)
def test_more_images_than_memory_holds(wrong, run, tmp_path, options, said, store):
    """Refused before memory is asked for; a kernel may kill the process otherwise."""
    teacher = ["--teacher.folder", store] * ("--policy.steps" in options)
    message = wrong("sample", run, "--out", tmp_path / "set", *options, *teacher)
    assert message.startswith(said)
    assert "GiB are needed" in message
    assert "of memory are free; " in message
    assert not (tmp_path / "set").exists()


def test_data_at_a_resolution_that_memory_does_not_hold(tmp_path):
    with pytest.raises(InputError, match=r"1,797 images of 99999x99999 pixels: .* GiB are needed, .* lower --resolution"):
        load_data(DataConfig(resolution=99999))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_one_line_that_says_what_to_lower(wrong, recipe, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("dim.runs.train.Trainer.train_step", fail)
    message = wrong("train", "--recipe", recipe, "--out", tmp_path / "run")
    assert message.startswith("not enough memory (")
    assert "lower the batch size, the resolution (--resolution) or --data.memory-gib" in message


def test_an_error_that_is_a_fault_of_the_program_keeps_its_traceback(recipe, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("dim.runs.train.Trainer.train_step", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train", "--recipe", recipe, "--out", str(tmp_path / "run")])


def copy_with(run: Path, to: Path, change) -> Path:
    to.mkdir()
    for name in ("run.json", "generator.safetensors", "checkpoint.safetensors", "metrics.jsonl"):
        content = (run / name).read_bytes()
        (to / name).write_bytes(change(content) if name.endswith("safetensors") else content)
    return to


@pytest.mark.parametrize(
    "change",
    [lambda content: content[: len(content) // 2], lambda content: content[:-99] + b"x" * 99, lambda content: b""],
    ids=["truncated", "corrupted", "empty"],
)
def test_a_damaged_weight_file(wrong, run, recipe, tmp_path, change):
    damaged = copy_with(run, tmp_path / "damaged", change)
    for arguments in (["sample", damaged, "--ipc", 1, "--out", tmp_path / "set"], ["evaluate", damaged]):
        assert str(damaged / "generator.safetensors") in wrong(*arguments)
    for resume in (["--recipe", recipe], []):
        assert str(damaged / "checkpoint.safetensors") in wrong("train", *resume, "--out", damaged, "--resume")


@pytest.mark.parametrize("content", ["", "{}", '{"config"'])
def test_a_damaged_run_description(wrong, run, recipe, tmp_path, content):
    damaged = copy_with(run, tmp_path / "damaged", lambda whole: whole)
    (damaged / "run.json").write_text(content)
    for resume in (["--recipe", recipe], []):
        assert str(damaged / "run.json") in wrong("train", *resume, "--out", damaged, "--resume")


def test_a_damaged_set(wrong, small_set, tmp_path):
    (tmp_path / "set").mkdir()
    for file in small_set.iterdir():
        (tmp_path / "set" / file.name).write_bytes(file.read_bytes()[:-10])
    assert str(tmp_path / "set") in wrong("evaluate", tmp_path / "set")


def test_resuming_with_another_data_set(wrong, run, recipe, photos):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    message = wrong(
        *["train", "--recipe", recipe, "--out", run, "--resume", "--dataset", "folder", "--data-root", photos],
        *["--resolution", 8, "--data.channels", 1],
    )
    assert "digits" in message
    assert "folder" in message
    assert "generator.width" in wrong("train", "--recipe", recipe, "--out", run, "--resume", "--generator.width", 5)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_an_output_folder_that_holds_something_else(wrong, run, recipe, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "mine", tmp_path / "file"):
        assert str(path) in wrong("train", "--recipe", recipe, "--out", path)
        assert str(path) in wrong("sample", run, "--ipc", 1, "--out", path)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert (tmp_path / "file").read_text() == "mine"
    assert "--resume" in wrong("train", "--recipe", recipe, "--out", run)


def test_a_folder_that_may_not_be_written(wrong, run, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in wrong("sample", run, "--ipc", 1, "--out", tmp_path / "file" / "set")


@pytest.mark.parametrize("name", ["folder", "file/scores.json"])
@pytest.mark.parametrize(
    ("command", "option"),
    [("evaluate", "json"), ("compare", "json"), ("compare", "html"), ("coverage", "json"), ("coverage", "panel")],
)
def test_places_that_cannot_be_written_are_refused_before_any_work(small_set, wrong, tmp_path, command, option, name):
    name = f"{name}.png" if option == "panel" else name
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    assert wrong(command, small_set, f"--{option}", tmp_path / name).startswith(f"{option} is '{tmp_path / name}', ")
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_page_that_cannot_be_written_takes_nothing_from_a_command(run, recipe, tmp_path, capfd, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "report.html")

    monkeypatch.setattr("dim.score.report.write_report", refuse)
    done = main(["evaluate", str(run), "--ipc", "1", "--seeds", "1", "--json", str(tmp_path / "scores.json")])
    output, errors = capfd.readouterr()
    assert (done, read_json(tmp_path / "scores.json")["kind"]) == (0, "scores")
    assert "convnet:width=4" in output
    assert errors.splitlines()[-1] == "dim: no report: report.html: Permission denied"
    assert main(["train", "--recipe", recipe, "--out", str(tmp_path / "run")]) == 0
    output, errors = capfd.readouterr()
    assert f"generator: {tmp_path / 'run'}" in output
    assert errors.splitlines()[-1] == "dim: no report: report.html: Permission denied"


# --- no space left -----------------------------------------------------------------------------------------------------------


def limit_files(size: int):
    """A limit on the size of files, which fails as a full disk does: in the middle of a write."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def require_no_space(done: subprocess.CompletedProcess) -> None:
    assert done.returncode not in (0, -25), done.stderr
    assert done.stderr.startswith("dim: no space left"), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_no_space_left_for_a_run(recipe, run, tmp_path):
    done = dim_process("train", "--recipe", recipe, "--out", tmp_path / "run", preexec_fn=limit_files(20_000))
    require_no_space(done)
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [".lock", "metrics.jsonl", "run.json"]
    assert main(["train", "--recipe", recipe, "--out", str(tmp_path / "run"), "--resume"]) == 0
    first, second = (load_tensors(folder / "generator.safetensors")[0] for folder in (run, tmp_path / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("format", "limit"), [("imagefolder", 60), ("imagefolder", 1000), ("safetensors", 1000), ("npz", 1000)])
def test_no_space_left_for_a_set(run, tmp_path, format, limit):
    arguments = ["sample", run, "--ipc", 5, "--out", tmp_path / "set", "--format", format]
    require_no_space(dim_process(*arguments, preexec_fn=limit_files(limit)))
    assert list(tmp_path.iterdir()) == []


def shell(command: str, cwd: Path, **environment) -> subprocess.CompletedProcess:
    """Run a line of bash in which `dim` is the command."""
    line = f'dim() {{ "{sys.executable}" -m dim.commands.cli "$@"; }}; {command}'
    surroundings = {**os.environ, "PYTHONPATH": str(Path(dim.__file__).parents[1]), **environment}
    return subprocess.run(["bash", "-c", line], capture_output=True, timeout=240, env=surroundings, cwd=cwd, check=False)


EVALUATE = "evaluate two --seeds 2 --protocol.epochs 1 --json scores.json"


@pytest.fixture
def beside_a_set(small_set, tmp_path):
    shutil.copytree(small_set, tmp_path / "two")
    return tmp_path


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    done = shell("dim train --help | head -n 1; exit ${PIPESTATUS[0]}", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("reader", ["2>&1 | true", "| true", "2>&1 >&- | true", ">&- 2>&-", ">&-"])
def test_work_goes_on_without_a_reader(beside_a_set, reader):
    """Its results are in files."""
    done = shell(f"dim {EVALUATE} {reader}; exit ${{PIPESTATUS[0]}}", beside_a_set)
    assert done.returncode == 0, done.stderr
    assert len(read_json(beside_a_set / "scores.json")["scores"]) == 1


def test_an_output_without_space_is_said_after_the_work(beside_a_set):
    done = shell(f"dim {EVALUATE} > /dev/full", beside_a_set)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == b"dim: standard output could not be written: No space left on device"
    assert len(read_json(beside_a_set / "scores.json")["scores"]) == 1


def test_a_terminal_that_knows_ascii_only(beside_a_set):
    (beside_a_set / "two").rename(beside_a_set / "zwölf")
    command = f"dim {EVALUATE.replace('two', 'zwölf')}"
    done = shell(command, beside_a_set, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert done.returncode == 0, done.stderr
    assert b"mean +- std over n seeds" in done.stdout
    assert b"zw\\xf6lf" in done.stdout
    assert (done.stdout + done.stderr).isascii()
