"""The tables of `cifar10.py`, written from its cells between markers into docs/cifar10.md and README.md.

What stands between `<!-- rendered: NAME -->` and `<!-- end -->` is replaced; all else is left as it is. A cell that was not run
says so. Published figures stand in a column of their own.
"""

import math
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar10_plan import GENERATORS, METHODS, REPEATS, SIZES, VARIANTS, productions, tasks
from cifar10_scale import STUDENTS
from common import ROOT

from dim.io import read_json, write_bytes
from dim.score.record import Score
from dim.score.report import format_accuracy, format_bytes

PAGES = ("docs/cifar10.md", "README.md")
NOT_RUN = "not run"
_MARKED = re.compile(r"(<!-- rendered: ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Row = dict[str, Any]
Rows = Mapping[str, Row]

# What subjects are called. `{}` stands for the seed of a generator; the rows of all seeds are one line.
STREAMS = {
    "oracle": "all real images (oracle)",
    "gan-s{}-first": "`gan`, end of stage one",
    "gan-s{}-longer": "`gan`, as long as the matched one, without matching",
    "gan-s{}": "`gan`, matched",
    "gan-s{}-refined": "`gan`, matched, around refined images",
    "dim2023": "`dim2023`",
    "diffusion-1": "`diffusion`, 1 step",
    "diffusion-4": "`diffusion`, 4 steps",
}
SETS = {
    "random-real": "random real images",
    "random-real-one-set": "random real images, one set",
    "herding": "real images chosen by herding",
    "gan-s{}-first": "`gan` without matching, drawn",
    "gan-s{}": "`gan`, drawn",
    "gan-s0-one-set": "`gan`, drawn, one set",
    "gan-s{}-chosen": "`gan`, chosen (`matched`)",
    "gan-s{}-refined": "`gan`, chosen and refined",
}
DISTILLED = {
    "random-real-at-whitened-protocol": "random real images at the protocol of MTT, DATM and MCT",
    "random-real-at-plain-protocol": "random real images at the protocol of TESLA",
    "mtt": "MTT",
    "tesla": "TESLA (`frozen`)",
    "datm": "DATM",
    "mct": "MCT",
}
CODED = {
    "random-real": "random real images, 8 bits",
    "half-resolution": "random real images, half resolution",
    "webp": "random real images, WebP",
    **{method: f"{DISTILLED[method]}, 8 bits" for method in METHODS},
}
NAMES = {"convnet": "ConvNet-3", "resnet18": "ResNet-18", "vgg11": "VGG-11", "alexnet": "AlexNet", "vit": "small ViT"}
# Test accuracies of papers, best of several looks at the test part: METHODS of the literature, see docs/cifar10.md.
PUBLISHED = {
    ("stream", "dim2023", "convnet"): "72.6 (IPC 10)",
    ("stream", "dim2023", "resnet18"): "75.1 (IPC 10)",
    ("fixed", "random-real", "convnet"): "15.4, 31.0, 50.6",
    ("fixed", "mtt", "convnet"): "46.2, 65.4",
    ("fixed", "tesla", "convnet"): "48.5, 66.4",
    ("fixed", "datm", "convnet"): "46.9, 66.8",
}
STORAGE_PUBLISHED = {"TM-RUO": "70.3, 77.5, 79.7", "SPEED": "63.2, 73.5, 77.7", "2-D Gaussians": "67.6, 75.5, 77.7"}


# --- figures -----------------------------------------------------------------------------------------------------------------


def score_of(row: Row) -> Score:
    """The score of a cell."""
    return Score.from_dict(row["scores"][0])


def _seeds_of(key: str) -> list[str]:
    return [key.format(seed) for seed in GENERATORS] if "{}" in key else [key]


def figure(rows: Rows, names: Sequence[str]) -> str:
    """Accuracy of a cell, or over the same cell of several generators: the mean of their means, the standard deviation among
    students of one generator, and apart from it that between generators."""
    scores = [score_of(rows[name]) for name in names if name in rows]
    if not scores:
        return NOT_RUN
    if len(names) == 1:
        return format_accuracy(scores[0])
    if len(scores) == 1:
        return f"{format_accuracy(scores[0])} (one generator)"
    means = [score.mean for score in scores]
    within = math.sqrt(statistics.fmean([(score.std or 0.0) ** 2 for score in scores]))
    return f"{statistics.fmean(means):.1f} ± {within:.1f} (generators ± {statistics.stdev(means):.1f})"


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % confidence interval by Student's t; the mean alone for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.2f} (n = 1)"
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.2f} [{mean - half:.2f}, {mean + half:.2f}] (n = {len(values)})"


