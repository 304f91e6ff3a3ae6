"""Time and accuracy of stage two with the published upkeep, the default pool, no matching, and bfloat16, in one run.

    python benchmarks/pool.py [--recipe digits-dim] [--data-root DIR] [--runs 3]

For every seed, one stage one serves all float32 variants; the bfloat16 variant has both stages in bfloat16.
"""

import dataclasses
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from common import Rows, Sources, begin_from, changed, save

from dim.commands.malloc import keep_freed_memory
from dim.config import TrainConfig, to_dict
from dim.config.data import located
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
    sources = Sources.of(__file__)
    base = load_recipe(arguments.recipe)
    base = dataclasses.replace(base, data=located(base.data, arguments.data_root))
    base = changed(base, {"fit": {"trackers": (), "sample_steps": 0}})
    device = make_accelerator(base, Path(tempfile.gettempdir())).device
    data = load_data(base.data, device)
    measured: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "fixed": [], "stream": []} for name in VARIANTS}
    spent, scored = dict.fromkeys(VARIANTS, 0.0), {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as scratch:
        for run in range(arguments.runs):
            firsts: dict[str, Path] = {}
            for number, (name, changes) in enumerate(VARIANTS.items()):
                config = changed(changed(base, changes), {"fit": {"seed": run}})
                first = firsts.setdefault(config.fit.precision, Path(scratch) / f"first-{run}-{config.fit.precision}")
                if not first.exists():
                    alone = changed(config, {"stage_two": {"epochs": 0.0}})
                    fit(alone, data, first, accelerator=make_accelerator(alone, first))
                out, started = Path(scratch) / f"{run}-{number}", time.perf_counter()
                row = measured[name]
                row["seconds"].append(stage_two(config, data, first, out))
                generator = load_generator(out, device)
                evaluator = Evaluator(data, config.protocol, seeds=arguments.seeds, device=device)
                scores = {"fixed": evaluator.fixed(sample_set(generator, ipc=arguments.ipc))[0]}
                scores["stream"] = evaluator.stream(generator, arguments.ipc)[0]
                for track, score in scores.items():
                    row[track].append(score.mean)
                    scored[name].append(score.made["digest"])
                spent[name] += time.perf_counter() - started
                seconds, fixed, stream = (row[key][-1] for key in ("seconds", "fixed", "stream"))
                print(f"{name}, run {run}: {seconds:.1f} s, fixed {fixed:.1f}, stream {stream:.1f}", flush=True)
    base = dataclasses.replace(base, data=dataclasses.replace(base.data, root=None))
    asked = {"ipc": arguments.ipc, "runs": arguments.runs, "students_per_run": arguments.seeds}
    rows = Rows(sources, device, {**asked, "config": to_dict(base)})
    for name, row in measured.items():
        rows.put(name, row, spent[name], scored=scored[name], changes=VARIANTS[name])
        spread = {key: statistics.stdev(values) if len(values) > 1 else float("nan") for key, values in row.items()}
        parts = [f"{key} {statistics.fmean(values):.1f} ± {spread[key]:.1f}" for key, values in row.items()]
        print(f"{name}: {', '.join(parts)} (n = {arguments.runs})")
    print(save(f"pool-{Path(arguments.recipe).stem}", {**asked, "rows": rows.made, "config": to_dict(base)}))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
