"""A generator in place of a data set: GeneratedDataset and GeneratedLoader."""

import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import dim
from dim.config import GeneratorConfig
from dim.data.loader import GeneratedDataset, GeneratedLoader
from dim.errors import InputError
from dim.nets.generator import build_generator
from dim.spec import DataSpec

SPEC = DataSpec(name="toy", channels=1, height=8, width=8, class_names=tuple("abc"), mean=(0.5,), std=(0.2,), fingerprint="f")


@pytest.fixture(scope="module")
def generator():
    network = build_generator(GeneratorConfig(width=8, latent_dim=6), SPEC, seed=0)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(30):  # batch norm gets to know its inputs; without that, images hardly differ
            network(torch.randn(64, 6, generator=source), torch.arange(64) % 3)
    return network.eval()


def epoch(dataset, **settings):
    batches = list(DataLoader(dataset, **settings))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


# --- GeneratedDataset ------------------------------------------------------------------------------------------------------


# Two cores are enough to see whether workers agree.
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("shuffle", [False, True])
def test_workers_give_the_same_epoch(generator, shuffle):
    dataset = GeneratedDataset(generator, 50, seed=3)
    epochs = []
    for workers in (0, 4):
        source = torch.Generator().manual_seed(1)
        epochs.append(epoch(dataset, batch_size=7, shuffle=shuffle, num_workers=workers, generator=source))
    assert torch.equal(epochs[0][0], epochs[1][0])
    assert torch.equal(epochs[0][1], epochs[1][1])
    ordered = epoch(dataset, batch_size=50)[1]
    assert torch.equal(epochs[0][1], ordered) != shuffle


def test_an_item_does_not_depend_on_what_it_is_fetched_with(generator):
    dataset = GeneratedDataset(generator, 40, seed=3)
    order = [17, 3, 39, 3, 0, -1]
    for index, (image, label) in zip(order, dataset.__getitems__(order), strict=True):
        alone, own = dataset[index]
        assert torch.equal(image, alone)
        assert label == own
    assert torch.equal(dataset[-1][0], dataset[39][0])


@pytest.mark.parametrize("length", [1, 29, 30])
def test_labels_are_exactly_balanced(generator, length):
    _, labels = epoch(GeneratedDataset(generator, length), batch_size=8)
    counts = torch.bincount(labels, minlength=3)
    assert len(labels) == length
    assert int(counts.max() - counts.min()) <= 1


def test_items_are_the_images_of_the_set_with_the_same_seed(generator):
    images, labels = epoch(GeneratedDataset(generator, 12, seed=5), batch_size=5)
    assert torch.equal(images, generator.sample(torch.tensor([0, 1, 2] * 4), seed=5))
    fixed = dim.sample_set(generator, ipc=4, seed=5)
    assert torch.equal(fixed.labels, labels)


def test_start_gives_fresh_images_and_seed_another_stream(generator):
    whole, _ = epoch(GeneratedDataset(generator, 24, seed=0), batch_size=24)
    second, _ = epoch(GeneratedDataset(generator, 12, seed=0, start=12), batch_size=12)
    assert torch.equal(whole[12:], second)
    assert not torch.equal(whole[:12], second)
    other, _ = epoch(GeneratedDataset(generator, 24, seed=1), batch_size=24)
    assert not torch.equal(whole, other)


def test_a_transform_is_applied_to_images(generator):
    plain = GeneratedDataset(generator, 9)
    turned = GeneratedDataset(generator, 9, transform=lambda image: image.flip(1))
    assert torch.equal(turned[4][0], plain[4][0].flip(1))


@pytest.mark.parametrize("index", [9, -10])
def test_an_index_out_of_range_is_an_index_error(generator, index):
    with pytest.raises(IndexError, match=str(index)):
        GeneratedDataset(generator, 9)[index]


@pytest.mark.parametrize("settings", [{"length": 0}, {"length": -1}, {"length": 5, "start": -1}])
def test_impossible_datasets_are_refused(generator, settings):
    with pytest.raises(InputError):
        GeneratedDataset(generator, **settings)


# --- GeneratedLoader -------------------------------------------------------------------------------------------------------


