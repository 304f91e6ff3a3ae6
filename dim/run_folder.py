"""Run folders: what every kind of training leaves on disk while it works, and how such a folder is recognised, refused and
continued.

A run has `run.json` (its kind, configuration, data, versions), `metrics.jsonl`, and a checkpoint from which it continues.
Generators, expert trajectories and distilled sets are trained by loops of their own; everything around a loop is here.
"""

import contextlib
import dataclasses
import json
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dim.config import GENERATORS, Section, TrainConfig, flat, from_dict, to_dict
from dim.errors import InputError
from dim.io import read_json, require_free, write_bytes, write_json
from dim.processes import ALONE, Processes
from dim.provenance import hardware, versions
from dim.spec import DataSpec

T = TypeVar("T")

CHECKPOINT = "checkpoint.safetensors"
FAILED = "failed.safetensors"
RUN = "run.json"
METRICS = "metrics.jsonl"
# The command that makes each kind of run.
KINDS = {"run": "train", "experts": "experts", "distillation": "distill"}
# What may change when a run is resumed, whatever its kind: nothing that the result depends on.
MAY_CHANGE = ("about", "protocol", "data.root", "data.download", "data.memory_gib")


def run_description(
    config: Any, spec: DataSpec, device: torch.device | str, kind: str = "run", *, processes: Processes = ALONE
) -> dict[str, Any]:
    """What run.json says."""
    return {
        "format": 1,
        "kind": kind,
        "config": to_dict(config),
        "spec": spec.to_dict(),
        "hardware": hardware(device),
        "processes": processes.world,
        "versions": versions(),
    }


def beginning(out: Path, description: Mapping[str, Any], *, resumed: bool) -> dict[str, int]:
    """The processes and threads that a run begins with, or began with if it is resumed: what its exact digits depend on."""
    if resumed and (out / RUN).is_file() and "began" in (run := read_json(out / RUN)):
        return run["began"]
    return {"processes": description["processes"], "threads": description["hardware"]["threads"]}


def inexact_resume(out: Path, kind: str, processes: Processes) -> str | None:
    """Why a run that is resumed here will not end bit by bit as one that goes on as it began; None: it will, as far as these
    count."""
    run = read_run(out, kind)
    began, now = run.get("began", {}), {}
    if run.get("hardware", {}).get("device") == "cpu":
        now["threads"] = torch.get_num_threads()
    if kind != "experts":  # one process records an expert, whatever their number
        now["processes"] = processes.world
    changed = [f"{began[name]} {name}, now {count}" for name, count in now.items() if began.get(name, count) != count]
    if not changed:
        return None
    return f"{out} goes on with other means than it began with ({'; '.join(changed)}): it does not end the same bit by bit"


def read_run(out: Path | str, kind: str | None = "run") -> dict[str, Any]:
    """Parse run.json of a run folder.

    Raises:
        InputError: if the folder is no run, or none of this kind (None: any).
    """
    path = Path(out) / RUN
    if not path.is_file():
        raise InputError(f"{out} is no run: expected a folder made by 'dim {KINDS[kind or 'run']}' (it has no {RUN})")
    run = read_json(path)
    if not isinstance(run, dict) or run.get("kind") not in KINDS:
        raise InputError(f"{path} is damaged: it does not describe a run; restore it or make it again")
    if kind is not None and run["kind"] != kind:
        raise InputError(f"{out} was made by 'dim {KINDS[run['kind']]}': expected a folder made by 'dim {KINDS[kind]}'")
    return run


def load_run_config(out: Path | str, cls: type[T] = TrainConfig, kind: str = "run") -> T:
    """The configuration of the run in a folder."""
    return from_dict(cls, _acting(cls, read_run(out, kind)["config"]))


