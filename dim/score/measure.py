"""Rows for sets, generators and controls: which a table needs, and the measurement of those that nobody measured before."""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.features.coreset import End, methods_with, row_name, rule_of
from dim.launch import say_once
from dim.nets.generator import Generator
from dim.sampler import identity, sample_set
from dim.score.controls import FULL_CONTROL, ORACLE_CONTROL, require_controls
from dim.score.evaluate import Evaluator
from dim.score.record import (
    FULL,
    ORACLE,
    Score,
    Track,
    label_kind,
    label_kind_of,
    production_seconds,
    protocol_differences,
    protocol_of,
)
from dim.teacher import Teacher, with_soft_labels


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A row that the table needs, for every student."""

    name: str
    key: str
    """Digest of what is scored; the name of a control."""
    track: Track
    ipc: int | None
    measure: Callable[[], list[Score]]
    labels: str = "hard"
    steps: int | None = None
    """None: whatever follows from the IPC."""
    stored: SyntheticSet | None = None
    """The set, if it is one that goes by the name."""


def score_all(
    evaluator: Evaluator,
    subjects: Mapping[str, SyntheticSet | Generator],
    *,
    ipc: Sequence[int] = (10,),
    tracks: Sequence[str] = ("stream",),
    controls: Sequence[str] = (),
    end: End | None = None,
    teacher: Teacher | None = None,
    known: Sequence[Score] = (),
) -> list[Score]:
    """Rows of sets, generators and controls, in this order.

    Args:
        evaluator: the data, the protocol and the seeds.
        subjects: by the name of their rows. A set gives its fixed row; a generator one row for each track and size.
        ipc: for generators: images per class.
        tracks: for generators: `stream`, `fixed` (a set drawn on the spot, with seed 0), or both.
        controls: coresets at the IPCs of the fixed rows, `oracle` at the budgets of the stream rows, `full`.
        end: of the coresets that have one.
        teacher: labels what generators make; controls are then shown with hard labels, and again with the same soft ones.
        known: rows that were measured before. What is among them, under the same protocol and with these seeds, is not
            measured again; controls are made for their IPCs too.

    Returns:
        The new rows.

    Raises:
        InputError: for an unknown control, an IPC below 1, a class with too few real images, or an end that no control has;
            before anything is trained.
    """
    for size in ipc:
        if size < 1:
            raise InputError(f"ipc is {size}: expected 1 or more images per class")
    coresets = _coresets(controls, end)
    sets = {name: subject for name, subject in subjects.items() if isinstance(subject, SyntheticSet)}
    generators = {name: subject for name, subject in subjects.items() if name not in sets}
    sizes = _sizes(known, sets, ipc, tracks if generators else ())
    _tell_left_out(coresets, ORACLE_CONTROL in controls, sizes)
    for size, (method, first) in itertools.product(sizes["fixed"], coresets.items()):
        evaluator.require_coreset(size, method, first)
    budgets = sizes["stream"] if ORACLE_CONTROL in controls else []
    evaluator.expect(_longest(evaluator, sets.values(), sizes, full=FULL_CONTROL in controls))
    rows: list[Score] = []
    # Lazily: a generator's set is drawn when its turn comes.
    for wanted in itertools.chain(
        _of_sets(evaluator, sets),
        _of_generators(evaluator, generators, ipc, tracks, teacher),
        _of_controls(evaluator, coresets, sizes["fixed"], budgets, teacher),
    ):
        rows += _new_rows(wanted, evaluator, [*known, *rows])
    if FULL_CONTROL in controls:
        steps = evaluator.full_steps(max(score.steps for score in [*known, *rows]))
        measure = partial(evaluator.full, steps)
        wanted = _Wanted(name=FULL, key=FULL, track="full", ipc=None, measure=measure, steps=steps)
        rows += _new_rows(wanted, evaluator, [*known, *rows])
    return rows


def _coresets(controls: Sequence[str], end: End | None) -> dict[str, End | None]:
    """The rules among the controls, each with the end that it is to take."""
    require_controls(controls)
    rules = {name: rule_of(name)[1] for name in controls if name not in (ORACLE_CONTROL, FULL_CONTROL)}
    if end is not None and not any(rule.has_end for rule in rules.values()):
        suited = methods_with(lambda kind: kind.has_end)
        raise InputError(f"coreset-end is {end!r}: it is for --controls {suited}; add one of them")
    return {name: end if rule.has_end else None for name, rule in rules.items()}


def _tell_left_out(coresets: Collection[str], oracle: bool, sizes: Mapping[str, Sequence[int]]) -> None:
    """Say which controls are left out, as they belong to no row of the table."""
    if coresets and not sizes["fixed"]:
        what = f"{' and '.join(coresets)}: there is no set of equally many images per class"
        say_once(f"dim: controls are left out, {what}; a generator has one with --track fixed")
    if oracle and not sizes["stream"]:
        what = f"{ORACLE_CONTROL}: there is no stream"
        say_once(f"dim: controls are left out, {what}; a generator has one with --track stream")


def _sizes(
    known: Sequence[Score], sets: Mapping[str, SyntheticSet], ipc: Sequence[int], tracks: Sequence[str]
) -> dict[str, list[int]]:
    """The IPCs of the rows of each track, for which controls are made."""
    sizes = {track: [score.ipc for score in known if score.track == track and score.ipc] for track in ("fixed", "stream")}
    sizes["fixed"] += [subject.ipc for subject in sets.values() if subject.ipc is not None]
    for track in tracks:
        sizes[track] += ipc
    return sizes


def _longest(evaluator: Evaluator, sets: Iterable[SyntheticSet], sizes: Mapping[str, Sequence[int]], *, full: bool) -> int:
    """Steps of the longest row of a table, by which all are computed alike."""
    images = [ipc * evaluator.data.spec.num_classes for ipc in itertools.chain(*sizes.values())]
    images += [len(subject.labels) for subject in sets]
    longest = max(map(evaluator.protocol.steps, images), default=0)
    return evaluator.full_steps(longest) if full else longest


def _of_sets(evaluator: Evaluator, sets: Mapping[str, SyntheticSet]) -> Iterator[_Wanted]:
    for name, subject in sets.items():
        measure = partial(evaluator.fixed, subject, name)
        about = {"ipc": subject.ipc, "labels": label_kind_of(subject), "stored": subject}
        yield _Wanted(name=name, key=identity(subject), track="fixed", measure=measure, **about)


def _of_generators(
    evaluator: Evaluator,
    generators: Mapping[str, Generator],
    ipc: Sequence[int],
    tracks: Sequence[str],
    teacher: Teacher | None,
) -> Iterator[_Wanted]:
    for (name, generator), size in itertools.product(generators.items(), ipc):
        about = {"name": name, "ipc": size, "labels": label_kind(teacher)}
        if "stream" in tracks:
            measure = partial(evaluator.stream, generator, size, name, teacher=teacher)
            yield _Wanted(key=identity(generator), track="stream", measure=measure, **about)
        if "fixed" in tracks:
            drawn = sample_set(generator, ipc=size)
            drawn = drawn if teacher is None else with_soft_labels(drawn, teacher)
            yield _Wanted(key=identity(drawn), track="fixed", measure=partial(evaluator.fixed, drawn, name), **about)


def _of_controls(
    evaluator: Evaluator,
    coresets: Mapping[str, End | None],
    sizes: Sequence[int],
    budgets: Sequence[int],
    teacher: Teacher | None,
) -> Iterator[_Wanted]:
    """Coresets of these sizes and real streams at these budgets: with hard labels, and again with the teacher's."""
    for given in (None,) if teacher is None else (None, teacher):
        kind = label_kind(given)
        for (method, end), size in itertools.product(coresets.items(), dict.fromkeys(sizes)):
            measure, name = partial(evaluator.coreset, size, method, end=end, teacher=given), row_name(method, end)
            yield _Wanted(name=name, key=name, track="fixed", ipc=size, measure=measure, labels=kind)
        for size in dict.fromkeys(budgets):
            measure = partial(evaluator.oracle, size, teacher=given)
            yield _Wanted(name=ORACLE, key=ORACLE, track="stream", ipc=size, measure=measure, labels=kind)


