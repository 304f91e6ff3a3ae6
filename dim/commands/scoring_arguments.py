"""What `dim evaluate`, `dim compare` and `dim coverage` take; see `dim.commands.arguments`."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from dim.commands.arguments import MOST_SEEDS, SamplerArguments, TeacherArguments, require_distinct, require_png
from dim.config import CORESETS, ProtocolConfig, Settings
from dim.config.settings import require, require_default
from dim.config.timed import TimedConfig
from dim.errors import InputError
from dim.score.controls import control_names, require_controls


@dataclass(frozen=True, kw_only=True)
class ScoringArguments(Settings):
    """What `dim evaluate` and `dim compare` have in common: what is scored, and how."""

    subjects: tyro.conf.Positional[tuple[str, ...]]
    """Sets (fixed track), and runs or generators (stream track, fixed track, or both: --track)."""
    seeds: int = 3
    """Students per row, with seeds 0, 1, ..."""
    controls: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            help="Also: real images at the IPCs of the fixed rows, chosen by a rule; `oracle`, real data at the step budgets of "
            f"the stream rows; `full` data. {CORESETS.explained()}",
            metavar=f"[{'|'.join(control_names())}] ...",
        ),
    ] = ()
    """Also: real images at the IPCs of the fixed rows, chosen by a rule; real data at the step budgets of the stream rows; full
    data."""
    coreset_end: Literal["easiest", "hardest"] | None = None
    """For controls that rank images by scores: which to take. Default: easiest, the better end where few are kept."""
    split: Literal["test", "val"] = "test"
    """Part of the real data to score on; choose on val, report on test."""
    data_root: str | None = None
    """Where the real data lies. Default: the environment variable DIM_DATA_ROOT, or where a run among the subjects had it."""
    device: str | None = None
    """cpu, cuda, mps. Default: a GPU if there is one."""
    code: tuple[str, ...] = ()
    """Your own code that a run, generator or set was made with, as package.module:Name. Code that only a file names is never
    imported."""
    json: str | None = None
    """Also write the scores, with everything that they depend on, to this file."""
    sampler: SamplerArguments = dataclasses.field(default_factory=SamplerArguments)
    """For generators: how images are made."""
    teacher: TeacherArguments = dataclasses.field(default_factory=TeacherArguments)
    """For generators and controls: what labels the images. Sets keep their own labels."""
    protocol: ProtocolConfig = dataclasses.field(default_factory=ProtocolConfig)
    """How students are trained. Default: what the first subject carries."""

    def __post_init__(self) -> None:
        require_controls(self.controls)
        require(1 <= self.seeds <= MOST_SEEDS, "seeds", self.seeds, f"1 to {MOST_SEEDS:,}")
        for name in ("controls", "track", "ipc"):
            require_distinct(name, getattr(self, name, ()))


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(ScoringArguments):
    """Train fresh students on sets and streams and print their test accuracy, with controls, in one table."""

    ipc: tuple[int, ...] = (10,)
    """For generators: images per class, one row each."""
    track: tuple[Literal["stream", "fixed"], ...] = ("stream",)
    """For generators: a stream at the step budget of --ipc, a set of --ipc drawn on the spot, or both."""
    claim: bool = False
    """Write the rows of each set and generator into it, as claims, which 'dim verify' tests."""
    student_seconds: tuple[float, ...] = ()
    """Instead: accuracy after this many seconds of training, beside students on the real data in the same time, each with
    settings that are chosen on the validation part."""
    timed: TimedConfig = dataclasses.field(default_factory=TimedConfig)
    """For --student-seconds: what is tried."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_distinct("student-seconds", self.student_seconds)
        for seconds in self.student_seconds:
            require(seconds > 0, "student-seconds", seconds, "a number above 0")
        if not self.student_seconds:
            require_default(self.timed, "without --student-seconds")
            return
        for name in ("ipc", "track", "controls", "coreset_end", "claim"):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                given = name.replace("_", "-")
                raise InputError(f"--{given} changes nothing beside --student-seconds: leave it out")
        require_default(self.teacher, "beside --student-seconds, which scores hard labels and those of sets")


@dataclass(frozen=True, kw_only=True)
class CompareArguments(ScoringArguments):
    """Put sets, runs and scores measured before side by side: a table for each track, a picture, a page."""

    subjects: tyro.conf.Positional[tuple[str, ...]]
    """Sets, runs, generators, and files that --json of this command or of 'dim evaluate' wrote: what these hold is not measured
    again."""
    ipc: tuple[int, ...] = (1, 10, 50)
    """For generators: images per class, one row each."""
    track: tuple[Literal["fixed", "stream"], ...] = ("fixed", "stream")
    """For generators: a set of --ipc drawn on the spot, a stream at the step budget of --ipc, or both."""
    picture: str | None = None
    """Also draw accuracy against images per class and against stored bytes, as a PNG."""
    html: str | None = None
    """Also write the tables and the picture as one page."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_png("picture", self.picture)


@dataclass(frozen=True, kw_only=True)
class CoverageArguments(Settings):
    """Measure how much of the real data sets and generators cover, beside held-out real images: FID, precision, recall, ..."""

    subjects: tyro.conf.Positional[tuple[str, ...]]
    """Sets, runs and generators. A run's report gets the figures, and its images beside the nearest real ones."""
    samples: int = 5000
    """Images on each side, balanced; fewer where the training part, the held-out parts or a set has fewer."""
    seed: int = 0
    """Of the choice of images."""
    features: str = "auto"
    """What distances are taken in. `auto`: a classifier trained on the data, once (kept in ~/.cache/dim/features); otherwise a
    .safetensors file with the state of torchvision's inception_v3."""
    sampler: SamplerArguments = dataclasses.field(default_factory=SamplerArguments)
    """For generators: how images are made."""
    data_root: str | None = None
    """Where the real data lies. Default: the environment variable DIM_DATA_ROOT, or where a run among the subjects had it."""
    device: str | None = None
    """cpu, cuda, mps. Default: a GPU if there is one."""
    code: tuple[str, ...] = ()
    """Your own code that a run, generator or set was made with, as package.module:Name. Code that only a file names is never
    imported."""
    json: str | None = None
    """Also write the figures, with everything that they depend on, to this file."""
    panel: str | None = None
    """Also write the first subject's images beside their nearest real ones, as a PNG."""

    def __post_init__(self) -> None:
        require_png("panel", self.panel)
