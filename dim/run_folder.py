"""Run folders: what every kind of training leaves on disk while it works, and how such a folder is recognised, refused and
continued.

A run has `run.json` (its kind, configuration, data, versions), `metrics.jsonl`, and a checkpoint from which it continues.
Generators, expert trajectories and distilled sets are trained by loops of their own; everything around a loop is here.
"""

import contextlib
import dataclasses
import json
import sys
import typing
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dim.config import GENERATORS, Section, TrainConfig, flat, from_dict, to_dict
from dim.errors import InputError
from dim.io import load_tensors, read_document, reading, write_document
from dim.outputs import holds_nothing, remove_leftovers, require_free, write_bytes
from dim.processes import ALONE, Processes
from dim.provenance import hardware, versions
from dim.spec import DataSpec
from dim.text import say

T = TypeVar("T")

CHECKPOINT = "checkpoint.safetensors"
FAILED = "failed.safetensors"
RUN = "run.json"
METRICS = "metrics.jsonl"
# The command that makes each kind of run.
KINDS = {"run": "train", "experts": "experts", "distillation": "distill"}
# What may change when a run is resumed, whatever its kind: nothing that the result depends on.
MAY_CHANGE = ("about", "protocol", "data.root", "data.download", "data.memory_gib")
_CRC = "crc"
_WANTED = {"kind": str, "config": dict, "spec": dict}


