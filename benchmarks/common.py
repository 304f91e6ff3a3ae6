"""What the benchmark programs share: where results go and what they say of their making."""

import subprocess
from pathlib import Path
from typing import Any

import torch

from dim.io import write_json
from dim.provenance import hardware, versions

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


def save(name: str, content: dict[str, Any], device: torch.device | str) -> Path:
    """Write `results/NAME.json`, with commit, versions and hardware beside the content."""
    path = RESULTS / f"{name}.json"
    write_json(path, {"commit": commit(), "versions": versions(), "hardware": hardware(device), **content})
    return path
