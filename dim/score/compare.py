"""Many rows side by side: which may stand in one table, and the table, picture and page.

Rows of other real data or of another part of it are refused; rows of another protocol say so. The two tracks have tables and
panels of their own.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from dim.config import to_dict
from dim.data.real import Part, RealData
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.nets.generator import Generator
from dim.score.page import figure_png, html_image, html_page, html_table
from dim.score.record import Score, arithmetic_note, is_control, protocol_differences, protocol_of
from dim.score.recovery import HLR, IOR, NOTE, format_points, recovery
from dim.score.report import format_accuracy, format_bytes, print_note, print_table
from dim.spec import DataSpec
from dim.text import for_html, for_plot

TRACKS = {"fixed": "fixed track", "stream": "stream track", "full": "full data"}


def require_one_data(scores: Sequence[Score], name: str, data: RealData | None = None, split: Part | None = None) -> None:
    """Refuse rows whose accuracies are of other images.

    Args:
        scores: rows.
        name: what to compare with, for the message.
        data: the data that they must be of. Default: that of the first row.
        split: the part of it. Default: that of the first row.

    Rows of earlier versions do not say which images were in that part, and are believed.

    Raises:
        InputError: naming the row and the difference.
    """
    if not scores:
        return
    wanted = scores[0].data.get("fingerprint") if data is None else data.spec.fingerprint
    wanted_name = scores[0].data.get("name") if data is None else data.spec.name
    split = split or scores[0].split
    said = [score.data["scored"] for score in scores if score.data.get("scored")] if data is None else [data.digest(split)]
    for score in scores:
        found = score.data.get("fingerprint")
        if found is None or found != wanted:
            what = f"{score.data.get('name')} (fingerprint {found})"
            remedy = "measure it on the same data and split, or compare it in a table of its own"
            raise InputError(f"row {score.name} is of {what}: expected {wanted_name} (fingerprint {wanted}) as {name}; {remedy}")
        if score.split != split:
            remedy = f"measure it again with --split {split}, or compare it in a table of its own"
            raise InputError(f"row {score.name} is {score.split} accuracy: expected {split} accuracy as {name}; {remedy}")
        if said and (scored := score.data.get("scored", said[0])) != said[0]:
            what = f"of other {split} images of {wanted_name} (digest {scored})"
            remedy = "measure it on the same images, or compare it in a table of its own"
            raise InputError(f"row {score.name} is {what}: expected those with digest {said[0]} as {name}; {remedy}")


def require_made_from(subjects: Mapping[str, SyntheticSet | Generator], spec: DataSpec) -> None:
    """Raise InputError if a set or a generator was made from other real data than `spec`, or from another split of it."""
    for name, subject in subjects.items():
        if subject.spec.fingerprint != spec.fingerprint:
            made = f"{name} was made from {subject.spec.name} (fingerprint {subject.spec.fingerprint})"
            remedy = "make it again from the same data and split, or compare it in a table of its own"
            raise InputError(f"{made}: expected {spec.name} (fingerprint {spec.fingerprint}) as the others; {remedy}")


# --- the table ---------------------------------------------------------------------------------------------------------------


@dataclass
class _Row:
    """One line of a table: one source of images, with a score for each student."""

    first: Score
    differs: str
    scores: dict[str, Score]
    any_size: bool = False
    """Whether rows of several sizes have this name: a generator's, which has no size in it."""

    @property
    def is_control(self) -> bool:
        """Whether the images are real ones."""
        return is_control(self.first)

    @property
    def method(self) -> str:
        """What the row is called whatever its size: `sets/mtt-10` and `sets/mtt-50` are one line of the picture."""
        name = self.first.name
        if self.first.ipc is None or self.any_size:
            return name
        return re.sub(rf"(?:[-_./ ](?:ipc)?[-_]?|(?<=[a-z])){self.first.ipc}$", "", name) or name


