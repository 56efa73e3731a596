"""Dataclasses to and from plain values, as JSON and YAML hold them; types are checked on the way in."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bayeslora.errors import DataError

T = TypeVar("T")

PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}
"""Types of plain values, in words."""


OPTIONAL = {"optional": True}
"""Metadata of a field that is not written while it has its default."""
FLAT = {"flat": True}
"""Metadata of a field whose own entries are written among those of its owner; read from all keys no other field has."""


def encode(value: Any) -> Any:
    """Plain values: a dataclass as a dictionary; a number that is NaN or infinite as None, for JSON has none."""
    if dataclasses.is_dataclass(value):
        plain: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            entry = getattr(value, field.name)
            if field.metadata.get("flat"):
                plain |= encode(entry) or {}
            elif not (field.metadata.get("optional") and entry == _default(field)):
                plain[field.name] = encode(entry)
        return plain
    if isinstance(value, Mapping):
        return {str(key): encode(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [encode(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def decode(kind: type[T], value: Any, name: str = "it") -> T:
    """What `encode` made into plain values. A key that is missing, or null where the type has none, takes its default.

    Args:
        kind: a dataclass, or a type made of plain ones, lists, tuples, mappings and dataclasses.
        value: plain values.
        name: of the value, for messages; its entries are called `name.key`.

    Raises:
        DataError: a value is not of its type, or a key is missing or unknown.
    """
    decoded: T = _decode(kind, value, name)
    return decoded


def _decode(kind: Any, value: Any, name: str) -> Any:  # noqa: PLR0911 (one a kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _decode(_alternative(arguments, value), value, name)
    if origin is Literal and value in arguments:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return _dataclass(kind, value, name)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {str(key): _decode(arguments[1], entry, f"{name}.{key}") for key, entry in value.items()}
    if origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        entries = [_decode(arguments[0], entry, f"{name}[{at}]") for at, entry in enumerate(value)]
        return tuple(entries) if origin is tuple else entries
    if kind is float and type(value) is int:
        return float(value)
    if kind in PLAIN and type(value) is kind:
        return value
    raise DataError(f"{name} must be {_in_words(kind)}, not {_shown(value)}")


def _dataclass(kind: Any, value: Mapping[str, Any], name: str) -> Any:
    hints, rest, values = _hints(kind), dict(value), {}
    rest_field = None
    for field in dataclasses.fields(kind):
        if field.metadata.get("flat"):
            rest_field = field.name
            continue
        hint, entry = hints[field.name], rest.pop(field.name, None)
        if field.name in value and (entry is not None or types.NoneType in get_args(hint)):
            values[field.name] = _decode(hint, entry, f"{name}.{field.name}")
        elif _default(field) is dataclasses.MISSING:
            raise DataError(f"{name} lacks {field.name}")
    if rest and rest_field is None:
        raise DataError(f"{name} has the unknown key {', '.join(map(str, rest))}")
    if rest:
        values[rest_field] = _decode(hints[rest_field], rest, name)  # type: ignore[index]
    return kind(**values)


def _alternative(kinds: Sequence[Any], value: Any) -> Any:
    """The type of a union that a value is of; of several dataclasses, the first that has all its keys."""
    if value is None and types.NoneType in kinds:
        return types.NoneType
    kinds = [kind for kind in kinds if kind is not types.NoneType]
    if isinstance(value, Mapping):
        classes = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        fitting = (kind for kind in classes if set(value) <= {field.name for field in dataclasses.fields(kind)})
        return next(fitting, kinds[0])
    return next((kind for kind in kinds if type(value) is kind), kinds[0])


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _default(field: dataclasses.Field[Any]) -> Any:
    """A field's default, `MISSING` if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _in_words(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if kind in PLAIN:
        return PLAIN[kind]
    return "a list" if get_origin(kind) in (list, tuple, Sequence) else "a mapping"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else repr(value)
