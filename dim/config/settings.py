"""What all settings have in common: frozen dataclasses whose values are plain, some of which have options of what was chosen by
name (`dim.config.choices`)."""

import ast
import dataclasses
import functools
import inspect
import math
import textwrap
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal

import tyro

from dim.config.choices import Choices
from dim.errors import InputError, nearest

Distance = Literal["endpoint", "direction"]
"""What trajectory matching compares between student and expert: where they end, or only the direction in which they went."""
Compile = Literal["auto", "on", "off"]
"""Whether to compile: `auto` where it is worth the time and a compiler is found."""

Precision = Literal["auto", "fp32", "bf16"]
"""Of a network's forward and backward. `bf16`: bfloat16 where PyTorch's autocast allows it; weights and their updates stay
float32. `auto`: bfloat16 where the device has it and it is faster."""
FixedPrecision = Literal["fp32", "bf16"]
"""The same where the device does not choose: trajectories are compared, so their arithmetic is part of what they are."""


def require(condition: bool, name: str, value: Any, expected: str) -> None:
    """Refuse a setting.

    Raises:
        InputError: unless the condition holds; it names the setting, its value and what was expected.
    """
    if not condition:
        raise InputError(f"{name} is {value!r}: expected {expected}")


def require_default(settings: "Settings", reason: str) -> None:
    """Refuse a group of settings that would change nothing, unless it was left alone.

    Raises:
        InputError: naming the first setting that differs from its default, and the reason.
    """
    default = getattr(type(settings), "declared", type(settings))()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        usual = getattr(default, field.name, None)
        require(value == usual, f"{settings.prefix}{field.name}", value, f"its default, {reason}")


MOST_BLOCKS = 64
"""Of a network of this package at one resolution: more take longer to make than anyone waits."""
LARGEST_INTEGER = 2**63 - 1
"""Of a setting: what PyTorch, JSON's readers and file formats hold."""


def require_plain(name: str, value: Any) -> None:
    """Refuse a setting that no file and no tensor could hold: a number that is not finite or beyond 64 bits, text with a NUL.

    Raises:
        InputError: naming it.
    """
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, float) and not math.isfinite(part):
            raise InputError(f"{name} is {part}: expected a finite number")
        if isinstance(part, int) and abs(part) > LARGEST_INTEGER:
            raise InputError(f"{name} is {part:.3e}: expected a whole number of at most {LARGEST_INTEGER}")
        if isinstance(part, str) and "\0" in part:
            raise InputError(f"{name} is {part!r}: expected text without a NUL character")


class _Checked(type):
    """Checks every value (`require_plain`), and turns a section with a choice into the class that has that choice's options."""

    def __call__(cls, **values: Any) -> Any:
        if getattr(cls, "choices", None) is not None:
            chosen = cls.chosen_by(values)
            if vars(cls).get("chosen") != chosen:
                return cls.declared.having(chosen)(**values)
            values = cls.own(values)
        made = super().__call__(**values)
        for field in dataclasses.fields(made):
            require_plain(f"{cls.prefix}{field.name}", getattr(made, field.name))
        return made


class Settings(metaclass=_Checked):
    """A group of settings; subclasses are frozen, keyword-only dataclasses with a description below each field."""

    prefix: ClassVar[str] = ""
    """What stands before a field's name in messages, as in `generator.`."""
    rare: ClassVar[tuple[str, ...]] = ()
    """Fields that only --help-all shows."""


