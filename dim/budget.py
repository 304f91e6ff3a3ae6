"""The most accuracy for a file of so many bytes: what of a generator or a set is stored, how much of it, and how precisely.

What a file of some size is worth cannot be told from its form, so it is measured: every candidate that fits is written, read
again, and scored by one student on the validation part of the real data. The test part is never looked at.
"""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dim.coding import container, pictures, weights
from dim.coding.generators import code_generator, load_coded_generator, with_calibration
from dim.coding.pictures import Codec
from dim.coding.sets import code_set
from dim.config import ProtocolConfig, to_dict
from dim.data.real import RealData, with_validation
from dim.data.synthetic import SyntheticSet, load_set
from dim.errors import InputError
from dim.loop import Progress
from dim.nets.generator import Generator, occurrence
from dim.score.evaluate import Evaluator
from dim.spec import to_uint8

CODECS = (
    *(Codec("avif", quality) for quality in (10, 25, 45, 65)),
    *(Codec("webp", quality) for quality in (5, 30, 60)),
    *(Codec("values", bits) for bits in (2, 3, 4, 8)),
    *(Codec("avif", quality, half=True) for quality in (45, 75)),
    *(Codec("values", bits, half=True) for bits in (3, 4)),
)
"""How images may be stored."""
MOST_IPC = 1000
"""Images per class that a file holds, at most, where no bound is given."""
BUDGET_IPC = 10
"""Candidates are compared at the student steps that the protocol has for so many images per class."""
_PILOT = 5  # images per class by which sizes are foretold
_ENOUGH = 0.97  # of the bytes, above which no more images are tried
_UNITS = {"": 1, "k": 10**3, "M": 10**6}

Draw = Callable[[int], SyntheticSet]
"""A set of so many images per class. Smaller sets are the beginning of larger ones."""


