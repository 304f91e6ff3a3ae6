"""Settings for anybody's images: chosen for what they are, for the device and for a time, which is then filled by measuring.

What is chosen is a recipe like any other. Widths and sizes follow from how long training the discriminator alone takes on the
device; how many epochs fit into the time is known only when steps of exactly this training have been timed.
"""

import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from dim.augment import without_flips
from dim.compiling import compiler_found, native_bfloat16
from dim.config import (
    ADVERSARIES,
    AboutConfig,
    AdversarialConfig,
    DataConfig,
    DiscriminatorConfig,
    FitConfig,
    GeneratorConfig,
    PoolConfig,
    ProtocolConfig,
    StageConfig,
    TrainConfig,
    from_dict,
)
from dim.config.data import needs_size
from dim.data.look import Look
from dim.data.real import RealData
from dim.data.splits import HeldSplit
from dim.errors import InputError
from dim.nets.discriminators import build_discriminator
from dim.runs.beside import recording_seconds
from dim.runs.train import Trainer
from dim.spec import DataSpec

SIZES = (32, 48, 64, 96, 128)
"""Pixels that are chosen from where images are larger than the smallest of them."""
WIDTHS = (16, 24, 32, 48, 64, 96)
ENOUGH, PLENTY = 250_000, 400_000
"""Images that training should at least see, at width 24 (which decides the size) and at larger widths."""
_PASSES = 5.2
"""What a step of the GAN costs, in trainings of its discriminator on as many images: 4.5 to 6.8 where it was measured, for widths
of 16 to 48 and images of 8 to 64 pixels on a CPU."""
_TIMED_IMAGES = 32
_SECOND_STAGE = 0.08  # of the time
_KEPT = 0.04  # of the time, for pictures, checkpoints and the report
_STEPS = 12  # that are timed
_FEWEST = 30  # training images per class from which a generator was seen to help
_COMPILED_FROM = 15.0  # minutes from which compiling the discriminator's step, which may take two, repays itself


@dataclass(frozen=True)
class Choice:
    """A recipe without its lengths, and why it is what it is: reasons by section or option."""

    config: TrainConfig
    reasons: dict[str, str] = field(default_factory=dict)


def choose(look: Look, data: DataConfig, *, minutes: float, device: torch.device) -> Choice:
    """Choose settings for data that were looked at.

    Args:
        look: what the data are.
        data: where they lie; a resolution and channels that it gives stay.
        minutes: wall time that everything may take.
        device: where it will be trained.

    Raises:
        InputError: if images are too small for the networks.
    """
    channels = data.channels or (1 if look.grey else 3)
    shown = _images_shown(look.classes, channels, 60 * minutes, device)
    size, why_size = _size(look, data, shown)
    wide = _largest(WIDTHS, lambda width: shown(size, width) >= PLENTY)
    width = wide or (24 if shown(size, 24) >= ENOUGH else 16)
    augment = ProtocolConfig().augment if channels == 3 else without_flips(ProtocolConfig().augment)
    flips = "flip_" if channels == 3 else ""  # grey images are often of letters and digits
    training = _training(look.parts["train"], width, f"{flips}color_crop_cutout", shown(size, width))
    config = TrainConfig(
        about=AboutConfig(title=f"{look.name}, settings chosen for {minutes:g} minutes"),
        data=replace(data, resolution=None if why_size is None else size, channels=channels),
        generator=from_dict(GeneratorConfig, {"name": "gan", "width": width, "latent_dim": 64}),
        discriminator=DiscriminatorConfig(width=width),
        pool=from_dict(PoolConfig, {"students": ("convnet:width=32",), "members": 2, "upkeep_steps": 2, "precision": "auto"}),
        protocol=ProtocolConfig(epochs=_protocol_epochs(len(look.classes)), augment=augment),
        **training,
    )
    bf16 = native_bfloat16(device)
    compile = device.type == "cpu" and minutes >= _COMPILED_FROM and compiler_found(device)
    there = {"precision": "bf16" if bf16 else "no", "compile": "on" if compile else "off"}
    config = replace(config, fit=replace(config.fit, device=device.type if device.type == "cpu" else None, **there))
    reasons = {
        "generator": f"the widest that sees enough images in {minutes:g} minutes here",
        "adversarial": f"augmentation that adapts to how well the discriminator knows the {look.parts['train']:,} training images"
        + ("; no flips, as grey images are often of letters and digits" if not flips else ""),
        "fit": "bfloat16, which this device multiplies faster" if bf16 else "float32, as this device is no faster at bfloat16",
    }
    if why_size:
        reasons["data"] = why_size
    return Choice(config, reasons)


