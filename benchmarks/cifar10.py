"""The table of CIFAR-10: every method under the same rules, cell by cell, over as many calls as it takes.

    python benchmarks/cifar10.py --data-root DIR --missing            # what is not there yet, with estimated hours
    python benchmarks/cifar10.py --data-root DIR --budget-hours 8     # work for eight hours; the next call goes on
    python benchmarks/cifar10.py --data-root DIR --suite fixed --only 'fixed-random-*' 'gan-s1*'
    python benchmarks/cifar10.py --render                             # the tables in docs/cifar10.md and README.md
    python benchmarks/cifar10.py --tiny                               # the whole path, in miniature and without CIFAR-10

*Productions* (generators, experts, distilled sets) lie in folders below `--out`. One that lies there, such as a run made by `dim
train --recipe cifar10-gan-cpu --out runs/cifar10/gan-s0`, is continued with its own settings, or used as it is. *Cells* are rows
of the tables: one JSON file each in `benchmarks/results/cifar10`, written when all its students are scored. What exists is not
made again, unless its sources differ and `--remake` is given. Several calls may work on one `--out` at the same time, each on a
core of its own.

In a budget, nothing is begun that is not expected to end in it; productions that keep checkpoints are stopped when it ends.

    python benchmarks/cifar10.py --data-root DIR --trial wider generator.width=48 --minutes 60

trains a short variant of a recipe and scores it on the validation part; this is how a recipe's settings are chosen.
"""

import contextlib
import fcntl
import math
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from cifar10_cells import Cell, Task
from cifar10_page import render
from cifar10_plan import Work, chosen
from cifar10_productions import Production
from cifar10_scale import FULL, Tiny
from cifar10_shop import GAN, Workshop
from cifar10_subjects import Bench
from cifar10_trial import run_trial
from common import RESULTS, ROOT, Sources

from dim.commands.malloc import keep_freed_memory
from dim.commands.subjects import device_of
from dim.errors import InputError
from dim.loop import Interrupted, NonFiniteError

SHORTEST = 120.0  # seconds that a production is worth beginning for
_TRUSTED = 1200.0  # seconds for which an estimate is believed before the pace of this machine is, as a first piece also compiles


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Work on the CIFAR-10 table, say what is missing, or render it."""

    suite: str = "all"
    """stream, fixed, architectures, storage, matching, coverage, or all."""
    only: tuple[str, ...] = ()
    """Patterns such as 'gan-s0*': productions and cells of these names, and what they are made from."""
    missing: bool = False
    """Print what is missing, in its order, with estimated hours, and end."""
    budget_hours: float | None = None
    """Wall time to work for. Default: until nothing is missing."""
    seeds: int | None = None
    """The most students per cell in this call; a cell is not finished before it has all of its own. Default: all."""
    remake: bool = False
    """Make cells again that other sources made."""
    render: bool = False
    """Write the tables into docs/cifar10.md and README.md from the cells, and end."""
    trial: tuple[str, ...] = ()
    """A name and changed settings, as in `wider generator.width=48`: train a short variant, score it on the validation part."""
    recipe: str = GAN
    """Of a trial."""
    minutes: float = 60.0
    """Wall time of a trial's training: the epochs of both stages are scaled to it, unless they are among its settings."""
    split: Literal["test", "val"] | None = None
    """Part of the data to score on. Cells are of the test part, trials of the validation part; nothing else is taken."""
    data_root: str | None = None
    """Where CIFAR-10 lies. Default: the environment variable DIM_DATA_ROOT."""
    out: str | None = None
    """Folder of productions and unfinished cells. Default: runs/cifar10; with --tiny, runs/cifar10-tiny."""
    device: str | None = None
    """cpu or cuda. Default: a GPU if there is one."""
    tiny: bool = False
    """Everything at a size that ends in two minutes of one core, on scikit-learn's digits. Results and pages go below --out."""

    def check(self) -> None:
        """Raise InputError for what cannot be meant."""
        if self.trial and self.split == "test":
            raise InputError("split is 'test' with --trial: settings are chosen on the validation part; leave --split out")
        if not self.trial and self.split == "val":
            raise InputError("split is 'val' without --trial: the table is of the test part; leave --split out, or name a trial")
        if self.budget_hours is not None and not self.budget_hours > 0:
            raise InputError(f"budget-hours is {self.budget_hours}: expected a positive number, or no budget")
        if self.seeds is not None and self.seeds < 1:
            raise InputError(f"seeds is {self.seeds}: expected 1 or more, or none for all")
        if not self.minutes > 0:
            raise InputError(f"minutes is {self.minutes}: expected a positive number")


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process may work on what the path names; no other one may meanwhile. A process that dies leaves it free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


