"""From a table to arrays: which columns are features, what they hold, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from floco.core.errors import FlocoError, nearest, warn
from floco.core.inputs import array
from floco.core.task import Task
from floco.data.arrays import check_index
from floco.data.cells import Cells, read_cells, to_text
from floco.data.given import as_arrays, dataset_frame
from floco.data.table_roles import (
    Roles,
    checked_frame,
    find_column,
    is_table,
    plain_column,
    read_targets,
    resolve,
    say_same,
    times,
    without_given,
)
from floco.data.tables import NUMBERS, Columns, check_missing
from floco.tasks.labels import client_ids

if TYPE_CHECKING:
    import pandas as pd


def read_table(frame: Any, roles: Roles, where: str, *, labelled: bool) -> tuple[dict[str, Any], Columns]:
    """Return the arrays of a table, `x` and, by role, `y`, `client` and the column of `order`, and its columns.

    Args:
        frame: a DataFrame.
        roles: what its columns are; without `target`, there is no `y`.
        where: name of the source, for error messages.
        labelled: whether targets are class numbers, which must not be fractions.

    Raises:
        FlocoError: columns that do not exist or hold what they cannot, with their names.
    """
    frame = checked_frame(frame, where)
    roles = resolve(roles, frame, where)
    features = _features(roles, frame, where)
    declared = _declared(roles, features)
    cells = {f: read_cells(frame[f], f"{where}: column {f!r}", declared=f in declared) for f in features}
    if empty := [f for f, c in cells.items() if c.missing.all()]:
        raise FlocoError(f"{where}: no row has a value in the columns {', '.join(empty)}: name them in data.leave_out")
    frame, cells = _complete(frame, cells, roles, where)
    levels = {f: declared.get(f) or _levels(c) for f, c in cells.items() if c.text}
    made = Columns(roles, features, levels, labelled)
    _check(made, cells, where)
    arrays: dict[str, Any] = {"x": made.arrays(cells, where)}
    if roles.target:
        arrays["y"] = read_targets(frame, roles, where, labelled=labelled)
        if len(roles.target) > 1:
            arrays["names"] = np.asarray(roles.target)
        _check_leak(frame, roles, features, where)
    if roles.order is not None:
        arrays[roles.order] = times(frame[roles.order], f"data.order: column {roles.order!r}")
    if roles.group is not None and roles.group != roles.order:
        arrays[roles.group] = np.asarray(frame[roles.group].astype(object))
    if roles.client is not None:
        arrays["client"] = client_ids(plain_column(frame[roles.client], ids=True), f"{where}: column {roles.client!r}")
    return arrays, made


def _features(roles: Roles, frame: pd.DataFrame, where: str) -> tuple[str, ...]:
    roled = {*roles.target, roles.client, roles.order, roles.group, *roles.leave_out}
    chosen = roles.features or tuple(c for c in frame.columns if c not in roled)
    if not chosen:
        raise FlocoError(f"{where} must have one feature at least beside {', '.join(sorted(filter(None, roled)))}")
    if unnamed := [c for c in chosen if not c or c.startswith(("Unnamed: ", "__index_level_"))]:
        raise FlocoError(
            f"{where}: a column without a name is probably the number of the row, as pandas writes it "
            f"({unnamed[0]!r}): write the table with index=False, or name it in data.leave_out"
        )
    if len(set(chosen)) < len(chosen):
        raise FlocoError(f"data.features must name each column once, got {', '.join(chosen)}")
    return chosen


def _declared(roles: Roles, features: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the categories that the user declared, by column."""
    found: dict[str, tuple[str, ...]] = {}
    for pair in roles.levels:
        name, equals, level = pair.partition("=")
        if not equals or not level.strip():
            raise FlocoError(f"data.levels must be categories such as sex=f, got {pair!r}")
        if name not in features:
            raise FlocoError(f"data.levels: there is no feature {name!r}{nearest(name, features)}")
        found[name] = (*found.get(name, ()), level)
    return {name: tuple(dict.fromkeys(levels)) for name, levels in found.items()}


def _levels(cells: Cells) -> tuple[str, ...]:
    return tuple(np.unique(cells.values[~cells.missing]).tolist())


def _complete(
    frame: pd.DataFrame, cells: dict[str, Cells], roles: Roles, where: str
) -> tuple[pd.DataFrame, dict[str, Cells]]:
    """Return table and cells, by the rule for missing values: `drop` leaves their rows out."""
    if roles.missing != "drop":
        check_missing(cells, roles.missing, where)
        return frame, cells
    holes = np.any([c.missing for c in cells.values()], axis=0)
    if not holes.any():
        return frame, cells
    if holes.all():
        raise FlocoError(f'{where}: every row lacks a value, and data.missing = "drop" leaves them all out')
    warn(f"{where}: {int(holes.sum())} of {len(holes)} rows are left out, as values are missing")
    kept = {name: Cells(c.values[~holes]) for name, c in cells.items()}
    return frame[~holes].reset_index(drop=True), kept


