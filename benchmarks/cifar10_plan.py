"""What is in the tables of `cifar10.py`: productions and cells, what each is made from, how long it takes, and what comes first.

Hours are of one core of the machine that `docs/speed.md` describes, from the figures there; they decide what is begun in a
budget, and are no measurement. A cell's priority is the sum of what its subject, its student, its size and its labels weigh; a
production has that of the first cell that needs it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from cifar10_cells import Cell, CoverageCell, Task
from cifar10_productions import PUBLISHED, Continued, Distilled, Experts, Production, Refined, Run, StageOne, Whole
from cifar10_subjects import TEACHER, AtProtocol, Coded, Coreset, Drawn, Learned, OneRandomSet, Oracle, Stream, Subject

from dim.errors import InputError, nearest

SUITES = ("stream", "fixed", "architectures", "storage", "matching", "coverage")
SIZES = (1, 10, 50)
GENERATORS = (0, 1)
"""Seeds of the two generators."""
REPEATS = (1, 2, 3)
"""Further seeds of stage two, for the question of matching; the first one is that of the generator."""
METHODS = ("mtt", "tesla", "datm", "mct")
VARIANTS = ("longer", "matched", "published")


# --- productions -------------------------------------------------------------------------------------------------------------


@functools.cache
def productions() -> dict[str, Production]:
    """All, by name."""
    return {one.name: one for one in [*_generators(), *_experts(), *_distilled()]}


def _generators() -> Iterable[Production]:
    for seed in GENERATORS:
        name = f"gan-s{seed}"
        whole = Whole(name=name, hours=0.4, needs=(f"{name}-first",), seed=seed)
        yield StageOne(name=f"{name}-first", hours=4.0, seed=seed, of=whole)
        yield whole
        yield Continued(name=f"{name}-longer", hours=0.5, needs=(f"{name}-first",), seed=seed)
        yield Refined(name=f"{name}-refined", hours=2.0, needs=(name, TEACHER))
    yield Continued(name="gan-s0-published", hours=0.6, needs=("gan-s0-first",), variant="published")
    for variant, repeat in itertools.product(VARIANTS, REPEATS):
        hours = 0.6 if variant == "published" else 0.5
        seed = 100 + repeat  # other draws than those of any generator
        name = f"gan-s0-{variant}-{repeat}"
        yield Continued(name=name, hours=hours, needs=("gan-s0-first",), seed=seed, variant=variant)
    yield Run(name="dim2023", hours=4.5, recipe=PUBLISHED)
    yield Run(name="diffusion", hours=4.5, recipe="cifar10-diffusion-cpu")


def _experts() -> Iterable[Production]:
    # The teacher, as in docs/trajectory.md: momentum and weight decay, moments a fifth of an epoch apart.
    teacher: dict[str, Any] = {"count": 2, "epochs": 20.0, "every": 0.2, "momentum": 0.9, "weight_decay": 5e-4}
    teacher["augment"] = "crop|flip|cutout|scale"
    yield Experts(name=TEACHER, hours=0.9, recipe="cifar10-tesla-ipc1-cpu", changes=teacher)
    # MCT's window reaches furthest, and MTT's lies in it.
    yield Experts(name="experts-sgd-zca", hours=1.4, recipe="cifar10-mct-ipc1-cpu")
    yield Experts(name="experts-sgd", hours=0.9, recipe="cifar10-tesla-ipc1-cpu")
    yield Experts(name="experts-gsam-zca", hours=1.4, recipe="cifar10-datm-ipc1-cpu")


STORES = {"mtt": "experts-sgd-zca", "tesla": "experts-sgd", "datm": "experts-gsam-zca", "mct": "experts-sgd-zca"}
TEN = {"most_hours": 2.0}
# Windows of ten images per class, as far as the experts were recorded: published are starts below 20 (MTT), below 10 growing to
# 20 (DATM), below 8 with a span of 15 (MCT). TESLA's settings for ten images are not known to us: MTT's, with its formula.
_TEN_CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "mtt": {"trajectory": {"max_start": 9.0, "precision": "bf16"}},
    "tesla": {"trajectory": {"max_start": 5.0, "gradient": "frozen", "precision": "bf16"}},
    "datm": {"trajectory": {"max_start": 4.0, "max_start_at_first": None, "grows_for": 0, "precision": "bf16"}},
    "mct": {"trajectory": {"max_start": 4.0, "epochs": 6.0, "precision": "bf16"}},
}


def _distilled() -> Iterable[Production]:
    # Seconds of an iteration and published iterations, or what two hours allow.
    hours = {"mtt": 2.5, "tesla": 2.0, "datm": 2.0, "mct": 2.0}
    for method in METHODS:
        most = {} if method == "mtt" else {"most_hours": hours[method]}
        needs = (STORES[method],)
        yield Distilled(name=f"{method}-ipc1", hours=hours[method], needs=needs, recipe=f"cifar10-{method}-ipc1-cpu", **most)
        recipe = f"cifar10-{'mtt' if method == 'tesla' else method}-ipc10"
        changes = _TEN_CHANGES[method]
        yield Distilled(name=f"{method}-ipc10", hours=2.0, needs=needs, recipe=recipe, changes=changes, **TEN)


# --- subjects ----------------------------------------------------------------------------------------------------------------

_GAN_DRAW, _TEACHER_LABEL = 0.001, 0.005  # seconds an image


def streams() -> dict[str, tuple[Subject, float]]:
    """Subjects of the stream track by key, with what they weigh."""
    found: dict[str, tuple[Subject, float]] = {"oracle": (Oracle(key="oracle"), 0.0)}

    def add(key: str, production: str, weight: float, draw: float = _GAN_DRAW, **sampler: Any) -> None:
        found[key] = Stream(key=key, needs=(production,), draw_seconds=draw, sampler=sampler), weight

    for seed in GENERATORS:
        for kind, weight in (("", 1.0), ("-first", 1.0), ("-longer", 2.0), ("-refined", 1.5)):
            add(f"gan-s{seed}{kind}", f"gan-s{seed}{kind}", weight + 2.5 * seed)
    add("dim2023", "dim2023", 2.0, 0.006)
    add("diffusion-1", "diffusion", 3.5, 0.004, steps=1)
    add("diffusion-4", "diffusion", 4.0, 0.016, steps=4)
    return found


def repeats() -> dict[str, tuple[Subject, float]]:
    """Stage two of one generator with other seeds, and with the published matching."""
    names = ["gan-s0-published", *(f"gan-s0-{variant}-{repeat}" for repeat in REPEATS for variant in VARIANTS)]
    return {name: (Stream(key=name, needs=(name,), draw_seconds=_GAN_DRAW), 4.0) for name in names}


def sets() -> dict[str, tuple[Subject, float]]:
    """Subjects of the fixed track that come in every size."""
    found: dict[str, tuple[Subject, float]] = {
        "random-real": (Coreset(key="random-real", method="random", over="sets"), 0.0),
        "random-real-one-set": (OneRandomSet(key="random-real-one-set"), 3.0),
        "herding": (Coreset(key="herding", method="herding"), 0.5),
    }
    for seed in GENERATORS:
        name, later = f"gan-s{seed}", 2.5 * seed
        found[name] = Drawn(key=name, needs=(name,), over="sets"), 1.0 + later
        found[f"{name}-first"] = Drawn(key=f"{name}-first", needs=(f"{name}-first",), over="sets"), 1.5 + later
        found[f"{name}-chosen"] = Drawn(key=f"{name}-chosen", needs=(name,), policy=("matched",), over="sets"), 1.5 + later
        found[f"{name}-refined"] = Drawn(key=f"{name}-refined", needs=(f"{name}-refined",)), 1.0 + later
    found["gan-s0-one-set"] = Drawn(key="gan-s0-one-set", needs=("gan-s0",)), 3.0
    return found


def distilled(ipc: int) -> dict[str, tuple[Subject, float]]:
    """Distilled sets of a size, and random real images at their protocols."""
    later = 0.0 if ipc == 1 else 2.0
    found: dict[str, tuple[Subject, float]] = {
        method: (Learned(key=method, needs=(f"{method}-ipc{ipc}",)), 2.0 + later) for method in METHODS
    }
    for kind, method in (("whitened", "mtt"), ("plain", "tesla")):
        key, recipe = f"random-real-at-{kind}-protocol", f"cifar10-{method}-ipc1-cpu"
        found[key] = AtProtocol(key=key, recipe=recipe, over="sets"), 2.0 + later
    return found


def coded() -> dict[str, tuple[Subject, float]]:
    """Subjects of the storage suite that are not of the others."""
    return {
        "half-resolution": (Coded(key="half-resolution", over="sets"), 5.0),
        "webp": (Coded(key="webp", webp=20, over="sets"), 5.0),
    }


# --- cells -------------------------------------------------------------------------------------------------------------------

# Billions of operations of a training step, per image, and how many a core does in a second (docs/speed.md).
_GIGAFLOP = {"convnet": 0.30, "resnet18": 3.33, "vgg11": 0.92, "alexnet": 1.47, "vit": 1.04}
_PER_SECOND = {"convnet": 400.0, "resnet18": 385.0, "vgg11": 350.0, "alexnet": 350.0, "vit": 150.0}
_STUDENT_WEIGHT = {"convnet": 0.0, "resnet18": 3.0, "vgg11": 5.0, "alexnet": 5.0, "vit": 5.0}
_SIZE_WEIGHT = {1: 0.5, 10: 0.0, 50: 2.0}
_MORE = {"half-resolution": 4, "webp": 7}
"""Images that take the place of one."""


def hours_of(subject: Subject, track: str, ipc: int, student: str, labels: str, seeds: int) -> float:
    """Estimated hours of a cell."""
    images = 10 * ipc * _MORE.get(subject.key, 1)
    batch = 64 if track == "stream" else min(64, images)
    steps = 1000 * -(-images // 64)
    drawn = subject.draw_seconds + (_TEACHER_LABEL if labels == "soft" else 0.0) if track == "stream" else 0.0
    step = 0.006 + batch * (_GIGAFLOP[student] / _PER_SECOND[student] + 0.0001 + drawn)
    tested = 30 + 10_000 * _GIGAFLOP[student] / 3 / 100
    return seeds * (steps * step + tested) / 3600


def _cells(
    found: Mapping[str, tuple[Subject, float]],
    suites: tuple[str, ...],
    track: str,
    *,
    sizes: Iterable[int] = SIZES,
    students: Iterable[str] = ("convnet",),
    labels: Iterable[str] = ("hard", "soft"),
) -> Iterable[Cell]:
    for (key, (subject, weight)), ipc, student, kind in itertools.product(found.items(), sizes, students, labels):
        seeds = 5 if student == "convnet" else 3
        yield Cell(
            name=f"{track}-{key}-ipc{ipc}-{student}-{kind}",
            suites=suites,
            needs=tuple(dict.fromkeys((*subject.needs, *((TEACHER,) if kind == "soft" else ())))),
            productions=productions(),
            priority=weight + _STUDENT_WEIGHT[student] + _SIZE_WEIGHT[ipc] + (2.5 if kind == "soft" else 0.0),
            hours=hours_of(subject, track, ipc, student, kind, seeds),
            subject=subject,
            ipc=ipc,
            student=student,
            labels=kind,
            track=track,
            seeds=seeds,
        )


def tasks() -> dict[str, Task]:
    """All cells, by name; one that serves several suites is there once."""
    others = [name for name in _GIGAFLOP if name != "convnet"]
    hard = {"labels": ("hard",)}
    found = [
        *_cells(streams(), ("stream",), "stream", students=("convnet", "resnet18")),
        *_cells(sets(), ("fixed",), "fixed"),
        *(cell for ipc in (1, 10) for cell in _cells(distilled(ipc), ("fixed",), "fixed", sizes=(ipc,), **hard)),
        *_cells(streams(), ("architectures",), "stream", sizes=(10,), students=others, **hard),
        *_cells(sets() | distilled(10), ("architectures",), "fixed", sizes=(10,), students=others, **hard),
        *_cells(coded(), ("storage",), "fixed", **hard),
        *_cells(repeats(), ("matching",), "stream", sizes=(10,), **hard),
        *_coverage(),
    ]
    half = Stream(key="gan-s0-half", needs=("gan-s0",), draw_seconds=_GAN_DRAW, half=True), 5.0
    found += _cells({"gan-s0-half": half}, ("storage",), "stream", sizes=(50,), **hard)
    also = {f"fixed-{name}-ipc{ipc}-convnet-hard": "storage" for name in ("random-real", *METHODS) for ipc in SIZES}
    also |= {f"stream-{name}-ipc10-convnet-hard": "matching" for name in ("gan-s0", "gan-s0-longer")}
    by_name: dict[str, Task] = {}
    for task in found:
        earlier = by_name[task.name].suites if task.name in by_name else ()
        more = (also[task.name],) if task.name in also else ()
        by_name[task.name] = dataclasses.replace(task, suites=tuple(dict.fromkeys((*earlier, *task.suites, *more))))
    return by_name


def _coverage() -> Iterable[Task]:
    common = {"suites": ("coverage",), "productions": productions(), "hours": 0.1}
    yield CoverageCell(name="coverage-real-held-out", production=None, priority=1.0, **common)
    for key, (subject, weight) in streams().items():
        if isinstance(subject, Stream):
            (production,), sampler = subject.needs, subject.sampler
            about = {"needs": subject.needs, "priority": weight + 0.5, "production": production, "sampler": sampler}
            yield CoverageCell(name=f"coverage-{key}", **about, **common)


# --- order -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What is to be done: a production or a cell, and when."""

    item: Production | Task
    priority: float

    @property
    def name(self) -> str:
        """Of the item."""
        return self.item.name