def table(columns: Sequence[str], lines: Iterable[Sequence[str]], *, facts: int = 1) -> str:
    """As Markdown. Lines of which nothing was run, after `facts` columns that say what they are of, are named below the table."""
    shown, left = [], []
    for line in lines:
        (left if all(cell in ("", NOT_RUN) for cell in line[facts:]) else shown).append(line)
    head = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    parts = ["\n".join([*head, *(f"| {' | '.join(line)} |" for line in shown)])] if shown else []
    if left:
        parts.append(textwrap.fill(f"Not run: {'; '.join(line[0] for line in left)}.", 128, break_on_hyphens=False))
    return "\n\n".join(parts)


# --- tables ------------------------------------------------------------------------------------------------------------------


def by_size(
    rows: Rows, track: str, subjects: Mapping[str, str], student: str, sizes: Sequence[int], labels: Sequence[str]
) -> str:
    """A line for each subject, a column for each size and kind of labels, and what is published."""
    columns = [f"IPC {ipc}, {kind}" for ipc in sizes for kind in labels]
    lines = []
    for key, title in subjects.items():
        line = [
            figure(rows, [f"{track}-{own}-ipc{ipc}-{student}-{kind}" for own in _seeds_of(key)])
            for ipc in sizes
            for kind in labels
        ]
        lines.append([title, *line, PUBLISHED.get((track, key, student), "")])
    return table(["trained on", *columns, "published"], lines)


def architectures(rows: Rows) -> str:
    """IPC 10, hard labels: a column for each architecture."""
    lines = []
    for track, subjects in (("stream", STREAMS), ("fixed", {**SETS, **DISTILLED})):
        for key, title in subjects.items():
            names = [[f"{track}-{own}-ipc10-{student}-hard" for own in _seeds_of(key)] for student in STUDENTS]
            lines.append([f"{track}: {title}", *(figure(rows, each) for each in names)])
    return table(["trained on", *(NAMES[student] for student in STUDENTS)], lines)


def storage(rows: Rows) -> str:
    """Accuracy, images and bytes at the bytes of three sizes."""
    lines = []
    for key, title in CODED.items():
        lines.append([title, *(_stored(rows, f"fixed-{key}-ipc{ipc}-convnet-hard") for ipc in SIZES)])
    lines.append(["`gan`, weights in bfloat16 (stream)", "", "", _stored(rows, "stream-gan-s0-half-ipc50-convnet-hard")])
    lines += [[f"published: {name}", *values.split(", ")] for name, values in STORAGE_PUBLISHED.items()]
    return table(["what is stored", *(f"as IPC {ipc}" for ipc in SIZES)], lines)


def _stored(rows: Rows, name: str) -> str:
    if name not in tasks():
        return ""
    if name not in rows:
        return NOT_RUN
    score = score_of(rows[name])
    count = f", {score.distinct_images:,} images" if score.track == "fixed" else ""
    return f"{format_accuracy(score)} ({format_bytes(sum(score.bytes.values()))}{count})"


def matching(rows: Rows) -> str:
    """Every variant of stage two from one end of stage one: over its repetitions, and beside training without matching."""
    variants = {"longer": "without matching", "matched": "our matching", "published": "the published matching"}
    found = {name: _repeats(rows, name) for name in VARIANTS}
    lines = []
    for name, title in variants.items():
        own, base = found[name], found["longer"]
        both = [own[number] - base[number] for number in own if number in base]
        difference = "" if name == "longer" else interval(both) if both else NOT_RUN
        lines.append([title, interval(list(own.values())) if own else NOT_RUN, difference])
    return table(["stage two", "stream, IPC 10", "difference from without matching"], lines)


def _repeats(rows: Rows, variant: str) -> dict[int, float]:
    """Mean accuracy of every repetition of a variant; number 0 has the generator's own seed."""
    own = {0: "gan-s0" if variant == "matched" else f"gan-s0-{variant}"}
    own |= {repeat: f"gan-s0-{variant}-{repeat}" for repeat in REPEATS}
    names = {number: f"stream-{key}-ipc10-convnet-hard" for number, key in own.items()}
    return {number: score_of(rows[name]).mean for number, name in names.items() if name in rows}


