"""What accuracy costs: figures of every method's personal models against what a client sends and computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import plotly.graph_objects as go

from floco.analysis.report.figures import empty
from floco.core.metrics import Metrics

_HARM = ((0.0, "#0072b2"), (0.5, "#e69f00"), (1.0, "#b02a00"))
_NEAR = 0.2  # of the width of a figure: within it, two names would be written over each other
_LINE = 0.055  # of the height of a figure: a line of text

_AXES: tuple[tuple[str, str, Callable[[pd.DataFrame], pd.Series]], ...] = (
    ("Personal models against bytes", "MB down and up a round, of all its clients", lambda t: _sent(t) / 1e6),
    ("Personal models against steps", "optimiser steps of a client, all rounds", lambda t: t["steps_per_client"]),
)


def _sent(made: pd.DataFrame) -> pd.Series:
    return made["bytes_down"] + made["bytes_up"]


def price(made: pd.DataFrame, metrics: Metrics) -> list[go.Figure]:
    """Return two figures with a point for each method of `made` (the table methods.csv).

    Up is the mean of the clients' primary metric, across what is sent in a round, or a client's steps of training.
    The colour is the share of clients whose personal model is worse than the global one (FedAvg's, if the method has
    none), grey where none is known.
    """
    known = made[made[f"{metrics.primary}_personal"].notna()]
    return [_figure(known, across(known), title, x, metrics) for title, x, across in _AXES] if len(known) else []


def _figure(made: pd.DataFrame, across: pd.Series, title: str, x: str, metrics: Metrics) -> go.Figure:
    unit, scale = metrics.scaled(metrics.primary)
    up, right, harm = scale * made[f"{metrics.primary}_personal"], across, 100 * made["harm_global"]
    told = harm.map(lambda h: f"{h:.0f} % of the clients harmed" if h == h else "harm not known")
    figure = empty(title, x, f"personal {unit}", height=480)
    bar = {"title": {"text": "harmed, %", "side": "right"}, "thickness": 12, "len": 0.8}
    shade = {"colorscale": _HARM, "cmin": 0, "cmax": 100, "colorbar": bar, "line": {"width": 1, "color": "#777777"}}
    hover = f"%{{text}}<br>{x}: %{{x:,.4g}}<br>personal {unit}: %{{y:.4g}}<br>%{{customdata}}<extra></extra>"
    columns = {"x": right, "y": up, "text": made["method"], "customdata": told}
    look = {"mode": "markers", "hovertemplate": hover, "showlegend": False}
    for chosen, marker in ((harm.notna(), {**shade, "color": [*harm.dropna()]}), (harm.isna(), {"color": "#999999"})):
        if chosen.any():
            figure.add_scatter(**{n: [*c[chosen]] for n, c in columns.items()}, **look, marker={**marker, "size": 14})
    height = max(up) - min(up) or 1.0
    labels = place_labels([*right], [*up], max(right) or 1.0, height)
    for at, y, name in zip(right, labels, made["method"], strict=True):
        figure.add_annotation(x=at, y=y, text=name, showarrow=False, xanchor="left", xshift=11, font={"size": 12})
    figure.update_xaxes(range=[-0.04 * max(right), 1.3 * (max(right) or 1.0)], zeroline=False)
    figure.update_yaxes(range=[min(up) - 0.1 * height, max(up) + 0.1 * height])
    return figure


def place_labels(x: Sequence[float], y: Sequence[float], width: float, height: float) -> list[float]:
    """Return where to write the labels of points, from top to bottom, so that none covers another.

    A label is as high as its point, or a line below the lowest label that is near.

    >>> [round(v, 2) for v in place_labels([0, 0, 9], [1.0, 0.98, 0.98], width=10, height=1)]
    [1.0, 0.94, 0.98]
    """
    placed: dict[int, float] = {}
    for i in sorted(range(len(y)), key=lambda i: -y[i]):
        above = [v for j, v in placed.items() if abs(x[j] - x[i]) < _NEAR * width]
        placed[i] = min([y[i], *(v - _LINE * height for v in above if v - y[i] < _LINE * height)])
    return [placed[i] for i in range(len(y))]
