"""Choices by name, which bring options of their own.

A *choice* is one file: a module of a package such as `dim.objectives.distances` that exports one name (`__all__`), a class or a
function, whose attribute `Options`, if it has one, is a dataclass of the options that only this choice has. The file's name is
the choice's name, so the folder is the table of names. What somebody else has written is a choice, too: `package.module:Name` on
the command line, or the object itself in Python. Code that only a file names is never imported.
"""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Collection, Mapping
from importlib import resources
from typing import Annotated, Any, ClassVar

import tyro

from dim.errors import InputError, nearest

EXTERNAL = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""What somebody else's code is called: package.module:Name."""


class Choices:
    """A table of names.

    Args:
        what: what is chosen, in the singular, for messages.
        source: the package that holds one module per choice; or the choices themselves, each with its options or None, for
            choices that are a branch of one algorithm and not a piece of code of their own.
        base: of somebody else's choice, if that must be a subclass of a class, as package.module:Name; it is imported when one is
            used.
        takes: otherwise, what it is called with: how many positional arguments, and the names of others.
        has: and which attributes it must have.
        open: whether somebody else's code can be a choice, too. Default: where the source is a package.
    """

    tables: ClassVar[list["Choices"]] = []
    """All tables that take somebody else's code, too."""

    def __init__(
        self,
        what: str,
        source: str | Mapping[str, type | None],
        *,
        base: str | None = None,
        takes: tuple[int, tuple[str, ...]] | None = None,
        has: tuple[str, ...] = (),
        open: bool | None = None,
    ) -> None:
        self.what, self._source = what, source
        self._base, self._takes, self._has = base, takes, has
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
            InputError: if there is no such choice, or somebody else's is of the wrong kind.
        """
        self.require(name)
        if name in self._external:
            if not self.suits(self._external[name]):
                raise InputError(f"{name!r} is no {self.what}: expected {self._wanted()} (docs/extend.md)")
            return self._external[name]
        module = importlib.import_module(f"{self._source}.{name.replace('-', '_')}")
        (only,) = module.__all__
        return getattr(module, only)

    def suits(self, choice: Any) -> bool:
        """Whether somebody else's class or function can be a choice here, as far as its form shows it."""
        if self._base is not None:
            module, _, name = self._base.partition(":")
            return isinstance(choice, type) and issubclass(choice, getattr(importlib.import_module(module), name))
        if not all(hasattr(choice, name) for name in self._has):
            return False
        if self._takes is None:
            return True
        try:
            inspect.signature(choice).bind(*range(self._takes[0]), **dict.fromkeys(self._takes[1]))
        except (TypeError, ValueError):  # of other arguments; written in C
            return False
        return True

    def suits_named(self, name: str) -> bool:
        """Whether what was admitted by a name can be a choice here."""
        return name in self._external and self.suits(self._external[name])

    def _wanted(self) -> str:
        if self._base is not None:
            return f"a subclass of {self._base.replace(':', '.')}"
        number, names = self._takes or (0, ())
        call = ", ".join([*("..." for _ in range(number)), *(f"{name}=..." for name in names)])
        attributes = f" and has {', '.join(self._has)}" if self._has else ""
        return f"a class or function called as Name({call}){attributes}"

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
        suited = [name for name, choice in self._external.items() if self.suits(choice)]
        for name in (*self.names(), *suited):
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
