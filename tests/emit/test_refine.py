"""Refined latents: what moves, what it is moved by, and that it helps."""

import pytest
import torch
import torch.nn.functional as F

from dim.config import PoolConfig, RefineConfig
from dim.emit.refine import build_objectives, refine
from dim.errors import InputError
from dim.objectives import add_gradient
from dim.objectives.set_moments import SetMoments
from dim.pool import build_pool

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def generator(digits_gan):
    return digits_gan


def latents(count: int = 4) -> torch.Tensor:
    return torch.randn(10, count, 6, generator=torch.Generator().manual_seed(2))


def wide(table: torch.Tensor) -> torch.Tensor:
    """With class vectors that are not moved."""
    return F.pad(table, (0, 6))


class Bright:
    """Wants bright images, and keeps what it was shown."""

    def __init__(self) -> None:
        self.seen = []

    def accumulate(self, images, targets, *, real, step):
        self.seen.append((images.detach().clone(), targets.clone(), step))
        add_gradient(images, -torch.ones_like(images))
        return {}


def test_blocks_move_one_after_another_beside_the_earlier_ones(generator):
    start, purpose = latents(), Bright()
    config = RefineConfig(blocks=(1, 3), steps=5)
    weights = [parameter.clone() for parameter in generator.parameters()]
    result = refine(generator, start, [purpose], config, ipc=4)
    assert torch.equal(result[:, 3], wide(start)[:, 3]), "beyond the last block nothing moves"
    for part in (slice(6), slice(6, 12)):
        assert (result[:, :3, part] != wide(start)[:, :3, part]).flatten(1).any(1).all(), "latents and class vectors move"
    assert [len(images) for images, _, _ in purpose.seen] == [10] * 5 + [30] * 5
    assert [step for _, _, step in purpose.seen] == list(range(10))
    assert purpose.seen[-1][1].tolist() == list(range(10)) * 3
    labels = torch.arange(10)
    with torch.no_grad():
        torch.testing.assert_close(purpose.seen[-1][0][:10], generator(result[:, 0], labels))
        for place in range(3):
            assert generator(result[:, place], labels).mean() > generator(start[:, place], labels).mean()
    assert all(torch.equal(before, after) for before, after in zip(weights, generator.parameters(), strict=True))


def test_only_the_blocks_that_are_wanted_are_refined_and_they_are_the_same(generator):
    config = RefineConfig(blocks=(1, 3, 4), steps=3)
    full = refine(generator, latents(), [Bright()], config, ipc=4)
    for ipc, refined in ((1, 1), (2, 3), (3, 3)):
        purpose = Bright()
        part = refine(generator, latents(), [purpose], config, ipc=ipc)
        assert torch.equal(part[:, :refined], full[:, :refined])
        assert torch.equal(part[:, refined:], wide(latents())[:, refined:])
        purpose = Bright()
        rest = refine(generator, part, [purpose], config, ipc=4, done=refined)
        assert torch.equal(rest, full)
        assert [len(images) for images, _, _ in purpose.seen] == [10 * end for end in (3, 4) if end > refined for _ in range(3)]
    short = refine(generator, latents(2), [Bright()], config, ipc=2)  # fewer images than the block has
    assert short.shape == (10, 2, 12)
    assert (short != wide(latents(2))).flatten(1).any(1).all()


def test_latents_move_alone_without_class_vectors(generator):
    start, labels = latents(2), torch.arange(10).repeat(2)
    alone, both = (refine(generator, start, [Bright()], RefineConfig(steps=5, class_vectors=on), ipc=2) for on in (False, True))
    assert alone.shape == start.shape
    assert (alone != start).flatten(1).any(1).all()
    with torch.no_grad():
        bright = [float(generator(moved.transpose(0, 1).flatten(0, 1), labels).mean()) for moved in (start, alone, both)]
    assert bright == sorted(bright), "more that moves reaches farther"


def test_class_vectors_stand_still_without_that_option(generator):
    start = torch.cat((latents(2), 0.3 * latents(2)), dim=2)
    moved = refine(generator, start, [Bright()], RefineConfig(blocks=(1, 2), steps=3, class_vectors=False), ipc=2)
    assert (moved[:, :, :6] != start[:, :, :6]).flatten(1).any(1).all()
    assert torch.equal(moved[:, :, 6:], start[:, :, 6:])


