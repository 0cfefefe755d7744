"""Runs of released.sh against the authors' published curves, for comparison/published.md (tables.py writes the table).

python benchmarks/released.py docs/comparison/released.png     the figure; needs /usr/bin/chromium and playwright

results/released/published.csv: accuracies in %, read from baselines/floco/_static/CIFAR10_Fold.png and
CIFAR10_Dirichlet.png of github.com/adap/flower, one seed, to 0.4 points. Round 471-500 is the mean of these rounds.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from floco.storage.tables import read_table

RESULTS = Path(__file__).parent / "results" / "released"
SPLITS = {"folds": "5-Fold, share 0.84", "dirichlet": "Dirichlet(0.5)"}
MODELS = {"global": "accuracy_global", "personal": "accuracy_personal"}


def _read() -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    """Yield split, method, the history of our run in %, and the published curve, indexed by round."""
    published = read_table(RESULTS / "published.csv")
    for (split, method), curve in published.groupby(["split", "method"], sort=False):
        file = RESULTS / f"{split}-{method}.csv"
        if file.exists():
            ours = 100 * read_table(file).set_index("round")[[*MODELS.values()]]
            yield split, method, ours, curve.set_index("round")[[*MODELS.values()]]


def released() -> pd.DataFrame:
    """Return the last thirty rounds here (six evaluations) and as published, and the largest distance at one round."""
    rows = []
    for split, method, ours, curve in _read():
        cells = []
        for column in MODELS.values():
            gaps = {}
            for at, value in curve[column].dropna().items():
                if str(at).isdigit():  # compared with our last evaluation up to then, of 245 for 249
                    gaps[at] = ours.loc[: int(at), column].iloc[-1] - value
            far = max(gaps, key=lambda at: abs(gaps[at]))
            here, there = ours.loc[471:500, column].mean(), curve.at["471-500", column]
            if len(ours.loc[471:500]) < 6:
                raise SystemExit(f"{split}-{method} has not been evaluated every 5 rounds up to 500: released.sh")
            cells += [f"{here:.1f}", f"{there:.1f}", f"{here - there:+.1f}", f"{gaps[far]:+.1f} in {far}"]
        rows.append([SPLITS[split], method, *cells])
    parts = (" %", ", published %", ", points", ", farthest at one round")
    return pd.DataFrame(rows, columns=["split", "method", *(f"{model}{part}" for model in MODELS for part in parts)])


def figure(path: Path) -> None:
    """Save the picture of our curves and the published points."""
    from pictures import save
    from plotly.subplots import make_subplots

    colors = {"fedavg": "#444444", "floco": "#d62728", "floco+": "#1f77b4"}
    found = list(_read())
    splits = [split for split in SPLITS if split in {one for one, *_ in found}]
    titles = [f"{SPLITS[split]}, {model} model" for model in MODELS for split in splits]
    made = make_subplots(len(MODELS), len(splits), subplot_titles=titles, vertical_spacing=0.12)
    for split, method, ours, curve in found:
        rounds = [int(r) if str(r).isdigit() else 485 for r in curve.index]
        for row, column in enumerate(MODELS.values(), 1):
            place = {"row": row, "col": splits.index(split) + 1}
            style = {"legendgroup": method, "showlegend": row == 1 and split == splits[0]}
            made.add_scatter(
                x=ours.index, y=ours[column], name=f"{method}, here", line_color=colors[method], **style, **place
            )
            ring = {"color": colors[method], "size": 10, "symbol": "circle-open", "line_width": 2}
            made.add_scatter(
                x=rounds, y=curve[column], mode="markers", marker=ring, name=f"{method}, published", **style, **place
            )
    made.update_xaxes(title="round", range=[0, 505])
    made.update_yaxes(title="accuracy %", range=[25, 85])
    legend = {"orientation": "h", "y": 1.12}
    made.update_layout(template="plotly_white", width=1100, height=900, font_size=16, legend=legend)
    save(made, path, 1120, 900)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        figure(Path(sys.argv[1]))
    else:
        print(released().to_string(index=False))
