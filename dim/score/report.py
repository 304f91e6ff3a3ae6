"""Tables for the terminal, and one self-contained HTML page per run."""

import base64
import contextlib
import io
import json
import warnings
from collections.abc import Sequence
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
from dim.run_folder import read_metrics, read_run
from dim.score.coverage import CoverageScore, Nearest
from dim.score.record import Score, arithmetic_note
from dim.text import for_html, for_plot, for_rich


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
    print_table(title, _COLUMNS, rows(scores), ("source", "track", "student", "labels"), console)
    print_note(arithmetic_note(scores), console)


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
    """What `--json` writes."""
    return {"kind": "scores", "scores": [score.to_dict() for score in scores]}


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
        InputError: if the folder is no run.
    """
    run = Path(run)
    description = read_run(run, None)
    samples = sorted((run / "samples").glob("step-*.png"))
    metrics = read_metrics(run)
    step = metrics[-1]["step"] if metrics else None
    kept = _keep(run, step, scores, coverage, nearest)
    sections = []
    if "scores" in kept:
        rows_kept = [Score.from_dict(row) for row in kept["scores"]["rows"]]
        sections.append(("Scores", _score_table(rows_kept) + _stale(kept["scores"]["step"], step)))
    if samples:
        save_png(run / "samples" / "real.png", real_grid(data))
        pictures = _figure(samples[-1], "synthetic: the first images of every class") + _figure(
            run / "samples" / "real.png", "real: random training images"
        )
        sections.append(("Samples", f'<div class="pair">{pictures}</div>'))
    names = list(dict.fromkeys(key for record in metrics for key in record if key not in _NO_CURVE))
    measured = [name for name in METRICS if name in names]
    parts = [_coverage_part(run, kept["coverage"], step)] if "coverage" in kept else []
    if measured:
        parts.append(html_image(_curves(metrics, measured), "coverage over training"))
    if parts:
        sections.append(("Coverage", "\n".join(parts)))
    if losses := [name for name in names if name not in METRICS]:
        sections.append(("Training", html_image(_curves(metrics, losses), "loss curves")))
    for title, key in (("Configuration", "config"), ("Versions and hardware", "versions")):
        content = description[key] if key == "config" else {**description["versions"], **description["hardware"]}
        sections.append((title, f"<pre>{for_html(json.dumps(content, indent=2))}</pre>"))
    title = f"{description['spec']['name']}: {description['config']['about']['title'] or run.name}"
    body = "\n".join(f"<h2>{for_html(name)}</h2>\n{content}" for name, content in sections)
    write_bytes(run / "report.html", html_page(title, body).encode())
    return run / "report.html"


def real_grid(data: RealData, *, per_class: int = 10, max_classes: int = 20, seed: int = 0) -> Image.Image:
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


def _stale(measured: int | None, step: int | None) -> str:
    return "" if measured == step else f"<p>Measured at step {for_html(measured)}; the run is now at step {for_html(step)}.</p>"


def _score_table(scores: Sequence[Score]) -> str:
    note = "Accuracy of the last epoch, mean and sample standard deviation over n seeds."
    return f"{html_table(_COLUMNS, rows(scores))}<p>{note} {for_html(arithmetic_note(scores))}</p>"


def html_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table; what is in the cells is escaped."""
    head = "".join(f"<th>{for_html(column)}</th>" for column in columns)
    lines = ["".join(f"<td>{for_html(cell)}</td>" for cell in row) for row in cells]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _coverage_part(run: Path, kept: dict[str, Any], step: int | None) -> str:
    """The tables, and the nearest real images if they were looked for."""
    scores = [CoverageScore.from_dict(row) for row in kept["rows"]]
    classes = [(row["class"], f"{row['images']:,}", *_metric_cells(row)) for row in scores[0].per_class]
    parts = [
        f"<p>{for_html(_coverage_title(scores[0]))}.</p>",
        html_table(_COVERAGE_COLUMNS, coverage_rows(scores)),
        f"<details><summary>By class</summary>{html_table(('class', *_COVERAGE_COLUMNS[1:-1]), classes)}</details>",
        _stale(kept["step"], step),
    ]
    if "nearest" in kept:
        caption = (
            "two images per class, the first and the one nearest to a real one; beside each its nearest training images: of "
        )
        panel = _figure(run / "samples" / "nearest.png", f"{caption}its class, of any")
        part = 100 * kept["nearest"]["nearer_than_1_percent"]
        note = f"{part:.1f} % of the images are nearer to a training image than 99 % of held-out real ones (without copies: 1 %)"
        curve = _captioned(_distance_curves(kept["nearest"]), "distances", note)
        parts.append(f'<div class="pair">{panel}{curve}</div>')
    return "\n".join(parts)


def _distance_curves(nearest: dict[str, Any]) -> bytes:
    """A PNG with the distributions of distances to the nearest training image."""
    from matplotlib.figure import Figure  # no global state, no display

    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("generated", "synthetic"), ("held_out", "real, held out")):
        axes.plot(nearest[key], range(101), label=label)
    axes.set_xlabel("distance to the nearest training image")
    axes.set_ylabel("% of images below")
    axes.legend()
    return figure_png(figure)


# What the records hold beside curves.
_NO_CURVE = {"step", "stage", "seconds", "expert", "moment"}


def _curves(metrics: list[dict[str, Any]], names: Sequence[str]) -> bytes:
    """A PNG with one small plot per recorded value."""
    from matplotlib.figure import Figure  # no global state, no display

    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.2 * lines), layout="constrained")
    for position, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, position + 1)
        points = [(record["step"], record[name]) for record in metrics if name in record]
        axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set_title(for_plot(name), fontsize=9)
        axes.tick_params(labelsize=7)
    return figure_png(figure)


def figure_png(figure: Any) -> bytes:
    """A matplotlib figure as PNG. Letters that its font lacks are boxes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def html_image(content: bytes, text: str) -> str:
    """A PNG inside the page, with the text that stands for it."""
    return f'<img src="{_data_url(content)}" alt="{for_html(text)}">'


def _figure(path: Path, caption: str) -> str:
    return _captioned(path.read_bytes(), caption, caption)


def _captioned(content: bytes, text: str, caption: str) -> str:
    return f"<figure>{html_image(content, text)}<figcaption>{for_html(caption)}</figcaption></figure>"


def html_page(title: str, body: str) -> str:
    """A page that needs no other file: the title, which is escaped, and the body, which is not."""
    return _PAGE.format(title=for_html(title), body=body)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }}
td:first-child, th:first-child {{ text-align: left; }}
.pair {{ display: flex; gap: 1rem; flex-wrap: wrap; }}
figure {{ margin: 0; }} img {{ max-width: 100%; }} figcaption {{ color: #555; }}
pre {{ background: #f6f6f6; padding: 1rem; overflow: auto; max-height: 24rem; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""
