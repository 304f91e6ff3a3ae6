"""Somebody's own folder through the commands: `dim data`, `dim train DIR`, `dim sample`."""

import numpy as np
import pytest
from PIL import Image

from dim.commands.arguments import SampleArguments
from dim.commands.choosing import with_own_experts
from dim.commands.cli import main
from dim.commands.looking import own_data
from dim.commands.parsing import parse
from dim.config import DataConfig, PolicyConfig, RecordConfig
from dim.recipes.load import load_recipe
from dim.run_folder import load_run_config
from dim.runs import automatic, beside
from dim.trajectory.store import ExpertStore


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path):
    noise = np.random.default_rng(0)
    for name in ("left side", "右"):
        for number in range(20):
            path = tmp_path / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = noise.integers(0, 60, (10, 8, 3), dtype=np.uint8)
            pixels[:, slice(0, 4) if name == "右" else slice(4, 8)] += 150
            Image.fromarray(pixels).save(path)
    return "photos"


@pytest.fixture
def quick(monkeypatch):
    """Steps that are said to be slow, so that few fit into the time, and experts of few steps."""
    monkeypatch.setattr(automatic, "seconds_per_step", lambda *_: (6.0, 2.0))
    monkeypatch.setattr(automatic, "recording_seconds", lambda *_, **__: 1.0)
    monkeypatch.setattr(beside, "compiler_found", lambda device: False)
    monkeypatch.setattr(beside, "_FEWEST", 140)
    monkeypatch.setattr(beside, "_MOST", 140)


NARROW = ("--minutes", "1.5", "--generator.width", "4", "--discriminator.width", "4", "--device", "cpu", "--fit.trackers")


def test_data_says_what_would_be_read(photos, capsys, tmp_path):
    (tmp_path / "photos" / "右" / "notes.txt").write_text("no image")
    assert main(["data", photos, "--picture", "grid.png"]) == 0
    said = capsys.readouterr()
    for part in ("photos: 2 classes, 40 images: left side 20, 右 20", "train", "40 RGB", "shorter side 8 pixels"):
        assert part in said.out
    assert "1 .txt" in said.err
    with Image.open("grid.png") as grid:
        assert grid.width > 10 * 8


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "no data"),
        (("photos", "--dataset", "digits"), "folder or webdataset"),
        (("photos", "--data-root", "elsewhere"), "one of them"),
        (("nowhere",), "'nowhere' is no folder"),
        (("photos", "--picture", "grid.jpg"), "ends in .png"),
    ],
)
def test_data_that_cannot_be_looked_at(photos, words, part, capsys):
    assert main(["data", *words]) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


def test_a_damaged_picture_is_met_when_data_are_looked_at(photos, tmp_path, capsys):
    path = tmp_path / "photos" / "右" / "3.png"
    path.write_bytes(path.read_bytes()[:-40])
    assert main(["data", photos]) == 2
    assert "3.png cannot be read" in capsys.readouterr().err


def test_sets_are_refined_without_mirrored_images_where_experts_saw_none(tmp_path, capsys):
    narrow = ["--generator.width", "4", "--discriminator.width", "4", "--stage-two.epochs", "0", "--stage-one.epochs", "0.1"]
    assert main(["train", "--recipe", "digits-dim", *narrow, "--out", str(tmp_path / "run")]) == 0
    recorded = load_run_config(tmp_path / "run" / "experts", RecordConfig, "experts")
    assert recorded.student == "convnet:width=32,depth=2"  # a third block would normalise maps of 2x2 pixels
    words = [str(tmp_path / "run"), "--ipc", "1", "--out", "x"]

    def augment(*more: str) -> str:
        return with_own_experts(parse(SampleArguments, [*words, *more], "sample"), [*words, *more]).refine.augment

    assert augment() == "color|crop|cutout|scale|rotate"
    assert augment("--refine.augment", "flip") == "flip"
    assert "flip" in augment("--policy.steps", "refined", "--teacher.folder", "somewhere")

    more = [*words, "--policy.candidates", "300"]  # which is no policy of one's own
    assert with_own_experts(parse(SampleArguments, more, "sample"), more).policy == PolicyConfig(
        steps=("refined",), candidates=300
    )
    quick = ["--refine.steps", "1", "--refine.compile", "off", "--refine.blocks", "1"]
    capsys.readouterr()
    assert main(["sample", words[0], "--ipc", "2", "--out", str(tmp_path / "x"), *quick]) == 0
    assert "the first 1 images of a class are refined, and the others are not; --refine.blocks 1 2" in capsys.readouterr().err
    assert main(["sample", *words, "--policy.steps", "--policy.candidates", "300"]) == 2
    assert "policy.candidates is 300: expected 200 without --policy.steps" in capsys.readouterr().err


