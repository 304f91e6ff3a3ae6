"""How many images are worked on at a time: sized in bytes, so that memory does not grow with their number or their size. And
whether what must be held at once fits at all."""

import contextlib
from pathlib import Path

from dim.errors import InputError

IMAGES = 64 * 2**20
"""Bytes of float32 images at a time where they are read, counted or resized."""
FORWARD = 3 * 2**20
"""The same where a network sees them without a graph. Its maps are larger than its images: at full resolution one map of 128
channels, the widest of the usual students, is 43 times as large as an RGB image. With 3 MiB these are 256 images of 32x32 pixels
and five of 224x224, and such a map has 0.13 GiB, no more than where students are trained."""
JUDGED = 250
"""The most images that a student is asked about at a time, however small they are."""
DRAWN = 256 * 2**20
"""The same where a generator makes them, which takes blocks of images that are better full."""


def chunk_size(item_bytes: int, largest: int, budget: int = IMAGES) -> int:
    """Items that are worked on at a time: as many as fit into the budget, but at least one.

    Args:
        item_bytes: bytes of one item.
        largest: the most items, however small they are; 1 or more.
        budget: bytes.
    """
    return max(1, min(largest, budget // max(1, item_bytes)))


def require_memory(size: float, what: str, remedy: str) -> None:
    """Refuse what the machine cannot hold, before it is allocated.

    Args:
        size: bytes.
        what: needs them, with the value that was given.
        remedy: what to lower.

    Raises:
        InputError: if that is more than the memory that is free, of the machine or of the container.
    """
    free = _free_memory()
    if size > free:
        raise InputError(f"{what}: {size / 2**30:,.1f} GiB are needed, and {free / 2**30:,.1f} GiB of memory are free; {remedy}")


def _free_memory() -> float:
    """Bytes that can be allocated: those that are free, or less in a container with a limit (of either version of cgroups)."""
    import psutil  # which accelerate brings

    free = float(psutil.virtual_memory().available)
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file; `max`
            free = min(free, float(Path("/sys/fs/cgroup", limit).read_text()))
    return free
