"""What a run directory says of the run: its metrics, and settings that were changed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from floco.client.setup import Setup
from floco.core.metrics import Metrics
from floco.storage.files import read_json

if TYPE_CHECKING:
    import pandas as pd


def read_metrics(path: Path) -> Metrics:
    """Return the metrics of a run directory."""
    return Metrics.of(read_json(path / "run.json")["metrics"])


def read_changes(path: Path | None, until: float = math.inf) -> list[dict[str, Any]]:
    """Return the settings of a run directory that were changed for a round up to `until`; none without one."""
    return [] if path is None else [c for c in read_json(path / "run.json").get("changes", []) if c["round"] <= until]


def last_metrics(
    setup: Setup, round_: int, history: pd.DataFrame, clients: pd.DataFrame, client: str | None
) -> dict[str, Any] | None:
    """Return the metrics of a client's model, or (None) the global one, in a round's tables; None: not evaluated."""
    federation = setup.federation
    if client is None:
        table, which = history, "global"
        n = federation.tested if federation.tested is not None else sum(len(c.test) for c in federation.clients)
    else:
        table, which, n = clients, "personal", len(federation.client(client).test)
        table = table[table["client"] == client] if len(table) else table
    last = table[table["round"] == round_] if len(table) else table
    if not len(last):
        return None
    row = {m: float(last[f"{m}_{which}"].iloc[-1]) for m in setup.task.metrics}
    return {"samples": n, **{m: value if math.isfinite(value) else None for m, value in row.items()}}
