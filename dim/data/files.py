"""Image files: decoded when asked for, and folders with one folder per class."""

import contextlib
import hashlib
import itertools
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import features
from torch import Tensor

from dim.classes import resembling
from dim.config import DataConfig
from dim.data.items import DECODE_THREADS, Items, fit_size
from dim.data.pillow import read_header, read_picture, reason
from dim.errors import InputError
from dim.launch import say_once

EXTENSIONS = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".webp", ".bmp", ".gif", ".tga"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff"),
    *([".avif"] if features.check("avif") else []),
}
"""Of files that are read as images; of an animation, its first picture."""

_SETTLED_NS = 2 * 10**9
"""How long ago a file must have changed for its times to tell the next change: file systems count in up to two seconds."""


class Listing:
    """Files that are there to be read, and a digest of their paths, sizes and times. None is opened."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.others: Counter[str] = Counter()
        """Files that are not read, by how their names end."""
        self._seen = hashlib.blake2b(digest_size=16)
        self._newest = 0

    def add(self, path: str) -> None:
        """Add a file.

        Raises:
            InputError: if it is missing, a broken link, or no regular file: opening a named pipe or a device may never end.
        """
        about = _about(path)
        if not stat.S_ISREG(about.st_mode):
            raise InputError(f"{path} is no regular file (but a folder, a named pipe, a socket or a device): remove it")
        self.paths.append(path)
        # The time of the last change of any kind, too: programs set that of the content to what it was elsewhere.
        self._seen.update(os.fsencode(os.path.abspath(path)))
        self._seen.update(f"\0{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}\n".encode())
        self._newest = max(self._newest, about.st_ctime_ns)

    def extend(self, other: "Listing") -> None:
        """Add all files of another list."""
        self.paths += other.paths
        self.others += other.others
        self._seen.update(other._seen.digest())
        self._newest = max(self._newest, other._newest)

    def state(self) -> str:
        """What changes whenever a file changes from now on; empty if one changed so recently that this is not sure."""
        return self._seen.hexdigest() if time.time_ns() - self._newest > _SETTLED_NS else ""


_LINK = "link to a folder"


def require_root(config: DataConfig, *, may_be_absent: bool = False) -> Path:
    """The folder that holds the data.

    Raises:
        InputError: if none is named, or there is none.
    """
    if config.root is None:
        raise InputError(f"data set {config.dataset!r} needs --data-root DIR (or the environment variable DIM_DATA_ROOT)")
    if not config.root or (not Path(config.root).is_dir() and not may_be_absent):
        file = ", but a file (unpack an archive first)" if Path(config.root).is_file() else ""
        what = "the images lie" if config.dataset == "folder" else f"{config.dataset} lies"
        raise InputError(f"data root {config.root!r} is no folder{file}: expected the one where {what}")
    return Path(config.root)


def require_resolution(config: DataConfig) -> None:
    """Raise InputError if no size is given, which images of any sizes need."""
    if config.resolution is None:
        raise InputError(f"data set {config.dataset!r} needs --resolution N (pixels), for instance 64")


def file_items(listing: Listing, labels: Sequence[int], names: Sequence[str], config: DataConfig) -> Items:
    """Items of image files, decoded when asked for."""

    def decode(index: int) -> tuple[Tensor, int]:
        path = listing.paths[index]
        return decode_picture(Path(path), lambda: path, config)

    def header(index: int) -> tuple[int, int, str]:
        return picture_header(Path(listing.paths[index]), lambda: listing.paths[index])

    return Items(torch.tensor(labels), tuple(names), decode=decode, state=listing.state(), header=header)


def decode_picture(source: Path | BinaryIO, name: Callable[[], str], config: DataConfig) -> tuple[Tensor, int]:
    """An image of a file or of its content, at the configured size; see `dim.data.items.Items`.

    Raises:
        InputError: if it cannot be read, with its `name`.
    """
    with _named(name):
        image, converted = read_picture(source, "L" if config.channels == 1 else "RGB")
    return fit_size(image[None], config)[0], converted


def picture_header(source: Path | BinaryIO, name: Callable[[], str]) -> tuple[int, int, str]:
    """See `dim.data.items.Items.header`; raises as `decode_picture` does."""
    with _named(name):
        return read_header(source)


@contextlib.contextmanager
def _named(name: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InputError(f"image {name()} cannot be read ({error}): replace or remove it") from None


def _about(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        if os.path.islink(path):
            raise InputError(f"{path} is a broken link (to {os.readlink(path)!r}): repair or remove it") from None
        raise InputError(f"{path} cannot be read ({reason(error)}): replace or remove it") from None


def _entries(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read ({reason(error)}): give it read permission, or remove it") from None


def is_litter(name: str) -> bool:
    """Whether a name is of what systems leave beside somebody's own files, such as the `._x.jpg` of archives made on a Mac."""
    return name.startswith(("._", ".DS_Store")) or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def image_files(folder: Path | str) -> Listing:
    """Image files in a folder and in those below it, in the order of their paths' parts; links to folders are not followed."""
    listing = Listing()
    for entry in _entries(str(folder)):
        hidden, suffix = entry.name.startswith("."), os.path.splitext(entry.name)[1].lower()
        if is_litter(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            if not hidden:  # copies, as those of notebooks
                listing.extend(image_files(entry.path))
        elif suffix in EXTENSIONS:
            listing.add(entry.path)
        elif not hidden:
            listing.others[_LINK if entry.is_dir() else suffix or "without an ending"] += 1
    return listing


def loose_images(folder: Path) -> int:
    """How many images lie directly in a folder."""
    entries = (entry for entry in _entries(str(folder)) if not (is_litter(entry.name) or entry.is_dir()))
    return sum(os.path.splitext(entry.name)[1].lower() in EXTENSIONS for entry in entries)


def subfolders(folder: Path | str) -> list[str]:
    """Names of the folders in a folder that are not hidden, also of those that links lead to; sorted."""
    entries = [entry for entry in _entries(str(folder)) if not (entry.name.startswith(".") or is_litter(entry.name))]
    return [entry.name for entry in entries if stat.S_ISDIR(_about(entry.path).st_mode)]


def counted(others: Counter[str]) -> str:
    """Such files, as text: the commonest endings first."""
    commonest = sorted(others.items(), key=lambda one: (-one[1], one[0]))[:5]
    return ", ".join(f"{count} {suffix}" for suffix, count in commonest)


def _few_classes(folder: Path, present: Sequence[str]) -> str:
    """What to do about a folder with no class folder, or one."""
    text = f"{folder} has {len(present)} class folder(s): expected at least 2, each holding images"
    if present and len(subfolders(folder / present[0])) > 1:
        return f"{text}; did you mean {folder / present[0]}?"
    images = loose_images(folder)
    if not present and images:
        listed = "or name them with their labels in a file (--dataset listed)"
        return f"{text}; put its {images} images into a folder for each class, {listed}"
    if not present and (others := image_files(folder).others):
        return f"{text}; it holds {counted(others)}: unpack archives first"
    return text


def _require_folders_of_their_own(folder: Path, names: Sequence[str]) -> None:
    """Refuse class folders that links lead to where other classes have their images, too."""
    if not any((folder / name).is_symlink() for name in names):
        return
    real = sorted((os.path.join(os.path.realpath(folder / name), ""), name) for name in names)
    for (outer, name), (inner, other) in itertools.pairwise(real):
        if inner.startswith(outer):
            raise InputError(f"{folder / other} and {folder / name} have the same images, by a link: give each class its own")


def class_folders(folder: Path, config: DataConfig, names: Sequence[str] | None = None) -> Items:
    """Items of a folder of class folders; with `names`, the classes must be those.

    All files are listed at every start, with their sizes and times: nothing less shows that one was rewritten in its place.
    """
    present = subfolders(folder)
    if len(present) < 2:
        raise InputError(_few_classes(folder, present))
    names = present if names is None else names
    if unknown := sorted(set(present) - set(names)):
        near = resembling(unknown[0], names)
        raise InputError(f"{folder} has class {unknown[0]!r} that the training part lacks{near}: remove or rename it")
    if missing := sorted(set(names) - set(present)):
        raise InputError(f"{folder} has no class {missing[0]!r}, which the training part has: add it, with at least one image")
    _require_folders_of_their_own(folder, names)
    if count := loose_images(folder):
        say_once(f"dim: {folder}: {count} image{'s lie' if count > 1 else ' lies'} beside the class folders: left out")
    whole, labels = Listing(), []
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        for label, members in enumerate(pool.map(image_files, [str(folder / name) for name in names])):
            if not members.paths:
                found = f" but {counted(members.others)}" if members.others else ""
                kinds = ", ".join(sorted(EXTENSIONS))
                raise InputError(f"class folder {folder / names[label]} holds no images{found}: remove it, or add some ({kinds})")
            whole.extend(members)
            labels += [label] * len(members.paths)
    if whole.others:
        count = sum(whole.others.values())
        files = "1 file is no image" if count == 1 else f"{count} files are no images"
        say_once(f"dim: {folder}: {files} that can be read, left out: {counted(whole.others)}")
    return file_items(whole, labels, names, config)
