"""Distances between the distributions of real and generated images within classes, in the outputs of a pool's model.

All are squared maximum mean discrepancies (Gretton et al. 2012) in one form, a U-statistic over pairs of different images:

    mean over i != j of  k(a_i, a_j) + k(b_i, b_j) - 2 k(a_i, b_j)

for n real a_i and n generated b_i of a class. It is unbiased, so nothing is gained by collapsing; a_i and b_i, which share an
augmentation draw and so are correlated, never meet. The kernel says what is matched: `moments` means and second moments;
`kernel` everything, by a mixture of Gaussians; `characteristic` everything, by characteristic functions at random frequencies
(NCFM, Wang et al. 2025, with frequencies drawn in place of learned).
"""

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


def moments(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = <x, y> + <x, y>^2: equal means and equal second moments have distance 0."""
    inner = x @ y.T
    return inner + inner.square()


def gaussians(x: Tensor, y: Tensor) -> Tensor:
    """Mean of exp(-|x - y|^2 / (2 s^2)) over s = 1/2, 1, 2; standardised outputs have E|x|^2 = 1."""
    square = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)
    return sum(torch.exp(square / (-2 * scale**2)) for scale in (0.5, 1.0, 2.0)) / 3


def waves(outputs: int, source: torch.Generator, count: int = 512) -> Kernel:
    """k(x, y) = mean over frequencies of cos(<w, x - y>), so that the distance is the mean of |characteristic functions'
    difference|^2; the frequencies are Gaussian, with the three scales of `gaussians`.

    Args:
        outputs: F.
        source: of the frequencies, on the device of the outputs.
        count: how many.
    """
    frequencies = torch.randn(outputs, count, generator=source, device=source.device)
    scales = torch.tensor((2.0, 1.0, 0.5), device=source.device)[torch.arange(count, device=source.device) % 3]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        ours, others = (values @ (frequencies * scales).to(values.dtype) for values in (x, y))
        return (ours.cos() @ others.cos().T + ours.sin() @ others.sin().T) / count

    return kernel
