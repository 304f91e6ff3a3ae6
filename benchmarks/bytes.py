"""The most accuracy per kilobyte: generators and sets in coded files of given sizes, beside real images and a small model.

    python benchmarks/bytes.py --dataset fashion-mnist --data-root DIR [--out runs/bytes-fashion] [--sizes 8k 30k 80k]
    python benchmarks/bytes.py --render

A cell is a subject at a size. Its candidates are made by `dim.budget`, as `dim sample --bytes` does; one student of each, all at
the same number of steps, chooses on the validation part; what was chosen is scored on the test part by new students. Subjects:

    generator    generators of several widths, coded, and images that the widest one draws, coded
    random       real images drawn at random, coded
    herding      real images chosen by herding, coded
    pixels       sets made by `dim distill` (--pixels), coded
    model        not a set: a student that was trained on all real images, rounded and coded; its width and bits are chosen

Cells are kept in --out and found again. With --render, results are written as tables into docs/bytes.md.
"""

import dataclasses
import re
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import tyro
from common import RESULTS, ROOT, KeepRows, Rows, Sources, changed, save, scores_of, train

from dim import budget
from dim.budget import Candidate, Judge, parse_bytes
from dim.coding import container, weights
from dim.commands.malloc import keep_freed_memory
from dim.config import DataConfig, ProtocolConfig, TrainConfig, to_dict
from dim.data.real import EpochBatches, RealData, load_data
from dim.data.synthetic import SyntheticSet, load_set
from dim.features.classifier import accuracy, train_student
from dim.features.coreset import Selector
from dim.hub import load_generator
from dim.io import read_json, write_bytes
from dim.nets.generator import Generator
from dim.nets.student import build_student
from dim.provenance import hardware, versions
from dim.recipes.load import load_recipe
from dim.runs.accelerator import make_accelerator
from dim.sampler import identity, sample_set
from dim.score.evaluate import Evaluator
from dim.score.record import Score
from dim.score.report import format_accuracy, format_bytes
from dim.spec import to_uint8

PAGE = ROOT / "docs" / "bytes.md"
SUBJECTS = ("generator", "random", "herding", "pixels", "model")
_TITLES = {
    "generator": "coded generator, or its images",
    "random": "random real images",
    "herding": "herded real images",
    "pixels": "distilled pixels",
    "model": "a small trained model (no set)",
}
_MARKED = re.compile(r"(<!-- rendered: (bytes-[a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_MODEL_BITS = (8, 4)


@dataclass(frozen=True, kw_only=True)
class Arguments(KeepRows):
    """Measure accuracy per kilobyte."""

    dataset: str = "fashion-mnist"
    """Of the real images."""
    data_root: str | None = None
    """Where they lie."""
    name: str | None = None
    """Of the result. Default: bytes- and the data set."""
    out: str = "runs/bytes"
    """Where generators and cells are kept."""
    sizes: tuple[str, ...] = ("8k", "30k", "80k", "3k", "300k", "1M")
    """Of files, in the order in which cells are made."""
    subjects: tuple[str, ...] = SUBJECTS
    """Which of them."""
    pixels: tuple[str, ...] = ()
    """Sets made by `dim distill`; without any, there are no cells of pixels."""
    recipe: str = "fashion-gan-small"
    """Of the generators."""
    widths: tuple[int, ...] = (16, 8, 4)
    """Of the generators; the first one draws images, too."""
    latent_dims: tuple[int, ...] = (32, 16, 16)
    """Of the same generators."""
    length: float = 0.5
    """Epochs of both stages, as a part of the recipe's."""
    budget_ipc: int = 10
    """Every student takes the steps that the protocol has for so many images per class."""
    most_ipc: int = 500
    """Images per class of a file, at most."""
    student: str = "convnet:width=64"
    """That scores what was chosen."""
    chooser: str = "convnet:width=32"
    """That scores candidates."""
    seeds: int = 3
    """Students per score."""
    model_widths: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128)
    """Of the models."""
    model_steps: int = 3000
    """Of a model's training on all real images."""
    calibration_steps: int = 300
    """See `dim sample --coding.calibration-steps`."""
    tiny: bool = False
    """On the digits, in seconds: what the tests run."""
    render: bool = False
    """Only write tables of results into docs/bytes.md."""

    @property
    def result(self) -> str:
        """Name of the result."""
        return self.name or f"bytes-{self.dataset}"


