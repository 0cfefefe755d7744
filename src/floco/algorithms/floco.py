"""Floco: federated learning over connected modes (Grinwald, Wiesner, Nakajima, NeurIPS 2024).

A round: `select` -> `message` -> on each client `begin`, `phases`, `finish` -> `aggregate`, which in round `assign_at`
also assigns every client its center. docs/method.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from floco.core.algorithm import Algorithm, average
from floco.core.errors import FlocoError, warn
from floco.core.mixing import CENTER, CENTER_TENSOR, Mixing
from floco.core.network import Network
from floco.core.random import stream
from floco.core.settings import setting
from floco.core.task import Task
from floco.core.values import (
    Batch,
    Facts,
    Layout,
    Loss,
    Message,
    Models,
    Phase,
    Predict,
    Selection,
    ServerState,
    Step,
    Tensors,
    Training,
    Update,
    add_prefix,
    strip_prefix,
)
from floco.simplex import Assignment, assign, sample_released, sample_simplex, sample_subregion

_MAP = "assignment/"


@dataclass(frozen=True)
class MixtureSampler:
    """Draws n mixtures (n, M) from the subregion around the center; without radius, from the whole simplex."""

    endpoints: int
    radius: float | None
    released: bool

    def __call__(self, tensors: Tensors, n: int, generator: torch.Generator) -> torch.Tensor:
        """Return n mixtures (n, M)."""
        if self.radius is None:
            return sample_simplex(n, self.endpoints, generator=generator)
        sample = sample_released if self.released else sample_subregion
        return sample(tensors[CENTER_TENSOR].cpu(), self.radius, n, generator=generator)


@dataclass(frozen=True)
class SimplexMethod(Algorithm):
    """Base of Floco and Floco+: the shared simplex, its training, and the assignment."""

    tuned: ClassVar[Mapping[str, tuple[float, float]]] = {"radius": (0.1, 0.3)}
    global_model: ClassVar[str] = "alpha = 1/M"
    personal_model: ClassVar[str] = "alpha = beta_k"
    prefix: ClassVar[str] = ""
    """Prefix of a client's own simplex; "": it is the shared one."""
    endpoints: int = setting(10, "M: endpoints of the solution simplex", low=1)
    assign_at: int | str | None = setting(
        None, "tau: round of the assignment, counted from 1 (empty: half of the rounds)", low=1, choices=("never",)
    )
    radius: float = setting(0.1, "rho: L1 radius of a client's subregion", low=0)
    mix: str | tuple[str, ...] = setting(
        "last",
        "parameters that have endpoints: last (weight of the linear layer that gives the logits), "
        "all (with BatchNorm its statistics fit no single mixture), or names",
    )
    sampler: str = setting(
        "subregion", "mixtures after the assignment: exact, or as in released code", choices=("subregion", "released")
    )
    normalize: bool = setting(
        True,
        "assignment by signals of unit length, independent of the size of updates "
        "(false: as released, raw signals and a fixed grid)",
    )
    step: str = setting(
        "endpoint",
        "step size: endpoint (as published: a mixture moves by lr |alpha|^2 times the gradient), or mixture (by lr)",
        choices=("endpoint", "mixture"),
    )
    noise: float | None = setting(
        None, "other endpoints: the first plus Gaussian noise, relative to its RMS (empty: the initialiser)", low=0
    )

    def resolved(self, training: Training, layout: Layout | None = None) -> Self:
        """Return the algorithm with `assign_at` and, given a layout, the names of the mixed parameters filled in."""
        at = max(1, training.rounds // 2) if self.assign_at is None else self.assign_at
        if isinstance(at, int) and at > training.rounds:
            limit = f"training.rounds ({training.rounds})"
            raise FlocoError(f'assign_at must be at most {limit}, got {at}; "never" is legal')
        if layout is None:
            return replace(self, assign_at=at)
        names = Mixing.chosen(layout, self.mix)
        if layout.buffers and not {*names} <= {*layout.head}:
            below = sum(n not in layout.head for n in names)
            warn(
                f"algorithm.mix mixes {below} parameters below the head of a model with buffers ({layout.buffers[0]}, "
                "...): statistics such as BatchNorm's are averages over the mixtures of training, "
                "wrong for any single one, also the global model's; use GroupNorm or LayerNorm, or mix only the head"
            )
        return replace(self, assign_at=at, mix=names)

    @property
    def mixing(self) -> Mixing:
        """The mixed parameters and the shape of the simplex, once `resolved`."""
        names = (self.mix,) if isinstance(self.mix, str) else self.mix
        return Mixing(names, self.endpoints, self.radius, self.prefix)

    def init(self, network: Network, *, seed: int) -> ServerState:
        """Return the network with mixed parameters as M stacked endpoints (M, ...); endpoint 0 is the initial value."""
        shared = {**network.parameters, **network.buffers}
        first = {name: shared[name] for name in self.mixing.names}
        rest = [self._endpoints(network, first, seed, m) for m in range(1, self.endpoints)]
        stacked = {name: torch.stack([value, *(r[name] for r in rest)]) for name, value in first.items()}
        return ServerState({**shared, **stacked})

    def _endpoints(self, network: Network, first: Tensors, seed: int, m: int) -> Tensors:
        """Return endpoint m of all mixed parameters; without `noise`, one-dimensional ones equal endpoint 0."""
        if self.noise is None:
            return {**first, **network.redraw([n for n, t in first.items() if t.ndim > 1], seed=seed, draw=m)}
        endpoint = {}
        for n, t in first.items():
            gaussian = torch.randn(t.shape, generator=stream(seed, "noise", n, m), dtype=torch.float64)
            endpoint[n] = t + (self.noise * t.double().square().mean().sqrt() * gaussian).to(t.dtype)
        return endpoint

    def select(
        self, state: ServerState, clients: Sequence[str], *, fraction: float, generator: torch.Generator
    ) -> Selection:
        """Return a random selection as in FedAvg; in round tau all other clients probe, so that all K clients train."""
        train = super().select(state, clients, fraction=fraction, generator=generator).train
        assigning = state.round + 1 == self.assign_at
        return Selection(train, tuple(c for c in clients if c not in set(train)) if assigning else ())

    def aggregate(self, state: ServerState, updates: Sequence[Update], *, clients: Mapping[str, int]) -> ServerState:
        """Return the averaged state with centers: all are assigned in round tau, latecomers are placed afterwards."""
        after = average(state, updates)
        if after.round == self.assign_at:
            made = assign(self._signals(state, updates), self.endpoints, normalize=self.normalize)
            kept = {"mean": made.mean, "components": made.components, "z": torch.tensor(made.z, dtype=torch.float64)}
            return replace(after, kept=add_prefix(kept, _MAP), by_client=_centers(updates, made.centers))
        late = [u for u in updates if u.client not in state.by_client]
        if late and self.assigned(state):
            placed = _centers(late, self.place(state, self._signals(state, late)))
            return replace(after, by_client={**state.by_client, **placed})
        return after

    def _signals(self, state: ServerState, updates: Sequence[Update]) -> torch.Tensor:
        mixed = [state.shared[n] for n in self.mixing.names]
        size = sum(t.numel() for t in mixed)
        signals = torch.empty(len(updates), size, dtype=mixed[0].dtype)  # not float64: it holds all clients' signals
        for row, update in zip(signals, updates, strict=True):
            row.copy_(self.mixing.signal(state.shared, update.shared))
        return signals

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return the shared tensors and the client's center, 1/M until it has one."""
        return {**message.shared, CENTER_TENSOR: message.own.get(CENTER, self.mixing.middle)}

    def shared_phase(self, message: Message, facts: Facts) -> Phase:
        """Return the phase that trains the simplex, with one mixture drawn per batch."""
        return Phase("shared", (Step(self.loss(facts.task), facts.layout.parameters),), draws=self.sampler_of(message))

    def loss(self, task: Task) -> Loss:
        """Return the loss at the mixture `draw`, that of f(x; phi, W(alpha))."""

        def loss(predict: Predict, tensors: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
            assert draw is not None
            mix = self.mixing.steep if self.step == "mixture" else self.mixing
            return task.loss(predict(mix(tensors, draw), batch.x), batch.y)

        return loss

    def sampler_of(self, message: Message) -> MixtureSampler:
        """Return the sampler of the client's mixtures: its subregion, or the whole simplex until it has a center."""
        radius = self.radius if CENTER in message.own else None
        return MixtureSampler(self.endpoints, radius, released=self.sampler == "released")

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return all shared tensors to send, or for a probe only the endpoints; nothing to keep."""
        names = self.mixing.names if message.purpose == "probe" else message.shared
        return Update(client, message.purpose, facts.n_train, {n: tensors[n] for n in names}), {}

    def effective(self, shared: Tensors) -> Tensors:
        """Return the model at 1/M.

        The variance of single endpoints would be misleading, since their gradients are scaled by alpha.
        """
        return self.mixing(shared, self.mixing.middle.float())

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return the models at the middle of the shared simplex and at the client's center of its own simplex."""
        own, center = self.mixing.point(tensors)
        return Models(self.mixing(tensors, self.mixing.middle.float()), self.mixing(own, center.float()))

    def assigned(self, state: ServerState) -> bool:
        """Return whether round tau is over."""
        return bool(strip_prefix(state.kept, _MAP))

    def place(self, state: ServerState, signals: torch.Tensor) -> torch.Tensor:
        """Return where the map of the assignment puts new signals; other clients keep their centers."""
        kept = strip_prefix(state.kept, _MAP)
        return Assignment(
            centers=torch.empty(0, self.endpoints, dtype=torch.float64),  # those of clients are in their own tensors
            z=float(kept["z"]),
            log_energy=0.0,  # not kept, and not needed to place
            mean=kept["mean"],
            components=kept["components"],
            unit=self.normalize,
        ).place(signals)


def _centers(updates: Sequence[Update], centers: torch.Tensor) -> dict[str, Tensors]:
    return {u.client: {CENTER: center} for u, center in zip(updates, centers, strict=True)}


@dataclass(frozen=True)
class Floco(SimplexMethod):
    """Floco (NeurIPS 2024): one simplex for all clients, and a subregion of it for each.

    W(alpha) = sum_m alpha_m W_m, alpha ~ U(simplex) up to round tau and ~ U(R_k) after it,
    R_k = {alpha on the simplex : ||alpha - beta_k||_1 <= rho}.
    With M = 1 it is FedAvg.

    >>> Floco(endpoints=5, radius=0.3).resolved(Training(rounds=40)).assign_at
    20
    """

    name: ClassVar[str] = "floco"

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return the phase that trains the simplex."""
        return (self.shared_phase(message, facts),)