def run_description(
    config: Any,
    spec: DataSpec,
    device: torch.device | str,
    kind: str = "run",
    *,
    processes: Processes = ALONE,
    images: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """What run.json says; `images` are those of the parts of the data."""
    return {
        "kind": kind,
        "config": to_dict(config),
        "spec": spec.to_dict(),
        **({"images": dict(images)} if images else {}),
        "hardware": hardware(device),
        "processes": processes.world,
        "versions": versions(),
    }


def what_is_read(description: Mapping[str, Any]) -> str:
    """The data of a run in one line, from what run.json says; empty if it does not say how many images there are."""
    spec, images = description["spec"], description.get("images")
    if not images:
        return ""
    kind, parts = "grey" if spec["channels"] == 1 else "RGB", ", ".join(f"{count:,} {part}" for part, count in images.items())
    size = f"{spec['height']}x{spec['width']} pixels"
    return f"data: {spec['name']}: {len(spec['class_names']):,} classes, {kind}, {size}; images: {parts}"


def inexact(description: Mapping[str, Any], processes: Processes) -> str | None:
    """How a run that goes on differs from its beginning in what its digits depend on; None: in nothing that is known.

    Args:
        description: what run.json says.
        processes: those of now.
    """
    began, now = description.get("began", {}), {}
    if description.get("hardware", {}).get("device") == "cpu":
        now["threads"] = torch.get_num_threads()
    if description["kind"] != "experts":  # one process records an expert, whatever their number
        now["processes"] = processes.world
    changed = [f"{name} {began[name]}, now {count}" for name, count in now.items() if began.get(name, count) != count]
    return f"goes on with other means than it began with ({'; '.join(changed)})" if changed else None


def read_run(out: Path | str, kind: str | None = "run") -> dict[str, Any]:
    """Parse run.json of a run folder.

    Raises:
        InputError: if the folder is no run, or none of this kind (None: any).
    """
    path = Path(out) / RUN
    if not path.is_file():
        raise InputError(f"{out} is no run: expected a folder made by 'dim {KINDS[kind or 'run']}' (it has no {RUN})")
    run = read_document(path)
    if not all(isinstance(run.get(key), wanted) for key, wanted in _WANTED.items()) or run["kind"] not in KINDS:
        raise InputError(f"{path} is damaged: it does not describe a run; restore it or make it again")
    if kind is not None and run["kind"] != kind:
        raise InputError(f"{out} was made by 'dim {KINDS[run['kind']]}': expected a folder made by 'dim {KINDS[kind]}'")
    return run


def load_run_config(out: Path | str, cls: type[T] = TrainConfig, kind: str = "run") -> T:
    """The configuration of the run in a folder."""
    return stored_config(cls, read_run(out, kind), out)


def stored_config(cls: type[T], run: Mapping[str, Any], out: Path | str) -> T:
    """The configuration in a parsed run.json."""
    with reading(Path(out) / RUN):
        return from_dict(cls, _acting(cls, run["config"]))


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
        require_free(out)


@dataclasses.dataclass(frozen=True)
class Found:
    """A run that lies in a folder, and how the settings of now depart from those that it has."""

    config: Any
    description: dict[str, Any]
    """What run.json says."""
    departures: dict[str, list[Any]]
    """By setting, the value before and now."""


def find_run(
    out: Path,
    config: Any,
    spec: DataSpec,
    *,
    kind: str = "run",
    may_change: Collection[str] = MAY_CHANGE,
    may_depart: Collection[str] = (),
    depart: bool = False,
) -> Found | None:
    """The run to continue, if there is one; refuse another data set or other settings than it began with.

    Args:
        out: the folder.
        config: the settings now.
        spec: the data now.
        kind: what kind of run is expected.
        may_change: settings, or sections of them, that the result does not depend on.
        may_depart: settings in which the run may be continued with another value, which is then stated in run.json.
        depart: whether the user asks for that.

    Raises:
        InputError: naming the first difference.
    """
    if not out.exists() or (out.is_dir() and holds_nothing(out)):
        return None
    run = read_run(out, kind)
    there = run["spec"]
    if there.get("fingerprint") != spec.fingerprint:
        before, now = there.get("name"), spec.name
        raise InputError(f"{out} was trained on other data ({before}, now {now}): resume with the same data set and split")
    # A run of an earlier version lacks what has become an option since: it had the default.
    known = {field.name for field in dataclasses.fields(config)}
    stored = {**run, "config": {key: value for key, value in run["config"].items() if key in known}}
    held = stored_config(type(config), stored, out)
    before, now = flat(to_dict(held)), flat(to_dict(config))
    departures = {}
    for key in now:
        if _among(key, may_change) or (key in before and before[key] == now[key]):
            continue
        if not depart or not _among(key, may_depart) or key not in before:
            value = repr(before[key]) if key in before else "another choice"
            hint = ", or go on with this one by --depart" if key in before and _among(key, may_depart) else ""
            raise InputError(f"{key} is {now[key]!r}: the run in {out} has {value}; resume with the same settings{hint}")
        departures[key] = [before[key], now[key]]
    return Found(held, run, departures)


def _among(key: str, names: Iterable[str]) -> bool:
    """Whether a setting is one of these, or of one of these sections."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def lasting(config: Any, spec: DataSpec, may_change: Collection[str]) -> dict[str, Any]:
    """Everything that a run's result depends on, by name, as JSON has it: all settings but `may_change`, and the data. Every
    checkpoint holds it."""
    settings = {key: value for key, value in flat(to_dict(config)).items() if not _among(key, may_change)}
    return json.loads(json.dumps({**settings, "fingerprint": spec.fingerprint}))


def load_checkpoint(
    out: Path,
    wanted: Mapping[str, Any],
    changes: Mapping[str, Sequence[Any]],
    device: torch.device | str = "cpu",
    name: str = CHECKPOINT,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The checkpoint of a run: its tensors and its metadata.

    Args:
        out: the folder.
        wanted: what the run depends on, see `lasting`. Checkpoints of earlier versions lack what they did not know.
        changes: by setting, the value before and now, where the run departed from its settings after this checkpoint.
        device: where to put tensors.
        name: of the file.

    Raises:
        InputError: if it is missing, damaged, or of a run with other settings or data.
    """
    tensors, metadata = load_tensors(out / name, device)
    held, step = metadata.get("of", {}), metadata.get("step")
    if not isinstance(held, dict) or not isinstance(step, int) or step < 0:
        raise InputError(f"{out / name} is damaged: it does not say its run and step; restore it or begin anew")
    for key in held.keys() & wanted.keys():
        if held[key] != wanted[key] and held[key] != changes.get(key, [wanted[key]])[0]:
            what = f"{key} {held[key]!r}, and {out / RUN} says {wanted[key]!r}"
            raise InputError(f"{out / name} is of a run with {what}: they do not belong together; restore both")
    return tensors, metadata


def open_run(out: Path, description: Mapping[str, Any], step: int) -> None:
    """Create the folder, or clear what a kill left half-written and cut the records back to the step that is continued."""
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    write_document(out / RUN, description)
    if (out / METRICS).exists():
        _write_metrics(out, [record for record in read_metrics(out, tell=True) if record["step"] <= step])


def add_metrics(out: Path, other: Path) -> None:
    """Add the records of a folder to those of another, in the order of steps; the added ones replace those of the same step."""
    records = {record["step"]: record for folder in (out, other) for record in read_metrics(folder)}
    _write_metrics(out, [records[step] for step in sorted(records)])


def _write_metrics(out: Path, records: Iterable[Mapping[str, Any]]) -> None:
    write_bytes(out / METRICS, "".join(map(_line, records)).encode())


def read_metrics(out: Path, *, tell: bool = False) -> list[dict[str, Any]]:
    """The records of a run, without lines that were damaged or that a kill left half-written.

    Args:
        out: the folder.
        tell: say on standard error how many lines were left out.
    """
    if not (out / METRICS).is_file():
        return []
    lines = (out / METRICS).read_bytes().splitlines()
    parsed = [record for record in map(_parsed_line, lines) if record is not None]
    if any(_CRC in record for record in parsed):  # earlier versions wrote none; open_run adds them
        parsed = [record for record in parsed if record.pop(_CRC, None) == _crc(record)]
    if tell and len(parsed) < len(lines):
        say(f"dim: {len(lines) - len(parsed)} damaged lines of {out / METRICS} are left out", sys.stderr)
    return parsed


def append_metrics(out: Path, record: Mapping[str, Any]) -> None:
    """Add one record."""
    with open(out / METRICS, "a") as handle:
        handle.write(_line(record))


def _line(record: Mapping[str, Any]) -> str:
    record = json.loads(json.dumps(dict(record)))
    return json.dumps({**record, _CRC: _crc(record)}) + "\n"


def _parsed_line(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(line)
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            return record
    return None


def _crc(record: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names with `prefix.` before them."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def unprefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