def test_values_that_are_not_finite_are_refused(generator):
    class Broken:
        def accumulate(self, images, targets, *, real, step):
            add_gradient(images, torch.full_like(images, torch.nan))
            return {}

    with pytest.raises(InputError, match=r"refining images 2 to 3 of every class led to values .* lower --refine\.lr"):
        refine(generator, latents(), [Bright(), Broken()], RefineConfig(blocks=(1, 3), steps=2), ipc=3)


def test_blocks_have_purposes_and_ages_of_their_own(generator, digits_experts, digits):
    purposes = [Bright(), Bright()]
    refine(generator, latents(), purposes, RefineConfig(blocks=(1, 2, 4), steps=2), ipc=4)
    assert [[len(images) for images, _, _ in purpose.seen] for purpose in purposes] == [[10] * 2, [20] * 2 + [40] * 2]
    one, two = ("endpoint",), ("endpoint", "direction")
    for ages, span, distance, expected in (
        ((0.25, 0.5, 1.0), (1.0,), one, [(0.5, 1.0, 1.0, "endpoint"), (0.5, 2.0, 1.0, "endpoint")]),
        ((0.25, 0.5), (1.0, 2.0), one, [(0.5, 1.0, 1.0, "endpoint"), (0.25, 0.5, 2.0, "endpoint")]),
        ((0.25, 0.5), (1.0,), two, [(0.5, 1.0, 1.0, "endpoint"), (0.5, 1.0, 1.0, "direction")]),
    ):
        config = RefineConfig(ages=ages, span=span, distance=distance, student_steps=1)
        made = [purpose._objective for purpose in build_objectives(config, str(digits_experts), digits, seed=0, device=CPU)]
        found = [(one.window.low, one.window.high, one.window.span, one.config.distance) for one in made]
        assert found == expected
    config = RefineConfig(by="moments", ages=(0.0, 0.0, 1.0), real=2)
    pools = [one.pool for one in build_objectives(config, str(digits_experts), digits, seed=0, device=CPU)]
    assert [pool.window(5) for pool in pools] == [(0.0, 0.0), (0.0, 1.0)]


def pool_of(store, data):
    return build_pool(PoolConfig(source="experts", experts=str(store)), data, seed=0)


def test_set_moments_by_hand(digits_experts, digits):
    """The loss from features, with the real images of the same draw; its gradient against a central difference."""
    pool = pool_of(digits_experts, digits)
    purpose = SetMoments(pool, digits, per_class=3, seed=0)
    images = 2 * torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
    targets = torch.tensor([2, 5, 2, 5])
    shown = []
    train = digits.train

    class Spy:
        labels = train.labels

        def batch(self, indices):
            shown.append(indices)
            return train.batch(indices)

    purpose._data = type("Data", (), {"train": Spy()})()
    leaf = images.clone().requires_grad_()
    loss = float(purpose.accumulate(leaf, targets, real=None, step=3)["moments"])
    (chosen,) = shown
    assert train.labels[chosen].tolist() == [2] * 3 + [5] * 3
    wanted = pool.outputs(train.batch(chosen)[0], 3, "features")[0].view(2, 3, -1).mean(1)
    given = pool.outputs(images, 3, "features")[0]
    means = torch.stack([given[[0, 2]].mean(0), given[[1, 3]].mean(0)])
    scale = wanted.std(0, correction=0).mean()
    assert loss == pytest.approx(float(((means - wanted) / scale).square().mean()), rel=1e-4)
    direction = leaf.grad / leaf.grad.norm()
    up, down = (
        float(purpose.accumulate((images + sign * 1e-3 * direction).requires_grad_(), targets, real=None, step=3)["moments"])
        for sign in (1, -1)
    )
    assert float(leaf.grad.norm()) == pytest.approx((up - down) / 2e-3, rel=0.05)


