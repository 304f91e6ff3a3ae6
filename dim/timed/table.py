"""The table of students by time, and what it says: up to which time a subject is better than the real data."""

import math
from collections.abc import Sequence

from rich.console import Console

from dim.score.agreement import FLOOR
from dim.score.report import print_note, print_table
from dim.timed.score import TimedScore

COLUMNS = (
    *("source", "student", "seconds", "accuracy %", "n", "minus real data", "steps", "batch", "lr", "schedule"),
    *("augmented", "course", "labels", "tried"),
)
LEVEL = 0.05
"""Of the intervals: they hold the difference of the means in 95 of 100 cases."""


def difference(row: TimedScore, real: TimedScore) -> tuple[float, float] | None:
    """Difference of the mean accuracies of two rows in points, and the half-width of its 95 % interval by Welch's t-test.

    None if a student diverged; an infinite half-width if a row has one student, which has no spread. A spread of less than 0.2
    points, which a few students can have by chance, counts as that.
    """
    from scipy.special import stdtrit

    if row.mean is None or real.mean is None:
        return None
    if row.std is None or real.std is None:
        return row.mean - real.mean, math.inf
    parts = [max(one.std, FLOOR) ** 2 / len(one.accuracies) for one in (row, real)]
    freedom = sum(parts) ** 2 / sum(part**2 / (len(one.accuracies) - 1) for part, one in zip(parts, (row, real), strict=True))
    return row.mean - real.mean, float(stdtrit(freedom, 1 - LEVEL / 2)) * math.sqrt(sum(parts))


def verdict(row: TimedScore, real: TimedScore) -> str:
    """`better` or `worse` than the real data where the interval is on one side of zero, else `no difference found`."""
    found = difference(row, real)
    if found is None:
        return "the real data diverged" if real.mean is None else "diverged"
    apart, half = found
    return "better" if apart > half else "worse" if -apart > half else "no difference found"


def verdicts(rows: Sequence[TimedScore]) -> list[str]:
    """For every subject and student a line that says where it wins and where it stops winning."""
    real = real_rows(rows)
    told: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        if row.kind != "real":
            told.setdefault((row.name, row.student), {}).setdefault(verdict(row, real[row.student, row.budget]), []).append(
                row.budget
            )
    return [
        f"{name}, {student}, beside real data: "
        + "; ".join(f"{said} at {_listed([f'{budget:g}' for budget in budgets])} s" for said, budgets in found.items())
        for (name, student), found in told.items()
    ]


def print_timed(rows: Sequence[TimedScore], console: Console | None = None) -> None:
    """Print the table, its verdicts, and in what time a student really trained."""
    first, real = rows[0], real_rows(rows)
    title = f"{first.data['name']}: {first.split} accuracy after so many seconds of training, mean ± std over n seeds"
    print_table(title, COLUMNS, [cells(row, real) for row in rows], ("source", "student", "schedule", "labels"), console)
    for line in verdicts(rows):
        print_note(line, console)
    most = max(rows, key=_off)
    threads = first.hardware.get("threads")
    where = f"{first.hardware.get('device', 'cpu')}, {threads} thread{'' if threads == 1 else 's'}"
    print_note(f"Settings were chosen on the validation part, for each row. In brackets: 95 % intervals. On {where}.", console)
    if _off(most) > 0.1:
        took = sum(most.seconds) / len(most.seconds)
        remedy = "leave the machine to this command, and measure again"
        print_note(f"{most.name}: {took:.3g} s were taken where {most.budget:g} s were given: {remedy}", console)


def _off(row: TimedScore) -> float:
    """By which part the mean time of a row's students is off."""
    return abs(sum(row.seconds) / len(row.seconds) / row.budget - 1)


def real_rows(rows: Sequence[TimedScore]) -> dict[tuple[str, float], TimedScore]:
    """Those of the real data, by student and budget."""
    return {(row.student, row.budget): row for row in rows if row.kind == "real"}


def cells(row: TimedScore, real: dict[tuple[str, float], TimedScore]) -> tuple[str, ...]:
    """Of a row, in the order of `COLUMNS`; `real`: see `real_rows`."""
    chosen = row.chosen
    found = None if row.kind == "real" else difference(row, real[row.student, row.budget])
    apart = "-" if found is None else f"{found[0]:+.1f}" if math.isinf(found[1]) else f"{found[0]:+.1f} [± {found[1]:.1f}]"
    accuracy = "diverged" if row.mean is None else f"{row.mean:.1f}" if row.std is None else f"{row.mean:.1f} ± {row.std:.1f}"
    return (
        row.name,
        row.student,
        f"{row.budget:g}",
        accuracy,
        str(len(row.accuracies)),
        apart,
        f"{row.steps:,}",
        str(chosen["batch_size"]),
        f"{chosen['lr']:g}",
        chosen["schedule"],
        "yes" if chosen["augment"] else "no",
        chosen["course"] if row.kind == "generator" else "-",
        row.labels,
        str(len(row.tried)),
    )


def _listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
