"""The processes that work together: whose work is what, and what they exchange.

`torchrun` and `accelerate launch` start several processes of one program. What they make together is what one process makes:
random numbers are drawn for the whole batch, and each process takes its rows. Without a launcher, one process is `ALONE`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dim.errors import InputError
from dim.launch import PATIENCE, connection, launched

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that work together.

    Image i of a batch belongs to process i mod `world`. So each process has the same number of images, and of any stretch of the
    batch the same number to within one.

    Attributes:
        rank: number of this process, from 0.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and says what was done."""
        return self.rank == 0

    def part(self, whole: T) -> T:
        """The rows of this process of something that was drawn or listed for all: a tensor or a sequence."""
        return whole if self.world == 1 else whole[self.rank :: self.world]

    def require_even(self, count: int, name: str) -> None:
        """Raise InputError if the processes cannot share so many of something evenly; `name` says what it is."""
        if count % self.world:
            raise InputError(
                f"{name} is {count} and there are {self.world} processes: expected a multiple of that number, or fewer processes"
            )

    # --- tensors, which all processes exchange at the same place of the program -----------------------------------------------

    def mean(self, value: Tensor) -> Tensor:
        """The mean over processes, without a graph."""
        if self.world == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def average(self, tensors: Iterable[Tensor | None]) -> None:
        """Replace each tensor by its mean over processes, in one transfer; those that are None are left out.

        For gradients, in place of a DistributedDataParallel wrapper: networks here run several times per step, with gradients
        of gradients, which that does not allow.
        """
        if self.world == 1:
            return
        present = [tensor for tensor in tensors if tensor is not None]
        if present:
            flat = self.mean(torch.cat([tensor.detach().reshape(-1) for tensor in present]))
            with torch.no_grad():
                for tensor, part in zip(present, flat.split([tensor.numel() for tensor in present]), strict=True):
                    tensor.copy_(part.view(tensor.shape))

    def whole(self, own: Tensor, dim: int = 0) -> Tensor:
        """The rows of all processes in the order of the batch, for what depends on the batch as a whole.

        Differentiable: every process computes the same function of the whole batch, and receives the gradient of its own rows
        times the number of processes, so that the mean over processes, as `average` takes it, is the gradient of that function.

        Args:
            own: this process's rows, of the same shape everywhere.
            dim: the dimension that counts them.
        """
        return own if self.world == 1 else _Whole.apply(own, self, dim)

    # --- objects -------------------------------------------------------------------------------------------------------------

    def once(self, make: Callable[[], T]) -> T:
        """What `make` gives in the main process, in all of them; an InputError that it raises there is raised in all."""
        if self.world == 1:
            return make()
        said: list[Any] = [None]
        if self.main:
            try:
                said = [(make(), None)]
            except InputError as error:
                said = [(None, str(error))]
        dist.broadcast_object_list(said, src=0, group=connection("objects"))
        made, refusal = said[0]
        if refusal is not None:
            raise InputError(refusal)
        return made

    def in_turn(self, make: Callable[[], T]) -> T:
        """What `make` gives in each process. The first of every machine is done before the others begin, and so what it downloads
        and caches is there for them. An InputError that one of those raises is raised in all."""
        first, made, refusal = launched()[2] == 0 or self.world == 1, None, None
        if first:
            try:
                made = make()
            except InputError as error:
                refusal = str(error)
        for said in filter(None, self.gather(refusal)):
            raise InputError(said)
        return made if first else make()

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank, in all of them."""
        if self.world == 1:
            return [value]
        said: list[Any] = [None] * self.world
        dist.all_gather_object(said, value, group=connection("objects"))
        return said

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.gather(None)


ALONE = Processes()


def join(cpu: bool) -> Processes:
    """Join the other processes of this launch; `cpu`: they work on CPUs. `ALONE` without a launcher."""
    if launched()[1] == 1:
        return ALONE
    from accelerate import PartialState

    PartialState(cpu=cpu, timeout=PATIENCE)
    return Processes(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


class _Whole(torch.autograd.Function):
    """See `Processes.whole`."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, processes: Processes, dim: int) -> Tensor:
        ctx.settings = processes, dim
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(processes.world)]
        dist.all_gather(parts, own.contiguous())
        return torch.stack(parts, dim + 1).flatten(dim, dim + 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        processes, dim = ctx.settings
        return processes.world * processes.part(gradient.movedim(dim, 0)).movedim(0, dim), None, None


class Agreement:
    """Lets processes that do the same steps decide together what only some of them know: the largest of what they say.

    Of several processes, the answer is that to the question of the step before, so that none of them waits for it.
    """

    def __init__(self, processes: Processes) -> None:
        self._world = processes.world
        self._asked: tuple[Any, Tensor] | None = None

    def __call__(self, *numbers: int) -> tuple[int, ...]:
        """The largest of every number; 0 stands for no. After a yes, what was said before it is forgotten."""
        if self._world == 1:
            return numbers
        said = torch.tensor(numbers, dtype=torch.int64)
        before, self._asked = self._asked, (dist.all_reduce(said, dist.ReduceOp.MAX, connection("objects"), async_op=True), said)
        if before is None:
            return (0,) * len(numbers)
        before[0].wait()
        answer = tuple(before[1].tolist())
        if any(answer):
            self._asked[0].wait()
            self._asked = None
        return answer


def running_statistics(net: nn.Module) -> list[Tensor]:
    """Running means and variances of batch norms, of which each process sees those of its own images."""
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
