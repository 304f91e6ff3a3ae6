"""Train each generator for the same wall time, with and without the matching stage, and score all of them alike.

    python benchmarks/generators.py --data-root DIR [--minutes 25] [--out runs/generators]

Stage one takes four fifths of the time, or what `--stage-one` says. From its end two runs go on: one with matching, one without,
so that both have had the same time. Every row has coverage, FID, stream and fixed accuracy; few-step generators have one row per
number of steps. A run that lies finished in --out is not made again, and neither is a row that the same sources made; an
unfinished run is resumed. `--only-train` leaves the scoring to a later invocation, so that runs can be made apart. A recipe with
the published matching gets that of `fashion-gan-small`, as the others have, at the learning rate of its stage one and a weight
that was chosen on the validation part; the variant `published matching` has its own.
"""

import dataclasses
import functools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from common import RESULTS, KeepRows, Rows, Sources, changed, epochs, save, scores_of, seconds_per_step, train

from dim.commands.malloc import keep_freed_memory
from dim.config import MatchingConfig, PoolConfig, StageConfig, TrainConfig
from dim.config.data import located
from dim.data.real import RealData, load_data
from dim.hub import load_generator
from dim.io import read_json, write_json
from dim.nets.generator import Generator
from dim.pictures import save_png
from dim.recipes.load import load_recipe
from dim.run_folder import RUN
from dim.runs.accelerator import make_accelerator
from dim.sampler import identity, sample_grid, sample_set, stored_bytes
from dim.score.coverage import Coverage
from dim.score.evaluate import Evaluator

FIRST = "stage one alone"
Variant = Literal["matched", "no matching", "published matching"]
WEIGHT = 100.0  # of our matching for a generator that has the published one, whose adversarial loss pulls harder


def last(recipe: TrainConfig) -> dict[str, TrainConfig]:
    """The runs whose stage two begins at the same weights."""
    matched = recipe
    if recipe.matching.distance == "pairs":
        ours: TrainConfig = load_recipe("fashion-gan-small")
        matched = changed(recipe, {"stage_two": {"lr": recipe.stage_one.lr}})
        matching = dataclasses.replace(ours.matching, weight=WEIGHT)
        matched = dataclasses.replace(matched, matching=matching, pool=ours.pool)
    variants = {"matched": matched, "no matching": changed(matched, {"matching": {"weight": 0.0}})}
    if matched is not recipe:
        variants["published matching"] = recipe
    return variants


@dataclass(frozen=True, kw_only=True)
class Arguments(KeepRows):
    """Compare generators."""

    recipes: tuple[str, ...] = ("fashion-dim2023-small", "fashion-gan-small", "fashion-diffusion-small")
    """Names or TOML files; their epochs are replaced."""
    widths: tuple[int, ...] = (58, 24, 12)
    """generator.width of each recipe, which gives them about as many parameters."""
    name: str = "generators-fashion"
    """Of the result."""
    data_root: str | None = None
    """Where the real data lies. Default: the environment variable DIM_DATA_ROOT."""
    out: str = "runs/generators"
    """Run folders."""
    minutes: float = 25.0
    """Wall time of training, both stages together."""
    stage_one: float = 0.8
    """Part of it that stage one takes."""
    variants: tuple[Variant, ...] = ("matched", "no matching")
    """What goes on from there. `published matching`: that of the recipe, if it has it."""
    students: tuple[str, ...] = ("convnet:width=64",)
    """Architectures that are trained on what the generators make."""
    ipc: tuple[int, ...] = (10, 50)
    """Images per class of the stream rows; those after the first have rows of their own."""
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
    only_train: bool = False
    """Make the runs, and no scores."""


def steps_within(minutes: float, stage: int, config: TrainConfig, data: RealData, path: Path) -> int:
    """Steps of a stage (0 or 1) that take so long; measured once, and then kept, so that a run can be resumed."""
    if not path.is_file():
        write_json(path, {"seconds_per_step": seconds_per_step(config, data)[stage]})
    return round(60 * minutes / read_json(path)["seconds_per_step"])


def plan(variant: str, recipe: TrainConfig, data: RealData, minutes: tuple[float, float], folder: Path) -> TrainConfig:
    """The configuration of a variant, or of what comes before, with the steps that its time in either stage allows."""
    steps = steps_within(minutes[0], 0, recipe, data, folder / "stage-one.json")
    one = {"epochs": epochs(steps, recipe.stage_one.batch_size, data)}
    if variant == FIRST:  # says nothing of what follows, which may be chosen when it has been trained
        neutral = {"matching": MatchingConfig(weight=0.0), "pool": PoolConfig(), "stage_two": StageConfig(epochs=0.0)}
        return changed(dataclasses.replace(recipe, **neutral), {"stage_one": one})
    config = last(recipe)[variant]
    steps = steps_within(minutes[1], 1, config, data, folder / f"{variant.replace(' ', '-')}.json")
    return changed(config, {"stage_one": one, "stage_two": {"epochs": epochs(steps, recipe.stage_two.batch_size, data)}})


