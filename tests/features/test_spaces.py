"""Feature extractors: trained once, the same again, told apart, and read from a file of Inception weights."""

import dataclasses

import pytest
import safetensors.torch
import torch

from dim.config import DataConfig, FeatureConfig
from dim.data.real import RealData, load_data
from dim.data.splits import ArraySplit
from dim.errors import InputError
from dim.features import spaces as module
from dim.features.spaces import inception_features, load_features, trained_features
from dim.io import load_tensors

SMALL = FeatureConfig(student="resnet10:width=8", epochs=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def trained(digits, folder):
    return trained_features(digits, SMALL, cache=folder)


def test_features_are_those_before_the_last_layer(digits, trained):
    images, _ = digits.train.batch(torch.arange(300))  # more than a batch
    found = trained(images)
    assert found.shape == (300, 64)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    student = trained.network.student
    with torch.no_grad():
        assert torch.allclose(student.head(found[:50]), student(images[:50]), atol=1e-5)
    chosen = torch.tensor([290, 3, 3])
    assert torch.allclose(trained.of(digits.train, chosen), found[chosen], atol=1e-5)
    assert torch.equal(trained.of(digits.val), trained(digits.val.batch(torch.arange(len(digits.val)))[0]))


def test_the_accuracy_is_that_on_the_validation_part(digits, trained):
    images, labels = digits.val.batch(torch.arange(len(digits.val)))
    with torch.no_grad():
        right = (trained.network.student(images).argmax(1) == labels).double().mean()
    assert trained.accuracy == pytest.approx(100 * float(right))
    assert trained.split == "val"
    assert trained.accuracy > 80
    assert trained.to_dict() == {
        "name": "resnet10:width=8",
        "accuracy": trained.accuracy,
        "split": "val",
        "digest": trained.digest,
    }


def test_without_a_validation_part_the_accuracy_is_on_the_test_part(folder):
    data = load_data(DataConfig(val_fraction=0.0))
    assert trained_features(data, SMALL, cache=folder).split == "test"


def test_features_are_trained_once(digits, trained, folder, monkeypatch):
    monkeypatch.setattr(module, "_train", None)
    again = trained_features(digits, SMALL, cache=folder)
    assert again.to_dict() == trained.to_dict()
    images, _ = digits.test.batch(torch.arange(9))
    assert torch.equal(again(images), trained(images))


def test_features_are_a_function_of_data_and_settings(digits, trained, tmp_path):
    assert trained_features(digits, SMALL, cache=tmp_path).digest == trained.digest
    others = [
        trained_features(digits, dataclasses.replace(SMALL, seed=1), cache=tmp_path),
        trained_features(digits, dataclasses.replace(SMALL, max_steps=2), cache=tmp_path),
        trained_features(load_data(DataConfig(split_seed=1)), SMALL, cache=tmp_path),
    ]
    assert len({found.digest for found in [trained, *others]}) == 4
    names = sorted(file.name for file in tmp_path.iterdir())
    assert len(names) == 4
    assert all(name.startswith("digits-8x8x1-") and name.endswith(".safetensors") for name in names)


def test_their_accuracy_is_of_the_held_out_images_that_there_are(digits, trained, folder):
    val = ArraySplit(digits.val.images, digits.val.labels.roll(1), "cpu")
    found = trained_features(RealData(digits.spec, digits.train, val, digits.test), SMALL, cache=folder)
    assert found.digest == trained.digest
    assert found.accuracy < trained.accuracy


def test_the_global_random_state_is_left_alone(digits, tmp_path):
    state = torch.get_rng_state()
    trained_features(digits, dataclasses.replace(SMALL, max_steps=1), cache=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_damaged_file_is_made_again(digits, trained, tmp_path):
    found = trained_features(digits, SMALL, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    assert trained_features(digits, SMALL, cache=tmp_path).digest == found.digest
    assert load_tensors(path)[1]["accuracy"] == trained.accuracy


def test_the_cache_folder_is_the_users(digits, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = dataclasses.replace(SMALL, max_steps=1)
    trained_features(digits, settings)
    assert [file.parent for file in tmp_path.rglob("*.safetensors")] == [tmp_path / "dim" / "features"]


def test_a_cache_folder_that_cannot_be_written_costs_a_line(digits, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    settings = dataclasses.replace(SMALL, max_steps=1)
    found = trained_features(digits, settings)
    assert found.digest
    assert "not kept, so the next start does this work again" in capsys.readouterr().err


def test_an_impossible_architecture_is_refused(digits, tmp_path):
    with pytest.raises(InputError, match="unknown student 'convnot'"):
        trained_features(digits, FeatureConfig(student="convnot"), cache=tmp_path)
    with pytest.raises(InputError, match=r"features\.epochs is 0"):
        FeatureConfig(epochs=0)


# --- Inception -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """Random weights in torchvision's layout: the network and its file."""
    from torchvision.models import inception_v3

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = inception_v3(weights=None, init_weights=False, transform_input=True).eval()
        for layer in net.modules():
            if isinstance(layer, torch.nn.Conv2d):  # the default's features vanish with depth
                torch.nn.init.kaiming_normal_(layer.weight)
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    safetensors.torch.save_file(net.state_dict(), path)
    return net, path


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_features_are_torchvisions(inception, channels):
    """Resized and normalised by torchvision's own transforms; `transform_input` is what its weights are used with."""
    from torchvision.transforms.v2 import functional as transforms

    net, path = inception
    images = torch.rand(2, channels, 40, 40, generator=torch.Generator().manual_seed(0))
    found = inception_features(path)(images * 2 - 1)
    resized = transforms.resize(images.expand(-1, 3, -1, -1), [299, 299], antialias=True)
    ready = transforms.normalize(resized, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    kept = []
    hook = net.fc.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        net(ready)
    hook.remove()
    assert found.shape == (2, 2048)
    assert torch.allclose(found, kept[0], atol=1e-3 * float(found.std()), rtol=1e-3)
    assert float((found[0] - found[1]).abs().max()) > 0.01 * float(found.std())


def test_inception_features_do_not_claim_an_accuracy(inception):
    found = inception_features(inception[1])
    assert (found.name, found.accuracy, found.split) == ("inception_v3", None, None)
    assert len(found.digest) == 32


def test_a_path_in_place_of_auto(inception, digits):
    assert load_features(str(inception[1]), digits).digest == inception_features(inception[1]).digest


def test_files_that_hold_something_else(inception, tmp_path):
    with pytest.raises(InputError, match=r"no file .*expected a \.safetensors file"):
        inception_features(tmp_path / "none.safetensors")
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"no such thing")
    with pytest.raises(InputError, match="no safetensors file"):
        inception_features(other)
    safetensors.torch.save_file({"weight": torch.zeros(3)}, other)
    with pytest.raises(InputError, match=r"'Conv2d_1a_3x3\.conv\.weight' is missing"):
        inception_features(other)
    state = {**inception[0].state_dict(), "fc.weight": torch.zeros(10, 2048)}
    safetensors.torch.save_file(state, other)
    with pytest.raises(InputError, match=r"'fc\.weight' is of shape \(10, 2048\).*\(1000, 2048\)"):
        inception_features(other)
