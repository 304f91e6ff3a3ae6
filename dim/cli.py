"""The command line: one function per command of `dim`. Arguments in, one clear line on error."""

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from dim.config import (
    PolicyConfig,
    ProtocolConfig,
    RecordConfig,
    RefineConfig,
    TrainConfig,
    TrajectoryRecipe,
    from_dict,
    load_recipe,
    load_recipe_for,
    recipe_names,
    to_toml,
)
from dim.errors import InputError, nearest
from dim.host import keep_freed_memory

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrainArguments(TrainConfig):
    """Train a generator and leave a run folder. Start from a recipe (see `dim recipes`) and override any option."""

    recipe: str | None = None
    """A recipe's name, or a path to a TOML file."""
    out: str | None = None
    """The run folder to make."""
    resume: bool = False
    """Continue the run in the folder; its own configuration is used if no recipe is named."""
    dry_run: bool = False
    """Print the resolved configuration as TOML and stop."""


@dataclass(frozen=True, kw_only=True)
class SamplerArguments:
    """Options of a few-step generator's sampler. Default: as it was trained."""

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
class TeacherArguments:
    """Soft labels, from an ensemble of models."""

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
class SampleArguments:
    """Draw a training set from a generator, of any size. Sets are nested: a smaller one is the beginning of a larger one."""

    generator: tyro.conf.Positional[str]
    """A run folder, an exported folder, or a Hub id."""
    out: str
    """The folder to write."""
    ipc: int | None = None
    """Images per class; also far more than it was trained for."""
    counts: tuple[str, ...] = ()
    """Images for single classes, in place of --ipc: `--counts 3=100 cat=20`, by number or name."""
    classes: tuple[str, ...] = ()
    """Only these classes, by number or name."""
    seed: int = 0
    """Another seed gives another set."""
    format: Literal["imagefolder", "safetensors", "npz", "webdataset", "parquet", "latents", "generator"] = "imagefolder"
    """imagefolder: PNG files and metadata.jsonl; safetensors or npz: one array file; webdataset or parquet: with the extra
    `export`; latents: the generator and a latent per image, which are fewer numbers than pixels (not of `diffusion`); generator:
    no set but a generator, whose first --ipc images of a class are those of the policy, and whose streams go on around them."""
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
    data_root: str | None = None
    """Where the real data lies; the policies `matched` and `refined`, and experts of whitened images, need it. Default:
    DIM_DATA_ROOT, or where the run had it."""
    batch_size: int = 2048
    """Images generated at a time; it bounds memory and changes nothing else."""
    device: str | None = None
    """cpu, cuda, mps. Default: a GPU if there is one."""
    overwrite: bool = False
    """Replace what the folder holds."""


@dataclass(frozen=True, kw_only=True)
class ScoringArguments:
    """What `dim evaluate` and `dim compare` have in common: what is scored, and how."""

    subjects: tyro.conf.Positional[tuple[str, ...]]
    """Sets (fixed track), and runs or generators (stream track, fixed track, or both: --track)."""
    seeds: int = 3
    """Students per row, with seeds 0, 1, ..."""
    controls: tuple[Literal["random", "herding", "k-center", "forgetting", "el2n", "oracle", "full"], ...] = ()
    """Also: real images at the IPCs of the fixed rows, at random or a coreset (herding, k-center, forgetting, el2n); real data
    at the step budgets of the stream rows; full data."""
    coreset_end: Literal["easiest", "hardest"] | None = None
    """For forgetting and el2n: which images to take. Default: easiest, the better end where few are kept."""
    split: Literal["test", "val"] = "test"
    """Part of the real data to score on; choose on val, report on test."""
    data_root: str | None = None
    """Where the real data lies. Default: the environment variable DIM_DATA_ROOT, or where a run among the subjects had it."""
    device: str | None = None
    """cpu, cuda, mps. Default: a GPU if there is one."""
    json: str | None = None
    """Also write the scores, with everything that they depend on, to this file."""
    sampler: SamplerArguments = dataclasses.field(default_factory=SamplerArguments)
    """For generators: how images are made."""
    teacher: TeacherArguments = dataclasses.field(default_factory=TeacherArguments)
    """For generators and controls: what labels the images. Sets keep their own labels."""
    protocol: ProtocolConfig = dataclasses.field(default_factory=ProtocolConfig)
    """How students are trained. Default: what the first subject carries."""


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(ScoringArguments):
    """Train fresh students on sets and streams and print their test accuracy, with controls, in one table."""

    ipc: tuple[int, ...] = (10,)
    """For generators: images per class, one row each."""
    track: tuple[Literal["stream", "fixed"], ...] = ("stream",)
    """For generators: a stream at the step budget of --ipc, a set of --ipc drawn on the spot, or both."""


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


