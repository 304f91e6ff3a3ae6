"""What `faults.py` damages: artefacts of every kind, readers that a user's command would call, ways to damage, and nonsense."""

import dataclasses
import json
import random
import shutil
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import dim
from dim.coding import container
from dim.coding.generators import code_generator
from dim.coding.pictures import Codec
from dim.coding.sets import code_set
from dim.commands.cli import COMMANDS
from dim.commands.cli import main as dim_main
from dim.config import (
    DataConfig,
    DiscriminatorConfig,
    DistillConfig,
    ExpertsConfig,
    FeatureConfig,
    FitConfig,
    GeneratorConfig,
    ImagesConfig,
    PoolConfig,
    ProtocolConfig,
    StageConfig,
    TrainConfig,
    TrajectoryConfig,
    TrajectoryRecipe,
    to_dict,
    to_toml,
)
from dim.data.real import load_data
from dim.emit.refine import Kept
from dim.features.spaces import trained_features
from dim.io import digest, load_tensors, read_document, save_tensors, write_document
from dim.recipes.load import load_recipe_for
from dim.run_folder import load_run_config, read_metrics, read_run
from dim.runs.distill import Distiller
from dim.runs.train import Trainer
from dim.score.record import read_scores
from dim.score.report import write_report
from dim.spec import DataSpec
from dim.trajectory.store import ExpertStore

IMAGE_FILES = ("png", "jpg", "bmp", "tif", "webp")
FORMATS = ("imagefolder", "npz", "safetensors", "webdataset", "parquet", "latents")

# --- what there is --------------------------------------------------------------------------------------------------------------

_PROTOCOL = ProtocolConfig(students=("convnet:width=4",), epochs=2, augment="crop")
_TRAIN = TrainConfig(
    generator=GeneratorConfig(width=4, latent_dim=6),
    discriminator=DiscriminatorConfig(width=4),
    stage_one=StageConfig(epochs=0.02, batch_size=8, lr=1e-3),
    stage_two=StageConfig(epochs=0.02, batch_size=8, lr=1e-3),
    pool=PoolConfig(students=("convnet:width=4",), members=2),
    fit=FitConfig(trackers=(), device="cpu", log_steps=1, sample_steps=0, checkpoint_minutes=0.0),
    protocol=_PROTOCOL,
)
_EXPERTS = ExpertsConfig(
    count=2, epochs=3.0, batch_size=256, lr=0.05, augment="", device="cpu", compile="off", checkpoint_minutes=0.0
)
_TRAJECTORY = TrajectoryRecipe(
    student="convnet:width=4,depth=2",
    experts=_EXPERTS,
    trajectory=TrajectoryConfig(steps=2, epochs=1, max_start=2, augment="", compile="off"),
    images=ImagesConfig(lr=10.0),
    distill=DistillConfig(iterations=3, sample_steps=0, device="cpu"),
    protocol=_PROTOCOL,
)


