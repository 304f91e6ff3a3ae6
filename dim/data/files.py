"""Image files: decoded when asked for, and folders with one folder per class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dim.config import DataConfig
from dim.data.items import Items, fit_size
from dim.errors import InputError

_EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}


def require_root(config: DataConfig, *, may_be_absent: bool = False) -> Path:
    """The folder that holds the data.

    Raises:
        InputError: if none is named, or there is none.
    """
    if config.root is None:
        raise InputError(f"data set {config.dataset!r} needs --data-root DIR (or the environment variable DIM_DATA_ROOT)")
    if not Path(config.root).is_dir() and not may_be_absent:
        raise InputError(f"data root {config.root!r} is no folder: expected where {config.dataset} lies")
    return Path(config.root)


def file_items(files: list[Path], labels: list[int], names: Sequence[str], root: Path, config: DataConfig) -> Items:
    """Items of image files, decoded when asked for."""
    mode = "L" if config.channels == 1 else "RGB"

    def decode(index: int) -> Tensor:
        try:
            with Image.open(files[index]) as image:
                array = np.array(image.convert(mode), dtype=np.uint8)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"image {files[index]} cannot be read ({reason}): replace or remove it") from None
        tensor = torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)
        return fit_size(tensor[None], config)[0]

    identity = "\n".join(f"{file.relative_to(root)} {file.stat().st_size}" for file in files)
    identity += f"\n{config.resolution} {mode}"
    return Items(torch.tensor(labels), tuple(names), decode=decode, identity=identity)


def class_folders(folder: Path, root: Path, config: DataConfig, names: Sequence[str] | None = None) -> Items:
    """Items of a folder of class folders; with `names`, the classes must be those."""
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(found) < 2:
        raise InputError(f"{folder} has {len(found)} class folder(s): expected at least 2, each holding images")
    if names is not None and (unknown := sorted(set(found) - set(names))):
        raise InputError(f"{folder} has class {unknown[0]!r} that the training part lacks: remove or rename it")
    files, labels = [], []
    for label, name in enumerate(names or found):
        members = sorted(file for file in (folder / name).rglob("*") if file.suffix.lower() in _EXTENSIONS)
        if not members:
            raise InputError(f"class folder {folder / name} holds no images ({', '.join(sorted(_EXTENSIONS))})")
        files += members
        labels += [label] * len(members)
    return file_items(files, labels, names or found, root, config)