def walk(loader):
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_a_loader_gives_its_number_of_full_batches(generator):
    loader = GeneratedLoader(generator, batch_size=10, steps=7)
    batches = list(loader)
    assert len(loader) == len(batches) == 7
    for images, labels in batches:
        assert images.shape == (10, 1, 8, 8)
        assert images.dtype == torch.float32
        assert labels.shape == (10,)
        assert labels.dtype == torch.int64
        assert images.abs().max() <= 1


@pytest.mark.parametrize(("batch_size", "steps"), [(10, 7), (400, 5), (1500, 1), (1, 4)])
def test_every_epoch_is_exactly_balanced(generator, batch_size, steps):
    loader = GeneratedLoader(generator, batch_size=batch_size, steps=steps)
    for _ in range(2):
        counts = torch.bincount(walk(loader)[1], minlength=3)
        assert int(counts.sum()) == batch_size * steps
        assert int(counts.max() - counts.min()) <= 1


def test_a_loader_is_reproducible_from_its_seed(generator):
    first, again, other = (walk(GeneratedLoader(generator, batch_size=16, steps=5, seed=seed)) for seed in (4, 4, 5))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])


def test_every_image_of_every_epoch_is_new(generator):
    loader = GeneratedLoader(generator, batch_size=12, steps=4)
    images = torch.cat([walk(loader)[0] for _ in range(3)])
    assert len({bytes(image.numpy()) for image in images}) == 3 * 48


def test_set_epoch_goes_to_any_epoch(generator):
    walked = GeneratedLoader(generator, batch_size=12, steps=4)
    epochs = [walk(walked) for _ in range(3)]
    jumped = GeneratedLoader(generator, batch_size=12, steps=4)
    for number in (2, 0, 1):
        jumped.set_epoch(number)
        assert all(map(torch.equal, walk(jumped), epochs[number]))


def test_an_epoch_is_shuffled_unless_asked_otherwise(generator):
    shuffled = walk(GeneratedLoader(generator, batch_size=30, steps=4))
    ordered = walk(GeneratedLoader(generator, batch_size=30, steps=4, shuffle=False))
    assert ordered[1].tolist() == [0, 1, 2] * 40
    assert shuffled[1].tolist() != ordered[1].tolist()
    # The same images, each with its own label, in another order.
    pairs = [sorted((bytes(i.numpy()), int(y)) for i, y in zip(*part, strict=True)) for part in (shuffled, ordered)]
    assert pairs[0] == pairs[1]


def test_two_epochs_are_shuffled_differently(generator):
    loader = GeneratedLoader(generator, batch_size=30, steps=4)
    assert walk(loader)[1].tolist() != walk(loader)[1].tolist()


def test_unshuffled_stream_is_the_dataset(generator):
    images, labels = walk(GeneratedLoader(generator, batch_size=8, steps=3, seed=2, shuffle=False))
    expected, wanted = epoch(GeneratedDataset(generator, 24, seed=2), batch_size=24)
    assert torch.equal(images, expected)
    assert torch.equal(labels, wanted)


@pytest.mark.parametrize("settings", [{"batch_size": 0, "steps": 1}, {"batch_size": 1, "steps": 0}])
def test_impossible_loaders_are_refused(generator, settings):
    with pytest.raises(InputError, match="is 0: expected 1"):
        GeneratedLoader(generator, **settings)


# --- processes, epochs, restarts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3])
def test_shuffled_processes_share_the_batches_of_one_process(generator, world):
    """Over several windows of about a thousand images."""
    whole = GeneratedLoader(generator, batch_size=100 * world, steps=14)
    shares = [GeneratedLoader(generator, batch_size=100, steps=14, rank=rank, world=world) for rank in range(world)]
    for batch, *parts in zip(whole, *shares, strict=True):
        together = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        found, wanted = (
            sorted((bytes(image.numpy()), int(label)) for image, label in zip(*pair, strict=True)) for pair in (together, batch)
        )
        assert found == wanted


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_what_one_process_would_have(generator, world):
    whole = GeneratedLoader(generator, batch_size=6 * world, steps=4, shuffle=False)
    shares = [GeneratedLoader(generator, batch_size=6, steps=4, shuffle=False, rank=rank, world=world) for rank in range(world)]
    for _ in range(2):
        for batch, *parts in zip(whole, *shares, strict=True):
            for tensors in zip(batch, zip(*parts, strict=True), strict=True):
                assert torch.equal(tensors[0], torch.cat(tensors[1]))


