"""VGG-11 (Simonyan & Zisserman 2015) with a single linear layer."""

from torch import nn

from dim.nets.student import Student, flat_features, norm_layer, require_spatial_norm
from dim.spec import DataSpec

__all__ = ["vgg11"]


def vgg11(spec: DataSpec, *, width: int = 64, norm: str = "batch") -> Student:
    """VGG-11 (Simonyan & Zisserman 2015) with a single linear layer; poolings stop at one pixel."""
    layers: list[nn.Module] = []
    channels, size = spec.channels, min(spec.height, spec.width)
    for multiple in (1, 0, 2, 0, 4, 4, 0, 8, 8, 0, 8, 8, 0):  # 0 marks a pooling
        if multiple:
            require_spatial_norm(norm, size)
            outputs = width * multiple
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), norm_layer(norm, outputs), nn.ReLU(inplace=True)]
            channels = outputs
        elif size >= 2:
            layers.append(nn.MaxPool2d(2))
            size //= 2
    body = nn.Sequential(*layers)
    return Student(spec, body, flat_features(body, spec))
