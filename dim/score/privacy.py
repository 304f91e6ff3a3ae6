"""What an audit found: how well membership can be told, attack by attack, and whether images are copies. `dim.audit` measures it;
here is how it is kept, read and shown.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dim.errors import InputError
from dim.io import read_document, reading

FILE = "audit.json"
"""Where `dim audit` leaves its result, in the folder of what it audited."""
FALSE_POSITIVES = (0.001, 0.01)
Verdict = Literal["leak", "chance", "below chance"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value, and the 95 % interval around it; all in [0, 1]."""

    value: float
    """What was found."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def percent(self) -> str:
        """In percent, as a cell of a table."""
        return f"{100 * self.value:.2f} [{100 * self.low:.2f}, {100 * self.high:.2f}]"


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """One attack on one subject: how well its scores tell images that were used from images that were not."""

    subject: str
    """What was attacked: the set, or students on it, on a stream, on real images."""
    attack: str
    """What the scores are."""
    references: str
    """What they are compared with; empty: with nothing."""
    images: Literal["usual", "canaries"]
    """Which images were asked about: canaries, or all others."""
    members: int
    """Of them, those that the subject was made with."""
    others: int
    """Of them, those that it was not made with."""
    rates: dict[str, Interval]
    """By false positive rate, `0.001` and `0.01`, the true positive rate."""
    area: Interval
    """Area under the curve; 0.5 is chance."""
    accuracy: float | None = None
    """Mean test accuracy of the attacked students, in percent; None: no students."""

    @property
    def verdict(self) -> Verdict:
        """`leak` if an interval lies above chance; `below chance` if the area's lies below; else `chance`.

        A true positive rate is at chance where it equals the false positive rate.
        """
        pairs = [(float(rate), found) for rate, found in self.rates.items()]
        if any(found.low > chance for chance, found in [(0.5, self.area), *pairs]):
            return "leak"
        return "below chance" if self.area.high < 0.5 else "chance"

    def to_dict(self) -> dict[str, Any]:
        """All fields and the verdict, as plain values for JSON."""
        return {**dataclasses.asdict(self), "verdict": self.verdict}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AuditRow":
        """Inverse of `to_dict`."""
        values = {key: value for key, value in values.items() if key != "verdict"}
        rates = {f"{float(rate):g}": Interval(**found) for rate, found in values["rates"].items()}
        return cls(**{**values, "rates": rates, "area": Interval(**values["area"])})


@dataclass(frozen=True, kw_only=True)
class CopyRow:
    """Images of the subject and the real images that are nearest to them, in one space."""

    space: str
    """What distances are taken in."""
    images: int
    """Of the subject."""
    neighbours: int
    """Real images that are the nearest of their class to one or more of them."""
    members: Interval
    """Part of these neighbours that the subject was made with."""
    expected: float
    """That part without copies: of members among all real images."""
    nearer: float
    """Part of them that are nearer to a member than 99 % of the other real images are; 0.01 is to be expected without copies."""

    @property
    def verdict(self) -> Verdict:
        """`leak` if the interval lies above what is expected; `below chance` if it lies below; else `chance`."""
        if self.members.low > self.expected:
            return "leak"
        return "below chance" if self.members.high < self.expected else "chance"

    def to_dict(self) -> dict[str, Any]:
        """All fields and the verdict, as plain values for JSON."""
        return {**dataclasses.asdict(self), "verdict": self.verdict}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CopyRow":
        """Inverse of `to_dict`."""
        values = {key: value for key, value in values.items() if key != "verdict"}
        return cls(**{**values, "members": Interval(**values["members"])})


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """All that an audit of one set or generator found."""

    name: str
    """Of the subject."""
    digest: str
    """Of the subject's content, by which it is recognised (`dim.sampler.identity`)."""
    rows: tuple[AuditRow, ...]
    """Attacks on the subject."""
    controls: tuple[AuditRow, ...]
    """The same attacks on students of real images: of the members, where a leak is known, and of others."""
    copies: tuple[CopyRow, ...]
    """Nearest real images."""
    settings: dict[str, Any]
    """What it depends on beside the subject: protocol, seeds, numbers of images and references."""
    data: dict[str, Any]
    """Name and fingerprint of the real data that the subject was made from."""
    seconds: float
    """Wall time, without what lay finished in the cache folder."""
    hardware: dict[str, Any] = field(default_factory=dict)
    """What `dim.provenance.hardware` says of the machine."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of Python and of the libraries that compute."""

    def to_dict(self) -> dict[str, Any]:
        """As `dim audit` writes it."""
        parts = {name: [row.to_dict() for row in getattr(self, name)] for name in ("rows", "controls", "copies")}
        plain = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name not in parts}
        return {"kind": "audit", **plain, **parts}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AuditResult":
        """Inverse of `to_dict`: `values` are parsed JSON.

        Raises:
            KeyError, TypeError, ValueError: for a field that is missing, unknown, or of another type.
        """
        kinds = {"rows": AuditRow, "controls": AuditRow, "copies": CopyRow}
        parts = {name: tuple(kind.from_dict(row) for row in values[name]) for name, kind in kinds.items()}
        names = {one.name for one in dataclasses.fields(cls)}
        result = cls(**{name: value for name, value in values.items() if name in names} | parts)
        for row in (*result.rows, *result.controls):
            if row.images not in typing.get_args(AuditRow.__annotations__["images"]) or not row.rates:
                raise ValueError(f"a row is of {str(row.images)[:60]!r}, with {len(row.rates)} rates")
        return result

    def findings(self) -> list[str]:
        """The result in sentences: what leaks, and what stays at chance."""
        found = []
        leaks = [row for row in self.rows if row.verdict == "leak"]
        if leaks:
            worst = max(leaks, key=lambda row: max(row.area.low / 0.5, *(one.low / float(x) for x, one in row.rates.items())))
            told = f"{len(leaks)} of {len(self.rows)} attacks tell members from others"
            tpr = f"{worst.rates['0.01'].percent()} % of the members at 1 % false positives"
            found.append(f"{told}; most of all {worst.attack} on {worst.subject}: {tpr}, area under the curve {worst.area}.")
        else:
            found.append(f"None of {len(self.rows)} attacks tells members from others better than chance.")
        for row in self.copies:
            if row.verdict == "leak":
                part, chance = row.members.percent(), 100 * row.expected
                found.append(f"{part} % of the nearest real images are members in {row.space} (chance: {chance:.0f} %): copies.")
        return found


