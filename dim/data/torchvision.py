"""Data sets that torchvision reads."""

from collections.abc import Callable

import numpy as np
import torch

from dim.config import DataConfig
from dim.config.data import DownloadOptions
from dim.data.files import require_root
from dim.data.items import Items, fit_size
from dim.errors import InputError


def torchvision_source(class_name: str, *, channels: int, size: int, classes: int) -> Callable[[DataConfig], tuple[Items, Items]]:
    """A source that reads one of torchvision's data sets, by the name of its class, with images of this shape."""

    def source(config: DataConfig) -> tuple[Items, Items]:
        return _read(class_name, config)

    source.Options = DownloadOptions
    source.shape = (channels, size, classes)
    return source


def _read(class_name: str, config: DataConfig) -> tuple[Items, Items]:
    from torchvision import datasets

    require_root(config, may_be_absent=config.download)
    kind = getattr(datasets, class_name)
    parts = []
    for train in (True, False):
        selector = {"split": "train" if train else "test"} if class_name == "SVHN" else {"train": train}
        try:
            part = kind(config.root, download=config.download, **selector)
        except (RuntimeError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            remedy = "" if config.download else "; give the right --data-root, or allow a download with --data.download"
            raise InputError(f"no {config.dataset} under {config.root!r} ({reason}){remedy}") from None
        images = torch.as_tensor(np.asarray(part.data))
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2)
        labels = torch.as_tensor(np.asarray(part.labels if class_name == "SVHN" else part.targets)).long()
        names = getattr(part, "classes", None) or [str(label) for label in range(10)]
        parts.append(Items(labels, tuple(str(name) for name in names), fit_size(images, config)))
    return parts[0], parts[1]