def test_shuffled_processes_have_images_and_an_order_of_their_own(generator):
    shares = [walk(GeneratedLoader(generator, batch_size=30, steps=4, rank=rank, world=2)) for rank in range(2)]
    whole = walk(GeneratedLoader(generator, batch_size=60, steps=4))
    pairs = [[(bytes(i.numpy()), int(y)) for i, y in zip(*part, strict=True)] for part in (*shares, whole)]
    assert sorted(pairs[0] + pairs[1]) == sorted(pairs[2])
    assert shares[0][1].tolist() != shares[1][1].tolist()


def test_every_process_sees_every_class():
    names = tuple(map(str, range(12)))
    data = DataSpec(name="t", channels=1, height=8, width=8, class_names=names, mean=(0.5,), std=(0.2,), fingerprint="f")
    many = build_generator(GeneratorConfig(width=4, latent_dim=6), data, seed=0).eval()
    for rank in range(2):
        _, labels = walk(GeneratedLoader(many, batch_size=6, steps=40, rank=rank, world=2))
        assert len(labels.unique()) == 12


def test_a_process_group_is_noticed(generator, monkeypatch):
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 3)):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda value=value: value)
    loader = GeneratedLoader(generator, batch_size=6, steps=2)
    assert (loader.rank, loader.world) == (1, 3)
    alone = GeneratedLoader(generator, batch_size=6, steps=2, rank=0, world=1)
    assert (alone.rank, alone.world) == (0, 1)


def test_a_process_group_is_noticed_that_begins_after_the_loader_was_made(generator, monkeypatch):
    """Lightning starts its processes' group in `fit`."""
    loader = GeneratedLoader(generator, batch_size=6, steps=2)
    given = GeneratedLoader(generator, batch_size=6, steps=2, rank=0, world=1)
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 3)):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda value=value: value)
    assert loader.state_dict()["world"] == 3, "before it is iterated"
    share = walk(GeneratedLoader(generator, batch_size=6, steps=2, rank=1, world=3))
    assert all(map(torch.equal, walk(loader), share))
    monkeypatch.undo()
    assert loader.state_dict()["world"] == 3, "where the group has ended"
    assert given.state_dict()["world"] == 1


def test_the_state_of_one_process_does_for_all(generator):
    """Lightning and accelerate write what the first process has, and give it to all."""
    shares = [GeneratedLoader(generator, batch_size=6, steps=4, rank=rank, world=2) for rank in range(2)]
    expected = list(shares[1])
    reader = iter(shares[0])
    next(reader), next(reader)
    again = GeneratedLoader(generator, batch_size=6, steps=4, rank=1, world=2)
    again.load_state_dict(shares[0].state_dict())
    for own, other in zip(again, expected[2:], strict=True):
        assert all(map(torch.equal, own, other))
    with pytest.raises(InputError, match="world is 1: the state is of a stream with 2"):
        GeneratedLoader(generator, batch_size=6, steps=4).load_state_dict(shares[0].state_dict())


@pytest.mark.parametrize(("rank", "world"), [(0, None), (None, 2), (2, 2), (-1, 2), (0, 0)])
def test_impossible_ranks_are_refused(generator, rank, world):
    with pytest.raises(InputError, match=r"^rank is "):
        GeneratedLoader(generator, batch_size=6, steps=2, rank=rank, world=world)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("batch_size", "given"), [(30, 0), (30, 3), (30, 5), (400, 3), (400, 7)])
def test_a_stream_goes_on_after_a_restart(generator, shuffle, batch_size, given):
    """Within a window of batches that are made together, at its end, and after an epoch."""
    settings = {"batch_size": batch_size, "steps": 5, "seed": 3, "shuffle": shuffle}
    straight = GeneratedLoader(generator, **settings)
    expected = [batch for _ in range(3) for batch in straight]
    loader, batches = GeneratedLoader(generator, **settings), []
    while len(batches) < given:
        for batch in loader:
            batches.append(batch)
            if len(batches) == given:
                break
    state = json.loads(json.dumps(loader.state_dict()))
    again = GeneratedLoader(generator, **settings)
    again.load_state_dict(state)
    while len(batches) < 15:
        batches += again
    assert len(batches) == 15
    for own, other in zip(batches, expected, strict=True):
        assert all(map(torch.equal, own, other))


