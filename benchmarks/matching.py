"""Stage two of one generator with different pools and distances, each for the same wall time.

    python benchmarks/matching.py --first RUN --recipe fashion-gan-small --experts STORE --data-root DIR [--minutes 5]

`--first` is a run that ended with stage one (such as `stage-one-alone` of `generators.py`). From its end one run per variant
goes on with the recipe's stage two, as many steps as the time allows: with other pools at the recipe's weight, and with other
distances, each at the weight at which it pulls as hard as the recipe's. `published` has the pool and the matching of
`fashion-dim2023-small`. Every row has the steps per second, stream and fixed accuracy. A run that lies finished in --out is not
made again, and neither is a row that the same sources made.
"""

import dataclasses
import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from common import KeepRows, Rows, Sources, begin_from, changed, epochs, save, scores_of, seconds_per_step, train

from dim import rng
from dim.commands.malloc import keep_freed_memory
from dim.config import TrainConfig, from_dict
from dim.config.data import located
from dim.data.real import EpochBatches, RealData, load_data
from dim.hub import load_generator
from dim.io import read_json, write_json
from dim.nets.generator import Generator
from dim.recipes.load import load_recipe
from dim.run_folder import RUN, read_run
from dim.runs.accelerator import make_accelerator
from dim.runs.train import Trainer
from dim.sampler import identity, sample_set
from dim.score.evaluate import Evaluator

FAITHFUL = {"source": "fresh", "images": "real", "upkeep_steps": 16, "upkeep_every": 1}
EXPERTS = {"source": "experts"}
PATHS = {"weight": 1.0, "every": 2, "steps": 20, "epochs": 1.0, "starts": (0.0, 15.0), "step_size": 0.02}
OURS = "own pool of generated images"
POOLS: dict[str, dict[str, dict[str, Any]]] = {
    "no matching": {"matching": {"weight": 0.0}},
    "published": {},
    "fresh pool, 16 upkeep steps": {"pool": FAITHFUL},
    "own pool of real images": {"pool": {"images": "real"}},
    OURS: {},
    "expert pool": {"pool": EXPERTS},
    "expert pool, 4 together": {"pool": {**EXPERTS, "together": 4}},
    "trajectories, no pool": {"matching": {"weight": 0.0}, "path_matching": PATHS},
    "own pool of generated images, and trajectories": {"path_matching": PATHS},
}
# Each at the weight at which it pulls as hard as the recipe's own.
DISTANCES: dict[str, dict[str, dict[str, Any]]] = {
    f"{distance} of {outputs}": {"matching": {"distance": distance, "outputs": outputs}}
    for distance in ("pairs", "means", "moments", "kernel", "characteristic")
    for outputs in ("logits", "features")
}
VARIANTS = POOLS | DISTANCES


@dataclass(frozen=True, kw_only=True)
class Arguments(KeepRows):
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
    if variant == "published":
        published: TrainConfig = load_recipe("fashion-dim2023-small")
        base = dataclasses.replace(base, matching=published.matching, pool=published.pool)
    config = changed(dataclasses.replace(base, data=located(base.data, arguments.data_root)), VARIANTS[variant])
    if config.pool.source == "experts":
        config = changed(config, {"pool": {"experts": arguments.experts}})
    if config.path_matching.weight > 0:
        config = changed(config, {"path_matching": {"experts": arguments.experts}})
    return config


