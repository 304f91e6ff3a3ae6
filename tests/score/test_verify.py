"""Verification: fresh students for true claims, and what refuses false ones, with and without training."""

import copy
import dataclasses
import json

import pytest
import torch

import dim
from dim.config import DataConfig, ProtocolConfig, to_dict
from dim.data.real import RealData, load_data, per_class_indices
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.sampler import identity, sample_set
from dim.score.agreement import Stated
from dim.score.claims import Claim, claims_of, subject_digest
from dim.score.evaluate import Evaluator
from dim.score.reproduce import published_protocols, reproduce
from dim.score.verify import Verdict, examine, fresh_seeds, verify
from dim.spec import to_uint8

# Half a second for five students, of which each learns most of the digits.
PROTOCOL = ProtocolConfig(
    students=("convnet:width=8,depth=2",), epochs=30, batch_size=32, lr=0.05, augment="", precision="fp32", compile="off"
)


@pytest.fixture(scope="module")
def subject(digits) -> SyntheticSet:
    """Ten real images per class, with a claim of four students."""
    chosen = per_class_indices(digits.train.labels, 10, 10, seed=0)
    images, labels = digits.train.batch(chosen)
    made = SyntheticSet(
        to_uint8(images), labels, digits.spec, info={"data": to_dict(DataConfig()), "protocol": to_dict(PROTOCOL)}
    )
    dim.claim(made, Evaluator(digits, PROTOCOL, seeds=4).fixed(made))
    return made


@pytest.fixture
def true(subject) -> Claim:
    return claims_of(subject)[0]


def changed(claim: Claim, **changes) -> Claim:
    """The claim with another row."""
    return dataclasses.replace(claim, score=dataclasses.replace(claim.score, **changes))


def judged(subject, claim, digits, **settings) -> Verdict:
    (found,) = verify(subject, claims=[claim], data=digits, **settings)
    return found


# --- with students -----------------------------------------------------------------------------------------------------------


def test_a_true_claim_is_accepted_with_seeds_that_it_did_not_use(subject, true, digits):
    found = judged(subject, true, digits, seeds=3)
    assert found.accepted
    assert (found.reason, found.planned) == ("", 3)
    assert len(found.accuracies) in (3, 6), "as many again if they differ much"
    assert not set(found.seeds) & set(true.score.seeds)
    low, high = found.interval
    assert low < 0 < high
    assert found.difference == pytest.approx(sum(found.accuracies) / len(found.accuracies) - true.stated.mean)
    # The students are those of an evaluation with these seeds.
    (row,) = Evaluator(digits, PROTOCOL, seeds=found.seeds).fixed(subject)
    assert row.accuracies == found.accuracies
    assert judged(subject, true, digits, seeds=3) == dataclasses.replace(found, seconds=pytest.approx(found.seconds, abs=60))
    assert judged(subject, true, digits, seeds=1, seed=1).seeds != found.seeds[:1]
    written = json.dumps(found.to_dict())
    assert json.dumps(Verdict.from_dict(json.loads(written)).to_dict()) == written


@pytest.mark.parametrize(("accuracies", "way"), [((99.8, 99.9, 99.9, 99.8), "lower"), ((20.1, 20.0, 20.3, 20.2), "higher")])
def test_scores_that_are_too_high_or_too_low_are_refused_early(subject, true, digits, accuracies, way):
    found = judged(subject, changed(true, accuracies=accuracies), digits)
    assert not found.accepted
    assert f"{way} than claimed, after 1 of 5 students" in found.reason
    assert len(found.accuracies) == 1


def test_labels_that_were_shuffled_are_refused_by_students_though_the_digest_fits(subject, true, digits):
    labels = subject.labels.clone()
    labels[labels == 1] = torch.arange(10)[torch.arange(10) != 1].repeat(2)[:10]
    other = SyntheticSet(subject.images, labels, digits.spec, info=subject.info)
    assert "other images or labels" in judged(other, true, digits).reason
    made = {**true.score.made, "digest": identity(other)}
    forged = dataclasses.replace(changed(true, made=made, ipc=other.ipc), subject=subject_digest(other))
    found = judged(other, forged, digits)
    assert not found.accepted
    assert "lower than claimed" in found.reason


