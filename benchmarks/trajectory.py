"""Distill one data set by every trajectory-matching method, and score the sets beside their controls.

    python benchmarks/trajectory.py --suite mnist-ipc1 --data-root DIR [--out runs/trajectory]

Experts are recorded once per optimiser and shared; a run that lies finished in --out is not made again. MTT is run with each
way of taking the gradient, at equal iterations and at the time that the adjoint took, and with --directions also by the direction
of the student's displacement, at the recipe's step size.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from common import save

from dim.commands.malloc import keep_freed_memory
from dim.config import RecordConfig, TrajectoryRecipe, to_dict
from dim.data.real import RealData, load_data
from dim.data.synthetic import SyntheticSet, load_set
from dim.errors import InputError
from dim.pictures import save_png
from dim.recipes.load import load_recipe
from dim.run_folder import read_metrics
from dim.runs.distill import distill
from dim.score.evaluate import Evaluator
from dim.score.record import Score
from dim.score.report import format_accuracy
from dim.trajectory.record import record
from dim.trajectory.store import LAYOUT, ExpertStore, to_waypoints


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compare trajectory-matching methods."""

    suite: str
    """DATA-ipcN: the recipes DATA-mtt-ipcN, DATA-tesla-ipcN, DATA-datm-ipcN and DATA-mct-ipcN."""
    data_root: str | None = None
    """Where the real data lies. Default: the environment variable DIM_DATA_ROOT."""
    out: str = "runs/trajectory"
    """Folder for stores and sets."""
    seeds: int = 3
    """Students per row."""
    methods: tuple[str, ...] = ("mtt", "tesla", "datm", "mct")
    """Which recipes."""
    gradients: bool = True
    """Also run MTT with every way of taking the gradient."""
    directions: bool = False
    """Also run MTT with `trajectory.distance` `direction`."""
    name: str | None = None
    """Of the result. Default: `trajectory-` and the suite."""
    split: str = "test"
    """Part of the data to score on; val while choosing settings."""
    iterations: int | None = None
    """In place of the recipes' number."""
    device: str = "cpu"
    """cpu or cuda."""


