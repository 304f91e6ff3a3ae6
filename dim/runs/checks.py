"""What can be found wrong in a configuration before its data is read: networks that cannot be built, options that would be
refused later. A dry run makes these checks too, so that what it prints is accepted by the command itself.

They need the shape of the images, which the data set says (`shape` of a source) or options give. Where neither does, only names
are checked. Networks of this package are built without memory for their weights.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dim.augment import Augment
from dim.chunks import require_memory
from dim.config import (
    ADVERSARIES,
    DATASETS,
    DISTANCES,
    GENERATORS,
    DataConfig,
    RecordConfig,
    TrainConfig,
    TrajectoryRecipe,
)
from dim.config.data import needs_size
from dim.config.settings import LARGEST_INTEGER, require
from dim.data.files import require_resolution
from dim.data.real import RealData, divided
from dim.data.whiten import require_whitenable
from dim.errors import InputError
from dim.nets.discriminators import build_discriminator
from dim.nets.generator import build_generator
from dim.nets.student import check_protocol, parse_student, require_weights, unallocated
from dim.objectives.trajectory import window_of
from dim.pool import build_pool
from dim.runs.accelerator import require_launchable
from dim.runs.distill import require_space
from dim.spec import DataSpec
from dim.trajectory.flat import FlatNetwork
from dim.trajectory.store import waypoint_moments


def expected_spec(config: DataConfig) -> DataSpec | None:
    """What the images will be, as far as networks depend on it; None if only the data can say.

    Raises:
        InputError: if the data set needs a resolution and has none.
    """
    shape = getattr(DATASETS.load(config.dataset), "shape", None)
    if shape is not None and shape[1] is None:
        require_resolution(config)
    channels, size, classes = shape or (None, None, 2)
    channels, size = config.channels or channels, config.resolution or size
    if channels is None or size is None:
        return None
    names = tuple(map(str, range(classes)))
    means = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    return DataSpec(name=config.dataset, channels=channels, height=size, width=size, class_names=names, fingerprint="", **means)


def check_data(config: DataConfig) -> None:
    """Refuse a folder of somebody's own that could not be divided into its parts, or whose labels are wrong. No image is opened,
    and nothing is said of data that are not here.

    Raises:
        InputError: as `dim.data.real.load_data` does.
    """
    if needs_size(config.dataset) and config.root is not None and Path(config.root).is_dir():
        train, *others = DATASETS.load(config.dataset)(config)
        divided(config, train, *others)


def check_training(config: TrainConfig) -> None:
    """Refuse what `dim train` would refuse, before its data is read.

    Raises:
        InputError: naming the setting.
    """
    require_launchable(config)
    if config.stage_one.epochs == config.stage_two.epochs == 0:
        raise InputError("stage_one.epochs and stage_two.epochs are 0: no step of training; raise one of them")
    for name, needed in (("pool.experts", getattr(config.pool, "experts", "")), ("path_matching.experts", _needed(config))):
        if needed is None:
            raise InputError(f"{name} is not given: name a folder made by 'dim experts'")
    spec = expected_spec(config.data)
    if spec is None:
        for student in (*config.protocol.students, *getattr(config.pool, "students", ())):
            parse_student(student)
        return
    check_protocol(config.protocol, spec)
    for name in ("stage_one", "stage_two"):
        if getattr(config, name).epochs > 0:
            _require_batch(f"{name}.batch_size", getattr(config, name).batch_size, spec)
    for strategy in (config.adversarial.augment, config.matching.augment, config.path_matching.augment):
        Augment(strategy, spec)
    _check_networks(config, spec)
    if _own(config.matching.distance):
        DISTANCES.load(config.matching.distance)(config.matching, spec, seed=0)
    if _own(config.pool.source) and getattr(config.pool, "experts", None) is None:
        build_pool(config.pool, RealData(spec, None, None, None), seed=0, steps_per_epoch=1)


def _needed(config: TrainConfig) -> Any:
    """The experts of path matching; None if they are needed and absent."""
    return config.path_matching.experts if config.path_matching.weight > 0 else ""


def _own(name: str) -> bool:
    """Whether a choice comes with the package, so that it can be made without data or memory."""
    return ":" not in name


def _check_networks(config: TrainConfig, spec: DataSpec) -> None:
    """Build the generator and the discriminator, without memory for them."""
    kind, what = GENERATORS.load(config.generator.name), f"generator {config.generator.name!r}"
    if not kind.begins_from_files(config.generator):
        with unallocated(_own(config.generator.name), what):
            require_weights(build_generator(config.generator, spec, seed=0), what)
    if kind.learns_by == "adversary" and _own(config.adversarial.loss):
        with unallocated(True, "the discriminator"):
            network = ADVERSARIES.load(config.adversarial.loss).network
            require_weights(build_discriminator(network, config.discriminator, spec, seed=0), "the discriminator")


def check_recording(config: RecordConfig) -> None:
    """Refuse what `dim experts` would refuse, before its data is read.

    Raises:
        InputError: naming the setting.
    """
    settings = config.experts
    require_device_name("experts.device", settings.device)
    last = round(settings.epochs / settings.every)
    if settings.waypoints:
        waypoint_moments(last, settings.waypoints, smooth=settings.smooth)
    network, spec = _check_student(config, settings.augment)
    if spec is not None:
        _require_batch("experts.batch_size", settings.batch_size, spec, together=min(settings.together, settings.count))
        size = sum(value.numel() for value in network.parameters())
        require(settings.count * (last + 1) * size * 4 <= LARGEST_INTEGER, "experts.count", settings.count, "fewer experts")


def check_distillation(config: TrajectoryRecipe, generator: str | None) -> None:
    """Refuse what `dim distill` would refuse, before its data, its experts and its generator are read.

    Raises:
        InputError: naming the setting.
    """
    require_device_name("distill.device", config.distill.device)
    require_space(config, generator)
    window_of(config.trajectory)
    _, spec = _check_student(config, config.trajectory.augment)
    if spec is not None:
        check_protocol(config.protocol, spec)
        _require_batch("images.ipc", config.images.ipc * spec.num_classes, spec)


def _require_batch(option: str, images: int, spec: DataSpec, together: int = 1) -> None:
    """Refuse more images at a time than memory holds: as float32, augmented, and with gradients."""
    size = 3 * 4 * images * spec.image_bytes * together
    require_memory(size, f"{option} stands for {images:,} images at a time", "lower it")


def _check_student(config: RecordConfig, augment: str) -> tuple[nn.Module | None, DataSpec | None]:
    """The architecture whose weights are matched, and the augmentation of what it sees; the network and the shape of images."""
    name, _ = parse_student(config.student)
    spec = expected_spec(config.data)
    if spec is None:
        return None, None
    Augment(augment, spec)
    if config.zca:
        require_whitenable(spec)
    what = f"student {config.student!r}"
    without_memory = _own(name)
    with unallocated(without_memory, what):
        network = FlatNetwork(config.student, spec, "meta" if without_memory else "cpu").net
        require_weights(network, what)
    return network, spec


def require_device_name(option: str, name: str | None) -> None:
    """Raise InputError for what is no device that can be worked on, wherever; whether it is here is found when it is used."""
    try:
        kind = "cpu" if name is None else torch.device(name).type
    except RuntimeError:
        kind = "meta"
    if kind == "meta":  # which holds no values
        raise InputError(f"{option} is {name!r}: expected cpu, cuda or mps, perhaps with a number as in cuda:1")
