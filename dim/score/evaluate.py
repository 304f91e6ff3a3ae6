"""The evaluator: train fresh students on a set or a stream, many seeds, and report the last epoch's test accuracy.

Two tracks that are never mixed. *Fixed*: a stored set of exactly IPC images per class. *Stream*: fresh images at the step
budget that IPC stands for. All batches are full; `ProtocolConfig` says what that makes of `epochs`. Controls go through the same
code: random real images and coresets at the same IPC, real data at the same step budget (the oracle), and the full data.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dim import rng
from dim.config import ProtocolConfig, from_dict, to_dict
from dim.data.loader import GeneratedLoader
from dim.data.origin import real_data_of
from dim.data.real import RealData
from dim.data.synthetic import SyntheticSet
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.features.classifier import DivergedError, Feed, accuracy, train_student
from dim.features.coreset import End, Rule, Selector, row_name
from dim.nets.generator import Generator
from dim.nets.student import check_protocol
from dim.nets.student_step import StudentStep, settled
from dim.processes import ALONE, Processes
from dim.provenance import hardware, versions
from dim.sampler import identity, stored_bytes
from dim.score.feeds import of_real, of_stored
from dim.score.record import FULL, ORACLE, REAL, Score, Track, label_kind, label_kind_of, production_seconds
from dim.spec import require_same_data
from dim.teacher import Teacher


@dataclass(frozen=True)
class _Source:
    """What a row is made from: how to feed one seed, and the facts that the row states."""

    name: str
    track: Track
    ipc: int | None
    steps: int
    batch_size: int
    distinct: int
    bytes: dict[str, int]
    feed: Callable[[int], Feed]
    labels: str = "hard"
    lr: float | None = None
    """Learning rate that the images come with, in place of the protocol's."""
    made: dict[str, Any] = field(default_factory=dict)


