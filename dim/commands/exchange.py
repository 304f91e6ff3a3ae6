"""Commands that exchange sets and generators with other projects: `dim import`, `dim export`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dim.commands.arguments import CodingArguments, SamplerArguments
from dim.commands.parsing import parse, subjects_first, values_of
from dim.commands.subjects import device_of, root_of_runs
from dim.config import FORMATS, PROGRAMS, DataConfig, ProtocolConfig, Settings, from_dict
from dim.config.settings import require, require_default
from dim.errors import InputError, nearest
from dim.text import say


@dataclass(frozen=True, kw_only=True)
class ImportArguments(Settings):
    """Make a set of files that another project published: MTT's, TESLA's, DATM's, or DC's, DSA's, DM's."""

    files: tyro.conf.Positional[tuple[str, ...]]
    """`images_best.pt labels_best.pt` and, if there is one, `lr_best.pt`; or `res_*.pt`."""
    out: str | None = None
    """The folder to write."""
    normalised_by: Literal["dc", "mtt", "zca", "none"] | None = None
    """How images were made what students see. `dc`, `mtt`: with the constants that this code has for the data (`mtt`: as TESLA
    and DATM); `zca`: ZCA whitening; `none`: not at all, values are in [0, 1]."""
    mean: tuple[float, ...] = ()
    """In place of --normalised-by: constants of another code, one for each channel, of images in [0, 1]."""
    std: tuple[float, ...] = ()
    """Beside --mean."""
    soft_labels: Literal["logits", "probabilities"] | None = None
    """What labels with a number for each class are; DATM's are logits."""
    step_size: float | None = None
    """The learned step size, where no file holds it."""
    experiment: int | None = None
    """Which set of a `res_*.pt` with several, from 0."""
    clip: bool = False
    """Bring values outside [-1, 1] to the border. Default: they stay, and the set is scored as it was published."""
    format: FORMATS.named("How the set is stored: one that holds float32 images.") = "safetensors"
    """How the set is stored."""
    data: DataConfig = dataclasses.field(default_factory=lambda: DataConfig(val_fraction=0.0))
    """The data set that it stands for. Published sets are made of the whole training part."""
    protocol: ProtocolConfig = dataclasses.field(default_factory=ProtocolConfig)
    """How students are trained on it; --protocol.zca comes with --normalised-by zca."""
    device: str | None = None
    """cpu, cuda, mps. Default: a GPU if there is one."""
    overwrite: bool = False
    """Replace what the folder holds."""

    def __post_init__(self) -> None:
        FORMATS.require(self.format, "format")
        require(not FORMATS.load(self.format).latents, "format", self.format, "one that holds images")
        require(self.step_size is None or self.step_size > 0, "step_size", self.step_size, "a positive number")
        require(self.experiment is None or self.experiment >= 0, "experiment", self.experiment, "0 or more")


def import_(arguments: Sequence[str]) -> None:
    """`dim import`."""
    arguments = subjects_first(arguments)
    parsed = parse(ImportArguments, arguments, "import")
    if not parsed.files:
        raise InputError("nothing to import: name images_best.pt and labels_best.pt, or res_*.pt")
    if parsed.out is None:
        raise InputError("no place for the set: name a folder with --out")
    if not values_of(arguments, "--dataset") and not values_of(arguments, "--data.dataset"):
        raise InputError("no data: name the data set that these images stand for with --dataset (and --data-root)")
    by = _normalisation(parsed)

    from dim.data.published import import_set
    from dim.data.stored import require_libraries
    from dim.outputs import require_free

    require_libraries(parsed.format)
    require_free(parsed.out, overwrite=parsed.overwrite)
    about = {name: getattr(parsed, name) for name in ("soft_labels", "step_size", "experiment", "clip", "protocol")}
    result = import_set(parsed.files, parsed.data, normalised_by=by, **about, device=device_of(parsed.device))
    result.save(parsed.out, parsed.format, overwrite=parsed.overwrite)
    imported = result.info["imported"]
    outside, values = imported["outside"], imported["values"]
    kept = "clipped" if parsed.clip else "kept, as they were published (--clip: brought to the border)"
    say(f"{outside:,} of {values:,} values ({outside / values:.1%}) lay outside [-1, 1]{f': {kept}' if outside else ''}")
    say(f"{len(result)} images of {len(result.labels.unique())} classes in {parsed.out}  next: dim evaluate {parsed.out}")