def _check(made: Columns, cells: Mapping[str, Cells], where: str) -> None:
    """Raise if categories are not those declared, or cannot be inputs of their own."""
    for name, levels in made.levels.items():
        if strange := sorted(set(_levels(cells[name])) - set(levels)):
            shown = ", ".join(map(repr, strange[:5]))
            raise FlocoError(f"{where}: column {name!r} holds {shown}, which data.levels does not name")
        odd = not name.isidentifier() or name == NUMBERS
        if made.roles.categories == "ids" and odd:
            raise FlocoError(f'data.categories = "ids": {name!r} cannot be an argument of forward(...): rename it')


def _check_leak(frame: pd.DataFrame, roles: Roles, features: Sequence[str], where: str) -> None:
    """Refuse a feature that equals the target; warn if the user named it."""
    for name in roles.target:
        goal = [to_text(v) for v in frame[name].astype(object)]
        for feature in features if len(set(goal)) > 1 else ():
            values = frame[feature].astype(object)
            if all(to_text(v) == g for v, g in zip(values, goal, strict=True)):
                text = f"{where}: the feature {feature!r} equals the target {name!r} in every row"
                if not roles.features:
                    raise FlocoError(f"{text}: name it in data.leave_out")
                warn(text)


def tabulate(
    data: Any, roles: Roles, client: Any, where: str, task: Task | None
) -> tuple[dict[str, Any], Columns | None]:
    """Return the arrays of what a source holds, and the columns of a table.

    Args:
        data: arrays, a table, a pair, or a data set.
        roles: what the columns of a table are.
        client: name of the column of client ids, the ids themselves, or None.
        where: name of the source, for error messages.
        task: what is learned (None: classification).
    """
    named = replace(roles, client=client) if isinstance(client, str) else roles
    ids = None if client is None or isinstance(client, str) else client
    frame = data if is_table(data) else None
    if roles.target and hasattr(data, "features") and hasattr(data, "to_pandas"):
        frame = dataset_frame(data, where)
    if frame is not None:
        if not roles.target:
            known = ", ".join(map(str, frame.columns))
            raise FlocoError(f"{where} is a table: name the column of its targets in data.target; it has {known}")
        if ids is not None:
            check_index(frame, ids, "client")
            same = find_column(frame, ids)
            if same is None or same in (*roles.features, *roles.target, *roles.leave_out):
                frame = _with_ids(frame, ids, where)
            else:
                say_same(where, "client", same)
                named = replace(roles, client=same)
        return read_table(frame, named, where, labelled=task is None or task.labelled)
    arrays: dict[str, Any] = dict(as_arrays(data))
    if ids is not None:
        arrays["client"] = ids
    elif client is not None and client not in arrays and not is_table(_x(arrays)):
        raise FlocoError(f"data.client: {where} has no array {client!r}{nearest(client, arrays)}")
    elif client is not None and client in arrays:
        arrays["client"], named = arrays[client], roles
    return _tabulate_x(without_given(arrays, named, where), named, where)


def _x(arrays: Mapping[str, Any]) -> Any:
    return arrays.get("x_train", arrays.get("x"))


def _tabulate_x(arrays: dict[str, Any], roles: Roles, where: str) -> tuple[dict[str, Any], Columns | None]:
    """Return arrays whose `x` is a table with such as the network takes, if it is more than plain numbers."""
    x, x_name = _x(arrays), "x_train" if "x_train" in arrays else "x"
    chosen = roles.named or (
        is_table(x) and (roles.client is not None or roles.order in x or roles.group in x or "client" in x)
    )
    if not is_table(x) or not (is_text_table(x) or chosen):
        if roles.named:
            raise FlocoError(
                "data.target, features, leave_out, levels and categories are about the columns of a table, "
                f"and {where} is none"
            )
        return arrays, None
    if roles.target or roles.missing == "drop":
        raise FlocoError(f'{where}: data.target and data.missing = "drop" need targets that are a column of the table')
    within = replace(roles, order=None) if roles.order in arrays else roles
    made, table = read_table(x, within, f"{where}: {x_name}", labelled=True)
    if twice := [n for n in made if n != "x" and n in arrays]:
        raise FlocoError(f"{where}: {x_name} has a column {twice[0]} already: leave out one of the two")
    if "x_test" in arrays:
        if not is_table(arrays["x_test"]):
            raise FlocoError(f"{where}: x_test must be a table, as x_train, got {type(arrays['x_test']).__name__}")
        made["x_test"] = table.encode(arrays["x_test"], f"{where}: x_test")
    return {**arrays, **made, x_name: made["x"]}, table


def _with_ids(frame: pd.DataFrame, ids: Any, where: str) -> pd.DataFrame:
    """Return a table with client ids as a column."""
    if "client" in frame:
        raise FlocoError(f"{where} has a column client already: give its name as client, or rename it")
    if np.ndim(ids) != 1 or len(ids) != len(frame):
        raise FlocoError(f"client must be one id for each of the {len(frame)} rows, got shape {np.shape(ids)}")
    return frame.assign(client=array(ids, f"{where}: client"))


def is_text_table(x: Any) -> bool:
    """Return whether x is a table with columns that are not plain numbers."""
    return is_table(x) and any(getattr(d, "kind", "O") not in "iuf" for d in x.dtypes)
