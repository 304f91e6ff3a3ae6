"""Does `dim train DIR --minutes M` choose better than the nearest recipe, where no recipe fits, and in the time that it says?

    python benchmarks/own_data.py --data-root DIR [--minutes 10] [--only fashion-few digits-two] [--ways chosen recipe real]
    python benchmarks/own_data.py --tiny              # the whole path in some minutes, on digits; writes below --out

Every case is a folder of images as somebody would have it: `train/`, `val/` and `test/` with class folders. All three are
taken from the *training* part of a known data set, so its official test part is never read; scores are of `val/`. Cases are a
hundred images per class, and two classes that look alike. They are trained twice, on one device, one after the other: by the
command with nothing but the folder and the minutes, and by the nearest recipe, whose epochs are scaled to the same minutes. A
recipe computes in bfloat16 only where that is faster; some of them state it for a device on which it is. Both are then scored
alike: the stream, images that are drawn without a choice, and the set that `dim sample RUN --ipc 10` makes with no other option
(a run of the command refines it with its own experts, for which no time of training was left to the recipe).

The cases `numbers-64` (a hundred classes: pairs of MNIST's digits), `cifar10-128` (two classes, enlarged) and `mixed` have no
recipe. They ask whether the time that was predicted is the time that it took, and whether a set is better than random images.
`mixed` has 60, 200 and 500 images of three classes, in files as people have them: of 40 to 900 pixels, grey, transparent, with a
palette, with an EXIF rotation. In `cifar10-hour`, all of CIFAR-10 gets an hour for each way.

What lies finished in --out is not trained again; a row that the same sources made is not scored again.
"""

import dataclasses
import functools
import math
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from common import RESULTS, Rows, Sources, changed, note_sources, save, scores_of, train
from PIL import ExifTags, Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import to_pil_image

from dim.commands.malloc import keep_freed_memory
from dim.compiling import native_bfloat16
from dim.config import DataConfig, ProtocolConfig, TrainConfig, from_dict
from dim.config.data import located
from dim.data.real import load_data
from dim.data.synthetic import load_set
from dim.errors import InputError
from dim.hub import load_generator
from dim.io import read_json, write_json
from dim.outputs import atomic_folder
from dim.pictures import save_png
from dim.recipes.load import load_recipe
from dim.run_folder import read_run
from dim.runs.accelerator import make_accelerator
from dim.runs.automatic import seconds_per_step
from dim.sampler import sample_grid, sample_set
from dim.score.evaluate import Evaluator
from dim.spec import to_uint8

PARTS = {"train": 0, "val": 500, "test": 10}  # images per class of the parts; of `train`, those of the case
_SAID = re.compile(r"([\d.]+) minutes in all")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compare the settings that are chosen for a folder with those of the nearest recipe."""

    data_root: str | None = None
    """Where the known data sets lie. Default: the environment variable DIM_DATA_ROOT."""
    minutes: float = 10.0
    """Wall time of each training."""
    only: tuple[str, ...] = ()
    """Cases. Default: all."""
    ways: tuple[Literal["chosen", "recipe", "real"], ...] = ("chosen", "recipe", "real")
    """What is trained and scored of each case: two processes may share a case."""
    seeds: int = 3
    """Students per score."""
    out: str = "runs/own-data"
    """Folders, runs and sets."""
    tiny: bool = False
    """Two classes of digits, two minutes each, small students."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A folder of somebody's own."""

    dataset: str
    """That the images are from."""
    classes: tuple[int, ...] = ()
    """Of them. Empty: all."""
    each: int | tuple[int, ...]
    """Training images per class, at most; or those of every class."""
    recipe: str | None = None
    """The nearest one."""
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, tuple[str, ...]]] | None = None
    """Makes other images, labels and classes of a part."""
    resolution: int | None = None
    """Asked for on the command line."""
    minutes: float | None = None
    """In place of --minutes."""
    write: Callable[[Image.Image, Path, int], None] = lambda image, path, number: image.save(path.with_suffix(".png"))
    """Stores an image that is the so-manieth of its part, under its name without an ending."""