@pytest.mark.parametrize("by", ["moments", "trajectory"])
def test_refinement_serves_its_purpose(by, generator, digits_experts, digits):
    """The mean loss over many draws, with draws that the refinement has not had, is lower than before."""
    more = {"student_steps": 5, "span": (1.0,), "step_size": 0.05, "augment": ""} if by == "trajectory" else {}
    config = RefineConfig(by=by, blocks=(2,), steps=40, lr=0.1, **more)
    purpose, *_ = build_objectives(config, str(digits_experts), digits, seed=0, device=CPU)
    start = latents(2)
    moved = refine(generator, start, [purpose], config, ipc=2)
    labels = torch.arange(10).repeat(2)

    def loss(table):
        with torch.no_grad():
            images = generator(table.transpose(0, 1).flatten(0, 1), labels)
        losses = [purpose.accumulate(images.clone().requires_grad_(), labels, real=None, step=step) for step in range(900, 915)]
        return sum(float(entry[by]) for entry in losses) / 15

    assert loss(moved) < (0.9 if by == "moments" else 0.999) * loss(start)


def test_students_of_large_sets_see_a_part_of_the_images_at_every_step(digits_experts, digits):
    config = RefineConfig(student_steps=2, student_batch=5, span=(0.5,), augment="")
    purpose, *_ = build_objectives(config, str(digits_experts), digits, seed=0, device=CPU)
    images = (torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_()
    purpose.accumulate(images, torch.arange(10).repeat(2), real=None, step=0)
    assert (images.grad != 0).flatten(1).any(1).sum() == 10


@pytest.mark.parametrize("distance", ["endpoint", "direction"])
def test_bfloat16_moves_images_in_nearly_the_same_direction(distance, digits_experts, digits):
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = {}
    for precision in ("fp32", "bf16"):
        config = RefineConfig(student_steps=5, span=(1.0,), distance=(distance,), precision=precision)
        purpose, *_ = build_objectives(config, str(digits_experts), digits, seed=0, device=CPU)
        leaf = images.clone().requires_grad_()
        purpose.accumulate(leaf, torch.arange(10).repeat(2), real=None, step=0)
        found[precision] = leaf.grad.flatten()
    assert not torch.equal(found["fp32"], found["bf16"])
    assert F.cosine_similarity(found["fp32"], found["bf16"], dim=0) > 0.97


@pytest.mark.parametrize("by", ["moments", "trajectory"])
def test_experts_of_whitened_images_refine_too(by, generator, record_digits, digits, tmp_path):
    store = record_digits(tmp_path / "zca", zca=True)
    more = {"student_steps": 2, "span": (0.5,)} if by == "trajectory" else {"real": 4}
    config = RefineConfig(by=by, blocks=(1,), steps=2, **more)
    moved = refine(generator, latents(1), build_objectives(config, str(store), digits, seed=0, device=CPU), config, ipc=1)
    assert (moved != wide(latents(1))).flatten(1).any(1).sum() >= 8, "an image without a gradient stays"


def test_refusals(digits_experts, digits, tmp_path):
    with pytest.raises(InputError, match="holds no experts"):
        build_objectives(RefineConfig(), str(tmp_path), digits, seed=0, device=CPU)
    with pytest.raises(InputError, match=r"refine\.span is 3 and .* was recorded to 3: expected less"):
        build_objectives(RefineConfig(span=(0.5, 3.0)), str(digits_experts), digits, seed=0, device=CPU)
    for settings, message in (
        ({"blocks": (3, 1)}, r"refine\.blocks is \(3, 1\): expected rising"),
        ({"blocks": ()}, r"refine\.blocks is \(\)"),
        ({"ages": (0.5, 0.5)}, r"refine\.ages is \(0\.5, 0\.5\): expected the first below all others"),
        ({"ages": (0.5,)}, r"refine\.ages is \(0\.5,\): expected two or more numbers in \[0, 1\]"),
        ({"ages": (0.2, 0.5, 0.1)}, r"refine\.ages is .*the smallest first"),
        ({"ages": ()}, r"refine\.ages is \(\)"),
        ({"span": (1.0, 0.0)}, r"refine\.span is \(1\.0, 0\.0\): expected positive numbers"),
        ({"span": ()}, r"refine\.span is \(\)"),
        ({"distance": ()}, r"refine\.distance is \(\): expected endpoint or direction, for one block or more"),
        ({"steps": 0}, r"refine\.steps is 0"),
    ):
        with pytest.raises(InputError, match=message):
            RefineConfig(**settings)
