"""Columns of a table that nearly are the target, an id, or another column: what a model should not have."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from floco.core.errors import some
from floco.core.inputs import columns
from floco.data.describe import channel_name
from floco.data.federation import Federation

_TELLS = 0.995  # share of a variance that a single column may not explain
_VALUES = 2**25  # values of an input in which leaks are looked for
_FEW = 20  # samples from which on a column can be said to tell the label
_NEXT = 20  # pairs of neighbouring numbers from which on it is no chance that none is equal
_SAME = 0.999  # share of a column's variance that another one explains if they are the same in another unit
_MOST = 2000  # columns that are compared with each other
_REMEDY = "data.leave_out leaves columns of a table out"


def find_leaks(federation: Federation) -> Iterator[str]:
    """Yield a sentence for columns of a table that nearly are the target, the number of the row, or an id."""
    train = torch.cat([c.train for c in federation.clients])
    if len(train) < _FEW:
        return
    for name, x in columns(federation.x).items():
        if x.ndim != 2:
            continue
        chosen = train[:: -(-len(train) * x.shape[1] // _VALUES)]
        values, y = x[chosen].double(), federation.y[chosen]
        goals = {"the target": y if federation.task.labelled else y.double()} if y.ndim == 1 else {}
        told = set[int]()
        for what, target in {**goals, "the number of the row in its source": chosen.double()}.items():
            close = (_explained(values, target) >= _TELLS).nonzero().flatten().tolist()
            told |= {*close}
            if close:
                shown = some([channel_name(federation, name, c) for c in close])
                yield f"{shown} nearly tell{'s' * (len(close) == 1)} {what}: is it known when the model is used?"
        if ids := [c for c in _find_numbered(values) if c not in told]:
            shown = some([channel_name(federation, name, c) for c in ids])
            what = "a whole number that differs in every row"
            yield f"{shown} hold{'s' * (len(ids) == 1)} {what}: is it an id? {_REMEDY}"


def find_repeated(federation: Federation) -> Iterator[str]:
    """Yield a sentence for columns of a table that are, but for rounding, another one in another unit."""
    train = torch.cat([c.train for c in federation.clients])
    for name, form in columns(federation.forms).items():
        x, numbers = columns(federation.x)[name], len(form.features) - form.flags
        if not 1 < numbers <= _MOST or len(train) < _FEW:
            continue
        values = x[train[:: -(-len(train) * numbers // _VALUES)], :numbers].double()
        centered = (values - values.nanmean(0)).nan_to_num(nan=0.0)
        unit = centered / centered.norm(dim=0).clamp(min=1e-300)
        if pairs := ((unit.T @ unit).square() >= _SAME).triu(1).nonzero().tolist():
            shown = some([" and ".join(channel_name(federation, name, c) for c in pair) for pair in pairs], 4)
            yield f"nearly the same numbers but for a unit: {shown}; one of the two is enough. {_REMEDY}"


def _find_numbered(values: torch.Tensor) -> list[int]:
    """Return which columns of values (n, F) hold different whole numbers so close together that it is no chance.

    Of numbers drawn by chance, whatever their distribution, about half as many pairs are equal as are neighbours.
    """
    found = []
    for c in ((values == values.round()) | values.isnan()).all(0).nonzero().flatten().tolist():
        gaps = values[~values[:, c].isnan(), c].sort().values.diff()
        if len(gaps) and float(least := gaps.min()) > 0 and int((gaps == least).sum()) >= _NEXT:
            found.append(c)
    return found


def _explained(values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the share of the variance of values (n, F), some missing (NaN), that a target explains, (F,).

    The target is a class number or a number for each of the n samples.
    """
    known = (~values.isnan()).double()
    centered = (values - values.nanmean(0)).nan_to_num(nan=0.0)
    total = centered.square().sum(0)
    if target.dtype == torch.int64:
        sums, n = (
            torch.zeros(int(target.max()) + 1, values.shape[1], dtype=torch.float64).index_add_(0, target, part)
            for part in (centered, known)
        )
        found = (sums.square() / n.clamp(min=1)).sum(0)
    else:
        line = target - target.mean()
        spread = line.square() @ known - (line @ known).square() / known.sum(0).clamp(min=1)
        found = (line @ centered).square() / spread.clamp(min=1e-300)
    return torch.where(total > 0, found / total, 0.0)
