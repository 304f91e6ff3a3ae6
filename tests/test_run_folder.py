"""Run folders: signals, what is recognised and refused, records that are cut back, and progress without a terminal."""

import json
import os
from dataclasses import dataclass, field

import pytest
import torch

from dim.config import TrainConfig, to_dict
from dim.errors import InputError
from dim.io import write_document
from dim.run_folder import (
    KINDS,
    append_metrics,
    find_run,
    load_run_config,
    open_run,
    prefixed,
    read_metrics,
    read_run,
    require_free_run,
    run_description,
    unprefixed,
)


@dataclass(frozen=True, kw_only=True)
class Part:
    rate: float = 0.5
    betas: tuple[float, float] = (0.0, 0.9)
    root: str | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    student: str = "convnet"
    data: Part = field(default_factory=Part)
    loop: Part = field(default_factory=Part)


@pytest.fixture
def toy(spec):
    return spec(1, 8, 3)


def make_run(folder, spec, kind="run", config=None):
    open_run(folder, run_description(config or Settings(), spec, "cpu", kind), 0)
    return folder


def contents(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- recognising a folder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_read_as_what_it_is(tmp_path, toy, kind):
    make_run(tmp_path / "it", toy, kind)
    description = read_run(tmp_path / "it", kind)
    assert description == read_run(tmp_path / "it", None)
    assert description["kind"] == kind
    assert description["config"] == json.loads(json.dumps(to_dict(Settings())))
    assert description["spec"]["fingerprint"] == toy.fingerprint
    assert load_run_config(tmp_path / "it", Settings, kind) == Settings()
    for other in set(KINDS) - {kind}:
        with pytest.raises(InputError, match=f"made by 'dim {KINDS[kind]}': expected a folder made by 'dim {KINDS[other]}'"):
            read_run(tmp_path / "it", other)


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_what_is_no_run_is_refused(tmp_path, kind):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=f"{folder} is no run: .*'dim {KINDS[kind or 'run']}'"):
            read_run(folder, kind)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"kind": "walk"}', "null"])
def test_a_damaged_description_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json is damaged") as caught:
        read_run(tmp_path, None)
    assert "\n" not in str(caught.value)


# --- free folders ------------------------------------------------------------------------------------------------------------


