"""The command line: one function per command of `dim`. Arguments in, one clear line on error."""

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from dim.commands.arguments import (
    CompareArguments,
    CoverageArguments,
    DistillArguments,
    EvaluateArguments,
    ExpertsArguments,
    RecipesArguments,
    SampleArguments,
    SamplerArguments,
    TrainArguments,
)
from dim.commands.malloc import keep_freed_memory
from dim.commands.parsing import configured, parse, parse_known
from dim.config import POLICIES, ProtocolConfig, RecordConfig, TrainConfig, TrajectoryRecipe, from_dict, to_toml
from dim.config.data import reads_files
from dim.errors import InputError, nearest
from dim.recipes.load import load_recipe, read_recipe, recipe_names


def train(arguments: Sequence[str]) -> None:
    """`dim train`."""
    parsed, config = configured(arguments, "train", TrainArguments, TrainConfig, "run")
    if config is None:
        return

    from dim.data.real import load_data
    from dim.runs.train import fit, make_accelerator
    from dim.score.report import write_report

    accelerator = make_accelerator(config, Path(parsed.out))
    data = load_data(config.data, accelerator.device)
    run = fit(config, data, parsed.out, resume=parsed.resume, accelerator=accelerator)
    if accelerator.is_main_process:
        report = write_report(run, data)
        print(f"generator: {run}  report: {report}  next: dim sample {run} --ipc 10 --out sets/{run.name}-10")


def sample(arguments: Sequence[str]) -> None:
    """`dim sample`."""
    parsed = parse(SampleArguments, arguments, "sample")
    if parsed.ipc is None and not parsed.counts:
        raise InputError("no size: give --ipc N (images per class), or --counts CLASS=N ...")
    if parsed.format == "generator" and (not parsed.policy.steps or parsed.counts or parsed.classes):
        expected = "expected --policy.steps, and --ipc without --counts or --classes"
        raise InputError(f"format is 'generator', which keeps the images that a policy takes of every class: {expected}")

    from dim.data.stored import require_libraries
    from dim.hub import load_generator, save_pretrained
    from dim.io import require_free
    from dim.nets.generator import require_spread
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
        from dim.emit.policy import Policy
        from dim.features.spaces import trained_features

        needs = _needs(parsed.policy)
        policy = Policy(
            parsed.policy,
            teacher=teacher,
            data=data if "data" in needs else None,
            features=trained_features(data) if "features" in needs else None,
            experts=parsed.teacher.folder,
            refinement=parsed.refine,
        )
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


def _needs(policy: Any) -> set[str]:
    """What the chosen policies need, see `dim.emit.policy.Step`."""
    return {need for name in policy.steps for need in POLICIES.load(name).needs}


def _real_data_for(parsed: SampleArguments, generator: Any) -> Any:
    """What a policy and a teacher need of the real data: its images to match classes or whiten, else its specification."""
    from dim.run_folder import load_run_config
    from dim.trajectory.store import LAYOUT

    folder = parsed.teacher.folder
    experts = folder is not None and (Path(folder) / LAYOUT).is_file()
    whitened = experts and load_run_config(folder, RecordConfig, "experts").zca
    if not whitened and "data" not in _needs(parsed.policy):
        return generator.spec
    return _real_data(generator.info, parsed.data_root, [parsed.generator], generator.device)


