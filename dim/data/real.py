"""Real data: any image classification data set as splits that give batches by index.

A split either holds its images as one uint8 tensor on the device (the usual case; a batch is a gather) or, when they are
too large for that, decodes them batch by batch. Both have the same interface, so nothing above knows which it has.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dim import rng
from dim.config import DataConfig
from dim.errors import InputError, nearest
from dim.io import write_json
from dim.spec import DataSpec, to_unit_range

_EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}
_DECODE_THREADS = min(8, os.cpu_count() or 1)


class Split(Protocol):
    """One part of a data set."""

    labels: Tensor
    """int64 (N,), on the CPU."""
    streams: bool
    """Whether a batch is decoded when asked for; a reader then does well to ask one batch ahead."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """int64 (B,) -> float32 (B, C, H, W) images in [-1, 1] and int64 (B,) labels, on the device."""
        ...


class ArraySplit:
    """A split held as one uint8 tensor (N, C, H, W) on the device."""

    streams = False

    def __init__(self, images: Tensor, labels: Tensor, device: torch.device | str) -> None:
        self.images = images.to(device)
        self.labels = labels.cpu()
        self._labels = labels.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Split.batch`."""
        indices = indices.to(self.images.device, non_blocking=True)
        return to_unit_range(self.images[indices]), self._labels[indices]


