"""Feature extractors: what coverage is measured in.

By default a small classifier that is trained on the data set itself, so that nothing is downloaded and any data set has
one. It is a function of (data fingerprint, settings) and is kept in the user's cache folder, so that all figures of one data
set are in the same features. Inception features are there for whoever has the weights.
"""

import dataclasses
import re
import time
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim import rng
from dim.chunks import FORWARD, chunk_size
from dim.config import FeatureConfig, ProtocolConfig, to_dict
from dim.data.real import EpochBatches, RealData
from dim.data.splits import Split, in_chunks
from dim.errors import InputError
from dim.features.classifier import accuracy, train_student
from dim.io import cache_folder, digest, keep_tensors, load_tensors, reading
from dim.loop import Progress
from dim.nets.student import Student, build_student
from dim.nets.student_step import settled
from dim.spec import DataSpec, as_unit_range

_FORMAT = 1
_BATCH = 250
_TRAINED = 12 * 2**20  # bytes of float32 images in a step of the classifier's training
_INCEPTION_SIDE = 299
_INCEPTION_BATCH = 50  # it sees images of 299 pixels, however small they were; its largest maps then have 0.3 GB


@dataclass(frozen=True, kw_only=True)
class Features:
    """A fixed map from images to vectors. Figures in different features must not be compared: see `digest`."""

    network: nn.Module
    """Images float32 (B, C, H, W) in [-1, 1] -> (B, F), in evaluation mode."""
    name: str
    """Architecture."""
    digest: str
    """Of the weights."""
    device: torch.device
    """Where the network is."""
    accuracy: float | None = None
    """Percentage of the images of `split` that the classifier gets right; None if it was trained elsewhere."""
    split: str | None = None
    """`val`, or `test` for data without a validation part."""
    seconds: float | None = None
    """Wall time of its training; None if that is not known."""
    largest: int = _BATCH
    """The most images that the network is given at a time; fewer if they are large."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images, float in [-1, 1] or uint8, on any device -> float32 (N, F), on `device`."""
        size = chunk_size(4 * images[:1].numel(), self.largest, FORWARD)
        return torch.cat([self.network(as_unit_range(part.to(self.device))).float() for part in images.split(size)])

    def of(self, split: Split, indices: Tensor | None = None) -> Tensor:
        """Features of a split, or of the images at int64 (N,) `indices` of it: float32 (N, F)."""
        return torch.cat([self(images) for _, images, _ in in_chunks(split, indices, largest=self.largest, budget=FORWARD)])

    def to_dict(self) -> dict[str, str | float | None]:
        """What a figure must say of the features it is in."""
        return {"name": self.name, "accuracy": self.accuracy, "split": self.split, "digest": self.digest}


def load_features(name: str, data: RealData) -> Features:
    """`auto`: `trained_features` with the default settings; otherwise the path of a file for `inception_features`.

    Raises:
        InputError: if the file is missing or holds something else.
    """
    return trained_features(data) if name == "auto" else inception_features(name, device_of(data))


def device_of(data: RealData) -> torch.device:
    """Where the images of a data set are."""
    return data.train.batch(torch.zeros(1, dtype=torch.int64))[0].device


def trained_features(data: RealData, config: FeatureConfig | None = None, *, cache: Path | str | None = None) -> Features:
    """Penultimate features of a classifier trained on the training part, from the cache folder if it has been trained before.

    Args:
        data: the data; the network is trained and kept on its device.
        config: architecture and training.
        cache: folder of trained extractors. Default: `dim/features` in `$XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        InputError: if the architecture is unknown or cannot take such images.
    """
    config, spec, device = config or FeatureConfig(), data.spec, device_of(data)
    # The memory of a step grows with the size of images, too.
    config = dataclasses.replace(config, batch_size=chunk_size(4 * spec.image_bytes, config.batch_size, _TRAINED))
    steps, batch = _steps(data, config)
    config = settled(config, config.student, spec, device, steps=steps, batch=batch)  # features of either are told apart
    folder = cache_folder("features") if cache is None else Path(cache)
    split = "val" if len(data.val) else "test"
    images = f"{spec.fingerprint} {data.digest(split)} {spec.image_shape}"
    path = folder / cache_name(spec, f"{_FORMAT} {images} {sorted(to_dict(config).items())}")
    made = build_student(config.student, spec, seed=0)
    try:
        tensors, about = load_tensors(path, device)
        with reading(path):
            made.load_state_dict(tensors)
            about = {**about, "accuracy": float(about["accuracy"]), "split": str(about["split"])}
    except InputError:  # absent, or damaged: made again
        started = time.perf_counter()
        net = _train(data, config, device)
        tensors = net.state_dict()
        about = {
            "format": _FORMAT,
            "kind": "features",
            "config": to_dict(config),
            "spec": spec.to_dict(),
            "accuracy": accuracy(net, getattr(data, split), device, net=net),
            "split": split,
            "seconds": round(time.perf_counter() - started, 2),
        }
        keep_tensors(path, tensors, about)
    made.load_state_dict(tensors)
    net = made.to(device).eval()
    body = _Embedding(net).to(memory_format=torch.channels_last)
    found = {"accuracy": about["accuracy"], "split": about["split"], "seconds": about.get("seconds")}
    return Features(network=body, name=config.student, digest=digest(tensors), device=device, **found)


