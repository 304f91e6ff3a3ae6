"""Random numbers: known answers, independence of order, and an untouched global state."""

import hashlib

import numpy as np
import pytest
import scipy.stats
import torch

from dim import rng


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, answer):
    assert tuple(rng.philox(key, torch.tensor(counter)).tolist()) == answer


def test_philox_works_on_any_batch_shape():
    counters = torch.randint(0, 2**32, (3, 5, 4), generator=torch.Generator().manual_seed(0))
    words = rng.philox(7, counters)
    assert words.shape == counters.shape
    assert torch.equal(words[2, 3], rng.philox(7, counters[2, 3]))
    assert int(words.min()) >= 0
    assert int(words.max()) < 2**32


def test_normal_is_box_muller_of_philox_words():
    """Against NumPy in float64, one value at a time."""
    key, row, width = rng.fold(3, "latent"), (5, 11), 7
    expected = []
    for block in range(2):
        words = rng.philox(key, torch.tensor([block, *row, 0])).tolist()
        for first, second in (words[:2], words[2:]):
            radius = np.sqrt(-2 * np.log((first + 0.5) / 2.0**32))
            angle = 2 * np.pi * (second + 0.5) / 2.0**32
            expected += [radius * np.cos(angle), radius * np.sin(angle)]
    values = rng.normal(key, torch.tensor([row]), width)
    assert values.shape == (1, width)
    assert values.dtype == torch.float32
    np.testing.assert_allclose(values[0].numpy(), expected[:width], rtol=1e-6, atol=1e-7)


def test_normal_rows_do_not_depend_on_their_company():
    """Bitwise: nested synthetic sets stand on this."""
    key = rng.fold(0, "latent")
    rows = torch.cartesian_prod(torch.arange(10), torch.arange(13))
    together = rng.normal(key, rows, 33)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    assert torch.equal(rng.normal(key, rows[order], 33), together[order])
    for i in (0, 57, 129):
        assert torch.equal(rng.normal(key, rows[i : i + 1], 33), together[i : i + 1])


def test_normal_rows_and_keys_differ():
    rows = torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1]])
    values = torch.cat([rng.normal(key, rows, 8) for key in (1, 2, 1 << 40)])
    assert len(torch.unique(values, dim=0)) == len(values)


def test_normal_is_standard_normal_and_uncorrelated():
    rows = torch.stack((torch.zeros(4000, dtype=torch.int64), torch.arange(4000)), dim=1)
    values = rng.normal(rng.fold(0, "latent"), rows, 10).double()
    # Standard errors at n = 40,000: mean 0.005, variance 0.007, kurtosis 0.025; bounds are four of them.
    assert abs(values.mean()) < 0.02
    assert abs(values.var() - 1) < 0.03
    assert abs((values**3).mean()) < 0.08
    assert abs((values**4).mean() - 3) < 0.2
    correlation = torch.corrcoef(values.T) - torch.eye(10)
    assert correlation.abs().max() < 4.5 / 4000**0.5
    assert scipy.stats.kstest(values.flatten().numpy(), "norm").pvalue > 1e-3


def test_fold_depends_on_every_argument_and_is_the_same_everywhere():
    calls = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 0, 0), (0, "a", 0, 1), (0, "a", 1, 0), (-1, "a")]
    folded = [rng.fold(*call) for call in calls]
    assert len(set(folded)) == len(folded)
    assert all(0 <= value < 2**63 for value in folded)
    expected = int.from_bytes(hashlib.blake2b(b"12:latent:3:4", digest_size=8).digest(), "little") // 2
    assert rng.fold(12, "latent", 3, 4) == expected
    assert rng.fold(True, "a") == rng.fold(1, "a")


def test_generator_is_a_function_of_its_arguments():
    def draw(*arguments):
        return torch.rand(5, generator=rng.generator(*arguments))

    assert torch.equal(draw(0, "x", 3), draw(0, "x", 3))
    assert not torch.equal(draw(0, "x", 3), draw(0, "x", 4))


def _global_state(block) -> bool:
    """Whether a block of code leaves the global generator as it was."""
    before = torch.get_rng_state()
    block()
    return torch.equal(before, torch.get_rng_state())


def test_initialisation_leaves_other_devices_alone(monkeypatch):
    def fail(seed):
        raise AssertionError("whoever called had seeded it")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", fail)
    with rng.initialisation(0, "x"):
        first = torch.rand(3)
    with rng.initialisation(0, "x"):
        assert torch.equal(torch.rand(3), first)


def test_initialisation_seeds_the_block_and_restores_the_global_state():
    draws = []

    def block():
        with rng.initialisation(0, "net", 1):
            draws.append(torch.rand(4))

    torch.manual_seed(11)
    assert _global_state(block)
    torch.manual_seed(12)
    assert _global_state(block)
    assert torch.equal(*draws)
    with rng.initialisation(0, "net", 2):
        assert not torch.equal(torch.rand(4), draws[0])


def test_initialisation_restores_the_global_state_after_an_error():
    def fail():
        with rng.initialisation(0, "net"):
            torch.rand(1)
            raise KeyError

    def block():
        with pytest.raises(KeyError):
            fail()

    assert _global_state(block)


def test_generators_leave_the_global_state_alone():
    assert _global_state(lambda: (rng.generator(5, "x"), rng.normal(3, torch.tensor([[0, 0]]), 4)))