@dataclass(frozen=True, kw_only=True)
class CoverageArguments:
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
    json: str | None = None
    """Also write the figures, with everything that they depend on, to this file."""
    panel: str | None = None
    """Also write the first subject's images beside their nearest real ones, as a PNG."""


@dataclass(frozen=True, kw_only=True)
class ExpertsArguments(RecordConfig):
    """Record how ordinary training on the real data moves through weight space: the experts of trajectory matching."""

    recipe: str | None = None
    """A trajectory recipe's name, or a path to a TOML file."""
    out: str | None = None
    """The folder to make."""
    resume: bool = False
    """Continue the recording in the folder; its own configuration is used if no recipe is named."""
    to_waypoints: str | None = None
    """Do not train: convert the store in this folder, which has every checkpoint, to --experts.waypoints of them (MCT)."""
    dry_run: bool = False
    """Print the resolved configuration as TOML and stop."""


@dataclass(frozen=True, kw_only=True)
class DistillArguments(TrajectoryRecipe):
    """Learn a synthetic set by matching recorded experts (MTT, TESLA, DATM, MCT): pixels, or latents of a generator."""

    experts: str | None = None  # in place of the section: how experts were trained is written in their folder
    """Folder made by `dim experts`. Default when resuming: the one that the run began with."""
    generator: str | None = None
    """Whose latents are learned, with --images.space latents: a run folder, an exported folder, or a Hub id."""
    recipe: str | None = None
    """A trajectory recipe's name, or a path to a TOML file."""
    out: str | None = None
    """The folder to make: a run, and a set that `dim evaluate` takes."""
    resume: bool = False
    """Continue the run in the folder; its own configuration is used if no recipe is named."""
    dry_run: bool = False
    """Print the resolved configuration as TOML and stop."""


@dataclass(frozen=True, kw_only=True)
class RecipesArguments:
    """List the recipes, or print one, resolved, as TOML."""

    name: tyro.conf.Positional[str | None] = None
    """A recipe's name, or a path to a TOML file."""


def train(arguments: Sequence[str]) -> None:
    """`dim train`."""
    parsed, config = _configured(arguments, "train", TrainArguments, TrainConfig, "run")
    if config is None:
        return

    from dim.data.real import load_data
    from dim.fit import fit, make_accelerator
    from dim.report import write_report

    accelerator = make_accelerator(config, Path(parsed.out))
    data = load_data(config.data, accelerator.device)
    run = fit(config, data, parsed.out, resume=parsed.resume, accelerator=accelerator)
    if accelerator.is_main_process:
        report = write_report(run, data)
        print(f"generator: {run}  report: {report}  next: dim sample {run} --ipc 10 --out sets/{run.name}-10")


