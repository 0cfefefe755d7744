"""Columns of a table that nearly are the target: what a model that is used has not."""

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


def find_leaks(federation: Federation) -> Iterator[str]:
    """Yield a sentence for columns of a table that nearly are the target, or the number of the row."""
    train = torch.cat([c.train for c in federation.clients])
    if len(train) < _FEW or federation.y.ndim > 1:
        return
    for name, x in columns(federation.x).items():
        if x.ndim != 2:
            continue
        chosen = train[:: -(-len(train) * x.shape[1] // _VALUES)]
        values, y = x[chosen].double(), federation.y[chosen]
        for what, target in (
            ("the target", y if federation.task.labelled else y.double()),
            ("the number of the row in its source", chosen.double()),
        ):
            close = (_explained(values, target) >= _TELLS).nonzero().flatten().tolist()
            if close:
                shown = some([channel_name(federation, name, c) for c in close])
                yield f"{shown} nearly tell{'s' * (len(close) == 1)} {what}: is it known when the model is used?"


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
