"""What the columns of a table are for: targets, client ids and times, as arrays."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from floco.core.errors import FlocoError, nearest, warn
from floco.core.inputs import array
from floco.data.cells import EXACT, check_words, is_missing, kind_of, numbers, to_text

if TYPE_CHECKING:
    import pandas as pd


def is_table(x: Any) -> bool:
    """Return whether x is a DataFrame."""
    return hasattr(x, "columns") and hasattr(x, "iloc")


_POINT = re.compile(r"([+-]?\d+)\.0+")
CATEGORIES, MISSING = ("one-hot", "ids"), ("error", "drop", "mean")
"""Choices of `data.categories` and `data.missing`."""


@dataclass(frozen=True)
class Roles:
    """What a user says of the columns of a table; see `sources.load`."""

    target: tuple[str, ...] = ()
    client: str | None = None
    features: tuple[str, ...] = ()
    order: str | None = None
    categories: str = "one-hot"
    levels: tuple[str, ...] = ()
    missing: str = "error"
    group: str | None = field(default=None, repr=False)
    leave_out: tuple[str, ...] = field(default=(), repr=False)

    @property
    def named(self) -> bool:
        """Whether they hold what only tables have."""
        return bool(self.target or self.features or self.leave_out or self.levels or self.categories != "one-hot")


def checked_frame(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return a table with text as names of its columns, which must differ."""
    names = [str(n).strip() for n in frame.columns]
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise FlocoError(f"{where}: several columns have the same name: {', '.join(map(repr, repeated))}")
    return frame.set_axis(names, axis=1).reset_index(drop=True)


def resolve(roles: Roles, frame: pd.DataFrame, where: str) -> Roles:
    """Return the roles, whose columns must exist and differ; a column called `client` holds client ids."""
    known = list(frame.columns)
    given = [(key, name) for key in ("target", "features", "leave_out") for name in getattr(roles, key)]
    if roles.client is None and "client" in known and "client" not in [name for _, name in given]:
        roles = replace(roles, client="client")
    single = {"client": roles.client, "order": roles.order, "group": roles.group}
    for key, name in (*given, *((k, n) for k, n in single.items() if n is not None)):
        if name not in known:
            raise FlocoError(f"data.{key}: {where} has no column {name!r}{nearest(name, known)}")
    used = (*roles.target, *roles.features, *single.values())
    if both := [name for name in roles.leave_out if name in used]:
        raise FlocoError(f"data.leave_out must not hold {both[0]!r}, which has another role: name it in one of them")
    if both := [f for f in roles.features if f in roles.target]:
        raise FlocoError(f"data.features must not hold the target {both[0]!r}")
    if roles.client in roles.target or roles.order in roles.target or roles.client in roles.features:
        raise FlocoError("data.target, data.client and data.features must be different columns, and so must data.order")
    for key, special in (("order", roles.order), ("group", roles.group)):
        if str(special).partition(".")[0] in ("x", "x_train", "x_test", "y", "y_train", "y_test", "names"):
            raise FlocoError(
                f"data.{key}: {where} has a column called {special!r}, as arrays of samples are: rename it"
            )
        if special == "client" != roles.client and roles.client is not None:
            raise FlocoError(f"data.{key} cannot be the column 'client' while data.client is another one: rename it")
    return roles


def find_column(frame: Any, values: Any) -> str | None:
    """Return the name of the column that has these values (N,), if there is one."""
    given = array(values, "values").astype(object)
    if given.shape != (len(frame),):
        return None
    for i, name in enumerate(frame.columns):
        column = frame.iloc[:, i].astype(object)
        if all(to_text(v) == to_text(t) for v, t in zip(column, given, strict=True)):
            return str(name).strip()
    return None


def without_given(arrays: dict[str, Any], roles: Roles, where: str) -> dict[str, Any]:
    """Return arrays whose tables of samples lack the columns that are given beside them as target, client or order."""
    given = {"target": arrays.get("y_train", arrays.get("y")), "client": arrays.get("client")}
    given |= {"order": arrays.get(roles.order or "")}
    if not is_table(x := arrays.get("x_train", arrays.get("x"))):
        return arrays
    same = {find_column(x, values): what for what, values in given.items() if values is not None}
    lost = {name: what for name, what in same.items() if name and name not in (*roles.features, *roles.leave_out)}
    for name, what in lost.items():
        say_same(where, what, name)
    tables = {n: t for n, t in arrays.items() if n in ("x", "x_train", "x_test") and is_table(t)}
    return arrays | {n: t.loc[:, [str(c).strip() not in lost for c in t.columns]] for n, t in tables.items() if lost}