class Section(Settings):
    """Settings of which one, `selector`, names a choice; objects have the fields of the class and the options of what was chosen.

    `Section(name="x", width=3)` makes an object of a subclass that has the fields of the class itself and those of the options
    of choice `x`. Options of other choices are refused, unless they have the value that they have by default there: files of
    earlier versions hold them all.
    """

    choices: ClassVar[Choices]
    selector: ClassVar[str]
    chosen: ClassVar[tuple[str, ...]]
    declared: ClassVar[type["Section"]]

    def __init_subclass__(cls) -> None:
        if "choices" in vars(cls):
            cls.declared = cls

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (self.declared, {field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    @classmethod
    def chosen_by(cls, values: dict[str, Any]) -> tuple[str, ...]:
        """The names that these values choose, each of which there is; objects in their place become names, in place."""
        field = next(field for field in dataclasses.fields(cls) if field.name == cls.selector)
        value = values.get(cls.selector, field.default)
        if isinstance(value, list | tuple):
            names = value = tuple(name if isinstance(name, str) else cls.choices.admit(name) for name in value)
        else:
            value = value if isinstance(value, str) else cls.choices.admit(value)
            names = (value,)
        if cls.selector in values:
            values[cls.selector] = value
        for name in names:
            cls.choices.require(name, f"{cls.prefix}{cls.selector}")
        return names

    @classmethod
    def having(cls, chosen: Collection[str]) -> type["Section"]:
        """The subclass of objects for which these were chosen."""
        options = dict.fromkeys(own for name in chosen if (own := cls.choices.options(name)) is not None)
        return _having(cls, tuple(chosen), tuple(options))

    @classmethod
    def own(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """These values without the options of other choices, where they have the default that they have there.

        Raises:
            InputError: for an unknown option, or a changed one of another choice, naming whose it is.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        kept = {}
        for name, value in values.items():
            if name in known:
                kept[name] = value
            elif not cls._is_default_elsewhere(name, value):
                raise InputError(cls.refusal(name, value))
        return kept

    @classmethod
    def _is_default_elsewhere(cls, name: str, value: Any) -> bool:
        owners = cls.choices.owners(name)
        return bool(owners) and any(plain(value) == plain(default) for default in owners.values())

    @classmethod
    def refusal(cls, name: str, value: Any) -> str:
        """Why an option cannot be set here: there is none, or it belongs to another choice."""
        owners = cls.choices.owners(name)
        if not owners:
            known = [field.name for field in dataclasses.fields(cls)]
            return f"unknown key {cls.prefix + name!r} in {cls.prefix.rstrip('.')}. {nearest(name, known)}"
        whose = " and ".join(map(repr, owners)) if len(owners) < 4 else "others"
        now = " and ".join(map(repr, cls.chosen)) or "none"
        expected = f"expected no such option, as {cls.prefix}{cls.selector} is {now}"
        return f"{cls.prefix}{name} is {value!r}: {expected} and this is an option of {whose}; leave it out"


def plain(value: Any) -> Any:
    """As JSON has it: tuples are lists."""
    return list(value) if isinstance(value, tuple) else value


def _remade(declared: type[Section], values: dict[str, Any]) -> Section:
    return declared(**values)


@functools.cache
def _having(declared: type[Section], chosen: tuple[str, ...], options: tuple[type, ...]) -> type[Section]:
    def check(self: Section) -> None:
        for part in (declared, *options):
            if "__post_init__" in vars(part):
                part.__post_init__(self)

    field = next(field for field in dataclasses.fields(declared) if field.name == declared.selector)
    # The field that chooses is declared again, so that its help lists all names.
    text = field_docs(declared)[declared.selector]
    if explained := declared.choices.explained():
        option = f"--{declared.prefix}{declared.selector}".replace("_", "-")
        text = f"{text} {explained} Each has options of its own: {option} NAME --help shows them."
    names = "|".join(declared.choices.names())
    aliases = [alias for mark in getattr(field.type, "__metadata__", ()) for alias in getattr(mark, "aliases", None) or ()]
    single = not isinstance(field.default, tuple)
    metavar = names if single else f"[{names}] ..."
    hint = Annotated[field.type, tyro.conf.arg(help=text, metavar=metavar, aliases=aliases or None)]
    again = (declared.selector, hint, dataclasses.field(default=chosen[0] if single else chosen))
    space = {"__post_init__": check, "chosen": chosen, "__doc__": declared.__doc__, "__module__": declared.__module__}
    made = dataclasses.make_dataclass(
        declared.__name__, [again], bases=(*options, declared), namespace=space, frozen=True, kw_only=True
    )
    made.__qualname__ = declared.__qualname__
    return made


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The descriptions that stand below the fields of a dataclass, by name."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found
