"""Sets on disk: layout, readers of others, overwriting, damage, and writes that fail."""

import errno
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

import dim.data.export
from dim.data.synthetic import SyntheticSet, load_set
from dim.errors import InputError
from dim.spec import DataSpec

FORMATS = ("imagefolder", "safetensors", "npz")
_FILES = {"imagefolder": "metadata.jsonl", "safetensors": "data.safetensors", "npz": "data.npz"}


def make_set(*, classes: int = 12, ipc: int = 2, channels: int = 3, soft: bool = False) -> SyntheticSet:
    names = tuple(f"class {9 - n} / ü" if n < 9 else f"class {n}" for n in range(classes))  # in no order, not all file names
    shape = {"channels": channels, "height": 8, "width": 8, "mean": (0.5,) * channels, "std": (0.2,) * channels}
    spec = DataSpec(name="toy", class_names=names, fingerprint="f", **shape)
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (classes * ipc, channels, 8, 8), generator=source, dtype=torch.uint8)
    weights = torch.rand(classes * ipc, classes, generator=source) if soft else None
    return SyntheticSet(images, torch.arange(classes * ipc) % classes, spec, soft=weights)


def refused(path) -> str:
    with pytest.raises(InputError) as caught:
        load_set(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_reads_an_image_folder_with_the_same_labels(tmp_path, channels):
    subject = make_set(channels=channels)
    subject.save(tmp_path / "set")
    seen = ImageFolder(tmp_path / "set")
    assert len(seen.classes) == 12
    own = {bytes(i.permute(1, 2, 0).numpy()): y for i, y in zip(subject.images, subject.labels.tolist(), strict=True)}
    mode = "L" if channels == 1 else "RGB"
    read = {bytes(np.asarray(image.convert(mode))): label for image, label in seen}
    assert read == own


def test_metadata_has_one_row_per_image_in_the_order_of_the_set(tmp_path):
    subject = make_set(soft=True)
    subject.save(tmp_path / "set")
    rows = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == subject.labels.tolist()
    assert [row["class_name"] for row in rows] == [subject.spec.class_names[label] for label in subject.labels]
    for row, image, weights in zip(rows, subject.images, subject.soft, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "set" / row["file_name"])), image.permute(1, 2, 0))
        assert torch.equal(torch.tensor(row["soft"]), weights)


def test_numpy_reads_npz_without_this_package(tmp_path):
    subject = make_set(soft=True)
    subject.save(tmp_path / "set", "npz")
    with np.load(tmp_path / "set" / "data.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["images"], subject.images.numpy())
        np.testing.assert_array_equal(arrays["labels"], subject.labels.numpy())
        np.testing.assert_array_equal(arrays["soft"], subject.soft.numpy())


def test_a_class_without_images_leaves_no_empty_folder(tmp_path):
    subject = make_set()
    keep = subject.labels != 3
    SyntheticSet(subject.images[keep], subject.labels[keep], subject.spec).save(tmp_path / "set")
    assert all(any(entry.iterdir()) for entry in (tmp_path / "set").iterdir() if entry.is_dir())
    assert torch.equal(load_set(tmp_path / "set").labels, subject.labels[keep])


# --- overwriting ---------------------------------------------------------------------------------------------------------


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    make_set().save(tmp_path / "set")
    assert len(load_set(tmp_path / "set")) == 24


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        make_set().save(tmp_path / "set")
    assert [file.name for file in (tmp_path / "set").iterdir()] == ["thesis.txt"]
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path):
    (tmp_path / "set").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is a file"):
            make_set().save(tmp_path / "set", overwrite=overwrite)
    assert (tmp_path / "set").read_text() == "mine"


def test_overwriting_replaces_the_whole_folder(tmp_path):
    make_set(ipc=3).save(tmp_path / "set", "imagefolder")
    make_set(ipc=1).save(tmp_path / "set", "npz", overwrite=True)
    assert sorted(file.name for file in (tmp_path / "set").iterdir()) == ["data.npz", "set.json"]
    assert load_set(tmp_path / "set").ipc == 1
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("existing", [False, True])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, format, existing):
    if existing:
        make_set(ipc=1).save(tmp_path / "set")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dim.data.export, "write_json", full)  # the last thing to be written
    with pytest.raises(OSError, match="No space"):
        make_set().save(tmp_path / "set", format, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["set"] * existing
    if existing:
        assert load_set(tmp_path / "set").ipc == 1


# --- damage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_a_missing_or_damaged_description_is_refused(tmp_path, format):
    make_set().save(tmp_path / "set", format)
    description = tmp_path / "set" / "set.json"
    whole = description.read_text()
    for text in (whole[: len(whole) // 2], "", "{}", "[]", json.dumps({**json.loads(whole), "format": 99})):
        description.write_text(text)
        refused(tmp_path / "set")
    for key in ("storage", "digest", "spec", "info"):
        description.write_text(json.dumps({k: v for k, v in json.loads(whole).items() if k != key}))
        refused(tmp_path / "set")
    description.unlink()
    assert "no synthetic set" in refused(tmp_path / "set")
    description.write_text(whole)
    assert len(load_set(tmp_path / "set")) == 24


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    assert "no synthetic set" in refused(tmp_path / "nothing")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, format, keep):
    make_set().save(tmp_path / "set", format)
    file = tmp_path / "set" / _FILES[format]
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    refused(tmp_path / "set")


@pytest.mark.parametrize("format", ["safetensors", "npz"])
@pytest.mark.parametrize("place", [0.01, 0.3, 0.6, 0.9])
def test_a_changed_byte_is_refused(tmp_path, format, place):
    make_set(ipc=20).save(tmp_path / "set", format)
    file = tmp_path / "set" / _FILES[format]
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 0x55
    file.write_bytes(bytes(content))
    refused(tmp_path / "set")


@pytest.mark.parametrize("format", FORMATS)
def test_a_missing_file_is_refused(tmp_path, format):
    make_set().save(tmp_path / "set", format)
    (tmp_path / "set" / _FILES[format]).unlink()
    refused(tmp_path / "set")


def damage_pixel(file):
    array = np.array(Image.open(file))
    array[0, 0, 0] ^= 1
    Image.fromarray(array).save(file)


def damage_size(file):
    Image.open(file).resize((9, 9)).save(file)


@pytest.mark.parametrize(
    "damage",
    [
        damage_pixel,
        damage_size,
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:60]),
        lambda file: file.write_text("no image"),
    ],
    ids=["pixel", "size", "missing", "empty", "truncated", "text"],
)
def test_a_damaged_picture_is_refused(tmp_path, damage):
    make_set().save(tmp_path / "set")
    damage(sorted((tmp_path / "set").rglob("*.png"))[5])
    refused(tmp_path / "set")


def test_pictures_that_all_have_another_size_are_refused(tmp_path):
    make_set().save(tmp_path / "set")
    for file in (tmp_path / "set").rglob("*.png"):
        damage_size(file)
    refused(tmp_path / "set")


@pytest.mark.parametrize(
    "change", [lambda row: row.pop("label"), lambda row: row.pop("file_name"), lambda row: row.update(label=0)]
)
def test_a_changed_metadata_row_is_refused(tmp_path, change):
    make_set().save(tmp_path / "set")
    file = tmp_path / "set" / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    change(rows[7])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(tmp_path / "set")
