"""Classes as people name them, and whole numbers as they give them."""

import collections
import enum
import fractions

import numpy as np
import pytest
import torch

from dim.classes import alike, class_list, class_number, class_numbers, whole_number
from dim.errors import InputError

NAMES = ("zero", "one", "two")


class Number(enum.IntEnum):
    TWO = 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2, 0], [2, 0]),
        ((2, 0), [2, 0]),
        (range(3), [0, 1, 2]),
        (np.array([2, 0], dtype=np.int8), [2, 0]),
        (np.array([2, 0], dtype=np.uint64), [2, 0]),
        (np.array(["two", "zero"]), [2, 0]),
        (np.array([2, "zero"], dtype=object), [2, 0]),
        (torch.tensor([2, 0], dtype=torch.uint8), [2, 0]),
        (torch.tensor([2.0, 0.0]), [2, 0]),
        (torch.tensor([2.0, 0.0], dtype=torch.bfloat16), [2, 0]),
        (torch.tensor([2.0, 0.0], requires_grad=True), [2, 0]),
        (torch.tensor([True, False]), [1, 0]),
        (torch.tensor([[2], [0]]), [2, 0]),
        (torch.eye(3, dtype=torch.bfloat16), [0, 1, 2]),
        (torch.eye(3, dtype=torch.bool), [0, 1, 2]),
        (np.eye(3), [0, 1, 2]),
        (["two", 0, [0, 1, 0]], [2, 0, 1]),
        ("two", [2]),
        (np.str_("two"), [2]),
        (np.int64(2), [2]),
        (torch.tensor(2), [2]),
        (Number.TWO, [2]),
        (fractions.Fraction(2), [2]),
        ([], []),
        (torch.zeros(0), []),
    ],
    ids=str,
)
def test_labels_of_any_form(labels, expected):
    found = class_numbers(labels, NAMES)
    assert (found.dtype, found.device.type) == (torch.int64, "cpu")
    assert found.tolist() == expected


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("labels", "part"),
    [
        ([-1], "-1: expected 0 to 2"),
        ([3], "3: expected 0 to 2"),
        (torch.tensor([0, -5]), "-5 is out of range"),
        ([2**70], "1180591620717411303424: expected"),
        ([10**400], "type int: expected a number"),
        (np.array([2**63 + 1], dtype=np.uint64), "expected 0 to 2"),
        ([1.5], "1.5: expected"),
        ([float("nan")], "nan: expected"),
        ([float("inf")], "inf: expected"),
        (["three"], "'three': expected one of"),
        (["2"], "'2': expected one of"),
        ([None], "None: expected"),
        ([b"two"], "bytes: expected|b'two'"),
        ({0, 1}, "type set: expected"),
        ({0: 1}, "type dict: expected"),
        ((number for number in range(2)), "type generator: expected"),
        (torch.tensor([1j]), "type Tensor: expected"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), "type Tensor: expected"),
        (torch.tensor([[0.5, 0.5, 0.0]]), "one 1 among zeros"),
        (torch.tensor([[1, 1, 0]]), "one 1 among zeros"),
        (torch.tensor([[1, 0]]), "one 1 among zeros"),
    ],
)
def test_what_is_no_label_is_refused_in_one_line(labels, part):
    with pytest.raises(InputError) as caught:
        class_numbers(labels, NAMES)
    assert part.partition("|")[0] in str(caught.value) or part.partition("|")[2] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value", [2, 2.0, "2", np.int8(2), np.float32(2), torch.tensor(2), torch.tensor(2.0), fractions.Fraction(2)]
)
def test_whole_numbers_of_any_kind(value):
    found = whole_number(value, "x", 2)
    assert (type(found), found) == (int, 2)


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        "two",
        None,
        True,
        np.True_,
        float("nan"),
        float("inf"),
        [2],
        2j,
        2**63,
        10**400,
        torch.ones(2),
        torch.ones(1, device="meta"),
    ],
    ids=str,
)
def test_what_is_no_whole_number(value):
    with pytest.raises(InputError, match=r"^x is .*: expected a whole number$"):
        whole_number(value, "x")


def test_whole_numbers_that_are_too_small():
    with pytest.raises(InputError, match=r"^x is 0: expected 1 or more$"):
        whole_number(0, "x", 1)


def test_names_that_may_be_meant_alike():
    for names in (("Cat", " cat", "CAT "), ("caf\u00e9", "cafe\u0301"), ("1", "01", "001"), ("a b", "a  b", "a\tb")):
        assert len(set(map(alike, names))) == 1
    assert len(set(map(alike, ("cat", "cats", "1", "10", "-1", "1.0", "e", "\u00e9")))) == 8


def test_names_in_a_generator_have_an_order_and_in_a_set_none():
    assert class_list((name for name in "abc"), "x") == ("a", "b", "c")
    assert class_list(collections.OrderedDict(b=0, a=1), "x") == ("b", "a")
    assert class_number("b", class_list(["a", "b"], "x"), "item") == 1
    for names in ({"a", "b"}, frozenset("ab"), 3, None, np.array("a"), collections.Counter("abb")):
        with pytest.raises(InputError, match="the class names of x are a"):
            class_list(names, "x")
