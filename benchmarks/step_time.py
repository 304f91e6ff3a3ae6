"""Time of a stage-two step of cifar10-dim2023: published upkeep of the pool against the default pool, in one run.

    python benchmarks/step_time.py --data-root DIR [--precision no bf16] [--steps 20]

The published upkeep makes one fresh model per epoch; here the steps are divided among its five architectures, four steps
each, so that the mean is over all of them. The default pool draws as it always does. Warm-up steps come first.
"""

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from common import Rows, Sources, changed_section, save

from dim.commands.malloc import keep_freed_memory
from dim.config import PoolConfig, TrainConfig, to_dict
from dim.config.data import located
from dim.data.real import EpochBatches, RealData, load_data
from dim.objectives.logit import PoolMatching
from dim.pool import build_pool
from dim.pools.fresh import FreshPool
from dim.recipes.load import load_recipe
from dim.runs.accelerator import make_accelerator
from dim.runs.train import Trainer


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure a stage-two step."""

    data_root: str | None = None
    """Where CIFAR-10 lies. Default: the environment variable DIM_DATA_ROOT."""
    recipe: str = "cifar10-dim2023"
    """Recipe whose networks and batch size are used."""
    precision: tuple[Literal["no", "bf16"], ...] = ("no", "bf16")
    """Precisions to measure, each with both pools."""
    steps: int = 20
    """Steps per measurement; a multiple of the pool's five architectures."""


PUBLISHED = {"source": "fresh", "upkeep_steps": 16, "upkeep_every": 1}


def seconds_per_step(config: TrainConfig, data: RealData, pool_config: PoolConfig, steps: int) -> float:
    """Mean wall time of a step, upkeep included."""
    config = dataclasses.replace(config, pool=pool_config)
    with tempfile.TemporaryDirectory() as scratch:
        accelerator = make_accelerator(config, Path(scratch))
        trainer = Trainer(config, data, Path(scratch), accelerator, resume=False)
        stage = dataclasses.replace(trainer.stages[1], start=0)
        device, count = accelerator.device, len(pool_config.students)
        settings = {"seed": 0, "device": device, "channels_last": config.fit.channels_last}
        pool = build_pool(pool_config, data, steps_per_epoch=max(1, steps // count), **settings)  # starts at step 0
        if isinstance(pool, FreshPool):
            pool._student = lambda slot, generation: pool_config.students[generation % count]
        batches, upkeep = (EpochBatches(data.train, stage.config.batch_size, seed=0, purpose=p) for p in ("batches", "upkeep"))
        objectives = [trainer.adversary, PoolMatching(pool, config.matching, data.spec, seed=0)]
        trainer.pool = pool

        def run(number: int) -> None:
            for step in range(number):
                trainer.train_step(step, stage, batches, upkeep, objectives)
            if device.type == "cuda":
                torch.cuda.synchronize()

        run(3)
        started = time.perf_counter()
        run(steps)
        return (time.perf_counter() - started) / steps


def main(arguments: Arguments) -> None:
    sources = Sources.of(__file__)
    base = load_recipe(arguments.recipe)
    base = dataclasses.replace(base, data=located(base.data, arguments.data_root))
    device = make_accelerator(base, Path(tempfile.gettempdir())).device
    data = load_data(base.data, device)
    described = to_dict(dataclasses.replace(base, data=dataclasses.replace(base.data, root=None)))
    rows = Rows(sources, device, {"steps": arguments.steps, "config": described})
    for precision in arguments.precision:
        config = dataclasses.replace(base, fit=dataclasses.replace(base.fit, precision=precision, trackers=()))

        def measure(config: TrainConfig = config) -> dict[str, float]:
            default = seconds_per_step(config, data, config.pool, arguments.steps)
            published = seconds_per_step(config, data, changed_section(config.pool, PUBLISHED), arguments.steps)
            return {"default": default, "published_upkeep": published, "ratio": default / published}

        row = rows.add(f"precision {precision}", measure, precision=precision)
        print("{name}: default {default:.2f} s, published upkeep {published_upkeep:.2f} s, ratio {ratio:.3f}".format(**row))
    print(save("step-time", {"steps": arguments.steps, "rows": rows.made, "config": described}))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
