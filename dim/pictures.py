"""Images as pictures: one row per class, enlarged so that small images can be seen."""

from pathlib import Path

import torch.nn.functional as F
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

from dim.outputs import atomic_file
from dim.spec import to_uint8

_MIN_SIDE = 48


def grid(rows: Tensor, *, gap: int = 2) -> Image.Image:
    """Lay out images in rows.

    Args:
        rows: float (R, N, C, H, W) in [-1, 1], C = 1 or 3.
        gap: white pixels between images.
    """
    factor = max(1, round(_MIN_SIDE / rows.shape[-1]))
    pixels = repeat(to_uint8(rows.cpu()), "r n c h w -> r n c (h a) (w b)", a=factor, b=factor)
    framed = F.pad(pixels, (gap, 0, gap, 0), value=255)  # above and left of every image
    canvas = F.pad(rearrange(framed, "r n c h w -> c (r h) (n w)"), (0, gap, 0, gap), value=255)
    array = rearrange(canvas, "c h w -> h w c").numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def save_png(path: Path | str, image: Image.Image) -> None:
    """Write a PNG atomically."""
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")
