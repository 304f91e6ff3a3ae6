"""How published code normalises images: constants for each data set, which are not always its own."""

from dataclasses import dataclass

import torch
from torch import Tensor

_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_PUBLISHED: dict[str, dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    # VICO-UoE/DatasetCondensation, utils.py; justincui03/dc_benchmark has the same.
    "dc": {
        "mnist": ((0.1307,), (0.3081,)),
        "fashion-mnist": ((0.2861,), (0.3530,)),
        "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
        "cifar10": _CIFAR10,
        "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
        "tiny-imagenet": _IMAGENET,
    },
    # GeorgeCazenavette/mtt-distillation, utils.py; TESLA, DATM and DD-Ranking have the same: CIFAR-100 by CIFAR-10's constants.
    "mtt": {"cifar10": _CIFAR10, "cifar100": _CIFAR10, "tiny-imagenet": _IMAGENET},
}


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std for images x in [0, 1], per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, images: Tensor) -> Tensor:
        """float (N, C, H, W) in [-1, 1] -> normalised."""
        return ((images + 1) / 2 - _channels(self.mean, images)) / _channels(self.std, images)

    def invert(self, images: Tensor) -> Tensor:
        """Inverse of `apply`."""
        return (images * _channels(self.std, images) + _channels(self.mean, images)) * 2 - 1


def published(code: str, dataset: str) -> Normalisation | None:
    """How the code of `dc` or `mtt` normalises a data set, by our name; None if it does not know it."""
    constants = _PUBLISHED[code].get(dataset)
    return None if constants is None else Normalisation(*constants)


def known_to(code: str) -> tuple[str, ...]:
    """Data sets that the code of `dc` or `mtt` knows."""
    return tuple(_PUBLISHED[code])


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
