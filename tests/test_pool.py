"""The pool: who serves a step, how members age, and a resume that meets the same pool."""

import pytest
import torch
import torch.nn.functional as F

from dim import rng
from dim.config import PoolConfig
from dim.data.real import RealData
from dim.errors import InputError
from dim.nets.student import build_student
from dim.pool import build_pool
from dim.processes import Processes

TINY = {"students": ("convnet:width=2,depth=1", "convnet:width=3,depth=1"), "augment": "color_crop"}
PERSISTENT = {"members": 4, "max_age": 8}


@pytest.fixture
def make(spec):
    def pool(seed: int = 0, steps_per_epoch: int = 4, first_step: int = 0, **changes):
        config = PoolConfig(**TINY, **changes) if "source" in changes else PoolConfig(**{**TINY, **PERSISTENT, **changes})
        return build_pool(
            config, RealData(spec(1, 8), None, None, None), steps_per_epoch=steps_per_epoch, first_step=first_step, seed=seed
        )

    return pool


def _batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.rand(8, 1, 8, 8, generator=generator) * 2 - 1, torch.randint(0, 4, (8,), generator=generator)


def _weights(net) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def _run(pool, steps) -> list[torch.Tensor]:
    """Serve and keep up the given steps; the weights after each."""
    seen = []
    for step in steps:
        pool.draw(step)
        for part in range(len(pool.due(step))):
            pool.advance(*_batch(step), step, part)
        seen.append(_weights(pool.draw(step)))
    return seen


