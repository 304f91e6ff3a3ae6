"""Small integers in few bytes: nearly their entropy, back bit for bit, and what is no such stream is refused."""

import numpy as np
import pytest
import torch

from dim.coding import entropy, labels


def drawn(base: int, count: int) -> np.ndarray:
    """Symbols of a bell-shaped distribution, as quantised weights have it."""
    source = np.random.default_rng(0)
    centre = (base - 1) / 2
    return np.clip(np.round(source.normal(centre, base / 6, count)), 0, base - 1).astype(np.uint8)


@pytest.mark.parametrize("base", [2, 3, 7, 15, 63, 255, 256])
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_symbols_come_back(base, count):
    symbols = drawn(base, count)
    assert np.array_equal(entropy.decode(entropy.encode(symbols, base), count, base), symbols)


@pytest.mark.parametrize("base", [3, 7, 15, 255])
def test_a_stream_takes_little_more_than_its_entropy(base):
    symbols = drawn(base, 40_000)
    share = np.bincount(symbols, minlength=base) / len(symbols)
    bits = -sum(p * np.log2(p) for p in share if p > 0)
    size = len(entropy.encode(symbols, base))
    assert bits * len(symbols) / 8 * 0.99 < size < 1.04 * bits * len(symbols) / 8


def test_neighbours_that_predict_one_another_take_less():
    walk = (np.cumsum(np.random.default_rng(0).integers(-1, 2, 20_000)) % 16).astype(np.uint8)
    shuffled = np.random.default_rng(1).permutation(walk)
    assert len(entropy.encode(walk, 16)) < 0.6 * len(entropy.encode(shuffled, 16))


def test_what_is_no_stream_is_refused_before_there_is_memory_for_it():
    good = entropy.encode(drawn(7, 500), 7)
    for content, count in (
        (b"", 0),
        (good, 10**15),
        (good, -1),
        (good, 499 + 8),
        (good, 100),
        (b"\xff" + good[1:], 500),
        (good[:-4], 500),
    ):
        with pytest.raises(ValueError, match=r"."):
            entropy.decode(content, count, 7)
    with pytest.raises(ValueError, match="symbol 7 of 7"):
        entropy.decode(entropy._encoded(np.full(64, 7, np.uint8), 8, 1, 0), 64, 7)


# --- labels ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [3, 256, 300])
def test_labels_come_back_and_turns_cost_nothing(classes):
    turns = torch.arange(2 * classes) % classes
    assert labels.encode_classes(turns, classes) == ("turns", b"")
    for values in (turns, turns.flip(0), torch.zeros(5, dtype=torch.int64)):
        how, content = labels.encode_classes(values, classes)
        assert torch.equal(labels.decode_classes(how, content, len(values), classes), values)


def test_soft_labels_come_back_to_a_sixteenth_of_their_logarithm():
    wanted = torch.rand(40, 10, generator=torch.Generator().manual_seed(0)).mul(20).softmax(1)
    cut = torch.where(wanted >= wanted.topk(3).values[:, -1:], wanted, 0.0)
    wanted = torch.cat((wanted, cut / cut.sum(1, keepdim=True)))
    content = labels.encode_soft(wanted)
    found = labels.decode_soft(content, len(wanted), 10)
    assert len(content) < wanted.numel()
    assert torch.equal(found == 0, wanted == 0)
    assert torch.allclose(found.sum(1), torch.ones(len(wanted)))
    kept = wanted > 0
    factor = (found[kept] / wanted[kept]).log().abs()
    assert float(factor.max()) <= 2 / 16 + 1e-3  # its own rounding, and that of the sum


def test_labels_of_something_else_are_refused():
    empty = entropy.encode(np.full(4, 255, np.uint8), 256)
    with pytest.raises(ValueError, match="no class with a probability"):
        labels.decode_soft(empty, 2, 2)
    with pytest.raises(ValueError, match="labels are 'x'"):
        labels.decode_classes("x", b"", 2, 2)
    high = entropy.encode(np.full(8, 255, np.uint8), 256)
    with pytest.raises(ValueError, match="of 300 classes"):
        labels.decode_classes("listed", high, 4, 300)