def tiny(arguments: Arguments) -> Arguments:
    """The same in seconds, on the digits."""
    quick = {"student": "convnet:width=4,depth=2", "chooser": "convnet:width=4,depth=2", "seeds": 2, "most_ipc": 8}
    quick |= {"widths": (4,), "latent_dims": (6,), "model_widths": (2, 4), "model_steps": 20, "calibration_steps": 3}
    return dataclasses.replace(arguments, dataset="digits", length=0.2, sizes=arguments.sizes[:1], **quick)


class Suite:
    """What all cells share."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments, self.sources = arguments, Sources.of(__file__)
        self.recipe = load_recipe(arguments.recipe)
        config = dataclasses.replace(self.recipe.data, dataset=arguments.dataset)
        self.config = DataConfig(**{**to_dict(config), "root": arguments.data_root})
        self.data: RealData = load_data(self.config)
        self.protocol = dataclasses.replace(self.recipe.protocol, students=(arguments.student,))
        if arguments.tiny:
            self.protocol = dataclasses.replace(self.protocol, epochs=10, augment="")
        chooser = dataclasses.replace(self.protocol, students=(arguments.chooser,))
        self.judge = Judge(self.data, chooser, budget_ipc=arguments.budget_ipc)
        self.info = {"data": {**to_dict(self.config), "root": None}, "protocol": to_dict(self.protocol)}
        asked = {"protocol": to_dict(self.protocol), "chooser": arguments.chooser, "seeds": arguments.seeds, "split": "test"}
        asked |= {"steps": self.judge.steps, "data": self.data.spec.fingerprint, "most_ipc": arguments.most_ipc}
        self.rows = Rows(self.sources, "cpu", asked, folder=Path(arguments.out) / "cells", keep=arguments.keep_rows)

    # --- subjects ------------------------------------------------------------------------------------------------------------

    @cached_property
    def generators(self) -> dict[str, Generator]:
        """By name; trained where they are not yet."""
        found = {}
        for width, latent_dim in zip(self.arguments.widths, self.arguments.latent_dims, strict=True):
            stages = {
                name: {"epochs": self.arguments.length * getattr(self.recipe, name).epochs} for name in ("stage_one", "stage_two")
            }
            own = {
                "generator": {"width": width, "latent_dim": latent_dim},
                "fit": {"trackers": (), "device": "cpu", "experts": 0},
            }
            config: TrainConfig = changed(
                dataclasses.replace(self.recipe, data=self.config, protocol=self.protocol), {**stages, **own}
            )
            folder = self.folder(width)
            train(config, self.data, folder, make_accelerator(config, folder), self.sources)
            found[f"generator of width {width}"] = load_generator(folder)
        return found

    @cached_property
    def selector(self) -> Selector:
        """Chooses real images."""
        return Selector(self.data)

    def folder(self, width: int) -> Path:
        """Of a generator."""
        return Path(self.arguments.out) / f"gan-{width}"

    def made_from(self, subject: str) -> dict[str, Path]:
        """Folders that a subject's cells depend on."""
        if subject == "pixels":
            return {f"set {number}": Path(name) for number, name in enumerate(self.arguments.pixels)}
        if subject == "generator":
            return {f"generator {width}": self.folder(width) for width in self.arguments.widths}
        return {}

    def facts(self, subject: str) -> dict[str, Any]:
        """What a subject's cells depend on."""
        if subject == "generator":
            trained = {name: identity(generator) for name, generator in self.generators.items()}
            return {"recipe": self.arguments.recipe, "length": self.arguments.length, "generators": trained}
        if subject == "model":
            return {"model_steps": self.arguments.model_steps, "model_widths": self.arguments.model_widths}
        return {"sets": [identity(load_set(name)) for name in self.arguments.pixels]} if subject == "pixels" else {}

    def images(self, draw: budget.Draw, size: int, most: int, labels: str = "hard labels") -> list[Candidate]:
        """Candidates of images."""
        most = min(most, self.arguments.most_ipc)
        return budget.image_candidates(budget.nested(draw), size, most=most, protocol=self.carried, labels=labels)

    def carried(self, images: int) -> ProtocolConfig:
        """The protocol of a file of so many images."""
        return dataclasses.replace(self.judge.protocol_for(images), students=self.protocol.students)

    def candidates(self, subject: str, size: int) -> list[Candidate]:
        """All that a subject offers for a size."""
        if subject == "generator":
            steps, found = self.arguments.calibration_steps, []
            for name, generator in self.generators.items():
                found += budget.generator_candidates(generator, size, name=name, steps=steps)
            widest = next(iter(self.generators.values()))
            return found + self.images(lambda ipc: sample_set(widest, ipc=ipc), size, self.arguments.most_ipc)
        if subject == "pixels":
            found = []
            for name in self.arguments.pixels:
                stored = load_set(name)
                kind = f"{'hard' if stored.soft is None else 'soft'} labels of {Path(name).name}"
                found += self.images(lambda ipc, stored=stored: budget.first(stored, ipc), size, stored.ipc, kind)
            return found

        def real(ipc: int) -> SyntheticSet:
            images, labels = self.data.train.batch(self.selector.select(ipc, subject, seed=0))
            chosen = SyntheticSet(to_uint8(images), labels, self.data.spec, info={"method": "real data", **self.info})
            return budget.first(chosen, ipc)

        return self.images(real, size, int(self.data.train.labels.bincount().min()))

    # --- cells ---------------------------------------------------------------------------------------------------------------

    def cell(self, subject: str, size: str) -> None:
        """Make a cell, or find it."""
        make = self.model if subject == "model" else lambda limit: self.file(subject, limit)
        about = {"scored": ()} if subject == "model" else {"made_from": self.made_from(subject)}
        limit = parse_bytes(size)
        self.rows.add(f"{subject}, {size}", lambda: make(limit), subject=subject, size=limit, **about, **self.facts(subject))

    def file(self, subject: str, limit: int) -> dict[str, Any]:
        """What is chosen for a size, and its score on the test part."""
        candidates = self.candidates(subject, limit)
        chosen = budget.choose(candidates, self.judge, limit)
        path = Path(self.arguments.out) / "files" / f"{subject}-{limit}{container.SUFFIX}"
        container.write(path, chosen.content)
        score = self.scored(path, chosen, f"{subject}, {limit:,} bytes")
        return {**_about(candidates, chosen), **scores_of([score])}

    def scored(self, path: Path, chosen: Candidate, name: str) -> Score:
        """The score of a file by new students."""
        if chosen.kind == "generator":
            evaluator = Evaluator(self.data, self.protocol, seeds=self.arguments.seeds)
            return evaluator.stream(load_generator(path), self.arguments.budget_ipc, name)[0]
        subject = load_set(path)
        return Evaluator(self.data, self.carried(len(subject)), seeds=self.arguments.seeds).fixed(subject, name)[0]

    def model(self, limit: int) -> dict[str, Any]:
        """A student of real images as a file: width and bits are those of the best on the validation part that fit."""
        candidates, nets, started = [], {}, time.perf_counter()
        for bits in _MODEL_BITS:
            fitting = [
                width for width in self.arguments.model_widths if len(self.coded(self.fresh(width), width, bits)[0]) <= limit
            ]
            if not fitting:
                continue
            net = self.trained(max(fitting), 0)
            content, rounded = self.coded(net, max(fitting), bits)
            found = Candidate(f"model of width {max(fitting)}, {bits} bits", "student", len(content), content=content)
            found.accuracy = accuracy(rounded, self.data.val, torch.device("cpu"))
            candidates.append(found)
            nets[found.what] = (max(fitting), bits, rounded)
        if not candidates:
            smallest = len(self.coded(self.fresh(min(self.arguments.model_widths)), min(self.arguments.model_widths), 4)[0])
            return {"chosen": None, "bytes": smallest, "candidates": [], "scores": []}
        chosen = max(candidates, key=lambda one: one.accuracy)
        width, bits, first = nets[chosen.what]
        others = [self.coded(self.trained(width, seed), width, bits)[1] for seed in range(1, self.arguments.seeds)]
        found = tuple(accuracy(net, self.data.test, torch.device("cpu")) for net in (first, *others))
        batch = self.protocol.batch_size
        score = Score(
            name=f"model, {limit:,} bytes",
            track="full",
            ipc=None,
            student=self.architecture(width),
            labels="hard",
            accuracies=found,
            seeds=tuple(range(self.arguments.seeds)),
            steps=self.arguments.model_steps,
            batch_size=batch,
            images_seen=self.arguments.model_steps * batch,
            distinct_images=min(len(self.data.train), self.arguments.model_steps * batch),
            bytes={"file": chosen.bytes},
            seconds=round(time.perf_counter() - started, 2),
            protocol=to_dict(self.protocol),
            data=self.data.about("test"),
            hardware=hardware(torch.device("cpu")),
            versions=versions(),
        )
        return {**_about(candidates, chosen), **scores_of([score])}

    @staticmethod
    def architecture(width: int) -> str:
        """Of a model: the usual student, of some width."""
        return f"convnet:width={width}"

    def fresh(self, width: int) -> torch.nn.Module:
        """An untrained model, which takes about as many bytes."""
        return build_student(self.architecture(width), self.data.spec, seed=0)

    def trained(self, width: int, seed: int) -> torch.nn.Module:
        """A model after its training on real images, without whitening."""
        batches = EpochBatches(
            self.data.train, min(self.protocol.batch_size, len(self.data.train)), seed=seed, purpose="evaluate"
        )
        steps, protocol = self.arguments.model_steps, self.protocol
        return train_student(self.architecture(width), batches.at, steps, protocol, self.data, seed, torch.device("cpu"))

    def coded(self, net: torch.nn.Module, width: int, bits: int) -> tuple[bytes, torch.nn.Module]:
        """The content of a file that holds a model, and the model that the file gives back."""
        state = {name: value.detach() for name, value in net.state_dict().items()}
        shapes = weights.shapes_of(state, [name for name, _ in net.named_parameters()])
        parts = weights.code(state, shapes, bits)
        header = {"kind": "student", "student": self.architecture(width), "bits": bits, "spec": self.data.spec.to_dict()}
        again = self.fresh(width)
        again.load_state_dict(weights.decode(parts, shapes, bits))
        return container.pack(header, parts), again.eval()


