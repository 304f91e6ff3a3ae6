"""The audit as a whole: which rows there are, that a known leak is found and that what cannot leak is chance, and how results are
kept and shown."""

import dataclasses
import json

import pytest
import torch
from rich.console import Console
from torch import nn

from dim.audit.audit import Audit
from dim.audit.candidates import candidates_of
from dim.cards import set_card
from dim.config import DataConfig, ProtocolConfig, to_dict
from dim.data.real import load_data
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.features.spaces import Features
from dim.io import write_document
from dim.score.privacy import AuditResult, CopyRow, Interval, found_audit, read_audit
from dim.score.report import print_audit
from dim.spec import to_uint8

HALF = DataConfig(fraction=0.5, val_fraction=0.0, canaries=100)
# Long enough on these few images that some are remembered.
PROTOCOL = ProtocolConfig(students=("convnet:width=8,depth=2",), epochs=1, full_epochs=12, lr=0.1, augment="", batch_size=32)
PIXELS = Features(network=nn.Flatten(), name="flat", digest="0" * 32, device=torch.device("cpu"))


def set_of(config: DataConfig, part: str = "train", ipc: int = 30) -> SyntheticSet:
    """Real images as a set that says what it was made from."""
    data = load_data(config)
    split = getattr(data, part)
    chosen = torch.cat([(split.labels == label).nonzero()[:ipc, 0] for label in range(10)])
    images, labels = split.batch(chosen)
    return SyntheticSet(to_uint8(images), labels, data.spec, info={"data": to_dict(config), "method": "random"})


@pytest.fixture(scope="module")
def candidates():
    subject = set_of(HALF)
    return candidates_of(subject.info, subject.spec.fingerprint, None, "cpu")


@pytest.fixture(scope="module")
def audit(candidates, tmp_path_factory):
    """A factory of audits that share a cache."""
    folder = tmp_path_factory.mktemp("answers")

    def make(**options) -> Audit:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dim.audit.audit.load_features", lambda name, data: PIXELS)
            made = Audit(candidates, PROTOCOL, **{"halves": 4, "cache": folder, **options})
            assert [space.name for space in made.spaces] == ["pixels", "features (flat)"]
        return made

    return make


@pytest.fixture(scope="module")
def leaking(audit) -> AuditResult:
    """Of a set that is a part of the members."""
    return audit().run(set_of(HALF), "copies")


def rows_of(rows, attack: str, images: str = "usual") -> list:
    return [row for row in rows if row.attack.startswith(attack) and row.images == images]


def test_every_attack_has_a_row_for_usual_images_and_one_for_canaries(leaking, candidates):
    found = [(row.subject, row.attack, row.references) for row in leaking.rows if row.images == "usual"]
    student = "convnet:width=8,depth=2 on the set"
    assert found == [
        ("the set itself", "nearest in pixels", ""),
        ("the set itself", "nearest in features (flat)", ""),
        (student, "confidence", ""),
        (student, "likelihood ratio", "4 models of real halves, offline"),
    ]
    assert [row.images for row in leaking.rows] == ["usual", "canaries"] * 4
    canary, member = candidates.canary, candidates.member
    counts = [int((mask & who).sum()) for mask in (~canary, canary) for who in (member, ~member)]
    assert [leaking.rows[0].members, leaking.rows[0].others, leaking.rows[1].members, leaking.rows[1].others] == counts


def test_copied_members_are_found_in_the_set_itself(leaking):
    """300 of 683 members lie in it, at distance 0: they rank before all others."""
    (row,) = rows_of(leaking.rows, "nearest in pixels")
    assert row.verdict == "leak"
    assert row.rates["0.01"].value > 0.4
    assert {copy.verdict for copy in leaking.copies} == {"leak"}


def test_real_members_leak_and_a_half_without_regard_to_them_does_not(leaking):
    members, half = (
        [row for row in leaking.controls if row.subject.endswith(where)] for where in ("real members", "random real half")
    )
    assert {row.attack for row in members} == {"confidence", "likelihood ratio"}
    (known,) = rows_of(members, "likelihood ratio", "canaries")  # wrong labels can only be remembered
    assert known.verdict == "leak"
    assert known.area.value > 0.75
    assert {row.verdict for row in half} == {"chance"}
    assert all(row.references == "2 models of real halves, online" for row in half)


def test_a_set_made_without_the_members_is_chance(audit):
    """Of images of the test part, where there are neither members nor others."""
    found = audit(halves=0).run(set_of(HALF, "test"), "control")
    assert {row.verdict for row in (*found.rows, *found.copies)} == {"chance"}
    assert found.controls == ()
    assert found.findings() == ["None of 6 attacks tells members from others better than chance."]


def test_four_references_of_the_same_kind_make_the_ratio_online(audit, candidates):
    references = {}
    for seed in range(1, 5):
        other = set_of(dataclasses.replace(HALF, fraction_seed=seed))
        references[f"set {seed}"] = other, candidates.members_of(other.info, other.spec.fingerprint, f"set {seed}")
    found = audit(halves=0, references=references).run(set_of(HALF), "copies")
    calibrated = [row for row in found.rows if row.references]
    assert {row.references for row in calibrated} == {"4 of the same kind, online"}
    assert {row.attack for row in calibrated} == {"nearest in pixels", "nearest in features (flat)", "likelihood ratio"}
    few = audit(halves=0, references=dict(list(references.items())[:2])).run(set_of(HALF), "copies")
    assert {row.references for row in few.rows if row.references} == {"2 of the same kind, offline"}


