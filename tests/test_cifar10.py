"""The program of the CIFAR-10 table, in miniature: what it makes, resumes, refuses and renders."""

import dataclasses
import importlib
import json
import math
import os
import shutil
import signal
import statistics
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dim.data.synthetic import load_set
from dim.errors import InputError
from dim.io import load_tensors, write_json
from dim.loop import Interrupted
from dim.objectives.trajectory import window_of
from dim.recipes.load import load_recipe
from dim.run_folder import read_run
from dim.runs.train import fit

ROOT = Path(__file__).parent.parent
_PARTS = ("scale", "shop", "productions", "subjects", "cells", "plan", "page", "trial")


@pytest.fixture(scope="module")
def program() -> Iterator[SimpleNamespace]:
    """The program and its parts by their names; forgotten afterwards, as benchmarks/ is no package."""
    names = ["common", *(f"cifar10_{part}" for part in _PARTS), "cifar10"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        loaded = {name.removeprefix("cifar10_"): importlib.import_module(name) for name in names}
        yield SimpleNamespace(**loaded, main=loaded["cifar10"])
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture
def call(program, tmp_path, capsys) -> Callable[..., tuple[int, str]]:
    """Calls the program, tiny, with these arguments: its exit status, and what it printed."""

    def run(**arguments) -> tuple[int, str]:
        status = program.main.main(program.main.Arguments(tiny=True, out=str(tmp_path / "out"), **arguments))
        return status, capsys.readouterr().out

    return run


@pytest.fixture
def shop(program, tmp_path):
    """A tiny workshop."""
    sources = program.common.Sources.of(ROOT / "benchmarks" / "cifar10.py")
    return program.shop.Workshop(tmp_path / "out", sources, torch.device("cpu"), None, program.scale.Tiny())


def cells_in(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text())["rows"][0] for path in (folder / "results").glob("*.json")}


# --- the plan ----------------------------------------------------------------------------------------------------------------


def test_everything_that_is_needed_is_in_the_plan(program):
    productions, tasks = program.plan.productions(), program.plan.tasks()
    assert not productions.keys() & tasks.keys()
    for one in (*productions.values(), *tasks.values()):
        assert set(one.needs) <= productions.keys()
        assert one.hours > 0
        assert one.name.replace("-", "").isalnum()
    for suite in program.plan.SUITES:
        assert any(suite in task.suites for task in tasks.values())
    assert {name for task in tasks.values() for name in task.needs} <= {work.name for work in program.plan.chosen("all", ())}


@pytest.mark.parametrize("suite", ["all", "fixed", "matching"])
def test_what_something_is_made_from_comes_before_it(program, suite):
    order = {work.name: place for place, work in enumerate(program.plan.chosen(suite, ()))}
    for work in program.plan.chosen(suite, ()):
        assert all(order[need] < order[work.name] for need in work.item.needs)


def test_what_is_chosen_brings_what_it_is_made_from(program):
    (cell,) = program.plan.chosen("fixed", ["fixed-random-real-ipc1-convnet-hard"])
    assert cell.item.needs == ()
    names = {work.name for work in program.plan.chosen("all", ["stream-gan-s1-refined-ipc10-convnet-hard"])}
    assert names == {"stream-gan-s1-refined-ipc10-convnet-hard", "gan-s1-refined", "gan-s1", "gan-s1-first", "experts"}


def test_unknown_suites_and_patterns_are_refused(program):
    with pytest.raises(InputError, match=r"unknown suite 'stroam'\. Did you mean 'stream'"):
        program.plan.chosen("stroam", ())
    with pytest.raises(InputError, match="only is 'gan-s7': no production and no cell matches"):
        program.plan.chosen("all", ["gan-s7"])


