"""Sets on disk: layout, readers of others, overwriting, damage, and writes that fail."""

import errno
import json
import sys

import datasets
import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torchvision.datasets import ImageFolder

import dim.data.stored
from dim.config import FORMATS
from dim.data.format import Format
from dim.data.stored import require_libraries, write_into
from dim.data.synthetic import SyntheticSet, load_set
from dim.errors import InputError
from dim.io import read_document, write_document
from dim.spec import DataSpec

_FILES = {
    "imagefolder": "images.jsonl",
    "safetensors": "data.safetensors",
    "npz": "data.npz",
    "webdataset": "data-000000.tar",
    "parquet": "data.parquet",
}
IMAGES = tuple(_FILES)
"""Formats that hold images of any data; tests/test_sampler.py has the one of latents, tests/data/test_others.py those of other
programs."""


def make_set(*, classes: int = 12, ipc: int = 2, channels: int = 3, soft: bool = False) -> SyntheticSet:
    names = tuple(f"class {9 - n} / ü" if n < 9 else f"class {n}" for n in range(classes))  # in no order, not all file names
    shape = {"channels": channels, "height": 8, "width": 8, "mean": (0.5,) * channels, "std": (0.2,) * channels}
    spec = DataSpec(name="toy", class_names=names, fingerprint="f", **shape)
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (classes * ipc, channels, 8, 8), generator=source, dtype=torch.uint8)
    weights = torch.rand(classes * ipc, classes, generator=source).softmax(1) if soft else None
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


def test_every_format_is_tested():
    kinds = {name: FORMATS.load(name) for name in FORMATS.names()}
    assert {name for name, kind in kinds.items() if not kind.latents and not kind.datasets} == set(IMAGES)
    assert all(issubclass(FORMATS.load(name), Format) for name in FORMATS.names())


@pytest.mark.parametrize("format", IMAGES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("soft", [False, True])
def test_every_format_gives_back_what_was_saved(tmp_path, format, channels, soft):
    subject = make_set(channels=channels, soft=soft)
    subject.save(tmp_path / "set", format)
    read = load_set(tmp_path / "set").content()
    assert read.keys() == subject.content().keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in subject.content().items())


def test_the_datasets_library_reads_parquet_as_images_with_class_names(tmp_path):
    subject = make_set(soft=True)
    subject.save(tmp_path / "set", "parquet")
    table = datasets.Dataset.from_parquet(str(tmp_path / "set" / "data.parquet"), cache_dir=str(tmp_path / "cache"))
    assert table.features["label"].names == list(subject.spec.class_names)
    np.testing.assert_array_equal(np.asarray(table[3]["image"]), subject.images[3].permute(1, 2, 0))
    assert table[3]["label"] == int(subject.labels[3])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves shards open
def test_the_webdataset_library_reads_shards_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("dim.data.formats.webdataset._SHARD", 10)
    subject = make_set()
    subject.save(tmp_path / "set", "webdataset")
    shards = sorted(map(str, (tmp_path / "set").glob("*.tar")))
    assert len(shards) == 3
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8").to_tuple("png", "cls"))
    assert [label for _, label in samples] == subject.labels.tolist()
    np.testing.assert_array_equal(samples[13][0], subject.images[13].permute(1, 2, 0))
    assert torch.equal(load_set(tmp_path / "set").images, subject.images)


@pytest.mark.parametrize(("format", "library"), [("webdataset", "webdataset"), ("parquet", "datasets")])
def test_a_format_whose_library_is_absent_names_the_extra(tmp_path, monkeypatch, format, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=r"pip install 'dim-distill\[export\]'"):
        make_set().save(tmp_path / "set", format)
    assert not (tmp_path / "set").exists()
    with pytest.raises(InputError, match=f"format '{format}' needs the library '{library}'"):
        require_libraries(format)
    require_libraries("npz")


def test_no_format_imports_a_library_that_it_does_not_declare():
    for name in FORMATS.names():
        with pytest.raises(AssertionError, match="and not 'undeclared'"):
            FORMATS.load(name)(name).library("undeclared")