def _acting(cls: type, stored: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration without what does not act in it: earlier versions took options of choices that were not made."""
    hints, kept = typing.get_type_hints(cls), dict(stored)
    for name, values in stored.items():
        section = hints.get(name)
        if isinstance(section, type) and issubclass(section, Section) and isinstance(values, dict):
            chosen = section.chosen_by(dict(values))
            own = {field.name for field in dataclasses.fields(section.having(chosen))}
            kept[name] = {key: value for key, value in values.items() if key in own or not section.choices.owners(key)}
    if "generator" in kept and "stage_one" in hints:
        used = {setting.partition(".")[0] for setting in GENERATORS.load(kept["generator"].get("name", "gan")).settings}
        kept = {key: value for key, value in kept.items() if key not in {"adversarial", "discriminator", "flow"} - used}
    return kept


def require_free_run(
    out: Path, holds_result: Callable[[Path], bool] = lambda out: (out / CHECKPOINT).is_file(), *, kind: str = "run"
) -> None:
    """Refuse a folder that holds a run with something to lose, a run of another kind, or anything else."""
    if (out / RUN).is_file():
        read_run(out, kind)  # another kind keeps what it has in other files
    if holds_result(out):
        raise InputError(f"{out} already holds a run: continue it with --resume, or name a new folder")
    if not (out / RUN).is_file():
        if out.is_dir() and all(file.name.endswith(".tmp") for file in out.iterdir()):
            return
        require_free(out)


def check_same_run(
    out: Path, config: Any, spec: DataSpec, *, kind: str = "run", may_change: Collection[str] = MAY_CHANGE
) -> bool:
    """Whether there is a run to continue; refuse another data set or other settings than it began with.

    Args:
        out: the folder.
        config: the settings now.
        spec: the data now.
        kind: what kind of run is expected.
        may_change: settings, or sections of them, that the result does not depend on.

    Raises:
        InputError: naming the first difference.
    """
    if not out.exists() or not any(file for file in out.iterdir() if not file.name.endswith(".tmp")):
        return False
    run = read_run(out, kind)
    if run["spec"]["fingerprint"] != spec.fingerprint:
        before, now = run["spec"]["name"], spec.name
        raise InputError(f"{out} was trained on other data ({before}, now {now}): resume with the same data set and split")
    # A run of an earlier version lacks what has become an option since: it had the default.
    known = {field.name for field in dataclasses.fields(config)}
    stored = {key: value for key, value in run["config"].items() if key in known}
    before = flat(to_dict(from_dict(type(config), _acting(type(config), stored))))
    now = flat(to_dict(config))
    for key in now:
        allowed = any(key == prefix or key.startswith(f"{prefix}.") for prefix in may_change)
        if not allowed and (key not in before or before[key] != now[key]):
            there = repr(before[key]) if key in before else "another choice"
            raise InputError(f"{key} is {now[key]!r}: the run in {out} has {there}; resume with the same settings")
    return True


def open_run(out: Path, description: Mapping[str, Any], step: int) -> None:
    """Create the folder, or clear what a kill left half-written and cut the records back to the step that is continued."""
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.rglob(".*.tmp"):
        stale.unlink()
    write_json(out / RUN, {**description, "began": beginning(out, description, resumed=step > 0)})
    if (out / METRICS).exists():
        _write_metrics(out, [record for record in read_metrics(out) if record["step"] <= step])


def add_metrics(out: Path, other: Path) -> None:
    """Add the records of a folder to those of another, in the order of steps; the added ones replace those of the same step."""
    records = {record["step"]: record for folder in (out, other) for record in read_metrics(folder)}
    _write_metrics(out, [records[step] for step in sorted(records)])


def _write_metrics(out: Path, records: Sequence[Mapping[str, Any]]) -> None:
    write_bytes(out / METRICS, "".join(json.dumps(record) + "\n" for record in records).encode())


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The records of a run, without a last line that a kill left half-written."""
    records = []
    if (out / METRICS).is_file():
        for line in (out / METRICS).read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
    return records


def append_metrics(out: Path, record: Mapping[str, Any]) -> None:
    """Add one record."""
    with open(out / METRICS, "a") as handle:
        handle.write(json.dumps(dict(record)) + "\n")


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names with `prefix.` before them."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def unprefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
