"""Soft labels from ensembles."""

import dataclasses
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import dim
from dim.commands.cli import main
from dim.config import DiscriminatorConfig, FitConfig, GeneratorConfig, PoolConfig, ProtocolConfig, StageConfig, TrainConfig
from dim.data.loader import GeneratedDataset, GeneratedLoader
from dim.data.synthetic import SyntheticSet, load_set
from dim.errors import InputError
from dim.hub import load_generator
from dim.nets.generator import build_generator
from dim.runs.train import fit
from dim.sampler import sample_set
from dim.score.evaluate import Evaluator
from dim.teacher import Teacher, load_teacher, with_soft_labels
from dim.trajectory.store import ExpertStore

PROTOCOL = ProtocolConfig(students=("convnet:width=4",), epochs=2, batch_size=16, augment="")


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """A run whose persistent pool was trained a little."""
    pool = PoolConfig(students=("convnet:width=4",), members=3, upkeep_every=1)
    return fit(with_pool(pool, 12, digits), digits, tmp_path_factory.mktemp("teacher") / "run")


def with_pool(pool: PoolConfig, steps: int, digits) -> TrainConfig:
    """A run of one step of stage one and so many of stage two."""
    per_step = 16 / len(digits.train)
    return TrainConfig(
        generator=GeneratorConfig(width=4, latent_dim=6),
        discriminator=DiscriminatorConfig(width=4),
        stage_one=StageConfig(epochs=per_step, batch_size=16),
        stage_two=StageConfig(epochs=steps * per_step, batch_size=16),
        pool=pool,
        fit=FitConfig(trackers=(), device="cpu", sample_steps=0),
        protocol=PROTOCOL,
    )


def linear(spec, classes: int = 3, seed: int = 0):
    weight = torch.randn(spec.channels * spec.height * spec.width, classes, generator=torch.Generator().manual_seed(seed))
    return lambda images: images.flatten(1) @ weight


def images_of(spec, count: int) -> torch.Tensor:
    return torch.rand(count, *spec.image_shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_labels_are_the_mean_of_softened_probabilities(spec):
    data = spec(1, 4, 3)
    members = [linear(data, seed=seed) for seed in (0, 1)]
    images = images_of(data, 7)
    labels = Teacher("two", members, data, temperature=4.0).labels(images)
    expected = sum((member(images) / 4.0).softmax(1) for member in members) / 2
    torch.testing.assert_close(labels, expected)


def test_only_the_largest_are_kept(spec):
    data = spec(1, 4, 3)
    images = images_of(data, 9)
    dense = Teacher("one", [linear(data)], data, temperature=5.0).labels(images)
    cut = Teacher("one", [linear(data)], data, temperature=5.0, top_k=2).labels(images)
    assert ((cut > 0).sum(1) == 2).all()
    torch.testing.assert_close(cut.sum(1), torch.ones(9))
    smallest = dense.argmin(1, keepdim=True)
    assert (cut.gather(1, smallest) == 0).all()
    ratio = cut.scatter(1, smallest, 1.0) / dense.scatter(1, smallest, 1.0)  # the others keep their proportions
    kept = ratio.scatter(1, smallest, 0.0).sum(1) / 2
    torch.testing.assert_close(kept, 1 / (1 - dense.gather(1, smallest).squeeze(1)))


def test_confidence_is_the_probability_of_the_class(spec):
    data = spec(1, 4, 3)
    images, labels = images_of(data, 5), torch.tensor([0, 1, 2, 1, 0])
    teacher = Teacher("one", [linear(data)], data, temperature=9.0)
    expected = linear(data)(images).softmax(1)[torch.arange(5), labels]
    torch.testing.assert_close(teacher.confidence(images, labels), expected)


def test_labels_of_a_smaller_set_are_the_beginning_of_a_larger_ones(digits_experts, digits):
    teacher = load_teacher(digits_experts, digits.spec)
    images = digits.train.batch(torch.arange(250))[0]
    large = teacher.labels(images)
    for count in (1, 99, 100, 130):
        assert torch.equal(teacher.labels(images[:count]), large[:count])


def test_experts_at_an_age(digits_experts, digits):
    images, labels = digits.test.batch(torch.arange(200))
    right = []
    for age in (0.0, 1.0):
        teacher = load_teacher(digits_experts, digits, age=age)
        assert len(teacher.members) == 2
        right.append(float((teacher.labels(images).argmax(1) == labels).float().mean()))
        assert teacher.name.startswith("2 experts (")
        assert f"at {100 * age:g} %" in teacher.name
    assert right[1] > right[0] + 0.2
    assert teacher.bytes == 2 * 4 * ExpertStore.open(digits_experts).layout.parameters


def test_the_pool_of_a_run(run, digits):
    teacher = load_teacher(run, digits)
    assert teacher.name.startswith("pool of ")
    assert 1 <= len(teacher.members) <= 3
    assert teacher.bytes > 0
    labels = teacher.labels(digits.test.batch(torch.arange(20))[0])
    torch.testing.assert_close(labels.sum(1), torch.ones(20))


def test_labels_of_a_pool_with_batch_statistics_depend_on_their_image_alone(digits, tmp_path):
    pool = PoolConfig(students=("convnet:width=4,norm=batchstats",), members=1, upkeep_every=1)
    teacher = load_teacher(fit(with_pool(pool, 6, digits), digits, tmp_path / "run"), digits.spec)
    images, labels = digits.test.batch(torch.arange(250))
    whole = teacher.labels(images)
    for count in (1, 7, 130):
        assert torch.equal(teacher.labels(images[:count]), whole[:count])
    alone = images[labels == 3][:9]
    torch.testing.assert_close(teacher.labels(alone), whole[labels == 3][:9], rtol=1e-4, atol=1e-5)
    (net,) = teacher.members
    assert not net.training
    (first, *_) = (layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d))
    assert float(first.running_var.min()) > 0
    assert float(first.running_mean.abs().max()) > 0