def _pairs(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Numbers of two digits, 64 px: each image beside another one."""
    other = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    wide = torch.cat([images, images[other]], dim=-1)
    wide = functional.interpolate(wide, (40, 64), mode="bilinear", antialias=True)
    names = tuple(f"{number:02}" for number in range(100))
    return functional.pad(wide, (0, 0, 12, 12), value=-1.0), 10 * labels + labels[other], names


def _enlarged(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """128 px, bicubic."""
    return functional.interpolate(images, (128, 128), mode="bicubic").clamp(-1, 1), labels, ()


def _as_people_have_them(image: Image.Image, path: Path, number: int) -> None:
    """A file of another size, shape and kind than the one before; colours of a fifth are gone."""
    draw = random.Random(f"{path.parent.name} {number}")
    width = round(math.exp(draw.uniform(math.log(40), math.log(900))))
    image = image.resize((width, min(900, max(40, round(width * draw.uniform(0.75, 1.33))))), Image.Resampling.BICUBIC)
    path = path.with_name(f"{('my picture', 'фото', '写真')[number % 3]} {number}")
    if number % 5 == 0:
        image.convert("L").save(path.with_suffix(".png"))
    elif number % 5 == 1:
        image.convert("RGBA").save(path.with_suffix(".webp"), quality=90)
    elif number % 5 == 2:
        image.quantize(256).save(path.with_suffix(".png"))
    elif number % 5 == 3:
        image.save(path.with_suffix(".JPG"), quality=90)
    else:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6  # to be shown turned clockwise by a quarter
        image.transpose(Image.Transpose.ROTATE_90).save(path.with_suffix(".jpeg"), quality=90, exif=exif)


CASES = {
    "digits-few": Case(dataset="digits", each=100, recipe="digits-dim"),
    "digits-two": Case(dataset="digits", classes=(3, 8), each=5000, recipe="digits-dim"),
    "fashion-few": Case(dataset="fashion-mnist", each=100, recipe="fashion-gan-small"),
    "fashion-two": Case(dataset="fashion-mnist", classes=(0, 6), each=5000, recipe="fashion-gan-small"),
    "cifar10-few": Case(dataset="cifar10", each=100, recipe="cifar10-gan-cpu"),
    "cifar10-two": Case(dataset="cifar10", classes=(3, 5), each=4000, recipe="cifar10-gan-cpu"),
    "mixed": Case(dataset="cifar10", classes=(1, 2, 8), each=(60, 200, 500), write=_as_people_have_them),
    "cifar10-hour": Case(dataset="cifar10", each=5000, recipe="cifar10-gan-cpu", minutes=60),
    "numbers-64": Case(dataset="mnist", each=2000, change=_pairs, resolution=64),
    "cifar10-128": Case(dataset="cifar10", classes=(1, 7), each=2000, change=_enlarged, resolution=128),
}


# --- folders ----------------------------------------------------------------------------------------------------------------


def make_folder(case: Case, root: str | None, folder: Path) -> None:
    """Write the images of a case in class folders, unless they are there."""
    if folder.is_dir():
        return
    data = load_data(located(from_dict(DataConfig, {"dataset": case.dataset}), root))
    chosen = case.classes or tuple(range(data.spec.num_classes))
    most = dict(zip(chosen, case.each, strict=True)) if isinstance(case.each, tuple) else dict.fromkeys(chosen, case.each)
    with atomic_folder(folder) as made:
        taken = {label: torch.where(data.train.labels == label)[0] for label in chosen}
        for part in ("test", "val", "train"):
            indices = [_take(taken, label, PARTS[part] or most[label], keep=part != "train") for label in chosen]
            images, labels = data.train.batch(torch.cat(indices))
            names = data.spec.class_names
            if case.change is not None:
                images, labels, new = case.change(images, labels)
                names = new or names
            for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                path = made / part / names[label] / f"{number:05}"
                path.parent.mkdir(parents=True, exist_ok=True)
                case.write(to_pil_image(to_uint8(image.cpu())), path, number)


def _take(taken: dict[int, Tensor], label: int, count: int, *, keep: bool) -> Tensor:
    """Remove so many indices of a class and return them; of `keep`, no more than a quarter of what is there."""
    there = taken[label]
    count = min(count, len(there) // 4 if keep else len(there))
    taken[label] = there[count:]
    return there[:count]


def torch_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settings(folder: Path, run: Path | None = None) -> DataConfig:
    """Images as a run of the command has taken them, if there is one; else as they are: of their own size, grey or RGB."""
    if run is not None and run.is_dir():
        return from_dict(DataConfig, read_run(run)["config"]["data"])
    with Image.open(next(folder.rglob("*.png"))) as image:
        channels = 1 if image.mode == "L" else 3
        return from_dict(DataConfig, {"dataset": "folder", "root": str(folder), "resolution": image.height, "channels": channels})


# --- training ---------------------------------------------------------------------------------------------------------------


def command(*words: Any) -> tuple[str, float]:
    """What a command of `dim` says, and its seconds.

    Raises:
        RuntimeError: if it fails.
    """
    began = time.perf_counter()
    words = [str(word) for word in words]
    done = subprocess.run([sys.executable, "-m", "dim.commands.cli", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout + done.stderr, time.perf_counter() - began


def train_chosen(case: Case, folder: Path, minutes: float, out: Path, sources: Sources) -> dict[str, Any]:
    """`dim train DIR --minutes M`: the minutes that it said, and those that it took."""
    note = out.with_name(f"{out.name}.minutes.json")
    if not note.is_file():
        size = () if case.resolution is None else ("--resolution", case.resolution)
        note_sources(out, sources)
        said, seconds = command("train", folder, "--minutes", minutes, *size, "--out", out)
        write_json(note, {"said_minutes": float(_SAID.search(said)[1]), "took_minutes": round(seconds / 60, 2)})
    return read_json(note)


def train_recipe(case: Case, folder: Path, minutes: float, out: Path, sources: Sources) -> dict[str, Any]:
    """The nearest recipe, with both stages scaled so that they take the minutes."""
    note = out.with_name(f"{out.name}.minutes.json")
    if not note.is_file():
        base: TrainConfig = load_recipe(case.recipe)
        fit = {"trackers": (), "experts": 0, "precision": "bf16" if native_bfloat16(torch_device()) else "no"}
        base = changed(dataclasses.replace(base, data=settings(folder)), {"fit": fit})
        accelerator = make_accelerator(base, out)
        data = load_data(base.data, accelerator.device)
        steps = seconds_per_step(base, data, accelerator)
        stages = (base.stage_one, base.stage_two)
        counts = [stage.epochs * len(data.train) / stage.batch_size for stage in stages]
        factor = 60 * minutes / sum(count * each for count, each in zip(counts, steps, strict=True))
        names = ("stage_one", "stage_two")
        scaled = {name: {"epochs": float(f"{stage.epochs * factor:.4g}")} for name, stage in zip(names, stages, strict=True)}
        began = time.perf_counter()
        train(changed(base, scaled), data, out, accelerator, sources)
        write_json(note, {"took_minutes": round((time.perf_counter() - began) / 60, 2)})
    return read_json(note)


# --- scoring ----------------------------------------------------------------------------------------------------------------


def score(run: Path, evaluator: Evaluator, device: torch.device, name: str) -> dict[str, Any]:
    """The stream, drawn images, and the set that `dim sample` makes, at ten images per class."""
    generator, made = load_generator(run, device), run.with_name(f"{run.name}-set")
    if not made.is_dir():
        command("sample", run, "--ipc", 10, "--out", made)
    scores = [
        *evaluator.stream(generator, 10, name),
        *evaluator.fixed(sample_set(generator, ipc=10), f"{name}, drawn"),
        *evaluator.fixed(load_set(made), f"{name}, as dim sample makes it"),
    ]
    save_png(run.with_name(f"{run.name}.png"), sample_grid(generator))
    return {"parameters": sum(parameter.numel() for parameter in generator.parameters()), **scores_of(scores)}


def controls(evaluator: Evaluator) -> dict[str, Any]:
    """Random real images and real data at the same steps."""
    return scores_of([*evaluator.random_real(10), *evaluator.oracle(10)])


def make_rows(name: str, arguments: Arguments, minutes: float, sources: Sources) -> list[dict[str, Any]]:
    """Train and score a case in all its ways."""
    case, out = CASES[name], Path(arguments.out)
    folder = (out / name).resolve()
    make_folder(case, arguments.data_root, folder)
    device = torch_device()

    @functools.cache
    def evaluator() -> Evaluator:
        data = load_data(settings(folder, out / f"{name}-chosen"), device)
        student = "convnet:width=8,depth=2" if arguments.tiny else "convnet:width=32"
        epochs = 5 if arguments.tiny else int(min(1000, max(100, 2000 // -(-10 * data.spec.num_classes // 64))))  # 2,000 steps
        protocol = ProtocolConfig(students=(student,), epochs=epochs)
        return Evaluator(data, protocol, seeds=arguments.seeds, device=device, split="val")

    def row(train_way: Callable[..., dict[str, Any]], run: Path) -> dict[str, Any]:
        return {**train_way(case, folder, minutes, run, sources), **score(run, evaluator(), device, run.name)}

    asked = {"minutes": minutes, "seeds": arguments.seeds, "split": "val", "tiny": arguments.tiny}
    rows = Rows(sources, device, asked, folder=out / "rows")
    ways = {"chosen": (train_chosen, None), "recipe": (train_recipe, case.recipe)}
    for way, (train_way, recipe) in ways.items():
        if way in arguments.ways and (way == "chosen" or recipe is not None):
            run = out / f"{name}-{way}"
            rows.add(f"{name}, {way}", functools.partial(row, train_way, run), made_from={"run": run}, case=name, recipe=recipe)
    if "real" in arguments.ways:
        rows.add(f"{name}, real images", lambda: controls(evaluator()), case=name)
    return rows.made


def main(arguments: Arguments) -> None:
    if unknown := set(arguments.only) - CASES.keys():
        raise InputError(f"no case {min(unknown)!r}: expected some of {', '.join(CASES)}")
    sources = Sources.of(__file__)
    path = (Path(arguments.out) if arguments.tiny else RESULTS) / "own-data.json"
    for name in ("digits-two",) if arguments.tiny else arguments.only or CASES:
        minutes = 2.0 if arguments.tiny else CASES[name].minutes or arguments.minutes
        made = make_rows(name, arguments, minutes, sources)
        before = read_json(path)["rows"] if path.is_file() else []  # another process may have added to it
        there = {row["name"]: row for row in (*before, *made)}
        print(save("own-data", {"split": "val", "rows": list(there.values())}, path.parent), flush=True)


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
