"""How students and other classifiers are trained: for scores, for feature spaces, for coresets."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from dim.config.choices import Choices
from dim.config.settings import Compile, Precision, Settings, require

STUDENTS = Choices("student", "dim.nets.students", takes=(0, ("spec",)))
CORESETS = Choices("coreset", "dim.features.coresets", base="dim.features.coreset:Rule")

Schedule = Literal["step", "cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig(Settings):
    """How students are trained on a set or a stream. It travels with the run, so that its scores are comparable.

    The step budget of n images per class is `epochs * ceil(n * classes / batch_size)`, on both tracks, and every batch is full.
    A stored set is shuffled anew for every pass, and batches continue from one pass into the next. A set of a multiple of
    `batch_size`, and one of less than a batch, which is then fed whole, is thus passed over exactly `epochs` times. Another set
    is seen more often, each of its images as often as the others or once more: 100 images in batches of 64 take 2 steps per
    epoch, which are 1.28 passes. (Published code ends every pass with a smaller batch, at the same number of steps.) A stream
    gives `batch_size` fresh images at every step, also where its budget stands for a smaller set."""

    prefix: ClassVar = "protocol."

    students: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            aliases=["--students"],
            help="Architectures, with options after the name as in `convnet:width=64,depth=3`. "
            f"{STUDENTS.explained()} `timm:NAME`: any model of timm, trained from scratch.",
        ),
    ] = ("convnet",)
    """Architectures, with options after the name as in `convnet:width=64,depth=3`."""
    epochs: int = 1000
    """Passes over a set of n images per class that its step budget stands for; more of them where the set does not divide into
    batches. Published: 1000."""
    full_epochs: int = 0
    """Passes over the full real data for the control row; 0: the largest step budget in the table."""
    batch_size: int = 64
    """Images per step."""
    lr: float = 0.01
    """SGD learning rate."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 5e-4
    """SGD weight decay."""
    schedule: Schedule = "step"
    """Learning rate over time. `step`: a tenth in the second half (published)."""
    augment: str = "color|crop|cutout|flip|scale|rotate"
    """Differentiable augmentation (DSA, Zhao & Bilen 2021): `|` picks one family per batch, `_` applies all."""
    learned_lr: bool = True
    """Train on a set that carries a learned step size at that learning rate; everything else at `lr`."""
    precision: Precision = "auto"
    """Of forward and backward. `bf16` is bfloat16 with float32 weights. `auto`: bfloat16 on a GPU that has it, and on a CPU that
    has it if the step is compiled; float32 otherwise. A score says which it was."""
    compile: Compile = "auto"
    """Compile the training step, once per architecture and batch shape. `auto`: where it saves more time than it takes."""
    zca: bool = False
    """Students see ZCA-whitened images, as MTT and its followers have it for CIFAR."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "students", STUDENTS.admit_all(self.students))
        require(len(self.students) > 0, "protocol.students", self.students, "at least one architecture")
        require(len(set(self.students)) == len(self.students), "protocol.students", self.students, "each architecture once")
        for name in ("epochs", "batch_size"):
            require(getattr(self, name) >= 1, f"protocol.{name}", getattr(self, name), "at least 1")
        require(self.full_epochs >= 0, "protocol.full_epochs", self.full_epochs, "0 or more")
        require(self.lr > 0, "protocol.lr", self.lr, "a positive number")
        require(0 <= self.momentum < 1, "protocol.momentum", self.momentum, "a number in [0, 1)")
        require(self.weight_decay >= 0, "protocol.weight_decay", self.weight_decay, "0 or more")

    def steps(self, images: int) -> int:
        """Step budget of a set of this many images: `epochs` times the batches that hold it, the last one perhaps not full."""
        return self.epochs * -(-images // self.batch_size)


@dataclass(frozen=True, kw_only=True)
class FeatureConfig(Settings):
    """How the classifier is trained whose features coverage is measured in. Figures of other settings are not comparable."""

    prefix: ClassVar = "features."

    student: str = "resnet10:width=16"
    """Architecture; the input of its last layer are the features (128 of them for this one)."""
    epochs: int = 20
    """Passes over the training part, unless that is more than `max_steps`."""
    max_steps: int = 1000
    """Largest number of SGD steps."""
    batch_size: int = 128
    """The most images per step; fewer if they are large, 12 MiB of them in float32."""
    lr: float = 0.05
    """SGD learning rate, with momentum 0.9 and a cosine schedule."""
    weight_decay: float = 5e-4
    """SGD weight decay."""
    augment: str = "crop"
    """Differentiable augmentation; `crop` moves images by up to an eighth."""
    precision: Precision = "auto"
    """As of `protocol.precision`."""
    compile: Compile = "auto"
    """As of `protocol.compile`."""
    seed: int = 0
    """Seed of the weights, the order of the images and the augmentation."""

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "batch_size"):
            require(getattr(self, name) >= 1, f"features.{name}", getattr(self, name), "at least 1")
        require(self.lr > 0, "features.lr", self.lr, "a positive number")
        require(self.weight_decay >= 0, "features.weight_decay", self.weight_decay, "0 or more")


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(Settings):
    """How small classifiers are trained on the training part to score its images for a coreset (`dim.features.coreset`)."""

    prefix: ClassVar = "scoring."

    student: str = "convnet:width=16"
    """Architecture."""
    epochs: int = 20
    """Passes over the training part."""
    min_steps: int = 500
    """Smallest number of SGD steps: a small training part is passed more often."""
    runs: int = 1
    """Classifiers, with other weights and orders; scores are their mean."""
    batch_size: int = 64
    """Images per step."""
    lr: float = 0.05
    """SGD learning rate, with momentum 0.9."""
    schedule: Schedule = "cosine"
    """Learning rate over time."""
    weight_decay: float = 5e-4
    """SGD weight decay."""
    augment: str = "crop"
    """Differentiable augmentation while training; `crop` moves images by up to an eighth."""
    precision: Precision = "auto"
    """As of `protocol.precision`."""
    compile: Compile = "auto"
    """As of `protocol.compile`."""
    seed: int = 0
    """Seed of the weights, the order of the images and the augmentation."""

    def __post_init__(self) -> None:
        for name in ("epochs", "runs", "batch_size"):
            require(getattr(self, name) >= 1, f"scoring.{name}", getattr(self, name), "at least 1")
        require(self.min_steps >= 0, "scoring.min_steps", self.min_steps, "0 or more")
        require(self.lr > 0, "scoring.lr", self.lr, "a positive number")
        require(self.weight_decay >= 0, "scoring.weight_decay", self.weight_decay, "0 or more")
