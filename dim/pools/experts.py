"""Checkpoints along recorded trajectories, of the experts' own architecture; nothing is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.func import vmap

from dim import rng
from dim.config import PoolConfig, require
from dim.data.real import RealData
from dim.errors import InputError
from dim.pool import ModelPool
from dim.trajectory.experts import Experts

__all__ = ["ExpertPool"]


@dataclass(frozen=True, kw_only=True)
class ExpertOptions:
    """Of the pool `experts`."""

    experts: str | None = None
    """Folder made by `dim experts`."""
    ages: tuple[float, float] = (0.0, 1.0)
    """Youngest and oldest checkpoint, as parts of the recorded path."""
    oldest_at_first: float = 0.4
    """Oldest checkpoint when the stage begins. It grows to the second of `ages` while the stage lasts, as DATM's window does."""
    together: int = 1
    """Models per step, which judge the same images in one batched computation."""

    def __post_init__(self) -> None:
        require(self.together >= 1, "pool.together", self.together, "at least 1")
        low, high = self.ages
        require(0 <= low <= high <= 1, "pool.ages", self.ages, "two numbers in [0, 1], the smaller first")
        oldest = self.oldest_at_first
        require(low <= oldest <= high, "pool.oldest_at_first", oldest, f"a number in [{low}, {high}]")


class ExpertPool(ModelPool):
    """Checkpoints drawn from recorded experts. Ages are drawn from a window of the path that grows while the stage lasts, from
    easy to hard as in DATM (Guo et al. 2024).

    Args:
        config: the pool's settings; `experts` names the store.
        data: the real data, natural images.
        first_step, steps: the generator steps that the pool serves.
        seed: seed of the run.
        device: where members are evaluated.
        experts: those of the store, if they have been opened already.

    Raises:
        InputError: if the store is missing, damaged, unfinished, or of other data.
    """

    Options: ClassVar = ExpertOptions

    @classmethod
    def of_run(
        cls,
        config: PoolConfig,
        data: RealData,
        *,
        seed: int,
        steps: int = 1,
        first_step: int = 0,
        device: torch.device | str = "cpu",
        **rest: Any,
    ) -> Self:
        """As a run makes it; the rest is for pools that are trained."""
        return cls(config, data, first_step=first_step, steps=steps, seed=seed, device=device)

    def __init__(
        self,
        config: PoolConfig,
        data: RealData,
        *,
        first_step: int,
        steps: int,
        seed: int,
        device: torch.device | str = "cpu",
        experts: Experts | None = None,
    ) -> None:
        if config.experts is None:
            raise InputError("pool.source is 'experts' and pool.experts is not given: name a folder made by 'dim experts'")
        self.experts = experts or Experts(config.experts, data, device)
        self.network, self.paths = self.experts.network, self.experts.paths
        self.config, self._seed, self._first_step, self._steps = config, seed, first_step, max(1, steps)
        self._serving: tuple[int, Tensor] | None = None

    def window(self, step: int) -> tuple[float, float]:
        """Youngest and oldest age at a step, as parts of the path in [0, 1]."""
        low, high = self.config.ages
        progress = min(1.0, max(0.0, (step - self._first_step) / self._steps))
        return low, self.config.oldest_at_first + (high - self.config.oldest_at_first) * progress

    def thetas(self, step: int) -> Tensor:
        """Weights of the members that serve `step`, float32 (members, P)."""
        if self._serving is None or self._serving[0] != step:
            low, high = self.window(step)
            drawn = []
            for member in range(self.config.together):
                path = self.paths[rng.fold(self._seed, "pool-expert", step, member) % len(self.paths)]
                source = rng.generator(self._seed, "pool-age", step, member)
                part = low + (high - low) * float(torch.rand((), generator=source))
                drawn.append(path.theta(part * path.last))
            self._serving = (step, torch.stack(drawn).to(self.network.device))
        return self._serving[1]

    def draw(self, step: int) -> Callable[[Tensor], Tensor]:
        """See `ModelPool`: the first of the members that serve a step."""
        theta = self.thetas(step)[0]
        return lambda images: self.network.logits(theta, self.experts.seen(images))

    def outputs(self, images: Tensor, step: int, kind: Literal["logits", "features"]) -> Tensor:
        """See `ModelPool`: all members in one batched computation."""
        thetas, seen = self.thetas(step), self.experts.seen(images)
        function = self.network.features if kind == "features" else self.network.logits
        return function(thetas[0], seen)[None] if len(thetas) == 1 else vmap(function, in_dims=(0, None))(thetas, seen)

    def state(self) -> dict[str, Tensor]:
        """Which experts these are."""
        return self.experts.state()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Refuse other experts than the run began with, if it has had any."""
        self.experts.require_same(tensors)