class Evaluator:
    """Scores sets and generators of one data set under one protocol.

    Its methods make rows, one `Score` per student of the protocol. `ipc` is always images per class, 1 or more; `name` is that of
    the row; `teacher` gives the images soft labels in place of classes, if there is one. `InputError` is raised for a subject of
    other data, and for a budget or a selection that there is not.

    Args:
        data: the real data: its test part, and the training part for controls.
        protocol: how students are trained.
        seeds: how many (0, 1, ...), or which.
        device: where to train. Default: where the real images are.
        split: `test`, or `val` when something is to be chosen.
        report: called with every row when it is done.
        selector: chooses coresets. Default: `Selector(data)`, by features and scores with the default settings.
        processes: those that share the seeds; all of them get all rows.
        trained: called with the name, the seed and the prediction of every student, natural images (B, C, H, W) -> logits.

    Raises:
        InputError: for an unknown student or no seeds.
    """

    def __init__(
        self,
        data: RealData,
        protocol: ProtocolConfig,
        *,
        seeds: int | Iterable[int] = 3,
        device: torch.device | str = "cpu",
        split: Literal["test", "val"] = "test",
        report: Callable[[Score], None] = lambda score: None,
        selector: Selector | None = None,
        processes: Processes = ALONE,
        trained: Callable[[str, int, Callable[[Tensor], Tensor]], None] = lambda student, seed, predict: None,
    ) -> None:
        self.data, self.protocol, self.split, self.report, self._processes = data, protocol, split, report, processes
        self._trained = trained
        self.seeds = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
        if not self.seeds:
            raise InputError("no seeds: expected at least one")
        if len(data.val) == 0 and split == "val":
            raise InputError("the data has no validation part: expected data.val_fraction above 0")
        check_protocol(protocol, data.spec)
        self.device = torch.device(device)
        # What students see: the data itself, or its whitened form.
        self._whitening = Whitening.fit(data.train, data.spec, device=self.device) if protocol.zca else None
        self._seen = data if self._whitening is None else self._whitening.data(data)
        self._selector = selector or Selector(data)
        self._expected = 0

    # --- arithmetic ------------------------------------------------------------------------------------------------------

    def expect(self, steps: int) -> None:
        """Say how many `steps` the longest row of a table takes, so that all its rows are computed alike; see `protocol_for`."""
        self._expected = max(self._expected, steps * self.protocol.batch_size)

    def protocol_for(self, student: str, images: int = 0) -> ProtocolConfig:
        """The protocol of the rows of one `student`, with its arithmetic settled by the device and the number of `images` that a
        student sees, or those that `expect` announced if they are more."""
        protocol = dataclasses.replace(self.protocol, students=(student,))
        steps = len(self.seeds) * max(images, self._expected) // protocol.batch_size
        return settled(protocol, student, self._seen.spec, self.device, steps=steps, batch=protocol.batch_size)

    # --- rows ------------------------------------------------------------------------------------------------------------

    def fixed(self, subject: SyntheticSet, name: str = "set") -> list[Score]:
        """A stored set, `subject`, at its step budget: `epochs` passes over it, or more where it does not divide into batches. At
        its own learning rate if it carries one and the protocol allows it."""
        require_same_data(subject.spec, self.data.spec)
        targets, labels = subject.labels if subject.soft is None else subject.soft, label_kind_of(subject)
        source = self._stored_source(name, subject.images, lambda seed: targets, subject.ipc, subject.bytes_stored(), labels)
        made = {"method": subject.info.get("method"), "seconds": production_seconds(subject), "digest": identity(subject)}
        if self.protocol.learned_lr and subject.info.get("step_size") is not None:
            step_size = subject.info["step_size"]
            made |= {"step_size": step_size, "protocol_lr": self.protocol.lr}
            source = dataclasses.replace(source, lr=step_size)
        return self._score(dataclasses.replace(source, made=made))

    def stream(self, generator: Generator, ipc: int, name: str = "generator", *, teacher: Teacher | None = None) -> list[Score]:
        """Fresh images of a `generator` at the step budget of `ipc`; every seed gets its own stream."""
        require_same_data(generator.spec, self.data.spec)
        steps = self._budget(ipc)
        generator = generator.to(self.device)

        def feed(seed: int) -> Feed:
            stream_seed = rng.fold(seed, "evaluate-stream")
            relabel = None if teacher is None else teacher.labels
            batch = self.protocol.batch_size
            stream = {"batch_size": batch, "steps": steps, "seed": stream_seed, "rank": 0, "world": 1}
            loader = GeneratedLoader(generator, relabel=relabel, **stream)
            batches = iter(loader)
            return lambda step: next(batches)

        size = {"generator": stored_bytes(generator)} | ({} if teacher is None else {"teacher": teacher.bytes})
        batch, kind = self.protocol.batch_size, label_kind(teacher)
        made = {"method": "generator", "seconds": production_seconds(generator), "digest": identity(generator)}
        distinct = steps * batch
        if generator.anchors is not None and float(generator.spread) == 0:  # images repeat
            distinct = min(distinct, generator.anchors[..., 0].numel())
        return self._score(_Source(name, "stream", ipc, steps, batch, distinct, size, feed, kind, made=made))

    def random_real(self, ipc: int, name: str = "random real", *, teacher: Teacher | None = None) -> list[Score]:
        """Control: `ipc` random real images per class, other ones for every seed; with a teacher's labels if there is one."""
        return self.coreset(ipc, "random", name, teacher=teacher)

    def coreset(
        self,
        ipc: int,
        method: str | type[Rule],
        name: str | None = None,
        *,
        end: End | None = None,
        teacher: Teacher | None = None,
    ) -> list[Score]:
        """Control: `ipc` real images per class, chosen by a rule.

        Where the rule draws at random, every seed gets other images; otherwise all seeds get the same. Features and scores
        are made on the first call.

        Args:
            ipc: images per class.
            method: a name from `dim.features.coresets`, or a rule of your own.
            name: of the row. Default: the method, its end if it has one, and "real".
            end: for a rule that has one: see `dim.features.coreset.select`.
            teacher: labels the images.

        Raises:
            InputError: see `dim.features.coreset.select`.
        """
        self.require_coreset(ipc, method, end)
        spec = self.data.spec

        def choose() -> tuple[dict[str, Any], dict[int, Tensor]]:
            about, started = self._selector.about(method, end), time.perf_counter()
            chosen = {seed: self._selector.select(ipc, method, seed=seed, end=end) for seed in self.seeds}
            if about["seconds"] is not None:
                about["seconds"] = round(about["seconds"] + (time.perf_counter() - started) / len(chosen), 3)
            return about, chosen

        about, chosen = self._processes.once(choose)

        def images(seed: int) -> Tensor:
            return self.data.train.batch(chosen[seed])[0]

        def targets(seed: int) -> Tensor:
            return self.data.train.labels[chosen[seed]] if teacher is None else teacher.labels(images(seed))

        count = ipc * spec.num_classes
        size = {"images": count * spec.image_bytes, "labels": count * spec.label_bytes}
        if teacher is not None:
            size["labels"] = count * teacher.label_bytes
        kind = label_kind(teacher)
        name = name or row_name(method, end)
        source = self._stored_source(name, images, targets, ipc, size, kind, count)
        return self._score(dataclasses.replace(source, made=about))

    def require_coreset(self, ipc: int, method: str | type[Rule], end: End | None = None) -> None:
        """Raise InputError if `coreset` would with these `ipc`, `method` and `end`, before anything is trained."""
        self._selector.require(ipc, method, end)

    def oracle(self, ipc: int, name: str = ORACLE, *, teacher: Teacher | None = None) -> list[Score]:
        """Control: the real training part at the step budget of `ipc`; with a teacher's labels if there is one."""
        source = self._real_source(name, "stream", ipc, self._budget(ipc))
        if teacher is None:
            return self._score(source)

        def feed(seed: int) -> Feed:
            at = source.feed(seed)

            def labelled(step: int) -> tuple[Tensor, Tensor]:
                images, _ = at(step)
                return images, teacher.labels(images)

            return labelled

        size = {**source.bytes, "teacher": teacher.bytes}
        return self._score(dataclasses.replace(source, feed=feed, bytes=size, labels=label_kind(teacher)))

    def full(self, steps: int = 0, name: str = FULL) -> list[Score]:
        """Control: the real training part for `full_epochs` passes, or `steps` if the protocol leaves that open."""
        return self._score(self._real_source(name, "full", None, self.full_steps(steps)))

    def full_steps(self, steps: int = 0) -> int:
        """Steps of `full`; `steps` is the budget where the protocol has none.

        Raises:
            InputError: if neither the protocol nor the caller gives a budget.
        """
        if self.protocol.full_epochs:
            images = len(self.data.train)
            steps = math.ceil(self.protocol.full_epochs * images / min(self.protocol.batch_size, images))
        if steps < 1:
            raise InputError("the full-data control needs a budget: set protocol.full_epochs")
        return steps

    # --- sources ---------------------------------------------------------------------------------------------------------

    def _budget(self, ipc: int) -> int:
        if ipc < 1:
            raise InputError(f"ipc is {ipc}: expected 1 or more images per class")
        return self.protocol.steps(ipc * self.data.spec.num_classes)

    def _stored_source(
        self,
        name: str,
        images: Tensor | Callable[[int], Tensor],
        targets: Callable[[int], Tensor],
        ipc: int | None,
        size: dict[str, int],
        labels: str,
        count: int | None = None,
    ) -> _Source:
        count = len(images) if count is None else count
        batch = min(self.protocol.batch_size, count)

        def feed(seed: int) -> Feed:
            own = images(seed) if callable(images) else images
            return of_stored(own.to(self.device), targets(seed).to(self.device), batch)(steps, seed)

        steps = self.protocol.steps(count)
        return _Source(name, "fixed", ipc, steps, batch, count, size, feed, labels)

    def _real_source(self, name: str, track: Track, ipc: int | None, steps: int) -> _Source:
        train, spec, batch = self.data.train, self.data.spec, min(self.protocol.batch_size, len(self.data.train))

        def feed(seed: int) -> Feed:
            return of_real(train, batch, self.device)(steps, seed)

        size = {"images": len(train) * spec.image_bytes, "labels": len(train) * spec.label_bytes}
        return _Source(name, track, ipc, steps, batch, min(len(train), steps * batch), size, feed, made={"method": REAL})

    def _as_seen(self, feed: Feed) -> Feed:
        """A feed of natural images, as students see them."""
        if self._whitening is None:
            return feed

        def at(step: int) -> tuple[Tensor, Tensor]:
            images, targets = feed(step)
            return self._whitening.whiten(images), targets

        return at

    # --- training --------------------------------------------------------------------------------------------------------

    def _score(self, source: _Source) -> list[Score]:
        scores = []
        for student in self.protocol.students:
            started = time.perf_counter()
            found: dict[int, tuple[float | None, int | None]] = {}  # by seed, the accuracy, or the step at which it diverged
            protocol = self.protocol_for(student, source.steps * source.batch_size)
            protocol = dataclasses.replace(protocol, lr=source.lr or protocol.lr)
            for seed in self._processes.part(self.seeds):
                feed = self._as_seen(source.feed(seed))
                try:
                    net = train_student(student, feed, source.steps, protocol, self._seen, seed, self.device)
                except DivergedError as error:
                    found[seed] = None, error.step
                    continue
                judge = StudentStep(net, protocol.precision, protocol.compile)
                found[seed] = accuracy(judge.logits, getattr(self._seen, self.split), self.device, net=net), None
                whiten = self._whitening.whiten if self._whitening else lambda images: images
                self._trained(student, seed, lambda images, ask=judge.logits, seen=whiten: ask(seen(images)))
            for own in self._processes.gather(found):
                found |= own
            accuracies, diverged = zip(*(found[seed] for seed in self.seeds), strict=True)
            score = Score(
                name=source.name,
                track=source.track,
                ipc=source.ipc,
                student=student,
                labels=source.labels,
                accuracies=accuracies,
                seeds=self.seeds,
                steps=source.steps,
                batch_size=source.batch_size,
                images_seen=source.steps * source.batch_size,
                distinct_images=source.distinct,
                bytes=source.bytes,
                seconds=round(time.perf_counter() - started, 2),
                split=self.split,
                protocol=to_dict(protocol),
                made=source.made,
                data=self.data.about(self.split),
                hardware=hardware(self.device),
                versions=versions(),
                diverged=diverged if None in accuracies else (),
            )
            self.report(score)
            scores.append(score)
        return scores


