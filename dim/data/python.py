"""Any map-style data set from Python as a source: torchvision's, Hugging Face's, a list of pairs, one of somebody's own."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dim.classes import class_list, class_number
from dim.config import DataConfig
from dim.data.items import Items, fit_size
from dim.data.pillow import read_picture, reason, shown
from dim.data.survey import Reading
from dim.errors import InputError
from dim.launch import say_once

IMAGE_KEYS, LABEL_KEYS = ("image", "img"), ("label", "labels", "fine_label", "target")
"""Where items that are mappings, as those of Hugging Face's data sets, have the image and the label: the first that is there."""
_COMPARED = 200  # items whose own labels are compared with `targets` before these are believed


def dataset_items(dataset: Any, name: str, class_names: Sequence[str], config: DataConfig) -> Items:
    """One part of a data set from Python, decoded when asked for; see `dim.data.real.from_dataset`."""
    labels = torch.tensor(_Labels(dataset, name, class_names).all(), dtype=torch.int64)

    def decode(index: int) -> tuple[Tensor, int]:
        image, label = _item(dataset, index, name)
        found = class_number(label, class_names, f"item {index} of {name!r}")
        if found != int(labels[index]):
            said = (
                f"item {index} of {name!r} has label {found} and had {int(labels[index])} before, or in the data set's `targets`"
            )
            raise InputError(f"{said}: expected labels that do not change, and no `targets` that differ from them here and there")
        image, converted = _pixels(image, f"item {index} of {name!r}", config)
        return fit_size(image[None], config)[0], converted

    return Items(labels, tuple(class_names), decode=decode)


def class_names_of(dataset: Any, name: str) -> tuple[str, ...]:
    """The names of the classes that a data set says it has: its `classes`, or the ClassLabel of a Hugging Face data set.

    Raises:
        InputError: if it says nothing.
    """
    names = said_classes(dataset)
    if names is None:
        _require_one_part(dataset, name)
        raise InputError(f"{name!r} does not say what its classes are: give class_names, a name for each class in label order")
    return class_list(names, repr(name))


def said_classes(dataset: Any) -> Any:
    """What a data set keeps of the names of its classes; None if nothing."""
    names, features = getattr(dataset, "classes", None), getattr(dataset, "features", None)
    if names is None and isinstance(features, Mapping):
        key = next((key for key in LABEL_KEYS if key in features), None)
        names = None if key is None else getattr(features[key], "names", None)
    sized = hasattr(names, "__len__") and not isinstance(names, str)
    return names if sized and len(names) else None


def require_same_classes(name: str, class_names: Sequence[str], **parts: Any) -> None:
    """Raise InputError if a part says that its classes stand in another order than those of the data or another part."""
    said: dict[str, tuple[str, ...]] = {}
    for part, dataset in parts.items():
        if (names := said_classes(dataset)) is None:
            continue
        names = said[part] = class_list(names, f"the {part} part of {name!r}")
        given = next((other for other in (tuple(class_names), *said.values()) if set(other) & set(names)), names)
        for label, (one, other) in enumerate(zip(names, given, strict=False)):
            if one != other and (one in given or other in names):
                raise InputError(
                    f"class {label} of the {part} part of {name!r} is {one!r}: expected {other!r}; number them alike"
                )


def _require_one_part(dataset: Any, name: str) -> None:
    """Refuse several parts in one, as a DatasetDict of Hugging Face is."""
    if isinstance(dataset, Mapping):
        keys, kind = ", ".join(map(str, dataset))[:80], type(dataset).__name__
        raise InputError(f"{name!r} has a {kind} of {keys}: expected one part, as from_dataset(data['train'], data['test'], ...)")


class _Labels:
    """The labels of a data set, from what it keeps them in, if its items have the same; else from all items.

    A `targets` is what files had: a `target_transform` or a wrapper may have made other labels of them.
    """

    def __init__(self, dataset: Any, name: str, class_names: Sequence[str]) -> None:
        self._dataset, self._name, self._class_names = dataset, name, class_names
        _require_one_part(dataset, name)
        iterable = isinstance(dataset, torch.utils.data.IterableDataset)
        if iterable or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            kind = type(dataset).__name__
            raise InputError(f"{name!r} has a {kind}: expected a data set with a length, of pairs by index; list(...) makes one")
        if len(dataset) == 0:
            raise InputError(f"a part of {name!r} is empty: expected images")

    def all(self) -> list[int]:
        """int (N,)."""
        kept, size = self._kept(), len(self._dataset)
        if kept is not None and len(kept) == size:
            compared = sorted({round(place * (size - 1) / (_COMPARED - 1)) for place in range(_COMPARED)})
            if all(self._number(kept[index], index) == self._own(index) for index in compared):
                return [self._number(label, index) for index, label in enumerate(kept)]
        labels = []
        with Reading(f"{self._name}, labels", size, "item") as reading:
            for index in range(size):
                labels.append(self._own(index))
                reading.advance()
        return labels

    def _kept(self) -> Any:
        """`targets`, or the column of a Hugging Face data set; None without either."""
        columns = getattr(self._dataset, "column_names", None)
        if isinstance(columns, list):
            key = next((key for key in LABEL_KEYS if key in columns), None)
            return None if key is None else self._dataset[key][:]
        targets = getattr(self._dataset, "targets", None)
        return targets.tolist() if isinstance(targets, Tensor | np.ndarray) else targets

    def _number(self, label: Any, index: int) -> int:
        return class_number(label, self._class_names, f"item {index} of {self._name!r}")

    def _own(self, index: int) -> int:
        return self._number(_item(self._dataset, index, self._name)[1], index)


