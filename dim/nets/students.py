"""Students: the classifiers that sets are trained on, scored by, and matched through.

Every student takes float32 (B, C, H, W) images in [-1, 1] of the data set's own size, normalises them internally, and
returns (B, classes) logits. Architectures follow the data-set-distillation literature (Zhao et al. 2021 and later);
`timm:NAME` takes any timm model, trained from scratch.
"""

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dim import rng
from dim.augment import Augment
from dim.config import ProtocolConfig
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


def _require_spatial_norm(norm: str, size: int) -> None:
    """Instance norm of a single pixel is the same for every image: such a network cannot learn."""
    if norm == "instance" and size < 2:
        raise InputError(
            "norm is 'instance' and the last map is a single pixel, where it erases the image: use norm=batch or layer"
        )


def _flat_features(body: nn.Module, spec: DataSpec) -> int:
    """Number of features that a convolutional body gives for one image of this size."""
    training = body.training
    body.eval()
    with torch.no_grad():
        # Two images: batch norm without running statistics refuses a single value per channel.
        features = body(torch.zeros(2, *spec.image_shape)).flatten(1).shape[1]
    body.train(training)
    return features


def default_depth(spec: DataSpec) -> int:
    """Depth of ConvNet-D by resolution: 3 up to 32 px, 4 at 64, 5 at 128; never below one final pixel."""
    size = min(spec.height, spec.width)
    return max(1, min(max(3, round(math.log2(size)) - 2), int(math.log2(size))))


def convnet(spec: DataSpec, *, width: int = 128, depth: int = 0, norm: str = "instance", pool: str = "avg") -> Student:
    """ConvNet-D (Gidaris & Komodakis 2018): D blocks of conv 3x3, norm, ReLU, pool 2, then one linear layer.

    Args:
        width: channels of every block.
        depth: number of blocks; 0: by resolution, see `default_depth`.
        norm: see `norm_layer`.
        pool: avg, max, or none.
    """
    pools = {"avg": lambda: nn.AvgPool2d(2), "max": lambda: nn.MaxPool2d(2), "none": nn.Identity}
    if pool not in pools:
        raise InputError(f"pool is {pool!r}: expected avg, max or none")
    depth = depth or default_depth(spec)
    if pool != "none" and min(spec.height, spec.width) >> depth < 1:
        raise InputError(f"depth is {depth}: {spec.height}x{spec.width} images allow at most {default_depth(spec)} poolings")
    layers: list[nn.Module] = []
    channels = spec.channels
    for _ in range(depth):
        layers += [nn.Conv2d(channels, width, 3, padding=1), norm_layer(norm, width), nn.ReLU(inplace=True), pools[pool]()]
        channels = width
    body = nn.Sequential(*layers)
    return Student(spec, body, _flat_features(body, spec))


class _ResidualBlock(nn.Module):
    """Basic block (He et al. 2016). With `average`, resolution is halved by average pooling, not by a stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str, average: bool) -> None:
        super().__init__()
        conv_stride = 1 if average else stride
        halve = nn.AvgPool2d(2) if average and stride == 2 else nn.Identity()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, conv_stride, 1, bias=False),
            norm_layer(norm, outputs),
            nn.ReLU(inplace=True),
            halve,
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            norm_layer(norm, outputs),
        )
        if stride == 1 and inputs == outputs:
            self.shortcut: nn.Module = nn.Identity()
        else:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(2) if average and stride == 2 else nn.Identity(),
                nn.Conv2d(inputs, outputs, 1, conv_stride, bias=False),
                norm_layer(norm, outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


def _resnet(spec: DataSpec, blocks: tuple[int, ...], *, width: int, norm: str, average: bool) -> Student:
    layers: list[nn.Module] = [
        nn.Conv2d(spec.channels, width, 3, 1, 1, bias=False),
        norm_layer(norm, width),
        nn.ReLU(inplace=True),
    ]
    channels, size = width, min(spec.height, spec.width)
    for index, count in enumerate(blocks):
        outputs = width * 2**index
        for block in range(count):
            # Images below 8 pixels run out of resolution before they run out of stages.
            stride = 2 if index > 0 and block == 0 and size >= 2 else 1
            size //= stride
            layers.append(_ResidualBlock(channels, outputs, stride, norm, average))
            channels = outputs
    _require_spatial_norm(norm, size)
    layers.append(nn.AdaptiveAvgPool2d(1))
    return Student(spec, nn.Sequential(*layers), channels)


def resnet10(spec: DataSpec, *, width: int = 64, norm: str = "batch") -> Student:
    """ResNet-10: one basic block per stage, CIFAR stem (3x3, stride 1, no pooling)."""
    return _resnet(spec, (1, 1, 1, 1), width=width, norm=norm, average=False)


def resnet18(spec: DataSpec, *, width: int = 64, norm: str = "batch") -> Student:
    """ResNet-18 with the CIFAR stem: 11.2 M parameters at the standard width 64 (2.8 M at 32, DiM's published pool)."""
    return _resnet(spec, (2, 2, 2, 2), width=width, norm=norm, average=False)


def resnetap10(spec: DataSpec, *, width: int = 64, norm: str = "batch") -> Student:
    """ResNet-10 that halves resolution by average pooling (Kim et al. 2022)."""
    return _resnet(spec, (1, 1, 1, 1), width=width, norm=norm, average=True)


def resnetap18(spec: DataSpec, *, width: int = 64, norm: str = "batch") -> Student:
    """ResNet-18 that halves resolution by average pooling."""
    return _resnet(spec, (2, 2, 2, 2), width=width, norm=norm, average=True)


def vgg11(spec: DataSpec, *, width: int = 64, norm: str = "batch") -> Student:
    """VGG-11 (Simonyan & Zisserman 2015) with a single linear layer; poolings stop at one pixel."""
    layers: list[nn.Module] = []
    channels, size = spec.channels, min(spec.height, spec.width)
    for multiple in (1, 0, 2, 0, 4, 4, 0, 8, 8, 0, 8, 8, 0):  # 0 marks a pooling
        if multiple:
            _require_spatial_norm(norm, size)
            outputs = width * multiple
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), norm_layer(norm, outputs), nn.ReLU(inplace=True)]
            channels = outputs
        elif size >= 2:
            layers.append(nn.MaxPool2d(2))
            size //= 2
    body = nn.Sequential(*layers)
    return Student(spec, body, _flat_features(body, spec))