class Worker:
    """Goes through the work in its order, as long as there is time.

    Args:
        bench: evaluators and productions.
        work: what is wanted, see `cifar10_plan.chosen`.
        hours: wall time; None: no limit.
        seeds: the most students per cell.
        remake: make cells of other sources again.
    """

    def __init__(self, bench: Bench, work: list[Work], *, hours: float | None, seeds: int | None, remake: bool) -> None:
        self.bench, self.work, self._seeds, self._remake = bench, work, seeds, remake
        self._end = math.inf if hours is None else time.monotonic() + 3600 * hours
        self._productions = {one.name: one.item for one in work if isinstance(one.item, Production)}
        self._paces: dict[str, list[float]] = {}  # by student: seconds that pieces took, and that were estimated
        self._finished: set[str] = set()
        self.passed: dict[str, str] = {}
        """Why something was not made in this call."""

    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def part_done(self, item: Production | Task) -> float:
        """From 0 to 1."""
        if isinstance(item, Production):
            return item.part_done(self.bench.shop)
        return item.part_done(self.bench, remake=self._remake)

    def finished(self, item: Production | Task) -> bool:
        """Whether it is there; what was once there is not looked at again."""
        if item.name not in self._finished:
            production = isinstance(item, Production)
            if item.done(self.bench.shop) if production else item.done(self.bench, remake=self._remake):
                self._finished.add(item.name)
        return item.name in self._finished

    def missing(self) -> list[tuple[Production | Task, float]]:
        """What is not there, in its order, with the hours that it still takes."""
        found = [one.item for one in self.work if not self.finished(one.item)]
        return [(item, item.hours * (1 - min(1.0, self.part_done(item)))) for item in found]

    def run(self) -> None:
        """Make what can be made."""
        while (item := self._next()) is not None:
            with claimed(self.bench.shop.out / "locks" / item.name) as free:
                if not free:
                    self.passed[item.name] = "another process works on it"
                elif not self.finished(item):
                    self._try(item)

    def _next(self) -> Production | Task | None:
        """The first that is missing and can be made now."""
        for one in self.work:
            if one.name not in self.passed and not self.finished(one.item) and self._ready(one.item):
                return one.item
        return None

    def _ready(self, item: Production | Task) -> bool:
        shop = self.bench.shop
        needs = item.open_needs(shop) if isinstance(item, Production) else item.needs
        return all(self.finished(self._productions[need]) for need in needs)

    def _try(self, item: Production | Task) -> None:
        try:
            if isinstance(item, Production):
                self._produce(item)
            else:
                self._score(item)
        except Interrupted:
            raise
        except (InputError, NonFiniteError) as error:
            self.passed[item.name] = f"failed: {error}"
        except Exception as error:  # the rest of a night's work does not depend on it
            traceback.print_exc()
            self.passed[item.name] = f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if item.name in self.passed:
            print(f"{item.name}: {self.passed[item.name]}", flush=True)

    def _produce(self, item: Production) -> None:
        expected = 3600 * item.hours * (1 - self.part_done(item))
        if self.left() < (min(SHORTEST, expected) if item.resumes else expected):
            self.passed[item.name] = "no time left for it"
            return
        print(f"{item.name}: about {expected / 3600:.1f} hours", flush=True)
        if not item.make(self.bench.shop, self.left()):
            self.passed[item.name] = "stopped at the end of the budget; the next call goes on"

    def _score(self, task: Task) -> None:
        kind = task.student if isinstance(task, Cell) else "coverage"
        for hours, make in task.pieces(self.bench, remake=self._remake, limit=self._seeds):
            pace = self._paces.setdefault(kind, [_TRUSTED, _TRUSTED])
            expected = 3600 * hours * pace[0] / pace[1]
            if expected and self.left() < expected:
                self.passed[task.name] = "no time left for it"
                return
            started = time.monotonic()
            make()
            if hours:
                pace[0], pace[1] = pace[0] + time.monotonic() - started, pace[1] + 3600 * hours
        if not self.finished(task):
            self.passed[task.name] = f"has the {self._seeds} students that were asked for, and is not finished"


def print_missing(missing: list[tuple[Production | Task, float]], total: int) -> None:
    """What is to be done, in its order."""
    for item, hours in missing:
        kind = "production" if isinstance(item, Production) else "cell"
        made_from = f"  from {', '.join(item.needs)}" if item.needs else ""
        print(f"{kind:<10}  {hours:6.2f} h  {item.name}{made_from}")
    print(f"{len(missing)} of {total} missing, about {sum(hours for _, hours in missing):.0f} hours of one core")


def main(arguments: Arguments) -> int:
    arguments.check()
    scale = Tiny() if arguments.tiny else FULL
    out = Path(arguments.out or ("runs/cifar10-tiny" if arguments.tiny else "runs/cifar10"))
    results, pages = (out / "results", out / "pages") if arguments.tiny else (RESULTS / "cifar10", ROOT)
    if arguments.render:
        for path in render(results, pages):
            print(path)
        return 0
    work = chosen(arguments.suite, arguments.only)
    shop = Workshop(out, Sources.of(__file__), device_of(arguments.device), arguments.data_root, scale)
    if arguments.trial:
        print(run_trial(shop, results, arguments.recipe, arguments.trial, arguments.minutes, arguments.seeds or 2))
        return 0
    bench = Bench(shop, results)
    options = {"hours": arguments.budget_hours, "seeds": arguments.seeds, "remake": arguments.remake}
    worker = Worker(bench, work, **options)
    if arguments.missing:
        print_missing(worker.missing(), len(work))
        return 0
    len(shop.data.train)  # that the data is there is found out now
    worker.run()
    missing = worker.missing()
    print(f"{len(work) - len(missing)} of {len(work)} are there, {len(missing)} missing; --missing shows them", flush=True)
    failed = [name for name, why in worker.passed.items() if why.startswith("failed")]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    keep_freed_memory()
    try:
        raise SystemExit(main(tyro.cli(Arguments)))
    except InputError as error:
        raise SystemExit(str(error)) from None
    except (Interrupted, KeyboardInterrupt) as stopped:
        print("interrupted; the next call goes on", file=sys.stderr)
        raise SystemExit(128 + getattr(stopped, "signal_number", signal.SIGINT)) from None
