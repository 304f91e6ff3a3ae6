"""Who is a member: a function of data settings that data, halves and canaries agree on."""

import dataclasses

import pytest
import torch

from dim.audit.candidates import Candidates, candidates_of, require_like
from dim.config import DataConfig, to_dict
from dim.data.real import canary_indices, load_data
from dim.errors import InputError

HALF = DataConfig(fraction=0.5, fraction_seed=3, canaries=40)


@pytest.fixture(scope="module")
def half():
    return load_data(HALF)


@pytest.fixture(scope="module")
def found(half) -> Candidates:
    return candidates_of({"data": to_dict(HALF)}, half.spec.fingerprint, None, "cpu")


def test_members_are_exactly_the_images_that_were_trained_on(half, found):
    images, labels = found.images.batch(found.member.nonzero().squeeze(1))
    own, kinds = half.train.batch(torch.arange(len(half.train)))
    assert torch.equal(images, own)
    assert torch.equal(labels, kinds)
    assert found.part(found.member).spec == half.spec
    assert len(half.train) < 0.51 * len(found.whole.train)
    assert int((~found.member).sum()) == len(found) - len(half.train)


def test_parts_of_other_seeds_are_other_parts_of_the_same_size(half, digits):
    other = load_data(dataclasses.replace(HALF, fraction_seed=4))
    assert other.spec.fingerprint != half.spec.fingerprint
    assert torch.equal(torch.bincount(other.train.labels).sum(), torch.bincount(half.train.labels).sum())
    for part in ("val", "test"):
        assert half.digest(part) == other.digest(part) == digits.digest(part)


def test_canaries_have_wrong_labels_and_half_of_them_are_members(found, digits):
    chosen = canary_indices(len(digits.train), HALF)
    assert found.canary.nonzero().squeeze(1).tolist() == sorted(chosen.tolist())
    wrong = found.whole.train.labels != digits.train.labels
    assert wrong.nonzero().squeeze(1).tolist() == sorted(chosen.tolist())
    assert torch.equal(found.whole.train.batch(chosen)[0], digits.train.batch(chosen)[0])
    assert 10 <= int((found.canary & found.member).sum()) <= 30


def test_more_canaries_than_images_are_refused():
    with pytest.raises(InputError, match=r"data\.canaries is 5000: expected at most"):
        load_data(DataConfig(canaries=5000))


def test_halves_are_pairs_and_do_not_depend_on_members(found):
    for number in (0, 2):
        first, second = found.half(number), found.half(number + 1)
        assert torch.equal(second, ~first)
        assert 0.49 < first.double().mean() < 0.51
        assert abs(float((first == found.member).double().mean()) - 0.5) < 0.06
    assert not torch.equal(found.half(0), found.half(2))


def test_without_a_fraction_others_are_the_validation_part(digits):
    found = candidates_of({"data": to_dict(DataConfig())}, digits.spec.fingerprint, None, "cpu")
    assert int(found.member.sum()) == len(digits.train)
    assert int((~found.member).sum()) == len(digits.val)


@pytest.mark.parametrize(
    ("info", "fingerprint", "said"),
    [
        ({}, "", "does not say which data it was made from"),
        ({"data": to_dict(HALF)}, "0" * 32, "made from other images than digits has now"),
        ({"data": to_dict(DataConfig(val_fraction=0.0))}, "0" * 32, "images are members: expected some of each"),
    ],
)
def test_unknown_members_are_refused(info, fingerprint, said):
    with pytest.raises(InputError, match=said):
        candidates_of(info, fingerprint, None, "cpu")


@pytest.mark.parametrize(
    ("mine", "theirs", "said"),
    [
        (HALF, HALF, "fraction_seed 3, as the subject"),
        (HALF, dataclasses.replace(HALF, fraction_seed=4, canaries=0), "has data.canaries 0: expected 40"),
        (DataConfig(), DataConfig(fraction_seed=1), "the same images as the subject"),
    ],
)
def test_references_of_the_same_or_other_data_are_refused(mine, theirs, said):
    require_like(HALF, dataclasses.replace(HALF, fraction_seed=4), "runs/b")
    with pytest.raises(InputError, match=said):
        require_like(mine, theirs, "runs/b")
