"""The evaluator: budgets, feeds, the figures of a row, controls, and students that learn."""

import copy
import dataclasses
import importlib
import json
import math
import statistics
from collections import Counter

import pytest
import torch
from torch import nn

import dim
from dim.config import DataConfig, GeneratorConfig, ProtocolConfig, ScoringConfig, to_dict
from dim.data.real import from_dataset, load_data
from dim.data.synthetic import SyntheticSet
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.features.coreset import Selector
from dim.features.spaces import Features
from dim.nets.generator import build_generator
from dim.score.evaluate import Evaluator
from dim.score.record import Score

# `dim.score.evaluate` is the function.
MODULE = importlib.import_module("dim.score.evaluate")
PROTOCOL = ProtocolConfig(
    precision="fp32", compile="off", students=("convnet:width=4",), epochs=3, batch_size=16, lr=0.05, augment="crop"
)


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig())


@pytest.fixture(scope="module")
def generator(data):
    network = build_generator(GeneratorConfig(width=8, latent_dim=6), data.spec, seed=0)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(30):  # batch norm gets to know its inputs; without that, images hardly differ
            network(torch.randn(64, 6, generator=source), torch.arange(64) % 10)
    return network.eval()


@pytest.fixture(scope="module")
def selector(data, tmp_path_factory):
    """Quick coresets: distances of pixels, and scores of a short run."""
    features = Features(network=nn.Flatten(), name="pixels", digest="0" * 32, device=torch.device("cpu"))
    scoring = ScoringConfig(student="convnet:width=4", epochs=1, min_steps=0)
    return Selector(data, features=features, scoring=scoring, cache=tmp_path_factory.mktemp("coresets"))


@pytest.fixture
def fed(monkeypatch):
    """Record what students are fed, in place of training them: one list of batches per student."""
    record = []

    def train(student, feed, steps, protocol, data, seed, device):
        record.append([feed(step) for step in range(steps)])
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(data.spec.image_shape), data.spec.num_classes))

    monkeypatch.setattr(MODULE, "train_student", train)
    return record


def toy_set(data, ipc: int, *, soft: bool = False, teacher: str | None = "resnet18") -> SyntheticSet:
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10 * ipc, *data.spec.image_shape), generator=source, dtype=torch.uint8)
    labels = torch.arange(10 * ipc) % 10
    weights = torch.rand(10 * ipc, 10, generator=source).softmax(1) if soft else None
    return SyntheticSet(images, labels, data.spec, soft=weights, info={"teacher": teacher} if teacher else {})


def keys(images: torch.Tensor) -> list[bytes]:
    return [bytes(image.contiguous().numpy()) for image in images]


# --- budgets and feeds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ipc", "steps"), [(1, 3), (2, 6), (10, 21)])
def test_the_step_budget_is_epochs_times_batches_on_both_tracks(data, generator, fed, ipc, steps):
    assert steps == 3 * math.ceil(ipc * 10 / 16)
    evaluator = Evaluator(data, PROTOCOL, seeds=1)
    rows = [
        evaluator.fixed(toy_set(data, ipc)),
        evaluator.stream(generator, ipc),
        evaluator.random_real(ipc),
        evaluator.oracle(ipc),
    ]
    for (score,) in rows:
        assert (score.steps, score.ipc) == (steps, ipc)
    assert [len(batches) for batches in fed] == [steps] * 4


def test_a_fixed_set_is_walked_through_epoch_by_epoch(data, fed):
    subject = toy_set(data, 4)
    (score,) = Evaluator(data, dataclasses.replace(PROTOCOL, epochs=8, batch_size=10), seeds=2).fixed(subject)
    images, labels = subject.tensors()
    label_of = dict(zip(keys(images), labels.tolist(), strict=True))
    orders = []
    for batches in fed:
        seen = [(key, int(y)) for x, ys in batches for key, y in zip(keys(x), ys, strict=True)]
        orders.append([key for key, _ in seen])
        assert all(label_of[key] == label for key, label in seen)
        for epoch in range(8):
            assert sorted(orders[-1][40 * epoch : 40 * epoch + 40]) == sorted(label_of)
    assert orders[0] != orders[1]
    assert (score.track, score.distinct_images, score.images_seen, score.batch_size) == ("fixed", 40, 320, 10)
    assert score.bytes == subject.bytes_stored()


