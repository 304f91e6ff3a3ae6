"""Trajectory matching: how experts are recorded, what is matched, what is learned."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import tyro

from dim.config.choices import Choices
from dim.config.data import DataConfig
from dim.config.protocol import STUDENTS, ProtocolConfig
from dim.config.settings import Compile, Distance, FixedPrecision, Section, Settings, require
from dim.config.train import AboutConfig

Gradient = Literal["adjoint", "unroll", "frozen"]
Order = Literal["reverse-over-forward", "reverse-over-reverse", "forward-over-reverse"]


MOST_MOMENTS = 1_000_000
"""That an expert can have recorded."""


@dataclass(frozen=True, kw_only=True)
class GsamOptions:
    """Of the optimiser `gsam`."""

    rho: float = 0.01
    """gsam: radius of the perturbation."""
    alpha: float = 0.3
    """gsam: weight of the part of the gradient that is orthogonal to the sharpness-aware one."""
    adaptive: bool = True
    """gsam: scale the perturbation by the weights."""

    def __post_init__(self) -> None:
        for name in ("rho", "alpha"):
            require(getattr(self, name) >= 0, f"experts.{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(Section):
    """Recording experts: ordinary training on real data that keeps the weights along the way."""

    choices: ClassVar = Choices("optimizer", {"sgd": None, "gsam": GsamOptions})
    selector: ClassVar = "optimizer"
    prefix: ClassVar = "experts."

    count: int = 100
    """Number of experts."""
    epochs: float = 50.0
    """Passes over the training data."""
    every: float = 1.0
    """Epochs between two recorded moments. The window of a distillation is counted in moments. Published: 1."""
    batch_size: int = 256
    """Images per step."""
    optimizer: str = "sgd"
    """`sgd`: plain gradient descent. `gsam`: sharpness-aware (Zhuang et al. 2022); it finds the flat minima that DATM matches."""
    lr: float = 0.01
    """Learning rate."""
    momentum: float = 0.0
    """Momentum. Published: 0."""
    weight_decay: float = 0.0
    """Weight decay. Published: 0."""
    augment: str = "color|crop|cutout|flip|scale|rotate"
    """Augmentation of real images."""
    storage: Literal["float32", "bfloat16"] = "float32"
    """Number format in which weights are stored."""
    waypoints: int = 0
    """Keep this many checkpoints per expert, from which a convex path is made (MCT: 4). 0: keep every moment."""
    smooth: bool = False
    """Replace waypoints by the mean of their neighbours, as MCT's published code does. Needs `waypoints`."""
    together: int = 1
    """Experts that train side by side in one batched computation. Useful on a GPU that one expert leaves idle."""
    precision: FixedPrecision = "fp32"
    """`bf16`: evaluate the network in bfloat16 while it trains. Weights, their updates, the last layer and the accuracies
    recorded along the way stay float32. Several times faster, compiled, on hardware with bfloat16 matrix units."""
    compile: Compile = "auto"
    """Compile the training step, which takes half a minute. `auto`: for long recordings, where a compiler is found."""
    seed: int = 0
    """Seed of all experts."""
    checkpoint_minutes: float = 5.0
    """Wall time between two saves of an unfinished expert's state; 0: none. Finished experts are always kept."""
    device: str | None = None
    """cpu, cuda, mps. Default: a GPU if there is one."""

    def __post_init__(self) -> None:
        for name in ("count", "batch_size", "together"):
            require(getattr(self, name) >= 1, f"experts.{name}", getattr(self, name), "at least 1")
        for name in ("epochs", "every", "lr"):
            require(getattr(self, name) > 0, f"experts.{name}", getattr(self, name), "a positive number")
        require(self.epochs >= self.every, "experts.epochs", self.epochs, f"at least experts.every ({self.every:g})")
        few = f"at most {MOST_MOMENTS:,} times experts.every ({self.every:g})"
        require(self.epochs / MOST_MOMENTS <= self.every, "experts.epochs", self.epochs, few)
        require(0 <= self.momentum < 1, "experts.momentum", self.momentum, "a number in [0, 1)")
        for name in ("weight_decay", "checkpoint_minutes"):
            require(getattr(self, name) >= 0, f"experts.{name}", getattr(self, name), "0 or more")
        require(self.waypoints == 0 or self.waypoints >= 2, "experts.waypoints", self.waypoints, "0, or 2 or more")
        require(self.waypoints or not self.smooth, "experts.smooth", self.smooth, "false where every moment is kept")


