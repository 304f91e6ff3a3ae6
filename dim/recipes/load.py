"""Reading recipes: those that come with the package, by name, and TOML files of the same form, by path."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from dim.config import TrainConfig, TrajectoryRecipe, from_dict
from dim.errors import InputError, nearest

Recipe = TrainConfig | TrajectoryRecipe


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("dim.recipes")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_recipe(name: str) -> dict[str, Any]:
    """The tables of a recipe as they stand in its file.

    Args:
        name: of a recipe that comes with the package, or a path that ends in .toml.

    Raises:
        InputError: if there is no such recipe or file, or it is not TOML.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"no recipe file {name}: expected a path to a TOML file")
        text = path.read_text()
    elif name in recipe_names():
        text = (resources.files("dim.recipes") / f"{name}.toml").read_text()
    else:
        raise InputError(f"unknown recipe {name!r}. {nearest(name, recipe_names())} A path must end in .toml.")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {name} is not valid TOML: {error}") from None


def load_recipe(name: str) -> Recipe:
    """A recipe, by name or path.

    Returns:
        A `TrajectoryRecipe` if it has a table `[trajectory]` or `[experts]`, else a `TrainConfig`.

    Raises:
        InputError: see `read_recipe`; or if it has an unknown key or a value that does not fit.
    """
    values = read_recipe(name)
    return from_dict(TrajectoryRecipe if {"trajectory", "experts"} & values.keys() else TrainConfig, values)


def load_recipe_for(command: str, name: str) -> Any:
    """A recipe for one command: `train` takes a `TrainConfig`, `experts` and `distill` a `TrajectoryRecipe`.

    Raises:
        InputError: if it is one for another command.
    """
    recipe = load_recipe(name)
    if command == "train" and not isinstance(recipe, TrainConfig):
        raise InputError(f"recipe {name!r} is for 'dim experts' and 'dim distill': it trains no generator")
    if command != "train" and not isinstance(recipe, TrajectoryRecipe):
        raise InputError(f"recipe {name!r} is for 'dim train': expected one with a table [trajectory] (see 'dim recipes')")
    return recipe
