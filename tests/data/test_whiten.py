"""ZCA whitening: its statistics, its inverse, and a data set seen through it."""

import numpy as np
import pytest
import torch

from dim.config import DataConfig
from dim.data.real import from_dataset
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.nets.student import build_student


@pytest.fixture(scope="module")
def colour():
    """Ninety 3x6x5 images whose pixels hang together, and whose channels differ in brightness."""
    source = torch.Generator().manual_seed(0)
    coarse = torch.rand(90, 3, 3, 3, generator=source) * torch.tensor([0.3, 0.6, 0.9]).view(3, 1, 1)
    images = torch.nn.functional.interpolate(coarse, (6, 5), mode="bilinear") + 0.05 * torch.rand(90, 3, 6, 5, generator=source)
    items = [((image * 255).to(torch.uint8), n % 3) for n, image in enumerate(images)]
    return from_dataset(items[:70], items[70:], name="colour", class_names="abc", config=DataConfig(val_fraction=0.1))


@pytest.fixture(scope="module", params=["digits", "colour"])
def data(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def whitening(data):
    return Whitening.fit(data.train, data.spec)


def images_of(split) -> torch.Tensor:
    return split.batch(torch.arange(len(split)))[0]


def unit(images: torch.Tensor) -> np.ndarray:
    """Flattened images in [0, 1], float64."""
    return ((images.double() + 1) / 2).flatten(1).numpy()


@pytest.mark.parametrize("eps", [0.1, 0.01])
def test_whitened_training_images_have_the_covariance_of_zca(data, eps):
    """U S / (S + eps) U^T, and mean 0."""
    natural = images_of(data.train)
    whitened = Whitening.fit(data.train, data.spec, eps=eps).whiten(natural)
    values, vectors = np.linalg.eigh(np.cov(unit(natural), rowvar=False))
    expected = (vectors * (values / (values + eps))) @ vectors.T
    own = whitened.double().flatten(1).numpy()
    np.testing.assert_allclose(np.cov(own, rowvar=False), expected, atol=1e-4)
    np.testing.assert_allclose(own.mean(axis=0), 0, atol=1e-4)
    assert own.var(axis=0).max() < 1


def test_whitening_is_zca_and_not_another_rotation_of_it(data, whitening):
    """W = (C + eps)^(-1/2) is the only symmetric one: each pixel stays as near to itself as can be."""
    natural = images_of(data.train)
    flat = unit(natural)
    values, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))
    matrix = vectors @ np.diag((values + 0.1) ** -0.5) @ vectors.T
    expected = (flat - flat.mean(axis=0)) @ matrix
    np.testing.assert_allclose(whitening.whiten(natural).flatten(1).numpy(), expected, atol=2e-4)


def test_the_inverse_is_exact(data, whitening):
    for split in (data.train, data.test):  # also of images that it was not made from
        natural = images_of(split)
        torch.testing.assert_close(whitening.natural(whitening.whiten(natural)), natural, rtol=0, atol=1e-4)
    noise = torch.randn(20, *data.spec.image_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(whitening.whiten(whitening.natural(noise)), noise, rtol=0, atol=1e-4)


def test_both_ways_are_differentiable(data, whitening):
    direction = torch.randn(2, *data.spec.image_shape, generator=torch.Generator().manual_seed(1))
    at = images_of(data.test)[:2]
    for way in (whitening.natural, whitening.whiten):
        x = at.clone().requires_grad_()
        (way(x) * direction).sum().backward()
        # Both are affine, so a difference is the derivative.
        torch.testing.assert_close((x.grad * at).sum(), ((way(at) - way(0 * at)) * direction).sum(), rtol=1e-3, atol=1e-3)


def test_students_of_whitened_data_leave_images_as_they_are(data, whitening):
    seen = whitening.data(data)
    assert (seen.spec.mean, seen.spec.std) == ((0.5,) * seen.spec.channels, (0.5,) * seen.spec.channels)
    student = build_student("convnet:width=4,depth=1", seen.spec, seed=0)
    images = images_of(seen.test)[:5]
    assert torch.equal((images - student.mean) / student.std, images)
    assert torch.equal(student.embed(images), student.body(images).flatten(1))


def test_a_whitened_data_set_is_the_same_one_in_other_coordinates(data, whitening):
    seen = whitening.data(data)
    for name in ("name", "fingerprint", "class_names", "image_shape"):
        assert getattr(seen.spec, name) == getattr(data.spec, name)
    for part in ("train", "val", "test"):
        own, natural = getattr(seen, part), getattr(data, part)
        assert len(own) == len(natural)
        assert own.streams == natural.streams
        assert torch.equal(own.labels, natural.labels)
        chosen = torch.tensor([3, 0, 3])
        images, labels = own.batch(chosen)
        expected, expected_labels = natural.batch(chosen)
        assert torch.equal(images, whitening.whiten(expected))  # by the statistics of the training part, all three
        assert torch.equal(labels, expected_labels)
        assert images.dtype == torch.float32


def test_a_split_larger_than_one_portion_has_the_same_statistics(colour):
    """Statistics are summed over portions of 4,096 images."""

    class Many:
        labels, streams = torch.zeros(10_000, dtype=torch.int64), False
        own = images_of(colour.train)

        def __len__(self):
            return len(self.labels)

        def batch(self, indices):
            return self.own[indices % len(self.own)], self.labels[indices]

    many = Whitening.fit(Many(), colour.spec)
    flat = unit(Many.own[torch.arange(10_000) % len(Many.own)])
    expected = np.linalg.inv(np.cov(flat, rowvar=False) + 0.1 * np.eye(flat.shape[1]))
    np.testing.assert_allclose((many._forward @ many._forward).double().numpy(), expected, atol=1e-3)
    np.testing.assert_allclose(many._mean.numpy(), flat.mean(axis=0), atol=1e-5)


def test_images_that_are_too_large_are_refused(spec):
    class Nothing:
        def __len__(self):
            raise AssertionError("not looked at")

    with pytest.raises(InputError, match=r"65x65.*64x64.*--no-zca") as caught:
        Whitening.fit(Nothing(), spec(3, 65, 10))
    assert "\n" not in str(caught.value)
