"""Coded images: what each codec keeps, whatever the number and the shape, and pictures that are not what they should be."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, features

from dim.coding import pictures
from dim.coding.pictures import Codec
from dim.errors import InputError

CODECS = [
    Codec("webp", 90),
    Codec("avif", 90),
    Codec("values", 6),
    Codec("values", 8),
    Codec("webp", 90, half=True),
    Codec("values", 1),
]


def smooth(spec, count: int) -> torch.Tensor:
    """Images of slopes, of which codecs lose little; odd sides, too."""
    c, h, w = spec.image_shape
    slopes = torch.linspace(0, 160, h).view(1, 1, h, 1) + torch.linspace(0, 60, w)
    return (slopes + torch.arange(count).view(-1, 1, 1, 1) % 30).expand(count, c, h, w).round().to(torch.uint8)


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, (8, 12)), (3, (7, 5))])
@pytest.mark.parametrize("count", [1, 2, 23])
def test_images_come_back_nearly(spec, codec, channels, size, count):
    own = spec(channels, size)
    if not pictures.usable(codec, own):
        pytest.skip("this Pillow lacks AVIF")
    images = smooth(own, count)
    content = pictures.encode(images, codec)
    found = pictures.decode(content, count, own, codec)
    assert (found.shape, found.dtype) == (images.shape, torch.uint8)
    assert torch.equal(found, pictures.decode(content, count, own, codec))
    worst = {"webp": 8, "avif": 8, "values": 0 if codec.level == 8 else 3 if codec.level == 6 else 128}[codec.name]
    error = (found.float() - images.float()).abs()
    assert float(error.mean()) <= (worst if not codec.half else 12)


def test_values_are_rounded_to_the_nearest_of_their_levels(spec):
    images = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    for bits in range(1, 9):
        found = pictures.decode(pictures.encode(images, Codec("values", bits)), 4, spec(1, 8), Codec("values", bits))
        levels = np.round(np.arange(2**bits) * 255 / (2**bits - 1))
        least = np.abs(np.arange(256)[:, None] - levels).min(1)
        assert len(found.unique()) == 2**bits
        assert (np.abs(found.numpy().reshape(-1).astype(int) - np.arange(256)) <= least + 1).all()


def test_a_class_does_not_bleed_into_the_next_one(spec):
    images = torch.stack([torch.full((1, 8, 8), value, dtype=torch.uint8) for value in (0, 255, 0, 255, 128)])
    for codec in (Codec("webp", 80), Codec("values", 4, half=True)):
        found = pictures.decode(pictures.encode(images, codec), 5, spec(1, 8), codec).float()
        assert torch.allclose(found.mean((1, 2, 3)), images.float().mean((1, 2, 3)), atol=9)


def test_another_picture_is_refused_by_its_size_before_it_is_decoded(spec):
    def picture(width: int, kind: str = "WEBP") -> bytes:
        buffer = io.BytesIO()
        Image.new("L", (width, 8)).save(buffer, kind)
        return buffer.getvalue()

    for content in (picture(8000), picture(16, "PNG"), b"", b"RIFF"):
        with pytest.raises(ValueError, match="picture"):
            pictures.decode(content, 2, spec(1, 8), Codec("webp", 50))
    with pytest.raises(ValueError, match="on a sheet that holds"):
        pictures.decode(picture(16), 10**12, spec(1, 8), Codec("webp", 50))


@pytest.mark.parametrize(
    "parts", [("jpeg", 50), ("webp", 101), ("webp", True), ("values", 0), ("values", 9), ("avif", 1.5), ("webp", 50, 1)]
)
def test_an_unknown_codec_is_refused(parts):
    with pytest.raises(ValueError, match=r"codec|level"):
        Codec(*parts)


def test_a_pillow_without_avif_says_so(spec, monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    assert not pictures.usable(Codec("avif", 50), spec(1, 8))
    assert pictures.usable(Codec("values", 4), spec(7, 8))
    with pytest.raises(InputError, match="install pillow"):
        pictures.decode(b"", 2, spec(1, 8), Codec("avif", 50))
