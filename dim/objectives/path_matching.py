"""Trajectory matching of a generator's weights: students trained on what it makes should go where experts went."""

import torch
from torch import Tensor

from dim import rng
from dim.config import LabelsConfig, PathMatchingConfig, TrajectoryConfig
from dim.data.real import RealData
from dim.errors import InputError
from dim.objectives import Objective, add_gradient
from dim.objectives.trajectory import TrajectoryMatching
from dim.processes import ALONE, Processes
from dim.trajectory.experts import Experts
from dim.trajectory.hypergrad import Distance


class Seen:
    """An objective of images as experts see them, for natural images."""

    def __init__(self, objective: Objective, experts: Experts) -> None:
        self._objective, self._experts = objective, experts

    def accumulate(self, images: Tensor, targets: Tensor, *, real: Tensor | None, step: int) -> dict[str, Tensor]:
        """See `dim.objectives.Objective`."""
        given = images.detach().requires_grad_()
        seen = self._experts.seen(given)
        cut = seen.detach().requires_grad_()
        losses = self._objective.accumulate(cut, targets, real=real, step=step)
        add_gradient(images, cut.grad if seen is given else torch.autograd.grad(seen, given, cut.grad)[0])
        return losses


def following(
    experts: Experts,
    *,
    steps: int,
    batch_size: int,
    span: float,
    starts: tuple[float, float],
    step_size: float,
    augment: str,
    seed: int,
    distance: Distance,
    compile: bool = False,
) -> Seen:
    """`TrajectoryMatching` of natural images with hard labels and a fixed step size, from start points anywhere in a window.

    Args:
        experts: made with `compiled` if `compile`.
        steps: of the student (N).
        batch_size: images per student step, at most; 0: all.
        span: recorded moments from start to target (M).
        starts: first and last start point, in recorded moments.
        step_size: the student's learning rate.
        augment: augmentation of the images, one draw per student step.
        seed: of every draw.
        distance: what is compared: where student and expert end, or only the direction in which they went.
        compile: compile the derivatives.
    """
    settings = TrajectoryConfig(
        steps=steps,
        batch_size=batch_size,
        epochs=span,
        min_start=starts[0],
        max_start=starts[1],
        continuous=True,
        distance=distance,
        augment=augment,
    )
    size = torch.tensor(step_size, device=experts.network.device)
    drawing = {"step_size": size, "seed": seed, "compile": compile}
    return Seen(TrajectoryMatching(experts.paths, experts.network, settings, LabelsConfig(), **drawing), experts)


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
        processes: those that share every batch. The student's steps follow one another, so each process takes them all, on the
            whole batch; more processes do not make this objective faster.

    Raises:
        InputError: if the store is missing, damaged, unfinished, or of other data, or the window reaches beyond it.
    """

    def __init__(
        self,
        config: PathMatchingConfig,
        data: RealData,
        *,
        first_step: int,
        seed: int,
        device: torch.device | str = "cpu",
        processes: Processes = ALONE,
    ) -> None:
        if config.experts is None:
            raise InputError(
                "path_matching.weight is above 0 and path_matching.experts is not given: name a folder of 'dim experts'"
            )
        self.experts = Experts(config.experts, data, device)
        self.experts.require_stretch(config.starts[1], config.epochs, "path_matching.starts with path_matching.epochs")
        self.config, self._first_step, self._processes = config, first_step, processes
        self.objective = following(
            self.experts,
            steps=config.steps,
            batch_size=config.batch_size,
            span=config.epochs,
            starts=config.starts,
            step_size=config.step_size,
            distance=config.distance,
            augment=config.augment,
            seed=rng.fold(seed, "path-matching", 0),
        )

    def accumulate(self, images: Tensor, targets: Tensor, *, real: Tensor, step: int) -> dict[str, Tensor]:
        """See `dim.objectives.Objective`; nothing where no step is due. The loss is returned before its weight."""
        if (step - self._first_step) % self.config.every:
            return {}
        processes = self._processes
        with torch.autocast(images.device.type, enabled=False):
            cut = processes.whole(images.detach()).requires_grad_()
            losses = self.objective.accumulate(cut, processes.whole(targets), real=real, step=step)
        add_gradient(images, self.config.weight * processes.world * processes.part(cut.grad))
        return losses

    def state(self) -> dict[str, Tensor]:
        """Which experts these are."""
        return self.experts.state()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Refuse other experts than the run began with, if it has had any."""
        self.experts.require_same(tensors)
