"""What many classes and many images cost: starting cold and from the cache, the first steps of a generator and of experts, and
what a run does around its steps (checks, metrics, checkpoints). And what photographs as large as ImageNet's cost: an image to
read and scale, and the operations of a step for each.

    python benchmarks/scale.py [--classes 1000] [--per-class 200] [--resolution 32] [--steps 200]

Makes a folder of small PNG files in class folders, in a temporary place, and measures each task in a process of its own: wall
time, and the largest resident memory above that of a process that has only imported what the tasks need. Images are decoded
batch by batch, as those are that memory cannot hold, but in the rows "held in memory". Beyond 20,000 files they are links to
earlier ones: listing, decoding and hashing see as many images, and making the folder takes less long.
"""

import dataclasses
import multiprocessing
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from common import Rows, Sources, changed, epochs, in_new_process, peak_mib, save
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dim.commands.malloc import keep_freed_memory
from dim.config import DataConfig, RecordConfig
from dim.data.real import RealData, load_data
from dim.loop import Loop
from dim.recipes.load import load_recipe
from dim.runs.stages import Stage
from dim.runs.train import Trainer, fit
from dim.trajectory.record import record

# In their order: the cache is made by the cold start.
HELD, STREAMED = DataConfig().memory_gib, 0.0
TASKS = (
    ("cold start, images held in memory", HELD),
    ("start from the cache, images held in memory", HELD),
    ("cold start", STREAMED),
    ("start from the cache", STREAMED),
    ("generator", STREAMED),
    ("experts", STREAMED),
    ("around the steps", STREAMED),
)
PHOTOGRAPHS = 300
IDLE = 50  # times as many steps as others take, of a generator that does nothing in them
DISTINCT = 20_000


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure what grows with classes and images."""

    classes: int = 1000
    """Class folders."""
    per_class: int = 200
    """Images in each of them."""
    resolution: int = 32
    """Height and width in pixels."""
    steps: int = 200
    """Steps of training."""
    threads: int = 1
    """Threads of a task."""


def make_folder(root: Path, arguments: Arguments) -> None:
    """PNG files of smooth colours in class folders."""
    source, size = np.random.default_rng(0), arguments.resolution
    files: list[Path] = []
    for number in range(arguments.per_class):
        for label in range(arguments.classes):
            path = root / f"class{label:04d}" / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if len(files) < DISTINCT:
                coarse = Image.fromarray(source.integers(0, 256, (4, 4, 3), dtype=np.uint8))
                coarse.resize((size, size), Image.Resampling.BICUBIC).save(path)
                files.append(path)
            else:
                os.link(files[source.integers(len(files))], path)


def make_photographs(root: Path) -> None:
    """JPEG files of 500x375 pixels with detail at every scale, in ten class folders."""
    source = np.random.default_rng(0)
    for number in range(PHOTOGRAPHS):
        image = np.zeros((375, 500, 3))
        for side in (4, 16, 64, 256):
            coarse = Image.fromarray(source.integers(0, 256, (side, side, 3), dtype=np.uint8))
            image += np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float64) / 4
        path = root / f"class{number % 10}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(path, quality=90)


class Operations(TorchDispatchMode):
    """Counts those of convolutions and matrix products, also within `torch.autograd.grad`, where `FlopCounterMode` cannot."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.count += formula(*arguments, **(options or {}), out_val=result)
        return result


def of_photographs(root: Path, resolution: int, answer: multiprocessing.SimpleQueue) -> None:
    """Seconds that one thread takes to read an image; of the networks of `tiny-imagenet-gan`, the operations of a step of either
    stage for each image of its batch, in GFLOP, and parameters in all."""
    torch.set_num_threads(1)
    data = load_data(DataConfig(dataset="folder", root=str(root), resolution=resolution, memory_gib=0.0))
    train = data.train
    Image.init()
    began = time.perf_counter()
    for index in range(len(train)):
        train.batch(torch.tensor([index]))
    seconds = (time.perf_counter() - began) / len(train)
    batch, found, step = 8, {}, Trainer.train_step

    def counted(trainer: Trainer, number: int, stage: Stage, *rest: Any) -> dict[str, torch.Tensor]:
        with Operations() as operations:
            losses = step(trainer, number, stage, *rest)
        found[f"gflop_per_image_stage_{stage.name}"] = round(operations.count / batch / 1e9, 1)
        networks = (trainer.generator, trainer.discriminator)
        found["parameters"] = sum(value.numel() for network in networks for value in network.parameters())
        return losses

    Trainer.train_step = counted
    stage = {"epochs": epochs(1, batch, data), "batch_size": batch}
    fitting = {"trackers": (), "sample_steps": 0, "checkpoint_minutes": 0.0, "compile": "off", "precision": "no"}
    config = changed(load_recipe("tiny-imagenet-gan"), {"stage_one": stage, "stage_two": stage, "fit": fitting})
    with tempfile.TemporaryDirectory() as scratch:
        fit(config, data, Path(scratch) / "run")
    answer.put({"seconds_per_image": round(seconds, 5), **found})


