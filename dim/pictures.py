"""Images as pictures: one row per class, enlarged so that small images can be seen."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dim.io import atomic_file
from dim.spec import to_uint8

_MIN_SIDE = 48


def grid(rows: Tensor, *, gap: int = 2) -> Image.Image:
    """Lay out images in rows.

    Args:
        rows: float (R, N, C, H, W) in [-1, 1], C = 1 or 3.
        gap: white pixels between images.
    """
    factor = max(1, round(_MIN_SIDE / rows.shape[-1]))
    pixels = to_uint8(rows.cpu()).repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    count_rows, count, channels, height, width = pixels.shape
    canvas = torch.full((channels, count_rows * (height + gap) + gap, count * (width + gap) + gap), 255, dtype=torch.uint8)
    for r in range(count_rows):
        for n in range(count):
            top, left = gap + r * (height + gap), gap + n * (width + gap)
            canvas[:, top : top + height, left : left + width] = pixels[r, n]
    array = canvas.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if channels == 1 else array)


def save_png(path: Path | str, image: Image.Image) -> None:
    """Write a PNG atomically."""
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")