class StreamSplit:
    """A split whose images are decoded by a pool of threads when a batch is asked for."""

    streams = True

    def __init__(self, decode: Callable[[int], Tensor], items: Tensor, labels: Tensor, device: torch.device | str) -> None:
        self._decode = decode
        self._items = items
        self.labels = labels.cpu()
        self._device = device
        self._pool = ThreadPoolExecutor(_DECODE_THREADS)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Split.batch`."""
        indices = indices.cpu()
        images = torch.stack(list(self._pool.map(self._decode, self._items[indices].tolist())))
        return to_unit_range(images).to(self._device), self.labels[indices].to(self._device)


@dataclass(frozen=True)
class RealData:
    """A data set: what describes it, and its three parts. Choices are made on `val`; `test` is for the last figure."""

    spec: DataSpec
    train: Split
    val: Split
    test: Split


class EpochBatches:
    """Endless shuffled batches as a function of the step: step s is the s-th slice of the permutations of all epochs.

    With several processes the batch is split among them; `batch_size` is the batch over all of them.
    """

    def __init__(self, split: Split, batch_size: int, *, seed: int, purpose: str, rank: int = 0, world: int = 1) -> None:
        if batch_size % world:
            raise InputError(f"batch size {batch_size} does not divide by the number of processes ({world})")
        self.split, self.batch_size = split, batch_size
        self._seed, self._purpose = seed, purpose
        share = batch_size // world
        self._slice = slice(rank * share, (rank + 1) * share)
        self._permutations: dict[int, Tensor] = {}
        self._ahead: tuple[int, Future] | None = None
        self._pool = ThreadPoolExecutor(1) if split.streams else None

    def indices(self, step: int) -> Tensor:
        """Indices of this process's share of batch `step`: int64 (batch_size / world,)."""
        size = len(self.split)
        start = step * self.batch_size
        parts, needed = [], self.batch_size
        while needed:
            epoch, offset = divmod(start, size)
            part = self._permutation(epoch)[offset : offset + needed]
            parts.append(part)
            needed -= len(part)
            start += len(part)
        return torch.cat(parts)[self._slice]

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            source = rng.generator(self._seed, f"{self._purpose}-epoch", epoch)
            self._permutations[epoch] = torch.randperm(len(self.split), generator=source)
        return self._permutations[epoch]

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Images float32 (B, C, H, W) in [-1, 1] and labels int64 (B,) of batch `step`, on the split's device."""
        if self._pool is None:
            return self.split.batch(self.indices(step))
        if self._ahead is not None and self._ahead[0] == step:
            batch = self._ahead[1].result()
        else:
            batch = self.split.batch(self.indices(step))
        self._ahead = (step + 1, self._pool.submit(self.split.batch, self.indices(step + 1)))
        return batch


def per_class_indices(labels: Tensor, ipc: int, num_classes: int, *, seed: int) -> Tensor:
    """Random indices of `ipc` images of every class, class by class; nested in `ipc` for one seed.

    Raises:
        InputError: if `ipc` is below 1 or a class has fewer images.
    """
    if ipc < 1:
        raise InputError(f"images per class is {ipc}: expected 1 or more")
    chosen = []
    for label in range(num_classes):
        members = (labels == label).nonzero().squeeze(1)
        if len(members) < ipc:
            raise InputError(f"class {label} has {len(members)} images: {ipc} were asked for; ask for at most {len(members)}")
        chosen.append(members[torch.randperm(len(members), generator=rng.generator(seed, "per-class", label))[:ipc]])
    return torch.stack(chosen, dim=1).flatten()


# --- sources -----------------------------------------------------------------------------------------------------------


@dataclass
class _Items:
    """A part of a data set before it is placed: labels, and either all images or a way to decode one."""

    labels: Tensor
    names: Sequence[str]
    images: Tensor | None = None
    decode: Callable[[int], Tensor] | None = None
    identity: str = ""
    """What a part made of files is recognised by, without reading them all."""


def load_data(config: DataConfig, device: torch.device | str = "cpu") -> RealData:
    """Load a data set by configuration.

    Raises:
        InputError: if the name is unknown, the root is missing or does not hold the data, there are fewer than two
            classes, a class is empty, or an image cannot be read.
    """
    if config.dataset not in _SOURCES:
        raise InputError(f"unknown data set {config.dataset!r}. {nearest(config.dataset, _SOURCES)}")
    if config.dataset != "digits":
        if config.root is None:
            raise InputError(f"data set {config.dataset!r} needs --data-root DIR (or the environment variable DIM_DATA_ROOT)")
        if not Path(config.root).is_dir() and not (config.download and config.dataset in _TORCHVISION):
            raise InputError(f"data root {config.root!r} is no folder: expected where {config.dataset} lies")
    train, test = _SOURCES[config.dataset](config)
    return _assemble(config, train, test, device)


def from_dataset(
    train: Any,
    test: Any,
    *,
    name: str,
    class_names: Sequence[str],
    config: DataConfig | None = None,
    device: torch.device | str = "cpu",
) -> RealData:
    """Use any map-style Dataset of (image, label) pairs.

    Args:
        train, test: objects with `__len__` and `__getitem__`; an image is a PIL image, a uint8 tensor or array
            (C, H, W), or a float one in [0, 1]; a label an integer in [0, classes).
        name: name of the data.
        class_names: one per class, in label order.
        config: resolution, channels, held-out fraction and memory limit; its `dataset` and `root` are not used.
        device: where images are held.

    Raises:
        InputError: if an item is of another form, or labels are out of range.
    """
    config = config or DataConfig()
    parts = [_dataset_items(part, name, class_names, config) for part in (train, test)]
    return _assemble(config, *parts, device, name=name)


def _assemble(
    config: DataConfig, train: _Items, test: _Items | None, device: torch.device | str, name: str | None = None
) -> RealData:
    """Split, place on the device, and describe."""
    num_classes = len(train.names)
    for label, count in enumerate(torch.bincount(train.labels, minlength=num_classes).tolist()):
        if count < 2:
            raise InputError(f"class {train.names[label]!r} has {count} training image(s): expected at least 2")
    rest = torch.arange(len(train.labels))
    if test is None:
        held, rest = stratified(train.labels, config.test_fraction, rng.fold(config.split_seed, "test-split"))
        test_source, test_indices = train, held
    else:
        test_source, test_indices = test, torch.arange(len(test.labels))
    held, kept = stratified(train.labels[rest], config.val_fraction, rng.fold(config.split_seed, "val-split"))
    val_indices, train_indices = rest[held], rest[kept]

    shape = tuple(train.images.shape[1:]) if train.images is not None else tuple(train.decode(0).shape)
    total = (len(train.labels) + (len(test.labels) if test else 0)) * int(np.prod(shape))
    stream = total > config.memory_gib * 2**30
    sources = [train] if test is None else [train, test]
    if not stream:
        for items in sources:
            if items.images is None:
                items.images = _decode_all(items)

    def split(items: _Items, indices: Tensor) -> Split:
        if items.images is not None:
            return ArraySplit(items.images[indices], items.labels[indices], device)
        return StreamSplit(items.decode, indices, items.labels[indices], device)

    training = split(train, train_indices)
    fingerprint = _fingerprint(train, train_indices)
    mean, std = _statistics(training, fingerprint)
    spec = DataSpec(
        name=name or config.dataset,
        channels=shape[0],
        height=shape[1],
        width=shape[2],
        class_names=tuple(train.names),
        mean=mean,
        std=std,
        fingerprint=fingerprint,
    )
    return RealData(spec, training, split(train, val_indices), split(test_source, test_indices))


def stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a held-out part of every class (rounded, at least one if `fraction` is positive) and of the rest, sorted."""
    held = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        count = max(1, round(len(members) * fraction)) if fraction > 0 else 0
        held.append(members[torch.randperm(len(members), generator=rng.generator(seed, "stratified", label))[:count]])
    chosen = torch.cat(held).sort().values
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[chosen] = False
    return chosen, mask.nonzero().squeeze(1)


def _fingerprint(items: _Items, indices: Tensor) -> str:
    state = hashlib.blake2b(digest_size=16)
    state.update(items.labels[indices].numpy().tobytes())
    if items.identity:
        state.update(items.identity.encode())
        state.update(indices.numpy().tobytes())
    if items.decode is None and items.images is not None:
        state.update(items.images[indices].contiguous().numpy())
    else:
        for index in indices[:: max(1, len(indices) // 64)].tolist():
            state.update(items.decode(index).contiguous().numpy())
    return state.hexdigest()


def _statistics(split: Split, fingerprint: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and std in [0, 1]; of a streaming split they are kept in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dim" / f"statistics-{fingerprint}.json"
    if split.streams and cache.is_file():
        with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):  # damaged: computed again
            stored = json.loads(cache.read_text())
            return tuple(stored["mean"]), tuple(stored["std"])
    count, total, square = 0, 0.0, 0.0
    for indices in torch.arange(len(split)).split(4096):
        images = (split.batch(indices)[0].double() + 1) / 2
        count += images.numel() // images.shape[1]
        total = total + images.sum((0, 2, 3))
        square = square + images.square().sum((0, 2, 3))
    mean = total / count
    std = (square / count - mean**2).clamp(min=1e-12).sqrt()
    # Six digits: the same on every device, and a constant image still divides.
    result = tuple(tuple(max(round(v, 6), low) for v in values.tolist()) for values, low in ((mean, 0.0), (std, 1e-3)))
    if split.streams:
        write_json(cache, {"mean": result[0], "std": result[1]})
    return result


def _decode_all(items: _Items) -> Tensor:
    with ThreadPoolExecutor(_DECODE_THREADS) as pool:
        images = list(pool.map(items.decode, range(len(items.labels))))
    if len({image.shape for image in images}) > 1:
        raise InputError("images differ in size or channels: give --resolution N (pixels), and --data.channels if need be")
    return torch.stack(images)


def _fit_size(images: Tensor, config: DataConfig) -> Tensor:
    """Bring uint8 (N, C, H, W) to the configured size and number of channels: shorter side resized, centre cropped."""
    if config.channels == 1 and images.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601 luma, as PIL's "L"
        images = (images.float() * weights).sum(1, keepdim=True).round().to(torch.uint8)
    elif config.channels == 3 and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    size = config.resolution
    if size is None or images.shape[2:] == (size, size):
        return images.contiguous()
    height, width = images.shape[2:]
    scale = size / min(height, width)
    target = (max(size, round(height * scale)), max(size, round(width * scale)))
    parts = []
    for part in images.split(2048):
        part = F.interpolate(part.float(), target, mode="bilinear", antialias=True, align_corners=False)
        top, left = (target[0] - size) // 2, (target[1] - size) // 2
        parts.append(part[:, :, top : top + size, left : left + size].round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


def _digits(config: DataConfig) -> tuple[_Items, None]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(np.round(data.images * (255 / 16)).astype(np.uint8))[:, None]
    names = tuple(str(label) for label in range(10))
    return _Items(torch.from_numpy(data.target).long(), names, _fit_size(images, config)), None


_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN"}


def _torchvision(config: DataConfig) -> tuple[_Items, _Items]:
    from torchvision import datasets

    kind = getattr(datasets, _TORCHVISION[config.dataset])
    parts = []
    for train in (True, False):
        selector = {"split": "train" if train else "test"} if config.dataset == "svhn" else {"train": train}
        try:
            part = kind(config.root, download=config.download, **selector)
        except (RuntimeError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            remedy = "" if config.download else "; give the right --data-root, or allow a download with --data.download"
            raise InputError(f"no {config.dataset} under {config.root!r} ({reason}){remedy}") from None
        images = torch.as_tensor(np.asarray(part.data))
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2)
        labels = torch.as_tensor(np.asarray(part.labels if config.dataset == "svhn" else part.targets)).long()
        names = getattr(part, "classes", None) or [str(label) for label in range(10)]
        parts.append(_Items(labels, tuple(str(name) for name in names), _fit_size(images, config)))
    return parts[0], parts[1]


def _file_items(files: list[Path], labels: list[int], names: Sequence[str], root: Path, config: DataConfig) -> _Items:
    """Items of image files, decoded when asked for."""
    mode = "L" if config.channels == 1 else "RGB"

    def decode(index: int) -> Tensor:
        try:
            with Image.open(files[index]) as image:
                array = np.array(image.convert(mode), dtype=np.uint8)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"image {files[index]} cannot be read ({reason}): replace or remove it") from None
        tensor = torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)
        return _fit_size(tensor[None], config)[0]

    identity = "\n".join(f"{file.relative_to(root)} {file.stat().st_size}" for file in files)
    identity += f"\n{config.resolution} {mode}"
    return _Items(torch.tensor(labels), tuple(names), decode=decode, identity=identity)


def _class_folders(folder: Path, root: Path, config: DataConfig, names: Sequence[str] | None = None) -> _Items:
    """Items of a folder of class folders; with `names`, the classes must be those."""
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(found) < 2:
        raise InputError(f"{folder} has {len(found)} class folder(s): expected at least 2, each holding images")
    if names is not None and (unknown := sorted(set(found) - set(names))):
        raise InputError(f"{folder} has class {unknown[0]!r} that the training part lacks: remove or rename it")
    files, labels = [], []
    for label, name in enumerate(names or found):
        members = sorted(file for file in (folder / name).rglob("*") if file.suffix.lower() in _EXTENSIONS)
        if not members:
            raise InputError(f"class folder {folder / name} holds no images ({', '.join(sorted(_EXTENSIONS))})")
        files += members
        labels += [label] * len(members)
    return _file_items(files, labels, names or found, root, config)


def _folder(config: DataConfig) -> tuple[_Items, _Items | None]:
    if config.resolution is None:
        raise InputError("data set 'folder' needs --resolution N (pixels), for instance 64")
    root = Path(config.root)
    if not (root / "train").is_dir():
        return _class_folders(root, root, config), None
    train = _class_folders(root / "train", root, config)
    for name in ("test", "val"):
        if (root / name).is_dir():
            return train, _class_folders(root / name, root, config, train.names)
    return train, None


def _tiny_imagenet(config: DataConfig) -> tuple[_Items, _Items]:
    """Tiny-ImageNet's own layout; its labelled `val` part is the test part, as everywhere in the literature."""
    root = Path(config.root)
    root = root / "tiny-imagenet-200" if (root / "tiny-imagenet-200").is_dir() else root
    annotations = root / "val" / "val_annotations.txt"
    if not (root / "train").is_dir() or not annotations.is_file():
        raise InputError(f"no Tiny-ImageNet under {config.root!r}: expected train/ and val/val_annotations.txt")
    train = _class_folders(root / "train", root, config)
    position = {name: label for label, name in enumerate(train.names)}
    rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines() if line]
    if unknown := [name for _, name in rows if name not in position]:
        raise InputError(f"{annotations} names class {unknown[0]!r} that train/ lacks")
    files = [root / "val" / "images" / file for file, _ in rows]
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(f"{annotations} names {missing[0].name}, which is missing from val/images")
    return train, _file_items(files, [position[name] for _, name in rows], train.names, root, config)


def _dataset_items(dataset: Any, name: str, class_names: Sequence[str], config: DataConfig) -> _Items:
    def decode(index: int) -> Tensor:
        image = dataset[index][0]
        if isinstance(image, Image.Image):
            mode = {1: "L", 3: "RGB"}.get(config.channels, "L" if image.mode in ("1", "L") else "RGB")
            array = torch.from_numpy(np.array(image.convert(mode), dtype=np.uint8))
            image = array[None] if array.ndim == 2 else array.permute(2, 0, 1)
        image = torch.as_tensor(image)
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise InputError(f"item {index} of {name!r} has shape {tuple(image.shape)}: expected (1 or 3, H, W)")
        if image.is_floating_point():
            if float(image.min()) < 0 or float(image.max()) > 1:
                raise InputError(f"item {index} of {name!r} has values outside [0, 1]: leave out its normalisation")
            image = (image * 255).round().to(torch.uint8)
        if image.dtype != torch.uint8:
            raise InputError(f"item {index} of {name!r} is {image.dtype}: expected uint8, or float in [0, 1]")
        return _fit_size(image[None], config)[0]

    if len(dataset) == 0:
        raise InputError(f"a part of {name!r} is empty: expected images")
    targets = getattr(dataset, "targets", None)
    labels = torch.as_tensor([int(dataset[i][1]) for i in range(len(dataset))] if targets is None else targets).long()
    if int(labels.min()) < 0 or int(labels.max()) >= len(class_names):
        raise InputError(f"{name!r} has labels {int(labels.min())} to {int(labels.max())}: expected 0 to {len(class_names) - 1}")
    return _Items(labels, tuple(class_names), decode=decode)


_SOURCES: dict[str, Callable[[DataConfig], tuple[_Items, _Items | None]]] = {
    "digits": _digits,
    "folder": _folder,
    "tiny-imagenet": _tiny_imagenet,
    **dict.fromkeys(_TORCHVISION, _torchvision),
}
