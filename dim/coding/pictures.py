"""Images of 8 bits as a few bytes each: all of a set on one sheet as a lossy WebP or AVIF picture, or as values of few bits."""

import io
import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from dim.coding import entropy
from dim.errors import InputError
from dim.spec import DataSpec

NAMES = ("webp", "avif", "values")
_SIDE = 8192  # of a sheet, at most: below what WebP can hold and what Pillow warns of
_FROM = "11.3"  # Pillow has AVIF since


@dataclass(frozen=True)
class Codec:
    """How images are stored.

    Raises:
        ValueError: for an unknown name, or a level that there is not.
    """

    name: str
    """`webp` or `avif`: a picture of all images in rows. `values`: every value rounded to some levels, entropy coded."""
    level: int
    """Quality of a picture, 0 to 100; bits of a value, 1 to 8."""
    half: bool = False
    """Stored at half the resolution, by means of 2x2 pixels, and enlarged with cubic interpolation."""

    def __post_init__(self) -> None:
        if self.name not in NAMES or not isinstance(self.half, bool) or isinstance(self.level, bool):
            raise ValueError(f"codec {self} is unknown")
        low, high = (1, 8) if self.name == "values" else (0, 100)
        if not isinstance(self.level, int) or not low <= self.level <= high:
            raise ValueError(f"level of {self.name} is {self.level!r}")

    def __str__(self) -> str:
        unit = f"{self.level} bits" if self.name == "values" else f"{self.name} {self.level}"
        return f"{unit}{', half size' if self.half else ''}"


def usable(codec: Codec, spec: DataSpec) -> bool:
    """Whether images of a data set can be stored so, here: pictures are grey or RGB, and a Pillow may lack AVIF."""
    return codec.name == "values" or (spec.channels in (1, 3) and features.check(codec.name))


def most_images(spec: DataSpec) -> int:
    """Images that a sheet holds."""
    return (_SIDE // spec.width) * (_SIDE // spec.height)


def encode(images: Tensor, codec: Codec) -> bytes:
    """Store uint8 (N, C, H, W) images, N at most `most_images`."""
    images = _resized(images, _stored(images.shape[2:], codec), Image.Resampling.BOX)
    if codec.name == "values":
        return _encode_values(images.numpy(), codec.level)
    columns, rows = _grid(*images.shape[:1], *images.shape[2:])
    count, channels, height, width = images.shape
    sheet = torch.zeros(rows * columns, channels, height, width, dtype=torch.uint8)
    sheet[:count], sheet[count:] = images, images[-1]
    sheet = (
        sheet.view(rows, columns, channels, height, width)
        .permute(0, 3, 1, 4, 2)
        .reshape(rows * height, columns * width, channels)
    )
    picture = Image.fromarray(sheet[:, :, 0].numpy() if channels == 1 else sheet.contiguous().numpy())
    buffer, settings = io.BytesIO(), {"method": 6}
    if codec.name == "avif":
        settings = {"subsampling": "4:0:0" if channels == 1 else "4:2:0", "speed": 6, "max_threads": 1}
    picture.save(buffer, format=codec.name.upper(), quality=codec.level, **settings)
    return buffer.getvalue()


def decode(content: bytes, count: int, spec: DataSpec, codec: Codec) -> Tensor:
    """Inverse of `encode`: uint8 (count, C, H, W), what is left of the images.

    Raises:
        InputError: if this Pillow cannot read such pictures.
        ValueError: if the content is not that of so many images, before there is memory for them.
    """
    if not 0 < count <= most_images(spec):
        raise ValueError(f"{str(count)[:20]} images on a sheet that holds {most_images(spec):,}")
    height, width = _stored((spec.height, spec.width), codec)
    if codec.name == "values":
        found = _decode_values(content, (count, spec.channels, height, width), codec.level)
    else:
        if not features.check(codec.name):
            raise InputError(f"this Pillow reads no {codec.name.upper()}: install pillow>={_FROM}, or one built with it")
        columns, rows = _grid(count, height, width)
        sheet = _opened(content, codec.name.upper(), (columns * width, rows * height), "L" if spec.channels == 1 else "RGB")
        found = sheet.reshape(rows, height, columns, width, spec.channels).transpose(0, 2, 4, 1, 3)
        found = np.ascontiguousarray(found.reshape(-1, spec.channels, height, width)[:count])
    return _resized(torch.from_numpy(found), (spec.height, spec.width), Image.Resampling.BICUBIC)


def _stored(size: tuple[int, int], codec: Codec) -> tuple[int, int]:
    return tuple(-(-side // 2) for side in size) if codec.half else tuple(size)


def _grid(count: int, height: int, width: int) -> tuple[int, int]:
    """Columns and rows of a sheet that is about square."""
    columns = min(count, _SIDE // width, math.ceil(math.sqrt(count * height / width)))
    return columns, -(-count // columns)


def _opened(content: bytes, kind: str, size: tuple[int, int], mode: str) -> np.ndarray:
    """A picture of the size that is expected, as (H, W) or (H, W, 3)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its size is compared before it is decoded
            with Image.open(io.BytesIO(content), formats=[kind]) as picture:
                if picture.size != size:
                    raise ValueError(f"a picture of {picture.width}x{picture.height} pixels in place of {size[0]}x{size[1]}")
                return np.array(picture.convert(mode))
    except (OSError, Image.DecompressionBombError, SyntaxError, RuntimeError) as error:
        raise ValueError(f"its picture cannot be read: {error}") from None


def _resized(images: Tensor, size: tuple[int, int], how: Image.Resampling) -> Tensor:
    """Pillow's resizing of bytes, which is whole-number arithmetic and so the same on every machine."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    planes = images.flatten(0, 1).numpy()
    result = [np.asarray(Image.fromarray(plane).resize(size[::-1], how)) for plane in planes]
    return torch.from_numpy(np.stack(result)).view(*images.shape[:2], *size)


def _encode_values(images: np.ndarray, bits: int) -> bytes:
    """Either the values or their differences to the left, whichever takes less of the first images."""
    top = 2**bits - 1
    values = ((images.astype(np.int32) * top + 127) // 255).astype(np.int32)
    steps = np.diff(values, axis=-1, prepend=0) % (top + 1)
    flat = [own.astype(np.uint8).reshape(-1) for own in (values, steps)]
    shorter = min((0, 1), key=lambda way: len(entropy.encode(flat[way][: entropy.TRIED], top + 1)))
    return bytes([shorter]) + entropy.encode(flat[shorter], top + 1)


def _decode_values(content: bytes, shape: tuple[int, ...], bits: int) -> np.ndarray:
    top = 2**bits - 1
    if content[:1] not in (b"\0", b"\1"):
        raise ValueError("its values have an unknown order")
    values = entropy.decode(content[1:], math.prod(shape), top + 1).astype(np.int32).reshape(shape)
    if content[0]:
        values = np.cumsum(values, axis=-1) % (top + 1)
    return ((values * 255 + top // 2) // top).astype(np.uint8)
