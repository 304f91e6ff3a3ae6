"""What sets and generators reveal of the images that they were made from, beside the images themselves and a control.

    python benchmarks/audit.py --data-root DIR [--out runs/audit] [--only CELL ...]

Of Fashion-MNIST's 60,000 training images a random half are members; 400 of the 60,000 are canaries with a wrong label. Cells:

    real              ten real members per class as a set; its controls are students on all members, where a leak is known
    without           the same of the test part: made without members and others, so every figure should be chance
    pixels-real       distilled pixels (MTT) that start as real members
    pixels-noise      distilled pixels that start as noise
    pixels-without    distilled pixels that start as real images, all of the test part: chance again
    generator         a generator of the members: its stream, and a set
    refined           a set of it with refined latents, and the stream around it (`dim.anchored`)

Sets of members have references of the same kind, made from other halves; the others are compared with models of real halves. A
cell that lies in --out and was made by the same sources is not made again; a run, experts, or a student that lies there never is.
The result, benchmarks/results/audit-NAME.json, is written when all cells are there. `--tiny` is all of it on digits, in two
minutes.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from common import KeepRows, Rows, Sources, changed, note_sources, save, train

from dim.audit.audit import Audit, Subject
from dim.audit.candidates import Candidates, candidates_of
from dim.commands.malloc import keep_freed_memory
from dim.config import (
    DataConfig,
    PolicyConfig,
    ProtocolConfig,
    RecordConfig,
    RefineConfig,
    TrainConfig,
    TrajectoryRecipe,
    to_dict,
)
from dim.config.data import located
from dim.data.real import RealData, load_data, with_training_part
from dim.data.synthetic import SyntheticSet, load_set
from dim.emit.policy import Policy
from dim.hub import load_generator
from dim.recipes.load import load_recipe
from dim.runs.accelerator import make_accelerator
from dim.runs.distill import distill
from dim.sampler import anchored
from dim.score.privacy import AuditResult
from dim.score.report import print_audit
from dim.spec import to_uint8
from dim.trajectory.record import record

HALF = DataConfig(dataset="fashion-mnist", val_fraction=0.0, fraction=0.5, canaries=400)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much work everything is."""

    name: str
    data: DataConfig
    protocol: ProtocolConfig
    pixels: str
    """Recipe of the experts and of the distilled pixels."""
    generator: str
    """Recipe of the generator."""
    student: str
    """Of the experts."""
    experts: dict[str, Any] = field(default_factory=dict)
    trajectory: dict[str, Any] = field(default_factory=dict)
    iterations: int = 60
    training: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Departures from the generator's recipe."""
    refine: RefineConfig = field(default_factory=lambda: RefineConfig(by="moments"))
    candidates: int = 200
    ipc: int = 10
    halves: int = 8
    references: int = 4
    samples: int = 5000


FULL = Size(
    name="fashion",
    data=HALF,
    # No augmentation, and enough passes over the real members that students remember some of them.
    protocol=ProtocolConfig(students=("convnet:width=32",), epochs=500, full_epochs=12, lr=0.02, augment=""),
    pixels="fashion-mtt-ipc10",
    generator="fashion-dim-small",
    student="convnet:width=16",
    experts={"count": 2, "epochs": 2.0},
    trajectory={"epochs": 4.0, "max_start": 12.0, "steps": 20},
    training={"fit": {"trackers": (), "device": "cpu"}},
)
TINY = Size(
    name="tiny",
    data=dataclasses.replace(HALF, dataset="digits", canaries=60),
    protocol=ProtocolConfig(students=("convnet:width=4,depth=1",), epochs=1, full_epochs=1, augment="", batch_size=128),
    pixels="digits-mtt-ipc1",
    generator="digits-dim",
    student="convnet:width=4,depth=1",
    experts={"count": 1, "epochs": 2.0, "every": 1.0},
    trajectory={"epochs": 1.0, "max_start": 1.0, "steps": 2},
    iterations=1,
    training={
        **{"generator": {"width": 4, "latent_dim": 4}, "discriminator": {"width": 4}},
        **{"stage_one": {"epochs": 0.2}, "stage_two": {"epochs": 0.0}, "fit": {"experts": 0, "trackers": (), "device": "cpu"}},
    },
    refine=RefineConfig(by="moments", steps=1, blocks=(1,)),
    candidates=2,
    ipc=1,
    halves=2,
    references=1,
    samples=20,
)


