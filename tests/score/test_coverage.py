"""Coverage: which images are compared, the rows and the control, and the nearest real images."""

import dataclasses
import importlib
import json

import pytest
import torch
from torch import nn

import dim
from dim.config import DataConfig, GeneratorConfig, to_dict
from dim.data.real import RealData, from_dataset
from dim.data.splits import JoinedSplit
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.features.distances import frechet_distance, neighbour_metrics
from dim.features.spaces import Features
from dim.nets.generator import build_generator
from dim.score.coverage import Coverage, CoverageScore, nearest_real
from dim.spec import to_uint8

# `dim.score.coverage` is the function.
MODULE = importlib.import_module("dim.score.coverage")
PIXELS = Features(network=nn.Flatten(), name="pixels", digest="0" * 32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def measure(digits):
    return Coverage(digits, samples=300, features=PIXELS)


@pytest.fixture(scope="module")
def generator(digits):
    return build_generator(GeneratorConfig(width=4, latent_dim=6), digits.spec, seed=0).eval()


def as_set(split, spec, indices=None) -> SyntheticSet:
    """Real images as a set."""
    indices = torch.arange(len(split)) if indices is None else indices
    images, labels = split.batch(indices)
    return SyntheticSet(to_uint8(images), labels, spec)


def held_out_set(data) -> SyntheticSet:
    parts = [as_set(split, data.spec) for split in (data.val, data.test)]
    return SyntheticSet(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]), data.spec)


def keys(images: torch.Tensor) -> list[bytes]:
    return [bytes(image.contiguous().numpy()) for image in images]


# --- which images ------------------------------------------------------------------------------------------------------------


def test_a_generator_gives_its_own_images_balanced(measure, generator):
    drawn = measure.draw(generator)
    assert torch.bincount(drawn.labels).tolist() == [30] * 10
    assert torch.equal(drawn.images, dim.sample_set(generator, ipc=30, seed=0).images)


def test_a_set_gives_as_many_of_its_own_images(measure, digits):
    subject = held_out_set(digits)
    drawn = measure.draw(subject)
    assert torch.bincount(drawn.labels).tolist() == [30] * 10
    labels = dict(zip(keys(subject.images), subject.labels.tolist(), strict=True))
    assert all(labels[key] == label for key, label in zip(keys(drawn.images), drawn.labels.tolist(), strict=True))
    assert len(set(keys(drawn.images))) > 290
    assert not torch.equal(drawn.images, Coverage(digits, samples=300, seed=1, features=PIXELS).draw(subject).images)


def test_no_class_has_more_images_than_the_smallest_part(digits):
    """Of ten digits about fifty each are held out, and more are in the training part."""
    whole = Coverage(digits, features=PIXELS)
    held = torch.bincount(torch.cat((digits.val.labels, digits.test.labels)))
    assert torch.bincount(whole.draw(as_set(digits.train, digits.spec)).labels).tolist() == held.tolist()
    few = as_set(digits.train, digits.spec, torch.cat([(digits.train.labels == k).nonzero()[: k + 1, 0] for k in range(10)]))
    assert torch.bincount(whole.draw(few).labels).tolist() == list(range(1, 11))


