"""What a part of a data set is: a digest of all its images and labels, and their statistics, from one pass over them."""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL
import torch
from torch import Tensor

from dim.data.pillow import describe_converted
from dim.errors import InputError
from dim.io import cache_folder, digest, keep_tensors, load_tensors
from dim.launch import launched, say_once
from dim.loop import Progress
from dim.spec import to_uint8

_FORMAT = 2  # of kept surveys; to be raised when the same files are decoded to other images
_PATIENCE_SECONDS, _REFRESH_SECONDS = 3.0, 0.2


@dataclass(frozen=True)
class Survey:
    """What one pass over a part finds."""

    digest: str
    """Of the labels and of the images as 8 bits per channel, in order."""
    mean: tuple[float, ...]
    """Per channel, of images in [0, 1]; six digits, so that it is the same on every device."""
    std: tuple[float, ...]
    """Per channel, at least 0.001, so that constant images still divide."""
    converted: dict[int, int] = field(default_factory=dict)
    """What had to be done to how many images; see `dim.data.pillow.count_converted`."""


def survey(labels: Tensor, chunks: Iterable[Tensor]) -> Survey:
    """Look at all images of a part.

    Args:
        labels: int64 (N,), on the CPU.
        chunks: float32 (B, C, H, W) images in [-1, 1], N of them in all, in order.
    """
    state = hashlib.blake2b(labels.numpy().tobytes(), digest_size=16)
    count, total, square = 0, torch.zeros(1), torch.zeros(1)
    for images in chunks:
        state.update(to_uint8(images).cpu().contiguous().numpy())
        images = images.double().add_(1).div_(2)
        count += images.numel() // images.shape[1]
        total = total + images.sum((0, 2, 3)).cpu()
        square = square + images.square_().sum((0, 2, 3)).cpu()
    mean = total / max(count, 1)
    std = (square / max(count, 1) - mean**2).clamp(min=0).sqrt()
    return Survey(state.hexdigest(), *(tuple(max(round(v, 6), low) for v in x.tolist()) for x, low in ((mean, 0.0), (std, 1e-3))))


def survey_key(state: str, settings: str, indices: Tensor, labels: Tensor) -> str:
    """Name of the survey of a part that is decoded from files.

    Args:
        state: of the files; see `dim.data.items.Items`. If it is empty, so is the name.
        settings: all that decoding depends on.
        indices: int64 (N,), which files.
        labels: int64 (N,), of these.
    """
    libraries = f"Pillow {PIL.__version__}, PyTorch {torch.__version__}"
    text = f"{_FORMAT} {state} {settings} {libraries}"
    return digest({"indices": indices, "labels": labels}, text) if state else ""


def recall(key: str) -> Survey | None:
    """The survey of this name from the user's cache folder, if it was kept and is whole."""
    try:
        tensors, about = load_tensors(_path(key))
    except InputError:
        return None
    converted = {int(kind): count for kind, count in about["converted"].items()}
    return Survey(about["digest"], tuple(tensors["mean"].tolist()), tuple(tensors["std"].tolist()), converted)


def keep(key: str, found: Survey) -> None:
    """Keep a survey for the next start."""
    tensors = {name: torch.tensor(getattr(found, name), dtype=torch.float64) for name in ("mean", "std")}
    keep_tensors(_path(key), tensors, {"kind": "survey", "digest": found.digest, "converted": found.converted})


def _path(key: str) -> Path:
    return cache_folder("data") / f"{key}.safetensors"


class Reading:
    """Progress of reading images or files, which appears when it takes more than a few seconds."""

    def __init__(self, what: str, total: int, unit: str = "image") -> None:
        self._what, self._total, self._unit = what, total, unit
        self._next, self._shown, self._done = time.monotonic() + _PATIENCE_SECONDS, 0, 0
        self._progress: Progress | None = None

    def __enter__(self) -> "Reading":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._progress is not None:
            self._show()
            self._progress.__exit__(*exception)

    def advance(self, count: int = 1) -> None:
        """Count what has been read."""
        self._done += count
        if time.monotonic() > self._next:
            self._next = time.monotonic() + _REFRESH_SECONDS
            self._show()

    def _show(self) -> None:
        if self._progress is None:
            self._progress = Progress(self._what, self._total, self._done, unit=self._unit, show=launched()[0] == 0)
        else:
            self._progress.advance(self._done - self._shown)
        self._shown = self._done
        self._progress.show({}, self._what)


def tell(what: str, converted: dict[int, int]) -> None:
    """Say on standard error what had to be done to images, if anything."""
    if any(converted.values()):
        say_once(f"{what}: {describe_converted(converted)}")