class Suite:
    """Stores, runs and scores of one invocation."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments, self.out = arguments, Path(arguments.out) / arguments.suite
        self.name, _, size = arguments.suite.rpartition("-")
        self.recipes = {method: self.recipe(f"{self.name}-{method}-{size}") for method in arguments.methods}
        first = next(iter(self.recipes.values()))
        self.data: RealData = load_data(first.data, arguments.device)
        self.protocol = first.protocol
        self.rows: list[dict[str, Any]] = []

    def recipe(self, name: str) -> TrajectoryRecipe:
        recipe = load_recipe(name)
        root = self.arguments.data_root or os.environ.get("DIM_DATA_ROOT")
        changes: dict[str, Any] = {"data": dataclasses.replace(recipe.data, root=root)}
        if self.arguments.iterations is not None:
            changes["distill"] = dataclasses.replace(recipe.distill, iterations=self.arguments.iterations)
        return dataclasses.replace(recipe, **changes)

    def store(self, recipe: TrajectoryRecipe) -> Path:
        """The recipe's experts, recorded if they are not there; waypoints come from a full store if there is one."""
        full = dataclasses.replace(recipe.experts, waypoints=0, smooth=False)
        folder = self.out / f"experts-{full.optimizer}"
        if not _finished(folder):
            config = RecordConfig(about=recipe.about, student=recipe.student, zca=recipe.zca, data=recipe.data, experts=full)
            store = record(config, self.data, folder, resume=folder.exists(), device=self.arguments.device)
            print(f"{folder}: {store.summary()}", flush=True)
        if not recipe.experts.waypoints:
            return folder
        fewer = self.out / f"experts-{full.optimizer}-{recipe.experts.waypoints}"
        if not _finished(fewer):
            to_waypoints(ExpertStore.open(folder), fewer, recipe.experts.waypoints, smooth=recipe.experts.smooth)
        return fewer

    def run(self, name: str, recipe: TrajectoryRecipe) -> tuple[SyntheticSet, float]:
        """Distill, or take what lies there; the set and the seconds it took."""
        store, folder = self.store(recipe), self.out / name
        finished = (folder / "set.json").is_file() and load_set(folder).info["iterations"] == recipe.distill.iterations
        if not finished:
            distill(recipe, self.data, store, folder, resume=folder.exists(), device=self.arguments.device)
        made = load_set(folder)
        save_png(self.out / f"{name}.png", _picture(folder))
        losses = [entry["trajectory"] for entry in read_metrics(folder) if "trajectory" in entry]
        scores = self.evaluator(self.protocol).fixed(made, name)
        self.add(
            scores[0],
            recipe=to_dict(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=None))),
            gradient=recipe.trajectory.gradient,
            iterations=recipe.distill.iterations,
            distill_seconds=made.info["seconds"],
            step_size=made.info["step_size"],
            skipped=made.info["skipped"],
            first_loss=losses[0] if losses else None,
            last_loss=losses[-1] if losses else None,
            expert_bytes=ExpertStore.open(store).bytes(),
        )
        return made, made.info["seconds"]

    def evaluator(self, protocol: Any) -> Evaluator:
        return Evaluator(
            self.data, protocol, seeds=self.arguments.seeds, device=self.arguments.device, split=self.arguments.split
        )

    def add(self, score: Score, **facts: Any) -> None:
        self.rows.append({**facts, "score": score.to_dict()})
        extra = ", ".join(f"{k} {v:.4g}" for k, v in facts.items() if isinstance(v, float | int))
        print(f"{score.name}: {format_accuracy(score)} (labels {score.labels}; {extra})", flush=True)

    def random_with_soft_labels(self, recipe: TrajectoryRecipe, step_size: float) -> None:
        """Controls for learned labels: random real images with the experts' soft labels, at two learning rates."""
        start = dataclasses.replace(
            recipe,
            images=dataclasses.replace(recipe.images, init="real"),
            distill=dataclasses.replace(recipe.distill, iterations=0),
        )
        made = []
        for seed in range(self.arguments.seeds):
            folder = self.out / f"random-soft-{seed}"
            seeded = dataclasses.replace(start, distill=dataclasses.replace(start.distill, seed=seed))
            if not (folder / "set.json").is_file():
                distill(seeded, self.data, self.store(recipe), folder, device=self.arguments.device)
            made.append(load_set(folder))
        for lr in dict.fromkeys((self.protocol.lr, step_size)):
            protocol = dataclasses.replace(self.protocol, lr=lr, learned_lr=False)
            scores = []
            for seed, subject in enumerate(made):
                evaluator = Evaluator(
                    self.data, protocol, seeds=(seed,), device=self.arguments.device, split=self.arguments.split
                )
                scores.append(evaluator.fixed(subject, f"random real, the experts' soft labels, lr {lr:.3g}")[0])
            accuracies = tuple(score.accuracies[0] for score in scores)
            seeds = tuple(range(self.arguments.seeds))
            self.add(dataclasses.replace(scores[0], accuracies=accuracies, seeds=seeds), learning_rate=lr)


def _finished(folder: Path) -> bool:
    return (folder / LAYOUT).is_file() and ExpertStore.open(folder).complete


def _picture(folder: Path) -> Any:
    from PIL import Image

    return Image.open(sorted((folder / "samples").glob("step-*.png"))[-1])


def main(arguments: Arguments) -> None:
    suite = Suite(arguments)
    ipc = next(iter(suite.recipes.values())).images.ipc
    suite.add(suite.evaluator(suite.protocol).random_real(ipc)[0])
    seconds = {}
    for method, recipe in suite.recipes.items():
        made, seconds[method] = suite.run(method, recipe)
        if recipe.labels.kind == "learned":
            suite.random_with_soft_labels(recipe, made.info["step_size"])
    if arguments.gradients and "mtt" in suite.recipes:
        base = suite.recipes["mtt"]
        for gradient in ("unroll", "frozen"):
            changed = dataclasses.replace(base, trajectory=dataclasses.replace(base.trajectory, gradient=gradient))
            _, taken = suite.run(f"mtt-{gradient}", changed)
            affordable = max(1, round(base.distill.iterations * seconds["mtt"] / taken))
            equal = dataclasses.replace(changed, distill=dataclasses.replace(changed.distill, iterations=affordable))
            suite.run(f"mtt-{gradient}-equal-time", equal)
    if arguments.directions and "mtt" in suite.recipes:
        base = suite.recipes["mtt"]
        trajectory = dataclasses.replace(base.trajectory, distance="direction")
        step_size = dataclasses.replace(base.step_size, lr=0.0)
        suite.run("mtt-direction", dataclasses.replace(base, trajectory=trajectory, step_size=step_size))
    name = (arguments.name or f"trajectory-{arguments.suite}") + ("" if arguments.split == "test" else f"-{arguments.split}")
    print(save(name, {"ipc": ipc, "rows": suite.rows}, arguments.device))


if __name__ == "__main__":
    keep_freed_memory()
    try:
        main(tyro.cli(Arguments))
    except InputError as error:
        raise SystemExit(str(error)) from None
