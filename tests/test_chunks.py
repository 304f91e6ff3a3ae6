"""Chunks are sized in bytes."""

import pytest
import torch

from dim.chunks import DRAWN, FORWARD, IMAGES, JUDGED, chunk_size
from dim.data.real import _look_at
from dim.data.splits import in_chunks
from dim.features.classifier import accuracy
from dim.features.spaces import Features
from dim.nets.generator import block_size
from dim.spec import DataSpec, to_uint8


@pytest.mark.parametrize(
    ("item_bytes", "largest", "budget", "wanted"),
    [(10, 100, 55, 5), (10, 3, 55, 3), (10, 100, 9, 1), (0, 7, 55, 7), (11, 100, 55, 5), (10, 100, 59, 5)],
)
def test_as_many_as_fit_but_one_at_least(item_bytes, largest, budget, wanted):
    assert chunk_size(item_bytes, largest, budget) == wanted


def test_small_images_go_by_count_and_large_ones_by_bytes():
    small, large = 4 * 3 * 32 * 32, 4 * 3 * 224 * 224
    assert chunk_size(small, 4096) == 4096
    assert chunk_size(small, JUDGED, FORWARD) == JUDGED
    for budget in (IMAGES, FORWARD, DRAWN):
        assert budget / 2 < large * chunk_size(large, 10**6, budget) <= budget


class Recorded:
    """A streaming split of images that are made when asked for; it records the bytes that it was asked for at a time."""

    streams = True

    def __init__(self, count, side=224):
        self.labels, self._side, self.asked = torch.arange(count) % 2, side, []

    def __len__(self):
        return len(self.labels)

    def batch(self, indices):
        images = torch.full((len(indices), 3, self._side, self._side), -1.0)
        images += 2 * (indices % 2)[:, None, None, None]
        self.asked.append(4 * images.numel())
        return images, self.labels[indices]


def test_chunks_of_a_split_are_all_of_it_in_order_and_small():
    split, order = Recorded(40), torch.randperm(40, generator=torch.Generator().manual_seed(0))
    parts = list(in_chunks(split, order, budget=FORWARD))
    assert torch.equal(torch.cat([indices for indices, _, _ in parts]), order)
    assert torch.equal(torch.cat([labels for _, _, labels in parts]), split.labels[order])
    for indices, images, labels in parts:
        assert torch.equal(images[:, 0, 0, 0], 2.0 * labels - 1)
        assert len(indices) == len(images)
    assert max(split.asked) <= FORWARD < sum(split.asked)
    assert [len(indices) for indices, _, _ in in_chunks(split, order[:7], largest=3, budget=FORWARD)] == [3, 3, 1]


def test_memory_of_statistics_does_not_depend_on_the_number_of_images():
    few, many = Recorded(150), Recorded(450)
    for split in (few, many):
        found = _look_at(split, f"{len(split)} images")
        assert found.mean == pytest.approx([0.5] * 3)
        assert found.std == pytest.approx([0.5] * 3)
    assert max(few.asked) == max(many.asked) <= IMAGES
    assert sum(many.asked) > 2 * IMAGES


def test_blocks_of_a_generator_are_smaller_for_large_images():
    def sizes(side):
        spec = DataSpec(
            name="x", channels=3, height=side, width=side, class_names=("a", "b"), mean=(0.5,) * 3, std=(0.5,) * 3, fingerprint=""
        )
        return block_size(spec, torch.device("cpu")), block_size(spec, torch.device("cuda"))

    assert sizes(32) == sizes(128) == (16, 256)
    assert sizes(224) == (4, 64)


def test_no_images_give_no_chunk():
    assert list(in_chunks(Recorded(4), torch.empty(0, dtype=torch.int64))) == []


def test_networks_are_given_few_large_images_at_a_time():
    split, seen = Recorded(50), []

    class Watched(torch.nn.Module):
        def forward(self, images):
            seen.append(4 * images.numel())
            return torch.stack((1 - images[:, 0, 0, 0], images[:, 0, 0, 0]), dim=1)

    assert accuracy(Watched(), split, torch.device("cpu")) == 100
    features = Features(network=Watched(), name="watched", digest="", device=torch.device("cpu"))
    found = features.of(split)
    assert found.shape == (50, 2)
    images = split.batch(torch.arange(50))[0]
    assert torch.equal(features(images), found)
    assert torch.equal(features(to_uint8(images)), found)
    assert len(seen) > 4
    assert max(seen) <= FORWARD
