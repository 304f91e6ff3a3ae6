"""What every row of a benchmark says of its making."""

import dataclasses
import functools
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import tyro

import dim
from dim.config import DataConfig, ExpertsConfig, ProtocolConfig, to_dict
from dim.config.timed import TimedConfig
from dim.data.look import look
from dim.data.real import load_data

_BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
_PROGRAMS = (
    *("accuracy", "audit", "by_time", "bytes", "cifar10", "coverage", "demo", "faults", "generators", "hypergradient"),
    *(
        "memory",
        "matching",
        "own_data",
        "policies",
        "pool",
        "published",
        "replay",
        "scale",
        "speed",
        "step_time",
        "trajectory",
        "verify",
    ),
)


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[[str], ModuleType]]:
    """Loads modules of benchmarks/, which is no package, by names that no installed ones have; they are forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:

        def module(name: str) -> ModuleType:
            spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", _BENCHMARKS / f"{name}.py")
            loaded = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, spec.name, loaded)
            spec.loader.exec_module(loaded)
            return loaded

        parts = ("scale", "shop", "productions", "subjects", "cells", "plan", "page", "trial")  # each imports earlier ones
        own = (f"replay_{part}" for part in ("scale", "memories", "learner", "page"))
        for shared in ("common", "step_time", "faults_artefacts", *(f"cifar10_{part}" for part in parts), *own):
            patch.setitem(sys.modules, shared, module(shared))
        yield module


@pytest.fixture(scope="module")
def common(load) -> ModuleType:
    return sys.modules["common"]


def sources(common, **changes):
    return common.Sources(**{"commit": "0" * 12, "changes": (), "package": "dim 1", "program": "program 1", **changes})


# --- rows from now on --------------------------------------------------------------------------------------------------------


@pytest.fixture
def row_of(common, tmp_path):
    """A factory of a row made by a call of its own: `row_of(sources, value)` is the row, made anew if it has the value."""

    def make(code, value, *, keep=False, name="row", scored=(), **facts):
        rows = common.Rows(code, "cpu", {"seeds": 3}, folder=tmp_path / "rows", keep=keep)
        assert rows.add(name, lambda: {"value": value}, scored=scored, **facts) is rows.made[0]
        return rows.made[0]

    return make


def test_row_says_what_made_it(common, tmp_path, row_of):
    row = row_of(sources(common, changes=("dim/fit.py",)), 1, scored=["abc"], size=5)
    made = row.pop("made")
    assert row == {"name": "row", "size": 5, "value": 1}
    assert (made["commit"], made["clean"], made["changes"]) == ("0" * 12, False, ["dim/fit.py"])
    assert made["sources"] == {"dim": "dim 1", "program": "program 1"}
    assert (made["scored"], made["device"]) == (["abc"], "cpu")
    assert made["threads"] == 1
    assert 0 <= made["wall_seconds"] < 1
    assert "torch" in made["versions"]
    assert not {"made_from", "made_by_other_sources", "commit_reason"} & made.keys()


def test_row_takes_digests_from_its_scores(common):
    rows = common.Rows(sources(common), "cpu", {})
    scores = [{"made": {"digest": "a"}}, {"made": {"digest": "b"}}, {"made": {"digest": "a"}}, {"made": {"method": "random"}}]
    stamped = rows._stamped("row", {"scores": scores, "score": {"made": {"digest": "c"}}}, 0.0, (), {}, {})
    assert stamped["made"]["scored"] == ["a", "b", "c"]


def test_row_without_a_commit_says_why(common, row_of):
    made = row_of(sources(common, commit=None), 1)["made"]
    assert made["commit"] is made["clean"] is None
    assert "git" in made["commit_reason"]


def test_configuration_digest_depends_on_all_that_was_asked(common):
    def configuration(name="row", asked=3, **facts):
        return common.Rows(sources(common), "cpu", {"seeds": asked}).put(name, {}, 0.0, **facts)["made"]["configuration"]

    found = [configuration(), configuration("other"), configuration(asked=4), configuration(size=1), configuration(size=2)]
    assert len(set(found)) == len(found)
    assert configuration(a=1, b=2) == configuration(b=2, a=1)
    assert configuration() == configuration()


def test_row_is_found_again_for_the_same_sources(common, row_of):
    first = row_of(sources(common), 1)
    assert row_of(sources(common), 2) == first
    # Another commit of the same files made nothing different.
    assert row_of(sources(common, commit="1" * 12), 2) == first


@pytest.mark.parametrize("what", ["package", "program"])
def test_row_is_made_again_for_other_sources(common, row_of, capsys, what):
    row_of(sources(common), 1)
    other = sources(common, **{what: "changed"}, commit="1" * 12)
    row = row_of(other, 2)
    assert (row["value"], row["made"]["commit"]) == (2, "1" * 12)
    assert "--keep-rows" in capsys.readouterr().out
    assert row_of(other, 3) == row


@pytest.mark.parametrize("what", ["package", "program"])
def test_row_that_is_kept_says_that_other_sources_made_it(common, row_of, what):
    first = row_of(sources(common), 1)
    kept = row_of(sources(common, **{what: "changed"}, commit="1" * 12), 2, keep=True)
    assert kept["made"].pop("made_by_other_sources") is True
    assert kept == first
    assert row_of(sources(common), 3) == first  # the mark is not stored


def test_row_is_made_again_for_other_facts(common, row_of):
    row_of(sources(common), 1, size=1)
    assert row_of(sources(common), 2, size=2)["value"] == 2
    assert row_of(sources(common), 3, size=1, scored=["other weights"])["value"] == 3
    assert row_of(sources(common), 4, size=1, name="other")["value"] == 4


def test_scores_carry_what_made_their_row(common):
    rows = [{"scores": [{"made": {"digest": "a"}}, {"made": {"digest": "b"}}], "made": {"commit": "c"}}]
    assert common.stamped_scores(rows) == [{"made": {"digest": "a", "commit": "c"}}, {"made": {"digest": "b", "commit": "c"}}]


def test_save_refuses_a_row_without_its_making(common, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    with pytest.raises(AssertionError, match="Rows"):
        common.save("name", {"rows": [{"name": "row", "made": {}}]})
    content = {"split": "test", "rows": [{"name": "row", "made": {"commit": None}}]}
    assert json.loads(common.save("name", content).read_text()) == content


# --- what lies finished on disk ----------------------------------------------------------------------------------------------


def test_row_says_which_sources_made_what_it_is_made_from(common, tmp_path):
    run, old = tmp_path / "run", sources(common)
    common.note_sources(run, old)
    run.mkdir()
    now = sources(common, package="dim 2", commit="1" * 12)
    rows = common.Rows(now, "cpu", {}, made_from={"run": run})
    assert rows.put("row", {}, 0.0)["made"]["made_from"] == {"run": [{**old.stamp(), "made_by_other_sources": True}]}
    common.note_sources(run, now)  # it goes on
    common.note_sources(run, now)
    first, second = common.origin(run, now)
    assert (first["commit"], second) == ("0" * 12, now.stamp())


def test_folder_made_anew_has_new_sources(common, tmp_path):
    common.note_sources(tmp_path / "run", sources(common))  # the run was removed since
    common.note_sources(tmp_path / "run", sources(common, package="dim 2"))
    assert [note["sources"]["dim"] for note in common.origin(tmp_path / "run", sources(common))] == ["dim 2"]


def test_folder_of_unknown_sources_says_so(common, tmp_path):
    (tmp_path / "run").mkdir()
    (found,) = common.origin(tmp_path / "run", sources(common))
    assert found["commit"] is None
    assert str(tmp_path) not in found["commit_reason"]
    common.note_sources(tmp_path / "run", sources(common))
    assert [note["commit"] for note in common.origin(tmp_path / "run", sources(common))] == [None, "0" * 12]


@pytest.mark.parametrize(("step", "noted"), [(5, True), (10, False)])
def test_run_is_noted_unless_it_is_finished(common, tmp_path, monkeypatch, step, noted):
    out = tmp_path / "run"
    out.mkdir()
    (out / common.FILE_NAME).touch()
    about = {"step": step, "total_steps": 10}
    monkeypatch.setattr(common, "load_generator", lambda folder: SimpleNamespace(info={"about": about}))
    monkeypatch.setattr(common, "fit", lambda config, data, folder, *, resume, accelerator: (folder, resume))
    assert common.train(None, None, out, None, sources(common)) == (out, True)
    assert (tmp_path / "run.made.json").is_file() == noted


# --- sources -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """A git repository with a package and a program, committed."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "tree"
    for name in ("dim/__init__.py", "dim/recipes/a.toml", "benchmarks/common.py", "benchmarks/pool.py", "x"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "first")
    return root


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *who, *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


