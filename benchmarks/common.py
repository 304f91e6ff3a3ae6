"""What the benchmark programs share: how a row says what made it, and where results go.

Every row of a result has a `made`:

    commit          commit that was checked out when the program began, 12 digits; null with a `commit_reason` if there is none
    clean           whether the files under dim/ and benchmarks/ were those of the commit; if not, `changes` lists what differed
    sources         digests of the code: `dim` of the imported package with its recipes, `program` of the program and this file
    configuration   digest of the row's name and of all settings that it depends on
    scored          digests of the sets and generators that were scored, where there are some
    made_from       what lay finished on disk, such as a run or experts, and the sources that made each of them
    device, device_name, threads, versions
    wall_seconds    that making the row took; what lay finished does not count
    made_by_other_sources   true where `--keep-rows` took a row of other sources than the present ones

Rows of files with `"kind": "scores"` have these beside what `dim.evaluate.Score.made` says. Rows from before this was recorded
have `commit_means` in place of most of it.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

import dim
from dim.config import TrainConfig, flat, from_dict, to_dict
from dim.data.real import RealData
from dim.hub import load_generator
from dim.io import digest, load_tensors, read_json, write_document, write_json
from dim.nets.generator_file import FILE_NAME
from dim.outputs import atomic_folder
from dim.provenance import hardware, versions
from dim.run_folder import CHECKPOINT, RUN, read_metrics, read_run, run_description
from dim.runs.train import fit
from dim.score.record import Score
from dim.score.report import format_accuracy

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PACKAGE = Path(dim.__file__).parent


# --- which code this is -----------------------------------------------------------------------------------------------------


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints in a folder; None if it fails or is not installed."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def commit(root: Path = ROOT) -> str | None:
    """The commit that is checked out, 12 digits; None if `root` is not the top of a git work tree, or has no commit."""
    top, head = _git(root, "rev-parse", "--show-toplevel"), _git(root, "rev-parse", "HEAD")
    if top is None or head is None or Path(top.removesuffix("\n")).resolve() != root.resolve():
        return None
    return head[:12]


def changes(root: Path = ROOT) -> list[str]:
    """Files under dim/ and benchmarks/ that differ from the commit or are not in it; without results, which programs write.

    Raises:
        RuntimeError: if git cannot tell, as outside a work tree.
    """
    paths = ("dim", "benchmarks", ":(exclude)benchmarks/results")
    status = _git(root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", *paths)
    if status is None:
        raise RuntimeError(f"'git status' failed in {root}: expected a git work tree, whose commit is known")
    return sorted(entry[3:] for entry in status.split("\0") if entry)


def digest_of_files(folder: Path, files: Iterable[Path]) -> str:
    """Digest over names, relative to `folder`, and contents of files."""
    state = hashlib.blake2b(digest_size=16)
    for path in sorted(files):
        content = path.read_bytes()
        state.update(f"{path.relative_to(folder).as_posix()}|{len(content)}|".encode())
        state.update(content)
    return state.hexdigest()


def package_digest(package: Path = PACKAGE) -> str:
    """Digest over a package's Python files and recipes."""
    return digest_of_files(package, (path for path in package.rglob("*") if path.suffix in (".py", ".toml")))


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The code that a program runs: what rows are stamped with, and compared by."""

    commit: str | None
    changes: tuple[str, ...]
    """What differs from the commit."""
    package: str
    """Digest of dim, as imported."""
    program: str
    """Digest of the program, of its parts (files whose names begin with its own and `_`), and of this file."""

    @classmethod
    def of(cls, program: Path | str, root: Path = ROOT, package: Path = PACKAGE) -> "Sources":
        """The code at present.

        Args:
            program: `__file__` of the program.
            root: the work tree that the commit is of.
            package: the folder of the imported package.
        """
        program, imported, head = Path(program), package_digest(package), commit(root)
        differs = [] if head is None else changes(root)
        if imported != package_digest(root / "dim"):
            differs.append("dim (the imported package has other files than this work tree)")
        parts = program.parent.glob(f"{program.stem}_*.py")
        own = digest_of_files(program.parent, {program, program.parent / Path(__file__).name, *parts})
        return cls(commit=head, changes=tuple(differs), package=imported, program=own)

    def stamp(self) -> dict[str, Any]:
        """As rows hold it."""
        found = {"commit": self.commit, "clean": None if self.commit is None else not self.changes}
        if self.commit is None:
            found["commit_reason"] = "the program lies in no git work tree of its own"
        elif self.changes:
            found["changes"] = list(self.changes)
        return {**found, "sources": {"dim": self.package, "program": self.program}}


def _note(folder: Path) -> Path:
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}.made.json")


def note_sources(folder: Path, sources: Sources) -> None:
    """Note beside a folder that these sources make what is in it, or go on with it. To be called before it is made."""
    notes = read_json(_note(folder)) if folder.exists() and _note(folder).is_file() else []
    if folder.exists() and not notes:
        notes = origin(folder, sources)  # which says that nothing is known
    if sources.stamp() not in notes[-1:]:
        write_json(_note(folder), [*notes, sources.stamp()])


def origin(folder: Path, sources: Sources) -> list[dict[str, Any]]:
    """Stamps of the sources that made what is in a folder, first to last; those whose package is not the present one say so."""
    if not _note(folder).is_file():
        return [{"commit": None, "commit_reason": f"nothing beside {folder.name} says which sources made it"}]
    notes = read_json(_note(folder))
    for note in notes:
        if "sources" in note and note["sources"]["dim"] != sources.package:
            note["made_by_other_sources"] = True
    return notes


# --- runs -------------------------------------------------------------------------------------------------------------------


def changed(config: TrainConfig, changes: dict[str, dict[str, Any]]) -> TrainConfig:
    """A configuration with some sections' fields replaced."""
    return dataclasses.replace(config, **{name: changed_section(getattr(config, name), own) for name, own in changes.items()})


