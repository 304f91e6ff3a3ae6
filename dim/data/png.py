"""Images of 8 bits per channel as PNG pictures, and back."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image
from torch import Tensor

from dim.data.items import DECODE_THREADS, in_parts
from dim.data.pillow import read_picture
from dim.spec import DataSpec


def picture(image: Tensor) -> Image.Image:
    """A picture, grey or in colour, of a uint8 (1 or 3, H, W) image."""
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def to_png(image: Tensor) -> bytes:
    """A file of a uint8 (1 or 3, H, W) image."""
    buffer = io.BytesIO()
    picture(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def to_pngs(images: Tensor) -> list[bytes]:
    """Files of uint8 (N, 1 or 3, H, W) images, made by several threads."""
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        return in_parts(lambda number: to_png(images[number]), len(images), pool)


def from_pngs(files: Sequence[bytes], spec: DataSpec) -> Tensor:
    """uint8 (N, C, H, W) images of such files.

    Raises:
        ValueError: if one is damaged, or of another size.
    """
    result = torch.empty(len(files), *spec.image_shape, dtype=torch.uint8)
    for number, content in enumerate(files):
        result[number] = pixels(io.BytesIO(content), spec)
    return result


def pixels(source: Path | BinaryIO, spec: DataSpec) -> Tensor:
    """uint8 (C, H, W) image of one such file.

    Raises:
        ValueError: if it is missing, damaged, or of another size.
    """
    return read_picture(source, "L" if spec.channels == 1 else "RGB", size=(spec.width, spec.height))[0]
