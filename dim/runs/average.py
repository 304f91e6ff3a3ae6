"""The moving average of a generator's weights, which is then the result."""

import torch
from torch import nn


@torch.no_grad()
def update_average(average: nn.Module, source: nn.Module, step: int, decay: float) -> None:
    """Exponential moving average of weights and statistics: average <- d * average + (1 - d) * source.

    d = min(decay, (1 + step) / (10 + step)), so that early weights are forgotten quickly. Integer buffers are copied.
    """
    decay = min(decay, (1 + step) / (10 + step))
    targets, sources = list(average.state_dict().values()), list(source.state_dict().values())
    pairs = list(zip(targets, sources, strict=True))
    floating = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([pair[0] for pair in floating], [pair[1] for pair in floating], 1 - decay)
    for target, value in pairs:
        if not target.is_floating_point():
            target.copy_(value)