def alexnet(spec: DataSpec, *, width: int = 64) -> Student:
    """AlexNet in the literature's small form: 5x5 convolutions of 128, 192, then 3x3 of 256, 192, 192 channels."""
    layers: list[nn.Module] = []
    channels, size = spec.channels, min(spec.height, spec.width)
    plan = ((2.0, 5, True), (3.0, 5, True), (4.0, 3, False), (3.0, 3, False), (3.0, 3, True))
    for multiple, kernel, pool in plan:
        outputs = int(width * multiple)
        layers += [nn.Conv2d(channels, outputs, kernel, padding=kernel // 2), nn.ReLU(inplace=True)]
        channels = outputs
        if pool and size >= 2:
            layers.append(nn.MaxPool2d(2))
            size //= 2
    body = nn.Sequential(*layers)
    return Student(spec, body, _flat_features(body, spec))


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
        return Student(spec, body, _flat_features(body, spec))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"timm model {name!r} cannot take {spec.height}x{spec.width} images: {reason}") from None


STUDENTS: dict[str, Callable[..., Student]] = {
    builder.__name__: builder for builder in (convnet, resnet10, resnet18, resnetap10, resnetap18, vgg11, alexnet)
}


def parse_student(text: str) -> tuple[str, dict[str, Any]]:
    """Split `convnet:width=64,norm=batch` into a name and options; `timm:NAME` keeps its prefix.

    Raises:
        InputError: for an unknown name or option, or a value that does not parse.
    """
    prefix, _, rest = text.partition(":")
    if prefix == "timm":
        name, _, rest = rest.partition(":")
        name, known = f"timm:{name}", None
    elif prefix in STUDENTS:
        name = prefix
        known = {key: p for key, p in inspect.signature(STUDENTS[name]).parameters.items() if key != "spec"}
    else:
        raise InputError(f"unknown student {prefix!r}. {nearest(prefix, [*STUDENTS, 'timm:NAME'])}")
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"student option {item!r} in {text!r}: expected option=value")
        if known is not None and key not in known:
            raise InputError(f"unknown option {key!r} of student {name!r}. {nearest(key, known)}")
        numeric = re.fullmatch(r"-?[0-9]+", value) is not None
        if known is not None and isinstance(known[key].default, int):
            low = 1 if known[key].default else 0  # a default of 0 stands for "choose for me"
            if not numeric or int(value) < low:
                raise InputError(f"option {key!r} of student {name!r} is {value!r}: expected a whole number, {low} or more")
        options[key] = int(value) if numeric else value
    return name, options


def build_student(text: str, spec: DataSpec, *, seed: int) -> Student:
    """Build a student by name, with weights initialised from `seed`, on the CPU.

    Args:
        text: a name of `STUDENTS` or `timm:NAME`, with options as `parse_student` reads them.
        spec: the data it will see.
        seed: any integer; the same seed gives the same weights.

    Raises:
        InputError: for an unknown name or option, or an architecture that cannot take such images.
    """
    name, options = parse_student(text)
    with rng.initialisation(seed, "student", rng.fold(0, text)):
        if name.startswith("timm:"):
            return _timm(spec, name.removeprefix("timm:"), options)
        return STUDENTS[name](spec, **options)


def check_protocol(protocol: ProtocolConfig, spec: DataSpec) -> None:
    """Refuse a scoring protocol that names an unknown architecture or augmentation.

    Raises:
        InputError: naming it.
    """
    for student in protocol.students:
        parse_student(student)
    Augment(protocol.augment, spec)
