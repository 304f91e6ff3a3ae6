"""Differentiable augmentation against slow loops, and the replay of draws."""

import math

import numpy as np
import pytest
import torch

from dim.augment import Augment
from dim.errors import InputError

FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=_generator(seed), dtype=torch.float64) * 2 - 1


def _slow_color(image, values, mean, std):
    channels, height, width = image.shape
    brightness, saturation, contrast = values
    out = np.empty_like(image)
    for y in range(height):
        for x in range(width):
            pixel = [image[c, y, x] + (brightness - 0.5) * std[c] for c in range(channels)]
            if channels > 1:
                grey = sum(pixel) / channels
                pixel = [grey + 2 * saturation * (value - grey) for value in pixel]
            out[:, y, x] = pixel
    centre = out.sum() / out.size
    return centre + (contrast + 0.5) * (out - centre)


def _slow_crop(image, values, mean, std):
    channels, height, width = image.shape
    reach_y, reach_x = math.floor(height / 8 + 0.5), math.floor(width / 8 + 0.5)
    down = math.floor(values[0] * (2 * reach_y + 1)) - reach_y
    right = math.floor(values[1] * (2 * reach_x + 1)) - reach_x
    out = np.empty_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                inside = 0 <= y + down < height and 0 <= x + right < width
                out[c, y, x] = image[c, y + down, x + right] if inside else mean[c]
    return out


def _slow_cutout(image, values, mean, std):
    channels, height, width = image.shape
    out = image.copy()
    edges = []
    for size, value in zip((height, width), values, strict=True):
        side = math.floor(size / 2 + 0.5)
        first = math.floor(value * (size + (1 if side % 2 == 0 else 0))) - side // 2
        edges.append((first, first + side))
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                if edges[0][0] <= y < edges[0][1] and edges[1][0] <= x < edges[1][1]:
                    out[c, y, x] = mean[c]
    return out


def _slow_flip(image, values, mean, std):
    return image[:, :, ::-1].copy() if values[0] < 0.5 else image.copy()


def _slow_warp(image, source, mean):
    """Bilinear look-up at `source(x, y)`, both measured in pixels from the image's centre; outside is the mean."""
    channels, height, width = image.shape
    out = np.empty_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                sx, sy = source(x - (width - 1) / 2, y - (height - 1) / 2)
                sx, sy = sx + (width - 1) / 2, sy + (height - 1) / 2
                left, top = math.floor(sx), math.floor(sy)
                total = 0.0
                for row in (top, top + 1):
                    for column in (left, left + 1):
                        weight = (1 - abs(sy - row)) * (1 - abs(sx - column))
                        inside = 0 <= row < height and 0 <= column < width
                        total += weight * (image[c, row, column] if inside else mean[c])
                out[c, y, x] = total
    return out


def _slow_scale(image, values, mean, std):
    factors = [1 / 1.2 + value * (1.2 - 1 / 1.2) for value in values]
    return _slow_warp(image, lambda x, y: (factors[0] * x, factors[1] * y), mean)


def _slow_rotate(image, values, mean, std):
    angle = math.radians(-15 + 30 * values[0])
    cosine, sine = math.cos(angle), math.sin(angle)
    return _slow_warp(image, lambda x, y: (cosine * x - sine * y, sine * x + cosine * y), mean)


SLOW = {
    "color": _slow_color,
    "crop": _slow_crop,
    "cutout": _slow_cutout,
    "flip": _slow_flip,
    "scale": _slow_scale,
    "rotate": _slow_rotate,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 13), (3, (8, 12))])
def test_each_family_equals_a_slow_loop(spec, family, channels, size):
    if family == "rotate" and size == (8, 12):
        size = 12  # published for square images only
    data = spec(channels, size)
    images = _images(12, *data.image_shape)
    augment = Augment(family, data)
    draw = augment.draw(len(images), _generator(2))
    mean = [2 * value - 1 for value in data.mean]
    std = [2 * value for value in data.std]
    expected = [
        SLOW[family](image, values.tolist(), mean, std)
        for image, values in zip(images.numpy(), draw.values[family].double(), strict=True)
    ]
    torch.testing.assert_close(augment.apply(images, draw), torch.from_numpy(np.stack(expected)), rtol=1e-6, atol=1e-6)