def sample(arguments: Sequence[str]) -> None:
    """`dim sample`."""
    parsed = _parse(SampleArguments, arguments, "sample")
    if parsed.ipc is None and not parsed.counts:
        raise InputError("no size: give --ipc N (images per class), or --counts CLASS=N ...")
    if parsed.format == "generator" and (not parsed.policy.steps or parsed.counts or parsed.classes):
        expected = "expected --policy.steps, and --ipc without --counts or --classes"
        raise InputError(f"format is 'generator', which keeps the images that a policy takes of every class: {expected}")

    from dim.data.export import require_libraries
    from dim.hub import load_generator, save_pretrained
    from dim.io import require_free
    from dim.nets.generators.base import require_spread
    from dim.sampler import anchored, leave_together, made_once, request, require_batch_size, sample_set_together
    from dim.teacher import with_soft_labels

    # Before a policy has taken its time:
    require_spread(parsed.spread)
    require_batch_size(parsed.batch_size)
    require_libraries(parsed.format)
    require_free(parsed.out, overwrite=parsed.overwrite)
    generator = load_generator(parsed.generator, _device(parsed.device)).configure(**parsed.sampler.given())
    size: dict[str, Any] = {"ipc": parsed.ipc}
    if parsed.counts:
        size["counts"] = dict(_count(text, generator.spec.class_names) for text in parsed.counts)
    if parsed.classes:
        size["classes"] = [_class_number(text, generator.spec.class_names) for text in parsed.classes]
    request(generator.spec, **size)
    data = _real_data_for(parsed, generator)
    teacher = parsed.teacher.load(data, generator.device)
    ranking = None
    if parsed.policy.steps:
        from dim.features import trained_features
        from dim.policies import Policy

        features = trained_features(data) if "matched" in parsed.policy.steps else None
        real = data if {"matched", "refined"} & set(parsed.policy.steps) else None
        refinement = {"refinement": parsed.refine, "experts": parsed.teacher.folder}
        policy = Policy(parsed.policy, teacher=teacher, data=real, features=features, **refinement)
        ipc = parsed.ipc or max(size["counts"].values())
        ranking = made_once(lambda: policy.rank(generator, seed=parsed.seed, ipc=ipc))
    if parsed.format == "generator":
        chosen = anchored(generator, ranking, ipc=parsed.ipc, spread=parsed.spread, seed=parsed.seed)
        made_once(lambda: str(save_pretrained(chosen, parsed.out, overwrite=parsed.overwrite)))
        print(f"generator around {parsed.ipc} images per class: {parsed.out}  next: dim evaluate {parsed.out} --ipc {parsed.ipc}")
        return leave_together()
    held = parsed.format == "latents"
    drawing = {"seed": parsed.seed, "ranking": ranking, "batch_size": parsed.batch_size, "latents": held}
    result = sample_set_together(generator, **size, **drawing)
    if result is not None:
        result = result if teacher is None or parsed.hard else with_soft_labels(result, teacher)
        result.save(parsed.out, parsed.format, overwrite=parsed.overwrite, generator=generator if held else None)
        print(f"{len(result)} images of {len(result.labels.unique())} classes in {parsed.out}")
    leave_together()


def _real_data_for(parsed: SampleArguments, generator: Any) -> Any:
    """What a policy and a teacher need of the real data: its images to match classes or whiten, else its specification."""
    from dim.config import RecordConfig
    from dim.evaluate import real_data_of
    from dim.run import load_run_config
    from dim.trajectory.store import LAYOUT

    folder = parsed.teacher.folder
    experts = folder is not None and (Path(folder) / LAYOUT).is_file()
    whitened = experts and load_run_config(folder, RecordConfig, "experts").zca
    if not whitened and not {"matched", "refined"} & set(parsed.policy.steps):
        return generator.spec
    root = parsed.data_root or os.environ.get("DIM_DATA_ROOT") or _root_of_runs([parsed.generator])
    return real_data_of(generator.info, root, generator.device)


def evaluate(arguments: Sequence[str]) -> None:
    """`dim evaluate`."""
    first, _ = _parse_known(EvaluateArguments, arguments, "evaluate")
    if not first.subjects:
        raise InputError("nothing to evaluate: name sets, runs or generators")

    from dim.compare import score_all
    from dim.evaluate import Evaluator
    from dim.io import write_json
    from dim.report import print_scores, scores_to_json, write_report

    device = _device(first.device)
    subjects = _load_subjects(first.subjects, device, first.sampler)
    info = next(iter(subjects.values())).info
    carried = from_dict(ProtocolConfig, info.get("protocol") or {})
    default = EvaluateArguments(subjects=tyro.MISSING, protocol=carried)
    parsed = _parse(EvaluateArguments, arguments, "evaluate", default=default)
    _require_seeds(parsed.seeds)
    data = _data_of_subjects(subjects, parsed.data_root, device)
    teacher = parsed.teacher.load(data, device)
    evaluator = Evaluator(data, parsed.protocol, seeds=parsed.seeds, device=device, split=parsed.split, report=_tell)
    plan = {"ipc": parsed.ipc, "tracks": parsed.track, "controls": parsed.controls, "end": parsed.coreset_end, "teacher": teacher}
    scores = score_all(evaluator, subjects, **plan)
    print_scores(scores)
    if parsed.json:
        write_json(parsed.json, scores_to_json(scores))
    for name in subjects:
        if (Path(name) / "run.json").is_file():
            print(f"report: {write_report(name, data, scores)}")


