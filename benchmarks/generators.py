"""Train each generator for the same wall time, with and without the matching stage, and score all of them alike.

    python benchmarks/generators.py --data-root DIR [--minutes 25] [--out runs/generators]

Stage one takes four fifths of the time. From its end two runs go on for the last fifth: one with logit matching, one without,
so that both have had the same time. Every row has coverage, FID, stream and fixed accuracy; few-step generators have one row per
number of steps. A run that lies finished in --out is not made again; an unfinished one is resumed.
"""

import dataclasses
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from common import RESULTS, begin_from, changed, save

from dim.config import TrainConfig, load_recipe, to_dict
from dim.coverage import Coverage
from dim.data.real import RealData, load_data
from dim.evaluate import Evaluator, Score
from dim.fit import fit, make_accelerator, sample_grid
from dim.grid import save_png
from dim.host import keep_freed_memory
from dim.hub import load_generator
from dim.io import read_json, write_json
from dim.nets.generators import Generator
from dim.report import format_accuracy
from dim.run import read_metrics
from dim.sampler import sample_set, stored_bytes

FIRST, STAGE_ONE = "stage one alone", 0.8
LAST = {"matched": {}, "no matching": {"matching": {"weight": 0.0}}}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compare generators."""

    recipes: tuple[str, ...] = ("fashion-dim2023-small", "fashion-dim-small", "fashion-gan-small", "fashion-diffusion-small")
    """Names or TOML files; their epochs are replaced."""
    widths: tuple[int, ...] = (58, 58, 24, 12)
    """generator.width of each recipe, which gives them about as many parameters."""
    name: str = "generators-fashion"
    """Of the result."""
    data_root: str | None = None
    """Where the real data lies. Default: the environment variable DIM_DATA_ROOT."""
    out: str = "runs/generators"
    """Run folders."""
    minutes: float = 25.0
    """Wall time of training, both stages together."""
    students: tuple[str, ...] = ("convnet:width=64",)
    """Architectures that are trained on what the generators make."""
    ipc: tuple[int, ...] = (10, 50)
    """Images per class of the stream rows."""
    fixed_ipc: tuple[int, ...] = (1, 10)
    """Images per class of the fixed rows."""
    steps: tuple[int, ...] = (1, 4)
    """Numbers of sampler steps for few-step generators; the first is used for the comparison."""
    seeds: int = 3
    """Students per score."""
    samples: int = 5000
    """Images on each side of coverage."""
    split: str = "test"
    """Part of the data to score on; val while choosing settings."""


def epochs(steps: int, batch_size: int, data: RealData) -> float:
    """Epochs that are this many steps."""
    return steps * batch_size / len(data.train)


def seconds_per_step(config: TrainConfig, data: RealData) -> tuple[float, float]:
    """Wall time of a step of either stage, measured over a short run."""
    one, two, skipped = 40, 24, 4
    lengths = {
        "stage_one": {"epochs": epochs(one, config.stage_one.batch_size, data)},
        "stage_two": {"epochs": epochs(two, config.stage_two.batch_size, data)},
        "fit": {"log_steps": skipped},
    }
    with tempfile.TemporaryDirectory() as scratch:
        run = fit(changed(config, lengths), data, Path(scratch) / "run")
        at = {record["step"]: record["seconds"] for record in read_metrics(run) if "lr" in record}
    first = (at[one] - at[skipped]) / (one - skipped)
    return first, (at[one + two] - at[one + skipped]) / (two - skipped)


def plan(recipe: TrainConfig, data: RealData, minutes: float, path: Path) -> dict[str, TrainConfig]:
    """The three configurations of equal wall time; measured once, and then kept, so that a run can be resumed."""
    configs = {name: changed(recipe, changes) for name, changes in LAST.items()}
    if not path.is_file():
        lengths = {}
        for name, config in configs.items():
            first, second = seconds_per_step(config, data)
            lengths[name] = [round(60 * minutes * STAGE_ONE / first), round(60 * minutes * (1 - STAGE_ONE) / second)]
        write_json(path, lengths)
    lengths = read_json(path)
    one = {"epochs": epochs(lengths["matched"][0], recipe.stage_one.batch_size, data)}
    plans = {FIRST: changed(recipe, {"stage_one": one, "stage_two": {"epochs": 0.0}})}
    for name, config in configs.items():
        two = {"epochs": epochs(lengths[name][1], recipe.stage_two.batch_size, data)}
        plans[name] = changed(config, {"stage_one": one, "stage_two": two})
    return plans


def train(config: TrainConfig, data: RealData, out: Path, first: Path | None) -> Path:
    """Train, resume, or find finished; beginning at the end of the run in `first` if there is one."""
    accelerator = make_accelerator(config, out)
    if first is not None and not out.exists():
        begin_from(first, config, data, out, accelerator.device)
    return fit(config, data, out, resume=out.exists(), accelerator=accelerator)


def samples_per_second(generator: Generator) -> float:
    """Speed of drawing images, on this device."""
    labels = torch.arange(512) % generator.spec.num_classes
    generator.sample(labels[:64])
    started = time.perf_counter()
    generator.sample(labels)
    return len(labels) / (time.perf_counter() - started)


class Suite:
    """Data, evaluator and rows of one invocation."""

    def __init__(self, arguments: Arguments, data: RealData, base: TrainConfig, device: torch.device) -> None:
        self.arguments, self.rows = arguments, []
        protocol = dataclasses.replace(base.protocol, students=arguments.students)
        self.evaluator = Evaluator(data, protocol, seeds=arguments.seeds, device=device, split=arguments.split)
        self.coverage = Coverage(data, samples=arguments.samples)

    def add(self, name: str, scores: list[Score], **facts: Any) -> None:
        """Keep and print a row."""
        self.rows.append({"name": name, **facts, "scores": [score.to_dict() for score in scores]})
        metrics = facts.get("coverage", {}).get("metrics", {})
        parts = [f"{key} {value:.3g}" for key, value in metrics.items()]
        parts += [f"{score.track} {score.ipc}: {format_accuracy(score)}" for score in scores]
        print(f"{name}: {', '.join(parts)}", flush=True)

    def score(self, name: str, generator: Generator, ipc: tuple[int, ...], **facts: Any) -> None:
        """Score one generator."""
        scores = [score for n in self.arguments.fixed_ipc for score in self.evaluator.fixed(sample_set(generator, ipc=n), name)]
        scores += [score for n in ipc for score in self.evaluator.stream(generator, n, name)]
        row = self.coverage.score(generator, name).to_dict()
        self.add(
            name,
            scores,
            coverage=row,
            bytes=stored_bytes(generator),
            parameters=sum(parameter.numel() for parameter in generator.parameters()),
            sampler=generator.sampler,
            samples_per_second=round(samples_per_second(generator), 1),
            **facts,
        )

    def controls(self) -> None:
        """Random real images, real data at the same steps, and real images that were never trained on."""
        self.add("real, held out", [], coverage=self.coverage.held_out().to_dict())
        self.add("random real", [score for n in self.arguments.fixed_ipc for score in self.evaluator.random_real(n)])
        self.add("oracle", [score for n in self.arguments.ipc for score in self.evaluator.oracle(n)])


def main(arguments: Arguments) -> None:
    root = arguments.data_root or os.environ.get("DIM_DATA_ROOT")
    recipes = {
        name: changed(
            load_recipe(name),
            {"data": {"root": root}, "generator": {"width": width}, "fit": {"trackers": (), "sample_steps": 0}},
        )
        for name, width in zip(arguments.recipes, arguments.widths, strict=True)
    }
    base = next(iter(recipes.values()))
    device = make_accelerator(base, Path(tempfile.gettempdir())).device
    data = load_data(base.data, device)
    suite = Suite(arguments, data, base, device)
    suite.controls()
    for name, recipe in recipes.items():
        out = Path(arguments.out) / Path(name).stem
        plans = plan(recipe, data, arguments.minutes, out / "plan.json")
        runs: dict[str, Path] = {}
        for variant, config in plans.items():
            runs[variant] = train(config, data, out / variant.replace(" ", "-"), runs.get(FIRST))
        for variant, run in runs.items():
            generator = load_generator(run, device)
            about = generator.info["about"]
            without_root = changed(plans[variant], {"data": {"root": None}})
            facts = {"variant": variant, "seconds": about["seconds"], "steps": about["step"], "config": to_dict(without_root)}
            compared = variant == "matched"
            for steps in arguments.steps if generator.sampler and compared else arguments.steps[:1]:
                if generator.sampler:
                    generator.configure(steps=steps)
                label = f"{Path(name).stem}, {variant}" + (f", {steps} steps" if generator.sampler else "")
                suite.score(label, generator, arguments.ipc if compared else arguments.ipc[:1], **facts)
            if compared:
                save_png(RESULTS / f"{arguments.name}-{recipe.generator.name}.png", sample_grid(load_generator(run, device)))
    content = {"minutes": arguments.minutes, "split": arguments.split, "threads": torch.get_num_threads(), "rows": suite.rows}
    print(save(arguments.name, content, device))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
