"""Strict parsing of a command's options, over a recipe, a run, or what a set carries."""

import contextlib
import dataclasses
import io
import itertools
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tyro

from dim.commands.helping import ALL, show_help
from dim.config import (
    ADVERSARIES,
    CORESETS,
    FORMATS,
    OBJECTIVES,
    PROGRAMS,
    STUDENTS,
    Choices,
    Section,
    TrainConfig,
    from_dict,
    to_toml,
)
from dim.config.choices import EXTERNAL
from dim.config.data import located, require_no_root
from dim.config.train import for_generator
from dim.errors import InputError, nearest
from dim.recipes.load import load_recipe_for
from dim.text import for_terminal

T = TypeVar("T")

# Options that are lists of names, and the tables that hold what they name outside the package.
_NAMED = {
    "--objectives": (OBJECTIVES,),
    "--student": (STUDENTS,),
    "--students": (STUDENTS,),
    "--protocol.students": (STUDENTS,),
    "--pool.students": (STUDENTS,),
    "--format": (FORMATS, PROGRAMS),
    "--to": (FORMATS, PROGRAMS),
    "--controls": (CORESETS,),
    "--code": Choices.tables,
}


_POSITIONAL = tyro.conf.Positional[str].__metadata__[0]
# What tyro says of a value that fits none of several types.
_UNFIT = re.compile(r"Error parsing (--\S+): no type matching (.*) could be instantiated from \[(.*?)\]\. Got errors:")


def configured(
    arguments: Sequence[str],
    command: str,
    cls: type[T],
    config_cls: type,
    kind: str,
    check: Callable[[T, Any], None],
    *,
    chosen: Any = None,
    finish: Callable[[Any], Any] = lambda config: config,
) -> tuple[T, Any]:
    """Parse a command that makes a run: its options over a recipe, or over the run that is resumed.

    Args:
        check: refuses what the command would refuse later, as far as it is known without data; a dry run is checked as well.
        chosen: a configuration to start from in place of a recipe.
        finish: gives the configuration its last values.

    Returns:
        The parsed arguments, and the configuration; None in its place after a dry run.

    Raises:
        InputError: for a wrong option or recipe, and if there is neither recipe nor run, or no folder.
    """
    _admit(arguments, _sections(cls))
    recipe, out = (next(iter(values_of(arguments, option)), None) for option in ("--recipe", "--out"))
    resume = "--resume" in arguments
    if recipe is not None:
        base = load_recipe_for(command, recipe)
    elif chosen is not None:
        base = chosen
    elif resume and out is not None:
        from dim.run_folder import load_run_config

        base = load_run_config(out, config_cls, kind)
    else:
        base = config_cls()
    # `experts` of `dim distill` is a folder, so that section of its recipe is not an option there.
    names = [field.name for field in dataclasses.fields(config_cls)]
    options = [name for name in names if not (command == "distill" and name == "experts")]
    default = cls(**{name: getattr(base, name) for name in options}, recipe=recipe, out=out)
    parsed = parse(cls, arguments, command, default=default)
    kept = {name: getattr(parsed if name in options else base, name) for name in names}
    require_no_root(kept["data"])
    if recipe is not None and kept["data"].dataset != base.data.dataset and kept["about"] == base.about:
        title = f"{kept['data'].dataset}, with the settings of {recipe}"  # what is said of the recipe is of other data
        kept["about"] = dataclasses.replace(base.about, title=title, expect="")
    config = config_cls(**{**kept, "data": located(kept["data"])})
    if recipe is None and chosen is None and not resume and not getattr(parsed, "to_waypoints", None):
        raise InputError("no recipe: name one with --recipe (see 'dim recipes'), or a TOML file of your own")
    check(parsed, config)
    config = finish(config)
    if parsed.dry_run:
        if recipe is not None and out is not None and not resume:
            _require_free(Path(out), kind)
        print(to_toml(config), end="")
        return parsed, None
    if parsed.out is None:
        raise InputError("no folder: name one with --out")
    return parsed, config


def _require_free(out: Path, kind: str) -> None:
    """Refuse a folder that the run would be refused for."""
    from dim.run_folder import CHECKPOINT, require_free_run
    from dim.trajectory.store import LAYOUT

    holds = LAYOUT if kind == "experts" else CHECKPOINT
    require_free_run(out, lambda folder: (folder / holds).is_file(), kind=kind)