def changed_section(section: Any, changes: dict[str, Any]) -> Any:
    """A section with some fields replaced; where another choice is made, the former one's options are left out."""
    return from_dict(getattr(section, "declared", type(section)), changes, section)


def train(
    config: TrainConfig, data: RealData, out: Path, accelerator: Accelerator, sources: Sources, first: Path | None = None
) -> Path:
    """Train a run, or go on with it, and note the sources beside it; a finished run is left as it is.

    Args:
        config, data, out, accelerator: see `dim.runs.train.fit`.
        sources: the code.
        first: a run at whose end this one begins. Default: it begins with fresh networks.
    """
    about = load_generator(out).info["about"] if (out / FILE_NAME).is_file() else {"step": 0, "total_steps": None}
    if about["step"] != about["total_steps"]:
        note_sources(out, sources)
    if first is not None and not out.exists():
        begin_from(first, config, data, out, accelerator.device)
    return fit(config, data, out, resume=out.exists(), accelerator=accelerator)


def begin_from(first: Path, config: TrainConfig, data: RealData, out: Path, device: torch.device) -> None:
    """Make a run folder that resumes where the run in `first` ended, with other settings for what follows, which it states."""
    before, now = (flat(json.loads(json.dumps(values))) for values in (read_run(first)["config"], to_dict(config)))
    changes = {key: [before[key], now[key]] for key in before.keys() & now.keys() if before[key] != now[key]}
    step = load_tensors(first / CHECKPOINT)[1]["step"]
    with atomic_folder(out) as folder:
        shutil.copy(first / CHECKPOINT, folder / CHECKPOINT)
        departures = {"departures": [{"step": step, "changes": changes}]}
        write_document(folder / RUN, {**run_description(config, data.spec, device), **departures})


def epochs(steps: int, batch_size: int, data: RealData) -> float:
    """Epochs that are this many steps."""
    return steps * batch_size / len(data.train)


def seconds_per_step(
    config: TrainConfig, data: RealData, *, one: int = 40, two: int = 24, skipped: int = 4
) -> tuple[float, float]:
    """Wall time of a step of either stage, over a short run of `one` and `two` steps, of which the first are `skipped`."""
    lengths = {
        "stage_one": {"epochs": epochs(one, config.stage_one.batch_size, data)},
        "stage_two": {"epochs": epochs(two, config.stage_two.batch_size, data)},
        "fit": {"log_steps": skipped},
    }
    with tempfile.TemporaryDirectory() as scratch:
        run = fit(changed(config, lengths), data, Path(scratch) / "run")
        at = {record["step"]: record["seconds"] for record in read_metrics(run) if "lr" in record}
    first = (at[one] - at[skipped]) / (one - skipped)
    return first, (at[one + two] - at[one + skipped]) / (two - skipped)


# --- processes --------------------------------------------------------------------------------------------------------------


def in_new_process(child: Callable[..., Any], *arguments: Any) -> Any:
    """What a function puts into the queue that is its last argument, in a new process, which has nothing in memory yet.

    Raises:
        RuntimeError: if it ends without an answer.
    """
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=child, args=(*arguments, answer))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{arguments[0]} ended with {process.exitcode}: expected 0; was there enough memory?")
    return answer.get()


