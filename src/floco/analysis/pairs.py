"""The paired comparison of methods over clients, and all tables as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from floco.analysis.tables import Results, methods
from floco.core.intervals import bound_mean
from floco.storage.files import replace_file


def pairs(results: Results, reference: str) -> pd.DataFrame:
    """Return the paired comparison of `reference` with every other method over the clients.

    What is compared is the primary metric of the personal models; better is better, whatever its direction. A client
    counts once, with its mean difference over the common seeds: its results under several seeds are about the same
    data, or about as few clients.

    `p` is Wilcoxon's signed-rank test (two-sided) of the clients' differences, `p_holm` the same after Holm's
    correction for the number of methods. `lower` and `upper` are the ends of Student's 95 % interval of the mean
    difference; empty for one client, and if all differ alike. Clients of one run share a model and are not independent,
    so p is too small rather than too large, and the interval too narrow.
    """
    from scipy.stats import wilcoxon

    column = f"{results.metrics.primary}_personal"
    table = results.clients.pivot_table(index=["seed", "client"], columns="method", values=column, sort=False)
    sign = 1 if results.metrics.higher else -1
    rows: list[dict[str, Any]] = []
    for name in (n for n in results.names if n in table and n != reference):
        both = table[[reference, name]].dropna()
        if not len(both):
            continue  # no common seed
        each = both[reference] - both[name]
        seeds, gap = (each.groupby(level=by).mean().round(9) for by in ("seed", "client"))  # equal gaps, equal numbers
        p = float(wilcoxon(gap).pvalue) if (gap != 0).any() else 1.0
        kinds = {"better": sign * gap > 0, "equal": gap == 0, "worse": sign * gap < 0}
        who = {"reference": reference, "method": name, "clients": len(gap), "mean_difference": gap.mean()}
        who |= bound_mean(gap.to_numpy())._asdict()
        counts = {kind: int(found.sum()) for kind, found in kinds.items()}
        rows.append({**who, **counts, "seeds_better": f"{(sign * seeds > 0).sum()}/{len(seeds)}", "p": p})
    corrected = 0.0
    for i, row in enumerate(sorted(rows, key=lambda r: float(r["p"]))):
        corrected = max(corrected, min(1.0, float(row["p"]) * (len(rows) - i)))
        row["p_holm"] = corrected
    return pd.DataFrame(rows)


def write(results: Results, folder: Path, reference: str) -> None:
    """Write all tables as CSV files; pairs are those of `reference` with the other methods, none before it has run."""
    compared = pairs(results, reference) if reference in results.names else pd.DataFrame()
    made = {"history": results.history, "clients": results.clients, "runs": results.runs}
    for name, table in {**made, "methods": methods(results), "pairs": compared}.items():
        replace_file(folder / f"{name}.csv", table.to_csv(index=False).encode() if len(table) else b"")
