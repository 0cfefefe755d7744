"""What a run has measured of its models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from floco.core.metrics import Metrics
from floco.storage.files import read_json

if TYPE_CHECKING:
    from floco.runs.results import Run


def read_metrics(path: Path) -> Metrics:
    """Return the metrics of a run directory."""
    return Metrics.of(read_json(path / "run.json")["metrics"])


def last_metrics(run: Run, client: str | None) -> dict[str, Any] | None:
    """Return the metrics of a client's model, or (None) the global one, after the last round; None: not evaluated."""
    if client is None:
        table, which, federation = run.history, "global", run.setup.federation
        n = federation.tested if federation.tested is not None else sum(len(c.test) for c in federation.clients)
    else:
        table, which, n = run.clients, "personal", len(run.setup.federation.client(client).test)
        table = table[table["client"] == client] if len(table) else table
    last = table[table["round"] == run.progress.round] if len(table) else table
    if not len(last):
        return None
    row = {m: float(last[f"{m}_{which}"].iloc[-1]) for m in run.setup.task.metrics}
    return {"samples": n, **{m: value if math.isfinite(value) else None for m, value in row.items()}}
