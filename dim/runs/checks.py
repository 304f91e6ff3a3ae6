"""What can be found wrong in a configuration before its data is read: networks that cannot be built, options that would be
refused later. A dry run makes these checks too, so that what it prints is accepted by the command itself.

They need the shape of the images, which the data set says (`shape` of a source) or options give. Where neither does, only names
are checked. Networks of this package are built without memory for their weights.
"""

from typing import Any

from dim.augment import Augment
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
from dim.data.real import RealData
from dim.data.whiten import require_whitenable
from dim.errors import InputError
from dim.nets.discriminators import build_discriminator
from dim.nets.generator import build_generator
from dim.nets.student import check_protocol, parse_student, require_weights, unallocated
from dim.objectives.trajectory import window_of
from dim.pool import build_pool
from dim.runs.accelerator import require_launchable
from dim.runs.distill import require_space
from dim.runs.stages import plan
from dim.spec import DataSpec
from dim.trajectory.flat import FlatNetwork
from dim.trajectory.store import waypoint_moments

_MANY = 2**31  # images, so that a stage of any length has a step


def expected_spec(config: DataConfig) -> DataSpec | None:
    """What the images will be, as far as networks depend on it; None if only the data can say.

    Raises:
        InputError: if the data set needs a resolution and has none.
    """
    channels, size, classes = getattr(DATASETS.load(config.dataset), "shape", (None, None, 2))
    channels, known = config.channels or channels, config.resolution or size
    if channels is None or known is None:
        if channels is not None:
            raise InputError(f"data set {config.dataset!r} needs --resolution N (pixels), for instance 64")
        return None
    names = tuple(map(str, range(classes)))
    means = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    return DataSpec(name=config.dataset, channels=channels, height=known, width=known, class_names=names, fingerprint="", **means)


def check_training(config: TrainConfig) -> None:
    """Refuse what `dim train` would refuse, before its data is read.

    Raises:
        InputError: naming the setting.
    """
    require_launchable(config)
    plan(config, _MANY)
    for name, needed in (("pool.experts", getattr(config.pool, "experts", "")), ("path_matching.experts", _needed(config))):
        if needed is None:
            raise InputError(f"{name} is not given: name a folder made by 'dim experts'")
    spec = expected_spec(config.data)
    if spec is None:
        for student in (*config.protocol.students, *getattr(config.pool, "students", ())):
            parse_student(student)
        return
    check_protocol(config.protocol, spec)
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
    _check_student(config, settings.augment)


def check_distillation(config: TrajectoryRecipe, generator: str | None) -> None:
    """Refuse what `dim distill` would refuse, before its data, its experts and its generator are read.

    Raises:
        InputError: naming the setting.
    """
    require_device_name("distill.device", config.distill.device)
    require_space(config, generator)
    window_of(config.trajectory)
    _check_student(config, config.trajectory.augment)
    if (spec := expected_spec(config.data)) is not None:
        check_protocol(config.protocol, spec)


def _check_student(config: RecordConfig, augment: str) -> None:
    """The architecture whose weights are matched, and the augmentation of what it sees."""
    name, _ = parse_student(config.student)
    spec = expected_spec(config.data)
    if spec is None:
        return
    Augment(augment, spec)
    if config.zca:
        require_whitenable(spec)
    what = f"student {config.student!r}"
    without_memory = _own(name)
    with unallocated(without_memory, what):
        require_weights(FlatNetwork(config.student, spec, "meta" if without_memory else "cpu").net, what)


def require_device_name(option: str, name: str | None) -> None:
    """Raise InputError for what is no device that can be worked on, wherever; whether it is here is found when it is used."""
    import torch

    try:
        kind = "cpu" if name is None else torch.device(name).type
    except RuntimeError:
        kind = "meta"
    if kind == "meta":  # which holds no values
        raise InputError(f"{option} is {name!r}: expected cpu, cuda or mps, perhaps with a number as in cuda:1")
