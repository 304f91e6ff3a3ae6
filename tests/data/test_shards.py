"""WebDataset shards: the same data as class folders, read at random from tar files, and refused when they are damaged."""

import dataclasses
import gzip
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dim
import dim.data.files
import dim.data.shards
from dim.config import DataConfig
from dim.data.real import load_data
from dim.errors import InputError

CLASSES = ("cat", "dog", "emu")


def picture(number: int, form: str = "PNG", side: int = 8) -> bytes:
    buffer = io.BytesIO()
    array = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(array).save(buffer, form)
    return buffer.getvalue()


def write(path: Path, members: dict[str, bytes | tarfile.TarInfo], **options) -> Path:
    """A tar file of these members, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.name = name
            member.size = 0 if isinstance(content, tarfile.TarInfo) else len(content)
            archive.addfile(member, None if isinstance(content, tarfile.TarInfo) else io.BytesIO(content))
    return path


def samples(numbers: range, label=lambda number: {"cls": str(number % 3).encode()}) -> dict[str, bytes]:
    """An image and a label for each number."""
    members = {}
    for number in numbers:
        members[f"{number:06d}.png"] = picture(number)
        members |= {f"{number:06d}.{suffix}": content for suffix, content in label(number).items()}
    return members


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two training shards and one for testing, of 40, 20 and 12 images in three classes, written long ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(dim.data.files, "_SETTLED_NS", -(10**9))
    folder = tmp_path / "shards"
    write(folder / "train-000.tar", samples(range(40)))
    write(folder / "train-001.tar", samples(range(40, 60)))
    write(folder / "test-000.tar", samples(range(100, 112)))
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def load(root: Path, memory_gib: float = 0.0, **settings):
    settings = {"resolution": 8, "val_fraction": 0.0, "memory_gib": memory_gib, **settings}
    return load_data(DataConfig(dataset="webdataset", root=str(root), **settings))


def refused(root: Path, **settings) -> str:
    with pytest.raises(InputError) as caught:
        load(root, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def images(split) -> torch.Tensor:
    return ((split.batch(torch.arange(len(split)))[0] + 1) * 127.5).round().to(torch.uint8)


# --- what is read ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_gib", [8.0, 0.0])
def test_shards_are_read_in_order_and_at_random(root, memory_gib):
    data = load(root, memory_gib)
    assert data.spec.class_names == CLASSES
    assert data.spec.image_shape == (3, 8, 8)
    assert data.train.streams == (memory_gib == 0)
    expected = torch.from_numpy(np.stack([np.array(Image.open(io.BytesIO(picture(n)))) for n in range(112)])).permute(0, 3, 1, 2)
    assert torch.equal(images(data.train), expected[:60])
    assert torch.equal(images(data.test), expected[100:])
    assert data.train.labels.tolist() == [n % 3 for n in range(60)]
    chosen = torch.tensor([59, 0, 40, 39])
    assert torch.equal(data.train.batch(chosen)[0], data.train.batch(torch.arange(60))[0][chosen])


def test_they_are_the_same_data_as_class_folders(root, tmp_path):
    write(tmp_path / "sorted" / "train-0.tar", samples(range(0, 60, 3)) | samples(range(1, 60, 3)) | samples(range(2, 60, 3)))
    write(tmp_path / "sorted" / "test-0.tar", samples(range(0, 12, 3)) | samples(range(1, 12, 3)) | samples(range(2, 12, 3)))
    for part, count in (("train", 60), ("test", 12)):
        for number in range(count):
            file = tmp_path / "folders" / part / CLASSES[number % 3] / f"{number:06d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(number))
    shards = load(tmp_path / "sorted", val_fraction=0.1)
    folders = load_data(DataConfig(dataset="folder", root=str(tmp_path / "folders"), resolution=8))
    for part in ("train", "val", "test"):
        assert shards.digest(part) == folders.digest(part)
    assert shards.spec == dataclasses.replace(folders.spec, name="webdataset", class_names=("0", "1", "2"))


def test_labels_may_be_numbers_or_names_in_either_kind_of_file(root):
    kinds = [
        lambda n: {"cls": f" {n % 3}\n".encode()},
        lambda n: {"cls": CLASSES[n % 3].encode()},
        lambda n: {"json": json.dumps({"label": n % 3, "caption": "a.b"}).encode()},
        lambda n: {"json": json.dumps({"label": CLASSES[n % 3]}).encode()},
        lambda n: {"json": json.dumps({"label": str(n % 3)}).encode()},
        lambda n: {"json": b'{"caption": "no label"}', "cls": str(n % 3).encode()},
        lambda n: {"JSON": b"[]", "txt": b"words", "CLS": str(n % 3).encode()},
    ]
    write(root / "train-001.tar", {k: v for n in range(40, 60) for k, v in samples(range(n, n + 1), kinds[n % 7]).items()})
    assert load(root).train.labels.tolist() == [n % 3 for n in range(60)]


def test_other_members_and_forms(root):
    form = {"jpg": "JPEG", "JPEG": "JPEG", "webp": "WEBP", "bmp": "BMP"}
    members = {"README.md": b"about", "meta.json": b"{}", "images": tarfile.TarInfo(), "._000.png": b"a Mac's"}
    members["images"].type = tarfile.DIRTYPE
    for number, (suffix, name) in enumerate(form.items()):
        members |= {f"./images/a.b{number}/{number}.{suffix}": picture(number, name, 8 + number)}
        members |= {f"./images/a.b{number}/{number}.cls": b"1", f"./images/a.b{number}/{number}.mask.png": b"no image of its own"}
    write(root / "train-001.tar", members)
    assert load(root).train.labels[40:].tolist() == [1] * 4


def test_long_names_and_other_tar_formats(root):
    for number, form in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)):
        long = "d" * 90 + "/" + "n" * 90
        write(
            root / f"train-00{number}.tar",
            {f"{long}.png": picture(number), f"{long}.cls": b"2"} | samples(range(30)),
            format=form,
        )
        index, _ = dim.data.shards._index(_listing(root / f"train-00{number}.tar"), CLASSES, "x")
        assert index["label"].tolist() == [2, *(n % 3 for n in range(30))]


def _listing(path: Path) -> dim.data.files.Listing:
    listing = dim.data.files.Listing()
    listing.add(str(path))
    return listing


@pytest.mark.parametrize(
    "names", [list(CLASSES), {"emu": 2, "cat": 0, "dog": 1}, None], ids=["a list", "numbers by name", "none"]
)
def test_names_of_classes(root, names):
    (root / "classes.txt").unlink()
    if names is not None:
        (root / "classes.json").write_text(json.dumps(names))
    data = load(root)
    assert data.spec.class_names == (CLASSES if names else ("0", "1", "2"))
    assert data.train.labels.tolist() == [n % 3 for n in range(60)]


def test_shards_of_any_name_have_a_test_part_held_out(root):
    for number, file in enumerate(sorted(root.glob("*.tar"))):
        file.rename(root / f"part-{number}.tar")
    data = load(root, val_fraction=0.1)
    assert [len(getattr(data, part)) for part in ("train", "val", "test")] == [51, 6, 15]
    assert [len(part) for part in (load(root, test_fraction=0.5).train, load(root, test_fraction=0.5).test)] == [36, 36]


@pytest.mark.parametrize("name", ["val", "test"])
def test_the_part_for_testing_has_either_name(root, name):
    (root / "test-000.tar").rename(root / f"{name}-000.tar")
    assert len(load(root).test) == 12


def test_a_set_that_was_exported_is_a_source(digits_gan, tmp_path):
    pytest.importorskip("webdataset")
    fixed = dim.sample_set(digits_gan, ipc=4)
    fixed.save(tmp_path / "set", format="webdataset")
    data = load(tmp_path / "set", channels=1, test_fraction=0.25)
    assert len(data.train) == 30
    assert {bytes(image) for image in images(data.train).numpy()} <= {bytes(image) for image in fixed.images.numpy()}


# --- read once ---------------------------------------------------------------------------------------------------------------


def test_a_second_start_reads_neither_headers_nor_images(root, monkeypatch):
    first = load(root)
    digests = first.digest("test")
    monkeypatch.setattr(dim.data.shards, "_samples", None)
    opened, read = [], dim.data.files.read_picture
    monkeypatch.setattr(dim.data.files, "read_picture", lambda *source: opened.append(source) or read(*source))
    again = load(root)
    assert again.spec == first.spec
    assert again.digest("test") == digests
    assert len(opened) == 1  # for the size of all
    assert torch.equal(images(again.train), images(first.train))


@pytest.mark.parametrize("changed", ["shard", "names", "index"])
def test_what_changed_is_read_again(root, changed, tmp_path):
    first = load(root)
    if changed == "shard":
        write(root / "train-001.tar", samples(range(41, 61)))
        assert load(root).spec.fingerprint != first.spec.fingerprint
    elif changed == "names":
        write(root / "train-001.tar", samples(range(40, 60), lambda n: {"cls": b"cat"}))
        assert load(root).train.labels[40:].tolist() == [0] * 20
        (root / "classes.txt").write_text("emu\ndog\ncat\n")
        assert load(root).train.labels[40:].tolist() == [2] * 20
    else:
        for file in (tmp_path / "cache" / "dim" / "data").glob("index-*"):
            content = bytearray(file.read_bytes())
            content[-4] ^= 1
            file.write_bytes(content)
        assert load(root).spec == first.spec
        assert torch.equal(images(load(root).train), images(first.train))


# --- what is refused ---------------------------------------------------------------------------------------------------------


def test_a_resolution_and_shards_are_needed(root, tmp_path):
    assert "'webdataset' needs --resolution" in refused(root, resolution=None)
    (tmp_path / "empty").mkdir()
    assert "has no shards: expected train-*.tar and test-*.tar, or *.tar" in refused(tmp_path / "empty")
    write(tmp_path / "other" / "train-0.tar", {"a.txt": b"words"})
    assert "has shards without images" in refused(tmp_path / "other")
    for file in root.glob("train-*.tar"):
        file.unlink()
    assert "has test-000.tar and no train-*.tar" in refused(root)


LINK = tarfile.TarInfo()
LINK.type, LINK.linkname = tarfile.SYMTYPE, "000000.png"


def test_names_of_classes_need_a_file_that_lists_them(root):
    (root / "classes.txt").unlink()
    path = write(root / "train-001.tar", {"x.png": picture(0), "x.cls": b"cow"})
    expected = "expected a number of a class, or a name if a classes.txt beside the shards has the names, one in each line"
    assert refused(root) == f"shard {path} cannot be read (the label of 'x' is 'cow': {expected})"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.png": picture(0)}, "'x' has no label: expected a file .cls, or .json with 'label'"),
        ({"x.cls": b"1"}, "'x' has a label and no image"),
        ({"x.png": picture(0), "x.jpg": picture(1), "x.cls": b"1"}, "it has two files of the kind '<image>' for 'x'"),
        ({"x.png": LINK, "x.cls": b"1"}, "its member 'x.png' is a link"),
        ({"x.png": picture(0), "x.cls": b"3"}, "the label of 'x' is 3: expected a number from 0 to 2, or a name of classes"),
        ({"x.png": picture(0), "x.cls": b"-1"}, "the label of 'x' is '-1'"),
        ({"x.png": picture(0), "x.cls": b"cow"}, "the label of 'x' is 'cow'"),
        ({"x.png": picture(0), "x.cls": b""}, "'x' has no label"),
        ({"x.png": picture(0), "x.cls": b"\xff\xfe"}, "can't decode"),
        ({"x.png": picture(0), "x.cls": b"1" * 2**21}, "the label of 'x' has 2097152 bytes"),
        ({"x.png": picture(0), "x.json": b"{}"}, "the label of 'x' is None"),
        ({"x.png": picture(0), "x.json": b"[1]"}, "the label of 'x' is None"),
        ({"x.png": picture(0), "x.json": b'{"label": true}'}, "the label of 'x' is True"),
        ({"x.png": picture(0), "x.json": b'{"label": 1.5}'}, "the label of 'x' is 1.5"),
        ({"x.png": picture(0), "x.json": b"{"}, "Expecting"),
        ({"x.png": picture(0), "x.json": b"[" * 200_000}, "recursion"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(reversed(value)),
)
def test_a_sample_that_is_not_whole_is_refused(root, members, message):
    path = write(root / "train-001.tar", members)
    said = refused(root)
    assert said.startswith(f"shard {path} cannot be read (")
    assert message in said
    assert len(said) < len(str(path)) + 250


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"41", "labels go up to 41 and there are 41 images: number the classes from 0"),
        (b"999999999", "number the classes from 0"),
        (b"1000000000000", "expected a number of a class"),
    ],
)
def test_numbers_that_leave_classes_empty_are_refused_before_they_are_counted(root, label, message):
    (root / "classes.txt").unlink()
    write(root / "train-001.tar", {"x.png": picture(0), "x.cls": label})
    assert message in refused(root)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", b"\xff\xfe"),
        ("classes.txt", b"cat\ncat\n"),
        ("classes.txt", b"cat\n"),
        ("classes.json", b'{"cat": 1, "dog": 2}'),
        ("classes.json", b"[1, 2]"),
        ("classes.json", b'{"cat": [], "dog": {}}'),
        ("classes.json", b"3"),
        ("classes.json", b"["),
    ],
)
def test_class_names_that_are_none_are_refused(root, name, content):
    (root / "classes.txt").unlink()
    (root / name).write_bytes(content)
    assert str(root / name) in refused(root)


def test_an_image_that_cannot_be_read_is_named_with_its_shard(root):
    path = write(root / "train-001.tar", samples(range(40, 44)) | {"a/bad.png": picture(0)[:50], "a/bad.cls": b"1"})
    assert f"image a/bad.png in {path} cannot be read (" in refused(root)


def test_a_shard_that_is_overwritten_meanwhile_is_named(root):
    data, path = load(root), root / "train-001.tar"
    path.write_bytes(b"other")
    with pytest.raises(InputError, match=rf"image byte \d+ in {path} cannot be read"):
        data.train.batch(torch.tensor([50]))


def test_a_test_part_with_a_class_of_its_own_is_refused(root):
    (root / "classes.txt").unlink()
    write(root / "test-000.tar", {"x.png": picture(0), "x.cls": b"3"})
    assert "the label of 'x' is 3: expected a number from 0 to 2" in refused(root)


# --- damaged shards ----------------------------------------------------------------------------------------------------------


def test_every_truncation_is_noticed(tmp_path):
    whole = write(tmp_path / "a.tar", samples(range(4))).read_bytes()
    end = max(position for position in range(0, len(whole), 512) if any(whole[position : position + 512])) + 512
    for size in range(0, end + 512, 128):
        (tmp_path / "a.tar").write_bytes(whole[:size])
        with pytest.raises((ValueError, tarfile.TarError)):
            dim.data.shards._samples(str(tmp_path / "a.tar"), None, Counter())
    (tmp_path / "a.tar").write_bytes(whole[: end + 512])
    assert len(dim.data.shards._samples(str(tmp_path / "a.tar"), None, Counter())) == 4


@pytest.mark.parametrize("position", [0, 100, 124, 148])
def test_a_damaged_header_in_the_middle_is_not_the_end(root, position):
    path = root / "train-001.tar"
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        start = archive.getmembers()[20].offset
    content[start + position] ^= 0x15
    path.write_bytes(content)
    assert f"shard {path} cannot be read (it is truncated or damaged at byte {start})" in refused(root)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"S"])
@pytest.mark.parametrize("size", [-512, -(2**40), 2**33, 2**62])
def test_a_header_with_an_impossible_size_neither_hangs_nor_allocates(root, kind, size):
    header = bytearray(tarfile.TarInfo("x.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (b"\x80" if size >= 0 else b"\xff") + size.to_bytes(11, "big", signed=True)
    header[156:157] = kind
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header[:512])
    path = root / "train-001.tar"
    path.write_bytes(path.read_bytes()[: -tarfile.RECORDSIZE] + bytes(header[:512]) + bytes(1024))
    path.write_bytes(bytes(header[:512]) + path.read_bytes())
    assert refused(root).startswith(f"shard {path} cannot be read (")


def test_archives_that_were_put_one_behind_the_other_are_refused(root):
    path = root / "train-000.tar"
    path.write_bytes(path.read_bytes() + (root / "train-001.tar").read_bytes())
    assert "more follows its end" in refused(root)  # and tarfile would read the first only
    path.write_bytes(write(path, samples(range(5))).read_bytes() + bytes(2**21))
    assert len(load(root).train) == 25


def test_what_is_no_tar_file_is_refused(root):
    path = root / "train-001.tar"
    whole = path.read_bytes()
    for content in (b"", b"words" * 500, gzip.compress(whole)):
        path.write_bytes(content)
        assert refused(root).startswith(f"shard {path} cannot be read (")
    path.unlink()
    path.symlink_to(root / "gone")
    assert f"{path} is a broken link" in refused(root)


def test_damaged_shards_give_samples_or_one_line(tmp_path):
    whole = write(tmp_path / "a.tar", samples(range(6))).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        headers = [member.offset for member in archive]
    source = np.random.default_rng(0)
    refusals = []
    for number in range(300):
        content = bytearray(whole)
        for _ in range(source.integers(1, 4)):
            start = headers[source.integers(len(headers))] if number % 2 else source.integers(len(whole) - 512)
            content[start + source.integers(512)] = source.integers(256)
        (tmp_path / "a.tar").write_bytes(content)
        try:
            index, _ = dim.data.shards._index(_listing(tmp_path / "a.tar"), None, "x")
            assert len(index["label"]) == 6
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not [message for message in refusals if "\n" in message or len(message) > len(str(tmp_path)) + 250]
