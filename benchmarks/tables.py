"""Write the tables of docs/comparison.md from the CSV files beside it: python benchmarks/tables.py.

A table stands between `<!-- table FOLDER KIND -->` and `<!-- end -->`, with FOLDER below docs/comparison/.
"""

import re
from pathlib import Path

import pandas as pd

from floco.analysis.columns import ACCURACY, CALIBRATION, COST, methods_table
from floco.storage.tables import read_table

DOCS = Path(__file__).parents[1] / "docs"
KINDS = {"accuracy": ACCURACY, "calibration": CALIBRATION, "cost": COST}


def markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def pairs(folder: Path) -> pd.DataFrame:
    table = read_table(folder / "pairs.csv")
    gap = [f"{100 * d:+.1f}" for d in table["mean_difference"]]
    shown = {
        "against": table["method"],
        "mean difference, points": gap,
        "clients better / equal / worse": [f"{b} / {e} / {w}" for b, e, w in table[["better", "equal", "worse"]].values],
    }
    return pd.DataFrame(shown | {"seeds better": table["seeds_better"], "p (Holm)": [f"{p:.1g}" for p in table["p_holm"]]})


def filled(text: str) -> str:
    """The document with all its tables made anew."""

    def one(found: re.Match[str]) -> str:
        folder = DOCS / "comparison" / found[1]
        table = pairs(folder) if found[2] == "pairs" else methods_table(read_table(folder / "methods.csv"), KINDS[found[2]])
        return f"<!-- table {found[1]} {found[2]} -->\n{markdown(table)}<!-- end -->"

    return re.sub(r"<!-- table (\S+) (\w+) -->\n.*?<!-- end -->", one, text, flags=re.S)


if __name__ == "__main__":
    document = DOCS / "comparison.md"
    document.write_text(filled(document.read_text()))
