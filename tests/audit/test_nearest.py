"""Distances to the nearest image of a set, and copies, in pixels."""

import pytest
import torch

from dim.audit.candidates import Candidates
from dim.audit.nearest import copies, nearest_distances, pixels
from dim.data.splits import JoinedSplit
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.spec import to_uint8

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def candidates(digits) -> Candidates:
    """The digits' training and validation part, of which a random half are called members."""
    count = len(digits.train) + len(digits.val)
    member = torch.rand(count, generator=torch.Generator().manual_seed(0)) < 0.5
    return Candidates(digits, member, torch.zeros(count, dtype=torch.bool))


def of(data, split, indices) -> SyntheticSet:
    images, labels = split.batch(indices)
    return SyntheticSet(to_uint8(images), labels, data.spec)


def test_distances_are_within_the_class_and_normalised(digits):
    chosen = torch.cat([(digits.train.labels == label).nonzero()[:3, 0] for label in range(9)])  # no nine
    subject, other = of(digits, digits.train, chosen), of(digits, digits.train, chosen[::2])
    found = nearest_distances(digits.val, [subject, other], pixels(digits.spec, CPU))
    images, labels = digits.val.batch(torch.arange(len(digits.val)))
    std = 2 * digits.spec.std[0]
    for row, points in enumerate((subject, other)):
        for image, label, distance in zip(images, labels, found[row], strict=True):
            own = points.tensors()[0][points.labels == label]
            if label == 9:
                assert distance.isnan()
            else:
                expected = ((own - image) / std).flatten(1).norm(dim=1).min().double()
                assert distance.item() == pytest.approx(expected.item(), rel=1e-5)


def test_copies_of_members_are_found_and_held_out_images_are_none(digits, candidates):
    members = candidates.member.nonzero().squeeze(1)
    copied = copies(candidates, of(digits, candidates.images, members[::7]), pixels(digits.spec, CPU))
    assert copied.neighbours > 100
    assert copied.members.value == pytest.approx(1.0)
    assert copied.nearer == 1.0
    assert copied.verdict == "leak"
    free = copies(candidates, of(digits, digits.test, torch.arange(len(digits.test))), pixels(digits.spec, CPU))
    assert free.verdict == "chance"
    assert free.expected == pytest.approx(0.5, abs=0.05)
    assert free.members.low <= free.expected <= free.members.high
    assert free.nearer < 0.1


def test_images_that_are_all_alike_count_once(digits, candidates):
    """Five hundred times one image have one neighbour: nothing is known from that."""
    found = copies(candidates, of(digits, digits.test, torch.zeros(500, dtype=torch.int64)), pixels(digits.spec, CPU))
    assert (found.images, found.neighbours, found.verdict) == (500, 1, "chance")


def test_a_class_of_members_alone_says_nothing(digits, candidates):
    labels = candidates.images.labels
    whole = Candidates(digits, candidates.member | (labels == 3), candidates.canary)
    three = (digits.test.labels == 3).nonzero().squeeze(1)
    with pytest.raises(InputError, match="no class of the set has members and others"):
        copies(whole, of(digits, digits.test, three), pixels(digits.spec, CPU))


def test_joined_splits_give_the_images_of_each(digits):
    order = torch.randperm(len(digits.train) + len(digits.val), generator=torch.Generator().manual_seed(1))[:200]
    joined = JoinedSplit((digits.train, digits.val), order)
    wanted = torch.tensor([5, 0, 199, 5])
    images, labels = joined.batch(wanted)
    for image, label, place in zip(images, labels, order[wanted].tolist(), strict=True):
        inner = place - len(digits.train)
        own, kind = digits.train.batch(torch.tensor([place])) if inner < 0 else digits.val.batch(torch.tensor([inner]))
        assert torch.equal(image, own[0])
        assert label == kind[0]
    assert len(joined) == len(joined.labels) == 200
    assert torch.equal(joined.labels[wanted], labels)