def samples_per_second(generator: Generator) -> float:
    """Speed of drawing images, on this device."""
    labels = torch.arange(512) % generator.spec.num_classes
    generator.sample(labels[:64])
    started = time.perf_counter()
    generator.sample(labels)
    return len(labels) / (time.perf_counter() - started)


class Suite:
    """Data, evaluator and rows of one invocation."""

    def __init__(self, arguments: Arguments, data: RealData, base: TrainConfig, device: torch.device, sources: Sources) -> None:
        self.arguments, self.device = arguments, device
        asked = {key: getattr(arguments, key) for key in ("students", "seeds", "samples", "split", "ipc", "fixed_ipc")}
        self.rows = Rows(sources, device, asked, folder=Path(arguments.out) / "rows", keep=arguments.keep_rows)
        protocol = dataclasses.replace(base.protocol, students=arguments.students)
        self.evaluator = Evaluator(data, protocol, seeds=arguments.seeds, device=device, split=arguments.split)
        self.coverage = Coverage(data, samples=arguments.samples)

    def score(self, generator: Generator, name: str) -> dict[str, Any]:
        """Score one generator."""
        about = generator.info["about"]
        scores = [score for n in self.arguments.fixed_ipc for score in self.evaluator.fixed(sample_set(generator, ipc=n), name)]
        scores += self.evaluator.stream(generator, self.arguments.ipc[0], name)
        return {
            "seconds": about["seconds"],
            "coverage": self.coverage.score(generator, name).to_dict(),
            "bytes": stored_bytes(generator),
            "parameters": sum(parameter.numel() for parameter in generator.parameters()),
            "sampler": generator.sampler,
            "samples_per_second": round(samples_per_second(generator), 1),
            "scores": [score.to_dict() for score in scores],
        }

    def score_stream(self, generator: Generator, name: str, ipc: int) -> dict[str, Any]:
        """Score one generator's stream alone."""
        return scores_of(self.evaluator.stream(generator, ipc, name))

    def score_run(self, name: str, variant: str, run: Path, first: Path) -> None:
        """Score a run that began at the end of `first`; a matched few-step one at each number of steps."""
        generator = load_generator(run, self.device)
        about, config = generator.info["about"], read_json(run / RUN)["config"]
        config["data"]["root"] = None
        facts = {"variant": variant, "steps": about["step"], "config": config, "made_from": {"stage one": first, "run": run}}
        for steps in self.arguments.steps if generator.sampler and variant == "matched" else self.arguments.steps[:1]:
            label = f"{name}, {variant}"
            if generator.sampler:
                generator.configure(steps=steps)
                label += f", {steps} steps"
            facts["scored"] = (identity(generator),)
            self.rows.add(label, functools.partial(self.score, generator, label), **facts)
            for n in self.arguments.ipc[1:] if steps == self.arguments.steps[0] else ():
                self.rows.add(f"{label}, IPC {n}", functools.partial(self.score_stream, generator, label, n), **facts)

    def controls(self) -> None:
        """Random real images, real data at the same steps, and real images that were never trained on."""
        fixed, stream = self.arguments.fixed_ipc, self.arguments.ipc
        self.rows.add("real, held out", lambda: {"coverage": self.coverage.held_out().to_dict()})
        self.rows.add("random real", lambda: scores_of(score for n in fixed for score in self.evaluator.random_real(n)))
        self.rows.add("oracle", lambda: scores_of(score for n in stream for score in self.evaluator.oracle(n)))


def main(arguments: Arguments) -> None:
    sources = Sources.of(__file__)
    recipes = {}
    for name, width in zip(arguments.recipes, arguments.widths, strict=True):
        recipe = load_recipe(name)
        recipe = dataclasses.replace(recipe, data=located(recipe.data, arguments.data_root))
        recipes[name] = changed(recipe, {"generator": {"width": width}, "fit": {"trackers": (), "sample_steps": 0}})
    base = next(iter(recipes.values()))
    device = make_accelerator(base, Path(tempfile.gettempdir())).device
    data = load_data(base.data, device)
    suite = Suite(arguments, data, base, device, sources)
    if not arguments.only_train:
        suite.controls()
    minutes = (arguments.stage_one * arguments.minutes, (1 - arguments.stage_one) * arguments.minutes)
    for name, recipe in recipes.items():
        folder = Path(arguments.out) / Path(name).stem
        runs: dict[str, Path] = {}
        for variant in (FIRST, *(one for one in last(recipe) if one in arguments.variants)):
            config = plan(variant, recipe, data, minutes, folder)
            out = folder / variant.replace(" ", "-")
            runs[variant] = train(config, data, out, make_accelerator(config, out), sources, first=runs.get(FIRST))
        if arguments.only_train:
            continue
        for variant, run in list(runs.items())[1:]:
            suite.score_run(Path(name).stem, variant, run, runs[FIRST])
        shown = load_generator(runs.get("matched", run), device)
        save_png(RESULTS / f"{arguments.name}-{recipe.generator.name}.png", sample_grid(shown))
    if arguments.only_train:
        return
    print(save(arguments.name, {"minutes": minutes, "split": arguments.split, "rows": suite.rows.made}))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