def test_windows_lie_in_what_the_experts_record(program):
    """Whatever would be refused after hours of recording."""
    made = program.plan.productions()
    distilled = [one for one in made.values() if isinstance(one, program.productions.Distilled)]
    assert len(distilled) == 8
    for one in distilled:
        recipe, experts = load_recipe(one.recipe), load_recipe(made[one.needs[0]].recipe)
        for section, values in one.changes.items():
            recipe = program.common.changed(recipe, {section: values})
        window_of(recipe.trajectory).require_inside(experts.experts.epochs)
        assert recipe.student == experts.student
        if one.name != "tesla-ipc10":  # whose recipe is MTT's
            assert recipe.zca == experts.zca
        if recipe.labels.kind == "learned":
            assert experts.experts.optimizer == "gsam"


# --- the whole path ----------------------------------------------------------------------------------------------------------

_ALL_KINDS = (
    *("fixed-*-ipc1-convnet-hard", "stream-*-ipc1-convnet-soft", "fixed-random-real-ipc1-convnet-soft"),
    *("stream-gan-s0-half-*", "fixed-mtt-ipc10-vit-hard", "coverage-gan-s0", "coverage-real-held-out"),
)


def test_the_whole_path_in_miniature(program, call, tmp_path):
    status, printed = call(only=_ALL_KINDS)
    assert status == 0, printed
    found = cells_in(tmp_path / "out")
    wanted = [work.name for work in program.plan.chosen("all", _ALL_KINDS) if work.name in program.plan.tasks()]
    assert sorted(found) == sorted(wanted)
    for row in found.values():
        assert {"commit", "configuration", "sources", "wall_seconds"} <= row["made"].keys()
        assert all(seconds is not None for seconds in row["production_seconds"].values())
        for score in row.get("scores", ()):
            assert (score["split"], score["n"], len(score["seeds"])) == ("test", 2, 2)
    soft, hard = found["stream-gan-s0-ipc1-convnet-soft"], found["fixed-gan-s0-ipc1-convnet-hard"]
    assert soft["scores"][0]["labels"].startswith("soft (1 experts")
    assert soft["made"]["made_from"].keys() == soft["production_seconds"].keys() == {"gan-s0", "experts"}
    assert len(hard["made"]["scored"]) == 2  # a set for each student
    assert len(found["fixed-gan-s0-one-set-ipc1-convnet-hard"]["made"]["scored"]) == 1
    assert found["fixed-mtt-ipc1-convnet-hard"]["scores"][0]["protocol"]["zca"] is True
    assert found["fixed-tesla-ipc1-convnet-hard"]["scores"][0]["protocol"]["zca"] is False
    assert found["fixed-random-real-at-whitened-protocol-ipc1-convnet-hard"]["scores"][0]["protocol"]["zca"] is True
    half, whole = found["stream-gan-s0-half-ipc50-convnet-hard"], soft
    assert half["scores"][0]["bytes"]["generator"] * 2 == whole["scores"][0]["bytes"]["generator"]
    assert (tmp_path / "out" / "results" / "coverage-gan-s0-nearest.png").is_file()
    assert not list((tmp_path / "out" / "cells").iterdir())

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "results").iterdir()}
    status, printed = call(only=_ALL_KINDS)
    assert (status, before) == (0, {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "results").iterdir()})
    assert "0 missing" in printed
    assert "0 of " in call(only=_ALL_KINDS, missing=True)[1]

    status, printed = call(render=True)
    page = (tmp_path / "out" / "pages" / "docs" / "cifar10.md").read_text()
    accuracy = program.page.figure(found, ["fixed-herding-ipc1-convnet-hard"])
    assert f"| real images chosen by herding | {accuracy} | not run |" in page
    assert "No accuracy has been measured" not in (tmp_path / "out" / "pages" / "README.md").read_text()
    assert call(render=True)[1] == ""  # nothing changed


def test_students_are_kept_one_by_one(call, tmp_path):
    name = "fixed-random-real-ipc1-convnet-hard"
    status, printed = call(only=(name,), seeds=1)
    assert (status, cells_in(tmp_path / "out")) == (0, {})
    assert "has the 1 students that were asked for" in printed
    (first,) = json.loads((tmp_path / "out" / "cells" / f"{name}.json").read_text())
    assert "seed 1" in call(only=(name,))[1]
    row = cells_in(tmp_path / "out")[name]
    assert row["scores"][0]["seeds"] == [0, 1]
    assert row["scores"][0]["accuracies"][0] == first["score"]["accuracies"][0]