def parse(cls: type[T], arguments: Sequence[str], command: str, default: Any = None) -> T:
    """Parse strictly: an unknown option is an InputError with the nearest known name, or with the choice whose option it is."""
    parsed, unknown = parse_known(cls, arguments, command, default)
    if unknown:
        option, equals, value = next((text for text in unknown if text.startswith("-")), unknown[0]).partition("=")
        section, _, name = option.removeprefix("--").replace("-", "_").rpartition(".")
        owner = getattr(parsed, section, None)
        if isinstance(owner, Section) and owner.choices.owners(name):
            rest = unknown[unknown.index(option) + 1 :] if option in unknown else []
            raise InputError(owner.refusal(name, value if equals else next(iter(rest), "")))
        if not option.startswith("-"):
            raise InputError(stray(f"{option}{equals}{value}", command))
        known = _option_names(type(parsed), parsed)
        raise InputError(f"unknown option {option!r} of 'dim {command}'. {nearest(option, known)}")
    return parsed


def stray(word: str, command: str) -> str:
    """What to say of a word that no option takes."""
    return f"{word!r} belongs to no option of 'dim {command}': leave it out, or quote a value with spaces"


def parse_known(cls: type[T], arguments: Sequence[str], command: str, default: Any = None) -> tuple[T, list[str]]:
    """Parse the options that are known and return the others too. A value that does not fit is an InputError."""
    captured = io.StringIO()
    default = _as_chosen(cls, arguments, default)
    if {"-h", "--help", ALL} & set(arguments):
        show_help(type(default) if default is not None else cls, arguments, command, None if default is None else _shown(default))
    settings = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(captured):
            parsed, unknown = tyro.cli(cls, args=list(arguments), prog=f"dim {command}", return_unknown_args=True, **settings)
    except SystemExit:
        raise InputError(_first_lines(captured.getvalue(), command)) from None
    options = _options(cls, parsed)
    _require_once(arguments, options)
    for names, field, value in options:
        if field.default is None and value == "":
            if _POSITIONAL in getattr(field.type, "__metadata__", ()):
                raise InputError(stray("", command))
            raise InputError(f"{names[0]} is '': expected a value; leave the option out for none")
    return parsed, unknown


def subjects_first(arguments: Sequence[str]) -> list[str]:
    """The same arguments with subjects in front that stand behind the values of an option, as in `--students convnet sets/ten`,
    which would take them for values of its own: what is there on disk, or is on the Hub. One value is left to the option."""
    if not arguments or not arguments[0].startswith("-"):
        return list(arguments)
    subjects: list[str] = []
    others: list[str] = []
    places = [place for place, word in enumerate(arguments) if word.startswith("-")]
    for first, end in itertools.pairwise([*places, len(arguments)]):
        last = end
        while last > first + 2 and (os.path.exists(arguments[last - 1]) or arguments[last - 1].startswith("hub:")):
            last -= 1
        others += arguments[first:last]
        subjects += arguments[last:end]
    return subjects + others


def _shown(value: Any) -> Any:
    """Settings as help shows them: a text of somebody's recipe must not steer the terminal."""
    if isinstance(value, tuple):
        return tuple(map(_shown, value))
    if dataclasses.is_dataclass(value):
        return type(value)(**{field.name: _shown(getattr(value, field.name)) for field in dataclasses.fields(value)})
    return for_terminal(value) if isinstance(value, str) else value


def _require_once(arguments: Sequence[str], options: Sequence["_Option"]) -> None:
    """Refuse an option that is given twice, under whatever name: all but the last would be without effect."""
    same = {name: option.names[0] for option in options for name in option.names}
    flags = {option.names[0] for option in options if isinstance(option.value, bool)}
    given: dict[str, str] = {}
    for text in itertools.takewhile(lambda word: word != "--", arguments):
        option = text.partition("=")[0].replace("_", "-")
        one = same.get(option, same.get(re.sub(r"(^--|\.)no-", r"\1", option)))
        if one is None or (one in flags and given.get(one) == option):
            continue
        if one in given:
            twice = f"{given[one]} and {option} are one option" if given[one] != option else f"{option} is given twice"
            raise InputError(f"{twice}: expected it once, as only the last would count")
        given[one] = option


def _as_chosen(cls: type[T], arguments: Sequence[str], default: T | None) -> T | None:
    """The default to parse over, with the generator, the pool, ... that the arguments choose, whose options are then known.

    Code outside the package, `package.module:Name`, is imported here, and only here: it was named on the command line.
    """
    sections = _sections(cls)
    _admit(arguments, sections)
    if not sections:
        return default
    values = {}
    for field in dataclasses.fields(cls):
        missing = field.default_factory is dataclasses.MISSING
        own = field.default if missing else None if default is not None else field.default_factory()
        values[field.name] = getattr(default, field.name) if default is not None else own
        if values[field.name] is dataclasses.MISSING:
            values[field.name] = tyro.MISSING
    switched = {}
    for name, section in sections.items():
        if not (chosen := _chosen(arguments, name, section)):
            continue
        several = isinstance(getattr(values[name], section.selector), tuple)
        switched[name] = from_dict(section, {section.selector: chosen if several else chosen[-1]}, values[name], section.prefix)
    values |= switched
    if "generator" in switched and issubclass(cls, TrainConfig):
        values = for_generator(values)
    if "adversarial" in switched and issubclass(cls, TrainConfig):
        known = ADVERSARIES.load(values["adversarial"].loss).discriminator_options
        kept = {name: getattr(values["discriminator"], name) for name in known}
        values["discriminator"] = type(values["discriminator"])(**kept)
    return cls(**values)


