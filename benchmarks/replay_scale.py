"""What `replay.py` measures on, and how large everything is: the data, its tasks and its clients; as declared, or tiny."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dim import rng
from dim.config import DataConfig, FeatureConfig, ProtocolConfig, RefineConfig, TrainConfig, from_dict
from dim.config.data import located
from dim.data.real import RealData, load_data, per_class_indices
from dim.data.splits import ArraySplit, Split
from dim.io import digest

DATASETS = {"fashion": "fashion-mnist", "cifar10": "cifar10", "digits": "digits"}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes and lengths."""

    name: str = "full"
    data: str = "fashion"
    orders: int = 5
    """Orders of the classes, each with a learner of its own."""
    per_task: int = 2
    """Classes."""
    budget: int = 200_000
    """Bytes of a memory."""
    student: str = "convnet:width=32"
    steps: int = 200
    """SGD steps of a task; of training on all data, or on the memory alone, as many as of all tasks together."""
    batch: int = 128
    """Images of a step, half of them from the memory once there is one."""
    protocol: ProtocolConfig = field(default_factory=lambda: ProtocolConfig(batch_size=128, lr=0.02))
    """Optimiser, augmentation and arithmetic of all learners; the learning rate is constant."""
    stages: tuple[int, int] = (1000, 100)
    """Steps of a generator's two stages."""
    generator: dict[str, dict[str, Any]] = field(default_factory=lambda: _sections(width=16, batch=32))
    """How it departs from its recipe."""
    refinement: RefineConfig = field(
        default_factory=lambda: _refinement(blocks=(5, 25), steps=40, student_steps=10, student_batch=50)
    )
    features: FeatureConfig = field(default_factory=lambda: FeatureConfig(student="convnet:width=32", max_steps=200))
    """In which real and generated images are chosen, trained on the task's images."""
    candidates: int = 100
    """Images of a class among which a generator's are chosen before they are refined."""
    spread: float = 0.3
    """Of images around refined ones."""
    most: int = 700
    """Images of a class that are offered to a memory, more than it can hold."""
    webp: int = 30
    """Quality."""
    clients: int = 10
    alpha: float = 0.1
    """Of the Dirichlet distribution by which the images of a class are shared out among the clients."""
    divisions: int = 3
    """Such divisions, each with a learner of its own."""
    kilobytes: tuple[int, ...] = (5, 20, 80)
    """That each client sends."""
    rounds: int = 20
    """Of FedAvg."""
    fewest: int = 30
    """Images of a class that a client has at least if its generator is asked for that class."""

    def source(self) -> DataConfig:
        """Which data."""
        return DataConfig(dataset=DATASETS[self.data])

    def real(self, root: str | None, device: torch.device) -> RealData:
        """The real data; in miniature, a few of them."""
        data = load_data(located(self.source(), root), device)
        if self.name == "full":
            return data
        return RealData(data.spec, few(data.train, 20, data), few(data.val, 4, data), few(data.test, 6, data))


def _sections(width: int, batch: int) -> dict[str, dict[str, Any]]:
    stage = {"batch_size": batch}
    return {"generator": {"width": width}, "discriminator": {"width": width}, "stage_one": stage, "stage_two": stage}


def _refinement(**settings: Any) -> RefineConfig:
    return from_dict(RefineConfig, settings)


def tiny() -> Scale:
    """scikit-learn's digits, few of them; one step, or a few, of everything."""
    sections = _sections(width=4, batch=8)
    sections |= {"pool": {"students": ("convnet:width=4",)}, "fit": {"sample_steps": 0, "compile": "off", "precision": "no"}}
    return Scale(
        name="tiny",
        data="digits",
        orders=2,
        budget=2000,
        student="convnet:width=4,depth=2",
        steps=2,
        batch=8,
        protocol=ProtocolConfig(batch_size=8, lr=0.02, compile="off"),
        stages=(2, 1),
        generator=sections,
        refinement=_refinement(blocks=(1, 2), steps=1, student_steps=1, span=(1.0,), compile="off"),
        features=FeatureConfig(student="convnet:width=4", max_steps=2),
        candidates=4,
        most=15,
        clients=3,
        divisions=1,
        kilobytes=(1,),
        rounds=2,
        fewest=3,
    )


def few(split: Split, per_class: int, data: RealData) -> ArraySplit:
    """The first images of every class, in a random order."""
    return part(split, per_class_indices(split.labels, per_class, data.spec.num_classes, seed=0))


def part(split: Split, indices: Tensor, labels: Tensor | None = None) -> ArraySplit:
    """Some images of a split, with other labels if they are given."""
    return ArraySplit(split.images[indices], split.labels[indices] if labels is None else labels, split.images.device)


# --- tasks and clients -------------------------------------------------------------------------------------------------------


def order_of(data: RealData, per_task: int, number: int) -> list[list[int]]:
    """Classes of every task in an order of the classes; order 0 is that of their numbers, as in the literature."""
    source = rng.generator(0, "replay-order", number)
    count = data.spec.num_classes
    classes = torch.arange(count) if number == 0 else torch.randperm(count, generator=source)
    return [part.tolist() for part in classes.split(per_task)]


def restricted(data: RealData, classes: list[int]) -> RealData:
    """The images of some classes, as data of their own: classes are numbered anew, and keep their names."""
    numbers = {label: number for number, label in enumerate(classes)}

    def own(split: Split) -> ArraySplit:
        indices = torch.isin(split.labels, torch.tensor(classes)).nonzero().squeeze(1)
        return part(split, indices, torch.tensor([numbers[label] for label in split.labels[indices].tolist()]))

    parts = [own(split) for split in (data.train, data.val, data.test)]
    mark = digest({"images": parts[0].images, "labels": parts[0].labels})
    names = tuple(data.spec.class_names[label] for label in classes)
    return RealData(dataclasses.replace(data.spec, class_names=names, fingerprint=mark), *parts)


def of_classes(split: Split, classes: list[int]) -> ArraySplit:
    """The images of some classes, with their labels."""
    return part(split, torch.isin(split.labels, torch.tensor(classes)).nonzero().squeeze(1))


def clients_of(data: RealData, scale: Scale, division: int) -> list[RealData]:
    """The data of every client that has any: the images of each class are shared out by a draw from a Dirichlet distribution
    (Hsu et al. 2019)."""
    shares = np.random.default_rng([division, 1]).dirichlet([scale.alpha] * scale.clients, data.spec.num_classes)
    source = rng.generator(division, "replay-clients")
    owner = torch.multinomial(torch.tensor(shares)[data.train.labels], 1, generator=source).squeeze(1)
    clients = []
    for number in range(scale.clients):
        own = (owner == number).nonzero().squeeze(1)
        if len(own) >= 2:
            train = part(data.train, own)
            mark = digest({"images": train.images, "labels": train.labels})
            clients.append(RealData(dataclasses.replace(data.spec, fingerprint=mark), train, data.val, data.test))
    return clients


def lengths(recipe: TrainConfig, scale: Scale, data: RealData) -> dict[str, dict[str, Any]]:
    """Changes of a recipe that give its stages so many steps."""
    changes = {name: dict(own) for name, own in scale.generator.items()}
    for stage, steps in zip(("stage_one", "stage_two"), scale.stages, strict=True):
        changes[stage]["epochs"] = steps * changes[stage]["batch_size"] / len(data.train)
    return changes