@dataclass(frozen=True, kw_only=True)
class Arguments(KeepRows):
    """Audit sets and generators of Fashion-MNIST."""

    data_root: str | None = None
    """Where the real data lies. Default: the environment variable DIM_DATA_ROOT."""
    out: str = "runs/audit"
    """Where runs, experts, sets and cells are kept."""
    only: tuple[str, ...] = ()
    """Only these cells. Default: all, and then the result is written."""
    tiny: bool = False
    """Digits and almost no training: whether everything works."""
    results: str | None = None
    """Folder of the result. Default: benchmarks/results."""


class Suite:
    """What all cells share."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments, self.size = arguments, TINY if arguments.tiny else FULL
        self.sources, self.out = Sources.of(__file__), Path(arguments.out) / self.size.name
        self.data_config = located(self.size.data, arguments.data_root)
        self.members = self.half(0)
        info = {"data": to_dict(self.data_config)}
        self.candidates: Candidates = candidates_of(info, self.members.spec.fingerprint, arguments.data_root, "cpu")
        asked = {"size": json_of(self.size)}
        self.rows = Rows(self.sources, "cpu", asked, folder=self.out / "cells", keep=arguments.keep_rows)
        self.cells: dict[str, Callable[[], AuditResult]] = {
            "real": functools.partial(self.sets, self.real),
            "without": lambda: self.audit("without", self.real(None)),
            "pixels-real": functools.partial(self.sets, functools.partial(self.pixels, "real")),
            "pixels-noise": functools.partial(self.sets, functools.partial(self.pixels, "noise")),
            "pixels-without": lambda: self.audit("pixels-without", self.pixels("real", None)),
            "generator": lambda: self.audit("generator", self.generator()),
            "refined": lambda: self.audit("refined", self.refined()),
        }

    # --- data ------------------------------------------------------------------------------------------------------------------

    def config(self, seed: int | None) -> DataConfig:
        """Data settings of the half of a seed; of the members for None."""
        return dataclasses.replace(self.data_config, fraction_seed=seed or 0)

    @functools.cache  # noqa: B019 (a suite lives as long as the program)
    def half(self, seed: int | None) -> RealData:
        """The half of a seed, 0 being the members; for None, what is neither a member nor another candidate: the test part."""
        if seed is None:
            whole = load_data(dataclasses.replace(self.data_config, fraction=1.0))
            return with_training_part(whole, whole.test)
        return load_data(self.config(seed))

    # --- subjects --------------------------------------------------------------------------------------------------------------

    def real(self, seed: int | None) -> SyntheticSet:
        """Real images of a half as a set."""
        data, ipc = self.half(seed), self.size.ipc
        chosen = torch.cat([(data.train.labels == label).nonzero()[:ipc, 0] for label in range(data.spec.num_classes)])
        images, labels = data.train.batch(chosen)
        return SyntheticSet(to_uint8(images), labels, data.spec, info={"method": "real", "data": to_dict(self.config(seed))})

    def experts(self, seed: int | None) -> Path:
        """Experts of a half, recorded if they are not there."""
        recipe, folder = self.recipe(seed), self.out / f"experts-{seed}"
        config = RecordConfig(student=recipe.student, data=recipe.data, experts=recipe.experts)
        note_sources(folder, self.sources)
        record(config, self.half(seed), folder, resume=folder.exists())
        return folder

    def recipe(self, seed: int | None, init: str = "real") -> TrajectoryRecipe:
        """How the pixels of a half are distilled."""
        recipe: TrajectoryRecipe = load_recipe(self.size.pixels)
        parts = {
            "experts": dataclasses.replace(recipe.experts, **self.size.experts),
            "trajectory": dataclasses.replace(recipe.trajectory, **self.size.trajectory),
            "images": dataclasses.replace(recipe.images, ipc=self.size.ipc, init=init),
            "distill": dataclasses.replace(recipe.distill, iterations=self.size.iterations),
        }
        return dataclasses.replace(recipe, student=self.size.student, data=self.config(seed), **parts)

    def pixels(self, init: str, seed: int | None) -> SyntheticSet:
        """Distilled pixels of a half, made if they are not there."""
        folder, recipe = self.out / f"pixels-{init}-{seed}", self.recipe(seed, init)
        if not (folder / "set.json").is_file() or load_set(folder).info["iterations"] != recipe.distill.iterations:
            experts = self.experts(seed)
            note_sources(folder, self.sources)
            distill(recipe, self.half(seed), experts, folder, resume=folder.exists())
        return load_set(folder)

    def generator(self) -> Any:
        """A generator of the members, trained if it is not there."""
        recipe: TrainConfig = changed(load_recipe(self.size.generator), self.size.training)
        config, folder = dataclasses.replace(recipe, data=self.config(0)), self.out / "generator"
        train(config, self.members, folder, make_accelerator(config, folder), self.sources)
        return load_generator(folder)

    def refined(self) -> Any:
        """The generator around refined images: its first images are these, and its stream is drawn around them."""
        config, experts = PolicyConfig(steps=("refined",), candidates=self.size.candidates), self.experts(0)
        policy = Policy(config, data=self.members, experts=str(experts), refinement=self.size.refine)
        generator = self.generator()
        return anchored(generator, policy.rank(generator, ipc=self.size.ipc), ipc=self.size.ipc, spread=0.3)

    # --- cells -----------------------------------------------------------------------------------------------------------------

    def sets(self, make: Callable[[int], SyntheticSet]) -> AuditResult:
        """The set that `make` makes of the members, with references that it makes of other halves."""
        references = {}
        for seed in range(1, self.size.references + 1):
            other = make(seed)
            info = {"data": to_dict(self.config(seed))}
            mask = self.candidates.members_of(info, other.spec.fingerprint, f"half {seed}")
            references[f"half {seed}"] = other, mask
        return self.audit("set", make(0), references)

    def audit(self, name: str, subject: Subject, references: dict[str, Any] | None = None) -> AuditResult:
        """Attack a subject; a generator by its stream, and by a set drawn from it."""
        size, tracks = self.size, ("fixed", "stream")
        options = {"halves": size.halves, "ipc": size.ipc, "samples": size.samples, "tracks": tracks, "references": references}
        report = functools.partial(print, flush=True)
        return Audit(self.candidates, size.protocol, **options, cache=self.out / "answers", report=report).run(subject, name)

    def cell(self, name: str) -> None:
        """Make a cell, or find it."""

        def make() -> dict[str, Any]:
            result = self.cells[name]()
            return {"audit": {**result.to_dict(), "name": name}}

        row = self.rows.add(name, make, members=int(self.candidates.member.sum()), others=int((~self.candidates.member).sum()))
        print_audit(AuditResult.from_dict(row["audit"]))


def json_of(size: Size) -> dict[str, Any]:
    """All of it, as rows are found by."""
    values = {one.name: getattr(size, one.name) for one in dataclasses.fields(size)}
    sections = {"data": dataclasses.replace(size.data, root=None), "protocol": size.protocol, "refine": size.refine}
    return {**values, **{name: to_dict(section) for name, section in sections.items()}}


def main(arguments: Arguments) -> None:
    suite = Suite(arguments)
    for name in arguments.only or suite.cells:
        suite.cell(name)
    if not arguments.only:
        folder = None if arguments.results is None else Path(arguments.results)
        print(save(f"audit-{suite.size.name}", {"data": suite.members.about(), "rows": suite.rows.made}, folder))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
