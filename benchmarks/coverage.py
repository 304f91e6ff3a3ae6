"""Measure how much of the real data a trained run covers, beside held-out real images, and look for copies.

    python benchmarks/coverage.py runs/bench --name fashion-dim-small --data-root DIR

The result is benchmarks/results/NAME-coverage.json, with the images beside their nearest real ones as a PNG.
"""

import os
from dataclasses import dataclass

import tyro
from common import RESULTS, save

from dim.commands.malloc import keep_freed_memory
from dim.hub import load_generator
from dim.pictures import save_png
from dim.score.coverage import Coverage
from dim.score.evaluate import real_data_of
from dim.score.report import coverage_to_json, print_coverage


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure one run."""

    run: tyro.conf.Positional[str]
    """Run folder."""
    name: str
    """Of the result and of its row."""
    data_root: str | None = None
    """Where the real data lies. Default: the environment variable DIM_DATA_ROOT."""
    samples: int = 5000
    """Images on each side."""
    features: str = "auto"
    """As in `dim coverage`."""


def main(arguments: Arguments) -> None:
    generator = load_generator(arguments.run)
    data = real_data_of(generator.info, arguments.data_root or os.environ.get("DIM_DATA_ROOT"), generator.device)
    measure = Coverage(data, samples=arguments.samples, features=arguments.features)
    rows = [measure.score(generator, arguments.name), measure.held_out()]
    print_coverage(rows)
    nearest = measure.nearest(generator)
    about = generator.info["about"]
    content = {"train_seconds": about["seconds"], "train_steps": about["step"], "nearest": nearest.to_dict()}
    name = f"{arguments.name}-coverage"
    print(save(name, {**content, **coverage_to_json(rows)}, generator.device))
    save_png(RESULTS / f"{name}.png", nearest.panel())


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
