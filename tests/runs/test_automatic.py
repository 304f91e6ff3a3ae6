"""Settings that are chosen for somebody's own images, a device and a time."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from dim.config import DataConfig, TrainConfig, to_toml
from dim.data.look import Look, look
from dim.data.real import load_data
from dim.errors import InputError
from dim.nets.discriminators import training_flops
from dim.recipes.load import load_recipe
from dim.runs import automatic, beside
from dim.runs.accelerator import make_accelerator

CPU = torch.device("cpu")


def picture(path, size, mode="RGB", grey=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels = np.repeat(pixels[..., :1], 3, axis=2) if grey else pixels
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def mixed(tmp_path):
    for number in range(10):
        picture(tmp_path / "mixed" / "a cat" / f"{number}.png", (40 + number, 60))
        picture(tmp_path / "mixed" / "собака" / f"{number}.png", (90, 70), "L" if number % 2 else "RGBA")
    return DataConfig(dataset="folder", root=str(tmp_path / "mixed"))


def of(size: int = 32, *, images: int = 5000, grey: bool = False, square: bool = True, classes: int = 10) -> Look:
    names = tuple(f"class {number}" for number in range(classes))
    parts = {"train": images, "val": images // 10, "test": images // 5}
    return Look("own", names, (images // classes,) * classes, parts, (), (size,), square, {"RGB": 1}, grey)


def chosen(found: Look, minutes: float = 30, speed: float = 1e11, data: DataConfig | None = None, monkeypatch=None):
    def seconds(discriminator, spec, device):
        return training_flops(discriminator, spec) / speed

    monkeypatch.setattr(automatic, "_seconds_per_image", seconds)
    data = data or DataConfig(dataset="folder", root="own")
    return automatic.choose(found, data, minutes=minutes, device=CPU)


# --- looking -----------------------------------------------------------------------------------------------------------------


def test_what_is_found_in_a_folder(mixed):
    found = look(mixed)
    assert found.classes == ("a cat", "собака")
    assert found.counts == (10, 10)
    assert sum(found.parts.values()) == 20
    assert (found.sides[0], found.sides[-1]) == (40, 70)
    assert found.modes == {"RGB": 10, "L": 5, "RGBA": 5}
    assert not found.grey
    assert not found.square
    text = "\n".join(found.lines())
    for part in ("2 classes, 20 images", "собака 10", "10 RGB", "40 to 70 pixels", "val and test are taken"):
        assert part in text


def test_grey_pictures_are_recognised_whatever_their_mode(tmp_path):
    for name, mode in (("one", "RGB"), ("two", "L")):
        for number in range(6):
            picture(tmp_path / name / f"{number}.png", (16, 16), mode, grey=True)
    assert look(DataConfig(dataset="folder", root=str(tmp_path))).grey
    picture(tmp_path / "two" / "coloured.png", (16, 16))
    assert not look(DataConfig(dataset="folder", root=str(tmp_path))).grey


def test_data_that_are_no_files_have_the_size_of_their_images():
    found = look(DataConfig())
    assert (found.median, found.grey, found.square, found.modes) == (8, True, True, {})
    assert sum(found.counts) == 1797


def test_a_damaged_header_is_refused_with_its_file(mixed, tmp_path):
    (tmp_path / "mixed" / "a cat" / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"bad\.png cannot be read"):
        look(mixed)


# --- choosing ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "size"), [(8, 8), (28, 28), (32, 32), (30, 28), (33, 32), (50, 48), (300, 128)])
def test_the_size_is_the_images_own_as_far_as_the_time_allows(own, size, monkeypatch):
    assert chosen(of(own), speed=1e15, monkeypatch=monkeypatch).config.data.resolution == size


def test_slow_devices_and_little_time_give_small_images_and_narrow_networks(monkeypatch):
    sizes = [chosen(of(200), minutes, monkeypatch=monkeypatch).config.data.resolution for minutes in (5, 60, 600, 6000)]
    widths = [chosen(of(32), 30, speed, monkeypatch=monkeypatch).config.generator.width for speed in (1e11, 1e12, 1e13)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (32, 128)
    assert widths == sorted(set(widths))


def test_what_was_asked_for_stays(monkeypatch):
    asked = DataConfig(dataset="folder", root="own", resolution=64, channels=1)
    config = chosen(of(200), 1, data=asked, monkeypatch=monkeypatch).config
    assert (config.data.resolution, config.data.channels) == (64, 1)


def test_augmentation_flips_nothing_in_grey_images(monkeypatch):
    assert chosen(of(grey=True), monkeypatch=monkeypatch).config.adversarial.augment == "color_crop_cutout"
    assert "flip" not in chosen(of(grey=True), monkeypatch=monkeypatch).config.protocol.augment
    found = chosen(of(), monkeypatch=monkeypatch).config
    assert "flip" in found.adversarial.augment
    assert found.protocol == dataclasses.replace(TrainConfig().protocol, epochs=found.protocol.epochs)


def test_students_of_many_classes_take_about_as_many_steps(monkeypatch):
    for classes in (2, 10, 100, 300):
        protocol = chosen(of(classes=classes), monkeypatch=monkeypatch).config.protocol
        assert 1000 <= protocol.steps(10 * classes) <= 4800


def test_the_choice_is_a_recipe_that_can_be_read_again(tmp_path, monkeypatch):
    choice = chosen(of(), monkeypatch=monkeypatch)
    path = tmp_path / "own.toml"
    path.write_text(to_toml(choice.config, over=TrainConfig(), why=choice.reasons))
    assert load_recipe(str(path)) == choice.config
    assert "# " in path.read_text()


@pytest.mark.parametrize(("images", "few"), [(28, True), (280, True), (320, False), (50_000, False)])
def test_data_that_are_too_small_are_told(images, few):
    assert bool(automatic.too_small(of(images=images))) is few


# --- filling the time --------------------------------------------------------------------------------------------------------


@pytest.fixture
def filling(monkeypatch):
    data = load_data(DataConfig())
    monkeypatch.setattr(automatic, "_speed", lambda device: 1e11)
    monkeypatch.setattr(automatic, "seconds_per_step", lambda *_: (0.05, 0.2))
    config = automatic.choose(look(DataConfig()), DataConfig(), minutes=5, device=CPU).config
    config = dataclasses.replace(config, fit=dataclasses.replace(config.fit, trackers=()))

    def fill(seconds, **changes):
        of_run = dataclasses.replace(config, fit=dataclasses.replace(config.fit, **changes))
        return data, *automatic.fill(of_run, data, make_accelerator(of_run, "unused"), seconds=seconds)

    return fill


@pytest.mark.parametrize("experts", [0, 3])
def test_both_stages_fill_the_time(filling, experts):
    data, config, seconds = filling(600, experts=experts)
    steps = [round(stage.epochs * len(data.train) / stage.batch_size) for stage in (config.stage_one, config.stage_two)]
    recorded = beside.recording_seconds(config, data.spec, steps=steps[0], speed=1e11, device=CPU)
    assert bool(recorded) == bool(experts)
    assert 0.05 * steps[0] + 0.2 * steps[1] + recorded == pytest.approx(0.96 * 600, rel=0.02)
    assert seconds == pytest.approx(600, rel=0.02)


def test_a_stage_that_is_given_stays_and_the_time_says_so():
    config = automatic.choose(look(DataConfig()), DataConfig(), minutes=5, device=CPU).config
    small = {"generator": {"width": 4}, "discriminator": {"width": 4}, "fit": {"trackers": (), "compile": "off", "experts": 0}}
    for section, values in small.items():
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})
    config = dataclasses.replace(config, stage_one=dataclasses.replace(config.stage_one, epochs=3.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(automatic, "seconds_per_step", lambda *_: (2.0, 1.0))
        data = load_data(DataConfig())
        accelerator = make_accelerator(config, "unused")
        filled, seconds = automatic.fill(config, data, accelerator, seconds=600, keep={"stage_one.epochs"})
        open_, _ = automatic.fill(config, data, accelerator, seconds=600)
    steps = 3 * len(data.train) / config.stage_one.batch_size
    assert filled.stage_one.epochs == 3
    assert filled.stage_two.epochs == pytest.approx(open_.stage_two.epochs, rel=0.05)
    assert seconds == pytest.approx(2 * steps + 0.08 * 0.96 * 600 + 0.04 * 600, rel=0.02)


def test_too_little_time_is_refused_with_what_is_enough(filling):
    with pytest.raises(InputError, match=r"expected \d+ or more \(--minutes\)"):
        filling(2)


def test_steps_of_both_stages_are_timed():
    config = automatic.choose(look(DataConfig()), DataConfig(), minutes=1, device=CPU).config
    small = {"generator": {"width": 4}, "discriminator": {"width": 4}, "fit": {"trackers": (), "compile": "off"}}
    for section, values in small.items():
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})
    one, two = automatic.seconds_per_step(config, load_data(DataConfig()), make_accelerator(config, "unused"))
    assert 0 < one < two < 30  # stage two takes the upkeep of the pool, too


@pytest.mark.parametrize(("side", "depth"), [(4, 1), (7, 1), (8, 2), (15, 2), (16, 3), (28, 3), (64, 3)])
def test_experts_normalise_no_maps_of_few_pixels(side, depth, spec):
    assert beside.expert_student(spec(1, (side, 64))) == f"convnet:width=32,depth={depth}"


@pytest.mark.parametrize(("steps", "expected"), [(0, 350), (2000, 490), (10**6, 3500)])
def test_experts_take_a_share_of_the_generators_steps(steps, expected):
    assert beside.expert_steps(steps) == expected
