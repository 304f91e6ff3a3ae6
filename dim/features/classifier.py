"""Training one classifier, and its accuracy: what scores, features and coresets have in common."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dim import rng
from dim.augment import Augment
from dim.chunks import FORWARD, JUDGED
from dim.config import ProtocolConfig
from dim.data.real import RealData
from dim.data.splits import Split, in_chunks
from dim.errors import InputError
from dim.loop import NonFiniteError
from dim.nets.student import build_student, judged_parts
from dim.nets.student_step import StudentStep, settled

# A feed gives batch number `step` to the student of one seed: images in [-1, 1] and hard or soft targets.
Feed = Callable[[int], tuple[Tensor, Tensor]]


def train_student(
    student: str,
    feed: Feed,
    steps: int,
    protocol: ProtocolConfig,
    data: RealData,
    seed: int,
    device: torch.device,
    observe: Callable[[int, Tensor], None] = lambda step, logits: None,
) -> nn.Module:
    """Train one fresh student: SGD with momentum, schedule, differentiable augmentation, cross-entropy.

    Args:
        student: architecture, as `parse_student` reads it.
        feed: batches by step; targets int64 (B,) or float (B, classes).
        steps: SGD steps.
        protocol: optimiser, schedule, augmentation and arithmetic. Where it leaves the arithmetic open, these steps decide.
        data: for its specification.
        seed: of the weights and the augmentation.
        device: where to train.
        observe: called with every step and the (B, classes) logits of its augmented batch, before the weights change.

    Returns:
        The student after the last step, in evaluation mode.

    Raises:
        DivergedError: if its loss or a weight stopped being finite.
        InputError: if it has batch normalisation, and batches have one image, which have no variance.
    """
    net = build_student(student, data.spec, seed=rng.fold(seed, "evaluate-student"))
    net = net.to(device, memory_format=torch.channels_last).train()
    protocol = settled(protocol, student, data.spec, device, steps=steps, batch=protocol.batch_size)
    train = StudentStep(net, protocol.precision, protocol.compile)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=protocol.lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay, fused=True
    )
    augment = Augment(protocol.augment, data.spec)
    losses = torch.zeros(steps, device=device)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = protocol.lr * learning_rate_factor(protocol.schedule, step, steps)
        images, targets = feed(step)
        images = augment(images, rng.generator(seed, "evaluate-augment", step, device=device))
        try:
            loss, logits = train.loss(images.contiguous(memory_format=torch.channels_last), targets)
        except ValueError as error:
            if len(images) > 1 or "more than 1 value per channel" not in str(error):
                raise
            remedy = f"more images, a larger batch size, or another norm, as {student.partition(':')[0]}:norm=instance"
            raise InputError(f"{student} has batch normalisation and sees one image per step: expected {remedy}") from None
        observe(step, logits)
        losses[step] = loss.detach()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    _require_finite(student, losses, net)
    return net.eval()


class DivergedError(NonFiniteError):
    """A student's loss or weights stopped being finite in training, at SGD step `step`, counted from 1."""

    def __init__(self, student: str, step: int) -> None:
        super().__init__(f"student {student!r} diverged at step {step}: lower the learning rate (protocol.lr, or the set's own)")
        self.step = step


def _require_finite(student: str, losses: Tensor, net: nn.Module) -> None:
    """Raise DivergedError if a loss was not finite, or a weight is not now."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        raise DivergedError(student, int(bad[0]) + 1)
    if not all(bool(tensor.isfinite().all()) for tensor in net.state_dict().values() if tensor.is_floating_point()):
        raise DivergedError(student, len(losses))


def learning_rate_factor(schedule: str, step: int, steps: int) -> float:
    """Factor of the learning rate at `step` of `steps`: step (a tenth in the second half), cosine, or constant."""
    if schedule == "step":
        return 1.0 if step < steps / 2 else 0.1
    if schedule == "cosine":
        return (1 + math.cos(math.pi * step / steps)) / 2
    return 1.0


@torch.no_grad()
def accuracy(logits: Callable[[Tensor], Tensor], split: Split, device: torch.device, *, net: nn.Module | None = None) -> float:
    """Percentage of a split's images that a classifier gets right.

    Args:
        logits: (B, C, H, W) images in [-1, 1] -> (B, classes).
        split: the images.
        device: of the classifier.
        net: its network. If that normalises by the statistics of a batch, images are judged in a fixed random order, and batches
            have nearly one size: those of a split can be sorted by class.
    """
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for part in judged_parts(net, len(split)):
        for _, images, labels in in_chunks(split, part, largest=JUDGED, budget=FORWARD):
            correct += (logits(images.to(device)).argmax(1) == labels.to(device)).sum()
    return 100 * int(correct) / len(split)
