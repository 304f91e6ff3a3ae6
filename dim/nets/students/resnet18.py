"""ResNet-18 (He et al. 2016), with the stem for small images: 11.2 M parameters at the standard width 64."""

from dim.nets.resnet import resnet
from dim.nets.student import Student
from dim.spec import DataSpec

__all__ = ["resnet18"]


def resnet18(spec: DataSpec, *, width: int = 64, norm: str = "batch") -> Student:
    """ResNet-18 with the CIFAR stem: 11.2 M parameters at the standard width 64 (2.8 M at 32, DiM's published pool)."""
    return resnet(spec, (2, 2, 2, 2), width=width, norm=norm, average=False)