def test_a_set_with_soft_labels(digits_experts, digits, tmp_path):
    generator = build_generator(GeneratorConfig(width=4, latent_dim=6), digits.spec, seed=0).eval()
    teacher = load_teacher(digits_experts, digits, temperature=2.0, top_k=3)
    small, large = (with_soft_labels(dim.sample_set(generator, ipc=ipc), teacher) for ipc in (2, 5))
    assert torch.equal(small.soft, large.soft[: len(small)])
    torch.testing.assert_close(large.soft, teacher.labels(SyntheticSet(large.images, large.labels, large.spec).tensors()[0]))
    assert large.bytes_stored()["labels"] == 50 * 3 * (4 + digits.spec.label_bytes)
    dense = with_soft_labels(dim.sample_set(generator, ipc=5), load_teacher(digits_experts, digits))
    assert dense.bytes_stored()["labels"] == 50 * 10 * 4
    again = load_set(large.save(tmp_path / "set"))
    torch.testing.assert_close(again.soft, large.soft)
    assert again.info["teacher"] == teacher.name
    assert again.bytes_stored() == large.bytes_stored()


def test_loaders_give_soft_labels(digits_experts, digits):
    generator = build_generator(GeneratorConfig(width=4, latent_dim=6), digits.spec, seed=0).eval()
    teacher = load_teacher(digits_experts, digits)
    images, targets = next(iter(GeneratedLoader(generator, batch_size=20, steps=1, relabel=teacher.labels)))
    torch.testing.assert_close(targets, teacher.labels(images), rtol=1e-4, atol=1e-6)
    loader = DataLoader(GeneratedDataset(generator, 20, relabel=teacher.labels), batch_size=20)
    images, targets = next(iter(loader))
    torch.testing.assert_close(targets, teacher.labels(images), rtol=1e-4, atol=1e-6)


def test_scores_say_their_labels_and_bytes(digits_experts, digits):
    generator = build_generator(GeneratorConfig(width=4, latent_dim=6), digits.spec, seed=0).eval()
    teacher = load_teacher(digits_experts, digits)
    evaluator = Evaluator(digits, PROTOCOL, seeds=1)
    stream, random, oracle = (
        evaluator.stream(generator, 1, teacher=teacher)[0],
        evaluator.random_real(1, teacher=teacher)[0],
        evaluator.oracle(1, teacher=teacher)[0],
    )
    for score in (stream, random, oracle):
        assert score.labels == f"soft ({teacher.name})"
    assert stream.bytes["teacher"] == oracle.bytes["teacher"] == teacher.bytes
    assert random.bytes["labels"] == 10 * 10 * 4
    assert evaluator.random_real(1)[0].labels == "hard"


def test_students_follow_the_soft_labels(digits_experts, digits):
    """A student of noise images under a teacher's labels agrees with the teacher; one under other labels does not."""
    from dim.score.evaluate import train_student

    teacher = load_teacher(digits_experts, digits, temperature=0.05)
    protocol = dataclasses.replace(PROTOCOL, lr=0.1)
    images = images_of(digits.spec, 64)
    wanted = teacher.labels(images)
    losses = []
    for targets in (wanted, torch.arange(64) % 10):
        net = train_student("convnet:width=8", lambda step, t=targets: (images, t), 60, protocol, digits, 0, torch.device("cpu"))
        with torch.no_grad():
            losses.append(float(torch.nn.functional.cross_entropy(net(images), wanted)))
    assert losses[0] < losses[1] - 0.3