@pytest.mark.parametrize(
    ("ipc", "batch_size", "steps", "passes"),
    [(5, 16, 12, 3.84), (10, 64, 6, 3.84), (7, 64, 6, 3 * 128 / 70), (1, 64, 3, 3.0), (8, 16, 15, 3.0), (3, 30, 3, 3.0)],
)
def test_batches_are_full_and_run_on_from_one_pass_into_the_next(data, fed, ipc, batch_size, steps, passes):
    """As the protocol says: a set that does not divide into batches is seen more often than `epochs` times, here 3, and every
    image as often as the others or once more."""
    (score,) = Evaluator(data, dataclasses.replace(PROTOCOL, batch_size=batch_size), seeds=1).fixed(toy_set(data, ipc))
    assert {len(labels) for _, labels in fed[0]} == {min(batch_size, 10 * ipc)}
    assert score.steps == steps
    assert score.images_seen / (10 * ipc) == pytest.approx(passes)
    counts = Counter(key for images, _ in fed[0] for key in keys(images))
    assert len(counts) == 10 * ipc
    assert set(counts.values()) == {math.floor(passes), math.ceil(passes)}


def test_a_set_smaller_than_a_batch_is_fed_whole(data, fed):
    (score,) = Evaluator(data, PROTOCOL, seeds=1).fixed(toy_set(data, 1))
    assert score.batch_size == 10
    assert all(sorted(labels.tolist()) == list(range(10)) for _, labels in fed[0])


def test_a_stream_is_balanced_fresh_and_another_one_for_every_seed(data, generator, fed):
    (score,) = Evaluator(data, PROTOCOL, seeds=2).stream(generator, 10)
    images = []
    for batches in fed:
        labels = torch.cat([labels for _, labels in batches])
        counts = torch.bincount(labels, minlength=10)
        assert int(counts.max() - counts.min()) <= 1
        images.append(torch.cat([images for images, _ in batches]))
    assert len(set(keys(torch.cat(images)))) > 0.8 * 2 * 21 * 16  # a network this small may repeat itself now and then
    assert (score.track, score.images_seen, score.distinct_images) == ("stream", 21 * 16, 21 * 16)
    stored = sum(value.numel() * value.element_size() for value in generator.state_dict().values())
    assert score.bytes == {"generator": stored}


def test_a_stream_that_repeats_its_anchors_says_so(data, generator, fed):
    anchors = torch.randn(10, 2, generator.latent_dim, generator=torch.Generator().manual_seed(0))
    for spread, expected in ((0.0, 20), (0.5, 21 * 16)):
        around = copy.deepcopy(generator).anchor(anchors, spread)
        (score,) = Evaluator(data, PROTOCOL, seeds=1).stream(around, 10)
        assert score.distinct_images == expected


def test_random_real_images_are_real_balanced_and_other_ones_for_every_seed(data, fed):
    (score,) = Evaluator(data, PROTOCOL, seeds=2).random_real(3)
    real = dict(zip(keys(data.train.batch(torch.arange(len(data.train)))[0]), data.train.labels.tolist(), strict=True))
    seen = []
    for batches in fed:
        pairs = {(key, int(y)) for x, ys in batches for key, y in zip(keys(x), ys, strict=True)}
        assert len(pairs) == 30
        assert all(real[key] == label for key, label in pairs)
        assert sorted(label for _, label in pairs) == sorted(list(range(10)) * 3)
        seen.append(pairs)
    assert seen[0] != seen[1]
    assert (score.track, score.distinct_images, score.bytes) == ("fixed", 30, {"images": 30 * 64, "labels": 30})


