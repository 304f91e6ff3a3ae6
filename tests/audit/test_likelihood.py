"""Likelihood ratios: by hand, on toys that remember or do not, and without images that nothing is known of."""

import pytest
import torch
from torch import Tensor

from dim.audit.likelihood import confidence, offline, online
from dim.audit.rates import rates

IMAGES, REFERENCES = 4000, 8


def toy(memory: float, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a subject and references say of images of very different difficulty, and who was in which: those that are in say
    `memory` more."""
    source = torch.Generator().manual_seed(seed)
    difficulty = 5 * torch.randn(IMAGES, generator=source, dtype=torch.float64)
    inside = torch.rand(REFERENCES + 1, IMAGES, generator=source) < 0.5
    noise = torch.randn(REFERENCES + 1, IMAGES, generator=source, dtype=torch.float64)
    said = difficulty + noise + memory * inside
    return said[0], said[1:], inside[1:], inside[0]


def test_confidence_is_the_logarithm_of_the_odds():
    source = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 7, generator=source, dtype=torch.float64), torch.randint(7, (50,), generator=source)
    chance = logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
    assert torch.allclose(confidence(logits, labels), (chance / (1 - chance)).log())
    sure = confidence(torch.tensor([[500.0, 0.0]]), torch.tensor([0]))
    assert sure.item() == pytest.approx(500.0)  # where the probability is 1 in any precision


def test_a_ratio_by_hand():
    """Means 3 with and 1 without, both variances 1/2: at 2.5 the exponents differ by (2.25 - 0.25) / (2 / 2)."""
    inside = torch.tensor([True, True, False, False])[:, None]
    said = torch.tensor([2.5, 3.5, 0.5, 1.5], dtype=torch.float64)[:, None]
    assert online(torch.tensor([2.5], dtype=torch.float64), said, inside).item() == pytest.approx(2.0)


@pytest.mark.parametrize("attack", [online, offline])
def test_a_subject_that_remembers_is_told_though_images_differ(attack):
    observed, said, inside, member = toy(8.0)
    found, whole, _, _ = rates(attack(observed, said, inside), member, (0.01,))
    assert found["0.01"].value > 0.98
    assert whole.value > 0.99
    plain, _, _, _ = rates(observed, member, (0.01,))
    assert plain["0.01"].value < 0.5  # without references, difficulty hides it


@pytest.mark.parametrize("attack", [online, offline])
def test_scores_that_do_not_depend_on_membership_are_chance(attack):
    held = 0
    for seed in range(20):
        observed, said, inside, member = toy(0.0, seed=seed)
        found, whole, _, _ = rates(attack(observed, said, inside), member, (0.01,))
        held += whole.low <= 0.5 <= whole.high
        assert found["0.01"].low <= 0.01 <= found["0.01"].high
    assert held >= 17


def test_references_of_another_kind_calibrate_by_their_line():
    """A weak student's confidences are a third of those of real models: the plain difference would be about difficulty."""
    observed, said, inside, member = toy(3.0)
    weak = observed / 3
    _, line, _, _ = rates(offline(weak, said, inside), member, (0.01,))
    without = ~inside
    plain = weak - torch.where(without, said, 0).sum(0) / without.sum(0)
    _, difference, _, _ = rates(plain, member, (0.01,))
    assert line.value > 0.9 > 0.65 > difference.value


def test_images_in_all_or_no_references_are_not_judged():
    observed, said, inside, _ = toy(1.0)
    inside[0], inside[1] = True, False  # each image is in one and out of another
    inside[:, 0], inside[:, 1] = True, False
    assert online(observed, said, inside)[:3].isnan().tolist() == [True, True, False]
    assert offline(observed, said, inside)[:3].isnan().tolist() == [True, False, False]
    said[:, 2], observed[3] = torch.nan, torch.nan
    for attack in (online, offline):
        found = attack(observed, said, inside)
        assert found[2:4].isnan().all()
        assert found[4:].isfinite().all()
