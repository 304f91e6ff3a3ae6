"""A memory of a fixed number of bytes: what it keeps, what it costs, and what it refuses."""

import dataclasses

import pytest
import torch
from torch import Tensor

from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.io import load_tensors, save_tensors
from dim.replay.coding import Plain, WebP
from dim.replay.memory import ReplayMemory
from dim.sampler import sample_set

IMAGE = 3 * 8 * 8 + 1  # bytes of an image of `spec()` and its label


@pytest.fixture(scope="module")
def data(spec):
    return spec(channels=3, size=8, classes=4)


def a_set(data, counts: dict[int, int], *, seed: int = 0, soft: bool = False, **info) -> SyntheticSet:
    """Random images, classes taking turns as in a drawn set."""
    labels = torch.tensor([label for place in range(max(counts.values())) for label in counts if place < counts[label]])
    source = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (len(labels), *data.image_shape), generator=source).to(torch.uint8)
    targets = torch.rand(len(labels), data.num_classes, generator=source).softmax(1) if soft else None
    if soft and info.get("top_k"):
        largest = targets.topk(info["top_k"], dim=1)
        targets = torch.zeros_like(targets).scatter(1, largest.indices, largest.values / largest.values.sum(1, keepdim=True))
    return SyntheticSet(images, labels, data, soft=targets, info=info)


def task(data, *classes: int):
    """The specification of a task with these classes, numbered from 0."""
    return dataclasses.replace(data, class_names=tuple(data.class_names[label] for label in classes), fingerprint="task")


def of_class(subject: SyntheticSet, label: int) -> Tensor:
    return subject.images[subject.labels == label]


def held(memory: ReplayMemory) -> int:
    """Bytes of all that its state holds."""
    return sum(value.numel() * value.element_size() for value in memory.state_dict().values())


# --- the budget --------------------------------------------------------------------------------------------------------------


def test_classes_shrink_to_their_first_images_as_tasks_come(data):
    memory = ReplayMemory(data, bytes=24 * IMAGE + 4)
    tasks = [a_set(data, {0: 20, 1: 20}), a_set(data, {2: 20}, seed=1), a_set(data, {3: 20}, seed=2)]
    expected = [{0: 12, 1: 12}, {0: 8, 1: 8, 2: 8}, {0: 6, 1: 6, 2: 6, 3: 6}]
    for number, (subject, counts) in enumerate(zip(tasks, expected, strict=True)):
        assert memory.add(subject) == min(counts.values())
        assert memory.counts == counts
        assert sum(memory.bytes_stored().values()) == held(memory) <= memory.bytes
        now = memory.dataset()
        for label, count in counts.items():
            source = tasks[0 if label < 2 else label - 1]
            assert torch.equal(of_class(now, label), of_class(source, label)[:count]), (number, label)


@pytest.mark.parametrize("webp", [None, 40])
@pytest.mark.parametrize("top_k", [None, 0, 2])
@pytest.mark.parametrize("budget", [1900, 2613, 5000])
def test_no_byte_above_the_budget_and_no_room_left_for_another_image_of_every_class(data, budget, webp, top_k):
    memory = ReplayMemory(data, bytes=budget, webp=webp)
    for label in range(4):
        subject = a_set(data, {label: 50}, seed=label, soft=top_k is not None, top_k=top_k)
        memory.add(subject)
        assert sum(memory.bytes_stored().values()) == held(memory) <= budget
    larger = ReplayMemory(data, bytes=10**6, webp=webp)
    for label in range(4):
        larger.add(a_set(data, {label: 50}, seed=label, soft=top_k is not None, top_k=top_k))
    ipc = memory.counts[0]
    codes = {label: larger._content[label][: ipc + 1] for label in range(4)}
    label_bytes = 1 + {None: 0, 0: 16, 2: 10}[top_k]
    assert 4 + sum(len(item.code) + label_bytes for items in codes.values() for item in items) > budget
    assert [item.code for item in memory._content[2]] == [item.code for item in codes[2][:ipc]]


