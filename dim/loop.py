"""What every long run shares: opening or resuming a folder, clock, metrics, checkpoints by time and step, pictures, stopping on
signals, the guard against non-finite values, progress. What a step does stays with the run (`dim.runs`,
`dim.trajectory.record`).
"""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from dim.continuation import Continuation
from dim.errors import InputError
from dim.io import save_tensors
from dim.outputs import sole_writer
from dim.processes import ALONE, Agreement, Processes
from dim.run_folder import CHECKPOINT, FAILED, KINDS, append_metrics, open_run, what_is_read
from dim.signals import ENDING, handle, heeded
from dim.text import say_note, verbosity

_TELL_SECONDS = 20.0
_asked_for: ContextVar[list[int] | None] = ContextVar("asked_for", default=None)  # the list of `stop_signals`, within it


class Interrupted(RuntimeError):
    """The run was asked to stop; its state has been saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class NonFiniteError(RuntimeError):
    """A loss or a gradient stopped being finite; the last good checkpoint is kept and the state at fault saved beside it."""


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP, so that a step is finished and saved; Ctrl-C after any of them stops at once.

    Within another such context, the list is that of the other: a signal between two loops stops the second one.
    """
    if (outer := _asked_for.get()) is not None:
        yield outer
        return
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        if number in ENDING:
            heeded.append(number)

    previous: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        previous = handle((signal.SIGINT, *ENDING), note)
    token = _asked_for.set(asked)
    try:
        yield asked
    finally:
        _asked_for.reset(token)
        for number, handler in previous.items():
            signal.signal(number, handler)


class Run(Protocol):
    """What a loop asks of the run that it drives."""

    remedy: str
    """What to try when values stop being finite."""
    departs: str
    """An option with which the run may then go on, see `dim.continuation.continues`; empty if there is none."""

    def check(self) -> None:
        """Raise, by `Loop.fail`, if the state is not worth saving."""
        ...

    def state(self) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """What a checkpoint holds: tensors, and JSON values."""
        ...

    def result(self) -> None:
        """Write the result as it is now, beside the checkpoint."""
        ...

    def picture(self) -> None:
        """Write a picture of the result."""
        ...


