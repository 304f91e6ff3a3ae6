"""AlexNet in the literature's small form."""

from torch import nn

from dim.nets.student import Student, flat_features
from dim.spec import DataSpec

__all__ = ["alexnet"]


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
    return Student(spec, body, flat_features(body, spec))
