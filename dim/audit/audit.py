"""The audit: attacks on a set or a generator itself and on students trained on it, beside controls on real images."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dim.audit.asking import Answers, Asker
from dim.audit.candidates import Candidates
from dim.audit.likelihood import offline, online
from dim.audit.nearest import Space, copies, learned, nearest_distances, pixels
from dim.audit.rates import rates
from dim.config import ProtocolConfig, to_dict
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.features.spaces import load_features
from dim.io import digest
from dim.nets.generator import Generator
from dim.provenance import hardware, versions
from dim.sampler import identity, sample_set
from dim.score.evaluate import Evaluator
from dim.score.privacy import FALSE_POSITIVES, AuditResult, AuditRow, CopyRow
from dim.score.record import Score
from dim.spec import require_same_data

Subject = SyntheticSet | Generator
_ONLINE = 4  # references of the subject's kind; with fewer, too many images are in none or in all of them
_REFERENCE_SEED = 1000  # students of references share no seed with those that are attacked
_CONFIDENCE, _RATIO = "confidence", "likelihood ratio"


@dataclasses.dataclass(frozen=True)
class _Scores:
    """Scores of one attack, before members and others are told apart."""

    subject: str
    attack: str
    references: str
    values: Tensor
    accuracy: float | None = None


class Audit:
    """Attacks subjects of one data set that were made with the same members.

    Args:
        candidates: the images that are asked about, and which of them are members.
        protocol: how students are trained.
        seeds: students per attacked subject; their confidences are averaged.
        halves: students on random halves of the real candidates: references where the subject has none of its own kind, and of
            the controls. An even number; 0: none, and no controls.
        references: sets or generators of the subject's kind made from other parts of the data, by name, each with the candidates
            that it was made with, bool (N,). From four on, the likelihood ratio is the online one.
        ipc: for generators: images per class of the sets, and that the streams' step budgets stand for.
        tracks: for generators: `stream`, `fixed`, or both.
        samples: for generators: images that are drawn to look for near ones, balanced.
        features: `auto` (trained on a random half of the candidates, so that it does not know the members), or a path as
            `dim.features.spaces.inception_features` takes it.
        device: where to train.
        cache: see `dim.audit.asking.Asker`.
        report: called with a line when students were trained.

    Raises:
        InputError: for a number that is out of range.
    """

    def __init__(
        self,
        candidates: Candidates,
        protocol: ProtocolConfig,
        *,
        seeds: int = 1,
        halves: int = 8,
        references: Mapping[str, tuple[Subject, Tensor]] | None = None,
        ipc: int = 10,
        tracks: Sequence[Literal["stream", "fixed"]] = ("stream",),
        samples: int = 5000,
        features: str = "auto",
        device: torch.device | str = "cpu",
        cache: Path | str | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        for name, value in (("seeds", seeds), ("ipc", ipc)):
            if value < 1:
                raise InputError(f"{name} is {value}: expected 1 or more")
        if halves < 0 or halves % 2:
            raise InputError(f"halves is {halves}: expected an even number, as every second half is the rest of another, or 0")
        if samples < candidates.whole.spec.num_classes:
            raise InputError(f"samples is {samples}: expected at least {candidates.whole.spec.num_classes}, one of every class")
        self.candidates, self.protocol, self.seeds, self.halves = candidates, protocol, tuple(range(seeds)), halves
        self.references, self.ipc, self.tracks, self.samples = dict(references or {}), ipc, tuple(tracks), samples
        self._features, self.device = features, torch.device(device)
        alone = {student: dataclasses.replace(protocol, students=(student,)) for student in protocol.students}
        place = {"device": device, "cache": cache, "report": report}
        self._askers = {student: Asker(candidates, own, **place) for student, own in alone.items()}
        self._spaces: list[Space] | None = None

    def run(self, subject: Subject, name: str) -> AuditResult:
        """Attack a set or a generator, `subject`, of this `name`.

        Raises:
            InputError: if it was made for other data, a reference is of another kind, or a student diverged.
        """
        began = time.perf_counter()
        streamed = isinstance(subject, Generator) and "stream" in self.tracks
        require_same_data(subject.spec, self.candidates.whole.spec)
        for reference, (one, _) in self.references.items():
            require_same_data(one.spec, self.candidates.whole.spec)
            if streamed and not isinstance(one, Generator):
                raise InputError(f"reference {reference} is a set, which has no stream: expected generators, or --track fixed")
        drawn = self._drawn(subject)
        found = list(self._on_set(drawn))
        controls: list[_Scores] = []
        for student in self.protocol.students:
            attacked, steps = self._on_students(student, subject)
            found += attacked
            controls += self._controls(student, steps) if self.halves else []
        members = self.candidates.part(self.candidates.member)
        return AuditResult(
            name=name,
            digest=identity(subject),
            rows=tuple(row for scores in found for row in self._rows(scores)),
            controls=tuple(row for scores in controls for row in self._rows(scores)),
            copies=tuple(self._copies(drawn)),
            settings=self._settings(subject, len(drawn)),
            data=members.about(),
            seconds=round(time.perf_counter() - began, 2),
            hardware=hardware(self.device),
            versions=versions(),
        )

    def _settings(self, subject: Subject, images: int) -> dict[str, Any]:
        info = getattr(subject, "info", {})
        settings = {
            "step": info.get("about", {}).get("step", info.get("iterations")),
            "protocol": to_dict(self.protocol),
            "seeds": len(self.seeds),
            "halves": self.halves,
            "references": {name: identity(one) for name, (one, _) in self.references.items()},
            "images": images,
            **({} if isinstance(subject, SyntheticSet) else {"ipc": self.ipc, "tracks": self.tracks}),
        }
        return json.loads(json.dumps(settings))  # as it is read again

    # --- the set itself --------------------------------------------------------------------------------------------------------

    def _drawn(self, subject: Subject) -> SyntheticSet:
        if isinstance(subject, SyntheticSet):
            return subject
        return sample_set(subject, ipc=self.samples // subject.spec.num_classes)

    @property
    def spaces(self) -> list[Space]:
        """Where distances are taken. Features are those of a half that was drawn without regard to the members."""
        if self._spaces is None:
            half = self.candidates.part(self.candidates.half(0))
            self._spaces = [pixels(half.spec, self.device), learned(load_features(self._features, half))]
        return self._spaces

    def _on_set(self, drawn: SyntheticSet) -> Iterable[_Scores]:
        others = [self._drawn(reference) for reference, _ in self.references.values()]
        for space in self.spaces:
            near = -nearest_distances(self.candidates.images, [drawn, *others], space)
            yield _Scores("the set itself", f"nearest in {space.name}", "", near[0])
            if others:
                yield self._calibrated("the set itself", f"nearest in {space.name}", near[0], near[1:])

    def _copies(self, drawn: SyntheticSet) -> Iterable[CopyRow]:
        return (copies(self.candidates, drawn, space) for space in self.spaces)

    # --- students --------------------------------------------------------------------------------------------------------------

    def _on_students(self, student: str, subject: Subject) -> tuple[list[_Scores], int]:
        """Attacks on students of a subject, and the steps of the longest training among them."""
        found, steps = [], 0
        for track in ("fixed",) if isinstance(subject, SyntheticSet) else self.tracks:
            answers = self._ask(student, subject, self.candidates.member, track, self.seeds, "the subject")
            steps = max(steps, answers.steps)
            where = f"{student} on the {'set' if track == 'fixed' else 'stream'}"
            found.append(_Scores(where, _CONFIDENCE, "", answers.confidence, answers.accuracy))
            if self.references:
                parts = [
                    self._ask(student, other, mask, track, (_REFERENCE_SEED + number,), name).confidence
                    for number, (name, (other, mask)) in enumerate(self.references.items())
                ]
                found.append(self._calibrated(where, _RATIO, answers.confidence, torch.stack(parts), answers.accuracy))
            elif self.halves:
                known, inside = self._real_halves(student, steps)
                values = offline(answers.confidence, known, inside)
                about = f"{len(known)} models of real halves, offline"
                found.append(_Scores(where, _RATIO, about, values, answers.accuracy))
        return found, steps

    def _ask(self, student: str, subject: Subject, mask: Tensor, track: str, seeds: Sequence[int], name: str) -> Answers:
        """Answers of students on a subject, by its name, that was made with the candidates under a mask."""
        about = {"subject": identity(subject), "track": track}
        if isinstance(subject, Generator):
            about["ipc"] = self.ipc

        def measure(evaluator: Evaluator) -> list[Score]:
            if isinstance(subject, Generator) and track == "stream":
                return evaluator.stream(subject, self.ipc)
            return evaluator.fixed(subject if isinstance(subject, SyntheticSet) else sample_set(subject, ipc=self.ipc))

        return self._askers[student].ask(f"{name}, {track}", about, functools.partial(self.candidates.part, mask), measure, seeds)

    def _ask_real(self, student: str, mask: Tensor, steps: int, seeds: Sequence[int], name: str) -> Answers:
        """Answers of students on the real candidates under a mask."""
        about = {"real": digest({"mask": mask}), "steps": 0 if self.protocol.full_epochs else steps}
        train = functools.partial(self.candidates.part, mask)
        return self._askers[student].ask(name, about, train, lambda evaluator: evaluator.full(steps), seeds)

    def _real_halves(self, student: str, steps: int) -> tuple[Tensor, Tensor]:
        """What students on halves of the real candidates say, float64 (R, N), and who was in which, bool (R, N)."""
        masks = [self.candidates.half(number) for number in range(self.halves)]
        said = [
            self._ask_real(student, mask, steps, (_REFERENCE_SEED + number,), f"real half {number + 1}").confidence
            for number, mask in enumerate(masks)
        ]
        return torch.stack(said), torch.stack(masks)

    def _controls(self, student: str, steps: int) -> Iterable[_Scores]:
        """The members themselves, whose students are known to leak, and a half that was drawn without regard to them: chance."""
        said, inside = self._real_halves(student, steps)
        known = self._ask_real(student, self.candidates.member, steps, self.seeds, "the real members")
        where, about = f"{student} on the real members", f"{len(said)} models of real halves, online"
        yield _Scores(where, _CONFIDENCE, "", known.confidence, known.accuracy)
        yield _Scores(where, _RATIO, about, online(known.confidence, said, inside), known.accuracy)
        if self.halves >= _ONLINE:  # the first half and what it leaves out are no references of themselves
            where, about = f"{student} on a random real half", f"{len(said) - 2} models of real halves, online"
            yield _Scores(where, _RATIO, about, online(said[0], said[2:], inside[2:]))

    # --- rows ------------------------------------------------------------------------------------------------------------------

    def _calibrated(self, where: str, attack: str, observed: Tensor, others: Tensor, accuracy: float | None = None) -> _Scores:
        """The attack beside references of the subject's kind."""
        inside = torch.stack([mask for _, mask in self.references.values()])
        enough = len(others) >= _ONLINE
        about = f"{len(others)} of the same kind, {'online' if enough else 'offline'}"
        return _Scores(where, attack, about, (online if enough else offline)(observed, others, inside), accuracy)

    def _rows(self, scores: _Scores) -> Iterable[AuditRow]:
        """Rows for canaries, if there are any on both sides, and for all other images."""
        canary, member = self.candidates.canary, self.candidates.member
        known = ~scores.values.isnan()
        for kind, mask in (("usual", known & ~canary), ("canaries", known & canary)):
            if not bool((mask & member).any()) or not bool((mask & ~member).any()):
                continue
            found, area, members, others = rates(scores.values[mask], member[mask], FALSE_POSITIVES)
            yield AuditRow(
                subject=scores.subject,
                attack=scores.attack,
                references=scores.references,
                images=kind,
                members=members,
                others=others,
                rates=found,
                area=area,
                accuracy=None if scores.accuracy is None else round(scores.accuracy, 3),
            )
