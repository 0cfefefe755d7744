"""The report's figures: from tables and measurements to plotly figures. Colours of paper and text are set by the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from floco.analysis.landscape import Landscape, Point
from floco.analysis.tables import Results
from floco.data.federation import Federation

_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
_DASHES = ("solid", "dash", "dot")


def _figure(title: str, x: str, y: str, height: int = 420) -> go.Figure:
    heading = {"text": title, "x": 0.02, "font": {"size": 15}}
    figure = go.Figure(layout={"title": heading, "height": height, "margin": {"l": 58, "r": 12, "t": 48, "b": 48}, "legend": {"orientation": "h", "x": 0}, "template": "none"})
    figure.update_xaxes(title=x, automargin=True)
    figure.update_yaxes(title=y, automargin=True)
    return figure


def _style(i: int) -> dict[str, object]:
    return {"color": _COLOURS[i % len(_COLOURS)], "dash": _DASHES[i // len(_COLOURS) % len(_DASHES)], "width": 3 if i == 0 else 1.7}


def curve(results: Results, column: str, title: str, y: str, *, percent: bool = False, log: bool = False) -> go.Figure:
    """Return one line a method against the round: the mean over seeds, and their range on hover."""
    figure = _figure(title, "round", y)
    for i, name in enumerate(results.names):
        table = results.history[results.history["method"] == name].groupby("round")[column].agg(["mean", "min", "max"]).dropna() * (100 if percent else 1)
        if len(table):
            text = [f"{low:.4g} to {high:.4g} over seeds" for low, high in zip(table["min"], table["max"], strict=True)]
            hover = f"{name}<br>round %{{x}}: %{{y:.4g}}<br>%{{text}}<extra></extra>"
            figure.add_scatter(
                x=list(table.index),
                y=list(table["mean"]),
                text=text,
                name=name,
                mode="lines+markers",
                line=_style(i),
                marker={"size": 5},
                zorder=len(results.names) - i,
                hovertemplate=hover,
            )
    if log:
        figure.update_yaxes(type="log")
    return figure


def distributions(results: Results) -> go.Figure:
    """Return one box a method of its clients' own accuracies, every client a point."""
    figure = _figure("Personal accuracy of every client", "accuracy on its own test part, %", "", height=90 + 46 * len(results.names))
    for i, name in enumerate(results.names):
        mine = results.clients[results.clients["method"] == name]
        text = [f"client {c}, seed {s}" for c, s in zip(mine["client"], mine["seed"], strict=True)]
        values = list(100 * mine["accuracy_personal"])
        marker = {"color": _COLOURS[i % len(_COLOURS)], "size": 4}
        figure.add_box(
            x=values, name=name, text=text, boxpoints="all", jitter=0.6, pointpos=0, marker=marker, line={"width": 1.3}, hovertemplate="%{text}: %{x:.1f} %<extra></extra>"
        )
    figure.update_layout(showlegend=False)
    figure.update_yaxes(autorange="reversed")
    return figure


def labels(federation: Federation) -> go.Figure:
    """Return one stacked bar a client of its samples by label."""
    figure = _figure("Who has what", "client", "samples")
    figure.update_layout(barmode="stack", bargap=0.15)
    counts = [[a + b for a, b in zip(federation.label_counts(c.train), federation.label_counts(c.test), strict=True)] for c in federation.clients]
    for label, name in enumerate(federation.names):
        column, where = [row[label] for row in counts], [f"client {c}" for c in federation.ids]
        figure.add_bar(
            x=list(federation.ids),
            y=column,
            text=where,
            textposition="none",
            name=name,
            marker_color=_colour(label, federation.classes),
            hovertemplate=f"%{{text}}: %{{y}} of {name}<extra></extra>",
        )
    figure.update_xaxes(type="category", showticklabels=len(federation.clients) <= 60)
    return figure


def _colour(label: int, classes: int) -> str:
    return _COLOURS[label] if classes <= len(_COLOURS) else f"hsl({360 * label / classes:.0f},60%,50%)"


