"""DD-Ranking's scores of sets, from rows that were measured (Li et al. 2025, arXiv 2505.13300).

Hard-label recovery, HLR = accuracy of full data - accuracy of the set, both with hard labels: what the set lost. Improvement over
random, IOR = accuracy of the set - accuracy of random real images, as many per class and labelled the same way. Both in points of
percent. DD-Ranking searches a learning rate for each accuracy and keeps the best epoch; here all students follow the protocol of
the table, and a set may bring a learned step size.
"""

from collections.abc import Sequence

from dim.config import to_dict
from dim.score.record import REAL, Score, protocol_of

HLR, IOR = "hlr", "ior"
NOTE = "HLR: full data - this row, hard labels; IOR: this row - random real images; in points (DD-Ranking)."
_ARITHMETIC = ("students", "full_epochs", "precision", "compile")  # what may differ between rows of one protocol


def recovery(scores: Sequence[Score]) -> list[dict[str, float]]:
    """For every row, what can be said of it: `hlr`, `ior`, both, or nothing.

    HLR needs a row of the full data, and hard labels. IOR needs a row of random real images of the same IPC and labels, and is of
    sets alone: a stream is no set of that size. The rows must be of the same student, protocol and images.
    """
    measured = [(score, _setting(score)) for score in scores if score.mean is not None and score.protocol]
    of_subjects = {id(score): _of(score, setting, measured) for score, setting in measured if "digest" in score.made}
    return [of_subjects.get(id(score), {}) for score in scores]


def _of(score: Score, setting: tuple, measured: Sequence[tuple[Score, tuple]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for other, others in measured:
        if others != setting:
            continue
        method = other.made.get("method")
        if score.labels == "hard" and (other.track, method, other.labels) == ("full", REAL, "hard"):
            found.setdefault(HLR, other.mean - score.mean)
        if (other.track, method, other.ipc, other.labels) == (score.track, "random", score.ipc, score.labels):
            found.setdefault(IOR, score.mean - other.mean)
    return found


def _setting(score: Score) -> tuple:
    """What two accuracies must have in common for their difference to mean something."""
    protocol = {name: value for name, value in to_dict(protocol_of(score)).items() if name not in _ARITHMETIC}
    return score.student, score.split, score.data.get("fingerprint"), score.data.get("scored"), protocol


def recovery_columns(scores: Sequence[Score]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Titles of columns and their cells, a tuple for each row; no column for what no row has."""
    found = recovery(scores)
    names = [name for name in (HLR, IOR) if any(name in values for values in found)]
    return tuple(name.upper() for name in names), [tuple(format_points(values.get(name)) for name in names) for values in found]


def format_points(points: float | None) -> str:
    """A difference of accuracies as a cell of a table."""
    return "-" if points is None else f"{points:.1f}"
