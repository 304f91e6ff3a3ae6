"""Commands that make something: `dim train`, `dim sample`, `dim experts`, `dim distill`; and `dim recipes`."""

import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dim.commands.arguments import (
    GENERATOR,
    DistillArguments,
    ExpertsArguments,
    RecipesArguments,
    SampleArguments,
    TrainArguments,
)
from dim.commands.choosing import Automatic, require_recipe_alone, say_if_part_is_refined, with_own_experts
from dim.commands.pages import write_page
from dim.commands.parsing import configured, parse
from dim.commands.subjects import real_data, work_together
from dim.config import FORMATS, POLICIES, PolicyConfig, RecordConfig, TrainConfig, TrajectoryRecipe, to_toml
from dim.config.data import needs_size
from dim.config.settings import require, require_default
from dim.errors import InputError, nearest
from dim.recipes.load import load_recipe, load_recipe_for, summaries
from dim.text import say, say_note


def train(arguments: Sequence[str]) -> None:
    """`dim train`."""
    automatic = Automatic.asked(arguments)
    options = {} if automatic is None else {"chosen": automatic.config, "finish": automatic.fill}
    words = arguments if automatic is None else automatic.arguments
    parsed, config = configured(words, "train", TrainArguments, TrainConfig, "run", _check_training, **options)
    if config is None:
        return

    from dim.data.real import load_data
    from dim.launch import watch
    from dim.processes import Processes
    from dim.runs.accelerator import make_accelerator
    from dim.runs.stages import plan
    from dim.runs.train import fit

    accelerator = make_accelerator(config, Path(parsed.out))
    watch()
    processes = Processes(accelerator.process_index, accelerator.num_processes)
    data = automatic.data if automatic is not None else None
    if data is None:
        data = processes.in_turn(lambda: load_data(config.data, accelerator.device))
    if processes.main and parsed.recipe is not None and not parsed.resume:
        steps = 0
        with contextlib.suppress(InputError):  # which all processes meet when they train
            steps = plan(config, len(data.train))[-1].stop
        _tell_few_steps("train", parsed.recipe, config, steps, len(data.train), config.stage_one.epochs)
    run = fit(config, data, parsed.out, resume=parsed.resume, depart=parsed.depart, accelerator=accelerator)
    if processes.main:
        own = f" --code {config.generator.name}" if ":" in config.generator.name else ""  # which no file imports by itself
        say(f"generator: {run}  {write_page(run, data)}  next: dim sample {run}{own} --ipc 10 --out sets/{run.name}-10")


def _tell_few_steps(command: str, recipe: str, config: Any, steps: float, images: int, epochs: float) -> None:
    """Say before it is trained that a recipe for other data has too few steps on these to learn them."""
    from dim.runs.stages import few_steps

    made_for = load_recipe_for(command, recipe).data
    elsewhere = needs_size(made_for.dataset) and made_for.root not in (None, config.data.root)
    if made_for.dataset == config.data.dataset and not elsewhere:
        return
    place, option = (f" in {made_for.root}" if elsewhere else ""), {"train": "stage-one", "experts": "experts"}[command]
    told = {"settings": recipe, "made_for": f"was made for {made_for.dataset}{place}", "option": f"--{option}.epochs"}
    if warning := few_steps(steps, images=images, epochs=epochs, **told):
        say(warning, sys.stderr)


def _check_training(parsed: TrainArguments, config: TrainConfig) -> None:
    from dim.runs.checks import check_data, check_training

    require_recipe_alone(parsed)
    check_training(config)
    if parsed.dry_run:
        check_data(config.data)


def _check_recording(parsed: ExpertsArguments, config: RecordConfig) -> None:
    from dim.runs.checks import check_data, check_recording

    if parsed.to_waypoints is None:
        check_recording(config)
        if parsed.dry_run:
            check_data(config.data)
    elif not config.experts.waypoints:
        raise InputError("no number of waypoints: give --experts.waypoints N (MCT: 4)")


