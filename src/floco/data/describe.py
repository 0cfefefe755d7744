"""The schema of a federation as plain values: what each column is, and how it becomes a network input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from floco.core.inputs import columns
from floco.data.federation import Federation
from floco.data.schema import Form
from floco.data.table_roles import plain_column
from floco.tasks import Regression

if TYPE_CHECKING:
    from floco.data.samples import Samples

_LAYOUTS = {"first": "", "last": "channels last", "kept": "features last", "none": "no channels"}


def describe_schema(federation: Federation, samples: Samples | None = None) -> list[dict[str, Any]]:
    """Return one row for each input, for each named feature of a table, and for each number that is a target.

    Of the samples that were split, if given, also for the columns of groups and of order.

    Keys: `name`, `role` (`input`, `feature`, `target`, `group`, `order`), `dtype`, `shape` (of one sample), `layout`,
    `scaling`, `low` and `high` (in the units of the source; None of what is no number), and for targets with classes
    `classes`.
    """
    rows: list[dict[str, Any]] = []
    for name, form in columns(federation.schema.forms).items():
        low, high = _ends(form)
        row = {"name": name or "x", "role": "input", "dtype": form.dtype, "shape": list(form.shape)}
        row |= {"layout": _layout(form), "scaling": _scaling(form, range(len(low)))}
        rows.append(row | {"low": min(low), "high": max(high)})
        for i, feature in enumerate(form.features if len(form.features) == len(low) else ()):
            own = {"name": feature, "role": "feature", "dtype": form.dtype, "shape": [], "layout": ""}
            rows.append({**own, "scaling": _scaling(form, range(i, i + 1)), "low": low[i], "high": high[i]})
    rows += [_target(federation, i, name, y) for i, (name, y) in enumerate(_targets(federation).items())]
    roles = {} if samples is None else {"group": samples.group, "order": samples.order}
    return rows + [_other(samples.columns[name], name, role) for role, name in roles.items() if samples and name]


def _other(values: np.ndarray, name: str, role: str) -> dict[str, Any]:
    """Return the row of a column (N,) that is neither input nor target."""
    from pandas import Series  # on use: slow to import

    values = plain_column(Series(values))  # cells of CSV files are text
    low, high = (float(values.min()), float(values.max())) if values.dtype.kind in "iuf" else (None, None)
    kind = "text" if values.dtype.kind in "OUS" else str(values.dtype)
    own = {"name": name, "role": role, "dtype": kind, "shape": [], "layout": "", "scaling": "none"}
    return {**own, "low": low, "high": high}


def describe_targets(federation: Federation, indices: torch.Tensor) -> dict[str, dict[str, float | None]]:
    """Return mean, deviation and range of each target of some samples, by its name; None where there are none."""
    return {name: _spread(y[indices].double()) for name, y in _targets(federation).items()}


def channel_name(federation: Federation, name: str | None, channel: int) -> str:
    """Return what a channel of a column is called; None: of the targets."""
    if name is None:
        names = federation.names or range(channel + 1)
        return "the target" if federation.y.ndim == 1 else f'target "{names[channel]}"'
    form = columns(federation.schema.forms)[name]
    own = f'"{form.features[channel]}"' if len(form.features) > channel else f"channel {channel}"
    return f"{own} of {name}" if name else own


def _spread(y: torch.Tensor) -> dict[str, float | None]:
    if not y.numel():
        return dict.fromkeys(("mean", "std", "low", "high"))
    return {"mean": float(y.mean()), "std": float(y.std(correction=0)), "low": float(y.min()), "high": float(y.max())}


def _targets(federation: Federation) -> dict[str, torch.Tensor]:
    """Return the targets, (N, ...), as `y`; those of a regression with several, which have units, by their names."""
    y, names = federation.y, federation.names
    if not isinstance(federation.task, Regression) or y.ndim == 1:
        return {"y": y}
    known = names if len(names) == y.shape[1] else [f"y {i}" for i in range(y.shape[1])]
    return dict(zip(known, y.T, strict=True))


def _target(federation: Federation, i: int, name: str, y: torch.Tensor) -> dict[str, Any]:
    task, scaling = federation.task, "class numbers" if federation.task.labelled else "none"
    if isinstance(task, Regression) and task.mean:
        scaling = f"mean {task.mean[i]:.3g}, deviation {task.std[i]:.3g}"
    kind = str(y.dtype).removeprefix("torch.")
    row: dict[str, Any] = {"name": name, "role": "target", "dtype": kind, "shape": list(y.shape[1:])}
    row |= {"layout": "", "scaling": scaling, "low": float(y.min()), "high": float(y.max())}
    return row | ({"classes": list(federation.names)} if task.labelled else {})


def _ends(form: Form) -> tuple[list[float], list[float]]:
    """Return the range of each channel in the units of the source."""
    offset = form.offset or (0.0,) * len(form.ranges)
    pairs = [(low + o, high + o) for (low, high), o in zip(form.ranges, offset, strict=True)]
    return [low for low, _ in pairs], [high for _, high in pairs]


def _layout(form: Form) -> str:
    return "ids" if form.dtype == "int64" else _LAYOUTS[form.channels]


def _scaling(form: Form, channels: range) -> str:
    """Return how channels are scaled, in words; categories are not."""
    if form.dtype == "int64":
        return "none: ids"
    if not (scaled := [c for c in channels if c < len(form.ranges) - form.flags]):
        return "not scaled"
    if form.own:
        return "mean and deviation of each client's own training part"
    if not form.mean:
        return "none"
    divided = "/ 255, " if form.divisor == 255 else ""
    mean, std = ([values[c] for c in scaled] for values in (form.mean, form.normalization.std))
    return f"{divided}mean {_span(mean)}, deviation {_span(std)}"


def _span(values: list[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"
