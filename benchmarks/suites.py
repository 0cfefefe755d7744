"""Tables and the figure over all suites, for comparison.md and comparison/claims.md (tables.py writes the tables).

python benchmarks/suites.py docs/comparison/suites.png     the figure; needs /usr/bin/chromium and playwright
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from floco.analysis.tables import Results
from floco.analysis.verdict import compare
from floco.storage.tables import read_table

DOCS = Path(__file__).parents[1] / "docs" / "comparison"
SUITES = {
    "few-rotated": "few samples, rotated groups",
    "tuned-rotated": "rotated groups, every method tuned",
    "few-rotated-10": "rotated groups, 10 samples a client",
    "few-rotated-20": "rotated groups, 20 samples",
    "few-rotated-100": "rotated groups, 100 samples",
    "few-unequal": "rotated groups of unequal size",
    "few-each": "no groups: each client its own style",
    "few-confused": "few samples, confused labels",
    "tuned-confused": "confused labels, every method tuned",
    "few-iid": "few samples, alike",
    "tuned-iid": "alike, every method tuned",
    "label-shift": "Fashion-MNIST, folds",
    "tuned-fashion-mnist": "Fashion-MNIST, folds, every method tuned",
    "fashion-mnist": "Fashion-MNIST, folds, 14 methods",
    "cifar10-own": "CIFAR-10, folds",
    "dirichlet": "CIFAR-10, Dirichlet(0.3)",
    "ablation-watch": "watch, 10 people",
    "tuned-watch": "watch, every method tuned",
    "watch": "watch, 14 methods",
    "ablation-vowel": "vowel, 15 speakers",
    "tuned-vowel": "vowel, every method tuned",
    "vowel": "vowel, 14 methods",
}
"""Folder -> what it is."""
PUBLISHED, RECOMMENDED, WITHOUT = "as published", "recommended", "recommended, without the label prior"
FLOCO = {"floco": PUBLISHED, "paper": PUBLISHED, "own": WITHOUT, "checked": WITHOUT, "own-prior": RECOMMENDED}
"""Name in a suite -> the setting of Floco; of `WITHOUT` and `RECOMMENDED` the last one counts."""
OURS = {*FLOCO, "floco+", "own-all", "step", "weighted", "finetuned"}
"""What is no rival of Floco."""
CONTROL = "FedAvg, head's step of a mixture"


def _read() -> Iterator[tuple[str, dict[str, str], Results]]:
    """Yield each suite's label, its variants of Floco (name -> setting), and its results."""
    for folder, label in SUITES.items():
        if not (DOCS / folder / "runs.csv").exists():
            continue
        results = Results(*(read_table(DOCS / folder / f"{name}.csv") for name in ("history", "clients", "runs")))
        last = [m for m, words in FLOCO.items() if m in results.names and words != PUBLISHED][-1:]
        shown = [m for m, words in FLOCO.items() if m in results.names and (words == PUBLISHED or m in last)]
        yield label, {m: FLOCO[m] for m in shown}, results


def _shown(results: Results, one: tuple[str, str], other: tuple[str, str]) -> str:
    if other[0] not in results.names:
        return "-"
    found = compare(results, one, other)
    mean, low, high = (100 * v for v in (found.mean, *found.interval))
    if low != low:  # no variance
        return f"{mean:+.1f} (all equal)"
    places = 2 if min(abs(low), abs(high)) < 0.05 else 1  # whether it contains 0 must be seen
    return f"{mean:+.1f} ({low:+.{places}f} to {high:+.{places}f}){'' if found.rounds else ' †'}"


