"""ResNet-10 that halves resolution by average pooling (Kim et al. 2022)."""

from dim.nets.resnet import resnet
from dim.nets.student import Student
from dim.spec import DataSpec

__all__ = ["resnetap10"]


def resnetap10(spec: DataSpec, *, width: int = 64, norm: str = "batch") -> Student:
    """ResNet-10 that halves resolution by average pooling (Kim et al. 2022)."""
    return resnet(spec, (1, 1, 1, 1), width=width, norm=norm, average=True)
