"""`dim sample --bytes` and `dim export --bytes`: one coded file that other commands take, and what is refused."""

import pytest
import torch

import dim
from dim.commands.cli import main
from dim.commands.verifying import load_subject
from dim.io import read_document

QUICK = ("--coding.student", "convnet:width=4,depth=2")


def said(capsys, *arguments, status=0) -> str:
    capsys.readouterr()
    assert main([str(word) for word in arguments]) == status
    output, errors = capsys.readouterr()
    if status:
        assert errors.count("\n") == 1
        assert len(errors) <= 307
    return errors if status else output


def test_the_best_of_some_bytes_is_written_and_evaluated(run, tmp_path, capsys):
    words = ["sample", run, "--bytes", "4k", "--ipc", "8", *QUICK, "--coding.calibration-steps", "4", "-q"]
    output = said(capsys, *words, "--out", tmp_path / "a.dimz", "--json", tmp_path / "a.json")
    table = read_document(tmp_path / "a.json")
    assert (table["bytes"], table["split"], table["student"]) == (4000, "val", QUICK[1])
    scored = [row for row in table["candidates"] if row["accuracy"] is not None]
    best = max(scored, key=lambda row: row["accuracy"])
    assert table["chosen"] in [row["what"] for row in scored if row["accuracy"] == best["accuracy"]]
    assert {row["kind"] for row in table["candidates"]} == {"generator", "set"}
    assert all(row["ipc"] <= 8 for row in scored if row["kind"] == "set")
    assert all(row["what"] in output for row in table["candidates"])
    assert "on the validation part" in output
    size = (tmp_path / "a.dimz").stat().st_size
    assert size == next(row["bytes"] for row in table["candidates"] if row["what"] == table["chosen"]) <= 4000
    said(capsys, "evaluate", tmp_path / "a.dimz", "--seeds", "1", "--ipc", "1", "--json", tmp_path / "s.json")
    (score,) = read_document(tmp_path / "s.json")["scores"]
    assert sum(score["bytes"].values()) == size
    assert f"{tmp_path / 'a.dimz'} exists" in said(capsys, *words, "--out", tmp_path / "a.dimz", status=2)


def test_a_generator_that_fits_is_told_apart_from_one_that_does_not(run, tmp_path, capsys):
    words = ["sample", run, "--ipc", "1", *QUICK, "--coding.calibration-steps", "0", "--out"]
    small = said(capsys, *words, tmp_path / "a.dimz", "--bytes", "1k")
    assert "does not fit" in small
    assert isinstance(dim.load_set(tmp_path / "a.dimz"), dim.SyntheticSet)
    large = said(capsys, *words, tmp_path / "b.dimz", "--bytes", "1M")
    assert "generator, 8 bits" in large
    assert "does not fit" not in large


def test_a_set_is_exported_in_some_bytes(run, tmp_path, capsys):
    said(capsys, "sample", run, "--ipc", "6", "--out", tmp_path / "set")
    output = said(capsys, "export", tmp_path / "set", "--bytes", "1500", *QUICK, "--out", tmp_path / "a.dimz")
    assert "generator" not in output
    subject = dim.load_set(tmp_path / "a.dimz")
    assert 1 <= subject.ipc <= 6
    assert (tmp_path / "a.dimz").stat().st_size <= 1500
    said(capsys, "compare", tmp_path / "a.dimz", "--seeds", "1", "--students", QUICK[1])
    said(capsys, "export", tmp_path / "a.dimz", "--to", "npz", "--out", tmp_path / "npz")
    assert torch.equal(dim.load_set(tmp_path / "npz").images, subject.images)
    assert "is a set, and 'onnx' a format of generators" in said(
        capsys, "export", tmp_path / "a.dimz", "--to", "onnx", "--out", tmp_path / "b", status=2
    )
    assert torch.equal(load_subject(str(tmp_path / "a.dimz"), "cpu").images, subject.images)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--bytes 3k --counts 3=1", "counts is ('3=1',): expected (), its default, beside --bytes"),
        ("--bytes 3k --classes 3", "classes is ('3',): expected (), its default, beside --bytes"),
        ("--bytes 3k --format npz", "format is 'npz': expected 'imagefolder', its default, beside --bytes"),
        ("--bytes 3 --ipc 1", "bytes is '3': expected a size from 200 to 1000M"),
        ("--bytes 3k --ipc 0", "ipc is 0: expected 1 or more images per class"),
        ("--bytes 3k --spread 0.5", "spread is 0.5: expected 0.3, its default"),
        ("--bytes 3k --coding.budget-ipc 0", "coding.budget_ipc is 0: expected at least 1"),
        ("--ipc 1 --coding.budget-ipc 3", "without --bytes"),
        ("--ipc 1 --json x.json", "json is 'x.json': expected --bytes beside it"),
        ("", "or --bytes N"),
    ],
)
def test_what_makes_no_sense_beside_bytes_is_refused(run, tmp_path, capsys, words, expected):
    assert expected in said(capsys, "sample", run, *words.split(), "--out", tmp_path / "x.dimz", "--policy.steps", status=2)
    assert not (tmp_path / "x.dimz").exists()


def test_another_name_than_a_coded_files_is_refused(run, tmp_path, capsys):
    assert "ends in .dimz" in said(capsys, "sample", run, "--bytes", "3k", "--out", tmp_path / "set", status=2)
    words = ("export", tmp_path / "set", "--bytes", "3k", "--out", tmp_path / "x.dimz")
    assert "its default, beside --bytes" in said(capsys, *words, "--to", "npz", status=2)
    assert "as a set has no weights" in said(capsys, *words, "--coding.calibration-steps", "3", status=2)