def of(common, root: Path, program: str = "pool"):
    return common.Sources.of(root / "benchmarks" / f"{program}.py", root, root / "dim")


def test_clean_tree(common, tree):
    (tree / "x").write_text("outside what rows depend on")
    (tree / "benchmarks" / "results").mkdir()
    (tree / "benchmarks" / "results" / "new.json").write_text("{}")
    assert common.commit(tree) == git(tree, "rev-parse", "HEAD")[:12]
    assert common.changes(tree) == []
    stamp = of(common, tree).stamp()
    assert (stamp["commit"], stamp["clean"]) == (common.commit(tree), True)
    assert "changes" not in stamp


def test_changed_tree_lists_what_differs(common, tree):
    (tree / "dim" / "__init__.py").write_text("changed")
    (tree / "dim" / "new.py").touch()
    (tree / "benchmarks" / "pool.py").unlink()
    git(tree, "mv", "dim/recipes/a.toml", "dim/recipes/b.toml")
    expected = ["benchmarks/pool.py", "dim/__init__.py", "dim/new.py", "dim/recipes/a.toml", "dim/recipes/b.toml"]
    assert common.changes(tree) == expected
    (tree / "benchmarks" / "pool.py").write_text("benchmarks/pool.py")  # as it was
    stamp = of(common, tree).stamp()
    assert (stamp["clean"], stamp["changes"]) == (False, expected[1:])


