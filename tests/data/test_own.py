"""Images as people have them: folders laid out in some way, and data sets of Python in some form."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dim
from dim.config import DATASETS, DataConfig
from dim.data.real import from_dataset, load_data
from dim.errors import InputError

_PARTS = ("train", "val", "test")


def write(folder: Path, *places: str, count: int = 6, suffix: str = ".png") -> None:
    """Image files of their own grey values in these class folders."""
    for place, name in enumerate(places):
        for number in range(count):
            path = folder / name / f"{number}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 10 * number + place, dtype=np.uint8)).save(path)


def load(root: Path, **settings):
    return load_data(DataConfig(dataset="folder", root=str(root), resolution=8, **settings))


def sizes(data) -> list[int]:
    return [len(getattr(data, part)) for part in _PARTS]


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# --- parts of a folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [("train", "test"), ("Train", "Test"), ("training", "testing"), ("TRAIN", "Validation", "TEST"), ("train", "dev", "test")],
)
def test_parts_may_have_any_usual_name(tmp_path, names, capsys):
    train, *val, test = names
    write(tmp_path / "data", f"{train}/cat", f"{train}/dog", count=10)
    write(tmp_path / "data", f"{test}/cat", f"{test}/dog", count=3)
    for name in val:
        write(tmp_path / "data", f"{name}/cat", f"{name}/dog", count=4)
    data = load(tmp_path / "data")
    assert data.spec.class_names == ("cat", "dog")
    assert sizes(data) == ([20, 8, 6] if val else [18, 2, 6])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_a_validation_part_without_a_test_part_is_the_test_part_and_that_is_said(tmp_path, capsys, name):
    write(tmp_path / "data", "train/cat", "train/dog", count=10)
    write(tmp_path / "data", f"{name}/cat", f"{name}/dog", count=3)
    assert sizes(load(tmp_path / "data")) == [18, 2, 6]
    assert capsys.readouterr().err == f"dim: {tmp_path / 'data'}: {name}/ is taken as the test part, as there is no other\n"


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path / "data", "bus", "train", "test", count=10)
    assert load(tmp_path / "data").spec.class_names == ("bus", "test", "train")


def test_parts_that_are_not_clear_are_refused(tmp_path, capsys):
    write(tmp_path / "two", "train/a", "train/b", "training/a", "training/b")
    with pytest.raises(InputError, match=r"two has train/ and training/: expected one train part"):
        load(tmp_path / "two")
    write(tmp_path / "no", "Test/a", "Test/b")
    with pytest.raises(InputError, match=r"no has Test/ with folders in it and no train/"):
        load(tmp_path / "no")
    write(tmp_path / "more", "train/a", "train/b", "extra/c", "unlabelled")
    load(tmp_path / "more")
    assert "more: left out, as they are beside train/: extra, unlabelled" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "train/"])
def test_one_folder_too_many_is_pointed_out(tmp_path, below):
    write(tmp_path / "data", f"{below}inner/cat", f"{below}inner/dog")
    with pytest.raises(InputError, match=r"1 class folder\(s\).*did you mean .*inner\?"):
        load(tmp_path / "data")


def test_images_without_class_folders_are_pointed_out(tmp_path):
    write(tmp_path, "data", count=7)
    with pytest.raises(InputError, match=r"0 class folder\(s\).*put its 7 images into a folder for each class"):
        load(tmp_path / "data")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("tested", [False, True])
def test_classes_of_which_no_image_would_be_left_to_train_on_are_refused(tmp_path, count, tested):
    write(tmp_path / "data", "train/cat", count=9)
    write(tmp_path / "data", "train/dog", count=count)
    if tested:
        write(tmp_path / "data", "test/cat", "test/dog", count=2)
    if tested and count == 2:
        assert torch.bincount(load(tmp_path / "data").train.labels).tolist() == [8, 1]
    else:
        with pytest.raises(
            InputError, match=r"class 'dog' has \d (training image|images, and none is left to train on: expected at least 3)"
        ):
            load(tmp_path / "data")


# --- files -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".JPE", ".tga", ".jp2", ".pbm"])
def test_more_kinds_of_images_are_read(tmp_path, suffix):
    write(tmp_path / "data", "cat", "dog")
    form = {".jfif": "jpeg", ".jpe": "jpeg", ".jp2": "jpeg2000", ".pbm": "ppm"}.get(suffix.lower(), suffix[1:])
    for name in ("cat", "dog"):
        Image.fromarray(np.full((8, 8, 3), 200, dtype=np.uint8)).save(tmp_path / "data" / name / f"more{suffix}", form)
    data = load(tmp_path / "data", val_fraction=0.0)
    assert sum(sizes(data)) == 14
    assert max(int(images.max()) for images in (data.train.images, data.test.images)) >= 198


def test_files_that_are_no_images_are_counted_and_said(tmp_path, capsys):
    write(tmp_path / "data", "cat", "dog")
    for name in ("a.heic", "b.heic", "notes.txt", "README", ".DS_Store", "._0.png", "Thumbs.db"):
        (tmp_path / "data" / "cat" / name).write_text("x")
    for folder in ("data/__MACOSX/cat", "data/cat/.ipynb_checkpoints"):
        write(tmp_path, folder, count=1)
    data = load(tmp_path / "data")
    assert sum(sizes(data)) == 12
    said = "4 files are no images that can be read, left out: 2 .heic, 1 .txt, 1 without an ending"
    assert capsys.readouterr().err == f"dim: {tmp_path / 'data'}: {said}\n"


def test_a_class_folder_with_other_files_only_says_which(tmp_path):
    write(tmp_path / "data", "cat", "dog")
    (tmp_path / "data" / "eel").mkdir()
    (tmp_path / "data" / "eel" / "a.heic").touch()
    with pytest.raises(InputError, match=r"eel holds no images but 1 \.heic: remove it, or add some"):
        load(tmp_path / "data")


# --- data sets of Python -----------------------------------------------------------------------------------------------------

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
NAMES = ("x", "y", "z")


def expected() -> torch.Tensor:
    return torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


FORMS = {
    "array, channels last": lambda n: (PIXELS[n], n % 3),
    "array, channels first": lambda n: (PIXELS[n].transpose(2, 0, 1).copy(), n % 3),
    "floats, channels last": lambda n: (PIXELS[n].astype(np.float32) / 255, n % 3),
    "opaque RGBA": lambda n: (np.concatenate((PIXELS[n], np.full((8, 8, 1), 255, dtype=np.uint8)), 2), n % 3),
    "mapping": lambda n: {"image": Image.fromarray(PIXELS[n]), "label": n % 3},
    "mapping with other keys": lambda n: {"id": n, "img": PIXELS[n], "fine_label": np.int32(n % 3)},
    "names": lambda n: (PIXELS[n], NAMES[n % 3]),
    "one-hot": lambda n: (PIXELS[n], torch.eye(3)[n % 3]),
    "one-hot integers": lambda n: (PIXELS[n], np.eye(3, dtype=np.int64)[n % 3]),
    "scalar tensor": lambda n: (PIXELS[n], torch.tensor(n % 3)),
    "tensor of one": lambda n: (PIXELS[n], torch.tensor([n % 3])),
    "float number": lambda n: [PIXELS[n], float(n % 3)],
    "more than a pair": lambda n: (PIXELS[n], n % 3, "path"),
}


@pytest.mark.parametrize("form", FORMS)
def test_items_may_have_any_usual_form(form):
    items = [FORMS[form](n) for n in range(24)]
    data = from_dataset(items, items[:6], name="mine", class_names=NAMES, config=DataConfig(val_fraction=0.0))
    assert torch.equal(data.train.images, expected())
    assert data.train.labels.tolist() == [n % 3 for n in range(24)]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((PIXELS[0], "w"), "item 3 of 'mine' has label 'w': expected one of class_names"),
        ((PIXELS[0], 1.5), "item 3 of 'mine' has label 1.5: expected a number from 0 to 2"),
        ((PIXELS[0], float("nan")), "has label nan"),
        ((PIXELS[0], None), "has a label of type NoneType|has label None"),
        ((PIXELS[0], [0.5, 0.5, 0.0]), "one 1 among zeros"),
        ((PIXELS[0], [1, 1, 0]), "one 1 among zeros"),
        ((PIXELS[0], {}), "has a label of type dict"),
        ({"picture": PIXELS[0], "label": 0}, "has picture, label: expected image or img"),
        (PIXELS[0], "is a ndarray: expected a pair"),
        ("xy", "is a str: expected a pair"),
        (("path.png", 0), "has an image of type str: expected a PIL image"),
        ((None, 0), "has an image of type NoneType"),
        ((np.full((8, 8, 3), np.nan), 0), r"outside \[0, 1\]"),
        ((PIXELS[0].astype(np.float32), 0), r"outside \[0, 1\].*as uint8"),
        ((PIXELS[0][:, :, :2], 0), r"shape \(8, 8, 2\)"),
    ],
)
def test_items_of_no_usual_form_are_refused_in_one_line(item, message):
    items = [(PIXELS[n], n % 3) for n in range(24)]
    items[3] = item
    with pytest.raises(InputError, match=message) as caught:
        from_dataset(items, items, name="mine", class_names=NAMES)
    assert "\n" not in str(caught.value)


class Remapped:
    """As torchvision's data sets are: `targets` are those of the files, and a transform makes others of them."""

    def __init__(self, change, count=24):
        self.targets, self._change = [n % 3 for n in range(count)], change

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return PIXELS[index % 24], self._change(self.targets[index], index)


