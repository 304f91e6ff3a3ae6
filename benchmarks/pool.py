"""Time and accuracy of stage two with the published upkeep, the default pool, no matching, and bfloat16, in one run.

    python benchmarks/pool.py [--recipe digits-dim] [--data-root DIR] [--runs 3]

For every seed, one stage one serves all float32 variants; the bfloat16 variant has both stages in bfloat16.
"""

import dataclasses
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from common import begin_from, changed, save

from dim.commands.malloc import keep_freed_memory
from dim.config import TrainConfig, to_dict
from dim.data.real import RealData, load_data
from dim.hub import load_generator
from dim.recipes.load import load_recipe
from dim.runs.accelerator import make_accelerator
from dim.runs.train import fit
from dim.sampler import sample_set
from dim.score.evaluate import Evaluator


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compare pools."""

    recipe: str = "digits-dim"
    """Name or TOML file."""
    data_root: str | None = None
    """Where the real data lies. Default: the environment variable DIM_DATA_ROOT."""
    runs: int = 3
    """Generators per configuration, with seeds 0, 1, ..."""
    seeds: int = 2
    """Students per generator and row."""
    ipc: int = 10
    """Images per class of both rows."""


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "stage one alone": {"stage_two": {"epochs": 0.0}},
    "no matching": {"matching": {"weight": 0.0}},
    "published: fresh pool, 16 steps, random pairs": {
        "pool": {"source": "fresh", "upkeep_steps": 16, "upkeep_every": 1},
        "matching": {"distance": "pairs"},
    },
    "fresh pool, 16 steps, unbiased": {"pool": {"source": "fresh", "upkeep_steps": 16, "upkeep_every": 1}},
    "default: persistent pool, unbiased": {},
    "default in bfloat16": {"fit": {"precision": "bf16"}},
}


def stage_two(config: TrainConfig, data: RealData, first: Path, out: Path) -> float:
    """Train stage two from the stage one that lies in `first`, into `out`; returns the seconds that it took."""
    accelerator = make_accelerator(config, out)
    begin_from(first, config, data, out, accelerator.device)
    started = time.perf_counter()
    fit(config, data, out, resume=True, accelerator=accelerator)
    return time.perf_counter() - started


def main(arguments: Arguments) -> None:
    base = load_recipe(arguments.recipe)
    root = arguments.data_root or os.environ.get("DIM_DATA_ROOT")
    base = changed(base, {"data": {"root": root}, "fit": {"trackers": (), "sample_steps": 0}})
    device = make_accelerator(base, Path(tempfile.gettempdir())).device
    data = load_data(base.data, device)
    rows = {name: {"name": name, "seconds": [], "fixed": [], "stream": []} for name in VARIANTS}
    with tempfile.TemporaryDirectory() as scratch:
        for run in range(arguments.runs):
            firsts: dict[str, Path] = {}
            for number, (name, changes) in enumerate(VARIANTS.items()):
                config = changed(changed(base, changes), {"fit": {"seed": run}})
                first = firsts.setdefault(config.fit.precision, Path(scratch) / f"first-{run}-{config.fit.precision}")
                if not first.exists():
                    alone = changed(config, {"stage_two": {"epochs": 0.0}})
                    fit(alone, data, first, accelerator=make_accelerator(alone, first))
                out = Path(scratch) / f"{run}-{number}"
                row = rows[name]
                row["seconds"].append(stage_two(config, data, first, out))
                generator = load_generator(out, device)
                evaluator = Evaluator(data, config.protocol, seeds=arguments.seeds, device=device)
                row["fixed"].append(evaluator.fixed(sample_set(generator, ipc=arguments.ipc))[0].mean)
                row["stream"].append(evaluator.stream(generator, arguments.ipc)[0].mean)
                seconds, fixed, stream = (row[key][-1] for key in ("seconds", "fixed", "stream"))
                print(f"{name}, run {run}: {seconds:.1f} s, fixed {fixed:.1f}, stream {stream:.1f}", flush=True)
    for row in rows.values():
        parts = [f"{k} {statistics.fmean(row[k]):.1f} ± {statistics.stdev(row[k]):.1f}" for k in ("seconds", "fixed", "stream")]
        print(f"{row['name']}: {', '.join(parts)} (n = {arguments.runs})")
    base = dataclasses.replace(base, data=dataclasses.replace(base.data, root=None))
    content = {"ipc": arguments.ipc, "runs": arguments.runs, "students_per_run": arguments.seeds, "rows": list(rows.values())}
    print(save(f"pool-{Path(arguments.recipe).stem}", {**content, "config": to_dict(base)}, device))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
