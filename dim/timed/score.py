"""What a student reaches in so many seconds, on synthetic and on real images, each with the settings that suit it best.

The time is that of training: fetching or generating a batch, augmentation, the step. What is done once is not in it: starting,
compiling, making the set or the generator. A short training is timed and says how many steps the time has. The settings are then
chosen on the validation part, by one student each of that many steps; the best ones train fresh students, which are scored.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

from dim import rng
from dim.config import ProtocolConfig, to_dict
from dim.config.timed import OWN, PLAIN, TimedConfig
from dim.data.real import RealData, with_validation
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.features.classifier import DivergedError, accuracy, train_student
from dim.nets.generator import Generator
from dim.nets.student import check_protocol
from dim.nets.student_step import StudentStep, settled
from dim.provenance import hardware, versions
from dim.sampler import identity
from dim.score.feeds import Source, courses_of, of_generator, of_real, of_set
from dim.score.record import REAL, OfStudents, label_kind_of, production_seconds
from dim.spec import require_same_data

_WARM = 3  # steps before any is timed; of a compiled step, the first compiles


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Settings that are tried."""

    lr: float
    batch_size: int
    schedule: str
    augment: str
    course: str = OWN
    """See `TimedConfig.courses`."""


@dataclass(frozen=True, kw_only=True)
class TimedScore(OfStudents):
    """One row: what students of one architecture reach on one subject in a time."""

    name: str
    """Of the set or generator; `real data`."""
    kind: Literal["set", "generator", "real"]
    """What it is."""
    labels: str
    """`hard`, or `soft` with its teacher."""
    student: str
    """Architecture, with its options."""
    budget: float
    """Seconds of training that a student has."""
    seconds: tuple[float, ...]
    """That every student took."""
    accuracies: tuple[float | None, ...]
    """Accuracy in percent after the last step, one per seed; None of a student that diverged."""
    seeds: tuple[int, ...]
    """Of the students."""
    steps: int
    """SGD steps."""
    chosen: dict[str, Any]
    """The settings, fields of `Choice`."""
    tried: tuple[dict[str, Any], ...]
    """All that were tried, in turn: fields of `Choice`, the `steps` that they had, and `accuracy` on the validation part in
    percent, None if the student diverged."""
    split: str
    """Part of the real data that accuracies are of."""
    protocol: dict[str, Any]
    """How students were trained otherwise: fields of a `ProtocolConfig`."""
    data: dict[str, Any]
    """What `RealData.about` says."""
    made: dict[str, Any]
    """`digest` of the subject, and the `seconds` that making it took; None if that is not known."""
    hardware: dict[str, Any]
    """What `dim.provenance.hardware` says of the machine."""
    versions: dict[str, str]
    """Of Python and libraries."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, and mean, std and n."""
        return {**dataclasses.asdict(self), "mean": self.mean, "std": self.std, "n": len(self.accuracies)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TimedScore":
        """Inverse of `to_dict`.

        Raises:
            TypeError, ValueError: for a field that is missing or unknown, or lists that disagree.
        """
        values = {key: value for key, value in values.items() if key not in ("mean", "std", "n")}
        row = cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
        if not row.seeds or len(row.seeds) != len(row.accuracies):
            raise ValueError(f"{len(row.accuracies)} accuracies of {len(row.seeds)} seeds")
        return row


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What students are trained on."""

    name: str
    kind: Literal["set", "generator", "real"]
    source: Callable[[Choice], Source]
    labels: str = "hard"
    courses: tuple[str, ...] = (OWN,)
    stored: float = math.inf
    """Images, if they are stored: no batch is larger."""
    lr: float | None = None
    """A learning rate that came with it."""
    made: dict[str, Any] = field(default_factory=dict)


class TimedEvaluator:
    """Scores subjects of one data set by time.

    Args:
        data: the real data; settings are chosen on its validation part. Where it has none, a tenth of the training part is held
            out for that, and the real row trains on the rest.
        protocol: where the search begins, and what is not searched: students, momentum, weight decay, arithmetic.
        timed: what is tried.
        budgets: seconds of training.
        seeds: of the students that are scored.
        device: where to train.
        split: what they are scored on.
        note: called with a line for people as the search goes on.

    Raises:
        InputError: for a split that the data lacks, a protocol with whitening, or no budget above 0.
    """

    def __init__(
        self,
        data: RealData,
        protocol: ProtocolConfig,
        timed: TimedConfig,
        *,
        budgets: Sequence[float],
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
        split: Literal["test", "val"] = "test",
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        if len(data.val) == 0 and split == "val":
            raise InputError("split is 'val' and the data has no validation part: expected data.val_fraction above 0")
        if protocol.zca:
            raise InputError("protocol.zca is on: by time, students see images as they are; expected --protocol.no-zca")
        if not budgets or min(budgets) <= 0:
            raise InputError(f"student-seconds is {tuple(budgets)}: expected numbers above 0")
        check_protocol(protocol, data.spec)
        self.data, self.protocol, self.timed, self.split = with_validation(data, apart=True), protocol, timed, split
        self.budgets, self.seeds, self.device, self._note = tuple(budgets), tuple(seeds), torch.device(device), note
        if len(data.val) == 0:
            note("the data has no validation part: settings are chosen on a tenth of the training part, which is held out")
        self._settled: dict[str, ProtocolConfig] = {}
        self._per_step: dict[tuple[Any, ...], float] = {}

    def rows(self, subjects: Mapping[str, SyntheticSet | Generator]) -> list[Callable[[], TimedScore]]:
        """What measures each row, in the order of the table: the real training part and then every subject, budget by budget and
        student by student.

        Args:
            subjects: by name.

        Raises:
            InputError: for a subject of other data.
        """
        for subject in subjects.values():
            require_same_data(subject.spec, self.data.spec)
        every = [self._real(), *(self._subject(name, subject) for name, subject in subjects.items())]
        wanted = itertools.product(every, self.budgets, self.protocol.students)
        return [partial(self._row, subject, student, budget) for subject, budget, student in wanted]

    # --- subjects ------------------------------------------------------------------------------------------------------------

    def _real(self) -> _Subject:
        train = self.data.train
        source = lambda choice: of_real(train, choice.batch_size, self.device)  # noqa: E731
        return _Subject(name=REAL, kind="real", source=source, stored=len(train), made={"seconds": 0.0})

    def _subject(self, name: str, subject: SyntheticSet | Generator) -> _Subject:
        made = {"digest": identity(subject), "seconds": production_seconds(subject)}
        if isinstance(subject, SyntheticSet):
            return _Subject(
                name=name,
                kind="set",
                source=lambda choice: of_set(subject, choice.batch_size, self.device),
                labels=label_kind_of(subject),
                stored=len(subject.images),
                made=made,
                lr=subject.info.get("step_size") if self.protocol.learned_lr else None,
            )
        generator = subject.to(self.device)
        return _Subject(
            name=name,
            kind="generator",
            source=lambda choice: of_generator(generator, choice.batch_size, choice.course),
            courses=courses_of(generator, self.timed.courses),
            made=made,
        )

    # --- one row -------------------------------------------------------------------------------------------------------------

    def _row(self, subject: _Subject, student: str, budget: float) -> TimedScore:
        tried = self._search(subject, student, budget)
        chosen = max(tried, key=lambda choice: tried[choice][1])  # of equals the first
        steps = self._steps(subject, student, chosen, budget)
        found = [self._train(subject, student, chosen, steps, seed, self.split) for seed in self.seeds]
        return TimedScore(
            name=subject.name,
            kind=subject.kind,
            labels=subject.labels,
            student=student,
            budget=budget,
            seconds=tuple(round(seconds, 3) for _, seconds in found),
            accuracies=tuple(value for value, _ in found),
            seeds=self.seeds,
            steps=steps,
            chosen=dataclasses.asdict(chosen),
            tried=tuple(
                {**dataclasses.asdict(choice), "steps": count, "accuracy": None if value < 0 else value}
                for choice, (count, value) in tried.items()
            ),
            split=self.split,
            protocol=to_dict(self._protocol(student, chosen)),
            data=self.data.about(self.split),
            made=subject.made,
            hardware=hardware(self.device),
            versions=versions(),
        )

    def _search(self, subject: _Subject, student: str, budget: float) -> dict[Choice, tuple[int, float]]:
        """Try one kind of setting after another: their steps and accuracies on the validation part, in percent; -1 of a student
        that diverged."""
        protocol, timed = self.protocol, self.timed
        augments = {"protocol": (protocol.augment,), "none": ("",), "both": (protocol.augment, "")}[timed.augmentation]
        kinds: dict[str, Sequence[Any]] = {
            "lr": [(subject.lr or protocol.lr) * factor for factor in timed.lr_factors],
            "batch_size": [size for size in (protocol.batch_size, *timed.batch_sizes) if size <= subject.stored],
            "augment": tuple(dict.fromkeys(augments)),
            "course": subject.courses,
            "schedule": (protocol.schedule, *timed.schedules),
        }
        kinds["batch_size"] = kinds["batch_size"] or [int(subject.stored)]
        best = Choice(**{kind: values[0] for kind, values in kinds.items()})
        tried = {best: self._try(subject, student, best, budget)}
        for kind, values in kinds.items():
            start = best
            for other in (dataclasses.replace(start, **{kind: value}) for value in values):
                if other not in tried:
                    tried[other] = self._try(subject, student, other, budget)
                if tried[other][1] > tried[best][1]:
                    best = other
        return tried

    def _try(self, subject: _Subject, student: str, choice: Choice, budget: float) -> tuple[int, float]:
        steps = self._steps(subject, student, choice, budget)
        value, _ = self._train(subject, student, choice, steps, rng.fold(0, "timed-choice"), "val")
        settings = ", ".join(f"{key} {value!r}" for key, value in dataclasses.asdict(choice).items())
        result = "diverged" if value is None else f"{value:.1f} % of the validation part"
        self._note(f"{subject.name}, {budget:g} s, {student}: {settings}: {result}")
        return steps, -1.0 if value is None else round(value, 3)

    # --- training ------------------------------------------------------------------------------------------------------------

    def _protocol(self, student: str, choice: Choice) -> ProtocolConfig:
        """The protocol of a choice. Its arithmetic is that of the whole table, settled by the longest budget."""
        if student not in self._settled:
            protocol = dataclasses.replace(self.protocol, students=(student,))
            eager = dataclasses.replace(protocol, compile="off", precision="fp32")
            seconds = self._time(student, of_real(self.data.train, protocol.batch_size, self.device), eager)
            steps = round(max(self.budgets) * len(self.seeds) / seconds)
            self._settled[student] = settled(
                protocol, student, self.data.spec, self.device, steps=steps, batch=protocol.batch_size
            )
        own = {key: value for key, value in dataclasses.asdict(choice).items() if key != "course"}
        return dataclasses.replace(self._settled[student], **own)

    def _train(
        self, subject: _Subject, student: str, choice: Choice, steps: int, seed: int, split: str
    ) -> tuple[float | None, float]:
        """Accuracy in percent, None if the student diverged, and the seconds of its training."""
        protocol = self._protocol(student, choice)
        feed = subject.source(choice)(steps, seed)
        started = time.perf_counter()
        try:
            net = train_student(student, feed, steps, protocol, self.data, seed, self.device)
        except DivergedError:
            return None, time.perf_counter() - started
        seconds = time.perf_counter() - started
        judge = StudentStep(net, protocol.precision, protocol.compile)
        return accuracy(judge.logits, getattr(self.data, split), self.device, net=net), seconds

    def _steps(self, subject: _Subject, student: str, choice: Choice, budget: float) -> int:
        """Steps that a student takes in a time. What they cost is measured once for all choices that cost the same."""
        key = (subject.name, student, choice.batch_size, choice.augment, choice.course == PLAIN)
        if key not in self._per_step:
            self._per_step[key] = self._time(student, subject.source(choice), self._protocol(student, choice))
        return max(1, round(budget / self._per_step[key]))

    def _time(self, student: str, source: Source, protocol: ProtocolConfig) -> float:
        """Seconds per step of a training that takes about `probe_seconds`."""
        protocol = dataclasses.replace(protocol, lr=1e-6)  # it learns nothing, and so cannot diverge

        def train(steps: int) -> float:
            feed = source(steps, 0)
            started = time.perf_counter()
            train_student(student, feed, steps, protocol, self.data, 0, self.device)
            return time.perf_counter() - started

        train(_WARM)
        steps, seconds = _WARM, train(_WARM)
        while seconds < self.timed.probe_seconds:
            steps = max(2 * steps, round(1.1 * steps * self.timed.probe_seconds / max(seconds, 1e-6)))
            seconds = train(steps)
        return seconds / steps
