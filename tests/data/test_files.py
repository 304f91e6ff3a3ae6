"""Class folders as people have them: what is listed, in which order, and what is refused without being opened."""

import os
import shutil
import socket

import numpy as np
import pytest
from PIL import Image

from dim.config import DataConfig
from dim.data.files import Listing, class_folders
from dim.data.real import load_data
from dim.errors import InputError

CONFIG = DataConfig(dataset="folder", resolution=8)
pytestmark = pytest.mark.timeout(60)  # opening a named pipe would last for ever


@pytest.fixture
def root(tmp_path):
    """Two classes of four images."""
    source = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "root" / name).mkdir(parents=True)
        for number in range(4):
            image = Image.fromarray(source.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            image.save(tmp_path / "root" / name / f"{number}.png")
    return tmp_path / "root"


def refused(root) -> str:
    with pytest.raises(InputError) as caught:
        load_data(DataConfig(dataset="folder", root=str(root), resolution=8))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_are_listed_in_the_order_of_sorted_paths(root):
    for name in ("b.png", "a-x.PNG", "a/z.jpeg", "a/a/y.bmp", "a.png", ".hidden.png", "Z.png"):
        path = root / "cat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    (root / "cat" / "notes.txt").write_text("later")
    listed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dim.data.files.file_items", lambda listing, *rest: listed.extend(listing.paths))
        class_folders(root, CONFIG)
    expected = [file for name in ("cat", "dog") for file in sorted((root / name).rglob("*")) if file.is_file()]
    assert listed == [str(file) for file in expected if file.suffix != ".txt"]
    assert len(listed) == 15


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to a pipe", "link to a folder"])
def test_what_is_no_regular_file_is_refused_and_not_opened(root, kind, tmp_path, monkeypatch):
    path = root / "cat" / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(path.parent)  # a socket's path must be short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    else:
        path.symlink_to(root / "dog")
    assert f"{path} is no regular file" in refused(root)


@pytest.mark.parametrize("where", ["cat/a.png", "emu"])
@pytest.mark.parametrize("target", ["/nowhere/at/all.png", "itself"])
def test_a_broken_link_is_refused(root, where, target):
    path = root / where
    path.symlink_to(path if target == "itself" else target)
    assert f"{path} is a broken link (to " in refused(root)


def test_links_to_files_and_to_class_folders_are_followed(root, tmp_path):
    (root / "dog").rename(tmp_path / "elsewhere")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "more.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    items = class_folders(root, CONFIG)
    assert items.labels.tolist() == [0] * 5 + [1] * 4
    assert (items.image(4) == items.image(5)).all()


def test_a_class_that_the_test_part_lacks_is_named(root):
    (root / "train").mkdir()
    for name in ("cat", "dog"):
        (root / name).rename(root / "train" / name)
    for name in ("cat", "emu"):
        (root / "test" / name).mkdir(parents=True)
    assert "class 'emu' that the training part lacks" in refused(root)
    (root / "test" / "emu").rmdir()
    shutil.copytree(root / "train" / "cat", root / "train" / "dig")
    shutil.copytree(root / "train" / "cat", root / "test" / "dig")
    assert "no class 'dog', which the training part has" in refused(root)


def test_large_and_damaged_images_are_named(root):
    path = root / "dog" / "3.png"
    Image.new("1", (9500, 9500)).save(path)
    with pytest.warns(Image.DecompressionBombWarning):
        assert f"image {path} cannot be read (it has 9500x9500 pixels: at most 89 million are read)" in refused(root)
    path.write_bytes(path.read_bytes()[:60])
    assert f"image {path} cannot be read" in refused(root)


def test_names_of_files_are_any_bytes(root):
    try:
        for name in (b"\xff\xfe.png", b"new\nline.png"):
            shutil.copy(root / "cat" / "0.png", os.path.join(os.fsencode(root / "cat"), name))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    items = class_folders(root, CONFIG)
    assert items.labels.tolist() == [0] * 6 + [1] * 4
    assert (items.image(5) == items.image(0)).all()


def test_a_listing_changes_with_everything_that_tells_a_change(root, monkeypatch):
    monkeypatch.setattr("dim.data.files._SETTLED_NS", -(10**9))
    path = root / "cat" / "0.png"

    def state() -> str:
        listing = Listing()
        listing.add(str(path))
        return listing.state()

    seen = [state()]
    assert state() == seen[0]
    os.utime(path, ns=(1, 1))
    seen.append(state())
    content = path.read_bytes()
    path.write_bytes(content + b"!")
    seen.append(state())
    path.write_bytes(content[::-1])
    os.utime(path, ns=(1, 1))  # same size and time as before, other content
    seen.append(state())
    assert len(set(seen)) == 4
    moved = path.with_name("moved.png")
    path.rename(moved)
    path = moved
    assert state() not in seen
