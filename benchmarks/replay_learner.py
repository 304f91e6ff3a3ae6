"""The learners of `replay.py`: one that goes from task to task with a memory, one of a federation, and FedAvg."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from replay_scale import Scale, of_classes
from torch import Tensor

from dim import rng
from dim.augment import Augment
from dim.data.real import EpochBatches, RealData
from dim.data.splits import Split
from dim.data.synthetic import SyntheticSet
from dim.features.classifier import accuracy
from dim.nets.student import Student, build_student
from dim.nets.student_step import StudentStep, settled
from dim.replay.memory import ReplayMemory

Batch = tuple[Tensor, Tensor]
ALL = 10**12  # bytes of a memory that keeps everything


@dataclass
class Learner:
    """A student that goes on learning.

    Args:
        scale: architecture, optimiser, augmentation.
        data: the real data, with the test part that scores.
        seed: of weights and augmentation.
        device: where to train.
    """

    scale: Scale
    data: RealData
    seed: int
    device: torch.device
    net: Student = field(init=False)
    _done: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        scale = self.scale
        net = build_student(scale.student, self.data.spec, seed=rng.fold(self.seed, "replay-student"))
        self.net = net.to(self.device, memory_format=torch.channels_last)
        steps = 1000 * scale.steps  # all students of a call share a compiled step
        work = {"steps": steps, "batch": scale.batch}
        protocol = settled(scale.protocol, scale.student, self.data.spec, self.device, **work)
        self._step = StudentStep(self.net, protocol.precision, protocol.compile)
        self._augment = Augment(protocol.augment, self.data.spec)

    def learn(self, batches: Callable[[int], Batch], steps: int) -> None:
        """Train on batches by step, with a fresh optimiser."""
        protocol = self.scale.protocol
        settings = {"lr": protocol.lr, "momentum": protocol.momentum, "weight_decay": protocol.weight_decay}
        optimizer = torch.optim.SGD(self.net.train().parameters(), **settings)
        for step in range(steps):
            images, labels = batches(step)
            source = rng.generator(self.seed, "replay-augment", self._done, device=self.device)
            images = self._augment(images.to(self.device), source)
            loss, _ = self._step.loss(images.contiguous(memory_format=torch.channels_last), labels.to(self.device))
            if not bool(loss.isfinite()):
                raise RuntimeError(f"the loss is {float(loss)} at step {step}: lower the learning rate")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            self._done += 1

    def score(self, split: Split) -> float:
        """Percentage of a split's images that it gets right."""
        return accuracy(self.net.eval(), split, self.device)


def shuffled(split: Split, size: int, seed: int) -> Callable[[int], Batch]:
    """Batches of a split by step."""
    return EpochBatches(split, size, seed=seed, purpose="replay-learner").at


def from_memory(batches: Iterator[Batch]) -> Callable[[int], Batch]:
    """The next batch of a memory, at any step."""
    return lambda step: next(batches)


class Reservoir:
    """A uniform sample of all images that came (Vitter 1985), at 8 bits: those with the smallest random keys."""

    def __init__(self, data: RealData, budget: int, seed: int) -> None:
        self._spec, self._seed, self._keys = data.spec, seed, torch.zeros(0)
        self._most = (budget - data.spec.num_classes) // (data.spec.image_bytes + data.spec.label_bytes)
        self._images = torch.zeros(0, *data.spec.image_shape, dtype=torch.uint8)
        self._labels = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, subject: SyntheticSet) -> None:
        """Take in the images of a task."""
        names = self._spec.class_names
        labels = torch.tensor([names.index(name) for name in subject.spec.class_names])[subject.labels]
        keys = torch.rand(len(labels), generator=rng.generator(self._seed, "replay-reservoir", *labels.unique().tolist()))
        keys, order = torch.cat((self._keys, keys)).sort()
        kept = order[: self._most]
        self._keys = keys[: self._most]
        self._images = torch.cat((self._images, subject.images))[kept]
        self._labels = torch.cat((self._labels, labels))[kept]

    @property
    def counts(self) -> dict[int, int]:
        """Images of every class."""
        return {label: int(count) for label, count in enumerate(torch.bincount(self._labels)) if count}

    def bytes_stored(self) -> dict[str, int]:
        """Of images and labels."""
        return {"images": self._images.numel(), "labels": len(self) * self._spec.label_bytes}

    def batches(self, size: int, *, seed: int, device: torch.device) -> Iterator[Batch]:
        """As of a `ReplayMemory`."""
        memory = ReplayMemory(self._spec, bytes=ALL)
        memory.add(SyntheticSet(self._images, self._labels, self._spec))
        return memory.batches(size, seed=seed, device=device)


