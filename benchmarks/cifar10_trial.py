"""Trials of `cifar10.py`: short variants of a recipe, scored on the validation part only, by which settings are chosen."""

import dataclasses
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar10_cells import merged
from cifar10_shop import Workshop, step_seconds
from cifar10_subjects import Bench
from common import Rows, changed, save, scores_of, train

from dim.config import TrainConfig, to_dict
from dim.errors import InputError
from dim.hub import load_generator
from dim.io import read_json, write_json
from dim.recipes.load import load_recipe
from dim.run_folder import RUN, load_run_config
from dim.runs.accelerator import make_accelerator
from dim.runs.stages import plan
from dim.sampler import identity

NAME = "trials"
_LENGTHS = ("stage_one.epochs", "stage_two.epochs")


def parsed(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`section.option=value` as sections, with values as in TOML; what is no TOML is text.

    Raises:
        InputError: for another form.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        section, dot, option = name.partition(".")
        if not (equals and dot and section and option):
            raise InputError(f"setting {text!r} of a trial: expected section.option=value, as in generator.width=48")
        try:
            found.setdefault(section, {})[option] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found.setdefault(section, {})[option] = value
    return found


def varied(shop: Workshop, recipe: str, settings: Sequence[str]) -> TrainConfig:
    """A recipe with changed settings.

    Raises:
        InputError: if it trains no generator, or for a setting that it does not have.
    """
    config = load_recipe(recipe)
    if not isinstance(config, TrainConfig):
        raise InputError(f"recipe {recipe!r} trains no generator: trials are of recipes for 'dim train'")
    config, changes = shop.recipe(recipe), parsed(settings)
    for section in changes:
        if not dataclasses.is_dataclass(getattr(config, section, None)):
            known = ", ".join(field.name for field in dataclasses.fields(config) if field.name not in ("about", "objectives"))
            raise InputError(f"unknown section {section!r} of a trial: expected one of {known}")
    return changed(config, changes)


def planned(shop: Workshop, config: TrainConfig, minutes: float) -> TrainConfig:
    """The same with the epochs of both stages scaled, so that they take so many minutes by the seconds of a step of either."""
    seconds = step_seconds(config, shop)
    steps = [stage.stop - stage.start for stage in plan(config, len(shop.data.train))]
    factor = 60 * minutes / sum(count * each for count, each in zip(steps, seconds, strict=True))
    stages = {name: getattr(config, name).epochs * factor for name in ("stage_one", "stage_two")}
    return changed(config, {name: {"epochs": float(f"{epochs:.4g}")} for name, epochs in stages.items()})


def run_trial(shop: Workshop, results: Path, recipe: str, trial: Sequence[str], minutes: float, seeds: int) -> Path:
    """Train the variant, or go on with it, score it on the validation part, and append the row to `trials.json`.

    Args:
        shop: where it is trained, in `trials/NAME`.
        results: folder of the file.
        recipe: that is varied.
        trial: its name, and changed settings.
        minutes: of training, unless the settings say how many epochs.
        seeds: students.

    Returns:
        The file.

    Raises:
        InputError: for a setting that is none, or if a trial of this name has other ones.
    """
    name, *settings = trial
    if not name or "=" in name or "/" in name:
        raise InputError(f"trial {name!r} is no name: expected a name first, and then settings, as in wider generator.width=48")
    folder, asked = shop.out / "trials" / name, {"recipe": recipe, "settings": settings, "minutes": minutes}
    note = folder.with_name(f"{name}.json")
    if note.is_file() and read_json(note) != asked:
        raise InputError(f"trial {name!r} lies in {folder} with other settings: take another name, or remove it and {note.name}")
    if (folder / RUN).is_file():
        config = shop.located(load_run_config(folder))
    else:
        config = varied(shop, recipe, settings)
        if not any(setting.startswith(_LENGTHS) for setting in settings):
            config = planned(shop, config, minutes)
        write_json(note, asked)
    train(config, shop.data, folder, make_accelerator(config, folder), shop.sources)
    started, bench = time.perf_counter(), Bench(shop, results, split="val")
    generator = load_generator(folder, shop.device)
    scores = [bench.evaluator("convnet", seed).stream(generator, 10, name)[0] for seed in range(seeds)]
    content = {
        "seconds": generator.info["about"]["seconds"],
        "parameters": sum(parameter.numel() for parameter in generator.parameters()),
        "coverage": bench.coverage.score(generator, name).to_dict(),
        **scores_of([merged(scores)]),
    }
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=None))
    rows = Rows(shop.sources, shop.device, {"split": "val", "scale": shop.scale.name}, made_from={"run": folder})
    facts = {**asked, "config": to_dict(config)}
    rows.put(name, content, time.perf_counter() - started, scored=(identity(generator),), **facts)
    path = results / f"{NAME}.json"
    earlier = read_json(path)["rows"] if path.is_file() else []
    return save(NAME, {"split": "val", "rows": [*earlier, *rows.made]}, folder=results)
