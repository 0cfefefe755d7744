"""Loss and primary metric over the solution simplex: at endpoints, on edges and planes, in subregions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from floco.client.mixtures import Mixtures
from floco.client.predict import compute_outputs, find_global_model
from floco.client.setup import Setup
from floco.core.inputs import Inputs, rows
from floco.core.mixing import Mixing
from floco.core.random import stream
from floco.core.task import Task
from floco.core.values import Message, Row, ServerState, Tensors
from floco.data.federation import Federation
from floco.server.progress import Progress
from floco.simplex import sample_subregion

_SAMPLES = 1000  # test samples on which a surface is measured
_ALONG = 11  # points on an edge


@dataclass(frozen=True)
class Point:
    """A mixture (M,), and loss and primary metric of its model."""

    alpha: tuple[float, ...]
    loss: float
    value: float
    """The task's primary metric."""

    @property
    def text(self) -> str:
        """The mixture as M numbers separated by spaces."""
        return " ".join(f"{a:.6g}" for a in self.alpha)


@dataclass(frozen=True)
class Landscape:
    """All measurements over one simplex."""

    samples: int
    metric: str
    """The task's primary metric."""
    convex: bool
    """Whether the loss is convex in the mixture."""
    middle: Point
    endpoints: tuple[Point, ...]
    edges: dict[tuple[int, int], tuple[Point, ...]]
    """(i, j) -> points from endpoint i to endpoint j in equal steps."""
    planes: dict[tuple[int, int, int], tuple[Point, ...]]
    """Three endpoints -> points of the triangular grid through them."""
    subregions: dict[str, tuple[Point, ...]]
    """Client -> points on its own test part: its center, the middle, then mixtures drawn from its subregion."""

    @property
    def rows(self) -> list[Row]:
        """All points, one row each; endpoints are numbered from 1, and a mixture is M numbers separated by spaces."""
        groups: list[tuple[str, str, Sequence[Point]]] = [("middle", "", [self.middle])]
        groups += [("endpoint", "", self.endpoints)]
        groups += [("edge", f"{i + 1}-{j + 1}", points) for (i, j), points in self.edges.items()]
        groups += [("plane", "-".join(str(i + 1) for i in corners), points) for corners, points in self.planes.items()]
        groups += [("subregion", client, points) for client, points in self.subregions.items()]
        return [
            {"kind": kind, "where": where, "alpha": p.text, "loss": p.loss, self.metric: p.value}
            for kind, where, points in groups
            for p in points
        ]

    @property
    def barrier(self) -> float:
        """The largest rise of the loss on an edge above the line between its ends, in nats."""
        return max((barrier([p.loss for p in points]) for points in self.edges.values()), default=0.0)


def barrier(losses: Sequence[float]) -> float:
    """Return the largest rise of losses at equal steps above the straight line between the first and the last.

    >>> barrier([1.0, 2.5, 2.0])
    1.0
    """
    n = len(losses) - 1
    return max(loss - ((n - i) * losses[0] + i * losses[-1]) / n for i, loss in enumerate(losses))


def common_sample(federation: Federation, most: int = _SAMPLES) -> tuple[Inputs, torch.Tensor]:
    """Return at most `most` evenly spaced raw samples and targets of the global test part or, if none, the clients'."""
    x, y = federation.common_test
    chosen = torch.linspace(0, len(y) - 1, min(most, len(y))).long()
    return rows(x, chosen), y[chosen]


def _judge(task: Task, found: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Return mean loss and primary metric of outputs (n, ...)."""
    return float(task.losses(found.double(), y).mean()), task.value(task.score(found, y))


@torch.no_grad()
def measure(task: Task, mixtures: Mixtures, alphas: torch.Tensor, y: torch.Tensor) -> tuple[Point, ...]:
    """Return loss and primary metric of the mixtures alphas (A, M) on the samples of `mixtures`, with targets y."""
    return tuple(Point(tuple(alpha.tolist()), *_judge(task, mixtures.outputs(alpha), y)) for alpha in alphas)


def _triangle(endpoints: int, corners: tuple[int, int, int], steps: int = 10) -> torch.Tensor:
    points = []
    for i in range(steps + 1):
        for j in range(steps + 1 - i):
            alpha = torch.zeros(endpoints, dtype=torch.float64)
            alpha[list(corners)] = torch.tensor([i, j, steps - i - j], dtype=torch.float64) / steps
            points.append(alpha)
    return torch.stack(points)


def landscape(setup: Setup, mixing: Mixing, progress: Progress, *, draws: int = 20) -> Landscape:
    """Return loss and primary metric over the shared simplex, and in each subregion on its client's test part.

    The edges are those of the ring 0, 1, ..., M - 1, 0. There are at most three planes, each through three neighbours.
    """
    m, task = mixing.endpoints, setup.task
    x, y = common_sample(setup.federation)
    mixtures = Mixtures(setup, mixing, progress.state.shared, x)
    eye = torch.eye(m, dtype=torch.float64)
    t = torch.linspace(0, 1, _ALONG, dtype=torch.float64)[:, None]
    ring = list(pairwise([*range(m), 0])) if m > 2 else [(0, 1)] if m == 2 else []
    triples = sorted({(i, i + 1, i + 2) for i in range(0, max(0, m - 2), max(1, m // 3))})[:3]
    lines = {(i, j): (1 - t) * eye[i] + t * eye[j] for i, j in ring}
    planes = {c: _triangle(m, c) for c in triples}
    return Landscape(
        len(y),
        task.primary,
        mixtures.convex,
        measure(task, mixtures, mixtures.middle[None], y)[0],
        measure(task, mixtures, eye, y),
        {key: measure(task, mixtures, a, y) for key, a in lines.items()},
        {key: measure(task, mixtures, a, y) for key, a in planes.items()},
        _subregions(setup, mixing, progress, draws),
    )


def _subregions(setup: Setup, mixing: Mixing, progress: Progress, draws: int) -> dict[str, tuple[Point, ...]]:
    found, centers = {}, progress.centers(mixing)
    for client in setup.federation.clients:
        center = centers.get(client.id)
        if center is None or not len(client.test):
            continue
        drawn = sample_subregion(center, mixing.radius, draws, generator=stream(setup.seed, "landscape", client.id))
        alphas = torch.cat([center[None], mixing.middle[None], drawn])
        simplex = setup.shifted(progress.state.shared, setup.facts(client.id).label_counts)
        mixtures = Mixtures(setup, mixing, simplex, rows(setup.federation.x, client.test))
        found[client.id] = measure(setup.task, mixtures, alphas, setup.federation.y[client.test])
    return found


def between(setup: Setup, a: Tensors, b: Tensors) -> list[tuple[float, float]]:
    """Return loss and primary metric in equal steps on the line from one network to another."""
    x, y = common_sample(setup.federation)
    found = []
    for t in torch.linspace(0, 1, _ALONG).tolist():
        mixed = {n: (1 - t) * a[n] + t * b[n] if a[n].is_floating_point() else a[n] for n in a}
        found.append(_judge(setup.task, compute_outputs(setup, mixed, x), y))
    return found


def network_of(setup: Setup, state: ServerState) -> Tensors | None:
    """Return the global model as parameters and buffers of the network, None for a method without one."""
    tensors = find_global_model(setup, Message(state.round, "evaluate", state.shared))
    layout = setup.network.layout
    return None if tensors is None else {n: tensors[n] for n in layout.names}
