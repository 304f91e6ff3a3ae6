"""DataSpec: what every artefact must know of the data it was made from."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dim.errors import InputError
from dim.launch import say_once

_MOST_PIXELS = 8192  # per side
# By field, what JSON has, and what a list of it holds.
_TYPES: dict[str, tuple[type | tuple[type, ...], type | tuple[type, ...] | None]] = {
    "name": (str, None),
    "channels": (int, None),
    "height": (int, None),
    "width": (int, None),
    "class_names": ((list, tuple), str),
    "mean": ((list, tuple), (int, float)),
    "std": ((list, tuple), (int, float)),
    "fingerprint": (str, None),
}


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Shape, classes and statistics of an image classification data set.

    It travels inside every checkpoint, generator and synthetic set, so that none of them needs the real data to
    be used correctly. Images between modules are float32 (B, C, H, W) in [-1, 1]; `mean` and `std` follow the
    field's convention and describe images in [0, 1]. `normalize` is the only place where the two meet.

    Raises:
        InputError: if a size is not positive or above 8192, there are fewer than two classes, lengths disagree, or a statistic is
            not finite.
    """

    name: str
    """Name of the data set, e.g. `cifar10`."""
    channels: int
    """1 (grey) or 3 (RGB), as a rule."""
    height: int
    """Pixels, 1 to 8192."""
    width: int
    """Pixels, 1 to 8192."""
    class_names: tuple[str, ...]
    """One name per class, in label order."""
    mean: tuple[float, ...]
    """Per-channel mean of the training images in [0, 1]."""
    std: tuple[float, ...]
    """Per-channel standard deviation of the training images in [0, 1]."""
    fingerprint: str
    """Digest of all images and labels of the training part; two data sets with the same fingerprint are the same data in the same
    order."""

    def __post_init__(self) -> None:
        for field in ("channels", "height", "width"):
            if not 1 <= getattr(self, field) <= _MOST_PIXELS:
                raise InputError(f"{field} is {getattr(self, field)}: expected 1 to {_MOST_PIXELS} pixels")
        if len(self.class_names) < 2:
            raise InputError(f"data set {self.name!r} has {len(self.class_names)} class(es): expected at least 2")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise InputError(
                f"mean and std have {len(self.mean)} and {len(self.std)} values: expected one per channel ({self.channels})"
            )
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise InputError(f"mean {self.mean} and std {self.std} of {self.name!r}: expected finite numbers, std above 0")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.height, self.width)

    @property
    def image_bytes(self) -> int:
        """Bytes of one image at 8 bits per channel."""
        return self.channels * self.height * self.width

    @property
    def label_bytes(self) -> int:
        """Bytes of one hard label: one up to 256 classes, two beyond."""
        return 1 if self.num_classes <= 256 else 2

    def soft_label_bytes(self, top_k: int = 0) -> int:
        """Bytes of one soft label: four per probability, and the class of each where only the `top_k` largest are kept
        (0: all)."""
        return top_k * (4 + self.label_bytes) if top_k else 4 * self.num_classes

    def mean_std(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of images in [-1, 1], each (1, C, 1, 1), on the device and in the dtype of `like`."""
        mean = torch.tensor(self.mean, dtype=like.dtype).view(1, -1, 1, 1) * 2 - 1
        std = torch.tensor(self.std, dtype=like.dtype).view(1, -1, 1, 1) * 2
        return mean.to(like.device), std.to(like.device)

    def to_dict(self) -> dict:
        """All fields as plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "DataSpec":
        """Inverse of `to_dict`: `values` are parsed JSON.

        Raises:
            InputError: if a field is missing, unknown, or of another type.
        """
        if not isinstance(values, dict):
            raise InputError(f"not a data specification: {type(values).__name__}, expected a JSON object")
        for name, (kind, item) in _TYPES.items():
            found = values.get(name)
            of_kind = isinstance(found, kind) and not isinstance(found, bool)
            if not of_kind or (item and not all(isinstance(part, item) and not isinstance(part, bool) for part in found)):
                raise InputError(f"not a data specification: {name} is {str(found)[:60]!r}")
        if unknown := values.keys() - _TYPES.keys():
            raise InputError(f"not a data specification: unknown {sorted(unknown)[0]!r}")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 (..., C, H, W) -> float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def as_unit_range(images: Tensor) -> Tensor:
    """Images as they are stored, uint8 or float32 in [-1, 1] -> float32 in [-1, 1]."""
    return to_unit_range(images) if images.dtype == torch.uint8 else images


def to_uint8(images: Tensor) -> Tensor:
    """float (..., C, H, W) in [-1, 1] -> uint8, rounded to nearest; values outside the range are clipped."""
    return images.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def require_same_data(subject: DataSpec, data: DataSpec) -> None:
    """Raise InputError if a set or a generator has other image sizes, another number of classes, or classes in another order than
    the real data. Where only names of classes differ, they are taken as the same, and that is said."""
    if (subject.image_shape, subject.num_classes) != (data.image_shape, data.num_classes):
        made = f"made for {subject.name!r} ({subject.num_classes} classes of {subject.image_shape})"
        raise InputError(f"{made}: expected {data.name!r} ({data.num_classes} classes of {data.image_shape})")
    pairs = enumerate(zip(subject.class_names, data.class_names, strict=True))
    differing = [(label, own, other) for label, (own, other) in pairs if own != other]
    for label, own, other in differing:
        if own in data.class_names or other in subject.class_names:
            found = f"class {label} is {own!r} there and {other!r} in {data.name!r}"
            raise InputError(
                f"made for {subject.name!r} with its classes in another order: {found}; make it again from these data"
            )
    if differing:
        label, own, other = differing[0]
        more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
        say_once(
            f"dim: class {label} is {own!r} in what was made and {other!r} in {data.name!r}{more}: taken as the same classes"
        )