def cache_name(spec: DataSpec, settings: str) -> str:
    """Name of a file there: the data, for people, and a digest of `settings`, all that the content is a function of."""
    size = f"{spec.height}x{spec.width}x{spec.channels}"
    return f"{re.sub(r'[^A-Za-z0-9-]+', '-', spec.name)}-{size}-{digest({}, settings)[:16]}.safetensors"


class _Embedding(nn.Module):
    """A student up to its last layer."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> Tensor:
        return self.student.embed(images.contiguous(memory_format=torch.channels_last))


def _steps(data: RealData, config: FeatureConfig) -> tuple[int, int]:
    """Steps of the classifier's training, and images in each."""
    batch = min(config.batch_size, len(data.train))
    return min(config.max_steps, config.epochs * -(-len(data.train) // batch)), batch


def _train(data: RealData, config: FeatureConfig, device: torch.device) -> nn.Module:
    steps, batch = _steps(data, config)
    protocol = ProtocolConfig(
        students=(config.student,),
        precision=config.precision,
        compile=config.compile,
        batch_size=batch,
        lr=config.lr,
        weight_decay=config.weight_decay,
        schedule="cosine",
        augment=config.augment,
    )
    seed = rng.fold(config.seed, "features")
    batches = EpochBatches(data.train, batch, seed=seed, purpose="features")
    with Progress("features", steps) as progress:

        def feed(step: int) -> tuple[Tensor, Tensor]:
            progress.advance()
            progress.show({}, "(once for this data set; kept in the cache folder)")
            return batches.at(step)

        return train_student(config.student, feed, steps, protocol, data, seed, device)


class _Inception(nn.Module):
    """torchvision's Inception v3 up to its last layer: (B, 1 or 3, H, W) images in [-1, 1] -> (B, 2048).

    Its weights are for images in [-1, 1] (mean and std 0.5), which torchvision's `transform_input` makes from its usual
    normalisation; ours are in that range already.
    """

    def __init__(self, tensors: dict[str, Tensor], path: Path) -> None:
        super().__init__()
        from torchvision.models import inception_v3

        with torch.device("meta"):
            net = inception_v3(weights=None, init_weights=False, transform_input=False, aux_logits=True)
        wanted = {name: value.shape for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
        for name, shape in wanted.items():
            if name not in tensors or tensors[name].shape != shape:
                found = f"of shape {tuple(tensors[name].shape)}" if name in tensors else "missing"
                wants = f"expected the state of torchvision's inception_v3, {tuple(shape)}"
                raise InputError(f"{path}: {name!r} is {found}: {wants}; make the file again, or take 'auto'")
        # Clones, as kernels of some processors round by alignment, and a slice of a file may lie anywhere.
        net.load_state_dict({name: tensors[name].float().clone() for name in wanted}, assign=True)
        net.fc = nn.Identity()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        images = images.expand(-1, 3, -1, -1)
        size = (_INCEPTION_SIDE, _INCEPTION_SIDE)
        return self.net(F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False))


def inception_features(path: Path | str, device: torch.device | str = "cpu") -> Features:
    """The 2048 features before the last layer of Inception v3 (Szegedy et al. 2016), from a file of the user's.

    Images are resized to 299 pixels and normalised as torchvision's weights expect. Published FIDs use other weights (a
    TensorFlow port) and 50,000 images, so they are not comparable.

    Args:
        path: a safetensors file with the state of `torchvision.models.inception_v3`. To make one:
            `safetensors.torch.save_file(Inception_V3_Weights.IMAGENET1K_V1.get_state_dict(), path)`.
        device: where to put the network.

    Raises:
        InputError: if the file is missing, is not safetensors, or holds something else.
    """
    path, remedy = Path(path), "expected a .safetensors file with the state of torchvision's inception_v3, or 'auto'"
    if not path.is_file():
        raise InputError(f"no file {path} of features: {remedy}")
    try:
        tensors = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is no safetensors file, or damaged ({error}): {remedy}") from None
    net = _Inception(tensors, path).to(device).eval()
    return Features(
        network=net, name="inception_v3", digest=digest(tensors), device=torch.device(device), largest=_INCEPTION_BATCH
    )
