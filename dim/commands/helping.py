"""Help: what is used every day, with examples; everything with --help-all. And scripts by which shells complete."""

import dataclasses
import re
import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, NoReturn, Union, get_type_hints

import tyro

from dim.errors import InputError
from dim.recipes.load import recipe_names
from dim.text import say

ALL = "--help-all"
_SHOWN = ("data",)
"""Sections whose options are used every day."""
EXAMPLES = {
    "data": ("dim data my-photos", "dim data --dataset fashion-mnist --data-root DIR --picture look.png"),
    "train": (
        "dim train my-photos --minutes 30",
        "dim train --recipe fashion-gan-small --data-root DIR --out runs/fashion",
        "dim train --recipe fashion-gan-small --generator.width 64 --dry-run",
        "dim train --out runs/fashion --resume",
    ),
    "sample": (
        "dim sample runs/fashion --ipc 10 --out sets/fashion-10",
        "dim sample runs/fashion --counts Sneaker=500 Bag=20 --out sets/some --format parquet",
        "dim sample runs/fashion --ipc 10 --out sets/best-10 --policy.steps matched refined --teacher.folder experts/fashion",
        "dim sample runs/fashion --bytes 30k --out sets/fashion.dimz",
    ),
    "evaluate": (
        "dim evaluate sets/fashion-10 --students convnet resnet18 --seeds 5 --controls random",
        "dim evaluate runs/fashion --track stream --ipc 10 --controls oracle --json scores.json",
        "dim evaluate sets/fashion-10 --students convnet --seeds 5 --claim",
        "dim evaluate runs/fashion --student-seconds 10 60 300",
    ),
    "compare": ("dim compare sets/* runs/fashion scores.json --ipc 1 10 50 --controls random --picture all.png",),
    "coverage": ("dim coverage runs/fashion", "dim coverage sets/fashion-10 runs/fashion --json coverage.json"),
    "audit": (
        "dim audit sets/fashion-10",
        "dim audit runs/half-0 --references runs/half-1 runs/half-2 runs/half-3 runs/half-4 --track stream fixed",
    ),
    "report": ("dim report runs/fashion",),
    "verify": (
        "dim verify sets/fashion-10 --data-root DIR",
        "dim verify hub:owner/fashion-10 --quick",
        "dim verify sets/mtt-10 --claimed 65.3 --claimed-sd 0.7 --claimed-n 5 --data-root DIR",
    ),
    "experts": (
        "dim experts --recipe cifar10-datm-ipc10 --data-root DIR --out experts/cifar10",
        "dim experts --out experts/cifar10 --resume",
    ),
    "distill": (
        "dim distill --recipe cifar10-datm-ipc10 --data-root DIR --experts experts/cifar10 --out sets/datm-10",
        "dim distill --out sets/datm-10 --resume",
    ),
    "import": (
        "dim import images_best.pt labels_best.pt --dataset cifar10 --data-root DIR --normalised-by zca --out sets/mtt-10",
        "dim import res_DSA_CIFAR10_ConvNet_10ipc.pt --dataset cifar10 --data-root DIR --normalised-by dc --out sets/dsa-10",
    ),
    "export": (
        "dim export sets/mtt-10 --to ddranking --out ranking/mtt-10",
        "dim export runs/fashion --to onnx --out fashion.onnx",
        "dim export sets/fashion-10 --to imagefolder --card --scores scores.json --out share/fashion-10",
        "dim export sets/fashion-10 --bytes 8k --out share/fashion.dimz",
    ),
    "recipes": ("dim recipes", "dim recipes fashion-gan-small", "dim recipes --json recipes.json"),
    "completion": (
        "dim completion bash > ~/.local/share/bash-completion/completions/dim",
        "dim completion zsh > ~/.zfunc/_dim",
        "dim completion fish > ~/.config/fish/completions/dim.fish",
    ),
}
"""By command."""


