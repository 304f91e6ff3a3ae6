"""`dim evaluate --claim` and `dim verify`: claims from one command to the other, tables, files, and exit statuses."""

import dataclasses

import pytest

import dim
from dim.commands.cli import main
from dim.commands.verifying import load_subject
from dim.config import DataConfig, ProtocolConfig, to_dict
from dim.data.real import per_class_indices
from dim.data.synthetic import SyntheticSet, load_set
from dim.errors import InputError
from dim.io import read_document
from dim.score.claims import CLAIMS, claims_of
from dim.spec import to_uint8

PROTOCOL = ProtocolConfig(students=("convnet:width=8,depth=2",), epochs=30, batch_size=32, lr=0.05, augment="")


@pytest.fixture
def ten(digits, tmp_path):
    """A set of ten real images per class, on disk."""
    images, labels = digits.train.batch(per_class_indices(digits.train.labels, 10, 10, seed=0))
    info = {"data": to_dict(DataConfig()), "protocol": to_dict(PROTOCOL)}
    SyntheticSet(to_uint8(images), labels, digits.spec, info=info).save(tmp_path / "ten", "npz")
    return tmp_path / "ten"


def said(capsys, *arguments, status=0) -> tuple[str, str]:
    capsys.readouterr()
    assert main([str(word) for word in arguments]) == status, capsys.readouterr().err
    output, errors = capsys.readouterr()
    if status:
        last = errors.splitlines()[-1]
        assert last.startswith("dim: ")
        assert len(last) <= 305
        return output, last
    return output, errors


def forged(folder, points: float) -> None:
    """Raise what the set in a folder claims."""
    subject = load_set(folder)
    (made,) = claims_of(subject)
    row = dataclasses.replace(made.score, accuracies=tuple(value + points for value in made.score.accuracies))
    subject.info[CLAIMS] = [dataclasses.replace(made, score=row).to_dict()]
    subject.save(folder, "npz", overwrite=True)


def test_a_set_claims_and_is_verified_after_an_export(ten, tmp_path, capsys):
    output, _ = said(capsys, "evaluate", ten, "--seeds", "3", "--controls", "random", "--claim")
    assert f"{ten} claims its scores  next: dim verify {ten}" in output
    said(capsys, "export", ten, "--to", "imagefolder", "--card", "--out", tmp_path / "shared")
    assert "dim verify hub:OWNER/NAME" in (tmp_path / "shared" / "README.md").read_text()
    output, _ = said(capsys, "verify", tmp_path / "shared", "--seeds", "2", "--json", tmp_path / "verdicts.json")
    assert "accepted" in output
    content = read_document(tmp_path / "verdicts.json")
    (row,) = content["verdicts"]
    assert (content["kind"], row["accepted"], row["planned"]) == ("verdicts", True, 2)
    assert len(row["seeds"]) in (2, 4)
    assert row["claimed"]["n"] == 3
    assert not list(tmp_path.glob(".*unfinished"))
    output, _ = said(capsys, "verify", tmp_path / "shared", "--quick")
    assert "(1)" in output
    assert "these students tell no difference below" in output


def test_a_false_claim_ends_with_status_three_and_one_line(ten, tmp_path, capsys):
    said(capsys, "evaluate", ten, "--seeds", "3", "--claim")
    forged(ten, -30.0)
    output, error = said(capsys, "verify", ten, "--seeds", "3", "--json", tmp_path / "verdicts.json", status=3)
    assert "refused" in output
    assert "1 of 1 claims refused, first that of" in error
    assert "points or more higher than claimed" in error
    assert read_document(tmp_path / "verdicts.json")["verdicts"][0]["accepted"] is False


def test_verdicts_that_a_killed_command_left_are_not_made_again(ten, tmp_path, capsys, monkeypatch):
    students = ("--students", "convnet:width=4,depth=2", "convnet:width=5,depth=2")
    said(capsys, "evaluate", ten, "--seeds", "2", "--claim", *students)
    real, calls = dim.verify, []

    def killed(subject, **settings):
        calls.append(settings["claims"][0].score.student)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(subject, **settings)

    monkeypatch.setattr("dim.score.verify.verify", killed)
    words = ["verify", ten, "--seeds", "2", "--json", tmp_path / "verdicts.json"]
    said(capsys, *words, status=130)
    assert main([str(word) for word in words]) in (0, 3)
    assert calls == ["convnet:width=4,depth=2", "convnet:width=5,depth=2", "convnet:width=5,depth=2"]
    assert len(read_document(tmp_path / "verdicts.json")["verdicts"]) == 2


