"""ResNet-10: one basic block per stage (He et al. 2016), with the stem for small images."""

from dim.nets.resnet import resnet
from dim.nets.student import Student
from dim.spec import DataSpec

__all__ = ["resnet10"]


def resnet10(spec: DataSpec, *, width: int = 64, norm: str = "batch") -> Student:
    """ResNet-10: one basic block per stage, CIFAR stem (3x3, stride 1, no pooling)."""
    return resnet(spec, (1, 1, 1, 1), width=width, norm=norm, average=False)
