"""ModelPool: the models whose outputs are matched, and their upkeep on real or on generated images; one pool per file in
`dim.pools`.

The published pool makes a fresh model per epoch and trains it for 16 steps before every generator step, which is most of
the run's time, and then throws it away. The persistent pool keeps members of several architectures and ages alive, takes
one at a time, and spreads the upkeep thin. Which member is taken at a step, and every weight it starts from, is a
function of (seed, step), so a resumed run meets the same pool. The expert pool is free: its members are checkpoints of
recorded experts, of any age, so nothing is trained at all, and several can judge the same images in one batched evaluation.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Self

import torch
from torch import Tensor

from dim import rng
from dim.augment import Augment
from dim.config import POOLS, STUDENTS, PoolConfig, require
from dim.config.settings import Compile, Precision
from dim.data.real import RealData
from dim.nets.student import Student, build_student, check_student
from dim.nets.student_step import StudentStep, settled
from dim.processes import ALONE, Processes, running_statistics
from dim.spec import DataSpec


class _Member:
    """One model, its arithmetic, its optimiser and its age in SGD steps. `config` has settled precision and compilation."""

    def __init__(self, student: str, generation: int, net: Student, config: PoolConfig) -> None:
        self.step = StudentStep(net, config.precision, config.compile)
        self.student, self.generation, self.net, self.age = student, generation, net, 0
        self.optimizer = torch.optim.SGD(
            net.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )


class ModelPool(ABC):
    """Models whose outputs are matched. Which of them serve a step is a function of (seed, step)."""

    @abstractmethod
    def draw(self, step: int) -> Callable[[Tensor], Tensor]:
        """A member that serves `step`: (B, C, H, W) images in [-1, 1] -> (B, classes) logits."""

    @abstractmethod
    def outputs(self, images: Tensor, step: int, kind: Literal["logits", "features"]) -> Tensor:
        """What all members that serve `step` say, differentiable in the images.

        Args:
            images: float32 (B, C, H, W) in [-1, 1].
            step: number of the generator step.
            kind: logits, or the features before the last layer.

        Returns:
            (members, B, F).
        """

    learns_from_generated = False
    """Whether upkeep takes generated images; real ones otherwise."""

    def due(self, step: int) -> range:
        """Numbers of the upkeep batches that `advance` wants at this step; none where nothing is trained."""
        return range(0)

    def advance(self, images: Tensor, labels: Tensor, step: int, part: int = 0) -> Tensor:
        """Upkeep on a batch, of real images or of generated ones; returns the loss, a detached scalar on the device."""
        raise RuntimeError("this pool has no upkeep")

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, as named tensors."""

    @abstractmethod
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` gave."""


@dataclass(frozen=True, kw_only=True)
class TrainedOptions:
    """Of pools whose models are trained as the run goes on."""

    images: Literal["real", "generated"] = "generated"
    """What the models are trained on. `real`: published. `generated`: what the generator makes at the time, so that the models
    judge real images as students of the generator would, and show what it lacks."""
    students: tuple[str, ...] = (
        "convnet",
        "resnet10:width=32,norm=batchstats",
        "resnet18:width=32,norm=batchstats",
        "resnetap10:width=32,norm=batchstats",
        "resnetap18:width=32,norm=batchstats",
    )
    """Architectures, as `dim evaluate --students` names them. Default: the published five, at the published sizes and norms."""
    upkeep_steps: int = 1
    """SGD steps per upkeep. Published: 16."""
    upkeep_every: int = 2
    """Generator steps between two upkeeps of the model that is used. Published: 1."""
    lr: float = 0.01
    """SGD learning rate."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 5e-4
    """SGD weight decay."""
    augment: str = "color_crop"
    """Augmentation during upkeep."""
    precision: Precision = "fp32"
    """As of `protocol.precision`, for upkeep and matching alike."""
    compile: Compile = "auto"
    """As of `protocol.compile`, by the work of upkeep."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "students", STUDENTS.admit_all(self.students))
        require(len(self.students) > 0, "pool.students", self.students, "at least one architecture")
        for name in ("upkeep_steps", "upkeep_every"):
            require(getattr(self, name) >= 1, f"pool.{name}", getattr(self, name), "at least 1")
        require(self.lr > 0, "pool.lr", self.lr, "a positive number")
        require(0 <= self.momentum < 1, "pool.momentum", self.momentum, "a number in [0, 1)")
        require(self.weight_decay >= 0, "pool.weight_decay", self.weight_decay, "0 or more")


class TrainedPool(ModelPool):
    """A set of models in slots, trained as the run goes on. Subclasses say which slot serves a step and when a slot
    starts afresh.

    Args:
        config: the pool's settings.
        spec: the data that members classify.
        steps_per_epoch: generator steps per epoch.
        first_step: number of the first generator step that the pool serves.
        seed: seed of the run.
        device: where members live.
        channels_last: memory format of their convolutions.
        processes: those that share every batch and hold the same members.
        work: steps of upkeep of one architecture, and images in each, by which open compilation is settled.

    Raises:
        InputError: for an unknown architecture.
    """

    @classmethod
    def of_run(cls, config: PoolConfig, data: RealData, *, steps: int = 1, batch_size: int = 0, **settings: Any) -> Self:
        """As a run makes it; it serves any number of steps; the planned ones say whether compiling pays."""
        upkeeps = steps * config.upkeep_steps // config.upkeep_every // len(config.students)
        return cls(config, data.spec, work={"steps": upkeeps, "batch": batch_size}, **settings)

    def __init__(
        self,
        config: PoolConfig,
        spec: DataSpec,
        *,
        steps_per_epoch: int,
        first_step: int = 0,
        seed: int,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        processes: Processes = ALONE,
        work: Mapping[str, int] = MappingProxyType({"steps": 0, "batch": 0}),
    ) -> None:
        for student in config.students:
            check_student(student, spec)
        self.config, self.spec, self.seed = config, spec, seed
        self._steps_per_epoch, self._first_step = steps_per_epoch, first_step
        self.slots: dict[int, _Member] = {}
        self._serving: tuple[int, _Member] | None = None
        self._device, self._processes = torch.device(device), processes
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._augment, self._work = Augment(config.augment, spec), work

    @abstractmethod
    def _identity(self, step: int) -> tuple[int, int, str]:
        """Slot, generation and architecture of the member that serves `step`."""

    def _member(self, step: int) -> _Member:
        """The member that serves `step`; it is settled at the first call, so that it stays throughout the step."""
        if self._serving is None or self._serving[0] != step:
            slot, generation, student = self._identity(step)
            if slot not in self.slots or self.slots[slot].generation != generation:
                self.slots[slot] = self._make(slot, generation, student)
            self._serving = (step, self.slots[slot])
        return self._serving[1]

    def _make(self, slot: int, generation: int, student: str) -> _Member:
        net = build_student(student, self.spec, seed=rng.fold(self.seed, "pool-member", slot, generation))
        net = net.to(self._device, memory_format=self._format).requires_grad_(False).eval()
        return _Member(student, generation, net, settled(self.config, student, self.spec, self._device, **self._work))

    def draw(self, step: int) -> Student:
        """The member that serves `step`, in evaluation mode: (B, C, H, W) images in [-1, 1] -> (B, classes) logits.

        Its parameters need no gradient; images may.
        """
        return self._member(step).net

    def outputs(self, images: Tensor, step: int, kind: Literal["logits", "features"]) -> Tensor:
        """See `ModelPool`: one member serves a step."""
        return self._member(step).step.outputs(images, kind)[None]

    @property
    def learns_from_generated(self) -> bool:
        """See `ModelPool`."""
        return self.config.images == "generated"

    def due(self, step: int) -> range:
        """See `ModelPool`."""
        turn, rest = divmod(step - self._first_step, self.config.upkeep_every)
        return range(turn * self.config.upkeep_steps, (turn + (rest == 0)) * self.config.upkeep_steps)

    def advance(self, images: Tensor, labels: Tensor, step: int, part: int = 0) -> Tensor:
        """One SGD step of the member that serves `step`: cross-entropy of augmented images.

        Args:
            images: float32 (B, C, H, W) in [-1, 1].
            labels: int64 (B,).
            step: the generator step that the upkeep belongs to.
            part: number of this batch among those `due` at this step.

        Returns:
            The loss, a detached scalar on the device.
        """
        member = self._member(step)
        source = rng.generator(self.seed, "pool-augment", step, part, 0, device=images.device)
        member.net.requires_grad_(True).train()
        with torch.autocast(images.device.type, enabled=False):  # of the run; a member's own is settled in its step
            loss, _ = member.step.loss(self._augment(images, source, self._processes), labels)
        loss.backward()
        self._processes.average([*(weight.grad for weight in member.net.parameters()), *running_statistics(member.net)])
        member.optimizer.step()
        member.optimizer.zero_grad()
        member.net.requires_grad_(False).eval()
        member.age += 1
        return loss.detach()

    def state(self) -> dict[str, Tensor]:
        """Weights, momenta, generations and ages of all members, as named tensors; they change with the next `advance`."""
        tensors = {}
        for slot, member in self.slots.items():
            tensors[f"{slot}.counts"] = torch.tensor([member.generation, member.age])
            tensors |= {f"{slot}.net.{name}": value for name, value in member.net.state_dict().items()}
            for name, parameter in member.net.named_parameters():
                momentum = member.optimizer.state.get(parameter, {}).get("momentum_buffer")
                if momentum is not None:
                    tensors[f"{slot}.momentum.{name}"] = momentum
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` gave."""
        self.slots.clear()
        self._serving = None
        for slot in sorted({int(name.partition(".")[0]) for name in tensors}):
            own = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{slot}.")}
            generation, age = own["counts"].tolist()
            member = self.slots[slot] = self._make(slot, generation, self._student(slot, generation))
            member.age = age
            member.net.load_state_dict({k.removeprefix("net."): v for k, v in own.items() if k.startswith("net.")})
            for name, parameter in member.net.named_parameters():
                if f"momentum.{name}" in own:
                    momentum = torch.empty_like(parameter).copy_(own[f"momentum.{name}"])
                    member.optimizer.state[parameter]["momentum_buffer"] = momentum

    @abstractmethod
    def _student(self, slot: int, generation: int) -> str:
        """Architecture of a slot's member."""


def build_pool(config: PoolConfig, data: RealData, **settings: Any) -> ModelPool:
    """A pool by its configuration.

    Args:
        config: which pool, and its options.
        data: the real data, natural images.
        settings: `steps` and `first_step`, the generator steps that the pool serves; `batch_size` of upkeep;
            further arguments as for `TrainedPool`.

    Raises:
        InputError: see the pools.
    """
    return POOLS.load(config.source).of_run(config, data, **settings)
