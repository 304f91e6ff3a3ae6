"""Sampler policies: which of the images that a generator can make go into a set; one policy per file in `dim.emit.policies`.

A policy ranks a fixed number of candidates of every class: the generator's images number 0, 1, ... of that class. A set takes the
first of the ranking, so sets stay nested in their size and a function of (generator, seed, policy). Policies are applied one
after another; each takes what the one before left, in its order.

A refinement is repeated bit by bit on one CPU with one number of threads. A GPU's differs a little from one run to the next, so
there a smaller set is the beginning of a larger one only where both are drawn from one ranking.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dim.chunks import require_memory
from dim.config import POLICIES, PolicyConfig, RefineConfig, to_dict
from dim.data.real import RealData
from dim.errors import InputError
from dim.features.spaces import Features
from dim.nets.generator import Generator
from dim.sampler import identity
from dim.teacher import Teacher


@dataclass(frozen=True)
class Ranking:
    """Candidates of every class, best first."""

    numbers: tuple[Tensor, ...]
    """Per class, int64 (n,): numbers of the generator's images."""
    about: dict[str, Any]
    """The policy, what it was given, and the seconds that it took beside the making of the features, which are kept."""
    latents: Tensor | None = None
    """float32 (classes, n, Z) or (classes, n, Z + E), see `Generator`: in place of the latents that those images have."""
    refined: int | None = None
    """Images per class up to which latents are final; None: all are."""
    source: str = ""
    """Digest of the generator with the options of its sampler, and the seed."""

    def require(self, ipc: int) -> None:
        """Raise InputError if a class has fewer than `ipc` candidates left."""
        fewest = min(map(len, self.numbers))
        if ipc > fewest:
            left = f"the policy leaves {fewest} candidates of a class"
            raise InputError(f"ipc is {ipc} and {left}: raise --policy.candidates or --policy.keep")
        if self.refined is not None and ipc > self.refined:
            raise InputError(f"ipc is {ipc} and {self.refined} images of a class were refined: rank again with that ipc")

    def numbers_of(self, labels: Tensor, places: Tensor) -> Tensor:
        """Numbers of the generator's images that have these places in the rankings of their classes: int64 (B,), (B,) -> (B,)."""
        return torch.stack([self.numbers[label][place] for label, place in zip(labels.tolist(), places.tolist(), strict=True)])

    def latents_of(self, labels: Tensor, places: Tensor) -> Tensor | None:
        """Latents of these places if they are not those of the images' numbers: int64 (B,), (B,) -> float32 (B, Z or Z + E)."""
        return None if self.latents is None else self.latents[labels, places]


class Candidates:
    """The candidates of one class, made and judged when a policy first asks.

    Attributes:
        label: the class.
    """

    def __init__(self, generator: Generator, label: int, count: int, seed: int, teacher: Teacher | None) -> None:
        self.label = label
        self._generator, self._labels, self._seed, self._teacher = generator, torch.full((count,), label), seed, teacher

    @functools.cached_property
    def images(self) -> Tensor:
        """float32 (candidates, C, H, W) in [-1, 1], on the generator's device."""
        return self._generator.images(self._labels, torch.arange(len(self._labels)), seed=self._seed)

    @functools.cached_property
    def confidence(self) -> Tensor:
        """float32 (candidates,) in [0, 1], on the CPU: the teacher's probability of the class."""
        return self._teacher.confidence(self.images, self._labels).cpu()


@dataclass(frozen=True, kw_only=True)
class Given:
    """What policies may need; `Step.needs` says which of these a policy asks for, by name."""

    teacher: Teacher | None = None
    data: RealData | None = None
    features: Features | None = None
    experts: str | None = None
    """Folder of a store, made by `dim experts`."""
    refinement: RefineConfig | None = None
    state: Path | None = None
    """A file in which a refinement keeps its state, so that it goes on after a kill."""


_REMEDIES = {
    "teacher": "give a teacher (--teacher.folder)",
    "data": "give the real data (--data-root)",
    "features": "give features (dim.features.spaces.trained_features)",
    "experts": "give --teacher.folder, made by 'dim experts'",
}