def compare(arguments: Sequence[str]) -> None:
    """`dim compare`."""
    first, _ = _parse_known(CompareArguments, arguments, "compare")
    if not first.subjects:
        raise InputError("nothing to compare: name sets, runs, generators or files of scores")

    from dim.compare import Comparison, protocol_of, read_scores, require_made_from, require_one_data, score_all
    from dim.evaluate import Evaluator
    from dim.io import write_bytes, write_json
    from dim.report import scores_to_json

    device = _device(first.device)
    files = {name: read_scores(name) for name in first.subjects if name.endswith(".json")}
    subjects = _load_subjects([name for name in first.subjects if name not in files], device, first.sampler)
    known = [score for rows in files.values() for score in rows]
    if first.subjects[0] in files:
        rows = files[first.subjects[0]]
        carried = dataclasses.replace(protocol_of(rows[0]), students=tuple(dict.fromkeys(score.student for score in rows)))
    else:
        carried = from_dict(ProtocolConfig, subjects[first.subjects[0]].info.get("protocol") or {})
    parsed = _parse(CompareArguments, arguments, "compare", CompareArguments(subjects=tyro.MISSING, protocol=carried))
    _require_seeds(parsed.seeds)
    if parsed.picture is not None and not parsed.picture.endswith(".png"):
        raise InputError(f"picture {parsed.picture!r}: expected a name that ends in .png")
    if subjects:
        data = _data_of_subjects(subjects, parsed.data_root, device)
        require_made_from(subjects, data.spec)
        require_one_data(known, next(iter(subjects)), data.spec, parsed.split)
        teacher = parsed.teacher.load(data, device)
        evaluator = Evaluator(data, parsed.protocol, seeds=parsed.seeds, device=device, split=parsed.split, report=_tell)
        plan = {"ipc": parsed.ipc, "tracks": parsed.track, "controls": parsed.controls, "end": parsed.coreset_end}
        known += score_all(evaluator, subjects, **plan, teacher=teacher, known=known)
    elif parsed.controls:
        raise InputError("controls need the real data: name a set or a run beside the files of scores, or leave --controls out")
    elif parsed.teacher.folder is not None:
        remedy = "name a set or a run beside the files of scores, or leave --teacher.folder out"
        raise InputError(f"a teacher labels what is scored, and files of scores hold what was: {remedy}")
    comparison = Comparison(known)
    comparison.show()
    if parsed.json:
        write_json(parsed.json, scores_to_json(comparison.scores))
    if parsed.picture:
        write_bytes(parsed.picture, comparison.picture())
    if parsed.html:
        write_bytes(parsed.html, comparison.page().encode())


def coverage(arguments: Sequence[str]) -> None:
    """`dim coverage`."""
    parsed = _parse(CoverageArguments, arguments, "coverage")
    if not parsed.subjects:
        raise InputError("nothing to measure: name sets, runs or generators")

    from dim.coverage import Coverage
    from dim.grid import save_png
    from dim.io import write_json
    from dim.report import coverage_to_json, print_coverage, write_report
    from dim.run import RUN

    device = _device(parsed.device)
    subjects = _load_subjects(parsed.subjects, device, parsed.sampler)
    data = _data_of_subjects(subjects, parsed.data_root, device)
    measure = Coverage(data, samples=parsed.samples, seed=parsed.seed, features=parsed.features)
    rows = [measure.score(subject, name) for name, subject in subjects.items()]
    like = {tuple(values["images"] for values in row.per_class): row for row in rows}
    rows += [measure.held_out(row) for row in like.values()]
    print_coverage(rows)
    if parsed.json:
        write_json(parsed.json, coverage_to_json(rows))
    for number, (name, subject) in enumerate(subjects.items()):
        is_run, wanted = (Path(name) / RUN).is_file(), parsed.panel and number == 0
        if not is_run and not wanted:
            continue
        nearest = measure.nearest(subject)
        if wanted:
            save_png(parsed.panel, nearest.panel())
        if is_run:
            own_first = [rows[number], *(row for row in rows if row is not rows[number])]
            print(f"report: {write_report(name, data, coverage=own_first, nearest=nearest)}")


