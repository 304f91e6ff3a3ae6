"""Time and accuracy of stage two with the published upkeep, the default pool, and no matching, in one run.

    python benchmarks/pool.py [--recipe digits-dim] [--data-root DIR] [--runs 3]

All start from the same stage one and train the same number of steps; every configuration is trained from several seeds.
"""

import dataclasses
import os
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from common import save

from dim.config import load_recipe, to_dict
from dim.data.real import load_data
from dim.evaluate import Evaluator
from dim.fit import fit, make_accelerator
from dim.host import keep_freed_memory
from dim.hub import load_generator
from dim.sampler import sample_set


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
    out: str = "runs/bench-pool"
    """Folder for the runs; it is removed at the end."""


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "no matching": {"matching": {"weight": 0.0}},
    "published: fresh pool, 16 steps, random pairs": {
        "pool": {"source": "fresh", "upkeep_steps": 16, "upkeep_every": 1},
        "matching": {"pairing": "random"},
    },
    "fresh pool, 16 steps, unbiased": {"pool": {"source": "fresh", "upkeep_steps": 16, "upkeep_every": 1}},
    "default: persistent pool, unbiased": {},
}


def main(arguments: Arguments) -> None:
    base = load_recipe(arguments.recipe)
    root = arguments.data_root or os.environ.get("DIM_DATA_ROOT")
    base = dataclasses.replace(base, data=dataclasses.replace(base.data, root=root))
    out, rows = Path(arguments.out), []
    for name, changes in VARIANTS.items():
        config = dataclasses.replace(base, **{k: dataclasses.replace(getattr(base, k), **v) for k, v in changes.items()})
        seconds, fixed, stream = [], [], []
        for run in range(arguments.runs):
            config = dataclasses.replace(config, fit=dataclasses.replace(config.fit, seed=run, trackers=(), sample_steps=0))
            accelerator = make_accelerator(config, out)
            data = load_data(config.data, accelerator.device)
            started = time.perf_counter()
            fit(config, data, out, accelerator=accelerator)
            seconds.append(time.perf_counter() - started)
            generator = load_generator(out, accelerator.device)
            evaluator = Evaluator(data, config.protocol, seeds=arguments.seeds, device=accelerator.device)
            fixed.append(evaluator.fixed(sample_set(generator, ipc=arguments.ipc))[0].mean)
            stream.append(evaluator.stream(generator, arguments.ipc)[0].mean)
            shutil.rmtree(out)
        row = {"name": name, "seconds": seconds, "fixed": fixed, "stream": stream}
        rows.append(row)
        parts = [
            f"{key} {statistics.fmean(row[key]):.1f} ± {statistics.stdev(row[key]):.1f}" for key in ("seconds", "fixed", "stream")
        ]
        print(f"{name}: {', '.join(parts)} (n = {arguments.runs})", flush=True)
    base = dataclasses.replace(base, data=dataclasses.replace(base.data, root=None))
    content = {"ipc": arguments.ipc, "runs": arguments.runs, "students_per_run": arguments.seeds, "rows": rows}
    print(save(f"pool-{Path(arguments.recipe).stem}", {**content, "config": to_dict(base)}, accelerator.device))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
