"""The reference: every public name stands in docs/reference.md, and its docstring says what a caller has to know.

Of every function, class and method: each parameter by name, under `Args:` or in backticks (for methods also in the docstring of
the class); a shape where a tensor goes in or comes out; each exception that it raises itself.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dim
import dim.trajectory
from dim.config import field_docs

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
PUBLIC = {f"dim.{name}": getattr(dim, name) for name in dim.__all__ if not name.startswith("__")}
PUBLIC |= {f"dim.trajectory.{name}": getattr(dim.trajectory, name) for name in dim.trajectory.__all__}
SHAPE = re.compile(r"\((?:[A-Z1]|classes|members),[^)]*\)|\bscalar\b")


def documented(doc: str) -> set[str]:
    """Names of parameters that a docstring describes: under `Args:`, several before one colon, or in backticks."""
    names = set(re.findall(r"`(\w+)`", doc))
    for section in re.findall(r"^Args:\n((?: .*\n?|\n)*)", doc, flags=re.M):
        for line in re.findall(r"^ {4}(\w[\w, ]*):", section, flags=re.M):
            names |= {name.strip() for name in line.split(",")}
    return names


def raised(function: Callable) -> set[str]:
    """Names of the exceptions that a function's own lines raise."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = (node.exc.func for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call))
    return {call.id for call in calls if isinstance(call, ast.Name)} - {"NotImplementedError"}


def lacks(function: Callable, doc: str, around: str = "") -> list[str]:
    """What a docstring does not say of a function; `around` is that of its class."""
    parameters = [each for name, each in inspect.signature(function).parameters.items() if name not in ("self", "cls")]
    missing = [f"parameter {each.name}" for each in parameters if each.name not in documented(doc) | documented(around)]
    missing += [f"exception {name}" for name in raised(function) if name not in doc + around]
    hints = [each.annotation for each in parameters] + [inspect.signature(function).return_annotation]
    if Tensor in hints and not SHAPE.search(doc):
        missing.append("shape of a tensor")
    return missing


def callables(path: str, subject: Any) -> Iterator[tuple[str, Callable, str, str]]:
    """A function; or a class's constructor and its public methods: name, function, its docstring, and that of the class."""
    about = inspect.getdoc(subject) or ""
    if not inspect.isclass(subject):
        yield path, subject, about, ""
        return
    if not dataclasses.is_dataclass(subject):
        yield path, subject.__init__, about, ""
    for name, member in vars(subject).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if not name.startswith("_") and inspect.isfunction(function):
            yield f"{path}.{name}", function, inspect.getdoc(function) or "", about


EVERY = [each for path, subject in PUBLIC.items() for each in callables(path, subject)]


@pytest.mark.parametrize(("function", "doc", "around"), [each[1:] for each in EVERY], ids=[each[0] for each in EVERY])
def test_a_docstring_says_what_a_caller_has_to_know(function, doc, around):
    assert doc, "no docstring"
    assert lacks(function, doc, around) == []


@pytest.mark.parametrize("path", PUBLIC)
def test_classes_describe_their_properties_and_fields(path):
    subject = PUBLIC[path]
    assert inspect.getdoc(subject)
    if not inspect.isclass(subject):
        return
    for name, member in vars(subject).items():
        assert name.startswith("_") or not isinstance(member, property) or inspect.getdoc(member), name
    if dataclasses.is_dataclass(subject):
        docs = {
            name: text
            for base in subject.__mro__[:-1]
            if dataclasses.is_dataclass(base)
            for name, text in field_docs(base).items()
        }
        sections = {field.name for field in dataclasses.fields(subject) if str(field.type).endswith("Config'>")}
        fields = {field.name for field in dataclasses.fields(subject)} - sections
        assert {name for name in fields if not docs.get(name)} == set()


def test_the_page_lists_every_public_name_once():
    listed = re.findall(r"^::: (\S+)$", PAGE.read_text(), flags=re.M)
    assert sorted(listed) == sorted(PUBLIC)


# --- that the checks above can fail -------------------------------------------------------------------------------------------


def _bad(images: Tensor, count: int) -> Tensor:
    """Nothing of use."""
    if count < 1:
        raise ValueError(count)
    return images


def _good(images: Tensor, count: int) -> Tensor:
    """Something.

    Args:
        images: float (B, C, H, W).
        count: 1 or more.

    Raises:
        ValueError: for a smaller count.
    """
    return _bad(images, count)


def test_what_is_missing_is_noticed():
    wanted = ["parameter images", "parameter count", "exception ValueError", "shape of a tensor"]
    assert lacks(_bad, inspect.getdoc(_bad)) == wanted
    assert lacks(_bad, inspect.getdoc(_good)) == []
    assert lacks(_good, "Two of `count`.") == ["parameter images", "shape of a tensor"]
    assert lacks(_good, "float (B,) of these.", "`images`, and `count`.") == []
    assert documented("Args:\n    a, b: two.\n    c: one,\n        more: not a name.\n\nReturns:\n    d: no.") == {"a", "b", "c"}
    assert torch.equal(_good(torch.ones(1), 1), torch.ones(1))
