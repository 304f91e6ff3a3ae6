"""Formats of other programs: DD-Ranking and DC-BENCH read what they are given, and our set comes back."""

from pathlib import Path

import pytest
import torch

from dim.data.normalise import published
from dim.data.published import read_published
from dim.data.stored import require_classes
from dim.data.synthetic import SyntheticSet, load_set
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.spec import DataSpec, to_uint8

PROGRAMS = ("ddranking", "dc-bench")
MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1), torch.tensor([0.2023, 0.1994, 0.2010]).view(3, 1, 1)
_SIDE = {"cifar10": (32, 10), "cifar100": (32, 100), "tiny-imagenet": (64, 200)}


def make_set(name="cifar10", *, ipc=3, floats=False, soft=False, info=None, count=None) -> SyntheticSet:
    """Index by index, as sets of ours are stored: image i of class k says so in its first two values."""
    side, classes = _SIDE.get(name, (32, 10))
    names = tuple(f"class {number}" for number in range(classes))
    shape = {"channels": 3, "height": side, "width": side, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    spec = DataSpec(name=name, class_names=names, fingerprint="f", **shape)
    source = torch.Generator().manual_seed(0)
    images = torch.rand(ipc * classes, 3, side, side, generator=source) * 2.4 - 1.2
    labels = torch.arange(ipc * classes) % classes
    images[:, 0, 0, 0], images[:, 0, 0, 1] = labels / classes, torch.arange(ipc * classes).div(classes).floor() / ipc
    weights = torch.rand(ipc * classes, classes, generator=source).mul(4).softmax(1) if soft else None
    if soft:
        weights[0] = torch.eye(classes)[0]  # a probability of 0 has no logarithm
    images = images if floats else to_uint8(images)
    kept = slice(None, count)
    return SyntheticSet(images[kept], labels[kept], spec, soft=None if weights is None else weights[kept], info=info)


def loaded(path):
    return torch.load(path, weights_only=True)


def refused(subject, folder, format, **settings) -> str:
    with pytest.raises(InputError) as caught:
        subject.save(folder, format, **settings)
    assert "\n" not in str(caught.value)
    assert not Path(folder).exists()
    return str(caught.value)


@pytest.mark.parametrize("format", PROGRAMS)
@pytest.mark.parametrize("floats", [False, True])
def test_our_set_comes_back_as_it_was(tmp_path, format, floats):
    subject = make_set(floats=floats, info={"step_size": 0.02})
    subject.save(tmp_path / "set", format)
    read = load_set(tmp_path / "set")
    assert torch.equal(read.images, subject.images)
    assert torch.equal(read.labels, subject.labels)
    assert read.info == subject.info


# --- DD-Ranking ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("floats", [False, True])
def test_ddranking_gets_normalised_images_class_by_class(tmp_path, floats):
    """Its evaluators label images by their place: as many of class 0, then of class 1, ..."""
    subject = make_set(floats=floats, info={"step_size": 0.02})
    subject.save(tmp_path / "set", "ddranking")
    images, labels = loaded(tmp_path / "set" / "images.pt"), loaded(tmp_path / "set" / "labels.pt")
    assert images.dtype == torch.float32
    assert labels.tolist() == [label for label in range(10) for _ in range(3)]
    natural = subject.tensors()[0]
    for place, (label, index) in enumerate((label, index) for label in range(10) for index in range(3)):
        expected = ((natural[index * 10 + label] + 1) / 2 - MEAN) / STD
        torch.testing.assert_close(images[place], expected)
    assert float(loaded(tmp_path / "set" / "lr.pt")) == pytest.approx(0.02)


def test_ddranking_gets_soft_labels_as_logits(tmp_path):
    subject = make_set(soft=True)
    subject.save(tmp_path / "set", "ddranking")
    logits, order = loaded(tmp_path / "set" / "labels.pt"), subject.labels.argsort(stable=True)
    assert bool(logits.isfinite().all())
    torch.testing.assert_close(logits.softmax(1), subject.soft[order], atol=1e-6, rtol=0)
    assert torch.equal(load_set(tmp_path / "set").soft, subject.soft)
    assert not (tmp_path / "set" / "lr.pt").exists()


def test_ddranking_gets_whitened_images_where_students_see_them(tmp_path):
    subject = make_set(floats=True, info={"protocol": {"zca": True}})
    assert "dim export --to ddranking" in refused(subject, tmp_path / "set", "ddranking")
    size = 3 * 32 * 32
    matrix = torch.eye(size) * 2
    whitening = Whitening(torch.full((size,), 0.25), matrix, matrix.inverse(), subject.spec)
    subject.save(tmp_path / "set", "ddranking", whitening=whitening)
    order = subject.labels.argsort(stable=True)
    expected = ((subject.images[order] + 1) / 2 - 0.25) * 2
    torch.testing.assert_close(loaded(tmp_path / "set" / "images.pt"), expected)


def test_ddrankings_own_code_takes_the_files(tmp_path):
    """As its documentation loads them, through its data set and its losses."""
    utils = pytest.importorskip("ddranking.utils")
    losses = pytest.importorskip("ddranking.loss")
    subject = make_set(soft=True)
    subject.save(tmp_path / "set", "ddranking")
    images, labels = torch.load(tmp_path / "set" / "images.pt"), torch.load(tmp_path / "set" / "labels.pt")
    data = utils.TensorDataset(images, labels)
    order = subject.labels.argsort(stable=True)
    own = subject.soft[order]
    outputs = torch.randn(len(data), 10)
    loss = losses.SoftCrossEntropyLoss(temperature=1.0)(outputs, torch.stack([data[place][1] for place in range(len(data))]))
    torch.testing.assert_close(loss, -(own * outputs.log_softmax(1)).sum(1).mean())


# --- DC-BENCH --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "theirs"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100"), ("tiny-imagenet", "tinyimagenet")]
)
def test_dc_bench_finds_the_files_of_its_method_tm(tmp_path, name, theirs):
    """Where its TMDataLoader looks, below its folder distilled_results."""
    subject = make_set(name, ipc=2)
    subject.save(tmp_path / "set", "dc-bench")
    place = tmp_path / "set" / "TM" / theirs / "IPC2"
    images, labels = loaded(place / "images_best.pt"), loaded(place / "labels_best.pt").long()
    order = subject.labels.argsort(stable=True)
    assert torch.equal(labels, subject.labels[order])
    constants = published("dc", name)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (constants.mean, constants.std))
    torch.testing.assert_close(images * std + mean, (subject.tensors()[0][order] + 1) / 2, atol=1e-6, rtol=0)
    back = constants.invert(read_published([place / "images_best.pt", place / "labels_best.pt"]).images)
    assert torch.equal(to_uint8(back), subject.images[order])


