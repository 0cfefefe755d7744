"""Configurations as text: from TOML and `-s key=value` to checked settings, and back to TOML."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from floco.core.errors import FlocoError, nearest
from floco.core.settings import build, key_of, names, plain, range_text, shared
from floco.data.partition import SPLITS
from floco.runs.config import DEFAULTS, REGISTRIES, SECTIONS, Config, Data

T = TypeVar("T")


def read(path: Path | None, overrides: Sequence[str] = (), *, resolve: bool = True) -> Config:
    """Return the configuration of a TOML file (None: this package's digits.toml) with `key=value` overrides.

    Keys are dotted. Overriding a name (`algorithm.name`, `data.split.name`, `task.name`) drops the file's settings of
    the other one, but for those that both have from the same class (floco and floco+: all of the simplex); overriding
    `data.source` without a file drops the data settings of digits.toml.

    Raises:
        FlocoError: a wrong file or override; the message names which, and the key.
    """
    raw = _merge(path, overrides)
    try:
        return parse(raw, resolve=resolve)
    except FlocoError as error:
        raise FlocoError(f"{_find_cause(path, overrides, str(error))}{error}") from error


def _find_cause(path: Path | None, overrides: Sequence[str], message: str) -> str:
    """Return the file, or the first override with which the error is this one, as the beginning of a message."""
    for n in range(len(overrides) + 1):
        try:
            parse(_merge(path, overrides[:n]))
        except FlocoError as error:
            if str(error) == message:
                return f"-s {overrides[n - 1]}: " if n else f"{path}: "
    return ""


def _merge(path: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the nested tables of a file with overrides."""
    file = Path(__file__).with_name("digits.toml") if path is None else path
    try:
        raw: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FlocoError(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FlocoError(f"{file}: not a TOML file: {error}") from error
    changes = [(f"{key}.name" if key == "data.split" else key, value) for key, value in map(override, overrides)]
    if path is None and any(k == "data.source" and v != "digits" for k, v in changes):
        raw["data"] = {}  # the split of the digits does not apply to other data
    _spell_out_split(raw)
    for table, default in DEFAULTS.items():
        name = next((v for k, v in reversed(changes) if k == f"{table}.name"), None)
        parent, _, leaf = table.rpartition(".")
        within = raw.get(parent, {}) if parent else raw
        known = within.get(leaf) if isinstance(within, dict) else None
        if name is not None and isinstance(known, dict) and known.get("name", default) != name:
            within[leaf] = _keep_shared(table, known, known.get("name", default), name)
    for key, value in changes:
        put(raw, key, value, f"-s {key}")
    return raw


def _keep_shared(table: str, values: Mapping[str, Any], old: Any, new: Any) -> dict[str, Any]:
    """Return the settings of a table that remain if its name changes."""
    try:
        kept = shared(*(REGISTRIES[table].find(name) for name in (old, new)))
    except FlocoError:  # one of the names is wrong: `parse` says which, whatever the settings are
        kept = set()
    return {key: value for key, value in values.items() if key in kept}


def put(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a dotted key in nested tables; `where` names it in error messages."""
    *tables, leaf = key.split(".")
    table = raw
    for i, name in enumerate(tables):
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise FlocoError(f"{where}: {'.'.join(tables[: i + 1])} is not a table")
    table[leaf] = value


def _spell_out_split(raw: dict[str, Any]) -> None:
    """Turn `split = "folds"` with its settings beside it, the short form, into a table."""
    data = raw.get("data")
    if not isinstance(data, dict):
        return
    split = data.get("split", {})
    split = {"name": split} if not isinstance(split, Mapping) else dict(split)
    name = split.get("name", DEFAULTS["data.split"])
    if isinstance(name, str) and name in SPLITS:
        own = set(names(SPLITS[name]))
        split |= {key: data.pop(key) for key in [k for k in data if k in own - set(names(Data))]}
    data["split"] = split


def override(text: str) -> tuple[str, Any]:
    """Return key and value of a text `key=value`; a value that is not valid TOML is text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise FlocoError(f"-s needs key=value, got {text!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def parse(raw: Mapping[str, Any], *, resolve: bool = True) -> Config:
    """Return the configuration from nested tables; error messages name the key.

    The method's defaults that depend on other settings are filled in if `resolve`.
    """
    known = ["seed", "data", "task", "model", "algorithm", "training", "deliver", "run", "flower"]
    for key in raw:
        if key not in known:
            raise FlocoError(f"unknown key {key!r}{nearest(key, known)}")
    for key in known[1:]:
        if not isinstance(raw.get(key, {}), Mapping):
            raise FlocoError(f"{key} must be a table, got {raw[key]!r}")
    tables = {key: dict(raw.get(key, {})) for key in known[1:]}
    _spell_out_split(tables)
    split = _named("data.split", tables["data"].pop("split"))
    sections = {key: _section(cls, key, tables[key]) for key, cls in SECTIONS.items()}
    sections["data"] = dataclasses.replace(sections["data"], split=split)
    task, algorithm = (_named(key, tables[key]) for key in ("task", "algorithm"))
    made = algorithm.resolved(sections["training"])  # raises for what does not fit
    return Config(raw.get("seed", 0), task=task, algorithm=made if resolve else algorithm, **sections)


def _named(table: str, values: Mapping[str, Any]) -> Any:
    """Return an object of the class that a table's `name` chooses, with the other values as its settings."""
    values = dict(values)
    return _section(REGISTRIES[table].find(values.pop("name", DEFAULTS[table])), table, values)


def _section(cls: type[T], name: str, values: Mapping[str, Any]) -> T:
    try:
        return build(cls, values)
    except FlocoError as error:
        separator = ": " if str(error).startswith("unknown") else "."
        raise FlocoError(f"{name}{separator}{error}") from error


def as_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as nested plain values, with the names of split, task and algorithm."""
    found = {k: plain(v) if dataclasses.is_dataclass(v) else v for k, v in plain(config).items()}
    found["data"]["split"] = _with_name("data.split", config.data.split)
    return found | {key: _with_name(key, getattr(config, key)) for key in ("task", "algorithm")}


def _with_name(table: str, value: Any) -> dict[str, Any]:
    return {"name": REGISTRIES[table].name_of(type(value)), **plain(value)}


def to_text(value: Any) -> str:
    """Return a value as TOML; None is the empty string."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(to_text(v) for v in value) + "]"
    return json.dumps("" if value is None else value, ensure_ascii=False).replace("\x7f", "\\u007f")


def documented(settings: Any) -> list[dataclasses.Field[Any]]:
    """Return the fields of settings that have a description."""
    return [f for f in dataclasses.fields(settings) if "doc" in f.metadata]


def _lines(settings: Any) -> list[str]:
    return [f"{key_of(f)} = {to_text(getattr(settings, f.name))}  # {describe(f)}" for f in documented(settings)]


def describe(f: dataclasses.Field[Any]) -> str:
    """Return description and allowed values of a setting."""
    allowed = range_text(f)
    return str(f.metadata["doc"]) + (f" ({allowed})" if allowed else "")


def to_toml(config: Config) -> str:
    """Return the configuration as TOML, with a comment per setting; reading it gives the same configuration."""
    lines = _lines(config)
    for key in ("data", "data.split", "task", "model", "algorithm", "training", "deliver", "run", "flower"):
        value = config.data.split if key == "data.split" else getattr(config, key)
        lines += ["", f"[{key}]"]
        if registry := REGISTRIES.get(key):
            name = registry.name_of(type(value))
            lines += [f"name = {to_text(name)}  # one of {', '.join(registry.known)}, or module:Class"]
        lines += _lines(value)
    return "\n".join(lines) + "\n"