def evaluate(arguments: Sequence[str]) -> None:
    """`dim evaluate`."""
    first, _ = parse_known(EvaluateArguments, arguments, "evaluate")
    if not first.subjects:
        raise InputError("nothing to evaluate: name sets, runs or generators")

    from dim.io import write_json
    from dim.score.evaluate import Evaluator
    from dim.score.measure import score_all
    from dim.score.report import print_scores, scores_to_json, write_report

    device = _device(first.device)
    subjects = _load_subjects(first.subjects, device, first.sampler)
    info = next(iter(subjects.values())).info
    carried = from_dict(ProtocolConfig, info.get("protocol") or {})
    default = EvaluateArguments(subjects=tyro.MISSING, protocol=carried)
    parsed = parse(EvaluateArguments, arguments, "evaluate", default=default)
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
    first, _ = parse_known(CompareArguments, arguments, "compare")
    if not first.subjects:
        raise InputError("nothing to compare: name sets, runs, generators or files of scores")

    from dim.io import write_bytes, write_json
    from dim.score.compare import Comparison, require_made_from, require_one_data
    from dim.score.evaluate import Evaluator
    from dim.score.measure import score_all
    from dim.score.record import protocol_of, read_scores
    from dim.score.report import scores_to_json

    device = _device(first.device)
    files = {name: read_scores(name) for name in first.subjects if name.endswith(".json")}
    subjects = _load_subjects([name for name in first.subjects if name not in files], device, first.sampler)
    known = [score for rows in files.values() for score in rows]
    if first.subjects[0] in files:
        rows = files[first.subjects[0]]
        carried = dataclasses.replace(protocol_of(rows[0]), students=tuple(dict.fromkeys(score.student for score in rows)))
    else:
        carried = from_dict(ProtocolConfig, subjects[first.subjects[0]].info.get("protocol") or {})
    parsed = parse(CompareArguments, arguments, "compare", CompareArguments(subjects=tyro.MISSING, protocol=carried))
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
    parsed = parse(CoverageArguments, arguments, "coverage")
    if not parsed.subjects:
        raise InputError("nothing to measure: name sets, runs or generators")

    from dim.io import write_json
    from dim.pictures import save_png
    from dim.run_folder import RUN
    from dim.score.coverage import Coverage
    from dim.score.report import coverage_to_json, print_coverage, write_report

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
    parsed, config = configured(arguments, "experts", ExpertsArguments, RecordConfig, "experts")
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
    parsed, config = configured(arguments, "distill", DistillArguments, TrajectoryRecipe, "distillation")
    if config is None:
        return

    from dim.data.real import load_data
    from dim.run_folder import RUN, read_run
    from dim.runs.distill import distill as run
    from dim.score.report import write_report

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
    from dim.score.report import format_bytes

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
    parsed = parse(RecipesArguments, arguments, "recipes")
    if parsed.name is not None:
        print(to_toml(load_recipe(parsed.name)), end="")
        return
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        print(f"{name:<{width}}  {read_recipe(name)['about']['title']}")


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
    from dim.loop import Interrupted, NonFiniteError

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


def _require_seeds(seeds: int) -> None:
    if seeds < 1:
        raise InputError(f"seeds is {seeds}: expected 1 or more")


def _tell(score: Any) -> None:
    """Say on standard error that a row is done."""
    from rich.console import Console

    from dim.score.report import format_accuracy

    ipc = "" if score.ipc is None else f" IPC {score.ipc}"
    text = f"{score.name}, {score.track}{ipc}, {score.student}: {format_accuracy(score)} ({score.seconds:.0f} s)"
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def _load_subjects(names: Sequence[str], device: Any, sampler: SamplerArguments) -> dict[str, Any]:
    """Sets and generators by name."""
    from dim.data.stored import DESCRIPTION
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
    return _real_data(next(iter(subjects.values())).info, root, tuple(subjects), device)


def _real_data(info: dict[str, Any], root: str | None, subjects: Sequence[str], device: Any) -> Any:
    """The real data that a set or a generator was made from, under a root that was given, or where it usually lies."""
    from dim.score.evaluate import real_data_of

    if root is None and info.get("data") and reads_files(info["data"]["dataset"]):
        root = os.environ.get("DIM_DATA_ROOT") or _root_of_runs(subjects)
    return real_data_of(info, root, device)


def _root_of_runs(subjects: Sequence[str]) -> str | None:
    """Where the real data lay when the first run among the subjects was made."""
    from dim.run_folder import read_run

    runs = [name for name in subjects if (Path(name) / "run.json").is_file()]
    return read_run(runs[0], None)["config"]["data"].get("root") if runs else None


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
