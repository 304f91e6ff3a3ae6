"""Objectives: what may drive images, one per file. Each adds its gradient to `images.grad` and knows nothing of where
the images came from, so every objective can drive pixels, latents, or a generator's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn


class Objective(Protocol):
    """Something that wants images to change."""

    def accumulate(self, images: Tensor, targets: Tensor, *, real: Tensor | None, step: int) -> dict[str, Tensor]:
        """Add dLoss/dimages into `images.grad`.

        Args:
            images: float32 (B, C, H, W) in [-1, 1], a leaf that requires a gradient.
            targets: int64 (B,) labels of `images` and of `real` alike. Float label logits (B, K) that require a gradient get
                theirs in `targets.grad`.
            real: float32 (B, C, H, W) real images; None where an objective needs none.
            step: number of the step, from which every random draw derives.

        Of several processes, each has images of its own, and their gradients are averaged.

        Returns:
            Detached scalar losses by name, on the device; reading them is left to the caller, who knows when to wait.
        """
        ...


def add_gradient(images: Tensor, gradient: Tensor) -> None:
    """Add to `images.grad`, which may not be there yet."""
    images.grad = gradient if images.grad is None else images.grad.add_(gradient)


def set_gradients(parameters: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor]) -> None:
    """Set `grad` of parameters by name, each in the memory format of its parameter, as fused optimisers want it."""
    for name, parameter in parameters.items():
        gradient = gradients[name]
        same = gradient.stride() == parameter.stride()
        parameter.grad = gradient if same else torch.empty_like(parameter).copy_(gradient)


@contextmanager
def without_gradients(network: nn.Module) -> Iterator[None]:
    """Weights as constants, for gradients in the images alone: a convolution computes its weights' unless told so."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
