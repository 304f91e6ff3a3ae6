"""SyntheticSet: items, sizes, and the round trip through every format."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import dim
from dim.data.synthetic import SyntheticSet, load_set
from dim.errors import InputError
from dim.spec import DataSpec

FORMATS = ("imagefolder", "safetensors", "npz")


def make_spec(channels: int = 3, classes: int = 3) -> DataSpec:
    return DataSpec(
        name="toy",
        channels=channels,
        height=6,
        width=5,
        class_names=tuple(f"c{n}" for n in range(classes)),
        mean=(0.5,) * channels,
        std=(0.2,) * channels,
        fingerprint="f",
    )


def make_set(*, channels: int = 3, classes: int = 3, ipc: int = 4, soft: bool = False, floats: bool = False, **settings):
    source = torch.Generator().manual_seed(0)
    count = ipc * classes
    images = torch.randint(0, 256, (count, channels, 6, 5), generator=source, dtype=torch.uint8)
    if floats:
        images = torch.rand(count, channels, 6, 5, generator=source) * 2 - 1
    labels = torch.arange(count) % classes
    weights = torch.rand(count, classes, generator=source).softmax(1) if soft else None
    return SyntheticSet(images, labels, make_spec(channels, classes), soft=weights, info={"seed": 7}, **settings)


def test_an_item_is_an_image_in_minus_one_to_one_and_its_label():
    subject = make_set()
    image, label = subject[4]
    assert len(subject) == 12
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, subject.images[4].float() / 127.5 - 1)
    assert (label, type(label)) == (1, int)


def test_soft_labels_take_the_place_of_hard_ones():
    subject = make_set(soft=True)
    assert torch.equal(subject[5][1], subject.soft[5])
    assert torch.equal(subject.tensors()[1], subject.soft)


def test_tensors_are_all_items():
    subject = make_set()
    images, targets = subject.tensors()
    assert torch.equal(images, torch.stack([image for image, _ in subject]))
    assert targets.tolist() == [label for _, label in subject]


def test_an_item_may_be_changed_without_changing_the_set():
    subject = make_set(floats=True)
    before = subject.images.clone()
    subject[0][0].zero_()
    assert torch.equal(subject.images, before)


def test_a_transform_sees_images_only():
    subject = make_set(transform=lambda image: image.flip(2))
    assert torch.equal(subject[3][0], make_set()[3][0].flip(2))
    assert torch.equal(subject.tensors()[0], make_set().tensors()[0])


def test_a_data_loader_takes_it():
    (images, labels), *rest = DataLoader(make_set(), batch_size=8)
    assert images.shape == (8, 3, 6, 5)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert len(rest) == 1


def test_images_per_class_are_known_for_balanced_sets_only():
    assert make_set(ipc=4).ipc == 4
    subject = make_set(ipc=4)
    assert SyntheticSet(subject.images[:-1], subject.labels[:-1], subject.spec).ipc is None


def test_stored_bytes():
    assert make_set().bytes_stored() == {"images": 12 * 3 * 6 * 5, "labels": 12}
    assert make_set(floats=True).bytes_stored()["images"] == 4 * 12 * 3 * 6 * 5
    assert make_set(soft=True).bytes_stored()["labels"] == 4 * 12 * 3
    assert make_set(classes=256, ipc=1).bytes_stored()["labels"] == 256
    assert make_set(classes=257, ipc=1).bytes_stored()["labels"] == 2 * 257


@pytest.mark.parametrize(
    "changes",
    [
        {"images": torch.zeros(12, 3, 5, 6, dtype=torch.uint8)},
        {"images": torch.zeros(0, 3, 6, 5, dtype=torch.uint8), "labels": torch.zeros(0, dtype=torch.int64)},
        {"images": torch.zeros(12, 3, 6, 5, dtype=torch.float64)},
        {"labels": torch.zeros(11, dtype=torch.int64)},
        {"labels": torch.full((12,), 3)},
        {"labels": torch.full((12,), -1)},
        {"labels": torch.zeros(12, 1, dtype=torch.int64)},
        {"labels": ["a"] * 12},
        {"labels": None},
        {"images": torch.zeros(12, 3, 6, 5, device="meta")},
        {"images": torch.zeros(12, 3, 6, 5).to_sparse()},
        {"images": None},
        {"soft": torch.zeros(12, 4)},
    ],
)
def test_what_does_not_fit_together_is_refused(changes):
    good = make_set()
    values = {"images": good.images, "labels": good.labels, "spec": good.spec}
    SyntheticSet(**values)
    with pytest.raises(InputError):
        SyntheticSet(**{**values, **changes})


UNIT = torch.linspace(-1, 1, 12 * 90).view(12, 3, 6, 5)


@pytest.mark.parametrize(
    "images",
    [
        (UNIT + 1) * 127.5,
        (UNIT + 1) * 127.5 - 0.01,  # of a resize that overshoots
        (UNIT + 1) * 8,  # of digits from 0 to 16
        torch.where(UNIT > 0.99, 200.0, 0.0),  # dark ones
    ],
)
def test_float_images_of_another_scale_are_refused(images):
    with pytest.raises(InputError, match=r"float images reach from -?[\d.]+ to [\de+.]+: expected \[-1, 1\]"):
        SyntheticSet(images, make_set().labels, make_set().spec)


def test_float_images_that_may_be_of_another_scale_are_taken_with_a_word(capsys):
    labels, spec = make_set().labels, make_set().spec
    SyntheticSet(3 * UNIT, labels, spec)  # learned pixels leave the range
    SyntheticSet(80 * UNIT, labels, spec)  # far, where a step size was too large; that is seen in scores
    SyntheticSet(UNIT, labels, spec)
    SyntheticSet(torch.zeros_like(UNIT), labels, spec)
    assert capsys.readouterr().err == ""
    SyntheticSet((UNIT + 1) / 2, labels, spec)
    assert (
        "from 0 to 1: taken as [-1, 1], where 0 is middle grey; of images in [0, 1], give 2 * images - 1"
        in capsys.readouterr().err
    )


@pytest.mark.filterwarnings("error")
def test_arrays_and_lists_make_a_set_too():
    good = make_set()
    for convert in (np.asarray, Tensor.tolist):
        images = good.images if convert is Tensor.tolist else convert(good.images)
        same = SyntheticSet(images, convert(good.labels), good.spec, soft=convert(torch.eye(3)[good.labels]))
        assert torch.equal(same.images, good.images)
        assert torch.equal(same.labels, good.labels)
    assert not SyntheticSet(UNIT.clone().requires_grad_(), good.labels, good.spec).images.requires_grad


@pytest.mark.parametrize("info", [{"x": float("nan")}, {"x": torch.zeros(1)}, {"x": object()}])
def test_what_json_cannot_hold_is_refused_when_it_is_stored(tmp_path, info):
    good = make_set()
    with pytest.raises(InputError, match="info of the set cannot be stored"):
        SyntheticSet(good.images, good.labels, good.spec, info=info).save(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_saved_set_is_the_same_set(tmp_path, format, soft, channels):
    subject = make_set(channels=channels, soft=soft)
    assert subject.save(tmp_path / "set", format) == tmp_path / "set"
    again = dim.load_set(tmp_path / "set")
    assert again.images.dtype == torch.uint8
    assert torch.equal(again.images, subject.images)
    assert torch.equal(again.labels, subject.labels)
    assert again.labels.dtype == torch.int64
    assert (again.spec, again.info) == (subject.spec, subject.info)
    if soft:
        assert again.soft.dtype == torch.float32
        assert torch.equal(again.soft, subject.soft)
    else:
        assert again.soft is None


@pytest.mark.parametrize("format", ["safetensors", "npz"])
def test_float_images_are_kept_bit_by_bit(tmp_path, format):
    subject = make_set(floats=True)
    subject.save(tmp_path / "set", format)
    assert torch.equal(load_set(tmp_path / "set").images, subject.images)


def test_float_images_are_not_silently_rounded_into_png(tmp_path):
    with pytest.raises(InputError, match="npz or safetensors"):
        make_set(floats=True).save(tmp_path / "set", "imagefolder")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(InputError, match=r"unknown format 'safetensor'\. Did you mean 'safetensors'"):
        make_set().save(tmp_path / "set", "safetensor")
    assert list(tmp_path.iterdir()) == []
