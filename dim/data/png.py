"""Images of 8 bits per channel as PNG pictures, and back."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dim.spec import DataSpec


def picture(image: Tensor) -> Image.Image:
    """A picture, grey or in colour, of a uint8 (1 or 3, H, W) image."""
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def pixels(image: Image.Image, spec: DataSpec) -> np.ndarray:
    """uint8 (H, W) of a grey picture or (H, W, 3) of one in colour, as the specification has it."""
    return np.array(image.convert("L" if spec.channels == 1 else "RGB"))


def to_png(image: Tensor) -> bytes:
    """A file of a uint8 (1 or 3, H, W) image."""
    buffer = io.BytesIO()
    picture(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def from_pngs(files: Sequence[bytes], spec: DataSpec) -> Tensor:
    """uint8 (N, C, H, W) images of such files.

    Raises:
        OSError, ValueError, SyntaxError: if one is damaged, or of another size.
    """
    result = torch.empty(len(files), *spec.image_shape, dtype=torch.uint8)
    for number, content in enumerate(files):
        with Image.open(io.BytesIO(content)) as image:
            array = pixels(image, spec).reshape(spec.height, spec.width, -1)
        result[number] = torch.from_numpy(array).permute(2, 0, 1)
    return result
