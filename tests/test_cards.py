"""Cards of sets: what they say, and that every reader still reads the folder."""

import datasets
import numpy as np
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from torchvision.datasets import ImageFolder

import dim
from dim.cards import set_card
from dim.config import DataConfig, ProtocolConfig, to_dict
from dim.data.synthetic import SyntheticSet, load_set
from dim.errors import InputError
from dim.score.evaluate import Evaluator
from dim.spec import DataSpec, to_uint8


def make_set(*, ipc=12, name="fashion-mnist", floats=False, soft=False, classes=12) -> SyntheticSet:
    names = tuple(f"class {9 - number} | x" for number in range(classes))
    shape = {"channels": 1, "height": 8, "width": 8, "mean": (0.5,), "std": (0.25,)}
    spec = DataSpec(name=name, class_names=names, fingerprint="abc", **shape)
    images = torch.rand(classes * ipc, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    weights = torch.full((classes * ipc, classes), 1 / classes) if soft else None
    info = {"method": "generator", "data": {"dataset": name}, "versions": {"torch": "2"}}
    info |= {"step_size": 0.0217, "protocol": {"zca": True}, "teacher": "2 experts"} if floats else {}
    labels = torch.arange(classes * ipc) % classes
    return SyntheticSet(images if floats else to_uint8(images), labels, spec, soft=weights, info=info)


def front(card: str) -> dict:
    """The YAML in front, as the Hub reads it."""
    _, text, _ = card.split("---\n", 2)
    return yaml.safe_load(text)


@pytest.mark.parametrize(
    ("name", "licence", "said"),
    [
        ("fashion-mnist", "mit", "| licence of the source | MIT |"),
        ("cifar10", "unknown", "unknown\\: its authors name none"),
        ("svhn", "other", "for non-commercial use only"),
        ("tiny-imagenet", "unknown", "Tiny ImageNet"),
        ("mnist", "unknown", "Keras says"),
        ("digits", "cc-by-4.0", "CC BY 4.0"),
        ("folder", "unknown", "| licence of the source | unknown |"),
    ],
)
def test_a_card_says_what_is_known_of_the_licence(name, licence, said):
    card = set_card(make_set(name=name), "imagefolder")
    assert front(card)["license"] == licence
    assert said in card


def test_a_card_says_what_a_set_is():
    card = set_card(make_set(floats=True, soft=True), "safetensors")
    text = card.replace("\\", "")
    for said in ("12 images per class", "float32", "soft (2 experts)", "0.0217", "ZCA-whitened images", "abc", "torch 2"):
        assert said in text
    assert "configs" not in front(card)
    assert "datasets.load_dataset" not in card
    assert 'dim.load_set("hub:OWNER/NAME")' in card


def test_a_card_is_one_page_whatever_names_hold():
    tokens = MarkdownIt("commonmark").enable("table").parse(set_card(make_set(name="a | b\n# c"), "npz").split("---\n", 2)[2])
    assert sum(token.type == "heading_open" for token in tokens) == 1
    assert {sum(t.type == "td_open" for t in tokens)} == {2 * 7}


def test_scores_of_the_set_and_controls_are_shown(digits, tmp_path):
    labels = torch.arange(10)
    info = {"data": to_dict(DataConfig())}
    first, other = (SyntheticSet(torch.full((10, 1, 8, 8), value), labels, digits.spec, info=info) for value in (0.0, 0.5))
    protocol = ProtocolConfig(students=("convnet:width=4,depth=2",), epochs=1, batch_size=10)
    evaluator = Evaluator(digits, protocol, seeds=2)
    rows = [*evaluator.fixed(first, "sets/a"), *evaluator.fixed(other, "sets/b"), *evaluator.random_real(1), *evaluator.full(1)]
    card = set_card(first, "npz", rows)
    table = [line for line in card.splitlines() if "convnet" in line and line.startswith("|")]
    assert [line.split(" | ")[0] for line in table] == ["| this set", "| random real", "| full data"]
    assert [line.split(" | ")[1] for line in table] == ["fixed", "fixed", "full"]
    assert all(line.split(" | ")[6] == "2" for line in table)
    with pytest.raises(InputError, match="none of 3 scores is of this set"):
        set_card(first, "npz", rows[1:])


# --- folders with a card -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["imagefolder", "parquet", "webdataset", "npz", "safetensors"])
def test_a_set_with_a_card_is_the_set(tmp_path, format):
    subject = make_set()
    dim.save_pretrained(subject, tmp_path / "set", format=format)
    assert torch.equal(load_set(tmp_path / "set").images, subject.images)
    assert (tmp_path / "set" / "README.md").is_file()
    assert (tmp_path / "set" / "samples.png").is_file() == (format != "imagefolder")


def test_floats_are_stored_as_such_by_default(tmp_path):
    subject = make_set(floats=True)
    dim.save_pretrained(subject, tmp_path / "set")
    assert torch.equal(load_set(tmp_path / "set").images, subject.images)
    with pytest.raises(InputError, match="8 bits per channel"):
        dim.save_pretrained(subject, tmp_path / "other", format="imagefolder")
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match="not empty"):
        dim.save_pretrained(subject, tmp_path / "set")


def test_torchvision_reads_class_folders_with_a_card(tmp_path):
    subject = make_set()
    dim.save_pretrained(subject, tmp_path / "set")
    seen = ImageFolder(tmp_path / "set")
    assert len(seen) == len(subject)
    assert sorted(seen.targets) == sorted(subject.labels.tolist())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves shards open
@pytest.mark.parametrize("format", ["imagefolder", "parquet", "webdataset"])
def test_the_datasets_library_reads_the_folder_by_its_card(tmp_path, format):
    """As `load_dataset("owner/name")` reads a repository of the Hub."""
    subject = make_set()
    dim.save_pretrained(subject, tmp_path / "set", format=format)
    table = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"), split="train")
    assert len(table) == len(subject)
    column = {"webdataset": "png"}.get(format, "image")
    labels = table["cls"] if format == "webdataset" else table["label"]
    assert sorted(labels) == sorted(subject.labels.tolist())
    own = {bytes(image.numpy()): label for image, label in zip(subject.images, subject.labels.tolist(), strict=True)}
    assert {bytes(np.asarray(row[column].convert("L"))): label for row, label in zip(table, labels, strict=True)} == own


def test_the_pictures_of_a_card_lie_where_it_says(tmp_path):
    dim.save_pretrained(make_set(ipc=2), tmp_path / "set")
    card = (tmp_path / "set" / "README.md").read_text()
    shown = [part.partition('"')[0] for part in card.split('<img src="')[1:]]
    assert len(shown) == 20
    assert all((tmp_path / "set" / name).is_file() for name in shown)
