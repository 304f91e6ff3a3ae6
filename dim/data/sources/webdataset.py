"""WebDataset shards: tar files in which images and their labels stand side by side, of any sizes."""

from pathlib import Path

from dim.config import DataConfig
from dim.config.data import SplitOptions
from dim.data.files import require_resolution, require_root, subfolders
from dim.data.items import Items
from dim.data.names import part_of
from dim.data.parts import say_left_out, tested
from dim.data.shards import class_names, shard_items
from dim.errors import InputError

__all__ = ["webdataset"]

_PACKED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2", ".zip")

_PACKED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2", ".zip")


def webdataset(config: DataConfig) -> tuple[Items, Items | None, Items | None]:
    """`train-*.tar`, `test-*.tar` and `val-*.tar` below the root, under all names that `folder` takes for these parts; or any
    `*.tar`, from which a test part is then taken. Without test shards, those of the validation part are it."""
    require_resolution(config)
    root = require_root(config)
    names = class_names(root)
    shards = sorted(path for path in root.iterdir() if path.suffix.lower() == ".tar" and not path.name.startswith("."))
    if not shards:
        raise InputError(f"{root} has no shards: expected train-*.tar and test-*.tar, or *.tar; unpack compressed ones to .tar")
    parts: dict[str | None, list[Path]] = {}
    for path in shards:
        parts.setdefault(part_of(path.stem, alone=False), []).append(path)
    train, test, val, others = (parts.get(part, []) for part in ("train", "test", "val", None))
    if (held := test or val) and not train:
        raise InputError(
            f"{root} has {held[0].name} and no train-*.tar: name the training shards so, or the test shards otherwise"
        )
    if train:
        say_left_out(root, train[0].name, [path.name for path in others])
    else:
        train = others
    packed = [path.name for path in sorted(root.iterdir()) if path.name.lower().endswith(_PACKED)]
    say_left_out(root, train[0].name, [*packed, *(f"{name}/" for name in subfolders(root))])
    items = shard_items(train, names, config)
    own = [shard_items(part, tuple(items.names), config) if part else None for part in (test, val)]
    return items, *tested(root, val[0].name if val else "", *own)


webdataset.Options = SplitOptions
webdataset.shape = (3, None, 2)  # as of `folder`
