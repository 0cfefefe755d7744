"""Update the tables of docs/comparison.md from the CSV files in docs/comparison/: python benchmarks/tables.py.

A table is between `<!-- table FOLDER KIND -->` and `<!-- end -->`, with FOLDER below docs/comparison/.
"""

import re
from pathlib import Path

import pandas as pd

from floco.analysis.columns import cost_columns, main_columns, methods_table, other_columns
from floco.storage.tables import read_table
from floco.tasks import Classification

DOCS = Path(__file__).parents[1] / "docs"
_METRICS = Classification.metrics
KINDS = {
    "accuracy": main_columns(_METRICS),
    "calibration": other_columns(_METRICS),
    "cost": cost_columns(_METRICS),
}


def markdown(table: pd.DataFrame) -> str:
    rows = [
        [str(c).replace("|", "\\|") for c in table.columns],
        ["---"] * len(table.columns),
        *table.astype(str).values.tolist(),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def pairs(folder: Path) -> pd.DataFrame:
    table = read_table(folder / "pairs.csv")
    gap = [f"{100 * d:+.1f}" for d in table["mean_difference"]]
    counts = [f"{b} / {e} / {w}" for b, e, w in table[["better", "equal", "worse"]].values]
    shown = {"against": table["method"], "mean difference, points": gap, "clients better / equal / worse": counts}
    p = [f"{p:.1g}" for p in table["p_holm"]]
    return pd.DataFrame({**shown, "seeds better": table["seeds_better"], "p (Holm)": p})


def filled(text: str) -> str:
    """Return the document with updated tables."""

    def one(found: re.Match[str]) -> str:
        folder, kind = DOCS / "comparison" / found[1], found[2]
        made = pairs(folder) if kind == "pairs" else methods_table(read_table(folder / "methods.csv"), KINDS[kind])
        return f"<!-- table {found[1]} {kind} -->\n{markdown(made)}<!-- end -->"

    return re.sub(r"<!-- table (\S+) (\w+) -->\n.*?<!-- end -->", one, text, flags=re.S)


if __name__ == "__main__":
    document = DOCS / "comparison.md"
    document.write_text(filled(document.read_text()))
