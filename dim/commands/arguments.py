"""What the commands of `dim` take: one dataclass per command, whose fields and their descriptions are its options and help."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import tyro

from dim.config import (
    FORMATS,
    DataConfig,
    PolicyConfig,
    RecordConfig,
    RefineConfig,
    Settings,
    TrainConfig,
    TrajectoryRecipe,
)
from dim.config.settings import require

T = TypeVar("T")


MOST_SEEDS = 10_000
MOST_MINUTES = 1_000_000

GENERATOR = "generator"
"""What `dim sample --format` takes beside the formats of sets."""


def require_png(option: str, path: str | None) -> None:
    """Raise InputError for a picture whose name says another format than the one it will have, or none."""
    fits = path is None or path.lower().endswith(".png") or path.startswith("/dev/")
    require(fits, option, path, "a name that ends in .png, which is what is written")


def require_distinct(option: str, values: Sequence[Any]) -> None:
    """Raise InputError for a value that is given twice to one option."""
    for place, value in enumerate(values):
        require(value not in values[:place], option, value, "each value once")


@dataclass(frozen=True, kw_only=True)
class DataArguments(Settings):
    """Look at real data: classes, parts, sizes, what is converted or left out. Every image is read once."""

    folder: tyro.conf.Positional[str | None] = None
    """Your own images: a folder of class folders, or of shards."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """Other data, and how they are read."""
    picture: str | None = None
    """Also write training images of every class, as a PNG."""
    json: str | None = None
    """Also write what was found to this file."""

    def __post_init__(self) -> None:
        require_png("picture", self.picture)


@dataclass(frozen=True, kw_only=True)
class TrainArguments(TrainConfig):
    """Train a generator and leave a run folder: on a folder of your own images, with settings that are chosen for them, or by a
    recipe (see `dim recipes`). Any option can be overridden."""

    folder: tyro.conf.Positional[str | None] = None
    """Your own images: a folder of class folders, or of shards."""
    minutes: float | None = None
    """Without a recipe: choose settings for the data, the device and so much time, from reading the data to the report. Default
    with a folder: 30."""
    recipe: str | None = None
    """A recipe's name, or a path to a TOML file."""
    out: str | None = None
    """The run folder to make. Default for a folder of your own: runs/ and its name."""
    resume: bool = False
    """Continue the run in the folder; its own configuration is used if no recipe is named."""
    depart: bool = False
    """With --resume: go on with other learning rates, weights of losses, clipping or precision than the run has, as after a loss
    that was not finite. run.json and the result state it."""
    code: tuple[str, ...] = ()
    """Your own code that a run, generator or set was made with, as package.module:Name. Code that only a file names is never
    imported."""
    dry_run: bool = False
    """Print the resolved configuration as TOML and stop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.minutes is None or 0 < self.minutes <= MOST_MINUTES
        require(fits, "minutes", self.minutes, f"a positive number up to {MOST_MINUTES:,}")


@dataclass(frozen=True, kw_only=True)
class SamplerArguments(Settings):
    """Options of a few-step generator's sampler. Default: as it was trained."""

    prefix: ClassVar = "sampler."

    steps: int | None = None
    """Steps from noise to image."""
    guidance: float | None = None
    """Weight of the class against no class; 1: none."""
    scheduler: str | None = None
    """mean, euler or heun."""

    def given(self) -> dict[str, Any]:
        """What was asked for."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class TeacherArguments(Settings):
    """Soft labels, from an ensemble of models."""

    prefix: ClassVar = "teacher."

    folder: str | None = None
    """Experts (made by `dim experts`), or a run, whose pool is then asked. Default: hard labels."""
    age: float = 1.0
    """Of experts, as a part of their recorded path in [0, 1]."""
    temperature: float = 1.0
    """Logits are divided by it."""
    top_k: int = 0
    """Keep so many of the largest probabilities; 0: all."""

    def load(self, data: Any, device: Any) -> Any:
        """The teacher, or None."""
        if self.folder is None:
            return None
        from dim.teacher import load_teacher

        settings = {"age": self.age, "temperature": self.temperature, "top_k": self.top_k}
        return load_teacher(self.folder, data, **settings, device=device)


@dataclass(frozen=True, kw_only=True)
class CodingArguments(Settings):
    """How candidates of --bytes are made and compared."""

    prefix: ClassVar = "coding."

    student: str | None = None
    """Architecture that each candidate is scored by. Default: the first of the protocol."""
    budget_ipc: int = 10
    """Every candidate gets the student steps that the protocol has for so many images per class."""
    calibration_steps: int = 300
    """Updates that fit a generator's rounded weights to its own images; 0: they are only rounded."""

    def __post_init__(self) -> None:
        require(self.budget_ipc >= 1, "coding.budget_ipc", self.budget_ipc, "at least 1")
        require(self.calibration_steps >= 0, "coding.calibration_steps", self.calibration_steps, "0 or more")