def test_answers_are_found_again(audit, leaking, monkeypatch):
    monkeypatch.setattr("dim.audit.asking.Asker._train", lambda *given: pytest.fail("trained again"))
    again = audit().run(set_of(HALF), "copies")
    assert (again.rows, again.controls) == (leaking.rows, leaking.controls)


def test_a_set_is_no_reference_for_a_stream(audit, candidates, digits_gan):
    subject = set_of(HALF)
    references = {"a set": (subject, candidates.members_of(subject.info, subject.spec.fingerprint, "a set"))}
    with pytest.raises(InputError, match="reference a set is a set, which has no stream"):
        audit(halves=0, references=references, tracks=("stream",)).run(digits_gan, "run")


def test_a_generator_is_attacked_on_both_tracks(audit, digits_gan):
    found = audit(halves=0, tracks=("stream", "fixed"), ipc=1, samples=40, seeds=2).run(digits_gan, "run")
    where = [row.subject for row in rows_of(found.rows, "confidence")]
    assert where == [f"convnet:width=8,depth=2 on the {track}" for track in ("stream", "set")]
    assert found.settings["images"] == 40
    assert {copy.images for copy in found.copies} == {40}


@pytest.mark.parametrize(
    ("options", "said"),
    [({"halves": 3}, "halves is 3"), ({"seeds": 0}, "seeds is 0"), ({"samples": 9}, "samples is 9: expected at least 10")],
)
def test_numbers_out_of_range_are_refused(candidates, options, said):
    with pytest.raises(InputError, match=said):
        Audit(candidates, PROTOCOL, **options)


def test_a_set_of_other_data_is_refused(audit, spec):
    other = SyntheticSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4), spec())
    with pytest.raises(InputError, match="expected 'digits'"):
        audit().run(other, "other")


def test_a_student_that_diverges_is_one_line(candidates, tmp_path, monkeypatch):
    monkeypatch.setattr("dim.audit.audit.load_features", lambda name, data: PIXELS)
    wild = dataclasses.replace(PROTOCOL, lr=1e30, epochs=5)
    with pytest.raises(InputError, match=r"diverged.*--protocol.lr"):
        Audit(candidates, wild, halves=0, cache=tmp_path).run(set_of(HALF), "wild")


# --- how it is kept and shown --------------------------------------------------------------------------------------------------


def interval(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


@pytest.mark.parametrize(
    ("area", "rate", "verdict"),
    [
        (interval(0.52, 0.51, 0.53), interval(0.01, 0.005, 0.02), "leak"),
        (interval(0.5, 0.49, 0.51), interval(0.03, 0.011, 0.05), "leak"),
        (interval(0.5, 0.49, 0.51), interval(0.02, 0.009, 0.03), "chance"),
        (interval(0.47, 0.45, 0.49), interval(0.0, 0.0, 0.01), "below chance"),
    ],
)
def test_a_verdict_is_that_of_the_intervals(leaking, area, rate, verdict):
    rates = {"0.001": interval(0.0, 0.0, 0.002), "0.01": rate}
    assert dataclasses.replace(leaking.rows[0], area=area, rates=rates).verdict == verdict


def test_a_result_is_read_as_it_was_written(leaking, tmp_path):
    write_document(tmp_path / "audit.json", leaking.to_dict())
    assert read_audit(tmp_path) == read_audit(tmp_path / "audit.json") == found_audit(tmp_path) == leaking
    assert json.loads((tmp_path / "audit.json").read_text())["rows"][0]["verdict"] == "leak"


def test_files_that_hold_no_audit_are_refused(tmp_path):
    write_document(tmp_path / "other.json", {"kind": "scores"})
    with pytest.raises(InputError, match="holds no audit"):
        read_audit(tmp_path / "other.json")
    write_document(tmp_path / "audit.json", {"kind": "audit", "rows": [{}], "controls": [], "copies": []})
    with pytest.raises(InputError, match="is damaged"):
        read_audit(tmp_path)
    assert found_audit(tmp_path) is None


def test_the_tables_say_everything(leaking):
    console = Console(width=400, record=True)
    print_audit(leaking, console)
    text = console.export_text()
    for words in ("digits: what copies reveals of", "nearest in pixels", "4 models of real halves, offline", "canaries", "leak"):
        assert words in text
    assert "Controls: students on real images" in text
    assert "of the nearest real images are members in pixels" in text


def test_a_card_shows_the_audit_of_its_set_alone(leaking):
    card = set_card(set_of(HALF), "safetensors", audit=leaking)
    assert "What it reveals of the images that it was made from" in card
    assert card.count("| the set itself |") == 4
    with pytest.raises(InputError, match="the audit is of 'copies' with other content"):
        set_card(set_of(HALF, ipc=2), "safetensors", audit=leaking)


def test_a_copy_row_below_what_is_expected_says_so():
    row = CopyRow(space="pixels", images=9, neighbours=9, members=interval(0.1, 0.0, 0.4), expected=0.5, nearer=0.0)
    assert row.verdict == "below chance"
