"""What is tried so that students make the best of a given time."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from dim.config.protocol import Schedule
from dim.config.settings import Settings, require
from dim.errors import InputError

PLAIN, OWN = "plain", "own"


@dataclass(frozen=True, kw_only=True)
class TimedConfig(Settings):
    """What is tried, on the validation part, for every subject and time. The first of each list that the protocol has is where
    the search begins; one list after another is tried, each at the best of those before it."""

    prefix: ClassVar = "timed."
    rare: ClassVar = ("probe_seconds",)

    lr_factors: tuple[float, ...] = (1.0, 2.0, 4.0, 0.5)
    """Times the protocol's learning rate."""
    batch_sizes: tuple[int, ...] = (128, 256)
    """Images per step, beside the protocol's own number."""
    schedules: tuple[Schedule, ...] = ("cosine",)
    """Of the learning rate, beside the protocol's own."""
    augmentation: Literal["protocol", "none", "both"] = "both"
    """Whether students see augmented images. `both`: what is better."""
    courses: tuple[str, ...] = (OWN, "0", "0:1", PLAIN)
    """For generators around refined images: how far from those images are made. A spread, or two for the first and the last step,
    with a straight line between them: easy images first. `own`: the generator's spread; `plain`: no refined images."""
    probe_seconds: float = 2.0
    """Training that is timed, to know how many steps a time has."""

    def __post_init__(self) -> None:
        for name in ("lr_factors", "courses"):
            require(len(getattr(self, name)) > 0, f"timed.{name}", getattr(self, name), "at least one")
        for name in ("lr_factors", "batch_sizes", "schedules", "courses"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"timed.{name}", values, "each once")
        for factor in self.lr_factors:
            require(factor > 0, "timed.lr-factors", factor, "positive numbers")
        for size in self.batch_sizes:
            require(size >= 1, "timed.batch-sizes", size, "1 or more images")
        require(self.probe_seconds > 0, "timed.probe-seconds", self.probe_seconds, "a positive number")
        for course in self.courses:
            spreads(course)


def spreads(course: str) -> tuple[float, float] | None:
    """The spread at the first and at the last step; None for a course without any, `own` or `plain`.

    Raises:
        InputError: if it says something else.
    """
    if course in (OWN, PLAIN):
        return None
    first, colon, last = course.partition(":")
    try:
        ends = float(first), float(last if colon else first)
    except ValueError:
        ends = (-1.0, -1.0)
    if not all(0 <= end < math.inf for end in ends):
        raise InputError(f"timed.courses has {course!r}: expected a spread such as 0.3, two such as 0:1, {OWN!r} or {PLAIN!r}")
    return ends