def test_labels_are_those_that_items_have():
    data = from_dataset(Remapped(lambda label, _: 2 - label), name="mine", class_names=NAMES, config=DataConfig(val_fraction=0.0))
    every = torch.cat((data.train.labels, data.test.labels))
    images = torch.cat((data.train.images, data.test.images))
    for image, label in zip(images, every.tolist(), strict=True):
        (number,) = [n for n in range(24) if torch.equal(expected()[n], image)]
        assert label == 2 - number % 3
    noisy = Remapped(lambda label, n: 0 if n == 1 else label)
    test = Remapped(lambda label, _: label)
    data = from_dataset(noisy, test, name="mine", class_names=NAMES, config=DataConfig(val_fraction=0.0))
    assert torch.bincount(data.train.labels).tolist() == [9, 7, 8]
    # One that no comparison of some items finds is met when all are read.
    rare = Remapped(lambda label, n: 0 if n == 1 else label, count=600)
    with pytest.raises(InputError, match="item 1 of 'mine' has label 0 and had 1 before, or in the data set's `targets`"):
        from_dataset(rare, test, name="mine", class_names=NAMES)


def test_kept_labels_spare_reading_the_items_twice():
    class Counted(Remapped):
        read = 0

        def __getitem__(self, index):
            Counted.read += 1
            return super().__getitem__(index)

    items = Counted(lambda label, _: label, count=600)
    from_dataset(items, [(PIXELS[n], n % 3) for n in range(3)], name="mine", class_names=NAMES)
    assert Counted.read <= 600 + 200 + 1


