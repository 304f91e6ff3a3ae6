"""Labels in few bytes: classes that take turns cost nothing; probabilities are logarithms of 8 bits."""

import numpy as np
import torch
from torch import Tensor

from dim.coding import entropy

TURNS, LISTED = "turns", "listed"
STEP = 8
"""Levels of a probability's natural logarithm: a factor of exp(1/8) from one to the next, and 254 of them down to exp(-31.75)."""
_NONE = 255  # in place of a probability that is 0, or below all levels


def encode_classes(labels: Tensor, classes: int) -> tuple[str, bytes]:
    """int64 (N,) labels -> how they are stored, and bytes: none if image i is of class i modulo their number, as in sets that are
    drawn with an IPC."""
    if torch.equal(labels, torch.arange(len(labels)) % classes):
        return TURNS, b""
    low, high = (labels % 256).to(torch.uint8).numpy(), (labels // 256).to(torch.uint8).numpy()
    return LISTED, entropy.encode(np.concatenate((low, high)) if classes > 256 else low, min(classes, 256))


def decode_classes(how: str, content: bytes, count: int, classes: int) -> Tensor:
    """Inverse of `encode_classes`.

    Raises:
        ValueError: for content of something else.
    """
    if how == TURNS:
        return torch.arange(count) % classes
    if how != LISTED:
        raise ValueError(f"labels are {str(how)[:20]!r}")
    planes = 2 if classes > 256 else 1
    found = torch.from_numpy(entropy.decode(content, planes * count, min(classes, 256)).astype(np.int64)).view(planes, count)
    labels = found[0] + (256 * found[1] if planes == 2 else 0)
    if int(labels.max()) >= classes:
        raise ValueError(f"label {int(labels.max())} of {classes} classes")
    return labels


def encode_soft(soft: Tensor) -> bytes:
    """float (N, K) probabilities -> bytes. Those of one class lie together; those that a teacher left out cost little."""
    levels = (-soft.double().log() * STEP).round()
    return entropy.encode(torch.where(levels < _NONE, levels, _NONE).to(torch.uint8).T.reshape(-1).numpy(), 256)


def decode_soft(content: bytes, count: int, classes: int) -> Tensor:
    """float32 (count, classes) probabilities, which sum to 1 again.

    Raises:
        ValueError: for content of something else, or a row without any probability.
    """
    levels = entropy.decode(content, count * classes, 256).reshape(classes, count).T
    table = np.exp(-np.arange(_NONE + 1) / STEP)
    table[_NONE] = 0.0
    values = table[levels]
    totals = values.sum(1, keepdims=True)
    if not (totals > 0).all():
        raise ValueError("an image has no class with a probability")
    return torch.from_numpy((values / totals).astype(np.float32))
