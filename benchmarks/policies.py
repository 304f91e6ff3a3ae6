"""What a generator's sets gain by a policy and by soft labels, fixed and streamed, beside real images and distilled pixels.

    python benchmarks/policies.py --generator RUN --experts STORE --data-root DIR [--out runs/policies]

Every policy has a row per size with hard labels, and one with the experts' labels; random real images and coresets have the same.
Policies may be made by several invocations on one --out; the last, with all, finds their rows and writes the result.
The stream rows are the generator with both kinds of labels, the real data with both, and the generator around refined images
(`dim.anchored`). The last rows are about storage: the refined set as generator, latents and labels, and pixels distilled by
trajectory matching (a folder made by `dim distill`), each with its bytes. Every row says how many seconds its set took. A row
that lies in --out and was made by the same sources is not made again.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from common import RESULTS, KeepRows, Rows, Sources, changed_section, save, scores_of

from dim.commands.malloc import keep_freed_memory
from dim.config import PolicyConfig, ProtocolConfig, RefineConfig, from_dict, to_dict
from dim.data.origin import real_data_of
from dim.data.real import RealData
from dim.data.synthetic import SyntheticSet, load_set
from dim.emit.policy import Policy, Ranking
from dim.features.spaces import trained_features
from dim.hub import load_generator
from dim.nets.generator import Generator
from dim.pictures import save_png
from dim.sampler import anchored, identity, sample_set, set_grid, stored_bytes
from dim.score.evaluate import Evaluator
from dim.score.record import Score
from dim.spec import to_uint8
from dim.teacher import Teacher, load_teacher, with_soft_labels

# Their steps, and how the refinement of each differs from the one that was asked for.
POLICIES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "plain": ((), {}),
    "filtered": (("filtered",), {}),
    "graded": (("graded",), {}),
    "matched": (("matched",), {}),
    "filtered+matched": (("filtered", "matched"), {}),
    "matched+refined by moments": (("matched", "refined"), {"by": "moments"}),
    "matched+refined by trajectory": (("matched", "refined"), {"by": "trajectory"}),
    "matched+refined by trajectory to endpoints": (("matched", "refined"), {"by": "trajectory", "distance": ("endpoint",)}),
}


@dataclass(frozen=True, kw_only=True)
class Arguments(KeepRows):
    """Compare policies."""

    generator: str
    """A run."""
    experts: str
    """Recorded experts: the teacher, and what refines."""
    name: str = "policies-fashion"
    """Of the result."""
    data_root: str | None = None
    """Where the real data lies. Default: the environment variable DIM_DATA_ROOT."""
    out: str = "runs/policies"
    """Where rows are kept."""
    policies: tuple[str, ...] = tuple(POLICIES)
    """Which of them."""
    refine: RefineConfig = field(default_factory=RefineConfig)
    """Refinement, but for what it is by."""
    candidates: int = 200
    """Images of a class that are ranked."""
    temperature: float = 1.0
    """Of the soft labels."""
    students: tuple[str, ...] = ("convnet:width=64",)
    """Architectures that are scored."""
    ipc: tuple[int, ...] = (1, 10)
    """Images per class of the fixed rows with hard labels."""
    soft_ipc: tuple[int, ...] = (1, 10, 50)
    """Images per class of the fixed rows with soft labels."""
    small: tuple[str, ...] = ("filtered", "graded", "filtered+matched", "herding")
    """Policies and coresets that have no rows above IPC 10."""
    stream_ipc: tuple[int, ...] = (10,)
    """Images per class of the stream rows."""
    anchors: int = 50
    """Refined images per class around which a generator streams."""
    spread: float = 0.3
    """Of the others around them."""
    coresets: tuple[str, ...] = ("herding",)
    """Beside random real images."""
    pixels: tuple[str, ...] = ()
    """Sets made by `dim distill`, for the rows about storage."""
    seeds: int = 3
    """Students per score."""
    split: str = "test"
    """Part of the data to score on; val while choosing settings."""


class Suite:
    """What all rows share."""

    def __init__(self, arguments: Arguments) -> None:
        sources = Sources.of(__file__)
        self.arguments = arguments
        self.generator: Generator = load_generator(arguments.generator)
        root = arguments.data_root
        self.data: RealData = real_data_of(self.generator.info, root, "cpu")
        carried = from_dict(ProtocolConfig, self.generator.info["protocol"])
        protocol = dataclasses.replace(carried, students=arguments.students)
        self.evaluator = Evaluator(self.data, protocol, seeds=arguments.seeds, split=arguments.split)
        self.teacher: Teacher = load_teacher(arguments.experts, self.data, temperature=arguments.temperature)
        about = {"teacher": self.teacher.name, "protocol": to_dict(protocol)}
        about |= {"seeds": arguments.seeds, "split": arguments.split}
        self._rankings: dict[str, Ranking] = {}
        kept = {"folder": Path(arguments.out), "keep": arguments.keep_rows}
        experts = {"experts": Path(arguments.experts)}
        given = {"generator": Path(arguments.generator), **experts}
        self.controls = Rows(sources, "cpu", about, made_from=experts, **kept)
        self.rows = Rows(sources, "cpu", {"generator": identity(self.generator), **about}, made_from=given, **kept)

    def policy(self, name: str) -> tuple[Policy, dict[str, Any]]:
        """A policy, and what a row says of it."""
        steps, changes = POLICIES[name]
        config = PolicyConfig(steps=steps, candidates=self.arguments.candidates)
        refinement = changed_section(self.arguments.refine, changes)
        features = trained_features(self.data) if "matched" in steps else None
        given = {"teacher": self.teacher, "data": self.data, "features": features, "experts": self.arguments.experts}
        facts = {"policy": to_dict(config), "refinement": to_dict(refinement) if "refined" in steps else None}
        return Policy(config, **given, refinement=refinement), facts

    def sizes(self, name: str) -> list[tuple[int, str]]:
        """Images per class and kinds of labels of the rows of a policy or coreset."""
        wanted = [(n, "hard") for n in self.arguments.ipc] + [(n, "soft") for n in self.arguments.soft_ipc]
        return sorted((n, kind) for n, kind in wanted if n <= 10 or name not in self.arguments.small)

    def ranking(self, name: str, policy: Policy, ipc: int) -> Ranking:
        """A policy's ranking, final for so many images per class: the last that was made, or one that goes on from it."""
        last = self._rankings.get(name)
        if last is None or (last.refined or ipc) < ipc:
            self._rankings[name] = policy.rank(self.generator, ipc=ipc, earlier=last)
        return self._rankings[name]

    def fixed(self, name: str) -> None:
        """Rows of a policy's sets, with hard and with soft labels."""
        sets: dict[int, SyntheticSet] = {}

        def drawn(ipc: int) -> SyntheticSet:
            if ipc not in sets:
                ranking = self.ranking(name, policy, ipc)
                sets[ipc] = sample_set(self.generator, ipc=ipc, ranking=ranking, latents=ranking.latents is not None)
                picture = RESULTS / f"{self.arguments.name}-{name.replace(' ', '-').replace('+', '-')}.png"
                if ipc == 10 and ranking.latents is not None:
                    save_png(picture, set_grid(sets[ipc]))
            return sets[ipc]

        policy, facts = self.policy(name)
        for ipc, kind in self.sizes(name):

            def make(ipc: int = ipc, kind: str = kind) -> dict[str, Any]:
                subject = drawn(ipc) if kind == "hard" else with_soft_labels(drawn(ipc), self.teacher)
                made = {"policy_seconds": subject.info.get("policy_seconds"), "bytes": subject.bytes_stored()}
                return {**made, **scores_of(self.evaluator.fixed(subject, name))}

            self.rows.add(f"{name}, IPC {ipc}, {kind} labels", make, **facts)

    def around(self, name: str) -> None:
        """Stream rows of the generator around the images of a policy that refines."""
        policy, facts = self.policy(name)
        count, spread = self.arguments.anchors, self.arguments.spread
        for ipc in self.arguments.stream_ipc:
            for kind, teacher in (("hard", None), ("soft", self.teacher)):

                def make(ipc: int = ipc, teacher: Teacher | None = teacher) -> dict[str, Any]:
                    ranking = self.ranking(name, policy, count)
                    subject = anchored(self.generator, ranking, ipc=count, spread=spread)
                    made = {"policy_seconds": ranking.about["policy_seconds"], "bytes": {"generator": stored_bytes(subject)}}
                    return {**made, **scores_of(self.evaluator.stream(subject, ipc, name, teacher=teacher))}

                label = f"stream around {count} images {name}, IPC {ipc}, {kind} labels"
                self.rows.add(label, make, **facts, anchors=count, spread=spread)

    def real(self) -> None:
        """Controls with both kinds of labels."""
        for method in ("random", *self.arguments.coresets):
            for ipc, kind in self.sizes(method):

                def make(ipc: int = ipc, kind: str = kind, method: str = method) -> dict[str, Any]:
                    return scores_of(self.evaluator.coreset(ipc, method, teacher=self.teacher if kind == "soft" else None))

                self.controls.add(f"{method} real, IPC {ipc}, {kind} labels", make)

    def streams(self) -> None:
        """Generator and real data, each with both kinds of labels."""
        for ipc in self.arguments.stream_ipc:
            for kind, teacher in (("hard", None), ("soft", self.teacher)):

                def generated(ipc: int = ipc, teacher: Teacher | None = teacher) -> dict[str, Any]:
                    return scores_of(self.evaluator.stream(self.generator, ipc, teacher=teacher))

                def oracle(ipc: int = ipc, teacher: Teacher | None = teacher) -> dict[str, Any]:
                    return scores_of(self.evaluator.oracle(ipc, teacher=teacher))

                self.rows.add(f"stream, IPC {ipc}, {kind} labels", generated)
                self.controls.add(f"oracle, IPC {ipc}, {kind} labels", oracle)

    def stored(self) -> None:
        """Distilled pixels at 8 bits, with their bytes; at 32 bits, as they are learned, a fourth as many would fit."""
        for folder in self.arguments.pixels:
            learned = load_set(folder)
            images = learned.images if learned.images.dtype == torch.uint8 else to_uint8(learned.images)
            subject = SyntheticSet(images, learned.labels, learned.spec, soft=learned.soft, info=learned.info)

            def make(subject: SyntheticSet = subject) -> dict[str, Any]:
                scores: Iterable[Score] = self.evaluator.fixed(subject, "pixels")
                made = {"bytes": subject.bytes_stored(), "seconds": subject.info.get("seconds")}
                return {**made, **scores_of(scores)}

            facts = {"set": identity(subject), "images": len(subject), "made_from": {"set": Path(folder)}}
            self.rows.add(f"pixels of {Path(folder).name}", make, **facts)


def main(arguments: Arguments) -> None:
    suite = Suite(arguments)
    suite.real()
    suite.streams()
    for name in arguments.policies:
        suite.fixed(name)
        if "refined" in POLICIES[name][0]:
            suite.around(name)
    suite.stored()
    about = {"generator": {**suite.generator.info["about"], "digest": identity(suite.generator)}, "teacher": suite.teacher.name}
    print(save(arguments.name, {**about, "split": arguments.split, "rows": suite.controls.made + suite.rows.made}))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