def test_cells_of_other_sources_are_made_again_only_when_asked(program, call, tmp_path):
    name = "fixed-random-real-ipc1-convnet-hard"
    call(only=(name,))
    path = tmp_path / "out" / "results" / f"{name}.json"
    row = json.loads(path.read_text())
    row["rows"][0]["made"]["sources"]["dim"] = "other"
    path.write_text(json.dumps(row))
    assert "0 missing" in call(only=(name,))[1]
    assert json.loads(path.read_text()) == row
    assert "seed 0" in call(only=(name,), remake=True)[1]
    assert json.loads(path.read_text())["rows"][0]["made"]["sources"]["dim"] != "other"
    assert "seed 0" not in call(only=(name,), remake=True)[1]


# --- productions -------------------------------------------------------------------------------------------------------------


def long(program, shop, steps: int):
    """The same workshop, with a first stage of so many steps."""
    tiny = shop.scale

    class Longer(type(tiny)):
        def generator(self, config, data):
            config = super().generator(config, data)
            length = program.common.epochs(steps, config.stage_one.batch_size, data)
            return program.common.changed(config, {"stage_one": {"epochs": length}})

    return dataclasses.replace(shop, scale=Longer())


def equal(first: Path, second: Path) -> bool:
    ours, others = (load_tensors(folder / "checkpoint.safetensors")[0] for folder in (first, second))
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


def test_a_run_is_stopped_at_the_end_of_the_budget_and_goes_on(program, shop):
    shop = long(program, shop, 60)
    first = program.plan.productions()["gan-s0-first"]
    assert not first.make(shop, 0.1)
    assert 0 < first.part_done(shop) < 1
    assert first.make(shop, math.inf)
    assert first.done(shop)
    fit(first.config(shop), shop.data, shop.out / "alone")
    assert equal(shop.folder(first.name), shop.out / "alone")


def test_somebody_elses_signal_is_passed_on(program, shop):
    shop = long(program, shop, 5000)
    first = program.plan.productions()["gan-s0-first"]
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(Interrupted):
        first.make(shop, 200.0)
    timer.join()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert first.part_done(shop) < 1


def test_a_run_of_both_stages_begins_at_the_end_of_the_first(program, shop):
    made = program.plan.productions()
    first, whole = made["gan-s0-first"], made["gan-s0"]
    assert whole.open_needs(shop) == (first.name,)
    assert first.make(shop, math.inf)
    assert whole.make(shop, math.inf)
    fit(whole.planned(shop), shop.data, shop.out / "alone")
    assert equal(shop.folder("gan-s0"), shop.out / "alone")


@pytest.mark.parametrize("placed", ["gan-s0", "gan-s0-first"])
def test_a_run_that_lies_there_half_trained_is_taken_over(program, shop, placed):
    """As `dim train` leaves it, at its own place or copied to that of its first stage."""
    shop = long(program, shop, 60)
    made = program.plan.productions()
    first, whole = made["gan-s0-first"], made["gan-s0"]
    folder = shop.folder(placed)
    assert not program.shop.run_for(0.1, lambda: fit(whole.planned(shop), shop.data, folder))
    began = load_tensors(folder / "checkpoint.safetensors")[1]["step"]
    assert 0 < began < 60
    assert first.make(shop, math.inf)
    assert whole.make(shop, math.inf)
    assert read_run(shop.folder(first.name))["config"]["stage_two"]["epochs"] == 0
    fit(whole.planned(shop), shop.data, shop.out / "alone")
    assert equal(shop.folder("gan-s0"), shop.out / "alone")


def test_a_run_beyond_stage_one_does_not_stand_for_its_end(program, shop):
    made = program.plan.productions()
    first, whole = made["gan-s0-first"], made["gan-s0"]
    fit(whole.planned(shop), shop.data, shop.folder("gan-s0"))
    assert whole.done(shop)
    assert whole.open_needs(shop) == ()
    assert first.first(shop) is None
    shutil.copytree(shop.folder("gan-s0"), shop.folder(first.name))
    assert not first.done(shop)
    with pytest.raises(InputError, match="is beyond the end of stage one"):
        first.make(shop, math.inf)