@dataclass(frozen=True, kw_only=True)
class SampleArguments(Settings):
    """Draw a training set from a generator, of any size. Sets are nested: a smaller one is the beginning of a larger one."""

    generator: tyro.conf.Positional[str]
    """A run folder, an exported folder, or hub:owner/name."""
    out: str
    """The folder to write; with --bytes a file that ends in .dimz."""
    ipc: int | None = None
    """Images per class; there is no upper limit. With --bytes: at most so many (default: 1000; policies: 50)."""
    bytes: str | None = None
    """In place of a size: the best accuracy in one coded file of at most this size, such as 30k (30,000) or 1M. The generator
    and its images are coded in several ways; one student of each is scored on the validation part."""
    counts: tuple[str, ...] = ()
    """Images for single classes, in place of --ipc: `--counts cat=20 3=100`, by name or, for no name, number."""
    classes: tuple[str, ...] = ()
    """Only these classes, by name or, for no name, number."""
    seed: int = 0
    """Another seed gives another set."""
    format: FORMATS.named(
        "How the set is stored. `generator`: in place of a set a generator, whose first --ipc images of a class are those of the "
        "policy, and whose streams go on around them."
    ) = "imagefolder"
    """How the set is stored."""
    spread: float = 0.3
    """--format generator: standard deviation, in latents, of later images around those of the policy; 0: they repeat."""
    sampler: SamplerArguments = dataclasses.field(default_factory=SamplerArguments)
    """How images are made."""
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    """Which images are taken."""
    refine: RefineConfig = dataclasses.field(default_factory=RefineConfig)
    """The policy `refined`."""
    teacher: TeacherArguments = dataclasses.field(default_factory=TeacherArguments)
    """What policies ask, and what labels the images."""
    hard: bool = False
    """Ask the teacher for the policy only: labels stay hard."""
    coding: CodingArguments = dataclasses.field(default_factory=CodingArguments)
    """With --bytes."""
    json: str | None = None
    """With --bytes: also write the candidates, with their bytes and accuracies, to this file."""
    data_root: str | None = None
    """Where the real data lies; the policies `matched` and `refined`, experts of whitened images, and --bytes need it. Default:
    DIM_DATA_ROOT, or where the run had it."""
    code: tuple[str, ...] = ()
    """Your own code that a run, generator or set was made with, as package.module:Name. Code that only a file names is never
    imported."""
    batch_size: int = 2048
    """The most images generated at a time, fewer if they are large; it bounds memory and changes nothing else."""
    device: str | None = None
    """cpu, cuda, mps. Default: a GPU if there is one."""
    overwrite: bool = False
    """Replace what the folder holds."""

    def __post_init__(self) -> None:
        require_distinct("classes", self.classes)
        if self.format != GENERATOR:
            FORMATS.require(self.format, "format")
            FORMATS.load(self.format)


@dataclass(frozen=True, kw_only=True)
class ExpertsArguments(RecordConfig):
    """Train classifiers on the real data and record their weights along the way: experts for trajectory matching."""

    recipe: str | None = None
    """A trajectory recipe's name, or a path to a TOML file."""
    out: str | None = None
    """The folder to make."""
    resume: bool = False
    """Continue the recording in the folder; its own configuration is used if no recipe is named."""
    to_waypoints: str | None = None
    """Do not train: convert the store in this folder, which has every checkpoint, to --experts.waypoints of them (MCT)."""
    code: tuple[str, ...] = ()
    """Your own code that a run, generator or set was made with, as package.module:Name. Code that only a file names is never
    imported."""
    dry_run: bool = False
    """Print the resolved configuration as TOML and stop."""


@dataclass(frozen=True, kw_only=True)
class DistillArguments(TrajectoryRecipe):
    """Learn a synthetic set by matching recorded experts (MTT, TESLA, DATM, MCT): pixels, or latents of a generator."""

    experts: str | None = None  # in place of the section: how experts were trained is written in their folder
    """Folder made by `dim experts`. Default when resuming: the one that the run began with."""
    generator: str | None = None
    """Whose latents are learned, with --images.space latents: a run folder, an exported folder, or hub:owner/name."""
    recipe: str | None = None
    """A trajectory recipe's name, or a path to a TOML file."""
    out: str | None = None
    """The folder to make: a run, and a set that `dim evaluate` takes."""
    resume: bool = False
    """Continue the run in the folder; its own configuration is used if no recipe is named."""
    depart: bool = False
    """With --resume: go on with other learning rates, --distill.skip-above or --trajectory.precision than the run has, as after a
    loss that was not finite. run.json and the result state it."""
    code: tuple[str, ...] = ()
    """Your own code that a run, generator or set was made with, as package.module:Name. Code that only a file names is never
    imported."""
    dry_run: bool = False
    """Print the resolved configuration as TOML and stop."""


@dataclass(frozen=True, kw_only=True)
class ReportArguments(Settings):
    """Write a run's page, report.html, again: after it was stopped early, or made by an earlier version."""

    run: tyro.conf.Positional[str]
    """The run folder."""
    data_root: str | None = None
    """Where the real data lies. Default: DIM_DATA_ROOT, or where the run had it."""


@dataclass(frozen=True, kw_only=True)
class RecipesArguments(Settings):
    """List the recipes, or print one, resolved, as TOML."""

    name: tyro.conf.Positional[str | None] = None
    """A recipe's name, or a path to a TOML file."""
    json: str | None = None
    """Also write the list to this file: name, title, command, data set, source, what to expect."""


@dataclass(frozen=True, kw_only=True)
class CompletionArguments(Settings):
    """Print a script that lets a shell complete commands, options and recipes."""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """Whose script."""
