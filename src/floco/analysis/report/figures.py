"""Plotly figures of runs and clients, and what all figures share. The page sets the colours of background and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd
import plotly.graph_objects as go

from floco.analysis.tables import Results
from floco.data.federation import Federation

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")
"""The colours of Okabe and Ito, which people with colour blindness tell apart, without black and yellow: each stands
out from light and dark paper."""
_DASHES = ("solid", "dash", "dot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up")
_PATTERNS = ("", "/", "x", ".")
_READABLE = 60  # clients whose names fit on an axis


def empty(title: str, x: str, y: str, height: int = 420) -> go.Figure:
    """Return a figure without data; `x` and `y` are the titles of its axes, `height` is in pixels."""
    heading, margin = {"text": title, "x": 0.02, "font": {"size": 15}}, {"l": 58, "r": 12, "t": 16, "b": 48}
    legend = {"orientation": "h", "x": 0}
    layout = {"title": heading, "height": height, "margin": margin, "legend": legend, "template": "none"}
    figure = go.Figure(layout=layout)
    figure.update_xaxes(title=x, automargin=True)
    figure.update_yaxes(title=y, automargin=True)
    return figure


def line_style(i: int) -> dict[str, object]:
    """Return the style of the i-th line, counted from 0; the first is the thickest."""
    dash = _DASHES[i // len(_COLOURS) % len(_DASHES)]
    return {"color": _COLOURS[i % len(_COLOURS)], "dash": dash, "width": 3 if i == 0 else 1.7}


def label_style(label: int) -> tuple[str, str, str]:
    """Return colour, symbol of points and pattern of bars of a label; 28 labels are told apart."""
    turn = label // len(_COLOURS) % len(_SYMBOLS)
    return _COLOURS[label % len(_COLOURS)], _SYMBOLS[turn], _PATTERNS[turn]


def name_clients(figure: go.Figure, number: int) -> None:
    """Name the clients on the x axis, if so many are readable."""
    figure.update_xaxes(type="category", showticklabels=number <= _READABLE, tickangle=-45)


def curve(results: Results, column: str, title: str, y: str, scale: float = 1.0, *, log: bool = False) -> go.Figure:
    """Return one line per method over the rounds: the mean over seeds, with their range on hover."""
    figure = empty(title, "round", y)
    for i, name in enumerate(results.names):
        by_round = results.history[results.history["method"] == name].groupby("round")[column]
        table = by_round.agg(["mean", "min", "max"]).dropna() * scale
        if len(table):
            text = [f"{low:.4g} to {high:.4g} over seeds" for low, high in zip(table["min"], table["max"], strict=True)]
            hover = f"{name}<br>round %{{x}}: %{{y:.4g}}<br>%{{text}}<extra></extra>"
            data = {"x": list(table.index), "y": list(table["mean"]), "text": text, "hovertemplate": hover}
            look = {"mode": "lines+markers", "line": line_style(i), "marker": {"size": 5}}
            figure.add_scatter(**data, **look, name=name, zorder=len(results.names) - i)
    if log:
        figure.update_yaxes(type="log")
    return figure


def distributions(results: Results) -> go.Figure:
    """Return one box per method of the clients' primary metric, with a point for every client."""
    primary = results.metrics.primary
    unit, scale = results.metrics.scaled(primary)
    words, percent = unit.removesuffix(", %"), " %" * (scale == 100)
    x = f"{words} on its own test part{percent and ', %'}"
    figure = empty(f"Personal {words} of every client", x, "", height=90 + 46 * len(results.names))
    for i, name in enumerate(results.names):
        mine = results.clients[results.clients["method"] == name]
        text = [f"client {c}, seed {s}" for c, s in zip(mine["client"], mine["seed"], strict=True)]
        values = list(scale * mine[f"{primary}_personal"])
        hover = f"%{{text}}: %{{x:{'.1f' if percent else '.4g'}}}{percent}<extra></extra>"
        points = {"boxpoints": "all", "jitter": 0.6, "pointpos": 0}
        look = {"marker": {"color": _COLOURS[i % len(_COLOURS)], "size": 4}, "line": {"width": 1.3}}
        figure.add_box(x=values, name=name, text=text, hovertemplate=hover, **points, **look)
        _name_worst(figure, i, list(zip(values, mine["client"], strict=True)), higher=results.metrics.higher)
    figure.update_layout(showlegend=False)
    figure.update_yaxes(autorange="reversed")
    return figure