def coverage(rows: Rows) -> str:
    """FID, precision, recall, density and coverage of every generator."""
    metrics = ("fid", "precision", "recall", "density", "coverage")
    lines = []
    for key, title in {"real-held-out": "real images, held out", **STREAMS}.items():
        for own in _seeds_of(key):
            name = f"coverage-{own}"
            if name not in tasks():
                continue
            seed = f", seed {own[5]}" if "{}" in key else ""
            values = rows[name]["coverage"]["metrics"] if name in rows else {}
            shown = [f"{values[metric]:.3f}" if metric in values else NOT_RUN for metric in metrics]
            nearer = rows.get(name, {}).get("nearest", {}).get("nearer_than_1_percent")
            copies = "" if key == "real-held-out" else NOT_RUN if nearer is None else f"{100 * nearer:.1f} %"
            lines.append([f"{title}{seed}", *shown, copies])
    return table(["", "FID", "precision", "recall", "density", "coverage", "nearer than 1 % of real images"], lines)


def took(rows: Rows) -> str:
    """Hours of every production, by its own clock."""
    seconds: dict[str, float] = {}
    for row in rows.values():
        seconds |= {name: value for name, value in row["production_seconds"].items() if value is not None}
    lines = [
        [f"`{name}`", ", ".join(f"`{need}`" for need in one.needs), f"{seconds[name] / 3600:.1f}" if name in seconds else NOT_RUN]
        for name, one in productions().items()
    ]
    return table(["production", "made from", "hours"], lines, facts=2)


def headline(rows: Rows) -> str:
    """The README's table; a sentence as long as there is no cell in it."""
    fixed = {
        "random-real": "random real images",
        "herding": "real images chosen by herding",
        "gan-s{}": "images drawn from `gan`",
    }
    fixed |= {"gan-s{}-refined": "images of `gan` with refined latents", "mtt": "MTT"}
    stream = {"oracle": "all real images", "gan-s{}": "the generator `gan`", "gan-s{}-refined": "`gan` around refined images"}
    stream |= {"dim2023": "DiM's published networks and losses, in the same time"}
    lines = []
    for key, title in fixed.items():
        cells = [[f"fixed-{own}-ipc{ipc}-convnet-hard" for own in _seeds_of(key)] for ipc in (1, 10)]
        lines.append([title, *(figure(rows, names) for names in cells), "", ""])
    for key, title in stream.items():
        cells = [[f"stream-{own}-ipc10-{student}-hard" for own in _seeds_of(key)] for student in ("convnet", "resnet18")]
        lines.append([title, "", "", *(figure(rows, names) for names in cells)])
    if all(cell in ("", NOT_RUN) for line in lines for cell in line[1:]):
        return "No accuracy has been measured on CIFAR-10 yet; [its tables](docs/cifar10.md) say what will be.\n"
    head = (
        "CIFAR-10, hard labels, some hours of one CPU core for each method ([all tables](docs/cifar10.md)). n = 5 students of\n"
        "ConvNet-3 and 3 of ResNet-18; `gan` from up to two seeds, with the spread between generators apart.\n"
    )
    columns = ["trained on", "set, IPC 1", "set, IPC 10", "stream, IPC 10", "stream, IPC 10, ResNet-18"]
    return f"{head}\n{table(columns, lines)}\n"


_BOTH = ("hard", "soft")
TABLES: dict[str, Callable[[Rows], str]] = {
    "stream-convnet": lambda rows: by_size(rows, "stream", STREAMS, "convnet", SIZES, _BOTH),
    "stream-resnet18": lambda rows: by_size(rows, "stream", STREAMS, "resnet18", SIZES, _BOTH),
    "fixed": lambda rows: by_size(rows, "fixed", SETS, "convnet", SIZES, _BOTH),
    "distilled": lambda rows: by_size(rows, "fixed", DISTILLED, "convnet", (1, 10), ("hard",)),
    "architectures": architectures,
    "storage": storage,
    "matching": matching,
    "coverage": coverage,
    "took": took,
    "headline": headline,
}


# --- pages -------------------------------------------------------------------------------------------------------------------


def read_cells(results: Path) -> dict[str, Row]:
    """Rows of the cells that lie there, by name."""
    return {name: read_json(results / f"{name}.json")["rows"][0] for name in tasks() if (results / f"{name}.json").is_file()}


def rendered(text: str, rows: Rows) -> str:
    """A page with its tables from these rows."""
    return _MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]](rows).rstrip()}\n{found[3]}", text)


def render(results: Path, root: Path = ROOT) -> list[Path]:
    """Write the tables into the pages, and return those that changed. Below another `root`, pages that are not there are made."""
    rows, written = read_cells(results), []
    for name in PAGES:
        path = root / name
        old = path.read_text() if path.is_file() else ""
        new = rendered(old or (ROOT / name).read_text(), rows)
        if new != old:
            write_bytes(path, new.encode())
            written.append(path)
    return written
