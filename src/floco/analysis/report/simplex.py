"""Plotly figures of the solution simplex: where the clients are, and loss and accuracy over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from floco.analysis.landscape import Landscape, Point
from floco.analysis.report.figures import empty, label_style, main_labels, name_clients
from floco.data.federation import Federation

_GREY = "#98a2b3"
_NAMED = 25  # clients whose names fit beside their points
_NEAR = 0.3, 0.1  # distances, across and up, below which two names would overlap


def polygon(endpoints: int) -> np.ndarray:
    """Return the positions of M endpoints on the unit circle, (M, 2)."""
    angles = np.pi / 2 + 2 * np.pi * np.arange(endpoints) / endpoints
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def simplex(
    centers: Mapping[str, Sequence[float]], federation: Federation, reached: Mapping[str, str], title: str
) -> go.Figure:
    """Return the clients on the simplex, coloured by their most frequent label.

    A client is drawn at the mean of the endpoints weighted by its center (M,). `reached` is what its model reaches, as
    text. Without labels, all have one colour.
    """
    corners = polygon(len(next(iter(centers.values()))))
    figure = empty(title, "", "", height=560)
    _draw_outline(figure, corners)
    groups: dict[int, list[str]] = {}
    for client in centers:
        counts = federation.label_counts(federation.client(client).train)
        groups.setdefault(int(np.argmax(counts)) if counts else 0, []).append(client)
    names = federation.names if federation.task.labelled else ("clients",)
    for label, mine in sorted(groups.items()):
        x, y = (np.array([centers[c] for c in mine]) @ corners).T.tolist()
        text = [_client_text(c, federation, reached) for c in mine]
        shade, symbol, _ = label_style(label)
        marker = {"size": 11, "color": shade, "symbol": symbol, "line": {"width": 1, "color": "white"}}
        look = {"mode": "markers", "marker": marker, "hovertemplate": "%{text}<extra></extra>"}
        figure.add_scatter(x=x, y=y, text=text, name=names[label], **look)
    if len(centers) <= _NAMED:
        _name_points(figure, {c: tuple(np.array(center) @ corners) for c, center in centers.items()})
    cross = {"symbol": "cross-thin", "size": 14, "line": {"width": 2, "color": _GREY}}
    figure.add_scatter(x=[0], y=[0], mode="markers", marker=cross, name="global model, 1/M", hoverinfo="name")
    figure.update_xaxes(visible=False, range=[-1.2, 1.2])
    figure.update_yaxes(visible=False, range=[-1.2, 1.2], scaleanchor="x")
    return figure.update_layout(margin={"l": 10, "r": 10, "t": 10, "b": 10})


def _name_points(figure: go.Figure, points: Mapping[str, tuple[float, float]]) -> None:
    """Write the clients' names above their points; those of points that are close together share a line."""
    groups: dict[tuple[float, float], list[str]] = {}
    for client, (x, y) in points.items():
        near = next((at for at in groups if abs(at[0] - x) < _NEAR[0] and abs(at[1] - y) < _NEAR[1]), (x, y))
        groups.setdefault(near, []).append(client)
    for (x, y), clients in groups.items():
        more = f" + {len(clients) - 2}" if len(clients) > 2 else ""
        shown = escape(", ".join(clients[:2]) + more)
        figure.add_annotation(text=shown, x=x, y=y, yshift=13, showarrow=False, font={"size": 10})


def _draw_outline(figure: go.Figure, corners: np.ndarray) -> None:
    x, y = np.concatenate([corners, corners[:1]]).T.tolist()
    hidden, line = {"showlegend": False}, {"color": _GREY, "width": 1}
    figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", **hidden)
    marker, hover = {"color": _GREY, "size": 7}, "endpoint %{text}<extra></extra>"
    look = {"mode": "markers+text", "textposition": "top center", "marker": marker, "hovertemplate": hover}
    figure.add_scatter(x=x[:-1], y=y[:-1], text=[f"W{m + 1}" for m in range(len(corners))], **look, **hidden)


def _client_text(client: str, federation: Federation, reached: Mapping[str, str]) -> str:
    lines = [f"client {client}", main_labels(client, federation), f"personal {reached.get(client, '-')}"]
    return "<br>".join(filter(None, lines))


