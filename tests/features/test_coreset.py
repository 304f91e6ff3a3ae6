"""Coresets: the rules against their definitions, and selections that are balanced, nested, repeatable and cached."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from dim.config import CORESETS, DataConfig, ProtocolConfig, ScoringConfig
from dim.data.real import EpochBatches, from_dataset, load_data, per_class_indices
from dim.errors import InputError
from dim.features import coreset as module
from dim.features.classifier import train_student
from dim.features.coreset import Rule, ScoreRule, Selector, row_name, select
from dim.features.coresets.el2n import el2n
from dim.features.coresets.forgetting import forgetting_events
from dim.features.coresets.herding import herding
from dim.features.coresets.k_center import k_center
from dim.features.spaces import Features
from dim.io import load_tensors

PIXELS = Features(network=nn.Flatten(), name="pixels", digest="0" * 32, device=torch.device("cpu"))
METHODS = CORESETS.names()
BY_SCORES = ("el2n", "forgetting")
SHORT = ScoringConfig(student="convnet:width=4", epochs=3, min_steps=0, batch_size=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("coresets")


def cloud(seed: int, count: int = 9, width: int = 2) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def options(method: str, folder) -> dict:
    """What makes a method quick, where it has something to make."""
    if CORESETS.load(method).by_features:
        return {"features": PIXELS}
    return {"scoring": SHORT, "cache": folder} if method in BY_SCORES else {}


# --- rules -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_herding_keeps_the_mean_of_the_chosen_nearest_to_the_mean_of_all(seed):
    points = cloud(seed)
    chosen = []
    for _ in range(len(points)):
        free = [n for n in range(len(points)) if n not in chosen]
        chosen.append(min(free, key=lambda n: float((points[[*chosen, n]].mean(0) - points.mean(0)).norm())))
    assert herding(points, len(points)).tolist() == chosen
    assert herding(points, 4).tolist() == chosen[:4]
    assert herding(points + 7, 4).tolist() == chosen[:4]  # it looks at positions relative to the mean only


def test_herding_by_hand():
    """The mean is 3. Nearest is 2; with it 4.5 has the mean 3.25, and 1 has 1.5; then 1 gives 2.5, the other 4.5 3.67."""
    points = torch.tensor([[1.0], [2.0], [4.5], [4.5]])
    assert herding(points, 3).tolist() in ([1, 2, 0], [1, 3, 0])


@pytest.mark.parametrize("seed", range(5))
def test_k_center_takes_the_farthest_point(seed):
    points = cloud(seed)
    chosen = [seed]
    while len(chosen) < len(points):
        free = [n for n in range(len(points)) if n not in chosen]
        chosen.append(max(free, key=lambda n: min(float((points[n] - points[c]).norm()) for c in chosen)))
    assert k_center(points, len(points), first=seed).tolist() == chosen
    assert k_center(points, 3, first=seed).tolist() == chosen[:3]


@pytest.mark.parametrize(("seed", "count"), [(seed, count) for seed in range(6) for count in (2, 3)])
def test_the_radius_of_k_center_is_at_most_twice_the_best(seed, count):
    points = cloud(seed, 10)

    def radius(centres):
        return max(min(float((point - points[c]).norm()) for c in centres) for point in points)

    best = min(radius(centres) for centres in itertools.combinations(range(len(points)), count))
    for first in range(len(points)):
        assert best <= radius(k_center(points, count, first=first).tolist()) <= 2 * best + 1e-12


@pytest.mark.parametrize("rule", [herding, lambda points, count: k_center(points, count, first=0)])
def test_points_that_coincide_are_chosen_once_each(rule):
    points = torch.tensor([[0.0, 0.0]] * 3 + [[1.0, 1.0]] * 3)
    assert sorted(rule(points, 6).tolist()) == list(range(6))


def test_forgetting_is_right_and_then_wrong():
    right = torch.tensor(
        [
            [1, 0, 1, 1, 0],
            [1, 0, 0, 0, 0],
            [1, 1, 0, 1, 0],
            [1, 1, 0, 0, 1],
        ]
    ).bool()
    assert forgetting_events(right).tolist() == [0, 0, 1, 2, 0]
    assert forgetting_events(right[:3]).tolist() == [0, 0, 1, 1, 3]  # the last was never right: hardest of all


def test_el2n_is_the_distance_of_probabilities_from_the_label():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [-100.0, 0.0], [100.0, 0.0]], dtype=torch.float64)
    found = el2n(logits, torch.tensor([0, 0, 0, 0]))
    assert found.tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(2) / 4, math.sqrt(2), 0], abs=1e-9)
    source = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(20, 5, generator=source), torch.randint(0, 5, (20,), generator=source)
    slow = [(logits[n].double().softmax(0) - torch.eye(5)[labels[n]]).square().sum().sqrt() for n in range(20)]
    assert el2n(logits, labels).tolist() == pytest.approx([float(value) for value in slow])


# --- selections --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_selections_are_balanced_nested_and_repeatable(digits, folder, method):
    some = options(method, folder)
    seven, three = (select(digits, ipc, method, seed=2, **some) for ipc in (7, 3))
    assert seven.dtype == torch.int64
    assert len(set(seven.tolist())) == 70
    assert digits.train.labels[seven].tolist() == list(range(10)) * 7  # by rank, then by class
    assert torch.equal(three, seven[:30])
    assert torch.equal(select(digits, 7, method, seed=2, **some), seven)


@pytest.mark.parametrize(("method", "same"), [("random", False), ("herding", True), ("k-center", False), ("el2n", True)])
def test_other_seeds_give_other_selections_where_random_enters(digits, folder, method, same):
    first, second = (select(digits, 3, method, seed=seed, **options(method, folder)) for seed in (0, 1))
    assert torch.equal(first, second) == same


def test_random_is_the_random_control(digits):
    assert torch.equal(select(digits, 4, "random", seed=3), per_class_indices(digits.train.labels, 4, 10, seed=3))


def test_herding_and_k_center_go_class_by_class_in_the_features(digits):
    images, labels = digits.train.batch(torch.arange(len(digits.train)))
    for label in (0, 7):
        members = (labels == label).nonzero().squeeze(1)
        own = images[members].flatten(1)
        chosen = select(digits, 5, "herding", features=PIXELS)
        assert chosen[label::10].tolist() == members[herding(own, 5)].tolist()
        chosen = select(digits, 5, "k-center", seed=4, features=PIXELS)[label::10]
        first = int((members == chosen[0]).nonzero())
        assert chosen.tolist() == members[k_center(own, 5, first=first)].tolist()


def test_herding_is_nearer_to_the_class_means_than_chance(digits):
    images, labels = digits.train.batch(torch.arange(len(digits.train)))
    means = torch.stack([images[labels == label].mean(0) for label in range(10)])

    def distance(chosen):
        return float((images[chosen].view(5, 10, 1, 8, 8).mean(0) - means).square().sum())

    random = min(distance(select(digits, 5, "random", seed=seed)) for seed in range(20))
    assert distance(select(digits, 5, "herding", features=PIXELS)) < 0.5 * random


def test_trained_features_are_the_default(digits, folder, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "trained_features", lambda data, cache: asked.append((data, cache)) or PIXELS)
    found = select(digits, 2, "herding", cache=folder)
    assert asked == [(digits, folder)]
    assert torch.equal(found, select(digits, 2, "herding", features=PIXELS))


@pytest.mark.parametrize("method", BY_SCORES)
def test_the_end_says_which_scores_come_first(digits, folder, method):
    selector = Selector(digits, scoring=SHORT, cache=folder)
    scores = selector._prepare(method)[0]
    easy, default, hard = (selector.select(4, method, end=end) for end in ("easiest", None, "hardest"))
    assert torch.equal(easy, default)
    for label in range(10):
        own = scores[digits.train.labels == label].sort().values
        assert scores[easy[label::10]].tolist() == own[:4].tolist()
        assert scores[hard[label::10]].tolist() == own.flip(0)[:4].tolist()
    assert scores[hard].mean() > scores[easy].mean()


def test_equal_numbers_of_forgetting_events_are_in_random_order(digits, monkeypatch):
    events = torch.zeros(len(digits.train), dtype=torch.float64)
    events[digits.train.labels == 3] = torch.arange(int((digits.train.labels == 3).sum())).double()
    monkeypatch.setattr(module, "_kept_scores", lambda *arguments: (events, 1.0))
    for end in ("easiest", "hardest"):
        first, second = (select(digits, 5, "forgetting", seed=seed, end=end) for seed in (0, 1))
        assert first[3::10].tolist() == second[3::10].tolist()  # no two are equal there
        assert set(first[4::10].tolist()) != set(second[4::10].tolist())


# --- scores ------------------------------------------------------------------------------------------------------------------


def replay(data, config, run):
    """A scoring run by hand: the classifier, and each epoch's right answers, by walking through its batches."""
    seed = module.rng.fold(config.seed, "coreset-scores", run)
    batches = EpochBatches(data.train, config.batch_size, seed=seed, purpose="coreset")
    steps = math.ceil(config.epochs * len(data.train) / config.batch_size)
    names = ("lr", "weight_decay", "schedule", "augment")
    protocol = ProtocolConfig(students=(config.student,), **{name: getattr(config, name) for name in names})
    seen = []
    device = torch.device("cpu")
    net = train_student(
        config.student, batches.at, steps, protocol, data, seed, device, lambda step, logits: seen.append((step, logits))
    )
    history = [[] for _ in range(len(data.train))]
    for step, logits in seen:
        for index, answer in zip(batches.indices(step).tolist(), logits.argmax(1).tolist(), strict=True):
            history[index].append(answer == int(data.train.labels[index]))
    return net, history


