"""What a step of each kind costs beside a named baseline, in one run: interleaved, medians.

    python benchmarks/speed.py --data-root DIR [--parts students gan ...]

- `students`: an SGD step, eager float32 (the baseline), compiled, and compiled in bfloat16; the seconds of compiling, from
  nothing and with the compiler's cache on disk; and the speed of one convolution alone.
- `gan`: a step of stage one of the generator `gan`, beside the same losses in PyTorch's own layers; and the seconds that either
  spends in convolutions, which say what could be gained at most by work on everything else.
- `stage-two`: a step of cifar10-dim2023, beside the published upkeep in float32.
- `trajectory`: the exact gradient of trajectory matching over 30 student steps at batch 100, beside an unrolled graph in eager
  mode, with its distance from that; and a step of an expert, beside eager float32.
- `growth`: a student's seconds per image against batch, classes and resolution.
- `sampling`: images per second of a loader, and of drawing and storing a set in each format, beside the bare generator's forward.
- `start`: seconds until a command answers, beside `import torch`.
- `accuracy`: students of random real images at IPC 10, the same in both precisions.
- `seeds`: students of five seeds in one batched computation, beside five one after another.
- `experts`: test accuracy along the trajectories of experts, the same in both precisions.

Each part is a file of `results/`.
"""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp(prefix="dim-speed-"))  # so that compiling starts from nothing

import torch
import torch.nn.functional as F
import tyro
from common import Rows, Sources, changed, changed_section, save, scores_of
from step_time import PUBLISHED, seconds_per_step
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dim.commands.malloc import keep_freed_memory
from dim.config import FORMATS, DataConfig, ExpertsConfig, GeneratorConfig, ProtocolConfig, RecordConfig, TrainConfig, to_dict
from dim.config.data import located
from dim.data.format import Format
from dim.data.loader import GeneratedLoader
from dim.data.real import EpochBatches, RealData, load_data
from dim.nets.generator import build_generator
from dim.nets.layers import ImageConv2d
from dim.nets.student import build_student
from dim.nets.student_step import StudentStep, training_flops
from dim.objectives import add_gradient
from dim.objectives.adversaries.relativistic import Relativistic
from dim.processes import ALONE
from dim.recipes.load import load_recipe
from dim.runs.accelerator import make_accelerator
from dim.runs.train import Trainer
from dim.sampler import sample_set
from dim.score.evaluate import Evaluator
from dim.spec import DataSpec
from dim.trajectory.flat import FlatNetwork
from dim.trajectory.hypergrad import Derivatives, hypergradient
from dim.trajectory.record import _Recorder, record

