"""Which data a run, a set or a generator has: what it says of them, and how they are found again."""

import os
from dataclasses import replace
from typing import Any, TypeVar

import torch

from dim.config import DataConfig, RecordConfig, TrainConfig, TrajectoryRecipe, from_dict
from dim.config.data import located, needs_size, reads_files
from dim.data.real import RealData, load_data
from dim.data.roots import known_root
from dim.errors import InputError
from dim.launch import say_once
from dim.spec import DataSpec

C = TypeVar("C", TrainConfig, RecordConfig, TrajectoryRecipe)


def usual_root(dataset: str, fingerprint: str, of_run: str | None = None) -> str | None:
    """Where data usually lie: below DIM_DATA_ROOT, where a run had them (`of_run`), or where the same data were found before.

    Somebody's own folder is no part of DIM_DATA_ROOT, which is asked last for it. None: no files, or no known place.
    """
    if not reads_files(dataset):
        return None
    sure = of_run if of_run and os.path.isabs(of_run) else None  # the command may run elsewhere than the run did
    usual, found = os.environ.get("DIM_DATA_ROOT"), sure or known_root(fingerprint) or of_run
    return (found or usual) if needs_size(dataset) else (usual or found)


def real_data_of(
    info: dict[str, Any],
    root: str | None,
    device: torch.device | str,
    spec: DataSpec | None = None,
    of_run: str | None = None,
) -> RealData:
    """The real data that a set or a generator says it was made from.

    Args:
        info: what it says.
        root: where they lie. Default: see `usual_root`; without `spec` only where DIM_DATA_ROOT says.
        device: where images are held.
        spec: of the set or generator. A note says so where what lies there now is not what it was made from.
        of_run: where a run had them.

    Raises:
        InputError: if it says nothing, or the data are not there.
    """
    if not info.get("data"):
        remedy = "give the real data (data= in Python, where data sets of Python are)"
        raise InputError(f"this set or generator does not say which data it was made from: {remedy}")
    config = from_dict(DataConfig, info["data"])
    if root is None and spec is not None:
        root = usual_root(config.dataset, spec.fingerprint, of_run)
    data = load_data(located(replace(config, root=root) if root else config), device)
    if spec is not None and spec.fingerprint and spec.fingerprint != data.spec.fingerprint:
        place = f" in {data.config.root}" if data.config.root else ""
        what = f"{data.spec.name!r}{place} has other training images or labels now than when this was made from it"
        say_once(f"dim: {what}: if the test part was taken from them, images that were trained on may be in it now")
    return data


def with_origin(config: C, data: RealData) -> C:
    """Settings of a run, with the data that it has in place of those that they name, unless only Python has the data."""
    return config if data.config is None else replace(config, data=data.config)