@dataclass
class Candidate:
    """Something that a file may hold."""

    what: str
    """In words."""
    kind: str
    """`generator` or `set`."""
    bytes: int
    """Of the whole file; where it does not fit or was not written, about as many."""
    ipc: int | None = None
    """Images per class of a set."""
    error: float | None = None
    """Root mean square difference of its images to those before coding, in levels of 255."""
    accuracy: float | None = None
    """In percent, on the validation part, of one student; None: it was not scored."""
    note: str = ""
    """Why it was not."""
    content: bytes = field(default=b"", repr=False)
    """Of the file."""

    def to_dict(self) -> dict[str, Any]:
        """All but the content, for JSON."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "content"}


def parse_bytes(text: str) -> int:
    """A number of bytes: `30000`, `30k`, `0.5M`; k is 1,000 and M is 1,000,000.

    Raises:
        InputError: for anything else, or less than 200 bytes or more than 1 GB.
    """
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("k", "M") else (text, "")
    try:
        size = float(number) * _UNITS[unit] if number.isascii() and not number.strip("0123456789.") else math.nan
    except ValueError:
        size = math.nan
    if not 200 <= size <= 10**9:
        raise InputError(f"bytes is {text!r}: expected a size from 200 to 1000M, such as 30k (30,000 bytes) or 1M")
    return int(size)


# --- candidates -------------------------------------------------------------------------------------------------------------


def image_candidates(
    draw: Draw, size: int, *, most: int = MOST_IPC, protocol: Callable[[int], ProtocolConfig], labels: str = "hard labels"
) -> list[Candidate]:
    """Coded images: for every way of storing them, as many as fit, but for those that another way stores in larger number and
    with less error.

    Args:
        draw: gives the images.
        size: bytes of the file.
        most: images per class, at most.
        protocol: what a file carries, by its number of images.
        labels: what they are, in words.

    Returns:
        A candidate for every way; no candidate if a coded file does not hold an image of every class, as where there are many
        classes of large images.
    """
    pilot = draw(min(_PILOT, most))
    spec = pilot.spec
    most = min(most, pictures.most_images(spec) // spec.num_classes)
    if most < 1:
        return []
    if pilot.ipc > most:
        pilot = draw(most)

    def content(ipc: int, codec: Codec) -> bytes:
        subject = draw(ipc) if ipc != pilot.ipc else pilot
        info = {**subject.info, "protocol": to_dict(protocol(len(subject)))}
        return code_set(subject.content(), spec, info, codec)

    images = to_uint8(pilot.images) if pilot.images.is_floating_point() else pilot.images
    found = []
    for codec in (codec for codec in CODECS if pictures.usable(codec, spec)):
        length = len(content(pilot.ipc, codec))
        coded = pictures.decode(pictures.encode(images, codec), len(images), spec, codec)
        error = float((coded.float() - images.float()).square().mean().sqrt())
        guess = min(most, int(pilot.ipc * size / length))
        about = length * max(guess, 1) // pilot.ipc
        found.append((codec, guess, Candidate(f"images, {codec}, {labels}", "set", about, guess or None, error)))
    for codec, guess, candidate in found:
        better = [
            other.what for _, more, other in found if more >= guess and other.error < candidate.error and other is not candidate
        ]
        if better and guess >= 1:
            candidate.note = f"not scored: {better[0]} stores as many with less error"
            continue
        _fill(candidate, lambda ipc, codec=codec: content(ipc, codec), max(guess, 1), size, most)
    return [candidate for _, _, candidate in found]


def _fill(candidate: Candidate, content: Callable[[int], bytes], guess: int, size: int, most: int) -> None:
    """Put as many images per class into a candidate as fit, beginning with a guess."""
    low, high, ipc = 0, most + 1, guess
    while low < ipc < high:
        found = content(ipc)
        if len(found) <= size:
            low, candidate.ipc, candidate.content, candidate.bytes = ipc, ipc, found, len(found)
            if len(found) >= _ENOUGH * size:
                break
        else:
            high = ipc
            if low == 0:
                candidate.bytes = len(found)
        ipc = min(max(int(ipc * size / len(found)), low + 1), high - 1)
    if not candidate.content:
        candidate.ipc, candidate.note = None, "does not fit: one image per class takes as many bytes"


def generator_candidates(generator: Generator, size: int, *, name: str = "generator", steps: int = 300) -> list[Candidate]:
    """The coded generator in the highest precision that fits; or one that does not, and says so.

    Args:
        generator: from `dim.load_generator`.
        size: bytes of the file.
        name: in words.
        steps: of calibration, see `dim.coding.calibration.calibrated`.
    """
    for bits in weights.BITS:
        content = code_generator(generator, bits)
        if len(content) > size:
            continue
        with Progress(f"calibrate at {bits} bits", steps) as progress:
            moved, (plain, error) = with_calibration(generator, bits, steps=steps, progress=progress.advance)
        content, error = (moved, error) if len(moved) <= size else (content, plain)
        return [Candidate(f"{name}, {bits} bits", "generator", len(content), error=127.5 * error, content=content)]
    note = f"does not fit: {len(content):,} bytes at {bits} bits"
    return [Candidate(f"{name}, {bits} bits", "generator", len(content), note=note)]


# --- choice -----------------------------------------------------------------------------------------------------------------


class Judge:
    """Scores candidates by one student each, on the validation part, all with about as many steps. Where the data have no such
    part, as published sets are made of all training images, a tenth of the training part stands for it.

    Args:
        data: the real data.
        protocol: how students are trained; the first of its students is.
        budget_ipc: images per class for which the protocol has these steps.
        device: where.
    """

    def __init__(
        self, data: RealData, protocol: ProtocolConfig, *, budget_ipc: int = BUDGET_IPC, device: torch.device | str = "cpu"
    ) -> None:
        self.data, self.device, self.budget_ipc = with_validation(data, apart=False), device, budget_ipc
        self.protocol = dataclasses.replace(protocol, students=protocol.students[:1])
        self.steps = protocol.steps(budget_ipc * data.spec.num_classes)
        self._evaluator(self.protocol)

    def protocol_for(self, images: int) -> ProtocolConfig:
        """The protocol with the epochs that make these steps, or nearly, for a set of so many images."""
        per_epoch = -(-images // self.protocol.batch_size)
        return dataclasses.replace(self.protocol, epochs=max(1, round(self.steps / per_epoch)))

    def _evaluator(self, protocol: ProtocolConfig) -> Evaluator:
        return Evaluator(self.data, protocol, seeds=1, split="val", device=self.device)

    def accuracy(self, candidate: Candidate) -> float | None:
        """Of a student of what the file gives when it is read; None if it diverged."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / f"candidate{container.SUFFIX}"
            path.write_bytes(candidate.content)
            if candidate.kind == "generator":
                generator = load_coded_generator(path, self.device)
                (score,) = self._evaluator(self.protocol).stream(generator, self.budget_ipc)
            else:
                subject = load_set(path, self.device)
                (score,) = self._evaluator(self.protocol_for(len(subject))).fixed(subject)
        return score.mean


