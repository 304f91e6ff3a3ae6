"""What commands look up: sets and generators by name, the real data that they were made from, devices."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dim.commands.arguments import SamplerArguments
from dim.config.data import reads_files
from dim.errors import InputError


def load_subjects(names: Sequence[str], device: Any, sampler: SamplerArguments) -> dict[str, Any]:
    """Sets and generators by name."""
    from dim.data.stored import DESCRIPTION
    from dim.data.synthetic import load_set
    from dim.hub import load_generator

    subjects: dict[str, Any] = {}
    for name in names:
        if (Path(name) / DESCRIPTION).is_file():
            subjects[name] = load_set(name, device)
        else:
            subjects[name] = load_generator(name, device).configure(**sampler.given())
    return subjects


def data_of_subjects(subjects: dict[str, Any], root: str | None, device: Any) -> Any:
    """The real data that the first subject says it was made from."""
    return real_data(next(iter(subjects.values())).info, root, tuple(subjects), device)


def real_data(info: dict[str, Any], root: str | None, subjects: Sequence[str], device: Any) -> Any:
    """The real data that a set or a generator was made from, under a root that was given, or where it usually lies."""
    from dim.score.evaluate import real_data_of

    if root is None and info.get("data") and reads_files(info["data"]["dataset"]):
        root = os.environ.get("DIM_DATA_ROOT") or root_of_runs(subjects)
    return real_data_of(info, root, device)


def root_of_runs(subjects: Sequence[str]) -> str | None:
    """Where the real data lay when the first run among the subjects was made."""
    from dim.run_folder import read_run

    runs = [name for name in subjects if (Path(name) / "run.json").is_file()]
    return read_run(runs[0], None)["config"]["data"].get("root") if runs else None


def device_of(name: str | None) -> Any:
    """A device that can be used: the one that is named, or a GPU if there is one, or the CPU.

    Raises:
        InputError: if it cannot be used.
    """
    import torch

    if name is None:
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # of `meta`, which holds nothing, there is no way back
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}): try cpu") from None
    return device