def test_a_claim_of_one_student_needs_a_larger_difference(subject, true, digits):
    one = changed(true, accuracies=true.score.accuracies[:1], seeds=(0,))
    wide, narrow = (judged(subject, each, digits, seeds=3).interval for each in (one, true))
    assert wide[1] - wide[0] > narrow[1] - narrow[0]
    assert judged(subject, one, digits, seeds=1).accepted  # one against one


def test_streams_and_sets_of_a_generator_are_verified(digits_gan, digits):
    short = dataclasses.replace(PROTOCOL, epochs=5)
    generator = copy.deepcopy(digits_gan)
    generator.info = {}
    evaluator = Evaluator(digits, short, seeds=2)
    dim.claim(generator, [*evaluator.stream(generator, 1), *evaluator.fixed(sample_set(generator, ipc=2))])
    found = verify(generator, data=digits, seeds=2)
    assert [(each.track, each.ipc) for each in found] == [("stream", 1), ("fixed", 2)]
    for one in found:  # the students of an untrained generator may be refused by chance, as they are not normal
        again = Evaluator(digits, short, seeds=one.seeds)
        rows = again.stream(generator, 1) if one.track == "stream" else again.fixed(sample_set(generator, ipc=2))
        assert rows[0].accuracies == one.accuracies != ()
    with torch.no_grad():
        next(generator.parameters()).add_(1)
    assert {each.reason for each in verify(generator, data=digits, seeds=2)} == {"the claim is of other weights"}


# --- without students --------------------------------------------------------------------------------------------------------


@pytest.fixture
def untrained(monkeypatch):
    """Nothing may be trained."""
    monkeypatch.setattr(Evaluator, "fixed", lambda self, subject: pytest.fail("a student was trained"))


def test_other_images_and_other_data_are_refused_at_once(subject, true, digits, untrained):
    inverted = SyntheticSet(255 - subject.images, subject.labels, digits.spec, info=subject.info)
    step = SyntheticSet(subject.images, subject.labels, digits.spec, info={**subject.info, "step_size": 0.02})
    for other in (inverted, step):
        found = judged(other, true, digits)
        assert (found.accepted, found.reason, found.accuracies) == (False, "the claim is of other images or labels", ())
        assert found.difference is found.interval is None
    part = load_data(DataConfig(split_seed=1))
    assert "other data: its training part has the digest" in judged(subject, true, part).reason
    swapped = RealData(digits.spec, digits.train, digits.test, digits.val)
    assert "its test part has the digest" in judged(subject, true, swapped).reason
    assert "do not have" in judged(subject, changed(true, split="val"), load_data(DataConfig(val_fraction=0.0))).reason
    assert "stream track" in judged(subject, changed(true, track="stream"), digits).reason


def test_nothing_to_verify_is_no_verdict(subject, digits):
    bare = SyntheticSet(subject.images, subject.labels, digits.spec, info={})
    with pytest.raises(InputError, match="sets/ten claims nothing: measure it with 'dim evaluate --claim'"):
        verify(bare, data=digits, name="sets/ten")
    with pytest.raises(InputError, match="seeds is 0"):
        verify(subject, data=digits, seeds=0)


def test_a_claim_that_contradicts_its_protocol_is_refused(subject, true, digits):
    found = judged(subject, changed(true, steps=7), digits)
    assert (found.accepted, found.accuracies) == (False, ())
    assert found.reason == "the claim contradicts its own protocol: steps is 7 there and 120 by it"
    protocol = {**true.score.protocol, "lr": 1e9}
    assert "diverged at step" in judged(subject, changed(true, protocol=protocol), digits).reason


def test_what_this_machine_cannot_do_is_said(subject, true, digits, monkeypatch):
    monkeypatch.setattr("dim.score.verify.compiler_found", lambda device: False)
    monkeypatch.setattr("dim.score.verify.native_bfloat16", lambda device: False)
    protocol = {**true.score.protocol, "compile": "on", "precision": "bf16"}
    claim = changed(true, protocol=protocol, hardware={"device": "cuda"})
    found = judged(subject, claim, digits, seeds=1)
    assert found.accepted
    said = ["claimed on cuda, verified on cpu", "there is no compiler here", "bfloat16 is emulated here"]
    assert all(any(text in note for note in found.notes) for text in said)
    assert (found.protocol["compile"], found.protocol["precision"]) == ("off", "bf16")


