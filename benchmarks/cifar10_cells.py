"""The cells of `cifar10.py`'s tables. A cell is made student by student, and each one is kept, so that little is lost when a call
ends.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cifar10_productions import Production
from cifar10_subjects import Bench, Subject
from common import Rows, save, scores_of

from dim.io import read_json, write_json
from dim.pictures import save_png
from dim.sampler import sample_grid
from dim.score.record import Score
from dim.teacher import Teacher

TEACHER = "experts"
"""The production that gives soft labels, and that refines."""
LONGEST = 5 * 8000
"""Steps of a long row, by which all students of the table are computed alike."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A row of the table."""

    name: str
    """And that of its file."""
    suites: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """Productions."""
    productions: Mapping[str, Production] = field(repr=False, compare=False)
    """By name."""
    priority: float = 0.0
    """Smaller ones come first."""
    hours: float
    """Of one core, estimated; without productions."""

    def result(self, bench: Bench) -> Path:
        """Its file."""
        return bench.results / f"{self.name}.json"

    def done(self, bench: Bench, *, remake: bool = False) -> bool:
        """Whether it is there; with `remake`, whether the present sources made it."""
        path = self.result(bench)
        if not path.is_file():
            return False
        (row,) = read_json(path)["rows"]
        return not remake or row["made"]["sources"] == bench.shop.sources.stamp()["sources"]

    def part_done(self, bench: Bench, *, remake: bool = False) -> float:
        """From 0 to 1."""
        return float(self.done(bench, remake=remake))

    def pieces(self, bench: Bench, *, remake: bool, limit: int | None) -> Iterator[tuple[float, Callable[[], None]]]:
        """What is to be done, one after another: the estimated hours of each, and what makes it."""
        raise NotImplementedError

    def _store(self, bench: Bench, content: dict[str, Any], seconds: float, *, scored: Sequence[str] = (), **facts: Any) -> None:
        rows = Rows(bench.shop.sources, bench.shop.device, {"split": bench.split, "scale": bench.shop.scale.name})
        took = {name: self.productions[name].seconds(bench.shop) for name in self.needs}
        made_from = {name: bench.shop.folder(name) for name in self.needs}
        facts = {"suites": list(self.suites), **facts}
        rows.put(self.name, {"production_seconds": took, **content}, seconds, scored=scored, made_from=made_from, **facts)
        save(self.name, {"split": bench.split, "rows": rows.made}, folder=bench.results)


@dataclass(frozen=True, kw_only=True)
class Cell(Task):
    """Accuracy of one architecture on one subject at one size."""

    subject: Subject
    ipc: int
    student: str
    labels: str
    track: str
    seeds: int
    """Students."""

    def teacher(self, bench: Bench) -> Teacher | None:
        """Who labels the images."""
        return bench.teacher if self.labels == "soft" else None

    def _wanted(self, bench: Bench) -> int:
        """Students that make the row."""
        return bench.shop.scale.seeds or self.seeds

    def _kept(self, bench: Bench) -> Path:
        return bench.shop.out / "cells" / f"{self.name}.json"

    def _students(self, bench: Bench, *, remake: bool) -> list[dict[str, Any]]:
        """Students that were scored; with `remake`, those of the present sources."""
        path = self._kept(bench)
        found = read_json(path) if path.is_file() else []
        now = bench.shop.sources.stamp()["sources"]
        return [one for one in found if not remake or one["made"]["sources"] == now]

    def part_done(self, bench: Bench, *, remake: bool = False) -> float:
        if self.done(bench, remake=remake):
            return 1.0
        return min(1.0, len(self._students(bench, remake=remake)) / self._wanted(bench))

    def pieces(self, bench: Bench, *, remake: bool, limit: int | None) -> Iterator[tuple[float, Callable[[], None]]]:
        have = {one["seed"] for one in self._students(bench, remake=remake)}
        wanted = self._wanted(bench)
        for seed in range(min(wanted, limit or wanted)):
            if seed not in have:
                yield self.hours / self.seeds, functools.partial(self._student, bench, seed, remake)
        if (limit or wanted) >= wanted:
            yield 0.0, functools.partial(self._finish, bench, remake)

    def _student(self, bench: Bench, seed: int, remake: bool) -> None:
        started = time.perf_counter()
        score = self.subject.score(bench, self, seed)
        one = {"seed": seed, "seconds": round(time.perf_counter() - started, 2), "score": score.to_dict()}
        students = [*self._students(bench, remake=remake), {**one, "made": bench.shop.sources.stamp()}]
        write_json(self._kept(bench), sorted(students, key=lambda one: one["seed"]))
        print(f"{self.name}, seed {seed}: {score.mean:.1f} in {one['seconds']:.0f} s", flush=True)

    def _finish(self, bench: Bench, remake: bool) -> None:
        students = self._students(bench, remake=remake)[: self._wanted(bench)]
        facts = {"subject": self.subject.key, "over": self.subject.over, "track": self.track, "ipc": self.ipc}
        facts |= {"student": self.student, "labels": self.labels}
        stamps = [{"seed": one["seed"], **one["made"]} for one in students]
        if any(one["made"] != students[0]["made"] for one in students) or students[0]["made"] != bench.shop.sources.stamp():
            facts["students_made"] = stamps
        scores = [Score.from_dict(one["score"]) for one in students]
        scored = list(dict.fromkeys(score.made["digest"] for score in scores if score.made.get("digest")))
        seconds = sum(one["seconds"] for one in students)
        self._store(bench, scores_of([merged(scores)]), seconds, scored=scored, **facts)
        self._kept(bench).unlink()


def merged(scores: Sequence[Score]) -> Score:
    """One score of several students; where they saw different sets, its `made` has the digest of none."""
    first, made = scores[0], dict(scores[0].made)
    if any(score.made.get("digest") != made.get("digest") for score in scores):
        made["digest"] = None
        made["digests"] = [score.made.get("digest") for score in scores]
    accuracies = tuple(value for score in scores for value in score.accuracies)
    seeds = tuple(seed for score in scores for seed in score.seeds)
    seconds = round(sum(score.seconds for score in scores), 2)
    return dataclasses.replace(first, accuracies=accuracies, seeds=seeds, seconds=seconds, made=made)


@dataclass(frozen=True, kw_only=True)
class CoverageCell(Task):
    """What a generator covers of the real data, with a grid of its images, and the nearest real ones of some."""

    production: str | None
    """None: the control, real images that were never trained on."""
    sampler: dict[str, Any] = field(default_factory=dict)

    def pieces(self, bench: Bench, *, remake: bool, limit: int | None) -> Iterator[tuple[float, Callable[[], None]]]:
        yield self.hours, functools.partial(self._make, bench)

    def _make(self, bench: Bench) -> None:
        started, content = time.perf_counter(), {}
        if self.production is None:
            content["coverage"] = bench.coverage.held_out().to_dict()
        else:
            generator = bench.generator(self.production, self.sampler)
            content["coverage"] = bench.coverage.score(generator, self.name).to_dict()
            nearest = bench.coverage.nearest(generator)
            content["nearest"] = nearest.to_dict()
            save_png(bench.results / f"{self.name}.png", sample_grid(generator))
            save_png(bench.results / f"{self.name}-nearest.png", nearest.panel())
        self._store(bench, content, time.perf_counter() - started)
