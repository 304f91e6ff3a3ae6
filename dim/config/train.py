"""Training a generator: networks, losses, stages, pool, loop."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

import tyro

from dim.config.choices import Choices
from dim.config.data import DataConfig
from dim.config.protocol import ProtocolConfig
from dim.config.settings import MOST_BLOCKS, Compile, Distance, Section, Settings, require

GENERATORS = Choices("generator", "dim.nets.generators", base="dim.nets.generator:Generator")
_OF_ADVERSARIES = ("of_run", "network", "discriminator_options")
ADVERSARIES = Choices("adversarial loss", "dim.objectives.adversaries", has=_OF_ADVERSARIES)
DISTANCES = Choices("distance", "dim.objectives.distances", takes=(2, ("seed",)))
POOLS = Choices("pool", "dim.pools", base="dim.pool:ModelPool")
OBJECTIVES = Choices("objective", {}, takes=(1, ("seed", "device")), has=("accumulate",), open=True)


MOST_EPOCHS = 1e18
"""Of a stage, so that its steps can be counted."""


@dataclass(frozen=True, kw_only=True)
class AboutConfig(Settings):
    """What a recipe is for. It changes nothing in a run."""

    prefix: ClassVar = "about."

    title: str = ""
    """One line."""
    source: str = ""
    """Paper and code that the settings come from, and where they depart."""
    expect: str = ""
    """Accuracy and time to expect, with the machine and the file under benchmarks/results/ that measured them."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(Section):
    """The conditional generator, which is the product."""

    choices: ClassVar = GENERATORS
    selector: ClassVar = "name"
    prefix: ClassVar = "generator."

    name: str = "gan"
    """Architecture."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(Settings):
    """The discriminator. Its architecture follows from `adversarial.loss`."""

    prefix: ClassVar = "discriminator."

    width: int = 64
    """Channels. acgan-wgangp: of every hidden layer (published: 196). relativistic: at full resolution, doubled at the next two
    halvings."""
    blocks: int = 1
    """relativistic: residual blocks per resolution."""

    def __post_init__(self) -> None:
        require(self.width >= 1, "discriminator.width", self.width, "at least 1")
        require(1 <= self.blocks <= MOST_BLOCKS, "discriminator.blocks", self.blocks, f"1 to {MOST_BLOCKS}")


@dataclass(frozen=True, kw_only=True)
class StageConfig(Settings):
    """Length and optimiser of one training stage. Adam trains the generator and the discriminator."""

    epochs: float = 1.0
    """Passes over the training data. Fractions are allowed; 0 skips the stage."""
    batch_size: int = 64
    """Real images per step, and as many generated ones, over all processes."""
    class_power: float = 1.0
    """How often classes of different sizes are shown: in proportion to their number of images to this power, in [0, 1]. 1 shows
    every image once per epoch, 0 every class equally often."""
    lr: float = 2e-4
    """Adam's learning rate, of generator and discriminator."""
    lr_end: float | None = None
    """Learning rate that a cosine reaches at the end of the stage. Default: constant."""
    betas: tuple[float, float] = (0.0, 0.9)
    """Adam's betas."""
    beta2_end: float | None = None
    """Second beta that a cosine reaches at the end of the stage. Default: constant."""

    def __post_init__(self) -> None:
        require(0 <= self.epochs <= MOST_EPOCHS, "epochs", self.epochs, f"0 to {MOST_EPOCHS:g}")
        require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2")
        require(0 <= self.class_power <= 1, "class_power", self.class_power, "a number in [0, 1]")
        require(self.lr > 0, "lr", self.lr, "a positive number")
        require(self.lr_end is None or self.lr_end >= 0, "lr_end", self.lr_end, "0 or more")
        require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers in [0, 1)")
        require(self.beta2_end is None or 0 <= self.beta2_end < 1, "beta2_end", self.beta2_end, "a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(Section):
    """The two-player loss, in both stages."""

    choices: ClassVar = ADVERSARIES
    selector: ClassVar = "loss"
    prefix: ClassVar = "adversarial."

    loss: str = "relativistic"
    """The loss."""
    augment: str = ""
    """Differentiable augmentation of real and generated images before the discriminator (Zhao et al. 2020), such as
    `color_crop_cutout`. Published: none."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig(Settings):
    """What the generators `diffusion` and `pipeline` learn from real images, in both stages."""

    prefix: ClassVar = "flow."

    mean_from: float = 0.5
    """diffusion: part of stage one after which mean velocities, which make few steps possible, are learned too; in [0, 1]."""
    mean_share: float = 0.5
    """diffusion: part of a batch that learns mean velocities from then on; in [0, 1]."""
    label_dropout: float = 0.1
    """Part of the images that are shown without their class, which guidance needs; in [0, 1]."""
    time_mean: float = -0.4
    """diffusion: times are sigmoids of Gaussian numbers with this mean."""
    time_std: float = 1.0
    """diffusion: standard deviation of those Gaussian numbers."""

    def __post_init__(self) -> None:
        for name in ("mean_from", "mean_share", "label_dropout"):
            require(0 <= getattr(self, name) <= 1, f"flow.{name}", getattr(self, name), "a number in [0, 1]")
        require(self.time_std > 0, "flow.time_std", self.time_std, "a positive number")


@dataclass(frozen=True, kw_only=True)
class MatchingConfig(Section):
    """Stage two: the outputs of a pool of models for real and for generated images should agree."""

    choices: ClassVar = DISTANCES
    selector: ClassVar = "distance"
    prefix: ClassVar = "matching."

    weight: float = 20.0
    """Weight beside the adversarial loss. Published: 0.01, which hardly acts. 0 turns the pool off."""
    distance: str = "kernel"
    """Distance between the outputs for real and for generated images of a class. At equal weight the distances act with different
    force: `means` of logits about ten times as strongly as `kernel` of features."""
    outputs: Literal["logits", "features"] = "features"
    """What is compared. `logits`: log-probabilities (published). `features`: the inputs of a model's last layer."""
    augment: str = "color_crop_cutout"
    """Augmentation, the same for both sides."""

    def __post_init__(self) -> None:
        require(self.weight >= 0, "matching.weight", self.weight, "0 or more")


@dataclass(frozen=True, kw_only=True)
class PoolConfig(Section):
    """The pool of models whose outputs are matched."""

    choices: ClassVar = POOLS
    selector: ClassVar = "source"
    prefix: ClassVar = "pool."

    source: str = "persistent"
    """Where the models come from."""


@dataclass(frozen=True, kw_only=True)
class PathMatchingConfig(Settings):
    """Trajectory matching of the generator (stage two): a student starts on a recorded expert's path, trains on a generated
    batch, and should end where the expert went, or move in that direction (`distance`)."""

    prefix: ClassVar = "path_matching."

    weight: float = 0.0
    """Weight beside the other losses. 0 turns it off."""
    experts: str | None = None
    """Folder made by `dim experts`."""
    every: int = 1
    """Generator steps between two such gradients."""
    steps: int = 10
    """Steps of the student (N)."""
    epochs: float = 0.1
    """Recorded moments from start to target (M)."""
    starts: tuple[float, float] = (0.0, 1.0)
    """Start points are drawn uniformly from this range of recorded moments."""
    batch_size: int = 0
    """Generated images per student step; 0: all of the batch."""
    step_size: float = 0.01
    """The student's learning rate."""
    distance: Distance = "endpoint"
    """As in `dim distill --trajectory.distance`: where student and expert end, or only the direction in which they went."""
    augment: str = "color|crop|cutout|flip|scale|rotate"
    """Augmentation of the images, drawn anew for each student step."""

    def __post_init__(self) -> None:
        require(self.weight >= 0, "path_matching.weight", self.weight, "0 or more")
        for name in ("every", "steps"):
            require(getattr(self, name) >= 1, f"path_matching.{name}", getattr(self, name), "at least 1")
        for name in ("epochs", "step_size"):
            require(getattr(self, name) > 0, f"path_matching.{name}", getattr(self, name), "a positive number")
        require(self.batch_size >= 0, "path_matching.batch_size", self.batch_size, "0 (all) or more")
        low, high = self.starts
        require(0 <= low < high, "path_matching.starts", self.starts, "two numbers of 0 or more, the smaller first")


@dataclass(frozen=True, kw_only=True)
class FitConfig(Settings):
    """The training loop: everything that is not the method."""

    prefix: ClassVar = "fit."

    seed: Annotated[int, tyro.conf.arg(aliases=["--seed"])] = 0
    """Seed of the whole run."""
    ema: float = 0.999
    """Decay per step of the exponential moving average of the generator's weights, which is then the result. It is warmed up as
    (1 + t) / (10 + t). 0: no average (published)."""
    clip_norm: float = 0.0
    """Largest norm of the gradient of the generator and of the discriminator; 0: no limit."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of accelerate. fp16 is not offered, because the gradient penalty overflows it."""
    channels_last: bool = True
    """Keep convolutions in the channels-last memory format."""
    tf32: bool = True
    """Allow TF32 matrix products on GPUs that have them."""
    compile: Compile = "auto"
    """Compile the discriminator's step, which takes up to a minute. `auto`: for long trainings on a CPU, where a compiler is
    found (not measured on a GPU, and off there). The pool has an option of its own."""
    device: Annotated[str | None, tyro.conf.arg(aliases=["--device"])] = None
    """cpu, cuda, mps. Default: what accelerate finds."""
    checkpoint_minutes: float = 5.0
    """Wall time between two checkpoints; 0: only by steps."""
    checkpoint_steps: int = 0
    """Steps between two checkpoints; 0: only by time."""
    sample_steps: int = 500
    """Steps between two sample grids; 0: only at the end."""
    log_steps: int = 20
    """Steps between two metric records. Losses are checked for non-finite values then and before every checkpoint."""
    coverage_steps: int = 0
    """Steps between two measures of how much of the real data the generator covers (FID, precision, recall, density, coverage);
    0: never. They change nothing in the run, and their time is not counted as training time."""
    coverage_samples: int = 2000
    """Real and generated images that such a measure compares."""
    experts: int = 0
    """Experts (small ConvNets) to record in the run's folder when the generator is trained; 0: none. `dim sample` then refines a
    set's images with them."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers of accelerate, beside metrics.jsonl. `--fit.trackers` without a value: none."""

    def __post_init__(self) -> None:
        require(0 <= self.ema < 1, "fit.ema", self.ema, "a number in [0, 1)")
        require(self.clip_norm >= 0, "fit.clip_norm", self.clip_norm, "0 or more")
        require(self.log_steps >= 1, "fit.log_steps", self.log_steps, "at least 1")
        for name in ("checkpoint_minutes", "checkpoint_steps", "sample_steps", "coverage_steps"):
            require(getattr(self, name) >= 0, f"fit.{name}", getattr(self, name), "0 or more")
        require(0 <= self.experts <= 1000, "fit.experts", self.experts, "0 to 1000")
        require(self.coverage_samples >= 6, "fit.coverage_samples", self.coverage_samples, "at least 6")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """One generator run: data, networks, two stages, pool, loop, and the protocol by which its sets are scored."""

    about: AboutConfig = field(default_factory=AboutConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    stage_one: StageConfig = field(default_factory=lambda: StageConfig(epochs=150, batch_size=128))
    """Adversarial training alone."""
    stage_two: StageConfig = field(default_factory=lambda: StageConfig(epochs=30, batch_size=128, lr=5e-5))
    """Adversarial training and matching, from stage one's weights and optimiser states."""
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    path_matching: PathMatchingConfig = field(default_factory=PathMatchingConfig)
    objectives: tuple[str, ...] = ()
    """Further objectives of stage two, of your own: package.module:Name. See `dim.objectives.Objective`."""
    fit: FitConfig = field(default_factory=FitConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)

    def __post_init__(self) -> None:
        """Refuse what the chosen generator and the chosen loss do not use."""
        object.__setattr__(self, "objectives", OBJECTIVES.admit_all(self.objectives))
        for name in self.objectives:
            OBJECTIVES.require(name, "objectives")
            OBJECTIVES.load(name)
        generator = GENERATORS.load(self.generator.name)
        for section in ("adversarial", "discriminator", "flow"):
            changed = _changed(getattr(self, section))
            unused = {name for name in changed if not {section, f"{section}.{name}"} & set(generator.settings)}
            for name in sorted(unused):
                expected = f"its default, as generator {self.generator.name!r} does not use it"
                require(False, f"{section}.{name}", getattr(getattr(self, section), name), expected)
        if "discriminator" in generator.settings:
            known = ADVERSARIES.load(self.adversarial.loss).discriminator_options
            for name in _changed(self.discriminator) - set(known):
                expected = (
                    f"its default, as the discriminator of the loss {self.adversarial.loss!r} has {' and '.join(known)} only"
                )
                require(False, f"discriminator.{name}", getattr(self.discriminator, name), expected)


def for_generator(values: dict[str, Any]) -> dict[str, Any]:
    """Sections of a `TrainConfig`, by name, with the defaults in place of what the generator among them does not use."""
    used = {name.partition(".")[0] for name in GENERATORS.load(values["generator"].name).settings}
    fresh = {"adversarial": AdversarialConfig, "discriminator": DiscriminatorConfig, "flow": FlowConfig}
    return values | {name: make() for name, make in fresh.items() if name not in used}


def _changed(section: Settings) -> set[str]:
    """Names of the settings that differ from those of a section that was left alone."""
    default = getattr(type(section), "declared", type(section))()
    return {field.name for field in fields(section) if getattr(section, field.name) != getattr(default, field.name, MISSING)}
