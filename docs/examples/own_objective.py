"""An objective of your own, beside the others of stage two: generated images are as bright as the real ones of their batch.

dim train --recipe digits-dim --objectives own_objective:Brightness --out runs/bright
"""

import torch
from torch import Tensor

from dim.data.real import RealData
from dim.objectives import add_gradient


class Brightness:
    """See `dim.objectives.Objective`. A run makes it with the data, its seed and the device."""

    def __init__(self, data: RealData, *, seed: int, device: torch.device) -> None:
        self.weight = 10.0

    def accumulate(self, images: Tensor, targets: Tensor, *, real: Tensor, step: int) -> dict[str, Tensor]:
        """Add the gradient of the loss to `images.grad`."""
        loss = (images.mean() - real.mean()).square()
        add_gradient(images, torch.autograd.grad(self.weight * loss, images)[0])
        return {"brightness": loss.detach()}
