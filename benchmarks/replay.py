"""How good is a memory of a fixed number of bytes: in class-incremental learning, and sent once by every client of a federation?

    python benchmarks/replay.py --data-root DIR --missing           # what is not there yet
    python benchmarks/replay.py --data-root DIR                     # make it, row by row; the next call goes on
    python benchmarks/replay.py --data-root DIR --only 'tasks-*-0'  # rows of these names
    python benchmarks/replay.py --render                            # the tables in docs/replay.md
    python benchmarks/replay.py --data cifar10 --data-root DIR      # the same program on CIFAR-10
    python benchmarks/replay.py --tiny                              # the whole path in miniature, on scikit-learn's digits

*Tasks*: five tasks of two classes each. A learner trains on the images of a task and on as many from its memory, and is scored
on all classes so far. Memories hold 200 kB: random real images, by class or from a reservoir, herded real images, images of a
small generator that is trained on each task, and the same with refined latents; at 8 bits and in WebP. Beside them stand no
memory and training on everything. *Clients*: ten clients share the images out by Dirichlet(0.1), and each sends a set of so many
kilobytes once; beside them stands FedAvg after every round. *Within*: fresh learners of one task's classes alone, from few images
of each, which tell what images of a task are worth to itself. Repeated are orders of the classes, and divisions among clients.

Generators lie below `--out`; each row is a JSON file of `benchmarks/results/replay-DATA`. Nothing is chosen on the test part.
"""

import fcntl
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from common import RESULTS, ROOT, Rows, Sources, save
from replay_learner import Learner, Reservoir, federated_averaging, from_memory, one_after_another, shuffled, train_on_all
from replay_memories import Workshop, of_client, of_task
from replay_page import WITHIN, render
from replay_scale import Scale, clients_of, restricted, tiny

from dim.commands.malloc import keep_freed_memory
from dim.commands.subjects import device_of
from dim.data.real import RealData
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.nets.generator import Generator
from dim.replay.memory import ReplayMemory
from dim.sampler import identity
from dim.score.record import production_seconds

MEMORIES = ("none", "joint", "random", "generated", "random-webp", "generated-webp", "refined", "herding", "reservoir")
MEMORIES += ("refined-webp", "herding-webp")
"""In the order in which their rows are made, for one order of the classes after another."""
SENT = ("random", "generated", "random-webp", "generated-webp")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure memories, say what is missing, or render the tables."""

    data: Literal["fashion", "cifar10"] = "fashion"
    """Fashion-MNIST or CIFAR-10."""
    data_root: str | None = None
    """Where the data lies. Default: the environment variable DIM_DATA_ROOT."""
    only: tuple[str, ...] = ()
    """Patterns of names of rows. Default: all."""
    missing: bool = False
    """Print what is missing, in its order, and end."""
    render: bool = False
    """Write the tables into docs/replay.md from the rows, and end."""
    out: str | None = None
    """Folder of generators. Default: runs/replay-DATA; with --tiny, runs/replay-tiny."""
    device: str | None = None
    """cpu or cuda. Default: a GPU if there is one."""
    tiny: bool = False
    """Everything in miniature. Results and the page go below --out."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A row."""

    name: str
    make: Callable[[Workshop], dict[str, Any]] = field(repr=False)
    facts: dict[str, Any]


def cells(scale: Scale) -> list[Cell]:
    """All rows, in the order in which they are made."""
    found = []
    for order in range(scale.orders):
        for kind in MEMORIES:
            facts = {"setting": "tasks", "memory": kind, "order": order}
            found.append(Cell(name=f"tasks-{kind}-{order}", facts=facts, make=lambda shop, o=order, k=kind: of_order(shop, k, o)))
    for division in range(scale.divisions):
        for size in scale.kilobytes:
            for kind in SENT:
                facts = {"setting": "clients", "sent": kind, "kilobytes": size, "division": division}
                settings = {"kind": kind, "kilobytes": size, "division": division}
                name = f"clients-{kind}-{size}kB-{division}"
                found.append(Cell(name=name, facts=facts, make=lambda shop, s=settings: one_round(shop, **s)))
        facts = {"setting": "clients", "sent": "fedavg", "division": division}
        found.append(Cell(name=f"clients-fedavg-{division}", facts=facts, make=lambda shop, d=division: many_rounds(shop, d)))
    for order in range(scale.orders):
        for kind in WITHIN:
            facts = {"setting": "within", "memory": kind, "order": order}
            found.append(Cell(name=f"within-{kind}-{order}", facts=facts, make=lambda shop, o=order, k=kind: within(shop, k, o)))
    return found