def pull(config: TrainConfig, data: RealData, first: Path) -> float:
    """Norm of the matching stage's gradient in the generator's weights, over 20 steps when the pool has had 60, by its root
    mean square."""
    squares = []
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        accelerator = make_accelerator(config, run)
        begin_from(first, config, data, run, accelerator.device)
        trainer = Trainer(config, data, run, accelerator, resume=True)
        size, begin = config.stage_two.batch_size, trainer.step
        batches = EpochBatches(data.train, size, seed=config.fit.seed, purpose="pull")
        weights = list(trainer.generator.parameters())
        for step in range(begin, begin + 80):
            real, labels = batches.at(step - begin)
            latents = torch.randn(size, trainer.generator.latent_dim, generator=rng.generator(config.fit.seed, "pull", step))
            images = trainer.generator(latents.to(real.device), labels)
            for part in range(len(trainer.pool.due(step))):
                trainer.pool.advance(images.detach(), labels, step, part)
            if step >= begin + 60:
                leaf = images.detach().requires_grad_()
                trainer.matching.accumulate(leaf, labels, real=real, step=step)
                gradients = torch.autograd.grad(images, weights, leaf.grad, allow_unused=True)
                squares.append(sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None))
    return (sum(squares) / len(squares)) ** 0.5


def balanced(arguments: Arguments, config: TrainConfig, data: RealData, kept: Path) -> TrainConfig:
    """The configuration with the weight at which its distance pulls as hard as the recipe's; measured once, then kept."""
    if not kept.is_file():
        wanted = Path(arguments.out) / "pull.json"
        if not wanted.is_file():
            write_json(wanted, {"pull": pull(varied(arguments, OURS), data, Path(arguments.first))})
        ours = pull(config, data, Path(arguments.first))
        write_json(kept, {"weight": config.matching.weight * read_json(wanted)["pull"] / ours})
    return changed(config, {"matching": {"weight": float(f"{read_json(kept)['weight']:.2g}")}})


def both_tracks(evaluator: Evaluator, generator: Generator, ipc: int, name: str) -> dict[str, Any]:
    """A row's scores."""
    return scores_of(evaluator.fixed(sample_set(generator, ipc=ipc), name) + evaluator.stream(generator, ipc, name))


def main(arguments: Arguments) -> None:
    sources = Sources.of(__file__)
    base = varied(arguments, "no matching")
    accelerator = make_accelerator(base, Path(arguments.out))
    data = load_data(base.data, accelerator.device)
    protocol = dataclasses.replace(base.protocol, students=arguments.students)
    evaluator = Evaluator(data, protocol, seeds=arguments.seeds, device=accelerator.device, split=arguments.split)
    asked = {key: getattr(arguments, key) for key in ("students", "seeds", "ipc", "split", "minutes")}
    kept = {"folder": Path(arguments.out) / "rows", "keep": arguments.keep_rows}
    rows = Rows(sources, accelerator.device, asked, made_from={"stage one": Path(arguments.first)}, **kept)
    for variant in arguments.variants:
        config = varied(arguments, variant)
        folder = Path(arguments.out) / variant.replace(" ", "-").replace(",", "")
        if variant in DISTANCES:
            if config == varied(arguments, OURS):
                continue  # that row is there
            config = balanced(arguments, config, data, folder / "weight.json")
        timed = folder / "seconds-per-step.json"
        if not timed.is_file():
            write_json(timed, {"seconds": seconds_per_step(config, data)[1]})
        seconds = read_json(timed)["seconds"]
        steps = round(60 * arguments.minutes / seconds)
        config = changed(config, {"stage_two": {"epochs": epochs(steps, config.stage_two.batch_size, data)}})
        run = folder / "run"
        train(config, data, run, make_accelerator(config, run), sources, first=Path(arguments.first))
        generator = load_generator(run, accelerator.device)
        described = read_json(run / RUN)["config"]
        for section, key in (("data", "root"), ("pool", "experts"), ("path_matching", "experts")):
            described[section][key] = None
        make = functools.partial(both_tracks, evaluator, generator, arguments.ipc, variant)
        made_from = {"run": run}
        if config.pool.source == "experts" or config.path_matching.weight > 0:
            made_from["experts"] = Path(arguments.experts)
        facts = {"steps": steps, "steps_per_second": round(1 / seconds, 3), "config": described}
        rows.add(variant, make, scored=(identity(generator),), made_from=made_from, **facts)
    about = {"ipc": arguments.ipc, "minutes": arguments.minutes, "split": arguments.split}
    print(save(arguments.name, {**about, "rows": rows.made}))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
