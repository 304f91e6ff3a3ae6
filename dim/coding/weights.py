"""Weights in few bits: symmetric integers with a scale for each output channel (of a transposed convolution: input), coded.

Matrices and kernels have the bits that are asked for, vectors (biases) eight, with one scale; buffers stay as they are, but for
anchors, which have at least six. A scale is the one of several under which the rounding error of its channel is smallest, in
half precision.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dim.coding import entropy
from dim.errors import InputError

BITS = (8, 6, 4, 3, 2)
"""Of matrices and kernels, that are tried, best first."""
ANCHORS = "anchors"
_VECTOR_BITS, _ANCHOR_BITS = 8, 6
_CLIPPED = torch.linspace(1.0, 0.3, 29)  # scales that are tried, as parts of the one that clips nothing
_HALF = 65504.0


@dataclass(frozen=True)
class Shape:
    """What is known of a tensor before its values are."""

    size: tuple[int, ...]
    dtype: torch.dtype
    learned: bool
    """Whether it is a parameter."""

    @property
    def count(self) -> int:
        """Values."""
        return math.prod(self.size)


def shapes_of(state: Mapping[str, Tensor], parameters: Collection[str]) -> dict[str, Shape]:
    """Shapes of a state, whose tensors need no memory; `parameters` are the names of those that are learned."""
    return {name: Shape(tuple(value.shape), value.dtype, name in parameters) for name, value in state.items()}


def bits_of(name: str, shape: Shape, bits: int) -> int:
    """Bits of the integers of a tensor, where matrices have `bits`; 0: it is stored as it is."""
    if name == ANCHORS:
        return max(bits, _ANCHOR_BITS)
    if not shape.learned or not shape.dtype.is_floating_point or shape.count == 0:
        return 0
    return bits if len(shape.size) > 1 else _VECTOR_BITS


def rows_of(name: str, shape: Shape) -> int:
    """How many scales a tensor has."""
    if name == ANCHORS:
        return math.prod(shape.size[:-1])
    return shape.size[0] if len(shape.size) > 1 else 1


# --- rounding ---------------------------------------------------------------------------------------------------------------


def scales(values: Tensor, bits: int) -> Tensor:
    """The scale of every row under which rounding changes it least: float (rows, n) -> float16 (rows, 1)."""
    most = 2 ** (bits - 1) - 1
    largest = values.abs().amax(1, keepdim=True)
    if not float(largest.max()) <= _HALF:
        raise InputError(f"a weight is {float(largest.max()):g}: coded files hold weights of at most {_HALF:,.0f}")
    best, chosen = torch.full_like(largest, math.inf), torch.zeros_like(largest, dtype=torch.float16)
    for part in _CLIPPED:
        scale = (largest * part / most).half()
        error = (rounded(values, scale, bits).float() * scale.float() - values).square().sum(1, keepdim=True)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, scale, chosen)
    return chosen


def rounded(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Integers of values: float (rows, n) and float16 (rows, 1) -> int16 (rows, n), 0 where the scale is."""
    most = 2 ** (bits - 1) - 1
    divisor = scale.float()
    return torch.where(divisor > 0, values / divisor.where(divisor > 0, 1), 0).round().clamp(-most, most).to(torch.int16)


# --- a whole state ----------------------------------------------------------------------------------------------------------


def code(
    state: Mapping[str, Tensor], shapes: Mapping[str, Shape], bits: int, scale_of: Mapping[str, Tensor] | None = None
) -> dict[str, bytes]:
    """Streams of a state, on the CPU.

    Args:
        state: tensors by name.
        shapes: of the same names.
        bits: of matrices and kernels, 2 to 8.
        scale_of: scales of some tensors, that were found before; see `scales`.
    """
    found: dict[int, list[np.ndarray]] = {}
    halves, exact = [], []
    for name in sorted(shapes):
        own, value = bits_of(name, shapes[name], bits), state[name].detach().cpu().contiguous()
        if not own:
            exact.append(value.reshape(-1).view(torch.uint8).numpy())
            continue
        rows = value.float().reshape(rows_of(name, shapes[name]), -1)
        scale = scales(rows, own) if name not in (scale_of or {}) else scale_of[name]
        shifted = rounded(rows, scale, own) + (2 ** (own - 1) - 1)
        found.setdefault(own, []).append(shifted.to(torch.uint8).reshape(-1).numpy())
        halves.append(scale.reshape(-1).view(torch.uint8).numpy())
    parts = {f"{own} bits": entropy.encode(np.concatenate(values), 2**own - 1) for own, values in found.items()}
    for name, pieces in (("scales", halves), ("exact", exact)):
        if pieces:
            parts[name] = entropy.encode(_planes(np.concatenate(pieces), 2), 256)
    return parts


def decode(parts: Mapping[str, bytes], shapes: Mapping[str, Shape], bits: int) -> dict[str, Tensor]:
    """Inverse of `code`: the rounded values, by name.

    Raises:
        ValueError, LookupError: if the streams do not hold such a state.
    """
    names = {own: [name for name in sorted(shapes) if bits_of(name, shapes[name], bits) == own] for own in range(9)}
    streams = {}
    for own, members in names.items():
        if own and members:
            count = sum(shapes[name].count for name in members)
            streams[own] = entropy.decode(parts[f"{own} bits"], count, 2**own - 1).astype(np.int16) - (2 ** (own - 1) - 1)
    half_bytes = 2 * sum(rows_of(name, shapes[name]) for own in range(1, 9) for name in names[own])
    exact_bytes = sum(shapes[name].count * shapes[name].dtype.itemsize for name in names[0])
    halves = (
        torch.from_numpy(_together(entropy.decode(parts["scales"], half_bytes, 256), 2)).view(torch.float16)
        if half_bytes
        else None
    )
    exact = torch.from_numpy(_together(entropy.decode(parts["exact"], exact_bytes, 256), 2)) if exact_bytes else None
    state, places, row, byte = {}, dict.fromkeys(streams, 0), 0, 0
    for name in sorted(shapes):
        shape, own = shapes[name], bits_of(name, shapes[name], bits)
        if not own:
            size = shape.count * shape.dtype.itemsize
            state[name] = (
                exact[byte : byte + size].clone().view(shape.dtype).reshape(shape.size) if size else torch.empty(shape.size)
            )
            byte += size
            continue
        integers = torch.from_numpy(streams[own][places[own] : places[own] + shape.count])
        rows = rows_of(name, shape)
        values = integers.float().reshape(rows, -1) * halves[row : row + rows].float()[:, None]
        state[name] = values.reshape(shape.size).to(shape.dtype)
        places[own], row = places[own] + shape.count, row + rows
    return state


def _planes(content: np.ndarray, width: int) -> np.ndarray:
    """The first bytes of all items, then the second ones: numbers of two bytes differ mostly in one."""
    even = len(content) // width * width
    return np.concatenate((content[:even].reshape(-1, width).T.reshape(-1), content[even:]))


def _together(planes: np.ndarray, width: int) -> np.ndarray:
    """Inverse of `_planes`."""
    even = len(planes) // width * width
    return np.concatenate((planes[:even].reshape(width, -1).T.reshape(-1), planes[even:]))