def test_dc_bench_finds_tiny_imagenet_at_ipc_50_in_five_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("dim.data.formats.dc_bench._IN_PARTS", ("cifar10", 5))  # tiny-imagenet would be half a gigabyte
    subject = make_set(ipc=5)
    subject.save(tmp_path / "set", "dc-bench")
    place = tmp_path / "set" / "TM" / "CIFAR10" / "IPC5"
    assert len(list(place.iterdir())) == 10
    labels = torch.cat([loaded(place / f"labels_best_{part}.pt") for part in range(5)])
    images = torch.cat([loaded(place / f"images_best_{part}.pt") for part in range(5)])
    assert torch.equal(labels, subject.labels.sort(stable=True).values)
    assert images.shape == (50, 3, 32, 32)
    assert (place / "images_best_0.pt").stat().st_size < 10 * 3 * 32 * 32 * 4 + 5000


# --- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", PROGRAMS)
def test_what_the_program_would_misread_is_refused(tmp_path, format):
    assert "takes as many images of each class, and this set has 2 to 3" in refused(make_set(count=29), tmp_path / "set", format)
    assert "does not know the data set 'mine'" in refused(make_set("mine"), tmp_path / "set", format)
    small = make_set()
    spec = DataSpec(**{**small.spec.to_dict(), "height": 16, "width": 16})
    subject = SyntheticSet(small.images[:, :, :16, :16], small.labels, spec)
    assert "10 classes of (3, 32, 32): this set has 10 classes of (3, 16, 16)" in refused(subject, tmp_path / "set", format)


def test_dc_bench_takes_neither_soft_labels_nor_whitened_images(tmp_path):
    assert "this set has soft labels: use --format ddranking" in refused(make_set(soft=True), tmp_path / "set", "dc-bench")
    subject = make_set(info={"protocol": {"zca": True}})
    assert "does not whiten images" in refused(subject, tmp_path / "set", "dc-bench")


def test_formats_of_other_programs_are_no_remedy_for_sets_of_any_data():
    """Lines that refuse a format name others."""
    from dim.config import FORMATS

    subject = make_set(count=5)
    with pytest.raises(InputError, match="use --format npz or parquet or safetensors or webdataset"):
        require_classes(FORMATS.load("imagefolder"), subject.labels, subject.spec)