def _check_distillation(parsed: DistillArguments, config: TrajectoryRecipe) -> None:
    from dim.runs.checks import check_data, check_distillation

    check_distillation(config, parsed.generator)
    if parsed.dry_run:
        check_data(config.data)


def sample(arguments: Sequence[str]) -> None:
    """`dim sample`."""
    asked = parse(SampleArguments, arguments, "sample")
    parsed = with_own_experts(asked, arguments)
    if parsed.ipc is None and not parsed.counts and parsed.bytes is None:
        raise InputError("no size: give --ipc N (images per class), --counts CLASS=N ..., or --bytes N")
    if parsed.format == GENERATOR and (not parsed.policy.steps or parsed.counts or parsed.classes):
        expected = "expected --policy.steps, and --ipc without --counts or --classes"
        raise InputError(f"format is 'generator', which keeps the images that a policy takes of every class: {expected}")

    _require_used(parsed)
    if parsed.bytes is not None:
        from dim.commands.fitting import sample_bytes

        sample_bytes(parsed, rank=_policy, needs_note=parsed is not asked)
        _state_of(parsed.out).unlink(missing_ok=True)
    else:
        _sample_folder(parsed, needs_note=parsed is not asked)


def _sample_folder(parsed: SampleArguments, *, needs_note: bool) -> None:
    """`dim sample` of a set, or of a generator; with a note where the command chose the policy."""
    from dim.data.stored import require_classes, require_libraries
    from dim.hub import load_generator, save_pretrained
    from dim.nets.generator import require_spread
    from dim.outputs import require_free
    from dim.sampler import anchored, request, require_batch_size, sample_set_together
    from dim.teacher import with_soft_labels

    # Before a policy has taken its time:
    require_spread(parsed.spread)
    require_batch_size(parsed.batch_size)
    require_libraries(parsed.format)
    processes, device = work_together(parsed.device)
    processes.once(lambda: require_free(parsed.out, overwrite=parsed.overwrite))
    generator = load_generator(parsed.generator, device).configure(**parsed.sampler.given())
    size: dict[str, Any] = {"ipc": parsed.ipc}
    if parsed.counts:
        counts = [_count(text, generator.spec.class_names) for text in parsed.counts]
        _require_once("counts", parsed.counts, [label for label, _ in counts])
        size["counts"] = dict(counts)
    if parsed.classes:
        size["classes"] = [_class_number(text, generator.spec.class_names) for text in parsed.classes]
        _require_once("classes", parsed.classes, size["classes"])
    wanted, _ = request(generator.spec, **size)
    if parsed.format != GENERATOR:
        require_classes(FORMATS.load(parsed.format), wanted, generator.spec)
    data = processes.in_turn(lambda: _real_data_for(parsed, generator))
    teacher = parsed.teacher.load(data, generator.device)
    ranking = None
    if needs_note and processes.main:
        say_note(f"dim: images are refined with {parsed.teacher.folder}; for plain ones: --policy.steps without a value")
    if parsed.policy.steps:
        ipc = parsed.ipc or max(size["counts"].values())
        if processes.main:
            say_if_part_is_refined(parsed, ipc)
        ranking = processes.once(lambda: _policy(parsed, data, teacher).rank(generator, seed=parsed.seed, ipc=ipc))
    if parsed.format == GENERATOR:
        chosen = anchored(generator, ranking, ipc=parsed.ipc, spread=parsed.spread, seed=parsed.seed)
        processes.once(lambda: str(save_pretrained(chosen, parsed.out, overwrite=parsed.overwrite)))
        if processes.main:
            _state_of(parsed.out).unlink(missing_ok=True)
        say(f"generator around {parsed.ipc} images per class: {parsed.out}  next: dim evaluate {parsed.out} --ipc {parsed.ipc}")
        return
    held = FORMATS.load(parsed.format).latents
    drawing = {"seed": parsed.seed, "ranking": ranking, "batch_size": parsed.batch_size, "latents": held}
    result = sample_set_together(generator, processes, **size, **drawing)
    if result is not None:
        result = result if teacher is None or parsed.hard else with_soft_labels(result, teacher)
        result.save(parsed.out, parsed.format, overwrite=parsed.overwrite, generator=generator if held else None)
        _state_of(parsed.out).unlink(missing_ok=True)
        say(f"{len(result)} images of {len(result.labels.unique())} classes in {parsed.out}")


