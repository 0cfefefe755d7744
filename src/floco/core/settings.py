"""Validated settings: frozen dataclasses whose fields carry their range and one line of documentation.

The same declaration drives the constructor's checks, the configuration file, `--print-config` and the reference table.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from floco.core.errors import FlocoError, nearest


def setting(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    key: str = "",
    later: bool = False,
) -> Any:
    """Return a dataclass field with `low <= value <= high`, `above < value < below`, or text among `choices`.

    `key` is its name in configurations, if that differs from the field's. A field of a task that is younger than runs
    that can be read is `later`: fingerprints of data have it only where it is set.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below}
    meta = {"doc": doc, **bounds, "choices": choices, "key": key}
    return dataclasses.field(default=default, repr=not later, metadata=meta)


def key_of(field: dataclasses.Field[Any]) -> str:
    """Return the name of a setting in configurations."""
    return field.metadata.get("key") or field.name


def range_text(field: dataclasses.Field[Any]) -> str:
    """Return the allowed values of a setting in words; `""` if all are allowed."""
    meta = field.metadata
    signs = {"low": ">=", "above": ">", "high": "<=", "below": "<"}
    bounds = [f"{sign} {meta[key]:g}" for key, sign in signs.items() if meta.get(key) is not None]
    names = ", ".join(repr(c) for c in meta.get("choices", ()))
    return " or ".join(part for part in (" and ".join(bounds), f"one of {names}" if names else "") if part)


def _fits(value: Any, kind: Any) -> tuple[bool, Any]:
    """Return whether `value` converts to `kind` without loss, and the converted value.

    Numbers and arrays of numpy become those of Python, and paths text.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if hasattr(value, "__fspath__"):
        value = value.__fspath__()
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kinds = sorted(
            typing.get_args(kind), key=lambda k: k is not type(None)
        )  # empty text means None if that is allowed
        return next((fit for fit in (_fits(value, k) for k in kinds) if fit[0]), (False, value))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        fits = [_fits(v, inner) for v in value] if isinstance(value, list | tuple) else [(False, value)]
        return all(ok for ok, _ in fits), tuple(v for _, v in fits)
    if kind is type(None):
        return value is None or value == "", None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return True, float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return True, int(value)
    return type(value) is kind, value


def _in_range(value: Any, meta: Mapping[str, Any]) -> bool:
    if isinstance(value, tuple):
        return all(_in_range(v, meta) for v in value)
    if isinstance(value, str):
        return not meta["choices"] or value in meta["choices"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    low, high, above, below = (meta[k] for k in ("low", "high", "above", "below"))
    closed = (low is None or value >= low) and (high is None or value <= high)
    return math.isfinite(value) and closed and (above is None or value > above) and (below is None or value < below)


S = TypeVar("S")
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "empty"}


def _kind_text(kind: Any) -> str:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(_kind_text(k) for k in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"a list, each {_kind_text(typing.get_args(kind)[0])}"
    return _KINDS.get(kind, str(kind))


def checked(value: Any, kind: Any, name: str) -> Any:
    """Return a value as `kind`, e.g. `int | None`, where that is lossless (3.0, or a number of numpy, to 3).

    Raises:
        FlocoError: it is none; the message calls it `name`.
    """
    ok, found = _fits(value, kind)
    if not ok:
        raise FlocoError(f"{name} must be {_kind_text(kind)}, got {value!r}")
    return found


class Settings:
    """Base of all settings classes: checks each field at construction; errors name the field."""

    def __post_init__(self) -> None:
        """Check all fields, and convert them where that is lossless (3.0 to 3, a list to a tuple)."""
        kinds = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if "doc" not in field.metadata:
                continue
            given = getattr(self, field.name)
            value = checked(given, kinds[field.name], key_of(field))
            if not _in_range(value, field.metadata):
                raise FlocoError(f"{key_of(field)} must be {range_text(field)}, got {given!r}")
            object.__setattr__(self, field.name, value)


def plain(settings: Any) -> dict[str, Any]:
    """Return the values of a settings object by their names in configurations."""
    return {key_of(f): getattr(settings, f.name) for f in dataclasses.fields(settings)}


def flatten(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one with dotted keys.

    >>> flatten({"seed": 0, "data": {"split": {"name": "folds"}}})
    {'seed': 0, 'data.split.name': 'folds'}
    """
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def names(cls: type[Any]) -> list[str]:
    """Return the names of a class's settings in configurations."""
    return [key_of(f) for f in dataclasses.fields(cls)]


def shared(one: type[Any], other: type[Any]) -> set[str]:
    """Return the names of the settings that two classes have from the same class."""

    def homes(cls: type[Any]) -> set[tuple[str, type]]:
        declared = {c: c.__dict__.get("__annotations__", {}) for c in cls.__mro__}
        return {(key_of(f), next(c for c in declared if f.name in declared[c])) for f in dataclasses.fields(cls)}

    return {key for key, _ in homes(one) & homes(other)}


def build(cls: type[S], values: Mapping[str, Any]) -> S:
    """Return an object with settings by their names in configurations; an unknown key's error suggests the nearest."""
    fields = {key_of(f): f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise FlocoError(f"unknown key {key!r}{nearest(key, fields)}")
    return cls(**{fields[key]: value for key, value in values.items()})
