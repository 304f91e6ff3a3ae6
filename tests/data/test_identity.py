"""What a data set is recognised by: every image of every part, wherever it comes from, and read again only when it must be."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dim.data.files
import dim.data.survey
import dim.loop
from dim.config import DataConfig
from dim.data.real import EpochBatches, from_dataset, load_data
from dim.data.roots import known_root
from dim.data.survey import recall

ROOT = Path(dim.__file__).parents[1]
SIZE = (8, 8, 3)


def write(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two classes of sixty and fifty uncompressed training images of one size, and ten test images of each, written long ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(dim.data.files, "_SETTLED_NS", -(10**9))
    source = np.random.default_rng(0)
    for part, sizes in (("train", (60, 50)), ("test", (10, 10))):
        for name, count in zip(("cat", "dog"), sizes, strict=True):
            for number in range(count):
                write(tmp_path / "root" / part / name / f"{number:03d}.bmp", source.integers(0, 256, SIZE, dtype=np.uint8))
    return tmp_path / "root"


def load(root: Path, memory_gib: float = 0.0, **settings):
    return load_data(DataConfig(dataset="folder", root=str(root), resolution=8, memory_gib=memory_gib, **settings))


def identity(data) -> tuple[str, str, str]:
    return tuple(data.digest(part) for part in ("train", "val", "test"))


def repaint(file: Path, colour=(255, 0, 0)) -> None:
    """Other pixels in a file of the same size and with the same time."""
    before = file.stat()
    write(file, np.full(SIZE, colour, dtype=np.uint8))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.fixture
def decoded(monkeypatch) -> list:
    """The files that are decoded."""
    files, read = [], dim.data.files.read_picture
    monkeypatch.setattr(dim.data.files, "read_picture", lambda source, mode: (files.append(source), read(source, mode))[1])
    return files


# --- all of it -----------------------------------------------------------------------------------------------------------------


def test_built_in_data_are_what_they_were_when_scores_were_stored():
    stored = json.loads((ROOT / "benchmarks" / "results" / "digits-dim-demo.json").read_text())
    text = json.dumps(stored)
    assert f'"fingerprint": "{load_data(DataConfig()).spec.fingerprint}"' in text


@pytest.mark.parametrize("memory_gib", [8.0, 0.0])
def test_any_image_of_any_part_that_is_replaced_makes_other_data(root, memory_gib):
    found = {identity(load(root, memory_gib))}
    files = sorted(root.rglob("*.bmp"))
    source = np.random.default_rng(0)
    for number, file in enumerate(source.choice(files, 12, replace=False), start=2):
        repaint(file)
        found.add(identity(load(root, memory_gib)))
        assert len(found) == number


@pytest.mark.parametrize("memory_gib", [8.0, 0.0])
def test_nearly_all_images_replaced_by_others_of_equal_size(root, memory_gib):
    before = load(root, memory_gib, val_fraction=0.0)
    test_part = before.digest("test")
    for number, file in enumerate(sorted((root / "train").rglob("*.bmp"))):
        if number % 2:
            repaint(file)
    after = load(root, memory_gib, val_fraction=0.0)
    assert after.spec.fingerprint != before.spec.fingerprint
    assert after.spec.mean[0] > before.spec.mean[0] + 0.1
    assert after.digest("test") == test_part


def test_a_part_has_an_identity_of_its_own(root):
    before = identity(load(root))
    repaint(root / "test" / "dog" / "004.bmp")
    after = load(root)
    assert identity(after)[:2] == before[:2]
    assert after.digest("test") != before[2]
    assert after.about("test") == {
        **{"name": "folder", "fingerprint": after.spec.fingerprint, "train_images": len(after.train)},
        **{"scored": after.digest("test")},
    }


def test_labels_and_order_belong_to_it():
    images = [torch.full((1, 8, 8), value, dtype=torch.uint8) for value in range(0, 240, 20)]
    items = [(image, number % 2) for number, image in enumerate(images)]
    other_labels = [(image, 1 - label) for image, label in items]
    other_order = [items[2], items[1], items[0], *items[3:]]
    config = DataConfig(val_fraction=0.0)
    digests = [
        from_dataset(train, items, name="x", class_names="ab", config=config).spec.fingerprint
        for train in (items, list(items), other_labels, other_order)
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("memory_gib", [8.0, 0.0])
@pytest.mark.parametrize("changed", range(0, 12, 3))
def test_every_item_of_a_data_set_from_python_counts(memory_gib, changed):
    def load(value: int):
        arrays = np.random.default_rng(0).integers(0, 256, (240, *SIZE), dtype=np.uint8)
        arrays[changed * 20, 3, 4, 1] = value
        items = [(Image.fromarray(array), number % 3) for number, array in enumerate(arrays)]
        config = DataConfig(memory_gib=memory_gib, val_fraction=0.0)
        return from_dataset(items, items[:6], name="mine", class_names="xyz", config=config).spec.fingerprint

    assert load(0) == load(0) != load(1)


def test_where_images_come_from_and_where_they_are_held_makes_no_difference(root):
    held, streamed = load(root, 8.0), load(root, 0.0)
    assert identity(held) == identity(streamed)
    assert held.spec == streamed.spec
    parts = []
    for part in ("train", "test"):
        files = sorted((root / part).rglob("*.bmp"))
        parts.append([(Image.open(file), int(file.parent.name == "dog")) for file in files])
    assert identity(from_dataset(*parts, name="folder", class_names=("cat", "dog"))) == identity(held)


# --- read once -----------------------------------------------------------------------------------------------------------------


def test_a_second_start_does_not_read_the_images_again(root, decoded):
    first = load(root)
    train_files = len(decoded)
    assert len(set(decoded)) == len(first.train)
    before = identity(first)
    del decoded[:]
    again = load(root)
    assert again.spec == first.spec
    assert identity(again) == before
    assert len(decoded) == 1  # for the size of all
    del decoded[:]
    repaint(root / "train" / "cat" / "000.bmp")
    assert load(root).spec.fingerprint != first.spec.fingerprint
    assert len(decoded) == train_files


def test_images_that_fit_into_memory_are_read_at_the_first_start_and_later_when_asked_for(root, decoded):
    first = load(root, memory_gib=8.0)
    count = len(first.train) + len(first.val) + len(first.test)
    assert len(decoded) == count + 1  # one for the size of all
    assert not any(split.streams for split in (first.train, first.val, first.test))
    del decoded[:]
    again = load(root, memory_gib=8.0)
    assert again.spec == first.spec
    assert identity(again) == identity(first)
    assert len(decoded) == 1
    assert again.train.streams
    indices = torch.tensor([3, 90, 3, 0])
    for _ in range(2):
        for own, other in zip(again.train.batch(indices), first.train.batch(indices), strict=True):
            assert torch.equal(own, other)
    assert len(decoded) == 1 + 3  # each of them once
    assert again.train.streams
    assert torch.equal(again.train.images, first.train.images)
    assert len(decoded) == 1 + len(first.train)
    assert not again.train.streams
    # Batches that are asked for ahead, by another thread, while images are still missing.
    batches = [EpochBatches(data.test, 7, seed=0, purpose="x") for data in (again, first)]
    for step in range(8):
        for own, other in zip(*(one.at(step) for one in batches), strict=True):
            assert torch.equal(own, other)
    assert not again.test.streams


def test_other_settings_are_looked_at_anew(root):
    seen = [load(root), load(root, channels=1), load(root, split_seed=1), load(root, val_fraction=0.2)]
    seen.append(load_data(DataConfig(dataset="folder", root=str(root), resolution=16, memory_gib=0.0)))
    assert len({data.spec.fingerprint for data in seen}) == 5
    assert len({data.spec.mean for data in seen}) == 5


def test_a_file_that_has_just_changed_may_change_again_at_the_same_time(root, monkeypatch, tmp_path):
    monkeypatch.setattr(dim.data.files, "_SETTLED_NS", 10**9 * 3600)
    load(root)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("damage", ["flip", "cut", "text"])
def test_damaged_findings_are_made_again(root, tmp_path, damage, decoded):
    first = load(root)
    (cached,) = (tmp_path / "cache" / "dim" / "data").glob("*.safetensors")
    assert recall(cached.stem).digest == first.spec.fingerprint
    content = bytearray(cached.read_bytes())
    content[-3] ^= 1
    cached.write_bytes({"flip": content, "cut": content[:40], "text": b"{}"}[damage])
    del decoded[:]
    assert load(root).spec == first.spec
    assert len(decoded) > len(first.train)
    assert recall(cached.stem).digest == first.spec.fingerprint


def test_where_data_were_found_is_known_later(root, tmp_path):
    fingerprint = load(root).spec.fingerprint
    assert known_root(fingerprint) == str(root)
    moved = root.rename(tmp_path / "moved")
    assert known_root(fingerprint) is None
    assert load(moved).spec.fingerprint == fingerprint
    assert known_root(fingerprint) == str(moved)
    assert known_root("other") is None
    (note,) = (tmp_path / "cache" / "dim" / "data").glob("root-*.json")
    note.write_text("{")
    assert known_root(fingerprint) is None


def test_a_cache_folder_that_cannot_be_written_costs_a_line(root, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    load(root)
    assert "not kept, so the next start does this work again" in capsys.readouterr().err


@pytest.mark.parametrize("memory_gib", [8.0, 0.0])
def test_long_reading_shows_progress(root, memory_gib, monkeypatch, capsys):
    monkeypatch.setattr(dim.data.survey, "_PATIENCE_SECONDS", -1.0)
    monkeypatch.setattr(dim.loop, "_TELL_SECONDS", -1.0)
    data = load(root, memory_gib)
    assert f"image {len(data.train)}/{len(data.train)}  folder, train part" in capsys.readouterr().err
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):  # only one process speaks
        monkeypatch.setenv(name, value)
    repaint(root / "train" / "cat" / "000.bmp")
    load(root, memory_gib)
    assert capsys.readouterr().err == ""


# --- what was converted --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_gib", [8.0, 0.0])
def test_what_was_converted_is_said_once_for_each_part(root, memory_gib, capsys):
    for number in range(3):
        Image.fromarray(np.full((8, 8), 30000, dtype=np.uint16)).save(root / "train" / "cat" / f"deep{number}.png")
        write(root / "test" / "dog" / f"hidden{number}.png", np.zeros((8, 8, 4), dtype=np.uint8))
    expected = [
        "folder, train part: 3 images have 16 bits: scaled to 8",
        "folder, test part: 3 images have transparent pixels: put on white",
    ]
    for _ in range(2):  # the second time from the cache
        data = load(root, memory_gib, val_fraction=0.0)
        data.digest("test")
        data.digest("test")
        assert capsys.readouterr().err.splitlines() == expected
    assert float(data.test.batch(torch.tensor([22]))[0].min()) == 1
    assert float(data.train.batch(torch.tensor([60]))[0].max()) == pytest.approx(2 * round(30000 / 257) / 255 - 1, abs=1e-6)


def test_items_of_a_data_set_from_python_are_converted_too(capsys):
    items = [(Image.fromarray(np.full((8, 8), 3000 * n, dtype=np.uint16)), n % 2) for n in range(8)]
    data = from_dataset(items, items[:2], name="mine", class_names="ab", config=DataConfig(val_fraction=0.0))
    assert data.spec.channels == 1
    assert data.train.images[:, 0, 0, 0].tolist() == [round(3000 * n / 257) for n in range(8)]
    assert capsys.readouterr().err.splitlines() == [
        "mine, train part: 8 images have 16 bits: scaled to 8",
        "mine, test part: 2 images have 16 bits: scaled to 8",
    ]