def show_help(cls: type, arguments: Sequence[str], command: str, default: Any) -> NoReturn:
    """Print the help of a command and exit: without the sections of rare use, unless one of their options is given, or all are
    asked for.

    Args:
        cls: its options.
        arguments: what follows the command.
        default: what to parse over; the values that are shown.
    """
    given = {word[2:].partition(".")[0].replace("-", "_") for word in arguments if word.startswith("--") and "." in word}
    folded = {} if ALL in arguments else {k: v for k, v in _sections(cls).items() if k not in {*_SHOWN, *given}}
    types = {name: Annotated[section, tyro.conf.Suppress] for name, section in folded.items()}
    short = {} if ALL in arguments else {name: _daily(cls, name, default) for name in set(_SHOWN) & _sections(cls).keys() - given}
    hidden = _changed(cls, types | {name: type(value) for name, value in short.items()}, short)
    values = {} if default is None else {"default": _copied(default, hidden, short)}
    try:
        tyro.cli(hidden, args=["--help"], prog=f"dim {command}", **values)
    except SystemExit:
        more = {f"{name}.*": _summary(section) for name, section in folded.items()}
        rare = {name: [one.replace("_", "-") for one in value.rare] for name, value in short.items() if value.rare}
        more |= {f"{name}.{first}": f"and {', '.join(others)}: of rare use" for name, (first, *others) in rare.items()}
        if more:
            say(f"More options, shown by dim {command} {ALL}:")
            width = max(map(len, more)) + 2
            for name, text in more.items():
                say(f"  {'--' + name.replace('_', '-'):<{width}}  {text}")
            say("")
        say("Examples:")
        for line in EXAMPLES[command]:
            say(f"  {line}")
        raise
    raise AssertionError("help was not shown")


def _sections(cls: type) -> dict[str, type]:
    """Fields of a command that are sections of options of their own."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if dataclasses.is_dataclass(hints[field.name])}


def _summary(section: type) -> str:
    """The first sentence of a section's description, if it is short, or its beginning."""
    text = " ".join((section.__doc__ or "").split())
    return textwrap.shorten(re.split(r"\. |\.$", text)[0], 100, placeholder=" ...")


def _daily(cls: type, name: str, default: Any) -> Any:
    """The settings of a section as they are by default, of a class that hides those of rare use."""
    field = cls.__dataclass_fields__[name]
    value = field.default_factory() if default is None else getattr(default, name)
    hints = get_type_hints(type(value), include_extras=True)
    return _copied(value, _changed(type(value), {one: Annotated[hints[one], tyro.conf.Suppress] for one in value.rare}))


def _changed(cls: type, types: dict[str, Any], values: Mapping[str, Any] = MappingProxyType({})) -> type:
    """The same options, some of another type, and perhaps with another default."""
    if not types:
        return cls
    fields = {field.name: field for field in dataclasses.fields(cls)}
    space: dict[str, Any] = {"__annotations__": types, "__doc__": cls.__doc__, "__module__": cls.__module__}
    for name in types:
        field = fields[name]
        if name in values:
            space[name] = values[name]
        elif field.default is not dataclasses.MISSING:
            space[name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            space[name] = dataclasses.field(default_factory=field.default_factory)
    return dataclasses.dataclass(frozen=True, kw_only=True)(type(cls.__name__, (cls,), space))


def _copied(value: Any, cls: type, changes: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """A value of a command's class as one of a changed class, with some fields changed."""
    copy = object.__new__(cls)  # what is shown was checked before, or, as a missing value, cannot be
    for field in dataclasses.fields(cls):
        object.__setattr__(copy, field.name, changes.get(field.name, getattr(value, field.name)))
    return copy


def completion(shell: str, kinds: dict[str, type]) -> NoReturn:
    """Print a shell's script and exit.

    Args:
        shell: bash, zsh or fish.
        kinds: the options of every command.
    """
    recipes = Literal[tuple(recipe_names())]
    named = {"recipe": recipes | None, "name": tyro.conf.Positional[recipes | None]}
    commands = []
    for command, cls in kinds.items():
        fields = {field.name: field for field in dataclasses.fields(cls)}
        types = {name: kind for name, kind in named.items() if name in fields}
        types |= {name: type(fields[name].default_factory()) for name in _sections(cls)}  # with the options of the default choice
        changed = _changed(cls, types)
        commands.append(Annotated[changed, tyro.conf.subcommand(name=command)])
    tyro.cli(Union[tuple(commands)], prog="dim", args=["--tyro-print-completion", shell])  # noqa: UP007
    raise InputError(f"no script was made for {shell!r}: expected a release of tyro that can")