def peak_mib() -> float:
    """Largest resident memory that this process has had, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# --- rows -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class KeepRows:
    """The option of programs that find rows of earlier calls."""

    keep_rows: bool = False
    """Take rows in --out that other sources made, and mark them. Default: they are made again."""


class Rows:
    """Rows of a table, each stamped with what made it. With a folder, each is kept there when it is made, and found there when
    the same is asked for again and the sources are the same.

    Args:
        sources: the code.
        device: where rows are made.
        asked: what all rows depend on.
        made_from: by name, folders that all rows depend on.
        folder: where rows are kept. Default: nowhere.
        keep: take kept rows of other sources, too, and mark them.
    """

    def __init__(
        self,
        sources: Sources,
        device: torch.device | str,
        asked: Mapping[str, Any],
        *,
        made_from: Mapping[str, Path] | None = None,
        folder: Path | None = None,
        keep: bool = False,
    ) -> None:
        self.made: list[dict[str, Any]] = []
        self._sources, self._device, self._asked = sources, device, asked
        self._made_from, self._folder, self._keep = made_from or {}, folder, keep

    def add(
        self,
        name: str,
        make: Callable[[], dict[str, Any]],
        *,
        scored: Sequence[str] = (),
        made_from: Mapping[str, Path] | None = None,
        **facts: Any,
    ) -> dict[str, Any]:
        """Make a row, or find it made for the same facts; keep, print and return it.

        Args:
            name: of the row.
            make: returns what is measured.
            scored: digests of what is scored, where the scores in the row do not say it, or where the facts do not settle it.
            made_from: by name, folders that this row depends on.
            facts: what it depends on beside what all rows do.
        """
        key = digest({}, json.dumps([self._configuration(name, facts), list(scored)]))
        path = None if self._folder is None else self._folder / f"{key}.json"
        row = self._kept(name, path)
        if row is None:
            started = time.perf_counter()
            content = make()
            seconds = time.perf_counter() - started
            row = self._stamped(name, content, seconds, scored, made_from or {}, facts)
            if path is not None:
                write_json(path, row)
        return self._shown(row)

    def put(
        self,
        name: str,
        content: dict[str, Any],
        wall_seconds: float,
        *,
        scored: Sequence[str] = (),
        made_from: Mapping[str, Path] | None = None,
        **facts: Any,
    ) -> dict[str, Any]:
        """Add a row that was made in pieces, in `wall_seconds` altogether; see `add`. It is not kept."""
        return self._shown(self._stamped(name, content, wall_seconds, scored, made_from or {}, facts))

    def _configuration(self, name: str, facts: Mapping[str, Any]) -> str:
        return digest({}, json.dumps({"name": name, "asked": self._asked, "facts": facts}, sort_keys=True))

    def _kept(self, name: str, path: Path | None) -> dict[str, Any] | None:
        if path is None or not path.is_file():
            return None
        row = read_json(path)
        if row["made"]["sources"] == self._sources.stamp()["sources"]:
            return row
        if self._keep:
            return {**row, "made": {**row["made"], "made_by_other_sources": True}}
        print(f"{name}: made by other sources (commit {row['made']['commit']}), so made again; --keep-rows takes it", flush=True)
        return None

    def _stamped(
        self,
        name: str,
        content: dict[str, Any],
        seconds: float,
        scored: Sequence[str],
        made_from: Mapping[str, Path],
        facts: Mapping[str, Any],
    ) -> dict[str, Any]:
        scores = [*content.get("scores", ()), *([content["score"]] if "score" in content else ())]
        found = scored or [score["made"]["digest"] for score in scores if score["made"].get("digest")]
        place = hardware(self._device)
        made = {
            **self._sources.stamp(),
            "configuration": self._configuration(name, facts),
            "scored": list(dict.fromkeys(found)),
            "made_from": {what: origin(folder, self._sources) for what, folder in {**self._made_from, **made_from}.items()},
            "device": place["device"],
            "device_name": place["name"],
            "threads": place["threads"],
            "versions": versions(),
            "wall_seconds": round(seconds, 3),
        }
        made = {key: value for key, value in made.items() if value or key not in ("scored", "made_from")}
        return {"name": name, **facts, **content, "made": made}

    def _shown(self, row: dict[str, Any]) -> dict[str, Any]:
        self.made.append(row)
        parts = [f"{metric} {value:.3g}" for metric, value in row.get("coverage", {}).get("metrics", {}).items()]
        parts += [f"{score.track} {score.ipc}: {format_accuracy(score)}" for score in map(Score.from_dict, row.get("scores", []))]
        if parts:
            print(f"{row['name']}: {', '.join(parts)}", flush=True)
        return row


def scores_of(scores: Iterable[Score]) -> dict[str, Any]:
    """As a row holds them."""
    return {"scores": [score.to_dict() for score in scores]}


def stamped_scores(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The scores of rows, as a file with `"kind": "scores"` holds them: each says itself what made its row."""
    return [{**score, "made": {**score["made"], **row["made"]}} for row in rows for score in row["scores"]]


def save(name: str, content: dict[str, Any], folder: Path | None = None) -> Path:
    """Write `results/NAME.json`, or the same in another folder: `rows` or `scores`, and facts that they have in common."""
    rows = content["rows"] if "rows" in content else content["scores"]
    assert all("commit" in row["made"] for row in rows), "a row without its making: add it to a `Rows`"
    path = (RESULTS if folder is None else folder) / f"{name}.json"
    write_json(path, content)
    return path
