"""Expert trajectories on disk: one memory-mapped array [experts, checkpoints, P], and what describes it.

A store is a folder: `run.json` (how it was made), `experts.json` (layout, and the record of every finished expert) and
`weights.bin`. A full store has a checkpoint at every recorded moment; a waypoint store has a few of them, and the path
lengths from which `dim.trajectory.path` fills in the rest (MCT).
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dim.config import RecordConfig
from dim.errors import InputError
from dim.io import atomic_folder, read_json, write_json
from dim.run_folder import load_run_config, read_run
from dim.spec import DataSpec

LAYOUT = "experts.json"
WEIGHTS = "weights.bin"
STATE = "state.safetensors"
"""Of the experts that are being recorded."""
_VERSION = 1
_DTYPES = {"float32": (torch.float32, np.float32), "bfloat16": (torch.bfloat16, np.uint16)}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is in a store."""

    experts: int
    """Number of experts."""
    moments: tuple[int, ...]
    """Recorded moments that have a checkpoint, ascending, from 0 to the last."""
    every: float
    """Epochs between two recorded moments."""
    tensors: tuple[tuple[str, int], ...]
    """Name and size of every parameter tensor, in the order of the flat vector."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage of a weight."""

    @property
    def parameters(self) -> int:
        """P."""
        return sum(size for _, size in self.tensors)

    @property
    def last(self) -> int:
        """The last recorded moment."""
        return self.moments[-1]

    @property
    def full(self) -> bool:
        """Whether every moment has a checkpoint."""
        return len(self.moments) == self.last + 1

    @property
    def bytes(self) -> int:
        """Size of the array."""
        return self.experts * len(self.moments) * self.parameters * (4 if self.dtype == "float32" else 2)


@dataclass(frozen=True, kw_only=True)
class ExpertRecord:
    """What is known of a finished expert."""

    lengths: tuple[tuple[float, ...], ...]
    """For every moment after the first and every parameter tensor, the length of the step that led there."""
    accuracies: tuple[float, ...]
    """Accuracy in percent at every moment, on 2,000 validation images; on as many training images if nothing is held out."""
    test_accuracy: float
    """At the last moment, in percent; nothing is chosen by it."""


