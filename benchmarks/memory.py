"""Peak memory of what passes over a whole data set of large images: its statistics, coverage, evaluation.

    python benchmarks/memory.py [--images 5000 20000] [--resolution 224]

Makes folders of JPEG files in a temporary place, one per number of images, and measures each task on each of them in a process
of its own, with the data set read batch by batch. What is stated is the largest resident memory of that process above that of
one which has only imported what the task needs. Networks are narrow and trained for a few steps, since the memory of a training
step is settled by its batch and its network, and not by the data set.
"""

import dataclasses
import multiprocessing
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from common import Rows, Sources, in_new_process, peak_mib, save
from PIL import Image

from dim.commands.malloc import keep_freed_memory
from dim.config import DataConfig, FeatureConfig, GeneratorConfig, ProtocolConfig
from dim.data.real import RealData, load_data, per_class_indices
from dim.data.synthetic import SyntheticSet
from dim.features.spaces import trained_features
from dim.nets.generator import build_generator
from dim.score.coverage import Coverage
from dim.score.evaluate import Evaluator
from dim.spec import to_uint8


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure peak memory."""

    images: tuple[int, ...] = (5000, 20000)
    """Images in the folder, for each measurement."""
    resolution: int = 224
    """Height and width in pixels."""
    samples: int = 300
    """Images on each side of coverage."""
    ipc: int = 10
    """Images per class of the set that is measured."""
    threads: int = 1
    """Threads of a task."""
    tasks: tuple[str, ...] = ("statistics", "coverage of a set", "coverage of a generator", "evaluation")
    """What is measured."""


CLASSES, DISTINCT = 10, 2000


def make_folder(root: Path, count: int, resolution: int) -> None:
    """JPEG files of smooth colours in class folders; beyond 2,000 they are links to earlier ones, which decoding does not see."""
    source = np.random.default_rng(0)
    for label in range(CLASSES):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(count // CLASSES):
            path = folder / f"{number:05d}.jpg"
            if number < DISTINCT // CLASSES:
                coarse = Image.fromarray(source.integers(0, 256, (7, 7, 3), dtype=np.uint8))
                coarse.resize((resolution, resolution), Image.Resampling.BICUBIC).save(path, quality=30)
            else:
                os.link(folder / f"{number % (DISTINCT // CLASSES):05d}.jpg", path)


def some_set(data: RealData, ipc: int) -> SyntheticSet:
    """A set of real images, to have one."""
    chosen = per_class_indices(data.train.labels, ipc, data.spec.num_classes, seed=0)
    images = torch.cat([to_uint8(data.train.batch(part)[0]) for part in chosen.split(10)])
    return SyntheticSet(images, data.train.labels[chosen], data.spec)


def task(name: str, root: Path | None, arguments: Arguments) -> None:
    """Do what is measured; `framework` is what all tasks import and nothing else."""
    if name == "framework":
        return
    data = load_data(DataConfig(dataset="folder", root=str(root), resolution=arguments.resolution, memory_gib=0.0))
    if name.startswith("coverage"):
        features = trained_features(data, FeatureConfig(max_steps=2))
        measure = Coverage(data, samples=arguments.samples, features=features)
        if name.endswith("set"):
            measure.held_out(measure.score(some_set(data, arguments.samples // CLASSES)))
        else:
            measure.score(build_generator(GeneratorConfig(name="gan"), data.spec, seed=0))
    if name == "evaluation":
        protocol = ProtocolConfig(students=("convnet:width=16",), epochs=1, batch_size=32)
        evaluator = Evaluator(data, protocol, seeds=1)
        evaluator.fixed(some_set(data, arguments.ipc))
        evaluator.oracle(arguments.ipc)


def child(name: str, root: Path | None, arguments: Arguments, answer: multiprocessing.SimpleQueue) -> None:
    """A task as the command line does it, and its largest resident memory in MiB."""
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # so that nothing is known of earlier tasks
        task(name, root, arguments)
    answer.put(peak_mib())


def main(arguments: Arguments) -> None:
    sources = Sources.of(__file__)
    asked = {name: value for name, value in dataclasses.asdict(arguments).items() if name not in ("images", "tasks")}
    rows = Rows(sources, "cpu", asked)
    framework = in_new_process(child, "framework", None, arguments)
    for count in arguments.images:
        with tempfile.TemporaryDirectory() as scratch:
            make_folder(Path(scratch), count, arguments.resolution)
            for name in arguments.tasks:

                def measure(name: str = name, root: Path = Path(scratch)) -> dict[str, float]:
                    return {"peak_mib": round(in_new_process(child, name, root, arguments) - framework)}

                row = rows.add(name, measure, images=count)
                print("{name}, {images} images: {peak_mib} MiB above the framework's".format(**row), flush=True)
    print(save("memory", {**asked, "framework_mib": round(framework), "rows": rows.made}))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
