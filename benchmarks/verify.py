"""Does `dim verify` accept true claims and refuse false ones? Twenty true and 25 false ones on Fashion-MNIST.

    python benchmarks/verify.py --data-root DIR [--out runs/verify]
    python benchmarks/verify.py --tiny                       # the whole path, in miniature, on the digits

Sets are made first, cheaply: random and herded real images, pixels that trajectory matching distilled for a few iterations with
their learned step size, images of a small generator, soft labels. Each claims what `dim.evaluate` measures under a protocol of a
few hundred steps. Verification uses other seeds. Of false claims, digests and IPC are made to fit, so only students can tell:

    labels      the images of one class have labels drawn at random; the claim is of the right ones
    ZCA         the claim was measured on whitened images, and its protocol says natural ones
    score       every accuracy is raised by three points
    step size   the claim was measured at the learned step size, and set and claim say the protocol's own
    tenth       the same, and set and claim say a tenth of the learned step size

Every claim and verdict is kept in --out, where a later call finds it. CPU seconds are those of one thread.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from common import RESULTS, KeepRows, Rows, Sources, save, scores_of

from dim import rng
from dim.commands.malloc import keep_freed_memory
from dim.config import (
    DataConfig,
    DiscriminatorConfig,
    DistillConfig,
    ExpertsConfig,
    FitConfig,
    GeneratorConfig,
    ImagesConfig,
    ProtocolConfig,
    RecordConfig,
    StageConfig,
    StepSizeConfig,
    TrainConfig,
    TrajectoryConfig,
    TrajectoryRecipe,
    to_dict,
)
from dim.config.data import located
from dim.data.real import RealData, load_data
from dim.data.synthetic import SyntheticSet, load_set
from dim.features.coreset import Selector
from dim.hub import load_generator
from dim.io import read_json
from dim.nets.generator import Generator
from dim.nets.generator_file import FILE_NAME
from dim.runs.distill import distill
from dim.runs.train import fit
from dim.sampler import identity, sample_set
from dim.score.agreement import Stated, look
from dim.score.claims import Claim, claim, subject_digest
from dim.score.evaluate import Evaluator
from dim.score.record import Score
from dim.score.verify import verify
from dim.spec import to_uint8
from dim.teacher import load_teacher, with_soft_labels
from dim.trajectory.record import record
from dim.trajectory.store import LAYOUT

RAISED = 3.0  # points


@dataclass(frozen=True, kw_only=True)
class Arguments(KeepRows):
    """Verify true and false claims."""

    data_root: str | None = None
    """Where the real data lies. Default: the environment variable DIM_DATA_ROOT."""
    out: str | None = None
    """Folder of sets, claims and verdicts. Default: runs/verify; with --tiny, runs/verify-tiny."""
    claims: int = 5
    """Students of each claim."""
    students: int = 5
    """Fresh students of each verdict, at most."""
    tiny: bool = False
    """In miniature, on the digits, into --out: a trial of the whole path."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is."""

    data: DataConfig = field(default_factory=lambda: DataConfig(dataset="fashion-mnist"))
    student: str = "convnet:width=16"
    other: str = "resnet10:width=8"
    steps: int = 200
    """SGD steps of a student."""
    experts: float = 2.0
    """Epochs of each of two."""
    iterations: int = 20
    """Of trajectory matching."""
    stage: float = 1.0
    """Epochs of the generator."""
    width: int = 16
    """Of the generator."""
    trials: int = 5000
    """Simulated claims."""


