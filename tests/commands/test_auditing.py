"""`dim audit`: the table, the files that it leaves, the page of a run, and refusals in one line."""

import dataclasses

import pytest
import torch

from dim.commands.cli import main
from dim.config import DataConfig, ProtocolConfig, to_dict
from dim.data.real import load_data
from dim.data.synthetic import SyntheticSet
from dim.run_folder import RUN
from dim.runs.train import fit
from dim.score.privacy import read_audit
from dim.spec import to_uint8

HALF = DataConfig(fraction=0.5)
PROTOCOL = ProtocolConfig(students=("convnet:width=4,depth=1",), epochs=1, full_epochs=1, batch_size=128, augment="")


def save_set(folder, config: DataConfig = HALF, **info):
    data = load_data(config)
    chosen = torch.cat([(data.train.labels == label).nonzero()[:2, 0] for label in range(10)])
    images, labels = data.train.batch(chosen)
    info = {"data": to_dict(config), "protocol": to_dict(PROTOCOL), **info}
    return SyntheticSet(to_uint8(images), labels, data.spec, info=info).save(folder)


@pytest.fixture(autouse=True)
def quick_features(monkeypatch):
    """Those of a network that nobody trained: what they are is tested elsewhere."""
    from dim.features.spaces import Features

    flat = Features(network=torch.nn.Flatten(), name="flat", digest="0" * 32, device=torch.device("cpu"))
    monkeypatch.setattr("dim.audit.audit.load_features", lambda name, data: flat)


def test_a_set_is_audited_and_its_card_says_what_was_found(tmp_path, capsys):
    folder = save_set(tmp_path / "set")
    assert main(["audit", str(folder), "--halves", "2", "--json", str(tmp_path / "found.json")]) == 0
    output = capsys.readouterr().out
    for words in ("nearest in pixels", "likelihood ratio", "Controls: students on real images", "verdict"):
        assert words in output
    found = read_audit(folder)
    assert found == read_audit(tmp_path / "found.json")
    assert (found.settings["halves"], found.settings["protocol"]) == (2, {**to_dict(PROTOCOL), "students": [*PROTOCOL.students]})
    assert main(["export", str(folder), "--to", "imagefolder", "--card", "--out", str(tmp_path / "share")]) == 0
    assert "What it reveals of the images" in (tmp_path / "share" / "README.md").read_text()
    assert main(["evaluate", str(folder), "--seeds", "1"]) == 0  # what lies beside the images is none of the set


def test_a_run_is_audited_and_its_page_shows_it(tmp_path, six_steps, capsys):
    config = dataclasses.replace(six_steps(), data=HALF, protocol=PROTOCOL)
    run = fit(config, load_data(HALF), tmp_path / "run")
    arguments = ["--halves", "0", "--ipc", "1", "--samples", "20", "--track", "fixed"]
    assert main(["audit", str(run), *arguments]) == 0
    assert "report: " in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "<h2>Privacy</h2>" in page
    assert "nearest in pixels" in page
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0  # from what the folder holds
    assert (run / "report.html").read_text() == page
    assert (run / RUN).is_file()


def test_references_are_sets_of_other_parts(tmp_path, capsys):
    folder = save_set(tmp_path / "set")
    others = [save_set(tmp_path / f"other {n}", dataclasses.replace(HALF, fraction_seed=n)) for n in range(1, 5)]
    assert main(["audit", str(folder), "--references", *map(str, others), "--halves", "0"]) == 0
    assert {row.references for row in read_audit(folder).rows} == {"", "4 of the same kind, online"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "nothing to audit: name a set, a run or a generator"),
        (["SET", "--halves", "3"], "halves is 3: expected an even number"),
        (["SET", "--samples", "0"], "samples is 0: expected 1 or more"),
        (["SET", "--references", "SET"], "data.fraction_seed 0, as the subject"),
        (["SET", "--references", "WHOLE"], "has data.fraction 1.0: expected 0.5"),
        (["WHOLE", "--references", "SET"], "has data.fraction 0.5: expected 1.0"),
        (["ALL"], "1438 of 1438 images are members: expected some of each; make it with --data.fraction 0.5"),
        (["EMPTY"], "has no generator.safetensors"),
        (["SET", "--json", "/dev/null/x"], "json is '/dev/null/x'"),
        (["SET", "--track", "fixed", "fixed"], "track is 'fixed': expected each value once"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_one_line(tmp_path, capsys, options, said):
    save_set(tmp_path / "SET")
    save_set(tmp_path / "WHOLE", DataConfig())
    save_set(tmp_path / "ALL", DataConfig(val_fraction=0.0))
    (tmp_path / "EMPTY").mkdir()
    capsys.readouterr()
    names = {word: str(tmp_path / word) for word in ("SET", "WHOLE", "ALL", "EMPTY")}
    assert main(["audit", *(names.get(word, word) for word in options)]) == 2
    output, errors = capsys.readouterr()
    assert said in errors
    assert (output, errors.count("\n")) == ("", 1)
    assert len(errors) <= 305
