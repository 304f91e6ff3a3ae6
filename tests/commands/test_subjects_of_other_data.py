"""Several subjects that were not made from the same real data, in one command."""

import pytest

from dim.commands.cli import main
from dim.config import DataConfig, to_dict
from dim.data.real import load_data, per_class_indices
from dim.data.synthetic import SyntheticSet
from dim.spec import to_uint8

QUICK = ("--students", "convnet:width=4,depth=1", "--protocol.epochs", "1", "--seeds", "1", "--device", "cpu")


@pytest.fixture
def halves(tmp_path, monkeypatch):
    """Two sets of real digits, each from another half of the training part."""
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        config = DataConfig(fraction=0.5, fraction_seed=seed)
        data = load_data(config)
        images, labels = data.train.batch(per_class_indices(data.train.labels, 2, 10, seed=0))
        SyntheticSet(to_uint8(images), labels, data.spec, info={"data": to_dict(config)}).save(tmp_path / f"half{seed}")
    return "half0", "half1"


def test_scores_beside_another_half_say_so(halves, capsys):
    assert main(["evaluate", *halves, *QUICK]) == 0
    said = capsys.readouterr().err
    assert "half1 was made from other training images, and is scored beside those of half0" in said
    assert said.count("was made from other") == 1


@pytest.mark.parametrize("command", ["claim", "coverage"])
def test_what_is_of_the_own_data_alone_is_refused(halves, capsys, command):
    words = ["evaluate", *halves, *QUICK, "--claim"] if command == "claim" else ["coverage", *halves, "--device", "cpu"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "half1 was made from digits (fingerprint " in said
    assert "in a table of its own" in said
