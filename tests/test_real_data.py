"""Real CIFAR-10, MNIST and Fashion-MNIST, where the environment variable DIM_DATA_ROOT names a torchvision root."""

import os

import pytest
import torch

import dim
from dim.config import (
    DataConfig,
    DiscriminatorConfig,
    FitConfig,
    GeneratorConfig,
    PoolConfig,
    ProtocolConfig,
    StageConfig,
    TrainConfig,
)
from dim.data.real import load_data
from dim.run_folder import read_metrics
from dim.runs.train import fit
from dim.score.evaluate import Evaluator

ROOT = os.environ.get("DIM_DATA_ROOT")
pytestmark = pytest.mark.skipif(not ROOT, reason="DIM_DATA_ROOT is not set")


def load(dataset: str, **settings):
    return load_data(DataConfig(dataset=dataset, root=ROOT, **settings))


# Mean and std of the whole training part, as published in many places.
@pytest.mark.parametrize(
    ("dataset", "sizes", "shape", "mean", "std"),
    [
        ("cifar10", (50000, 10000), (3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("mnist", (60000, 10000), (1, 28, 28), (0.1307,), (0.3081,)),
        ("fashion-mnist", (60000, 10000), (1, 28, 28), (0.2860,), (0.3530,)),
    ],
)
def test_official_sizes_and_statistics(dataset, sizes, shape, mean, std):
    data = load(dataset, val_fraction=0.0)
    assert (len(data.train), len(data.test)) == sizes
    assert data.spec.image_shape == shape
    assert data.spec.num_classes == 10
    assert data.spec.mean == pytest.approx(mean, abs=1e-4)
    assert data.spec.std == pytest.approx(std, abs=1e-4)
    assert torch.bincount(data.test.labels).min() >= 800


def test_cifar10_is_the_right_way_up():
    """Channels are RGB and rows are rows: aeroplanes are bluer than frogs, and skies are brighter at the top."""
    data = load("cifar10", val_fraction=0.0)
    assert data.spec.class_names[0] == "airplane"
    planes, frogs = (data.test.batch((data.test.labels == label).nonzero().squeeze(1))[0] for label in (0, 6))
    assert (planes[:, 2] - planes[:, 0]).mean() > 0.05
    assert (frogs[:, 2] - frogs[:, 0]).mean() < 0
    ships = data.test.batch((data.test.labels == 8).nonzero().squeeze(1))[0]
    assert ships[:, :, :8].mean() > ships[:, :, 20:].mean() + 0.1


def test_a_validation_part_is_held_out_of_every_class():
    data = load("mnist", val_fraction=0.1)
    assert len(data.train) + len(data.val) == 60000
    share = torch.bincount(data.val.labels) / (torch.bincount(data.val.labels) + torch.bincount(data.train.labels))
    assert share.sub(0.1).abs().max() < 1e-3
    assert data.spec.fingerprint != load("mnist", val_fraction=0.2).spec.fingerprint


def test_fashion_mnist_trains(tmp_path):
    data = load("fashion-mnist")
    steps = 8 / len(data.train)
    config = TrainConfig(
        data=DataConfig(dataset="fashion-mnist", root=ROOT),
        generator=GeneratorConfig(width=8, latent_dim=8),
        discriminator=DiscriminatorConfig(width=8),
        stage_one=StageConfig(epochs=3 * steps, batch_size=8, lr=1e-3),
        stage_two=StageConfig(epochs=3 * steps, batch_size=8, lr=1e-3),
        pool=PoolConfig(students=("convnet:width=8",), members=2),
        fit=FitConfig(trackers=(), device="cpu", log_steps=1, checkpoint_minutes=0.0),
    )
    run = fit(config, data, tmp_path / "run")
    assert len(read_metrics(run)) == 6
    fixed = dim.sample_set(dim.load_generator(run), ipc=2)
    assert fixed.images.shape == (20, 1, 28, 28)
    protocol = ProtocolConfig(students=("convnet:width=4",), epochs=1)
    (score,) = dim.evaluate(fixed, seeds=1, root=ROOT, protocol=protocol)  # finds the data by what the set says
    assert score.data["fingerprint"] == data.spec.fingerprint


def test_students_learn_mnist_from_ten_real_images_per_class():
    protocol = ProtocolConfig(students=("convnet:width=16",), epochs=30, lr=0.05, augment="crop|scale|rotate")
    (score,) = Evaluator(load("mnist"), protocol, seeds=1).random_real(10)
    assert score.mean > 50