def test_a_small_class_keeps_all_of_its_images_and_leaves_its_room_to_others(data):
    memory = ReplayMemory(data, bytes=20 * IMAGE + 4)
    memory.add(a_set(data, {0: 2, 1: 30, 2: 30}))
    assert memory.counts == {0: 2, 1: 9, 2: 9}


def test_images_are_coded_once(data, monkeypatch):
    calls, encode = [], WebP.encode
    monkeypatch.setattr(WebP, "encode", lambda self, image: calls.append(1) or encode(self, image))
    memory = ReplayMemory(data, bytes=3000, webp=20)
    memory.add(a_set(data, {0: 10}))
    memory.add(a_set(data, {1: 10}, seed=1))
    assert len(calls) == 20


def test_a_budget_below_an_image_of_every_class_is_refused_and_changes_nothing(data):
    memory = ReplayMemory(data, bytes=2 * IMAGE + 4)
    memory.add(a_set(data, {0: 3, 1: 3}))
    before = memory.state_dict()
    with pytest.raises(InputError, match=r"bytes is 390 and one image of each of 3 classes takes 583: raise it, or give webp"):
        memory.add(a_set(data, {2: 3}))
    assert all(torch.equal(value, before[name]) for name, value in memory.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bytes": 0}, "bytes is 0: expected 1 or more"),
        ({"bytes": 2.5}, "bytes is 2.5: expected a whole number"),
        ({"bytes": 9, "webp": 0}, "webp is 0: expected a quality of 1 to 100"),
        ({"bytes": 9, "webp": 101}, "webp is 101"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(data, settings, message):
    with pytest.raises(InputError, match=message):
        ReplayMemory(data, **settings)


# --- what is added -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("webp", [None, 30])
def test_of_a_generator_as_many_images_are_drawn_as_there_is_room_for(digits_gan, webp):
    spec = digits_gan.spec
    memory = ReplayMemory(spec, bytes=6000, webp=webp)
    first = memory.add(digits_gan, classes=[3, 4], seed=5)
    assert memory.counts == {3: first, 4: first}
    second = memory.add(digits_gan, classes=range(5, 9), seed=5)
    assert second < first
    drawn = sample_set(digits_gan, ipc=first, classes=range(3, 9), seed=5)
    coding = Plain(spec) if webp is None else WebP(spec, webp)
    for label in range(3, 9):
        wanted = [coding.decode(coding.encode(image)) for image in of_class(drawn, label)[:second]]
        assert torch.equal(of_class(memory.dataset(), label), torch.stack(wanted))
    whole = ReplayMemory(spec, bytes=6000, webp=webp)
    whole.add(sample_set(digits_gan, ipc=3 * second, classes=range(3, 9), seed=5))
    assert whole.counts[3] == second


def test_classes_of_a_task_are_known_by_their_names(data):
    own = a_set(data, {0: 3, 1: 3})
    renamed = SyntheticSet(own.images, own.labels, task(data, 2, 0))
    memory = ReplayMemory(data, bytes=9999)
    memory.add(renamed)
    assert memory.counts == {0: 3, 2: 3}
    assert torch.equal(of_class(memory.dataset(), 0), of_class(own, 1))
    memory.add(renamed, classes=["class 2"])
    assert memory.counts == {0: 3, 2: 6}


def test_soft_labels_come_along_in_the_places_of_their_classes(data):
    subject = a_set(task(data, 3, 1), {0: 4, 1: 4}, soft=True)
    memory = ReplayMemory(data, bytes=9999)
    memory.add(subject, classes=[3])
    found = memory.dataset()
    assert torch.equal(found.soft[:, [3, 1]], subject.soft[subject.labels == 0])
    assert not found.soft[:, [0, 2]].any()
    with pytest.raises(InputError, match=r"the memory has soft labels \(top_k 0\) and what is added hard labels"):
        memory.add(a_set(data, {0: 1}))


def test_of_soft_labels_cut_to_the_largest_only_those_are_stored(data):
    subject = a_set(data, {0: 4, 2: 4}, soft=True, top_k=2)
    memory = ReplayMemory(data, bytes=9999)
    memory.add(subject)
    assert memory.bytes_stored()["labels"] == 8 * (1 + 2 * 5)
    other = ReplayMemory(data, bytes=9999)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.dataset().soft, subject.soft)
    assert other.top_k == 2


def test_additions_to_a_class_have_equal_shares_of_what_stays(data):
    subjects = [a_set(data, {0: 40}, seed=seed) for seed in range(3)]
    memory = ReplayMemory(data, bytes=30 * IMAGE + 4 + 3 * 4)
    for subject in subjects:
        memory.add(subject)
    memory.add(a_set(data, {1: 40}, seed=9))
    found = of_class(memory.dataset(), 0)
    assert len(found) == 15
    for subject in subjects:
        shared = [image for image in found if any(torch.equal(image, own) for own in subject.images[:5])]
        assert len(shared) == 5


def test_an_addition_that_leaves_nothing_is_told(data, capsys):
    memory = ReplayMemory(data, bytes=3 * IMAGE + 4 + 4 * 4)
    for seed in range(3):
        memory.add(a_set(data, {0: 5}, seed=seed))
    assert capsys.readouterr().err == ""
    assert memory.add(a_set(data, {0: 5}, seed=3)) == 3
    assert "room for 3 images of class 'class 0', which was added to more often: nothing of its last" in capsys.readouterr().err


def test_shares_stay_equal_where_an_addition_had_few_images(data):
    parts = [a_set(data, {0: count}, seed=seed) for seed, count in enumerate((2, 20, 20))]
    memory = ReplayMemory(data, bytes=10**6)
    for part in parts:
        memory.add(part)
        memory.load_state_dict(memory.state_dict())  # which says what came with which addition
    found = of_class(memory.dataset(), 0)[:24]
    assert [sum(any(torch.equal(image, own) for own in part.images) for image in found) for part in parts] == [2, 11, 11]
    assert memory.bytes_stored()["additions"] == data.num_classes + 4 * 3
    smaller = ReplayMemory(data, bytes=2 * (IMAGE) + data.num_classes + 12)
    smaller.load_state_dict(memory.state_dict())
    assert smaller.counts == {0: 2}
    assert smaller.bytes_stored()["additions"] == data.num_classes + 4 * 2, "the third left nothing"


@pytest.mark.parametrize(
    "change",
    [
        {"labels": torch.tensor([-1, 0, 1, 1], dtype=torch.int16)},
        {"labels": torch.tensor([0, 0, 1, 9], dtype=torch.uint8)},
        {"additions": torch.tensor([2, 1, 1, 0], dtype=torch.uint8)},
        {"shares": torch.tensor([2], dtype=torch.int32)},
        {"shares": torch.tensor([0, 2], dtype=torch.int32)},
        {"shares": torch.tensor([1, 1, 1], dtype=torch.int32)},
    ],
)
def test_labels_and_additions_of_a_state_have_to_fit(data, change):
    memory, other = ReplayMemory(data, bytes=9999), ReplayMemory(data, bytes=9999)
    memory.add(a_set(data, {0: 1}))
    memory.add(a_set(data, {0: 1, 1: 2}, seed=1))
    other.add(a_set(data, {2: 3}))
    with pytest.raises(InputError, match="the state of a replay memory is damaged"):
        other.load_state_dict(memory.state_dict() | change)
    assert other.counts == {2: 3}


def test_learned_pixels_are_rounded(data):
    subject = a_set(data, {0: 2})
    learned = SyntheticSet(subject.tensors()[0] + 1e-4, subject.labels, data)
    memory = ReplayMemory(data, bytes=9999)
    memory.add(learned)
    assert torch.equal(memory.dataset().images, subject.images)


@pytest.mark.parametrize(
    ("change", "classes", "message"),
    [
        ({"width": 16}, None, r"images are \(3, 8, 16\): expected \(3, 8, 8\)"),
        ({"class_names": ("class 0", "other")}, None, "class 'other' is none of the memory's: expected class 0"),
        ({"class_names": ("class 0", "class 0")}, None, "two classes of 'toy' share a name"),
        ({}, [9], "classes has label 9: expected 0 to 3"),
        ({}, ["nine"], "classes has label 'nine'"),
        ({}, [], "classes is none: expected one or more of class 0"),
        ({"class_names": ("class 0", "class 1")}, [2], "classes is 'class 2': expected one or more of class 0, class 1"),
        ({}, [2], "class 'class 2' has no image in the set"),
    ],
)
def test_what_does_not_fit_is_refused(data, change, classes, message):
    other = dataclasses.replace(data, **change)
    memory = ReplayMemory(data, bytes=9999)
    with pytest.raises(InputError, match=message):
        memory.add(a_set(other, {0: 2, 1: 2}), classes)
    assert len(memory) == 0


def test_soft_labels_that_are_not_cut_as_the_set_says_are_refused(data):
    subject = SyntheticSet(*a_set(data, {0: 2}).content().values(), data, soft=torch.full((2, 4), 0.25), info={"top_k": 2})
    with pytest.raises(InputError, match="soft labels of 4 classes in a set that says top_k 2"):
        ReplayMemory(data, bytes=9999).add(subject)


def test_soft_labels_over_unknown_classes_are_refused(data):
    other = dataclasses.replace(data, class_names=("class 0", "other"))
    with pytest.raises(InputError, match="soft labels are over classes that the memory does not have"):
        ReplayMemory(data, bytes=9999).add(a_set(other, {0: 2}, soft=True), ["class 0"])


# --- replaying ---------------------------------------------------------------------------------------------------------------


def test_batches_show_every_image_once_per_pass(data):
    memory = ReplayMemory(data, bytes=9999)
    subject = a_set(data, {0: 5, 3: 5})
    memory.add(subject)
    loader = memory.batches(5, seed=1)
    passes = [[next(loader) for _ in range(2)] for _ in range(2)]
    images, labels = subject.tensors()
    for batches in passes:
        shown = torch.cat([own for own, _ in batches])
        places = [(images == image).flatten(1).all(1).nonzero().item() for image in shown]
        assert sorted(places) == list(range(10))
        assert torch.equal(torch.cat([own for _, own in batches]), labels[places])
    assert not torch.equal(passes[0][0][0], passes[1][0][0])
    assert torch.equal(next(memory.batches(5, seed=1))[0], passes[0][0][0])
    assert not torch.equal(next(memory.batches(5, seed=2))[0], passes[0][0][0])
    assert next(memory.batches(64))[0].shape == (64, 3, 8, 8)


def test_an_empty_memory_says_so(data):
    memory = ReplayMemory(data, bytes=9999)
    with pytest.raises(InputError, match="the memory holds no images: add a set or a generator first"):
        memory.batches(5)
    memory.add(a_set(data, {0: 5}))
    with pytest.raises(InputError, match="size is 0: expected 1 or more images per batch"):
        memory.batches(0)


# --- keeping -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("webp", [None, 50])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("classes", [4, 300])
def test_a_saved_memory_goes_on_as_it_was(spec, tmp_path, webp, soft, classes):
    data = spec(channels=1, size=(8, 6), classes=classes)
    memory = ReplayMemory(data, bytes=40_000, webp=webp)
    top_k = 3 if classes == 300 else 0
    memory.add(a_set(data, {0: 9, classes - 1: 9}, soft=soft, top_k=top_k))
    path = memory.save(tmp_path / "memory.safetensors")
    loaded = ReplayMemory.load(path)
    assert (loaded.bytes, loaded.webp, loaded.spec, loaded.top_k) == (40_000, webp, data, top_k if soft else None)
    assert sum(loaded.bytes_stored().values()) == held(memory)
    assert path.stat().st_size > held(memory)
    more = a_set(data, {0: 9, 2: 9}, seed=3, soft=soft, top_k=top_k)
    for each in (memory, loaded):
        each.add(more)
    ours, theirs = memory.dataset(), loaded.dataset()
    for name, value in ours.content().items():
        assert torch.allclose(value, theirs.content()[name]) if name == "soft" else torch.equal(value, theirs.content()[name])


def test_an_empty_memory_can_be_saved(data, tmp_path):
    assert len(ReplayMemory.load(ReplayMemory(data, bytes=100).save(tmp_path / "memory.safetensors"))) == 0


def test_a_state_is_cut_to_a_smaller_budget(data):
    memory, smaller = ReplayMemory(data, bytes=9999), ReplayMemory(data, bytes=4 * IMAGE + 4)
    memory.add(a_set(data, {0: 9, 1: 9}))
    smaller.load_state_dict(memory.state_dict())
    assert smaller.counts == {0: 2, 1: 2}


def test_damage_is_noticed(data, tmp_path):
    memory = ReplayMemory(data, bytes=9999, webp=50)
    memory.add(a_set(data, {0: 9}))
    path = memory.save(tmp_path / "memory.safetensors")
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged: its content does not match its checksum"):
        ReplayMemory.load(path)
    save_tensors(path, {}, {"kind": "set"})
    with pytest.raises(InputError, match="holds 'set', format None: expected 'replay memory', format 1"):
        ReplayMemory.load(path)
    with pytest.raises(InputError, match="no file"):
        ReplayMemory.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("webp", [None, 50])
@pytest.mark.parametrize("name", ["images", "labels", "additions", "soft"])
@pytest.mark.parametrize("change", ["missing", "shorter", "other"])
def test_a_state_that_is_none_is_refused_and_changes_nothing(data, tmp_path, webp, name, change):
    memory, other = (ReplayMemory(data, bytes=9999, webp=webp) for _ in range(2))
    for each, seed in ((memory, 0), (other, 1)):
        each.add(a_set(data, {0: 5, 1: 5}, seed=seed, soft=True))
    state = memory.state_dict()
    if change == "missing":
        del state[name]
    elif change == "shorter":
        state[name] = state[name][:-1]
    elif name == "images" and webp is None:
        state[name] = torch.cat((state[name], state[name][:192]))
    else:
        state[name] = state[name].flip(0) if name != "soft" else state[name] / 0
        state[name] = torch.zeros_like(state[name]) if name == "additions" else state[name]
    before = other.dataset().images
    if (name, change) == ("soft", "missing"):  # a state of hard labels
        other.load_state_dict(state)
        assert other.dataset().soft is None
        return
    with pytest.raises(InputError, match="the state of a replay memory is damaged"):
        other.load_state_dict(state)
    assert torch.equal(other.dataset().images, before)


def test_a_file_with_codes_of_other_sizes_is_refused(spec, data, tmp_path):
    memory = ReplayMemory(data, bytes=9999, webp=50)
    memory.add(a_set(data, {0: 2}))
    path = memory.save(tmp_path / "memory.safetensors")
    state, about = load_tensors(path)
    save_tensors(path, state, {**about, "spec": spec(channels=3, size=16, classes=4).to_dict()})
    with pytest.raises(InputError, match=r"an image of \(8, 8\) pixels in place of \(16, 16\)"):
        ReplayMemory.load(path)


# --- codings -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_webp_is_near_the_image_and_the_nearer_the_higher_its_quality(spec, channels):
    data = spec(channels=channels, size=(24, 16))
    ramp = torch.linspace(0, 255, 24)[:, None].expand(channels, 24, 16).round().to(torch.uint8)
    errors = []
    for quality in (1, 100):
        coding = WebP(data, quality)
        back = coding.decode(coding.encode(ramp))
        assert (back.dtype, back.shape) == (torch.uint8, ramp.shape)
        errors.append(float((back.float() - ramp.float()).abs().mean()))
    assert errors[1] < 2
    assert errors[1] < errors[0] < 30
    assert coding.split(coding.encode(ramp) * 3) == [coding.encode(ramp)] * 3


def test_webp_holds_grey_or_rgb(spec):
    with pytest.raises(InputError, match="webp is 50 and images have 2 channels: expected 1 or 3"):
        WebP(spec(channels=2), 50)
