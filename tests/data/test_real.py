"""Real data: splits, statistics, batches, and every source that needs no download."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from sklearn.datasets import load_digits

import dim
from dim.config import DataConfig
from dim.data.real import EpochBatches, from_dataset, load_data, per_class_indices, stratified
from dim.data.splits import ArraySplit
from dim.errors import InputError
from dim.processes import Processes

_PARTS = ("train", "val", "test")


@pytest.fixture(scope="module")
def digits():
    return load_data(DataConfig())


def write_images(folder: Path, count: int, *, size=(8, 8), seed: int = 0, mode: str = "RGB", suffix: str = ".png") -> None:
    """Random images, `size` as (height, width)."""
    source = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shape = size if mode == "L" else (*size, 3)
    for number in range(count):
        Image.fromarray(source.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number:03d}{suffix}")


@pytest.fixture
def folder(tmp_path):
    """Two classes of twelve and ten 8x8 images."""
    write_images(tmp_path / "root" / "cat", 12, seed=1)
    write_images(tmp_path / "root" / "dog", 10, seed=2)
    return tmp_path / "root"


def folder_config(root: Path, **settings) -> DataConfig:
    return DataConfig(**{"dataset": "folder", "root": str(root), "resolution": 8, **settings})


def everything(split) -> torch.Tensor:
    return split.batch(torch.arange(len(split)))[0]


def pixels(split) -> Counter:
    return Counter(bytes(image.contiguous().numpy()) for image in everything(split))


# --- digits ------------------------------------------------------------------------------------------------------------


def test_digits_are_split_per_class_as_configured(digits):
    whole = np.bincount(load_digits().target)
    test = np.array([round(0.2 * count) for count in whole])
    val = np.array([round(0.1 * count) for count in whole - test])
    for part, expected in zip(_PARTS, (whole - test - val, val, test), strict=True):
        split = getattr(digits, part)
        assert torch.bincount(split.labels, minlength=10).tolist() == expected.tolist()
        assert len(split) == expected.sum()
        assert not split.streams


def test_digits_parts_are_disjoint_and_cover_all_images(digits):
    whole = Counter(bytes(np.round(image * 255 / 16).astype(np.float32) / 127.5 - 1) for image in load_digits().images)
    assert sum((pixels(getattr(digits, part)) for part in _PARTS), Counter()) == whole


def test_digits_pixels_and_labels_belong_together(digits):
    original = {bytes(np.round(i * 255 / 16).astype(np.uint8)): t for i, t in zip(*load_digits(return_X_y=True), strict=True)}
    for image, label in zip(digits.test.images, digits.test.labels.tolist(), strict=True):
        assert original[bytes(image.numpy())] == label


def test_digits_are_the_same_at_every_load(digits):
    again = load_data(DataConfig())
    assert again.spec == digits.spec
    for part in _PARTS:
        assert torch.equal(getattr(again, part).images, getattr(digits, part).images)
        assert torch.equal(getattr(again, part).labels, getattr(digits, part).labels)


def test_split_seed_changes_the_split_and_the_fingerprint(digits):
    other = load_data(DataConfig(split_seed=1))
    assert not torch.equal(other.test.images, digits.test.images)
    assert other.spec.fingerprint != digits.spec.fingerprint


def test_no_validation_part_when_its_fraction_is_zero(digits):
    data = load_data(DataConfig(val_fraction=0))
    assert len(data.val) == 0
    assert torch.equal(data.test.images, digits.test.images)
    assert len(data.train) == len(digits.train) + len(digits.val)


def test_statistics_are_those_of_the_training_part_alone(digits):
    values = digits.train.images.numpy().astype(np.float64) / 255
    assert digits.spec.mean == pytest.approx([values.mean()], abs=2e-6)
    assert digits.spec.std == pytest.approx([values.std()], abs=2e-6)
    everything_else = np.concatenate([values, digits.test.images.numpy() / 255])
    assert abs(everything_else.mean() - values.mean()) > 1e-5  # the test above could tell


def test_batches_are_images_in_minus_one_to_one_with_their_labels(digits):
    indices = torch.tensor([5, 0, 5, 1200])
    images, labels = digits.train.batch(indices)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    expected = digits.train.images.numpy()[indices.numpy()].astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-6)
    assert torch.equal(labels, digits.train.labels[indices])
    assert float(everything(digits.train).min()) == -1
    assert float(everything(digits.train).max()) == 1


def test_digits_can_be_enlarged_and_made_rgb():
    data = load_data(DataConfig(resolution=16, channels=3))
    assert data.spec.image_shape == (3, 16, 16)
    images = everything(data.test)
    assert torch.equal(images[:, 0], images[:, 2])
    assert images.std() > 0.3


# --- picking images ------------------------------------------------------------------------------------------------------


def test_stratified_holds_out_at_least_one_per_class():
    labels = torch.tensor([0] * 50 + [1] * 3)
    held, kept = stratified(labels, 0.1, 0)
    assert torch.bincount(labels[held]).tolist() == [5, 1]
    assert sorted(held.tolist() + kept.tolist()) == list(range(53))


def numbers(count: int) -> ArraySplit:
    return ArraySplit(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), torch.arange(count) % 2, "cpu")


def test_every_epoch_is_another_permutation():
    batches = EpochBatches(numbers(24), 8, seed=3, purpose="x")
    epochs = [torch.cat([batches.indices(3 * epoch + part) for part in range(3)]) for epoch in range(4)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(24))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_epochs_that_do_not_divide_still_use_every_image_once():
    batches = EpochBatches(numbers(10), 4, seed=0, purpose="x")
    stream = torch.cat([batches.indices(step) for step in range(10)])
    for epoch in stream.split(10):
        assert sorted(epoch.tolist()) == list(range(10))


def test_a_batch_is_a_function_of_seed_purpose_and_step():
    def batch(step, seed=3, purpose="x"):
        return EpochBatches(numbers(50), 8, seed=seed, purpose=purpose).indices(step).tolist()

    walked = EpochBatches(numbers(50), 8, seed=3, purpose="x")
    for step in range(40):
        assert walked.indices(step).tolist() == batch(step)
    assert walked.indices(2).tolist() == batch(2)  # going back is allowed
    assert batch(17) != batch(17, seed=4)
    assert batch(17) != batch(17, purpose="y")


def test_shares_of_two_processes_are_the_batch_of_one():
    settings = {"seed": 0, "purpose": "x"}
    whole = EpochBatches(numbers(30), 8, **settings)
    shares = [EpochBatches(numbers(30), 8, processes=Processes(rank, 2), **settings) for rank in range(2)]
    for step in range(9):
        assert torch.equal(torch.stack([share.indices(step) for share in shares], dim=1).flatten(), whole.indices(step))


def test_a_batch_larger_than_the_data_repeats_it_evenly():
    batches = EpochBatches(numbers(10), 25, seed=0, purpose="x")
    both = torch.cat([batches.indices(0), batches.indices(1)])
    assert len(batches.indices(0)) == 25
    assert torch.bincount(both).tolist() == [5] * 10
    assert torch.bincount(batches.indices(0)[:20]).tolist() == [2] * 10


@pytest.mark.parametrize(("power", "counts"), [(0.0, [20, 20, 20]), (0.5, [9, 19, 28])])
def test_small_classes_are_shown_more_often_as_asked(power, counts):
    labels = torch.arange(3).repeat_interleave(torch.tensor({0.0: [4, 16, 40], 0.5: [4, 16, 36]}[power]))
    split = ArraySplit(torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8), labels, "cpu")
    batches = EpochBatches(split, len(labels), seed=0, purpose="x", class_power=power)
    epochs = torch.stack([batches.indices(epoch) for epoch in range(12)])
    for epoch in epochs:
        assert torch.bincount(labels[epoch]).tolist() == counts
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs)
    shown = torch.bincount(epochs.flatten(), minlength=len(labels))
    for label in range(3):  # the images of a class take turns
        assert shown[labels == label].max() - shown[labels == label].min() <= 1
    again = EpochBatches(split, len(labels), seed=0, purpose="x", class_power=power)
    assert torch.equal(again.indices(5), epochs[5])


def test_every_class_is_in_every_epoch_whatever_its_size():
    labels = torch.tensor([0] + [1] * 200 + [2] * 99)
    split = ArraySplit(torch.zeros(300, 1, 4, 4, dtype=torch.uint8), labels, "cpu")
    for power in (0.0, 0.3, 0.99):
        epoch = EpochBatches(split, 300, seed=0, purpose="x", class_power=power).indices(0)
        assert torch.bincount(labels[epoch]).min() >= 1


def test_a_batch_must_divide_by_the_number_of_processes():
    with pytest.raises(InputError, match=r"batch_size is 9 and there are 2 processes: expected a multiple"):
        EpochBatches(numbers(30), 9, seed=0, purpose="x", processes=Processes(0, 2))


def test_images_per_class_are_balanced_nested_and_drawn_by_seed(digits):
    labels = digits.train.labels
    many = per_class_indices(labels, 5, 10, seed=0)
    few = per_class_indices(labels, 3, 10, seed=0)
    assert torch.bincount(labels[many]).tolist() == [5] * 10
    assert len(many.unique()) == 50
    assert torch.equal(many[:30], few)
    assert not torch.equal(per_class_indices(labels, 5, 10, seed=1), many)


@pytest.mark.parametrize(("ipc", "message"), [(0, "is 0: expected 1"), (-3, "is -3"), (4, "class 1 has 3 images: 4 were asked")])
def test_too_few_images_in_a_class_are_refused(ipc, message):
    labels = torch.tensor([0] * 9 + [1] * 3)
    assert len(per_class_indices(labels, 3, 2, seed=0)) == 6
    with pytest.raises(InputError, match=message):
        per_class_indices(labels, ipc, 2, seed=0)


# --- folders -------------------------------------------------------------------------------------------------------------


def test_a_folder_of_class_folders(folder):
    data = load_data(folder_config(folder))
    assert data.spec.class_names == ("cat", "dog")
    assert data.spec.image_shape == (3, 8, 8)
    assert [torch.bincount(getattr(data, part).labels).tolist() for part in _PARTS] == [[9, 7], [1, 1], [2, 2]]
    stored = Counter()
    for file in folder.rglob("*.png"):
        stored[bytes(np.asarray(Image.open(file)).transpose(2, 0, 1).astype(np.float32) / 127.5 - 1)] += 1
    assert sum((pixels(getattr(data, part)) for part in _PARTS), Counter()) == stored


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_a_folder_with_its_own_test_part(tmp_path, test_name):
    for number, name in enumerate(("a", "b")):
        write_images(tmp_path / "train" / name, 6, seed=number)
        write_images(tmp_path / test_name / name, 3 + number, seed=10 + number)
    data = load_data(folder_config(tmp_path, val_fraction=0.0))
    assert torch.bincount(data.train.labels).tolist() == [6, 6]
    assert torch.bincount(data.test.labels).tolist() == [3, 4]
    first = np.asarray(Image.open(tmp_path / test_name / "b" / "000.png"))
    np.testing.assert_array_equal(data.test.images[3].permute(1, 2, 0).numpy(), first)


def test_a_test_part_with_an_unknown_class_is_refused(tmp_path):
    for name in ("a", "b"):
        write_images(tmp_path / "train" / name, 3)
        write_images(tmp_path / "test" / name, 3)
    write_images(tmp_path / "test" / "zebra", 3)
    with pytest.raises(InputError, match="zebra"):
        load_data(folder_config(tmp_path))


def test_images_are_cropped_at_the_centre(tmp_path):
    bars = np.zeros((8, 24, 3), dtype=np.uint8)
    bars[:, 8:16] = np.random.default_rng(0).integers(1, 256, (8, 8, 3))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.fromarray(bars).save(tmp_path / name / f"{number}.png")
    data = load_data(folder_config(tmp_path))
    np.testing.assert_array_equal(data.train.images[0].permute(1, 2, 0).numpy(), bars[:, 8:16])


@pytest.mark.parametrize("size", [(16, 24), (40, 20), (4, 6), (12, 12)])
def test_images_are_resized_as_torchvision_resizes_them(tmp_path, size):
    for name in ("a", "b"):
        write_images(tmp_path / name, 4, size=size, seed=7)
    data = load_data(folder_config(tmp_path, val_fraction=0.0))
    expected = []
    for file in sorted((tmp_path / "a").iterdir()):
        image = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        expected.append(TF.center_crop(TF.resize(image, 8, antialias=True), 8).int())
    for image in everything(data.train)[: len(data.train) // 2]:
        pixel = ((image + 1) * 127.5).round().int()
        assert min(int((pixel - other).abs().max()) for other in expected) <= 1


def test_grey_and_rgb_can_be_forced(tmp_path):
    write_images(tmp_path / "grey" / "a", 4, mode="L")
    write_images(tmp_path / "grey" / "b", 4, mode="L", seed=1)
    default = load_data(folder_config(tmp_path / "grey"))
    assert default.spec.channels == 3
    assert torch.equal(default.train.images[:, 0], default.train.images[:, 1])
    grey = load_data(folder_config(tmp_path / "grey", channels=1))
    assert grey.spec.image_shape == (1, 8, 8)
    assert torch.equal(grey.train.images[:, 0], default.train.images[:, 0])

    write_images(tmp_path / "rgb" / "a", 4)
    write_images(tmp_path / "rgb" / "b", 4, seed=1)
    colour = load_data(folder_config(tmp_path / "rgb", channels=3)).train.images.double()
    luma = (colour * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    assert (load_data(folder_config(tmp_path / "rgb", channels=1)).train.images - luma).abs().max() <= 1


def test_a_streaming_data_set_is_the_same_data(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    held = load_data(folder_config(folder))
    streamed = load_data(folder_config(folder, memory_gib=0.0))
    assert streamed.train.streams
    assert not held.train.streams
    assert streamed.spec == held.spec
    for part in _PARTS:
        assert torch.equal(everything(getattr(streamed, part)), everything(getattr(held, part)))
        assert torch.equal(getattr(streamed, part).labels, getattr(held, part).labels)
    settings = {"seed": 0, "purpose": "x"}
    for step in (0, 1, 2, 7, 3):
        one = EpochBatches(streamed.train, 6, **settings).at(step)
        other = EpochBatches(held.train, 6, **settings).at(step)
        assert all(map(torch.equal, one, other))
    walked = EpochBatches(streamed.train, 6, **settings)
    for step in range(8):  # the batch that is decoded ahead is the right one
        assert all(map(torch.equal, walked.at(step), EpochBatches(held.train, 6, **settings).at(step)))


def test_another_folder_has_another_fingerprint(folder):
    before = load_data(folder_config(folder)).spec.fingerprint
    assert load_data(folder_config(folder)).spec.fingerprint == before
    write_images(folder / "dog", 11, seed=2)
    assert load_data(folder_config(folder)).spec.fingerprint != before


# --- what is refused -----------------------------------------------------------------------------------------------------


def refused(config: DataConfig) -> str:
    with pytest.raises(InputError) as caught:
        load_data(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_data_set_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"data\.dataset is 'cifar-10': expected a data set\. Did you mean 'cifar10'"):
        DataConfig(dataset="cifar-10", root=".")


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "tiny-imagenet", "folder"])
def test_a_missing_root_is_refused(dataset, tmp_path):
    assert "--data-root" in refused(DataConfig(dataset=dataset, resolution=8))
    missing = tmp_path / "nowhere"
    assert str(missing) in refused(DataConfig(dataset=dataset, root=str(missing), resolution=8))
    assert not missing.exists()


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "tiny-imagenet"])
def test_a_root_without_the_data_is_refused(dataset, tmp_path):
    message = refused(DataConfig(dataset=dataset, root=str(tmp_path)))
    assert str(tmp_path) in message
    assert list(tmp_path.iterdir()) == []


def test_a_folder_needs_a_resolution(folder):
    assert "--resolution" in refused(DataConfig(dataset="folder", root=str(folder)))


@pytest.mark.parametrize("classes", [0, 1])
def test_a_folder_with_one_class_or_none_is_refused(tmp_path, classes):
    for number in range(classes):
        write_images(tmp_path / f"class{number}", 4)
    assert f"{classes} class folder(s): expected at least 2" in refused(folder_config(tmp_path))


def test_an_empty_class_folder_is_refused(folder):
    (folder / "emu").mkdir()
    (folder / "emu" / "notes.txt").write_text("later")
    assert str(folder / "emu") in refused(folder_config(folder))


def test_a_class_with_a_single_image_is_refused(folder):
    write_images(folder / "emu", 1)
    assert "'emu'" in refused(folder_config(folder))


@pytest.mark.parametrize("damage", ["text", "empty", "truncated"])
@pytest.mark.parametrize("memory_gib", [8.0, 0.0])
def test_an_unreadable_image_is_named(folder, tmp_path, monkeypatch, damage, memory_gib):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for file in sorted((folder / "dog").iterdir()):
        content = {"text": b"no image", "empty": b"", "truncated": file.read_bytes()[:90]}[damage]
        file.write_bytes(content)
    message = refused(folder_config(folder, memory_gib=memory_gib))
    assert "cannot be read" in message
    assert str(folder / "dog") in message
    assert ".png" in message


# --- other layouts -------------------------------------------------------------------------------------------------------


def write_tiny_imagenet(root: Path) -> None:
    rows = []
    for number, name in enumerate(("n001", "n002", "n003")):
        write_images(root / "train" / name / "images", 5, seed=number, suffix=".JPEG")
    write_images(root / "val" / "images", 6, seed=9, suffix=".JPEG")
    for number in range(6):
        rows.append(f"{number:03d}.JPEG\tn00{3 - number // 2}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    (root / "test" / "images").mkdir(parents=True)


@pytest.mark.parametrize("inside", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_layout(tmp_path, inside):
    write_tiny_imagenet(tmp_path / inside)
    data = load_data(DataConfig(dataset="tiny-imagenet", root=str(tmp_path), val_fraction=0.0))
    assert data.spec.class_names == ("n001", "n002", "n003")
    assert torch.bincount(data.train.labels).tolist() == [5, 5, 5]
    assert data.test.labels.tolist() == [2, 2, 1, 1, 0, 0]
    expected = np.asarray(Image.open(tmp_path / inside / "val" / "images" / "004.JPEG"))
    np.testing.assert_array_equal(data.test.images[4].permute(1, 2, 0).numpy(), expected)


def test_tiny_imagenet_with_a_missing_validation_image_is_refused(tmp_path):
    write_tiny_imagenet(tmp_path)
    (tmp_path / "val" / "images" / "003.JPEG").unlink()
    assert "003.JPEG" in refused(DataConfig(dataset="tiny-imagenet", root=str(tmp_path)))


def write_idx(path: Path, array: np.ndarray) -> None:
    header = (0x0800 + array.ndim).to_bytes(4, "big") + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize(("dataset", "name"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_torchvision_files(tmp_path, dataset, name):
    raw = tmp_path / name / "raw"
    raw.mkdir(parents=True)
    source = np.random.default_rng(0)
    images = {part: source.integers(0, 256, (count, 28, 28)) for part, count in (("train", 40), ("t10k", 20))}
    for part, array in images.items():
        write_idx(raw / f"{part}-images-idx3-ubyte", array)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(len(array)) % 10)
    data = load_data(DataConfig(dataset=dataset, root=str(tmp_path), val_fraction=0.25))
    assert [len(getattr(data, part)) for part in _PARTS] == [30, 10, 20]
    assert data.spec.image_shape == (1, 28, 28)
    assert data.spec.num_classes == 10
    np.testing.assert_array_equal(data.test.images[:, 0].numpy(), images["t10k"])
    assert data.test.labels.tolist() == [n % 10 for n in range(20)]


# --- any Dataset ---------------------------------------------------------------------------------------------------------


def items(kind: str, count: int = 12) -> list:
    array = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    convert = {
        "pil": Image.fromarray,
        "uint8": lambda a: torch.from_numpy(a).permute(2, 0, 1),
        "numpy": lambda a: a.transpose(2, 0, 1),
        "float": lambda a: torch.from_numpy(a).permute(2, 0, 1) / 255,
    }[kind]
    return [(convert(a), n % 3) for n, a in enumerate(array)]


@pytest.mark.parametrize("kind", ["pil", "uint8", "numpy", "float"])
@pytest.mark.parametrize("memory_gib", [8.0, 0.0])
def test_any_dataset_of_pairs(kind, memory_gib, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = DataConfig(val_fraction=0.0, memory_gib=memory_gib)
    data = dim.from_dataset(items(kind), items(kind, 6), name="mine", class_names=("x", "y", "z"), config=config)
    assert data.spec.name == "mine"
    assert data.spec.image_shape == (3, 8, 8)
    expected = torch.stack([image for image, _ in items("uint8")])
    assert torch.equal(((everything(data.train) + 1) * 127.5).round().to(torch.uint8), expected)
    assert data.train.labels.tolist() == [0, 1, 2] * 4
    assert len(data.test) == 6


def test_the_memory_limit_does_not_change_what_a_dataset_is_recognised_by(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    parts = items("uint8", 200), items("uint8", 6)
    specs = [
        from_dataset(*parts, name="mine", class_names="xyz", config=DataConfig(memory_gib=limit)).spec for limit in (8.0, 0.0)
    ]
    assert specs[0] == specs[1]


def test_a_dataset_may_be_resized_and_made_grey():
    config = DataConfig(resolution=16, channels=1)
    data = from_dataset(items("pil"), items("pil"), name="mine", class_names="xyz", config=config)
    assert data.spec.image_shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(8, 8, 3), r"shape \(8, 8, 3\)"),
        (torch.full((3, 8, 8), -0.5), r"outside \[0, 1\]"),
        (torch.full((3, 8, 8), 255.0), r"outside \[0, 1\]"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "int64"),
    ],
)
def test_items_of_another_form_are_refused(image, message):
    bad = [(image, n % 2) for n in range(8)]
    with pytest.raises(InputError, match=message):
        from_dataset(bad, bad, name="mine", class_names="xy")


def test_items_of_unequal_size_are_refused_unless_a_resolution_is_given():
    mixed = [(torch.zeros(1, 8 + n % 2, 8, dtype=torch.uint8), n % 2) for n in range(8)]
    with pytest.raises(InputError, match="resolution"):
        from_dataset(mixed, mixed, name="mine", class_names="xy")
    config = DataConfig(resolution=8)
    assert from_dataset(mixed, mixed, name="mine", class_names="xy", config=config).spec.image_shape == (1, 8, 8)


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_out_of_range_are_refused(label):
    bad = [(torch.zeros(1, 8, 8), label) for _ in range(4)]
    with pytest.raises(InputError, match=str(label)):
        from_dataset(bad, bad, name="mine", class_names="xy")


def test_an_empty_dataset_is_refused():
    good = [(torch.zeros(1, 8, 8), n % 2) for n in range(8)]
    with pytest.raises(InputError, match="mine"):
        from_dataset(good, [], name="mine", class_names="xy")
