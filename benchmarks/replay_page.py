"""The tables of `replay.py`, written from its rows between markers into docs/replay.md; a row that was not run says so."""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar10_page import NOT_RUN, interval, table
from common import ROOT
from replay_scale import Scale

from dim.io import read_json, write_bytes

PAGE = "docs/replay.md"
_MARKED = re.compile(r"(<!-- rendered: ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
TITLES = {
    "joint": "no tasks: all images at once",
    "none": "no memory",
    "random": "random real images, 8 bits",
    "random-webp": "random real images, WebP",
    "reservoir": "reservoir of real images, 8 bits",
    "herding": "herded real images, 8 bits",
    "herding-webp": "herded real images, WebP",
    "generated": "generator per task, 8 bits",
    "generated-webp": "generator per task, WebP",
    "refined": "generator per task, refined, 8 bits",
    "refined-webp": "generator per task, refined, WebP",
}
WITHIN = ("random", "generated", "refined")
"""Whose images are also scored on the classes of their own task."""

Row = dict[str, Any]


def rows_of(results: Path, pattern: str) -> list[Row]:
    """Rows that lie there, by the number of their order or division."""
    return [read_json(path)["rows"][0] for path in sorted(results.glob(f"{pattern}-[0-9].json"))]


def tasks(results: Path, scale: Scale) -> str:
    """A line for each memory: accuracies after the last task and over tasks, and what the memory holds in the end."""
    lines = []
    for kind, title in TITLES.items():
        rows = rows_of(results, f"tasks-{kind}")
        cells = [_mean(rows, key) for key in ("final", "mean_over_tasks", "memory_alone")]
        held = [row["held"][-1] for row in rows if "held" in row]
        images = f"{statistics.fmean(one['images'] for one in held):.0f}" if held else ""
        size = f"{max(one['bytes'] for one in held):,}" if held else ""
        lines.append([title, *(cells if rows else [NOT_RUN] * 3), images, size])
    columns = ["memory", "after the last task", "mean over tasks", "memory alone", "images", "bytes"]
    return table(columns, lines)


def _mean(rows: Sequence[Row], key: str) -> str:
    values = [row[key] for row in rows if key in row]
    return interval(values) if values else ""


def clients(results: Path, scale: Scale) -> str:
    """A line for each way to send: accuracy, and the bytes of all clients together."""
    lines = []
    for kind in ("random", "random-webp", "generated", "generated-webp"):
        for size in scale.kilobytes:
            rows = rows_of(results, f"clients-{kind}-{size}kB")
            sent = f"{statistics.fmean(row['sent'] for row in rows) / 1000:,.0f}" if rows else ""
            lines.append(
                [f"{TITLES[kind].replace('per task', 'per client')}, {size} kB each", sent, _mean(rows, "accuracy") or NOT_RUN]
            )
    rows = rows_of(results, "clients-fedavg")
    for number in [each for each in (1, 2, 5, 10, 20) if each <= scale.rounds]:
        found = [row["after_round"][number - 1] for row in rows]
        sent = f"{statistics.fmean(one['sent'] for one in found) / 1000:,.0f}" if found else ""
        lines.append([f"FedAvg, {number} round{'s' if number > 1 else ''}", sent, _mean(found, "accuracy") or NOT_RUN])
    return table(["sent", "kB from all clients", "accuracy"], lines, facts=2)


def within(results: Path, scale: Scale) -> str:
    """A line for each source of a task's images: accuracy on its own classes."""
    lines = []
    for kind in WITHIN:
        rows = rows_of(results, f"within-{kind}")
        lines.append([TITLES[kind].removesuffix(", 8 bits"), _mean(rows, "accuracy") or NOT_RUN])
    return table(["images of a task", "accuracy on its two classes"], lines)


TABLES = {"replay-tasks": tasks, "replay-within": within, "replay-clients": clients}


def rendered(text: str, results: Path, scale: Scale) -> str:
    """A page with its tables from these rows."""
    return _MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]](results, scale).rstrip()}\n{found[3]}", text)


def render(results: Path, root: Path, scale: Scale) -> Path:
    """Write the tables into the page, below `root`."""
    path = root / PAGE
    text = path if path.is_file() else ROOT / PAGE
    write_bytes(path, rendered(text.read_text(), results, scale).encode())
    return path