@pytest.mark.parametrize(
    ("method", "end", "name", "differ"),
    [
        ("herding", None, "herding real", False),
        ("k-center", None, "k-center real", True),
        ("el2n", None, "easiest el2n real", False),
        ("el2n", "hardest", "hardest el2n real", False),
        ("random", None, "random real", True),
    ],
)
def test_a_coreset_is_what_the_rule_selects(data, fed, selector, method, end, name, differ):
    (score,) = Evaluator(data, PROTOCOL, seeds=2, selector=selector).coreset(3, method, end=end)
    seen = [{key for images, _ in batches for key in keys(images)} for batches in fed]
    for seed, images in enumerate(seen):
        chosen = selector.select(3, method, seed=seed, end=end)
        assert images == set(keys(data.train.batch(chosen)[0]))
    label_of = dict(zip(keys(data.train.batch(torch.arange(len(data.train)))[0]), data.train.labels.tolist(), strict=True))
    assert all(label_of[key] == int(y) for batches in fed for x, ys in batches for key, y in zip(keys(x), ys, strict=True))
    assert (seen[0] != seen[1]) == differ
    assert (score.name, score.track, score.ipc, score.steps, score.distinct_images) == (name, "fixed", 3, 6, 30)
    assert score.bytes == {"images": 30 * 64, "labels": 30}
    about = selector.about(method, end)
    assert {**score.made, "seconds": None} == {**about, "seconds": None}
    if about["seconds"] is None:  # features from elsewhere
        assert score.made["seconds"] is None
    else:
        assert about["seconds"] <= score.made["seconds"] < about["seconds"] + 5


def test_the_random_control_is_the_random_coreset(data, fed, selector):
    evaluator = Evaluator(data, PROTOCOL, seeds=1, selector=selector)
    ((first,), (second,)) = evaluator.random_real(2), evaluator.coreset(2, "random")
    assert [key for images, _ in fed[0] for key in keys(images)] == [key for images, _ in fed[1] for key in keys(images)]
    assert first.name == second.name


def test_an_impossible_coreset_is_refused_before_training(data, fed, monkeypatch):
    monkeypatch.setattr(importlib.import_module("dim.features.coreset"), "trained_features", None)
    evaluator = Evaluator(data, PROTOCOL, seeds=1)
    for method, end, said in (
        ("hearding", None, "herding"),
        ("herding", "easiest", "no end"),
        ("herding", None, "10000 were asked"),
    ):
        with pytest.raises(InputError, match=said):
            evaluator.coreset(10000, method, end=end)
    assert fed == []


def test_the_oracle_is_the_training_part(data, fed):
    (score,) = Evaluator(data, PROTOCOL, seeds=1).oracle(10)
    real = set(keys(data.train.batch(torch.arange(len(data.train)))[0]))
    seen = [key for images, _ in fed[0] for key in keys(images)]
    assert set(seen) <= real
    assert (score.track, score.images_seen, score.distinct_images) == ("stream", 336, 336)
    assert score.bytes == {"images": 64 * len(data.train), "labels": len(data.train)}


def test_full_data_has_the_budget_of_its_epochs_or_of_the_table(data, fed):
    passes = Evaluator(data, dataclasses.replace(PROTOCOL, full_epochs=2), seeds=1)
    (score,) = passes.full(7)
    assert (score.track, score.ipc, score.steps) == ("full", None, math.ceil(2 * len(data.train) / 16))
    assert score.distinct_images == len(data.train)
    (score,) = Evaluator(data, PROTOCOL, seeds=1).full(7)
    assert (score.steps, score.distinct_images) == (7, 112)
    with pytest.raises(InputError, match="full_epochs"):
        Evaluator(data, PROTOCOL, seeds=1).full()
    large = dataclasses.replace(PROTOCOL, full_epochs=3, batch_size=10 * len(data.train))
    assert Evaluator(data, large, seeds=1).full_steps() == 3, "a step has all images, and no more"


@pytest.mark.parametrize(("teacher", "said"), [("resnet18", "soft (resnet18)"), (None, "soft (unnamed teacher)")])
def test_soft_labels_are_trained_on_and_said(data, fed, teacher, said):
    subject = toy_set(data, 2, soft=True, teacher=teacher)
    (score,) = Evaluator(data, PROTOCOL, seeds=1).fixed(subject)
    soft_of = dict(zip(keys(subject.tensors()[0]), subject.soft, strict=True))
    for images, targets in fed[0]:
        assert targets.dtype == torch.float32
        assert all(torch.equal(soft_of[key], target) for key, target in zip(keys(images), targets, strict=True))
    assert score.labels == said
    assert score.bytes["labels"] == 4 * 200
    assert Evaluator(data, PROTOCOL, seeds=1).fixed(toy_set(data, 2))[0].labels == "hard"


# --- learned step sizes and whitening ----------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch):
    """Record the protocol, the data and the batches that students are trained with, in place of training them."""
    record = []

    def train(student, feed, steps, protocol, data, seed, device):
        record.append((protocol, data, [feed(step) for step in range(steps)]))
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(data.spec.image_shape), data.spec.num_classes))

    monkeypatch.setattr(MODULE, "train_student", train)
    return record


