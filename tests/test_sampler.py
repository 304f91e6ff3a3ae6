"""From a generator to sets: nested sizes, counts, classes, and work shared among processes."""

import collections
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dim
from dim.config import DataConfig, GeneratorConfig, ProtocolConfig
from dim.data.synthetic import SyntheticSet
from dim.emit.policy import Ranking
from dim.errors import InputError
from dim.nets.generator import build_generator
from dim.nets.generator_file import save_generator_file
from dim.sampler import request, sample_set, sample_set_together, stored_bytes
from dim.spec import DataSpec, to_uint8

_ROOT = Path(__file__).parent.parent
SPEC = DataSpec(
    name="digits",
    channels=1,
    height=8,
    width=8,
    class_names=tuple("0123456789"),
    mean=(0.5,),
    std=(0.2,),
    fingerprint="f",
)
CONFIG = GeneratorConfig(width=8, latent_dim=6)


@pytest.fixture(scope="module")
def generator():
    network = build_generator(CONFIG, SPEC, seed=0)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(30):  # batch norm gets to know its inputs; without that, images hardly differ
            network(torch.randn(64, 6, generator=source), torch.arange(64) % 10)
    return network.eval()


@pytest.fixture(scope="module")
def saved(generator, tmp_path_factory):
    path = tmp_path_factory.mktemp("sampler") / "generator.safetensors"
    save_generator_file(path, generator, config=CONFIG, data=DataConfig(), protocol=ProtocolConfig(), about={"title": "t"})
    return path


def of_class(subject, label: int) -> torch.Tensor:
    return subject.images[subject.labels == label]


@pytest.fixture(scope="module")
def large(generator):
    return sample_set(generator, ipc=50, seed=3)


# --- nested sets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 100, 2048])
def test_a_small_set_is_the_beginning_of_a_large_one(generator, large, batch_size):
    small = sample_set(generator, ipc=10, seed=3, batch_size=batch_size)
    assert small.ipc == 10
    for label in range(10):
        assert torch.equal(of_class(small, label), of_class(large, label)[:10])
    assert torch.equal(small.images, large.images[:100])
    assert len({bytes(image.numpy()) for image in large.images}) > 400  # sameness would be no achievement


@pytest.mark.parametrize("batch_size", [7, 2048])
def test_batch_size_changes_nothing(generator, large, batch_size):
    again = sample_set(generator, ipc=50, seed=3, batch_size=batch_size)
    assert torch.equal(again.images, large.images)
    assert torch.equal(again.labels, large.labels)


def test_the_number_of_threads_changes_nothing(generator, large):
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(sample_set(generator, ipc=50, seed=3).images, large.images)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)


def test_another_seed_is_another_set(generator, large):
    assert not torch.equal(sample_set(generator, ipc=10, seed=4).images, large.images[:100])


def test_counts_give_the_images_of_the_balanced_set(generator, large):
    subject = sample_set(generator, counts={7: 3, 2: 12}, seed=3)
    assert torch.bincount(subject.labels, minlength=10).tolist() == [0, 0, 12, 0, 0, 0, 0, 3, 0, 0]
    for label, count in ((7, 3), (2, 12)):
        assert torch.equal(of_class(subject, label), of_class(large, label)[:count])
    assert subject.ipc is None


def test_single_classes_give_the_images_of_the_balanced_set(generator, large):
    subject = sample_set(generator, ipc=5, classes=[9, 0], seed=3)
    assert sorted(subject.labels.unique().tolist()) == [0, 9]
    for label in (0, 9):
        assert torch.equal(of_class(subject, label), of_class(large, label)[:5])


def test_a_set_holds_the_rounded_images_of_sample(generator, large):
    labels = torch.tensor([4, 4, 1, 4])
    images = generator.sample(labels, seed=3)
    expected = torch.stack([of_class(large, 4)[0], of_class(large, 4)[1], of_class(large, 1)[0], of_class(large, 4)[2]])
    assert images.dtype == torch.float32
    assert torch.equal(to_uint8(images), expected)


def test_parts_of_two_processes_interleave_to_the_whole(generator, large):
    for world in (2, 3):
        parts = [sample_set(generator, ipc=50, seed=3, rank=rank, world=world, batch_size=64) for rank in range(world)]
        for rank, part in enumerate(parts):
            assert torch.equal(part.images, large.images[rank::world])
            assert torch.equal(part.labels, large.labels[rank::world])


