"""Where on an expert's path the student starts: the window of start points, which may grow during a run."""

import math
from dataclasses import dataclass

import torch

from dim import rng
from dim.errors import InputError


@dataclass(frozen=True)
class Window:
    """Start points drawn uniformly from [low, high), and targets `span` later.

    MTT: whole moments from 0 to `high` - 1. DATM: the upper bound grows linearly from `high_at_first` to `high` while
    `grows_for` iterations pass, truncated to a whole moment as in its code. MCT: any real number, and targets are cut off at
    the path's end.

    Args:
        low, high: range of start points, in recorded moments.
        span: moments from start to target (M).
        continuous: draw real numbers in place of whole ones.
        high_at_first: upper bound at iteration 0, or None for `high`.
        grows_for: iterations until the bound reaches `high`.

    Raises:
        InputError: if the range is empty.
    """

    low: float
    high: float
    span: float
    continuous: bool = False
    high_at_first: float | None = None
    grows_for: int = 0

    def __post_init__(self) -> None:
        first = self.high if self.high_at_first is None else self.high_at_first
        if not 0 <= self.low < first <= self.high:
            raise InputError(f"window {self.low} to {first}, growing to {self.high}: expected 0 <= min < max at first <= max")
        if self.span <= 0:
            raise InputError(f"window span is {self.span}: expected a positive number of epochs")
        if not self.continuous and any(value != int(value) for value in (self.low, self.high, self.span)):
            raise InputError(f"window {self.low} to {self.high}, span {self.span}: expected whole numbers, or continuous=true")

    def require_inside(self, last: float) -> None:
        """Refuse a window whose start points or targets lie beyond the recorded path.

        Raises:
            InputError: naming how far it reaches and what was recorded.
        """
        # The largest start point, drawn or (continuous) approached; a continuous target is cut off at the end.
        furthest = self.high if self.continuous else self.high - 1 + self.span
        if furthest > last:
            raise InputError(
                f"the window reaches epoch {furthest:g} and the experts were recorded to {last:g}: "
                "lower --trajectory.max-start or --trajectory.epochs, or record longer"
            )

    def bound(self, iteration: int) -> float:
        """Upper bound of start points at an iteration."""
        if self.high_at_first is None or iteration >= self.grows_for:
            return self.high
        grown = self.high_at_first + (self.high - self.high_at_first) * iteration / self.grows_for
        return grown if self.continuous else float(max(math.floor(self.low) + 1, math.floor(grown)))

    def draw(self, seed: int, iteration: int, member: int, last: float) -> tuple[float, float]:
        """Start and target of an iteration; a function of (seed, iteration, member)."""
        source = rng.generator(seed, "window", iteration, member)
        high = self.bound(iteration)
        if self.continuous:
            start = self.low + (high - self.low) * float(torch.rand((), generator=source, dtype=torch.float64))
        else:
            start = float(torch.randint(int(self.low), int(high), (), generator=source))
        return start, min(start + self.span, last)
