"""Keeps models of many architectures and training ages, and uses one per step; upkeep is spread thinly."""

from dataclasses import dataclass
from typing import ClassVar

from dim import rng
from dim.config import require
from dim.pool import TrainedOptions, TrainedPool

__all__ = ["PersistentPool"]


@dataclass(frozen=True, kw_only=True)
class PersistentOptions(TrainedOptions):
    """Of the pool `persistent`."""

    members: int = 10
    """Number of models that are kept. Architectures are dealt out in turn."""
    max_age: int = 1000
    """A model is replaced by a new one after this many SGD steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("members", "max_age"):
            require(getattr(self, name) >= 1, f"pool.{name}", getattr(self, name), "at least 1")


class PersistentPool(TrainedPool):
    """Members of all architectures and of many ages; a step takes one at random and trains it a little.

    A member is started afresh at `max_age` steps. First lives are cut short, each at another age, so that ages are
    spread from then on.
    """

    Options: ClassVar = PersistentOptions

    def _identity(self, step: int) -> tuple[int, int, str]:
        slot = rng.fold(self.seed, "pool-draw", step) % self.config.members
        member = self.slots.get(slot)
        generation = 0 if member is None else member.generation
        if member is not None and member.age >= self._lifetime(slot, generation):
            generation += 1
        return slot, generation, self._student(slot, generation)

    def _lifetime(self, slot: int, generation: int) -> int:
        share = (slot + 1) / self.config.members if generation == 0 else 1.0
        return max(1, round(self.config.max_age * share))

    def _student(self, slot: int, generation: int) -> str:
        """In turns over all members that there will be: every architecture has its share, however few members there are."""
        return self.config.students[(slot + generation * self.config.members) % len(self.config.students)]
