"""Distill one data set by every trajectory-matching method, and score the sets beside their controls.

    python benchmarks/trajectory.py --suite mnist-ipc1 --data-root DIR [--out runs/trajectory]

Experts are recorded once per optimiser and shared; a run that lies finished in --out is not made again. MTT is run with each
way of taking the gradient, at equal iterations and at the time that the adjoint took, and with --directions also by the direction
of the student's displacement, at the recipe's step size.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from common import Rows, Sources, note_sources, save

from dim.commands.malloc import keep_freed_memory
from dim.config import ProtocolConfig, RecordConfig, TrajectoryRecipe, to_dict
from dim.config.data import located
from dim.data.real import RealData, load_data
from dim.data.synthetic import SyntheticSet, load_set
from dim.errors import InputError
from dim.pictures import save_png
from dim.recipes.load import load_recipe
from dim.run_folder import read_metrics
from dim.runs.distill import distill
from dim.sampler import identity
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
        self.sources = Sources.of(__file__)
        self.arguments, self.out = arguments, Path(arguments.out) / arguments.suite
        self.name, _, size = arguments.suite.rpartition("-")
        self.recipes = {method: self.recipe(f"{self.name}-{method}-{size}") for method in arguments.methods}
        first = next(iter(self.recipes.values()))
        self.data: RealData = load_data(first.data, arguments.device)
        self.protocol = first.protocol
        asked = {"suite": arguments.suite, "protocol": to_dict(self.protocol), "seeds": arguments.seeds, "split": arguments.split}
        self.rows = Rows(self.sources, arguments.device, asked)

    def recipe(self, name: str) -> TrajectoryRecipe:
        recipe = load_recipe(name)
        changes: dict[str, Any] = {"data": located(recipe.data, self.arguments.data_root)}
        if self.arguments.iterations is not None:
            changes["distill"] = dataclasses.replace(recipe.distill, iterations=self.arguments.iterations)
        return dataclasses.replace(recipe, **changes)

    def places(self, recipe: TrajectoryRecipe) -> dict[str, Path]:
        """Where the recipe's experts lie, and before them those that they are waypoints of."""
        name, few = f"experts-{recipe.experts.optimizer}", recipe.experts.waypoints
        return {"experts": self.out / name} | ({"waypoints": self.out / f"{name}-{few}"} if few else {})

    def store(self, recipe: TrajectoryRecipe) -> Path:
        """The recipe's experts, recorded if they are not there; waypoints come from a full store if there is one."""
        full = dataclasses.replace(recipe.experts, waypoints=0, smooth=False)
        folder, *fewer = self.places(recipe).values()
        if not _finished(folder):
            note_sources(folder, self.sources)
            config = RecordConfig(about=recipe.about, student=recipe.student, zca=recipe.zca, data=recipe.data, experts=full)
            store = record(config, self.data, folder, resume=folder.exists(), device=self.arguments.device)
            print(f"{folder}: {store.summary()}", flush=True)
        for few in fewer:
            if not _finished(few):
                note_sources(few, self.sources)
                to_waypoints(ExpertStore.open(folder), few, recipe.experts.waypoints, smooth=recipe.experts.smooth)
        return [folder, *fewer][-1]

    def run(self, name: str, recipe: TrajectoryRecipe) -> tuple[SyntheticSet, float]:
        """Distill, or take what lies there, and score it; the set and the seconds it took."""
        folder = self.out / name
        described = to_dict(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=None)))
        facts = {"recipe": described, "gradient": recipe.trajectory.gradient, "iterations": recipe.distill.iterations}

        def make() -> dict[str, Any]:
            store = self.store(recipe)
            self.distill(recipe, store, folder)
            made = load_set(folder)
            save_png(self.out / f"{name}.png", _picture(folder))
            losses = [entry["trajectory"] for entry in read_metrics(folder) if "trajectory" in entry]
            return {
                "distill_seconds": made.info["seconds"],
                "step_size": made.info["step_size"],
                "skipped": made.info["skipped"],
                "first_loss": losses[0] if losses else None,
                "last_loss": losses[-1] if losses else None,
                "expert_bytes": ExpertStore.open(store).bytes(),
                "score": self.evaluator(self.protocol).fixed(made, name)[0].to_dict(),
            }

        self.show(self.rows.add(name, make, made_from={**self.places(recipe), "set": folder}, **facts))
        made = load_set(folder)
        return made, made.info["seconds"]

    def distill(self, recipe: TrajectoryRecipe, store: Path, folder: Path) -> None:
        """Distill, or go on with it, unless it lies there finished."""
        if not ((folder / "set.json").is_file() and load_set(folder).info["iterations"] == recipe.distill.iterations):
            note_sources(folder, self.sources)
            distill(recipe, self.data, store, folder, resume=folder.exists(), device=self.arguments.device)

    def random_real(self, ipc: int) -> None:
        """Control: random real images."""
        self.show(
            self.rows.add("random real", lambda: {"score": self.evaluator(self.protocol).random_real(ipc)[0].to_dict()}, ipc=ipc)
        )

    def evaluator(self, protocol: ProtocolConfig, seeds: tuple[int, ...] | None = None) -> Evaluator:
        settings = {"device": self.arguments.device, "split": self.arguments.split}
        return Evaluator(self.data, protocol, seeds=seeds or self.arguments.seeds, **settings)

    def show(self, row: dict[str, Any]) -> None:
        """Print a row: its score, and the numbers beside it."""
        score = Score.from_dict(row["score"])
        extra = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float | int))
        print(f"{score.name}: {format_accuracy(score)} (labels {score.labels}; {extra})", flush=True)

    def random_with_soft_labels(self, recipe: TrajectoryRecipe, step_size: float) -> None:
        """Controls for learned labels: random real images with the experts' soft labels, at two learning rates."""
        start = dataclasses.replace(
            recipe,
            images=dataclasses.replace(recipe.images, init="real"),
            distill=dataclasses.replace(recipe.distill, iterations=0),
        )
        folders = {f"set {seed}": self.out / f"random-soft-{seed}" for seed in range(self.arguments.seeds)}
        for seed, folder in enumerate(folders.values()):
            seeded = dataclasses.replace(start, distill=dataclasses.replace(start.distill, seed=seed))
            self.distill(seeded, self.store(recipe), folder)
        made = [load_set(folder) for folder in folders.values()]
        for lr in dict.fromkeys((self.protocol.lr, step_size)):
            protocol = dataclasses.replace(self.protocol, lr=lr, learned_lr=False)
            name = f"random real, the experts' soft labels, lr {lr:.3g}"

            def make(protocol: ProtocolConfig = protocol, name: str = name) -> dict[str, Any]:
                scores = [self.evaluator(protocol, (seed,)).fixed(subject, name)[0] for seed, subject in enumerate(made)]
                accuracies, seeds = tuple(score.accuracies[0] for score in scores), tuple(range(self.arguments.seeds))
                return {"score": dataclasses.replace(scores[0], accuracies=accuracies, seeds=seeds).to_dict()}

            given = {**self.places(recipe), **folders}
            scored = [identity(subject) for subject in made]
            self.show(self.rows.add(name, make, scored=scored, made_from=given, learning_rate=lr))


def _finished(folder: Path) -> bool:
    return (folder / LAYOUT).is_file() and ExpertStore.open(folder).complete


def _picture(folder: Path) -> Any:
    from PIL import Image

    return Image.open(sorted((folder / "samples").glob("step-*.png"))[-1])


def main(arguments: Arguments) -> None:
    suite = Suite(arguments)
    ipc = next(iter(suite.recipes.values())).images.ipc
    suite.random_real(ipc)
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
    print(save(name, {"ipc": ipc, "split": arguments.split, "rows": suite.rows.made}))


if __name__ == "__main__":
    keep_freed_memory()
    try:
        main(tyro.cli(Arguments))
    except InputError as error:
        raise SystemExit(str(error)) from None