def test_a_single_process_shares_with_nobody(generator, large):
    assert torch.equal(sample_set_together(generator, ipc=50, seed=3).images, large.images)


@pytest.mark.parametrize("size", [["--ipc", "7"], ["--counts", "3=1"]])
def test_two_launched_processes_write_the_set_of_one(saved, tmp_path, size):
    """Also where there are fewer images than processes."""
    # What `accelerate launch` runs for several processes; on CPUs it does so only with MPI.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "sample/emit.py"]
    command += [str(saved), *size, "--seed", "3", "--format", "safetensors", "--device", "cpu"]
    command += ["--out", str(tmp_path / "set")]
    paths = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    many = size[0] == "--ipc"
    assert done.stdout.count("70 images of 10 classes" if many else "1 images of 1 classes") == 1
    alone = sample_set(dim.load_generator(saved), **({"ipc": 7} if many else {"counts": {3: 1}}), seed=3)
    together = dim.load_set(tmp_path / "set")
    assert torch.equal(together.images, alone.images)
    assert torch.equal(together.labels, alone.labels)
    assert {**together.info, "seconds": 0} == {**alone.info, "seconds": 0}


# --- what a set says -------------------------------------------------------------------------------------------------------


def test_a_set_says_how_it_was_made(saved):
    generator = dim.load_generator(saved)
    info = sample_set(generator, ipc=1, seed=3).info
    assert info["method"] == "generator"
    assert info["seed"] == 3
    assert info["data"]["dataset"] == "digits"
    assert info["data"]["root"] is None
    assert info["protocol"]["epochs"] == ProtocolConfig().epochs
    assert info["generator"]["title"] == "t"
    assert 0 < info["seconds"] < 60
    floats = sum(4 * tensor.numel() for tensor in generator.state_dict().values() if tensor.is_floating_point())
    counters = sum(8 for name in generator.state_dict() if name.endswith("num_batches_tracked"))
    assert info["generator"]["bytes"] == stored_bytes(generator) == floats + counters


# --- requests --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"ipc": np.int64(2), "classes": range(1, 3)},
        {"ipc": torch.tensor(2), "classes": np.array([2, 1])},
        {"ipc": 2.0, "classes": torch.tensor([1, 2])},
        {"ipc": "2", "classes": (name for name in ("1", "2"))},
        {"ipc": 2, "classes": {1, 2}},
        {"ipc": 2, "classes": np.array(["1", "2"])},
        {"counts": collections.Counter([1, 1, 2, 2])},
        {"counts": {np.int32(1): np.float32(2), "2": torch.tensor(2)}},
    ],
)
def test_numbers_and_classes_may_be_of_any_kind(settings):
    labels, indices = request(SPEC, **settings)
    assert (labels.tolist(), indices.tolist()) == ([1, 2, 1, 2], [0, 0, 1, 1])


@pytest.mark.parametrize("one", [3, "3", np.int64(3), torch.tensor(3), np.array(3)])
def test_a_single_class_needs_no_list(one):
    assert request(SPEC, ipc=2, classes=one)[0].tolist() == [3, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 3, "world": 2}, "rank is 3: expected 0 to 1"),
        ({"rank": -1, "world": 2}, "rank is -1"),
        ({"world": 0}, "rank is 0: expected 0 to -1"),
        ({"seed": 1.5}, r"seed is 1\.5: expected a whole number"),
        ({"seed": None}, "seed is None"),
        ({"batch_size": 0.5}, r"batch_size is 0\.5"),
    ],
)
def test_sets_that_cannot_be_drawn_are_refused(generator, settings, message):
    with pytest.raises(InputError, match=message):
        sample_set(generator, ipc=1, **settings)


