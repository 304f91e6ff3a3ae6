"""Which data runs, sets and generators say they are of, and what is found by that."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import dim
from dim.config import DataConfig, DistillConfig, ProtocolConfig, TrajectoryConfig, TrajectoryRecipe, from_dict
from dim.data.real import from_dataset, load_data, with_training_part
from dim.errors import InputError
from dim.run_folder import read_run
from dim.runs.distill import distill
from dim.runs.train import fit
from dim.score.report import write_report


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def own():
    """A data set of Python that has size, channels and number of classes of the digits, for which it could be mistaken."""
    noise = np.random.default_rng(0)
    pairs = [(noise.integers(0, 256, (8, 8), dtype=np.uint8), number % 10) for number in range(200)]
    return from_dataset(pairs, name="mine", class_names=[str(number) for number in range(10)])


@pytest.fixture
def folder(tmp_path):
    noise = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    return DataConfig(dataset="folder", root=str(tmp_path / "photos"), resolution=8, channels=1)


@pytest.fixture
def short(six_steps):
    """A run of six steps on the digits, which has a step in each stage for few images, too."""
    config = six_steps(protocol=PROTOCOL)
    one, two = (dataclasses.replace(stage, epochs=0.6) for stage in (config.stage_one, config.stage_two))
    return dataclasses.replace(config, stage_one=one, stage_two=two)


PROTOCOL = ProtocolConfig(students=("convnet:width=4,depth=1",), epochs=1, augment="")


def test_data_of_python_are_not_taken_for_those_of_the_recipe(own, short, tmp_path):
    run = fit(short, own, tmp_path / "run")
    generator = dim.load_generator(run)
    drawn = dim.sample_set(generator, ipc=1)
    for subject in (generator, drawn):
        assert subject.info["data"] == {}
        with pytest.raises(InputError, match="does not say which data it was made from: give the real data"):
            dim.evaluate(subject, ipc=None if subject is drawn else 1)
    assert dim.evaluate(drawn, data=own, seeds=1)[0].data["name"] == "mine"
    again = dim.load_generator(dim.save_pretrained(generator, tmp_path / "again"))
    assert again.info["data"] == {}


def test_a_run_is_of_the_data_that_it_was_given(folder, short, digits, tmp_path):
    """And not of those that its settings name."""
    assert short.data.dataset == "digits"
    run = fit(short, load_data(folder), tmp_path / "run")
    assert read_run(run)["config"]["data"]["root"] == folder.root
    assert dim.evaluate(dim.sample_set(dim.load_generator(run), ipc=1), seeds=1)[0].data["name"] == "folder"
    fit(short, load_data(folder), run, resume=True)
    with pytest.raises(InputError, match=r"was made from other data \('folder', \w+\): expected these"):
        write_report(run, digits)


def test_experts_and_distilled_sets_are_of_the_data_that_they_were_given(digits, digits_experts, tmp_path):
    recipe = TrajectoryRecipe(
        student="convnet:width=4,depth=2",
        data=DataConfig(dataset="mnist"),
        distill=DistillConfig(iterations=1, device="cpu"),
        trajectory=from_dict(TrajectoryConfig, {"steps": 2, "epochs": 1, "max_start": 1}),
    )
    learned = distill(recipe, digits, digits_experts, tmp_path / "out")
    assert learned.info["data"]["dataset"] == learned.info["config"]["data"]["dataset"] == "digits"


def test_images_that_changed_since_are_told(folder, short, tmp_path, capsys):
    run = fit(short, load_data(folder), tmp_path / "run")
    drawn = dim.sample_set(dim.load_generator(run), ipc=1)
    dim.evaluate(drawn, seeds=1)
    assert "other training images" not in capsys.readouterr().err
    for name in "ab":
        Image.new("L", (8, 8), 7).save(f"{folder.root}/{name}/more.png")
    dim.evaluate(drawn, seeds=1)
    assert f"dim: 'folder' in {folder.root} has other training images or labels now than when" in capsys.readouterr().err


def test_what_is_made_of_other_data_has_no_place_to_be_found(folder):
    data = load_data(folder)
    assert data.config == folder
    assert dataclasses.replace(data).config == folder
    assert with_training_part(data, data.test).config is None
