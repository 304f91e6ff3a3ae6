"""A folder of class folders of images, of any sizes."""

from pathlib import Path

from dim.config import DataConfig
from dim.config.data import SplitOptions
from dim.data.files import class_folders, require_resolution, require_root, subfolders
from dim.data.items import Items
from dim.errors import InputError
from dim.launch import say_once

__all__ = ["folder"]

_PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}


def folder(config: DataConfig) -> tuple[Items, Items | None, Items | None]:
    """Class folders below `train/` and `test/`, and `val/` if there is one; or directly below the root, from which a test part is
    then taken. Other usual names of the parts, and capitals, do, too. Without a test part, `val/` is it."""
    require_resolution(config)
    root = require_root(config)
    parts = _parts(root)
    if not parts:
        return class_folders(root, config), None, None
    if "train" not in parts:
        found = ", ".join(f"{path.name}/" for path in parts.values())
        raise InputError(f"{root} has {found} with folders in it and no train/: name the training part train, or remove it")
    if rest := sorted(set(subfolders(root)) - {path.name for path in parts.values()}):
        say_once(f"dim: {root}: left out, as they are beside {parts['train'].name}/: {', '.join(rest[:5])}")
    train = class_folders(parts["train"], config)
    val, test = (class_folders(parts[part], config, train.names) if part in parts else None for part in ("val", "test"))
    if test is None and val is not None:
        say_once(f"dim: {root}: {parts['val'].name}/ is taken as the test part, as there is no other")
        return train, val, None
    return train, test, val


def _parts(root: Path) -> dict[str, Path]:
    """The folders that are parts of the data: those of such a name with folders in them. A class may have that name, too."""
    found: dict[str, Path] = {}
    for name in subfolders(root):
        part = next((part for part, names in _PARTS.items() if name.lower() in names), None)
        if part is None or not subfolders(root / name):
            continue
        if part in found:
            raise InputError(f"{root} has {found[part].name}/ and {name}/: expected one {part} part; rename or remove the other")
        found[part] = root / name
    return found


folder.Options = SplitOptions
folder.shape = (3, None, 2)  # of a size that has to be given, and of two classes or more
