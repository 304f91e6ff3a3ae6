"""Train a recipe, draw sets, score them beside their controls, and save table, grid and wall time.

    python benchmarks/accuracy.py --recipe fashion-dim-small --data-root DIR [--out runs/bench] [--ipc 1 10 50]

An unfinished run in --out is resumed. The result is benchmarks/results/RECIPE[-TAG].json, with a sample grid beside it.
"""

import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import tyro
from common import RESULTS, save

from dim.commands.malloc import keep_freed_memory
from dim.config import to_dict
from dim.data.real import load_data
from dim.hub import load_generator
from dim.recipes.load import load_recipe
from dim.runs.train import fit, make_accelerator
from dim.sampler import sample_set
from dim.score.evaluate import Evaluator
from dim.score.record import Score
from dim.score.report import format_accuracy, print_scores, real_grid, scores_to_json


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure one recipe."""

    recipe: str
    """Name or TOML file."""
    data_root: str | None = None
    """Where the real data lies. Default: the environment variable DIM_DATA_ROOT."""
    out: str = "runs/bench"
    """Run folder."""
    ipc: tuple[int, ...] = (1, 10, 50)
    """Images per class of the fixed rows."""
    stream_ipc: tuple[int, ...] = (10,)
    """Images per class that the stream rows stand for."""
    seeds: int = 3
    """Students per row."""
    students: tuple[str, ...] = ()
    """Architectures. Default: the recipe's."""
    tag: str = ""
    """Added to the result's name."""


def main(arguments: Arguments) -> None:
    config = load_recipe(arguments.recipe)
    root = arguments.data_root or os.environ.get("DIM_DATA_ROOT")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=root))
    out = Path(arguments.out)
    accelerator = make_accelerator(config, out)
    data = load_data(config.data, accelerator.device)
    fit(config, data, out, resume=(out / "checkpoint.safetensors").exists(), accelerator=accelerator)
    generator = load_generator(out, accelerator.device)
    protocol = config.protocol
    if arguments.students:
        protocol = dataclasses.replace(protocol, students=arguments.students)
    scores: list[Score] = []

    def report(score: Score) -> None:
        scores.append(score)
        print(f"{score.name} {score.track} {score.ipc} {score.student}: {format_accuracy(score)}", flush=True)

    evaluator = Evaluator(data, protocol, seeds=arguments.seeds, device=accelerator.device, report=report)
    for ipc in arguments.ipc:
        evaluator.fixed(sample_set(generator, ipc=ipc), "generator")
    for ipc in arguments.stream_ipc:
        evaluator.stream(generator, ipc)
    for ipc in arguments.ipc:
        evaluator.random_real(ipc)
    for ipc in arguments.stream_ipc:
        evaluator.oracle(ipc)
    evaluator.full(max(score.steps for score in scores))
    print_scores(scores)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=None))
    about = generator.info["about"]
    content = {"train_seconds": about["seconds"], "train_steps": about["step"], "config": to_dict(config)}
    name = Path(arguments.recipe).stem + (f"-{arguments.tag}" if arguments.tag else "")
    print(save(name, {**content, **scores_to_json(scores)}, accelerator.device))
    shutil.copy(sorted((out / "samples").glob("step-*.png"))[-1], RESULTS / f"{name}-samples.png")
    real_grid(data).save(RESULTS / f"{name}-real.png")


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