def make_all(folder: Path) -> None:
    """One artefact of every kind, of the digits, and recipes that work for some seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.toml").write_text(to_toml(_TRAIN))
    (folder / "tiny-experts.toml").write_text(to_toml(_TRAJECTORY))
    own = lambda config, **parts: dataclasses.replace(config, **parts)  # noqa: E731
    often = {"checkpoint_minutes": 0.005}
    stages = {name: own(getattr(_TRAIN, name), epochs=0.3) for name in ("stage_one", "stage_two")}
    (folder / "long.toml").write_text(to_toml(own(_TRAIN, **stages, fit=own(_TRAIN.fit, log_steps=10, **often))))
    long = own(
        _TRAJECTORY, distill=own(_TRAJECTORY.distill, iterations=120, **often), experts=own(_EXPERTS, epochs=20.0, **often)
    )
    (folder / "long-experts.toml").write_text(to_toml(long))
    (folder / "long-distill.toml").write_text(to_toml(own(long, experts=_EXPERTS)))
    run, small = folder / "run", ("--seeds", 1)
    _do("train", "--recipe", folder / "tiny.toml", "--out", run)
    _do("experts", "--recipe", folder / "tiny-experts.toml", "--out", folder / "experts")
    _do("distill", "--recipe", folder / "tiny-experts.toml", "--experts", folder / "experts", "--out", folder / "distilled")
    for name in FORMATS:
        _do("sample", run, "--ipc", 2, "--format", name, "--out", folder / f"set-{name}")
    _coded(folder / "coded", run)
    _do("evaluate", folder / "set-npz", run, "--ipc", 1, *small, "--json", folder / "scores.json")
    _photos(folder / "photos")


def _do(*arguments: Any) -> None:
    if dim_main([str(argument) for argument in arguments]):
        raise SystemExit(f"faults: dim {arguments[0]} failed")


def _coded(folder: Path, run: Path) -> None:
    generator = dim.load_generator(run)
    drawn = dim.with_soft_labels(dim.sample_set(generator, ipc=2), dim.load_teacher(run, generator.spec))
    for name, codec in (("webp", Codec("webp", 50)), ("values", Codec("values", 4, half=True))):
        container.write(folder / f"{name}.dimz", code_set(drawn.content(), drawn.spec, drawn.info, codec))
    container.write(folder / "generator.dimz", code_generator(generator, 4))


def _photos(folder: Path) -> None:
    source = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number, ending in enumerate(IMAGE_FILES * 2):
            Image.fromarray(source.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / name / f"{number}.{ending}")


# --- how it is read -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Artefact:
    """A file of some kind in a folder of its own, and what reads it."""

    name: str
    source: Path
    file: str
    """That is damaged."""
    read: Callable[[Path], Any]
    """Of the folder, what a command gets from it; InputError where it refuses."""
    checked: bool = True
    """Whether it has a checksum, so that damage is refused or changes nothing."""
    forge: str | None = None
    """How damage under a checksum that fits is made: `document`, `tensors`, `coded` or not at all."""
    same: Callable[[Any, Any], bool] = lambda found, good: found == good

    def copied(self, place: Path) -> Path:
        """A copy of the folder."""
        shutil.copytree(self.source, place)
        return place

    def opened(self, place: Path) -> tuple[dict[str, Any], dict[str, Any], Callable[[], None]]:
        """What the file of a copy says, its tensors or streams by name, and a function that writes both after they were changed,
        under a checksum that fits."""
        path = place / self.file
        if self.forge == "document":
            said, held = read_document(path), {}
            return said, held, lambda: write_document(path, said)
        if self.forge == "coded":
            said, held = container.read(path)
            return said, held, lambda: container.write(path, container.pack(said, held))
        held, said = load_tensors(path)
        return said, held, lambda: save_tensors(path, held, said)


def artefacts(folder: Path) -> list[Artefact]:
    """All kinds. Readers that need real data have the digits."""
    data = load_data(DataConfig())
    run, experts = folder / "run", folder / "experts"

    def lines(found: list[Any], good: list[Any]) -> bool:
        return all(line in good for line in found)

    made = [
        Artefact("run.json", run, "run.json", _run, forge="document"),
        Artefact("metrics.jsonl", run, "metrics.jsonl", read_metrics, same=lines),
        Artefact("checkpoint", run, "checkpoint.safetensors", lambda at: _resumed(at, data), forge="tensors"),
        Artefact("generator", run, "generator.safetensors", _generator, forge="tensors"),
        Artefact("pool as a teacher", run, "checkpoint.safetensors", lambda at: _teacher(at, data), forge="tensors"),
        Artefact("experts.json", experts, "experts.json", _experts, forge="document"),
        Artefact("weights.bin", experts, "weights.bin", _experts),
        Artefact("experts as a teacher", experts, "experts.json", lambda at: _teacher(at, data), forge="document"),
        Artefact("distilled set", folder / "distilled", "set.json", _set, forge="document"),
        Artefact("distillation", folder / "distilled", "checkpoint.safetensors", lambda at: _distilled(at, experts, data)),
        Artefact("scores", _alone(folder / "scores.json"), "scores.json", _scores, forge="document"),
        Artefact("report", run, "report.json", lambda at: _report(at, data), checked=False, forge="document"),
        Artefact("recipe", _alone(folder / "tiny.toml"), "tiny.toml", _recipe("train"), checked=False),
        Artefact(
            "recipe of experts", _alone(folder / "tiny-experts.toml"), "tiny-experts.toml", _recipe("experts"), checked=False
        ),
        Artefact("features", _features(folder, data), "kept", lambda at: _kept_features(at, data), forge="tensors"),
        Artefact("refinement", _refinement(folder), "kept", _kept_refinement, forge="tensors"),
        Artefact(
            "coded generator", folder / "coded", "generator.dimz", lambda at: _generator(at / "generator.dimz"), forge="coded"
        ),
        Artefact("coded set", folder / "coded", "values.dimz", lambda at: _set(at / "values.dimz"), forge="coded"),
        Artefact("coded picture", folder / "coded", "webp.dimz", lambda at: _set(at / "webp.dimz"), forge="coded"),
    ]
    for name in FORMATS:
        at = folder / f"set-{name}"
        made += [Artefact(f"set.json of {name}", at, "set.json", _set, forge="document")]
        biggest = max(
            (file for file in at.rglob("*") if file.is_file() and file.name != "set.json"), key=lambda file: file.stat().st_size
        )
        forge = "tensors" if biggest.suffix == ".safetensors" else None
        made += [Artefact(f"data of {name}", at, str(biggest.relative_to(at)), _set, forge=forge)]
    made += [Artefact("rows of imagefolder", folder / "set-imagefolder", "images.jsonl", _set)]
    for number, ending in enumerate(IMAGE_FILES):
        made += [Artefact(f"{ending} of a folder", folder / "photos", f"cat/{number}.{ending}", _images, checked=False)]
    return made


def _alone(file: Path) -> Path:
    folder = file.with_name(f"{file.name}-alone")
    folder.mkdir(exist_ok=True)
    shutil.copy(file, folder / file.name)
    return folder


def _run(at: Path) -> Any:
    return to_dict(load_run_config(at)), DataSpec.from_dict(read_run(at)["spec"])


def _resumed(at: Path, data: Any) -> Any:
    from dim.runs.accelerator import make_accelerator

    config = load_run_config(at)
    trainer = Trainer(config, data, at, make_accelerator(config, at), resume=True)
    return trainer.step, digest(trainer.generator.state_dict())


def _generator(at: Path) -> Any:
    generator = dim.load_generator(at)
    dim.sample_set(generator, ipc=1)
    return digest(generator.state_dict(), json.dumps(generator.info, sort_keys=True))


def _teacher(at: Path, data: Any) -> Any:
    return digest({"labels": dim.load_teacher(at, data).labels(data.test.batch(torch.arange(20))[0])})


def _experts(at: Path) -> Any:
    store = ExpertStore.open(at)
    places = range(len(store.layout.moments))
    weights = {f"{k} {p}": store.weights(k, p) for k in range(store.layout.experts) for p in places}
    return digest(weights), store.layout, store.records


def _set(at: Path) -> Any:
    own = dim.load_set(at)
    return digest(own.content()), own.spec, json.dumps(own.info, sort_keys=True)


def _distilled(at: Path, experts: Path, data: Any) -> Any:
    config = load_run_config(at, TrajectoryRecipe, "distillation")
    distiller = Distiller(config, data, experts, at, resume=True, device=torch.device("cpu"))
    return distiller.step, digest({"values": distiller.values.detach()})


def _scores(at: Path) -> Any:
    return [score.to_dict() for score in read_scores(at / "scores.json")]


def _report(at: Path, data: Any) -> Any:
    return write_report(at, data).is_file()


def _recipe(command: str) -> Callable[[Path], Any]:
    def read(at: Path) -> Any:
        (file,) = at.glob("*.toml")
        return to_dict(load_recipe_for(command, str(file)))

    return read


_QUICK = FeatureConfig(student="convnet:width=4,depth=1", epochs=1, max_steps=1, batch_size=512)


def _features(folder: Path, data: Any) -> Path:
    place = folder / "features"
    trained_features(data, _QUICK, cache=place)
    (file,) = place.glob("*.safetensors")
    (place / "name").write_text(file.name)
    file.rename(place / "kept")
    return place


def _kept_features(at: Path, data: Any) -> Any:
    """What is damaged is made again, and is then the same."""
    (at / "kept").rename(at / (at / "name").read_text())
    return trained_features(data, _QUICK, cache=at).digest


def _refinement(folder: Path) -> Path:
    place = folder / "refinement"
    place.mkdir(exist_ok=True)
    latents = torch.zeros(10, 2, 12)
    kept, moving = Kept(place / "kept", "own"), torch.zeros(20, 12, requires_grad=True)
    kept._saved = -1e9
    kept.save(0, 3, latents, moving, torch.optim.Adam([moving]))
    return place


def _kept_refinement(at: Path) -> Any:
    """What is damaged is as good as none."""
    kept = Kept(at / "kept", "own")
    return kept.block, kept.seconds > 0, digest({"result": kept.result(torch.zeros(10, 2, 12))})


def _images(at: Path) -> Any:
    return load_data(DataConfig(dataset="folder", root=str(at), resolution=16, val_fraction=0.0)).spec


# --- how it is damaged ----------------------------------------------------------------------------------------------------------


def mutated(path: Path, content: bytes, draw: random.Random) -> str:
    """Write damaged content, and say how."""
    size = len(content)
    place, length = draw.randrange(size), draw.choice([1, 2, 8, 100, 1000])
    noise = bytes(draw.randrange(256) for _ in range(length))
    ways: dict[str, Callable[[], bytes]] = {
        "a flipped bit": lambda: content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :],
        "other bytes": lambda: content[:place] + noise + content[place + length :],
        "bytes put in": lambda: content[:place] + noise + content[place:],
        "bytes left out": lambda: content[:place] + content[place + length :],
        "cut short": lambda: content[:place],
        "zeros": lambda: content[:place] + bytes(min(length, size - place)) + content[place + length :],
        "twice": lambda: content + content,
        "a part again": lambda: content[: place + length] + content[place:],
        "empty": lambda: b"",
        "noise": lambda: noise,
        "nested deeply": lambda: b"[" * 100_000,
        "another number": lambda: _other_number(content, draw),
    }
    how = draw.choice(list(ways))
    path.write_bytes(ways[how]())
    return f"{how} at {place} ({length})"


def _other_number(content: bytes, draw: random.Random) -> bytes:
    places = [number for number, byte in enumerate(content) if 48 <= byte <= 57]
    if not places:
        return content[:-1]
    place = draw.choice(places)
    return content[:place] + draw.choice([b"-1", b"999999999999", b"1e999", b"NaN", b"0.5", b"null"]) + content[place + 1 :]


_NASTY = (
    *(None, True, -1, 0, 1, 10**18, 1e308, 0.5, "", "x" * 1000, "\x1b[31m", "a\nb", "[/red]", "../../x", [], {}, [[]], {"a": {}}),
    *([1, 2, 3], ["a"], [None], {"x": 1}, "package.module:Name", [10**9] * 4, "é\u202e"),
)


def forged(kind: Artefact, place: Path, draw: random.Random) -> str:
    """Write other content under a checksum that fits, and say how."""
    said, held, write = kind.opened(place)
    if not held or draw.random() < 0.5:
        how = _forge(said, draw)
    else:
        name = draw.choice(sorted(held))
        ways = _other_bytes(held[name], draw) if kind.forge == "coded" else _other_tensors(held[name])
        way, held[name] = draw.choice([*ways, ("left out", None)])
        how = f"{name}, {way}"
        if held[name] is None:
            del held[name]
    write()
    return f"forged: {how}"


def _other_tensors(tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    return [
        ("another shape", tensor.flatten()[:1]),
        ("no value", tensor.flatten()[:0]),
        ("whole numbers", torch.zeros(tensor.shape, dtype=torch.int64)),
        ("not numbers", torch.full(tensor.shape, float("nan"))),
        ("bigger", torch.zeros(2, *tensor.shape)),
    ]


def _other_bytes(content: bytes, draw: random.Random) -> list[tuple[str, bytes]]:
    place, noise = draw.randrange(len(content)), bytes(draw.randrange(256) for _ in range(20))
    return [
        ("other bytes", content[:place] + noise + content[place + 20 :]),
        ("cut short", content[:place]),
        ("twice", content + content),
        ("noise", noise),
    ]


def _forge(values: dict[str, Any], draw: random.Random) -> str:
    """Change something somewhere in parsed JSON, in place."""
    node: Any = values
    path = []
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return f"{path}: nothing"
        key = draw.choice(keys)
        path.append(key)
        if isinstance(node[key], (dict, list)) and node[key] and draw.random() < 0.8:
            node = node[key]
            continue
        way = draw.choice(["other", "gone", "more"])
        if way == "gone" and isinstance(node, dict):
            del node[key]
        elif way == "more" and isinstance(node, dict):
            node["unheard of"] = draw.choice(_NASTY)
        else:
            node[key] = draw.choice(_NASTY)
        return f"{path}: {way}"


# --- nonsense -------------------------------------------------------------------------------------------------------------------

_WORDS = (
    *(
        "",
        " ",
        "-1",
        "0",
        "1",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "1_000",
        "1000000000000",
        "0.5",
        "true",
        "None",
        "x" * 500,
        "\x1b[31m",
    ),
    *(
        "a\nb",
        "é",
        "[/red]",
        "$x^{$",
        "../..",
        "/dev/null",
        "/nowhere/x",
        "package.module:Name",
        "os:system",
        "dim.spec:DataSpec",
    ),
    *(
        "convnet:depth=0",
        "convnet:width=-4",
        "timm:nothing",
        "3=1",
        "3=1 3=2",
        "=",
        "--",
        "hub:",
        "hub:a/b/c",
        "a\0b",
        "cpu",
        "meta",
    ),
)


def commands(folder: Path, count: int, draw: random.Random) -> Iterator[list[str]]:
    """Command lines: options of the command with values that fit nothing, over artefacts and recipes that exist."""
    real = [
        str(folder / name) for name in ("run", "set-npz", "experts", "distilled", "scores.json", "tiny.toml", "photos", "none")
    ]
    for number in range(count):
        command = draw.choice([*COMMANDS, *COMMANDS, "trian", "-h", "--version"])
        line = [command]
        if command in ("train", "experts", "distill"):
            recipe = draw.choice(["tiny.toml", "tiny-experts.toml", "none.toml"])
            # Real work would take long; what is refused late is tried by the other parts.
            line += ["--recipe", str(folder / recipe), "--dry-run", "--out", str(folder / f"nonsense-{number}")]
        elif command in ("sample", "evaluate", "compare", "coverage"):
            line += draw.sample(real, draw.choice([0, 1, 1, 2]))
            line += ["--ipc", "1"] if command == "sample" else []
        options = _options(COMMANDS[command][1]) if command in COMMANDS else ["--x"]
        for _ in range(draw.choice([1, 1, 2, 3])):
            line += [draw.choice([*options, "--unheard-of"]), *draw.choices(_WORDS, k=draw.choice([0, 1, 1, 1, 2]))]
        if command in ("evaluate", "compare", "coverage"):  # no line may begin real work
            line += ["--protocol.students", "none"] if command != "coverage" else ["--samples", "0"]
        yield line


def _options(kind: type, prefix: str = "--") -> list[str]:
    """Names of the options of a command, without those of choices."""
    names = []
    for each in dataclasses.fields(kind):
        hint = typing.get_type_hints(kind)[each.name]
        name = f"{prefix}{each.name.replace('_', '-')}"
        names += _options(hint, f"{name}.") if dataclasses.is_dataclass(hint) else [name]
    return names