TINY = Scale(
    data=DataConfig(),
    student="convnet:width=4,depth=2",
    other="convnet:width=5,depth=2",
    steps=20,
    experts=2.0,
    iterations=2,
    stage=0.05,
    width=4,
    trials=200,
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What makes a claim."""

    name: str
    make: str
    """A coreset rule, `distilled`, `drawn` or `generator`."""
    ipc: int = 1
    seed: int = 0
    zca: bool = False
    soft: bool = False
    other: bool = False
    """Another student."""


SUBJECTS = (
    Subject(name="random real a, IPC 1", make="random"),
    Subject(name="random real a, IPC 10", make="random", ipc=10),
    Subject(name="random real b, IPC 10", make="random", ipc=10, seed=1),
    Subject(name="random real c, IPC 10, ResNet", make="random", ipc=10, seed=2, other=True),
    Subject(name="random real d, IPC 10, soft labels", make="random", ipc=10, seed=3, soft=True),
    Subject(name="herding real, IPC 1", make="herding"),
    Subject(name="herding real, IPC 10", make="herding", ipc=10),
    Subject(name="random real e, IPC 1, ZCA", make="random", seed=4, zca=True),
    Subject(name="random real f, IPC 10, ZCA", make="random", ipc=10, seed=5, zca=True),
    Subject(name="random real g, IPC 10, ZCA", make="random", ipc=10, seed=6, zca=True),
    Subject(name="herding real, IPC 1, ZCA", make="herding", zca=True),
    Subject(name="herding real, IPC 10, ZCA", make="herding", ipc=10, zca=True),
    *(Subject(name=f"distilled pixels {'abcde'[seed]}, IPC 1", make="distilled", seed=seed) for seed in range(5)),
    Subject(name="drawn from the generator, IPC 10", make="drawn", ipc=10),
    Subject(name="stream of the generator, IPC 1", make="generator"),
    Subject(name="stream of the generator, IPC 10", make="generator", ipc=10),
)
# Places among the subjects, five for each alteration.
ALTERED = {
    "labels": (0, 1, 5, 6, 17),
    "ZCA": (7, 8, 9, 10, 11),
    "score": (2, 3, 4, 18, 19),
    "step size": (12, 13, 14, 15, 16),
    "tenth": (12, 13, 14, 15, 16),
}


class Workshop:
    """Sets, generator, claims and verdicts, as they are needed."""

    def __init__(self, arguments: Arguments) -> None:
        self.scale = TINY if arguments.tiny else Scale()
        self.arguments, self.sources = arguments, Sources.of(__file__)
        self.out = Path(arguments.out or ("runs/verify-tiny" if arguments.tiny else "runs/verify"))
        config = dataclasses.replace(self.scale.data, root=arguments.data_root)
        self.data: RealData = load_data(located(config))
        self.selector = Selector(self.data)
        asked = {"scale": json.loads(json.dumps(dataclasses.asdict(self.scale))), "claims": arguments.claims}
        kept = {"folder": self.out / "rows", "keep": arguments.keep_rows}
        self.claimed = Rows(self.sources, "cpu", asked, **kept)
        self.verdicts = Rows(self.sources, "cpu", {**asked, "students": arguments.students}, **kept)

    # --- subjects ------------------------------------------------------------------------------------------------------------

    def protocol(self, subject: Subject) -> ProtocolConfig:
        """A few hundred steps, in float32 and not compiled."""
        batches = -(-subject.ipc * 10 // 64)
        student = self.scale.other if subject.other else self.scale.student
        settings = {"epochs": self.scale.steps // batches, "augment": "crop", "zca": subject.zca}
        return ProtocolConfig(students=(student,), precision="fp32", compile="off", **settings)

    def subject(self, wanted: Subject) -> SyntheticSet | Generator:
        """A set or a generator, made or found."""
        if wanted.make == "generator":
            return self.generator()
        folder = self.out / "sets" / wanted.name.replace(", ", "-").replace(" ", "-")
        if not (folder / "set.json").is_file():
            made = self.made(wanted)
            made.info |= {"data": to_dict(dataclasses.replace(self.scale.data, root=None))}
            made.info |= {"protocol": to_dict(self.protocol(wanted))}
            made.save(folder, "safetensors", overwrite=True)
        return load_set(folder)

    def made(self, wanted: Subject) -> SyntheticSet:
        """A set, anew."""
        if wanted.make == "distilled":
            return self.distilled(wanted.seed)
        if wanted.make == "drawn":
            return sample_set(self.generator(), ipc=wanted.ipc, seed=wanted.seed)
        chosen = self.selector.select(wanted.ipc, wanted.make, seed=wanted.seed)
        images, labels = self.data.train.batch(chosen)
        made = SyntheticSet(to_uint8(images), labels, self.data.spec, info={"method": wanted.make})
        if wanted.soft:
            made = with_soft_labels(made, load_teacher(self.experts(), self.data, temperature=4.0))
        return made

    def experts(self) -> Path:
        """Two, recorded or found."""
        folder, student = self.out / "experts", self.scale.student
        if not (folder / LAYOUT).is_file() or not any(folder.glob("*.safetensors")):
            experts = ExpertsConfig(count=2, epochs=self.scale.experts, every=0.25, lr=0.1, augment="crop", compile="off")
            record(
                RecordConfig(student=student, data=self.scale.data, experts=experts), self.data, folder, resume=folder.exists()
            )
        return folder

    def distilled(self, seed: int) -> SyntheticSet:
        """One image per class, by a few iterations of MTT that begin at a step size five times the protocol's."""
        recipe = TrajectoryRecipe(
            student=self.scale.student,
            data=self.scale.data,
            trajectory=TrajectoryConfig(steps=10, epochs=2, max_start=4, augment="crop", compile="off"),
            images=ImagesConfig(ipc=1, lr=30.0),
            step_size=StepSizeConfig(initial=0.05, lr=1e-6),
            distill=DistillConfig(iterations=self.scale.iterations, seed=seed, sample_steps=0),
        )
        folder = self.out / "distilled" / str(seed)
        return distill(recipe, self.data, self.experts(), folder, resume=folder.exists())

    def generator(self) -> Generator:
        """A small one, trained or found."""
        folder = self.out / "run"
        if not (folder / FILE_NAME).is_file():
            config = TrainConfig(
                data=self.scale.data,
                generator=GeneratorConfig(width=self.scale.width, latent_dim=16),
                discriminator=DiscriminatorConfig(width=self.scale.width),
                stage_one=StageConfig(epochs=self.scale.stage),
                stage_two=StageConfig(epochs=0.0),
                fit=FitConfig(trackers=(), device="cpu", sample_steps=0),
                protocol=ProtocolConfig(augment="crop"),
            )
            fit(config, self.data, folder, resume=folder.exists())
        return load_generator(folder)

    # --- claims and verdicts -------------------------------------------------------------------------------------------------

    def claim(self, wanted: Subject, subject: SyntheticSet | Generator) -> Claim:
        """What the subject says of itself, measured or found."""

        def make() -> dict[str, Any]:
            evaluator = Evaluator(self.data, self.protocol(wanted), seeds=self.arguments.claims)
            if isinstance(subject, Generator):
                return scores_of(evaluator.stream(subject, wanted.ipc, wanted.name))
            return scores_of(evaluator.fixed(subject, wanted.name))

        facts = {"protocol": to_dict(self.protocol(wanted))}
        row = self.claimed.add(f"claim of {wanted.name}", make, scored=(identity(subject),), **facts)
        (score,) = map(Score.from_dict, row["scores"])
        (made,) = claim(subject, [score])
        return made

    def verdict(self, name: str, subject: SyntheticSet | Generator, made: Claim, wanted: bool) -> None:
        """Test a claim, or find it tested."""

        def make() -> dict[str, Any]:
            started, used = time.perf_counter(), time.process_time()
            (found,) = verify(subject, claims=[made], seeds=self.arguments.students, data=self.data)
            seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - used}
            kept = ("claimed", "accepted", "reason", "difference", "interval", "seeds")
            values = {key: value for key, value in found.to_dict().items() if key in kept}
            return {**values, "fresh": found.accuracies, "students": len(found.accuracies), **seconds}

        facts = {"true": wanted, "stated": dataclasses.asdict(made.stated), "protocol": made.score.protocol}
        row = self.verdicts.add(name, make, scored=(subject_digest(subject),), **facts)
        print(
            f"{name}: {'accepted' if row['accepted'] else 'refused'}, {row['cpu_seconds']:.0f} CPU s. {row['reason']}", flush=True
        )