class Loop:
    """The shell around the steps of one run, as a context: within it, signals ask for a stop and progress is shown. From its
    making to the end of the context, no other process can work on the run.

        with Loop(...) as loop:
            while loop.step < loop.total:
                ...                     # one step
                loop.advance()
                if loop.logs():
                    loop.log({"loss": ...})
                loop.between()          # picture, checkpoint, stop
            loop.finish()

    The order between two steps is metrics, picture, checkpoint: a run that is killed between any two of them and resumed from the
    checkpoint before makes the later ones again, so that nothing is missing.

    Args:
        run: says what is saved.
        out: the run folder.
        name: of the progress bar.
        unit: what a step is called.
        total, step: steps of the whole run, and those that are done.
        seconds: wall time that was spent before.
        settings: has log_steps, sample_steps, checkpoint_steps and checkpoint_minutes, as far as the run has them.
        description: what run.json says, see `dim.run_folder.run_description`.
        continuation: how the run goes on; see `dim.continuation.continues`.
        device: where the run works; with `tf32`, whether matrix products on a GPU may use TF32 (None: as PyTorch has it).
        file: name of the checkpoint.
        processes: those that take every step together. The main one writes; the others count along.
        shown: whether progress is shown, where this process writes.
        called: the folder as messages name it, if it is another than `out`.

    Raises:
        InputError: if the processes begin at different steps, as they do where they do not see one folder.
    """

    def __init__(
        self,
        run: Run,
        out: Path,
        *,
        name: str,
        total: int,
        description: Mapping[str, Any],
        continuation: Continuation,
        settings: Any,
        device: torch.device,
        unit: str = "step",
        step: int = 0,
        seconds: float = 0.0,
        tf32: bool | None = None,
        file: str = CHECKPOINT,
        processes: Processes = ALONE,
        shown: bool = True,
        called: Path | None = None,
    ) -> None:
        self._run, self.out, self._unit, self._file, self._main = run, out, unit, file, processes.main
        self._called, self._agreed = called or out, Agreement(processes)
        self.total, self.step = total, step
        self._every = {key: getattr(settings, key, 0) for key in ("log_steps", "sample_steps", "checkpoint_steps")}
        self._save_seconds = 60 * settings.checkpoint_minutes
        self._command, self._of = KINDS[description["kind"]], continuation.of
        self._asked: list[int] = []
        self._stack = contextlib.ExitStack()
        if device.type == "cuda" and tf32 is not None:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        if len(steps := set(processes.gather(step))) > 1:
            raise InputError(f"the processes begin at steps {sorted(steps)}: expected a folder that all machines see, not {out}")

        def begin() -> None:
            self._stack.enter_context(sole_writer(out))
            continuation.require_unchanged()
            open_run(out, continuation.opening(description, step), step)

        processes.once(begin)
        if shown and self._main and (line := what_is_read(description)):
            say_note(line, sys.stdout)
        self._saved_at = time.monotonic()
        self._started = self._saved_at - seconds
        self.progress = Progress(name, total, step, unit=unit, show=shown and self._main)

    def __enter__(self) -> "Loop":
        self._asked = self._stack.enter_context(stop_signals())
        self._stack.enter_context(self.progress)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        self._stack.close()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            # The step may be half done, so the last checkpoint stands.
            done = f"stopped at once in {self._unit} {self.step + 1} of {self.total}, without saving"
            raise Interrupted(f"{done}; {self._remedy()}", signal.SIGINT) from None

    def _remedy(self) -> str:
        return f"continue with: {self._line()}"

    def _line(self) -> str:
        return f"dim {self._command} --out {self._called} --resume"

    # --- the clock and what is written while the run works ---------------------------------------------------------------

    def elapsed(self) -> float:
        """Seconds of wall time that the run has taken, those before it was resumed included."""
        return time.monotonic() - self._started

    @contextlib.contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """What happens within is not counted as the run's time."""
        began = time.monotonic()
        yield
        self._started += time.monotonic() - began

    def advance(self) -> None:
        """Count a step."""
        self.step += 1
        self.progress.advance()

    def logs(self, end: int | None = None) -> bool:
        """Whether metrics are due: every `log_steps` steps, and at the `end` of the run or of a part of it."""
        return self.step % self._every["log_steps"] == 0 or self.step == (self.total if end is None else end)

    def record(self, values: Mapping[str, Any]) -> None:
        """Record values beside the step and the seconds."""
        if self._main:
            append_metrics(self.out, {"step": self.step, "seconds": round(self.elapsed(), 2), **values})

    def log(self, values: Mapping[str, Any], *, shown: Mapping[str, float] | None = None, note: str = "") -> None:
        """Record values, and show some of them (all, by default) beside the progress."""
        self.record(values)
        if self._main:
            self.progress.show(values if shown is None else shown, note=note)

    # --- between two steps -----------------------------------------------------------------------------------------------

    def between(self, where: str | None = None) -> None:
        """Picture and checkpoint where they are due, and a stop where one was asked for; the end of the run writes its own.

        Args:
            where: the place in the run, for people. Default: the number of the step.

        Raises:
            Interrupted: after a signal to any of the processes, when the state has been saved.
        """
        if self.step == self.total:
            return
        every = self._every
        if every["sample_steps"] and self.step % every["sample_steps"] == 0 and self._main:
            self._run.picture()
        due = every["checkpoint_steps"] > 0 and self.step % every["checkpoint_steps"] == 0
        late = self._main and self._save_seconds > 0 and time.monotonic() - self._saved_at >= self._save_seconds
        # All processes save after the same step, whose clock or signal it may be.
        late, number = self._agreed(late, self._asked[0] if self._asked else 0)
        if due or late or number:
            self.save()
        if number:
            self._stop(where, number)

    def stop_if_asked(self, where: str | None = None) -> None:
        """Raise Interrupted if a signal asked this process for a stop; the state must have been saved."""
        if self._asked:
            self._stop(where, self._asked[0])

    def _stop(self, where: str | None, number: int) -> None:
        where = where or f"at {self._unit} {self.step} of {self.total}"
        raise Interrupted(f"interrupted {where}; {self._remedy()}", number)

    def save(self) -> None:
        """Write the checkpoint, and then the result.

        Raises:
            NonFiniteError: if the state holds a value that is not finite.
        """
        self._run.check()
        tensors, metadata = self._run.state()
        finite = [value.isfinite().all().cpu() for value in tensors.values() if value.is_floating_point()]  # of any device
        if not bool(torch.stack(finite).all()):
            self.fail(f"{self._unit} {self.step}: the weights are not finite")
        if self._main:
            save_tensors(self.out / self._file, tensors, {**metadata, "of": self._of})
            self._run.result()
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """Write checkpoint, result and last picture at the end of the run."""
        self.save()
        if self._main:
            self._run.picture()

    # --- the guard -------------------------------------------------------------------------------------------------------

    def require_finite(self, losses: Mapping[str, float]) -> None:
        """Fail if a loss is not finite; see `fail`."""
        for name, value in losses.items():
            if not math.isfinite(value):
                self.fail(f"{self._unit} {self.step}: loss {name!r} is {value}")

    def fail(self, what: str) -> None:
        """Save the state at fault beside the last good one, and stop.

        Raises:
            NonFiniteError: always; it says what happened, where both states are, and what to try.
        """
        if self._main:
            save_tensors(self.out / FAILED, *self._run.state())
        kept, remedy = (self.out / self._file).exists(), self._run.remedy
        good = f"the last good state is {self._file} beside it" if kept else "no checkpoint had been written yet"
        where = self.out / FAILED
        if self._run.departs and kept:
            where, remedy = FAILED, f"{remedy}; to go on: {self._line()} --depart {self._run.departs}"
        raise NonFiniteError(f"{what}. The state is saved in {where}; {good}. {remedy}")


class Progress:
    """A progress bar with losses, rate and time left; where there is no terminal, a line every 20 seconds (with -v, 2)."""

    def __init__(self, name: str, total: int, initial: int = 0, *, unit: str = "step", show: bool = True) -> None:
        show = show and verbosity() >= 0
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
        wait = _TELL_SECONDS / 10 if verbosity() > 0 else _TELL_SECONDS
        if not (self._show and self._bar.disable) or time.monotonic() - self._told_at < wait:
            return
        self._told_at = time.monotonic()
        rate = (self._done - self._initial) / (self._told_at - self._entered)
        left = f"{(self._total - self._done) / rate:.0f} s left" if rate > 0 else ""
        parts = [f"{self._unit} {self._done}/{self._total}", note, *(f"{name} {value}" for name, value in shown.items())]
        parts += [f"{rate:.2f} {self._unit}s/s", left]
        say_note("  ".join(filter(None, parts)))
