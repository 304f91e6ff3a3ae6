"""Residual networks, which several students are."""

import torch
from torch import Tensor, nn

from dim.nets.student import Student, norm_layer, require_spatial_norm
from dim.spec import DataSpec


class ResidualBlock(nn.Module):
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


def resnet(spec: DataSpec, blocks: tuple[int, ...], *, width: int, norm: str, average: bool) -> Student:
    """ResNet (He et al. 2016) with the CIFAR stem (3x3, stride 1, no pooling).

    Args:
        spec: the data.
        blocks: basic blocks per stage.
        width: channels of the first stage, doubled at every further one.
        norm: see `norm_layer`.
        average: halve resolution by average pooling, not by a stride.
    """
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
            layers.append(ResidualBlock(channels, outputs, stride, norm, average))
            channels = outputs
    require_spatial_norm(norm, size)
    layers.append(nn.AdaptiveAvgPool2d(1))
    return Student(spec, nn.Sequential(*layers), channels)
