"""DataSpec and the two conversions between pixels and [-1, 1]."""

import dataclasses
import json

import pytest
import torch

from dim.errors import InputError, nearest
from dim.spec import DataSpec, require_same_data, to_uint8, to_unit_range


def test_data_of_the_same_classes_in_another_order_are_other_data(spec):
    data = spec(classes=3)
    require_same_data(data, data)
    require_same_data(dataclasses.replace(data, class_names=("x", "y", "z")), data)  # other names for what may be the same
    with pytest.raises(InputError, match=r"class 0 is 'class 2' there and 'class 0' in 'toy'; make it again"):
        require_same_data(dataclasses.replace(data, class_names=tuple(reversed(data.class_names))), data)
    with pytest.raises(InputError, match="expected 'toy'"):
        require_same_data(spec(classes=4), data)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("abc", ""),
        ("bca", None),
        ("bcx", None),  # in another order, and one has another name
        ("xab", None),
        ("aab", None),
        ("xbc", "dim: class 0 is 'x' in what was made and 'a' in 'toy': taken as the same classes\n"),
        ("xyz", "dim: class 0 is 'x' in what was made and 'a' in 'toy', and 2 more: taken as the same classes\n"),
        ("Abc", "dim: class 0 is 'A' in what was made and 'a' in 'toy': taken as the same classes\n"),
    ],
)
def test_names_of_classes_are_compared_place_by_place(spec, names, said, capsys):
    data = dataclasses.replace(spec(classes=3), class_names=tuple("abc"))
    made = dataclasses.replace(data, class_names=tuple(names))
    if said is None:
        with pytest.raises(InputError, match=r"in another order: class \d is '.' there and '.' in 'toy'; make it again"):
            require_same_data(made, data)
    else:
        require_same_data(made, data)
        assert capsys.readouterr().err == said


def test_every_pixel_value_survives_a_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    images = to_unit_range(pixels)
    assert images.dtype == torch.float32
    assert images.min() == -1
    assert images.max() == 1
    assert torch.equal(to_uint8(images), pixels)


def test_to_uint8_clips_and_rounds_to_nearest():
    values = torch.tensor([-9.0, -1.0, 3 / 127.5 - 1 + 0.4 / 127.5, 3 / 127.5 - 1 + 0.6 / 127.5, 1.0, 9.0])
    assert to_uint8(values).tolist() == [0, 0, 3, 4, 255, 255]


def test_to_uint8_leaves_its_argument_alone():
    images = torch.linspace(-2, 2, 5)
    before = images.clone()
    to_uint8(images)
    assert torch.equal(images, before)


def test_mean_std_describe_images_in_minus_one_to_one(spec):
    """Normalising x in [-1, 1] equals the field's (x01 - mean) / std."""
    data = spec(3, 8, 2)
    unit = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, std = data.mean_std(unit)
    field = (unit - torch.tensor(data.mean).double().view(3, 1, 1)) / torch.tensor(data.std).double().view(3, 1, 1)
    assert mean.shape == std.shape == (1, 3, 1, 1)
    assert mean.dtype == torch.float64
    torch.testing.assert_close((unit * 2 - 1 - mean) / std, field, rtol=1e-6, atol=1e-6)


def test_sizes(spec):
    data = spec(3, (6, 10), 7)
    assert data.image_shape == (3, 6, 10)
    assert data.num_classes == 7
    assert data.image_bytes == 180


def test_json_round_trip(spec):
    data = spec(3, (6, 10), 7)
    assert DataSpec.from_dict(json.loads(json.dumps(data.to_dict()))) == data


def test_is_frozen(spec):
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec().channels = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 0, "mean": (), "std": ()}, "channels is 0"),
        ({"height": -3}, "height is -3"),
        ({"width": 0}, "width is 0"),
        ({"class_names": ("only",)}, "at least 2"),
        ({"mean": (0.5,)}, "one per channel"),
        ({"std": (0.5,) * 4}, "one per channel"),
    ],
)
def test_refuses_impossible_data(spec, change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(spec(), **change)


@pytest.mark.parametrize("change", [{"surprise": 1}, None])
def test_from_dict_refuses_unknown_and_missing_fields(spec, change):
    values = spec().to_dict()
    if change is None:
        del values["mean"]
    else:
        values |= change
    with pytest.raises(InputError, match="not a data specification"):
        DataSpec.from_dict(values)


def test_nearest_names_a_close_match_or_lists_all():
    assert nearest("widht", ["width", "depth"]) == "Did you mean 'width'?"
    assert nearest("zzz", ["width", "depth"]) == "Known: depth, width."