def test_families_joined_by_underscore_are_applied_in_turn(spec):
    data = spec(3, 8)
    images = _images(6, *data.image_shape)
    augment = Augment("color_crop_cutout_flip_scale_rotate", data)
    draw = augment.draw(6, _generator(5))
    assert tuple(draw.values) == FAMILIES
    mean, std = [2 * value - 1 for value in data.mean], [2 * value for value in data.std]
    expected = images.numpy()
    for family in FAMILIES:
        values = draw.values[family].double().tolist()
        expected = np.stack([SLOW[family](image, row, mean, std) for image, row in zip(expected, values, strict=True)])
    torch.testing.assert_close(augment.apply(images, draw), torch.from_numpy(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strategy", ["_".join(FAMILIES), "|".join(FAMILIES)])
def test_a_draw_can_be_replayed(spec, strategy):
    data = spec(3, 8)
    images = _images(5, *data.image_shape).float()
    augment = Augment(strategy, data)
    draw = augment.draw(5, _generator(3))
    first = augment.apply(images, draw)
    augment(images, _generator(9))
    assert torch.equal(augment.apply(images, draw), first)
    assert torch.equal(augment(images, _generator(3)), first)
    assert not torch.equal(first, images)


def test_one_draw_treats_two_batches_alike_image_by_image(spec):
    """The augmentation of an image depends on its place, not on its neighbours or on the other batch."""
    data = spec(3, 8)
    augment = Augment("color_crop_cutout_flip_scale_rotate", data)
    draw = augment.draw(4, _generator(0))
    images, others = _images(4, *data.image_shape, seed=1), _images(4, *data.image_shape, seed=2)
    mixed = torch.cat((images[:2], others[2:]))
    torch.testing.assert_close(augment.apply(mixed, draw)[:2], augment.apply(images, draw)[:2], rtol=0, atol=1e-12)
    torch.testing.assert_close(augment.apply(mixed, draw)[2:], augment.apply(others, draw)[2:], rtol=0, atol=1e-12)


def test_images_of_a_batch_are_augmented_differently(spec):
    data = spec(3, 16)
    image = _images(1, *data.image_shape).expand(16, -1, -1, -1)
    for family in ("color", "crop", "cutout", "scale", "rotate"):
        assert len(torch.unique(Augment(family, data)(image, _generator(0)), dim=0)) > 8, family


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_flow_to_the_images(spec, family):
    """Exact derivatives by finite differences in float64 (for scale and rotate: of the interpolation)."""
    data = spec(2, 5)
    augment = Augment(family, data)
    draw = augment.draw(2, _generator(4))
    images = _images(2, *data.image_shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment.apply(x, draw), (images,))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_data_mean_stays_put(spec, channels):
    """An image of the data's mean is what comes in from outside, so only colour can change it."""
    data = spec(channels, 8)
    mean, _ = data.mean_std(torch.zeros((), dtype=torch.float64))
    images = mean.expand(6, channels, 8, 8).clone()
    for family in ("crop", "cutout", "flip", "scale", "rotate"):
        torch.testing.assert_close(Augment(family, data)(images, _generator(1)), images, rtol=0, atol=1e-12)
    assert not torch.allclose(Augment("color", data)(images, _generator(1)), images)


@pytest.mark.parametrize("family", ["crop", "cutout"])
def test_pixels_that_come_in_are_the_mean(spec, family):
    data = spec(1, 16)
    out = Augment(family, data)(torch.ones(32, 1, 16, 16, dtype=torch.float64), _generator(1))
    fill = out[out != 1]
    assert len(fill) > 0
    torch.testing.assert_close(fill, torch.full_like(fill, data.mean[0] * 2 - 1), rtol=0, atol=1e-12)


def test_crop_shifts_reach_an_eighth_either_way(spec):
    """A single bright pixel in the middle lands at every offset from -2 to 2 and at no other."""
    data = spec(1, 16)
    images = torch.full((512, 1, 16, 16), -1.0)
    images[:, :, 8, 8] = 1
    places = Augment("crop", data)(images, _generator(0)).view(512, -1).argmax(1)
    assert set((places // 16).tolist()) == set((places % 16).tolist()) == {6, 7, 8, 9, 10}


def test_half_of_the_images_are_flipped(spec):
    images = torch.linspace(-1, 1, 8).expand(1000, 1, 8, 8)
    flipped = Augment("flip", spec(1, 8))(images, _generator(0))[:, 0, 0, 0] == 1
    assert 440 < int(flipped.sum()) < 560


def test_the_empty_strategy_changes_nothing(spec):
    augment = Augment("", spec())
    images = _images(3, *spec().image_shape)
    generator = _generator(0)
    state = generator.get_state()
    assert augment(images, generator) is images
    assert augment.apply(images, augment.draw(3, generator)) is images
    assert torch.equal(generator.get_state(), state)


def test_a_bar_picks_exactly_one_family_per_batch(spec):
    augment = Augment("|".join(FAMILIES), spec())
    picks = []
    for seed in range(60):
        values = augment.draw(4, _generator(seed)).values
        assert len(values) == 1
        picks += values
    assert set(picks) == set(FAMILIES)
    assert max(picks.count(family) for family in FAMILIES) < 25


@pytest.mark.parametrize(
    ("strategy", "message"),
    [("colour", "Did you mean 'color'"), ("color_crop|flip", "mixes"), ("flip|crops", "Did you mean 'crop'"), ("7", "Known:")],
)
def test_unknown_families_and_mixtures_are_refused(spec, strategy, message):
    with pytest.raises(InputError, match=message):
        Augment(strategy, spec())


def test_a_draw_for_another_batch_size_is_refused(spec):
    augment = Augment("flip", spec())
    with pytest.raises(ValueError, match="4 images: expected 5"):
        augment.apply(_images(5, *spec().image_shape), augment.draw(4, _generator(0)))
