"""Sampler policies: rankings, nested sets, and what a policy needs."""

import copy
import dataclasses

import pytest
import torch

import dim
from dim.config import FeatureConfig, PolicyConfig, RefineConfig
from dim.emit.policies.filtered import filtered
from dim.emit.policies.graded import graded
from dim.emit.policies.matched import Matched
from dim.emit.policy import Given, Policy
from dim.errors import InputError
from dim.features.coresets.herding import herding
from dim.features.spaces import trained_features
from dim.sampler import sample_set
from dim.score.record import production_seconds
from dim.spec import to_uint8
from dim.teacher import load_teacher

OPTIONS = {"trajectory": {"student_steps": 2, "span": (0.5,)}, "moments": {"real": 4}}
"""Of the purposes of refinement."""


@pytest.fixture(scope="module")
def generator(digits_gan):
    return digits_gan


@pytest.fixture(scope="module")
def teacher(digits_experts, digits):
    return load_teacher(digits_experts, digits)


@pytest.fixture(scope="module")
def features(digits):
    return trained_features(digits, FeatureConfig(student="convnet:width=8,depth=2", epochs=1))


# --- rules -------------------------------------------------------------------------------------------------------------------


def test_filtered_keeps_the_surest_in_their_order():
    sure = torch.tensor([0.2, 0.9, 0.5, 0.95, 0.1])
    assert filtered(sure, 0.6).tolist() == [1, 2, 3]
    assert filtered(sure, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert filtered(sure, 0.01).tolist() == [3]


def test_graded_begins_easy_and_ends_hard():
    sure = torch.rand(100, generator=torch.Generator().manual_seed(0))
    order = graded(sure, 20)
    assert sorted(order.tolist()) == list(range(100))
    assert order[0] == sure.argmax()
    difficulty = 1 - sure[order]
    means = [float(difficulty[:count].mean()) for count in (1, 5, 20, 60)]
    assert means == sorted(means)
    ranks = torch.empty(100).scatter(0, torch.argsort(sure, descending=True), torch.arange(100.0))
    assert abs(float(ranks[order[20]]) - 50) <= 3, "place `half` is a median one"


# Ranks from the surest, 0, in the order in which turns take them.
@pytest.mark.parametrize(
    ("count", "half", "order"),
    [
        # Quantiles 0, 1/2, 2/3, 3/4, 4/5, 5/6, ... of 10: 0, 5, 6.67, 7.5, 8, 8.33, 8.57, 8.75, 8.89, 9, 9.09. At 7.5, 7 is
        # taken and 8 is nearer than 6; at 8.33, 10 is nearer than 6; from then on only easier ones are left.
        (11, 1, [0, 5, 7, 8, 9, 10, 6, 4, 3, 2, 1]),
        # 0, 1/3, 2/4, 3/5, 4/6, 5/7, 6/8, 7/9 of 7: 0, 2.33, 3.5, 4.2, 4.67, 5, 5.25, 5.44. 3.5 lies between 3 and 4: the easier.
        (8, 2, [0, 2, 3, 4, 5, 6, 7, 1]),
        # 0, 1/4, 2/5, 3/6, 4/7, 5/8 of 5: 0, 1.25, 2, 2.5, 2.86, 3.13.
        (6, 3, [0, 1, 2, 3, 4, 5]),
        # 0, 1/10, 2/11, 3/12, 4/13 of 4: 0, 0.4, 0.73, 1, 1.23. At 0.4, 0 is taken.
        (5, 9, [0, 1, 2, 3, 4]),
        # 0, 1/6, 2/7, 3/8, 4/9, 5/10, 6/11 ... of 19: 0, 3.17, 5.43, 7.13, 8.44, 9.5 (9 and 10: the easier), 10.36, 11.08,
        # 11.69, 12.21, 12.67, 13.06, 13.41, 13.72, 14, ...: 13 at 12.67, 14 at 13.06, 15 at 13.41, 16 at 13.72 and so on to 19,
        # and back from 6: those between were jumped over.
        (20, 5, [0, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 6, 4, 2, 1]),
        (1, 4, [0]),
    ],
)
def test_graded_takes_the_quantile_of_its_turn(count, half, order):
    """Turn i takes the free rank nearest to i / (i + half) of the last rank, and of two equally near ones the easier."""
    sure = torch.linspace(1.0, 0.1, count)
    assert graded(sure, half).tolist() == order
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    assert shuffled[graded(sure[shuffled], half)].tolist() == order


def test_matched_is_the_greedy_choice_and_beats_chance():
    source = torch.Generator().manual_seed(0)
    points, target = torch.randn(60, 4, generator=source, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    order = herding(points, len(points), mean=target)
    assert sorted(order.tolist()) == list(range(60))
    for count in (1, 2, 7):
        before = points[order[: count - 1]].sum(0)
        free = [place for place in range(60) if place not in order[: count - 1].tolist()]
        gaps = [float(((before + points[place]) / count - target).norm()) for place in free]
        assert free[gaps.index(min(gaps))] == int(order[count - 1])
    chance = points[:10].mean(0).norm()
    assert points[order[:10]].mean(0).norm() < 0.3 * chance


# --- sets --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [("filtered",), ("graded",), ("matched",), ("filtered", "matched"), ("filtered", "graded")])
def test_sets_are_nested_and_made_of_the_generators_images(generator, teacher, features, digits, steps):
    keep = {"keep": 0.5} if "filtered" in steps else {}
    policy = Policy(PolicyConfig(steps=steps, candidates=20, **keep), teacher=teacher, data=digits, features=features)
    ranking = policy.rank(generator, seed=3)
    small, large = (sample_set(generator, ipc=ipc, seed=3, ranking=ranking) for ipc in (2, 6))
    assert torch.equal(small.images, large.images[:20])
    assert torch.equal(policy.rank(generator, seed=3).numbers[4], ranking.numbers[4])
    plain = sample_set(generator, ipc=20, seed=3)
    for label in range(10):
        own, every = large.images[large.labels == label], plain.images[plain.labels == label]
        assert torch.equal(own, every[ranking.numbers[label][:6]])
    assert large.info["policy"] == "+".join(steps)
    assert large.info["policy_settings"]["candidates"] == 20
    assert large.info["policy_seconds"] >= 0
    large.info["generator"]["seconds"] = 100.0
    made = 100.0 + large.info["policy_seconds"] + large.info["seconds"]
    assert production_seconds(large) == pytest.approx(made + (features.seconds if "policy_features" in large.info else 0.0))
    assert not torch.equal(large.images, plain.images[:60])


def test_filtered_sets_are_surer_and_matched_ones_nearer(generator, teacher, features, digits):
    plain = sample_set(generator, ipc=5, seed=0)
    config = {"candidates": 40}

    def of(*steps):
        keep = {"keep": 0.2} if "filtered" in steps else {}
        policy = Policy(PolicyConfig(steps=steps, **config, **keep), teacher=teacher, data=digits, features=features)
        return sample_set(generator, ipc=5, seed=0, ranking=policy.rank(generator))

    sure = [float(teacher.confidence(subject.tensors()[0], subject.labels).mean()) for subject in (plain, of("filtered"))]
    assert sure[1] > sure[0]
    judge = Matched(PolicyConfig(steps=("matched",)), Given(data=digits, features=features))

    def gap(subject):
        points = judge._statistics(features(subject.tensors()[0]))
        return sum(float((points[subject.labels == label].mean(0) - judge._targets[label]).square().sum()) for label in range(10))

    assert gap(of("matched")) < 0.8 * gap(plain)


def test_no_policy_is_the_plain_set(generator):
    ranking = Policy(PolicyConfig(candidates=7)).rank(generator, seed=2)
    assert torch.equal(sample_set(generator, ipc=5, seed=2, ranking=ranking).images, sample_set(generator, ipc=5, seed=2).images)


@pytest.mark.parametrize("by", ["trajectory", "moments"])
def test_refined_sets_are_nested_and_reproducible(by, generator, digits_experts, features, digits):
    """Also where fewer images are asked for, after another policy, and beyond the last block, where images are as they were."""
    refinement = RefineConfig(by=by, blocks=(1, 3), steps=2, **OPTIONS[by])
    config = PolicyConfig(steps=("matched", "refined"), candidates=8)
    policy = Policy(config, data=digits, features=features, refinement=refinement, experts=str(digits_experts))
    full = policy.rank(generator, seed=3)
    large = sample_set(generator, ipc=5, seed=3, ranking=full)
    for ipc in (1, 2, 5):
        small = sample_set(generator, ipc=ipc, seed=3, ranking=policy.rank(generator, seed=3, ipc=ipc))
        assert torch.equal(small.images, large.images[: 10 * ipc])
    first = policy.rank(generator, seed=3, ipc=1)
    further = policy.rank(generator, seed=3, ipc=2, earlier=first)
    assert torch.equal(further.latents, full.latents)
    assert further.about["policy_seconds"] > first.about["policy_seconds"]
    with pytest.raises(InputError, match="the earlier ranking is of another generator, seed or policy"):
        policy.rank(generator, seed=4, ipc=2, earlier=first)
    with pytest.raises(InputError, match="ipc is 0: expected 1 or more"):
        policy.rank(generator, seed=3, ipc=0)
    otherwise = dataclasses.replace(refinement, lr=0.2)
    other = Policy(config, data=digits, features=features, refinement=otherwise, experts=str(digits_experts))
    with pytest.raises(InputError, match="the earlier ranking is of another generator, seed or policy"):
        other.rank(generator, seed=3, ipc=2, earlier=first)
    unrefined = Policy(PolicyConfig(steps=("matched",), candidates=8), data=digits, features=features).rank(generator, seed=3)
    before = sample_set(generator, ipc=5, seed=3, ranking=unrefined)
    same = (large.images == before.images).flatten(1).all(1)
    assert same.tolist() == [False] * 30 + [True] * 20
    halves = [sample_set(generator, ipc=5, seed=3, ranking=full, rank=rank, world=2) for rank in (0, 1)]
    assert all(torch.equal(half.images, large.images[rank::2]) for rank, half in enumerate(halves))
    assert large.info["policy"] == "matched+refined"
    assert large.info["refinement"]["by"] == by


@pytest.mark.parametrize("by", ["trajectory", "moments", None])
def test_an_anchored_generator_makes_the_policys_images_and_goes_on(by, generator, digits_experts, features, digits):
    known = copy.deepcopy(generator)
    known.info = {"about": {"seconds": 60.0, "title": "t"}, "data": None, "protocol": None}
    refinement = RefineConfig(by=by or "moments", blocks=(1, 3), steps=2, **OPTIONS[by or "moments"])
    config = PolicyConfig(steps=("matched", "refined") if by else ("matched",), candidates=8)
    policy = Policy(config, data=digits, features=features, refinement=refinement, experts=str(digits_experts))
    ranking = policy.rank(known, seed=3)
    result = dim.anchored(known, ranking, ipc=3, spread=0.5, seed=3)
    assert known.anchors is None
    chosen = sample_set(known, ipc=3, seed=3, ranking=ranking, latents=True)
    for seed in (0, 3):
        drawn = sample_set(result, ipc=7, seed=seed)
        assert torch.equal(drawn.images[:30], chosen.images)
        apart = (drawn.images[30:60] != chosen.images).flatten(1).any(1)
        assert apart.all()
    assert result.info["about"]["policy"] == ranking.about["policy"]
    assert result.info["about"]["title"] == "t"
    assert torch.equal(sample_set(dim.anchored(generator, ranking, ipc=3, spread=0.5, seed=3), ipc=3).images, chosen.images)
    chosen_in = ranking.about["policy_seconds"]
    assert production_seconds(result) == pytest.approx(60.0 + chosen_in + features.seconds)
    assert production_seconds(drawn) == pytest.approx(60.0 + chosen_in + features.seconds + drawn.info["seconds"])
    stream = dim.GeneratedLoader(result, batch_size=10, steps=6, shuffle=False)
    images = torch.cat([images for images, _ in stream])
    assert torch.equal(to_uint8(images[:30]), chosen.images)
    assert len(images.flatten(1).unique(dim=0)) == 60
    twice = dim.anchored(result, ranking, ipc=2, spread=0.0, seed=3)
    assert production_seconds(twice) == pytest.approx(60.0 + 2 * chosen_in + features.seconds)
    plainly = dim.anchored(result, Policy(PolicyConfig(candidates=8)).rank(result), ipc=2, spread=0.0)
    assert plainly.info["about"]["policy"] == "plain"
    assert not {"refinement", "refinement_experts"} & plainly.info["about"].keys()
    with pytest.raises(InputError, match="ipc is 9 and the policy leaves 8 candidates"):
        dim.anchored(known, ranking, ipc=9, spread=0.5, seed=3)


def test_a_ranking_refined_for_few_images_is_refused_for_more(generator, digits_experts, digits):
    refinement = RefineConfig(by="moments", blocks=(1, 3, 4), steps=1, real=2)
    config = PolicyConfig(steps=("refined",), candidates=8)
    policy = Policy(config, data=digits, refinement=refinement, experts=str(digits_experts))
    ranking = policy.rank(generator, ipc=2)
    assert len(sample_set(generator, ipc=3, ranking=ranking)) == 30
    with pytest.raises(InputError, match="ipc is 4 and 3 images of a class were refined: rank again with that ipc"):
        sample_set(generator, ipc=4, ranking=ranking)
    assert len(sample_set(generator, ipc=8, ranking=policy.rank(generator))) == 80
    with pytest.raises(InputError, match="ipc is 9 and the policy leaves 8 candidates"):
        policy.rank(generator, ipc=9)


def test_refusals(generator, teacher, digits, tmp_path):
    with pytest.raises(InputError, match="holds no experts"):
        Policy(PolicyConfig(steps=("refined",)), data=digits, experts=str(tmp_path))
    with pytest.raises(InputError, match=r"policy 'refined' needs experts: give --teacher\.folder"):
        Policy(PolicyConfig(steps=("refined",)), teacher=teacher, data=digits)
    with pytest.raises(InputError, match=r"policy\.steps is \('refined', 'graded'\): expected 'refined' as the last"):
        PolicyConfig(steps=("refined", "graded"))
    with pytest.raises(InputError, match=r"policy 'filtered' needs teacher: give a teacher \(--teacher\.folder\)"):
        Policy(PolicyConfig(steps=("filtered",)))
    with pytest.raises(InputError, match="policy 'matched' needs features"):
        Policy(PolicyConfig(steps=("matched",)), teacher=teacher, data=digits)
    ranking = Policy(PolicyConfig(steps=("filtered",), candidates=10, keep=0.5), teacher=teacher).rank(generator)
    with pytest.raises(InputError, match=r"ipc is 6 and the policy leaves 5 candidates.*--policy\.candidates"):
        sample_set(generator, ipc=6, ranking=ranking)
    for settings, message in (
        ({"keep": 0.0, "steps": ("filtered",)}, r"policy\.keep is 0\.0"),
        ({"candidates": 0}, r"policy\.candidates is 0"),
        ({"steps": ("graded", "graded")}, r"policy\.steps is .*each policy once"),
    ):
        with pytest.raises(InputError, match=message):
            PolicyConfig(**settings)
    assert dim.sample_set(generator, counts={3: 2}, ranking=ranking).labels.tolist() == [3, 3]
