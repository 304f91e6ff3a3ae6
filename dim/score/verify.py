"""Verify claims: train fresh students as a claim says, with seeds that it did not use, and accept or refuse it.

A claim is refused without any training where it is of other images, labels or weights than those at hand, or of other real data.
Otherwise `dim.score.agreement` compares the students, one after the other, and stops at the first look that refuses.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dim import rng
from dim.compiling import compiler_found, native_bfloat16
from dim.config import ProtocolConfig, to_dict
from dim.data.origin import real_data_of
from dim.data.real import RealData
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.nets.generator import Generator
from dim.provenance import hardware, versions
from dim.sampler import sample_set
from dim.score.agreement import LEVEL, Stated, look, unclear
from dim.score.claims import Claim, claims_of
from dim.score.evaluate import Evaluator
from dim.score.record import Score, protocol_of
from dim.score.report import print_note, print_table

STUDENTS = 5
"""Fresh students for each claim."""
_WIDE = 5.0  # points: a wider interval says little


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim, what fresh students say of it, and whether it is accepted."""

    name: str
    """What the set or generator is called."""
    track: str
    """Of the claim."""
    ipc: int | None
    """Of the claim: images per class."""
    student: str
    """Of the claim: architecture, with its options."""
    claimed: Stated
    """Mean, standard deviation and n of the claim."""
    accepted: bool
    """Whether the test accepts it."""
    reason: str = ""
    """Why it is refused."""
    accuracies: tuple[float, ...] = ()
    """Of the fresh students, in percent; fewer than were planned where the first ones refused the claim, none where that needed
    no student, twice as many where those left too much open."""
    seeds: tuple[int, ...] = ()
    """Of the fresh students."""
    planned: int = STUDENTS
    """How many there were to be at first."""
    difference: float | None = None
    """Mean of the fresh students minus the claimed mean, in points."""
    interval: tuple[float, float] | None = None
    """In which the true difference lies, see `dim.score.agreement`; a claim is accepted if it holds zero."""
    notes: tuple[str, ...] = ()
    """Where this machine departs from the one of the claim; which protocol came nearest to a claim without one."""
    seconds: float = 0.0
    """Wall time."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """How the students were trained: the fields of a `ProtocolConfig`."""
    hardware: dict[str, Any] = field(default_factory=dict)
    """What `dim.provenance.hardware` says of this machine."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of Python and of the libraries that computed."""

    @property
    def word(self) -> str:
        """`accepted` or `refused`."""
        return "accepted" if self.accepted else "refused"

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Verdict":
        """Inverse of `to_dict`: `values` are parsed JSON.

        Raises:
            KeyError, TypeError: for what is no verdict.
        """
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**{**values, "claimed": Stated(**values["claimed"])})


