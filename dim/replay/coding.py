"""How a memory holds an image: as 8 bits per channel, or in WebP at a quality, through Pillow."""

import io
from typing import Protocol

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from dim.errors import InputError
from dim.spec import DataSpec

_HEADER = 8  # bytes of a RIFF file before those that its size counts


class Coding(Protocol):
    """A form of images: uint8 (C, H, W) each, with the sizes of a `DataSpec`."""

    def encode(self, image: Tensor) -> bytes:
        """An image -> what is held of it."""
        ...

    def decode(self, code: bytes) -> Tensor:
        """The image that a code stands for.

        Raises:
            ValueError: if it stands for none.
        """
        ...

    def split(self, codes: bytes) -> list[bytes]:
        """The codes that were written one after another.

        Raises:
            ValueError: if the last one is not whole.
        """
        ...


class Plain:
    """8 bits per channel."""

    def __init__(self, spec: DataSpec) -> None:
        self._shape, self._size = spec.image_shape, spec.image_bytes

    def encode(self, image: Tensor) -> bytes:
        """See `Coding.encode`."""
        return image.contiguous().numpy().tobytes()

    def decode(self, code: bytes) -> Tensor:
        """See `Coding.decode`."""
        return torch.tensor(np.frombuffer(code, dtype=np.uint8)).view(self._shape)

    def split(self, codes: bytes) -> list[bytes]:
        """See `Coding.split`."""
        if len(codes) % self._size:
            raise ValueError(f"{len(codes)} bytes are not whole images of {self._size}")
        return [codes[start : start + self._size] for start in range(0, len(codes), self._size)]


class WebP:
    """Lossy WebP.

    Raises:
        InputError: if `quality` is outside 1 to 100, images are neither grey nor RGB, or Pillow was built without WebP.
    """

    def __init__(self, spec: DataSpec, quality: int) -> None:
        if not 1 <= quality <= 100:
            raise InputError(f"webp is {quality}: expected a quality of 1 to 100, or None for 8 bits per channel")
        if spec.channels not in (1, 3):
            raise InputError(f"webp is {quality} and images have {spec.channels} channels: expected 1 or 3; leave webp out")
        if not features.check("webp"):
            raise InputError(f"webp is {quality} and this Pillow has no WebP: install one from a wheel, or leave webp out")
        self._quality, self._shape, self._mode = quality, spec.image_shape, "L" if spec.channels == 1 else "RGB"

    def encode(self, image: Tensor) -> bytes:
        """See `Coding.encode`."""
        held = io.BytesIO()
        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        Image.fromarray(pixels.contiguous().numpy()).save(held, "WEBP", quality=self._quality, method=6)
        return held.getvalue()

    def decode(self, code: bytes) -> Tensor:
        """See `Coding.decode`."""
        channels, height, width = self._shape
        try:
            with Image.open(io.BytesIO(code), formats=("WEBP",)) as picture:
                if picture.size != (width, height):
                    raise ValueError(f"an image of {picture.size} pixels in place of {(width, height)}")
                pixels = np.array(picture.convert(self._mode))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"no WebP image: {error}") from None
        return torch.from_numpy(pixels).view(height, width, channels).permute(2, 0, 1).contiguous()

    def split(self, codes: bytes) -> list[bytes]:
        """See `Coding.split`: each file says its own size."""
        found, start = [], 0
        while start < len(codes):
            size = _HEADER + int.from_bytes(codes[start + 4 : start + _HEADER], "little")
            if codes[start : start + 4] != b"RIFF" or start + size > len(codes):
                raise ValueError(f"no whole WebP image begins at byte {start}")
            found.append(codes[start : start + size])
            start += size
        return found


def coding_of(spec: DataSpec, webp: int | None) -> Coding:
    """WebP of a quality, or 8 bits per channel where there is none."""
    return Plain(spec) if webp is None else WebP(spec, webp)
