"""Labels and client ids as users have them: checked, and told apart from values that stand for a missing one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from floco.core.errors import FlocoError

_NO_TEXT = ("", "nan", "NaN", "None", "<NA>", "NaT")
"""What becomes of a missing value that is turned to text."""
_NO_LABEL = (*_NO_TEXT, "NA", "N/A", "#N/A", "null", "NULL", "?")
"""What other programs write for one."""
_EXACT = {2: 2**11, 4: 2**24, 8: 2**53}  # bytes of a float: whole numbers beyond may be rounded to their neighbours


def array(values: Any, where: str) -> np.ndarray:
    """Return values as an array.

    Raises:
        FlocoError: they have no common shape, or a masked array hides some of them.
    """
    if np.ma.isMaskedArray(values) and (hidden := int(np.ma.getmaskarray(values).sum())):
        raise FlocoError(f"{where}: {hidden} values are masked; leave these samples out, or fill the values in")
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise FlocoError(f"{where} is no array: {error}; all samples must have the same shape") from error


def plain_labels(values: Any, where: str) -> np.ndarray:
    """Return labels or ids as whole numbers, truth values or text: bytes are decoded, objects become what they hold.

    Raises:
        FlocoError: missing values, counted; bytes that are not UTF-8; objects of several kinds.
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


def _objects(y: np.ndarray, where: str) -> np.ndarray:
    from pandas import isna  # here: it takes a while to import, and few need it

    if missing := int(sum(np.ndim(v) == 0 and bool(isna(v)) for v in y.flat)):
        raise _missing(where, missing, y.size, "None, NaN or NA")
    kinds = {bytes if isinstance(v, bytes) else str if isinstance(v, str) else bool if isinstance(v, bool | np.bool_) else type(v) for v in y.flat}
    if kinds == {str}:
        return y.astype(str)
    if kinds == {bytes}:
        return plain_labels(y.astype("S"), where)
    if kinds == {bool}:
        return y.astype(bool)
    if bool not in kinds and all(issubclass(k, int | np.integer) for k in kinds):
        return y.astype(np.int64)
    names = ", ".join(sorted(k.__name__ for k in kinds))
    raise FlocoError(f"{where} must be all whole numbers or all text, got objects of {names}: 1 and '1' would be two of them, or one")


def check_labels(y: np.ndarray, where: str, known: Collection[str] = ()) -> None:
    """Raise if labels hold what stands for a missing one, unless it is among the `known` classes.

    The one negative number beside several others, 255 of uint8 beside several others with no 254 below it, and texts such as "", "nan" or "NA".
    """
    if y.dtype.kind == "U":
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
    """Return client ids (N,) as whole numbers or text; floats that are whole become whole numbers.

    Raises:
        FlocoError: missing ids, counted; fractions; floats so large that different ids have become one.
    """
    ids = plain_labels(values, where)
    if ids.dtype.kind == "f":
        if not np.isfinite(ids).all() or (ids != np.trunc(ids)).any():
            raise FlocoError(f"{where}: ids must be whole numbers or text, got fractions")
        if np.abs(ids).max(initial=0) > _EXACT.get(ids.dtype.itemsize, 2**53):
            raise FlocoError(f"{where}: ids up to {np.abs(ids).max():.0f} in {ids.dtype}, which cannot tell whole numbers of that size apart: store them as integers or text")
        ids = ids.astype(np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iubU":
        raise FlocoError(f"{where} must be whole numbers or text, one for each sample, got shape {ids.shape} of {ids.dtype}")
    if ids.dtype.kind == "U" and (empty := int(np.isin(np.char.strip(ids), _NO_TEXT).sum())):
        raise _missing(where, empty, len(ids), "empty, or text such as 'nan'")
    if ids.dtype.kind == "U":
        values = np.unique(ids)
        plain, times = np.unique(np.char.strip(values), return_counts=True)
        if (times > 1).any():
            raise FlocoError(f"{where}: {str(plain[times > 1][0])!r} is there with and without blanks around it: are these one client, or several?")
    return ids


def _missing(where: str, missing: int, total: int, what: str) -> FlocoError:
    return FlocoError(f"{where}: {missing} of {total} are missing ({what}); leave these samples out, or fill the values in")