def with_step_size(subject: SyntheticSet, step_size: float | None) -> SyntheticSet:
    return SyntheticSet(subject.images, subject.labels, subject.spec, info={**subject.info, "step_size": step_size})


@pytest.mark.parametrize(("step_size", "allowed", "lr"), [(0.3, True, 0.3), (0.3, False, PROTOCOL.lr), (None, True, PROTOCOL.lr)])
def test_a_set_is_trained_at_its_learned_step_size_if_the_protocol_allows_it(data, trained, step_size, allowed, lr):
    protocol = dataclasses.replace(PROTOCOL, learned_lr=allowed)
    (score,) = Evaluator(data, protocol, seeds=2).fixed(with_step_size(toy_set(data, 1), step_size))
    assert [used for used, _, _ in trained] == [dataclasses.replace(protocol, lr=lr)] * 2  # and nothing else changes
    assert score.protocol["lr"] == lr


def test_everything_else_keeps_the_learning_rate_of_the_protocol(data, generator, trained):
    evaluator = Evaluator(data, PROTOCOL, seeds=1)
    evaluator.fixed(with_step_size(toy_set(data, 1), 0.3))
    evaluator.random_real(1)
    evaluator.stream(generator, 1)
    evaluator.oracle(1)
    evaluator.full(3)
    evaluator.fixed(toy_set(data, 1))
    assert [used.lr for used, _, _ in trained] == [0.3] + [PROTOCOL.lr] * 5


def test_a_learned_step_size_makes_another_student(data):
    """By real training, and not by what is passed on."""
    subject = toy_set(data, 2)
    protocol = dataclasses.replace(PROTOCOL, epochs=20)
    plain = Evaluator(data, protocol, seeds=3).fixed(subject)[0]
    at_its_own = Evaluator(data, protocol, seeds=3).fixed(with_step_size(subject, 1e-9))[0]
    off = Evaluator(data, dataclasses.replace(protocol, learned_lr=False), seeds=3).fixed(with_step_size(subject, 1e-9))[0]
    assert off.accuracies == plain.accuracies != at_its_own.accuracies


