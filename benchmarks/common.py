"""What the benchmark programs share: where results go and what they say of their making."""

import dataclasses
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from dim.config import TrainConfig
from dim.data.real import RealData
from dim.io import atomic_folder, digest, read_json, write_json
from dim.provenance import hardware, versions
from dim.run_folder import CHECKPOINT, RUN, read_metrics, run_description
from dim.runs.train import fit
from dim.score.record import Score
from dim.score.report import format_accuracy

RESULTS = Path(__file__).parent / "results"


def commit() -> str:
    """The commit that is checked out, with `+changes` if the tree differs from it."""
    root = Path(__file__).parent.parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "dim"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def changed(config: TrainConfig, changes: dict[str, dict[str, Any]]) -> TrainConfig:
    """A configuration with some sections' fields replaced."""
    return dataclasses.replace(config, **{k: dataclasses.replace(getattr(config, k), **v) for k, v in changes.items()})


def begin_from(first: Path, config: TrainConfig, data: RealData, out: Path, device: torch.device) -> None:
    """Make a run folder that resumes where the run in `first` ended, with other settings for what follows."""
    with atomic_folder(out) as folder:
        shutil.copy(first / CHECKPOINT, folder / CHECKPOINT)
        write_json(folder / RUN, run_description(config, data.spec, device))


def epochs(steps: int, batch_size: int, data: RealData) -> float:
    """Epochs that are this many steps."""
    return steps * batch_size / len(data.train)


def seconds_per_step(config: TrainConfig, data: RealData) -> tuple[float, float]:
    """Wall time of a step of either stage, measured over a short run."""
    one, two, skipped = 40, 24, 4
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


class Rows:
    """Rows of a table, each kept in a folder when it is made, and found there when the same is asked for again.

    Args:
        folder: where.
        asked: what all rows depend on.
    """

    def __init__(self, folder: Path, asked: dict[str, Any]) -> None:
        self.made: list[dict[str, Any]] = []
        self._folder, self._asked = folder, asked

    def add(self, name: str, make: Callable[[], dict[str, Any]], **facts: Any) -> None:
        """Make a row, or find it made for the same facts; keep and print it."""
        key = digest({}, json.dumps({"name": name, "asked": self._asked, **facts}))
        path = self._folder / f"{key}.json"
        if not path.is_file():
            write_json(path, {"name": name, **facts, **make()})
        row = read_json(path)
        self.made.append(row)
        parts = [f"{metric} {value:.3g}" for metric, value in row.get("coverage", {}).get("metrics", {}).items()]
        parts += [f"{score.track} {score.ipc}: {format_accuracy(score)}" for score in map(Score.from_dict, row.get("scores", []))]
        print(f"{name}: {', '.join(parts)}", flush=True)


def scores_of(scores: Iterable[Score]) -> dict[str, Any]:
    """As a row holds them."""
    return {"scores": [score.to_dict() for score in scores]}


def save(name: str, content: dict[str, Any], device: torch.device | str) -> Path:
    """Write `results/NAME.json`, with commit, versions and hardware beside the content."""
    path = RESULTS / f"{name}.json"
    write_json(path, {"commit": commit(), "versions": versions(), "hardware": hardware(device), **content})
    return path
