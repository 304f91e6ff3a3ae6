"""Any map-style data set from Python as a source."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dim.config import DataConfig
from dim.data.items import Items, fit_size
from dim.data.pillow import shown
from dim.data.survey import Reading
from dim.errors import InputError


def dataset_items(dataset: Any, name: str, class_names: Sequence[str], config: DataConfig) -> Items:
    """One part of a data set from Python, decoded when asked for; see `dim.data.real.from_dataset`."""

    def decode(index: int) -> tuple[Tensor, int]:
        image, converted = dataset[index][0], 0
        if isinstance(image, Image.Image):
            try:
                image, converted = shown(image, {1: "L", 3: "RGB"}.get(config.channels))
            except ValueError as error:
                raise InputError(f"item {index} of {name!r} cannot be read ({error}): replace or remove it") from None
        image = torch.as_tensor(image)
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise InputError(f"item {index} of {name!r} has shape {tuple(image.shape)}: expected (1 or 3, H, W)")
        if image.is_floating_point():
            if float(image.min()) < 0 or float(image.max()) > 1:
                raise InputError(f"item {index} of {name!r} has values outside [0, 1]: leave out its normalisation")
            image = (image * 255).round().to(torch.uint8)
        if image.dtype != torch.uint8:
            raise InputError(f"item {index} of {name!r} is {image.dtype}: expected uint8, or float in [0, 1]")
        return fit_size(image[None], config)[0], converted

    if len(dataset) == 0:
        raise InputError(f"a part of {name!r} is empty: expected images")
    targets = getattr(dataset, "targets", None)
    labels = torch.as_tensor(_labels(dataset, name) if targets is None else targets).long()
    if int(labels.min()) < 0 or int(labels.max()) >= len(class_names):
        raise InputError(f"{name!r} has labels {int(labels.min())} to {int(labels.max())}: expected 0 to {len(class_names) - 1}")
    return Items(labels, tuple(class_names), decode=decode)


def _labels(dataset: Any, name: str) -> list[int]:
    labels = []
    with Reading(f"{name}, labels", len(dataset), "item") as reading:
        for index in range(len(dataset)):
            labels.append(int(dataset[index][1]))
            reading.advance()
    return labels