# --- alterations -------------------------------------------------------------------------------------------------------------


def altered(kind: str, made: Claim, subject: Any, base: ProtocolConfig) -> tuple[Claim, Any]:
    """A false claim of a subject, which is perhaps altered too; all digests fit."""
    row = made.score
    if kind == "labels":
        subject = _shuffled(subject)
        row = dataclasses.replace(row, ipc=subject.ipc, made={**row.made, "digest": identity(subject)})
    elif kind == "ZCA":
        row = dataclasses.replace(row, protocol={**row.protocol, "zca": False})
    elif kind == "score":
        row = dataclasses.replace(row, accuracies=tuple(min(100.0, value + RAISED) for value in row.accuracies))
    else:
        size = base.lr if kind == "step size" else subject.info["step_size"] / 10
        subject = SyntheticSet(subject.images, subject.labels, subject.spec, info={**subject.info, "step_size": size})
        changed = {**row.made, "digest": identity(subject), "step_size": size}
        row = dataclasses.replace(row, made=changed, protocol={**row.protocol, "lr": size})
    return dataclasses.replace(made, subject=subject_digest(subject), score=row), subject


def _shuffled(subject: SyntheticSet) -> SyntheticSet:
    """The images of class 1 with labels of the other classes, drawn at random."""
    labels, members = subject.labels.clone(), subject.labels == 1
    drawn = torch.randint(1, subject.spec.num_classes, (int(members.sum()),), generator=rng.generator(0, "shuffled"))
    labels[members] = (1 + drawn) % subject.spec.num_classes
    return SyntheticSet(subject.images, labels, subject.spec, info=subject.info)