def _require_used(parsed: SampleArguments) -> None:
    """Refuse options that would change nothing."""
    if not parsed.policy.steps:
        usual = PolicyConfig().candidates
        require(
            parsed.policy.candidates == usual, "policy.candidates", parsed.policy.candidates, f"{usual} without --policy.steps"
        )
    if not parsed.policy.refines:
        require_default(parsed.refine, "as no policy refines: add --policy.steps refined")
    if parsed.format != GENERATOR and (parsed.bytes is None or not parsed.policy.steps):
        usual = SampleArguments.__dataclass_fields__["spread"].default
        require(parsed.spread == usual, "spread", parsed.spread, f"{usual}, its default, without --format generator")
    if parsed.bytes is None:
        require_default(parsed.coding, "without --bytes")
        require(parsed.json is None, "json", parsed.json, "--bytes beside it, whose candidates are written")
    if parsed.teacher.folder is None:
        require_default(parsed.teacher, "without --teacher.folder")
        require(not parsed.hard, "hard", parsed.hard, "a teacher beside it (--teacher.folder), whose labels it leaves out")


def _policy(parsed: SampleArguments, data: Any, teacher: Any) -> Any:
    """The policies that were asked for, with what they need."""
    from dim.emit.policy import Policy
    from dim.features.spaces import trained_features

    needs = _needs(parsed.policy)
    return Policy(
        parsed.policy,
        teacher=teacher,
        data=data if {"data", "features"} & needs else None,
        features=trained_features(data) if "features" in needs else None,
        experts=parsed.teacher.folder,
        refinement=parsed.refine,
        state=_state_of(parsed.out),
    )


def _state_of(out: str) -> Path:
    """Where a refinement for a set keeps its state until the set is written."""
    from dim.outputs import followed

    place = followed(out).absolute()
    return place.with_name(f".{place.name}.refinement.safetensors")


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
    if not whitened and not {"data", "features"} & _needs(parsed.policy):
        expected = "none, as no policy or teacher here reads the real data"
        require(parsed.data_root is None, "data_root", parsed.data_root, expected)
        return generator.spec
    return real_data(generator, parsed.data_root, [parsed.generator], generator.device)


def experts(arguments: Sequence[str]) -> None:
    """`dim experts`."""
    parsed, config = configured(arguments, "experts", ExpertsArguments, RecordConfig, "experts", _check_recording)
    if config is None:
        return

    from dim.trajectory.store import ExpertStore, to_waypoints

    processes, device = work_together(config.experts.device)
    if parsed.to_waypoints is not None:
        settings = config.experts
        source, about = ExpertStore.open(parsed.to_waypoints), {"smooth": settings.smooth, "dtype": settings.storage}
        store = processes.once(lambda: to_waypoints(source, parsed.out, settings.waypoints, **about))
    else:
        from dim.data.real import load_data
        from dim.trajectory.record import record

        place = {"device": device, "processes": processes}
        data = processes.in_turn(lambda: load_data(config.data, device))
        if processes.main and parsed.recipe is not None and not parsed.resume:
            settings, images = config.experts, len(data.train)
            steps = settings.epochs * images / settings.batch_size
            _tell_few_steps("experts", parsed.recipe, config, steps, images, settings.epochs)
        store = record(config, data, parsed.out, resume=parsed.resume, **place)
    _print_summary(store)


