"""Trajectory matching of a generator's weights: students trained on what it makes should go where experts went."""

import torch
from torch import Tensor

from dim.config import LabelsConfig, PathMatchingConfig, TrajectoryConfig
from dim.data.real import RealData
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.objectives import add_gradient
from dim.objectives.trajectory import TrajectoryMatching
from dim.trajectory.flat import FlatNetwork
from dim.trajectory.path import paths_of
from dim.trajectory.store import open_experts_of


class PathMatching:
    """`TrajectoryMatching` of a generated batch, which is new at every step, with the exact gradient and a weight.

    Where pixels are distilled, one set of images learns to lead students along. Here any batch of the generator's should, so the
    gradient goes through the images into its weights. The student starts on an expert's path and takes steps of a fixed size.

    Args:
        config: `experts` names the store.
        data: the real data, natural images.
        first_step: the first generator step that is served.
        seed: seed of the run.
        device: where to work.

    Raises:
        InputError: if the store is missing, damaged, unfinished, or of other data, or the window reaches beyond it.
    """

    def __init__(
        self, config: PathMatchingConfig, data: RealData, *, first_step: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        if config.experts is None:
            raise InputError(
                "path_matching.weight is above 0 and path_matching.experts is not given: name a folder of 'dim experts'"
            )
        store, recorded = open_experts_of(config.experts, data.spec)
        self.config, self._first_step, self._digest = config, first_step, store.digest()
        self._whitening = Whitening.fit(data.train, data.spec, device=device) if recorded.zca else None
        seen = data.spec if self._whitening is None else self._whitening.spec
        settings = TrajectoryConfig(
            steps=config.steps,
            epochs=config.epochs,
            min_start=config.starts[0],
            max_start=config.starts[1],
            continuous=True,
            batch_size=config.batch_size,
            augment=config.augment,
        )
        self.objective = TrajectoryMatching(
            paths_of(store),
            FlatNetwork(recorded.student, seen, device),
            settings,
            LabelsConfig(),
            step_size=torch.tensor(config.step_size, device=device),
            seed=seed,
        )

    def accumulate(self, images: Tensor, targets: Tensor, *, real: Tensor, step: int) -> dict[str, Tensor]:
        """See `dim.objectives.Objective`; nothing where no step is due. The loss is returned before its weight."""
        if (step - self._first_step) % self.config.every:
            return {}
        given = images.detach().requires_grad_()
        seen = given if self._whitening is None else self._whitening.whiten(given)
        cut = seen.detach().requires_grad_()
        losses = self.objective.accumulate(cut, targets, real=real, step=step)
        gradient = cut.grad if seen is given else torch.autograd.grad(seen, given, cut.grad)[0]
        add_gradient(images, self.config.weight * gradient)
        return losses

    def state(self) -> dict[str, Tensor]:
        """Which experts these are."""
        return {"experts": torch.frombuffer(bytearray(bytes.fromhex(self._digest)), dtype=torch.uint8)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Refuse other experts than the run began with, if it has had any.

        Raises:
            InputError: if they are others.
        """
        if tensors and bytes(tensors["experts"].cpu().tolist()).hex() != self._digest:
            raise InputError(f"{self.config.experts} holds other experts than the run began with: resume with those")
