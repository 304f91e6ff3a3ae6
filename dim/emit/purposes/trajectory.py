"""Students that are trained on the set go where recorded experts went (GLaD, Cazenavette et al. 2023, with the exact
gradient)."""

from dataclasses import dataclass

import torch

from dim.compiling import work_repays, worth_compiling
from dim.config import RefineConfig, require
from dim.config.settings import Compile, Distance, FixedPrecision
from dim.data.real import RealData
from dim.emit.refine import of_block
from dim.errors import InputError
from dim.nets.student_step import training_flops
from dim.objectives import Objective
from dim.objectives.path_matching import following
from dim.trajectory.experts import Experts
from dim.trajectory.store import open_experts_of

__all__ = ["following_experts"]

_PASSES = 3  # what the exact gradient through a student's step costs, in steps


@dataclass(frozen=True, kw_only=True)
class TrajectoryOptions:
    """Of the purpose `trajectory`."""

    student_steps: int = 20
    """Steps of the student (N)."""
    student_batch: int = 100
    """Largest number of images per student step; the whole set while it is not larger."""
    span: tuple[float, ...] = (1.0, 3.0)
    """Recorded moments from start to target (M), for each block; the last holds for all later blocks."""
    distance: tuple[Distance, ...] = ("endpoint", "direction")
    """For each block, as in `dim distill --trajectory.distance`: whether students should end where experts went, or only move in
    that direction; the last holds for all later blocks."""
    step_size: float = 0.03
    """The student's learning rate."""
    augment: str = "color|crop|cutout|flip|scale|rotate"
    """Augmentation of the images, drawn anew for each student step."""
    precision: FixedPrecision = "fp32"
    """`bf16`: evaluate the student in bfloat16, as in `dim distill --trajectory.precision`. Several times faster, compiled, on
    hardware with bfloat16 matrix units."""
    compile: Compile = "auto"
    """Compile the derivatives. `auto`: where a block has work enough to make it worth it."""

    def __post_init__(self) -> None:
        for name in ("student_steps", "student_batch"):
            require(getattr(self, name) >= 1, f"refine.{name}", getattr(self, name), "at least 1")
        require(self.step_size > 0, "refine.step_size", self.step_size, "a positive number")
        require(bool(self.span) and min(self.span) > 0, "refine.span", self.span, "positive numbers")
        require(bool(self.distance), "refine.distance", self.distance, "endpoint or direction, for one block or more")
        low, high = self.ages[0] if self.ages else 0.0, self.ages[1:]
        moving = not high or low < min(high)
        require(moving, "refine.ages", self.ages, "the first below all others, as start points are drawn between them")


def following_experts(config: RefineConfig, folder: str, data: RealData, *, seed: int, device: torch.device) -> list[Objective]:
    """One objective for every block, as far as blocks differ; see `dim.emit.refine.build_objectives`."""
    youngest, *oldest = config.ages
    compile = _worth_compiling(config, folder, data, device)
    experts = Experts(folder, data, device, compiled=compile, precision=config.precision)
    if max(config.span) >= experts.last:
        raise InputError(f"refine.span is {max(config.span):g} and {folder} was recorded to {experts.last:g}: expected less")
    common = {
        "steps": config.student_steps,
        "batch_size": config.student_batch,
        "step_size": config.step_size,
        "augment": config.augment,
        "seed": seed,
        "compile": compile,
    }
    objectives = []
    for number in range(max(len(oldest), len(config.span), len(config.distance))):
        age, span = of_block(oldest, number), of_block(config.span, number)
        left = experts.last - span
        window = {"span": span, "starts": (youngest * left, age * left)}
        objectives.append(following(experts, **window, distance=of_block(config.distance, number), **common))
    return objectives


def _worth_compiling(config: RefineConfig, folder: str, data: RealData, device: torch.device) -> bool:
    calls = config.steps * config.student_steps
    if device.type != "cpu":
        return worth_compiling(config.compile, device, calls)
    _, recorded = open_experts_of(folder, data.spec)
    work = _PASSES * training_flops(recorded.student, data.spec) * config.student_batch * calls  # of a block
    return work_repays(config.compile, device, work, seconds=60)


following_experts.Options = TrajectoryOptions
