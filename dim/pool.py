"""ModelPool: the models whose logits are matched, and their upkeep on real or on generated images.

The published pool makes a fresh model per epoch and trains it for 16 steps before every generator step, which is most of
the run's time, and then throws it away. The persistent pool keeps members of several architectures and ages alive, takes
one at a time, and spreads the upkeep thin. Which member is taken at a step, and every weight it starts from, is a
function of (seed, step), so a resumed run meets the same pool. The expert pool is free: its members are checkpoints of
recorded experts, of any age, so nothing is trained at all, and several can judge the same images in one batched evaluation.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from dim import rng
from dim.augment import Augment
from dim.config import PoolConfig
from dim.data.real import RealData
from dim.errors import InputError
from dim.nets.students import Student, build_student, parse_student
from dim.spec import DataSpec
from dim.trajectory.experts import Experts


class _Member:
    """One model, its optimiser and its age in SGD steps."""

    def __init__(self, student: str, generation: int, net: Student, config: PoolConfig) -> None:
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

    @abstractmethod
    def due(self, step: int) -> int:
        """How many batches `advance` wants at this step."""

    @abstractmethod
    def advance(self, images: Tensor, labels: Tensor, step: int, part: int = 0) -> Tensor:
        """Upkeep on a batch, of real images or of generated ones; returns the loss, a detached scalar on the device."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, as named tensors."""

    @abstractmethod
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` gave."""


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
        rank: number of this process, so that each augments its own share of a batch its own way.
        average: averages the gradients of parameters over processes, in place, so that all hold the same members.

    Raises:
        InputError: for an unknown architecture.
    """

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
        rank: int = 0,
        average: Callable[[Iterable[nn.Parameter]], None] = lambda parameters: None,
    ) -> None:
        for student in config.students:
            parse_student(student)
        self.config, self.spec, self.seed = config, spec, seed
        self._steps_per_epoch, self._first_step = steps_per_epoch, first_step
        self.slots: dict[int, _Member] = {}
        self._serving: tuple[int, _Member] | None = None
        self._device, self._rank, self._average = torch.device(device), rank, average
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._augment = Augment(config.augment, spec)

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
        return _Member(student, generation, net, self.config)

    def draw(self, step: int) -> Student:
        """The member that serves `step`, in evaluation mode: (B, C, H, W) images in [-1, 1] -> (B, classes) logits.

        Its parameters need no gradient; images may.
        """
        return self._member(step).net

    def outputs(self, images: Tensor, step: int, kind: Literal["logits", "features"]) -> Tensor:
        """See `ModelPool`: one member serves a step."""
        member = self.draw(step)
        return (member.embed(images) if kind == "features" else member(images))[None]

    def due(self, step: int) -> int:
        """How many batches `advance` wants at this step."""
        return self.config.upkeep_steps if (step - self._first_step) % self.config.upkeep_every == 0 else 0

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
        source = rng.generator(self.seed, "pool-augment", step, part, self._rank, device=images.device)
        member.net.requires_grad_(True).train()
        with torch.autocast(images.device.type, enabled=False):
            loss = F.cross_entropy(member.net(self._augment(images, source)), labels)
        loss.backward()
        self._average(member.net.parameters())
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


class FreshPool(TrainedPool):
    """Published: one newly initialised model per epoch, of an architecture drawn at random."""

    def _identity(self, step: int) -> tuple[int, int, str]:
        epoch = (step - self._first_step) // self._steps_per_epoch
        return 0, epoch, self._student(0, epoch)

    def _student(self, slot: int, generation: int) -> str:
        return self.config.students[rng.fold(self.seed, "pool-student", generation) % len(self.config.students)]


class PersistentPool(TrainedPool):
    """Members of all architectures and of many ages; a step takes one at random and trains it a little.

    A member is started afresh at `max_age` steps. First lives are cut short, each at another age, so that ages are
    spread from then on.
    """

    def _identity(self, step: int) -> tuple[int, int, str]:
        slot = rng.fold(self.seed, "pool-draw", step) % self.config.members
        member = self.slots.get(slot)
        generation = 0 if member is None else member.generation
        if member is not None and member.age >= self._lifetime(slot, generation):
            generation += 1
        return slot, generation, self._student(slot, generation)

    def _lifetime(self, slot: int, generation: int) -> int:
        share = (slot + 1) / self.config.members if generation == 0 else 1.0
        return max(1, round(self.config.max_age * share))

    def _student(self, slot: int, generation: int) -> str:
        return self.config.students[slot % len(self.config.students)]


class ExpertPool(ModelPool):
    """Checkpoints drawn from recorded experts. Ages are drawn from a window of the path that grows while the stage lasts, from
    easy to hard as in DATM (Guo et al. 2024).

    Args:
        config: the pool's settings; `experts` names the store.
        data: the real data, natural images.
        first_step, steps: the generator steps that the pool serves.
        seed: seed of the run.
        device: where members are evaluated.
        experts: those of the store, if they have been opened already.

    Raises:
        InputError: if the store is missing, damaged, unfinished, or of other data.
    """

    def __init__(
        self,
        config: PoolConfig,
        data: RealData,
        *,
        first_step: int,
        steps: int,
        seed: int,
        device: torch.device | str = "cpu",
        experts: Experts | None = None,
    ) -> None:
        if config.experts is None:
            raise InputError("pool.source is 'experts' and pool.experts is not given: name a folder made by 'dim experts'")
        self.experts = experts or Experts(config.experts, data, device)
        self.network, self.paths = self.experts.network, self.experts.paths
        self.config, self._seed, self._first_step, self._steps = config, seed, first_step, max(1, steps)
        self._serving: tuple[int, Tensor] | None = None

    def window(self, step: int) -> tuple[float, float]:
        """Youngest and oldest age at a step, as parts of the path in [0, 1]."""
        low, high = self.config.ages
        progress = min(1.0, max(0.0, (step - self._first_step) / self._steps))
        return low, self.config.oldest_at_first + (high - self.config.oldest_at_first) * progress

    def thetas(self, step: int) -> Tensor:
        """Weights of the members that serve `step`, float32 (members, P)."""
        if self._serving is None or self._serving[0] != step:
            low, high = self.window(step)
            drawn = []
            for member in range(self.config.together):
                path = self.paths[rng.fold(self._seed, "pool-expert", step, member) % len(self.paths)]
                source = rng.generator(self._seed, "pool-age", step, member)
                part = low + (high - low) * float(torch.rand((), generator=source))
                drawn.append(path.theta(part * path.last))
            self._serving = (step, torch.stack(drawn).to(self.network.device))
        return self._serving[1]

    def draw(self, step: int) -> Callable[[Tensor], Tensor]:
        """See `ModelPool`: the first of the members that serve a step."""
        theta = self.thetas(step)[0]
        return lambda images: self.network.logits(theta, self.experts.seen(images))

    def outputs(self, images: Tensor, step: int, kind: Literal["logits", "features"]) -> Tensor:
        """See `ModelPool`: all members in one batched computation."""
        thetas, seen = self.thetas(step), self.experts.seen(images)
        function = self.network.features if kind == "features" else self.network.logits
        return function(thetas[0], seen)[None] if len(thetas) == 1 else vmap(function, in_dims=(0, None))(thetas, seen)

    def due(self, step: int) -> int:
        """Nothing is trained."""
        return 0

    def advance(self, images: Tensor, labels: Tensor, step: int, part: int = 0) -> Tensor:
        """Nothing is trained: never called, as nothing is `due`."""
        raise RuntimeError("an expert pool has no upkeep")

    def state(self) -> dict[str, Tensor]:
        """Which experts these are."""
        return self.experts.state()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Refuse other experts than the run began with, if it has had any."""
        self.experts.require_same(tensors)


def build_pool(
    config: PoolConfig,
    data: RealData,
    *,
    seed: int,
    first_step: int = 0,
    steps: int = 1,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> ModelPool:
    """A pool by its configuration, for the generator steps from `first_step`; further arguments as for `TrainedPool`."""
    common = {"first_step": first_step, "seed": seed, "device": device}
    if config.source == "experts":
        return ExpertPool(config, data, steps=steps, **common)
    kind = FreshPool if config.source == "fresh" else PersistentPool
    return kind(config, data.spec, **common, **settings)