def test_package_from_elsewhere_is_not_clean(common, tree, tmp_path):
    program = tree / "benchmarks" / "pool.py"
    elsewhere = tmp_path / "site-packages" / "dim"
    shutil.copytree(tree / "dim", elsewhere)
    assert common.Sources.of(program, tree, elsewhere) == of(common, tree)
    (elsewhere / "__init__.py").write_text("other")
    found = common.Sources.of(program, tree, elsewhere)
    assert found.stamp()["clean"] is False
    assert str(tmp_path) not in json.dumps(found.stamp())


def test_no_commit_outside_a_work_tree_of_its_own(common, tree):
    exported = tree / "exported"  # inside a repository that knows nothing of it
    for name in ("dim", "benchmarks"):
        (exported / name).mkdir(parents=True)
    for name in ("common.py", "pool.py"):
        (exported / "benchmarks" / name).touch()
    assert common.commit(exported) is None
    assert of(common, exported).stamp()["commit"] is None
    with pytest.raises(RuntimeError, match="git work tree"):
        common.changes(tree.parent / "absent")


_COUNT = ("dim/__init__.py", "dim/recipes/a.toml", "dim/new.py", "benchmarks/pool.py", "benchmarks/common.py")


@pytest.mark.parametrize("name", _COUNT)
def test_sources_change_with_every_file_that_counts(common, tree, name):
    before = of(common, tree).stamp()["sources"]
    (tree / name).write_text("changed")
    after = of(common, tree).stamp()["sources"]
    assert {key for key in before if before[key] != after[key]} == {"dim" if name.startswith("dim") else "program"}


def test_parts_of_a_program_count_as_its_own(common, tree):
    before = of(common, tree).stamp()["sources"]
    (tree / "benchmarks" / "pool_parts.py").touch()
    after = of(common, tree).stamp()["sources"]
    assert (before["dim"], before["program"] != after["program"]) == (after["dim"], True)


@pytest.mark.parametrize("name", ["x", "dim/__pycache__/a.pyc", "benchmarks/other.py", "benchmarks/results/new.json"])
def test_sources_do_not_change_with_others(common, tree, name):
    before = of(common, tree).stamp()["sources"]
    (tree / name).parent.mkdir(exist_ok=True)
    (tree / name).write_text("changed")
    assert of(common, tree).stamp()["sources"] == before


def test_moved_file_changes_the_sources(common, tree):
    before = of(common, tree)
    (tree / "dim" / "recipes" / "a.toml").rename(tree / "dim" / "recipes" / "b.toml")
    assert of(common, tree).package != before.package


# --- programs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _PROGRAMS)
def test_program_explains_itself(load, name, capsys):
    module = load(name)
    with pytest.raises(SystemExit) as ended:
        tyro.cli(module.Arguments, args=["--help"])
    assert ended.value.code == 0
    keeps = name in ("audit", "by_time", "bytes", "generators", "matching", "policies", "published", "verify")
    assert ("--keep-rows" in capsys.readouterr().out) == keeps
    parts = [vars(sys.modules[part.stem]) for part in _BENCHMARKS.glob(f"{name}_*.py")]
    assert {"Rows", "Sources", "save"} <= set().union(vars(module), *parts)