# --- rows --------------------------------------------------------------------------------------------------------------------


def _learner(shop: Workshop, seed: int) -> Learner:
    return Learner(shop.scale, shop.data, seed, shop.device)


def of_order(shop: Workshop, kind: str, order: int) -> dict[str, Any]:
    """Accuracy after every task of an order, and of a fresh learner that is trained on the final memory alone."""
    scale, tasks = shop.scale, shop.tasks(order)
    learner, coded = _learner(shop, order), kind.endswith("-webp")
    if kind == "joint":
        learner.learn(shuffled(shop.data.train, scale.batch, order), scale.steps * len(tasks))
        return {"tasks": tasks, "final": learner.score(shop.data.test)}
    memory: ReplayMemory | Reservoir | None = None
    if kind == "reservoir":
        memory = Reservoir(shop.data, scale.budget, order)
    elif kind != "none":
        memory = ReplayMemory(shop.data.spec, bytes=scale.budget, webp=scale.webp if coded else None)
    held, made = [], []

    def add(task: int) -> None:
        if memory is None:
            return
        started = time.perf_counter()
        source, _ = of_task(shop, kind.removesuffix("-webp"), order, task)
        memory.add(source)
        held.append({"images": len(memory), "bytes": sum(memory.bytes_stored().values())})
        made.append(_origin(source, time.perf_counter() - started))

    scores = one_after_another(learner, tasks, memory, add)
    row = {"tasks": tasks, "after_task": scores, "final": scores[-1], "mean_over_tasks": sum(scores) / len(scores)}
    if memory is None:
        return row
    alone = _learner(shop, order)
    batches = from_memory(memory.batches(scale.batch, seed=order, device=shop.device))
    alone.learn(batches, scale.steps * len(tasks))
    return {**row, "memory_alone": alone.score(shop.data.test), "held": held, "made_of": made}


def within(shop: Workshop, kind: str, order: int) -> dict[str, Any]:
    """Accuracy on the classes of each task of a fresh learner that is trained on as many images of it as are refined."""
    scale, found, made = shop.scale, [], []
    for task, classes in enumerate(shop.tasks(order)):
        data, started = restricted(shop.data, classes), time.perf_counter()
        source, _ = of_task(shop, kind, order, task)
        made.append(_origin(source, time.perf_counter() - started))
        images = scale.refinement.blocks[-1] * len(classes)
        memory = ReplayMemory(data.spec, bytes=len(classes) + images * (data.spec.image_bytes + data.spec.label_bytes))
        memory.add(source)
        learner = Learner(scale, data, order, shop.device)
        learner.learn(from_memory(memory.batches(min(scale.batch, images), seed=order, device=shop.device)), scale.steps)
        found.append(learner.score(data.test))
    mean = sum(found) / len(found)
    return {"within_task": found, "accuracy": mean, "images": images, "made_of": made}


def _origin(source: SyntheticSet | Generator, seconds: float) -> dict[str, Any]:
    """What a memory was given: its digest, and the seconds that its making took, if it was not made just now those of then."""
    then = production_seconds(source) if isinstance(source, Generator) else None
    return {"digest": identity(source), "seconds": round(seconds if then is None else then, 2)}


