"""Unusual data of somebody's own: understood, with a word on what is left out or taken for something, or refused in one line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, IterableDataset, Subset

from dim.config import DataConfig
from dim.data.real import from_dataset, load_data
from dim.errors import InputError
from dim.text import LINE

_PARTS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(folder: Path, *places: str, count: int = 6) -> None:
    """Image files in these folders, all different."""
    for place, name in enumerate(places):
        for number in range(count):
            path = folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 20 * number + place, dtype=np.uint8)).save(path)


def outcome(load, capsys) -> tuple[str, tuple[str, ...], list[int]]:
    """What is said or refused, always in lines of the usual length; and classes and sizes of parts of what is read."""
    capsys.readouterr()
    try:
        data = load()
    except InputError as error:
        said = str(error)
        assert "\n" not in said
        assert len(said) <= LINE + 100  # of which the path of the temporary folder is the better part
        return said, (), []
    said = capsys.readouterr().err
    assert all(len(line) <= LINE + 100 for line in said.splitlines())
    return said, data.spec.class_names, [len(getattr(data, part)) for part in _PARTS]


def judge(found: tuple[str, tuple[str, ...], list[int]], expected) -> None:
    """`expected` is what is refused; or what is said, the classes, and the sizes of the parts."""
    said, names, sizes = found
    if isinstance(expected, str):
        assert not names, f"read {names} {sizes}: expected a refusal"
        assert re.search(expected, said), said
    else:
        line, classes, *parts = expected
        assert re.search(line, said) if line else said == "", said
        assert (names, sizes) == (tuple(classes.split()), parts[0] if parts else sizes), said


# --- folders -----------------------------------------------------------------------------------------------------------------


def places(*names: str):
    return lambda root: write(root, *names)


def link(target: str, name: str, *more: str):
    def make(root: Path) -> None:
        write(root, *more)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(root / target)

    return make


def with_file(name: str, *more: str, content: bytes = b"x"):
    def make(root: Path) -> None:
        write(root, *more)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    return make


PICTURE = b"P2\n1 1\n255\n9\n"
FOLDERS = {
    # Names of parts.
    "training_set": (
        places("training_set/a", "training_set/b", "test_set/a", "test_set/b"),
        ("as its parts", "a b", [10, 2, 12]),
    ),
    "seg_train": (places("seg_train/a", "seg_train/b", "seg_test/a", "seg_test/b"), ("as its parts", "a b", [10, 2, 12])),
    "val2017": (
        places("train2017/a", "train2017/b", "val2017/a", "val2017/b"),
        ("val2017/ is taken as the test", "a b", [10, 2, 12]),
    ),
    "kinds of trains": (places("steam_train", "diesel_train"), ("", "diesel_train steam_train", [8, 2, 2])),
    "parts without classes": (places("Train", "Test"), "Test/ and Train/, which are parts and no classes"),
    "parts without classes beside labels": (
        with_file("metadata.csv", "train", "test", content=b"file_name,label\ntrain/0.png,a\ntrain/1.png,b\n"),
        "which are parts and no classes",
    ),
    "three parts without classes": (places("train", "val", "test"), "which are parts and no classes"),
    "parts within classes": (places("cat/train", "cat/test", "dog/train", "dog/test"), "expected parts around the classes"),
    "one folder too many in a part": (places("train/train/a", "train/train/b"), "did you mean .*train/train"),
    "the same folders everywhere": (places("one/a", "one/b", "two/a", "two/b"), ("one, two ... are taken as classes", "one two")),
    "a test part without classes": (places("train/a", "train/b", "test"), ("left out, as they are beside train/: test", "a b")),
    "parts that are one by a link": (link("train", "test", "train/a", "train/b"), "which are one folder by a link"),
    # Classes.
    "capitals": (places("Cat", "cat"), ("'Cat' and 'cat' differ in capitals", "Cat cat")),
    "accents": (places("cafe\u0301", "caf\u00e9"), (r"'cafe\\u0301' and 'caf\\xe9' differ", "cafe\u0301 caf\u00e9")),
    "zeros": (places("01", "1", "2"), ("'01' and '1' differ", "01 1 2")),
    "accents of a part": (
        places("train/caf\u00e9", "train/b", "test/cafe\u0301", "test/b"),
        r"it has 'caf\\xe9', and this is 'cafe\\u",
    ),
    "zeros of a part": (places("train/01", "train/02", "test/1", "test/2"), "it has '01', and this is '1'"),
    "a class that the test part lacks": (places("train/a", "train/b", "train/c", "test/a", "test/b"), "test has no class 'c'"),
    "a class that is a link to another": (link("a", "c", "a", "b"), "have the same images, by a link"),
    "a class that is a link to all": (link("", "c", "a", "b"), "have the same images, by a link"),
    "a class that is a link elsewhere": (link("../cats", "a", "b", "../cats"), ("", "a b", [8, 2, 2])),
    # What lies beside, and within.
    "images beside classes": (
        with_file("x.pgm", "a", "b", content=PICTURE),
        ("1 image lies beside the class folders: left out", "a b"),
    ),
    "images beside parts": (with_file("x.pgm", "train/a", "train/b", content=PICTURE), ("left out, .* train/: 1 image\n", "a b")),
    "a link to a folder in a class": (link("more", "a/more", "a", "b", "more"), ("left out: 1 link to a folder", "a b more")),
    "labels beside classes": (with_file("labels.csv", "a", "b"), ("labels.csv is not read, as folders are the classes", "a b")),
    "an archive": (with_file("photos.tar.gz"), "1 .gz: unpack archives first"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders(case, tmp_path, capsys):
    make, expected = FOLDERS[case]
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    config = DataConfig(dataset="folder", root=str(root), resolution=8)
    judge(outcome(lambda: load_data(config), capsys), expected)


@pytest.mark.parametrize(("root", "message"), [("", "'' is no folder"), ("a.zip", r"a\.zip' is no folder, but a file \(unpack")])
def test_roots_that_are_no_folders(root, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a", "b")  # which an empty name would mean
    Path("a.zip").touch()
    with pytest.raises(InputError, match=message):
        load_data(DataConfig(dataset="folder", root=root, resolution=8))


# --- labels in a file --------------------------------------------------------------------------------------------------------


ROWS = [(f"{number}.png", ("cat", "dog")[number % 2]) for number in range(12)]


def table(
    rows, *, header=("file_name", "label"), comma: str = ",", name: str = "metadata.csv", end: str = "\n", code: str = "utf-8"
):
    def make(root: Path) -> None:
        write(root, ".", count=12)
        text = end.join(comma.join(map(str, row)) for row in (header, *rows))
        (root / name).write_bytes(text.encode(code))

    return make


def lines(rows, name: str = "metadata.jsonl"):
    def make(root: Path) -> None:
        write(root, ".", count=12)
        (root / name).write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")

    return make


def both(*makers):
    return lambda root: [make(root) for make in makers]


def labelled(*labels):
    return [(f"{number}.png", labels[number % len(labels)]) for number in range(12)]


WHOLE = [{"labels": [[f"{number}.png", number % 2] for number in range(12)]}]
LABELS = {
    # How tables are written.
    "a mark of the byte order": (table(ROWS, code="utf-8-sig"), ("", "cat dog")),
    "line ends of Windows": (table(ROWS, end="\r\n"), ("", "cat dog")),
    "semicolons": (table(ROWS, comma=";"), ("", "cat dog")),
    "tabs": (table(ROWS, comma="\t"), ("", "cat dog")),
    "UTF-16": (table(ROWS, code="utf-16"), "it is not text in UTF-8"),
    "no header": (table(ROWS[1:], header=ROWS[0]), "an image is named file_name"),
    "a comma at the end of every line": (table([(*row, "") for row in ROWS]), ("", "cat dog")),
    "a name with a comma": (table([*ROWS[1:], ("0.png", "cat", " black")]), "line 13 has more cells"),
    "a column twice": (
        table([(*row, 9) for row in ROWS], header=("file_name", "label", "label")),
        "two columns are named 'label'",
    ),
    "a mark that only some take for a line's end": (
        lines([{"file_name": name, "label": f"{label}\u2028s"} for name, label in ROWS]),
        ("", "", [8, 2, 2]),
    ),
    # Which columns and files.
    "two columns of labels": (
        table([(*row, 9) for row in ROWS], header=("file_name", "label", "class")),
        ("label is taken from 'label', and not from 'class'\n$", "cat dog"),
    ),
    "two columns of names": (
        table([(*row, "x") for row in ROWS], header=("file_name", "label", "path")),
        ("image is taken from 'file_name', and not from 'path'\n$", "cat dog"),
    ),
    "two files": (both(table(ROWS), lines(WHOLE, "dataset.json")), ("those of dataset.json; metadata.csv is not read", "0 1")),
    "a column of splits": (
        table(
            [(*row, "test" if number > 8 else "train") for number, row in enumerate(ROWS)], header=("file_name", "label", "split")
        ),
        "has the split 'test': give each part a folder",
    ),
    "folders of parts": (
        both(lambda root: write(root, "train", "test"), table([("train/1.png", "a"), ("test/1.png", "b")])),
        "names images in test/ and train/",
    ),
    # Names of images.
    "an image twice": (table([*ROWS, ("x//../0.png", "dog")]), r"without / or \.\. in front"),
    "an image by two names": (table([*ROWS, (".//0.png", "dog")]), "names 0.png twice"),
    "an absolute name": (table([("/0.png", "dog"), *ROWS]), r"without / or \.\. in front"),
    "no image": (table([*ROWS, ("notes.npy", "dog")]), "names 'notes.npy': expected an image, whose name ends in"),
    # Labels.
    "whole numbers as floats": (table(labelled("0.0", "1.0")), ("", "0 1", [8, 2, 2])),
    "two ways to write a number": (table(labelled("0", "0.0", "1", "1.0")), ("", "0 1", [8, 2, 2])),
    "floats of JSON": (lines([{"file_name": name, "label": 1.0 * number} for name, number in labelled(0, 1)]), ("", "0 1")),
    "negative numbers": (table(labelled(1, -1)), ("", "-1 1")),
    "numbers that differ in zeros": (table(labelled("1", "01", "2")), ("'01' and '1' differ", "01 1 2")),
    "capitals": (table(labelled("cat", "Cat")), ("'Cat' and 'cat' differ", "Cat cat")),
    "blanks": (table([*ROWS[:11], ("11.png", "  ")]), ("1 image has no label: left out", "cat dog")),
    "a class of its own for each": (table([(name, number) for number, (name, _) in enumerate(ROWS)]), "class '0' has 1 training"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_in_a_file(case, tmp_path, capsys):
    make, expected = LABELS[case]
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    found = outcome(lambda: load_data(DataConfig(dataset="listed", root=str(root), resolution=8)), capsys)
    if case.startswith("a mark that"):
        assert found == ("", ("cat\u2028s", "dog\u2028s"), [8, 2, 2])
    else:
        judge(found, expected)


# --- data sets of Python -----------------------------------------------------------------------------------------------------

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
NAMES = ("x", "y", "z")


class Own:
    """A data set with `targets`, perhaps `classes`, and labels made of these by a function."""

    def __init__(self, targets=None, *, change=lambda label: label, length: int = 24, **kept):
        self.targets = [number % 3 for number in range(24)] if targets is None else targets
        self._change, self._length = change, length
        vars(self).update(kept)

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        return PIXELS[index], self._change(self.targets[index])


class Endless(IterableDataset):
    """It has a length and, as its base class, a `__getitem__`."""

    def __iter__(self):
        return iter(pairs(plain))

    def __len__(self):
        return 24


def pairs(label, image=lambda number: PIXELS[number]):
    return [(image(number), label(number)) for number in range(24)]


def plain(number: int) -> int:
    return number % 3


STRIDED = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
LABELLED = [plain(number) for number in range(24)]
ITEMS = {
    # Labels: forms, and where they are kept.
    "floats": (pairs(lambda n: float(n % 3)), LABELLED),
    "texts of NumPy": (pairs(lambda n: np.str_(NAMES[n % 3])), LABELLED),
    "bfloat16": (pairs(lambda n: torch.eye(3, dtype=torch.bfloat16)[n % 3]), LABELLED),
    "with a gradient": (pairs(lambda n: torch.tensor(float(n % 3), requires_grad=True)), LABELLED),
    "an array of names": (Own(np.array(NAMES)[LABELLED]), LABELLED),
    "vectors in targets": (Own(torch.eye(3)[LABELLED]), LABELLED),
    "negative": (pairs(lambda n: n % 3 - 1), "label -1: expected 0 to 2"),
    "from 1": (pairs(lambda n: n % 3 + 1), "label 3: expected 0 to 2"),
    "gaps": (pairs(lambda n: n % 2 * 2), "class 'y' has 0 training image"),
    "huge": (pairs(lambda n: 10**400), "label of type int: expected a number"),
    "complex": (pairs(lambda n: np.complex64(1j)), "expected a number"),
    "bytes": (pairs(lambda n: b"x"), "label of type bytes"),
    "a part of parts with changed labels": (
        Subset(ConcatDataset([Own(change=lambda label: 2 - label)] * 2), range(3, 27)),
        [2 - plain(number) for number in range(24)],
    ),
    "of chance": (Own(change=lambda label: int(torch.randint(3, ()))), "expected labels that do not change"),
    # Images.
    "strides backwards": (pairs(plain, lambda n: PIXELS[n][::-1, ::-1]), LABELLED),
    "another order of bytes": (pairs(plain, lambda n: (PIXELS[n] / 255).astype(">f4")), LABELLED),
    "a gradient": (pairs(plain, lambda n: (STRIDED[n] / 255).requires_grad_()), LABELLED),
    "sparse": (pairs(plain, lambda n: STRIDED[n].to_sparse()), LABELLED),
    "no pixels": (pairs(plain, lambda n: STRIDED[n][:, :0]), r"shape \(3, 0, 8\)"),
    "a picture without pixels": (pairs(plain, lambda n: Image.new("RGB", (0, 5))), "0x5 pixels"),
    "of meta": (pairs(plain, lambda n: STRIDED[n].to("meta")), "an image of type Tensor"),
    "two readings": (pairs(plain, lambda n: PIXELS[n][:3]), "may mean two things"),
    "16 bits": (pairs(plain, lambda n: PIXELS[n].astype(np.uint16)), "uint16: expected uint8, or float"),
    "a little above 1": (pairs(plain, lambda n: PIXELS[n] / 250), r"values from 0(\.\d+)? to 1\.\d+, outside \[0, 1\]"),
    "premultiplied": (pairs(plain, lambda n: Image.fromarray(PIXELS[n]).convert("LA").convert("La")), LABELLED),
    # Data sets.
    "that raises": (Own(length=25), "item 24 of 'mine' cannot be read .IndexError: index 24 is out of"),
    "iterable with a length": (Endless(), "a Endless: expected a data set with a length"),
    "a mapping": ({"image": PIXELS, "label": LABELLED}, "dict of image, label: expected one part"),
    "nothing": (None, "a NoneType: expected a data set"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", ITEMS)
def test_data_sets_of_python(case):
    items, expected = ITEMS[case]
    config = DataConfig(val_fraction=0.0)

    def load():
        test = pairs(plain) if isinstance(items, list) and isinstance(expected, str) else items
        return from_dataset(items, test, name="mine", class_names=NAMES, config=config)

    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected) as caught:
            load()
        assert "\n" not in str(caught.value)
    else:
        assert load().train.labels.tolist() == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b", "c"], ("a", "b", "c")),
        ([10, 11, 12], ("10", "11", "12")),
        (np.array(["a", "b", "c"]), ("a", "b", "c")),
        ({"c": 0, "a": 1, "b": 2}, ("c", "a", "b")),
        ([("tench", "Tinca tinca"), ("goldfish",), ("shark",)], ("tench, Tinca tinca", "goldfish", "shark")),
        ({"a", "b", "c"}, "are a set: expected a list"),
        ({"a": 5, "b": 6, "c": 7}, "are a dict: expected a list"),
        (["a", "a", "b"], "the class name 'a' for 0 and for 1"),
        (["a", "", "b"], "the class name '': expected a name"),
        (["a", None, "b"], "the class name None: expected a name"),
        (["a", "b"], "item 2 of 'mine' has label 2: expected 0 to 1"),
        (["a", "b", "c", "d"], "class 'd' has 0 training image"),
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_names_of_classes(names, expected, given):
    def load():
        items = Own() if given else Own(classes=names)
        return from_dataset(items, name="mine", **({"class_names": names} if given else {}))

    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            load()
    else:
        assert load().spec.class_names == expected


@pytest.mark.parametrize("names", [3, lambda: NAMES, "xyz"])
def test_what_is_no_list_of_classes_names_none(names):
    with pytest.raises(InputError, match="does not say what its classes are"):
        from_dataset(Own(classes=names), name="mine")


@pytest.mark.parametrize(
    ("train", "test", "given", "refused"),
    [
        ("abc", "abc", None, None),
        ("abc", "cba", None, "class 0 of the test part of 'mine' is 'c': expected 'a'"),
        ("abc", "bcd", None, "class 0 of the test part"),
        ("abc", "cba", "xyz", "class 0 of the test part"),  # whatever they are called
        ("abc", "abc", "xyz", None),
        ("abc", "abc", "cba", "class 0 of the train part of 'mine' is 'a': expected 'c'"),
        ("abc", None, "abC", None),
    ],
)
def test_parts_number_their_classes_alike(train, test, given, refused):
    kept = {} if test is None else {"classes": list(test)}

    def load():
        return from_dataset(Own(classes=list(train)), Own(**kept), name="mine", class_names=given and list(given))

    if refused:
        with pytest.raises(InputError, match=refused):
            load()
    else:
        assert load().spec.class_names == tuple(given or train)


def test_a_part_that_lacks_a_class_is_refused_wherever_it_comes_from():
    with pytest.raises(InputError, match="the test part has no image of class 'y', which the training part has"):
        from_dataset(Own(), pairs(lambda n: 0), name="mine", class_names=NAMES)


def test_of_several_entries_with_an_image_or_a_label_it_is_said_which_is_taken(capsys):
    items = [{"image": PIXELS[n], "img": PIXELS[0], "label": n % 3, "target": 0} for n in range(24)]
    assert from_dataset(items, name="mine", class_names=NAMES).train.labels.unique().tolist() == [0, 1, 2]
    assert capsys.readouterr().err == (
        "dim: mine: image is taken of every item, and not img\ndim: mine: label is taken of every item, and not target\n"
    )


def test_data_sets_of_hugging_face_in_other_states():
    datasets = pytest.importorskip("datasets")

    def make(names=NAMES, **content):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
        images = [Image.fromarray(pixels) for pixels in PIXELS]
        return datasets.Dataset.from_dict({"image": images, "label": LABELLED} | content, features=features)

    whole, config = make(), DataConfig(val_fraction=0.0)
    encoded = from_dataset(whole.cast_column("image", datasets.Image(decode=False)), whole, name="mine", config=config)
    assert torch.equal(encoded.train.images, STRIDED)
    assert torch.equal(from_dataset(whole.with_format("numpy"), whole, name="mine", config=config).train.images, STRIDED)
    damaged = whole.cast_column("image", datasets.Image(decode=False)).to_list()
    damaged[4]["image"] = {"bytes": b"no image", "path": None}
    for train, test, message in (
        (datasets.DatasetDict({"train": whole, "test": whole}), None, "a DatasetDict of train, test: expected one part"),
        (whole, datasets.DatasetDict({"test": whole}), "a DatasetDict of test: expected one part"),
        (whole, make(NAMES[::-1]), "class 0 of the test part of 'mine' is 'z': expected 'x'"),
        (make(label=[-1] * 24), None, "item 0 of 'mine' has label -1"),
        (make(image=[None] * 24), None, "an image of type NoneType"),
        (damaged, None, "item 4 of 'mine' cannot be read"),
        (whole.from_list(damaged, whole.features), None, "item 4 of 'mine' cannot be read .UnidentifiedImageError"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            from_dataset(train, test, name="mine", class_names=None if hasattr(train, "column_names") else NAMES)
        assert "\n" not in str(caught.value)
