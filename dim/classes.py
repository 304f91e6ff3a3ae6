"""Classes, as people name them: by number, by name, or by a vector with a 1 in their place."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dim.errors import InputError


def class_number(label: Any, class_names: Sequence[str], what: str) -> int:
    """The number of a class from whatever stands for it in an item.

    Args:
        label: an integer of any kind, a name, or a vector with a 1 in the place of the class.
        class_names: the names.
        what: what has the label, for messages.

    Raises:
        InputError: for anything else, and for numbers out of range.
    """
    count = len(class_names)
    if isinstance(label, str):
        if label not in class_names:
            raise InputError(f"{what} has label {label!r}: expected one of class_names, {', '.join(class_names[:5])}, ...")
        return list(class_names).index(label)
    try:
        values = np.asarray(label, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{what} has a label of type {type(label).__name__}: expected a number from 0 to {count - 1}") from None
    if len(values) == 1 and float(values[0]).is_integer():
        if not 0 <= values[0] < count:
            raise InputError(f"{what} has label {int(values[0])}: expected 0 to {count - 1}")
        return int(values[0])
    if len(values) == count and sorted(values.tolist()) == [0.0] * (count - 1) + [1.0]:
        return int(values.argmax())
    raise InputError(f"{what} has label {str(label)[:60]}: expected a number from 0 to {count - 1}, a name, or one 1 among zeros")


def class_numbers(labels: Any, class_names: Sequence[str]) -> Tensor:
    """The numbers of classes, see `class_number`: one label or several -> int64 (B,), on the CPU.

    Raises:
        InputError: for anything else, and for numbers out of range.
    """
    count = len(class_names)
    if isinstance(labels, Tensor | np.ndarray) and labels.ndim == 1 and not _is_floating(labels):
        found = torch.as_tensor(labels, dtype=torch.int64, device="cpu")
        outside = found[(found < 0) | (found >= count)]
        if len(outside):
            raise InputError(f"label {int(outside[0])} is out of range: expected classes 0 to {count - 1}")
        return found
    several = not isinstance(labels, str) and hasattr(labels, "__len__") and np.ndim(labels) > 0
    numbers = [class_number(label, class_names, f"image {place}") for place, label in enumerate(labels if several else [labels])]
    return torch.tensor(numbers, dtype=torch.int64)


def _is_floating(labels: Any) -> bool:
    return labels.is_floating_point() if isinstance(labels, Tensor) else labels.dtype.kind == "f"


def whole_number(value: Any, name: str) -> int:
    """An integer from an integer of any kind, or from a float without a fraction.

    Raises:
        InputError: for anything else.
    """
    try:
        if float(value).is_integer():
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"{name} is {value!r}: expected a whole number")