def test_forgetting_scores_are_those_of_a_run_followed_by_hand(digits):
    """Batches straddle epochs, and the last one runs into an epoch that does not count."""
    assert len(digits.train) % SHORT.batch_size
    _, history = replay(digits, SHORT, 0)
    expected = []
    for right in history:
        right = right[: SHORT.epochs]
        assert len(right) == SHORT.epochs
        events = sum(before and not after for before, after in itertools.pairwise(right))
        expected.append(events if any(right) else SHORT.epochs)
    found = module._scores(digits, "forgetting", SHORT)
    assert found.tolist() == expected
    assert len(found.unique()) > 2


def test_el2n_scores_are_the_mean_of_the_runs(digits):
    config = dataclasses.replace(SHORT, runs=2)
    images, labels = digits.train.batch(torch.arange(len(digits.train)))
    parts = []
    for run in range(2):
        net, _ = replay(digits, config, run)
        with torch.no_grad():
            parts.append(el2n(net(images), labels))
    assert torch.allclose(module._scores(digits, "el2n", config), (parts[0] + parts[1]) / 2, atol=1e-6)
    assert not torch.allclose(parts[0], parts[1], atol=1e-3)


def test_a_small_training_part_is_passed_more_often(digits):
    steps = []

    def passes(config):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                module, "train_student", lambda student, feed, count, *rest, **more: steps.append(count) or nn.Flatten()
            )
            module._scores(digits, "forgetting", config)
        return steps[-1]

    size = len(digits.train)
    assert passes(SHORT) == math.ceil(3 * size / 128)
    assert passes(dataclasses.replace(SHORT, min_steps=100)) == math.ceil(math.ceil(100 * 128 / size) * size / 128) >= 100


