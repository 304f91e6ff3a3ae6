"""Trajectory matching: a student trained on the images should end where experts went (MTT, TESLA, DATM, MCT)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dim import rng
from dim.augment import Augment
from dim.config import LabelsConfig, TrajectoryConfig
from dim.objectives import add_gradient
from dim.processes import ALONE, Processes
from dim.trajectory.flat import FlatNetwork
from dim.trajectory.hypergrad import Derivatives, hypergradient
from dim.trajectory.path import ExpertPath
from dim.trajectory.window import Window


def window_of(config: TrajectoryConfig) -> Window:
    """The window of start points that a configuration describes."""
    return Window(
        low=config.min_start,
        high=config.max_start,
        span=config.epochs,
        continuous=config.continuous,
        high_at_first=config.max_start_at_first,
        grows_for=config.grows_for,
    )


class TrajectoryMatching:
    """Every step draws experts and a stretch of their paths, lets a student take its N steps, and differentiates the distance
    to the target, or that between the directions, in the images, in label logits, and in the step size.

    Args:
        paths: one per expert.
        network: the student's architecture.
        config: what is matched, and how it is differentiated.
        labels: what `targets` mean.
        step_size: a scalar; if it requires a gradient, that is added to its `grad`.
        compile: compile the derivatives; the network should have been made for that.
        seed: of every draw.
        processes: those that share the experts of a step; means over them are what one process has, and are left to the caller.

    Raises:
        InputError: if the window reaches beyond a path.
    """

    def __init__(
        self,
        paths: Sequence[ExpertPath],
        network: FlatNetwork,
        config: TrajectoryConfig,
        labels: LabelsConfig,
        *,
        step_size: Tensor,
        seed: int,
        compile: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        self._processes = processes
        self.paths, self.network, self.config, self.labels = paths, network, config, labels
        self.step_size, self._seed = step_size, seed
        self.window = window_of(config)
        for path in paths:
            self.window.require_inside(path.last)
        self._augment = Augment(config.augment, network.spec)
        loss = network.loss_of_label_logits if labels.kind == "learned" else network.loss
        frozen = config.gradient == "frozen"
        order = None if config.order == "auto" else config.order
        if order is None and network.precision == "bf16":
            order = "reverse-over-forward"  # also uncompiled: a double backward is wrong for convolutions in bfloat16
        self._derivatives = Derivatives(loss, order=order, compile=compile, frozen=frozen)

    def batches(self, count: int, step: int, member: int = 0) -> list[Tensor]:
        """Indices of the student's batches: slices of one permutation of the images after another, int64 (b,) each."""
        size = min(self.config.batch_size or count, count)
        wanted = size * self.config.steps
        source = rng.generator(self._seed, "trajectory-batches", step, member)
        order = torch.cat([torch.randperm(count, generator=source) for _ in range(-(-wanted // count))])
        return list(order[:wanted].to(self.network.device).split(size))

    def accumulate(self, images: Tensor, targets: Tensor, *, real: Tensor | None = None, step: int) -> dict[str, Tensor]:
        """See `dim.objectives.Objective`. `targets` are labels, or label logits that require a gradient if they are learned."""
        chosen = [rng.fold(self._seed, "trajectory-expert", step, i) % len(self.paths) for i in range(self.config.experts)]
        starts, goals = [], []
        own = self._processes.part(range(len(chosen)))
        for member in own:
            path = self.paths[chosen[member]]
            # Experts of one batched computation share their start point as they share their batches.
            begin, end = self.window.draw(self._seed, step, 0 if self.config.together else member, path.last)
            starts.append(path.theta(begin).to(self.network.device))
            goals.append(path.theta(end).to(self.network.device))
        groups = list(zip(own, starts, goals, strict=True))
        if self.config.together:
            groups = [(0, torch.stack(starts), torch.stack(goals))]
        total = torch.zeros((), device=images.device)
        for member, start, goal in groups:
            batches = self.batches(len(images), step, member)
            draws = [
                self._augment.draw(
                    len(batch), rng.generator(self._seed, "trajectory-augment", step, member, index, device=images.device)
                )
                for index, batch in enumerate(batches)
            ]
            result = hypergradient(
                self._derivatives,
                start,
                goal,
                images.detach(),
                self._targets(goal, images, targets),
                self.step_size.detach(),
                batches,
                method=self.config.gradient,
                distance=self.config.distance,
                transform=(lambda index, x, draws=draws: self._augment.apply(x, draws[index]))
                if self._augment.families
                else None,
                offload=self.config.offload,
            )
            total += result.loss / len(groups)
            add_gradient(images, result.images / len(groups))
            if self.step_size.requires_grad:
                add_gradient(self.step_size, result.step_size / len(groups))
            if targets.requires_grad:
                add_gradient(targets, result.targets / len(groups))
        return {"trajectory": total}

    def _targets(self, goal: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        """What the student is trained towards."""
        if self.labels.kind != "teacher":
            return targets.detach()
        goals = goal[None] if goal.ndim == 1 else goal
        with torch.no_grad():
            mean = torch.stack([self.network.predict(theta, images.detach()).softmax(1) for theta in goals]).mean(0)
        return self._processes.mean(mean) if self.config.together else mean