class Rows(Format):
    """One of somebody's own: a JSON file."""

    eight_bits = True

    def write(self, folder, content, spec, *, generator=None):
        (folder / "rows.json").write_text(json.dumps({name: tensor.tolist() for name, tensor in content.items()}))

    def read(self, folder, spec, description):
        rows = json.loads((folder / "rows.json").read_text())
        return {"images": torch.tensor(rows["images"], dtype=torch.uint8), "labels": torch.tensor(rows["labels"])}


def test_a_format_of_somebodys_own(tmp_path, monkeypatch):
    """It can be read in a process that knows it; the description alone does not import it."""
    monkeypatch.setattr(FORMATS, "_external", {})
    subject = make_set()
    subject.save(tmp_path / "set", Rows)
    assert torch.equal(load_set(tmp_path / "set").images, subject.images)
    with pytest.raises(InputError, match="8 bits"):
        learned(0).save(tmp_path / "floats", Rows)
    monkeypatch.setattr(FORMATS, "_external", {})
    with pytest.raises(InputError, match="is code outside this package"):
        load_set(tmp_path / "set")


def test_an_unknown_storage_is_refused_with_the_nearest(tmp_path):
    make_set().save(tmp_path / "set", "npz")
    values = read_document(tmp_path / "set" / "set.json")
    for storage, said in (("npy", "Did you mean 'npz'"), (["npz"], "expected a format"), ("../npz", "expected a format")):
        write_document(tmp_path / "set" / "set.json", {**values, "storage": storage})
        assert said in refused(tmp_path / "set")


def test_the_datasets_library_reads_class_folders_with_class_labels(tmp_path):
    subject = make_set()
    subject.save(tmp_path / "set")
    cache = {"cache_dir": str(tmp_path / "cache"), "split": "train"}
    table = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), **cache)
    assert isinstance(table.features["label"], datasets.ClassLabel)
    assert sorted(table["label"]) == sorted(subject.labels.tolist())
    for number, name in enumerate(table.features["label"].names):
        assert int(name.partition("_")[0]) == number


def test_rows_of_earlier_versions_are_read(tmp_path):
    subject = make_set(soft=True)
    subject.save(tmp_path / "set")
    (tmp_path / "set" / "images.jsonl").rename(tmp_path / "set" / "metadata.jsonl")
    assert load_set(tmp_path / "set").images.equal(subject.images)


def test_metadata_has_one_row_per_image_in_the_order_of_the_set(tmp_path):
    subject = make_set(soft=True)
    subject.save(tmp_path / "set")
    rows = [json.loads(line) for line in (tmp_path / "set" / "images.jsonl").read_text().splitlines()]
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


def test_a_set_that_lacks_a_class_is_stored_where_its_labels_stay_what_they_are(tmp_path):
    subject = make_set()
    keep = subject.labels != 3
    some = SyntheticSet(subject.images[keep], subject.labels[keep], subject.spec)
    with pytest.raises(InputError, match=r"images of 11 of 12 classes in folders: .* use --format npz or parquet or "):
        some.save(tmp_path / "set")
    assert not (tmp_path / "set").exists()
    some.save(tmp_path / "set", "safetensors")
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