def test_without_a_test_part_one_is_taken():
    items = [(PIXELS[n], n % 3) for n in range(24)]
    data = dim.from_dataset(items, name="mine", class_names=NAMES)
    assert sizes(data) == [15, 3, 6]


def test_class_names_are_those_of_the_data_set():
    items = Remapped(lambda label, _: label)
    with pytest.raises(InputError, match="does not say what its classes are: give class_names"):
        from_dataset(items, name="mine")
    items.classes = ["cat", "dog", "eel"]
    assert from_dataset(items, name="mine").spec.class_names == ("cat", "dog", "eel")


def test_what_has_no_length_is_refused():
    with pytest.raises(InputError, match="'mine' has a generator: expected a data set with a length"):
        from_dataset(((PIXELS[n], n % 3) for n in range(24)), name="mine", class_names=NAMES)


def test_a_hugging_face_data_set_is_a_source():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    content = {"image": [Image.fromarray(pixels) for pixels in PIXELS], "label": [n % 3 for n in range(24)]}
    items = datasets.Dataset.from_dict(content, features=features)
    data = from_dataset(items, items.select(range(6)), name="mine", config=DataConfig(val_fraction=0.0))
    assert data.spec.class_names == NAMES
    assert torch.equal(data.train.images, expected())
    assert data.train.labels.tolist() == [n % 3 for n in range(24)]
    with pytest.raises(InputError, match="has a IterableDataset: expected a data set with a length"):
        from_dataset(items.to_iterable_dataset(), name="mine", class_names=NAMES)


# --- labels in a file --------------------------------------------------------------------------------------------------------

LABELS = {  # the file, and what it holds for four images
    "dataset.json": '{"labels": [["a/0.png", 0], ["a/1.png", 1], ["b/2.png", 0], ["b/3.png", 1]]}',
    "metadata.jsonl": "\n".join(
        json.dumps({"file_name": f"{name}.png", "label": kind}) for name, kind in (("a/0", 0), ("a/1", 1), ("b/2", 0), ("b/3", 1))
    ),
    "metadata.csv": "file_name,label\na/0.png,0\na/1.png,1\nb/2.png,0\nb/3.png,1\n",
    "labels.csv": "\ufeffImage,width,Class\n./a/0.png,8,0\na\\1.png,8,1\nb/2.png,8,0\nb/3.png,8,1\n",
}