@dataclass(frozen=True, kw_only=True)
class ConvexOptions:
    """Of the path `convex`."""

    waypoints: int = 4
    """convex: how many checkpoints become waypoints, where the store has every checkpoint."""
    smooth: bool = False
    """convex: replace waypoints by the mean of their neighbours, as MCT's published code does."""

    def __post_init__(self) -> None:
        require(self.waypoints >= 2, "trajectory.waypoints", self.waypoints, "2 or more")


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig(Section):
    """Matching a stretch of an expert's path: a student starts on the path and should end where the expert went."""

    choices: ClassVar = Choices("path", {"recorded": None, "convex": ConvexOptions})
    selector: ClassVar = "path"
    prefix: ClassVar = "trajectory."

    steps: int = 50
    """Student steps per iteration (N)."""
    epochs: float = 2.0
    """Recorded moments from start to target (M). A moment is an epoch, unless `experts.every` says otherwise."""
    min_start: float = 0.0
    """Smallest start point."""
    max_start: float = 20.0
    """Start points lie below this."""
    max_start_at_first: float | None = None
    """DATM: the bound at iteration 0, which grows linearly to `max_start`. Default: it does not grow."""
    grows_for: int = 0
    """DATM: iterations until the bound has grown."""
    continuous: bool = False
    """MCT: start anywhere between moments; targets stop at the path's end."""
    path: str = "recorded"
    """`recorded`: the checkpoints. `convex`: convex combinations of waypoints (MCT)."""
    batch_size: int = 0
    """Synthetic images per student step; 0: all of them."""
    gradient: Gradient = "adjoint"
    """`adjoint`: exact, constant activation memory. `unroll`: exact, one graph over all steps (MTT and DATM as published).
    `frozen`: TESLA's formula, which leaves out how a step changes the next ones."""
    distance: Distance = "endpoint"
    """`endpoint`: squared distance from the student's end to the expert's. `direction`: the same at the best length of the
    student's displacement, so that only its direction counts. The gradient of `direction` grows as the student moves less, so it
    needs another learning rate, and the step size cannot be learned by it."""
    order: Literal["auto", Order] = "auto"
    """How the second derivative is taken. All three orders are exact; `auto` takes the fastest."""
    augment: str = "color|crop|cutout|flip|scale|rotate"
    """Augmentation of synthetic images, drawn anew for each student step."""
    experts: int = 1
    """Experts matched per iteration; their gradients are averaged. Several processes share them."""
    together: bool = False
    """Match the experts of an iteration in one batched computation, on the same batches. Useful on a GPU."""
    precision: FixedPrecision = "fp32"
    """`bf16`: evaluate the student in bfloat16. Its weights, what is carried back through its steps, sums, the last layer and the
    loss stay float32. Faster, compiled, on hardware with bfloat16 matrix units; the gradient is then approximate. A double
    backward gives a wrong derivative in the weights of convolutions, so not with `unroll` or `reverse-over-reverse`."""
    compile: Compile = "auto"
    """Compile the derivatives, which takes about a minute. `auto`: for long runs, where a compiler is found."""
    offload: bool = False
    """Keep the student's N weight vectors in host memory."""

    def __post_init__(self) -> None:
        for name in ("steps", "experts"):
            require(getattr(self, name) >= 1, f"trajectory.{name}", getattr(self, name), "at least 1")
        require(self.batch_size >= 0, "trajectory.batch_size", self.batch_size, "0 (all) or more")
        require(self.grows_for >= 0, "trajectory.grows_for", self.grows_for, "0 or more")
        grows = self.max_start_at_first is not None
        require(grows == (self.grows_for > 0), "trajectory.grows_for", self.grows_for, "set together with max_start_at_first")
        batched = self.gradient == "unroll" and (self.compile == "on" or self.offload)
        require(not batched, "trajectory.gradient", self.gradient, "adjoint or frozen, to compile or to offload")
        double = self.gradient == "unroll" or self.order == "reverse-over-reverse"
        alone = "fp32 with trajectory.gradient 'unroll' or trajectory.order 'reverse-over-reverse'"
        require(not (double and self.precision == "bf16"), "trajectory.precision", self.precision, alone)


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(Settings):
    """The synthetic images."""

    prefix: ClassVar = "images."

    ipc: int = 1
    """Images per class."""
    space: Literal["pixels", "latents"] = "pixels"
    """What is optimised. `pixels`: normalised pixels (whitened ones where students see whitened images). `latents`: one latent
    per image of a trained generator whose weights stay fixed (GLaD, Cazenavette et al. 2023); the set starts as its first images
    of every class."""
    init: Literal["real", "confident", "noise"] = "real"
    """pixels: what they start from. `real`: random real images; `confident`: real images that an expert classifies correctly
    (DATM); `noise`: Gaussian noise."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """`sgd`: with momentum, as published for pixels. `adam`: its steps do not depend on the size of the gradient."""
    lr: float = 100.0
    """Learning rate."""
    momentum: float = 0.5
    """SGD's momentum, or Adam's first beta."""

    def __post_init__(self) -> None:
        require(self.ipc >= 1, "images.ipc", self.ipc, "1 or more images per class")
        require(self.lr >= 0, "images.lr", self.lr, "0 or more")
        require(0 <= self.momentum < 1, "images.momentum", self.momentum, "a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class LearnedLabelOptions:
    """Of labels of kind `learned`."""

    init: Literal["right", "one"] = "right"
    """learned: what the logits start as. `right`: the mean over the experts that classify the image correctly. `one`: the logits
    of one expert, drawn from the store, also where it is wrong (published for CIFAR-100 at IPC 50)."""
    lr: float = 2.0
    """learned: SGD learning rate."""
    momentum: float = 0.9
    """learned: SGD momentum."""

    def __post_init__(self) -> None:
        require(self.lr >= 0, "labels.lr", self.lr, "0 or more")
        require(0 <= self.momentum < 1, "labels.momentum", self.momentum, "a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class LabelsConfig(Section):
    """The labels of the synthetic images."""

    choices: ClassVar = Choices("kind of label", {"hard": None, "teacher": None, "learned": LearnedLabelOptions})
    selector: ClassVar = "kind"
    prefix: ClassVar = "labels."

    kind: str = "hard"
    """`hard`: the class. `teacher`: probabilities that the matched expert gives at the target, refreshed every iteration
    (TESLA). `learned`: logits that start as the mean over experts that classify the image correctly, and are then learned
    (DATM)."""


@dataclass(frozen=True, kw_only=True)
class StepSizeConfig(Settings):
    """The student's learned step size. Updates are multiplicative, so it stays positive; small ones equal SGD's."""

    prefix: ClassVar = "step_size."

    initial: float = 0.01
    """Initial value."""
    lr: float = 1e-5
    """SGD learning rate. 0: the step size is not learned."""
    momentum: float = 0.5
    """SGD momentum."""

    def __post_init__(self) -> None:
        require(self.initial > 0, "step_size.initial", self.initial, "a positive number")
        require(self.lr >= 0, "step_size.lr", self.lr, "0 or more")
        require(0 <= self.momentum < 1, "step_size.momentum", self.momentum, "a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Settings):
    """The distillation loop: everything that is not the method."""

    prefix: ClassVar = "distill."

    iterations: int = 5000
    """Updates of the synthetic set. 0 leaves the initial one, which is a control."""
    skip_above: float = 0.0
    """Skip an update whose loss is above this (DATM: 1.0). 0: skip only updates that are not finite."""
    seed: Annotated[int, tyro.conf.arg(aliases=["--seed"])] = 0
    """Seed of the whole run."""
    tf32: bool = True
    """Allow TF32 matrix products on GPUs that have them."""
    device: Annotated[str | None, tyro.conf.arg(aliases=["--device"])] = None
    """cpu, cuda, mps. Default: a GPU if there is one."""
    checkpoint_minutes: float = 5.0
    """Wall time between two checkpoints; 0: only by iterations."""
    checkpoint_steps: int = 0
    """Iterations between two checkpoints; 0: only by time."""
    sample_steps: int = 500
    """Iterations between two pictures of the set; 0: only at the end."""
    log_steps: int = 10
    """Iterations between two metric records."""

    def __post_init__(self) -> None:
        require(self.log_steps >= 1, "distill.log_steps", self.log_steps, "at least 1")
        for name in ("iterations", "skip_above", "checkpoint_minutes", "checkpoint_steps", "sample_steps"):
            require(getattr(self, name) >= 0, f"distill.{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True, kw_only=True)
class RecordConfig(Settings):
    """One recording of experts."""

    about: AboutConfig = field(default_factory=AboutConfig)
    student: str = "convnet"
    """Architecture of experts and students, as `dim evaluate --students` names it."""
    zca: bool = False
    """Experts and students see ZCA-whitened images."""
    data: DataConfig = field(default_factory=DataConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "student", *STUDENTS.admit_all([self.student]))


@dataclass(frozen=True, kw_only=True)
class TrajectoryRecipe(RecordConfig):
    """One trajectory-matching setting: experts, what is matched, what is learned, and the protocol of its score."""

    trajectory: TrajectoryConfig = field(default_factory=TrajectoryConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    step_size: StepSizeConfig = field(default_factory=StepSizeConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    protocol: ProtocolConfig = field(default_factory=lambda: ProtocolConfig(batch_size=256))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trajectory.distance == "direction":
            unlearned = "0 with trajectory.distance 'direction', by which a step size cannot be learned"
            require(self.step_size.lr == 0, "step_size.lr", self.step_size.lr, unlearned)
            reachable = "below 1 with trajectory.distance 'direction', whose loss is at most 1 (0: skip nothing)"
            require(self.distill.skip_above < 1, "distill.skip_above", self.distill.skip_above, reachable)
