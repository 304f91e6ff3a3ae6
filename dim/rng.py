"""Random numbers as pure functions of integers.

Every draw in this package is a function of (seed, purpose, indices), never of how many draws came before it. That is
what makes resuming exact without storing any generator's state, and synthetic sets nested in their size.

Two tools: `generator` gives a `torch.Generator` for one draw of any shape, and `normal` gives each *row* of a batch
its own independent stream (counter-based), so that a row's values do not depend on which rows it is drawn with.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
# Philox4x32 multipliers and Weyl constants: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def fold(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit integer that depends on every argument and on nothing else (BLAKE2b; the same on every machine)."""
    text = ":".join((str(int(seed)), purpose, *(str(int(index)) for index in indices)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *indices: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A `torch.Generator` on `device`, seeded by `fold(seed, purpose, *indices)`."""
    return torch.Generator(device=device).manual_seed(fold(seed, purpose, *indices))


@contextlib.contextmanager
def initialisation(seed: int, purpose: str, *indices: int) -> Iterator[None]:
    """Within the block, CPU module initialisers draw from this seed; the caller's global state is restored after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(fold(seed, purpose, *indices))  # that of the CPU alone
        yield


def philox(key: int, counters: Tensor) -> Tensor:
    """Philox4x32-10: four 32-bit words for each 128-bit counter (Salmon et al. 2011).

    Args:
        key: 64-bit integer.
        counters: int64 (..., 4), each entry in [0, 2**32).

    Returns:
        int64 (..., 4), each entry in [0, 2**32), on the device of `counters`.
    """
    # int64 products wrap modulo 2**64, which keeps all their bits; the mask after the shift undoes sign extension.
    c0, c1, c2, c3 = counters.unbind(-1)
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def normal(key: int, rows: Tensor, width: int) -> Tensor:
    """Standard normal values in which row r is a function of (`key`, `rows[r]`) only (Philox and Box-Muller).

    Args:
        key: 64-bit integer, from `fold`.
        rows: int64 (B, 2), each entry in [0, 2**32): the names of the rows.
        width: values per row.

    Returns:
        float32 (B, width), on the device of `rows`.
    """
    place = rows.device
    if place.type == "mps":  # which has no float64
        rows = rows.cpu()
    blocks = -(-width // 4)
    block = torch.arange(blocks, device=rows.device).expand(len(rows), blocks)
    first, second = (rows[:, i : i + 1].expand(len(rows), blocks) for i in (0, 1))
    words = philox(key, torch.stack((block, first, second, torch.zeros_like(block)), dim=-1))
    uniform = (words.double() + 0.5) / 2**32  # in (0, 1): the logarithm below is finite
    radius = (-2 * uniform[..., 0::2].log()).sqrt()
    angle = 2 * torch.pi * uniform[..., 1::2]
    values = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return values.flatten(1)[:, :width].float().to(place)