def experts(arguments: Sequence[str]) -> None:
    """`dim experts`."""
    parsed, config = _configured(arguments, "experts", ExpertsArguments, RecordConfig, "experts")
    if config is None:
        return

    from dim.trajectory.store import ExpertStore, to_waypoints

    if parsed.to_waypoints is not None:
        settings = config.experts
        if not settings.waypoints:
            raise InputError("no number of waypoints: give --experts.waypoints N (MCT: 4)")
        source = ExpertStore.open(parsed.to_waypoints)
        store = to_waypoints(source, parsed.out, settings.waypoints, smooth=settings.smooth, dtype=settings.storage)
    else:
        from dim.data.real import load_data
        from dim.trajectory.record import record

        device = _device(config.experts.device)
        store = record(config, load_data(config.data, device), parsed.out, resume=parsed.resume, device=device)
    _print_summary(store)


def distill(arguments: Sequence[str]) -> None:
    """`dim distill`."""
    parsed, config = _configured(arguments, "distill", DistillArguments, TrajectoryRecipe, "distillation")
    if config is None:
        return

    from dim.data.real import load_data
    from dim.distill import distill as run
    from dim.report import write_report
    from dim.run import RUN, read_run

    if parsed.experts is not None:
        folder = parsed.experts
    elif parsed.resume and (Path(parsed.out) / RUN).is_file():
        folder = read_run(parsed.out, "distillation")["experts"]
    else:
        raise InputError("no experts: name the folder that 'dim experts' made with --experts")

    device = _device(config.distill.device)
    data = load_data(config.data, device)
    generator = None
    if parsed.generator is not None:
        from dim.hub import load_generator

        generator = load_generator(parsed.generator, device)
    result = run(config, data, folder, parsed.out, generator=generator, resume=parsed.resume, device=device)
    report = write_report(parsed.out, data)
    print(f"{len(result)} images in {parsed.out}  report: {report}  next: dim evaluate {parsed.out} --controls random")


def _print_summary(store: Any) -> None:
    """What a store of experts holds, in three lines."""
    from dim.report import format_bytes

    layout, summary = store.layout, store.summary()
    moments = f"0 to {layout.last}" if layout.full else ", ".join(map(str, layout.moments))
    accuracy = summary["accuracy"]
    shown = sorted({round(part * (len(accuracy) - 1) / 5) for part in range(6)})
    along = ", ".join(f"{accuracy[moment]:.1f} at {moment}" for moment in shown)
    print(f"{summary['experts']} experts of {layout.parameters:,} weights, {format_bytes(summary['bytes'])} in {store.folder}")
    print(f"checkpoints at moments {moments}, which are {layout.every:g} epochs apart")
    print(f"accuracy in percent: {along}; on the test part at the end: {summary['test_accuracy']:.1f}")


def recipes(arguments: Sequence[str]) -> None:
    """`dim recipes`."""
    parsed = _parse(RecipesArguments, arguments, "recipes")
    if parsed.name is not None:
        print(to_toml(load_recipe(parsed.name)), end="")
        return
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        print(f"{name:<{width}}  {load_recipe(name).about.title}")


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], type]] = {
    "train": (train, TrainArguments),
    "sample": (sample, SampleArguments),
    "evaluate": (evaluate, EvaluateArguments),
    "compare": (compare, CompareArguments),
    "coverage": (coverage, CoverageArguments),
    "experts": (experts, ExpertsArguments),
    "distill": (distill, DistillArguments),
    "recipes": (recipes, RecipesArguments),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, or non-zero after one line on standard error that says what to do."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(arguments)
    except InputError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, RuntimeError) as error:
        return _fail_late(error)
    return 0


