"""What every long run shares: stopping on signals, the guard against non-finite values, progress."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tqdm.auto import tqdm

_TELL_SECONDS = 20.0


class Interrupted(RuntimeError):
    """The run was asked to stop; its state has been saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class NonFiniteError(RuntimeError):
    """A loss or a gradient stopped being finite; the last good checkpoint is kept and the state at fault saved beside it."""


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that a step is finished and saved; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    previous: dict[int, Callable | int | None] = {}
    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Progress:
    """A progress bar with losses, rate and time left; where there is no terminal, a line every 20 seconds."""

    def __init__(self, name: str, total: int, initial: int = 0, *, unit: str = "step", show: bool = True) -> None:
        self._bar = tqdm(total=total, initial=initial, desc=name, unit=unit, disable=None if show else True)
        self._show, self._unit, self._total, self._initial, self._done = show, unit, total, initial, initial
        self._entered = self._told_at = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.close()

    def advance(self, count: int = 1) -> None:
        """Count steps that are done."""
        self._done += count
        self._bar.update(count)

    def show(self, values: Mapping[str, float], note: str = "") -> None:
        """Show values beside the count; `note` is for the line only."""
        shown = {name: f"{value:.3g}" for name, value in values.items()}
        self._bar.set_postfix(shown)
        if not (self._show and self._bar.disable) or time.monotonic() - self._told_at < _TELL_SECONDS:
            return
        self._told_at = time.monotonic()
        rate = (self._done - self._initial) / (self._told_at - self._entered)
        left = f"{(self._total - self._done) / rate:.0f} s left" if rate > 0 else ""
        parts = [f"{self._unit} {self._done}/{self._total}", note, *(f"{name} {text}" for name, text in shown.items())]
        parts += [f"{rate:.2f} {self._unit}s/s", left]
        print("  ".join(filter(None, parts)), file=sys.stderr, flush=True)
