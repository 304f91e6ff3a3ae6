"""What all settings have in common: frozen dataclasses whose numbers are finite, and choices by name that bring options of their
own.

A *choice* is one file: a module of a package such as `dim.objectives.distances` that exports one name (`__all__`), a class or a
function, whose attribute `Options`, if it has one, is a dataclass of the options that only this choice has. The file's name is
the choice's name, so the folder is the table of names. What somebody else has written is a choice, too: `package.module:Name` on
the command line, or the object itself in Python. Code that only a file names is never imported.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil
import re
import textwrap
from collections.abc import Collection, Mapping
from importlib import resources
from typing import Annotated, Any, ClassVar, Literal

import tyro

from dim.errors import InputError, nearest

Distance = Literal["endpoint", "direction"]
"""What trajectory matching compares between student and expert: where they end, or only the direction in which they went."""
Compile = Literal["auto", "on", "off"]
"""Whether to compile: `auto` where it is worth the time and a compiler is found."""

Precision = Literal["auto", "fp32", "bf16"]
"""Of a network's forward and backward. `bf16`: bfloat16 where PyTorch's autocast allows it; weights and their updates stay
float32. `auto`: bfloat16 where the device has it and it is faster."""

EXTERNAL = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""What somebody else's code is called: package.module:Name."""


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


class Choices:
    """A table of names.

    Args:
        what: what is chosen, in the singular, for messages.
        source: the package that holds one module per choice; or the choices themselves, each with its options or None, for
            choices that are a branch of one algorithm and not a piece of code of their own.
        open: whether somebody else's code can be a choice, too. Default: where the source is a package.
    """

    tables: ClassVar[list["Choices"]] = []
    """All tables that take somebody else's code, too."""

    def __init__(self, what: str, source: str | Mapping[str, type | None], *, open: bool | None = None) -> None:
        self.what, self._source = what, source
        self._open = isinstance(source, str) if open is None else open
        self._external: dict[str, Any] = {}
        if self._open:
            Choices.tables.append(self)

    def names(self) -> tuple[str, ...]:
        """Names of all choices that come with the package. Nothing is imported."""
        if not isinstance(self._source, str):
            return tuple(self._source)
        folder = resources.files("dim").joinpath(*self._source.split(".")[1:])
        return tuple(module.name.replace("_", "-") for module in pkgutil.iter_modules([str(folder)]))

    def require(self, name: str, option: str = "") -> None:
        """Raise InputError if there is no such choice, with the nearest known name and the option that it was given for."""
        if name in self._external or name in self.names():
            return
        if self._open and EXTERNAL.fullmatch(name):
            raise InputError(
                f"{self.what} {name!r} is code outside this package, and code that only a file names is not imported: "
                "name it on the command line (of a run or generator that exists: --code), or pass the object itself from Python"
            )
        given = f"{option} is {name!r}: expected a {self.what}" if option else f"unknown {self.what} {name!r}"
        known = nearest(name, self.names()) if self.names() else "Name your own as package.module:Name."
        raise InputError(f"{given}. {known}")

    def load(self, name: str) -> Any:
        """The class or function of a choice.

        Raises:
            InputError: if there is no such choice.
        """
        self.require(name)
        if name in self._external:
            return self._external[name]
        module = importlib.import_module(f"{self._source}.{name.replace('-', '_')}")
        (only,) = module.__all__
        return getattr(module, only)

    def options(self, name: str) -> type | None:
        """The dataclass of the options that a choice has for itself, or None.

        Raises:
            InputError: if there is no such choice.
        """
        if not isinstance(self._source, str):
            self.require(name)
            return self._source[name]
        return getattr(self.load(name), "Options", None)

    def owners(self, option: str) -> dict[str, Any]:
        """The choices that have an option of this name, with its default."""
        found = {}
        for name in (*self.names(), *self._external):
            for field in dataclasses.fields(self.options(name) or _NoOptions):
                if field.name == option:
                    found[name] = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        return found

    def admit(self, choice: Any) -> Any:
        """Let somebody else's code be a choice in this process.

        Args:
            choice: a class or function; or text, where `package.module:Name` is imported and any other text is left alone.

        Returns:
            The name by which it is known; `choice` itself if it is text.

        Raises:
            InputError: if it cannot be imported.
        """
        if not isinstance(choice, str):
            if not callable(choice):
                raise InputError(f"{self.what} is {choice!r}: expected a name, or a class or function of your own")
            name = f"{choice.__module__}:{choice.__qualname__}"
            self._external[name] = choice
            return name
        if self._open and EXTERNAL.fullmatch(choice) and choice not in self._external:
            module, _, name = choice.partition(":")
            try:
                self._external[choice] = getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError) as error:
                raise InputError(f"{choice!r} cannot be imported ({error}): expected package.module:Name") from None
            if not callable(self._external[choice]):
                found = type(self._external.pop(choice)).__name__
                raise InputError(f"{choice!r} is a {found}: expected a class or function")
        return choice

    def admit_all(self, choices: Collection[Any]) -> tuple[str, ...]:
        """Names of choices, of which some may be objects; text is left as it is."""
        return tuple(choice if isinstance(choice, str) else self.admit(choice) for choice in choices)

    def explained(self) -> str:
        """All names, each with the first sentence of its file's description."""
        if not isinstance(self._source, str):
            return ""
        folder = resources.files("dim").joinpath(*self._source.split(".")[1:])
        lines = []
        for name in self.names():
            tree = ast.parse(folder.joinpath(f"{name.replace('-', '_')}.py").read_text())
            lines.append(f"`{name}`: {_first_sentence(ast.get_docstring(tree) or '')}")
        return " ".join([*lines, "Or package.module:Name, for one of your own."])

    def named(self, text: str) -> Any:
        """The type of an option that names one of these: a `str` whose help is the text and all names."""
        return Annotated[str, tyro.conf.arg(help=f"{text} {self.explained()}", metavar="|".join(self.names()))]


@dataclasses.dataclass
class _NoOptions:
    """Of a choice without options."""


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", " ".join(text.split()), maxsplit=1)[0]


class _Checked(type):
    """Checks that every number is finite, and turns a section with a choice into the class that has that choice's options."""

    def __call__(cls, **values: Any) -> Any:
        if getattr(cls, "choices", None) is not None:
            chosen = cls.chosen_by(values)
            if vars(cls).get("chosen") != chosen:
                return cls.declared.having(chosen)(**values)
            values = cls.own(values)
        made = super().__call__(**values)
        for field in dataclasses.fields(made):
            value = getattr(made, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, float) and not math.isfinite(number):
                    raise InputError(f"{cls.prefix}{field.name} is {number}: expected a finite number")
        return made


class Settings(metaclass=_Checked):
    """A group of settings; subclasses are frozen, keyword-only dataclasses with a description below each field."""

    prefix: ClassVar[str] = ""
    """What stands before a field's name in messages, as in `generator.`."""


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
