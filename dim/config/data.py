"""Which real data to use."""

import os
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import tyro

from dim.config.choices import Choices
from dim.config.settings import Section, require
from dim.errors import InputError

DATASETS = Choices("data set", "dim.data.sources", takes=(1, ()))


def reads_files(dataset: str) -> bool:
    """Whether a data set lies in files below a root."""
    return getattr(DATASETS.load(dataset), "reads_files", True)


def needs_size(dataset: str) -> bool:
    """Whether the images of a data set may have any sizes, so that one has to be given."""
    return getattr(DATASETS.load(dataset), "shape", (0, 0, 0))[1] is None


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Which real data to use."""

    choices: ClassVar = DATASETS
    selector: ClassVar = "dataset"
    prefix: ClassVar = "data."
    rare: ClassVar = ("fraction", "fraction_seed", "canaries")

    dataset: Annotated[str, tyro.conf.arg(aliases=["--dataset"])] = "digits"
    """The data set."""
    root: Annotated[str | None, tyro.conf.arg(aliases=["--data-root"])] = None
    """Where the data lies: torchvision's root, or the folder of class folders or shards. Default: the environment variable
    DIM_DATA_ROOT. `digits` come with scikit-learn and have none."""
    resolution: Annotated[int | None, tyro.conf.arg(aliases=["--resolution"])] = None
    """Height and width in pixels: images are resized and centre-cropped. Required for `folder`, `listed` and `webdataset`;
    default: the data's own size."""
    channels: Literal[1, 3] | None = None
    """Force grey (1) or RGB (3) images. Default: the data's own; RGB for `folder`, `listed` and `webdataset`."""
    val_fraction: float = 0.1
    """Part of every class of the training data that is held out for choices, in [0, 0.5]. Never trained on."""
    split_seed: int = 0
    """Seed of the split into training, validation and test part."""
    fraction: float = 1.0
    """Part of every class of the training data that is trained on, in (0, 1]. The rest is left out of all parts, so that
    `dim audit` can compare images that were trained on with others."""
    fraction_seed: int = 0
    """Which images these are: another seed gives another random part."""
    canaries: int = 0
    """Images of the whole training data that get a random wrong label. Those of them that are trained on can only be remembered,
    which `dim audit` looks for."""
    memory_gib: float = 1.5
    """Decoded images up to this size are held on the device; a larger data set is read batch by batch."""

    def __post_init__(self) -> None:
        require(0 <= self.val_fraction <= 0.5, "data.val_fraction", self.val_fraction, "a number in [0, 0.5]")
        require(self.resolution is None or self.resolution >= 4, "data.resolution", self.resolution, "at least 4 pixels")
        require(0 < self.fraction <= 1, "data.fraction", self.fraction, "a number in (0, 1]")
        require(self.canaries >= 0, "data.canaries", self.canaries, "0 or more")
        require(self.memory_gib >= 0, "data.memory_gib", self.memory_gib, "0 or more")


def require_no_root(data: DataConfig) -> None:
    """Raise InputError for a root of a data set that lies in no files, which would be ignored."""
    if data.root is not None and not reads_files(data.dataset):
        expected = f"none, as the data set {data.dataset!r} needs no files (--dataset folder: your own)"
        raise InputError(f"data.root is {data.root!r}: expected {expected}")


def located(data: DataConfig, root: str | None = None) -> DataConfig:
    """The same settings with a root, where the data lies in files and has none: the one given, or that of DIM_DATA_ROOT."""
    root = root or os.environ.get("DIM_DATA_ROOT")
    return replace(data, root=root) if root and data.root is None and reads_files(data.dataset) else data


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Of data without a test part of its own."""

    test_fraction: float = 0.2
    """digits, folder, listed, webdataset: part of every class that becomes the test part, where the data has none of its own; in
    (0, 0.5]."""

    def __post_init__(self) -> None:
        require(0 < self.test_fraction <= 0.5, "data.test_fraction", self.test_fraction, "a number in (0, 0.5]")


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """Of torchvision's data sets."""

    download: bool = False
    """Let torchvision download the data set if it is absent from the root."""