def listed(root: Path, **settings):
    return load_data(DataConfig(dataset="listed", root=str(root), resolution=8, **settings))


def label(folder: Path, count: int = 12, names: tuple[str, ...] = ("cat", "dog"), file: str = "metadata.csv") -> None:
    """A flat folder of images, and a file with their labels in turn."""
    write(folder, ".", count=count)
    rows = [f"{number}.png,{names[number % len(names)]}" for number in range(count)]
    (folder / file).write_text("\n".join(["file_name,label", *rows]))


@pytest.mark.parametrize("file", LABELS)
def test_labels_may_stand_in_a_file_of_any_usual_kind(tmp_path, file):
    write(tmp_path, "a", "b", count=4)
    (tmp_path / file).write_text(LABELS[file], "utf-8")
    items, test, val = DATASETS.load("listed")(DataConfig(dataset="listed", root=str(tmp_path), resolution=8))
    assert (test, val) == (None, None)
    assert items.names == ("0", "1")
    assert items.labels.tolist() == [0, 1, 0, 1]
    assert [int(items.image(index)[0, 0, 0]) for index in range(4)] == [0, 10, 21, 31]  # which file it is


def test_parts_may_have_a_file_of_labels_each(tmp_path):
    for part, count in (("Train", 20), ("val", 4), ("testing", 6)):
        label(tmp_path / part, count)
    data = listed(tmp_path)
    assert data.spec.class_names == ("cat", "dog")
    assert sizes(data) == [20, 4, 6]


def test_numbers_stand_in_their_order_and_other_names_after_them(tmp_path):
    label(tmp_path, 24, ("10", "9", "x", "2"))
    assert listed(tmp_path).spec.class_names == ("2", "9", "10", "x")


def test_what_a_file_does_not_label_is_left_out_and_that_is_said(tmp_path, capsys):
    label(tmp_path)
    write(tmp_path, ".", count=15)
    with (tmp_path / "metadata.csv").open("a") as file:
        file.write("\n12.png,\n")
    assert sum(sizes(listed(tmp_path))) == 12
    said = capsys.readouterr().err
    assert "1 image has no label" in said
    assert "3 images are not named in metadata.csv" in said


@pytest.mark.parametrize(
    ("file", "text", "part"),
    [
        ("metadata.csv", "file_name,label\n0.png,a\n0.png,b\n", "twice"),
        ("metadata.csv", "file_name,label\n0.png,a\n99.png,b\n", "99.png', which is missing"),
        ("metadata.csv", "file_name,label\n0.png,a\n../0.png,b\n", "without / or .. in front"),
        ("metadata.csv", "file_name,label\n0.png,a\n/etc/passwd,b\n", "without / or .. in front"),
        ("metadata.csv", "file_name,label\n0.png,a\n1.png,a\n", "1 class: expected at least 2"),
        ("metadata.csv", "file_name,size\n0.png,8\n", "a label is named label or"),
        ("metadata.csv", "name,label\n0.png,8\n", "an image is named file_name or"),
        ("metadata.csv", 'file_name,label\n"0.png,8\n', "cannot be read"),
        ("metadata.jsonl", '{"file_name": "0.png", "label": 1.5}\n', "1.5: expected a whole number or a name"),
        ("metadata.jsonl", '{"file_name": "0.png", "label": [0, 1]}\n', "expected a whole number or a name"),
        ("metadata.jsonl", '{"file_name": "0.png", "label": true}\n', "expected a whole number or a name"),
        ("metadata.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("metadata.jsonl", "{", "cannot be read"),
        ("metadata.jsonl", "[" * 100_000, "cannot be read"),
        ("metadata.jsonl", b"\xff\xfe", "not text in UTF-8"),
        ("dataset.json", "[]", "expected {'labels'"),
        ("dataset.json", '{"labels": [["0.png"]]}', "no pair of a file and a label"),
        (None, "", "no file of labels: expected one of dataset.json"),
    ],
)
def test_files_of_labels_that_mean_nothing_are_refused(tmp_path, file, text, part):
    write(tmp_path, ".", count=4)
    if file:
        (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        listed(tmp_path)
    assert part in str(error.value)
    assert "\n" not in str(error.value)
