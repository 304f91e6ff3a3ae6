"""`dim verify`: test what sets and generators claim of their scores."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tyro

from dim.commands.arguments import MOST_SEEDS
from dim.commands.parsing import parse, parse_known, subjects_first
from dim.commands.subjects import device_of, real_data
from dim.config import ProtocolConfig, Settings, from_dict
from dim.config.settings import require, require_default
from dim.errors import InputError, RefusedError
from dim.text import say_note


@dataclass(frozen=True, kw_only=True)
class VerifyArguments(Settings):
    """Train fresh students by the protocol that a set or generator carries, and accept or refuse the scores that it claims."""

    subjects: tyro.conf.Positional[tuple[str, ...]]
    """Sets, runs and generators that carry claims ('dim evaluate --claim'): folders, generator files, or hub:owner/name."""
    seeds: int = 5
    """Fresh students for each claim: fewer where the first ones refuse it, and as many again where these leave too much open."""
    quick: bool = False
    """One student for each claim, against the spread that the claim states."""
    seed: int = 0
    """Another seed trains other students."""
    claimed: float | None = None
    """Test this accuracy, in percent, that others claim of a set: published protocols are tried on held-out training images, and
    the nearest on the test part."""
    claimed_sd: float | None = None
    """Beside --claimed: standard deviation of its students, in points."""
    claimed_n: int = 1
    """Beside --claimed: its number of students."""
    data_root: str | None = None
    """Where the real data lies. Default: the environment variable DIM_DATA_ROOT, or where it was found before."""
    device: str | None = None
    """cpu, cuda, mps. Default: a GPU if there is one."""
    code: tuple[str, ...] = ()
    """Your own code that a run, generator or set was made with, as package.module:Name. Code that only a file names is never
    imported."""
    json: str | None = None
    """Also write the verdicts, with everything that they depend on, to this file."""
    protocol: ProtocolConfig = dataclasses.field(default_factory=ProtocolConfig)
    """With --claimed: what the protocols that are tried have in common. Default: what the set carries."""

    def __post_init__(self) -> None:
        require(1 <= self.seeds <= MOST_SEEDS, "seeds", self.seeds, f"1 to {MOST_SEEDS:,}")
        require(not self.quick or self.seeds == 5, "seeds", self.seeds, "no number of students beside --quick, which is one")
        if self.claimed is None:
            for name, usual in (("claimed_sd", None), ("claimed_n", 1)):
                require(
                    getattr(self, name) == usual, name, getattr(self, name), "--claimed beside it, the accuracy that is claimed"
                )

    @property
    def planned(self) -> int:
        """Students for each claim."""
        return 1 if self.quick else self.seeds


def verify(arguments: Sequence[str]) -> None:
    """`dim verify`.

    Raises:
        RefusedError: if a claim is refused.
    """
    arguments = subjects_first(arguments)
    first, _ = parse_known(VerifyArguments, arguments, "verify")
    if not first.subjects:
        raise InputError("nothing to verify: name sets, runs or generators")
    if first.claimed is None:
        parsed = parse(VerifyArguments, arguments, "verify")
        require_default(parsed.protocol, "as a claim has its own protocol; without one, give --claimed")

    from dim.outputs import require_writable
    from dim.score.agreement import Stated

    if first.json is not None:
        require_writable(first.json, "json")
    device = device_of(first.device)
    if first.claimed is None:
        verdicts, more = _of_carried(parsed, device), {}
    else:
        stated = Stated(mean=first.claimed, std=first.claimed_sd, n=first.claimed_n)
        verdicts, more = _of_others(first, arguments, stated, device)
    _tell(first, verdicts, more)


def _of_carried(parsed: VerifyArguments, device: Any) -> list[Any]:
    """Verdicts on the claims that subjects carry."""
    from dim.score.claims import subject_digest
    from dim.score.unfinished import UnfinishedRows
    from dim.score.verify import Verdict, required_claims, verify

    subjects = {name: load_subject(name, device) for name in parsed.subjects}
    claims = [(name, each) for name, subject in subjects.items() for each in required_claims(subject, name)]
    asked = {"claims": [(name, each.to_dict()) for name, each in claims], "seeds": parsed.planned, "seed": parsed.seed}
    asked |= {
        "device": str(device),
        "data_root": parsed.data_root,
        "subjects": {name: subject_digest(subject) for name, subject in subjects.items()},
    }
    kept = UnfinishedRows(parsed.json, asked, Verdict)
    verdicts = list(kept.rows)
    data: dict[str, Any] = {}
    for name, each in claims[len(verdicts) :]:
        given = {"seeds": parsed.planned, "device": device, "seed": parsed.seed, "name": name}
        if name not in data:
            data = {name: real_data(subjects[name], parsed.data_root, parsed.subjects, device)}  # one at a time in memory
        verdicts += verify(subjects[name], claims=[each], data=data[name], **given)
        kept.keep(verdicts[-1])
        say_note(f"{name}, {verdicts[-1].track}, {verdicts[-1].student}: {verdicts[-1].word} ({verdicts[-1].seconds:.0f} s)")
    kept.remove()
    return verdicts


def _of_others(first: VerifyArguments, arguments: Sequence[str], stated: Any, device: Any) -> tuple[list[Any], dict[str, Any]]:
    """The verdict on what others claim of a set, and the protocols that were tried."""
    from dim.data.synthetic import SyntheticSet
    from dim.score.reproduce import print_attempts, reproduce

    if len(first.subjects) != 1:
        raise InputError(f"claimed is {first.claimed:g}, and there are {len(first.subjects)} subjects: expected one set")
    (name,) = first.subjects
    subject = load_subject(name, device)
    if not isinstance(subject, SyntheticSet):
        raise InputError(f"claimed is {first.claimed:g}, and {name} is a generator: expected a set, as 'dim import' makes it")
    carried = from_dict(ProtocolConfig, subject.info.get("protocol") or {})
    parsed = parse(VerifyArguments, arguments, "verify", VerifyArguments(subjects=tyro.MISSING, protocol=carried))
    data = real_data(subject, parsed.data_root, parsed.subjects, device)

    settings = {"seeds": parsed.planned, "device": device, "seed": parsed.seed, "name": name}

    def report(attempt: Any) -> None:
        say_note(f"{attempt.name}: {attempt.shown}")

    attempts, verdict = reproduce(subject, stated, data, parsed.protocol, **settings, report=report)
    print_attempts(attempts, stated)
    return [verdict], {"attempts": [attempt.to_dict() for attempt in attempts]}


def load_subject(name: str, device: Any) -> Any:
    """A set or a generator, from a folder, a file or the Hub.

    Raises:
        InputError: if it is neither.
    """
    from dim.commands.subjects import is_stored_set
    from dim.data.synthetic import load_set
    from dim.hub import load_generator
    from dim.repository import HUB

    if is_stored_set(name):
        return load_set(name, device)
    if not name.startswith(HUB):
        return load_generator(name, device)
    try:
        return load_set(name, device)
    except InputError as no_set:
        try:
            return load_generator(name, device)
        except InputError as neither:
            raise InputError(f"{neither}; as a set: {no_set}") from None


def _tell(parsed: VerifyArguments, verdicts: Sequence[Any], more: dict[str, Any]) -> None:
    """Print the table, write the file, and raise RefusedError if a claim is refused."""
    from dim.io import write_document
    from dim.score.verify import print_verdicts

    print_verdicts(verdicts)
    if parsed.json:
        write_document(parsed.json, {"kind": "verdicts", "verdicts": [verdict.to_dict() for verdict in verdicts], **more})
    refused = [verdict for verdict in verdicts if not verdict.accepted]
    if refused:
        one = refused[0]
        raise RefusedError(f"{len(refused)} of {len(verdicts)} claims refused, first that of {one.name}: {one.reason}")