def _images_shown(classes: tuple[str, ...], channels: int, seconds: float, device: torch.device) -> Callable[[int, int], float]:
    """About how many images a training of so many seconds sees, by their size and the width: its discriminator is timed."""

    @functools.cache
    def shown(size: int, width: int) -> float:
        statistics = {"mean": (0.5,) * channels, "std": (0.5,) * channels, "fingerprint": ""}
        spec = DataSpec(name="", channels=channels, height=size, width=size, class_names=classes, **statistics)
        network = ADVERSARIES.load("relativistic").network
        discriminator = build_discriminator(network, DiscriminatorConfig(width=width), spec, seed=0)
        return seconds / (_PASSES * _seconds_per_image(discriminator, spec, device))

    return shown


def _seconds_per_image(discriminator: nn.Module, spec: DataSpec, device: torch.device) -> float:
    """What training a discriminator takes per image, without penalties, in the precision that training will have."""
    discriminator = discriminator.to(device, memory_format=torch.channels_last)
    images = torch.randn(_TIMED_IMAGES, *spec.image_shape, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(_TIMED_IMAGES, device=device) % spec.num_classes

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=native_bfloat16(device)):
            found = discriminator(images, labels)
        found.sum().backward()

    return _fastest(step, 4, device) / _TIMED_IMAGES


def _fastest(run: Callable[[], None], times: int, device: torch.device) -> float:
    """Seconds of the fastest of so many calls."""
    best = float("inf")
    for _ in range(times):
        began = time.monotonic()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.monotonic() - began)
    return best


def _largest(values: Sequence[int], enough: Callable[[int], bool]) -> int | None:
    """The last of rising values before the first that is too much; the others are not tried, as a trial takes time."""
    return max(itertools.takewhile(enough, values), default=None)


def _training(images: int, width: int, augment: str, shown: float) -> dict[str, Any]:
    """Sections of the loss, the stages and the loop, for so many training images of which so many are shown."""
    batch = 64 if images >= 1000 else 32
    lr = 1e-3 if width <= 32 else 5e-4
    adversarial: dict[str, Any] = {"loss": "relativistic", "gamma": 0.2, "gamma_end": 0.05, "penalty_every": 4}
    adapting = {"augment_target": 0.5, "augment_images": int(min(500_000, max(20_000, shown / 4)))}
    return {
        "adversarial": from_dict(AdversarialConfig, adversarial | {"augment": augment} | adapting),
        "stage_one": StageConfig(batch_size=batch, lr=lr, lr_end=lr / 5, betas=(0.0, 0.9), beta2_end=0.99),
        "stage_two": StageConfig(batch_size=batch, lr=lr / 5, lr_end=lr / 25, betas=(0.0, 0.99)),
        "fit": FitConfig(ema=0.999 if shown / batch >= 4000 else 0.995, experts=3),
    }


