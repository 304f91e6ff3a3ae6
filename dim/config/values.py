"""Settings as plain values and back: dictionaries for JSON, TOML text, and the checks of what is read."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from dim.config.settings import Section
from dim.errors import InputError, nearest

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries, for JSON."""
    return dataclasses.asdict(config)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with names such as `generator.width`."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def to_toml(config: Any, *, over: Any = None, why: Mapping[str, str] | None = None) -> str:
    """A configuration as TOML: a recipe that gives the same configuration again. Fields that are None are left out.

    Args:
        config: the configuration.
        over: fields that equal those of this configuration are left out, too.
        why: comments by section.

    Raises:
        InputError: if a text in it is undecodable, as a path may be.
    """
    single, tables = [], []
    usual = {} if over is None else to_dict(over)
    for name, value in to_dict(config).items():
        if isinstance(value, dict):
            known = usual.get(name, {})
            kept = {key: item for key, item in value.items() if item is not None and (key not in known or known[key] != item)}
            lines = [f"{key} = {_toml_value(item)}" for key, item in kept.items()]
            reason = [f"# {why[name]}"] if name in (why or {}) else []
            tables += ["\n".join([f"[{name}]", *reason, *lines])] if lines or over is None else []
        elif value is not None and (name not in usual or usual[name] != value):
            single.append(f"{name} = {_toml_value(value)}")
    return "\n\n".join(["\n".join(single)] * bool(single) + tables) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(map(_toml_character, value)) + '"'
    return json.dumps(value)  # numbers and booleans are written alike in JSON and TOML


def _toml_character(character: str) -> str:
    """A character inside a basic string; what is not printed (controls, marks of direction) as an escape."""
    number = ord(character)
    if 0xD800 <= number <= 0xDFFF:  # a byte of a name that is no text
        raise InputError("a setting holds bytes that are no text in UTF-8, which TOML cannot hold: rename the file or folder")
    if character in '"\\' or not character.isprintable():
        return f"\\{character}" if character in '"\\' else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
    return character


def from_dict(cls: type[T], values: Mapping[str, Any], base: T | None = None, where: str = "") -> T:
    """Build a configuration from nested dictionaries.

    Args:
        cls: what to build.
        values: by field; they may choose another generator, pool, ... than the base has.
        base: gives all other fields; options that only its own choice has are left behind where another one is chosen.
            Default: the defaults.
        where: what stands before a field's name in messages.

    Raises:
        InputError: for an unknown key or a value of the wrong type, naming `where` it stands.
    """
    base = cls() if base is None else base
    if isinstance(base, Section):
        return _section(base, values, where)
    hints = _hints(cls)
    changes = {}
    for key, value in values.items():
        name = f"{where}{key}"
        if key not in hints:
            raise InputError(f"unknown key {name!r} in {where.rstrip('.') or 'configuration'}. {nearest(key, hints)}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise InputError(f"{name} is {value!r}: expected a table of settings")
            changes[key] = from_dict(hints[key], value, getattr(base, key), f"{name}.")
        else:
            changes[key] = _convert(value, hints[key], name)
    return dataclasses.replace(base, **changes)


def _section(base: Section, values: Mapping[str, Any], where: str) -> Any:
    """`from_dict` of a section that names a choice."""
    values = dict(values)
    declared = base.declared
    if declared.selector in values:
        hint = _hints(declared)[declared.selector]
        values[declared.selector] = _convert(values[declared.selector], hint, f"{where}{declared.selector}")
        chosen = declared.chosen_by(values)
    else:
        chosen = base.chosen
    target = declared.having(chosen)
    hints = _hints(target)
    kept = {name: getattr(base, name) for name in (field.name for field in dataclasses.fields(target)) if hasattr(base, name)}
    own = target.own(values)
    changes = {key: _convert(value, hints[key], f"{where}{key}") for key, value in own.items()}
    several = isinstance(getattr(base, declared.selector), tuple)
    return target(**{**kept, declared.selector: chosen if several else chosen[0], **changes})


def _hints(cls: type) -> dict[str, Any]:
    """Types of the fields of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _convert(value: Any, hint: Any, name: str) -> Any:
    """Check a parsed value against a field's annotation; lists become tuples and integers become floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if any(type(value) is type(known) and value == known for known in arguments):
            return value
        raise InputError(f"{name} is {value!r}: expected one of {', '.join(map(repr, arguments))}")
    if origin in (types.UnionType, typing.Union):  # Python 3.11 gives the second for `Literal[...] | None`
        if value is None and types.NoneType in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not types.NoneType), name)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (arguments[-1] is not ... and len(value) != len(arguments)):
            raise InputError(f"{name} is {value!r}: expected a list")
        return tuple(_convert(item, arguments[0], name) for item in value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise InputError(f"{name} is {value!r}: expected a finite number")
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise InputError(f"{name} is {value!r}: expected {hint.__name__}")
