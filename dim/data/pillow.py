"""Pictures that Pillow reads, as they are shown: upright, on white, in 8 bits per channel."""

import contextlib
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

LARGEST = 89_478_485
"""Pixels of the largest picture that is decoded. Above it Pillow warns."""

SIXTEEN_BITS, TRANSPARENT, TURNED, SEVERAL = 1, 2, 4, 8
_SAID = {
    SIXTEEN_BITS: "16 bits: scaled to 8",
    TRANSPARENT: "transparent pixels: put on white",
    TURNED: "an EXIF rotation: turned upright",
    SEVERAL: "several pictures: the first is taken",
}
_TOO_LARGE = f"at most {LARGEST // 10**6} million are read"
_INTEGERS_OF_16_BITS = ("PNG", "PPM")  # formats whose mode "I" has 32 bits in memory only
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO, _UNSIGNED = 0, 1  # their values
_BETWEEN = {"La": "LA", "LAB": "RGB"}  # by which Pillow reaches other modes
_WITH_PREVIEWS = ("MPO",)  # formats whose other pictures are the same one again, smaller or from another angle, as of phones
_LEFT_OUT = ("EPS",)  # which another program draws


def read_picture(source: Path | BinaryIO, mode: str | None, *, size: tuple[int, int] | None = None) -> tuple[Tensor, int]:
    """Read an image file.

    Args:
        source: the file, or its content.
        mode: `L` or `RGB`; None: see `shown`.
        size: width and height that it must have.

    Returns:
        See `shown`.

    Raises:
        ValueError: saying why, if it cannot be read, whatever its content is.
    """
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise ValueError("it is no regular file")  # opening a named pipe would wait for a writer
    with _decoders(), _opened(source) as image:
        if size is not None and image.size != size:
            raise ValueError(f"it has {image.width}x{image.height} pixels")
        several = image.format not in _WITH_PREVIEWS and getattr(image, "is_animated", False)
        pixels, converted = _shown(image, mode)
        return pixels, converted | (SEVERAL if several else 0)


def _opened(source: Path | BinaryIO) -> Image.Image:
    Image.init()
    return Image.open(source, formats=[name for name in Image.OPEN if name not in _LEFT_OUT])


def read_header(source: Path | BinaryIO) -> tuple[int, int, str]:
    """Width, height and Pillow's mode of an image file, or of its content, which is not decoded.

    Raises:
        ValueError: saying why, if its header cannot be read.
    """
    with _decoders(), _opened(source) as image:
        return image.width, image.height, image.mode


def reason(error: Exception) -> str:
    """What an error says, in one short line without the path that it is about."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:100]


def shown(image: Image.Image, mode: str | None = None) -> tuple[Tensor, int]:
    """The pixels of a picture as a viewer shows them.

    16 bits are scaled to 8, transparent pixels are composited on white, and an EXIF rotation is applied.

    Args:
        image: of any mode, except for 32-bit integers and floats, whose range is unknown.
        mode: `L` or `RGB`. Default: `L` for grey pictures, else `RGB`.

    Returns:
        uint8 (1 or 3, H, W), and what had to be done: a sum of `SIXTEEN_BITS`, `TRANSPARENT`, `TURNED` and, of a file,
        `SEVERAL`.

    Raises:
        ValueError: if it has no pixels or more than `LARGEST`, 32 bits per channel, or comes from a damaged file.
    """
    with _decoders():
        return _shown(image, mode)


@contextlib.contextmanager
def _decoders() -> Iterator[None]:
    """Make one kind of error of whatever Pillow raises; its decoders raise almost anything at damaged bytes."""
    try:
        yield
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise ValueError("it is no image in a format that Pillow reads") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"it has too many pixels: {_TOO_LARGE}") from None
    except Exception as error:
        raise ValueError(reason(error)) from None


def _shown(image: Image.Image, mode: str | None) -> tuple[Tensor, int]:
    if not image.width * image.height:
        raise ValueError(f"it has {image.width}x{image.height} pixels: expected some")
    if image.width * image.height > LARGEST:
        raise ValueError(f"it has {image.width}x{image.height} pixels: {_TOO_LARGE}")
    if between := _BETWEEN.get(image.mode):
        image = image.convert(between)
    mode = mode or ("L" if Image.getmodebase(image.mode) == "L" else "RGB")
    full_scale = _full_scale(image)
    # Pillow knows of it where there are 8 bits.
    inverted = full_scale and image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    image, converted = _upright(image)
    if full_scale is not None:
        image, transparent = _scaled(image, full_scale)
        image = ImageOps.invert(image) if inverted else image
        converted |= SIXTEEN_BITS | transparent
    elif image.has_transparency_data:
        image, transparent = _on_white(image)
        converted |= transparent
    array = np.array(image.convert(mode), dtype=np.uint8)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1)), converted


def describe_converted(counts: Mapping[int, int]) -> str:
    """What was done to how many images, in a line; `counts` by `SIXTEEN_BITS`, `TRANSPARENT`, ...; empty if nothing was."""
    parts = [
        f"{counts[kind]} image{'s have' if counts[kind] > 1 else ' has'} {said}" for kind, said in _SAID.items() if counts[kind]
    ]
    return "; ".join(parts)


def count_converted(converted: np.ndarray) -> dict[int, int]:
    """How many of uint8 (N,) sums, as `shown` gives one for each image, contain what."""
    return {kind: int(np.count_nonzero(converted & kind)) for kind in _SAID}


def _full_scale(image: Image.Image) -> int | None:
    """The value of white in a grey picture of more than 8 bits; None for other pictures."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if set(tags.get(_SAMPLE_FORMAT, ())) - {_UNSIGNED} and image.mode not in ("I", "F"):
        raise ValueError("its values are signed, and others are read: convert it")
    if image.mode.startswith("I;16"):
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        return (1 << bits) - 1
    if image.mode == "I" and image.format in _INTEGERS_OF_16_BITS:
        return 0xFFFF
    if image.mode in ("I", "F"):
        raise ValueError(f"it has 32 bits per pixel (mode {image.mode!r}) and 8 or 16 are read: convert it")
    return None


def _upright(image: Image.Image) -> tuple[Image.Image, int]:
    try:
        if image.getexif().get(ExifTags.Base.Orientation) not in range(2, 9):
            return image, 0
        return ImageOps.exif_transpose(image), TURNED
    except (SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return image, 0  # EXIF data that cannot be read say nothing; a damaged image fails again when it is decoded


def _scaled(image: Image.Image, full_scale: int) -> tuple[Image.Image, int]:
    """8 bits of a grey picture, in which one value may stand for transparent pixels."""
    array = np.asarray(image).astype(np.uint32)
    grey = ((array * 255 + full_scale // 2) // full_scale).astype(np.uint8)
    hidden = array == image.info.get("transparency")
    grey[hidden] = 255
    return Image.fromarray(grey), TRANSPARENT if hidden.any() else 0


def _on_white(image: Image.Image) -> tuple[Image.Image, int]:
    colour = image.info.get("transparency")
    if isinstance(colour, tuple) and max(colour) > 255:  # of 16 bits, while Pillow keeps the upper 8 of the pixels
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    layer = image.convert("RGBA")
    if layer.getchannel("A").getextrema()[0] == 255:
        return layer, 0
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer), TRANSPARENT