@pytest.mark.parametrize("members", [1, 2, 3, 4, 10])
def test_all_architectures_have_their_turn_however_few_members_there_are(make, members):
    names = tuple(f"convnet:width={width},depth=1" for width in range(2, 7))
    pool = make(members=members, students=names)
    lives = [pool._student(slot, generation) for generation in range(10) for slot in range(members)]
    assert {lives.count(name) for name in names} == {len(lives) // len(names)}


def test_fresh_takes_a_new_model_every_epoch(make):
    pool = make(source="fresh", upkeep_every=1, first_step=10)
    starts, nets = [], []
    for step in range(10, 22):
        net = pool.draw(step)
        if (step - 10) % 4 == 0:
            starts.append(_weights(net))
            nets.append(net)
        assert net is nets[-1], "the member changed within an epoch"
        pool.advance(*_batch(step), step)
    assert len({id(net) for net in nets}) == 3
    for epoch, start in enumerate(starts):
        fresh = make(source="fresh", upkeep_every=1, first_step=10)
        assert torch.equal(_weights(fresh.draw(10 + 4 * epoch + 3)), start), "not a function of (seed, epoch)"
    assert not torch.equal(starts[0][: len(starts[1])], starts[1][: len(starts[0])])


def test_fresh_members_are_built_from_the_seed(make, spec):
    """Of one of the architectures, with that architecture's own initialisation."""
    pool = make(source="fresh", seed=5)
    sizes = {len(_weights(build_student(name, spec(1, 8), seed=0))) for name in TINY["students"]}
    assert {len(_weights(pool.draw(step))) for step in range(0, 80, 4)} == sizes
    assert not torch.equal(_weights(make(source="fresh", seed=5).draw(0)), _weights(make(source="fresh", seed=6).draw(0)))
    expected = build_student(TINY["students"][0], spec(1, 8), seed=rng.fold(5, "pool-member", 0, 0))
    if len(_weights(pool.draw(0))) == len(_weights(expected)):
        assert torch.equal(_weights(make(source="fresh", seed=5).draw(0)), _weights(expected))


def test_persistent_members_of_all_architectures_take_turns(make):
    pool = make()
    served = [pool.draw(step) for step in range(60)]
    counts = [sum(net is member for net in served) for member in {id(net): net for net in served}.values()]
    assert len(counts) == 4
    assert min(counts) >= 5
    assert len({len(_weights(net)) for net in served}) == 2
    assert [id(net) for net in served] == [id(pool.draw(step)) for step in range(60)], "not a function of the step"


def test_persistent_members_live_on_and_are_renewed(make):
    """Ages grow by one per SGD step; at their age a new member of the same slot starts at once, at age 0."""
    pool = make(upkeep_every=1, members=2, max_age=6)
    births = {}
    age: dict[int, int] = {}
    for step in range(60):
        net = pool.draw(step)
        if id(net) not in age:
            births[id(net)] = net  # kept, so that no id is used twice
            age[id(net)] = 0
        assert age[id(net)] < 6
        pool.advance(*_batch(step), step)
        age[id(net)] += 1
    lives = sorted(age.values())
    assert len(lives) > 6
    assert lives.count(6) >= len(lives) - 4, "lives end early"
    assert 3 in lives, "the first lives were to be cut short at different ages"


@pytest.mark.parametrize(
    ("members", "max_age", "first"),
    [(4, 8, [2, 4, 6, 8]), (3, 6, [2, 4, 6]), (2, 10, [5, 10]), (1, 5, [5]), (4, 2, [1, 1, 2, 2])],
)
def test_first_lives_are_shares_of_the_full_age(make, members, max_age, first):
    """Slot number s of m lives for (s + 1) / m of the age at first, by hand, and for all of it from then on, so that members are
    of different ages at any time."""
    pool = make(upkeep_every=1, members=members, max_age=max_age)
    lives: dict[int, list[int]] = {slot: [] for slot in range(members)}
    met: list = []
    for step in range(100):
        net = pool.draw(step)
        (slot,) = [number for number, member in pool.slots.items() if member.net is net]
        if all(net is not other for other in met):
            met.append(net)  # kept, so that no other is taken for it
            lives[slot].append(0)
        pool.advance(*_batch(step), step)
        lives[slot][-1] += 1
    for slot, ages in lives.items():
        assert len(ages) > 2, "not long enough to tell"
        assert ages[0] == first[slot]
        assert set(ages[1:-1]) == {max_age}
        assert ages[-1] <= max_age


def test_even_the_shortest_life_has_a_step_of_training(make):
    """A share of the age that rounds to none would renew its member at every draw, untrained."""
    pool = make(members=4, max_age=1)
    for step in range(30):
        pool.draw(step)
    assert {slot: (member.generation, member.age) for slot, member in pool.slots.items()} == dict.fromkeys(range(4), (0, 0))


def test_the_member_of_a_step_is_drawn_by_seed_and_step_alone(make):
    """Which slot serves which step is settled before anything is trained: it does not depend on earlier steps, on the first step
    or on the length of an epoch."""
    expected = [rng.fold(5, "pool-draw", step) % 4 for step in range(40)]
    assert expected[:12] == [1, 1, 3, 2, 1, 3, 3, 3, 0, 0, 0, 2]

    def served(pool, steps) -> list[int]:
        found = []
        for step in steps:
            net = pool.draw(step)
            found += [slot for slot, member in pool.slots.items() if member.net is net]
        return found

    assert served(make(seed=5), range(40)) == expected
    assert served(make(seed=5, steps_per_epoch=7, first_step=20), range(20, 40)) == expected[20:]
    assert served(make(seed=5), reversed(range(40))) == expected[::-1]
    assert served(make(seed=6), range(40)) != expected


def test_a_slot_keeps_its_architecture_and_every_life_begins_anew(make, spec):
    """Slot s has architecture s modulo their number; life g of it begins with the weights of (seed, s, g)."""
    pool = make(seed=5, upkeep_every=1, members=4, max_age=3)
    lives: set[tuple[int, int]] = set()
    for step in range(80):
        net = pool.draw(step)
        (slot,) = [number for number, member in pool.slots.items() if member.net is net]
        life = pool.slots[slot].generation
        if (slot, life) not in lives:
            student = TINY["students"][slot % 2]
            assert pool.slots[slot].student == student
            seed = rng.fold(5, "pool-member", slot, life)
            assert torch.equal(_weights(net), _weights(build_student(student, spec(1, 8), seed=seed)))
            lives.add((slot, life))
        pool.advance(*_batch(step), step)
    assert {slot for slot, _ in lives} == {0, 1, 2, 3}
    for slot in range(4):
        assert sorted(life for other, life in lives if other == slot) == list(range(max(g for s, g in lives if s == slot) + 1))


def test_the_member_stays_throughout_a_step(make):
    """Also when its last upkeep brings it to its end in the middle of the step."""
    pool = make(members=1, max_age=2, upkeep_steps=3, upkeep_every=1)
    net = pool.draw(0)
    for part in range(3):
        pool.advance(*_batch(part), 0, part)
        assert pool.draw(0) is net
    assert pool.draw(1) is not net


def test_upkeep_is_one_step_of_sgd(make):
    """Against SGD with momentum and weight decay written out by hand."""
    pool = make(members=1, augment="", lr=0.1, momentum=0.5, weight_decay=0.01)
    net = pool.draw(0)
    reference = make(members=1).draw(0)
    velocity = [torch.zeros_like(parameter) for parameter in reference.parameters()]
    for part in range(2):
        images, labels = _batch(part)
        logits = reference.requires_grad_(True)(images)
        expected_loss = -torch.stack([row.log_softmax(0)[label] for row, label in zip(logits, labels, strict=True)]).mean()
        gradients = torch.autograd.grad(expected_loss, list(reference.parameters()))
        with torch.no_grad():
            for parameter, gradient, speed in zip(reference.parameters(), gradients, velocity, strict=True):
                speed.mul_(0.5).add_(gradient + 0.01 * parameter)
                parameter.sub_(0.1 * speed)
        loss = pool.advance(images, labels, 0, part)
        torch.testing.assert_close(loss, expected_loss.detach())
        torch.testing.assert_close(_weights(net), _weights(reference))


def test_upkeep_learns(make):
    pool = make(members=1, max_age=1000, augment="", lr=0.1)
    images, labels = _batch(0)
    losses = [float(pool.advance(images, labels, step)) for step in range(60)]
    assert losses[-1] < 0.7 * losses[0]


def test_drawn_models_pass_gradients_to_images_and_need_none_themselves(make):
    for source in ("fresh", "persistent"):
        pool = make(source=source)
        pool.advance(*_batch(0), 0)
        net = pool.draw(0)
        assert not net.training
        assert not any(parameter.requires_grad for parameter in net.parameters())
        images = _batch(1)[0].requires_grad_()
        F.cross_entropy(net(images), _batch(1)[1]).backward()
        assert images.grad.abs().sum() > 0
        assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("source", ["fresh", "persistent"])
@pytest.mark.parametrize("stop", [1, 13])
def test_a_restored_pool_continues_bit_by_bit(make, source, stop):
    settings = {"source": source, "upkeep_every": 1}
    uninterrupted = _run(make(**settings), range(30))
    pool = make(**settings)
    _run(pool, range(stop))
    saved = {name: value.clone() for name, value in pool.state().items()}
    restored = make(**settings)
    _run(restored, range(40, 43))  # whatever it held before
    restored.load(saved)
    again = _run(restored, range(stop, 30))
    assert all(torch.equal(*pair) for pair in zip(again, uninterrupted[stop:], strict=True))
    assert all(torch.equal(value, saved[name]) for name, value in saved.items())


def test_loading_copies(make):
    """Training on must not write into the tensors that were loaded."""
    pool = make(upkeep_every=1)
    _run(pool, range(6))
    saved = {name: value.clone() for name, value in pool.state().items()}
    before = {name: value.clone() for name, value in saved.items()}
    restored = make(upkeep_every=1)
    restored.load(saved)
    _run(restored, range(6, 20))
    assert all(torch.equal(saved[name], before[name]) for name in saved)


def test_state_can_be_stored(make, tmp_path):
    from dim.io import load_tensors, save_tensors

    pool = make(upkeep_every=1)
    _run(pool, range(9))
    save_tensors(tmp_path / "pool", pool.state(), {})
    restored = make(upkeep_every=1)
    restored.load(load_tensors(tmp_path / "pool")[0])
    assert all(torch.equal(*pair) for pair in zip(_run(restored, range(9, 15)), _run(pool, range(9, 15)), strict=True))


def test_upkeep_is_amortised(make):
    pool = make(upkeep_every=3, upkeep_steps=2, first_step=5)
    assert [list(pool.due(step)) for step in range(5, 13)] == [[0, 1], [], [], [2, 3], [], [], [4, 5], []]


def test_average_acts_on_gradients(spec):
    """Gradients set to zero by it leave only weight decay."""

    class Erasing(Processes):
        def average(self, tensors):
            for gradient in tensors:
                gradient.zero_()

    config = PoolConfig(**TINY, **PERSISTENT, lr=0.5, weight_decay=0.1)
    pool = build_pool(config, RealData(spec(1, 8), None, None, None), steps_per_epoch=4, seed=0, processes=Erasing())
    before = _weights(pool.draw(0)).clone()
    pool.advance(*_batch(0), 0)
    torch.testing.assert_close(_weights(pool.draw(0)), before * 0.95)


def test_the_global_state_is_left_alone(make):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for source in ("fresh", "persistent"):
        _run(make(source=source), range(6))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("changes", "message"), [({"students": ("convnet", "convnat")}, "convnat"), ({"augment": "colr"}, "colr")]
)
def test_unknown_names_are_refused_at_once(make, changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)
