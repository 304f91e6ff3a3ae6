"""The two stages of a training, the schedules within a stage, and what may change when a training is resumed."""

import math
from dataclasses import dataclass
from typing import Any

from dim import run_folder
from dim.config import StageConfig, TrainConfig
from dim.errors import InputError

MAY_CHANGE = (
    *run_folder.MAY_CHANGE,
    "fit.checkpoint_minutes",
    "fit.checkpoint_steps",
    "fit.sample_steps",
    "fit.coverage_steps",
    "fit.coverage_samples",
    "fit.log_steps",
    "fit.experts",
    "fit.trackers",
    "pool.experts",
    "path_matching.experts",
)
"""What may change when a training is resumed: nothing that the weights depend on."""
MAY_DEPART = (
    *(f"stage_{number}.{name}" for number in ("one", "two") for name in ("lr", "lr_end", "betas", "beta2_end")),
    *("adversarial.gamma", "adversarial.gamma_end", "matching.weight", "path_matching.weight", "pool.lr"),
    *("fit.clip_norm", "fit.precision"),
)
"""What may change while it is trained, if it is stated (--depart): no network, no data, no number of steps."""


FEW_STEPS = 2000
"""About as many as the demo's digits take; with fewer nothing was seen to be learned of other data."""


def few_steps(steps: float, *, settings: str, made_for: str, images: int, option: str, epochs: float) -> str:
    """What to say before a training of so few steps, as happens to settings in epochs for another data set; empty if they are
    enough.

    Args:
        steps: of training in all.
        settings: what they are, such as the name of a recipe.
        made_for: the data set that they were made for.
        images: training images now.
        option: the option that has the epochs.
        epochs: how many it has.
    """
    if not 0 < steps < FEW_STEPS:
        return ""
    why = f"{steps:.0f} steps of training in all, as {settings} {made_for} and these are {images} images"
    return f"dim: {why}: too few to learn them; try {option} {epochs * FEW_STEPS / steps:.0f}"


@dataclass(frozen=True)
class Stage:
    """A span of steps with its settings."""

    name: str
    config: StageConfig
    start: int
    stop: int
    matching: bool

    def scheduled(self, step: int, first: float, last: float | None) -> float:
        """A value at a step: constant, or a half cosine from the stage's first step to its end, where it stays."""
        if last is None:
            return first
        if self.stop == self.start:  # a stage that was left out has ended
            return last
        progress = min(1.0, (step - self.start) / max(1, self.stop - self.start))
        return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2

    def lr(self, step: int) -> float:
        """Learning rate at a step."""
        return self.scheduled(step, self.config.lr, self.config.lr_end)

    def settings(self, step: int) -> dict[str, Any]:
        """What the optimisers' settings are at a step."""
        beta1, beta2 = self.config.betas
        return {"lr": self.lr(step), "betas": (beta1, self.scheduled(step, beta2, self.config.beta2_end))}


def plan(config: TrainConfig, images: int) -> list[Stage]:
    """The stages of a run on so many training images.

    Raises:
        InputError: if there is nothing to train, or a stage that is to be trained has no step.
    """
    stages, start = [], 0
    for name, settings, matching in (("one", config.stage_one, False), ("two", config.stage_two, True)):
        steps = round(settings.epochs * images / settings.batch_size)
        if settings.epochs > 0 and steps == 0:
            least = math.ceil(100 * settings.batch_size / images) / 100
            what = f"stage_{name}.epochs is {settings.epochs:g}, which is no step for {images} images in batches of"
            raise InputError(f"{what} {settings.batch_size}: expected {least:g} or more, or 0 to leave the stage out")
        stages.append(Stage(name, settings, start, start + steps, matching and config.matching.weight > 0))
        start += steps
    if start == 0:
        lengths = f"stage_one.epochs is {config.stage_one.epochs:g} and stage_two.epochs {config.stage_two.epochs:g}"
        raise InputError(f"{lengths}: no step of training for {images} images; raise one of them")
    return stages
