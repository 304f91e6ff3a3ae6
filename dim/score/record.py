"""Scores: what one row of a table says, and how its facts are called and read from files."""

import dataclasses
import statistics
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dim.config import ProtocolConfig, from_dict, to_dict
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.io import read_document, reading
from dim.nets.generator import Generator
from dim.score.controls import is_coreset
from dim.teacher import Teacher

Track = Literal["fixed", "stream", "full"]
ORACLE, FULL, REAL = "real stream (oracle)", "full data", "real data"


class OfStudents:
    """Mean and spread of a row's `accuracies`, in percent, of which those of students that diverged are None."""

    accuracies: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        """Mean accuracy over seeds, in percent; None if a student diverged."""
        return None if None in self.accuracies else statistics.fmean(self.accuracies)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for a single seed, or if a student diverged."""
        return None if None in self.accuracies or len(self.accuracies) < 2 else statistics.stdev(self.accuracies)


@dataclass(frozen=True, kw_only=True)
class Score(OfStudents):
    """One row: one source of images, one architecture, several seeds."""

    name: str
    """What was trained on: a set, a generator, or a control."""
    track: Track
    """`fixed`, `stream`, or `full` for the full data."""
    ipc: int | None
    """Images per class of the set, or that the stream's step budget stands for; None for the full data."""
    student: str
    """Architecture, with its options."""
    labels: str
    """`hard`, or `soft` with its teacher."""
    accuracies: tuple[float | None, ...]
    """Test accuracy in percent after the last step, one per seed; None of a student that diverged."""
    seeds: tuple[int, ...]
    """Of the students, in the order of `accuracies`."""
    steps: int
    """SGD steps."""
    batch_size: int
    """Images per step."""
    images_seen: int
    """Steps times batch size."""
    distinct_images: int
    """Different images among them, before augmentation."""
    bytes: dict[str, int]
    """Stored bytes: images and labels, and for a generator its weights. Real streams count the whole training part."""
    seconds: float
    """Wall time of all seeds."""
    split: str = "test"
    """Part of the real data that the accuracy is of."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """How students were trained: the fields of a `ProtocolConfig`."""
    data: dict[str, Any] = field(default_factory=dict)
    """What `dim.data.real.RealData.about` says of the real data and the part that the accuracy is of."""
    made: dict[str, Any] = field(default_factory=dict)
    """How the images came about: `method`; the `seconds` it took to produce them, None if that is not known; for sets and
    generators the `digest` of what was scored; where a learned step size was used, that (`step_size`) and the `protocol_lr` it
    stood in for; for coresets what `dim.features.coreset.Selector.about` says."""
    hardware: dict[str, Any] = field(default_factory=dict)
    """What `dim.provenance.hardware` says of the machine."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of Python and of the libraries that compute."""
    diverged: tuple[int | None, ...] = ()
    """For every seed the step at which its student's loss or weights stopped being finite, None where they did not; empty if no
    student diverged."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, and mean, std and n."""
        return {**dataclasses.asdict(self), "mean": self.mean, "std": self.std, "n": len(self.accuracies)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Score":
        """Inverse of `to_dict`: `values` are parsed JSON. What follows from other rows is left out.

        Raises:
            TypeError, ValueError: for a field that is missing, unknown, or of another type.
        """
        values = {key: value for key, value in values.items() if key not in ("mean", "std", "n", "hlr", "ior")}
        score = cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
        score.check()
        return score

    def check(self) -> None:
        """Raise TypeError or ValueError for a field of another type, a percentage that is none, or lists that disagree."""
        kinds = {"name": str, "student": str, "labels": str, "split": str, "steps": int, "batch_size": int, "images_seen": int}
        kinds |= {"distinct_images": int, "seeds": tuple, "accuracies": tuple, "diverged": tuple, "ipc": int | None}
        kinds |= dict.fromkeys(("bytes", "protocol", "data", "made", "hardware", "versions"), dict) | {"seconds": int | float}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} is {str(getattr(self, name))[:60]!r}")
        if self.track not in typing.get_args(Track):
            raise ValueError(f"track is {str(self.track)[:60]!r}")
        if not self.seeds or len(self.seeds) != len(self.accuracies) or len(self.diverged) not in (0, len(self.seeds)):
            raise ValueError(f"{len(self.accuracies)} accuracies of {len(self.seeds)} seeds")
        for value, diverged in zip(self.accuracies, self.diverged or (None,) * len(self.seeds), strict=True):
            fits = diverged is not None if value is None else isinstance(value, int | float) and 0 <= value <= 100
            if not fits:
                raise ValueError(f"accuracy is {value!r}")
        if not all(isinstance(size, int) and size >= 0 for size in self.bytes.values()):
            raise ValueError(f"bytes is {str(self.bytes)[:60]!r}")


