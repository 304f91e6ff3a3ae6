"""A `.pt2` file of `torch.export`, for `torch.export.load`, AOTInductor and ExecuTorch."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dim.program import Program

__all__ = ["PT2"]


class PT2(Program):
    """See `dim.program.Program`. What it says of itself is its extra file `about.json`."""

    suffix = ".pt2"

    def write(self, path: Path, traced: torch.export.ExportedProgram, about: Mapping[str, Any]) -> None:
        with open(path, "wb") as file:  # PyTorch takes a path only if it ends in .pt2
            torch.export.save(traced, file, extra_files={"about.json": json.dumps(about, allow_nan=False)})

    def read(self, path: Path) -> Callable[[Tensor, Tensor], Tensor]:
        # Only files that `write` has just written: PyTorch may unpickle parts of one.
        with open(path, "rb") as file:
            return torch.export.load(file).module()
