"""Update the tables of the comparison's pages from CSV files: python benchmarks/tables.py.

pairs.csv, and the columns of harm in runs.csv and methods.csv, are first made from the committed clients.csv.

A table is between `<!-- table FOLDER KIND -->` and `<!-- end -->`, with FOLDER below docs/comparison/. Those of the
folder `results` come from benchmarks/results/: `schools` from regression.csv, `tasks` from tasks.csv, `released` from
released/ (released.py). Those of `all` are over all suites (suites.py).
"""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import released
import suites
from scipy import stats

from floco.analysis import harm
from floco.analysis.columns import cost_columns, harm_columns, main_columns, methods_table, other_columns
from floco.analysis.pairs import write
from floco.analysis.tables import Results
from floco.storage.tables import read_table
from floco.tasks import Classification

DOCS, RESULTS = Path(__file__).parents[1] / "docs", Path(__file__).parent / "results"
PAGES = (
    "comparison.md",
    *(
        f"comparison/{name}.md"
        for name in ("few-samples", "tuned", "label-shift", "claims", "published", "regression", "tasks", "ablation")
    ),
)
_METRICS = Classification.metrics
KINDS = {
    "accuracy": main_columns(_METRICS),
    "harm": harm_columns(_METRICS),
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


def recount(folder: Path) -> None:
    """Make pairs.csv and the columns of harm from clients.csv, as `floco compare` does."""
    history, clients, runs = (read_table(folder / f"{name}.csv") for name in ("history", "clients", "runs"))
    results = Results(history, clients, harm.add(runs, clients, _METRICS))
    write(results, folder, results.names[0])


def pairs(folder: Path) -> pd.DataFrame:
    table = read_table(folder / "pairs.csv")
    gap = [f"{100 * d:+.1f}" for d in table["mean_difference"]]
    counts = [f"{b} / {e} / {w}" for b, e, w in table[["better", "equal", "worse"]].values]
    shown = {"against": table["method"], "mean difference, points": gap, "clients better / equal / worse": counts}
    p = [f"{p:.1g}" for p in table["p_holm"]]
    return pd.DataFrame({**shown, "seeds better": table["seeds_better"], "p (Holm)": p})


def schools() -> pd.DataFrame:
    """Return the methods on MathAchieve, the best first: RMSE, and the difference to Floco over the schools."""
    table = pd.read_csv(RESULTS / "regression.csv")
    methods = [c for c in table if c not in ("seed", "school", "pupils")]
    rows = []
    for method in sorted(methods, key=lambda m: table[m].mean()):
        seeds = table.groupby("seed")[method]
        worst = seeds.apply(lambda v: v.nlargest(-(-len(v) // 20)).mean()).mean()
        pupils = np.sqrt(np.average(table[method] ** 2, weights=table["pupils"]))
        apart = (table[method] - table["floco"]).groupby(table["school"]).mean()
        half = stats.t.ppf(0.975, len(apart) - 1) * apart.std() / math.sqrt(len(apart))
        interval = f"{apart.mean():+.3f} ({apart.mean() - half:+.3f} to {apart.mean() + half:+.3f})"
        mean = f"{table[method].mean():.3f} ± {seeds.mean().std():.3f}"
        shown = [method, mean, f"{pupils:.3f}", f"{worst:.2f}", interval if method != "floco" else ""]
        rows.append(shown)
    columns = ["method", "RMSE, mean over schools", "over pupils", "worst 5 % of schools", "minus Floco's, 95 %"]
    return pd.DataFrame(rows, columns=columns)


def tasks() -> pd.DataFrame:
    """Return the primary metric of every data set and method, as mean over clients and seeds."""
    table = pd.read_csv(RESULTS / "tasks.csv", dtype={"client": str})
    methods = ["pooled", "local", "fedavg", "fedavg+ft", "floco", "own"]
    rows = []
    for (name, metric), part in table.groupby(["data", "metric"], sort=False):
        seeds = part.groupby(["method", "seed"])["value"].mean().groupby("method").agg(["mean", "std"])
        factor, digits = (1, 2) if metric == "rmse" else (100, 1)
        cells = []
        for m, s in seeds.reindex(methods).values:  # NaN: a method that was not run, and a spread with one seed
            spread = f" ± {factor * s:.{digits}f}" if s >= 0 else ""
            cells.append("-" if math.isnan(m) else f"{factor * m:.{digits}f}{spread}")
        rows.append([name, f"{metric}{'' if factor == 1 else ', %'}", part["client"].nunique(), *cells])
    return pd.DataFrame(rows, columns=["data", "metric", "clients", *methods])


def filled(text: str) -> str:
    """Return the document with updated tables."""

    def one(found: re.Match[str]) -> str:
        folder, kind = DOCS / "comparison" / found[1], found[2]
        if kind in OTHERS:
            made = OTHERS[kind]()
        else:
            made = pairs(folder) if kind == "pairs" else methods_table(read_table(folder / "methods.csv"), KINDS[kind])
        return f"<!-- table {found[1]} {kind} -->\n{markdown(made)}<!-- end -->"

    return re.sub(r"<!-- table (\S+) (\w+) -->\n.*?<!-- end -->", one, text, flags=re.S)


OTHERS = {"schools": schools, "tasks": tasks, "released": released.released, **suites.KINDS}


if __name__ == "__main__":
    for file in (DOCS / "comparison").glob("*/clients.csv"):
        recount(file.parent)
    for page in PAGES:
        (DOCS / page).write_text(filled((DOCS / page).read_text()))