def test_a_folder_is_trained_sampled_and_resumed_without_a_recipe(photos, quick, capsys, monkeypatch, tmp_path):
    (tmp_path / "elsewhere" / "FashionMNIST").mkdir(parents=True)
    monkeypatch.setenv("DIM_DATA_ROOT", str(tmp_path / "elsewhere"))  # where other data lie
    assert main(["train", photos, *NARROW]) == 0
    said = capsys.readouterr()
    for part in ("photos: 2 classes", "minutes in all", "[generator]", "width = 4", "training images per class are too few"):
        assert part in said.err
    assert "next: dim sample runs/photos" in said.out
    assert len(ExpertStore.open("runs/photos/experts").records) == 3

    assert (
        main(["sample", "runs/photos", "--ipc", "2", "--out", "refined", "--refine.steps", "2", "--refine.compile", "off"]) == 0
    )
    assert "refined with runs/photos/experts" in capsys.readouterr().err
    assert main(["sample", "runs/photos", "--ipc", "2", "--out", "plain", "--policy.steps"]) == 0
    assert "refined" not in capsys.readouterr().err

    from dim import load_set

    refined, plain = load_set("refined"), load_set("plain")
    assert refined.labels.tolist() == plain.labels.tolist()
    assert not refined.images.equal(plain.images)

    assert main(["report", "runs/photos"]) == 0

    assert main(["train", photos, *NARROW]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", photos, "--resume"]) == 0


def test_a_dry_run_prints_a_recipe_with_its_lengths(photos, quick, capsys, tmp_path):
    assert main(["train", photos, *NARROW, "--dry-run"]) == 0
    path = tmp_path / "own.toml"
    path.write_text(capsys.readouterr().out)
    config = load_recipe(str(path))
    assert (config.data.root, config.data.resolution, config.generator.width) == ("photos", 8, 4)
    assert 0 < config.stage_one.epochs < 20
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [("--stage-one.epochs", "3"), ("--stage_two.epochs=0.25",), ("--fit.sample-steps", "7")])
def test_lengths_that_are_given_stay(photos, quick, capsys, tmp_path, words):
    assert main(["train", photos, *NARROW, *words, "--dry-run"]) == 0
    path = tmp_path / "own.toml"
    path.write_text(capsys.readouterr().out)
    config = load_recipe(str(path))
    lengths = {"3": config.stage_one.epochs == 3, "0.25": config.stage_two.epochs == 0.25, "7": config.fit.sample_steps == 7}
    assert [lengths[value] for value in lengths] == [value in words[-1] for value in lengths]


def test_other_data_take_minutes_in_place_of_a_recipe(quick, capsys):
    assert main(["train", "--dataset", "digits", *NARROW, "--dry-run"]) == 0
    assert 'dataset = "digits"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("photos", "--recipe", "digits-dim"), "a recipe, 'digits-dim'"),
        (("--minutes", "3", "--recipe", "digits-dim", "--out", "run"), "--minutes and a recipe"),
        (("photos", "--minutes", "0"), "minutes is 0"),
        (("photos", "--minutes", "nan"), "minutes is nan"),
        (("photos", "--dataset", "cifar10"), "folder or webdataset"),
        (("nowhere",), "'nowhere' is no folder"),
        (("photos", "--resolution", "30"), "multiple of 4"),
        (("--dataset", "digits", "--minutes", "2"), "--out"),
    ],
)
def test_what_cannot_be_chosen_for(photos, quick, words, part, capsys):
    assert main(["train", *words]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert part in errors[-1]


def test_settings_are_chosen_for_one_process(photos, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["train", photos]) == 2
    assert "--dry-run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        (("a/0.png", "b/0.png"), "folder"),
        (("a/0.png", "b/0.png", "metadata.jsonl"), "folder"),  # as sets of this package have it
        (("0.png", "1.png", "metadata.jsonl"), "listed"),
        (("00000/0.png", "00001/1.png", "dataset.json"), "listed"),
        (("train/0.png", "train/labels.csv", "test/0.png", "test/labels.csv"), "listed"),
        (("train/0.png", "test/0.png", "labels.csv"), "listed"),  # where images without labels lie in test/
        (("train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/0.png", "labels.csv"), "folder"),
        (("train/images/0.png", "train/labels.csv", "test/images/0.png", "test/labels.csv"), "listed"),
        (("train/a/0.png", "train/b/0.png", "train/labels.csv"), "folder"),
        (("train-0.tar", "classes.txt"), "webdataset"),
        (("a/0.png", "b/0.png", "photos.tar"), "folder"),  # unpacked beside the archive
    ],
)
def test_how_a_folder_is_labelled_is_seen(tmp_path, layout, kind):
    for name in layout:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert own_data(str(tmp_path / "data"), DataConfig(), []).dataset == kind


@pytest.mark.parametrize(("labels", "kind"), [("cat dog", "listed"), ("cat cat", "folder")])
def test_folders_whose_images_have_several_labels_are_no_classes(tmp_path, labels, kind):
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    rows = [f"images/{number}.png,{label}\n" for number, label in enumerate(labels.split())]
    (tmp_path / "data" / "labels.csv").write_text("file_name,label\n" + "".join(rows) + "masks/0.png,dog\n")
    assert own_data(str(tmp_path / "data"), DataConfig(), []).dataset == kind