def polygon(endpoints: int) -> np.ndarray:
    """Return the places of M endpoints on a circle, (M, 2)."""
    angles = np.pi / 2 + 2 * np.pi * np.arange(endpoints) / endpoints
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def simplex(centers: Mapping[str, Sequence[float]], federation: Federation, accuracies: Mapping[str, float], title: str) -> go.Figure:
    """Return the clients on the simplex: each at the mean of the endpoints weighted by its center, coloured by its most frequent label."""
    corners = polygon(len(next(iter(centers.values()))))
    figure = _figure(title, "", "", height=560)
    outline = np.concatenate([corners, corners[:1]])
    figure.add_scatter(x=outline[:, 0].tolist(), y=outline[:, 1].tolist(), mode="lines", line={"color": "#98a2b3", "width": 1}, showlegend=False, hoverinfo="skip")
    numbers = [f"W{m + 1}" for m in range(len(corners))]
    ends = {"mode": "markers+text", "textposition": "top center", "marker": {"color": "#98a2b3", "size": 7}, "showlegend": False}
    figure.add_scatter(x=corners[:, 0].tolist(), y=corners[:, 1].tolist(), text=numbers, hovertemplate="endpoint %{text}<extra></extra>", **ends)
    groups: dict[int, list[str]] = {}
    for client in centers:
        counts = federation.label_counts(federation.client(client).train)
        groups.setdefault(int(np.argmax(counts)), []).append(client)
    for label, mine in sorted(groups.items()):
        places = np.array([centers[c] for c in mine]) @ corners
        text = [_client_text(c, federation, accuracies) for c in mine]
        marker = {"size": 11, "color": _colour(label, federation.classes), "line": {"width": 1, "color": "white"}}
        figure.add_scatter(
            x=places[:, 0].tolist(), y=places[:, 1].tolist(), text=text, mode="markers", name=federation.names[label], marker=marker, hovertemplate="%{text}<extra></extra>"
        )
    figure.add_scatter(
        x=[0], y=[0], mode="markers", marker={"symbol": "cross-thin", "size": 14, "line": {"width": 2, "color": "#98a2b3"}}, name="global model, 1/M", hoverinfo="name"
    )
    figure.update_xaxes(visible=False, range=[-1.2, 1.2])
    figure.update_yaxes(visible=False, range=[-1.2, 1.2], scaleanchor="x")
    return figure.update_layout(margin={"l": 10, "r": 10, "t": 40, "b": 10})


def _client_text(client: str, federation: Federation, accuracies: Mapping[str, float]) -> str:
    counts = federation.label_counts(federation.client(client).train)
    most = sorted(range(len(counts)), key=lambda c: -counts[c])[:4]
    shown = ", ".join(f"{counts[c]} of {federation.names[c]}" for c in most if counts[c])
    return f"client {client}<br>{shown}<br>personal accuracy {100 * accuracies.get(client, math.nan):.1f} %"


def edges(found: Landscape, reference: float | None, *, accuracy: bool = False) -> go.Figure:
    """Return the loss (or accuracy) along the edges of the simplex, with the middle, and FedAvg's where it is known."""
    what = "accuracy, %" if accuracy else "loss"
    figure = _figure(f"{'Accuracy' if accuracy else 'Loss'} on the edges of the simplex", "from one endpoint to the next", what)

    def value(p: Point) -> float:
        return 100 * p.accuracy if accuracy else p.loss

    for (i, j), points in found.edges.items():
        t = [k / (len(points) - 1) for k in range(len(points))]
        figure.add_scatter(
            x=t,
            y=[value(p) for p in points],
            mode="lines",
            line={"width": 1.3, "color": "#7aa6d8"},
            showlegend=False,
            hovertemplate=f"W{i + 1} to W{j + 1}: %{{y:.4g}}<extra></extra>",
        )
    marks = [("middle of the simplex, 1/M", value(found.middle), "#d62728"), ("FedAvg's global model", reference, "#2ca02c")]
    for name, height, colour in marks:
        if height is not None:
            figure.add_scatter(
                x=[0, 1], y=[height, height], mode="lines", name=name, line={"dash": "dash", "color": colour, "width": 2}, hovertemplate=f"{name}: %{{y:.4g}}<extra></extra>"
            )
    return figure


