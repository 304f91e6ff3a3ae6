"""Losses of several steps, added up where they are, so that the host waits for the device only when it reads their means."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from dim.processes import ALONE, Processes


class Losses:
    """Means of scalar losses by name, over the processes that share every batch; a loss need not occur at every step."""

    def __init__(self, processes: Processes = ALONE) -> None:
        self._processes = processes
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Add the losses of a step: detached scalars on the device."""
        self._counts.update(losses.keys())
        for name, value in losses.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def means(self) -> dict[str, float]:
        """The mean of each loss over the steps that had it, asked for by all processes. The host waits for the device."""
        if not self._sums:
            return {}
        totals = self._processes.mean(torch.stack([value.float() for value in self._sums.values()])).tolist()
        return {name: total / self._counts[name] for name, total in zip(self._sums, totals, strict=True)}