Part = Literal["students", "gan", "stage-two", "trajectory", "growth", "sampling", "start", "accuracy", "experts", "seeds"]
ARITHMETICS = {"eager float32": ("fp32", "off"), "compiled float32": ("fp32", "on"), "compiled bfloat16": ("bf16", "on")}
GAN = {
    "generator": {"width": 32, "blocks": 1, "latent_dim": 64},
    "discriminator": {"width": 32, "blocks": 1},
    "adversarial": {"gamma": 0.2, "gamma_end": 0.05, "penalty_every": 4},
    "stage_one": {"batch_size": 64},
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure the speed of every kind of step."""

    data_root: str | None = None
    """Where CIFAR-10 and Fashion-MNIST lie. Default: the environment variable DIM_DATA_ROOT."""
    parts: tuple[Part, ...] = get_args(Part)
    """What to measure."""
    repeats: int = 15
    """Timed calls of each way, in turns; the median counts."""
    students: int = 10
    """Students per arithmetic of the part `accuracy`."""
    epochs: int = 1000
    """Passes over their ten images per class."""
    first_step: str | None = None
    """Internal: print the seconds of a compiled student's first step, of this architecture and batch."""


def medians(ways: Mapping[str, Callable[[], Any]], repeats: int, *, uncounted: int = 2) -> dict[str, float]:
    """Median seconds of each way, called in turns, after some calls that do not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + uncounted):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn >= uncounted:
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in taken.items()}


# --- students ----------------------------------------------------------------------------------------------------------------


def toy_spec(size: int = 32, classes: int = 10) -> DataSpec:
    """The shape of CIFAR-10, or of larger images and more classes."""
    names = tuple(f"class {number}" for number in range(classes))
    facts = {"name": "toy", "mean": (0.5,) * 3, "std": (0.25,) * 3, "fingerprint": "0" * 16}
    return DataSpec(channels=3, height=size, width=size, class_names=names, **facts)


def student_step(student: str, batch: int, arithmetic: str, spec: DataSpec) -> Callable[[], None]:
    """A complete SGD step of a student on random images."""
    net = build_student(student, spec, seed=0).to(memory_format=torch.channels_last).train()
    step = StudentStep(net, *ARITHMETICS[arithmetic])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    images = (torch.rand(batch, *spec.image_shape) * 2 - 1).contiguous(memory_format=torch.channels_last)
    targets = torch.arange(batch) % spec.num_classes

    def run() -> None:
        loss, _ = step.loss(images, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def first_step(student: str, batch: int) -> float:
    """Seconds of the first compiled step in a process of its own, with what the compiler's cache holds."""
    command = [sys.executable, __file__, "--first-step", f"{student} {batch}"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def convolution_peak(dtype: torch.dtype, repeats: int) -> float:
    """GFLOP/s of one convolution, forward and backward: 128 channels, 3x3, 16x16 maps, batch 64."""
    conv = nn.Conv2d(128, 128, 3, padding=1, dtype=dtype).to(memory_format=torch.channels_last)
    x = torch.randn(64, 128, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn_like(x)
    seconds = medians({"": lambda: conv(x).backward(grad)}, repeats)[""]
    return 3 * 2 * 64 * 16 * 16 * 128 * 128 * 9 / seconds / 1e9


def measure_students(rows: Rows, arguments: Arguments) -> None:
    """Steps of students in each arithmetic."""
    peaks = {str(dtype): convolution_peak(dtype, arguments.repeats) for dtype in (torch.float32, torch.bfloat16)}
    rows.add("convolution alone", lambda: {"gflops": peaks}, repeats=arguments.repeats)
    for student, batch in (("convnet", 64), ("convnet", 10), ("resnet18", 64)):

        def measure(student: str = student, batch: int = batch) -> dict[str, Any]:
            cold, warm = first_step(student, batch), first_step(student, batch)
            ways = {name: student_step(student, batch, name, toy_spec()) for name in ARITHMETICS}
            seconds = medians(ways, arguments.repeats)
            work = batch * training_flops(student, toy_spec()) / 1e9
            return {
                "seconds": seconds,
                "ratio": {name: value / seconds["eager float32"] for name, value in seconds.items()},
                "gflops": {name: work / value for name, value in seconds.items()},
                "first_step_seconds": cold,
                "first_step_seconds_cached": warm,
            }

        row = rows.add(f"{student}, batch {batch}", measure, student=student, batch=batch, repeats=arguments.repeats)
        print(row["name"], row["seconds"], row["ratio"], row["gflops"], row["first_step_seconds"], flush=True)


def measure_growth(rows: Rows, arguments: Arguments) -> None:
    """A compiled bfloat16 student's step and an eager one's against batch, classes and resolution."""
    shapes = [("batch", batch, 32, 10) for batch in (8, 32, 128, 512)]
    shapes += [("classes", 64, 32, classes) for classes in (10, 100, 1000)]
    shapes += [("resolution", 16, size, 10) for size in (32, 64, 128)]
    for kind, batch, size, classes in shapes:

        def measure(batch: int = batch, size: int = size, classes: int = classes) -> dict[str, Any]:
            spec = toy_spec(size, classes)
            names = ("eager float32", "compiled bfloat16")
            seconds = medians({name: student_step("convnet", batch, name, spec) for name in names}, 5)
            work = batch * training_flops("convnet", spec) / 1e9
            each = {name: value / batch for name, value in seconds.items()}
            return {"seconds_per_image": each, "gflops": {name: work / value for name, value in seconds.items()}}

        value = {"batch": batch, "classes": classes, "resolution": size}[kind]
        row = rows.add(f"{kind} {value}", measure, batch=batch, resolution=size, classes=classes)
        print(row["name"], row["seconds_per_image"], row["gflops"], flush=True)


# --- generators --------------------------------------------------------------------------------------------------------------


class PlainRelativistic(Relativistic):
    """The generator's turn as one writes it first: one graph over real and generated images and the discriminator's weights."""

    def accumulate(self, images: Tensor, targets: Tensor, *, real: Tensor, step: int) -> dict[str, Tensor]:
        """See `dim.objectives.Objective`."""
        both = self._augmented(torch.cat((real, images)), "generator", step)
        real_values, fake_values = self.discriminator(both, targets.repeat(2)).float().chunk(2)
        loss = F.softplus(real_values - fake_values).mean()
        add_gradient(images, torch.autograd.grad(loss, images)[0])
        return {"adversarial": loss.detach()}


def gan_steps(config: TrainConfig, data: RealData, scratch: Path, *, plain: bool) -> Callable[[], None]:
    """As many steps of stage one as lie between two penalties."""
    trainer = Trainer(config, data, scratch, make_accelerator(config, scratch), resume=False)
    if plain:
        trainer.adversary.__class__ = PlainRelativistic
        for network in (trainer.generator, trainer.discriminator):
            for module in network.modules():
                if isinstance(module, ImageConv2d):
                    module.__class__ = nn.Conv2d
    stage = trainer.stages[0]
    batches = EpochBatches(data.train, stage.config.batch_size, seed=0, purpose="speed")
    every, position = config.adversarial.penalty_every, iter(range(10**9))

    def run() -> None:
        for _ in range(every):
            trainer.train_step(next(position), stage, batches, None, [trainer.adversary])

    return run


def convolution_seconds(run: Callable[[], None]) -> float:
    """Seconds that one call spends in kernels of convolutions."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    return sum(event.self_cpu_time_total for event in found.key_averages() if "convolution" in event.key) / 1e6


def measure_gan(rows: Rows, arguments: Arguments, config: TrainConfig, data: RealData) -> None:
    """Steps of stage one, and of it in PyTorch's own layers."""
    config = changed(config, {**GAN, "fit": {"precision": "bf16", "trackers": ()}})

    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            ways = {
                "PyTorch's layers": gan_steps(changed(config, {"fit": {"compile": "off"}}), data, Path(first), plain=True),
                "default": gan_steps(config, data, Path(second), plain=False),
            }
            found = medians(ways, arguments.repeats)
            inside = {name: min(convolution_seconds(way) for _ in range(3)) for name, way in ways.items()}
        seconds, convolutions = (
            {name: value / config.adversarial.penalty_every for name, value in one.items()} for one in (found, inside)
        )
        before = seconds["PyTorch's layers"]
        ratios = {"ratio": seconds["default"] / before, "ratio_of_its_convolutions_alone": convolutions["default"] / before}
        return {"seconds": seconds, "seconds_in_convolutions": convolutions, **ratios}

    row = rows.add("gan, width 32, batch 64, penalty every 4, bfloat16", measure, repeats=arguments.repeats)
    shown = ("name", "seconds", "seconds_in_convolutions", "ratio", "ratio_of_its_convolutions_alone")
    print(*(row[name] for name in shown), flush=True)


def measure_stage_two(rows: Rows, config: TrainConfig, data: RealData) -> None:
    """Steps of cifar10-dim2023: the default pool in bfloat16, and the published upkeep in float32."""

    def at(precision: str) -> TrainConfig:
        return changed(config, {"fit": {"precision": precision, "trackers": ()}})

    def measure() -> dict[str, Any]:
        default = seconds_per_step(at("bf16"), data, config.pool, 20)
        published = seconds_per_step(at("no"), data, changed_section(config.pool, PUBLISHED), 20)
        return {"seconds": {"default": default, "published": published}, "ratio": default / published}

    row = rows.add("cifar10-dim2023, stage two", measure)
    print(row["name"], row["seconds"], row["ratio"], flush=True)


def _is_for_any_images(kind: type[Format]) -> bool:
    return not kind.latents and not kind.datasets


def measure_sampling(rows: Rows, arguments: Arguments) -> None:
    """Loaders and formats beside the bare generator, on CIFAR-10's shape."""
    config = GeneratorConfig(name="gan", width=32, latent_dim=64)
    generator = build_generator(config, toy_spec(), seed=0).to(memory_format=torch.channels_last).eval()
    count, batch = 1000, 100
    drawn = sample_set(generator, ipc=count // 10)

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(count // batch):
                generator(torch.randn(batch, generator.latent_dim), torch.arange(batch) % 10)

    def loaded(data: Iterable[Any]) -> None:
        for _ in data:
            pass

    def stored(format: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            drawn.save(Path(folder) / "set", format=format)

    ways: dict[str, Callable[[], None]] = {
        "bare forward": bare,
        "GeneratedLoader": lambda: loaded(GeneratedLoader(generator, batch_size=batch, steps=count // batch, seed=0)),
        "drawing a set": lambda: sample_set(generator, ipc=count // 10),
        **{f"storing it: {name}": partial(stored, name) for name in FORMATS.names() if _is_for_any_images(FORMATS.load(name))},
    }

    def measure() -> dict[str, Any]:
        rates = {name: count / seconds for name, seconds in medians(ways, arguments.repeats).items()}
        return {"images_per_second": rates, "ratio": {name: rate / rates["bare forward"] for name, rate in rates.items()}}

    row = rows.add("gan, width 32", measure, repeats=arguments.repeats)
    print(row["images_per_second"], row["ratio"], flush=True)


# --- trajectories ------------------------------------------------------------------------------------------------------------


def measure_hypergradient(rows: Rows, steps: int = 30, batch: int = 100) -> None:
    """The exact gradient of trajectory matching, compiled, in either precision, beside an unrolled graph."""
    spec = toy_spec()
    images, targets = torch.rand(batch, *spec.image_shape) * 2 - 1, torch.arange(batch) % spec.num_classes
    plain = FlatNetwork("convnet", spec)
    start, goal, batches = plain.initial(0), plain.initial(1), [torch.arange(batch)] * steps
    problem = (start, goal, images, targets, 0.02, batches)
    arranged = {
        f"adjoint, compiled {name}": Derivatives(
            FlatNetwork("convnet", spec, compiled=True, precision=precision).loss, order="reverse-over-forward", compile=True
        )
        for name, precision in (("float32", "fp32"), ("bfloat16", "bf16"))
    }

    def measure() -> dict[str, Any]:
        ways = {"unroll, eager": lambda: hypergradient(Derivatives(plain.loss), *problem, method="unroll")}
        ways |= {name: partial(hypergradient, derivatives, *problem) for name, derivatives in arranged.items()}
        exact = ways["unroll, eager"]().images
        errors = {name: float((way().images - exact).norm() / exact.norm()) for name, way in ways.items()}
        seconds = medians(ways, 3, uncounted=0)  # the errors were the first calls
        return {
            "seconds": seconds,
            "ratio": {name: value / seconds["unroll, eager"] for name, value in seconds.items()},
            "image_error_against_unroll": errors,
        }

    row = rows.add(f"hypergradient, N = {steps}, batch {batch}", measure, steps=steps, batch=batch)
    print(row["seconds"], row["ratio"], row["image_error_against_unroll"], flush=True)


def expert_step(student: str, data: RealData, settings: ExpertsConfig, folder: Path) -> Callable[[], Tensor]:
    """A step of experts as `dim experts` takes it, augmentation and all."""
    config = RecordConfig(student=student, data=DataConfig(dataset=data.spec.name), experts=settings)
    recorder = _Recorder(config, data, folder, resume=False, device=torch.device("cpu"), processes=ALONE)
    experts = list(range(settings.count))
    theta = torch.stack([recorder.network.initial(seed) for seed in experts])
    tensors, position = {"theta": theta, "momentum": torch.zeros_like(theta)}, iter(range(10**9))
    batches = [EpochBatches(data.train, settings.batch_size, seed=seed, purpose="speed") for seed in experts]
    return lambda: recorder._step(experts, batches, next(position), tensors)


def measure_experts(rows: Rows, data_root: str | None, repeats: int) -> None:
    """A step of an expert in every arithmetic."""
    data = load_data(located(DataConfig(dataset="cifar10"), data_root))

    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            ways = {}
            for name, (precision, compile) in ARITHMETICS.items():
                settings = ExpertsConfig(count=1, epochs=1, precision=precision, compile=compile)
                ways[name] = expert_step("convnet", data, settings, Path(folder) / name)
            seconds = medians(ways, repeats)
        return {"seconds": seconds, "ratio": {name: value / seconds["eager float32"] for name, value in seconds.items()}}

    row = rows.add("expert, batch 256", measure, repeats=repeats)
    print(row["seconds"], row["ratio"], flush=True)


def measure_seeds(rows: Rows, data_root: str | None, repeats: int, count: int = 5) -> None:
    """Students of several seeds in one batched computation, beside as many one after another, at the batch of IPC 1."""
    data = load_data(located(DataConfig(dataset="cifar10"), data_root))
    for arithmetic in ("compiled float32", "compiled bfloat16"):
        precision, compile = ARITHMETICS[arithmetic]

        def measure(precision: str = precision, compile: str = compile) -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as folder:
                ways = {}
                for name, together in (("one", 1), ("all", count)):
                    settings = {"count": together, "together": together, "batch_size": 10, "epochs": 1}
                    config = ExpertsConfig(**settings, precision=precision, compile=compile)
                    ways[name] = expert_step("convnet", data, config, Path(folder) / name)
                seconds = medians(ways, repeats)
            return {"seconds": seconds, "ratio": seconds["all"] / (count * seconds["one"])}

        row = rows.add(f"{count} seeds together, batch 10, {arithmetic}", measure, repeats=repeats)
        print(row["name"], row["seconds"], row["ratio"], flush=True)


# --- commands and accuracy ---------------------------------------------------------------------------------------------------


def measure_start(rows: Rows, arguments: Arguments) -> None:
    """Seconds until a command answers."""
    commands = {
        "import torch": ["-c", "import torch"],
        "import dim": ["-c", "import dim"],
        **{f"dim {name}": ["-m", "dim.commands.cli", *name.split()] for name in ("--help", "recipes")},
        **{f"dim {name} --help": ["-m", "dim.commands.cli", name, "--help"] for name in ("train", "sample", "evaluate")},
    }
    quiet = {"stdout": subprocess.DEVNULL, "check": True}
    ways = {name: (lambda own=own: subprocess.run([sys.executable, *own], **quiet)) for name, own in commands.items()}
    row = rows.add("start of commands", lambda: {"seconds": medians(ways, 5)})
    print(row["seconds"], flush=True)


def measure_accuracy(rows: Rows, arguments: Arguments) -> None:
    """Random real images at IPC 10, the same sets and seeds in both arithmetics; the difference of each pair."""
    for name in ("fashion-mnist", "cifar10"):
        data = load_data(located(DataConfig(dataset=name), arguments.data_root))
        scores = {}
        for arithmetic, (precision, compile) in ARITHMETICS.items():
            if arithmetic == "eager float32":
                continue  # the same as compiled to rounding, and half as fast

            def measure(data: RealData = data, precision: str = precision, compile: str = compile) -> dict[str, Any]:
                protocol = ProtocolConfig(epochs=arguments.epochs, precision=precision, compile=compile)
                return scores_of(Evaluator(data, protocol, seeds=arguments.students).random_real(10))

            row = rows.add(f"{name}, {arithmetic}", measure, students=arguments.students, epochs=arguments.epochs)
            scores[arithmetic] = row["scores"][0]["accuracies"]
        pairs = zip(scores["compiled bfloat16"], scores["compiled float32"], strict=True)
        differences = [half - full for half, full in pairs]
        error = statistics.stdev(differences) / len(differences) ** 0.5
        content = {"mean_difference": statistics.fmean(differences), "standard_error": error}
        rows.put(f"{name}, bfloat16 less float32", content, 0.0, students=arguments.students, epochs=arguments.epochs)
        print(name, content, flush=True)


def measure_trajectories(rows: Rows, arguments: Arguments) -> None:
    """Experts of Fashion-MNIST of the same seeds in both arithmetics: accuracy on held-out images at every epoch, and on the test
    part in the end."""
    config = DataConfig(dataset="fashion-mnist")
    data = load_data(located(config, arguments.data_root))
    for arithmetic in ("compiled float32", "compiled bfloat16"):
        precision, compile = ARITHMETICS[arithmetic]

        def measure(precision: str = precision, compile: str = compile) -> dict[str, Any]:
            settings = ExpertsConfig(count=3, epochs=3, precision=precision, compile=compile, device="cpu")
            asked = RecordConfig(student="convnet:width=64", data=config, experts=settings)
            with tempfile.TemporaryDirectory() as folder:
                records = record(asked, data, Path(folder) / "experts").records.values()
            along = zip(*(one.accuracies for one in records), strict=True)
            final = [one.test_accuracy for one in records]
            return {
                "mean_accuracy_by_epoch": [statistics.fmean(values) for values in along],
                "test_accuracy": {"mean": statistics.fmean(final), "standard_deviation": statistics.stdev(final)},
            }

        row = rows.add(f"experts, {arithmetic}", measure, experts=3)
        print(row["name"], row["mean_accuracy_by_epoch"], row["test_accuracy"], flush=True)


def main(arguments: Arguments) -> None:
    if arguments.first_step is not None:
        student, batch = arguments.first_step.split()
        run = student_step(student, int(batch), "compiled bfloat16", toy_spec())
        started = time.perf_counter()
        run()
        print(time.perf_counter() - started)
        return
    sources = Sources.of(__file__)
    for part in arguments.parts:
        asked: dict[str, Any] = {"part": part}
        rows = Rows(sources, "cpu", asked)
        match part:
            case "students":
                measure_students(rows, arguments)
            case "growth":
                measure_growth(rows, arguments)
            case "trajectory":
                measure_hypergradient(rows)
                measure_experts(rows, arguments.data_root, arguments.repeats)
            case "sampling":
                measure_sampling(rows, arguments)
            case "start":
                measure_start(rows, arguments)
            case "accuracy":
                measure_accuracy(rows, arguments)
            case "experts":
                measure_trajectories(rows, arguments)
            case "seeds":
                measure_seeds(rows, arguments.data_root, arguments.repeats)
            case "gan" | "stage-two":
                base = load_recipe("cifar10-gan" if part == "gan" else "cifar10-dim2023")
                data = load_data(located(base.data, arguments.data_root))
                asked["config"] = to_dict(dataclasses.replace(base, data=dataclasses.replace(base.data, root=None)))
                if part == "gan":
                    measure_gan(rows, arguments, base, data)
                else:
                    measure_stage_two(rows, base, data)
        print(save(f"speed-{part}", {"rows": rows.made, **asked}))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
