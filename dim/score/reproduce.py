"""Which published protocol reproduces the score that others claim of a set, whose files do not say how it was scored.

Each protocol trains one student, which is scored on held-out training images. The protocol that comes nearest to the claim there
is the only one that is scored on the test part, by the test of `dim.score.agreement`. So nothing is chosen on the test part.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dim import rng
from dim.config import ProtocolConfig, to_dict
from dim.data.real import RealData, with_validation
from dim.data.synthetic import SyntheticSet
from dim.data.whiten import require_whitenable
from dim.errors import InputError
from dim.provenance import hardware, versions
from dim.score.agreement import Stated
from dim.score.evaluate import Evaluator
from dim.score.report import print_table
from dim.score.verify import STUDENTS, Verdict, examine, format_stated, fresh_seeds

_BATCH = 256  # images per step in the evaluation of DC, DSA, DM, MTT, TESLA and DATM


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A protocol, and what one of its students scores on held-out training images."""

    name: str
    """In what it differs from others."""
    protocol: ProtocolConfig
    """How the student was trained."""
    accuracy: float | None
    """In percent; None: it diverged."""

    @property
    def shown(self) -> str:
        """The accuracy as a cell of a table."""
        return "diverged" if self.accuracy is None else f"{self.accuracy:.1f}"

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {"name": self.name, "protocol": to_dict(self.protocol), "accuracy": self.accuracy}


def published_protocols(subject: SyntheticSet, base: ProtocolConfig) -> dict[str, ProtocolConfig]:
    """The ways in which sets of the literature are scored, by name: ZCA whitening or not, DSA's augmentation or none, batches of
    256 or those of `base`, the learned step size or that of `base`. Those that come to the same for this set are there once.

    Args:
        subject: the set.
        base: everything else, and what comes first.
    """
    whitenings = [base.zca, not base.zca]
    try:
        require_whitenable(subject.spec)
    except InputError:
        whitenings = [False]
    augmentations = dict.fromkeys((base.augment, ProtocolConfig().augment, ""))
    batches = dict.fromkeys(min(size, len(subject)) for size in (_BATCH, base.batch_size))
    learned = subject.info.get("step_size")
    rates = [False] if learned is None else [True, False]
    found = {}
    for zca, augment, batch, own_rate in itertools.product(whitenings, augmentations, batches, rates):
        parts = ["ZCA" if zca else "natural images", _augmentation(augment), f"batches of {batch}"]
        parts += [f"step size {learned if own_rate else base.lr:.3g}{' (learned)' if own_rate else ''}"]
        changes = {"zca": zca, "augment": augment, "batch_size": batch, "learned_lr": own_rate}
        found[", ".join(parts)] = dataclasses.replace(base, **changes)
    return found


def _augmentation(families: str) -> str:
    if families == ProtocolConfig().augment:
        return "DSA"
    return f"augmentation {families}" if families else "no augmentation"


def reproduce(
    subject: SyntheticSet,
    stated: Stated,
    data: RealData,
    protocol: ProtocolConfig,
    *,
    seeds: int = STUDENTS,
    device: torch.device | str = "cpu",
    seed: int = 0,
    name: str = "this set",
    report: Callable[[Attempt], None] = lambda attempt: None,
) -> tuple[list[Attempt], Verdict]:
    """Try the published protocols, and test the claim under the one that comes nearest to it.

    Args:
        subject: the set.
        stated: what others claim of its test accuracy.
        data: the real data.
        protocol: what all protocols have in common; of one student.
        seeds: students of the test.
        device: where to train.
        seed: another one trains other students.
        name: of the set.
        report: called with every attempt.

    Returns:
        All attempts, and the verdict on the claim under the nearest, or what was nearest.

    Raises:
        InputError: for several students, or if every student diverged.
    """
    if len(protocol.students) != 1:
        raise InputError(f"students is {', '.join(protocol.students)}: expected the one architecture that the claim is of")
    held_out, attempts = with_validation(data, apart=False), []  # what is fitted to the training part is fitted to all of it
    for kind, own in published_protocols(subject, protocol).items():
        settings = {"seeds": (rng.fold(seed, "reproduce"),), "device": device, "split": "val"}
        (row,) = Evaluator(held_out, own, **settings).fixed(subject)
        attempts.append(Attempt(name=kind, protocol=own, accuracy=row.mean))
        report(attempts[-1])
    nearest = _nearest(attempts, stated)
    evaluator = Evaluator(data, nearest.protocol, seeds=1, device=device)

    def train(number: int) -> Any:
        evaluator.seeds = (number,)
        (row,) = evaluator.fixed(subject)
        return row

    found = examine(train, stated, fresh_seeds(2 * seeds, (), seed), seeds)
    notes = (f"nearest protocol: {nearest.name}",)
    about = {
        "name": name,
        "track": "fixed",
        "ipc": subject.ipc,
        "student": protocol.students[0],
        "claimed": stated,
        "notes": notes,
    }
    about |= {"hardware": hardware(device), "versions": versions(), "protocol": to_dict(nearest.protocol)}
    return attempts, Verdict(**about, planned=seeds, **found)


def print_attempts(attempts: Sequence[Attempt], stated: Stated) -> None:
    """Print the table of the protocols that were tried."""
    cells = [
        (each.name, each.shown, "-" if each.accuracy is None else f"{each.accuracy - stated.mean:+.1f}") for each in attempts
    ]
    title = f"one student by each published protocol, on held-out training images; claimed: {format_stated(stated)}"
    print_table(title, ("protocol", "accuracy", "difference"), cells, ("protocol",))


def _nearest(attempts: list[Attempt], stated: Stated) -> Attempt:
    """The attempt that comes nearest to a claim; of equals the first."""
    trained = [attempt for attempt in attempts if attempt.accuracy is not None]
    if not trained:
        raise InputError(f"all {len(attempts)} students diverged: give the step size of the set with 'dim import --step-size'")
    return min(trained, key=lambda attempt: abs(attempt.accuracy - stated.mean))
