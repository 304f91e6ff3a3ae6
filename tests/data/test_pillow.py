"""Pictures mean what they show: bits, transparency, rotation, palettes, and files that are no pictures."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dim.data.pillow import (
    LARGEST,
    SEVERAL,
    SIXTEEN_BITS,
    TRANSPARENT,
    TURNED,
    count_converted,
    describe_converted,
    read_picture,
    shown,
)

NOISE = np.random.default_rng(0).integers(0, 2**16, (40, 50), dtype=np.uint16)
COLOURS = np.random.default_rng(1).integers(0, 256, (6, 4, 3), dtype=np.uint8)
WHITE, RED = [255, 255, 255], [255, 0, 0]


def encoded(image: Image.Image, form: str, **options) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    buffer.seek(0)
    return buffer


def read(source, mode: str = "RGB") -> tuple[np.ndarray, int]:
    """As an array (H, W, C)."""
    image, converted = read_picture(source, mode)
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy(), converted


def png(width: int, height: int, depth: int, kind: int, rows: bytes, extra: bytes = b"") -> io.BytesIO:
    """A PNG file of raw rows, each with its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [_chunk(b"IHDR", header), extra, _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b"")]
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def tiff(order: str, bits: int, content: bytes, width: int, height: int, *, white: int = 1, kind: int = 1) -> io.BytesIO:
    """A grey TIFF file in one strip; `order` is "<" or ">", `white` 1, or 0 where zero is white; `kind` is that of its values."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, white), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(content)), (339, kind)]
    entries = b"".join(struct.pack(f"{order}HHI", tag, 4, 1) + struct.pack(f"{order}I", value) for tag, value in tags)
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(content))
    return io.BytesIO(start + content + struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0))


# --- bits --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_16_bits_are_scaled(form, mode):
    found, converted = read(encoded(Image.fromarray(NOISE), form), mode)
    expected = np.round(NOISE.astype(np.float64) * 255 / 65535)
    assert converted == SIXTEEN_BITS
    assert abs(found.mean() / 255 - 0.5) < 0.01  # clipped, it is 0.998
    for channel in range(found.shape[2]):
        np.testing.assert_array_equal(found[:, :, channel], expected)


@pytest.mark.parametrize("order", ["<", ">"])
def test_either_byte_order(order):
    found, converted = read(tiff(order, 16, NOISE.astype(f"{order}u2").tobytes(), 50, 40), "L")
    assert converted == SIXTEEN_BITS
    np.testing.assert_array_equal(found[:, :, 0], np.round(NOISE * 255.0 / 65535))


def test_12_bits_are_scaled_by_their_own_white():
    values = [0, 4095, 2048, 16]
    packed = bytes(
        byte for a, b in zip(values[::2], values[1::2], strict=True) for byte in (a >> 4, (a & 15) << 4 | b >> 8, b & 255)
    )
    found, _ = read(tiff("<", 12, packed, 2, 2), "L")
    assert found[:, :, 0].tolist() == [[0, 255], [128, 1]]


def test_16_bits_in_colour():
    row = b"\0" + struct.pack(">6H", 65535, 32768, 255, 0, 257, 1)
    found, _ = read(png(2, 1, 16, 2, row))
    assert found.tolist() == [[[255, 128, 0], [0, 1, 0]]]


@pytest.mark.parametrize("bits", [8, 16])
def test_zero_may_be_white(bits):
    values = np.arange(6, dtype=f"<u{bits // 8}") * (7 << (bits - 8))
    image, converted = read(tiff("<", bits, values.tobytes(), 3, 2, white=0), "L")
    assert converted == (SIXTEEN_BITS if bits == 16 else 0)
    assert np.abs(image[..., 0].ravel().astype(int) - (255 - 7 * np.arange(6))).max() <= 1


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("kind", [2, 3], ids=["signed", "float"])
def test_values_that_are_signed_or_floats_are_refused(bits, kind):
    if (bits, kind) == (8, 3):
        return  # there are none
    with pytest.raises(ValueError, match=r"signed|32 bits per pixel|no image in a format"):
        read(tiff("<", bits, bytes(6 * bits // 8), 3, 2, kind=kind))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bits_are_refused_as_their_white_is_unknown(kind):
    with pytest.raises(ValueError, match="32 bits per pixel"):
        read(encoded(Image.fromarray(NOISE.astype(kind)), "TIFF"))


# --- transparency ------------------------------------------------------------------------------------------------------------


def test_transparent_pixels_are_put_on_white():
    layers = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 102]]], dtype=np.uint8)
    for form, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        found, converted = read(encoded(Image.fromarray(layers), form, **options))
        assert converted == TRANSPARENT
        assert found.tolist() == [[RED, WHITE, [153, 153, 153]]]
    grey = Image.merge("LA", [Image.fromarray(layers[:, :, channel]) for channel in (2, 3)])
    grey, converted = read(encoded(grey, "PNG"), "L")
    assert converted == TRANSPARENT
    assert grey[:, :, 0].tolist() == [[0, 255, 153]]


def test_an_opaque_alpha_channel_changes_nothing():
    opaque = np.dstack((COLOURS, np.full(COLOURS.shape[:2], 255, dtype=np.uint8)))
    found, converted = read(encoded(Image.fromarray(opaque), "PNG"))
    assert converted == 0
    np.testing.assert_array_equal(found, COLOURS)


def test_palettes():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    assert read(encoded(image, "PNG"))[0].tolist() == [[RED, [0, 255, 0], [0, 0, 255]]]
    assert read(encoded(image, "PNG", transparency=1))[0].tolist() == [[RED, WHITE, [0, 0, 255]]]
    found, converted = read(encoded(image, "PNG", transparency=bytes([0, 255, 51])))
    assert converted == TRANSPARENT
    assert found.tolist() == [[WHITE, [0, 255, 0], [204, 204, 255]]]


def test_a_colour_that_stands_for_transparency():
    image = Image.fromarray(np.array([[RED, [1, 2, 3]]], dtype=np.uint8))
    found, converted = read(encoded(image, "PNG", transparency=(1, 2, 3)))
    assert (found.tolist(), converted) == ([[RED, WHITE]], TRANSPARENT)
    grey = Image.fromarray(np.array([[0, 65535, 300]], dtype=np.uint16))
    found, converted = read(encoded(grey, "PNG", transparency=0), "L")
    assert (found[:, :, 0].tolist(), converted) == ([[255, 255, 1]], SIXTEEN_BITS | TRANSPARENT)
    deep = png(
        2, 1, 16, 2, b"\0" + struct.pack(">6H", 65535, 0, 0, 257, 514, 771), _chunk(b"tRNS", struct.pack(">3H", 257, 514, 771))
    )
    found, converted = read(deep)
    assert (found.tolist(), converted) == ([[RED, WHITE]], TRANSPARENT)


# --- rotation ----------------------------------------------------------------------------------------------------------------

# What a viewer does to the stored pixels, by the value of the tag.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
    9: lambda a: a,  # no such value
}


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_an_exif_rotation_is_honoured(form, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(form, {})
    colours = np.kron(COLOURS, np.ones((8, 8, 1), dtype=np.uint8))
    found, converted = read(encoded(Image.fromarray(colours), form, exif=exif, **options))
    assert converted == (TURNED if 2 <= orientation <= 8 else 0)
    np.testing.assert_allclose(found, UPRIGHT[orientation](colours).astype(int), atol=8 if form == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_data_that_cannot_be_read_say_nothing():
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0nonsense", b"Exif\0\0"):
        found, converted = read(encoded(Image.fromarray(COLOURS), "PNG", exif=exif))
        assert converted == 0
        np.testing.assert_array_equal(found, COLOURS)


def test_everything_at_once_is_counted_once_each():
    exif = Image.Exif()
    exif[274] = 3
    found, converted = read(
        encoded(Image.fromarray(np.array([[0, 65535, 300]], dtype=np.uint16)), "PNG", transparency=0, exif=exif), "L"
    )
    assert found[:, :, 0].tolist() == [[1, 255, 255]]
    assert converted == SIXTEEN_BITS | TRANSPARENT | TURNED
    counts = count_converted(np.array([0, converted, SIXTEEN_BITS], dtype=np.uint8))
    assert describe_converted(counts) == (
        "2 images have 16 bits: scaled to 8; 1 image has transparent pixels: put on white; "
        "1 image has an EXIF rotation: turned upright"
    )
    assert describe_converted(count_converted(np.zeros(3, dtype=np.uint8))) == ""


def test_a_picture_in_memory_stays_as_it_was():
    image = Image.open(
        png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 257, 514, 771), _chunk(b"tRNS", struct.pack(">3H", 257, 514, 771)))
    )
    assert shown(image)[0].flatten().tolist() == WHITE
    assert image.info["transparency"] == (257, 514, 771)
    assert [shown(Image.new(mode, (2, 2)))[0].shape[0] for mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA", "CMYK")] == [
        *(1, 1, 1, 1),
        *(3, 3, 3, 3),
    ]


# --- what is no picture --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [9460, 13000, 20000])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(side):
    bomb = png(side, side, 8, 0, b"")  # decoding it would say that it is truncated
    assert side**2 > LARGEST
    with pytest.raises(ValueError, match="at most 89 million are read"):
        read(bomb)


def test_another_size_is_refused_before_it_is_decoded():
    with pytest.raises(ValueError, match="it has 5000x5000 pixels"):
        read_picture(png(5000, 5000, 8, 0, b""), "L", size=(8, 8))


@pytest.mark.timeout(20)
def test_a_named_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match="no regular file"):
        read(tmp_path / "a.png")
    with pytest.raises(ValueError, match="No such file"):
        read(tmp_path / "b.png")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF"])
def test_damaged_bytes_give_a_picture_or_one_line(form):
    whole = encoded(Image.fromarray(COLOURS), form).read()
    source = np.random.default_rng(list(form.encode()))
    refused = []
    for number in range(150):
        content = bytearray(whole[: source.integers(len(whole))] if number % 3 == 0 else whole)
        for _ in range(source.integers(1, 6) if content else 0):
            content[source.integers(len(content))] = source.integers(256)
        try:
            assert read(io.BytesIO(content))[0].ndim == 3
        except ValueError as error:
            refused.append(error)
    assert len(refused) > 20
    for error in refused:
        assert type(error) is ValueError
        assert 0 < len(str(error)) <= 120
        assert "\n" not in str(error)


# --- several pictures, no pixels, other formats ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_pictures_the_first_is_taken_and_that_is_counted(form):
    first, second = Image.new("RGB", (9, 8), (0, 0, 255)), Image.new("RGB", (9, 8), "white")
    image, converted = read(
        encoded(first, form, save_all=True, append_images=[second], **({} if form != "WEBP" else {"lossless": True}))
    )
    assert converted == SEVERAL
    assert (image == [0, 0, 255]).all()
    assert describe_converted({**count_converted(np.array([SEVERAL], dtype=np.uint8))}) == (
        "1 image has several pictures: the first is taken"
    )


def test_a_photograph_with_a_preview_is_one_picture():
    image = Image.fromarray(COLOURS)
    buffer = encoded(image, "MPO", save_all=True, append_images=[image.resize((2, 3))])
    assert Image.open(buffer).format == "MPO"
    assert read(buffer)[1] == 0


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_a_picture_without_pixels_is_refused(mode):
    with pytest.raises(ValueError, match="0x5 pixels"):
        shown(Image.new(mode, (0, 5)))


def test_what_another_program_would_draw_is_no_picture():
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(ValueError, match="no image in a format that Pillow reads"):
        read(io.BytesIO(text))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I;16"]
)
def test_every_mode_of_a_picture_shows_what_it_is(mode):
    grey = Image.fromarray(np.full((4, 5), 255, dtype=np.uint8))
    image = grey.convert("RGB").convert("LAB") if mode == "LAB" else _converted(grey, mode)
    for wanted, channels in ((None, 1 if Image.getmodebase(mode) == "L" else 3), ("L", 1), ("RGB", 3)):
        pixels, _ = shown(image, wanted)
        assert tuple(pixels.shape) == (channels, 4, 5)
        assert int(pixels.min()) >= 254


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Pillow has no direct way from grey to some modes."""
    if mode == "I;16":
        return Image.fromarray(np.full((image.height, image.width), 65535, dtype=np.uint16))
    way = {"La": ("LA",), "PA": ("RGBA", "P"), "RGBa": ("RGBA",), "HSV": ("RGB",), "YCbCr": ("RGB",)}.get(mode, ())
    for step in (*way, mode):
        image = image.convert(step)
    return image