def test_seeds_are_fresh_and_differ_by_seed():
    first = fresh_seeds(3, (), 0)
    assert fresh_seeds(3, first[:1], 0) == [*first[1:], fresh_seeds(4, (), 0)[3]]
    assert not set(first) & set(fresh_seeds(3, (), 1))


# --- claims of others --------------------------------------------------------------------------------------------------------


def test_published_protocols_are_there_once_each(subject):
    base = ProtocolConfig(batch_size=64)
    assert len(published_protocols(subject, base)) == 2 * 2 * 2  # whitening, DSA or none, 100 or 64 images
    assert len(published_protocols(subject, dataclasses.replace(base, augment="crop", batch_size=256))) == 2 * 3
    learned = SyntheticSet(subject.images, subject.labels, subject.spec, info={"step_size": 0.03})
    found = published_protocols(learned, base)
    assert len(found) == 16
    assert next(iter(found)) == "natural images, DSA, batches of 100, step size 0.03 (learned)"
    assert {each.learned_lr for each in found.values()} == {True, False}


def test_the_protocol_that_reproduces_a_claim_is_found_without_the_test_part(subject, digits, monkeypatch):
    """The set is scored with another step size than it carries, unless that one is tried: which one it was is found."""
    slow = SyntheticSet(subject.images, subject.labels, digits.spec, info={**subject.info, "step_size": 1e-5})
    base = dataclasses.replace(PROTOCOL, epochs=30, batch_size=256)
    hidden = dataclasses.replace(base, learned_lr=False)
    (row,) = Evaluator(digits, hidden, seeds=4).fixed(slow)
    scored = []
    fixed = Evaluator.fixed

    def spied(self, subject):
        scored.append((self.split, len(self.seeds)))
        return fixed(self, subject)

    monkeypatch.setattr(Evaluator, "fixed", spied)
    stated = Stated(mean=row.mean, std=row.std, n=4)
    attempts, verdict = reproduce(slow, stated, load_data(DataConfig(val_fraction=0.0)), base, seeds=2)
    assert scored == [("val", 1)] * len(attempts) + [("test", 1)] * len(verdict.accuracies)
    assert len(verdict.accuracies) in (2, 4)
    assert verdict.accepted
    assert verdict.protocol["learned_lr"] is False
    assert verdict.notes[0].startswith("nearest protocol: ")
    assert "step size 0.05" in verdict.notes[0]


def test_students_that_all_diverge_are_told(subject, digits):
    with pytest.raises(InputError, match="students diverged: give the step size"):
        reproduce(subject, Stated(mean=50.0), digits, dataclasses.replace(PROTOCOL, lr=1e30, epochs=2))
    with pytest.raises(InputError, match="expected the one architecture"):
        reproduce(subject, Stated(mean=50.0), digits, dataclasses.replace(PROTOCOL, students=("convnet", "vgg11")))


@pytest.mark.parametrize(("spread", "count"), [(0.2, 3), (2.0, 6)])
def test_students_that_differ_much_are_followed_by_as_many(spread, count):
    values = iter([50 + spread, 50 - spread, 50 + spread, 50 - spread, 50 + spread, 50 - spread])
    found = examine(
        lambda seed: type("Row", (), {"mean": next(values), "diverged": ()}),
        Stated(mean=50.0, std=spread, n=5),
        [*range(6)],
        3,
    )
    assert (found["accepted"], len(found["accuracies"]), found["seeds"]) == (True, count, tuple(range(count)))


def test_an_examination_stops_at_the_first_look_that_refuses():
    trained = []

    def train(seed):
        trained.append(seed)
        return type("Row", (), {"mean": 90.0, "diverged": ()})

    found = examine(train, Stated(mean=50.0, std=1.0, n=5), [7, 8, 9], 3)
    assert (trained, found["seeds"], found["accepted"]) == ([7], (7,), False)
    assert "after 1 of 3 students" in found["reason"]
