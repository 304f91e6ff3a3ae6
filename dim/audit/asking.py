"""Students that are trained and asked how sure they are of every candidate's label.

What they said is kept in the cache folder, so that a killed audit goes on, and another one of the same data finds its references.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dim.audit.candidates import Candidates
from dim.audit.likelihood import confidence
from dim.chunks import FORWARD, JUDGED
from dim.config import ProtocolConfig, to_dict
from dim.data.real import RealData
from dim.data.splits import asked_in_parts
from dim.errors import InputError
from dim.io import cache_folder, digest, keep_tensors, load_tensors
from dim.nets.student import mixed_parts
from dim.score.evaluate import Evaluator
from dim.score.record import Score

_FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Answers:
    """What students of one subject said."""

    confidence: Tensor
    """float64 (N,): mean over students of their confidence in the labels of the candidates."""
    accuracy: float
    """Mean test accuracy in percent."""
    steps: int
    """SGD steps of each."""


class Asker:
    """Trains students and asks them about the candidates, or recalls what they said.

    Args:
        candidates: the images.
        protocol: how students are trained; one architecture.
        device: where.
        cache: folder in which answers are kept. Default: the user's, see `dim.io.cache_folder`.
        report: called with a line when students were trained.
    """

    def __init__(
        self,
        candidates: Candidates,
        protocol: ProtocolConfig,
        *,
        device: torch.device | str = "cpu",
        cache: Path | str | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.candidates, self.protocol, self.device, self.report = candidates, protocol, torch.device(device), report
        self._folder = cache_folder("audit") if cache is None else Path(cache)
        whole = candidates.whole
        self._asked = {"format": _FORMAT, "protocol": to_dict(protocol), "device": self.device.type}
        self._asked |= {"candidates": [whole.spec.fingerprint, whole.digest("val") if len(whole.val) else None]}

    def ask(
        self,
        name: str,
        about: Mapping[str, Any],
        train: Callable[[], RealData],
        measure: Callable[[Evaluator], Sequence[Score]],
        seeds: Sequence[int],
    ) -> Answers:
        """Train a student per seed and ask it.

        Args:
            name: of what they are trained on, for the report.
            about: all that the students depend on beside protocol, seeds and device, as JSON.
            train: gives the data, whose training part fits them (statistics, whitening) and whose test part scores them.
            measure: trains them by a row of the evaluator.
            seeds: of the students.

        Raises:
            InputError: if a student diverged.
        """
        key = digest({}, json.dumps({**self._asked, **about, "seeds": list(seeds)}, sort_keys=True))
        path = self._folder / f"{key}.safetensors"
        try:
            tensors, facts = load_tensors(path)
            return Answers(tensors["confidence"], facts["accuracy"], facts["steps"])
        except InputError:  # absent, or damaged: made again
            answers = self._train(name, train(), measure, seeds)
            keep_tensors(path, {"confidence": answers.confidence}, {"accuracy": answers.accuracy, "steps": answers.steps})
            return answers

    def _train(self, name: str, data: RealData, measure: Callable[[Evaluator], Sequence[Score]], seeds: Sequence[int]) -> Answers:
        said: list[Tensor] = []

        def trained(student: str, seed: int, predict: Callable[[Tensor], Tensor]) -> None:
            parts = mixed_parts(len(self.candidates.images))  # some students normalise by the images that they are asked about

            def answer(images: Tensor, labels: Tensor) -> Tensor:
                return confidence(predict(images.to(self.device)), labels)

            said.append(asked_in_parts(answer, self.candidates.images, parts, largest=JUDGED, budget=FORWARD))

        evaluator = Evaluator(data, self.protocol, seeds=seeds, device=self.device, trained=trained)
        (score,) = measure(evaluator)
        if score.mean is None:
            raise InputError(f"a student on {name} diverged, so it cannot be asked: lower the learning rate (--protocol.lr)")
        self.report(f"{name}: {len(seeds)} student{'s' if len(seeds) > 1 else ''}, {score.mean:.1f} %, {score.seconds:.0f} s")
        return Answers(torch.stack(said).mean(0), score.mean, score.steps)
