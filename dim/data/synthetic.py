"""SyntheticSet: a stored set of images with labels, whatever method made it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dim.coding.container import is_coded
from dim.coding.sets import read_coded_set
from dim.data.format import Format
from dim.data.stored import DESCRIPTION, format_of, read_folder, write_folder
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.io import digest, reading
from dim.launch import say_once
from dim.nets.generator import Generator, occurrence
from dim.nets.generator_file import FILE_NAME, load_generator_file
from dim.repository import HUB, repository_of, require_answer
from dim.spec import DataSpec, as_unit_range

_SCALE = 4.0
"""Float images that reach this far, and hardly below 0, are on another scale than [-1, 1]. Learned pixels may lie far outside of
it, but on both sides."""


class SyntheticSet(Dataset):
    """A map-style Dataset of (image float32 (C, H, W) in [-1, 1], target).

    Images are held as they are stored. Sets drawn from a generator hold 8 bits per channel, so what is scored in memory
    is bit by bit what a saved folder gives back (one of latents on the same kind of machine); sets of learned pixels may hold
    float32.

    Args:
        images: (N, C, H, W), uint8, or float32 in [-1, 1].
        labels: int64 (N,).
        spec: the data set that it stands for.
        soft: float32 (N, classes) target probabilities or None; then items give these in place of the label.
        info: JSON about its making: method, seed, generator, protocol, ...
        transform: applied to an item's image.
        latents: float32 (N, Z) or (N, Z + E), see `Generator`, from which the generator in `info` makes the images, or None. Then
            it counts as stored in that form.

    Attributes:
        file_bytes: of the coded file that it was read from; None: it was not.

    Raises:
        InputError: if shapes disagree, a label is out of range, images or latents hold a value that is not finite, float images
            look like 0 to 255, or soft labels are no probabilities.
    """

    file_bytes: int | None = None

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        spec: DataSpec,
        *,
        soft: Tensor | None = None,
        info: Mapping[str, Any] | None = None,
        transform: Callable[[Tensor], Any] | None = None,
        latents: Tensor | None = None,
    ) -> None:
        images, labels = _tensor(images, "images"), _tensor(labels, "labels")
        soft = None if soft is None else _tensor(soft, "soft labels")
        if tuple(images.shape[1:]) != spec.image_shape or len(images) == 0:
            raise InputError(f"images have shape {tuple(images.shape)}: expected (N, {', '.join(map(str, spec.image_shape))})")
        if images.dtype not in (torch.uint8, torch.float32):
            raise InputError(f"images are {images.dtype}: expected uint8, or float32 in [-1, 1]")
        if labels.dtype not in (torch.uint8, torch.int16, torch.int32, torch.int64):
            raise InputError(f"labels are {labels.dtype}: expected int64")
        if labels.shape != (len(images),):
            raise InputError(f"labels have shape {tuple(labels.shape)}: expected ({len(images)},), one for each image")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= spec.num_classes:
            raise InputError(
                f"labels do not fit {spec.num_classes} classes: {low} to {high}, expected 0 to {spec.num_classes - 1}"
            )
        if soft is not None and soft.shape != (len(images), spec.num_classes):
            raise InputError(f"soft labels have shape {tuple(soft.shape)}: expected ({len(images)}, {spec.num_classes})")
        _require_values(images, soft, latents)
        self.images, self.labels, self.soft = images.cpu(), labels.long().cpu(), None if soft is None else soft.float().cpu()
        if latents is not None and (latents.ndim != 2 or len(latents) != len(images)):
            raise InputError(f"latents have shape {tuple(latents.shape)}: expected ({len(images)}, Z)")
        self.spec, self.info, self.transform = spec, dict(info or {}), transform
        if latents is not None and not {"digest", "bytes"} <= self.info.get("generator", {}).keys():
            raise InputError("latents were given and info does not say of which generator: expected its digest and bytes there")
        self.latents = None if latents is None else latents.float().cpu()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image = self.images[index]
        image = as_unit_range(image) if image.dtype == torch.uint8 else image.clone()
        if self.transform is not None:
            image = self.transform(image)
        return image, int(self.labels[index]) if self.soft is None else self.soft[index]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All images, float32 (N, C, H, W) in [-1, 1], and all targets, int64 (N,) or float32 (N, classes)."""
        return as_unit_range(self.images), self.labels if self.soft is None else self.soft

    @property
    def ipc(self) -> int | None:
        """Images per class, if every class has as many."""
        counts = torch.bincount(self.labels, minlength=self.spec.num_classes)
        return int(counts[0]) if bool((counts == counts[0]).all()) else None

    def bytes_stored(self) -> dict[str, int]:
        """Uncompressed bytes of images and labels, or of latents, their generator, and labels; of a set from a coded file, those
        of the whole file.

        Hard labels count `DataSpec.label_bytes` each; soft labels four bytes per probability, and those of which only the k
        largest are kept (`info["top_k"]`) the class of each beside it.
        """
        if self.file_bytes is not None:
            return {"file": self.file_bytes}
        label = self.spec.label_bytes if self.soft is None else self.spec.soft_label_bytes(self.info.get("top_k") or 0)
        labels = {"labels": len(self) * label}
        if self.latents is not None:
            return {"generator": self.info["generator"]["bytes"], "latents": 4 * self.latents.numel()} | labels
        return {"images": self.images.numel() * self.images.element_size()} | labels

    def content(self) -> dict[str, Tensor]:
        """The tensors by name: images, labels, and soft labels if there are any."""
        content = {"images": self.images, "labels": self.labels}
        return content if self.soft is None else {**content, "soft": self.soft}

    def save(
        self,
        path: Path | str,
        format: str | type[Format] = "imagefolder",
        *,
        overwrite: bool = False,
        generator: Generator | None = None,
        whitening: Whitening | None = None,
    ) -> Path:
        """Write a folder, atomically.

        Args:
            path: a folder that does not exist or is empty.
            format: a name from `dim.data.formats`, where a file describes each, or a `dim.data.format.Format` of your own.
                Default: PNG files in class folders. Some need the extra `export`; one is for sets that hold latents.
            overwrite: replace what is there.
            generator: for a format of latents: the one that the set was drawn from, as `dim.load_generator` gave it.
            whitening: for a format of another program that sees whitened images where the set's students do: that of the data.

        Raises:
            InputError: if the folder holds something, the format is unknown, or it cannot hold such images.
        """
        kind, content = format_of(format), self.content()
        if kind.latents:
            if self.latents is None or generator is None:
                missing = "no generator was given" if self.latents is not None else "this set holds no latents"
                raise InputError(
                    f"format is {kind.name!r} and {missing}: draw a set with latents=True, and save it with its generator"
                )
            _require_generator(generator, self.info, "the generator that was given")
            content["latents"] = self.latents
            del content["images"]
        made_with = {"generator": generator, "whitening": whitening}
        return write_folder(path, content, self.spec, self.info, kind, overwrite=overwrite, **made_with)