def test_a_loop_that_names_its_epoch_goes_on_within_it(generator):
    settings = {"batch_size": 30, "steps": 4}
    expected = [list(loader) for loader in [GeneratedLoader(generator, **settings)] for _ in range(3)]
    loader = GeneratedLoader(generator, **settings)
    loader.set_epoch(1)
    next(reader := iter(loader)), next(reader)
    again = GeneratedLoader(generator, **settings)
    again.load_state_dict(loader.state_dict())
    for number, wanted in ((1, expected[1][2:]), (2, expected[2]), (1, expected[1])):
        again.set_epoch(number)
        for own, other in zip(again, wanted, strict=True):
            assert all(map(torch.equal, own, other))
    loader.set_epoch(1)  # of one that was left, not loaded
    assert all(map(torch.equal, next(iter(loader)), expected[1][0]))


def test_an_epoch_that_was_left_does_not_shorten_the_next(generator):
    loader = GeneratedLoader(generator, batch_size=30, steps=4)
    next(iter(loader))
    assert len(list(loader)) == 4


def test_the_state_of_another_stream_is_refused(generator):
    state = GeneratedLoader(generator, batch_size=30, steps=4).state_dict()
    with pytest.raises(InputError, match="batch_size is 20: the state is of a stream with 30"):
        GeneratedLoader(generator, batch_size=20, steps=4).load_state_dict(state)


def test_a_loader_takes_a_transform(generator):
    settings = {"batch_size": 6, "steps": 2, "relabel": lambda images: images.mean((1, 2, 3))[:, None]}
    plain, flipped = (walk(GeneratedLoader(generator, transform=each, **settings)) for each in (None, torch.neg))
    assert torch.equal(plain[0], -flipped[0])
    assert torch.equal(plain[1], flipped[1]), "labels are those of the images as they were made"


def test_every_epoch_of_a_dataset_may_have_images_of_its_own(generator):
    dataset = GeneratedDataset(generator, 20, seed=3, start=4)
    first = epoch(dataset, batch_size=20)
    dataset.set_epoch(1)
    second = epoch(dataset, batch_size=20)
    assert not any(torch.equal(image, other) for image in first[0] for other in second[0])
    assert torch.equal(second[0], epoch(GeneratedDataset(generator, 20, seed=3, start=24), batch_size=20)[0])
    dataset.set_epoch(0)
    assert torch.equal(epoch(dataset, batch_size=20)[0], first[0])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_that_are_kept_notice_a_new_epoch(generator):
    dataset = GeneratedDataset(generator, 20, seed=3)
    loader = DataLoader(dataset, batch_size=10, num_workers=1, persistent_workers=True)
    for number in (0, 1, 4):
        dataset.set_epoch(number)
        images = torch.cat([images for images, _ in loader])
        assert torch.equal(images, epoch(GeneratedDataset(generator, 20, seed=3, start=20 * number), batch_size=20)[0])


# --- arguments and states of other forms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [float, str, np.int64, torch.tensor])
def test_numbers_may_be_of_any_kind(generator, kind):
    loader = GeneratedLoader(generator, batch_size=kind(4), steps=kind(3), seed=kind(5), rank=kind(1), world=kind(2))
    loader.set_epoch(kind(2))
    plain = GeneratedLoader(generator, batch_size=4, steps=3, seed=5, rank=1, world=2)
    plain.set_epoch(2)
    assert len(loader) == 3
    for one, other in zip(loader, plain, strict=True):
        assert torch.equal(one[0], other[0])
    dataset, same = (
        GeneratedDataset(generator, kind(6), seed=kind(5), start=kind(2)),
        GeneratedDataset(generator, 6, seed=5, start=2),
    )
    assert len(dataset) == 6
    assert torch.equal(dataset[kind(3) if kind in (np.int64, torch.tensor) else 3][0], same[3][0])


WRONG = (1.5, "many", None, True, float("inf"), 2**80)