def _over_seeds(values: pd.Series, digits: int = 2) -> str:
    spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def overview() -> pd.DataFrame:
    """Return, for each suite, FedAvg's and Floco's accuracies, and Floco's distance to the best other method."""
    rows = []
    for label, variants, results in _read():
        ours, words = list(variants.items())[-1]
        personal, harm = (100 * results.runs.groupby("method")[c].mean() for c in ("accuracy_personal", "harm_global"))
        others = personal.drop([m for m in personal.index if m in OURS])
        best = others.idxmax()
        gap = _shown(results, (ours, "personal"), (best, "personal"))
        price = _shown(results, (ours, "global_local"), ("fedavg", "global_local"))
        ft = f"{harm['fedavg+ft']:.0f}" if "fedavg+ft" in harm else "-"
        accuracies = [f"{best}, {personal[best]:.1f}", f"{personal[ours]:.1f}", f"{personal['fedavg']:.1f}"]
        name = label if words == RECOMMENDED else f"{label} ({words.removeprefix(RECOMMENDED + ', ')})"
        rows.append([name, gap, *accuracies, price, f"{harm[ours]:.0f} / {ft}", results.runs["seed"].nunique()])
    columns = ["suite", "Floco minus best other, points", "best other %", "Floco %", "FedAvg %"]
    more = ["Floco's global minus FedAvg's, points", "harmed: Floco / FedAvg+FT %", "seeds"]
    return pd.DataFrame(rows, columns=[*columns, *more])


def regimes() -> pd.DataFrame:
    """Return the methods' personal accuracies and harm on pictures that are rotated or styled."""
    rows = []
    for label, variants, results in _read():
        own = [*variants][-1]
        if not {"ifca", "own", "local"} <= {*results.names} or "confused" in label or "tuned" in label:
            continue
        personal, harm = (100 * results.runs.groupby("method")[c].mean() for c in ("accuracy_personal", "harm_global"))
        price = 100 * results.runs.groupby("method")["accuracy_global"].mean()
        shown = [f"{personal[m]:.1f} ({harm[m]:.0f})" for m in (own, "floco", "fedavg+ft", "ditto", "ifca")]
        rows.append([label, *shown, f"{personal['local']:.1f}", f"{price[own]:.1f}", f"{price['fedavg']:.1f}"])
    methods = ("floco, recommended", "floco, as published", "fedavg+ft", "ditto", "ifca")
    return pd.DataFrame(rows, columns=["suite", *methods, "local", "global: recommended", "global: fedavg"])


def speed() -> pd.DataFrame:
    """Return in which round a method's global model is as good as FedAvg's best one."""
    rows = []
    for label, variants, results in _read():
        control = {"control": CONTROL} if "control" in results.names else {}
        for method, words in {**variants, **control}.items():
            firsts, bests = [], []
            for _, run in results.history.groupby("seed"):
                curves = run.pivot_table(index="round", columns="method", values="accuracy_global")
                reached = curves.index[curves[method] >= curves["fedavg"].max()]
                bests.append(str(int(curves["fedavg"].idxmax())))
                firsts.append(str(int(reached[0])) if len(reached) else "never")
            gap = _shown(results, (method, "global_local"), ("fedavg", "global_local"))
            rows.append([label, words, ", ".join(bests), ", ".join(firsts), gap])
    columns = ["suite", "setting", "FedAvg's best in round", "as good in round", "at the end, points (95 %)"]
    return pd.DataFrame(rows, columns=columns)


def agreement() -> pd.DataFrame:
    """Return the variance of clients' updates over the squared mean update, divided by FedAvg's."""
    rows = []
    for label, variants, results in _read():
        for method, words in variants.items():
            cells = []
            for group in ("", "_body", "_head"):
                table = results.runs.pivot_table(
                    index="seed", columns="method", values=f"update_variance{group}_relative"
                )
                cells.append(_over_seeds(table[method] / table["fedavg"]))
            rows.append([label, words, *cells])
    return pd.DataFrame(rows, columns=["suite", "Floco", "all parameters", "body", "head"])


def accuracy() -> pd.DataFrame:
    """Return differences of the personal models' accuracy, means over the clients, in points."""
    rows = []
    for label, variants, results in _read():
        for method, words in variants.items():
            ours = (method, "personal")
            own = _shown(results, ours, (method, "global_local"))
            others = ("fedavg", "fedavg+ft", "fedavg-prior")
            rows.append([label, words, own, *(_shown(results, ours, (o, "personal")) for o in others)])
    against = ("its own global model", "FedAvg", "FedAvg+FT", "FedAvg with the label prior")
    return pd.DataFrame(rows, columns=["suite", "Floco", *(f"minus {a}" for a in against)])