def label_kind(teacher: Teacher | None) -> str:
    """What a score says of labels that a teacher gave, or of classes."""
    return "hard" if teacher is None else f"soft ({teacher.name})"


def label_kind_of(subject: SyntheticSet) -> str:
    """What a score says of a set's own labels."""
    return "hard" if subject.soft is None else f"soft ({subject.info.get('teacher', 'unnamed teacher')})"


def production_seconds(subject: SyntheticSet | Generator) -> float | None:
    """Seconds it took to make a set or a generator: training or distillation, policies with their features, and for a set the
    drawing.

    What they started from, such as recorded experts or pretrained weights, is not counted. None if the subject does not say.
    """
    if isinstance(subject, Generator):
        made = [getattr(subject, "info", {}).get("about", {})]
    else:
        made = [subject.info]
        if subject.info.get("method") == "generator":
            made.insert(0, subject.info.get("generator", {}))
    parts = [part for about in made for part in (about.get("seconds"), about.get("policy_seconds", 0.0))]
    features = [about["policy_features"] for about in made if about.get("policy_features")]
    parts += {one.get("digest"): one.get("seconds") for one in features}.values()
    return None if None in parts else sum(parts)


def read_scores(path: Path | str) -> list[Score]:
    """The rows in a file that `dim evaluate --json` or `dim compare --json` wrote.

    Raises:
        InputError: if it is missing, damaged, or holds something else.
    """
    content = read_document(path)
    if content.get("kind") != "scores" or not isinstance(content.get("scores"), list):
        raise InputError(f"{path} holds no scores: expected a file written by 'dim evaluate --json'")
    with reading(path, "a row is no score"):
        scores = [Score.from_dict(row) for row in content["scores"]]
    if not scores:
        raise InputError(f"{path} holds no row: expected at least one")
    return scores


def protocol_of(score: Score) -> ProtocolConfig:
    """The protocol of a row, with the protocol's own learning rate where the row used a learned one.

    Raises:
        InputError: if the row holds none that this version knows.
    """
    if not score.protocol:
        raise InputError(f"the row of {score.name} says no protocol: measure it again with 'dim evaluate'")
    lr = score.made.get("protocol_lr", score.protocol.get("lr"))
    # Rows that do not say how they were computed come from versions that computed all alike.
    return from_dict(ProtocolConfig, {"precision": "fp32", "compile": "off", **score.protocol, "lr": lr}, where="protocol.")


def protocol_differences(protocol: ProtocolConfig, reference: ProtocolConfig) -> list[str]:
    """Settings in which a protocol differs from another, as `name value (reference: value)`.

    Students and the budget of full data are left out: rows say these themselves.
    """
    first, second = to_dict(protocol), to_dict(reference)
    names = [name for name in first if name not in ("students", "full_epochs") and first[name] != second[name]]
    return [f"{name} {first[name]} (first row: {second[name]})" for name in names]


def arithmetic_note(scores: Sequence[Score]) -> str:
    """In what arithmetic the students of a table were trained: `float32`, `bfloat16, compiled`, or both with their rows."""
    names = {"fp32": "float32", "bf16": "bfloat16", "auto": "float32 or bfloat16"}
    kinds: dict[str, list[str]] = {}
    for score in scores:
        kind = names[score.protocol.get("precision", "fp32")]
        kind += ", compiled" if score.protocol.get("compile") == "on" else ""
        kinds.setdefault(kind, []).append(f"{score.name} at {score.steps:,} steps")
    if len(kinds) == 1:
        return f"Students in {next(iter(kinds))}."
    parts = [f"{kind} ({'; '.join(dict.fromkeys(rows))})" for kind, rows in kinds.items()]
    return f"Students differ in their arithmetic: {', '.join(parts)}."


def is_control(score: Score) -> bool:
    """Whether a row is of real images."""
    method = score.made.get("method")
    return method == REAL or is_coreset(method)