def _size(look: Look, data: DataConfig, shown: Callable[[int, int], float]) -> tuple[int, str | None]:
    """Pixels, and why; no reason where the data's own size is kept by giving none."""
    if data.resolution is not None:
        return data.resolution, f"{data.resolution} pixels as you asked"
    own = look.median
    if look.square and own % 4 == 0 and own <= SIZES[0]:
        return own, None if not needs_size(data.dataset) else "their own size"
    if own < SIZES[0]:
        size = max(8, own // 4 * 4)
        return size, f"{own} pixels, in a multiple of 4"
    fitting = [size for size in SIZES if size <= own]
    size = _largest(fitting, lambda size: shown(size, 24) >= ENOUGH) or fitting[0]
    if size == own:
        return size, "their own size"
    if size < fitting[-1]:
        limit = "what the time allows: more --minutes, more"
    elif size == SIZES[-1]:
        limit = "the largest that the networks are meant for"
    else:
        limit = f"the next smaller one of {', '.join(map(str, SIZES))}"
    return size, f"of {own} pixels (median): {limit}"


def _protocol_epochs(classes: int) -> int:
    """About 2,000 steps of a student for ten images per class, and no more than the published 1,000 epochs."""
    return int(min(1000, max(100, 2000 // -(-10 * classes // 64))))


LENGTHS = ("stage_one.epochs", "stage_two.epochs", "fit.sample_steps")
"""Settings that `fill` gives values."""


def fill(
    config: TrainConfig, data: RealData, accelerator: Accelerator, *, seconds: float, keep: Collection[str] = ()
) -> tuple[TrainConfig, float]:
    """Give both stages the lengths that fill a time.

    Args:
        config: with any lengths.
        data: the real data.
        accelerator: from `dim.runs.accelerator.make_accelerator`.
        seconds: wall time from now on, until the report is written.
        keep: those of `LENGTHS` that stay as they are. A stage that stays takes the time that it takes; the other one has its
            share of `seconds` all the same.

    Returns:
        The configuration, and the seconds that it will take.

    Raises:
        InputError: if not even a step fits in.
    """
    began = time.monotonic()
    images = len(data.train)
    if isinstance(data.train, HeldSplit):
        data.train.hold()  # reading them once is no part of a step
    one, two = seconds_per_step(config, data, accelerator)
    kept = {
        name: getattr(config, name).epochs * images / getattr(config, name).batch_size
        for name in ("stage_one", "stage_two")
        if f"{name}.epochs" in keep
    }
    left = (1 - _KEPT) * (seconds - (time.monotonic() - began))
    place = {"device": accelerator.device, "speed": _speed(accelerator.device)}
    recorded = recording_seconds(config, data.spec, steps=round(kept.get("stage_one", left / one)), **place)
    left -= recorded
    first = kept.get("stage_one", (1 - _SECOND_STAGE) * left / one)
    second = kept.get("stage_two", _SECOND_STAGE * left / two)
    if ("stage_one" not in kept and first < 1) or ("stage_two" not in kept and second < 1):
        least = (time.monotonic() - began + recorded + 2 * (one + two) / _SECOND_STAGE) / 60
        raise InputError(f"{seconds / 60:.2g} minutes are left for training: expected {least + 0.5:.0f} or more (--minutes)")
    counts = {name: count for name, count in (("stage_one", first), ("stage_two", second)) if name not in kept}
    stages = {name: replace(getattr(config, name), epochs=_epochs(count, config, name, images)) for name, count in counts.items()}
    if "fit.sample_steps" not in keep:
        stages["fit"] = replace(config.fit, sample_steps=max(20, int(first / 10) // 20 * 20))
    return replace(config, **stages), first * one + second * two + recorded + _KEPT * seconds


def _epochs(steps: float, config: TrainConfig, stage: str, images: int) -> float:
    return float(f"{max(1.0, int(steps)) * getattr(config, stage).batch_size / images:.4g}")


def seconds_per_step(config: TrainConfig, data: RealData, accelerator: Accelerator) -> tuple[float, float]:
    """Wall time of a step of stage one and of one of stage two, of exactly this training, compiled as it will be."""
    many = replace(config.stage_one, epochs=1000.0), replace(config.stage_two, epochs=100.0)  # as for the plans of a long run
    config = replace(config, stage_one=many[0], stage_two=many[1])
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(config, data, Path(scratch), accelerator, resume=False)
        return tuple(_timed(trainer, stage) for stage in trainer.stages)


def _timed(trainer: Trainer, stage: Any) -> float:
    work = trainer.work(stage)
    every = max(1, getattr(trainer.config.adversarial, "penalty_every", 1))
    warm, steps = max(4, every), max(every, _STEPS // every * every)

    def run(first: int, count: int) -> None:
        for step in range(stage.start + first, stage.start + first + count):
            trainer.train_step(step, stage, *work)
        if trainer.accelerator.device.type == "cuda":
            torch.cuda.synchronize()

    run(0, warm)
    began = time.monotonic()
    run(warm, steps)
    return (time.monotonic() - began) / steps


def too_small(look: Look) -> str:
    """What to do in place of a generator where there are too few images for one to help; empty where there are enough."""
    each = look.parts["train"] / len(look.classes)
    if each >= _FEWEST:
        return ""
    why = f"{each:.0f} training images per class are too few for a generator to add to them: its sets may be no better"
    return f"{why}. Train on the images themselves, or compare: dim evaluate SET --controls random full"


def _speed(device: torch.device) -> float:
    """Floating-point operations per second of a convolution and its gradients, in the precision that training will have."""
    dtype = torch.bfloat16 if native_bfloat16(device) else torch.float32
    layer = nn.Conv2d(64, 64, 3, 1, 1, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    images = torch.randn(32, 64, 32, 32, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    images.requires_grad_()
    return 3 * 2 * images.numel() * 64 * 9 / _fastest(lambda: layer(images).sum().backward(), 6, device)
