"""A folder of class folders of images, of any sizes."""

from dim.config import DataConfig
from dim.config.data import SplitOptions
from dim.data.files import class_folders, require_root
from dim.data.items import Items
from dim.errors import InputError

__all__ = ["folder"]


def folder(config: DataConfig) -> tuple[Items, Items | None]:
    """Class folders below `train/` and `test/` (or `val/`), or directly below the root, from which a test part is then taken."""
    if config.resolution is None:
        raise InputError("data set 'folder' needs --resolution N (pixels), for instance 64")
    root = require_root(config)
    if not (root / "train").is_dir():
        return class_folders(root, root, config), None
    train = class_folders(root / "train", root, config)
    for name in ("test", "val"):
        if (root / name).is_dir():
            return train, class_folders(root / name, root, config, train.names)
    return train, None


folder.Options = SplitOptions
folder.shape = (3, None, 2)  # of a size that has to be given, and of two classes or more
