"""Weights of few bits: rounding by an independent formula, whole states, and calibration by a generator's own images."""

import numpy as np
import pytest
import torch

from dim.coding import weights
from dim.coding.calibration import calibrated
from dim.coding.weights import Shape
from dim.errors import InputError


def normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def nearest(values: np.ndarray, scale: float, most: int) -> np.ndarray:
    """The multiples of a scale that are nearest, one value after another."""
    return np.array([min(range(-most, most + 1), key=lambda k: abs(v - k * scale)) * scale for v in values])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_row_has_the_scale_of_least_error(bits):
    rows = normal(3, 50) * torch.tensor([[0.01], [1.0], [100.0]])
    scale, most = weights.scales(rows, bits), 2 ** (bits - 1) - 1
    for row, own in zip(rows.numpy().astype(np.float64), scale.flatten().tolist(), strict=True):
        error = ((nearest(row, own, most) - row) ** 2).sum()
        others = [float(np.float16(np.abs(row).max() * part / most)) for part in np.linspace(0.3, 1, 29)]
        assert error <= 1.001 * min(((nearest(row, other, most) - row) ** 2).sum() for other in others)
    found = weights.rounded(rows, scale, bits).float() * scale.float()
    assert np.allclose(
        found.numpy(), [nearest(r, s, most) for r, s in zip(rows.numpy(), scale.flatten().tolist(), strict=True)], rtol=1e-4
    )


def test_zeros_stay_and_what_is_too_large_is_refused():
    assert torch.equal(
        weights.rounded(torch.zeros(2, 3), weights.scales(torch.zeros(2, 3), 4), 4), torch.zeros(2, 3, dtype=torch.int16)
    )
    for value in (1e6, float("inf"), float("nan")):
        with pytest.raises(InputError, match="a weight is"):
            weights.scales(torch.full((1, 2), value), 4)


STATE = {
    "a.weight": normal(6, 4, 3, 3),
    "a.bias": normal(6),
    "b.weight": normal(5, 7).half(),
    "running_var": normal(6).abs() * 1e9,
    "count": torch.tensor(2**40),
    "anchors": normal(3, 2, 5),
    "spread": torch.tensor(0.3),
    "empty": torch.zeros(0, 3),
}
LEARNED = ("a.weight", "a.bias", "b.weight", "empty")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_state_comes_back_rounded_and_again_the_same(bits):
    shapes = weights.shapes_of(STATE, LEARNED)
    parts = weights.code(STATE, shapes, bits)
    found = weights.decode(parts, shapes, bits)
    assert found.keys() == STATE.keys()
    for name, value in STATE.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
    for name in ("running_var", "count", "spread"):
        assert torch.equal(found[name], STATE[name])
    assert float((found["a.bias"] - STATE["a.bias"]).abs().max()) < float(STATE["a.bias"].abs().max()) / 254 + 1e-3
    assert float((found["anchors"] - STATE["anchors"]).abs().max()) < float(STATE["anchors"].abs().max()) / 31
    distance = (found["a.weight"] - STATE["a.weight"]).square().mean()
    assert float(distance) < {2: 0.3, 4: 0.02, 8: 1e-4}[bits]
    assert all(len(channel.unique()) <= 2**bits - 1 for channel in found["a.weight"])
    scaled = {name: weights.scales(STATE["a.weight"].reshape(6, -1), bits) for name in ("a.weight",)}
    assert weights.code(STATE, shapes, bits, scaled) == parts
    assert weights.decode(parts, shapes, bits)["a.weight"].equal(found["a.weight"])


def test_streams_of_another_state_are_refused():
    parts = weights.code(STATE, weights.shapes_of(STATE, LEARNED), 4)
    larger = {**weights.shapes_of(STATE, LEARNED), "a.weight": Shape((60000, 4, 3, 3), torch.float32, True)}
    for shapes, streams in ((larger, parts), (weights.shapes_of(STATE, LEARNED), {})):
        with pytest.raises((ValueError, LookupError)):
            weights.decode(streams, shapes, 4)


def test_calibration_brings_images_nearer_and_leaves_the_generator(digits_gan):
    before = {name: value.clone() for name, value in digits_gan.state_dict().items()}
    state, scales, (plain, moved) = calibrated(digits_gan, 4, steps=80)
    assert moved < 0.9 * plain
    assert all(torch.equal(value, before[name]) for name, value in digits_gan.state_dict().items())
    assert not torch.equal(state["linear.weight"], before["linear.weight"])
    shapes = weights.shapes_of(state, [name for name, _ in digits_gan.named_parameters()])

    def images(values) -> torch.Tensor:
        z, y = normal(64, 6, seed=5), torch.arange(64) % 10
        return torch.func.functional_call(digits_gan, values, (z, y)).detach()

    def distance(values, **given) -> float:
        return float(
            (images(weights.decode(weights.code(values, shapes, 4, **given), shapes, 4)) - images(before)).square().mean()
        )

    assert distance(state, scale_of=scales) < 0.9 * distance(before)  # on latents that neither part of calibration saw


def test_calibration_that_does_harm_is_not_taken(digits_gan):
    state, _, (plain, moved) = calibrated(digits_gan, 8, steps=3, lr=300.0)
    assert moved == plain
    assert all(torch.equal(state[name], value) for name, value in digits_gan.state_dict().items())