def _name_worst(figure: go.Figure, row: int, points: Sequence[tuple[float, str]], *, higher: bool) -> None:
    """Write the name of the client with the worst value into a row of boxes."""
    known = [(value, client) for value, client in points if value == value]
    if known:
        value, client = (min if higher else max)(known)
        place = {"x": value, "y": row, "yshift": 16, "showarrow": False, "font": {"size": 11}}
        figure.add_annotation(text=escape(client), **place)


def labels(federation: Federation) -> go.Figure:
    """Return one stacked bar per client: its samples by label."""
    figure = empty("Samples by client and label", "client", "samples")
    figure.update_layout(barmode="stack", bargap=0.15)
    parts = [(federation.label_counts(c.train), federation.label_counts(c.test)) for c in federation.clients]
    counts = [[a + b for a, b in zip(train, test, strict=True)] for train, test in parts]
    ids, where = list(federation.ids), [f"client {c}" for c in federation.ids]
    for label, name in enumerate(federation.names):
        column, hover = [row[label] for row in counts], f"%{{text}}: %{{y}} of {name}<extra></extra>"
        shade, _, pattern = label_style(label)
        look = {"textposition": "none", "marker": {"color": shade, "pattern": {"shape": pattern}}}
        figure.add_bar(x=ids, y=column, text=where, name=name, hovertemplate=hover, **look)
    name_clients(figure, len(federation.clients))
    return figure


def main_labels(client: str, federation: Federation) -> str:
    """Return a client's four most frequent labels in its training part, with their counts; "" without labels."""
    counts = federation.label_counts(federation.client(client).train)
    most = sorted(range(len(counts)), key=lambda c: -counts[c])[:4]
    return ", ".join(f"{counts[c]} of {federation.names[c]}" for c in most if counts[c])


def lines(between: Mapping[str, Sequence[float]]) -> go.Figure:
    """Return the losses on straight lines between whole networks."""
    figure = empty("Loss between whole networks", "from one network to the other", "loss")
    for i, (name, values) in enumerate(between.items()):
        t, hover = [k / (len(values) - 1) for k in range(len(values))], f"{name}: %{{y:.4g}}<extra></extra>"
        look = {"mode": "lines+markers", "line": line_style(i)}
        figure.add_scatter(x=t, y=list(values), name=name, hovertemplate=hover, **look)
    return figure


def worst_clients(results: Results, federation: Federation | None, seed: int, n: int = 8) -> pd.DataFrame:
    """Return the n clients of a seed whose personal model is worst under the first method.

    One row per client: its main labels, if they are known, and its primary metric under every method, shares in per
    cent.
    `attrs["by"]` names the first method.
    """
    mine = results.clients[results.clients["seed"] == seed]
    table = mine.pivot_table(index="client", columns="method", values=f"{results.metrics.primary}_personal", sort=False)
    names = [m for m in results.names if m in table]
    scale, higher = results.metrics.scaled(results.metrics.primary)[1], results.metrics.higher
    found = (scale * table[names]).sort_values(names[0], ascending=higher).head(n).round(1 if scale == 100 else 4)
    if federation is not None and federation.task.labelled:
        texts = [main_labels(c, federation) if c in federation.ids else "" for c in found.index]
        found.insert(0, "labels", texts)
    found = found.reset_index()
    found.attrs["by"] = names[0]
    return found
