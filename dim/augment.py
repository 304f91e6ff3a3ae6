"""Differentiable augmentation with replayable draws (DSA, Zhao & Bilen 2021; DiffAugment, Zhao et al. 2020).

A draw holds every random number of one augmentation of one batch. Applying the same draw to two batches gives both the
same augmentation, image by image, and applying it again gives the same result again; trajectory matching needs the
second, logit matching the first.

Ranges are the published ones (flip 0.5, scale 1.2, rotate 15 degrees, crop 0.125, cutout 0.5, brightness 1, saturation 2,
contrast 0.5), which were set for normalised images. Here images are in [-1, 1], so brightness is measured in standard
deviations of the data, and pixels that come in from outside are the data's mean: the two are equivalent.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dim.errors import InputError, nearest
from dim.processes import ALONE, Processes
from dim.spec import DataSpec

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP, CUTOUT = 0.125, 0.5
SCALE, ROTATE_DEGREES = 1.2, 15.0


@dataclass(frozen=True)
class Draw:
    """The random numbers of one augmentation of one batch: per family, float32 (B, k) in [0, 1)."""

    values: dict[str, Tensor]


class Augment:
    """An augmentation by name: families joined by `_` are all applied, joined by `|` one is picked per batch.

    Families: color, crop, cutout, flip, scale, rotate. The empty string leaves images alone. Digits and letters change
    class when mirrored, so `flip` is best left out for them; nothing here does that silently.

    Raises:
        InputError: for an unknown family or a mixture of `_` and `|`.
    """

    def __init__(self, strategy: str, spec: DataSpec) -> None:
        if "_" in strategy and "|" in strategy:
            raise InputError(f"augmentation {strategy!r} mixes '_' (all) and '|' (one of): expected one kind")
        self.one_of = "|" in strategy
        self.families = tuple(part for part in strategy.replace("|", "_").split("_") if part)
        if strategy and not self.families:
            raise InputError(f"augmentation {strategy!r} names no family. Known: {', '.join(sorted(_FAMILIES))}.")
        for family in self.families:
            if family not in _FAMILIES:
                raise InputError(f"unknown augmentation {family!r}. {nearest(family, _FAMILIES)}")
        self.spec = spec

    def draw(self, batch: int, generator: torch.Generator, processes: Processes = ALONE) -> Draw:
        """Draw the random numbers for a batch, on the generator's device.

        With `|`, the family follows from the generator's seed: give every batch a generator of its own, as `dim.rng` does.

        Args:
            batch: the number of images here.
            generator: the same in all processes.
            processes: those that share a larger batch: what is drawn for that is divided among them.
        """
        families = self.families
        if self.one_of:
            # The choice is made on the host from a seed, so that it costs no device synchronisation.
            pick = torch.Generator().manual_seed(generator.initial_seed())
            families = (families[int(torch.randint(len(families), (), generator=pick))],)
        drawing = {"generator": generator, "device": generator.device}
        total = batch * processes.world
        return Draw({family: processes.part(torch.rand(total, _FAMILIES[family][0], **drawing)) for family in families})

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Augment float (B, C, H, W) images in [-1, 1]; differentiable in the images.

        Raises:
            ValueError: if the draw is for another batch size.
        """
        for family, values in draw.values.items():
            if len(values) != len(images):
                raise ValueError(f"the draw is for {len(values)} images: expected {len(images)}")
            images = _FAMILIES[family][1](images, values, self.spec)
        return images

    def __call__(self, images: Tensor, generator: torch.Generator, processes: Processes = ALONE) -> Tensor:
        """Draw and apply."""
        return self.apply(images, self.draw(len(images), generator, processes)) if self.families else images


def _columns(values: Tensor, like: Tensor) -> list[Tensor]:
    return [column.view(-1, 1, 1, 1).to(like.dtype) for column in values.unbind(1)]