def task(name: str, data: RealData, arguments: Arguments, out: Path) -> None:
    """Train for some steps; a start is only the loading of the data."""
    if name in ("generator", "around the steps"):
        config = load_recipe("cifar10-gan-cpu")
        steps = arguments.steps
        if name == "around the steps":
            steps *= IDLE
            Trainer.train_step = lambda trainer, *_: {"critic": torch.zeros(()), "discriminator": torch.zeros(())}
        length = {"epochs": epochs(steps, config.stage_one.batch_size, data)}
        quiet = {"trackers": (), "sample_steps": 0, "checkpoint_minutes": 0.0, "compile": "off"}
        fit(changed(config, {"stage_one": length, "stage_two": {"epochs": 0.0}, "fit": quiet}), data, out)
    if name == "experts":
        settings = RecordConfig().experts
        part = arguments.steps * settings.batch_size / len(data.train)
        quiet = {"count": 1, "epochs": part, "every": part, "compile": "off", "checkpoint_minutes": 0.0, "augment": ""}
        record(dataclasses.replace(RecordConfig(), experts=dataclasses.replace(settings, **quiet)), data, out)


def child(name: str, memory_gib: float, root: Path, arguments: Arguments, answer: multiprocessing.SimpleQueue) -> None:
    """A task as the command line does it: its seconds after the data are there, those of its checkpoints, and its largest
    resident memory in MiB."""
    keep_freed_memory()
    saving, original = 0.0, Loop.save

    def timed(loop: Loop) -> None:
        nonlocal saving
        began = time.perf_counter()
        original(loop)
        saving += time.perf_counter() - began

    Loop.save = timed
    torch.set_num_threads(arguments.threads)
    began = time.perf_counter()
    if name != "framework":
        config = DataConfig(dataset="folder", root=str(root), resolution=arguments.resolution, memory_gib=memory_gib)
        data = load_data(config)
        began = began if "start" in name else time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            task(name, data, arguments, Path(scratch) / "run")
    answer.put((time.perf_counter() - began, saving, peak_mib()))


def main(arguments: Arguments) -> None:
    rows = Rows(Sources.of(__file__), "cpu", dataclasses.asdict(arguments))
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "images"
        make_folder(root, arguments)
        *_, framework = in_new_process(child, "framework", STREAMED, root, arguments)
        for name, memory_gib in TASKS:
            os.environ["XDG_CACHE_HOME"] = str(Path(scratch) / f"cache-{memory_gib}")

            def measure(name: str = name, memory_gib: float = memory_gib) -> dict[str, float]:
                seconds, saving, peak = in_new_process(child, name, memory_gib, root, arguments)
                measured = {"seconds": round(seconds, 1), "peak_mib": round(peak - framework)}
                if "start" in name:
                    return measured
                steps = arguments.steps * (IDLE if name == "around the steps" else 1)
                return {
                    **measured,
                    "seconds_per_step": round((seconds - saving) / steps, 6),
                    "checkpoint_seconds": round(saving, 2),
                }

            print(rows.add(name, measure), flush=True)
        make_photographs(Path(scratch) / "photographs")
        for resolution in (64, 256):
            place = (Path(scratch) / "photographs", resolution)
            print(rows.add(f"photographs, {resolution} pixels", lambda at=place: in_new_process(of_photographs, *at)), flush=True)
    print(save("scale", {**dataclasses.asdict(arguments), "framework_mib": round(framework), "rows": rows.made}))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