def test_commands(run, digits_experts, tmp_path, capsys):
    teacher = ["--teacher.folder", str(digits_experts), "--teacher.temperature", "2"]
    assert main(["sample", str(run), "--ipc", "2", "--out", str(tmp_path / "set"), *teacher]) == 0
    made = load_set(tmp_path / "set")
    assert made.soft.shape == (20, 10)
    policy = ["--policy.steps", "filtered", "matched", "--policy.candidates", "10", "--hard"]
    assert main(["sample", str(run), "--ipc", "2", "--out", str(tmp_path / "chosen"), *teacher, *policy]) == 0
    chosen = load_set(tmp_path / "chosen")
    assert chosen.soft is None
    assert chosen.info["policy"] == "filtered+matched"
    assert main(["sample", str(run), "--ipc", "9", "--out", str(tmp_path / "many"), *teacher, *policy]) != 0
    assert "the policy leaves 8 candidates" in capsys.readouterr().err
    anchored = ["--ipc", "3", "--out", str(tmp_path / "anchored"), "--format", "generator", "--spread", "0.25"]
    assert main(["sample", str(run), *anchored, *teacher, *policy]) == 0
    generator = load_generator(tmp_path / "anchored")
    assert (generator.anchors.shape[1], float(generator.spread)) == (3, 0.25)
    again = sample_set(generator, ipc=2, seed=7)
    assert (again.images.int() - chosen.images.int()).abs().max() <= 1
    card = (tmp_path / "anchored" / "README.md").read_text()
    assert r"around 3 images per class \(filtered+matched, spread 0.25\)" in card
    for wrong in (["--ipc", "3"], ["--counts", "1=3", *policy], ["--ipc", "3", *policy, "--spread", "-1"]):
        out = ["--out", str(tmp_path / "no"), "--format", "generator"]
        assert main(["sample", str(run), *out, *teacher, *wrong]) != 0
        assert re.search(r"--policy\.steps, and --ipc without|spread is -1", capsys.readouterr().err)
    assert not (tmp_path / "no").exists()
    arguments = ["--seeds", "1", "--ipc", "1", "--track", "fixed", "stream", "--controls", "random", "oracle"]
    assert main(["evaluate", str(run), *arguments, *teacher, "--json", str(tmp_path / "scores.json")]) == 0
    rows = dim.io.read_json(tmp_path / "scores.json")["scores"]
    kinds = [(row["track"], row["name"], row["labels"][:4]) for row in rows]
    assert kinds[:2] == [("stream", str(run), "soft"), ("fixed", str(run), "soft")]
    assert [kind[2] for kind in kinds[2:]] == ["hard", "hard", "soft", "soft"]
    again = ["compare", str(tmp_path / "scores.json"), str(run), *arguments, *teacher, "--json", str(tmp_path / "again.json")]
    assert main(again) == 0
    assert dim.io.read_json(tmp_path / "again.json")["scores"] == rows, "nothing is measured again"
    assert main(["compare", str(tmp_path / "scores.json"), *teacher]) != 0
    assert "a teacher labels what is scored, and files of scores hold what was" in capsys.readouterr().err
    for wrong in (["--batch-size", "0"], ["--spread", "-1"]):  # before the store is looked at
        out = ["--ipc", "1", "--out", str(tmp_path / "no"), "--teacher.folder", str(tmp_path / "none"), *wrong]
        assert main(["sample", str(run), *out]) != 0
        assert re.search(r"batch_size is 0|spread is -1", capsys.readouterr().err)


def test_refusals(digits_experts, record_digits, digits, run, spec, tmp_path):
    data = spec(1, 4, 3)
    for settings, message in (
        ({"temperature": 0.0}, r"temperature is 0\.0: expected a positive number"),
        ({"top_k": 4}, r"top_k is 4: expected 0 \(all\) to 3 classes"),
    ):
        with pytest.raises(InputError, match=message):
            Teacher("one", [linear(data)], data, **settings)
    with pytest.raises(InputError, match="no member"):
        Teacher("none", [], data)
    with pytest.raises(InputError, match="is no teacher: expected a folder made by 'dim experts'"):
        load_teacher(tmp_path, digits)
    with pytest.raises(InputError, match=r"age is 1\.5"):
        load_teacher(digits_experts, digits, age=1.5)
    with pytest.raises(InputError, match=r"age is 0\.5 and .* is a run"):
        load_teacher(run, digits, age=0.5)
    with pytest.raises(InputError, match=r"was trained on other data \(digits, now toy\)"):
        load_teacher(run, data)
    with pytest.raises(InputError, match="whitening needs the real data: give --data-root"):
        load_teacher(record_digits(tmp_path / "zca", zca=True), digits.spec)
    assert load_teacher(tmp_path / "zca", digits).labels(digits.test.batch(torch.arange(3))[0]).shape == (3, 10)
