"""Students: the classifiers that sets are trained on, scored by, and matched through.

Every student takes float32 (B, C, H, W) images in [-1, 1] of the data set's own size, normalises them internally, and
returns (B, classes) logits. Architectures, one per file in `dim.nets.students`, follow the data-set-distillation literature (Zhao
et al. 2021 and later); `timm:NAME` takes any timm model, trained from scratch.
"""

import contextlib
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dim import rng
from dim.augment import Augment
from dim.chunks import JUDGED, require_memory
from dim.config import STUDENTS, ProtocolConfig
from dim.errors import InputError, nearest
from dim.spec import DataSpec


def norm_layer(name: str, channels: int) -> nn.Module:
    """A normalisation over (B, C, H, W): batch, batchstats, instance, layer, group (four channels each) or none.

    `instance` is `GroupNorm(C, C)`, as in the literature's ConvNet. `batchstats` is batch norm by the statistics of the
    batch at hand, also in evaluation mode: it keeps no running statistics, as published pools used it and as
    functional gradients need it.
    """
    match name:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "batchstats":
            return nn.BatchNorm2d(channels, track_running_stats=False)
        case "instance":
            return nn.GroupNorm(channels, channels)
        case "layer":
            return nn.GroupNorm(1, channels)
        case "group":
            return nn.GroupNorm(max(1, channels // 4), channels)
        case "none":
            return nn.Identity()
    raise InputError(f"norm is {name!r}: expected batch, batchstats, instance, layer, group or none")


class Student(nn.Module):
    """A classifier of images in [-1, 1]: `head(body((images - mean) / std))`.

    Attributes:
        spec: the data it is made for.
        body: (B, C, H, W) normalised images -> (B, F) features.
        head: (B, F) -> (B, classes).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: DataSpec, body: nn.Module, features: int) -> None:
        super().__init__()
        self.spec = spec
        self.body = body
        self.head = nn.Linear(features, spec.num_classes)
        mean, std = spec.mean_std(torch.zeros(()))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def embed(self, images: Tensor) -> Tensor:
        """Features before the last layer: (B, C, H, W) in [-1, 1] -> (B, F)."""
        return self.body((images - self.mean) / self.std).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.embed(images))


def batch_statistics(net: nn.Module) -> list[nn.BatchNorm2d]:
    """Layers that normalise by the batch at hand in evaluation mode too, so that what a network says of an image depends on those
    beside it."""
    return [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d) and not layer.track_running_stats]


def judged_parts(net: nn.Module | None, count: int) -> list[Tensor]:
    """Indices of so many images in parts that are judged by themselves: all in their order, or, where `net` has such layers, as
    `mixed_parts` has them."""
    return mixed_parts(count) if net is not None and batch_statistics(net) else [torch.arange(count)]


def mixed_parts(count: int) -> list[Tensor]:
    """Indices of so many images in a fixed random order and in parts of nearly one size, as a split can be sorted by class."""
    order = torch.randperm(count, generator=rng.generator(0, "judged"))
    return list(order.tensor_split(-(-count // JUDGED)))


@torch.no_grad()
def fix_statistics(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Let such layers normalise by the mean statistics of these batches, (B, C, H, W) in [-1, 1], from now on."""
    layers = batch_statistics(net)
    for layer in layers:
        layer.running_mean = torch.zeros_like(layer.weight)
        layer.running_var = torch.ones_like(layer.weight)
        layer.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=layer.weight.device)
        layer.track_running_stats, layer.momentum = True, None  # the mean over batches
        layer.train()
    for images in batches:
        net(images)
    for layer in layers:
        layer.eval()


def require_spatial_norm(norm: str, size: int) -> None:
    """Instance norm of a single pixel is the same for every image: such a network cannot learn."""
    if norm == "instance" and size < 2:
        raise InputError(
            "norm is 'instance' and the last map is a single pixel, where it erases the image: use norm=batch or layer"
        )


def flat_features(body: nn.Module, spec: DataSpec) -> int:
    """Number of features that a convolutional body gives for one image of this size."""
    training = body.training
    body.eval()
    with torch.no_grad():
        # Two images: batch norm without running statistics refuses a single value per channel.
        features = body(torch.zeros(2, *spec.image_shape)).flatten(1).shape[1]
    body.train(training)
    return features


class _TimmBody(nn.Module):
    """A timm model without its classifier."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_features(x), pre_logits=True)


def _timm(spec: DataSpec, name: str, options: dict[str, Any]) -> Student:
    import timm

    if name not in timm.list_models():
        raise InputError(f"unknown timm model {name!r}. {nearest(name, timm.list_models())}")
    settings = {"pretrained": False, "in_chans": spec.channels, "num_classes": 0, **options}
    try:
        try:
            model = timm.create_model(name, img_size=(spec.height, spec.width), **settings)
        except TypeError:  # convolutional models take any size and know no img_size
            model = timm.create_model(name, **settings)
        body = _TimmBody(model)
        return Student(spec, body, flat_features(body, spec))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"timm model {name!r} cannot take {spec.height}x{spec.width} images: {reason}") from None


def parse_student(text: str) -> tuple[str, dict[str, Any]]:
    """Split `convnet:width=64,norm=batch` into a name and options; `timm:NAME` and `package.module:Name` keep their colon.

    Raises:
        InputError: for an unknown name or option, or a value that does not parse.
    """
    name, _, rest = text.partition(":")
    if name not in STUDENTS.names() and rest and "=" not in rest.partition(":")[0]:  # timm:NAME, or package.module:Name
        second, _, rest = rest.partition(":")
        name = f"{name}:{second}"
    known = None
    if not name.startswith("timm:"):
        if name not in STUDENTS.names() and ":" not in name:
            raise InputError(f"unknown student {name!r}. {nearest(name, [*STUDENTS.names(), 'timm:NAME'])}")
        known = _parameters(name)
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"student option {item!r} in {text!r}: expected option=value")
        if key in options:
            raise InputError(f"student {text!r} has option {key!r} twice: expected it once")
        if known is not None and key not in known:
            raise InputError(f"unknown option {key!r} of student {name!r}. {nearest(key, known)}")
        numeric = re.fullmatch(r"-?[0-9]{1,18}", value) is not None
        if known is not None and (isinstance(known[key].default, int) or known[key].annotation == int | None):
            low = 0 if known[key].default == 0 else 1  # a default of 0 stands for "choose for me", or "none"
            if not numeric or int(value) < low:
                raise InputError(f"option {key!r} of student {name!r} is {value!r}: expected a whole number, {low} or more")
        options[key] = int(value) if numeric else value
    return name, options


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    """The options of an architecture: what its function takes beside the data."""
    parameters = inspect.signature(STUDENTS.load(name)).parameters
    return {key: parameter for key, parameter in parameters.items() if key != "spec"}


def build_student(text: str, spec: DataSpec, *, seed: int) -> Student:
    """Build a student by name, with weights initialised from `seed`, on the CPU.

    Args:
        text: a file of `dim.nets.students`, `timm:NAME` or `package.module:Name`, with options as `parse_student` reads them.
        spec: the data it will see.
        seed: any integer; the same seed gives the same weights.

    Raises:
        InputError: for an unknown name or option, or an architecture that cannot take such images.
    """
    name, options = parse_student(text)
    with rng.initialisation(seed, "student", rng.fold(0, text)):
        if name.startswith("timm:"):
            return _timm(spec, name.removeprefix("timm:"), options)
        made = STUDENTS.load(name)(spec, **options)
    if not isinstance(made, Student):
        raise InputError(f"student {name!r} gave a {type(made).__name__}: expected a function that returns a Student")
    return made


def check_student(text: str, spec: DataSpec) -> None:
    """Refuse an architecture that cannot be built for such images, or that memory cannot hold, before there is any work.

    Those of this package are built without memory for their weights.

    Raises:
        InputError: see `build_student`.
    """
    name, _ = parse_student(text)
    with unallocated(name in STUDENTS.names(), f"student {text!r}"):
        require_weights(build_student(text, spec, seed=0), f"student {text!r}")


@contextlib.contextmanager
def unallocated(wanted: bool, what: str) -> Iterator[None]:
    """Within the block tensors have shapes and no memory, if that is wanted. (Code of others may not work so.)

    Raises:
        InputError: if a shape is beyond all memory.
    """
    with torch.device("meta") if wanted else contextlib.nullcontext():
        try:
            yield
        except (RuntimeError, OverflowError) as error:
            if "overflow" not in str(error).lower() and "too large" not in str(error):
                raise
            raise InputError(f"{what} has more weights than can be counted: make it smaller") from None


def require_weights(net: nn.Module, what: str) -> None:
    """Raise InputError if memory cannot hold a network in training: weights, gradients, and what its optimiser keeps."""
    size = sum(value.numel() * value.element_size() for value in net.parameters())
    require_memory(3 * size, f"{what} has {size // 4:,} weights", "make it smaller")


def check_protocol(protocol: ProtocolConfig, spec: DataSpec) -> None:
    """Refuse a scoring protocol with an unknown augmentation, or with an architecture that cannot be built for such images.

    Raises:
        InputError: naming it.
    """
    for student in protocol.students:
        check_student(student, spec)
    Augment(protocol.augment, spec)
