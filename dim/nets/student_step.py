"""The arithmetic of training a student: one loss and one prediction, shared by whatever trains students.

In PyTorch's eager mode a ConvNet spends two thirds of a step between convolutions, where memory formats meet badly. Compiled, a
step takes about half of the time; in bfloat16 beside that, on processors that have it, a quarter or less (`docs/speed.md`).
Weights, their gradients and the optimiser stay float32 in either case.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dim.compiling import compiled, native_bfloat16, work_repays, worth_compiling
from dim.config import FeatureConfig, PoolConfig, ProtocolConfig, ScoringConfig
from dim.config.settings import Compile, Precision
from dim.nets.layers import arrange
from dim.nets.student import Student, build_student
from dim.spec import DataSpec

_Training = TypeVar("_Training", ProtocolConfig, FeatureConfig, ScoringConfig, PoolConfig)


def settled(config: _Training, student: str, spec: DataSpec, device: torch.device | str, *, steps: int, batch: int) -> _Training:
    """How a student is trained, with `auto` replaced by what this device and this much work make of it.

    Compilation repays itself by the work that it speeds up: on a CPU by the operations of all steps, on a GPU by their number.
    bfloat16 is for devices that have it; on a CPU only compiled, since eager steps are slower in it.

    Args:
        config: its `precision` and `compile` may be `auto`.
        student: architecture, as `build_student` reads it.
        spec: the data.
        device: where students are trained.
        steps: of all students that share the compiled step.
        batch: images in each.
    """
    compile = config.compile
    if compile == "auto":
        on_cpu = torch.device(device).type == "cpu"
        work = steps * batch * training_flops(student, spec) if on_cpu else 0
        worth = work_repays("auto", device, work, seconds=20) if on_cpu else worth_compiling("auto", device, steps)
        compile = "on" if worth else "off"
    precision = config.precision
    if precision == "auto":
        fast = native_bfloat16(device) and (compile == "on" or torch.device(device).type != "cpu")
        precision = "bf16" if fast else "fp32"
    return dataclasses.replace(config, precision=precision, compile=compile)


@functools.cache
def training_flops(student: str, spec: DataSpec) -> int:
    """Floating-point operations of one training step per image: convolutions and matrix products, three times forward's."""
    net = build_student(student, spec, seed=0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(2, *spec.image_shape))  # batch norm without running statistics refuses a single value per channel
    return 3 * counter.get_total_flops() // 2


class StudentStep:
    """Loss and logits of one student.

    Compiled functions are shared by all students of one architecture and batch shape; the compiler's own cache keeps them on disk
    for later processes.

    Args:
        net: images in [-1, 1] -> logits. To be compiled it is rearranged in place: same parameters, same values up to rounding.
        precision: of forward and backward, settled.
        compile: whether to compile, settled.
    """

    def __init__(self, net: nn.Module, precision: Precision = "fp32", compile: Compile = "off") -> None:
        self.net, self._half, self._compiled, self._rows = net, precision == "bf16", compile == "on", 0
        if self._compiled:
            arrange(net, norms=False, convolutions=False)
            # What a compiled function depends on beside its inputs.
            self._kind = (str(net), tuple((value.shape, value.device) for value in net.state_dict().values()))

    def loss(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy, with a graph, and the logits without one.

        Args:
            images: float32 (B, C, H, W) in [-1, 1].
            targets: int64 (B,) or float (B, classes).

        Returns:
            A float32 scalar and float32 (B, classes).
        """
        return self._run(_loss, images, targets)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Float32 (B, classes) logits of float32 (B, C, H, W) images in [-1, 1], without a graph.

        A batch that is smaller than one before it, as the last of many is, is filled up, since compiled shapes are static.
        """
        count = len(images)
        if self._compiled:
            self._rows = max(self._rows, count)
            images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, self._rows - count))
        return self._run(_logits, images)[:count]

    def outputs(self, images: Tensor, kind: Literal["logits", "features"]) -> Tensor:
        """Float32 (B, classes) logits or (B, F) features before the last layer, differentiable in the images."""
        return self._run(_logits if kind == "logits" else _features, images)

    def _run(self, function: Callable, images: Tensor, *rest: Tensor) -> Any:
        if not self._compiled:
            return function(self.net, self._half, images, *rest)
        inputs = (images.contiguous(memory_format=torch.channels_last), *rest)
        shapes = tuple((tensor.shape, tensor.dtype, tensor.requires_grad) for tensor in inputs)
        trains = any(parameter.requires_grad for parameter in self.net.parameters())
        key = (function, self._half, self.net.training, trains, torch.is_grad_enabled(), shapes, self._kind)
        if key not in _made:
            _made[key] = compiled(function)
        return _made[key](self.net, self._half, *inputs)


_made: dict[tuple, Callable] = {}


def _loss(net: nn.Module, half: bool, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = _logits(net, half, images)
    return F.cross_entropy(logits, targets), logits.detach()


def _logits(net: nn.Module, half: bool, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        return net(images).float()


def _features(net: Student, half: bool, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        return net.embed(images).float()