@pytest.mark.parametrize("zca", [False, True])
def test_students_see_whitened_images_if_the_protocol_says_so(data, generator, trained, zca):
    """On every track, and natural ones otherwise."""
    whitening = Whitening.fit(data.train, data.spec)
    subject = toy_set(data, 2)
    evaluator = Evaluator(data, dataclasses.replace(PROTOCOL, zca=zca), seeds=1)
    evaluator.fixed(subject)
    evaluator.random_real(2)
    evaluator.oracle(2)
    evaluator.full(3)
    evaluator.stream(generator, 2)
    real = data.train.batch(torch.arange(len(data.train)))[0]
    sources = [subject.tensors()[0], real, real, real]
    for (_, seen, batches), natural in zip(trained, sources, strict=False):
        expected = whitening.whiten(natural) if zca else natural
        for images, _ in batches:
            distances = torch.cdist(images.flatten(1), expected.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
            assert distances.min(1).values.max() < 1e-3
        assert seen.spec == (whitening.spec if zca else data.spec)
    stream = torch.cat([images for images, _ in trained[4][2]])
    # Generated images are in [-1, 1]; seen through the whitening they are not, and it takes them back there.
    assert (float(stream.abs().max()) > 1) == zca
    assert (whitening.natural(stream) if zca else stream).abs().max() < 1.001


@pytest.mark.parametrize("split", ["test", "val"])
def test_accuracy_is_of_whitened_images_too(data, trained, monkeypatch, split):
    scored = []
    monkeypatch.setattr(MODULE, "accuracy", lambda logits, part, device, **_: scored.append(part) or 12.5)
    Evaluator(data, dataclasses.replace(PROTOCOL, zca=True), seeds=1, split=split).fixed(toy_set(data, 1))
    chosen = torch.tensor([4, 0, 11])
    natural, labels = getattr(data, split).batch(chosen)
    images, seen_labels = scored[0].batch(chosen)
    assert torch.equal(images, Whitening.fit(data.train, data.spec).whiten(natural))
    assert torch.equal(seen_labels, labels)
    assert len(scored[0]) == len(getattr(data, split))


def test_students_learn_from_whitened_images(data):
    settings = {"students": ("convnet:width=16",), "epochs": 40, "batch_size": 64, "lr": 0.05, "augment": "crop|scale|rotate"}
    (score,) = Evaluator(data, ProtocolConfig(**settings, zca=True), seeds=1).random_real(10)
    assert score.mean > 55
    assert score.protocol["zca"]


# --- figures -----------------------------------------------------------------------------------------------------------------


def make_score(*accuracies: float) -> Score:
    return Score(
        name="set",
        track="fixed",
        ipc=10,
        student="convnet",
        labels="hard",
        accuracies=accuracies,
        seeds=tuple(range(len(accuracies))),
        steps=30,
        batch_size=16,
        images_seen=480,
        distinct_images=100,
        bytes={"images": 6400, "labels": 100},
        seconds=1.5,
    )


def test_mean_and_sample_standard_deviation():
    score = make_score(90.0, 92.0, 97.0)
    assert score.mean == pytest.approx(93)
    assert score.std == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert make_score(90.0).std is None


def test_a_score_survives_json(data, fed):
    scores = [make_score(90.0, 91.5), make_score(90.0), *Evaluator(data, PROTOCOL, seeds=2).fixed(toy_set(data, 1))]
    for score in scores:
        stored = json.loads(json.dumps(score.to_dict()))
        assert (stored["n"], stored["mean"], stored["std"]) == (len(score.accuracies), score.mean, score.std)
        again = Score.from_dict(stored)
        assert json.loads(json.dumps(again.to_dict())) == stored
        assert dataclasses.replace(again, protocol={}) == dataclasses.replace(score, protocol={})


def test_a_score_says_what_it_depends_on(data, fed):
    protocol = dataclasses.replace(PROTOCOL, students=("convnet:width=4", "alexnet:width=4"))
    reported = []
    scores = Evaluator(data, protocol, seeds=(4, 9), split="val", report=reported.append).fixed(toy_set(data, 1), "mine")
    assert scores == reported
    assert [score.student for score in scores] == list(protocol.students)
    for score in scores:
        assert (score.name, score.split, score.seeds, len(score.accuracies)) == ("mine", "val", (4, 9), 2)
        assert score.protocol == to_dict(dataclasses.replace(protocol, students=(score.student,)))
        assert score.data["fingerprint"] == data.spec.fingerprint
        assert score.hardware["device"] == "cpu"
        assert "torch" in score.versions


@pytest.mark.parametrize("split", ["test", "val"])
def test_the_split_that_is_asked_for_is_scored(data, fed, monkeypatch, split):
    scored = []
    monkeypatch.setattr(MODULE, "accuracy", lambda logits, part, device, **_: scored.append(part) or 12.5)
    (score,) = Evaluator(data, PROTOCOL, seeds=1, split=split).fixed(toy_set(data, 1))
    assert scored == [getattr(data, split)]
    assert (score.split, score.accuracies) == (split, (12.5,))


# --- training ----------------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_figure_whatever_the_others(data):
    both = Evaluator(data, PROTOCOL, seeds=(0, 1)).random_real(2)[0]
    alone = Evaluator(data, PROTOCOL, seeds=(1,)).random_real(2)[0]
    assert both.accuracies[1:] == alone.accuracies


def test_students_learn_digits_from_ten_real_images_per_class(data):
    protocol = ProtocolConfig(students=("convnet:width=16",), epochs=40, batch_size=64, lr=0.05, augment="crop|scale|rotate")
    (score,) = Evaluator(data, protocol, seeds=2).random_real(10)
    assert score.steps == 80
    assert min(score.accuracies) > 55


def test_more_real_images_are_better(data):
    protocol = ProtocolConfig(students=("convnet:width=16",), epochs=40, batch_size=64, lr=0.05, augment="crop|scale|rotate")
    one = Evaluator(data, protocol, seeds=2).random_real(1)[0]
    ten = Evaluator(data, protocol, seeds=2).random_real(10)[0]
    assert statistics.fmean(one.accuracies) < statistics.fmean(ten.accuracies)


def test_noise_teaches_nothing(data):
    protocol = ProtocolConfig(students=("convnet:width=8",), epochs=20, lr=0.05, augment="")
    assert Evaluator(data, protocol, seeds=1).fixed(toy_set(data, 5))[0].mean < 35


# --- dim.evaluate -----------------------------------------------------------------------------------------------------------


def test_a_set_is_scored_by_what_it_carries(data, generator):
    fixed = dim.sample_set(generator, ipc=1)
    info = {"data": {**to_dict(DataConfig()), "root": None}, "protocol": to_dict(PROTOCOL)}
    carrying = SyntheticSet(fixed.images, fixed.labels, fixed.spec, info=json.loads(json.dumps(info)))
    (score,) = dim.evaluate(carrying, seeds=range(2))
    assert (score.track, score.ipc, score.seeds, score.steps) == ("fixed", 1, (0, 1), 3)
    assert score.student == "convnet:width=4"
    assert 0 <= score.mean <= 100
    assert score.data["fingerprint"] == data.spec.fingerprint
    rows = dim.evaluate(carrying, students=["alexnet:width=2", "convnet:width=2"], seeds=1, data=data)
    assert [row.student for row in rows] == ["alexnet:width=2", "convnet:width=2"]
    assert dim.evaluate(carrying, seeds=2, data=data)[0].accuracies == score.accuracies


def test_a_generator_is_scored_on_a_stream(data, generator):
    (score,) = dim.evaluate(generator, ipc=2, seeds=1, data=data, protocol=PROTOCOL)
    assert (score.track, score.ipc, score.steps, len(score.accuracies)) == ("stream", 2, 6, 1)
    with pytest.raises(InputError, match="ipc"):
        dim.evaluate(generator, data=data, protocol=PROTOCOL)


def test_public_functions_stay_functions(data, generator):
    """Modules of the same names are imported on the way."""
    for _ in range(2):
        dim.evaluate(generator, ipc=1, seeds=1, data=data, protocol=PROTOCOL)
    importlib.import_module("dim.runs.train")
    assert callable(dim.fit)
    assert callable(dim.evaluate)


def test_what_does_not_say_its_data_needs_it(data, generator):
    with pytest.raises(InputError, match="real data"):
        dim.evaluate(dim.sample_set(generator, ipc=1), protocol=PROTOCOL)


def test_a_set_of_other_data_is_refused(data):
    items = [(torch.zeros(1, 8, 9, dtype=torch.uint8), n % 2) for n in range(20)]
    other = from_dataset(items, items, name="other", class_names="ab")
    with pytest.raises(InputError, match="other"):
        Evaluator(other, PROTOCOL, seeds=1).fixed(toy_set(data, 1))


@pytest.mark.parametrize("ipc", [0, -1])
def test_impossible_sizes_are_refused(data, generator, ipc):
    evaluator = Evaluator(data, PROTOCOL, seeds=1)
    for call in (lambda: evaluator.stream(generator, ipc), lambda: evaluator.random_real(ipc), lambda: evaluator.oracle(ipc)):
        with pytest.raises(InputError, match=f"{ipc}: expected 1"):
            call()


def test_a_class_that_is_too_small_is_refused_before_training(data, fed):
    fewest = int(torch.bincount(data.train.labels).min())
    with pytest.raises(InputError, match=f"has {fewest} images: {fewest + 1} were asked"):
        Evaluator(data, PROTOCOL, seeds=1).random_real(fewest + 1)
    assert fed == []


def test_one_image_per_step_is_refused_where_batches_are_normalised(data):
    one = SyntheticSet(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([3]), data.spec)
    for student, refused in (("resnet18:width=4", True), ("convnet:width=4", False)):
        evaluator = Evaluator(data, dataclasses.replace(PROTOCOL, students=(student,), epochs=1), seeds=1)
        if refused:
            with pytest.raises(InputError, match="resnet18:width=4 has batch normalisation and sees one image per step"):
                evaluator.fixed(one)
        else:
            assert evaluator.fixed(one)[0].mean is not None


def test_impossible_evaluators_are_refused(data):
    with pytest.raises(InputError, match="no seeds"):
        Evaluator(data, PROTOCOL, seeds=0)
    with pytest.raises(InputError, match="convnet"):
        Evaluator(data, dataclasses.replace(PROTOCOL, students=("convnett",)))
    with pytest.raises(InputError, match="val_fraction"):
        Evaluator(load_data(DataConfig(val_fraction=0)), PROTOCOL, split="val")
    with pytest.raises(InputError, match="augment"):
        Evaluator(data, dataclasses.replace(PROTOCOL, augment="flipp"), seeds=1).random_real(1)