def one_round(shop: Workshop, kind: str, kilobytes: int, division: int) -> dict[str, Any]:
    """Accuracy of a learner that is trained on what all clients sent, and the bytes of that."""
    scale, sets, sent = shop.scale, [], []
    for number, client in enumerate(clients_of(shop.data, scale, division)):
        memory = ReplayMemory(shop.data.spec, bytes=1000 * kilobytes, webp=scale.webp if kind.endswith("-webp") else None)
        source, classes = of_client(shop, kind.removesuffix("-webp"), division, number, client)
        if source is None:
            continue
        memory.add(source, most_seen(client, classes, memory))
        sets.append(memory.dataset())
        sent.append({"client": number, "images": len(memory), "bytes": sum(memory.bytes_stored().values())})
    steps = scale.steps * (shop.data.spec.num_classes // scale.per_task)
    accuracy = train_on_all(_learner(shop, division), sets, steps)
    total = {"images": sum(each["images"] for each in sent), "sent": sum(each["bytes"] for each in sent)}
    return {"accuracy": accuracy, **total, "clients": sent}


def most_seen(client: RealData, classes: list[int] | None, memory: ReplayMemory) -> list[int] | None:
    """The classes that a client sends: all, or without the rarest if images of 8 bits leave no room for one of each."""
    spec, counts = client.spec, torch.bincount(client.train.labels, minlength=client.spec.num_classes)
    own = counts.nonzero().squeeze(1).tolist() if classes is None else classes
    room = (memory.bytes - spec.num_classes) // (spec.image_bytes + spec.label_bytes)
    if memory.webp is not None or len(own) <= room:
        return classes
    return sorted(sorted(own, key=lambda label: -int(counts[label]))[:room])


def many_rounds(shop: Workshop, division: int) -> dict[str, Any]:
    """FedAvg after every round."""
    rounds = federated_averaging(_learner(shop, division), clients_of(shop.data, shop.scale, division))
    return {"after_round": rounds}


# --- all rows ----------------------------------------------------------------------------------------------------------------


def make(shop: Workshop, cell: Cell, results: Path) -> None:
    """Make a row, unless another process is at it."""
    lock = shop.out / "locks" / cell.name
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"{cell.name}: another process works on it", flush=True)
            return
        started = time.perf_counter()
        content = cell.make(shop)
        rows = Rows(shop.sources, shop.device, {"scale": shop.scale.name, "data": shop.data.about("test")})
        scored = [each["digest"] for each in content.get("made_of", ())]
        seconds = time.perf_counter() - started
        rows.put(cell.name, content, seconds, scored=scored, **cell.facts)
        save(cell.name, {"split": "test", "scale": shop.scale.name, "rows": rows.made}, folder=results)
        print(f"{cell.name}: {_shown(content)} in {seconds:.0f} s", flush=True)


def _shown(content: dict[str, Any]) -> str:
    accuracy = content.get("final", content.get("accuracy"))
    return f"{accuracy:.1f}" if accuracy is not None else f"{content['after_round'][-1]['accuracy']:.1f} after all rounds"


def main(arguments: Arguments) -> None:
    scale = tiny() if arguments.tiny else replace(Scale(), data=arguments.data)
    out = Path(arguments.out or f"runs/replay-{'tiny' if arguments.tiny else arguments.data}")
    results, pages = (out / "results", out / "pages") if arguments.tiny else (RESULTS / f"replay-{scale.data}", ROOT)
    if arguments.render:
        print(render(results, pages, scale))
        return
    wanted = [cell for cell in cells(scale) if not arguments.only or any(fnmatchcase(cell.name, own) for own in arguments.only)]
    if not wanted:
        raise InputError(f"only is {arguments.only[0]!r}: no row matches; --missing lists them")
    missing = [cell for cell in wanted if not (results / f"{cell.name}.json").is_file()]
    if arguments.missing:
        print("\n".join([*(cell.name for cell in missing), f"{len(missing)} of {len(wanted)} missing"]))
        return
    shop = Workshop(out, Sources.of(__file__), device_of(arguments.device), arguments.data_root, scale)
    for cell in missing:
        if not (results / f"{cell.name}.json").is_file():
            make(shop, cell, results)


if __name__ == "__main__":
    keep_freed_memory()
    try:
        main(tyro.cli(Arguments))
    except InputError as error:
        raise SystemExit(str(error)) from None