def test_order_is_by_index_and_then_by_class():
    labels, indices = request(SPEC, counts={3: 2, 1: 3})
    assert list(zip(indices.tolist(), labels.tolist(), strict=True)) == [(0, 1), (0, 3), (1, 1), (1, 3), (2, 1)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ipc": 0}, "ipc is 0: expected 1"),
        ({"ipc": -5}, "ipc is -5"),
        ({"counts": {3: 0}}, "class 3 has count 0"),
        ({"counts": {3: -1}}, "class 3 has count -1"),
        ({"counts": {10: 1}}, "class 10 is unknown"),
        ({"counts": {-1: 1}}, "class -1 is unknown"),
        ({"counts": {}}, "no class"),
        ({"ipc": 1, "classes": [11]}, "class 11 is unknown"),
        ({"ipc": 1, "classes": []}, "no class"),
        ({}, "either"),
        ({"ipc": 1, "counts": {1: 1}}, "not both"),
        ({"counts": {1: 1}, "classes": [1]}, "not both"),
        ({"ipc": 2.5}, r"ipc is 2\.5: expected a whole number"),
        ({"ipc": "many"}, "ipc is 'many': expected a whole number"),
        ({"counts": {1: float("inf")}}, "the count of class 1 is inf"),
        ({"ipc": 1, "classes": ["ten"]}, "unknown class 'ten': expected a number or a name"),
        ({"ipc": 1, "classes": [3, "3"]}, "class '3' is there twice"),
        ({"ipc": 1, "classes": [1.5]}, r"a class is 1\.5"),
        ({"ipc": 1, "classes": [True, False]}, "a class is True"),
        ({"ipc": 1, "classes": "12"}, "unknown class '12'"),
        ({"ipc": 1, "classes": [[0, 1]]}, r"a class is \[0, 1\]"),
        ({"ipc": True}, "ipc is True"),
        ({"ipc": 10**30}, "ipc is 1000.*: expected a whole number"),
        ({"counts": [1] * 10}, "counts is .*: expected a number of images by class"),
        ({"counts": torch.ones(10)}, "counts is .*: expected a number of images by class"),
        ({"counts": [(1, 2)]}, "counts is .*: expected a number of images by class"),
        ({"counts": 3}, "counts is 3: expected a number of images by class"),
        ({"counts": {1: None}}, "the count of class 1 is None"),
        ({"counts": {1: True}}, "the count of class 1 is True"),
    ],
)
def test_impossible_requests_are_refused(generator, settings, message):
    with pytest.raises(InputError, match=message):
        request(SPEC, **settings)
    with pytest.raises(InputError, match=message):
        sample_set(generator, **settings)


def test_classes_may_have_names_and_counts_be_whole_floats():
    for own, other in (
        ({"ipc": 2.0, "classes": ["3", np.int64(1)]}, {"ipc": 2, "classes": [3, 1]}),
        ({"counts": {"3": 2.0, 1: np.int32(1)}}, {"counts": {3: 2, 1: 1}}),
    ):
        assert all(map(torch.equal, request(SPEC, **own), request(SPEC, **other)))


def test_an_impossible_batch_size_is_refused(generator):
    with pytest.raises(InputError, match="batch_size is 0"):
        sample_set(generator, ipc=1, batch_size=0)


def test_a_set_is_stored_as_latents_and_generator(saved, tmp_path):
    """Read again, it has the same images bit by bit, also from a part of them; its bytes are those of what is stored."""
    generator = dim.load_generator(saved)
    subject = sample_set(generator, ipc=7, seed=3, latents=True)
    folder = subject.save(tmp_path / "set", "latents", generator=generator)
    assert sorted(path.name for path in folder.iterdir()) == ["data.safetensors", "generator.safetensors", "set.json"]
    again = dim.load_set(folder)
    assert torch.equal(again.images, subject.images)
    assert torch.equal(again.labels, subject.labels)
    assert again.bytes_stored() == {"generator": stored_bytes(generator), "latents": 70 * 6 * 4, "labels": 70}
    assert torch.equal(sample_set(generator, ipc=3, seed=3, latents=True).images, again.images[:30])
    plain = sample_set(generator, ipc=7, seed=3)
    assert plain.latents is None
    assert (plain.images.int() - again.images.int()).abs().max() <= 1, "other rows of a block round differently, and no more"
    images_only = dim.load_set(again.save(tmp_path / "images", "npz"))
    assert images_only.latents is None
    assert torch.equal(images_only.images, again.images)
    halves = [sample_set(generator, ipc=7, seed=3, latents=True, rank=rank, world=2) for rank in (0, 1)]
    assert all(torch.equal(half.latents, subject.latents[rank::2]) for rank, half in enumerate(halves))
    parts = {"soft": torch.eye(10)[subject.labels], "info": subject.info, "latents": subject.latents}
    soft = SyntheticSet(subject.images, subject.labels, subject.spec, **parts)
    again = dim.load_set(soft.save(tmp_path / "soft", "latents", generator=generator))
    assert torch.equal(again.soft, soft.soft)


