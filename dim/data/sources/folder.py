"""A folder of class folders of images, of any sizes."""

from pathlib import Path

from dim.config import DataConfig
from dim.config.data import SplitOptions
from dim.data.files import class_folders, require_resolution, require_root
from dim.data.items import Items
from dim.data.labels import label_file
from dim.data.parts import read_parts
from dim.launch import say_once

__all__ = ["folder"]


def folder(config: DataConfig) -> tuple[Items, Items | None, Items | None]:
    """Class folders below `train/` and `test/`, and `val/` if there is one; or directly below the root, from which a test part is
    then taken. Other usual names of the parts, and capitals, do, too. Without a test part, `val/` is it."""
    require_resolution(config)

    def read(part: Path, names: tuple[str, ...] | None = None) -> Items:
        if names is None and (file := label_file(part)):
            say_once(f"dim: {file} is not read, as folders are the classes; --dataset listed reads it")
        return class_folders(part, config, names)

    return read_parts(require_root(config), read)


folder.Options = SplitOptions
folder.shape = (3, None, 2)  # of a size that has to be given, and of two classes or more