def run(arguments: Sequence[str] | None = None) -> None:
    """The console script: `main` in a process of its own."""
    keep_freed_memory()
    sys.exit(main(arguments))


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
    elif arguments[0] == "--version":
        import dim

        print(dim.__version__)
    elif arguments[0] in COMMANDS:
        COMMANDS[arguments[0]][0](arguments[1:])
    else:
        raise InputError(f"unknown command {arguments[0]!r}. {nearest(arguments[0], COMMANDS)}")


def _overview() -> str:
    lines = ["usage: dim COMMAND [options]", "", "Distill an image data set into a generator; emit training sets from it.", ""]
    lines += [f"  {name:<10} {kind.__doc__}" for name, (_, kind) in COMMANDS.items()]
    return "\n".join([*lines, "", "dim COMMAND --help explains every option."])


def _fail(message: str, status: int) -> int:
    print(f"dim: {' '.join(message.split())}", file=sys.stderr)
    return status


def _fail_late(error: Exception) -> int:
    """Errors that arise while working: a full disk, an interrupt, a loss that is not finite, too little memory."""
    from dim.io import is_no_space
    from dim.run import Interrupted, NonFiniteError

    if isinstance(error, Interrupted):
        return _fail(str(error), 128 + error.signal_number)
    if isinstance(error, NonFiniteError):
        return _fail(str(error), 1)
    if isinstance(error, OSError) and is_no_space(error):
        where = f" for {error.filename}" if error.filename else ""
        return _fail(f"no space left{where} ({error.strerror}): what was complete is kept; free some space and try again", 1)
    if isinstance(error, OSError) and error.filename is not None:
        return _fail(f"{error.filename}: {error.strerror}", 1)
    raise error


def _parse(cls: type[T], arguments: Sequence[str], command: str, default: Any = None) -> T:
    """Parse strictly: an unknown option is an error with the nearest known name."""
    parsed, unknown = _parse_known(cls, arguments, command, default)
    if unknown:
        option = next((text for text in unknown if text.startswith("-")), unknown[0]).partition("=")[0]
        known = _option_names(cls)
        raise InputError(f"unknown option {option!r} of 'dim {command}'. {nearest(option, known) if option[0] == '-' else ''}")
    return parsed


def _parse_known(cls: type[T], arguments: Sequence[str], command: str, default: Any = None) -> tuple[T, list[str]]:
    captured = io.StringIO()
    settings = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(cls, args=list(arguments), prog=f"dim {command}", return_unknown_args=True, **settings)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(_first_lines(captured.getvalue(), command)) from None


def _first_lines(box: str, command: str) -> str:
    """The message of tyro's error box, without the box and what follows the rule."""
    lines = []
    for line in box.splitlines():
        text = line.strip("│╭╮╰╯ \t")
        if text.startswith("──") and lines:
            break
        if text and not text.strip("─").startswith(" ") and "─" not in text:
            lines.append(text)
    return f"{' '.join(lines)} (see 'dim {command} --help')"


def _option_names(cls: type, prefix: str = "--") -> list[str]:
    names = []
    for field in dataclasses.fields(cls):
        name = f"{prefix}{field.name.replace('_', '-')}"
        hint = field.type
        if dataclasses.is_dataclass(hint):
            names += _option_names(hint, f"{name}.")
        else:
            names.append(name)
        for marker in getattr(hint, "__metadata__", ()):
            names += getattr(marker, "aliases", None) or ()
    return names


