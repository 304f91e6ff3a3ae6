"""ResNet-18 that halves resolution by average pooling (Kim et al. 2022)."""

from dim.nets.resnet import resnet
from dim.nets.student import Student
from dim.spec import DataSpec

__all__ = ["resnetap18"]


def resnetap18(spec: DataSpec, *, width: int = 64, norm: str = "batch") -> Student:
    """ResNet-18 that halves resolution by average pooling."""
    return resnet(spec, (2, 2, 2, 2), width=width, norm=norm, average=True)
