"""How rows of a table become samples, also of later tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from floco.core.errors import FlocoError, warn
from floco.data.cells import Cells, is_missing, read_cells
from floco.data.table_roles import Roles, checked_frame, read_targets

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = "numbers"
"""Name of the input with the features that are numbers, beside ids."""


@dataclass(frozen=True)
class Columns:
    """How rows of a table become samples; every later table must have the same feature columns, in any order."""

    roles: Roles
    features: tuple[str, ...]
    """The feature columns, in the order of the source."""
    levels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Categories of each feature that has some, sorted."""
    labelled: bool = True
    """Whether targets are labels, not numbers."""

    def __post_init__(self) -> None:
        """Put the levels into the order of the features, which JSON files do not keep."""
        object.__setattr__(self, "levels", {f: self.levels[f] for f in self.features if f in self.levels})

    @property
    def plain(self) -> tuple[str, ...]:
        """The features that are numbers."""
        return tuple(f for f in self.features if f not in self.levels)

    @property
    def pairs(self) -> tuple[str, ...]:
        """Each category as `COLUMN=CATEGORY`, as `data.levels` has them."""
        return tuple(f"{name}={level}" for name, levels in self.levels.items() for level in levels)

    def channels(self, name: str) -> dict[str, Any]:
        """Return what a `Form` says of an input: `features`, numbers first, and the number of `flags`, or nothing."""
        if name not in ("", NUMBERS):
            return {}
        flags = self.pairs if self.roles.categories == "one-hot" else ()
        return {"features": (*self.plain, *flags), "flags": len(flags)}

    def encode(self, frame: pd.DataFrame, where: str) -> Any:
        """Return samples (N, C) float64, or with `categories = "ids"` a dict of numbers (N, F) and ids (N,) int64.

        Columns are found by name. With `missing = "mean"`, missing numbers are NaN and missing categories all zeros.

        Raises:
            FlocoError: a missing column, or a missing value without a rule for it.
        """
        frame = checked_frame(frame, where)
        roles = self.roles
        known = {*self.features, *roles.target, roles.client, roles.order, roles.group, *roles.leave_out}
        if absent := [f for f in self.features if f not in frame]:
            given = ", ".join(map(str, frame.columns))
            raise FlocoError(f"{where} must have the columns {', '.join(absent)}, as the training data; got {given}")
        if further := [c for c in frame.columns if c not in known]:
            warn(f"{where}: columns that the model does not use are left out: {', '.join(further[:8])}")
        cells = {f: self._cells(frame[f], f, where) for f in self.features}
        check_missing(cells, "mean" if self.roles.missing == "mean" else "later", where)
        return self.arrays(cells, where)

    def _cells(self, column: pd.Series[Any], name: str, where: str) -> Cells:
        """Return the cells of a later table's feature, of the kind that it has in the training data."""
        where = f"{where}: column {name!r}"
        if column.isna().all() and name not in self.levels:
            return Cells(np.full(len(column), np.nan))
        cells = read_cells(column, where, declared=name in self.levels)
        if cells.text and name not in self.levels and not cells.missing.all():
            raise FlocoError(
                f"{where} must hold numbers, as the training data; got {str(cells.values[~cells.missing][0])!r}: if it "
                "holds categories that are written as numbers, train with all of them in data.levels"
            )
        return cells if not cells.text or name in self.levels else Cells(np.full(len(column), np.nan))

    def arrays(self, cells: Mapping[str, Cells], where: str) -> Any:
        """Return the samples of checked cells, as `encode` does."""
        values = [cells[f].values for f in self.plain]
        if self.roles.categories == "ids":
            ids = {f: self._ids(f, cells[f], where) for f in self.levels}
            return ({NUMBERS: np.stack(values, 1)} if values else {}) | ids
        flags = [self._flags(f, cells[f], where) for f in self.levels]
        return np.concatenate([*(v[:, None] for v in values), *flags], axis=1)

    def _flags(self, name: str, cells: Cells, where: str) -> np.ndarray:
        """Return one column for each category, 1 where it is the row's; all 0 for missing and unknown ones."""
        found = cells.values[:, None] == np.asarray(self.levels[name], dtype=str)[None]
        if (strange := ~found.any(1) & ~cells.missing).any():
            shown = ", ".join(map(repr, sorted(set(cells.values[strange].tolist()))[:5]))
            warn(
                f"{where}: {int(strange.sum())} of {len(strange)} rows have a category of {name!r} that the training "
                f"data have not, which is taken as none of the known ones: {shown}"
            )
        return np.asarray(found, dtype=np.float64)

    def _ids(self, name: str, cells: Cells, where: str) -> np.ndarray:
        """Return the number of each row's category in the sorted list."""
        known = list(self.levels[name])
        found, which = np.unique(cells.values, return_inverse=True)
        if strange := [v for v in found.tolist() if v not in known]:
            shown, words = ", ".join(map(repr, strange[:5])), ", ".join(known[:8])
            raise FlocoError(
                f"{where}: column {name!r} must hold one of {words}, as the training data; got {shown}: with "
                'data.categories = "ids" there is no id for other or missing ones, "one-hot" takes them as none'
            )
        return np.asarray([known.index(v) for v in found.tolist()], dtype=np.int64)[which.reshape(-1)]

    def targets(self, frame: pd.DataFrame, where: str) -> np.ndarray | None:
        """Return the target columns of a later table as they are, or None if they are missing or empty."""
        frame = checked_frame(frame, where)
        given = [name for name in self.roles.target if name in frame]
        if all(is_missing(v) for name in given for v in frame[name].astype(object)):
            return None
        return read_targets(frame, self.roles, where, labelled=self.labelled)


def check_missing(cells: Mapping[str, Cells], rule: str, where: str) -> None:
    """Raise if values are missing that the rule does not fill."""
    counts = {name: int(c.missing.sum()) for name, c in cells.items() if c.missing.any()}
    if counts and rule != "mean":
        rows = len(next(iter(cells.values())).values)
        shown = ", ".join(f"{n} ({k})" for n, k in list(counts.items())[:8])
        remedy = {
            "error": 'set data.missing = "drop" to leave such rows out, or "mean" to fill in the training rows\' mean',
            "later": "the model has no rule for them (data.missing): leave these rows out, or fill the values in",
        }[rule]
        raise FlocoError(f"{where}: values are missing among {rows} rows, by column: {shown}; {remedy}")
