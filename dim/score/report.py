"""Tables for the terminal, and one self-contained HTML page per run."""

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from dim.data.real import RealData
from dim.errors import InputError
from dim.features.distances import METRICS
from dim.io import read_document, reading, write_document
from dim.outputs import write_bytes
from dim.pictures import grid, save_png
from dim.run_folder import KINDS, RUN, read_metrics, read_run, what_is_read
from dim.score.coverage import CoverageScore, Nearest
from dim.score.page import (
    captioned,
    curves,
    distance_curves,
    html_details,
    html_image,
    html_list,
    html_page,
    html_table,
    picture,
)
from dim.score.privacy import AUDIT_NOTE, COLUMNS, COPY_COLUMNS, AuditResult, audit_cells, copy_cells, found_audit
from dim.score.record import ORACLE, Score, arithmetic_note, is_control
from dim.score.recovery import NOTE, recovery, recovery_columns
from dim.text import for_html, for_rich

# What the records hold beside curves.
_NO_CURVE = {"step", "stage", "seconds", "expert", "moment"}
_CLASSES = 20  # that are shown in pictures


def format_bytes(count: int) -> str:
    """1234567 -> '1.23 MB' (decimal units)."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def format_accuracy(score: Score) -> str:
    """'93.1 ± 0.4', or a bare mean for one seed; if students diverged, how many and from which step."""
    if score.mean is None:
        steps = [step for step in score.diverged if step is not None]
        return f"{len(steps)} of {len(score.seeds)} diverged (step {min(steps)})"
    return f"{score.mean:.1f}" if score.std is None else f"{score.mean:.1f} ± {score.std:.1f}"


_COLUMNS = (
    *("source", "track", "IPC", "student", "labels", "accuracy %", "n"),
    *("steps", "images seen", "distinct", "stored", "seconds"),
)


def rows(scores: Sequence[Score]) -> list[tuple[str, ...]]:
    """Cells of the score table, in the order of the columns."""
    return [
        (
            score.name,
            score.track,
            "-" if score.ipc is None else str(score.ipc),
            score.student,
            score.labels,
            format_accuracy(score),
            str(len(score.accuracies)),
            f"{score.steps:,}",
            f"{score.images_seen:,}",
            f"{score.distinct_images:,}",
            format_bytes(sum(score.bytes.values())),
            f"{score.seconds:.1f}",
        )
        for score in scores
    ]


def print_scores(scores: Sequence[Score], console: Console | None = None) -> None:
    """Print the score table. Every row says its track, labels, steps and bytes; accuracies are of the last epoch."""
    first = scores[0]
    title = f"{first.data['name']}: {first.split} accuracy, last epoch, mean ± std over n seeds"
    more, cells = recovery_columns(scores)
    lines = [(*line, *own) for line, own in zip(rows(scores), cells, strict=True)]
    print_table(title, (*_COLUMNS, *more), lines, ("source", "track", "student", "labels"), console)
    print_note(f"{arithmetic_note(scores)}{f' {NOTE}' if more else ''}", console)


def print_table(
    title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], left: Sequence[str], console: Console | None = None
) -> None:
    """Print a table; what is in it is text and no markup. The columns named in `left` are aligned there, others right."""
    table = Table(title=for_rich(title))
    for column in columns:
        table.add_column(for_rich(column), justify="left" if column in left else "right")
    for line in cells:
        table.add_row(*map(for_rich, line))
    (console or _console()).print(table)


def print_note(text: str, console: Console | None = None) -> None:
    """Print a line below tables, as text."""
    (console or _console()).print(for_rich(text))


def _console() -> Console:
    return Console(width=None if Console().is_terminal else 160)


def scores_to_json(scores: Sequence[Score]) -> dict[str, Any]:
    """What `--json` writes; rows have what `dim.score.recovery` says of them."""
    found = recovery(scores)
    return {"kind": "scores", "scores": [score.to_dict() | own for score, own in zip(scores, found, strict=True)]}


_COVERAGE_COLUMNS = ("source", "images", "FID", "precision", "recall", "density", "coverage", "coverage to expect")


def coverage_rows(scores: Sequence[CoverageScore]) -> list[tuple[str, ...]]:
    """Cells of the coverage table, in the order of the columns."""
    return [
        (score.name, f"{score.images:,}", *_metric_cells(score.metrics), f"{score.expected['coverage']:.3f}") for score in scores
    ]


def _metric_cells(values: dict[str, Any]) -> list[str]:
    return ["-" if values[name] is None else f"{values[name]:.3f}" for name in METRICS]


def _coverage_title(score: CoverageScore) -> str:
    accuracy, split = score.features["accuracy"], score.features["split"]
    trained = "" if accuracy is None else f", {accuracy:.1f} % right on its {split} images"
    return f"{score.data['name']}: coverage of the training images, in features of {score.features['name']}{trained}"


def print_coverage(scores: Sequence[CoverageScore], console: Console | None = None) -> None:
    """Print the coverage table. Every row says its images; the title says the features."""
    print_table(_coverage_title(scores[0]), _COVERAGE_COLUMNS, coverage_rows(scores), ("source",), console)


def coverage_to_json(scores: Sequence[CoverageScore]) -> dict[str, Any]:
    """What `dim coverage --json` writes."""
    return {"kind": "coverage", "scores": [score.to_dict() for score in scores]}


def print_audit(result: AuditResult, console: Console | None = None) -> None:
    """Print the tables of an audit, and what they say."""
    left, name = ("attack on", "attack", "references", "images"), f"{result.data['name']}: what {result.name} reveals"
    print_table(f"{name} of {result.data['train_images']:,} images", COLUMNS, audit_cells(result.rows), left, console)
    if result.controls:
        print_table("Controls: students on real images", COLUMNS, audit_cells(result.controls), left, console)
    print_table("Copies", COPY_COLUMNS, copy_cells(result.copies), COPY_COLUMNS[:1], console)
    for line in (*result.findings(), AUDIT_NOTE):
        print_note(line, console)


def write_report(
    run: Path | str,
    data: RealData,
    scores: Sequence[Score] = (),
    *,
    coverage: Sequence[CoverageScore] = (),
    nearest: Nearest | None = None,
) -> Path:
    """Write `report.html` into a run folder: scores, samples beside real images, coverage, curves, and the configuration.

    Scores and coverage are kept in the run's `report.json`, so that a later report without them still shows the last ones.

    Args:
        run: the folder.
        data: the real data.
        scores: rows of the score table.
        coverage: rows of the coverage table, the run's own first.
        nearest: the run's images and their nearest real ones, with `coverage`.

    Raises:
        InputError: if the folder is no run, or one of other data.
    """
    run = Path(run)
    description = read_run(run, None)
    if description["spec"]["fingerprint"] != data.spec.fingerprint:
        made = f"{run} was made from other data ({description['spec']['name']!r}, {description['spec']['fingerprint']})"
        raise InputError(f"{made}: expected these for its page, and not {data.spec.name!r} ({data.spec.fingerprint})")
    metrics = read_metrics(run)
    step = metrics[-1]["step"] if metrics else None
    kept = _keep(run, step, scores, coverage, nearest)
    audit = found_audit(run)
    rows_kept = [Score.from_dict(row) for row in kept["scores"]["rows"]] if "scores" in kept else []
    with reading(run / RUN):
        head = _head(run, description, metrics)
    findings = [*score_findings(rows_kept), *_coverage_findings(kept), *(audit.findings() if audit else ())]
    sections = [("", head + html_list(findings))]
    if rows_kept:
        sections.append(("Scores", _score_table(rows_kept) + _accuracy(rows_kept) + _stale(kept["scores"]["step"], step)))
    sections += _samples(run, data)
    names = list(dict.fromkeys(key for record in metrics for key in record if key not in _NO_CURVE))
    names = [name for name in names if sum(name in record for record in metrics) > 1]  # of one point there is no curve
    measured = [name for name in METRICS if name in names]
    parts = [_coverage_part(run, kept["coverage"], step)] if "coverage" in kept else []
    if measured:
        parts.append(html_image(curves(metrics, measured), "coverage over training"))
    if parts:
        sections.append(("Coverage", "\n".join(parts)))
    if losses := [name for name in names if name not in METRICS]:
        sections.append(("Training", html_image(curves(metrics, losses), "loss curves")))
    sections += [("Privacy", _audit_part(audit) + _stale(audit.settings.get("step"), step))] if audit is not None else []
    sections.append(("Commands", _commands(run, description)))
    for title, content in (("Configuration", description["config"]), ("Versions and hardware", _surroundings(description))):
        sections.append((title, html_details("Show", f"<pre>{for_html(json.dumps(content, indent=2))}</pre>")))
    title = f"{description['spec']['name']}: {description['config']['about']['title'] or run.name}"
    body = "\n".join(f"<h2>{for_html(name)}</h2>\n{content}" if name else content for name, content in sections)
    write_bytes(run / "report.html", html_page(title, body).encode())
    return run / "report.html"


def _surroundings(description: Mapping[str, Any]) -> dict[str, Any]:
    return {**description["versions"], **description["hardware"]}


def _head(run: Path, description: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    """What was made, of what, in which time, in two lines."""
    made = {"run": "a generator", "distillation": "a distilled set", "experts": "experts"}[description["kind"]]
    results = [run / name for name in ("generator.safetensors", "set.json", "experts.json") if (run / name).is_file()]
    words = [f"{made} in {run.name}"]
    if metrics:
        words.append(f"{metrics[-1]['step']:,} steps")
        if "seconds" in metrics[-1]:
            words.append(f"{metrics[-1]['seconds'] / 60:.1f} minutes on {description['hardware'].get('device', 'one device')}")
    if results and results[0].suffix == ".safetensors":
        words.append(format_bytes(results[0].stat().st_size))
    if results:
        words.append(time.strftime("%d %B %Y", time.localtime(results[0].stat().st_mtime)))
    lines = [what_is_read(description), ", ".join(words)]
    return "".join(f'<p class="quiet">{for_html(line)}</p>' for line in lines if line)


def score_findings(scores: Sequence[Score]) -> list[str]:
    """What rows say beside their controls, in sentences: sets beside random real images, streams beside real data."""
    found = []
    controls = {(row.name, row.ipc, row.student, row.labels): row for row in scores if row.mean is not None}
    for row in scores:
        if row.mean is None or row.ipc is None or is_control(row):
            continue
        random = controls.get(("random real", row.ipc, row.student, row.labels))
        oracle = controls.get((ORACLE, row.ipc, row.student, row.labels))
        many = f"{row.ipc} image{'s' if row.ipc > 1 else ''} per class"
        if row.track == "fixed" and random is not None:
            words = f"{row.name} trains {row.student} to {row.mean:.1f} %, as many random real images to {random.mean:.1f} %"
            found.append(f"At {many}, {words}: {row.mean - random.mean:+.1f} points.")
        elif row.track == "stream" and oracle is not None:
            words = f"{100 * row.mean / oracle.mean:.0f} % of the accuracy that real images give in as many steps"
            found.append(f"The stream of {row.name} gives {row.student} {words} (those of {many}).")
    return found


def _coverage_findings(kept: Mapping[str, Any]) -> list[str]:
    """Which class is covered worst, and whether there are copies."""
    if "coverage" not in kept:
        return []
    found = []
    first = CoverageScore.from_dict(kept["coverage"]["rows"][0])
    classes = [row for row in first.per_class if row["coverage"] is not None]
    if classes:
        worst = min(classes, key=lambda row: row["coverage"])
        whole = first.metrics["coverage"]
        found.append(f"Least covered is class {worst['class']}: {worst['coverage']:.2f}, over all classes {whole:.2f}.")
    if "nearest" in kept["coverage"]:
        part = 100 * kept["coverage"]["nearest"]["nearer_than_1_percent"]
        verdict = "look for copies among the nearest images below" if part > 2 else "no sign of copies"
        nearer = f"{part:.1f} % of the images are nearer to a training image than 99 % of held-out real ones"
        found.append(f"{nearer} (to expect: 1 %): {verdict}.")
    return found


def _accuracy(scores: Sequence[Score]) -> str:
    """Accuracy against size, where there are several sizes."""
    from dim.score.compare import Comparison

    if len({score.ipc for score in scores if score.ipc is not None}) < 2:
        return ""
    with contextlib.suppress(InputError):  # rows of an earlier version do not say their protocol
        return html_image(Comparison(scores).picture(), "accuracy against images per class and against stored bytes")
    return ""


def _samples(run: Path, data: RealData) -> list[tuple[str, str]]:
    """Images of the result beside real ones, and of earlier steps."""
    pictures = sorted((run / "samples").glob("step-*.png"))
    if not pictures:
        return []
    save_png(run / "samples" / "real.png", real_grid(data))
    names = data.spec.class_names[:_CLASSES]
    pair = picture(pictures[-1], "synthetic: the first images of every class", names)
    pair += picture(run / "samples" / "real.png", "real: random training images", names)
    earlier = [pictures[round(part * (len(pictures) - 1) / 4)] for part in range(4)] if len(pictures) > 4 else pictures[:-1]
    shown = "".join(picture(path, f"step {int(path.stem.removeprefix('step-')):,}") for path in earlier)
    more = html_details("Over training", f'<div class="pair">{shown}</div>') if shown else ""
    return [("Samples", f'<div class="pair">{pair}</div>{more}')]


def _commands(run: Path, description: Mapping[str, Any]) -> str:
    """What was run, and what can be run next."""
    command = KINDS[description["kind"]]
    lines = [f"dim {command} --out {run} --resume    # goes on with this run, by its own configuration"]
    if description["kind"] == "run":
        lines += [f"dim sample {run} --ipc 10 --out sets/{run.name}-10", f"dim coverage {run}"]
        lines += [f"dim evaluate sets/{run.name}-10 {run} --track stream --ipc 10 --controls random oracle"]
    elif description["kind"] == "distillation":
        lines += [f"dim evaluate {run} --controls random"]
    return f"<pre>{for_html(chr(10).join(lines))}</pre>"


def real_grid(data: RealData, *, per_class: int = 10, max_classes: int = _CLASSES, seed: int = 0) -> Image.Image:
    """Random real training images in the layout of a sample grid: one row per class."""
    classes = min(data.spec.num_classes, max_classes)
    chosen = []
    for label in range(classes):
        members = (data.train.labels == label).nonzero().squeeze(1)
        order = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed))[:per_class]
        images = data.train.batch(members[order])[0].cpu()
        blank = torch.ones(per_class - len(images), *images.shape[1:])
        chosen.append(torch.cat((images, blank)))
    return grid(torch.stack(chosen))


def _keep(
    run: Path, step: int | None, scores: Sequence[Score], coverage: Sequence[CoverageScore], nearest: Nearest | None
) -> dict[str, Any]:
    """What the report shows of later commands, by section, with the step of training that it was measured at."""
    path = run / "report.json"
    kept: dict[str, Any] = {"kind": "report"}
    with contextlib.suppress(InputError), reading(path):  # damaged, or none: what was measured is shown when measured again
        found = read_document(path)
        for section, kind in (("scores", Score), ("coverage", CoverageScore)):
            for row in found.get(section, {"rows": [], "step": None})["rows"]:
                kind.from_dict(row)
        kept |= {section: {"step": None, **found[section]} for section in ("scores", "coverage") if section in found}
    if scores:
        kept["scores"] = {"step": step, "rows": [score.to_dict() for score in scores]}
    if coverage:
        kept["coverage"] = {"step": step, "rows": [score.to_dict() for score in coverage]}
        if nearest is not None:
            kept["coverage"]["nearest"] = nearest.to_dict()
            save_png(run / "samples" / "nearest.png", nearest.panel())
    if scores or coverage:
        write_document(path, kept)
    return kept


def _audit_part(audit: AuditResult) -> str:
    """The tables of an audit."""
    tables = [html_table(COLUMNS, audit_cells(audit.rows))]
    tables += [html_details("Controls: students on real images", html_table(COLUMNS, audit_cells(audit.controls)))]
    tables += [html_table(COPY_COLUMNS, copy_cells(audit.copies)), f"<p>{for_html(AUDIT_NOTE)}</p>"]
    return "\n".join(tables)


def _stale(measured: int | None, step: int | None) -> str:
    return "" if measured == step else f"<p>Measured at step {for_html(measured)}; the run is now at step {for_html(step)}.</p>"


def _score_table(scores: Sequence[Score]) -> str:
    note = "Accuracy of the last epoch, mean and sample standard deviation over n seeds."
    return f"{html_table(_COLUMNS, rows(scores))}<p>{note} {for_html(arithmetic_note(scores))}</p>"


def _coverage_part(run: Path, kept: dict[str, Any], step: int | None) -> str:
    """The tables, and the nearest real images if they were looked for."""
    scores = [CoverageScore.from_dict(row) for row in kept["rows"]]
    classes = [(row["class"], f"{row['images']:,}", *_metric_cells(row)) for row in scores[0].per_class]
    parts = [
        f"<p>{for_html(_coverage_title(scores[0]))}.</p>",
        html_table(_COVERAGE_COLUMNS, coverage_rows(scores)),
        html_details("By class", html_table(("class", *_COVERAGE_COLUMNS[1:-1]), classes)),
        _stale(kept["step"], step),
    ]
    if "nearest" in kept:
        caption = (
            "two images per class, the first and the one nearest to a real one; beside each its nearest training images: of "
        )
        panel = picture(run / "samples" / "nearest.png", f"{caption}its class, of any")
        part = 100 * kept["nearest"]["nearer_than_1_percent"]
        note = f"{part:.1f} % of the images are nearer to a training image than 99 % of held-out real ones (without copies: 1 %)"
        curve = captioned(html_image(distance_curves(kept["nearest"]), "distances"), note)
        parts.append(f'<div class="pair">{panel}{curve}</div>')
    return "\n".join(parts)