def test_folders_with_nothing_to_lose_are_free(tmp_path, toy):
    require_free_run(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    require_free_run(tmp_path / "empty")
    (tmp_path / "empty" / ".run.json.0a1b2c3d.tmp").write_text("{")  # killed before it wrote anything
    require_free_run(tmp_path / "empty")
    require_free_run(make_run(tmp_path / "begun", toy))  # killed before its first checkpoint


def test_folders_with_something_to_lose_are_refused(tmp_path, toy):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        require_free_run(tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        require_free_run(tmp_path / "mine")
    begun = make_run(tmp_path / "begun", toy)
    (begun / "checkpoint.safetensors").write_bytes(b"weeks of work")
    with pytest.raises(InputError, match=r"already holds a run.*--resume"):
        require_free_run(begun)
    with pytest.raises(InputError, match="already holds a run"):
        require_free_run(make_run(tmp_path / "other", toy), lambda out: (out / "run.json").is_file())


# --- continuing a run --------------------------------------------------------------------------------------------------------


def test_the_same_run_is_continued_and_nothing_is_not(tmp_path, toy):
    assert find_run(tmp_path / "nothing", Settings(), toy) is None
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".run.json.0a1b2c3d.tmp").write_text("{")
    assert find_run(tmp_path / "empty", Settings(), toy) is None
    make_run(tmp_path / "run", toy)
    before = contents(tmp_path / "run")
    assert find_run(tmp_path / "run", Settings(), toy) is not None
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (Settings(student="alexnet"), "student"),
        (Settings(loop=Part(rate=0.6)), "loop.rate"),
        (Settings(loop=Part(betas=(0.0, 0.8))), "loop.betas"),
        (Settings(data=Part(rate=0.6)), "data.rate"),
        (Settings(loop=Part(root="there")), "loop.root"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, toy, changed, name):
    make_run(tmp_path / "run", toy)
    with pytest.raises(InputError, match=rf"^{name.replace('.', '[.]')} is .*same settings") as caught:
        find_run(tmp_path / "run", changed, toy)
    assert "\n" not in str(caught.value)


def test_a_run_from_before_an_option_had_its_default(tmp_path, toy):
    make_run(tmp_path / "run", toy)
    path = tmp_path / "run" / "run.json"
    run = read_run(tmp_path / "run")
    del run["config"]["student"], run["config"]["loop"]
    write_document(path, run)
    assert find_run(tmp_path / "run", Settings(), toy) is not None
    with pytest.raises(InputError, match=r"^loop\.rate is .*same settings"):
        find_run(tmp_path / "run", Settings(loop=Part(rate=0.6)), toy)


def test_settings_and_whole_sections_may_be_allowed_to_change(tmp_path, toy):
    make_run(tmp_path / "run", toy)
    assert find_run(tmp_path / "run", Settings(data=Part(root="elsewhere")), toy)  # by default
    loop = Settings(loop=Part(rate=0.7, root="x"))
    assert find_run(tmp_path / "run", loop, toy, may_change=("loop",)) is not None
    assert find_run(tmp_path / "run", loop, toy, may_change=("loop.rate", "loop.root")) is not None
    with pytest.raises(InputError, match=r"loop\.rate"):
        find_run(tmp_path / "run", loop, toy, may_change=("loop.ra", "loop.root", "lo"))


def test_other_data_and_another_kind_are_refused(tmp_path, toy, spec):
    make_run(tmp_path / "run", toy)
    other = spec(1, 8, 3).__class__(**{**toy.__dict__, "name": "letters", "fingerprint": "other"})
    with pytest.raises(InputError, match=r"other data \(toy, now letters\)"):
        find_run(tmp_path / "run", Settings(), other)
    with pytest.raises(InputError, match="made by 'dim train': expected a folder made by 'dim experts'"):
        find_run(tmp_path / "run", Settings(), toy, kind="experts")


def test_a_folder_of_something_else_is_no_run_to_continue(tmp_path, toy):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is no run"):
        find_run(tmp_path, Settings(), toy)


# --- what a kill leaves ------------------------------------------------------------------------------------------------------


def test_records_are_cut_back_and_half_written_files_removed(tmp_path, toy):
    folder = make_run(tmp_path / "run", toy)
    for step in range(1, 6):
        append_metrics(folder, {"step": step, "loss": 1 / step})
    with open(folder / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 6, "lo')
    (folder / "samples").mkdir()
    for stale in (folder / ".run.json.0a1b2c3d.tmp", folder / "samples" / ".step.png.0a1b2c3d.tmp"):
        stale.write_bytes(b"half")
    kept = folder / "samples" / "step.png"
    kept.write_bytes(b"whole")
    assert [record["step"] for record in read_metrics(folder)] == [1, 2, 3, 4, 5]
    open_run(folder, run_description(Settings(student="alexnet"), toy, "cpu"), 3)
    assert read_metrics(folder) == [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    assert (folder / "metrics.jsonl").read_text().count("\n") == 3
    assert read_run(folder)["config"]["student"] == "alexnet"
    assert sorted(contents(folder)) == ["metrics.jsonl", "run.json", "samples/step.png"]


def test_a_run_without_records_has_none(tmp_path, toy):
    assert read_metrics(tmp_path) == []
    assert read_metrics(make_run(tmp_path / "run", toy)) == []


def test_the_default_configuration_survives_its_run(tmp_path, toy):
    make_run(tmp_path / "run", toy, config=TrainConfig())
    assert load_run_config(tmp_path / "run") == TrainConfig()
    assert find_run(tmp_path / "run", TrainConfig(), toy) is not None


def test_prefixes_come_and_go():
    tensors = {"weight": torch.zeros(1), "layer.bias": torch.ones(2)}
    named = prefixed("pool", tensors)
    assert list(named) == ["pool.weight", "pool.layer.bias"]
    assert unprefixed("pool", {**named, "poolish.weight": torch.zeros(3), "other": torch.zeros(4)}) == tensors
    assert unprefixed("other", named) == {}


def test_metrics_are_appended_where_nothing_else_writes(tmp_path):
    append_metrics(tmp_path, {"step": 1})
    before = os.stat(tmp_path / "metrics.jsonl").st_ino
    append_metrics(tmp_path, {"step": 2})
    assert os.stat(tmp_path / "metrics.jsonl").st_ino == before
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("kind", [["run"], {"run": 1}, None, 3, "other"])
def test_a_kind_that_is_none_is_refused(tmp_path, kind):
    """Its checksum may be right: anybody can write one."""
    write_document(tmp_path / "run.json", {"kind": kind, "config": {}, "spec": {}})
    with pytest.raises(InputError, match="does not describe a run"):
        read_run(tmp_path, None)
