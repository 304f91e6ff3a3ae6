"""Sampler policies: which of the images that a generator can make go into a set.

A policy ranks a fixed number of candidates of every class: the generator's images number 0, 1, ... of that class. A set takes the
first of the ranking, so sets stay nested in their size and a function of (generator, seed, policy). Policies are put one after
another; each takes what the one before left, in its order:

- `filtered`: leaves the candidates in which a teacher sees their class most surely.
- `graded`: easy ones first and harder ones later, so that small sets are easy and large ones hold hard images too.
- `matched`: the group of every size whose feature statistics are nearest to those of the real class, greedily (herding).
- `refined`: comes last; the latents of what was taken are moved (`dim.emit.refine`), block by block, so that sets stay nested.

A refinement is repeated bit by bit on one CPU with one number of threads. A GPU's differs a little from one run to the next, so
there a smaller set is the beginning of a larger one only where both are drawn from one ranking.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dim.config import PolicyConfig, RefineConfig, to_dict
from dim.data.real import RealData
from dim.emit.refine import build_objectives, refine
from dim.errors import InputError
from dim.features.coreset import herding
from dim.features.spaces import Features
from dim.nets.generator import Generator
from dim.sampler import identity
from dim.teacher import Teacher
from dim.trajectory.store import open_experts_of


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


class Policy:
    """Ranks images of generators of one data set.

    Args:
        config: policies and their settings.
        teacher: `filtered` and `graded` ask it.
        data, features: `matched` compares with the real training images, in these features.
        refinement: what `refined` does.
        experts: folder of the store that `refined` asks; it needs `data` too.

    Raises:
        InputError: if a policy lacks what it needs.
    """

    def __init__(
        self,
        config: PolicyConfig,
        *,
        teacher: Teacher | None = None,
        data: RealData | None = None,
        features: Features | None = None,
        refinement: RefineConfig | None = None,
        experts: str | None = None,
    ) -> None:
        self.config, self.teacher, self.features = config, teacher, features
        self.refinement, self._experts, self._data = refinement or RefineConfig(), experts, data
        started, self._mark = time.perf_counter(), None
        if "refined" in config.steps:
            if experts is None or data is None:
                remedy = "give --teacher.folder, made by 'dim experts', and the data"
                raise InputError(f"policy 'refined' asks recorded experts: {remedy}")
            self._mark = open_experts_of(experts, data.spec)[0].digest()
        self._asks = bool({"filtered", "graded"} & set(config.steps))
        self._looks = self._asks or "matched" in config.steps
        if self._asks and teacher is None:
            raise InputError(f"policy {'+'.join(config.steps)} asks a teacher: give --teacher.folder")
        if "matched" in config.steps:
            if data is None or features is None:
                raise InputError("policy 'matched' compares with real images: give the data and features")
            points = features.of(data.train).double()
            self._mean, self._std = points.mean(0), points.std(0).clamp(min=1e-6)
            labels = data.train.labels.to(points.device)
            self._targets = [self._statistics(points[labels == label]).mean(0) for label in range(data.spec.num_classes)]
        self._prepared = time.perf_counter() - started

    def _statistics(self, points: Tensor) -> Tensor:
        """What is matched of features (N, F): standardised, beside their squares; float64 (N, 2 F) on the CPU."""
        values = (points.double() - self._mean) / self._std
        return torch.cat((values, values.square()), dim=1).cpu()

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
        ranking = Ranking(numbers, about, source=source)
        if "refined" in self.config.steps:
            blocks = self.refinement.blocks
            wanted = min(blocks[-1], min(map(len, numbers))) if ipc is None else ipc
            ranking.require(wanted)
            latents = self._refined(generator, numbers, seed, wanted, earlier)
            # The last block is the last that is ever refined, so what lies beyond it is final as well.
            refined = next((end for end in blocks[:-1] if end >= wanted), None)
            ranking = Ranking(numbers, about, latents, refined, source)
        about["policy_seconds"] = round(before + time.perf_counter() - started, 2)
        return ranking

    def _about(self) -> dict[str, Any]:
        """The policy, and what it was given."""
        about = {"policy": "+".join(self.config.steps) or "plain", "policy_settings": to_dict(self.config)}
        if self.teacher is not None:
            about["policy_teacher"] = self.teacher.name
        if self.features is not None:
            about["policy_features"] = {**self.features.to_dict(), "seconds": self.features.seconds}
        if "refined" in self.config.steps:
            about |= {"refinement": to_dict(self.refinement), "refinement_experts": self._mark}
        return about

    def _ranked(self, generator: Generator, seed: int) -> tuple[Tensor, ...]:
        """Per class, numbers of the candidates that are left, best first."""
        count, numbers = self.config.candidates, []
        for label in range(generator.spec.num_classes):
            labels, left = torch.full((count,), label), torch.arange(count)
            images = generator.images(labels, left, seed=seed) if self._looks else None
            sure = self.teacher.confidence(images, labels).cpu() if self._asks else None
            for name in self.config.steps:
                if name == "filtered":
                    left = left[filtered(sure[left], self.config.keep)]
                elif name == "graded":
                    left = left[graded(sure[left], self.config.half)]
                elif name == "matched":
                    points = self._statistics(self.features(images[left.to(images.device)]))
                    left = left[herding(points, len(points), mean=self._targets[label])]
            numbers.append(left)
        return tuple(numbers)

    def _refined(self, generator: Generator, numbers: Sequence[Tensor], seed: int, ipc: int, earlier: Ranking | None) -> Tensor:
        """Latents of all that was ranked, (classes, n, Z or Z + E): the first `ipc`, and the rest of their block, moved."""
        count = min(map(len, numbers))
        places = torch.stack([chosen[:count] for chosen in numbers])
        labels = torch.arange(len(numbers))[:, None].expand_as(places)
        latents, done = generator.latents(labels.flatten(), places.flatten(), seed=seed).view(*places.shape, -1), 0
        if earlier is not None:
            latents, done = earlier.latents, earlier.refined or count
        purposes = build_objectives(self.refinement, self._experts, self._data, seed=seed, device=generator.device)
        return refine(generator, latents, purposes, self.refinement, ipc, done=done).cpu()


def filtered(sure: Tensor, keep: float) -> Tensor:
    """Places of the share `keep` of highest confidence, in the order in which they came.

    Args:
        sure: float (n,) in [0, 1].
        keep: in (0, 1].
    """
    count = max(1, round(keep * len(sure)))
    return torch.argsort(sure, descending=True, stable=True)[:count].sort().values


def graded(sure: Tensor, half: int) -> Tensor:
    """Places in an order from easy to hard: turn i takes the free candidate nearest to the quantile i / (i + half) counted from
    the most confident one. The first is the easiest, turn `half` a median one, and late turns are hard.

    Args:
        sure: float (n,), confidence.
        half: 1 or more.

    Returns:
        int64 (n,), a permutation.
    """
    ranked = torch.argsort(sure, descending=True, stable=True)
    free, order = list(range(len(sure))), []
    for turn in range(len(sure)):
        wanted = turn / (turn + half) * (len(sure) - 1)
        order.append(free.pop(min(range(len(free)), key=lambda place: abs(free[place] - wanted))))
    return ranked[torch.tensor(order)]