@pytest.mark.parametrize("value", WRONG, ids=str)
@pytest.mark.parametrize("name", ["batch_size", "steps", "seed", "length", "start", "epoch", "rank"])
def test_what_is_no_whole_number_is_refused_by_name(generator, name, value):
    def make():
        if name in ("length", "start"):
            return GeneratedDataset(generator, **{"length": 4, name: value})
        if name == "rank":
            return GeneratedLoader(generator, batch_size=2, steps=2, rank=value, world=2)
        if name == "epoch":
            GeneratedDataset(generator, length=4).set_epoch(value)
        return GeneratedLoader(generator, **{"batch_size": 2, "steps": 2, "seed": 0, name: value})

    with pytest.raises(InputError, match=rf"^{name} is "):
        make()


@pytest.mark.parametrize("what", [GeneratedDataset, GeneratedLoader])
def test_an_epoch_below_0_or_beyond_the_stream_is_refused_at_once(generator, what):
    settings = {"length": 10} if what is GeneratedDataset else {"batch_size": 4, "steps": 3}
    with pytest.raises(InputError, match="epoch is -1: expected 0 or more"):
        what(generator, **settings).set_epoch(-1)
    if what is GeneratedDataset:
        with pytest.raises(InputError, match="place in the stream where epoch 4611686018427387904 begins"):
            what(generator, **settings).set_epoch(2**62)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 7}, "step of the state is 7: expected 0 to 3"),
        ({"step": -1}, "step of the state is -1: expected 0 or more"),
        ({"step": 0.5}, "step of the state is 0.5: expected a whole number"),
        ({"epoch": -1}, "epoch of the state is -1"),
        ({"epoch": None}, "epoch of the state is None"),
        ({"batch_size": 7}, "batch_size is 6: the state is of a stream with 7"),
        ({"steps": 9}, "steps is 4: the state is of a stream with 9"),
        ({"shuffle": 0}, "shuffle is True: the state is of a stream with 0"),
        (("epoch", "seed"), "the state is step, batch_size, steps, shuffle, world: expected what state_dict gave"),
        ({}.fromkeys, "the state is builtin_function_or_method: expected"),
        (None, "the state is NoneType: expected"),
    ],
)
def test_what_is_no_state_of_the_loader_is_refused(generator, change, message):
    loader = GeneratedLoader(generator, batch_size=6, steps=4)
    state = loader.state_dict()
    if isinstance(change, tuple):
        state = {name: value for name, value in state.items() if name not in change}
    with pytest.raises(InputError, match=message):
        loader.load_state_dict(
            {**state, **change} if isinstance(change, dict) else state if isinstance(change, tuple) else change
        )
    assert [len(images) for images, _ in loader] == [6] * 4  # as it was


def test_a_state_that_went_through_tensors_and_json_is_one(generator):
    loader = GeneratedLoader(generator, batch_size=6, steps=4)
    next(iter(loader))
    state = {name: torch.tensor(value) for name, value in json.loads(json.dumps(loader.state_dict())).items()}
    other = GeneratedLoader(generator, batch_size=6, steps=4)
    other.load_state_dict({**state, "more": 1})
    assert len(list(other)) == 3
    json.dumps(other.state_dict())


@pytest.mark.parametrize("what", ["runs/digits", None, torch.zeros(3)])
def test_what_is_no_generator_is_refused(what):
    for make in (
        lambda: GeneratedDataset(what, 3),
        lambda: GeneratedLoader(what, batch_size=2, steps=2),
        lambda: dim.sample_set(what, ipc=1),
    ):
        with pytest.raises(InputError, match=r"^generator is .*: expected a generator, as dim.load_generator gives one"):
            make()


def test_labels_that_are_not_as_many_as_images_are_refused(generator):
    loader = GeneratedLoader(generator, batch_size=4, steps=2, relabel=lambda images: torch.zeros(3, 3))
    with pytest.raises(InputError, match="relabel gave 3 labels of 8 images"):
        next(iter(loader))
    with pytest.raises(InputError, match="relabel gave 3 labels of 1 images"):
        GeneratedDataset(generator, 4, relabel=lambda images: torch.zeros(3, 3))[0]
