"""Stage two of one generator with different pools and distances, each for the same wall time.

    python benchmarks/matching.py --first RUN --recipe fashion-gan-small --experts STORE --data-root DIR [--minutes 5]

`--first` is a run that ended with stage one (such as `stage-one-alone` of `generators.py`). From its end one run per variant goes
on with the recipe's stage two, as many steps as the time allows. Every row has the steps per second, stream and fixed accuracy.
A run, or a row, that lies finished in --out is not made again.
"""

import dataclasses
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from common import Rows, begin_from, changed, epochs, save, scores_of, seconds_per_step

from dim.config import TrainConfig, from_dict, load_recipe
from dim.data.real import load_data
from dim.evaluate import Evaluator
from dim.fit import fit, make_accelerator
from dim.host import keep_freed_memory
from dim.hub import load_generator
from dim.io import read_json, write_json
from dim.nets.generators import Generator
from dim.run import RUN, read_run
from dim.sampler import sample_set

FAITHFUL = {"source": "fresh", "images": "real", "upkeep_steps": 16, "upkeep_every": 1}
EXPERTS = {"source": "experts", "images": "real"}
REAL = {"source": "persistent", "images": "real"}
GENERATED = {"source": "persistent", "images": "generated"}
MEANS = {"distance": "means", "outputs": "logits"}
PATHS = {"weight": 1.0, "every": 2}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "no matching": {"matching": {"weight": 0.0}},
    "published: fresh pool, 16 upkeep steps, pairs, weight 0.01": {
        "pool": FAITHFUL,
        "matching": {"distance": "pairs", "outputs": "logits", "weight": 0.01},
    },
    "fresh pool, 16 upkeep steps": {"pool": FAITHFUL, "matching": MEANS},
    "own pool of real images": {"pool": REAL, "matching": MEANS},
    "own pool of generated images": {"pool": GENERATED, "matching": MEANS},
    "expert pool": {"pool": EXPERTS, "matching": MEANS},
    "expert pool, 4 together": {"pool": {**EXPERTS, "together": 4}, "matching": MEANS},
    **{
        f"own pool of generated images, {distance} of {outputs}": {
            "pool": GENERATED,
            "matching": {"distance": distance, "outputs": outputs},
        }
        for distance in ("pairs", "means", "moments", "kernel", "characteristic")
        for outputs in ("logits", "features")
        if (distance, outputs) != ("means", "logits")
    },
    "trajectories, no pool": {"matching": {"weight": 0.0}, "path_matching": PATHS},
    "own pool of generated images, and trajectories": {"pool": GENERATED, "matching": MEANS, "path_matching": PATHS},
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compare pools and distances."""

    first: str
    """A run that ended with stage one."""
    experts: str
    """Recorded experts of the same data."""
    recipe: str = "fashion-gan-small"
    """Whose stage two is varied."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Which of them."""
    name: str = "matching-fashion-gan"
    """Of the result."""
    data_root: str | None = None
    """Where the real data lies. Default: the environment variable DIM_DATA_ROOT."""
    out: str = "runs/matching"
    """Run folders and rows."""
    minutes: float = 5.0
    """Wall time of each stage two."""
    students: tuple[str, ...] = ("convnet:width=64",)
    """Architectures that are trained on what the generators make."""
    ipc: int = 10
    """Images per class of both tracks."""
    seeds: int = 3
    """Students per score."""
    split: str = "test"
    """Part of the data to score on; val while choosing settings."""


def varied(arguments: Arguments, variant: str) -> TrainConfig:
    """The configuration of a variant; its networks and stage one are those of the first run."""
    first: TrainConfig = from_dict(TrainConfig, read_run(Path(arguments.first))["config"])
    recipe: TrainConfig = load_recipe(arguments.recipe)
    base = dataclasses.replace(first, stage_two=recipe.stage_two, matching=recipe.matching, pool=recipe.pool, about=recipe.about)
    root = arguments.data_root or os.environ.get("DIM_DATA_ROOT")
    config = changed(changed(base, {"data": {"root": root}}), VARIANTS[variant])
    if config.pool.source == "experts":
        config = changed(config, {"pool": {"experts": arguments.experts}})
    if config.path_matching.weight > 0:
        config = changed(config, {"path_matching": {"experts": arguments.experts}})
    return config


def both_tracks(evaluator: Evaluator, generator: Generator, ipc: int, name: str) -> dict[str, Any]:
    """A row's scores."""
    return scores_of(evaluator.fixed(sample_set(generator, ipc=ipc), name) + evaluator.stream(generator, ipc, name))


def main(arguments: Arguments) -> None:
    base = varied(arguments, "no matching")
    accelerator = make_accelerator(base, Path(arguments.out))
    data = load_data(base.data, accelerator.device)
    protocol = dataclasses.replace(base.protocol, students=arguments.students)
    evaluator = Evaluator(data, protocol, seeds=arguments.seeds, device=accelerator.device, split=arguments.split)
    asked = {key: getattr(arguments, key) for key in ("students", "seeds", "ipc", "split", "minutes")}
    rows = Rows(Path(arguments.out) / "rows", asked)
    for variant in arguments.variants:
        config = varied(arguments, variant)
        folder = Path(arguments.out) / variant.replace(" ", "-").replace(",", "").replace(":", "")
        timed = folder / "seconds-per-step.json"
        if not timed.is_file():
            write_json(timed, {"seconds": seconds_per_step(config, data)[1]})
        seconds = read_json(timed)["seconds"]
        steps = round(60 * arguments.minutes / seconds)
        config = changed(config, {"stage_two": {"epochs": epochs(steps, config.stage_two.batch_size, data)}})
        run = folder / "run"
        if not run.exists():
            begin_from(Path(arguments.first), config, data, run, accelerator.device)
        fit(config, data, run, resume=True)
        generator = load_generator(run, accelerator.device)
        described = read_json(run / RUN)["config"]
        for section, key in (("data", "root"), ("pool", "experts"), ("path_matching", "experts")):
            described[section][key] = None
        make = functools.partial(both_tracks, evaluator, generator, arguments.ipc, variant)
        rows.add(variant, make, steps=steps, steps_per_second=round(1 / seconds, 3), config=described)
    about = {"ipc": arguments.ipc, "minutes": arguments.minutes, "split": arguments.split, "threads": torch.get_num_threads()}
    print(save(arguments.name, {**about, "rows": rows.made}, accelerator.device))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