def choose(candidates: Sequence[Candidate], judge: Judge, size: int) -> Candidate:
    """Score all candidates that fit, in place, and return the best; of equals, the smaller.

    Raises:
        InputError: if none fits.
    """
    if not candidates:
        raise InputError(f"bytes is {size:,} and a coded file holds too few images of this size for one of every class")
    fitting = [candidate for candidate in candidates if candidate.content]
    if not fitting:
        smallest = min(candidate.bytes for candidate in candidates)
        raise InputError(f"bytes is {size:,} and nothing fits: the smallest candidate takes {smallest:,}; give more")
    with Progress("score candidates", len(fitting)) as progress:
        for candidate in fitting:
            candidate.accuracy = judge.accuracy(candidate)
            progress.advance()
    scored = [candidate for candidate in fitting if candidate.accuracy is not None]
    if not scored:
        raise InputError("every student of a candidate diverged: lower the learning rate (--protocol.lr)")
    return max(scored, key=lambda candidate: (candidate.accuracy, -candidate.bytes))


# --- where images come from -------------------------------------------------------------------------------------------------


def nested(draw: Draw) -> Draw:
    """The same from a function that may take long: the largest set so far is kept, and smaller ones are its beginning."""
    kept: list[SyntheticSet] = []

    def beginning(ipc: int) -> SyntheticSet:
        if not kept or kept[0].ipc < ipc:
            kept[:] = [draw(ipc)]
        return first(kept[0], ipc)

    return beginning


def first(subject: SyntheticSet, ipc: int) -> SyntheticSet:
    """The first images of every class of a set, in the order in which classes take turns.

    Raises:
        InputError: if a class has fewer.
    """
    places = occurrence(subject.labels)
    counts = torch.bincount(subject.labels, minlength=subject.spec.num_classes)
    if int(counts.min()) < ipc:
        raise InputError(f"{ipc} images per class were asked for, and a class of the set has {int(counts.min())}")
    kept = (places < ipc).nonzero()[:, 0]
    kept = kept[torch.argsort(places[kept] * subject.spec.num_classes + subject.labels[kept])]

    def part(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[kept]

    return SyntheticSet(subject.images[kept], subject.labels[kept], subject.spec, soft=part(subject.soft), info=subject.info)


def table(candidates: Iterable[Candidate], chosen: Candidate | None) -> list[str]:
    """Lines that show candidates, best first, and those that were not scored."""
    rows = sorted(candidates, key=lambda one: (one.accuracy is None, -(one.accuracy or 0.0), one.bytes))
    width = max(len(row.what) for row in rows)
    lines = [f"  {'candidate':<{width}}  {'bytes':>11}  {'IPC':>5}  {'error':>6}  validation accuracy"]
    for row in rows:
        found = row.note if row.accuracy is None else f"{row.accuracy:.1f} %"
        error, ipc = "" if row.error is None else f"{row.error:.1f}", "" if row.ipc is None else f"{row.ipc:,}"
        lines.append(f"{'*' if row is chosen else ' '} {row.what:<{width}}  {row.bytes:>11,}  {ipc:>5}  {error:>6}  {found}")
    return lines