def _sections(cls: type) -> dict[str, type[Section]]:
    """Fields of a dataclass that are sections with a choice."""
    hints = typing.get_type_hints(cls)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, Section)}


def _chosen(arguments: Sequence[str], name: str, section: type[Section]) -> list[str]:
    """What the arguments choose for a section."""
    options = [f"--{name}.{section.selector}".replace("_", "-"), *_aliases(section, section.selector)]
    return [text for option in options for text in values_of(arguments, option)]


def _admit(arguments: Sequence[str], sections: dict[str, type[Section]]) -> None:
    """Import what the arguments name outside the package, as a choice, in a list of names, or with --code."""
    for name, section in sections.items():
        for text in _chosen(arguments, name, section):
            if ":" in text:
                _import_from_here()
            section.choices.admit(text)
    for option, tables in _NAMED.items():
        for text in values_of(arguments, option):
            if option == "--code" and not EXTERNAL.fullmatch(text):
                raise InputError(f"code is {text!r}: expected package.module:Name")
            first, _, rest = text.partition(":")
            name = f"{first}:{rest.partition(':')[0]}"  # without options
            if rest and first != "timm" and first not in STUDENTS.names():
                _import_from_here()
                for table in tables:
                    table.admit(name)
                if option == "--code" and not any(table.suits_named(name) for table in tables):
                    kinds = ", ".join(table.what for table in tables)
                    raise InputError(f"code is {text!r}, which is of no kind that can be chosen: expected a {kinds}")


def _import_from_here() -> None:
    """Let modules of the working directory be imported, as `python -m` does."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _aliases(cls: type, name: str) -> list[str]:
    hint = next(field.type for field in dataclasses.fields(cls) if field.name == name)
    return [alias for mark in getattr(hint, "__metadata__", ()) for alias in getattr(mark, "aliases", None) or ()]


def values_of(arguments: Sequence[str], option: str) -> list[str]:
    """What follows an option before the next one, or stands behind its equals sign."""
    for position in reversed(range(len(arguments))):  # the last one counts
        text = arguments[position]
        if text == option:
            rest = arguments[position + 1 :]
            return list(itertools.takewhile(lambda word: not word.startswith("--"), rest))
        if text.startswith(f"{option}="):
            return [text.partition("=")[2]]
    return []


def given_options(arguments: Sequence[str]) -> set[str]:
    """The settings that options give, as `stage_one.epochs`."""
    return {text[2:].partition("=")[0].replace("-", "_") for text in arguments if text.startswith("--")}


def _first_lines(box: str, command: str) -> str:
    """The message of tyro's error box, without title, frame, and what follows the rule. Without Unicode, the title stands above a
    rule of its own."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│╭╮╰╯|+ \t")
        if re.fullmatch(r"[─-]{5,}", text) or text.endswith("──"):
            parts.append([])
        elif text:
            parts[-1].append(text)
    texts = [" ".join(part) for part in parts if part]
    message = texts[1] if "╭" not in box and len(texts) > 2 else texts[0]
    message = re.sub(r"^Error parsing [A-Za-z][\w.]*: ", "", message)
    if unfit := _UNFIT.match(message):
        kinds = unfit[2].replace("{None}", "none").replace("|", " or ").lower()
        message = f"{unfit[1]} is {unfit[3]}: expected {kinds}"
    return f"{message} (see 'dim {command} --help')"


def _option_names(cls: type, parsed: Any) -> list[str]:
    """Names of all options of a parsed object, those of its choices too."""
    return [name for option in _options(cls, parsed) for name in option.names]


class _Option(NamedTuple):
    """An option, under all its names, and the value that it has."""

    names: list[str]
    field: dataclasses.Field
    value: Any


def _options(cls: type, parsed: Any, prefix: str = "--") -> list[_Option]:
    """All options of a parsed object, those of its choices too."""
    found = []
    for field in dataclasses.fields(cls):
        name, value = f"{prefix}{field.name.replace('_', '-')}", getattr(parsed, field.name)
        if dataclasses.is_dataclass(value):
            found += _options(type(value), value, f"{name}.")
        else:
            found.append(_Option([name, *_aliases(cls, field.name)], field, value))
    return found