def test_a_run_claims_its_streams(run, capsys):
    said(capsys, "evaluate", run, "--seeds", "2", "--ipc", "1", "--track", "stream", "fixed", "--claim")
    for name in (run, run / "generator.safetensors"):
        assert main(["verify", str(name), "--quick"]) in (0, 3)  # it is hardly trained, so its students are not normal
        output, _ = capsys.readouterr()
        assert [output.count(f" {track} ") for track in ("stream", "fixed")] == [1, 1]
        assert "the claim" not in output.replace("a claim", "")


def test_what_others_claim_of_a_set_is_tried_by_published_protocols(ten, tmp_path, capsys):
    words = ["verify", ten, "--seeds", "2", "--protocol.epochs", "10", "--claimed"]
    output, error = said(capsys, *words, "99.9", "--claimed-n", "3", "--claimed-sd", "0.1", status=3)
    assert "no augmentation, batches of 100" in output
    assert "nearest protocol: " in output
    assert "lower than claimed" in error
    nearest = next(line for line in output.splitlines() if "nearest protocol" in line)
    assert nearest.count("ZCA") + nearest.count("natural images") == 1
    said(capsys, *words, "99.9", "--claimed-n", "3", "--claimed-sd", "0.1", "--json", tmp_path / "verdicts.json", status=3)
    assert len(read_document(tmp_path / "verdicts.json")["attempts"]) == 2 * 2 * 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("verify", "nothing to verify: name sets"),
        ("verify TEN", "claims nothing: measure it with 'dim evaluate --claim'"),
        ("verify TEN --quick --seeds 3", "seeds is 3: expected no number of students beside --quick"),
        ("verify TEN --seeds 0", "seeds is 0: expected 1 to"),
        ("verify TEN --claimed-sd 1", "claimed_sd is 1.0: expected --claimed beside it"),
        ("verify TEN --claimed-n 3", "claimed_n is 3: expected --claimed beside it"),
        ("verify TEN --claimed 146", "claimed is 146: expected an accuracy in percent"),
        ("verify TEN --claimed 46 --claimed-sd 1", "expected --claimed-n of 2 or more beside it"),
        ("verify TEN TEN --claimed 46", "there are 2 subjects: expected one set"),
        ("verify TEN --protocol.epochs 3", "protocol.epochs is 3: expected its default, as a claim has its own protocol"),
        ("verify TEN --json TEN", "which is a folder"),
        ("evaluate TEN hub:owner/name --claim", "owner/name"),
    ],
)
def test_refusals_are_one_line(ten, capsys, monkeypatch, words, expected):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, error = said(capsys, *[str(ten) if word == "TEN" else word for word in words.split()], status=2)
    assert expected in error


def test_generators_with_a_teacher_cannot_claim(run, digits_experts, capsys):
    words = ["evaluate", run, "--ipc", "1", "--claim", "--teacher.folder", digits_experts]
    assert "the teacher is no part of the generator" in said(capsys, *words, status=2)[1]


def test_a_name_of_the_hub_is_a_set_or_else_a_generator(monkeypatch, digits_gan, ten):
    def no_set(name, device):
        raise InputError(f"no set {name}")

    def no_generator(name, device):
        raise InputError(f"no generator {name}")

    monkeypatch.setattr("dim.data.synthetic.load_set", lambda name, device: load_set(ten))
    assert len(load_subject("hub:owner/name", "cpu")) == 100
    monkeypatch.setattr("dim.data.synthetic.load_set", no_set)
    monkeypatch.setattr("dim.hub.load_generator", lambda name, device: digits_gan)
    assert load_subject("hub:owner/name", "cpu") is digits_gan
    monkeypatch.setattr("dim.hub.load_generator", no_generator)
    with pytest.raises(InputError, match="no generator hub:owner/name; as a set: no set hub:owner/name"):
        load_subject("hub:owner/name", "cpu")