def _tensor(values: Any, name: str) -> Tensor:
    """A tensor of what was given, an array or a list of numbers, too."""
    try:
        tensor = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} are a {type(values).__name__}: expected a tensor") from None
    if tensor.is_meta or tensor.layout != torch.strided:
        raise InputError(
            f"{name} are a tensor that is {'on meta' if tensor.is_meta else 'sparse'}: expected values for all images"
        )
    return tensor


def _require_values(images: Tensor, soft: Tensor | None, latents: Tensor | None) -> None:
    """Refuse numbers that cannot be meant."""
    for name, values in (("images", images), ("soft labels", soft), ("latents", latents)):
        if values is not None and values.is_floating_point() and not bool(values.isfinite().all()):
            bad = int((~values.isfinite()).flatten(1).any(1).sum())
            raise InputError(f"{name} of {bad} of {len(values)} images hold values that are not finite: expected finite numbers")
    if images.is_floating_point():
        low, high = float(images.min()), float(images.max())
        found = f"float images reach from {low:g} to {high:g}"
        if high > _SCALE and low > -0.1 * high:
            raise InputError(f"{found}: expected [-1, 1]; give uint8, or divide 0 to 255 by 127.5 and subtract 1")
        if low >= 0 and high > 0.5:
            say_once(f"dim: {found}: taken as [-1, 1], where 0 is middle grey; of images in [0, 1], give 2 * images - 1")
    if soft is not None and not (bool((soft >= 0).all()) and bool(((soft.sum(1) - 1).abs() < 0.01).all())):
        raise InputError("soft labels are no probabilities: expected numbers of at least 0 that sum to 1 for every image")


def _require_generator(generator: Generator, info: Mapping[str, Any], which: str) -> None:
    """Refuse another generator than the one that a set was drawn from, or other options of its sampler."""
    if digest(generator.state_dict()) != info["generator"]["digest"]:
        raise InputError(f"{which} is not the one that the set was drawn from: expected that one")
    if generator.sampler != info.get("sampler", {}):
        has, wanted = generator.sampler, info.get("sampler", {})
        raise InputError(f"{which} has the sampler options {has}: expected those that the set was drawn with, {wanted}")


def load_set(path: Path | str, device: torch.device | str = "cpu") -> SyntheticSet:
    """Read a folder written by `SyntheticSet.save`, in any of its formats, a coded file, or a set on the Hugging Face Hub.

    Args:
        path: the folder, a file made with `--bytes`, or `hub:owner/name`, a dataset of the Hub.
        device: where images are drawn if the set is stored as latents. They are bit by bit those that were drawn if it is the
            same kind of machine.

    Raises:
        InputError: if the folder is missing, is no set, or is damaged, or the Hub does not give it.
    """
    if is_coded(path):
        content, spec, info = read_coded_set(path)
        with reading(path):
            coded = _made_of(path, content, spec, info, device)
        coded.file_bytes = Path(path).stat().st_size
        return coded
    path = downloaded(str(path)) if str(path).startswith(HUB) else path
    content, spec, info = read_folder(path)
    with reading(path):
        return _made_of(path, content, spec, info, device)


def downloaded(name: str) -> Path:
    """The folder of a set that `hub:owner/name` names, from the Hub, or from an earlier download.

    Raises:
        InputError: if there is no such set, or the Hub does not answer.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository = repository_of(name, "a set")
    require_answer(repository, DESCRIPTION, "set", "dataset")
    try:
        return Path(snapshot_download(repository, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"the Hub did not give the set {repository!r} ({reason}): try again") from None


def _made_of(
    path: Path | str, content: dict[str, Tensor], spec: DataSpec, info: dict[str, Any], device: torch.device | str
) -> SyntheticSet:
    """The set of what a folder holds."""
    latents, labels = content.get("latents"), content["labels"]
    if latents is not None:
        generator = load_generator_file(Path(path) / FILE_NAME, device)
        _require_generator(generator, info, str(Path(path) / FILE_NAME))
        content["images"] = generator.pixels(labels, occurrence(labels), seed=0, latents=latents)
    return SyntheticSet(content["images"], content["labels"], spec, soft=content.get("soft"), info=info, latents=latents)
