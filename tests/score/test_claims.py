"""Claims: what carries them, where they survive, and which scores can be claimed."""

import dataclasses
import shutil

import pytest
import torch

import dim
from dim.coding import container
from dim.coding.pictures import Codec
from dim.coding.sets import code_set
from dim.config import DataConfig, GeneratorConfig, ProtocolConfig, to_dict
from dim.data.synthetic import SyntheticSet, load_set
from dim.errors import InputError
from dim.hub import load_generator
from dim.io import read_document, write_document
from dim.nets.generator_file import save_generator_file
from dim.sampler import anchored, sample_set
from dim.score.claims import CLAIMS, Claim, claims_of, keep_claims, require_claimable, subject_digest
from dim.score.evaluate import Evaluator
from dim.spec import to_uint8

PROTOCOL = ProtocolConfig(
    students=("convnet:width=4,depth=2",), epochs=2, batch_size=10, augment="", precision="fp32", compile="off"
)


@pytest.fixture
def subject(digits) -> SyntheticSet:
    """The first image of every class."""
    chosen = torch.stack([(digits.train.labels == label).nonzero()[0, 0] for label in range(10)])
    info = {"data": to_dict(DataConfig()), "protocol": to_dict(PROTOCOL)}
    return SyntheticSet(to_uint8(digits.train.batch(chosen)[0]), torch.arange(10), digits.spec, info=info)


@pytest.fixture
def evaluator(digits) -> Evaluator:
    return Evaluator(digits, PROTOCOL, seeds=2)


@pytest.fixture
def generator(digits_gan, tmp_path):
    about = {"step": 1, "total_steps": 1, "title": "untrained", "seconds": 1.0}
    config = GeneratorConfig(name="gan", width=4, latent_dim=6)
    path = tmp_path / "made" / "generator.safetensors"
    save_generator_file(path, digits_gan, config=config, data=DataConfig(), protocol=PROTOCOL, about=about)
    return load_generator(path.parent)


def test_a_claim_says_all_that_a_verifier_needs(subject, evaluator, digits):
    (score,) = evaluator.fixed(subject, "/home/somebody/sets/ten")
    (made,) = dim.claim(subject, [score, *evaluator.random_real(1)])
    assert made == claims_of(subject)[0]
    assert made.is_of(subject)
    row = made.score
    assert (row.name, row.track, row.ipc, row.split) == ("ten", "fixed", 1, "test")
    assert (row.accuracies, row.seeds) == (score.accuracies, (0, 1))
    assert (made.stated.mean, made.stated.std, made.stated.n) == (score.mean, score.std, 2)
    assert row.data["scored"] == digits.digest("test")
    assert row.data["fingerprint"] == digits.spec.fingerprint
    assert row.protocol["epochs"] == 2
    assert "torch" in row.versions
    assert row.hardware["device"] == "cpu"


def test_a_new_claim_takes_the_place_of_its_kind_only(subject, evaluator, digits):
    dim.claim(subject, evaluator.fixed(subject))
    dim.claim(subject, Evaluator(digits, PROTOCOL, seeds=3).fixed(subject))
    assert [each.stated.n for each in claims_of(subject)] == [3]
    longer = dataclasses.replace(PROTOCOL, epochs=3)
    dim.claim(subject, Evaluator(digits, longer, seeds=2).fixed(subject))
    assert [each.stated.n for each in claims_of(subject)] == [3, 2]


@pytest.mark.parametrize("format", ["npz", "safetensors", "imagefolder"])
def test_claims_survive_saving_copying_and_exporting(subject, evaluator, tmp_path, format):
    dim.claim(subject, evaluator.fixed(subject))
    subject.save(tmp_path / "set", format)
    shutil.copytree(tmp_path / "set", tmp_path / "copy")
    again = load_set(tmp_path / "copy")
    dim.save_pretrained(again, tmp_path / "shared", format="npz")
    for path in ("copy", "shared"):
        (found,) = claims_of(load_set(tmp_path / path))
        assert found.is_of(load_set(tmp_path / path))
        assert found == claims_of(subject)[0]
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "    dim verify hub:OWNER/NAME" in card
    assert "| this set | fixed | 1 | convnet" in card