def say_same(where: str, what: str, name: str) -> None:
    """Warn that a column is no feature, as its values are given beside the table."""
    warn(f"{where}: the {what} given beside the table is its column {name!r}, which is no feature")


def name_of(values: Any, frame: Any, key: str) -> Any:
    """Return the name of the column that a Series is; what is none, as it is.

    Raises:
        FlocoError: a Series that is no column of the table.
    """
    if not hasattr(values, "iloc"):
        return values
    if (name := find_column(frame, values) if is_table(frame) else None) is None:
        raise FlocoError(f"{key} must be the name of a column, got a Series that is no column of a table")
    return name


def read_targets(frame: pd.DataFrame, roles: Roles, where: str, *, labelled: bool = True) -> np.ndarray:
    """Return the target columns, (N,), or (N, L) of several: labels as they are, or numbers."""
    if absent := [t for t in roles.target if t not in frame]:
        raise FlocoError(f"{where} has no target {absent[0]!r}{nearest(absent[0], list(frame.columns))}")
    columns = []
    for name in roles.target:
        where_ = f"{where}: target {name!r}"
        if missing := int(sum(is_missing(v) for v in frame[name].astype(object))):
            raise FlocoError(f"{where_}: {missing} of {len(frame)} are missing; leave these rows out")
        found = plain_column(frame[name])
        if found.dtype.kind == "U":
            check_words(found, where_)
        if (not labelled or len(roles.target) > 1) and found.dtype.kind in "UO":
            found = _numeric(found, where_)
        columns.append(found)
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)


def _numeric(values: np.ndarray, where: str) -> np.ndarray:
    texts = [str(v) for v in values.tolist()]
    if (found := numbers(texts)) is not None:
        return found
    if {t.lower() for t in texts} <= {"true", "false"}:
        return np.array([t.lower() == "true" for t in texts])
    bad = sorted({t for t in texts if numbers([t]) is None})
    shown = ", ".join(map(repr, bad[:5]))
    raise FlocoError(f"{where} must hold numbers, got {shown}; words are labels of task.name = classification")


def plain_column(column: pd.Series[Any], *, ids: bool = False) -> np.ndarray:
    """Return labels or ids: whole numbers in canonical form as int64, others as they are.

    Among words, a whole number written as 1.0 is the text 1, as where all are numbers.
    """
    if column.dtype.kind in "iu" and not column.isna().any():
        return column.to_numpy(np.uint64 if column.dtype.kind == "u" and column.max() > 2**63 - 1 else np.int64)
    if column.dtype.kind == "f" and not column.isna().any():
        return column.to_numpy(np.float32 if column.dtype == np.float32 and ids else np.float64)
    values = np.asarray(column.astype(object))
    if all(isinstance(v, str) for v in values):
        return _from_texts(np.asarray(values, dtype=str))
    if all(isinstance(v, float | int | Decimal) and not isinstance(v, bool) for v in values):
        return values if all(isinstance(v, int) for v in values) else values.astype(np.float64)
    return values


def _from_texts(texts: np.ndarray) -> np.ndarray:
    """Return texts as int64 if all are whole numbers in canonical form, as float64 if all are numbers."""
    try:
        whole = texts.astype(np.int64)
        if (whole.astype(str) == texts).all():
            return whole
    except (ValueError, OverflowError):
        pass
    found = numbers(texts.tolist())
    exact = found is not None and np.abs(found).max(initial=0) < EXACT  # ids are not rounded
    if found is not None and exact:
        return found
    return np.array([m[1] if (m := _POINT.fullmatch(t)) else t for t in texts.tolist()])


def times(column: pd.Series[Any], where: str) -> np.ndarray:
    """Return the column of `data.order`, which must be of one type; dates with a time zone in UTC."""
    if getattr(column.dtype, "tz", None) is not None:
        column = column.dt.tz_convert(None)
    if column.dtype.kind in "iuf" and not column.isna().any():
        return plain_column(column)
    if len(kinds := {kind_of(v) for v in column.astype(object) if not is_missing(v)}) > 1:
        raise FlocoError(f"{where} must hold numbers or dates, and holds {' and '.join(sorted(kinds))}")
    return np.asarray(column if column.dtype.kind in "Mb" else column.astype(object))