# --- summaries ---------------------------------------------------------------------------------------------------------------


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several verdicts: how many, how many were accepted and refused, and what the longest took."""
    accepted = sum(row["accepted"] for row in rows)
    counts = {"trials": len(rows), "accepted": accepted, "refused": len(rows) - accepted}
    longest = {f"longest_{name}": max(row[name] for row in rows) for name in ("seconds", "cpu_seconds")}
    students = statistics.fmean(row["students"] for row in rows)
    return {**counts, **longest, "mean_students": students}


def simulated(count: int, students: int, trials: int, shift: float) -> dict[str, Any]:
    """Normal accuracies with standard deviation 1: how often a claim that is `shift` too high is refused, in percent."""
    source = np.random.default_rng(0)
    refused = used = 0
    for _ in range(trials):
        claimed = source.normal(50, 1, count).tolist()
        fresh = source.normal(50, 1, students).tolist()
        spread = statistics.stdev(claimed) if count > 1 else None
        stated = Stated(mean=statistics.fmean(claimed) + shift, std=spread, n=count)
        number = next((k for k in range(1, students + 1) if not look(stated, fresh[:k], students).agrees), 0)
        refused, used = refused + (number > 0), used + (number or students)
    return {"trials": trials, "refused_percent": 100 * refused / trials, "mean_students": used / trials}


def spreads() -> dict[str, Any]:
    """Standard deviations of all rows of sets in benchmarks/results with three students or more, of one set each."""
    found = []
    for path in sorted(RESULTS.rglob("*.json")):
        if path.stem != "verify":
            found += [
                statistics.stdev(row["accuracies"])
                for row in _scores_in(read_json(path))
                if row["track"] == "fixed" and "random" not in row["name"] and len(row["accuracies"]) > 2
            ]
    quantiles = {f"percentile_{part}": float(np.percentile(found, part)) for part in (5, 50, 95)}
    return {"trials": len(found), **quantiles}


def _scores_in(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "accuracies" in node and None not in node["accuracies"]:
            yield node
        node = list(node.values())
    for value in node if isinstance(node, list) else ():
        yield from _scores_in(value)


def main(arguments: Arguments) -> None:
    shop = Workshop(arguments)
    for place, wanted in enumerate(SUBJECTS):
        subject = shop.subject(wanted)
        made = shop.claim(wanted, subject)
        shop.verdict(f"true: {wanted.name}", subject, made, True)
        for kind in (kind for kind, places in ALTERED.items() if place in places):
            other, changed = altered(kind, made, subject, shop.protocol(wanted))
            shop.verdict(f"false, {kind}: {wanted.name}", changed, other, False)
    rows = list(shop.verdicts.made)
    groups = {"true claims": [row for row in rows if row["true"]], "false claims": [row for row in rows if not row["true"]]}
    groups |= {f"false claims, {kind}": [row for row in rows if row["name"].startswith(f"false, {kind}:")] for kind in ALTERED}
    wholes: dict[str, Callable[[], dict[str, Any]]] = {name: lambda own=own: summary(own) for name, own in groups.items()}
    for count, students in ((5, 5), (3, 5), (1, 5), (5, 1)):
        for shift in (0.0, 3.0, 5.0):
            name = f"simulated: claim of {count}, {students} fresh, {shift:g} standard deviations too high"
            wholes[name] = lambda given=(count, students, shop.scale.trials, shift): simulated(*given)
    wholes["spread of the students of a set"] = spreads
    for name, make in wholes.items():
        started = time.perf_counter()
        content = make()
        shop.verdicts.put(name, content, time.perf_counter() - started)
        print(f"{name}: {content}", flush=True)
    rows = [*shop.claimed.made, *shop.verdicts.made]
    print(save("verify", {"rows": rows}, shop.out if arguments.tiny else None))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