def _color(images: Tensor, values: Tensor, spec: DataSpec) -> Tensor:
    brightness, saturation, contrast = _columns(values, images)
    _, std = spec.mean_std(images)
    images = images + (brightness - 0.5) * BRIGHTNESS * std
    if spec.channels > 1:
        grey = images.mean(dim=1, keepdim=True)
        images = grey + (images - grey) * (saturation * SATURATION)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + CONTRAST)


def _crop(images: Tensor, values: Tensor, spec: DataSpec) -> Tensor:
    """Shift by up to 1/8 of each side; the data's mean comes in."""
    batch, channels, height, width = images.shape
    fill, _ = spec.mean_std(images)
    reach = [int(size * CROP + 0.5) for size in (height, width)]
    # One gather from the image with a border of its mean; index tables are small and the gradient is a scatter.
    padded = F.pad(images - fill, (reach[1], reach[1], reach[0], reach[0]))
    top, left = ((values[:, i] * (2 * reach[i] + 1)).long() for i in (0, 1))
    rows = (top[:, None] + torch.arange(height, device=images.device)).view(batch, 1, height, 1)
    columns = (left[:, None] + torch.arange(width, device=images.device)).view(batch, 1, 1, width)
    padded = padded.gather(2, rows.expand(batch, channels, height, padded.shape[3]))
    return padded.gather(3, columns.expand(batch, channels, height, width)) + fill


def _cutout(images: Tensor, values: Tensor, spec: DataSpec) -> Tensor:
    """Replace a square of half of each side, centred anywhere, by the data's mean."""
    height, width = images.shape[2:]
    fill, _ = spec.mean_std(images)
    inside = None
    for axis, size in enumerate((height, width)):
        side = int(size * CUTOUT + 0.5)
        centre = (values[:, axis] * (size + (1 - side % 2))).floor()[:, None]
        position = torch.arange(size, device=images.device)[None]
        hit = (position >= centre - side // 2) & (position < centre - side // 2 + side)
        hit = hit.view(-1, 1, size, 1) if axis == 0 else hit.view(-1, 1, 1, size)
        inside = hit if inside is None else inside & hit
    return torch.where(inside, fill, images)


def _flip(images: Tensor, values: Tensor, spec: DataSpec) -> Tensor:
    return torch.where(values.view(-1, 1, 1, 1) < 0.5, images.flip(3), images)


def _affine(images: Tensor, matrix: Tensor, spec: DataSpec) -> Tensor:
    fill, _ = spec.mean_std(images)
    grid = F.affine_grid(matrix.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + fill


def _scale(images: Tensor, values: Tensor, spec: DataSpec) -> Tensor:
    """Stretch each axis by a factor in [1/1.2, 1.2]."""
    factors = values * (SCALE - 1 / SCALE) + 1 / SCALE
    return _affine(images, torch.cat((torch.diag_embed(factors), torch.zeros_like(factors)[:, :, None]), dim=2), spec)


def _rotate(images: Tensor, values: Tensor, spec: DataSpec) -> Tensor:
    """Rotate by up to 15 degrees either way."""
    stretch = images.shape[2] / images.shape[3]  # sampling coordinates run over [-1, 1] on both axes, whatever their length
    angle = (values[:, 0] - 0.5) * (2 * ROTATE_DEGREES * torch.pi / 180)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack((cosine, -sine * stretch, zero, sine / stretch, cosine, zero), dim=1).view(-1, 2, 3)
    return _affine(images, matrix, spec)


# Family: how many random numbers per image, and the function that uses them.
_FAMILIES: dict[str, tuple[int, Callable[[Tensor, Tensor, DataSpec], Tensor]]] = {
    "color": (3, _color),
    "crop": (2, _crop),
    "cutout": (2, _cutout),
    "flip": (1, _flip),
    "scale": (2, _scale),
    "rotate": (1, _rotate),
}


def without_flips(families: str) -> str:
    """Families of which one is picked per batch, joined by `|`, without mirrored images."""
    return "|".join(family for family in families.split("|") if family != "flip")