_TO = tyro.conf.arg(
    help=f"A set: {FORMATS.explained()} A generator, as a program: {PROGRAMS.explained()}",
    metavar="|".join((*FORMATS.names(), *PROGRAMS.names())),
    aliases=["--format"],
)


@dataclass(frozen=True, kw_only=True)
class ExportArguments(Settings):
    """Write a set in another format: for another program, or to share it, with a card. Or write a generator as a program that
    runs without this package."""

    subject: tyro.conf.Positional[str]
    """A set, or hub:owner/name; for a program, a run or another generator."""
    to: Annotated[str, _TO] = "imagefolder"
    """How it is stored."""
    out: str | None = None
    """The folder to write; for a program, the file; with --bytes a file that ends in .dimz."""
    bytes: str | None = None
    """In place of a format: the best accuracy in one coded file of at most this size, such as 30k (30,000) or 1M. How many
    images of each class are stored, and how, is chosen by one student of each candidate on the validation part."""
    coding: CodingArguments = dataclasses.field(default_factory=CodingArguments)
    """With --bytes."""
    json: str | None = None
    """With --bytes: also write the candidates, with their bytes and accuracies, to this file."""
    sampler: SamplerArguments = dataclasses.field(default_factory=SamplerArguments)
    """Of a program's few-step generator, whose steps are unrolled."""
    card: bool = False
    """Also write README.md and a picture of samples, as the Hugging Face Hub shows them. If the set was audited, it says what was
    found."""
    scores: str | None = None
    """With --card: a file of `dim evaluate --json`, whose rows of this set and of controls the card shows."""
    data_root: str | None = None
    """Where the real data lies; `ddranking` needs it for sets whose students see whitened images, and --bytes. Default:
    DIM_DATA_ROOT, or where it was found before."""
    device: str | None = None
    """cpu, cuda, mps. Default: a GPU if there is one. Programs are made on the CPU, for any device."""
    code: tuple[str, ...] = ()
    """Your own code that the set was made with, as package.module:Name. Code that only a file names is never imported."""
    overwrite: bool = False
    """Replace what the folder holds, or the file."""

    def __post_init__(self) -> None:
        if self.program:
            self._require_for_program()
            return
        if ":" not in self.to and self.to not in FORMATS.names():
            raise InputError(f"to is {self.to!r}: expected a format. {nearest(self.to, (*FORMATS.names(), *PROGRAMS.names()))}")
        FORMATS.require(self.to, "to")
        require_default(self.sampler, f"as {self.to!r} is a format of sets, whose images are there")
        expected = "a format of images; 'dim sample --format latents' draws such a set"
        require(not FORMATS.load(self.to).latents, "to", self.to, expected)
        require(self.card or self.scores is None, "scores", self.scores, "--card beside it, which shows them")
        if self.bytes is None:
            require_default(self.coding, "without --bytes")
            require(self.json is None, "json", self.json, "--bytes beside it, whose candidates are written")
        else:
            usual, given = CodingArguments().calibration_steps, self.coding.calibration_steps
            require(given == usual, "coding.calibration_steps", given, f"{usual}, its default, as a set has no weights")

    @property
    def program(self) -> bool:
        """Whether a program is asked for."""
        return self.to in PROGRAMS.names() or PROGRAMS.suits_named(self.to)

    def _require_for_program(self) -> None:
        """Refuse what only sets have a use for."""
        require_default(self.coding, f"as {self.to!r} is a program, which --bytes has no use for")
        for name in ("bytes", "json", "card", "scores", "data_root", "device"):
            expected = f"its default with --to {self.to}, which is one file, made on the CPU without the data"
            require(getattr(self, name) in (None, False), name, getattr(self, name), expected)


