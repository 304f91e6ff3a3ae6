"""Batches for students that are scored: of stored images, of the real training part, of a generator along a course."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from dim import rng
from dim.config.timed import OWN, PLAIN, spreads
from dim.data.loader import GeneratedLoader, Positions
from dim.data.real import EpochBatches
from dim.data.splits import Split
from dim.data.synthetic import SyntheticSet
from dim.features.classifier import Feed
from dim.nets.generator import Generator
from dim.spec import as_unit_range

# Number of steps and seed -> batches by step.
Source = Callable[[int, int], Feed]


def of_set(subject: SyntheticSet, batch_size: int, device: torch.device) -> Source:
    """A stored set, shuffled anew for every pass."""
    targets = subject.labels if subject.soft is None else subject.soft
    return of_stored(subject.images.to(device), targets.to(device), batch_size)


def of_stored(images: Tensor, targets: Tensor, batch_size: int) -> Source:
    """Images and targets on one device, shuffled anew for every pass."""
    batch = min(batch_size, len(images))

    def source(steps: int, seed: int) -> Feed:
        order = EpochBatches(Positions(len(images)), batch, seed=seed, purpose="evaluate")

        def at(step: int) -> tuple[Tensor, Tensor]:
            chosen = order.indices(step).to(images.device)
            return as_unit_range(images[chosen]), targets[chosen]

        return at

    return source


def of_real(train: Split, batch_size: int, device: torch.device) -> Source:
    """Real images, shuffled anew for every pass."""
    batch = min(batch_size, len(train))

    def source(steps: int, seed: int) -> Feed:
        batches = EpochBatches(train, batch, seed=seed, purpose="evaluate")

        def at(step: int) -> tuple[Tensor, Tensor]:
            images, labels = batches.at(step)
            return images.to(device), labels.to(device)

        return at

    return source


def of_generator(generator: Generator, batch_size: int, course: str) -> Source:
    """A stream of fresh images, which are generated when they are asked for, so that a student's time holds theirs."""
    own = copy.deepcopy(generator)
    if course == PLAIN:
        own.anchors = own.spread = None
    ends = spreads(course)

    def source(steps: int, seed: int) -> Feed:
        loader = GeneratedLoader(own, batch_size=batch_size, steps=steps, seed=rng.fold(seed, "evaluate-stream"), rank=0, world=1)
        batches = iter(loader)

        def at(step: int) -> tuple[Tensor, Tensor]:
            if ends is not None:  # of images that the loader makes ahead, the spread is that of the first
                own.spread.fill_(ends[0] + (ends[1] - ends[0]) * step / max(1, steps - 1))
            return next(batches)

        return at

    return source


def courses_of(generator: Generator, courses: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the courses that a generator can take: one without refined images has only its own stream."""
    return courses if generator.anchors is not None else (OWN,)
