"""Expert trajectories on disk: one memory-mapped array [experts, checkpoints, P], and what describes it.

A store is a folder: `run.json` (how it was made), `experts.json` (layout, and the record of every finished expert) and
`weights.bin`. A full store has a checkpoint at every recorded moment; a waypoint store has a few of them, and the path
lengths from which `dim.trajectory.path` fills in the rest (MCT).
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dim.config import RecordConfig
from dim.errors import InputError
from dim.io import read_document, reading, write_document
from dim.outputs import atomic_folder
from dim.run_folder import load_run_config, read_run
from dim.spec import DataSpec

LAYOUT = "experts.json"
WEIGHTS = "weights.bin"
STATE = "state.safetensors"
"""Of the experts that are being recorded."""
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

    def check(self) -> None:
        """Raise ValueError for a layout that no store has."""
        whole = [self.experts, *self.moments, *(size for _, size in self.tensors)]
        if not all(isinstance(value, int) and value >= 0 for value in whole) or self.experts < 1 or self.parameters < 1:
            raise ValueError("a number of experts, moments or weights is none")
        if self.moments[0] != 0 or list(self.moments) != sorted(set(self.moments)) or not self.every > 0:
            raise ValueError(f"moments {self.moments[:5]} ... do not ascend from 0")
        if self.dtype not in _DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}")

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
    digests: tuple[str, ...] = ()
    """BLAKE2b digest of every checkpoint as it is stored. Experts of earlier versions have none."""

    @classmethod
    def from_dict(cls, values: dict[str, Any], layout: Layout) -> "ExpertRecord":
        """Inverse of `dataclasses.asdict`, from parsed JSON; ValueError or TypeError for what does not fit the layout."""
        lengths = tuple(tuple(map(float, moment)) for moment in values["lengths"])
        accuracies, digests = tuple(map(float, values["accuracies"])), tuple(map(str, values.get("digests", ())))
        if len(lengths) != layout.last or any(len(moment) != len(layout.tensors) for moment in lengths):
            raise ValueError("path lengths do not fit the layout")
        if len(accuracies) != layout.last + 1 or len(digests) not in (0, len(layout.moments)):
            raise ValueError("accuracies or digests do not fit the layout")
        return cls(**{**values, "lengths": lengths, "accuracies": accuracies, "digests": digests})


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
    """Reads and writes a store. `open` opens one; experts and checkpoints have numbers from 0.

    Args:
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

        Args:
            folder: where it is to lie; made if it is not there.
            layout: what it will hold.

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
        """Open the store in `folder`; it may have unfinished experts.

        Raises:
            InputError: if the folder holds none, or it is damaged or cut short.
        """
        folder = Path(folder)
        if not (folder / LAYOUT).is_file():
            raise InputError(f"{folder} holds no experts: expected a folder made by 'dim experts' (it has no {LAYOUT})")
        values = read_document(folder / LAYOUT)
        with reading(folder / LAYOUT):
            layout = values["layout"]
            tensors = tuple((name, size) for name, size in layout["tensors"])
            layout = Layout(**{**layout, "moments": tuple(layout["moments"]), "tensors": tensors})
            layout.check()
            records = {int(number): ExpertRecord.from_dict(record, layout) for number, record in values["records"].items()}
        size = (folder / WEIGHTS).stat().st_size if (folder / WEIGHTS).is_file() else 0
        if size != layout.bytes:
            raise InputError(
                f"{folder / WEIGHTS} has {size:,} bytes, expected {layout.bytes:,}: it was cut short; restore it or record again"
            )
        return cls(folder, layout, records)

    def _write_layout(self) -> None:
        records = {str(number): asdict(record) for number, record in sorted(self.records.items())}
        write_document(self.folder / LAYOUT, {"layout": asdict(self.layout), "records": records})

    # --- weights -----------------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether every expert is finished."""
        return len(self.records) == self.layout.experts

    def weights(self, expert: int, position: int) -> Tensor:
        """Checkpoint number `position` of `expert`, float32 (P,), a copy in memory that PyTorch aligned: kernels of some
        processors round by alignment, and a slice of a file may lie anywhere.

        Raises:
            InputError: if it is not what was recorded, or holds a value that is not finite.
        """
        theta = torch.empty(self.layout.parameters, dtype=self._torch_dtype)
        content = theta.view(torch.uint8).numpy()
        content[:] = self._array()[expert, position].view(np.uint8)
        digests = self.records[expert].digests if expert in self.records else ()
        damaged = bool(digests) and _digest(content) != digests[position]
        if damaged or not bool(theta.isfinite().all()):
            what = "is damaged" if damaged else "holds values that are not finite"
            moment = self.layout.moments[position]
            remedy = "restore it or record the experts again"
            raise InputError(f"{self.folder / WEIGHTS}: expert {expert} at moment {moment} {what}; {remedy}")
        return theta.float()

    def write(self, expert: int, position: int, theta: Tensor) -> None:
        """Store a checkpoint; the live weights may change afterwards.

        Args:
            expert: its number.
            position: of the checkpoint.
            theta: float (P,) weights, on any device.

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
        """Declare an `expert` finished, with its `record`, once all its checkpoints are safely on disk."""
        with open(self.folder / WEIGHTS, "r+b") as handle:
            os.fsync(handle.fileno())
        digests = tuple(_digest(checkpoint.view(np.uint8)) for checkpoint in self._array()[expert])
        self.records[expert] = replace(record, digests=digests)
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


def _digest(content: np.ndarray) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


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
        run = read_run(store.folder, "experts")
        run["config"]["experts"] |= {"waypoints": count, "smooth": smooth, "storage": dtype}
        write_document(folder / "run.json", run)
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
