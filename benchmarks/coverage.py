"""Measure how much of the real data a trained run covers, beside held-out real images, and look for copies.

    python benchmarks/coverage.py runs/bench --name fashion-dim-small --data-root DIR

The result is benchmarks/results/NAME-coverage.json, with the images beside their nearest real ones as a PNG.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from common import RESULTS, Rows, Sources, save

from dim.commands.malloc import keep_freed_memory
from dim.data.origin import real_data_of
from dim.hub import load_generator
from dim.pictures import save_png
from dim.sampler import identity
from dim.score.coverage import Coverage, CoverageScore
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
    sources = Sources.of(__file__)
    generator = load_generator(arguments.run)
    data = real_data_of(generator.info, arguments.data_root, generator.device)
    measure = Coverage(data, samples=arguments.samples, features=arguments.features)
    asked = {"samples": arguments.samples, "features": measure.features.to_dict()}
    rows, apart = (Rows(sources, generator.device, asked) for _ in range(2))
    subject = {"scored": (identity(generator),), "made_from": {"run": Path(arguments.run)}}
    rows.add(arguments.name, lambda: measure.score(generator, arguments.name).to_dict(), **subject)
    rows.add("real, held out", lambda: measure.held_out().to_dict())
    print_coverage([CoverageScore.from_dict({key: value for key, value in row.items() if key != "made"}) for row in rows.made])
    started = time.perf_counter()
    nearest = measure.nearest(generator)
    about = generator.info["about"]
    content = {
        "train_seconds": about["seconds"],
        "train_steps": about["step"],
        "nearest": apart.put("nearest", nearest.to_dict(), time.perf_counter() - started, **subject),
    }
    name = f"{arguments.name}-coverage"
    print(save(name, {**content, **coverage_to_json([]), "scores": rows.made}))
    save_png(RESULTS / f"{name}.png", nearest.panel())


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
