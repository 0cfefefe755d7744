"""Loss and accuracy over the solution simplex: at endpoints, on edges and planes, inside subregions, and between whole networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from floco.algorithms.floco import OnSimplex
from floco.client.predict import global_model, logits
from floco.client.setup import Setup
from floco.core.random import stream
from floco.core.values import Message, Row, ServerState, Tensors
from floco.data.federation import Federation
from floco.deliver.mixtures import Mixtures
from floco.simplex import sample_subregion

_SAMPLES = 1000  # test samples on which a surface is measured
_ALONG = 11  # points on an edge


@dataclass(frozen=True)
class Point:
    """A mixture, and how the model there does."""

    alpha: tuple[float, ...]
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Landscape:
    """What was measured over one simplex."""

    samples: int
    linear: bool
    """Whether logits are linear in the mixture (then the loss is convex in it)."""
    middle: Point
    endpoints: tuple[Point, ...]
    edges: dict[tuple[int, int], tuple[Point, ...]]
    """From endpoint i to endpoint j in equal steps."""
    planes: dict[tuple[int, int, int], tuple[Point, ...]]
    """A triangular grid through three endpoints."""
    subregions: dict[str, tuple[Point, ...]]
    """Client -> on its own test part: at its center, at the middle, then at mixtures drawn from its subregion."""

    @property
    def rows(self) -> list[Row]:
        """All points, one row each; endpoints are numbered from 1, mixtures are M numbers with spaces between."""
        groups: list[tuple[str, str, Sequence[Point]]] = [("middle", "", [self.middle]), ("endpoint", "", self.endpoints)]
        groups += [("edge", f"{i + 1}-{j + 1}", points) for (i, j), points in self.edges.items()]
        groups += [("plane", "-".join(str(i + 1) for i in corners), points) for corners, points in self.planes.items()]
        groups += [("subregion", client, points) for client, points in self.subregions.items()]
        every = [(kind, where, p) for kind, where, points in groups for p in points]
        return [{"kind": kind, "where": where, "alpha": " ".join(f"{a:.6g}" for a in p.alpha), "loss": p.loss, "accuracy": p.accuracy} for kind, where, p in every]

    @property
    def barrier(self) -> float:
        """The highest rise of the loss on an edge above the line between its ends, in nats."""
        return max((barrier([p.loss for p in points]) for points in self.edges.values()), default=0.0)


def barrier(losses: Sequence[float]) -> float:
    """Return how far the losses at equal steps on a line rise above the straight line between the first and the last.

    >>> barrier([1.0, 2.5, 2.0])
    1.0
    """
    n = len(losses) - 1
    return max(loss - ((n - i) * losses[0] + i * losses[-1]) / n for i, loss in enumerate(losses))


def common_sample(federation: Federation, most: int = _SAMPLES) -> tuple[torch.Tensor, torch.Tensor]:
    """Return raw samples and labels of the global test part, or of the clients' test parts; evenly spaced if there are more than `most`."""
    x, y = federation.common_test
    chosen = torch.linspace(0, len(y) - 1, min(most, len(y))).long()
    return x[chosen], y[chosen]


def _judge(found: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return mean loss and accuracy for logits (A, n, C), as (A, 2)."""
    log_p = found.double().log_softmax(-1)
    loss = -log_p.gather(-1, y.expand(len(found), -1).unsqueeze(-1)).squeeze(-1).mean(-1)
    return torch.stack([loss, (found.argmax(-1) == y).double().mean(-1)], dim=-1)


def measured(mixtures: Mixtures, alphas: torch.Tensor, y: torch.Tensor) -> tuple[Point, ...]:
    """Return loss and accuracy of the mixtures alphas (A, M) on their samples, with labels y (n,)."""
    with torch.no_grad():
        found = torch.cat([_judge(mixtures.logits(alpha)[None], y) for alpha in alphas])
    return tuple(Point(tuple(a), loss, accuracy) for a, (loss, accuracy) in zip(alphas.tolist(), found.tolist(), strict=True))


def _triangle(endpoints: int, corners: tuple[int, int, int], steps: int = 10) -> torch.Tensor:
    rows = []
    for i in range(steps + 1):
        for j in range(steps + 1 - i):
            alpha = torch.zeros(endpoints, dtype=torch.float64)
            alpha[list(corners)] = torch.tensor([i, j, steps - i - j], dtype=torch.float64) / steps
            rows.append(alpha)
    return torch.stack(rows)


def landscape(setup: Setup, algorithm: OnSimplex, state: ServerState, *, draws: int = 20) -> Landscape:
    """Return loss and accuracy of the shared simplex: all over it on test data, and in each subregion on its client's own.

    Edges are those of the ring 0, 1, ..., M - 1, 0; planes go through three neighbours each, three planes at most.
    """
    m = algorithm.endpoints
    x, y = common_sample(setup.federation)
    mixtures = Mixtures(setup, algorithm.mixing, state.shared, x)
    eye = torch.eye(m, dtype=torch.float64)
    t = torch.linspace(0, 1, _ALONG, dtype=torch.float64)[:, None]
    ring = list(pairwise([*range(m), 0])) if m > 2 else [(0, 1)] if m == 2 else []
    triples = sorted({(i, i + 1, i + 2) for i in range(0, max(0, m - 2), max(1, m // 3))})[:3]
    lines = {(i, j): (1 - t) * eye[i] + t * eye[j] for i, j in ring}
    planes = {c: _triangle(m, c) for c in triples}
    return Landscape(
        len(y),
        mixtures.linear,
        measured(mixtures, mixtures.middle[None], y)[0],
        measured(mixtures, eye, y),
        {key: measured(mixtures, a, y) for key, a in lines.items()},
        {key: measured(mixtures, a, y) for key, a in planes.items()},
        _subregions(setup, algorithm, state, draws),
    )


def _subregions(setup: Setup, algorithm: OnSimplex, state: ServerState, draws: int) -> dict[str, tuple[Point, ...]]:
    found = {}
    for client in setup.federation.clients:
        own = state.by_client.get(client.id)
        if own is None:
            continue
        center = own["center"]
        drawn = sample_subregion(center, algorithm.radius, draws, generator=stream(setup.seed, "landscape", client.id))
        alphas = torch.cat([center[None], torch.full_like(center, 1 / algorithm.endpoints)[None], drawn])
        mixtures = Mixtures(setup, algorithm.mixing, state.shared, setup.federation.x[client.test])
        found[client.id] = measured(mixtures, alphas, setup.federation.y[client.test])
    return found


def between(setup: Setup, a: Tensors, b: Tensors) -> list[tuple[float, float]]:
    """Return loss and accuracy on the line from one whole network to another, in equal steps."""
    x, y = common_sample(setup.federation)
    line = [{n: (1 - t) * a[n] + t * b[n] if a[n].is_floating_point() else a[n] for n in a} for t in torch.linspace(0, 1, _ALONG).tolist()]
    return [(float(loss), float(accuracy)) for loss, accuracy in (_judge(logits(setup, w, x)[None], y)[0] for w in line)]


def network_of(setup: Setup, state: ServerState) -> Tensors | None:
    """Return the global model as the network's own tensors; None for a method without one."""
    tensors = global_model(setup, Message(state.round, "evaluate", state.shared))
    layout = setup.network.layout
    return None if tensors is None else {n: tensors[n] for n in (*layout.parameters, *layout.buffers)}