def export(arguments: Sequence[str]) -> None:
    """`dim export`."""
    parsed = parse(ExportArguments, subjects_first(arguments), "export")
    _require_kind(parsed)
    if parsed.program:
        _export_program(parsed)
        return
    if parsed.out is None:
        raise InputError("no place for the set: name a folder with --out")
    if parsed.bytes is not None:
        from dim.commands.fitting import export_bytes

        export_bytes(parsed)
        return

    from dim.data.stored import require_classes, require_libraries
    from dim.data.synthetic import load_set
    from dim.hub import save_pretrained
    from dim.outputs import require_free
    from dim.score.privacy import FILE
    from dim.score.record import read_scores

    require_libraries(parsed.to)
    require_free(parsed.out, overwrite=parsed.overwrite)
    device = device_of(parsed.device)
    subject = load_set(parsed.subject, device)
    kind = FORMATS.load(parsed.to)
    require_classes(kind, subject.labels, subject.spec)
    scores = [] if parsed.scores is None else read_scores(parsed.scores)
    zca = kind.whitens and subject.info.get("protocol", {}).get("zca")
    made_with = {"whitening": _whitening(subject, parsed) if zca else None, "overwrite": parsed.overwrite}
    if parsed.card:
        audit = parsed.subject if (Path(parsed.subject) / FILE).is_file() else None
        save_pretrained(subject, parsed.out, format=parsed.to, scores=scores, audit=audit, **made_with)
    else:
        subject.save(parsed.out, parsed.to, **made_with)
    say(f"{len(subject)} images of {len(subject.labels.unique())} classes in {parsed.out}")


def _export_program(parsed: ExportArguments) -> None:
    """Write a generator as a program."""
    if parsed.out is None:
        raise InputError(f"no place for the program: name a file with --out, as in --out generator.{parsed.to}")

    from dim.hub import load_generator
    from dim.program import MOST_DIFFERENCE, export_generator, program_of

    program_of(parsed.to).require(parsed.out, overwrite=parsed.overwrite)
    generator = load_generator(parsed.subject).configure(**parsed.sampler.given())
    difference = export_generator(generator, parsed.out, parsed.to, overwrite=parsed.overwrite)
    shape = ", ".join(map(str, ("N", *generator.spec.image_shape)))
    differ = f"images differ by up to {difference:.1e} from the generator's (at most {MOST_DIFFERENCE:.0e} is allowed)"
    say(f"{parsed.out}: latents and labels of {generator.spec.num_classes} classes -> images ({shape}); {differ}")


def _require_kind(parsed: ExportArguments) -> None:
    """Refuse a generator with a format of sets, and a set with one of programs, as far as it is told by their files."""
    from dim.commands.subjects import is_stored_set
    from dim.nets.generator_file import FILE_NAME

    path = Path(parsed.subject)
    is_set = is_stored_set(path)
    is_generator = not is_set and (path.is_file() or (path / FILE_NAME).is_file())
    if parsed.program and is_set:
        raise InputError(f"{path} is a set, and {parsed.to!r} a format of generators: name a run, or use --to imagefolder")
    if not parsed.program and is_generator:
        programs = " or ".join(PROGRAMS.names())
        raise InputError(
            f"{path} is a generator, and {parsed.to!r} a format of sets: use --to {programs}, or draw a set with dim sample"
        )


def _whitening(subject: Any, parsed: ExportArguments) -> Any:
    """That of the whole training part, as the other program fits it."""
    from dim.data.origin import usual_root
    from dim.data.real import load_data
    from dim.data.whiten import Whitening

    if not subject.info.get("data"):
        raise InputError(f"{parsed.subject} does not say which data it was made from, which are needed to whiten its images")
    config = dataclasses.replace(from_dict(DataConfig, subject.info["data"]), val_fraction=0.0)
    root = parsed.data_root or usual_root(config.dataset, subject.spec.fingerprint, root_of_runs([parsed.subject]))
    data = load_data(dataclasses.replace(config, root=root or config.root))
    return Whitening.fit(data.train, data.spec)


def _normalisation(parsed: ImportArguments) -> Any:
    """What was said of how images were normalised; it is never guessed."""
    from dim.data.normalise import Normalisation

    if parsed.mean or parsed.std:
        if parsed.normalised_by is not None or len(parsed.mean) != len(parsed.std):
            said = f"mean {parsed.mean}, std {parsed.std}, normalised-by {parsed.normalised_by}"
            raise InputError(f"{said}: expected --mean and --std with a number for each channel, or --normalised-by")
        return Normalisation(parsed.mean, parsed.std)
    if parsed.normalised_by is None:
        expected = "say --normalised-by dc, mtt, zca or none, or --mean and --std"
        raise InputError(f"how images were normalised is not in the files: {expected}")
    return parsed.normalised_by
