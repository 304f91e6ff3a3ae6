"""Tables for the terminal, and one self-contained HTML page per run."""

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from dim.data.real import RealData
from dim.evaluate import Score
from dim.grid import grid, save_png
from dim.io import write_bytes
from dim.run import read_metrics, read_run


def format_bytes(count: int) -> str:
    """1234567 -> '1.23 MB' (decimal units)."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def format_accuracy(score: Score) -> str:
    """'93.1 ± 0.4', or a bare mean for one seed."""
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
    console = console or Console(width=None if Console().is_terminal else 160)
    first = scores[0]
    table = Table(title=f"{first.data['name']}: {first.split} accuracy, last epoch, mean ± std over n seeds")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("source", "track", "student", "labels") else "right")
    for row in rows(scores):
        table.add_row(*row)
    console.print(table)


def scores_to_json(scores: Sequence[Score]) -> dict[str, Any]:
    """What `--json` writes."""
    return {"format": 1, "kind": "scores", "scores": [score.to_dict() for score in scores]}


def write_report(run: Path | str, data: RealData, scores: Sequence[Score] = ()) -> Path:
    """Write `report.html` into a run folder: scores, samples beside real images, loss curves, and the configuration.

    Raises:
        InputError: if the folder is no run.
    """
    run = Path(run)
    description = read_run(run, None)
    samples = sorted((run / "samples").glob("step-*.png"))
    sections = []
    if scores:
        sections.append(("Scores", _score_table(scores)))
    if samples:
        save_png(run / "samples" / "real.png", real_grid(data))
        pictures = _figure(samples[-1], "synthetic: the first images of every class") + _figure(
            run / "samples" / "real.png", "real: random training images"
        )
        sections.append(("Samples", f'<div class="pair">{pictures}</div>'))
    metrics = read_metrics(run)
    if metrics:
        sections.append(("Training", f'<img src="{_data_url(_curves(metrics))}" alt="loss curves">'))
    for title, key in (("Configuration", "config"), ("Versions and hardware", "versions")):
        content = description[key] if key == "config" else {**description["versions"], **description["hardware"]}
        sections.append((title, f"<pre>{html.escape(json.dumps(content, indent=2))}</pre>"))
    title = f"{description['spec']['name']}: {description['config']['about']['title'] or run.name}"
    body = "\n".join(f"<h2>{html.escape(name)}</h2>\n{content}" for name, content in sections)
    page = _PAGE.format(title=html.escape(title), body=body)
    write_bytes(run / "report.html", page.encode())
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


def _score_table(scores: Sequence[Score]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in _COLUMNS)
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows(scores)]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    note = "Accuracy of the last epoch, mean and sample standard deviation over n seeds."
    return f"<table><tr>{head}</tr>\n{body}</table><p>{note}</p>"


def _curves(metrics: list[dict[str, Any]]) -> bytes:
    """A PNG with one small plot per recorded value."""
    from matplotlib.figure import Figure  # no global state, no display

    skip = {"step", "stage", "seconds", "expert", "moment"}
    names = [name for name in dict.fromkeys(key for record in metrics for key in record) if name not in skip]
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.2 * lines), layout="constrained")
    for position, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, position + 1)
        points = [(record["step"], record[name]) for record in metrics if name in record]
        axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _figure(path: Path, caption: str) -> str:
    return f'<figure><img src="{_data_url(path.read_bytes())}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


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
