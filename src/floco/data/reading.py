"""From arrays, as users or sources give them, to checked samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from floco.core.errors import FlocoError, warn
from floco.core.inputs import Inputs, array, columns, count, like
from floco.core.task import Task
from floco.data.arrays import column_names, find_channels, has_holes, read_inputs, read_with_holes, writeable
from floco.data.mapped import is_mapped
from floco.data.samples import Samples
from floco.data.schema import Form, equally_long
from floco.data.tables import Columns
from floco.tasks import Classification

Arrays = Mapping[str, Any]


def read_samples(
    arrays: Arrays,
    source: str,
    *,
    kind: str = "auto",
    labels: Sequence[str] = (),
    channels: str = "auto",
    task: Task | None = None,
    table: Columns | None = None,
    order: str | None = None,
    group: str | None = None,
    missing: str = "error",
) -> Samples:
    """Return checked copies of arrays `x, y` or `x_train, y_train, x_test, y_test` (and `client`, `position`, `names`).

    The test part must have the form of the training part. For a network with several inputs, x is a tuple or a dict
    of arrays, or there are arrays `x.NAME`.

    Args:
        arrays: the arrays by name.
        source: name of the source, for error messages.
        kind: see `sources.load`.
        labels: all labels as text, in the order of the classes (empty: those that occur, sorted).
        channels: see `sources.load`.
        task: what is learned (None: classification).
        table: the columns of the table that the arrays are from; None: they are from none.
        order: the column by which samples are ordered, if any.
        group: the column by whose values metrics are also shown, if any.
        missing: what NaN in x means; see `sources.load`.

    Raises:
        FlocoError: an array is missing or does not fit; the message names it.
    """
    arrays, task = gather(arrays), task or Classification()
    suffix = "_train" if "x_train" in arrays else ""
    needed = [f"x{suffix}", f"y{suffix}", *(["x_test", "y_test"] if "x_test" in arrays or "y_test" in arrays else [])]
    for name in needed:
        if name not in arrays:
            names = "x and y, or x_train, y_train, x_test, y_test"
            raise FlocoError(f"{source} must hold {names}; {name} is missing among {', '.join(arrays)}")
    if missing == "drop" and table is None:
        arrays = _without_holes(arrays, needed, source)
    x, forms = _inputs(arrays[needed[0]], f"{source}: {needed[0]}", kind, channels, task, missing)
    forms = forms if table is None else {name: replace(form, **table.channels(name)) for name, form in forms.items()}
    meaning = task.labels(arrays[needed[1]], f"{source}: {needed[1]}", labels, arrays.get("names"))
    y = _targets(task, arrays[needed[1]], f"{source}: {needed[1]}", meaning, count(x))
    others = {n: v for n, v in arrays.items() if n not in (*needed, "names")}
    kept = _columns(others, count(x), source, needed[0], {"client", order, group})
    made = Samples(x, y, meaning, None, None, kept, forms, task, order, table, group)
    if len(needed) == 2:
        return made
    x_test = made.schema.samples(arrays["x_test"], f"{source}: x_test", far=0.5)
    try:
        y_test = _targets(task, arrays["y_test"], f"{source}: y_test", meaning, count(x_test))
    except FlocoError as error:
        more = "; labels of y_test that are not among those of the training part do not fit" if task.labelled else ""
        raise FlocoError(f"{error}{more}") from error
    return replace(made, x_test=x_test, y_test=y_test)


def gather(arrays: Arrays) -> dict[str, Any]:
    """Return arrays with those called `x.NAME` gathered in a dict `x`; lists in tuples and dicts become arrays."""
    found: dict[str, Any] = {}
    for name, value in arrays.items():
        part, dot, column = name.partition(".")
        if dot and part in ("x", "x_train", "x_test"):
            found.setdefault(part, {})[column] = value
        else:
            found[name] = value
    return found


def _without_holes(arrays: Arrays, needed: Sequence[str], source: str) -> dict[str, Any]:
    """Return arrays without the samples in which a number is missing, and without their targets and further values."""
    made = dict(arrays)
    for x, y in zip(needed[::2], needed[1::2], strict=True):
        parts = [array(c, f"{source}: {x}") for c in columns(arrays[x]).values()]
        holes = [has_holes(p) for p in parts if p.dtype.kind == "f" and p.ndim and len(p)]
        if not holes or len({len(h) for h in holes}) > 1 or not (lost := np.any(holes, axis=0)).any():
            continue
        if lost.all():
            raise FlocoError(f'{source}: every sample of {x} lacks a value, and data.missing = "drop" drops them all')
        warn(f"{source}: {int(lost.sum())} of {len(lost)} samples of {x} are left out, as values are missing")
        made[x] = like(arrays[x], {n: _kept(c, lost, x) for n, c in columns(arrays[x]).items()})
        others = [n for n in arrays if n not in (*needed, "names")] if x == needed[0] else []
        for name in (y, *others):
            if np.ndim(arrays[name]) and len(arrays[name]) == len(lost):
                made[name] = _kept(arrays[name], lost, f"{source}: {name}")
    return made


def _kept(values: Any, lost: np.ndarray, where: str) -> Any:
    """Return the values of samples that are not lost: a table with the names of its columns, others as an array."""
    return values[~lost] if hasattr(values, "iloc") else array(values, where)[~lost]


def _inputs(
    given: Any, where: str, kind: str, channels: str, task: Task, missing: str
) -> tuple[Inputs, dict[str, Form]]:
    """Return inputs, channels first, and their forms in the source by column."""
    made: dict[str, torch.Tensor] = {}
    forms: dict[str, Form] = {}
    several = isinstance(given, dict | tuple)
    for name, values in columns(given).items():
        column = f"{where} {name}".strip()
        raw = array(values, column)
        whole = raw.dtype.kind in "iu"
        if kind == "ids" and not whole and not several:
            raise FlocoError(f"{column} must be whole numbers, as data.kind is ids, got {raw.dtype}")
        if whole and (kind == "ids" or (kind == "auto" and (task.ids or (several and raw.dtype != np.uint8)))):
            made[name], forms[name] = _ids(raw), Form()
            continue
        position = find_channels(raw, kind, channels, column)
        made[name], offset = (read_with_holes if missing == "mean" else read_inputs)(raw, column, position)
        forms[name] = Form(position, offset, column_names(values), missing=missing)
    if not made:
        raise FlocoError(f"{where} must have one column at least")
    return equally_long(like(given if several else raw, made), where), forms


def _ids(x: np.ndarray) -> torch.Tensor:
    """Return whole numbers as int64, copied unless they are memory-mapped."""
    return writeable(x.astype(np.int64, copy=not (is_mapped(x) and x.dtype == np.int64)))


def _targets(task: Task, given: Any, where: str, meaning: Any, samples: int) -> np.ndarray:
    found = task.targets(given, where, meaning).numpy()
    if len(found) != samples:
        raise FlocoError(f"{where} must be {samples} {task.kind}, one for each sample, got {len(found)}")
    return found


def _columns(arrays: Arrays, samples: int, source: str, x: str, needed: set[str | None]) -> dict[str, np.ndarray]:
    """Return copies of the other columns (N,); arrays of other shapes are no columns, unless they are needed."""
    for name, column in arrays.items():
        if name in needed and np.shape(column) != (samples,):
            raise FlocoError(
                f"{source}: the column {name} must have one value for each of the {samples} samples of {x}, "
                f"got shape {np.shape(column)}"
            )
    return {n: array(v, f"{source}: {n}").copy() for n, v in arrays.items() if np.shape(v) == (samples,)}
