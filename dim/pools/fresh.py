"""Published: one newly initialised model per epoch, of an architecture drawn at random, thrown away at its end."""

from typing import ClassVar

from dim import rng
from dim.pool import TrainedOptions, TrainedPool

__all__ = ["FreshPool"]


class FreshPool(TrainedPool):
    """One newly initialised model per epoch."""

    Options: ClassVar = TrainedOptions

    def _identity(self, step: int) -> tuple[int, int, str]:
        epoch = (step - self._first_step) // self._steps_per_epoch
        return 0, epoch, self._student(0, epoch)

    def _student(self, slot: int, generation: int) -> str:
        return self.config.students[rng.fold(self.seed, "pool-student", generation) % len(self.config.students)]