def test_a_finished_run_of_other_settings_is_used_as_it_is(program, shop):
    whole = program.plan.productions()["gan-s0"]
    other = program.common.changed(whole.planned(shop), {"generator": {"width": 6}})
    fit(other, shop.data, shop.folder("gan-s0"))
    assert whole.done(shop)
    assert whole.config(shop).generator.width == 6
    assert whole.make(shop, math.inf)


def test_a_variant_gets_the_time_of_the_recipes_stage_two(program, shop, monkeypatch):
    made = program.plan.productions()
    assert made["gan-s0-first"].make(shop, math.inf)
    seconds = {"recipe": 4.0, "longer": 1.0, "published": 8.0}

    def measured(config, shop):
        if config.matching.weight == 0:
            return 9.0, seconds["longer"]
        return 9.0, seconds["published" if config.pool.source == "fresh" else "recipe"]

    monkeypatch.setattr(program.productions, "step_seconds", measured)
    steps = 40
    recipe = program.common.changed(
        shop.recipe("cifar10-gan-cpu"), {"stage_two": {"epochs": program.common.epochs(steps, 4, shop.data)}}
    )
    monkeypatch.setattr(
        shop, "recipe", lambda name: recipe if name == "cifar10-gan-cpu" else type(shop).recipe(shop, name), raising=False
    )
    for name, wanted in {"gan-s0-longer": 160, "gan-s0-matched-1": 40, "gan-s0-published": 20}.items():
        one = made[name]
        config = one.planned(shop)
        (stage,) = program.productions.plan(config, len(shop.data.train))[1:]
        assert stage.stop - stage.start == wanted
        monkeypatch.setitem(seconds, "recipe", 1.0)  # measured once
        assert one.planned(shop) == config
        monkeypatch.setitem(seconds, "recipe", 4.0)
    assert made["gan-s0-longer"].planned(shop).fit.seed == 0
    assert made["gan-s0-longer-1"].planned(shop).fit.seed != made["gan-s0-longer-2"].planned(shop).fit.seed


def test_a_distillation_ends_by_its_clock(program, shop):
    made = program.plan.productions()
    assert made["experts-sgd-zca"].make(shop, math.inf)
    one = dataclasses.replace(made["mtt-ipc10"], most_hours=1.5 / 3600)
    long = program.common.changed(one.planned(shop), {"distill": {"iterations": 10**6, "log_steps": 1}})
    endless = dataclasses.replace(one, changes={**one.changes})
    object.__setattr__(endless, "planned", lambda shop: long)
    assert not endless.make(shop, 0.4)  # the budget ended before
    assert endless.part_done(shop) < 1
    assert endless.make(shop, math.inf)
    info = load_set(shop.folder("mtt-ipc10")).info
    assert info["iterations"] < 10**6
    assert endless.seconds(shop) == pytest.approx(1.5, abs=1.0)


# --- the worker --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fake:
    """A cell of some pieces."""

    name: str
    hours: float
    log: list
    needs: tuple = ()
    fails: bool = False

    def part_done(self, bench, *, remake=False):
        return float(self.done(bench))

    def done(self, bench, *, remake=False):
        return self.name in self.log

    def pieces(self, bench, *, remake, limit):
        yield self.hours, self.make

    def make(self):
        if self.fails:
            raise TypeError("a mistake\nin two lines")
        self.log.append(self.name)


@pytest.fixture
def work(program, shop):
    """A worker on fake cells, in this order."""

    def make(hours: float | None, *cells: _Fake):
        bench = program.subjects.Bench(shop, shop.out / "results")
        listed = [program.plan.Work(cell, float(place)) for place, cell in enumerate(cells)]
        return program.main.Worker(bench, listed, hours=hours, seeds=None, remake=False)

    return make


