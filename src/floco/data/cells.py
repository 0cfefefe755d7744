"""The cells of one column of a table: numbers or categories, and which are missing. What is neither is refused."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from floco.core.errors import FlocoError, some
from floco.tasks.labels import MISSING, with_blanks

if TYPE_CHECKING:
    import pandas as pd

_NUMBER = re.compile(r"[+-]?(?!0\d)(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_LIKE_NUMBER = re.compile(r"[-+−$€£]*\s*\d[\d\s.,'’_]*(?:[eE][+-]?\d+)?\s*[%$€£]?")
_DAY = r"\d{4}[-/]\d{1,2}[-/]\d{1,2}|\d{1,2}[./-]\d{1,2}[./-](?:\d{4}|\d{2})"
_DATE = re.compile(rf"(?:{_DAY})(?:[T\s].*)?|\d{{1,2}}:\d\d(?::\d\d.*)?")
_UNKNOWN = MISSING | {"?", "-"}
"""Texts of which it is not known, among other texts, whether they mean that a value is missing."""
_MOST = 100  # categories of a column
_ROWS = 20  # rows from which on nearly one category a row is a name
EXACT = 2**53  # larger whole numbers are rounded in float64


class Cells(NamedTuple):
    """The values of one column."""

    values: np.ndarray
    """(N,) float64 with NaN for missing ones, or text with "" for missing ones."""

    @property
    def text(self) -> bool:
        """Whether they are categories."""
        return self.values.dtype.kind == "U"

    @property
    def missing(self) -> np.ndarray:
        """Which are missing, (N,) bool."""
        found: np.ndarray = self.values == "" if self.text else np.isnan(self.values)
        return found


def read_cells(column: pd.Series[Any], where: str, *, declared: bool = False) -> Cells:
    """Return the cells of a feature: numbers, or text for text, booleans and categorical columns.

    Args:
        column: one column of a table.
        where: its name, for error messages.
        declared: whether the user says that it holds categories, whatever it looks like.

    Raises:
        FlocoError: dates, nested values, text that is nearly numbers, or values of which it is not clear whether they
            are missing; the message names them.
    """
    import pandas as pd

    types, dtype = pd.api.types, column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _check_number(_categories(*_distinct(column.astype(object).tolist()), where), where)
    if types.is_datetime64_any_dtype(dtype) or dtype.kind in "mM" or isinstance(dtype, pd.PeriodDtype):
        raise _dates(where, column.iloc[0])
    if types.is_bool_dtype(dtype) or declared or not types.is_numeric_dtype(dtype):
        return _read_objects(column.astype(object).tolist(), where, declared)
    if dtype.kind == "c":
        raise FlocoError(f"{where} must hold real numbers, got {dtype}")
    values = column.to_numpy(np.float64, na_value=np.nan)
    if dtype.kind in "iu":
        _check_exact(values, where)
    return Cells(values)


def is_missing(value: Any) -> bool:
    """Return whether a cell holds no value: None, NaN, NA, NaT or empty text."""
    if isinstance(value, str):
        return not value or value.isspace()
    if value is None or isinstance(value, float):
        return value is None or value != value
    if isinstance(value, int):
        return False
    import pandas as pd

    return np.ndim(value) == 0 and bool(pd.isna(value))


def numbers(texts: Sequence[str]) -> np.ndarray | None:
    """Return texts (N,) as float64, or None if one of them is no number."""
    plain = [t.strip() for t in texts]
    if not all(_NUMBER.fullmatch(t) for t in set(plain)):
        return None
    return np.asarray(plain, dtype=str).astype(np.float64) if plain else np.empty(0)


def check_words(texts: np.ndarray, where: str) -> None:
    """Raise if labels, as text (N,), are all dates, or numbers in another form than 1234.5."""
    found = set(texts.tolist())
    if all(_DATE.fullmatch(t) for t in found):
        raise FlocoError(f"{where} must hold labels or numbers, got dates or times such as {min(found)!r}")
    if all(_LIKE_NUMBER.fullmatch(t) for t in found) and not all(t.isdigit() for t in found):
        shown = ", ".join(map(repr, sorted(found)[:5]))
        raise FlocoError(f"{where} must hold labels, or numbers written as 1234.5, got {shown}")


def _read_objects(values: Sequence[Any], where: str, declared: bool) -> Cells:
    if declared:
        return _categories(*_distinct(values), where)
    if set(map(type, values)) == {str}:  # by far the largest columns are those of CSV files
        return _read_texts(*_distinct(values), where)
    known = [v for v in values if not is_missing(v)]
    kinds = {kind_of(v) for v in known}
    if len(kinds) > 1:
        shown = " and ".join(sorted(kinds))
        raise FlocoError(f"{where} holds {shown}: it must be all numbers or all text")
    kind = next(iter(kinds), "number")
    if kind == "date":
        raise _dates(where, known[0])
    if kind == "number":
        made = np.array([np.nan if is_missing(v) else float(v) for v in values], dtype=np.float64)
        if any(isinstance(v, int | np.integer) for v in known):
            _check_exact(made, where)
        return Cells(made)
    if kind not in ("text", "true and false"):
        raise FlocoError(f"{where}: a cell must hold one number or text, got {kind}: name it in data.leave_out")
    distinct = _distinct(values)
    return _read_texts(*distinct, where) if kind == "text" else _categories(*distinct, where)


def kind_of(value: Any) -> str:
    """Return what a cell holds: text, number, date, true and false, or the name of another type."""
    if isinstance(value, bool | np.bool_):
        return "true and false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float | np.integer | np.floating | Decimal):
        return "number"
    dates = datetime.date | datetime.time | datetime.timedelta | np.datetime64 | np.timedelta64
    return "date" if isinstance(value, dates) else type(value).__name__


def _distinct(values: Sequence[Any]) -> tuple[list[str], np.ndarray]:
    """Return the different values as texts, "" for missing ones, and for each value its number among them, (N,)."""
    import pandas as pd

    texts = values if set(map(type, values)) == {str} else ["" if is_missing(v) else to_text(v) for v in values]
    which, found = pd.factorize(np.array(texts, dtype=object))
    return found.tolist(), which


def _read_texts(given: list[str], which: np.ndarray, where: str) -> Cells:
    """Return distinct texts and their numbers as numbers, if all are some or mark a missing one, else as categories."""
    texts = [t.strip() for t in given]
    real = set(texts) - MISSING - {""}
    if real and all(_DATE.fullmatch(t) for t in real):
        raise _dates(where, min(real))
    plain = {t for t in real if _NUMBER.fullmatch(t)}
    if plain == real:
        made = np.array([float(t) if t in plain else np.nan for t in texts])[which]
        if whole := [v for t in plain if t.lstrip("+-").isdigit() and np.isfinite(v := float(t))]:
            _check_exact(np.array(whole), where)
        return Cells(made)
    alike = [t for t in real if _LIKE_NUMBER.fullmatch(t)]
    if plain or 2 * len(alike) >= len(real) > 0:
        raise FlocoError(
            f"{where} holds numbers, and values that are none: {some(map(repr, sorted(real - plain)), 5)}; write "
            "numbers as 1234.5 and leave cells without a value empty, or name all in data.levels if they are categories"
        )
    if marks := sorted(set(texts) & _UNKNOWN):
        raise FlocoError(
            f"{where} holds {', '.join(map(repr, marks))}, which may stand for a missing value or be a category: leave "
            f"the cells empty, or name all categories in data.levels, {marks[0]} among them"
        )
    return _check_number(_categories(given, which, where), where)


def _check_number(cells: Cells, where: str) -> Cells:
    """Return categories, which must be fewer than rows."""
    known = cells.values[~cells.missing]
    different = len(np.unique(known))
    if different > _MOST or (len(known) >= _ROWS and different > 0.9 * len(known)):
        raise FlocoError(
            f"{where} holds {different} different texts in {len(known)} rows, too many for categories (at most "
            f"{_MOST}, and fewer than rows): name it in data.leave_out"
        )
    return cells


def _categories(given: list[str], which: np.ndarray, where: str) -> Cells:
    """Return distinct texts and their numbers as texts (N,) without blanks around them, "" for missing ones."""
    texts = [t.strip() for t in given]
    if (twice := with_blanks(np.asarray([g for g, t in zip(given, texts, strict=True) if t], dtype=str))) is not None:
        raise FlocoError(f"{where}: {twice!r} occurs with and without blanks around it: is that one category?")
    if (lower := {t.lower() for t in texts} - {""}) and lower <= {"true", "false"}:
        texts = [t.lower() for t in texts]
    return Cells(np.asarray(texts, dtype=str)[which])


def to_text(value: Any) -> str:
    """Return a cell as text: whole numbers without a point."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _check_exact(values: np.ndarray, where: str) -> None:
    if (most := np.nanmax(np.abs(values), initial=0.0)) > EXACT:
        raise FlocoError(
            f"{where} holds whole numbers up to {most:.0f}, beyond 2**53, which are rounded: if they are ids, name "
            "the column in data.leave_out"
        )


def _dates(where: str, value: Any) -> FlocoError:
    return FlocoError(
        f"{where} holds dates or times such as {str(value)!r}, no numbers: name it in data.leave_out, or in "
        "data.order if the latest samples are to be the test part, or write the days since a fixed date"
    )
