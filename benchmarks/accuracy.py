"""Train a recipe, draw sets, score them beside their controls, and save table, grid and wall time.

    python benchmarks/accuracy.py --recipe fashion-dim-small --data-root DIR [--out runs/bench] [--ipc 1 10 50]

An unfinished run in --out is resumed. The result is benchmarks/results/RECIPE[-TAG].json, with a sample grid beside it.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro
from common import RESULTS, Rows, Sources, save, scores_of, stamped_scores, train

from dim.commands.malloc import keep_freed_memory
from dim.config import to_dict
from dim.config.data import located
from dim.data.real import load_data
from dim.hub import load_generator
from dim.recipes.load import load_recipe
from dim.runs.accelerator import make_accelerator
from dim.sampler import sample_set
from dim.score.evaluate import Evaluator
from dim.score.record import Score
from dim.score.report import print_scores, real_grid, scores_to_json


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
    sources = Sources.of(__file__)
    config = load_recipe(arguments.recipe)
    config = dataclasses.replace(config, data=located(config.data, arguments.data_root))
    out = Path(arguments.out)
    accelerator = make_accelerator(config, out)
    data = load_data(config.data, accelerator.device)
    train(config, data, out, accelerator, sources)
    generator = load_generator(out, accelerator.device)
    protocol = config.protocol
    if arguments.students:
        protocol = dataclasses.replace(protocol, students=arguments.students)
    evaluator = Evaluator(data, protocol, seeds=arguments.seeds, device=accelerator.device)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=None))
    asked = {"config": to_dict(config), "protocol": to_dict(protocol), "seeds": arguments.seeds}
    rows = Rows(sources, accelerator.device, asked)

    def add(name: str, measure: Callable[[], list[Score]], **made_from: Path) -> None:
        rows.add(name, lambda: scores_of(measure()), made_from=made_from)

    for ipc in arguments.ipc:
        add(f"generator, fixed, IPC {ipc}", lambda ipc=ipc: evaluator.fixed(sample_set(generator, ipc=ipc), "generator"), run=out)
    for ipc in arguments.stream_ipc:
        add(f"generator, stream, IPC {ipc}", functools.partial(evaluator.stream, generator, ipc), run=out)
    for ipc in arguments.ipc:
        add(f"random real, IPC {ipc}", functools.partial(evaluator.random_real, ipc))
    for ipc in arguments.stream_ipc:
        add(f"oracle, IPC {ipc}", functools.partial(evaluator.oracle, ipc))
    steps = max(score["steps"] for row in rows.made for score in row["scores"])
    add("full data", functools.partial(evaluator.full, steps))
    print_scores([Score.from_dict(score) for row in rows.made for score in row["scores"]])
    about = generator.info["about"]
    content = {"train_seconds": about["seconds"], "train_steps": about["step"], "config": to_dict(config)}
    name = Path(arguments.recipe).stem + (f"-{arguments.tag}" if arguments.tag else "")
    print(save(name, {**content, **scores_to_json([]), "scores": stamped_scores(rows.made)}))
    shutil.copy(sorted((out / "samples").glob("step-*.png"))[-1], RESULTS / f"{name}-samples.png")
    real_grid(data).save(RESULTS / f"{name}-real.png")


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