def test_nothing_is_begun_that_is_not_expected_to_end_in_the_budget(work):
    log = []
    worker = work(2.0, _Fake(name="long", hours=3.0, log=log), _Fake(name="short", hours=1.0, log=log))
    worker.run()
    assert log == ["short"]
    assert worker.passed == {"long": "no time left for it"}
    assert [item.name for item, _ in worker.missing()] == ["long"]


def test_a_failure_stops_nothing_else(work, capsys):
    log = []
    worker = work(None, _Fake(name="bad", hours=1.0, log=log, fails=True), _Fake(name="good", hours=1.0, log=log))
    worker.run()
    assert log == ["good"]
    assert worker.passed == {"bad": "failed: TypeError: a mistake"}
    assert "Traceback" in capsys.readouterr().err


def test_two_processes_do_not_work_on_one_thing(program, work, shop):
    log = []
    with program.main.claimed(shop.out / "locks" / "taken") as free:
        assert free
        worker = work(None, _Fake(name="taken", hours=1.0, log=log), _Fake(name="free", hours=1.0, log=log))
        worker.run()
    assert log == ["free"]
    assert worker.passed == {"taken": "another process works on it"}
    work(None, _Fake(name="taken", hours=1.0, log=log)).run()
    assert log == ["free", "taken"]


def test_a_failed_production_fails_the_call(program, call, tmp_path, monkeypatch):
    def broken(self, shop, seconds):
        raise InputError("value is 1: expected 2")

    monkeypatch.setattr(program.productions.Experts, "make", broken)
    status, printed = call(only=("mtt-ipc1", "fixed-random-real-ipc1-convnet-hard"))
    assert status == 1
    assert "experts-sgd-zca: failed: value is 1: expected 2" in printed
    assert "fixed-random-real-ipc1-convnet-hard" in cells_in(tmp_path / "out")


