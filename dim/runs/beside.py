"""Experts beside a generator, in its run's folder: small ones, recorded when it is trained, with which its sets are refined."""

from dataclasses import replace
from pathlib import Path

import torch

from dim.compiling import compiler_found
from dim.config import AboutConfig, ExpertsConfig, RecordConfig, TrainConfig
from dim.config.settings import Compile
from dim.data.real import RealData
from dim.errors import InputError
from dim.nets.student_step import training_flops
from dim.processes import ALONE, Processes
from dim.run_folder import RUN, load_run_config
from dim.spec import DataSpec
from dim.trajectory.record import record
from dim.trajectory.store import ExpertStore

FOLDER = "experts"
_SMALLEST = 4  # side of a map that is normalised: over fewer pixels, gradients through a student's steps explode
_BATCH, _MOMENT = 64, 35  # images of a step, steps between two recorded moments: about those of the teacher of docs/cifar10.md
_REACHED, _COMPILING_SECONDS = 0.2, 40.0  # of a convolution's speed by whole steps; once
_EAGER = 5e10  # operations that a core does in a second without a compiler
_SHARE, _FEWEST, _MOST = 4, 350, 3500  # a step for so many of the generator's, and their limits


def expert_student(spec: DataSpec) -> str:
    """The network of the experts: three blocks, or fewer for images that are too small for them."""
    side = min(spec.height, spec.width)
    return f"convnet:width=32,depth={max(1, min(3, (side // _SMALLEST).bit_length()))}"


def expert_steps(steps: int) -> int:
    """Steps of each expert of a generator that has so many in stage one: a multiple of those between two moments."""
    return round(min(_MOST, max(_FEWEST, steps / _SHARE)) / _MOMENT) * _MOMENT


def _operations(config: TrainConfig, spec: DataSpec, steps: int) -> float:
    """Floating-point operations of recording all experts."""
    return float(training_flops(expert_student(spec), spec)) * _BATCH * config.fit.experts * expert_steps(steps)


def _compile(config: TrainConfig, operations: float, device: torch.device) -> Compile:
    """On a CPU compiling soon repays itself: a step in bfloat16 then takes a sixth of its time."""
    if torch.device(device).type != "cpu" or not compiler_found(device):
        return config.fit.compile
    return "on" if operations >= _COMPILING_SECONDS * _EAGER else "off"


def recording_seconds(config: TrainConfig, spec: DataSpec, *, steps: int, speed: float, device: torch.device) -> float:
    """About the wall time of `record_beside`.

    Args:
        config, steps: as there.
        spec: of the data.
        speed: floating-point operations per second of the device's convolutions.
        device: where they are trained.
    """
    if not config.fit.experts:
        return 0.0
    operations = _operations(config, spec, steps)
    compiling = _COMPILING_SECONDS if _compile(config, operations, device) == "on" else 0.0
    return operations / (_REACHED * speed) + compiling


def _begun(out: Path) -> ExpertsConfig | None:
    """How the experts of a run were begun."""
    return load_run_config(out / FOLDER, RecordConfig, "experts").experts if (out / FOLDER / RUN).is_file() else None


def require_same_number(config: TrainConfig, out: Path) -> None:
    """Raise InputError, before any training, if a run has begun another number of experts than is asked for."""
    begun = _begun(out)
    if config.fit.experts and begun is not None and begun.count != config.fit.experts:
        remedy = f"expected {begun.count}; remove {out / FOLDER} to record others"
        raise InputError(f"fit.experts is {config.fit.experts} and the run in {out} has begun {begun.count}: {remedy}")


def record_beside(
    config: TrainConfig, data: RealData, out: Path, *, steps: int, device: torch.device, processes: Processes = ALONE
) -> ExpertStore:
    """Record a run's experts in its folder, or what is missing of them.

    Args:
        config: of the run; `fit.experts` says how many.
        data: the real data.
        out: the run's folder.
        steps: of stage one.
        device: where to train.
        processes: those that share the experts.

    Raises:
        InputError, NonFiniteError, Interrupted: see `dim.trajectory.record.record`.
    """
    epoch = len(data.train) / _BATCH
    settings = ExpertsConfig(
        count=config.fit.experts,
        epochs=expert_steps(steps) / epoch,
        every=_MOMENT / epoch,
        batch_size=_BATCH,
        momentum=0.9,
        weight_decay=5e-4,
        augment="crop|cutout|scale" if data.spec.channels == 1 else "crop|flip|cutout|scale",
        precision="bf16" if config.fit.precision == "bf16" else "fp32",
        compile=_compile(config, _operations(config, data.spec, steps), device),
        seed=config.fit.seed,
        checkpoint_minutes=config.fit.checkpoint_minutes,
    )
    begun = _begun(out)
    if begun is not None:  # on whatever machine the run goes on
        settings = replace(settings, compile=begun.compile, precision=begun.precision)
    about = AboutConfig(title=f"Experts beside the generator of {out}")
    recipe = RecordConfig(about=about, student=expert_student(data.spec), data=config.data, experts=settings)
    return record(recipe, data, out / FOLDER, resume=True, device=device, processes=processes)