def _configured(arguments: Sequence[str], command: str, cls: type[T], config_cls: type, kind: str) -> tuple[T, Any]:
    """Parse a command that makes a run: its options over a recipe, or over the run that is resumed.

    Returns:
        The parsed arguments, and the configuration; None in its place after a dry run.
    """
    recipe, out, resume = _value_of(arguments, "--recipe"), _value_of(arguments, "--out"), "--resume" in arguments
    if recipe is not None:
        base = load_recipe_for(command, recipe)
    elif resume and out is not None:
        from dim.run import load_run_config

        base = load_run_config(out, config_cls, kind)
    else:
        base = config_cls()
    # `experts` of `dim distill` is a folder, so that section of its recipe is not an option there.
    names = [field.name for field in dataclasses.fields(config_cls)]
    options = [name for name in names if not (command == "distill" and name == "experts")]
    default = cls(**{name: getattr(base, name) for name in options}, recipe=recipe, out=out)
    parsed = _parse(cls, arguments, command, default=default)
    kept = {name: getattr(parsed if name in options else base, name) for name in names}
    config = config_cls(**{**kept, "data": _with_root(kept["data"])})
    if parsed.dry_run:
        print(to_toml(config), end="")
        return parsed, None
    if recipe is None and not resume and not getattr(parsed, "to_waypoints", None):
        raise InputError("no recipe: name one with --recipe (see 'dim recipes'), or a TOML file of your own")
    if parsed.out is None:
        raise InputError("no folder: name one with --out")
    return parsed, config


def _value_of(arguments: Sequence[str], option: str) -> str | None:
    """Value of an option before the arguments are parsed: `--option value` or `--option=value`."""
    for position, text in enumerate(arguments):
        if text == option and position + 1 < len(arguments):
            return arguments[position + 1]
        if text.startswith(f"{option}="):
            return text.partition("=")[2]
    return None


def _with_root(data: Any) -> Any:
    if data.root is None and data.dataset != "digits" and os.environ.get("DIM_DATA_ROOT"):
        return dataclasses.replace(data, root=os.environ["DIM_DATA_ROOT"])
    return data


def _require_seeds(seeds: int) -> None:
    if seeds < 1:
        raise InputError(f"seeds is {seeds}: expected 1 or more")


def _tell(score: Any) -> None:
    """Say on standard error that a row is done."""
    from rich.console import Console

    from dim.report import format_accuracy

    ipc = "" if score.ipc is None else f" IPC {score.ipc}"
    text = f"{score.name}, {score.track}{ipc}, {score.student}: {format_accuracy(score)} ({score.seconds:.0f} s)"
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def _load_subjects(names: Sequence[str], device: Any, sampler: SamplerArguments) -> dict[str, Any]:
    """Sets and generators by name."""
    from dim.data.export import DESCRIPTION
    from dim.data.synthetic import load_set
    from dim.hub import load_generator

    subjects: dict[str, Any] = {}
    for name in names:
        if (Path(name) / DESCRIPTION).is_file():
            subjects[name] = load_set(name, device)
        else:
            subjects[name] = load_generator(name, device).configure(**sampler.given())
    return subjects


def _data_of_subjects(subjects: dict[str, Any], root: str | None, device: Any) -> Any:
    """The real data that the first subject says it was made from."""
    from dim.evaluate import real_data_of

    info = next(iter(subjects.values())).info
    return real_data_of(info, root or os.environ.get("DIM_DATA_ROOT") or _root_of_runs(tuple(subjects)), device)


def _root_of_runs(subjects: Sequence[str]) -> str | None:
    """Where the real data lay when the first run among the subjects was made."""
    from dim.run import read_run

    runs = [name for name in subjects if (Path(name) / "run.json").is_file()]
    return read_run(runs[0], None)["config"]["data"]["root"] if runs else None


def _device(name: str | None) -> Any:
    import torch

    if name is None:
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}): try cpu") from None
    return device


def _class_number(text: str, names: Sequence[str]) -> int:
    if re.fullmatch(r"\d+", text) and int(text) < len(names):
        return int(text)
    if text in names:
        return names.index(text)
    raise InputError(f"unknown class {text!r}: expected a number from 0 to {len(names) - 1}, or a name. {nearest(text, names)}")


def _count(text: str, names: Sequence[str]) -> tuple[int, int]:
    label, equals, count = text.rpartition("=")
    if not equals or not re.fullmatch(r"-?\d+", count):
        raise InputError(f"count {text!r}: expected CLASS=NUMBER, for instance 3=100")
    return _class_number(label, names), int(count)


if __name__ == "__main__":
    run()