def test_a_generator_carries_claims_in_its_file(generator, evaluator, tmp_path):
    rows = [*evaluator.stream(generator, 1), *evaluator.fixed(sample_set(generator, ipc=1))]
    made = dim.claim(generator, rows)
    assert [each.score.track for each in made] == ["stream", "fixed"]
    keep_claims(str(tmp_path / "made"), generator)
    exported = dim.save_pretrained(load_generator(tmp_path / "made"), tmp_path / "shared")
    shutil.copy(exported / "generator.safetensors", tmp_path / "alone.safetensors")
    for path in ("made", "shared", "alone.safetensors"):
        again = load_generator(tmp_path / path)
        assert claims_of(again) == made
        assert all(each.is_of(again) for each in claims_of(again))
        assert subject_digest(again) == subject_digest(generator)
    card = (exported / "README.md").read_text()
    assert "    dim verify hub:OWNER/NAME" in card
    assert "| this generator | stream | 1 | convnet" in card
    assert "claims" not in sample_set(again, ipc=1).info


def test_what_is_derived_carries_no_claims(generator, subject, evaluator, digits, digits_experts):
    from dim.config import PolicyConfig
    from dim.emit.policy import Policy
    from dim.teacher import load_teacher, with_soft_labels

    dim.claim(subject, evaluator.fixed(subject))
    assert claims_of(with_soft_labels(subject, load_teacher(digits_experts, digits))) == []
    dim.claim(generator, evaluator.stream(generator, 1))
    ranking = Policy(PolicyConfig(steps=())).rank(generator, ipc=1)
    assert claims_of(anchored(generator, ranking, ipc=1, spread=0.1)) == []
    assert claims_of(generator) != []


def test_latents_are_what_a_claim_of_latents_is_of(generator, evaluator, tmp_path):
    drawn = sample_set(generator, ipc=1, latents=True)
    dim.claim(drawn, evaluator.fixed(drawn))
    (made,) = claims_of(drawn)
    drawn.images[0, 0, 0, 0] ^= 1  # as another machine may round
    assert made.is_of(drawn)
    drawn.latents[0, 0] += 1
    assert not made.is_of(drawn)


def test_claims_are_written_beside_what_was_measured(subject, evaluator, tmp_path, digits):
    subject.save(tmp_path / "set", "npz")
    loaded = load_set(tmp_path / "set")
    dim.claim(loaded, evaluator.fixed(loaded))
    keep_claims(str(tmp_path / "set"), loaded)
    assert claims_of(load_set(tmp_path / "set")) == claims_of(loaded)
    other = SyntheticSet(255 - subject.images, subject.labels, digits.spec, info=subject.info)
    other.save(tmp_path / "set", "npz", overwrite=True)
    with pytest.raises(InputError, match="other images or weights than those that were measured"):
        keep_claims(str(tmp_path / "set"), loaded)
    with pytest.raises(InputError, match="is on the Hub"):
        require_claimable("hub:owner/name")
    container.write(tmp_path / "set.dimz", code_set(subject.content(), subject.spec, subject.info, Codec("values", 8)))
    with pytest.raises(InputError, match="is a coded file, which holds no claims"):
        require_claimable(str(tmp_path / "set.dimz"))


def test_scores_that_cannot_be_claimed_are_refused(subject, evaluator, generator, digits_gan):
    rows = evaluator.random_real(1)
    with pytest.raises(InputError, match="none of 1 scores is of this set or generator"):
        dim.claim(subject, rows)
    (score,) = evaluator.fixed(subject)
    diverged = dataclasses.replace(score, accuracies=(None, 50.0), diverged=(3, None))
    with pytest.raises(InputError, match="diverged: expected a score with a mean"):
        dim.claim(subject, [diverged])
    nameless = dataclasses.replace(score, data={"name": "digits"})
    with pytest.raises(InputError, match="does not say of which images"):
        dim.claim(subject, [nameless])
    soft = [dataclasses.replace(row, labels="soft (2 experts)") for row in evaluator.stream(generator, 1)]
    with pytest.raises(InputError, match="the teacher is no part of the generator"):
        dim.claim(generator, soft)
    with pytest.raises(InputError, match=r"load it with dim\.load_generator first"):
        dim.claim(digits_gan, rows)
    assert CLAIMS not in subject.info


def test_damaged_claims_are_refused_in_one_line(subject, evaluator, tmp_path):
    dim.claim(subject, evaluator.fixed(subject))
    subject.save(tmp_path / "set", "npz")
    path = tmp_path / "set" / "set.json"
    written = read_document(path)
    path.write_text(path.read_text().replace('"epochs": 2', '"epochs": 9'))
    with pytest.raises(InputError, match="does not match its checksum"):
        load_set(tmp_path / "set")
    for change in ({"subject": 3}, {"score": {}}, {"sampler": None}):
        values = [{**written["info"][CLAIMS][0], **change}]
        write_document(path, {**written, "info": {**written["info"], CLAIMS: values}})
        with pytest.raises(InputError, match="what it claims is no score"):
            claims_of(load_set(tmp_path / "set"), "sets/ten")
    assert Claim.from_dict(written["info"][CLAIMS][0]) == claims_of(subject)[0]
