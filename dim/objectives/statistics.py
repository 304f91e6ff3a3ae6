"""What distances between distributions have in common: an unbiased estimate within classes, and outputs in common units.

The estimate is a squared maximum mean discrepancy (Gretton et al. 2012), a U-statistic over pairs of different images:

    mean over i != j of  k(a_i, a_j) + k(b_i, b_j) - 2 k(a_i, b_j)

for n real a_i and n generated b_i of a class. It has no bias, so a generator gains nothing by collapsing. a_i and b_i, which
share an augmentation draw and are therefore correlated, are never compared. The kernel k decides what is matched.

An image that is alone of its class in the batch counts as 0. So what is estimated is the distance times the part of the images
that are not alone: nearly 1 for ten classes in a batch of 64, 0.47 for a hundred. Larger batches or a larger `matching.weight`
make up for that."""

from collections.abc import Callable

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]


def class_distance(kernel: Kernel, real: Tensor, generated: Tensor, labels: Tensor) -> Tensor:
    """The U-statistic above, averaged over classes with the weight of their images.

    Args:
        kernel: (B, F), (B, F) -> (B, B).
        real, generated: float (B, F).
        labels: int64 (B,), the class of both images of a row.

    Returns:
        A scalar, which may be negative. Classes with fewer than two images in the batch count as 0.
    """
    same = labels[:, None] == labels
    others = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    terms = kernel(real, real) + kernel(generated, generated) - 2 * kernel(real, generated)
    return (terms * others / (same.sum(1) - 1).clamp(min=1)).sum() / len(labels)


def standardised(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in units of the real batch's mean and standard deviation per output, divided by the root of their number."""
    mean, std = real.mean(0), real.std(0, correction=0)
    # An output that is the same for every real image tells nothing of its scale: it is left out.
    scale = torch.where(std > 1e-6 * (1 + mean.abs()), 1 / std.clamp(min=1e-12), 0) / real.shape[1] ** 0.5
    return (real - mean) * scale, (generated - mean) * scale