class Step:
    """One policy. A subclass ranks candidates (`__call__`), or moves their latents (`moves` and `move`).

    Args:
        config: the settings, with the options of this policy.
        given: has what `needs` names.
    """

    needs: tuple[str, ...] = ()
    """Fields of `Given` that must be there."""
    moves = False
    """Whether `move` is to be called, after all policies have ranked."""
    seconds = 0.0
    """Wall time of getting ready."""
    seconds_before = 0.0
    """Wall time that killed processes had spent on what `move` went on from."""

    def __init__(self, config: PolicyConfig, given: Given) -> None:
        pass

    def __call__(self, candidates: Candidates, left: Tensor) -> Tensor:
        """Rank what is left of a class.

        Args:
            candidates: all candidates of the class.
            left: int64 (n,), the numbers of those that earlier policies left, best first.

        Returns:
            int64 (m,), some or all of `left`, best first.
        """
        return left

    def move(
        self, generator: Generator, numbers: Sequence[Tensor], seed: int, ipc: int | None, earlier: "Ranking | None"
    ) -> tuple[Tensor, int | None]:
        """Move the latents of what was ranked.

        Args:
            generator: makes images of latents.
            numbers: per class, int64 (n,), best first.
            seed: of the set.
            ipc: images per class that are wanted; None: as many as ever are moved.
            earlier: a ranking by the same policy for a smaller `ipc`, to go on from.

        Returns:
            float32 (classes, n, Z or Z + E) latents, and the images per class up to which they are final (None: all).
        """
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """What a set must say of this policy beside its options."""
        return {}


class Policy:
    """Ranks images of generators of one data set.

    Args:
        config: policies and their settings.
        given: what they need, as fields of `Given`.

    Raises:
        InputError: if a policy lacks what it needs.
    """

    def __init__(self, config: PolicyConfig, **given: Any) -> None:
        self.config, self.given = config, Given(**given)
        kinds = [POLICIES.load(name) for name in config.steps]
        for name, kind in zip(config.steps, kinds, strict=True):
            if missing := [need for need in kind.needs if getattr(self.given, need) is None]:
                raise InputError(
                    f"policy {name!r} needs {' and '.join(missing)}: {', '.join(_REMEDIES[need] for need in missing)}"
                )
        self._steps = [kind(config, self.given) for kind in kinds]
        self._prepared = sum(step.seconds for step in self._steps)

    def rank(self, generator: Generator, *, seed: int = 0, ipc: int | None = None, earlier: Ranking | None = None) -> Ranking:
        """Rank the first candidates of every class of a generator's set `seed`.

        Args:
            ipc: refine the latents of so many images per class (and the rest of their block). Default: of all blocks.
            earlier: made by this policy for the same generator and seed and a smaller `ipc`: its order and the blocks that it
                refined are taken over. The seconds that it took are counted.

        Raises:
            InputError: for an `ipc` below 1, if there are fewer candidates, or if `earlier` is of another generator, seed or
                policy.
        """
        if ipc is not None and ipc < 1:
            raise InputError(f"ipc is {ipc}: expected 1 or more images per class")
        started, about = time.perf_counter(), self._about()
        source = f"{identity(generator)} {seed}"
        if earlier is None:
            numbers, before = self._ranked(generator, seed), self._prepared
        elif (earlier.source, {**earlier.about, **about}) == (source, earlier.about):
            numbers, before = earlier.numbers, earlier.about["policy_seconds"]
        else:
            raise InputError("the earlier ranking is of another generator, seed or policy: rank without it")
        latents, refined = None, None
        for step in self._steps:
            if step.moves:
                latents, refined = step.move(generator, numbers, seed, ipc, earlier)
        before += sum(step.seconds_before for step in self._steps)
        about["policy_seconds"] = round(before + time.perf_counter() - started, 2)
        return Ranking(numbers, about, latents, refined, source)

    def _about(self) -> dict[str, Any]:
        """The policy, and what it was given."""
        about = {"policy": "+".join(self.config.steps) or "plain", "policy_settings": to_dict(self.config)}
        if self.given.teacher is not None:
            about["policy_teacher"] = self.given.teacher.name
        for step in self._steps:
            about |= step.about()
        return about

    def _ranked(self, generator: Generator, seed: int) -> tuple[Tensor, ...]:
        """Per class, numbers of the candidates that are left, best first."""
        numbers, count = [], self.config.candidates
        remedy = "lower --policy.candidates"
        require_memory(count * (4 * generator.spec.image_bytes + 64), f"{count:,} candidates of a class", remedy)
        for label in range(generator.spec.num_classes):
            candidates = Candidates(generator, label, self.config.candidates, seed, self.given.teacher)
            left = torch.arange(self.config.candidates)
            for step in self._steps:
                left = step(candidates, left)
            numbers.append(left)
        return tuple(numbers)