def read_audit(path: Path | str) -> AuditResult:
    """What `dim audit` found: from its file, or from the folder of what it audited.

    Raises:
        InputError: if it is missing, damaged, or holds something else.
    """
    path = Path(path) / FILE if Path(path).is_dir() else Path(path)
    content = read_document(path)
    if content.get("kind") != "audit":
        raise InputError(f"{path} holds no audit: expected a file that 'dim audit' wrote")
    with reading(path, "it is no audit"):
        return AuditResult.from_dict(content)


def found_audit(folder: Path | str) -> AuditResult | None:
    """What an audit left in a folder; None without one, or if it is damaged: it is shown again when it is measured again."""
    with contextlib.suppress(InputError):
        return read_audit(folder)
    return None


AUDIT_NOTE = (
    "TPR at x % FPR: members found at a threshold that x % of the others are above, by chance x %. In brackets 95 % intervals, "
    "of the images asked about. Chance means that these attacks find nothing, not that there is nothing (docs/privacy.md)."
)
COLUMNS = (
    *("attack on", "attack", "references", "images", "members", "others"),
    *(f"TPR % at {100 * rate:g} % FPR" for rate in FALSE_POSITIVES),
    *("area under the curve", "verdict"),
)
COPY_COLUMNS = (
    *("distances in", "images", "nearest real images", "of them members, %", "by chance, %"),
    *("nearer than 99 % of others, %", "verdict"),
)


def audit_cells(rows: Sequence[AuditRow]) -> list[tuple[str, ...]]:
    """Cells of the table of attacks, in the order of `COLUMNS`."""
    return [
        (
            *(row.subject, row.attack, row.references or "-", row.images, f"{row.members:,}", f"{row.others:,}"),
            *(row.rates[f"{rate:g}"].percent() for rate in FALSE_POSITIVES),
            str(row.area),
            row.verdict,
        )
        for row in rows
    ]


def copy_cells(rows: Sequence[CopyRow]) -> list[tuple[str, ...]]:
    """Cells of the table of nearest images, in the order of `COPY_COLUMNS`."""
    return [
        (
            *(row.space, f"{row.images:,}", f"{row.neighbours:,}", row.members.percent()),
            *(f"{100 * row.expected:.2f}", f"{100 * row.nearer:.2f}", row.verdict),
        )
        for row in rows
    ]