def waypoint_moments(last: int, count: int, *, smooth: bool = False) -> tuple[int, ...]:
    """Moments of `count` waypoints from 0 to `last`, evenly spaced as MCT has them: 0, 17, 34, 50 for 4 of 50.

    Raises:
        InputError: if there are not so many; smoothed ones must leave out a moment, or they would pass for the checkpoints.
    """
    most = last if smooth else last + 1
    if not 2 <= count <= most:
        raise InputError(f"waypoints is {count}: expected 2 to {most}{' where they are smoothed' if smooth else ''}")
    return tuple(-(-last * index // (count - 1)) for index in range(count))


class ExpertStore:
    """Reads and writes a store.

    Attributes:
        folder: where it lies.
        layout: what is in it.
        records: of the finished experts, by number.
    """

    def __init__(self, folder: Path, layout: Layout, records: dict[int, ExpertRecord]) -> None:
        self.folder, self.layout, self.records = folder, layout, records
        self._torch_dtype, self._numpy_dtype = _DTYPES[layout.dtype]

    @classmethod
    def create(cls, folder: Path | str, layout: Layout) -> "ExpertStore":
        """Make an empty store and reserve its disk space, so that a full disk is found now.

        Raises:
            OSError: if there is no space.
        """
        store = cls(Path(folder), layout, {})
        store.folder.mkdir(parents=True, exist_ok=True)
        with open(store.folder / WEIGHTS, "wb") as handle:
            try:
                os.posix_fallocate(handle.fileno(), 0, layout.bytes)
            except AttributeError:  # not on this system
                handle.truncate(layout.bytes)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(store.folder / WEIGHTS)) from None
        store._write_layout()
        return store

    @classmethod
    def open(cls, folder: Path | str) -> "ExpertStore":
        """Open a store; it may have unfinished experts.

        Raises:
            InputError: if the folder holds none, or it is damaged or cut short.
        """
        folder = Path(folder)
        if not (folder / LAYOUT).is_file():
            raise InputError(f"{folder} holds no experts: expected a folder made by 'dim experts' (it has no {LAYOUT})")
        values = read_json(folder / LAYOUT)
        try:
            if values["format"] > _VERSION:
                newer = values["format"]
                raise InputError(f"{folder} has format {newer}: this version reads up to {_VERSION}; upgrade dim-distill")
            layout = values["layout"]
            tensors = tuple((name, size) for name, size in layout["tensors"])
            layout = Layout(**{**layout, "moments": tuple(layout["moments"]), "tensors": tensors})
            if layout.dtype not in _DTYPES:
                raise ValueError(f"unknown dtype {layout.dtype!r}")
            records = {}
            for number, record in values["records"].items():
                record["lengths"] = tuple(map(tuple, record["lengths"]))
                records[int(number)] = ExpertRecord(**{**record, "accuracies": tuple(record["accuracies"])})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{folder / LAYOUT} is damaged ({error}): restore it or record the experts again") from None
        size = (folder / WEIGHTS).stat().st_size if (folder / WEIGHTS).is_file() else 0
        if size != layout.bytes:
            raise InputError(
                f"{folder / WEIGHTS} has {size:,} bytes, expected {layout.bytes:,}: it was cut short; restore it or record again"
            )
        return cls(folder, layout, records)

    def _write_layout(self) -> None:
        records = {str(number): asdict(record) for number, record in sorted(self.records.items())}
        write_json(self.folder / LAYOUT, {"format": _VERSION, "layout": asdict(self.layout), "records": records})

    # --- weights -----------------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether every expert is finished."""
        return len(self.records) == self.layout.experts

    def weights(self, expert: int, position: int) -> Tensor:
        """Checkpoint number `position` of an expert, float32 (P,), a copy in memory that PyTorch aligned: kernels of some
        processors round by alignment, and a slice of a file may lie anywhere."""
        stored = self._array()[expert, position]
        theta = torch.empty(self.layout.parameters, dtype=self._torch_dtype)
        theta.view(torch.uint8).numpy()[:] = stored.view(np.uint8)
        return theta.float()

    def write(self, expert: int, position: int, theta: Tensor) -> None:
        """Store a checkpoint, float (P,); the live weights may change afterwards.

        Raises:
            ValueError: if the vector is not of P values.
            OSError: if the disk refuses it.
        """
        if theta.shape != (self.layout.parameters,):
            raise ValueError(f"weights have shape {tuple(theta.shape)}: expected ({self.layout.parameters},)")
        stored = theta.detach().to("cpu", self._torch_dtype).contiguous().clone()
        content = stored.view(torch.uint8).numpy().tobytes()
        offset = (expert * len(self.layout.moments) + position) * len(content)
        with open(self.folder / WEIGHTS, "r+b") as handle:
            handle.seek(offset)
            handle.write(content)

    def finish(self, expert: int, record: ExpertRecord) -> None:
        """Declare an expert finished, once all its checkpoints are safely on disk."""
        with open(self.folder / WEIGHTS, "r+b") as handle:
            os.fsync(handle.fileno())
        self.records[expert] = record
        self._write_layout()

    def _array(self) -> np.ndarray:
        shape = (self.layout.experts, len(self.layout.moments), self.layout.parameters)
        return np.memmap(self.folder / WEIGHTS, dtype=self._numpy_dtype, mode="r", shape=shape)

    # --- what users ask ----------------------------------------------------------------------------------------------------

    def require_complete(self) -> None:
        """Raise InputError if an expert is missing."""
        if not self.complete:
            done, wanted = len(self.records), self.layout.experts
            raise InputError(f"{self.folder} has {done} of {wanted} experts: finish it with 'dim experts --out ... --resume'")

    def bytes(self) -> int:
        """Bytes of weights and path lengths. Path lengths count only where paths need them, in a waypoint store."""
        lengths = 0 if self.layout.full else 4 * self.layout.experts * self.layout.last * len(self.layout.tensors)
        return self.layout.bytes + lengths

    def digest(self) -> str:
        """Path lengths and accuracies tell recordings apart, wherever the folder lies."""
        return hashlib.blake2b((self.folder / LAYOUT).read_bytes(), digest_size=16).hexdigest()

    def summary(self) -> dict[str, Any]:
        """Experts, moments, bytes, and accuracy along the trajectory (mean over finished experts)."""
        accuracies = [record.accuracies for record in self.records.values()]
        mean = [sum(values) / len(values) for values in zip(*accuracies, strict=True)]
        tests = [record.test_accuracy for record in self.records.values()]
        return {
            "experts": len(self.records),
            "moments": list(self.layout.moments),
            "epochs": self.layout.last * self.layout.every,
            "parameters": self.layout.parameters,
            "bytes": self.bytes(),
            "accuracy": mean,
            "test_accuracy": sum(tests) / len(tests) if tests else None,
        }


def open_experts_of(folder: Path | str, spec: DataSpec) -> tuple[ExpertStore, RecordConfig]:
    """Open a finished store and how it was recorded; refuse experts of other data.

    Raises:
        InputError: naming what differs or is missing.
    """
    store = ExpertStore.open(folder)
    recorded = load_run_config(folder, RecordConfig, "experts")
    there = DataSpec.from_dict(read_run(folder, "experts")["spec"])
    if (there.name, there.image_shape) != (spec.name, spec.image_shape):
        has, wanted = f"{there.name} at {there.image_shape}", f"{spec.name} at {spec.image_shape}"
        raise InputError(f"{folder} holds experts of {has}: expected {wanted}; record experts with this recipe")
    if there.fingerprint != spec.fingerprint:
        raise InputError(f"{folder} holds experts of another {spec.name} or another split: use the one they were trained on")
    store.require_complete()
    return store, recorded


def to_waypoints(
    store: ExpertStore, out: Path | str, count: int, *, smooth: bool = False, dtype: Literal["float32", "bfloat16"] = "float32"
) -> ExpertStore:
    """Convert a full store to one of `count` waypoints per expert (MCT), in a new folder.

    Args:
        store: with a checkpoint at every moment.
        out: a folder that does not exist or is empty.
        count: waypoints per expert, 2 or more.
        smooth: replace waypoints by means of their neighbours; see `smoothed`.
        dtype: storage of a weight.

    Raises:
        InputError: if the store is not full or not complete, or the folder holds something.
    """
    if not store.layout.full:
        raise InputError(f"{store.folder} holds waypoints already: expected a store with every checkpoint")
    store.require_complete()
    moments = waypoint_moments(store.layout.last, count, smooth=smooth)
    layout = Layout(**{**store.layout.__dict__, "moments": moments, "dtype": dtype})
    with atomic_folder(out) as folder:
        made = ExpertStore.create(folder, layout)
        for expert in range(layout.experts):
            for position, moment in enumerate(moments):
                around = {near: store.weights(expert, near) for near in needed(moment, layout.last, smooth)}
                made.write(expert, position, smoothed(around, moment, layout.last) if smooth else around[moment])
            made.finish(expert, store.records[expert])
        run = read_json(store.folder / "run.json")
        run["config"]["experts"] |= {"waypoints": count, "smooth": smooth, "storage": dtype}
        write_json(folder / "run.json", run)
    return ExpertStore.open(out)


def needed(moment: int, last: int, smooth: bool) -> Sequence[int]:
    """Moments whose weights a waypoint is made of."""
    if not smooth or moment == 0:
        return (moment,)
    return (moment - 1, moment) if moment == last else (moment - 1, moment + 1)


def smoothed(around: dict[int, Tensor], moment: int, last: int) -> Tensor:
    """A waypoint as MCT's published code smooths it: the mean of the moments before and after; at the end, of the last two."""
    parts = [around[near] for near in needed(moment, last, True)]
    return sum(parts) / len(parts)
