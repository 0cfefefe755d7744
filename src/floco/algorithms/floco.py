"""Floco: federated learning over connected modes (Grinwald, Wiesner, Nakajima, NeurIPS 2024).

A round: `select` -> `message` -> on each client `begin`, `phases`, `finish` -> `aggregate`, which in round `assign_at`
also assigns every client its center. docs/method.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from floco.algorithms.centers import MixtureSampler, find_center, gather_signals, has_map, keep_map, read_map
from floco.algorithms.endpoints import WEIGHTS, average_endpoints, choose_mixed, start_endpoints
from floco.core.algorithm import Algorithm, OwnSamples, average, overlay
from floco.core.errors import FlocoError
from floco.core.mixing import CENTER, CENTER_TENSOR, Mixing
from floco.core.network import Network
from floco.core.settings import setting
from floco.core.task import Task
from floco.core.values import (
    Batch,
    Facts,
    Layout,
    Lazy,
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
)
from floco.simplex import assign


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
        None,
        "tau: round of the assignment, counted from 1 (empty: half of the rounds, with own centers 1)",
        low=1,
        choices=("never",),
    )
    radius: float = setting(0.1, "rho: L1 radius of a client's subregion", low=0)
    centers: str = setting(
        "signals",
        "who finds centers: the server in round assign_at, from clients' signals (as published), or each client its "
        "own from that round on, as the mixture of lowest loss on its training part",
        choices=("signals", "own"),
    )
    check_at: int | str | None = setting(
        None,
        "with own centers and classification: round from which on a center other than 1/M must lower the sum of losses "
        "by more than M - 1 (empty: a quarter of the rounds after assign_at, 5 at least)",
        low=1,
        choices=("never",),
    )
    uniform: float | None = setting(
        None, "share of batches from the whole simplex after assign_at (empty: 0, with own centers 0.5)", low=0, high=1
    )
    average: str | None = setting(
        None,
        "endpoints averaged by samples (as published), or by samples and how much of each endpoint a client trains "
        "(empty: samples, with own centers mixtures)",
        choices=("samples", "mixtures"),
    )
    mix: str | tuple[str, ...] = setting(
        "last",
        "parameters that have endpoints: last (weight of the linear layer that gives the logits), "
        "lora (matrices B of LoRA adapters), all (with BatchNorm its statistics fit no single mixture), or names",
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
        "step size: endpoint (as published: a mixture moves by lr |alpha|^2 times the gradient), mixture (by lr), or "
        "middle (so far that the model at 1/M moves by lr)",
        choices=("endpoint", "mixture", "middle"),
    )
    noise: float | None = setting(
        None, "other endpoints: the first plus Gaussian noise, relative to its RMS (empty: the initialiser)", low=0
    )

    def resolved(self, training: Training, layout: Layout | None = None) -> Self:
        """Return the algorithm with `assign_at` and, given a layout, the names of the mixed parameters filled in."""
        own = self.centers == "own"
        at = (1 if own else max(1, training.rounds // 2)) if self.assign_at is None else self.assign_at
        if isinstance(at, int) and at > training.rounds:
            most, never = f"at most training.rounds ({training.rounds})", "" if own else '; "never" is legal'
            raise FlocoError(f"assign_at must be {most}, got {at}{never}")
        if own and (at == "never" or self.sampler == "released" or not self.normalize):
            raise FlocoError('centers = "own" needs a round assign_at, sampler = "subregion" and normalize = true')
        uniform = self.uniform if self.uniform is not None else 0.5 if own else 0.0
        late = at - 1 + max(5, training.rounds // 4) if own and isinstance(at, int) else "never"
        check_at = late if self.check_at is None else self.check_at
        average = self.average or ("mixtures" if own else "samples")
        made = replace(self, assign_at=at, check_at=check_at, uniform=uniform, average=average)
        return made if layout is None else replace(made, mix=choose_mixed(layout, self.mix))

    @property
    def mixing(self) -> Mixing:
        """The mixed parameters and the shape of the simplex, once `resolved`."""
        names = (self.mix,) if isinstance(self.mix, str) else self.mix
        return Mixing(names, self.endpoints, self.radius, self.prefix, self.centers == "own")

    def init(self, network: Network, *, seed: int) -> ServerState:
        """Return the network with mixed parameters as M stacked endpoints (M, ...); endpoint 0 is the initial value."""
        stacked = start_endpoints(network, self.mixing, seed, self.noise)
        return ServerState({**network.parameters, **network.buffers, **stacked})

    def select(
        self, state: ServerState, clients: Sequence[str], *, fraction: float, generator: torch.Generator
    ) -> Selection:
        """Return a random selection as in FedAvg; in round tau all other clients probe, so that all K clients train."""
        train = super().select(state, clients, fraction=fraction, generator=generator).train
        assigning = state.round + 1 == self.assign_at and self.centers == "signals"
        return Selection(train, tuple(c for c in clients if c not in set(train)) if assigning else ())

    def aggregate(self, state: ServerState, updates: Sequence[Update], *, clients: Mapping[str, int]) -> ServerState:
        """Return the averaged state with centers: all are assigned in round tau, latecomers are placed afterwards."""
        after = average(state, updates)
        if self.average == "mixtures":
            after = average_endpoints(self.mixing.names, after, updates)
        if self.centers == "own":
            return after
        if after.round == self.assign_at:
            made = assign(gather_signals(self.mixing, state, updates), self.endpoints, normalize=self.normalize)
            return replace(after, kept=keep_map(made), by_client=_centers(updates, made.centers))
        late = [u for u in updates if u.client not in state.by_client]
        if late and self.assigned(state):
            placed = _centers(late, self.place(state, gather_signals(self.mixing, state, late)))
            return replace(after, by_client={**state.by_client, **placed})
        return after

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return the shared tensors, and the client's center if it has one."""
        center = message.own.get(CENTER, memory.get(CENTER_TENSOR))
        return dict(message.shared) if center is None else {**message.shared, CENTER_TENSOR: center}

    def examine(self, samples: OwnSamples, tensors: Tensors, message: Message, facts: Facts) -> Tensors:
        """Return the center that the client finds itself: when it trains, and in an evaluation if it has none yet."""
        known, middle = tensors.get(CENTER_TENSOR), self.mixing.middle
        if known is not None and message.purpose == "evaluate":
            return {}
        if self.centers == "signals" or not self._located(message):
            return {} if known is not None else {CENTER_TENSOR: middle}
        checked = facts.task.likelihood if isinstance(self.check_at, int) and message.round >= self.check_at else None
        found = find_center(
            self.mixing, facts.task, message.shared, middle if known is None else known, samples, checked=checked
        )
        return {CENTER_TENSOR: found}

    def _located(self, message: Message) -> bool:
        """Return whether the client has its subregion."""
        if self.centers == "signals":
            return CENTER in message.own
        return isinstance(self.assign_at, int) and message.round >= self.assign_at

    def shared_phase(self, message: Message, facts: Facts) -> Phase:
        """Return the phase that trains the simplex, with one mixture drawn per batch."""
        loss, moved = self.loss(facts.task, self.step), facts.layout.parameters
        return Phase("shared", (Step(loss, moved),), draws=self.sampler_of(message))

    def loss(self, task: Task, step: str) -> Loss:
        """Return the loss of f(x; phi, W(draw)), with gradients for `step`."""

        def loss(predict: Predict, tensors: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
            assert draw is not None
            return task.loss(predict(self.mixing.stepping(tensors, draw, step), batch.x), batch.y)

        return loss

    def sampler_of(self, message: Message) -> MixtureSampler:
        """Return the sampler of the client's mixtures: its subregion, or the whole simplex until it has a center."""
        radius = self.radius if self._located(message) else None
        return MixtureSampler(self.endpoints, radius, self.sampler == "released", self.uniform or 0.0)

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return all shared tensors to send, or for a probe only the endpoints; to keep, the center found here."""
        center = self.mixing.point(tensors)[1]
        sent = self.mixing.names if message.purpose == "probe" else message.shared
        weighed = self.average == "mixtures" and message.purpose == "train"
        extra = {WEIGHTS: self.sampler_of(message).weights(center)} if weighed else {}
        kept = {CENTER_TENSOR: center} if self.centers == "own" and self._located(message) else {}
        return Update(client, message.purpose, facts.n_train, {n: tensors[n] for n in sent}, extra), kept

    def effective(self, shared: Lazy) -> Lazy:
        """Return the model at 1/M; the variance of single endpoints would mislead, as alpha scales their gradients."""
        return overlay(shared, self.mixing.mixed(shared, self.mixing.middle.float()))

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return the models at the middle of the shared simplex and at the client's center of its own simplex."""
        own, center = self.mixing.point(tensors)
        return Models(self.mixing(tensors, self.mixing.middle.float()), self.mixing(own, center.float()))

    def assigned(self, state: ServerState) -> bool:
        """Return whether round tau is over."""
        if self.centers == "own":
            return isinstance(self.assign_at, int) and state.round >= self.assign_at
        return has_map(state.kept)

    def place(self, state: ServerState, signals: torch.Tensor) -> torch.Tensor:
        """Return where the map of the assignment puts new signals; other clients keep their centers."""
        return read_map(state.kept, self.endpoints, unit=self.normalize).place(signals)


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
