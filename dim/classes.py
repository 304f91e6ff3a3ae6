"""Classes, as people name them: by number, by name, or by a vector with a 1 in their place."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dim.errors import InputError

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def alike(name: str) -> str:
    """The same text for names of classes that somebody may have meant to be one: that differ in capitals, in spaces, in how
    accents are encoded, or in zeros before a number."""
    text = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return str(int(text)) if text.isdecimal() and len(text) < 100 else text


def twins(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of class names that are `alike`."""
    first: dict[str, str] = {}
    return [(first[key], name) for name in names if first.setdefault(key := alike(name), name) != name]


def resembling(name: str, names: Iterable[str]) -> str:
    """What to add to a message on a class that is not among `names`: the one that is `alike`, if there is one."""
    return next((f" (it has {other!a}, and this is {name!a})" for other in names if alike(other) == alike(name)), "")


def class_list(names: Any, what: str) -> tuple[str, ...]:
    """The names of classes, in label order.

    Args:
        names: a list of texts or numbers, where several names of one class may be a tuple, as in torchvision's ImageNet; or a
            mapping of names to numbers from 0.
        what: what has them, for messages.

    Raises:
        InputError: if they have no order, one is empty or no name, or two are the same.
    """
    if isinstance(names, Mapping) and sorted(map(str, names.values())) == sorted(map(str, range(len(names)))):
        names = sorted(names, key=lambda name: int(names[name]))
    if not isinstance(names, Iterable) or isinstance(names, set | frozenset | Mapping) or getattr(names, "ndim", 1) == 0:
        raise InputError(f"the class names of {what} are a {type(names).__name__}: expected a list of names in label order")
    found = tuple(", ".join(map(str, name)) if isinstance(name, tuple) else name for name in names)
    for name in found:
        if not isinstance(name, str | int | np.integer) or isinstance(name, bool) or not str(name).strip():
            raise InputError(f"{what} has the class name {name!r}: expected a name for each class in label order")
    found = tuple(map(str, found))
    for label, name in enumerate(found):
        if (first := found.index(name)) < label:
            raise InputError(f"{what} has the class name {name!r} for {first} and for {label}: expected names that differ")
    return found


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
        if isinstance(label, Tensor):
            label = label.detach().cpu()
            label = label.double() if label.is_floating_point() else label  # NumPy has no bfloat16
        values = np.asarray(label)
        if values.dtype.kind == "c":
            raise TypeError("complex")
        values = values.astype(np.float64).reshape(-1)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # a meta tensor's NotImplementedError is a RuntimeError
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
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and labels.dtype != np.uint64:
        labels = torch.from_numpy(labels.astype(np.int64))
    if isinstance(labels, Tensor) and labels.ndim == 1 and labels.dtype in _INTEGERS and not labels.is_meta:
        found = labels.to("cpu", torch.int64)
        outside = found[(found < 0) | (found >= count)]
        if len(outside):
            raise InputError(f"label {int(outside[0])} is out of range: expected classes 0 to {count - 1}")
        return found
    single = isinstance(labels, str | bytes | set | frozenset | Mapping) or getattr(labels, "ndim", 1) == 0
    several = hasattr(labels, "__len__") and not single
    numbers = [class_number(label, class_names, f"image {place}") for place, label in enumerate(labels if several else [labels])]
    return torch.tensor(numbers, dtype=torch.int64)


def whole_number(value: Any, name: str, least: int | None = None) -> int:
    """An integer from an integer of any kind, or from a float without a fraction.

    Args:
        value: the number.
        name: what it is, for messages.
        least: what it has to be at least.

    Raises:
        InputError: for anything else, also for true and false, and for what 64 bits do not hold.
    """
    expected = "a whole number"
    try:
        if not isinstance(value, bool | np.bool_) and float(value).is_integer() and abs(int(value)) < 2**63:
            if least is None or int(value) >= least:
                return int(value)
            expected = f"{least} or more"
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise InputError(f"{name} is {repr(value) if isinstance(value, str) else str(value)[:60]}: expected {expected}")