class Comparison:
    """Rows side by side. Equal rows of two files are one.

    Args:
        scores: the rows, which must be of one data set and one part of it.

    Raises:
        InputError: if there are none, or their accuracies are not of the same images.
    """

    def __init__(self, scores: Sequence[Score]) -> None:
        if not scores:
            raise InputError("nothing to compare: name sets, runs, generators or files of scores")
        require_one_data(scores, f"the row of {scores[0].name}")
        self.scores: list[Score] = []
        self.reference = protocol_of(scores[0])
        self.students = list(dict.fromkeys(score.student for score in scores))
        self._rows: list[_Row] = []
        keys: dict[str, list[_Row]] = {}
        for score in scores:
            fields = (score.name, score.track, score.ipc, score.labels, score.steps, score.bytes, score.made.get("digest"))
            differs = ", ".join(protocol_differences(protocol_of(score), self.reference))
            if score.made.get("step_size") is not None:
                differs = ", ".join(filter(None, (f"own step size {score.made['step_size']:.3g}", differs)))
            same = keys.setdefault(json.dumps([*fields, differs]), [])
            if any(_equal(row.scores.get(score.student), score) for row in same):
                continue
            self.scores.append(score)
            row = next((row for row in same if score.student not in row.scores), None)
            if row is None:
                row = _Row(score, differs, {})
                same.append(row)
                self._rows.append(row)
            row.scores[score.student] = score
        named: dict[str, set[int | None]] = {}
        for row in self._rows:
            named.setdefault(row.first.name, set()).add(row.first.ipc)
        for row in self._rows:
            row.any_size = row.first.track == "stream" or len(named[row.first.name]) > 1
        found = recovery(self.scores)
        self._recovery = {id(score): values for score, values in zip(self.scores, found, strict=True)}

    @property
    def tracks(self) -> list[str]:
        """Those with rows, in the order of their tables."""
        return [track for track in TRACKS if any(row.first.track == track for row in self._rows)]

    def title(self, track: str) -> str:
        """What stands above a table."""
        first = self.scores[0]
        return f"{first.data['name']}, {TRACKS[track]}: {first.split} accuracy in %, last epoch, mean ± std (n seeds)"

    def note(self) -> str:
        """How students were trained."""
        protocol = self.reference
        steps = f"{protocol.epochs} epochs at batch size {protocol.batch_size}, or as many steps of a stream"
        how = f"learning rate {protocol.lr:g}, schedule {protocol.schedule}, augmentation {protocol.augment or 'none'}"
        points = f" {NOTE}" if any(self._recovery.values()) else ""
        return f"Students: {steps}; {how}{', whitened images' if protocol.zca else ''}. {arithmetic_note(self.scores)}{points}"

    def table(self, track: str) -> tuple[list[str], list[list[str]]]:
        """Columns and cells of one track: rows by method in the order they were given, controls last, then by IPC."""
        rows = self._of(track)
        students = [student for student in self.students if any(student in row.scores for row in rows)]
        columns = ["trained on", "IPC", "labels", "stored", "seconds to produce", "steps", *students]
        names = [(student, name) for student in students for name in (HLR, IOR) if name in self._recovered(student, rows)]
        columns += [name.upper() if len(students) == 1 else f"{name.upper()} {student}" for student, name in names]
        marked = any(row.differs for row in rows)
        cells = []
        for row in rows:
            first, seconds = row.first, row.first.made.get("seconds")
            line = [first.name, "-" if first.ipc is None else str(first.ipc), first.labels]
            line += [format_bytes(sum(first.bytes.values())), _format_seconds(seconds), f"{first.steps:,}"]
            line += [_format_score(row.scores.get(student)) for student in students]
            line += [format_points(self._recovery.get(id(row.scores.get(student)), {}).get(name)) for student, name in names]
            cells.append([*line, row.differs] if marked else line)
        return [*columns, "differs in"] if marked else columns, cells

    def _recovered(self, student: str, rows: Sequence[_Row]) -> set[str]:
        """What `dim.score.recovery` can say of a student's rows."""
        return {name for row in rows for name in self._recovery.get(id(row.scores.get(student)), ())}

    def _of(self, track: str) -> list[_Row]:
        rows = [row for row in self._rows if row.first.track == track]
        order = {method: number for number, method in enumerate(dict.fromkeys(row.method for row in rows))}
        return sorted(rows, key=lambda row: (row.is_control, order[row.method], row.first.ipc or 0))

    # --- output --------------------------------------------------------------------------------------------------------------

    def show(self, console: Console | None = None) -> None:
        """Print a table for each track."""
        for track in self.tracks:
            print_table(self.title(track), *self.table(track), ("trained on", "labels", "differs in"), console)
        print_note(self.note(), console)

    def picture(self) -> bytes:
        """A PNG: accuracy against images per class and against stored bytes, a line for each method, bars of one std.

        Tracks and students have panels of their own; full data is a dashed line in all of its student's.

        Raises:
            InputError: if there is no row of the fixed or the stream track.
        """
        from matplotlib.figure import Figure  # no global state, no display

        rows = [(track, student) for track in ("fixed", "stream") for student in self.students]
        rows = [(track, student) for track, student in rows if any(student in row.scores for row in self._of(track))]
        if not rows:
            raise InputError("no row of the fixed or the stream track: expected one at least to draw a picture")
        labels = dict.fromkeys(_label(row) for track in ("fixed", "stream") for row in self._of(track))
        colours = {label: f"C{number % 10}" for number, label in enumerate(labels)}
        height = 3.4 * len(rows) + 0.22 * -(-len(labels) // 2)
        figure = Figure(figsize=(10, height), layout="constrained")
        panels = figure.subplots(len(rows), 2, squeeze=False, sharey="row")
        found: dict[str, Any] = {}
        for (track, student), pair in zip(rows, panels, strict=True):
            for axes, along in zip(pair, ("images per class", "stored bytes"), strict=True):
                found |= self._draw(axes, track, student, along, colours)
            pair[0].set_ylabel("accuracy in %")
            pair[0].set_title(for_plot(f"{TRACKS[track]}, {student}"), loc="left", fontsize=10)
        figure.legend(found.values(), map(for_plot, found), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        return figure_png(figure)

    def _draw(self, axes: Any, track: str, student: str, along: str, colours: Mapping[str, str]) -> dict[str, Any]:
        """Draw one panel; returns what the legend shows, by label. (matplotlib's leaves out labels that begin with _.)"""
        found: dict[str, Any] = {}
        lines: dict[str, list[tuple[float, Score]]] = {}
        for row in self._of(track):
            score = row.scores.get(student)
            x = row.first.ipc if along == "images per class" else sum(row.first.bytes.values())
            if score is not None and x is not None:
                lines.setdefault(_label(row), []).append((x, score))
        for label, points in lines.items():
            points = sorted([point for point in points if point[1].mean is not None], key=lambda point: point[0])
            if not points:
                continue
            x, means, spread = zip(*[(x, score.mean, score.std or 0) for x, score in points], strict=True)
            style = {"label": label, "color": colours[label], "marker": "o", "markersize": 4, "capsize": 3}
            found[label] = axes.errorbar(x, means, yerr=spread, **style)
        for row in self._of("full"):
            if student in row.scores and row.scores[student].mean is not None:
                label = f"{row.first.name} ({row.first.steps:,} steps)"
                found[label] = axes.axhline(row.scores[student].mean, label=label, color="grey", linestyle="--", linewidth=1)
        axes.set_xscale("log")
        if along == "images per class":
            ticks = sorted({x for points in lines.values() for x, _ in points})
            axes.set_xticks(ticks, [str(x) for x in ticks])
            axes.minorticks_off()
        axes.set_xlabel(along)
        axes.grid(alpha=0.3)
        return found

    def page(self) -> str:
        """A self-contained HTML page: the tables, the picture if there is something to draw, and the protocol."""
        parts = [f"<h2>{for_html(self.title(track))}</h2>\n{html_table(*self.table(track))}" for track in self.tracks]
        if self.tracks != ["full"]:
            parts.append(f"<h2>Accuracy against size</h2>\n{html_image(self.picture(), 'accuracy against size')}")
        protocol = json.dumps({**to_dict(self.reference), "students": self.students}, indent=2)
        parts.append(f"<h2>Protocol</h2>\n<p>{for_html(self.note())}</p>\n<pre>{for_html(protocol)}</pre>")
        return html_page(f"{self.scores[0].data['name']}: a comparison", "\n".join(parts))


def _equal(first: Score | None, second: Score) -> bool:
    """Whether two rows of the same source and student are one."""
    return first is not None and (first.seeds, first.accuracies) == (second.seeds, second.accuracies)


def _label(row: _Row) -> str:
    """What the legend calls a line: method, labels that are not hard, and protocol; a learned step size belongs to the method."""
    differs = [part for part in row.differs.split(", ") if part and not part.startswith("own step size")]
    differs = differs if row.first.labels == "hard" else [row.first.labels, *differs]
    return f"{row.method} [{', '.join(differs)}]" if differs else row.method


def _format_score(score: Score | None) -> str:
    return "" if score is None else f"{format_accuracy(score)} ({len(score.accuracies)})"


def _format_seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:,.0f}"