# --- continual ---------------------------------------------------------------------------------------------------------------


def one_after_another(
    learner: Learner, tasks: Sequence[Sequence[int]], memory: ReplayMemory | Reservoir | None, add: Callable[[int], None]
) -> list[float]:
    """Learn the tasks in turn; `add` puts a task into the memory after it was learned.

    Returns:
        After each task, the accuracy over the classes so far.
    """
    scale, seen, scores = learner.scale, [], []
    for number, classes in enumerate(tasks):
        seen += classes
        now = of_classes(learner.data.train, list(classes))
        if memory is None or not len(memory):
            batches = shuffled(now, scale.batch, learner.seed)
        else:
            half = scale.batch // 2
            new = shuffled(now, scale.batch - half, learner.seed)
            old = memory.batches(half, seed=rng.fold(learner.seed, "replay-task", number), device=learner.device)

            def batches(step: int, new: Callable[[int], Batch] = new, old: Iterator[Batch] = old) -> Batch:
                return tuple(torch.cat(pair) for pair in zip(new(step), next(old), strict=True))

        learner.learn(batches, scale.steps)
        scores.append(learner.score(of_classes(learner.data.test, seen)))
        add(number)
    return scores


# --- federated ---------------------------------------------------------------------------------------------------------------


def federated_averaging(learner: Learner, clients: Sequence[RealData]) -> list[dict[str, float]]:
    """FedAvg (McMahan et al. 2017): in every round each client trains the server's network for an epoch, and the server takes the
    mean of the networks, weighted by their images.

    Returns:
        After each round, the accuracy, and the bytes that the clients have sent by then.
    """
    size = sum(value.numel() * value.element_size() for value in learner.net.parameters())
    total, found = sum(len(client.train) for client in clients), []
    for number in range(learner.scale.rounds):
        start = copy.deepcopy(learner.net.state_dict())
        mean = {name: torch.zeros_like(value) for name, value in start.items()}
        for place, client in enumerate(clients):
            learner.net.load_state_dict(start)
            size_of_batch = min(learner.scale.batch, len(client.train))
            own = rng.fold(learner.seed, "replay-client", place, number)
            learner.learn(shuffled(client.train, learner.scale.batch, own), -(-len(client.train) // size_of_batch))
            for name, value in learner.net.state_dict().items():
                mean[name] += value * (len(client.train) / total)
        learner.net.load_state_dict(mean)
        sent = (number + 1) * len(clients) * size
        found.append({"round": number + 1, "sent": sent, "accuracy": learner.score(learner.data.test)})
    return found


def train_on_all(learner: Learner, sets: Sequence[SyntheticSet], steps: int) -> float:
    """Accuracy of the learner after training on sets together."""
    images = torch.cat([each.images for each in sets])
    labels = torch.cat([each.labels for each in sets])
    memory = ReplayMemory(learner.data.spec, bytes=ALL)
    memory.add(SyntheticSet(images, labels, learner.data.spec))
    learner.learn(from_memory(memory.batches(learner.scale.batch, seed=learner.seed, device=learner.device)), steps)
    return learner.score(learner.data.test)