def test_the_real_images_are_training_images_and_nested(digits, monkeypatch):
    seen = []
    monkeypatch.setattr(
        Features, "of", lambda self, split, indices: (seen.append((split, indices)), torch.zeros(len(indices), 2))[1]
    )
    for samples in (100, 300):
        measure = Coverage(digits, samples=samples, features=PIXELS)
        _, labels = measure._real("train", measure._counts)
        split, indices = seen[-1]
        assert split is digits.train
        assert torch.equal(labels, digits.train.labels[indices])
        assert torch.bincount(labels).tolist() == [samples // 10] * 10
    assert set(seen[0][1].tolist()) < set(seen[1][1].tolist())


def test_the_control_is_of_images_that_were_not_trained_on(measure, digits):
    points, labels = measure._real("held out", measure._counts)
    held = held_out_set(digits)
    pool = dict(zip(keys(held.tensors()[0].flatten(1)), held.labels.tolist(), strict=True))
    assert [pool[key] for key in keys(points)] == labels.tolist()
    assert torch.bincount(labels).tolist() == [30] * 10


# --- rows --------------------------------------------------------------------------------------------------------------------


def test_a_row_is_the_metrics_of_its_images(measure, generator, digits):
    score = measure.score(generator, "mine")
    real, labels = measure._real("train", measure._counts)
    drawn = measure.draw(generator)
    points = drawn.tensors()[0].flatten(1)
    assert score.metrics == {"fid": frechet_distance(real, points), **neighbour_metrics(real, points)}
    for label, values in enumerate(score.per_class):
        own = neighbour_metrics(real[labels == label], points[drawn.labels == label])
        assert values == {"class": str(label), "images": 30, "fid": None, **own}  # 30 images, 64 features
    assert (score.name, score.images, score.seed, score.sampler) == ("mine", 300, 0, {})
    assert score.features == {"name": "pixels", "accuracy": None, "split": None, "digest": "0" * 32}
    assert score.data["fingerprint"] == digits.spec.fingerprint


def test_a_class_with_more_images_than_features_has_a_frechet_distance(digits):
    narrow = dataclasses.replace(PIXELS, network=nn.Sequential(nn.AvgPool2d(4), nn.Flatten()))
    score = Coverage(digits, samples=300, features=narrow).held_out()
    assert all(values["fid"] > 0 for values in score.per_class)


def test_the_control_is_near_what_is_to_be_expected(digits):
    score = Coverage(digits, features=PIXELS).held_out()
    assert score.metrics["coverage"] == pytest.approx(score.expected["coverage"], abs=0.03)
    assert score.metrics["density"] == pytest.approx(1, abs=0.15)


def test_training_images_themselves_are_covered(measure, digits):
    same = SyntheticSet(*_drawn_training_images(measure, digits), digits.spec)
    score = measure.score(same)
    assert score.metrics["fid"] == pytest.approx(0, abs=1e-6)
    assert score.metrics["coverage"] == score.metrics["precision"] == score.metrics["recall"] == 1


def _drawn_training_images(measure, data):
    chosen = MODULE._choose(data.train.labels, measure._counts, measure.seed, "coverage-train")
    images, labels = data.train.batch(chosen)
    return to_uint8(images), labels


def test_one_image_per_class_again_and_again_covers_little(measure, digits):
    first = torch.stack([(digits.train.labels == k).nonzero()[0, 0] for k in range(10)]).repeat(30)
    collapsed = measure.score(as_set(digits.train, digits.spec, first))
    honest = measure.held_out()
    assert collapsed.metrics["coverage"] < 0.4 < 0.9 < honest.metrics["coverage"]
    assert collapsed.metrics["recall"] < 0.2
    assert collapsed.metrics["fid"] > 3 * honest.metrics["fid"]


def test_a_control_like_a_smaller_row_has_as_many_images(measure, digits):
    small = measure.score(as_set(digits.train, digits.spec, torch.arange(100)))
    control = measure.held_out(small)
    assert [values["images"] for values in control.per_class] == [values["images"] for values in small.per_class]
    assert control.images == small.images < 300


def test_classes_with_few_images_have_no_figures_of_their_own(measure, digits):
    three = dim.data.real.per_class_indices(digits.train.labels, 3, 10, seed=0)
    score = measure.score(as_set(digits.train, digits.spec, three))
    assert score.images == 30
    assert all(values["coverage"] is None and values["fid"] is None for values in score.per_class)
    assert score.metrics["coverage"] > 0


def test_the_same_seed_gives_the_same_figures_and_another_one_others(measure, generator, digits):
    first = measure.score(generator)
    assert Coverage(digits, samples=300, features=PIXELS).score(generator).metrics == first.metrics
    assert Coverage(digits, samples=300, seed=1, features=PIXELS).score(generator).metrics != first.metrics


def test_a_row_says_how_a_few_step_generator_was_sampled(digits):
    config = GeneratorConfig(name="diffusion", width=32, steps=2)
    score = Coverage(digits, samples=60, features=PIXELS).score(build_generator(config, digits.spec, seed=0))
    assert score.sampler["steps"] == 2


def test_json_round_trip(measure):
    score = measure.held_out()
    assert CoverageScore.from_dict(json.loads(json.dumps(score.to_dict(), allow_nan=False))) == score


def test_the_function_finds_the_data_and_trains_the_features(generator, measure):
    subject = measure.draw(generator)
    subject.info["data"] = to_dict(DataConfig())
    score = dim.coverage(subject, samples=100)
    assert (score.name, score.images) == ("set", 100)
    assert score.features["name"] == "resnet10:width=16"
    assert score.features["accuracy"] > 90


# --- mistakes ----------------------------------------------------------------------------------------------------------------


def test_too_few_samples(digits):
    with pytest.raises(InputError, match="samples is 9: expected at least 10"):
        Coverage(digits, samples=9, features=PIXELS)


def test_too_few_samples_for_five_neighbours_once_they_are_balanced():
    items = [(torch.zeros(1, 8, 8, dtype=torch.uint8), n % 4) for n in range(40)]
    data = from_dataset(items, items, name="toy", class_names="abcd")
    with pytest.raises(InputError, match="4 balanced images of 4 classes: expected at least 6; raise samples"):
        Coverage(data, samples=7, features=PIXELS)


def test_a_set_without_a_class(measure, digits):
    with pytest.raises(InputError, match="no image of class '7'"):
        measure.score(as_set(digits.train, digits.spec, (digits.train.labels != 7).nonzero().squeeze(1)))


def test_a_set_of_other_data(measure, spec):
    other = SyntheticSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4), spec())
    with pytest.raises(InputError, match=r"made for 'toy' .*expected 'digits'"):
        measure.score(other)


