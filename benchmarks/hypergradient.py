"""Time, memory and exactness of the trajectory-matching gradient, by every way of taking it, in one run.

    python benchmarks/hypergradient.py [--data-root DIR] [--steps 20] [--repeats 3]

Real CIFAR-10 images, ConvNet-3 of width 128, batch 100, DSA on, one recorded stretch of ordinary training. `published` is
TESLA's formula in eager mode as its code has it: two passes of plain autograd, a double backward in the second. `arranged`
is what a run uses when it compiles: channels last, and an instance norm in sums that the compiler fuses. Memory is the peak
of a process of its own. Exactness is the distance from the gradient in float64, at several numbers of steps.
"""

import dataclasses
import functools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from common import Rows, Sources, save
from torch import Tensor

from dim import rng
from dim.augment import Augment
from dim.commands.malloc import keep_freed_memory
from dim.config import DataConfig
from dim.config.data import located
from dim.data.real import load_data, per_class_indices
from dim.trajectory.flat import FlatNetwork
from dim.trajectory.hypergrad import Derivatives, Hypergradient, Loss, hypergradient


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure the hypergradient."""

    data_root: str | None = None
    """Where CIFAR-10 lies. Default: the environment variable DIM_DATA_ROOT."""
    student: str = "convnet"
    """Architecture."""
    batch_size: int = 100
    """Images per student step."""
    steps: int = 20
    """Student steps of the timed problem (N)."""
    repeats: int = 3
    """Timed calls of each way, in turns; the least counts."""
    memory_steps: tuple[int, ...] = (5, 20, 80)
    """Student steps of the memory table."""
    exact_steps: tuple[int, ...] = (1, 10, 30)
    """Student steps of the table of exactness."""
    parts: tuple[Literal["time", "memory", "exactness"], ...] = ("time", "memory", "exactness")
    """What to measure; each has a file of its own."""
    memory_of: str | None = None
    """Internal: measure one way in this process and print its peak."""
    device: str = "cpu"
    """cpu or cuda."""


class Problem:
    """Images, a stretch of training to match, batches and augmentation draws."""

    def __init__(self, arguments: Arguments, steps: int, images_per_class: int = 10) -> None:
        self.device = torch.device(arguments.device)
        data = load_data(located(DataConfig(dataset="cifar10"), arguments.data_root), self.device)
        self.network = FlatNetwork(arguments.student, data.spec, self.device)
        self.compiled = FlatNetwork(arguments.student, data.spec, self.device, compiled=True)
        self.half = FlatNetwork(arguments.student, data.spec, self.device, compiled=True, precision="bf16")
        chosen = per_class_indices(data.train.labels, images_per_class, data.spec.num_classes, seed=0)
        self.images, self.targets = data.train.batch(chosen)
        self.augment = Augment("color|crop|cutout|flip|scale|rotate", data.spec)
        size = arguments.batch_size
        self.batches = [
            torch.randperm(len(self.images), generator=rng.generator(0, "benchmark", step))[:size].to(self.device)
            for step in range(steps)
        ]
        self.draws = [
            self.augment.draw(size, rng.generator(0, "benchmark-draw", step, device=self.device)) for step in range(steps)
        ]
        self.start = self.network.initial(0)
        theta = self.start.clone()
        gradient = Derivatives(self.network.loss)
        for step in range(10):
            real, labels = data.train.batch(torch.arange(step * 128, (step + 1) * 128))
            theta = theta - 0.02 * gradient.gradient(theta, real, labels)
        self.target = theta
        self.beta = 0.01

    def transform(self, step: int, images: Tensor) -> Tensor:
        return self.augment.apply(images, self.draws[step])

    def library(self, derivatives: Derivatives, method: str, dtype: torch.dtype = torch.float32) -> Hypergradient:
        start, target, images = (tensor.to(dtype) for tensor in (self.start, self.target, self.images))
        return hypergradient(
            derivatives,
            start,
            target,
            images,
            self.targets,
            self.beta,
            self.batches,
            method=method,
            transform=self.transform,
        )

    def published(self) -> Hypergradient:
        """TESLA as its code has it, with the factor 2 that the code loses."""
        theta, total = self.start, torch.zeros_like(self.start)
        for step, batch in enumerate(self.batches):
            theta = theta.detach().requires_grad_()
            loss = self.network.loss(theta, self.transform(step, self.images[batch]), self.targets[batch])
            gradient = torch.autograd.grad(loss, theta)[0]
            total += gradient
            theta = theta - self.beta * gradient
        gap, covered = theta.detach() - self.target, (self.start - self.target).square().sum()
        adjoint = 2 * gap / covered
        result = torch.zeros_like(self.images)
        theta = self.start
        for step, batch in enumerate(self.batches):
            theta = theta.detach().requires_grad_()
            leaf = self.images[batch].requires_grad_()
            loss = self.network.loss(theta, self.transform(step, leaf), self.targets[batch])
            gradient = torch.autograd.grad(loss, theta, create_graph=True)[0]
            result.index_add_(0, batch, torch.autograd.grad(-self.beta * gradient @ adjoint, leaf)[0])
            theta = theta - self.beta * gradient.detach()
        return Hypergradient(gap.square().sum() / covered, result, None, -(adjoint @ total))


def channels_last(loss: Loss) -> Loss:
    """The same loss, with images in the channels-last memory format."""
    return lambda theta, x, y: loss(theta, x.contiguous(memory_format=torch.channels_last), y)


def ways(problem: Problem) -> dict[str, Callable[[], Hypergradient]]:
    """Every way, by name; compiled ones compile when they are first called."""
    plain, arranged = problem.network.loss, problem.compiled.loss
    found = {
        "unroll": lambda: problem.library(Derivatives(plain), "unroll"),
        "published frozen": problem.published,
        "unroll, channels_last": lambda: problem.library(Derivatives(channels_last(plain)), "unroll"),
    }
    kinds = {
        "eager": (plain, False),
        "eager, channels_last": (channels_last(plain), False),
        "compiled": (plain, True),
        "compiled, arranged": (arranged, True),
    }
    for kind, (loss, compile) in kinds.items():
        for order in ("reverse-over-forward", "reverse-over-reverse", "forward-over-reverse"):
            derivatives = Derivatives(loss, order=order, compile=compile)
            found[f"adjoint, {order}, {kind}"] = lambda derivatives=derivatives: problem.library(derivatives, "adjoint")
        frozen = Derivatives(loss, compile=compile, frozen=True)
        found[f"frozen, {kind}"] = lambda frozen=frozen: problem.library(frozen, "frozen")
    return found


def synchronize(problem: Problem) -> None:
    if problem.device.type == "cuda":
        torch.cuda.synchronize()


def time_all(arguments: Arguments, rows: Rows) -> None:
    """Time every way, in turns, and add a row for each."""
    problem = Problem(arguments, arguments.steps)
    measured: dict[str, dict[str, float]] = {}
    spent: dict[str, float] = {}
    exact: Hypergradient | None = None
    found = ways(problem)
    for name, way in found.items():
        started = time.perf_counter()
        result = way()
        synchronize(problem)
        exact = exact or result
        error = float((result.images - exact.images).norm() / exact.images.norm())
        spent[name] = time.perf_counter() - started
        measured[name] = {"first_call": spent[name], "image_error": error, "seconds": float("inf")}
    for _ in range(arguments.repeats):
        for name, way in found.items():
            started = time.perf_counter()
            way()
            synchronize(problem)
            seconds = time.perf_counter() - started
            spent[name] += seconds
            measured[name]["seconds"] = min(measured[name]["seconds"], seconds)
    for name, row in measured.items():
        row["of_unroll"] = row["seconds"] / measured["unroll"]["seconds"]
        row["of_published_frozen"] = row["seconds"] / measured["published frozen"]["seconds"]
        rows.put(name, row, spent[name])
        print(
            f"{name:<56} {row['seconds']:7.2f} s  {row['of_unroll']:.2f} of unroll  {row['of_published_frozen']:.2f} of "
            f"published frozen  image error {row['image_error']:.1e}",
            flush=True,
        )


def peak_memory(arguments: Arguments) -> float:
    """MB: of this process on the CPU, allocated on the device elsewhere."""
    steps = arguments.memory_steps[0]
    problem = Problem(arguments, steps)
    way = ways(problem)[arguments.memory_of]
    if problem.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        way()
        return torch.cuda.max_memory_allocated() / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the peak of loading the data does not count (Linux)
    way()
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak.group(1)) * 1024 / 1e6


def memory_of(arguments: Arguments, name: str, steps: int) -> dict[str, float]:
    """Peak memory of a process that takes the gradient once."""
    command = [sys.executable, __file__, "--memory-of", name, "--memory-steps", str(steps)]
    command += ["--student", arguments.student, "--batch-size", str(arguments.batch_size), "--device", arguments.device]
    command += ["--data-root", arguments.data_root] if arguments.data_root else []
    # Large blocks go back to the system when they are freed, so that the peak is of what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return {"peak_mb": float(done.stdout.split()[-1])}


def memory_all(arguments: Arguments, rows: Rows) -> None:
    """Add rows of the ways whose memory is compared."""
    first, *_, last = arguments.memory_steps
    constant = {"adjoint, reverse-over-reverse, eager": (first, last)}
    # Unrolled, the most steps would need more memory than a small machine has.
    growing = arguments.memory_steps if arguments.device != "cpu" else arguments.memory_steps[:2]
    for name, counts in {"unroll": growing, **constant}.items():
        for steps in counts:
            row = rows.add(name, functools.partial(memory_of, arguments, name, steps), steps=steps)
            print(f"{name:<56} N = {steps:<3} {row['peak_mb']:8.0f} MB", flush=True)


def exactness_all(arguments: Arguments, rows: Rows) -> None:
    """Compare the gradients in the images and in the step size with those in float64, and add a row for each way and N."""
    for steps in arguments.exact_steps:
        problem = Problem(arguments, steps)
        plain = Derivatives(problem.network.loss)
        exact = problem.library(plain, "adjoint", torch.float64)
        compiled = {
            f"adjoint, compiled, {name}": Derivatives(network.loss, order="reverse-over-forward", compile=True)
            for name, network in {"float32": problem.compiled, "bfloat16": problem.half}.items()
        }
        found = {
            "unroll, eager, float32": functools.partial(problem.library, plain, "unroll"),
            "adjoint, eager, float32": functools.partial(problem.library, plain, "adjoint"),
            **{name: functools.partial(problem.library, derivatives, "adjoint") for name, derivatives in compiled.items()},
            "frozen, eager, float32": functools.partial(problem.library, Derivatives(plain.loss, frozen=True), "frozen"),
        }
        for name, way in found.items():
            row = rows.add(name, lambda way=way, exact=exact: distance(way(), exact), steps=steps)
            print(f"{name:<32} N = {steps:<3} cosine {row['cosine']:.6f}  error {row['image_error']:.1e}", flush=True)


def distance(found: Hypergradient, exact: Hypergradient) -> dict[str, float]:
    """Cosine and relative error of the gradient in the images; relative errors of the loss and of that in the step size."""
    own, true = found.images.double().flatten(), exact.images.flatten()
    return {
        "cosine": float(own @ true / (own.norm() * true.norm())),
        "image_error": float((own - true).norm() / true.norm()),
        "loss_error": float(abs(found.loss.double() / exact.loss - 1)),
        "step_size_error": float(abs(found.step_size.double() / exact.step_size - 1)),
    }


def main(arguments: Arguments) -> None:
    if arguments.memory_of is not None:
        print(peak_memory(arguments))
        return
    sources = Sources.of(__file__)
    settings = {**dataclasses.asdict(arguments), "data_root": None}
    parameters = Problem(arguments, 1).network.size
    suffix = "" if arguments.device == "cpu" else f"-{arguments.device}"
    for part, measure in {"time": time_all, "memory": memory_all, "exactness": exactness_all}.items():
        if part in arguments.parts:
            rows = Rows(sources, arguments.device, settings)
            measure(arguments, rows)
            content = {"settings": settings, "parameters": parameters, "rows": rows.made}
            print(save(f"hypergradient-{part}{suffix}", content), flush=True)


if __name__ == "__main__":
    arguments = tyro.cli(Arguments)
    if arguments.memory_of is None:
        keep_freed_memory()
    main(arguments)
