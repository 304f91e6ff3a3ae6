"""ZCA whitening of images, as trajectory-matching methods use it on CIFAR: a data set seen in other coordinates.

Whitened images have a specification of their own, with mean 0 and standard deviation 1 in the range between modules, so
students, augmentation and evaluation work on them unchanged. Only natural images are ever stored.
"""

import dataclasses

import torch
from torch import Tensor

from dim.data.real import RealData
from dim.data.splits import Split, in_chunks
from dim.errors import InputError
from dim.spec import DataSpec

_LARGEST = 12288  # 64x64x3: the matrices then take 1.2 GB in float64


def require_whitenable(spec: DataSpec) -> None:
    """Raise InputError for images with more than 12,288 values, whose covariance is too large."""
    if spec.channels * spec.height * spec.width > _LARGEST:
        raise InputError(f"ZCA whitening of {spec.height}x{spec.width} images: expected at most 64x64; use --no-zca")


class Whitening:
    """x -> W (x - mean) and back, for images in [0, 1] (Kessy et al. 2018, ZCA).

    W = U (S + eps)^(-1/2) U^T for the covariance U S U^T of the training images; eps is 0.1, as in the literature.

    Args:
        mean: float32 (D,), of flattened images in [0, 1].
        forward: float32 (D, D), symmetric.
        inverse: float32 (D, D), its inverse.
        spec: of the natural images.
    """

    def __init__(self, mean: Tensor, forward: Tensor, inverse: Tensor, spec: DataSpec) -> None:
        self._mean, self._forward, self._inverse = mean, forward, inverse
        # In [-1, 1], mean 0 and standard deviation 1: students then leave such images as they are.
        self.spec = dataclasses.replace(spec, mean=(0.5,) * spec.channels, std=(0.5,) * spec.channels)

    @classmethod
    @torch.no_grad()
    def fit(cls, split: Split, spec: DataSpec, *, eps: float = 0.1, device: torch.device | str = "cpu") -> "Whitening":
        """From the images of a split.

        Raises:
            InputError: if images have more than 12,288 values.
        """
        require_whitenable(spec)
        size = spec.channels * spec.height * spec.width
        total = torch.zeros(size, dtype=torch.float64, device=device)
        products = torch.zeros(size, size, dtype=torch.float64, device=device)
        shift = torch.tensor(spec.mean, device=device).repeat_interleave(spec.height * spec.width)
        for _, images, _ in in_chunks(split):
            # Shifted towards zero, so that float32 products lose nothing that matters.
            flat = (images.to(device).flatten(1) + 1) / 2 - shift
            total += flat.double().sum(0)
            products += flat.T @ flat
        mean = total / len(split)
        covariance = (products - len(split) * torch.outer(mean, mean)) / (len(split) - 1)
        values, vectors = torch.linalg.eigh(covariance)
        scale = (values.clamp(min=0) + eps).sqrt()
        forward, inverse = (vectors / scale) @ vectors.T, (vectors * scale) @ vectors.T
        return cls((mean + shift).float(), forward.float(), inverse.float(), spec)

    def whiten(self, images: Tensor) -> Tensor:
        """Natural float (B, C, H, W) in [-1, 1] -> whitened, with variance about 1 or less."""
        flat = (images.flatten(1) + 1) / 2 - self._mean
        return (flat @ self._forward).view_as(images)

    def natural(self, images: Tensor) -> Tensor:
        """Inverse of `whiten`; differentiable."""
        return (images.flatten(1) @ self._inverse + self._mean).mul(2).sub(1).view_as(images)

    def split(self, split: Split) -> Split:
        """A split whose batches are whitened."""
        return _WhitenedSplit(split, self)

    def data(self, data: RealData) -> RealData:
        """A data set whose batches are whitened."""
        return RealData(self.spec, self.split(data.train), self.split(data.val), self.split(data.test), data.config)


class _WhitenedSplit:
    """Batches of a split, whitened when they are asked for."""

    def __init__(self, split: Split, whitening: Whitening) -> None:
        self._split, self._whitening = split, whitening
        self.labels, self.streams = split.labels, split.streams

    def __len__(self) -> int:
        return len(self._split)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Split.batch`."""
        images, labels = self._split.batch(indices)
        return self._whitening.whiten(images), labels
