"""Tiny-ImageNet: RGB photographs of 64x64 pixels in 200 classes, in its own layout."""

import os

from dim.config import DataConfig
from dim.data.files import Listing, class_folders, file_items, require_root
from dim.data.items import Items
from dim.errors import InputError

__all__ = ["tiny_imagenet"]


def tiny_imagenet(config: DataConfig) -> tuple[Items, Items]:
    """Tiny-ImageNet's own layout; its labelled `val` part is the test part, as everywhere in the literature."""
    root = require_root(config)
    root = root / "tiny-imagenet-200" if (root / "tiny-imagenet-200").is_dir() else root
    annotations = root / "val" / "val_annotations.txt"
    if not (root / "train").is_dir() or not annotations.is_file():
        raise InputError(f"no Tiny-ImageNet under {config.root!r}: expected train/ and val/val_annotations.txt")
    train = class_folders(root / "train", config)
    position = {name: label for label, name in enumerate(train.names)}
    rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines() if line]
    if unknown := [name for _, name in rows if name not in position]:
        raise InputError(f"{annotations} names class {unknown[0]!r} that train/ lacks")
    listing = Listing()
    for file, _ in rows:
        if not os.path.lexists(path := str(root / "val" / "images" / file)):
            raise InputError(f"{annotations} names {file}, which is missing from val/images")
        listing.add(path)
    return train, file_items(listing, [position[name] for _, name in rows], train.names, config)


tiny_imagenet.shape = (3, 64, 200)
