"""Checks of labels and client ids in the types that users have them in, and of missing values among them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from floco.core.errors import FlocoError, warn
from floco.core.inputs import array

_NO_TEXT = ("", "nan", "NaN", "None", "<NA>", "NaT")
"""Texts that missing values turn into when converted to strings."""
MISSING = frozenset({*_NO_TEXT[1:], "NA", "N/A", "n/a", "#N/A", "null", "NULL"})
"""Texts by which programs mark a missing value."""
_NO_LABEL = (*_NO_TEXT[:1], *sorted(MISSING), "?")
_FLOATS = 20  # different whole floats from which on they are taken for amounts
_WHOLE = 100  # different integers from which on it is asked whether they are amounts
_EXACT = {2: 2**11, 4: 2**24, 8: 2**53}  # by bytes of a float: larger whole numbers may be rounded


def plain_labels(values: Any, where: str) -> np.ndarray:
    """Return labels or ids as integers, booleans or text: bytes are decoded, objects converted to the type they hold.

    Raises:
        FlocoError: missing values (with their number), bytes that are not UTF-8, or objects of several types.
    """
    y = array(values, where)
    if y.dtype.kind == "S":
        try:
            return np.char.decode(y, "utf-8")
        except UnicodeDecodeError as error:
            raise FlocoError(f"{where} holds bytes that are not UTF-8 ({error}): decode them first") from error
    if y.dtype == object:
        return _objects(y, where)
    if y.dtype.kind == "f" and (missing := int(np.isnan(y).sum())):
        raise _missing(where, missing, y.size, "NaN")
    return y


def whole_numbers(y: np.ndarray) -> np.ndarray:
    """Return floats that are all whole, and that their type tells apart, as int64; other values as they are."""
    if y.dtype.kind != "f" or not np.isfinite(y).all() or (y != np.trunc(y)).any():
        return y
    return y.astype(np.int64) if np.abs(y).max(initial=0) <= _EXACT.get(y.dtype.itemsize, 2**53) else y


def _objects(y: np.ndarray, where: str) -> np.ndarray:
    from pandas import isna  # on use: slow to import, and rarely needed

    if missing := int(sum(np.ndim(v) == 0 and bool(isna(v)) for v in y.flat)):
        raise _missing(where, missing, y.size, "None, NaN or NA")
    groups = ((bytes, bytes), (str, str), (bool, bool | np.bool_))
    kinds = {next((kind for kind, of in groups if isinstance(v, of)), type(v)) for v in y.flat}
    if kinds == {str}:
        return y.astype(str)
    if kinds == {bytes}:
        return plain_labels(y.astype("S"), where)
    if kinds == {bool}:
        return y.astype(bool)
    if bool not in kinds and all(issubclass(k, int | np.integer) for k in kinds):
        return y.astype(np.int64)
    names = ", ".join(sorted(k.__name__ for k in kinds))
    raise FlocoError(f"{where} must be all whole numbers or all text, got objects of {names}: are 1 and '1' the same?")


def with_blanks(texts: np.ndarray) -> str | None:
    """Return a text that occurs both with and without blanks around it, if there is one."""
    plain, times = np.unique(np.char.strip(np.unique(texts)), return_counts=True)
    return str(plain[times > 1][0]) if (times > 1).any() else None


def check_labels(y: np.ndarray, where: str, known: Collection[str] = ()) -> None:
    """Raise if labels contain a marker of missing values that is not among the `known` classes.

    Markers are a single negative number beside several other labels, the uint8 255 beside several others that do not
    include 254, and texts such as "", "nan" or "NA".
    """
    if y.dtype.kind == "U":
        if (twice := with_blanks(y)) is not None and not set(np.unique(y).tolist()) <= set(known):
            raise FlocoError(
                f"{where}: the label {twice!r} occurs with and without blanks around it: is that "
                "one class? Take the blanks away, or name all classes in data.labels (labels=...)"
            )
        marks = [t for t in _NO_LABEL if t not in known and (np.char.strip(y) == t).any()]
        found = np.isin(np.char.strip(y), marks)
    else:
        values = np.unique(y)
        negative = [int(v) for v in values[values < 0]] if y.dtype.kind == "i" else []
        suspects = negative if len(negative) == 1 and len(values) > 2 else []
        suspects += [255] if y.dtype == np.uint8 and 255 in values and 254 not in values and len(values) > 2 else []
        marks = [str(v) for v in suspects if str(v) not in known]
        found = np.isin(y, [int(m) for m in marks])
    if marks:
        shown = ", ".join(repr(m) for m in marks) if y.dtype.kind == "U" else ", ".join(marks)
        raise FlocoError(
            f"{where}: {int(found.sum())} of {len(y)} labels are {shown}, which commonly stands for a missing one; "
            "leave these samples out, or name all classes in data.labels (labels=...)"
        )


def client_ids(values: Any, where: str) -> np.ndarray:
    """Return client ids (N,) as integers or text; floats with whole values become integers.

    Raises:
        FlocoError: missing ids (with their number), fractions, or floats so large that ids may have been rounded.
    """
    ids = plain_labels(values, where)
    if ids.dtype.kind == "f":
        if not np.isfinite(ids).all() or (ids != np.trunc(ids)).any():
            raise FlocoError(f"{where}: ids must be whole numbers or text, got fractions")
        if np.abs(ids).max(initial=0) > _EXACT.get(ids.dtype.itemsize, 2**53):
            raise FlocoError(
                f"{where}: ids up to {np.abs(ids).max():.0f} in {ids.dtype}, which cannot tell whole numbers of that "
                "size apart: store them as integers or text"
            )
        ids = ids.astype(np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iubU":
        raise FlocoError(
            f"{where} must be whole numbers or text, one for each sample, got shape {ids.shape} of {ids.dtype}"
        )
    if ids.dtype.kind == "U":
        if empty := int(np.isin(np.char.strip(ids), _NO_TEXT).sum()):
            raise _missing(where, empty, len(ids), "empty, or text such as 'nan'")
        if (twice := with_blanks(ids)) is not None:
            raise FlocoError(f"{where}: {twice!r} occurs with and without blanks around it: is that one client?")
    return ids


def _missing(where: str, missing: int, total: int, what: str) -> FlocoError:
    remedy = "leave these samples out, or fill the values in"
    return FlocoError(f"{where}: {missing} of {total} are missing ({what}); {remedy}")


def doubt_amounts(dtype: np.dtype[Any], different: int, where: str) -> None:
    """Question whole numbers that are many for classes: floats are refused."""
    text = f"{where} holds {different} different whole numbers, each of which is a class of its own"
    remedy = "if they are amounts, set task.name = regression"
    if dtype.kind == "f" and different > _FLOATS:
        raise FlocoError(f"{text}; {remedy}; if they are classes, write them as integers, without a point")
    if different > _WHOLE:
        warn(f"{text}; {remedy}")


def read_labels(values: Any, where: str) -> np.ndarray:
    """Return labels (N,) as whole numbers or text."""
    y = whole_numbers(plain_labels(values, where))
    if y.ndim != 1 or y.dtype.kind not in "iubU":
        remedy = ""
        if y.dtype.kind == "f" and y.ndim == 1:
            remedy = "; if they are amounts, set task.name = regression"
        elif y.ndim == 2 and y.shape[1] == 1:
            remedy = "; take its one column, y[:, 0]"
        elif y.ndim > 1:
            remedy = "; another task.name may be meant: regression, multilabel, segmentation or tokens"
        raise FlocoError(
            f"{where} must be whole numbers or strings, one for each sample, got shape {y.shape} of {y.dtype}{remedy}"
        )
    return y
