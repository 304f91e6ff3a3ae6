"""Distilled sets as other projects publish them, made sets of ours: natural images, with the protocol that they carry.

MTT, TESLA and DATM write images, labels and, DATM, the learned step size to files of their own, class by class; DC, DSA and DM
write one file with a list of [images, labels]. The images there are what a student sees: normalised, or ZCA-whitened.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dim.config import DataConfig, ProtocolConfig, to_dict
from dim.config.data import located
from dim.data.normalise import Normalisation, known_to, published
from dim.data.real import RealData, load_data
from dim.data.synthetic import SyntheticSet
from dim.data.torch_files import read_torch, require_dense
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.provenance import versions
from dim.spec import DataSpec

Convention = Literal["dc", "mtt", "zca", "none"]
SoftLabels = Literal["logits", "probabilities"]
_ROUNDING = 1e-4  # of normalising and back, in [-1, 1]; a level of 8 bits is 80 times as much


@dataclass(frozen=True)
class Published:
    """What files of other projects hold: images (N, C, H, W) and labels (N,) or (N, classes) as they are there, and perhaps the
    learned step size."""

    images: Tensor
    labels: Tensor
    step_size: float | None = None


def read_published(files: Sequence[Path | str], experiment: int | None = None) -> Published:
    """Read the files of one set. What each holds is told by its shape: images have four dimensions, a step size has one value.

    Args:
        files: `images_best.pt`, `labels_best.pt` and perhaps `lr_best.pt`; or `res_*.pt`.
        experiment: which of several sets in a `res_*.pt`, from 0.

    Raises:
        InputError: if a file holds something else, or images or labels are missing or there twice.
    """
    found: dict[str, Tensor | float] = {}
    several = False
    for file in files:
        content = read_torch(file)
        if isinstance(content, dict) and "data" in content:
            several = True
            content = _one_of(content["data"], experiment, file)
        for part in content if isinstance(content, list | tuple) else [content]:
            name, value = _told(part, file)
            if name in found:
                raise InputError(f"{file} holds {name}, and there are some already: expected the files of one set")
            found[name] = value
    if experiment is not None and not several:
        raise InputError(f"experiment is {experiment}, and no file holds several sets: leave --experiment out")
    if missing := [name for name in ("images", "labels") if name not in found]:
        names = ", ".join(map(str, files))
        raise InputError(
            f"{names} hold no {' and no '.join(missing)}: expected images and labels, as images_best.pt labels_best.pt"
        )
    return Published(**{name.replace(" ", "_"): value for name, value in found.items()})


def _one_of(sets: Any, experiment: int | None, file: Path | str) -> Any:
    """One of the sets in a `res_*.pt`."""
    if not isinstance(sets, list | tuple) or not sets:
        raise InputError(f"{file} has no sets under 'data': expected a list of [images, labels]")
    if experiment is None and len(sets) > 1:
        raise InputError(f"{file} holds {len(sets)} sets: choose one with --experiment, from 0 to {len(sets) - 1}")
    if not 0 <= (experiment or 0) < len(sets):
        raise InputError(f"experiment is {experiment}: expected 0 to {len(sets) - 1}, as {file} holds {len(sets)} sets")
    return sets[experiment or 0]


def _told(part: Any, file: Path | str) -> tuple[str, Tensor | float]:
    """What a value in a file is, by its shape."""
    if isinstance(part, float):
        return "step size", part
    if isinstance(part, Tensor):
        part = require_dense(part, file)
        if part.is_floating_point() and part.numel() == 1 and part.ndim < 2:
            return "step size", part.item()
        if part.ndim == 4 and (part.is_floating_point() or part.dtype == torch.uint8):
            return "images", part
        if part.ndim == 1 or (part.ndim == 2 and part.is_floating_point()):
            return "labels", part
    what = f"a tensor {tuple(part.shape)} of {part.dtype}" if isinstance(part, Tensor) else f"a {type(part).__name__}"
    expected = "images (N, C, H, W), labels (N,) or (N, classes), a step size, or {'data': [[images, labels]]}"
    raise InputError(f"{file} holds {what}: expected {expected}")


def import_set(
    files: Sequence[Path | str],
    config: DataConfig,
    *,
    normalised_by: Convention | Normalisation,
    soft_labels: SoftLabels | None = None,
    step_size: float | None = None,
    experiment: int | None = None,
    clip: bool = False,
    protocol: ProtocolConfig | None = None,
    device: torch.device | str = "cpu",
) -> SyntheticSet:
    """Read a published set and bring its images back to natural ones.

    Args:
        files: see `read_published`.
        config: the data set that it stands for. Published sets are made of the whole training part: `val_fraction=0`.
        normalised_by: `dc` or `mtt`: with the constants in that code; `zca`: whitened by the training part of `config`; `none`:
            in [0, 1], or uint8; or other constants.
        soft_labels: what labels (N, classes) are; DATM's are `logits`. They are class by class then, in equal numbers.
        step_size: the learned one, where no file holds it.
        experiment: which of several sets.
        clip: bring values outside [-1, 1] to the border. Default: they stay as they are, as those of `dim distill`.
        protocol: by which students are trained on it. Its `zca` is set for whitened images.
        device: where the whitening is fitted.

    Returns:
        The set; `info["imported"]` says how many of how many values lay outside [-1, 1] by more than rounding, and whether they
        were clipped.

    Raises:
        InputError: if the files do not fit the data, or something is not said that cannot be told from them.
    """
    found = read_published(files, experiment)
    step_size = _one_step_size(step_size, found.step_size)
    data = load_data(located(config), device)
    labels, soft = _labels(found, data.spec, soft_labels)
    images = _natural(found.images, data, normalised_by, device)
    outside = int((images.abs() > 1 + _ROUNDING).sum()) if images.is_floating_point() else 0
    imported = {
        "files": [Path(file).name for file in files],
        "normalised_by": normalised_by if isinstance(normalised_by, str) else dataclasses.asdict(normalised_by),
        "outside": outside,
        "values": images.numel(),
        "clipped": clip,
    }
    protocol = protocol or ProtocolConfig()
    info = {
        "method": "imported",
        "imported": imported,
        "data": to_dict(dataclasses.replace(config, root=None)),
        "protocol": to_dict(dataclasses.replace(protocol, zca=protocol.zca or normalised_by == "zca")),
        "versions": versions(),
    }
    info |= {} if step_size is None else {"step_size": step_size}
    info |= {} if soft is None else {"teacher": "imported"}
    images = images.clamp(-1, 1) if clip and images.is_floating_point() else images
    return SyntheticSet(images, labels, data.spec, soft=soft, info=info)


def _one_step_size(given: float | None, found: float | None) -> float | None:
    if given is not None and found is not None:
        raise InputError(f"step size is {given:g}, and a file holds {found:g}: leave one out")
    step_size = found if given is None else given
    if step_size is not None and not (math.isfinite(step_size) and step_size > 0):
        raise InputError(f"step size is {step_size:g}: expected a positive number")
    return step_size


def _natural(images: Tensor, data: RealData, by: Convention | Normalisation, device: torch.device | str) -> Tensor:
    """Natural images of what a student sees: uint8, or float32 where 0 and 255 are -1 and 1."""
    spec = data.spec
    if tuple(images.shape[1:]) != spec.image_shape:
        raise InputError(f"images have shape {tuple(images.shape)}: expected (N, {', '.join(map(str, spec.image_shape))})")
    if images.dtype == torch.uint8:
        if by != "none":
            raise InputError(
                f"images are 8 bits per channel, and normalised by {by!r} they would not be: use --normalised-by none"
            )
        return images.clone()
    if not bool(images.isfinite().all()):
        raise InputError("images hold values that are not finite: expected finite numbers")
    images = images.float()
    if by == "none":
        if float(images.max()) > 16:
            raise InputError(f"images reach up to {float(images.max()):g}: expected [0, 1], or uint8")
        return images * 2 - 1
    if by == "zca":
        whitening = Whitening.fit(data.train, spec, device=device)
        return torch.cat([whitening.natural(part.to(device)).cpu() for part in images.split(1024)])
    by = _constants(by, spec) if isinstance(by, str) else by
    if len(by.mean) != spec.channels or len(by.std) != spec.channels or min(by.std) <= 0:
        raise InputError(f"mean {by.mean} and std {by.std}: expected {spec.channels} of each, std above 0")
    return by.invert(images)


def _constants(code: str, spec: DataSpec) -> Normalisation:
    constants = published(code, spec.name)
    if constants is None:
        known = ", ".join(known_to(code))
        raise InputError(f"{code} has no constants for {spec.name!r}, but for {known}: give the set's own with --mean and --std")
    return constants


def _labels(found: Published, spec: DataSpec, kind: SoftLabels | None) -> tuple[Tensor, Tensor | None]:
    """Hard labels, int64 (N,), and soft ones, or None."""
    labels, count, classes = found.labels, len(found.images), spec.num_classes
    if labels.shape not in ((count,), (count, classes)):
        raise InputError(f"labels have shape {tuple(labels.shape)}: expected ({count},), or ({count}, {classes}) for {spec.name}")
    if labels.ndim == 1:
        if kind is not None:
            raise InputError(f"soft labels are {kind!r}, and the file holds one class for each image: leave --soft-labels out")
        if labels.is_floating_point() and not torch.equal(labels, labels.round()):
            raise InputError("labels are no whole numbers: expected a class for each image")
        return labels.long().clone(), None
    if kind is None:
        sums = labels.sum(1)
        shown = f"they reach from {float(labels.min()):.3g} to {float(labels.max()):.3g} with sums to {float(sums.max()):.3g}"
        raise InputError(
            f"labels are soft ({shown}): say with --soft-labels whether they are logits, as DATM's, or probabilities"
        )
    soft = labels.float().softmax(1) if kind == "logits" else labels.float().clone()
    if count % classes:
        raise InputError(f"{count} images of {classes} classes with soft labels: expected as many of each class, class by class")
    hard = torch.arange(classes).repeat_interleave(count // classes)
    if (likely := int((soft.argmax(1) == hard).sum())) * 2 < count:
        many = f"{likely} of {count} soft labels have their class in front"
        raise InputError(f"{many}, where images are taken class by class: expected at least half; is it another data set?")
    return hard, soft