def verify(
    subject: SyntheticSet | Generator,
    *,
    seeds: int = STUDENTS,
    claims: Sequence[Claim] | None = None,
    data: RealData | None = None,
    root: str | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    name: str = "this subject",
    report: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """Test what a set or a generator claims of its own scores.

    Args:
        subject: a set, or a generator from `load_generator`.
        seeds: fresh students for each claim, 1 or more. One stands against the spread that the claim states.
        claims: which. Default: those that the subject carries.
        data: the real data. Default: what the subject says it was made from.
        root: where that lies, where `data` is not given. Default: where it was found before, or DIM_DATA_ROOT.
        device: where to train.
        seed: another one trains other students.
        name: of the subject, for verdicts and messages.
        report: called with every verdict when it is there.

    Returns:
        One `Verdict` per claim.

    Raises:
        InputError: if the subject claims nothing, or its claims or real data cannot be read.
    """
    claims = required_claims(subject, name) if claims is None else claims
    if seeds < 1:
        raise InputError(f"seeds is {seeds}: expected 1 or more students")
    data = data or real_data_of(getattr(subject, "info", {}), root, device, subject.spec)
    found = []
    for each in claims:
        found.append(_verdict(subject, each, data, seeds, torch.device(device), seed, name))
        report(found[-1])
    return found


def required_claims(subject: SyntheticSet | Generator, name: str) -> list[Claim]:
    """The claims that a subject carries, at least one.

    Raises:
        InputError: if there is none.
    """
    claims = claims_of(subject, name)
    if not claims:
        remedy = "measure it with 'dim evaluate --claim', or say what others claim of a set with 'dim verify --claimed'"
        raise InputError(f"{name} claims nothing: {remedy}")
    return claims


def _verdict(
    subject: SyntheticSet | Generator, claim: Claim, data: RealData, planned: int, device: torch.device, seed: int, name: str
) -> Verdict:
    """One claim, from the identity of what it is of to the last student."""
    row = claim.score
    about = {"name": name, "track": row.track, "ipc": row.ipc, "student": row.student, "claimed": claim.stated}
    about |= {"planned": planned, "hardware": hardware(device), "versions": versions()}
    reason = _other_subject(claim, subject) or _other_data(row, data)
    if reason:
        return Verdict(**about, accepted=False, reason=reason)
    protocol, notes = _arithmetic(protocol_of(row), row, device)
    evaluator = Evaluator(data, protocol, seeds=1, device=device, split=row.split)
    train = _trainer(evaluator, subject, claim)

    def student(number: int) -> Score:
        fresh = train(number)
        if departures := _departures(row, fresh):
            raise _OtherSettings(f"the claim contradicts its own protocol: {'; '.join(departures)}")
        return fresh

    found = examine(student, claim.stated, fresh_seeds(2 * planned, row.seeds, seed), planned)
    return Verdict(**about, notes=tuple(notes), protocol=to_dict(protocol), **found)


class _OtherSettings(Exception):
    """A row says other settings of its students than its own protocol makes."""


def examine(train: Callable[[int], Score], stated: Stated, seeds: Sequence[int], planned: int) -> dict[str, Any]:
    """Train students, one after the other, until a look refuses what is stated or all are there.

    Args:
        train: a seed -> the row of that student alone.
        stated: what is claimed.
        seeds: of the students; twice as many as are planned, for the case that these leave too much open.
        planned: how many there are to be at first.

    Returns:
        Fields of a `Verdict`.
    """
    started, accuracies = time.perf_counter(), []
    found: dict[str, Any] = {"accepted": True}
    for seed in seeds:
        try:
            row = train(seed)
        except _OtherSettings as error:
            found |= {"accepted": False, "reason": str(error)}
            break
        if row.mean is None:
            found |= {"accepted": False, "reason": f"a student trained by its protocol diverged at step {row.diverged[0]}"}
            break
        accuracies.append(row.mean)
        at = look(stated, accuracies, planned)
        found |= {"difference": at.difference, "interval": None if math.isinf(at.half_width) else at.interval}
        if not at.agrees:
            count = len(accuracies)
            early = f", after {count} of {planned} students" if count < planned else f", after {count}" if count > planned else ""
            least = max(0.0, abs(at.difference) - at.half_width)
            way = "lower" if at.difference < 0 else "higher"
            found |= {"accepted": False, "reason": f"students score {least:.1f} points or more {way} than claimed{early}"}
            break
        if len(accuracies) == planned and not unclear(at, planned):
            break
    seconds = round(time.perf_counter() - started, 2)
    return found | {"accuracies": tuple(accuracies), "seeds": tuple(seeds[: len(accuracies)]), "seconds": seconds}


def fresh_seeds(count: int, used: Sequence[int], seed: int) -> list[int]:
    """So many seeds that a claim did not use, as a function of `seed`."""
    candidates = (rng.fold(seed, "verify", number) for number in range(count + len(used)))
    return [each for each in candidates if each not in used][:count]


def _trainer(evaluator: Evaluator, subject: SyntheticSet | Generator, claim: Claim) -> Callable[[int], Score]:
    """A function that trains the student of one seed on the claimed track."""
    row = claim.score
    if isinstance(subject, Generator):
        subject = subject.configure(**claim.sampler)
        if row.track == "fixed":
            subject = sample_set(subject, ipc=row.ipc)

    def train(seed: int) -> Score:
        evaluator.seeds = (seed,)
        if isinstance(subject, Generator):
            (fresh,) = evaluator.stream(subject, row.ipc)
        else:
            (fresh,) = evaluator.fixed(subject)
        return fresh

    return train


def _other_subject(claim: Claim, subject: SyntheticSet | Generator) -> str:
    """Why a claim cannot be of this subject; empty: it is."""
    generator = isinstance(subject, Generator)
    if not claim.is_of(subject):
        return f"the claim is of {'other weights' if generator else 'other images or labels'}"
    if not generator and claim.score.track != "fixed":
        return f"the claim is of the {claim.score.track} track, and a stored set has the fixed one"
    if generator and (claim.score.ipc is None or claim.score.labels != "hard"):
        return f"the claim is of IPC {claim.score.ipc} and {claim.score.labels} labels, which this generator alone does not make"
    return ""


def _other_data(row: Score, data: RealData) -> str:
    """Why a claim cannot be of these real data; empty: it is."""
    if row.split not in ("test", "val") or not len(getattr(data, row.split)):
        return f"the claim is of the {row.split} part, which these data do not have"
    own = data.about(row.split)
    for name, what in (("fingerprint", "training part"), ("scored", f"{row.split} part")):
        if row.data.get(name) != own[name]:
            return f"the claim is of other data: its {what} has the digest {row.data.get(name)}, and this one {own[name]}"
    return ""


def _arithmetic(protocol: ProtocolConfig, row: Score, device: torch.device) -> tuple[ProtocolConfig, list[str]]:
    """The protocol as this machine can follow it, and in what that departs from the claim."""
    notes, kind = [], row.hardware.get("device")
    if kind not in (None, device.type):
        notes.append(f"claimed on {kind}, verified on {device.type}")
    if protocol.compile == "on" and not compiler_found(device):
        notes.append("compiled when claimed, and there is no compiler here: verified without")
        protocol = dataclasses.replace(protocol, compile="off")
    if protocol.precision == "bf16" and not native_bfloat16(device):
        notes.append("bfloat16 is emulated here, which is slow")
    return dataclasses.replace(protocol, students=(row.student,)), notes


def _departures(claimed: Score, fresh: Score) -> list[str]:
    """In what a claim says other things of its students than its protocol makes."""
    names = ("track", "ipc", "labels", "student", "steps", "batch_size", "images_seen", "split")
    pairs = [(name, getattr(claimed, name), getattr(fresh, name)) for name in names]
    own = {**claimed.protocol, "step_size": claimed.made.get("step_size")}
    made = {**fresh.protocol, "step_size": fresh.made.get("step_size")}
    skipped = ("students", "full_epochs", "compile")
    pairs += [(name, own.get(name), made[name]) for name in made if name not in skipped and name in own]
    return [f"{name} is {said!r} there and {found!r} by it" for name, said, found in pairs if said != found]


_COLUMNS = ("subject", "track", "IPC", "student", "claimed", "measured", "difference", "interval", "verdict")


def format_stated(stated: Stated) -> str:
    """'93.1 ± 0.4 (5)': mean, standard deviation and number of students."""
    spread = "" if stated.std is None else f" ± {stated.std:.1f}"
    return f"{stated.mean:.1f}{spread} ({stated.n})"


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Print the table of verdicts, and below it what refuses a claim and what else is to be known."""
    cells = []
    for one in verdicts:
        found = one.accuracies
        spread = statistics.stdev(found) if len(found) > 1 else None
        measured = format_stated(Stated(mean=statistics.fmean(found), std=spread, n=len(found))) if found else "-"
        difference = "-" if one.difference is None else f"{one.difference:+.1f}"
        interval = "-" if one.interval is None else f"{one.interval[0]:+.1f} to {one.interval[1]:+.1f}"
        ipc = "-" if one.ipc is None else one.ipc
        cells.append(
            (one.name, one.track, ipc, one.student, format_stated(one.claimed), measured, difference, interval, one.word)
        )
    title = f"accuracy in percent, mean ± std (n students); refused at the {LEVEL:.0%} level: zero is not in the interval"
    print_table(title, _COLUMNS, cells, ("subject", "track", "student", "verdict"))
    for one in verdicts:
        texts = [one.reason, *one.notes]
        if one.accepted and one.interval[1] - one.interval[0] > 2 * _WIDE:
            width = (one.interval[1] - one.interval[0]) / 2
            texts.append(f"these students tell no difference below {width:.1f} points; more of them (--seeds) tell a smaller one")
        for text in filter(None, texts):
            print_note(f"{one.name}, {one.track}, {one.student}: {text}")
