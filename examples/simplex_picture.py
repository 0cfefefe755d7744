"""Draw the clients of a run on the solution simplex, as in the README: python examples/simplex_picture.py RUN PICTURE.

The endpoints are on a circle; each client is at the mean of the endpoints weighted by its center, in the colour of the
group of its samples (`data.group`), or of its most frequent label if the run has no groups.
"""

import sys

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

import floco

path, picture = sys.argv[1:]
run = floco.open_run(path)
table, federation = run.clients, run.setup.with_samples("the picture").federation
placed = table[table["center"].notna()]
if placed.empty:
    name = run.setup.algorithm.name
    raise floco.FlocoError(f"no client has a center: the run uses {name}, or its assignment has not happened")
centers = np.array(placed["center"].tolist())  # (K, M)
angles = np.pi / 2 + 2 * np.pi * np.arange(centers.shape[1]) / centers.shape[1]
corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (M, 2)
points = centers @ corners  # (K, 2)
trains = [federation.client(c).train for c in placed["client"]]
if federation.groups is None:
    title, names = "most frequent label", federation.names
    labels = np.array([np.argmax(federation.label_counts(train)) for train in trains])
else:
    title, names = federation.groups.column, federation.groups.names
    labels = np.array([int(federation.groups.numbers[train].mode().values) for train in trains])

figure = Figure(figsize=(6.4, 5.2), layout="constrained")
axes = figure.add_subplot()
axes.fill(*corners.T, facecolor="#f2f4f7", edgecolor="#98a2b3", linewidth=1)
axes.scatter(*corners.T, color="#475467", s=26, zorder=2)
for m, (x, y) in enumerate(corners * 1.09):
    axes.text(x, y, f"$W_{{{m + 1}}}$", ha="center", va="center", color="#475467")
for label in np.unique(labels):
    look = {"color": colormaps["tab10"](label % 10), "edgecolor": "white", "linewidth": 0.8}
    axes.scatter(*points[labels == label].T, s=46, zorder=3, label=names[label], **look)
axes.plot(0, 0, marker="+", markersize=12, color="black", zorder=4, linestyle="none", label="global model, 1/M")
axes.legend(title=title, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
axes.set_aspect("equal")
axes.set_title(f"{len(placed)} clients on the solution simplex, round {run.progress.round}", pad=18)
axes.axis("off")
figure.savefig(picture, dpi=130, bbox_inches="tight")
print(picture)