def _item(dataset: Any, index: int, name: str) -> tuple[Any, Any]:
    """Image and label at an index.

    Raises:
        InputError: if the data set raises anything, or the item has another form.
    """
    try:
        item = dataset[index]
    except MemoryError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {reason(error)}"
        raise InputError(f"item {index} of {name!r} cannot be read ({what}): mend the data set, or remove the item") from error
    return _pair(item, index, name)


def _pair(item: Any, index: int, name: str) -> tuple[Any, Any]:
    """Image and label of an item.

    Raises:
        InputError: if it has another form.
    """
    if isinstance(item, Mapping):
        keys = [next((key for key in wanted if key in item), None) for wanted in (IMAGE_KEYS, LABEL_KEYS)]
        if None not in keys:
            for key, wanted in zip(keys, (IMAGE_KEYS, LABEL_KEYS), strict=True):
                if index == 0 and (others := [other for other in wanted if other in item and other != key]):
                    say_once(f"dim: {name}: {key} is taken of every item, and not {' or '.join(others)}")
            return item[keys[0]], item[keys[1]]
        expected = f"{' or '.join(IMAGE_KEYS)}, and {' or '.join(LABEL_KEYS)}; rename its columns"
        raise InputError(f"item {index} of {name!r} has {', '.join(map(str, item))[:80]}: expected {expected}")
    if isinstance(item, Sequence) and not isinstance(item, str | bytes) and len(item) >= 2:
        return item[0], item[1]
    raise InputError(f"item {index} of {name!r} is a {type(item).__name__}: expected a pair of an image and a label")


def _pixels(image: Any, what: str, config: DataConfig) -> tuple[Tensor, int]:
    """An image of any form as uint8 (1 or 3, H, W), and what had to be done to it; see `dim.data.pillow.shown`."""
    if isinstance(image, Mapping):  # of Hugging Face's Image(decode=False)
        image = image.get("bytes") or image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 4:
        image = Image.fromarray(image, "RGBA")
    if isinstance(image, Image.Image | bytes):
        mode = {1: "L", 3: "RGB"}.get(config.channels)
        try:
            return read_picture(io.BytesIO(image), mode) if isinstance(image, bytes) else shown(image, mode)
        except ValueError as error:
            raise InputError(f"{what} cannot be read ({error}): replace or remove it") from None
    try:
        own = np.array(image, image.dtype.newbyteorder("=")) if isinstance(image, np.ndarray) else image
        tensor = torch.as_tensor(own).detach().cpu()
        tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"{what} has an image of type {type(image).__name__}: expected a PIL image, an array or a tensor"
        ) from None
    if isinstance(image, np.ndarray):  # grey, or channels last, as NumPy's users have them
        if tensor.ndim == 3 and tensor.shape[0] in (1, 3) and tensor.shape[2] in (1, 3):
            raise InputError(f"{what} has shape {tuple(tensor.shape)}, which may mean two things: give a tensor (C, H, W)")
        if tensor.ndim == 2:
            tensor = tensor[None]
        elif tensor.ndim == 3 and tensor.shape[0] not in (1, 3) and tensor.shape[2] in (1, 3):
            tensor = tensor.permute(2, 0, 1)
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3) or not tensor.numel():
        raise InputError(f"{what} has shape {tuple(tensor.shape)}: expected (1 or 3, H, W)")
    if tensor.is_floating_point():
        low, high = float(tensor.min()), float(tensor.max())
        if not (low >= 0 and high <= 1):
            found = f"{low:g} to {high:g}, outside [0, 1]"
            raise InputError(f"{what} has values from {found}: leave out its normalisation, or give 0 to 255 as uint8")
        tensor = (tensor * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise InputError(f"{what} is {tensor.dtype}: expected uint8, or float in [0, 1]")
    return tensor, 0
