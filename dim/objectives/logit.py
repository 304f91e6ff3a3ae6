"""Matching through a pool: the outputs of its models for real and for generated images agree (DiM, Wang et al. 2023, section
3.3)."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dim import rng
from dim.augment import Augment
from dim.config import DISTANCES, MatchingConfig
from dim.objectives import add_gradient
from dim.pool import ModelPool
from dim.processes import ALONE, Processes
from dim.spec import DataSpec


class MatchingDistance(Protocol):
    """A distance between outputs for real and for generated images; one file each in `dim.objectives.distances`."""

    def __init__(self, config: MatchingConfig, spec: DataSpec, *, seed: int) -> None:
        """Args: the settings, with the options of this distance; the data; the seed of the run."""

    def __call__(self, real: Tensor, generated: Tensor, labels: Tensor, step: int) -> Tensor:
        """The distance, differentiable in the outputs of generated images.

        Args:
            real, generated: float32 (B, F) outputs of one model: log-probabilities or features.
            labels: int64 (B,), the class of both images of a row.
            step: number of the step, from which every random draw derives.

        Returns:
            A scalar.
        """
        ...


class PoolMatching:
    """Makes the outputs of a pool's models for generated images agree with those for real images of the same classes.

    Both sides get one augmentation draw. Of several processes, each compares the outputs for the whole batch. Departures from the
    published code: images are normalised alike everywhere (it normalised [-1, 1] images with [0, 1] statistics), and the default
    distance does not pull towards collapse.
    """

    def __init__(
        self, pool: ModelPool, config: MatchingConfig, spec: DataSpec, *, seed: int, processes: Processes = ALONE
    ) -> None:
        self.pool, self.config = pool, config
        self._augment, self._seed, self._processes = Augment(config.augment, spec), seed, processes
        self._distance: MatchingDistance = DISTANCES.load(config.distance)(config, spec, seed=seed)

    def _outputs(self, images: Tensor, step: int) -> Tensor:
        """What the members that serve a step say of the whole batch, (members, B, F)."""
        outputs = self.pool.outputs(images, step, self.config.outputs)
        return self._processes.whole(outputs if self.config.outputs == "features" else F.log_softmax(outputs, dim=2), dim=1)

    def accumulate(self, images: Tensor, targets: Tensor, *, real: Tensor, step: int) -> dict[str, Tensor]:
        """See `dim.objectives.Objective`. The loss is returned before its weight."""
        source = rng.generator(self._seed, "matching-augment", step, 0, device=images.device)
        draw = self._augment.draw(len(images), source, self._processes)
        targets = self._processes.whole(targets)
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                wanted = self._outputs(self._augment.apply(real, draw), step)
            given = self._outputs(self._augment.apply(images, draw), step)
            pairs = zip(wanted, given, strict=True)
            loss = torch.stack([self._distance(ours, theirs, targets, step) for ours, theirs in pairs]).mean()
        add_gradient(images, torch.autograd.grad(self.config.weight * loss, images)[0])
        return {"matching": loss.detach()}
