"""A folder of class folders of images, of any sizes."""

from dim.config import DataConfig
from dim.config.data import SplitOptions
from dim.data.files import class_folders, require_resolution, require_root
from dim.data.items import Items

__all__ = ["folder"]


def folder(config: DataConfig) -> tuple[Items, Items | None]:
    """Class folders below `train/` and `test/` (or `val/`), or directly below the root, from which a test part is then taken."""
    require_resolution(config)
    root = require_root(config)
    if not (root / "train").is_dir():
        return class_folders(root, config), None
    train = class_folders(root / "train", config)
    for name in ("test", "val"):
        if (root / name).is_dir():
            return train, class_folders(root / name, config, train.names)
    return train, None


folder.Options = SplitOptions
folder.shape = (3, None, 2)  # of a size that has to be given, and of two classes or more