def plane(corners: tuple[int, int, int], points: Sequence[Point], scale: tuple[float, float], unit: str = "loss") -> go.Figure:
    """Return the triangle through three endpoints, coloured by loss (or accuracy in per cent); `scale` is the range of all planes."""
    figure = _figure(f"{unit.capitalize()} between W{corners[0] + 1}, W{corners[1] + 1} and W{corners[2] + 1}", "", "", height=400)
    values = [p.loss if unit == "loss" else 100 * p.accuracy for p in points]
    a, b, c = ([p.alpha[k] for p in points] for k in corners)
    marker = {"color": values, "colorscale": "Viridis", "size": 15, "symbol": "hexagon", "cmin": scale[0], "cmax": scale[1], "showscale": True, "colorbar": {"thickness": 12}}
    hover = f"%{{a:.1f}} / %{{b:.1f}} / %{{c:.1f}}: {unit} %{{marker.color:.4g}}<extra></extra>"
    figure.add_scatterternary(a=a, b=b, c=c, mode="markers", marker=marker, hovertemplate=hover, showlegend=False, cliponaxis=False)
    axes = {f"{axis}axis": {"title": f"W{k + 1}", "showticklabels": False} for axis, k in zip("abc", corners, strict=True)}
    return figure.update_layout(ternary={"sum": 1, **axes}, margin={"l": 40, "r": 30, "t": 70, "b": 40})


def subregions(found: Landscape) -> go.Figure:
    """Return for each client the losses on its own test part: inside its subregion, at its center, and at the middle of the simplex."""
    figure = _figure("Loss of each client on its own test part", "client, in order of the loss at its center", "loss")
    ordered = sorted(found.subregions.items(), key=lambda item: item[1][0].loss)
    names = [name for name, _ in ordered]
    low, high = ([pick(p.loss for p in points[2:]) for _, points in ordered] for pick in (min, max))
    centers, middles = ([points[k].loss for _, points in ordered] for k in (0, 1))
    bars = [b - a for a, b in zip(low, high, strict=True)]
    figure.add_bar(x=names, y=bars, base=low, name="inside its subregion, from best to worst draw", marker_color="#7aa6d8", hovertemplate="client %{x}<extra></extra>")
    for name, values, symbol, colour in (("at its center", centers, "circle", "#1f77b4"), ("at the middle, 1/M", middles, "x-thin", "#d62728")):
        marker = {"symbol": symbol, "size": 8, "color": colour, "line": {"width": 2, "color": colour}}
        figure.add_scatter(x=names, y=values, mode="markers", name=name, marker=marker, hovertemplate=f"client %{{x}} {name}: %{{y:.4g}}<extra></extra>")
    figure.update_xaxes(type="category", showticklabels=False)
    return figure


def lines(between: Mapping[str, Sequence[float]]) -> go.Figure:
    """Return losses on straight lines between whole networks."""
    figure = _figure("Loss between whole networks", "from one network to the other", "loss")
    for i, (name, values) in enumerate(between.items()):
        t = [k / (len(values) - 1) for k in range(len(values))]
        figure.add_scatter(x=t, y=list(values), name=name, mode="lines+markers", line=_style(i), hovertemplate=f"{name}: %{{y:.4g}}<extra></extra>")
    return figure


def worst_clients(results: Results, federation: Federation | None, seed: int, n: int = 8) -> pd.DataFrame:
    """Return the clients of a seed that the first method serves worst, with every method's accuracy in per cent, and their labels."""
    table = results.clients[results.clients["seed"] == seed].pivot_table(index="client", columns="method", values="accuracy_personal", sort=False)
    names = [m for m in results.names if m in table]
    found = (100 * table[names]).sort_values(names[0]).head(n).round(1)
    if federation is not None:
        known = [c for c in found.index if c in federation.ids]
        texts = {c: _client_text(c, federation, {}).split("<br>")[1] for c in known}
        found.insert(0, "labels", [texts.get(c, "") for c in found.index])
    found = found.reset_index()
    found.attrs["by"] = names[0]
    return found
