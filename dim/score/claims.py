"""Claims: what a set or a generator says of its own score, with all that somebody needs to test it (`dim.score.verify`).

A claim is a row of `dim evaluate` that travels inside the set's `set.json` or the generator's file. So every copy, export and
download has it, and the checksums of those files cover it.
"""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dim.coding.container import is_coded
from dim.data import stored
from dim.data.stored import DESCRIPTION
from dim.data.synthetic import SyntheticSet, load_set
from dim.errors import InputError
from dim.io import digest, reading
from dim.nets import generator_file
from dim.nets.generator import Generator
from dim.nets.generator_file import FILE_NAME, load_generator_file
from dim.outputs import require_writable, sole_writer
from dim.repository import HUB
from dim.run_folder import RUN
from dim.sampler import identity, sample_set
from dim.score.agreement import Stated
from dim.score.record import Score, protocol_of

CLAIMS = "claims"
"""Where they are in the `info` of a set or a generator."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A score that a set or a generator claims."""

    subject: str
    """Digest of the images and labels, or of the generator's weights and its sampler's options."""
    sampler: dict[str, Any]
    """Options of a generator's sampler."""
    score: Score
    """The row: track, IPC, student, labels, protocol, accuracies and seeds, identity of the data and of the scored part, versions
    and hardware."""

    @property
    def stated(self) -> Stated:
        """Mean, standard deviation and n of its students."""
        return Stated(mean=self.score.mean, std=self.score.std, n=len(self.score.accuracies))

    @property
    def kind(self) -> tuple:
        """What it is a claim about: of one subject, a new claim takes the place of the one of its kind."""
        row = self.score
        return row.track, row.ipc, row.student, row.labels, row.split, json.dumps(row.protocol, sort_keys=True)

    def is_of(self, subject: SyntheticSet | Generator) -> bool:
        """Whether it is of these images and labels, or of these weights."""
        if isinstance(subject, Generator):
            return self.subject == digest(subject.state_dict(), json.dumps(self.sampler, sort_keys=True))
        return self.subject == subject_digest(subject) or self.score.made.get("digest") == identity(subject)

    def to_dict(self) -> dict[str, Any]:
        """As files hold it."""
        return {"subject": self.subject, "sampler": self.sampler, "score": self.score.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Claim":
        """Inverse of `to_dict`: `values` are parsed JSON.

        Raises:
            KeyError, TypeError, ValueError: for what is no claim.
        """
        if not isinstance(values["subject"], str) or not isinstance(values["sampler"], dict):
            raise TypeError(f"subject is {str(values['subject'])[:60]!r}")
        made = cls(subject=values["subject"], sampler=values["sampler"], score=Score.from_dict(values["score"]))
        if made.score.mean is None or not made.score.data.get("scored"):
            raise ValueError("no mean, or it does not say of which images")
        protocol_of(made.score)
        return made


def subject_digest(subject: SyntheticSet | Generator) -> str:
    """What a claim is of. Of a set that is stored as latents these count, and not its pixels, which another kind of machine
    rounds differently."""
    if isinstance(subject, Generator) or subject.latents is None:
        return identity(subject)
    stored = {name: tensor for name, tensor in subject.content().items() if name != "images"} | {"latents": subject.latents}
    about = [subject.info["generator"]["digest"], subject.info.get("sampler", {}), subject.info.get("step_size")]
    return digest(stored, json.dumps(about, sort_keys=True))


def claims_of(subject: SyntheticSet | Generator, name: str = "this subject") -> list[Claim]:
    """The claims that a set or a generator carries, also those that are of something else.

    Args:
        subject: the set or generator.
        name: what it is called, for messages.

    Raises:
        InputError: if what stands there is no claim.
    """
    with reading(name, "what it claims is no score"):
        return [Claim.from_dict(values) for values in getattr(subject, "info", {}).get(CLAIMS, [])]


def claim(subject: SyntheticSet | Generator, scores: Sequence[Score]) -> list[Claim]:
    """Let a set or a generator claim what was measured of it. Saving, exporting and pushing it then writes its claims, too.

    A claim takes the place of an earlier one with the same track, IPC, student, labels and protocol. Claims that are of other
    images or weights are left out.

    Args:
        subject: a set, or a generator from `load_generator`, whose `info` gets the claims.
        scores: rows that `evaluate` or `dim evaluate --json` measured. Those of other subjects, as controls, are passed over.

    Returns:
        The claims that it carries now.

    Raises:
        InputError: if no score is of the subject, a student of one diverged, or one does not say its protocol and the images that
            it is of; for a generator that was not loaded, or whose images a teacher labelled.
    """
    if not isinstance(getattr(subject, "info", None), dict):
        raise InputError("this generator does not say how it was made: load it with dim.load_generator first")
    made = [_made_of(subject, score) for score in scores if _is_row_of(subject, score)]
    if not made:
        raise InputError(f"none of {len(scores)} scores is of this set or generator: measure it with 'dim evaluate'")
    earlier = [each for each in claims_of(subject) if each.is_of(subject)]
    kept = {each.kind: each for each in [*earlier, *made]}
    subject.info[CLAIMS] = [each.to_dict() for each in kept.values()]
    return list(kept.values())


def _is_row_of(subject: SyntheticSet | Generator, score: Score) -> bool:
    own = score.made.get("digest")
    if own is None or score.track == "full":
        return False
    if isinstance(subject, Generator) and score.track == "fixed":  # the set that was drawn on the spot
        drawn = score.made.get("method") == "generator" and score.ipc is not None
        return drawn and own == identity(sample_set(subject, ipc=score.ipc))
    return own == identity(subject)


def _made_of(subject: SyntheticSet | Generator, score: Score) -> Claim:
    if score.mean is None:
        raise InputError(f"a {score.student} student of {score.name} diverged: expected a score with a mean to claim")
    if isinstance(subject, Generator):
        require_hard(score.labels)
    sampler = dict(subject.sampler) if isinstance(subject, Generator) else {}
    named = dataclasses.replace(score, name=Path(score.name).name)  # a path of this machine is nobody's business
    made = Claim(subject=subject_digest(subject), sampler=sampler, score=named)
    with reading(score.name, "its score cannot be claimed"):
        return Claim.from_dict(json.loads(json.dumps(made.to_dict())))  # as it will be read


def require_hard(labels: str) -> None:
    """Raise InputError for rows of a generator whose labels are a teacher's, as whoever verifies has no teacher."""
    if labels != "hard":
        remedy = "draw a set with its labels ('dim sample --teacher.folder') and claim that"
        raise InputError(f"labels are {labels!r}: the teacher is no part of the generator, so nobody could verify it; {remedy}")


# --- on disk -----------------------------------------------------------------------------------------------------------------


def require_claimable(name: str) -> None:
    """Raise InputError if a set or a generator on disk cannot be given claims, before anything is measured."""
    if name.startswith(HUB) or not Path(name).exists():
        raise InputError(f"{name!r} is on the Hub, and claims are written beside what is scored: copy it with 'dim export' first")
    if is_coded(name):
        raise InputError(f"{name!r} is a coded file, which holds no claims: give them to the set or run that it was made from")
    require_writable(_file_of(name), "claim")


def keep_claims(name: str, subject: SyntheticSet | Generator) -> None:
    """Write the claims of a subject, which was loaded from the folder or file `name`, there.

    Raises:
        InputError: if other images or weights are there by now, or another process works on that run.
    """
    path = _file_of(name)
    is_run = (path.parent / RUN).is_file()
    with sole_writer(path.parent) if is_run else contextlib.nullcontext():
        now = load_set(path.parent) if path.name == DESCRIPTION else load_generator_file(path)
        if isinstance(now, Generator):
            now.configure(**subject.sampler)
        if subject_digest(now) != subject_digest(subject):
            raise InputError(f"{name} holds other images or weights than those that were measured: measure it again")
        holder = stored if path.name == DESCRIPTION else generator_file
        holder.rewrite_claims(path, subject.info[CLAIMS])


def _file_of(name: str) -> Path:
    """The file that holds the claims of a set or a generator."""
    path = Path(name)
    if (path / DESCRIPTION).is_file():
        return path / DESCRIPTION
    return path / FILE_NAME if path.is_dir() else path