def edges(found: Landscape, reference: float | None, unit: str = "loss", scale: float = 1.0) -> go.Figure:
    """Return loss or primary metric along the edges of the simplex, at its middle, and of FedAvg if known."""
    words = unit.removesuffix(", %")
    figure = empty(f"{words.capitalize()} on the edges of the simplex", "from one endpoint to the next", unit)

    def value(p: Point) -> float:
        return p.loss if unit == "loss" else scale * p.value

    look = {"mode": "lines", "line": {"width": 1.3, "color": "#56b4e9"}, "showlegend": False}
    for (i, j), points in found.edges.items():
        t, hover = (
            [k / (len(points) - 1) for k in range(len(points))],
            f"W{i + 1} to W{j + 1}: %{{y:.4g}}<extra></extra>",
        )
        figure.add_scatter(x=t, y=[value(p) for p in points], hovertemplate=hover, **look)
    middle = ("middle of the simplex, 1/M", value(found.middle), "#d55e00")
    for name, height, shade in (middle, ("FedAvg's global model", reference, "#009e73")):
        if height is not None:
            line, hover = {"dash": "dash", "color": shade, "width": 2}, f"{name}: %{{y:.4g}}<extra></extra>"
            figure.add_scatter(x=[0, 1], y=[height] * 2, mode="lines", name=name, line=line, hovertemplate=hover)
    return figure


def plane(
    corners: tuple[int, int, int],
    points: Sequence[Point],
    values: Sequence[float],
    reach: tuple[float, float],
    unit: str,
) -> go.Figure:
    """Return the triangle through three endpoints, coloured by the points' values.

    `reach` is the range of the colours, the same for all planes.
    """
    ends = [f"W{k + 1}" for k in corners]
    figure = empty(f"{unit.capitalize()} between {ends[0]}, {ends[1]} and {ends[2]}", "", "", height=400)
    a, b, c = ([p.alpha[k] for p in points] for k in corners)
    shades = {"color": list(values), "colorscale": "Viridis", "cmin": reach[0], "cmax": reach[1]}
    marker = {**shades, "size": 15, "symbol": "hexagon", "showscale": True, "colorbar": {"thickness": 12}}
    hover = f"%{{a:.1f}} / %{{b:.1f}} / %{{c:.1f}}: {unit} %{{marker.color:.4g}}<extra></extra>"
    look = {"mode": "markers", "marker": marker, "showlegend": False, "cliponaxis": False}
    figure.add_scatterternary(a=a, b=b, c=c, hovertemplate=hover, **look)
    axes = {f"{axis}axis": {"title": end, "showticklabels": False} for axis, end in zip("abc", ends, strict=True)}
    return figure.update_layout(ternary={"sum": 1, **axes}, margin={"l": 40, "r": 30, "t": 40, "b": 40})


def subregions(found: Landscape) -> go.Figure:
    """Return each client's loss on its own test part: inside its subregion, at its center and at the middle."""
    figure = empty("Loss of each client on its own test part", "client, in order of the loss at its center", "loss")
    ordered = sorted(found.subregions.items(), key=lambda item: item[1][0].loss)
    names = [name for name, _ in ordered]
    low, high = ([pick(p.loss for p in points[2:]) for _, points in ordered] for pick in (min, max))
    centers, middles = ([points[k].loss for _, points in ordered] for k in (0, 1))
    bars, hover = [b - a for a, b in zip(low, high, strict=True)], "client %{x}<extra></extra>"
    look = {"name": "inside its subregion, from best to worst draw", "marker_color": "#56b4e9"}
    figure.add_bar(x=names, y=bars, base=low, hovertemplate=hover, **look)
    center, middle = (
        ("at its center", centers, "circle", "#0072b2"),
        ("at the middle, 1/M", middles, "x-thin", "#d55e00"),
    )
    for name, values, symbol, shade in (center, middle):
        marker = {"symbol": symbol, "size": 8, "color": shade, "line": {"width": 2, "color": shade}}
        hover = f"client %{{x}} {name}: %{{y:.4g}}<extra></extra>"
        figure.add_scatter(x=names, y=values, mode="markers", name=name, marker=marker, hovertemplate=hover)
    name_clients(figure, len(names))
    return figure
