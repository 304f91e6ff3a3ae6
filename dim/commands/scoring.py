"""Commands that measure: `dim evaluate`, `dim compare`, `dim coverage`; and `dim report`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from dim.commands.arguments import ReportArguments
from dim.commands.pages import write_page
from dim.commands.parsing import parse, parse_known, subjects_first
from dim.commands.scoring_arguments import CompareArguments, CoverageArguments, EvaluateArguments
from dim.commands.subjects import data_of_subjects, device_of, load_subjects, root_of_runs, work_together
from dim.config import DataConfig, ProtocolConfig, from_dict
from dim.config.settings import require_default
from dim.errors import InputError
from dim.text import say, say_note


def evaluate(arguments: Sequence[str]) -> None:
    """`dim evaluate`."""
    arguments = subjects_first(arguments)
    first, _ = parse_known(EvaluateArguments, arguments, "evaluate")
    if not first.subjects:
        raise InputError("nothing to evaluate: name sets, runs or generators, before the options")

    from dim.io import write_document
    from dim.score.claims import claim, keep_claims
    from dim.score.compare import require_made_from
    from dim.score.evaluate import Evaluator
    from dim.score.measure import score_all
    from dim.score.report import print_scores, scores_to_json

    processes, device = work_together(first.device)
    subjects = load_subjects(first.subjects, device, first.sampler)
    info = next(iter(subjects.values())).info
    carried = from_dict(ProtocolConfig, info.get("protocol") or {})
    default = EvaluateArguments(subjects=tyro.MISSING, protocol=carried)
    parsed = parse(EvaluateArguments, arguments, "evaluate", default=default)
    _require_used(parsed)
    processes.once(lambda: (_require_targets(parsed, "json"), _require_claims(parsed, subjects)))
    data = processes.in_turn(lambda: data_of_subjects(subjects, parsed.data_root, device))
    if parsed.claim:  # which is of its own data, and verified on these
        require_made_from(subjects, data.spec)
    elif processes.main:
        _tell_other_data(subjects, data.spec)
    if parsed.student_seconds:
        return _evaluate_by_time(parsed, subjects, data, device, processes)
    teacher = parsed.teacher.load(data, device)
    kept = processes.once(lambda: _unfinished_scores(parsed, subjects, data, teacher))
    report = _telling(kept) if processes.main else lambda score: None
    settings = {"seeds": parsed.seeds, "device": device, "split": parsed.split, "processes": processes}
    evaluator = Evaluator(data, parsed.protocol, **settings, report=report)
    plan = {"ipc": parsed.ipc, "tracks": parsed.track, "controls": parsed.controls, "end": parsed.coreset_end, "teacher": teacher}
    scores = [*kept.rows, *score_all(evaluator, subjects, **plan, known=kept.rows)]
    if not processes.main:
        return
    print_scores(scores)
    if parsed.json:
        write_document(parsed.json, scores_to_json(scores))
    for name, subject in subjects.items() if parsed.claim else ():
        claim(subject, [score for score in scores if score.name == name])
        keep_claims(name, subject)
        say(f"{name} claims its scores  next: dim verify {name}")
    kept.remove()
    for name in subjects:
        if (Path(name) / "run.json").is_file():
            _say_page(name, data, scores)


def _evaluate_by_time(parsed: EvaluateArguments, subjects: Mapping[str, Any], data: Any, device: Any, processes: Any) -> None:
    """`dim evaluate --student-seconds`."""
    from dim.config import to_dict
    from dim.io import write_document
    from dim.timed.score import TimedEvaluator, TimedScore
    from dim.timed.table import print_timed

    if processes.world > 1:
        raise InputError(
            "student-seconds is for one process, as several would take each other's time: start it without a launcher"
        )
    plan = {"budgets": parsed.student_seconds, "seeds": tuple(range(parsed.seeds)), "device": device, "split": parsed.split}
    evaluator = TimedEvaluator(data, parsed.protocol, parsed.timed, **plan, note=lambda line: say_note(f"dim: {line}"))
    asked = {name: getattr(parsed, name) for name in ("student_seconds", "seeds", "split")}
    asked |= {"protocol": to_dict(parsed.protocol), "timed": to_dict(parsed.timed)}
    asked |= {part: data.digest(part) for part in ("val", parsed.split)}
    kept = _unfinished(parsed, subjects, data, TimedScore, 1, asked)
    rows = list(kept.rows)
    for measure in evaluator.rows(subjects)[len(rows) :]:
        rows.append(measure())
        kept.keep(rows[-1])
    print_timed(rows)
    if parsed.json:
        write_document(parsed.json, {"kind": "timed scores", "scores": [row.to_dict() for row in rows]})
    kept.remove()


def compare(arguments: Sequence[str]) -> None:
    """`dim compare`."""
    arguments = subjects_first(arguments)
    first, _ = parse_known(CompareArguments, arguments, "compare")
    if not first.subjects:
        raise InputError("nothing to compare: name sets, runs, generators or files of scores, before the options")

    from dim.io import write_document
    from dim.outputs import write_bytes
    from dim.score.compare import Comparison, require_made_from, require_one_data
    from dim.score.evaluate import Evaluator
    from dim.score.measure import score_all
    from dim.score.record import protocol_of, read_scores
    from dim.score.report import scores_to_json

    device = device_of(first.device)
    files = {name: read_scores(name) for name in first.subjects if name.endswith(".json")}
    subjects = load_subjects([name for name in first.subjects if name not in files], device, first.sampler)
    known = [score for rows in files.values() for score in rows]
    if first.subjects[0] in files:
        rows = files[first.subjects[0]]
        carried = dataclasses.replace(protocol_of(rows[0]), students=tuple(dict.fromkeys(score.student for score in rows)))
    else:
        carried = from_dict(ProtocolConfig, subjects[first.subjects[0]].info.get("protocol") or {})
    parsed = parse(CompareArguments, arguments, "compare", CompareArguments(subjects=tyro.MISSING, protocol=carried))
    _require_used(parsed)
    _require_targets(parsed, "json", "picture", "html")
    kept = None
    if subjects:
        data = data_of_subjects(subjects, parsed.data_root, device)
        require_made_from(subjects, data.spec)
        require_one_data(known, next(iter(subjects)), data, parsed.split)
        teacher = parsed.teacher.load(data, device)
        kept = _unfinished_scores(parsed, subjects, data, teacher, known)
        known += kept.rows
        evaluator = Evaluator(data, parsed.protocol, seeds=parsed.seeds, device=device, split=parsed.split, report=_telling(kept))
        plan = {"ipc": parsed.ipc, "tracks": parsed.track, "controls": parsed.controls, "end": parsed.coreset_end}
        known += score_all(evaluator, subjects, **plan, teacher=teacher, known=known)
    elif parsed.controls:
        raise InputError("controls need the real data: name a set or a run beside the files of scores, or leave --controls out")
    elif parsed.teacher.folder is not None:
        remedy = "name a set or a run beside the files of scores, or leave --teacher.folder out"
        raise InputError(f"a teacher labels what is scored, and files of scores hold what was: {remedy}")
    comparison = Comparison(known)
    comparison.show()
    if parsed.json:
        write_document(parsed.json, scores_to_json(comparison.scores))
    if parsed.picture:
        write_bytes(parsed.picture, comparison.picture())
    if parsed.html:
        write_bytes(parsed.html, comparison.page().encode())
    if kept is not None:
        kept.remove()


def coverage(arguments: Sequence[str]) -> None:
    """`dim coverage`."""
    parsed = parse(CoverageArguments, subjects_first(arguments), "coverage")
    if not parsed.subjects:
        raise InputError("nothing to measure: name sets, runs or generators, before the options")

    from dim.io import write_document
    from dim.pictures import save_png
    from dim.run_folder import RUN
    from dim.score.compare import require_made_from
    from dim.score.coverage import Coverage, CoverageScore
    from dim.score.report import coverage_to_json, print_coverage

    _require_targets(parsed, "json", "panel")
    device = device_of(parsed.device)
    subjects = load_subjects(parsed.subjects, device, parsed.sampler)
    data = data_of_subjects(subjects, parsed.data_root, device)
    require_made_from(subjects, data.spec)
    measure = Coverage(data, samples=parsed.samples, seed=parsed.seed, features=parsed.features)
    asked = {name: getattr(parsed, name) for name in ("samples", "seed")} | {"features": measure.features.to_dict()}
    asked |= {part: data.digest(part) for part in ("val", "test")}
    kept = _unfinished(parsed, subjects, data, CoverageScore, 1, asked)
    rows = list(kept.rows)
    for name in list(subjects)[len(rows) :]:
        rows.append(measure.score(subjects[name], name))
        kept.keep(rows[-1])
    like = {tuple(values["images"] for values in row.per_class): row for row in rows}
    rows += [measure.held_out(row) for row in like.values()]
    print_coverage(rows)
    if parsed.json:
        write_document(parsed.json, coverage_to_json(rows))
    kept.remove()
    for number, (name, subject) in enumerate(subjects.items()):
        is_run, wanted = (Path(name) / RUN).is_file(), parsed.panel and number == 0
        if not is_run and not wanted:
            continue
        nearest = measure.nearest(subject)
        if wanted:
            save_png(parsed.panel, nearest.panel())
        if is_run:
            own_first = [rows[number], *(row for row in rows if row is not rows[number])]
            _say_page(name, data, coverage=own_first, nearest=nearest)


def report(arguments: Sequence[str]) -> None:
    """`dim report`."""
    parsed = parse(ReportArguments, arguments, "report")

    from dim.data.origin import usual_root
    from dim.data.real import load_data
    from dim.io import reading
    from dim.run_folder import RUN, read_run
    from dim.score.report import write_report

    description = read_run(parsed.run, None)
    with reading(Path(parsed.run) / RUN):
        config = from_dict(DataConfig, description["config"]["data"])
        root = parsed.data_root or usual_root(config.dataset, description["spec"]["fingerprint"], root_of_runs([parsed.run]))
    say(f"report: {write_report(parsed.run, load_data(dataclasses.replace(config, root=root or config.root)))}")


def _tell_other_data(subjects: Mapping[str, Any], spec: Any) -> None:
    """Say which subjects are scored on data, those of the first one, that they were not made from."""
    first = next(iter(subjects))
    for name, subject in subjects.items():
        if name != first and subject.spec.fingerprint != spec.fingerprint:
            what = f"{name} was made from other training images, and is scored beside those of {first}"
            say_note(f"dim: {what}: if these are split otherwise, it may have seen some that score it")


def _require_used(parsed: EvaluateArguments | CompareArguments) -> None:
    """Refuse options that would change nothing."""
    if parsed.teacher.folder is None:
        require_default(parsed.teacher, "without --teacher.folder")


def _require_claims(parsed: EvaluateArguments, subjects: Mapping[str, Any]) -> None:
    """Refuse claims that could not be written, or that nobody could verify."""
    from dim.data.synthetic import SyntheticSet
    from dim.score.claims import require_claimable, require_hard

    for name, subject in subjects.items() if parsed.claim else ():
        require_claimable(name)
        if parsed.teacher.folder is not None and not isinstance(subject, SyntheticSet):
            require_hard(f"soft ({parsed.teacher.folder})")


def _require_targets(parsed: Any, *options: str) -> None:
    """Refuse places that cannot be written, before there is anything to write."""
    from dim.outputs import require_writable

    for option in options:
        if getattr(parsed, option) is not None:
            require_writable(getattr(parsed, option), option)


def _unfinished(parsed: Any, subjects: Mapping[str, Any], data: Any, kind: type, together: int, asked: Mapping[str, Any]) -> Any:
    """Rows that the same command had measured before it was killed: for the same subjects, data, and what else was `asked`."""
    from dim.sampler import identity
    from dim.score.unfinished import UnfinishedRows

    identities = {name: identity(subject) for name, subject in subjects.items()}
    return UnfinishedRows(parsed.json, {"subjects": identities, "data": data.spec.to_dict(), **asked}, kind, together)


def _unfinished_scores(parsed: Any, subjects: Mapping[str, Any], data: Any, teacher: Any, known: Sequence[Any] = ()) -> Any:
    """See `_unfinished`; `known` rows decide what is measured, too."""
    from dim.config import to_dict
    from dim.score.record import Score

    options = ("seeds", "split", "ipc", "track", "controls", "coreset_end")
    asked = {"known": [score.to_dict() for score in known], **{name: getattr(parsed, name) for name in options}}
    asked |= {"protocol": to_dict(parsed.protocol), "teacher": teacher and teacher.name, "scored": data.digest(parsed.split)}
    return _unfinished(parsed, subjects, data, Score, len(parsed.protocol.students), asked)


def _say_page(name: str, *measured: Any, **more: Any) -> None:
    page = write_page(name, *measured, **more)
    if page:
        say(page)


def _telling(kept: Any) -> Callable[[Any], None]:
    """A report of rows that keeps each and says on standard error that it is done."""
    from dim.score.report import format_accuracy

    def report(score: Any) -> None:
        kept.keep(score)
        ipc = "" if score.ipc is None else f" IPC {score.ipc}"
        text = f"{score.name}, {score.track}{ipc}, {score.student}: {format_accuracy(score)} ({score.seconds:.0f} s)"
        say_note(text)

    return report