def chosen(suite: str, only: Iterable[str]) -> list[Work]:
    """Productions and cells of a suite and of names that match one of some patterns, in their order.

    Raises:
        InputError: if there is no such suite, or no name matches a pattern.
    """
    if suite not in (*SUITES, "all"):
        raise InputError(f"unknown suite {suite!r}. {nearest(suite, (*SUITES, 'all'))}")
    made, cells = productions(), tasks()
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in (*made, *cells)):
            raise InputError(f"only is {pattern!r}: no production and no cell matches; --missing shows their names")
    cells = {name: task for name, task in cells.items() if suite in (*task.suites, "all")}
    weights: dict[str, float] = {}

    def weigh(name: str, priority: float) -> None:
        weights[name] = min(priority, weights.get(name, priority))
        for need in made[name].needs:
            weigh(need, priority - 0.01)

    for task in cells.values():
        for need in task.needs:
            weigh(need, task.priority - 0.01)
    items: dict[str, Production | Task] = {name: made[name] for name in weights} | cells
    wanted: dict[str, Production | Task] = {}

    def want(name: str) -> None:
        wanted[name] = items[name]
        for need in items[name].needs:
            want(need)

    for name in items:
        if not only or any(fnmatchcase(name, pattern) for pattern in only):
            want(name)
    work = [Work(item, weights.get(name, getattr(item, "priority", 0.0))) for name, item in wanted.items()]
    return sorted(work, key=lambda one: (one.priority, one.item.hours, one.name))