def distill(arguments: Sequence[str]) -> None:
    """`dim distill`."""
    parsed, config = configured(arguments, "distill", DistillArguments, TrajectoryRecipe, "distillation", _check_distillation)
    if config is None:
        return

    from dim.data.real import load_data
    from dim.run_folder import RUN, read_run
    from dim.runs.distill import distill as run

    if parsed.experts is not None:
        folder = parsed.experts
    elif parsed.resume and (Path(parsed.out) / RUN).is_file():
        folder = read_run(parsed.out, "distillation")["experts"]
    else:
        raise InputError("no experts: name the folder that 'dim experts' made with --experts")

    processes, device = work_together(config.distill.device)
    data = processes.in_turn(lambda: load_data(config.data, device))
    generator = None
    if parsed.generator is not None:
        from dim.hub import load_generator

        generator = load_generator(parsed.generator, device)
    going_on = {"resume": parsed.resume, "depart": parsed.depart, "processes": processes}
    result = run(config, data, folder, parsed.out, generator=generator, **going_on, device=device)
    if processes.main:
        low, high = result.info["range"]
        values = f"values from {low:.2f} to {high:.2f} (natural images: -1 to 1)"
        then = f"next: dim evaluate {parsed.out} --controls random"
        say(f"{len(result)} images in {parsed.out}, {values}  {write_page(parsed.out, data)}  {then}")


def _print_summary(store: Any) -> None:
    """What a store of experts holds, in three lines."""
    from dim.score.report import format_bytes

    layout, summary = store.layout, store.summary()
    moments = f"0 to {layout.last}" if layout.full else ", ".join(map(str, layout.moments))
    accuracy = summary["accuracy"]
    shown = sorted({round(part * (len(accuracy) - 1) / 5) for part in range(6)})
    along = ", ".join(f"{accuracy[moment]:.1f} at {moment}" for moment in shown)
    say(f"{summary['experts']} experts of {layout.parameters:,} weights, {format_bytes(summary['bytes'])} in {store.folder}")
    say(f"checkpoints at moments {moments}, which are {layout.every:g} epochs apart")
    say(f"accuracy in percent: {along}; on the test part at the end: {summary['test_accuracy']:.1f}")


def recipes(arguments: Sequence[str]) -> None:
    """`dim recipes`."""
    from dim.io import write_document
    from dim.outputs import require_writable

    parsed = parse(RecipesArguments, arguments, "recipes")
    if parsed.name is not None:
        require(parsed.json is None, "json", parsed.json, "no name beside it, as the list of all recipes is written")
        print(to_toml(load_recipe(parsed.name)), end="")
        return
    rows = summaries()
    if parsed.json is not None:
        require_writable(parsed.json, "json")
        write_document(parsed.json, {"kind": "recipes", "recipes": rows})
    width = max(len(row["name"]) for row in rows)
    for command in ("train", "experts, distill"):
        own = [row for row in rows if row["command"] == command]
        print(f"For {' and '.join(f'dim {name}' for name in command.split(', '))}:")
        for row in own:
            print(f"  {'*' if row['measured'] else ' '} {row['name']:<{width}}  {row['title']}")
    print("* was measured: dim recipes NAME says what to expect. Of the others, the figures are those of papers, or none.")


def _class_number(text: str, names: Sequence[str]) -> int:
    """A class by its name, or by its number where no class has that name."""
    number = int(text) if re.fullmatch(r"\d+", text) and int(text) < len(names) else None
    if text in names:
        if number not in (None, names.index(text)):
            say_note(f"dim: {text} is taken as the class of that name, number {names.index(text)}, and not as number {number}")
        return names.index(text)
    if number is not None:
        return number
    raise InputError(f"unknown class {text!r}: expected a number from 0 to {len(names) - 1}, or a name. {nearest(text, names)}")


def _require_once(option: str, texts: Sequence[str], labels: Sequence[int]) -> None:
    """Refuse a class that is named twice, by its number or by its name."""
    for place, label in enumerate(labels):
        first = labels.index(label)
        if first < place:
            raise InputError(f"{option} has {texts[first]!r} and {texts[place]!r}, which are one class: expected each class once")


def _count(text: str, names: Sequence[str]) -> tuple[int, int]:
    label, equals, count = text.rpartition("=")
    if not equals or not re.fullmatch(r"-?\d+", count):
        raise InputError(f"count {text!r}: expected CLASS=NUMBER, for instance 3=100")
    return _class_number(label, names), int(count)
