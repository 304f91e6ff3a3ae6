"""Reading recipes: those that come with the package, by name, and TOML files of the same form, by path."""

import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from dim.config import AboutConfig, DataConfig, TrainConfig, TrajectoryRecipe, from_dict
from dim.errors import InputError, nearest

_MOST_BYTES = 2**20

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
        InputError: if there is no such recipe or file, or it is empty, or it is not TOML.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"no recipe file {name}: expected a path to a TOML file")
        content = _content(path)
    elif name in recipe_names():
        content = (resources.files("dim.recipes") / f"{name}.toml").read_bytes()
    else:
        raise InputError(f"unknown recipe {name!r}. {nearest(name, recipe_names())} A path must end in .toml.")
    try:
        values = tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"recipe {name} is not text in UTF-8 (byte {error.start}): save it so") from None
    except RecursionError:
        raise InputError(f"recipe {name} is nested too deeply: expected tables of settings") from None
    except ValueError as error:  # not TOML, or a number of thousands of digits
        raise InputError(f"recipe {name} is not valid TOML: {error}") from None
    if not values:
        raise InputError(f"recipe {name} is empty: expected tables of settings, as 'dim recipes digits-dim' prints them")
    return values


def _content(path: Path) -> bytes:
    """The bytes of a recipe, if they are not far too many."""
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise InputError(f"recipe {path} has more than {_MOST_BYTES // 2**20} MiB: expected a TOML file of settings")
    return content


def load_recipe(name: str) -> Recipe:
    """A recipe, by name or path.

    Args:
        name: of a recipe that comes with the package (`dim recipes` lists them), or a path that ends in .toml.

    Returns:
        A `TrajectoryRecipe` if it has a table `[trajectory]` or `[experts]`, else a `TrainConfig`.

    Raises:
        InputError: see `read_recipe`; or if it has an unknown key or a value that does not fit.
    """
    values = read_recipe(name)
    return from_dict(_kind(values), values)


def _kind(values: dict[str, Any]) -> type[Recipe]:
    return TrajectoryRecipe if {"trajectory", "experts"} & values.keys() else TrainConfig


def summaries() -> list[dict[str, str]]:
    """What is said of each recipe that comes with the package: its name, the command that takes it, its data set, title and
    source, the accuracy to expect, and the file of results that measured it ('' if none did)."""
    found = []
    for name in recipe_names():
        values = read_recipe(name)  # settings are not looked at: knowing the options of some networks takes seconds
        about = from_dict(AboutConfig, values["about"])
        measured = re.search(r"benchmarks/results/[\w./-]+\b", " ".join(about.expect.split()))
        found.append(
            {
                "name": name,
                "command": "train" if _kind(values) is TrainConfig else "experts, distill",
                "dataset": from_dict(DataConfig, values.get("data", {})).dataset,
                "title": about.title,
                "source": about.source,
                "expect": about.expect,
                "measured": measured[0] if measured else "",
            }
        )
    return found


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