# --- sets of the storage suite -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["half-resolution", "webp"])
def test_coded_sets_fill_the_bytes_of_plain_ones(program, shop, key):
    subject = program.plan.coded()[key][0]
    bench = program.subjects.Bench(shop, shop.out / "results")
    spec = shop.data.spec
    made = subject.drawn(bench, 3, seed=1)
    budget = 3 * spec.num_classes * (spec.image_bytes + spec.label_bytes)
    assert made.ipc > 3
    (size,) = made.bytes_stored().values()
    assert size <= budget
    assert size * (made.ipc + 1) / made.ipc > 0.9 * budget
    if key == "half-resolution":
        assert size == made.ipc * spec.num_classes * (spec.image_bytes // 4 + spec.label_bytes)
    # They look like the images that they are of.
    plain, _ = program.subjects._random_real(bench, made.ipc, 1)
    assert (made.tensors()[0] - plain).abs().mean() < 0.2
    assert not torch.equal(made.images, subject.drawn(bench, 3, seed=2).images)


# --- trials ------------------------------------------------------------------------------------------------------------------


def test_a_trial_is_scored_on_the_validation_part_and_appended(call, tmp_path):
    for trial in (("plain",), ("wider", "generator.width=6", "stage_one.epochs=0.05", "fit.precision=no")):
        assert call(trial=trial, minutes=0.01, seeds=1)[0] == 0
    content = json.loads((tmp_path / "out" / "results" / "trials.json").read_text())
    plain, wider = content["rows"]
    assert (content["split"], [row["name"] for row in content["rows"]]) == ("val", ["plain", "wider"])
    for row in (plain, wider):
        assert {score["split"] for score in row["scores"]} == {"val"}
        assert row["coverage"]["metrics"]["fid"] >= 0
        assert row["made"]["made_from"].keys() == {"run"}
    assert (plain["config"]["generator"]["width"], wider["config"]["generator"]["width"]) == (4, 6)
    assert wider["config"]["stage_one"]["epochs"] == 0.05
    assert wider["settings"] == ["generator.width=6", "stage_one.epochs=0.05", "fit.precision=no"]
    # As long as was asked for, by what steps take here.
    stages = [plain["config"][stage]["epochs"] for stage in ("stage_one", "stage_two")]
    assert stages[0] > 0
    with pytest.raises(InputError, match=r"trial 'wider' lies in .* with other settings"):
        call(trial=("wider", "generator.width=8"), minutes=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trial": ("x",), "split": "test"}, "split is 'test' with --trial: settings are chosen on the validation part"),
        ({"split": "val"}, "split is 'val' without --trial"),
        ({"trial": ("generator.width=4",)}, "trial 'generator.width=4' is no name"),
        ({"trial": ("x", "width=4")}, "setting 'width=4' of a trial: expected section.option=value"),
        ({"trial": ("x", "generator.widht=4")}, "widht"),
        ({"trial": ("x", "genrator.width=4")}, "unknown section 'genrator' of a trial"),
        ({"trial": ("x", "generator.width=wide")}, "generator.width is 'wide'|width is 'wide'"),
        ({"trial": ("x",), "recipe": "cifar10-mtt-ipc1"}, "recipe 'cifar10-mtt-ipc1' trains no generator"),
        ({"budget_hours": 0.0}, "budget-hours is 0.0: expected a positive number"),
        ({"seeds": 0}, "seeds is 0: expected 1 or more"),
        ({"minutes": -1.0}, "minutes is -1.0: expected a positive number"),
        ({"suite": "fix"}, "unknown suite 'fix'"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_one_line(call, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        call(**arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300
    assert not (tmp_path / "out" / "results").exists()


# --- pages -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["docs/cifar10.md", "README.md"])
def test_the_pages_are_what_the_cells_render_to(program, name):
    text = (ROOT / name).read_text()
    assert program.page.rendered(text, program.page.read_cells(ROOT / "benchmarks" / "results" / "cifar10")) == text


def test_every_table_is_on_a_page(program):
    pages = "".join((ROOT / name).read_text() for name in program.page.PAGES)
    for name in program.page.TABLES:
        assert pages.count(f"<!-- rendered: {name} -->") == 1


def test_every_cell_is_in_a_table(program):
    """Each, made alone, changes a page."""
    empty = {name: table({}) for name, table in program.page.TABLES.items()}
    for name, task in program.plan.tasks().items():
        rows = {name: cell(name, task)}
        assert any(table(rows) != empty[table_name] for table_name, table in program.page.TABLES.items()), name


def cell(name: str, task, accuracies=(50.0, 52.0), **changes) -> dict:
    """A row as the program writes it."""
    if name.startswith("coverage"):
        metrics = {"fid": 1.5, "precision": 0.5, "recall": 0.25, "density": 0.75, "coverage": 0.125}
        return {"coverage": {"metrics": metrics}, "nearest": {"nearer_than_1_percent": 0.0123}, "production_seconds": {}}
    score = {
        **{"name": "x", "track": task.track, "ipc": task.ipc, "student": task.student, "labels": task.labels},
        **{"accuracies": list(accuracies), "seeds": list(range(len(accuracies))), "steps": 1, "batch_size": 1},
        **{"images_seen": 1, "distinct_images": 40, "bytes": {"images": 30_720, "labels": 10}, "seconds": 1.0},
    }
    return {"scores": [score], "production_seconds": dict.fromkeys(task.needs, 5400.0), **changes}


@pytest.fixture
def rows(program):
    """A factory of the rows of some cells, by their accuracies."""
    tasks = program.plan.tasks()
    return lambda **found: {
        name.replace("_", "-"): cell(name.replace("_", "-"), tasks[name.replace("_", "-")], accuracies)
        for name, accuracies in found.items()
    }


def test_a_cell_shows_mean_and_spread(program, rows):
    found = rows(stream_oracle_ipc10_convnet_hard=(70.0, 71.0, 72.0))
    table = program.page.TABLES["stream-convnet"](found)
    assert "| all real images (oracle) | not run | not run | 71.0 ± 1.0 | not run | not run | not run |  |" in table
    assert table.count("| not run") == 5 + 6  # of the row that has a figure, and of one that papers have
    assert "\n\nNot run: `gan`, end of stage one; " in table
    assert "| `dim2023` | not run | not run | not run | not run | not run | not run | 72.6 (IPC 10) |" in table


def test_the_spread_between_generators_stands_apart(program, rows):
    names = [f"stream-gan-s{seed}-ipc10-convnet-hard" for seed in (0, 1)]
    both = rows(stream_gan_s0_ipc10_convnet_hard=(59.0, 60.0, 61.0), stream_gan_s1_ipc10_convnet_hard=(61.0, 64.0, 67.0))
    within = math.sqrt((1.0**2 + 3.0**2) / 2)
    assert program.page.figure(both, names) == f"62.0 ± {within:.1f} (generators ± {statistics.stdev((60, 64)):.1f})"
    assert program.page.figure({names[1]: both[names[1]]}, names) == "64.0 ± 3.0 (one generator)"
    assert program.page.figure({}, names) == "not run"


def test_intervals_are_those_of_students_t(program):
    # t(0.975, 3) = 3.182446, standard deviation sqrt(5 / 3).
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert program.page.interval([1.0, 2.0, 3.0, 4.0]) == f"2.50 [{2.5 - half:.2f}, {2.5 + half:.2f}] (n = 4)"
    assert program.page.interval([1.0]) == "1.00 (n = 1)"


def test_matching_is_compared_by_repetitions_of_the_same_seed(program, rows):
    found = rows(
        stream_gan_s0_ipc10_convnet_hard=(60.0, 62.0),
        stream_gan_s0_longer_ipc10_convnet_hard=(59.0, 61.0),
        stream_gan_s0_matched_1_ipc10_convnet_hard=(64.0, 64.0),
        stream_gan_s0_longer_1_ipc10_convnet_hard=(61.0, 61.0),
        stream_gan_s0_longer_2_ipc10_convnet_hard=(10.0, 10.0),
    )
    table = program.page.matching(found)
    assert f"| our matching | {program.page.interval([61.0, 64.0])} | {program.page.interval([1.0, 3.0])} |" in table
    assert f"| without matching | {program.page.interval([60.0, 61.0, 10.0])} |  |" in table
    assert table.endswith("\n\nNot run: the published matching.")


def test_storage_says_bytes_and_images(program, rows):
    table = program.page.storage(rows(fixed_webp_ipc1_convnet_hard=(20.0, 22.0)))
    assert "| random real images, WebP | 21.0 ± 1.4 (30.7 kB, 40 images) | not run | not run |" in table
    assert "| published: TM-RUO | 70.3 | 77.5 | 79.7 |" in table


def test_coverage_and_times(program):
    tasks = program.plan.tasks()
    name = "coverage-gan-s1-refined"
    table = program.page.coverage({name: cell(name, tasks[name])})
    assert "refined images, seed 1 | 1.500 | 0.500 | 0.250 | 0.750 | 0.125 | 1.2 % |" in table
    name = "stream-gan-s0-ipc10-convnet-hard"
    times = program.page.took({name: cell(name, tasks[name])})
    assert "| `gan-s0` | `gan-s0-first` | 1.5 |" in times
    assert "; `dim2023`; " in " ".join(times.split())


def test_the_readme_has_a_table_as_soon_as_there_is_a_cell(program, rows):
    assert "No accuracy has been measured on CIFAR-10 yet" in program.page.headline({})
    table = program.page.headline(rows(fixed_random_real_ipc1_convnet_hard=(15.0, 16.0)))
    assert "| random real images | 15.5 ± 0.7 | not run |  |  |" in table
    assert "not yet" not in table


def test_only_what_is_between_markers_is_written(program, tmp_path):
    text = "before\n<!-- rendered: matching -->\nold\n<!-- end -->\nafter\n<!-- end -->\n"
    new = program.page.rendered(text, {})
    assert new.startswith("before\n<!-- rendered: matching -->\nNot run: without matching; our matching; ")
    assert new.endswith(".\n<!-- end -->\nafter\n<!-- end -->\n")
    assert "old" not in new
    assert program.page.rendered(new, {}) == new
    write_json(tmp_path / "fixed-herding-ipc1-convnet-hard.json", {"rows": [{"name": "x"}]})
    assert program.page.read_cells(tmp_path) == {"fixed-herding-ipc1-convnet-hard": {"name": "x"}}
