"""Training, validation and test part of data that lie in a folder for each."""

from collections.abc import Callable
from pathlib import Path

from dim.data.files import subfolders
from dim.data.items import Items
from dim.data.labels import label_file
from dim.errors import InputError
from dim.launch import say_once

_PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}


def read_parts(root: Path, read: Callable[..., Items]) -> tuple[Items, Items | None, Items | None]:
    """The training, the test and the validation part below a root; None for one that is to be taken from the training part.

    Args:
        root: of the data.
        read: reads the images in a folder; for other parts than the training part it is given the names of its classes, too.

    Raises:
        InputError: if there are parts and none to train on, or one of them twice; or as `read` does.
    """
    parts = _parts(root)
    if not parts:
        return read(root), None, None
    if "train" not in parts:
        found = ", ".join(f"{path.name}/" for path in parts.values())
        raise InputError(f"{root} has {found} with folders in it and no train/: name the training part train, or remove it")
    if rest := sorted(set(subfolders(root)) - {path.name for path in parts.values()}):
        say_once(f"dim: {root}: left out, as they are beside {parts['train'].name}/: {', '.join(rest[:5])}")
    train = read(parts["train"])
    val, test = (read(parts[part], train.names) if part in parts else None for part in ("val", "test"))
    if test is None and val is not None:
        say_once(f"dim: {root}: {parts['val'].name}/ is taken as the test part, as there is no other")
        return train, val, None
    return train, test, val


def _parts(root: Path) -> dict[str, Path]:
    """The folders that are parts of the data: those of such a name with folders, or a file of labels, in them. A class may have
    that name, too."""
    found: dict[str, Path] = {}
    for name in subfolders(root):
        part = next((part for part, names in _PARTS.items() if name.lower() in names), None)
        if part is None or not (subfolders(root / name) or label_file(root / name)):
            continue
        if part in found:
            raise InputError(f"{root} has {found[part].name}/ and {name}/: expected one {part} part; rename or remove the other")
        found[part] = root / name
    return found
