"""Commands on unusual data: what one of them refuses all refuse, also in a dry run; what is said is said once."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dim.commands.cli import main
from dim.config import ExpertsConfig, TrajectoryRecipe, to_toml
from dim.data.real import from_dataset
from dim.runs.stages import FEW_STEPS, few_steps
from dim.runs.train import fit


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def recipes(tiny, tmp_path_factory):
    """A small recipe of each command."""
    experts = ExpertsConfig(count=1, epochs=1.0, batch_size=4, augment="", device="cpu")
    kinds = {"train": tiny, "experts": TrajectoryRecipe(student="convnet:width=4,depth=1", experts=experts)}
    paths = {command: tmp_path_factory.mktemp("recipes") / f"{command}.toml" for command in kinds}
    for command, config in kinds.items():
        paths[command].write_text(to_toml(dataclasses.replace(config, about=dataclasses.replace(tiny.about))))
    return {**paths, "distill": paths["experts"]}


def write(*places: str, count: int = 6) -> None:
    """Image files, all different, in folders of `data`."""
    for place, name in enumerate(places):
        for number in range(count):
            path = Path("data") / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 20 * number + place, dtype=np.uint8)).save(path)


def outcome(capsys, *words: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(list(words))
    return status, capsys.readouterr().err


FOLDERS = {
    "one class": (("a",), "folder", "1 class folder(s)"),
    "parts without classes": (("train", "test"), "folder", "which are parts and no classes"),
    "a test part alone": (("test/a", "test/b"), "folder", "no train/"),
    "two training parts": (("train/a", "train/b", "training/a", "training/b"), "folder", "expected one train part"),
    "another class in the test part": (("train/a", "train/b", "test/a", "test/c"), "folder", "has class 'c'"),
    "no file of labels": (("a", "b"), "listed", "no file of labels"),
    "no shards": (("a", "b"), "webdataset", "no shards"),
}


@pytest.mark.parametrize("command", ["train", "experts", "distill"])
@pytest.mark.parametrize("case", FOLDERS)
def test_a_dry_run_refuses_what_the_run_refuses(recipes, command, case, capsys):
    places, dataset, part = FOLDERS[case]
    write(*places)
    where = ["--dataset", dataset, "--data-root", "data", "--resolution", "8"]
    words = [command, "--recipe", str(recipes[command]), *where, "--out", "run"]
    status, said = outcome(capsys, *words, "--dry-run")
    assert (status, said.count("\n")) == (2, 1)
    assert part in said
    assert outcome(capsys, *words, *(["--experts", "none"] if command == "distill" else [])) == (2, said)
    assert not Path("run").exists()


@pytest.mark.parametrize(("count", "refused"), [(1, "expected at least 2"), (2, "none is left to train on"), (3, None)])
def test_a_dry_run_counts_the_images_of_every_class(recipes, count, refused, capsys):
    write("a", "b", count=6)
    write("c", count=count)
    words = ["train", "--recipe", str(recipes["train"]), "--dataset", "folder", "--data-root", "data", "--resolution", "8"]
    status, said = outcome(capsys, *words, "--dry-run")
    assert (status, refused or "") == (2 if refused else 0, refused if refused and refused in said else "")


def test_a_dry_run_refuses_a_place_that_the_run_would_be_refused_for(recipes, run, capsys):
    words = ["train", "--recipe", str(recipes["train"]), "--out", str(run)]
    status, said = outcome(capsys, *words, "--dry-run")
    assert status == 2
    assert "already holds a run: continue it with --resume" in said
    assert outcome(capsys, *words) == (2, said)
    Path("file").touch()
    assert "is a file" in outcome(capsys, *words[:-1], "file", "--dry-run")[1]
    assert outcome(capsys, *words[:-1], "free", "--dry-run") == (0, "")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: (write("a", "b"), Path("data/a/x.heic").touch()), "1 file is no image that can be read, left out: 1 .heic"),
        (lambda: write("train/a", "train/b", "val/a", "val/b"), "val/ is taken as the test part"),
        (lambda: write("Cat", "cat"), "differ in capitals"),
        (lambda: write("train/a", "train/b", "more"), "left out, as they are beside train/: more"),
    ],
)
def test_what_is_said_of_data_is_said_once(make, said, capsys):
    make()
    status, errors = outcome(capsys, "data", "data")
    assert (status, errors.count(said), errors.count("\n")) == (0, 1, 1)


@pytest.mark.parametrize(
    "words",
    [
        ("data", "--dataset", "digits"),
        ("evaluate", "SET", "--seeds", "1"),
        ("coverage", "SET", "--samples", "20"),
        ("compare", "SET", "--seeds", "1"),
        ("report", "RUN"),
        ("train", "--recipe", "digits-dim", "--out", "x"),
        ("experts", "--recipe", "digits-mtt-ipc1", "--out", "x"),
        ("sample", "RUN", "--ipc", "1", "--out", "x"),
    ],
)
def test_a_root_that_would_be_ignored_is_refused(run, words, capsys):
    write("a", "b")
    assert main(["sample", str(run), "--ipc", "1", "--out", "set"]) == 0
    places = {"SET": "set", "RUN": str(run)}
    status, said = outcome(capsys, *(places.get(word, word) for word in words), "--data-root", "data")
    assert (status, said.count("\n")) == (2, 1)
    assert "root is 'data': expected none, as " in said


@pytest.mark.parametrize("place", ["a file", "below a file", "a broken link", "relative", "empty", "not to be written"])
def test_a_cache_that_cannot_be_kept_costs_a_line_and_writes_nowhere_else(place, tmp_path, monkeypatch, capsys):
    write("a", "b")
    monkeypatch.setattr("dim.data.files._SETTLED_NS", -(10**9))  # so that what is found is kept at once
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("gone/away")
    names = {"a file": "file", "below a file": "file/cache", "a broken link": "link"}
    if place in names:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / names[place]))
    else:
        monkeypatch.setenv("HOME", "/dev/null")
        cache = {"relative": "cache-here", "empty": "", "not to be written": "/proc"}[place]
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
    before = sorted(tmp_path.iterdir())
    status, said = outcome(capsys, "data", "data")
    assert (status, said.count("\n")) == (0, 1)
    assert "not kept, so the next start does this work again" in said
    assert sorted(tmp_path.iterdir()) == before


# --- few images --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "told"), [(1, True), (FEW_STEPS - 1, True), (FEW_STEPS, False), (0, False)])
def test_few_steps_are_said_with_what_would_be_enough(steps, told):
    made_for = "was made for fashion-mnist"
    said = few_steps(steps, settings="x", made_for=made_for, images=14, option="--stage-one.epochs", epochs=2)
    assert bool(said) == told
    if told:
        assert f"{steps} steps of training in all, as x was made for fashion-mnist and these are 14 images" in said
        assert said.endswith(f"try --stage-one.epochs {2 * FEW_STEPS / steps:.0f}")


def test_python_says_what_the_command_says_of_few_steps(tiny, tmp_path, capsys):
    items = [(np.full((8, 8), 9 * number, dtype=np.uint8), number % 2) for number in range(14)]
    config = dataclasses.replace(tiny, stage_one=dataclasses.replace(tiny.stage_one, epochs=1.0))
    config = dataclasses.replace(config, stage_two=dataclasses.replace(tiny.stage_two, epochs=0.0))
    fit(config, from_dataset(items, name="mine", class_names="ab"), tmp_path / "run")
    said = capsys.readouterr().err
    assert "1 steps of training in all, as these settings were made for digits and these are 10 images: too few" in said


@pytest.mark.parametrize("other", [None, "elsewhere"])
def test_experts_of_few_images_are_said_to_be_so(recipes, other, capsys, tmp_path):
    write("a", "b", count=7)
    path, words = recipes["experts"], ["--dataset", "folder", "--data-root", "data", "--resolution", "8"]
    if other:  # a recipe of the same kind of data, for other images
        text = path.read_text().replace('dataset = "digits"', 'dataset = "folder"\nroot = "elsewhere"\nresolution = 8')
        path = tmp_path / "own.toml"
        path.write_text(text)
        words = ["--data-root", "data"]
    status, said = outcome(capsys, "experts", "--recipe", str(path), *words, "--out", "store")
    assert status == 0
    assert f"was made for {'folder in elsewhere' if other else 'digits'} and these are 10 images" in said