@pytest.fixture
def by_row(generator, monkeypatch):
    """Makes images differ by the row of their block, as rounding does on some processors, but so that 8 bits show it."""
    original = type(generator).forward

    def forward(self, z, y):
        shift = torch.linspace(-0.5, 0.5, len(y))[:, None, None, None]
        return 0.5 * original(self, z, y) + shift

    monkeypatch.setattr(type(generator), "forward", forward)


def ranking_of(generator, moved: bool) -> Ranking:
    """The last of nine candidates first, and beside them latents that no candidate has."""
    numbers = tuple((torch.arange(9) * step).flip(0) for step in (*range(1, 10), 11))
    latents = torch.randn(10, 9, 6, generator=torch.Generator().manual_seed(2)) if moved else None
    return Ranking(numbers, {"policy": "test"}, latents)


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("size", [{"ipc": 7}, {"counts": {3: 5, 0: 2}}, {"ipc": 4, "classes": [9, 4]}])
def test_images_of_stored_latents_are_made_again_by_place(by_row, saved, tmp_path, moved, size):
    """A stored latent has a place in its class and no number. So images of a ranking, too, are made in the rows of their places,
    and not in those of the numbers that they were chosen by: read again, they are the same bit by bit."""
    generator = dim.load_generator(saved)
    ranking = ranking_of(generator, moved)
    subject = sample_set(generator, **size, seed=3, ranking=ranking, latents=True)
    labels, places = request(generator.spec, **size)
    wanted = ranking.latents_of(labels, places)
    if wanted is None:
        wanted = generator.latents(labels, ranking.numbers_of(labels, places), seed=3)
    assert torch.equal(subject.latents, wanted)
    assert torch.equal(subject.images, generator.pixels(labels, places, seed=3, latents=wanted))
    by_number = generator.pixels(labels, ranking.numbers_of(labels, places), seed=3, latents=wanted)
    assert not torch.equal(subject.images, by_number), "rows make no difference here"
    again = dim.load_set(subject.save(tmp_path / "set", "latents", generator=generator))
    assert torch.equal(again.latents, subject.latents)
    assert torch.equal(again.images, subject.images)


def test_moved_latents_are_made_by_place_also_where_they_are_not_kept(by_row, saved):
    """Whether a refined set is stored as images or as latents, its images are the same."""
    generator = dim.load_generator(saved)
    kept, plain = (
        sample_set(generator, ipc=5, seed=3, ranking=ranking_of(generator, True), latents=keep) for keep in (True, False)
    )
    assert plain.latents is None
    assert torch.equal(kept.images, plain.images)


def test_ranked_images_without_latents_are_those_of_their_numbers(by_row, saved):
    """Bit by bit the images that the plain set has under these numbers."""
    generator = dim.load_generator(saved)
    ranking = ranking_of(generator, False)
    subject = sample_set(generator, ipc=5, seed=3, ranking=ranking)
    for label in range(10):
        numbers = ranking.numbers[label][:5]
        expected = generator.pixels(torch.full((5,), label), numbers, seed=3)
        assert torch.equal(of_class(subject, label), expected)


def test_latents_that_cannot_be_stored_are_refused(generator, saved, tmp_path):
    subject = sample_set(generator, ipc=1, latents=True)
    for item, given, message in (
        (subject, None, "no generator was given"),
        (sample_set(generator, ipc=1), generator, "this set holds no latents"),
        (subject, generator, "does not say how it was made"),
        (subject, build_generator(CONFIG, SPEC, seed=1), "the generator that was given is not the one"),
    ):
        with pytest.raises(InputError, match=message):
            item.save(tmp_path / "set", "latents", generator=given)
    assert not (tmp_path / "set").exists()
    with pytest.raises(InputError, match=r"latents have shape \(3, 2\): expected \(10, Z\)"):
        SyntheticSet(subject.images, subject.labels, SPEC, latents=torch.zeros(3, 2))
    with pytest.raises(InputError, match="info does not say of which generator"):
        SyntheticSet(subject.images, subject.labels, SPEC, latents=subject.latents)
    folder = subject.save(tmp_path / "swapped", "latents", generator=dim.load_generator(saved))
    about = {"config": CONFIG, "data": DataConfig(), "protocol": ProtocolConfig(), "about": {}}
    save_generator_file(folder / "generator.safetensors", build_generator(CONFIG, SPEC, seed=1), **about)
    with pytest.raises(InputError, match=r"generator\.safetensors is not the one that the set was drawn from"):
        dim.load_set(folder)
