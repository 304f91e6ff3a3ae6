"""The published CIFAR-10 settings of MTT, TESLA, DATM and MCT for a few iterations: loss and time per iteration.

    python benchmarks/published.py --data-root DIR [--iterations 20] [--out runs/published]

For machines where the whole of them is too long. Networks, N, M, batches, learning rates and whitening are the recipes'; what is
cut is stated in the result: one expert in place of a hundred, of a few epochs, and start points in its first ones. A row that
lies in --out and was made by the same sources is not made again; a call with all recipes finds those of earlier ones.
"""

import dataclasses
import functools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from common import KeepRows, Rows, Sources, note_sources, save

from dim.commands.malloc import keep_freed_memory
from dim.config import RecordConfig, TrajectoryRecipe, to_dict
from dim.config.data import located
from dim.data.real import load_data
from dim.recipes.load import load_recipe
from dim.runs.distill import Distiller
from dim.trajectory.record import record
from dim.trajectory.store import LAYOUT, ExpertStore


@dataclass(frozen=True, kw_only=True)
class Arguments(KeepRows):
    """Run published settings for a few iterations."""

    data_root: str | None = None
    """Where CIFAR-10 lies. Default: the environment variable DIM_DATA_ROOT."""
    recipes: tuple[str, ...] = ("cifar10-mtt-ipc1", "cifar10-tesla-ipc1", "cifar10-mct-ipc1", "cifar10-datm-ipc10")
    """Which."""
    iterations: int = 20
    """Of each."""
    epochs: int = 3
    """Of each expert."""
    max_start: float = 2
    """Start points lie below this epoch; the recipes' M epochs lie beyond it."""
    out: str = "runs/published"
    """Folder for experts and rows."""
    device: str = "cpu"
    """cpu or cuda."""


def cut(recipe: TrajectoryRecipe, arguments: Arguments) -> TrajectoryRecipe:
    """A published recipe with one short expert and a window inside it."""
    settings = recipe.trajectory
    window = {"min_start": 0.0, "max_start": arguments.max_start, "max_start_at_first": None, "grows_for": 0}
    fewer = {"waypoints": min(settings.waypoints, arguments.epochs + 1)} if settings.path == "convex" else {}
    return dataclasses.replace(
        recipe,
        experts=dataclasses.replace(recipe.experts, count=1, epochs=arguments.epochs, waypoints=0, smooth=False),
        trajectory=dataclasses.replace(settings, **window, **fewer, compile="on"),
        distill=dataclasses.replace(recipe.distill, iterations=arguments.iterations),
        data=located(recipe.data, arguments.data_root),
    )


def experts_of(recipe: TrajectoryRecipe, arguments: Arguments) -> Path:
    """Where the recipe's expert lies."""
    return Path(arguments.out) / f"{recipe.experts.optimizer}-{'zca' if recipe.zca else 'plain'}"


def measure(name: str, recipe: TrajectoryRecipe, arguments: Arguments, sources: Sources) -> dict[str, Any]:
    """A row's losses and times, with the expert recorded first if it does not lie there."""
    data, store = load_data(recipe.data, arguments.device), experts_of(recipe, arguments)
    if not ((store / LAYOUT).is_file() and ExpertStore.open(store).complete):
        note_sources(store, sources)
        config = RecordConfig(student=recipe.student, zca=recipe.zca, data=recipe.data, experts=recipe.experts)
        record(config, data, store, resume=store.exists(), device=arguments.device)
    run = Distiller(recipe, data, store, Path(arguments.out) / name, resume=False, device=torch.device(arguments.device))
    losses, seconds = [], []
    for _ in range(arguments.iterations):
        started = time.perf_counter()
        losses.append(run.iterate())
        seconds.append(time.perf_counter() - started)
    return {
        "losses": losses,
        "first_five": statistics.fmean(losses[:5]),
        "last_five": statistics.fmean(losses[-5:]),
        "seconds_per_iteration": statistics.median(seconds),
        "first_iteration_seconds": seconds[0],
        "skipped": run.skipped,
    }


def main(arguments: Arguments) -> None:
    sources = Sources.of(__file__)
    kept = {"folder": Path(arguments.out) / "rows", "keep": arguments.keep_rows}
    rows = Rows(sources, arguments.device, {"device": arguments.device}, **kept)
    for name in arguments.recipes:
        recipe = cut(load_recipe(name), arguments)
        described = to_dict(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=None)))
        make = functools.partial(measure, name, recipe, arguments, sources)
        row = rows.add(name, make, made_from={"experts": experts_of(recipe, arguments)}, config=described)
        print(
            f"{name}: loss {row['first_five']:.4f} (first five), {row['last_five']:.4f} (last five); "
            f"{row['seconds_per_iteration']:.2f} s per iteration",
            flush=True,
        )
    print(save(f"published-{arguments.device}", {"rows": rows.made}))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