def evaluate(
    subject: SyntheticSet | Generator,
    *,
    students: Sequence[str] | None = None,
    seeds: int | Iterable[int] = 3,
    ipc: int | None = None,
    data: RealData | None = None,
    root: str | None = None,
    protocol: ProtocolConfig | None = None,
    device: torch.device | str = "cpu",
    split: Literal["test", "val"] = "test",
) -> list[Score]:
    """Score a set (fixed track) or a generator (stream track).

    Args:
        subject: a `SyntheticSet`, or a generator, which then needs `ipc`.
        students: architectures. Default: the protocol's.
        seeds: how many, or which.
        ipc: stream track: the images per class that the step budget stands for.
        data: the real data. Default: what the subject says it was made from.
        root: where that lies, where `data` is not given. Default: where it was found before, or DIM_DATA_ROOT.
        protocol: how to train. Default: the one that travels with the subject.
        device, split: see `Evaluator`.

    Returns:
        One `Score` per student.

    Raises:
        InputError: if the subject does not say what it was made from and `data` is not given, or for a bad argument.
    """
    info = subject.info if isinstance(subject, SyntheticSet) else getattr(subject, "info", {})
    protocol = protocol or from_dict(ProtocolConfig, info.get("protocol") or {})
    if students is not None:
        protocol = dataclasses.replace(protocol, students=tuple(students))
    data = data or real_data_of(info, root, device, subject.spec)
    evaluator = Evaluator(data, protocol, seeds=seeds, device=device, split=split)
    if isinstance(subject, SyntheticSet):
        return evaluator.fixed(subject)
    if ipc is None:
        raise InputError("a generator is scored on the stream track: give ipc, the images per class of the step budget")
    return evaluator.stream(subject, ipc)
