"""WebDataset shards: tar files in which images and their labels stand side by side, of any sizes."""

from dim.config import DataConfig
from dim.config.data import SplitOptions
from dim.data.files import require_resolution, require_root
from dim.data.items import Items
from dim.data.shards import class_names, shard_items
from dim.errors import InputError

__all__ = ["webdataset"]


def webdataset(config: DataConfig) -> tuple[Items, Items | None]:
    """`train-*.tar` and `test-*.tar` (or `val-*.tar`) below the root; or any `*.tar`, from which a test part is then taken."""
    require_resolution(config)
    root = require_root(config)
    names = class_names(root)
    train, *tests = (sorted(root.glob(f"{part}-*.tar")) for part in ("train", "test", "val"))
    test = next(filter(None, tests), [])
    if test and not train:
        raise InputError(
            f"{root} has {test[0].name} and no train-*.tar: name the training shards so, or the test shards otherwise"
        )
    shards = train or sorted(root.glob("*.tar"))
    if not shards:
        raise InputError(f"{root} has no shards: expected train-*.tar and test-*.tar, or *.tar")
    items = shard_items(shards, names, config)
    return items, shard_items(test, tuple(items.names), config) if test else None


webdataset.Options = SplitOptions
webdataset.shape = (3, None, 2)  # as of `folder`