def _about(candidates: list[Candidate], chosen: Candidate) -> dict[str, Any]:
    return {"chosen": chosen.what, "bytes": chosen.bytes, "candidates": [one.to_dict() for one in candidates]}


# --- the page -----------------------------------------------------------------------------------------------------------------


def tables(content: dict[str, Any]) -> str:
    """A result as a table: subjects by sizes, and below what was chosen."""
    rows = {(row["subject"], row["size"]): row for row in content["rows"]}
    sizes = sorted({size for _, size in rows})
    subjects = [name for name in SUBJECTS if any(subject == name for subject, _ in rows)]
    lines = [f"| file of at most | {' | '.join(map(format_bytes, sizes))} |", f"|{'---|' * (len(sizes) + 1)}"]
    for subject in subjects:
        found = [rows.get((subject, size)) for size in sizes]
        lines.append(f"| {_TITLES[subject]} | {' | '.join(map(_cell, found))} |")
    chosen = [
        f"- {_TITLES[key[0]]}, {format_bytes(key[1])}: {row['chosen']}, {row['bytes']:,} bytes"
        for key, row in sorted(rows.items())
        if row["chosen"]
    ]
    return "\n".join([*lines, "", *_said(content), "", "What was chosen:", "", *chosen]) + "\n"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not run"
    return format_accuracy(Score.from_dict(row["scores"][0])) if row["scores"] else "does not fit"