def _new_rows(wanted: _Wanted, evaluator: Evaluator, known: Sequence[Score]) -> list[Score]:
    """What the table lacks: rows that are measured, or known ones by another name."""
    found = _found(wanted, evaluator, known)
    if found is None:
        return wanted.measure()
    if wanted.name in {score.name for score in found}:
        return []
    # The same images by another name: a folder, and the run it came from.
    return [_renamed(score, wanted.name, wanted.stored) for score in found]


def _renamed(score: Score, name: str, stored: SyntheticSet | None) -> Score:
    """A row for the same images by another name, with the bytes and seconds of the set that goes by it."""
    if stored is None:
        return dataclasses.replace(score, name=name)
    made = {**score.made, "seconds": production_seconds(stored)}
    return dataclasses.replace(score, name=name, bytes=stored.bytes_stored(), made=made)


def _found(wanted: _Wanted, evaluator: Evaluator, known: Sequence[Score]) -> list[Score] | None:
    """For every student its row of this kind under the evaluator's protocol, with at least its seeds; None if one is missing."""
    found: dict[str, Score] = {}
    for score in known:
        if (
            score.labels == wanted.labels
            and (score.made.get("digest", score.name), score.track, score.ipc) == (wanted.key, wanted.track, wanted.ipc)
            and (score.split, score.data.get("fingerprint")) == (evaluator.split, evaluator.data.spec.fingerprint)
            and score.data.get("scored") in (None, evaluator.data.digest(evaluator.split))
            and wanted.steps in (None, score.steps)
            and set(evaluator.seeds) <= set(score.seeds)
            and score.student in evaluator.protocol.students
            and not protocol_differences(protocol_of(score), evaluator.protocol_for(score.student))
        ):
            found.setdefault(score.student, score)
    students = evaluator.protocol.students
    return [found[student] for student in students] if found.keys() >= set(students) else None