def overhead() -> pd.DataFrame:
    """Return optimiser steps and bytes of a round, divided by FedAvg's."""
    rows = []
    for label, variants, results in _read():
        for method, words in variants.items():
            table = results.runs.set_index(["method", "seed"])[["steps_per_client", "bytes_down", "bytes_up"]]
            rows.append([label, words, *(f"{r:.2f}" for r in (table.loc[method] / table.loc["fedavg"]).mean())])
    return pd.DataFrame(rows, columns=["suite", "Floco", "optimiser steps", "bytes down", "bytes up"])


def prior() -> pd.DataFrame:
    """Return what the label prior changes: Floco with own centers, FedAvg's own models, and harm."""
    rows = []
    for label, _, results in _read():
        known = results.names
        if "own-prior" not in known or not {"own", "checked"} & {*known}:
            continue
        personal, harm = (100 * results.runs.groupby("method")[c].mean() for c in ("accuracy_personal", "harm_global"))
        without = "checked" if "checked" in known else "own"
        pairs = {"own-prior": without, "fedavg-prior": "fedavg"}
        gaps = [_shown(results, (a, "personal"), (b, "personal")) for a, b in pairs.items()]
        price = _shown(results, ("own-prior", "global_local"), (without, "global_local"))
        cells = [f"{personal[without]:.1f}", f"{personal['own-prior']:.1f}", *gaps, price]
        rows.append([label, *cells, f"{harm[without]:.0f} / {harm['own-prior']:.0f}"])
    columns = ["suite", "Floco without %", "Floco with %", "with minus without, points", "the same of FedAvg"]
    return pd.DataFrame(rows, columns=[*columns, "of Floco's global model", "harmed: Floco without / with %"])


KINDS = {
    "prior": prior,
    "overview": overview,
    "regimes": regimes,
    "speed": speed,
    "agreement": agreement,
    "personal": accuracy,
    "overhead": overhead,
}


def figure(path: Path) -> None:
    """Save the picture of what each method's personal models gain over FedAvg's model, with intervals."""
    import plotly.graph_objects as go
    from pictures import save

    shown = {
        RECOMMENDED: "#d62728",
        WITHOUT: "#e0a030",
        PUBLISHED: "#ff9896",
        "fedavg+ft": "#1f77b4",
        "ditto": "#7f7f7f",
        "ifca": "#2ca02c",
    }
    points: dict[str, list[tuple[str, list[float]]]] = {name: [] for name in shown}
    for label, variants, results in _read():
        named = {words: m for m, words in variants.items()} | {m: m for m in {*results.names} & {*shown}}
        for name, method in named.items():
            found = compare(results, (method, "personal"), ("fedavg", "personal"))
            points[name].append((label, [100 * v for v in (found.mean, *found.interval)]))
    rows = list(dict.fromkeys(label for found in points.values() for label, _ in found))
    rows.sort(key=list(SUITES.values()).index)
    made = go.Figure()
    for i, (name, found) in enumerate(points.items()):
        mean, low, high = ([gap[k] for _, gap in found] for k in range(3))
        made.add_scatter(
            x=mean,
            y=[rows.index(label) + 0.12 * (i - 2) for label, _ in found],
            error_x={
                "array": [h - m for h, m in zip(high, mean, strict=True)],
                "arrayminus": [m - below for m, below in zip(mean, low, strict=True)],
            },
            mode="markers",
            name=f"Floco, {name}" if name in FLOCO.values() else name,
            marker={"color": shown[name], "size": 9},
        )
    made.add_vline(x=0, line_color="#444444")
    made.update_layout(
        template="plotly_white",
        width=1100,
        height=140 + 70 * len(rows),
        font_size=18,
        margin={"l": 10, "r": 10, "t": 40, "b": 50},
        legend={"orientation": "h", "y": 1.08},
        xaxis_title="personal models: points above FedAvg's model, with 95 % intervals",
        yaxis={"autorange": "reversed", "tickvals": list(range(len(rows))), "ticktext": rows},
    )
    save(made, path, 1120, 1300)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        figure(Path(sys.argv[1]))
    else:
        for made in KINDS.values():
            print(made().to_string(index=False), end="\n\n")