def _said(content: dict[str, Any]) -> list[str]:
    about = content["about"]
    widths = ", ".join(map(str, about["widths"]))
    text = (
        f"n = {about['seeds']} students (`{about['student']}`) of one file each, {about['steps']:,} steps, on the test part. "
        f"Candidates were chosen by one `{about['chooser']}` on the validation part. Generators: recipe `{about['recipe']}`, "
        f"widths {widths}, {about['length']:g} of its epochs. The model was trained on all real images, for "
        f"{about['model_steps']:,} steps."
    )
    return textwrap.wrap(text, 130)


def rendered(text: str, read: Callable[[str], dict[str, Any] | None]) -> str:
    """A page with the tables of results in place of what stands between their marks."""

    def table(found: re.Match) -> str:
        content = read(found[2])
        return f"{found[1]}{'Not run.' + chr(10) if content is None else tables(content)}{found[3]}"

    return _MARKED.sub(table, text)


def stored(name: str) -> dict[str, Any] | None:
    """A result, if there is one."""
    path = RESULTS / f"{name}.json"
    return read_json(path) if path.is_file() else None


def main(arguments: Arguments) -> None:
    if arguments.render:
        write_bytes(PAGE, rendered(PAGE.read_text(), stored).encode())
        return
    if arguments.tiny:
        arguments = tiny(arguments)
    suite = Suite(arguments)
    subjects = [name for name in arguments.subjects if name != "pixels" or arguments.pixels]
    for size in arguments.sizes:
        for subject in subjects:
            suite.cell(subject, size)
        about = {
            name: getattr(arguments, name)
            for name in ("seeds", "student", "chooser", "recipe", "widths", "length", "model_steps")
        }
        print(save(arguments.result, {"about": {**about, "steps": suite.judge.steps}, "split": "test", "rows": suite.rows.made}))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