@pytest.mark.parametrize("count", [1, 2])
def test_steps_of_experts_are_measured_as_they_are_taken(load, tmp_path, count):
    """One expert, and two together: their weights change with every step."""
    settings = ExpertsConfig(count=count, together=count, epochs=1, batch_size=10, compile="off")
    step = load("speed").expert_step("convnet:width=4,depth=1", load_data(DataConfig()), settings, tmp_path / "experts")
    losses = torch.stack([torch.as_tensor(step()) for _ in range(2)])
    assert losses.isfinite().all()
    assert not torch.equal(losses[0], losses[1])


def test_verification_is_measured_in_miniature(load, tmp_path, monkeypatch):
    """One true claim and one false one of each kind, from claim to result; and a second call finds all of them."""
    module = load("verify")
    chosen = (1, 7, 2, 12)  # labels, ZCA, score, both step sizes
    monkeypatch.setattr(module, "SUBJECTS", tuple(module.SUBJECTS[place] for place in chosen))
    monkeypatch.setattr(module, "ALTERED", {kind: (min(place, 3),) for place, kind in enumerate(module.ALTERED)})
    arguments = module.Arguments(tiny=True, claims=2, students=2, out=str(tmp_path))
    module.main(arguments)
    rows = json.loads((tmp_path / "verify.json").read_text())["rows"]
    assert [row["name"].partition(":")[0] for row in rows if row.get("true") is False] == [
        f"false, {kind}" for kind in ("labels", "ZCA", "score", "step size", "tenth")
    ]
    whole = {row["name"]: row for row in rows}
    assert [whole[name]["trials"] for name in ("true claims", "false claims", "false claims, ZCA")] == [4, 5, 1]
    assert all(row["reason"] == "" or "students score" in row["reason"] for row in rows if "reason" in row)
    assert all("digest" not in row.get("reason", "") for row in rows)
    rate = whole["simulated: claim of 5, 5 fresh, 5 standard deviations too high"]
    assert (rate["trials"], rate["refused_percent"] > 90) == (200, True)
    assert whole["spread of the students of a set"]["trials"] > 50

    def fail(*arguments, **settings):
        pytest.fail("measured again")

    monkeypatch.setattr(module, "verify", fail)
    module.main(arguments)
    again = json.loads((tmp_path / "verify.json").read_text())["rows"]
    assert [row for row in again if "true" in row] == [row for row in rows if "true" in row]


@pytest.mark.timeout(600)
def test_bytes_are_measured_in_cells_that_are_found_again(load, common, tmp_path, monkeypatch):
    """All subjects, on the digits, and the table that a result becomes."""
    program = load("bytes")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    arguments = program.Arguments(
        tiny=True, out=str(tmp_path / "out"), sizes=("2500",), subjects=("generator", "random", "model")
    )
    program.main(arguments)
    first = json.loads((tmp_path / "bytes-digits.json").read_text())
    assert [row["subject"] for row in first["rows"]] == ["generator", "random", "model"]
    for row in first["rows"]:
        (score,) = row["scores"]
        assert (score["split"], score["n"], score["bytes"]) == ("test", 2, {"file": row["bytes"]})
        assert row["bytes"] <= 2500
        scored = [one for one in row["candidates"] if one["accuracy"] is not None]
        assert row["chosen"] in [one["what"] for one in scored]
    assert (tmp_path / "out" / "files" / "random-2500.dimz").stat().st_size == first["rows"][1]["bytes"]
    program.main(arguments)
    assert json.loads((tmp_path / "bytes-digits.json").read_text()) == first
    page = program.rendered("a\n<!-- rendered: bytes-digits -->\nold\n<!-- end -->\nb\n", lambda name: first)
    assert "| random real images |" in page
    assert "old" not in page
    assert page.count("±") == 3
    assert program.rendered(page, lambda name: first) == page
    assert "Not run." in program.rendered(page, lambda name: None)


def test_the_page_of_bytes_holds_what_the_results_say(load):
    program = load("bytes")
    text = program.PAGE.read_text()
    assert program.rendered(text, program.stored) == text
    names = {path.stem for path in (_BENCHMARKS / "results").glob("bytes-*.json")}
    assert names <= {found[1] for found in re.finditer(r"rendered: (\S+) -->", text)}