@pytest.mark.parametrize("method", BY_SCORES)
def test_scores_are_kept(digits, method, tmp_path, monkeypatch):
    selector = Selector(digits, scoring=SHORT, cache=tmp_path)
    first = selector.select(5, method)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith(f"{method}-digits-8x8x1-")
    assert selector.about(method)["seconds"] == load_tensors(path)[1]["seconds"] > 0
    with monkeypatch.context() as patch:
        patch.setattr(module, "_scores", None)
        assert torch.equal(select(digits, 5, method, scoring=SHORT, cache=tmp_path), first)
    path.write_bytes(path.read_bytes()[:-9])  # damaged: made again
    assert torch.equal(select(digits, 5, method, scoring=SHORT, cache=tmp_path), first)
    other = load_data(DataConfig(split_seed=1))
    select(other, 5, method, scoring=SHORT, cache=tmp_path)
    select(digits, 5, method, scoring=dataclasses.replace(SHORT, seed=1), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_cache_folder_is_the_users(digits, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    select(digits, 1, "el2n", scoring=dataclasses.replace(SHORT, epochs=1))
    assert [file.parent for file in tmp_path.rglob("*.safetensors")] == [tmp_path / "dim" / "coresets"]


def test_a_cache_folder_that_cannot_be_written_costs_a_line(digits, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = select(digits, 1, "el2n", scoring=dataclasses.replace(SHORT, epochs=1))
    assert len(found)
    assert "not kept, so the next start does this work again" in capsys.readouterr().err


def test_the_global_random_state_is_left_alone(digits, tmp_path):
    state = torch.get_rng_state()
    select(digits, 1, "forgetting", scoring=dataclasses.replace(SHORT, epochs=1), cache=tmp_path)
    select(digits, 1, "k-center", features=PIXELS)
    assert torch.equal(torch.get_rng_state(), state)


def test_scores_find_the_images_that_are_like_no_other(folder):
    """Forty images per class, two of them with the other class's look: they are among the hardest, and never the easiest."""
    source = torch.Generator().manual_seed(0)
    items = []
    for number in range(80):
        label, wrong = number % 2, number in (10, 11, 20, 21)
        image = torch.randint(0, 60, (1, 8, 8), generator=source, dtype=torch.uint8)
        image[:, 4 * (label ^ wrong) : 4 * (label ^ wrong) + 4] += 180
        items.append((image, label))
    data = from_dataset(items, items[:10], name="toy", class_names="ab", config=DataConfig(val_fraction=0.0))
    config = ScoringConfig(student="convnet:width=8,depth=1", epochs=10, min_steps=0, batch_size=16, augment="")
    for method in BY_SCORES:
        hardest = select(data, 2, method, end="hardest", scoring=config, cache=folder)
        assert sorted(hardest.tolist()) == [10, 11, 20, 21], method
        assert not set(select(data, 20, method, scoring=config, cache=folder).tolist()) & {10, 11, 20, 21}


def test_what_a_figure_must_say(digits, folder):
    selector = Selector(digits, features=PIXELS, scoring=SHORT, cache=folder)
    assert selector.about("random") == {"method": "random", "seconds": 0.0}
    # These features came from elsewhere, so that the time they took is not known.
    assert selector.about("herding") == {"method": "herding", "features": PIXELS.to_dict(), "seconds": None}
    told = selector.about("el2n", "hardest")
    assert (told["method"], told["end"], told["scoring"]["epochs"]) == ("el2n", "hardest", 3)
    assert selector.about("forgetting")["end"] == "easiest"
    timed = Selector(digits, features=dataclasses.replace(PIXELS, seconds=100.0))
    assert 100 <= timed.about("k-center")["seconds"] < 110


# --- rules of somebody's own -------------------------------------------------------------------------------------------------


class Brightest(Rule):
    """By features, which are pixels here."""

    by_features = True

    def rank(self, values, order, count, end):
        return values.sum(1).argsort(descending=True)[:count]


class Darkest(ScoreRule):
    """By the outputs of a classifier, which are pixels here."""

    scoring = SHORT

    def score(self, training):
        assert training.right is None
        assert training.logits.shape == (len(training.labels), 10)
        return training._data.train.batch(torch.arange(len(training.labels)))[0].flatten(1).double().sum(1)


def test_a_rule_of_somebodys_own(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(CORESETS, "_external", {})
    images = digits.train.batch(torch.arange(len(digits.train)))[0].flatten(1).sum(1)
    bright, dark = select(digits, 3, Brightest, features=PIXELS), select(digits, 3, Darkest, cache=tmp_path)
    for label in range(10):
        own = images[digits.train.labels == label].sort(descending=True).values
        assert images[bright[label::10]].tolist() == own[:3].tolist()
        assert images[dark[label::10]].tolist() == own.flip(0)[:3].tolist()
    (path,) = tmp_path.iterdir()
    assert ":" not in path.name
    name = f"{__name__}:Darkest"
    assert row_name(name, "hardest") == f"hardest {name} real"
    assert Selector(digits, cache=tmp_path).about(Darkest)["method"] == name
    with pytest.raises(InputError, match="has no end"):
        select(digits, 3, Brightest, features=PIXELS, end="hardest")
    monkeypatch.setattr(CORESETS, "_external", {})
    with pytest.raises(InputError, match="is code outside this package"):
        select(digits, 3, name)


# --- mistakes ----------------------------------------------------------------------------------------------------------------


def test_impossible_selections_are_refused(digits):
    with pytest.raises(InputError, match=r"unknown coreset 'herdin'\. Did you mean 'herding'"):
        select(digits, 1, "herdin")
    with pytest.raises(InputError, match="is 0: expected 1 or more"):
        select(digits, 0, "herding", features=PIXELS)
    fewest = int(torch.bincount(digits.train.labels).min())
    with pytest.raises(InputError, match=f"{fewest + 1} were asked for"):
        select(digits, fewest + 1, "k-center", features=PIXELS)
    with pytest.raises(InputError, match="end is 'middle': expected 'easiest' or 'hardest'"):
        select(digits, 1, "el2n", end="middle")
    with pytest.raises(InputError, match=r"scoring\.runs is 0"):
        ScoringConfig(runs=0)


def test_no_option_is_ignored(digits):
    with pytest.raises(InputError, match="'herding' has no end 'hardest': give it with el2n or forgetting"):
        select(digits, 1, "herding", features=PIXELS, end="hardest")
    with pytest.raises(InputError, match="'el2n' has no features"):
        select(digits, 1, "el2n", features=PIXELS)
    with pytest.raises(InputError, match="'random' has no scoring"):
        select(digits, 1, "random", scoring=SHORT)


def test_refusals_come_before_training(digits, monkeypatch):
    monkeypatch.setattr(module, "trained_features", None)
    monkeypatch.setattr(module, "_kept_scores", None)
    for method in METHODS:
        with pytest.raises(InputError, match="10000 were asked for"):
            select(digits, 10000, method)