def test_a_set_that_does_not_say_what_it_was_made_from(measure, generator):
    subject = measure.draw(generator)
    subject.info["data"] = None
    with pytest.raises(InputError, match="give the real data"):
        dim.coverage(subject)


def test_a_class_without_held_out_images():
    items = [(torch.zeros(1, 8, 8, dtype=torch.uint8), n % 2) for n in range(20)]
    whole = from_dataset(items, items, name="toy", class_names="ab", config=DataConfig(val_fraction=0.0))
    data = RealData(whole.spec, whole.train, whole.val, JoinedSplit([whole.test], torch.arange(0, 20, 2)))
    with pytest.raises(InputError, match=r"class 'b' has no held-out image.*data\.val_fraction"):
        Coverage(data, features=PIXELS)


# --- nearest real images -----------------------------------------------------------------------------------------------------


def test_nearest_images_are_those_of_a_full_search(measure, digits, generator):
    found = measure.nearest(generator)
    train, labels = digits.train.batch(torch.arange(len(digits.train)))
    table = (found.generated.tensors()[0].flatten(1).double()[:, None] - train.flatten(1).double()[None]).norm(dim=2)
    expected = table.sort(dim=1).values[:, :3]
    assert torch.allclose(found.any_distances, expected, atol=1e-6)
    assert torch.allclose(table.gather(1, found.any_class), expected, atol=1e-6)
    assert torch.equal(labels[found.same_class], found.generated.labels[:, None].expand(-1, 3))
    same = table.masked_fill(labels[None] != found.generated.labels[:, None], torch.inf).sort(dim=1).values[:, :3]
    assert torch.allclose(found.same_distances, same, atol=1e-6)
    assert (found.same_distances >= found.any_distances - 1e-9).all()


def test_copies_are_found_out_and_held_out_images_are_none(measure, digits):
    copies = nearest_real(as_set(digits.train, digits.spec, torch.arange(300)), digits, PIXELS)
    assert copies.any_class[:, 0].tolist() == list(range(300))
    assert copies.to_dict()["nearer_than_1_percent"] == 1
    held = measure.nearest(held_out_set(digits))
    assert held.to_dict()["nearer_than_1_percent"] < 0.05
    assert len(held.held_out_distances) == 300


def test_the_distributions_are_quantiles(measure, generator):
    found = measure.nearest(generator)
    values = json.loads(json.dumps(found.to_dict()))
    for key, distances in (("generated", found.any_distances[:, 0]), ("held_out", found.held_out_distances)):
        assert len(values[key]) == 101
        assert values[key] == sorted(values[key])
        assert values[key][50] == pytest.approx(float(distances.median()), rel=0.02)
        assert (values[key][0], values[key][-1]) == (float(distances.min()), float(distances.max()))


def test_the_panel_has_two_rows_per_class(measure, digits):
    found = measure.nearest(as_set(digits.train, digits.spec))
    picture = found.panel()
    assert picture.size == (9 * 50 + 2, 20 * 50 + 2)
    assert found.panel(max_classes=3).size == (9 * 50 + 2, 6 * 50 + 2)
    # The subject is made of training images, so that the second row of a class shows the same image three times.
    tiles = [picture.crop((2 + 50 * n, 52, 50 + 50 * n, 100)) for n in range(9)]
    assert tiles[0].tobytes() == tiles[2].tobytes() == tiles[6].tobytes()
    assert tiles[1].getextrema() == tiles[5].getextrema() == (255, 255)


def test_small_classes_have_fewer_neighbours(measure, digits, generator):
    with pytest.raises(InputError, match="k is 0 and"):
        nearest_real(measure.draw(generator), digits, PIXELS, k=0)
    kept = torch.cat([(digits.train.labels == label).nonzero()[:2, 0] for label in range(10)])
    few = dataclasses.replace(digits, train=JoinedSplit([digits.train], kept))
    found = nearest_real(measure.draw(generator), few, PIXELS)
    assert found.same_class.shape[1] == found.any_class.shape[1] == 2
    assert found.panel(max_classes=3).size[1] > 0
