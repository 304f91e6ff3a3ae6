"""How a run goes on from what its folder holds: resumed as it is, resumed with other settings where that is stated, or begun."""

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dim.errors import InputError
from dim.outputs import LOCK, sole_writer
from dim.processes import ALONE, Processes
from dim.run_folder import CHECKPOINT, find_run, inexact, lasting, load_checkpoint, require_free_run
from dim.spec import DataSpec
from dim.text import say


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """How a run goes on, or begins."""

    out: Path
    of: Mapping[str, Any]
    """What the run depends on, see `dim.run_folder.lasting`."""
    resumes: bool = False
    departures: tuple[Mapping[str, Any], ...] = ()
    """What run.json states of earlier departures from the settings that the run began with."""
    changes: Mapping[str, list[Any]] = field(default_factory=dict)
    """By setting, the value before and now, where the run departs from its settings now."""
    holds: str = CHECKPOINT
    """The file from which such a run continues."""
    found: tuple[int, ...] | None = None
    """What tells whether that file is still the one that was there; None: there was none."""
    began: Mapping[str, int] = field(default_factory=dict)
    """The processes and threads that a run began with which resumes."""

    def elsewhere(self, folder: Path) -> "Continuation":
        """The same for a part of the run that has a folder of its own."""
        found = _mark(folder / self.holds)
        return replace(self, out=folder, found=found, resumes=found is not None)

    def load(self, device: torch.device | str = "cpu", file: str = CHECKPOINT) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The checkpoint: its tensors and its metadata; see `dim.run_folder.load_checkpoint`."""
        # A process that departed may have been killed before it wrote a checkpoint of its own.
        last = self.departures[-1]["changes"] if self.departures else {}
        return load_checkpoint(self.out, self.of, {**last, **self.changes}, device, file)

    def stated(self, step: int) -> dict[str, Any]:
        """What run.json and the result say of departures, when the run goes on after `step`. Nothing if there is none."""
        own = [{"step": step, "changes": dict(self.changes)}] if self.changes else []
        departures = [*self.departures, *own]
        return {"departures": departures} if departures else {}

    def opening(self, description: Mapping[str, Any], step: int) -> dict[str, Any]:
        """What run.json says when the run begins, or goes on after `step`: its description, what it began with, departures."""
        now = {"processes": description["processes"], "threads": description["hardware"]["threads"]}
        return {**description, "began": {**now, **self.began}, **self.stated(step)}

    def require_unchanged(self) -> None:
        """Raise InputError if another process has worked on the run since its folder was looked at."""
        if self.found != _mark(self.out / self.holds):
            raise InputError(f"another process has written {self.out} meanwhile: look at it, and continue it with --resume")


def continues(
    out: Path,
    config: Any,
    spec: DataSpec,
    *,
    resume: bool,
    depart: bool = False,
    kind: str = "run",
    may_change: Collection[str] = (),
    may_depart: Collection[str] = (),
    holds: str = CHECKPOINT,
    processes: Processes = ALONE,
) -> Continuation:
    """How a run goes on from what its folder holds. A run that was killed before its first checkpoint begins again.

    A line on standard error warns of a run that cannot go on bit by bit as it began.

    Args:
        out: the folder.
        config: the settings now.
        spec: the data now.
        resume: whether the user asks for it.
        depart: whether settings of `may_depart` may differ from those that the run has.
        kind: what kind of run the folder should be of.
        may_change: settings that the result does not depend on.
        may_depart: settings that may change while a run is trained, if that is stated.
        holds: name of the file from which such a run continues.
        processes: those that work on the run; the main one looks for all of them.

    Raises:
        InputError: if the run there has other settings or another data set, or another process is writing it; or, without
            `resume`, if there is anything to lose.
    """
    if depart and not resume:
        raise InputError("depart is true: expected it together with --resume, for a run that goes on with other settings")

    def look() -> Continuation:
        if (out / LOCK).is_file():  # found now rather than when everything is built
            with sole_writer(out):
                pass
        of, mark = lasting(config, spec, may_change), _mark(out / holds)
        if resume:
            rules = {"kind": kind, "may_change": may_change, "may_depart": may_depart, "depart": depart}
            found = find_run(out, config, spec, **rules)
            if found is not None and mark is not None:
                if difference := inexact(found.description, processes):
                    say(f"dim: {out} {difference}: it does not end the same bit by bit", sys.stderr)
                stated = tuple(found.description.get("departures", ()))
                own = {"departures": stated, "changes": found.departures, "began": found.description.get("began", {})}
                return Continuation(out=out, of=of, resumes=True, holds=holds, found=mark, **own)
        require_free_run(out, lambda out: (out / holds).is_file(), kind=kind)
        return Continuation(out=out, of=of, holds=holds, found=mark)

    return processes.once(look)


def _mark(path: Path) -> tuple[int, ...] | None:
    """What tells one file of a name from another."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
