"""Membership from what a model, or a set, says of an image, beside what others say of it that were or were not made with it.

Some images look like members to every model: they are easy. A likelihood-ratio attack (LiRA, Carlini et al. 2022, arXiv
2112.03570) compares with reference models that were trained on other random parts of the data, image by image.

Legend: N images, R references. `observed` is of the subject, `references` are of others; both are larger for members, and NaN
where nothing is known. `inside` says whose data held which image.
"""

import torch
from torch import Tensor


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """How sure a classifier is of the labels, as the logarithm of the odds, which is nearly normal over models.

    Args:
        logits: float (N, classes).
        labels: int64 (N,).

    Returns:
        float64 (N,): log p / (1 - p), from the logits, so that no certainty is rounded away.
    """
    logits = logits.double()
    own = labels[:, None].to(logits.device)
    rest = logits.scatter(1, own, -torch.inf).logsumexp(1)
    return logits.gather(1, own).squeeze(1) - rest


def online(observed: Tensor, references: Tensor, inside: Tensor) -> Tensor:
    """Logarithm of the likelihood ratio of two normal distributions: of references with the image, and of those without it.

    Their means are each image's own. Their two variances are those of all images, which the paper finds better with few
    references; here they are the mean variance within images, where the published code takes the spread over all.

    Args:
        observed: float64 (N,).
        references: float64 (R, N).
        inside: bool (R, N).

    Returns:
        float64 (N,); NaN for an image that no reference, or each of them, was made with.
    """
    ratio = torch.zeros_like(observed)
    for mask, sign in ((inside, 1), (~inside, -1)):
        mean, variance = _moments(references, mask)
        ratio -= sign * ((observed - mean).square() / variance + variance.log()) / 2
    return ratio


def offline(observed: Tensor, references: Tensor, inside: Tensor) -> Tensor:
    """How far the observation lies above what references without the image say of it.

    The published score is the tail of a normal distribution, which orders images like this difference where one variance is used
    for all. References may be of another kind than the subject, such as models of real images beside one of a set. So the
    difference is from the straight line that fits best (least squares over all images), which is about the diagonal among
    references of the same kind.

    Args:
        observed: float64 (N,).
        references: float64 (R, N).
        inside: bool (R, N).

    Returns:
        float64 (N,); NaN for an image that each reference was made with.
    """
    without = ~inside & ~references.isnan()
    mean = torch.where(without, references, 0).sum(0) / without.sum(0)
    known = ~(mean.isnan() | observed.isnan())
    x, y = mean[known] - mean[known].mean(), observed[known] - observed[known].mean()
    slope = (x * y).sum() / x.square().sum() if bool(x.any()) else 0.0
    result = torch.full_like(observed, torch.nan)
    result[known] = y - slope * x
    return result


def _moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Means float64 (N,) of the values under a mask, NaN where there are none, and their variance within images, a scalar: 1
    where no image has two values, or none differ."""
    mask = mask & ~values.isnan()
    counts = mask.sum(0)
    mean = torch.where(mask, values, 0).sum(0) / counts
    squares = torch.where(mask, values - mean, 0).square().sum()
    variance = squares / (counts - 1).clamp(min=0).sum()
    return mean, torch.where(variance > 0, variance, 1.0)  # a variance of no image is NaN