@pytest.mark.parametrize("format", IMAGES)
@pytest.mark.parametrize("existing", [False, True])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, format, existing):
    if existing:
        make_set(ipc=1).save(tmp_path / "set")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dim.data.stored, "write_document", full)  # the last thing to be written
    with pytest.raises(OSError, match="No space"):
        make_set().save(tmp_path / "set", format, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["set"] * existing
    if existing:
        assert load_set(tmp_path / "set").ipc == 1


# --- into a folder that holds other things -----------------------------------------------------------------------------------


def put(folder, subject: SyntheticSet) -> None:
    write_into(folder, subject.content(), subject.spec, subject.info)


def learned(seed: int, *, soft: bool = True) -> SyntheticSet:
    """Learned pixels: float32, also beyond [-1, 1]."""
    source = torch.Generator().manual_seed(seed)
    images = 2 * torch.randn(24, 3, 8, 8, generator=source)
    weights = torch.rand(24, 12, generator=source).softmax(1) if soft else None
    return SyntheticSet(images, torch.arange(24) % 12, make_set().spec, soft=weights, info={"step_size": 0.01, "seed": seed})


def require_equal(own: SyntheticSet, expected: SyntheticSet) -> None:
    assert own.content().keys() == expected.content().keys()
    assert all(torch.equal(own.content()[name], expected.content()[name]) for name in own.content())
    assert (own.spec, own.info) == (expected.spec, expected.info)


@pytest.fixture
def run(tmp_path):
    """A folder with the files of a run."""
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "checkpoint.safetensors").write_bytes(b"state")
    (tmp_path / "data.csv").write_text("mine")
    return tmp_path


def others(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(("set.json", "data-"))}


@pytest.mark.parametrize("soft", [True, False])
def test_a_set_is_put_beside_other_files_and_read_back(run, soft):
    before = others(run)
    put(run, learned(0, soft=soft))
    require_equal(load_set(run), learned(0, soft=soft))
    assert others(run) == before
    assert len(list(run.glob("data-*.safetensors"))) == 1


def test_a_later_set_takes_the_place_of_an_earlier_one(run):
    before = others(run)
    for seed in (0, 1, 1, 2):
        put(run, learned(seed))
        require_equal(load_set(run), learned(seed))
        assert len(list(run.glob("data-*.safetensors"))) == 1
    assert others(run) == before


def test_other_images_with_the_same_description_are_told_apart(run):
    """The description names the data by its content."""
    put(run, learned(0))
    description = (run / "set.json").read_text()
    put(run, learned(1))
    (run / "set.json").write_text(description)
    refused(run)


class Fault(Exception):
    pass


@pytest.mark.parametrize("moment", ["data", "description", "removal"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_reader_sees_the_old_set_or_the_new_one(run, monkeypatch, moment, existing):
    """Whenever the writer dies; and the next writer leaves no remains."""
    if existing:
        put(run, learned(0))

    def fault(*_, **__):
        raise Fault

    with monkeypatch.context() as patch:
        if moment == "removal":
            patch.setattr(dim.data.stored.Path, "unlink", fault)
        else:
            patch.setattr(dim.data.stored, {"data": "save_data", "description": "write_document"}[moment], fault)
        if moment != "removal" or existing:
            with pytest.raises(Fault):
                put(run, learned(1))
    if moment == "removal" and existing:
        require_equal(load_set(run), learned(1))
    elif existing:
        require_equal(load_set(run), learned(0))
    put(run, learned(2))
    require_equal(load_set(run), learned(2))
    assert len(list(run.glob("data-*.safetensors"))) == 1


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_set_in_a_run_is_refused(run, keep):
    put(run, learned(0))
    (file,) = run.glob("data-*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    refused(run)
    file.unlink()
    refused(run)


@pytest.mark.parametrize("format", ["safetensors", "npz"])
def test_learned_pixels_can_be_saved_elsewhere_but_not_as_pictures(run, format):
    put(run, learned(0))
    load_set(run).save(run / "copy", format)
    require_equal(load_set(run / "copy"), learned(0))
    with pytest.raises(InputError, match=r"8 bits.*use npz or safetensors$"):
        load_set(run).save(run / "pictures")
    assert not (run / "pictures").exists()


# --- damage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", IMAGES)
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


@pytest.mark.parametrize("format", IMAGES)
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, format, keep):
    make_set().save(tmp_path / "set", format)
    file = tmp_path / "set" / _FILES[format]
    content = file.read_bytes()
    keep = min(keep, 0.8) if format == "webdataset" else keep  # the end of a tar file is padding
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


@pytest.mark.parametrize("format", IMAGES)
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
    file = tmp_path / "set" / "images.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    change(rows[7])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(tmp_path / "set")