def test_students_by_time_are_measured_in_miniature(load, digits_gan, tmp_path, monkeypatch):
    """The real data and a set; a second call finds both rows, and the page shows them."""
    program = load("by_time")
    stored = dim.sample_set(digits_gan, ipc=10)
    stored.info.update(data=to_dict(DataConfig()), protocol=to_dict(ProtocolConfig()))
    stored.save(tmp_path / "set")
    monkeypatch.setattr(program, "save", functools.partial(program.save, folder=tmp_path))
    monkeypatch.setattr(program, "RESULTS", tmp_path)
    timed = TimedConfig(lr_factors=(1.0,), batch_sizes=(), schedules=(), probe_seconds=0.01)
    settings = {"seconds": (0.05,), "seeds": 2, "student": "convnet:width=4,depth=1", "timed": timed, "result": "by-time-digits"}
    arguments = program.Arguments(subjects=(f"made={tmp_path / 'set'}",), out=str(tmp_path / "out"), **settings)
    first = program.measure(arguments).read_text()
    rows = json.loads(first)["rows"]
    assert [row["name"] for row in rows] == ["real data, 0.05 s", "made, 0.05 s"]
    assert all(row["timed"]["n"] == 2 and row["made"]["wall_seconds"] > 0 for row in rows)
    assert program.measure(arguments).read_text() == first
    page = program.rendered("a\n<!-- rendered: by-time-digits -->\nold\n<!-- end -->\nb\n")
    assert "| real data | 0.05 |" in page
    assert "- made, convnet:width=4,depth=1, beside real data: " in page
    assert "old" not in page


def test_the_page_of_students_by_time_holds_what_the_results_say(load):
    program = load("by_time")
    assert program.rendered(program.PAGE.read_text()) == program.PAGE.read_text()


@pytest.mark.parametrize(("case", "channels"), [("digits-few", 1), ("cifar10-few", 3)])
def test_folders_of_own_data_are_read_as_they_were_written(load, case, channels, tmp_path, monkeypatch):
    """Grey ones as grey, which is what `dim train DIR` finds; otherwise nothing that it makes can be scored."""
    program = load("own_data")
    monkeypatch.setattr(program, "PARTS", {"train": 0, "val": 3, "test": 2})
    few = dataclasses.replace(program.CASES[case], dataset="digits", each=4)
    if channels == 3:
        tint = torch.tensor([1.0, 0.5, 0.2]).view(3, 1, 1)
        few = dataclasses.replace(few, change=lambda images, labels: (images * tint, labels, ()))
    program.make_folder(few, None, tmp_path / "made")
    read = load_data(program.settings(tmp_path / "made"))
    assert read.spec.image_shape == (channels, 8, 8)
    assert (len(read.train), len(read.val), len(read.test)) == (40, 30, 20)
    assert look(program.settings(tmp_path / "made")).grey == (channels == 1)


# --- results that lie here ---------------------------------------------------------------------------------------------------

_NEW = ("clean", "sources", "configuration", "device", "device_name", "threads", "versions", "wall_seconds")


@pytest.mark.parametrize("path", sorted((_BENCHMARKS / "results").rglob("*.json")), ids=lambda path: path.stem)
def test_every_row_of_a_result_has_a_commit_or_says_why_not(path):
    content = json.loads(path.read_text())
    assert "commit" not in content  # a file has none: its rows have
    (rows,) = (content[key] for key in ("rows", "scores", "seconds_per_step") if key in content)
    assert rows
    for made in (row["made"] for row in rows):
        if made["commit"] is None:
            assert made["commit_reason"]
        else:
            assert re.fullmatch("[0-9a-f]{12}", made["commit"])
        if "first_stored" in made:  # from before rows said this themselves: what the history of the files proves
            assert re.fullmatch(r"[0-9a-f]{12}:benchmarks/results/[a-z0-9-]+\.json", made["first_stored"])
            assert ("commit_means" in made) == (made["commit"] is not None)
        else:
            assert set(_NEW) <= made.keys()
            assert made["clean"] or made["commit"] is None or made["changes"]


# --- one of them as a whole ----------------------------------------------------------------------------------------------------


def test_the_audit_runs_on_digits_and_finds_its_cells_again(load, tmp_path, monkeypatch, capsys):
    module = load("audit")
    arguments = module.Arguments(tiny=True, out=str(tmp_path), results=str(tmp_path))
    module.main(arguments)
    content = json.loads((tmp_path / "audit-tiny.json").read_text())
    assert [row["name"] for row in content["rows"]] == list(module.Suite(arguments).cells)
    found = {row["name"]: row["audit"] for row in content["rows"]}
    assert {copy["verdict"] for copy in found["real"]["copies"]} == {"leak"}
    assert {row["references"] for row in found["pixels-real"]["rows"]} == {"", "1 of the same kind, offline"}
    assert {row["subject"].split(" on ")[-1] for row in found["generator"]["rows"]} == {"the set itself", "the set", "the stream"}
    monkeypatch.setattr(module.Suite, "audit", lambda *given: pytest.fail("made again"))
    module.main(arguments)
    assert json.loads((tmp_path / "audit-tiny.json").read_text()) == content
