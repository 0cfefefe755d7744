"""The interface of an algorithm: a frozen dataclass of hyperparameters with a few methods from values to values.

An algorithm never trains, does I/O or draws from global random state. It defines what to send, the phases of a client's
training, and how to combine results. `client.sgd` runs the client's part, `server.rounds` the server's; engines decide
where.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Protocol, Self

import torch

from floco.core.mixing import Mixing
from floco.core.network import Network
from floco.core.settings import Settings
from floco.core.values import (
    Facts,
    Layout,
    Lazy,
    Message,
    Models,
    Phase,
    Purpose,
    Selection,
    ServerState,
    Tensors,
    Training,
    Update,
)


class OwnMixtures(Protocol):
    """The models W(alpha) of one simplex on a client's training part."""

    @property
    def linear(self) -> bool:
        """Whether outputs are linear in the mixture, so that those of another one cost next to nothing."""

    def outputs(self, alpha: torch.Tensor) -> torch.Tensor:
        """Return the outputs (n, ...) float64 at alpha (M,), differentiable in it, in evaluation mode."""


class OwnSamples(Protocol):
    """A client's training part, as `Algorithm.examine` sees it; nothing is computed before it is asked for."""

    @property
    def targets(self) -> torch.Tensor:
        """(n, ...), as the client's loss takes them."""

    def outputs(self, models: Sequence[Tensors]) -> torch.Tensor:
        """Return the outputs (K, n, ...) of K models (network tensors), in evaluation mode."""

    def mixtures(self, mixing: Mixing, simplex: Tensors) -> OwnMixtures:
        """Return the models of a simplex: network tensors, in which the mixed ones hold endpoints."""

    def features(self, model: Tensors) -> torch.Tensor:
        """Return the inputs (n, F) of a model's head, in evaluation mode."""

    def whole(self) -> OwnSamples:
        """Return all samples of the training part in its order, where a part of them is not enough."""


class Algorithm(Settings, ABC):
    """A federated algorithm: the defaults are those of federated averaging, only `phases` is abstract.

    Subclasses are frozen dataclasses, and either final or abstract.
    """

    name: ClassVar[str]
    """The name by which users choose it."""
    tuned: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """The hyperparameter worth tuning, and the two values to try."""
    global_model: ClassVar[str] = "w"
    """The global model, in the symbols of the docstring; "none" if there is none."""
    personal_model: ClassVar[str] = "w"
    """The personal model, likewise."""
    labelled: ClassVar[bool] = False
    """Whether it needs class frequencies, and so a task with class numbers."""
    distributions: ClassVar[bool] = False
    """Whether it mixes predicted distributions over classes, and so needs task classification."""

    def resolved(self, training: Training, layout: Layout | None = None) -> Self:
        """Return the algorithm with defaults filled in that depend on other settings or on the network's layout."""
        return self

    def refuse_change(self, before: Training, after: Training, done: int) -> str | None:
        """Return why a run cannot go on with other settings of training after `done` rounds; None if it can."""
        return None

    def init(self, network: Network, *, seed: int) -> ServerState:
        """Return the state before the first round."""
        return ServerState(shared={**network.parameters, **network.buffers})

    def start(self, network: Network, *, seed: int) -> Tensors:
        """Return the initial memory of a client, from its own `seed`."""
        return {}

    def select(
        self, state: ServerState, clients: Sequence[str], *, fraction: float, generator: torch.Generator
    ) -> Selection:
        """Return who trains in the next round: max(1, round(fraction * K)) of the K clients, in federation order."""
        n = max(1, round(fraction * len(clients)))
        chosen = torch.randperm(len(clients), generator=generator)[:n].sort().values
        return Selection(tuple(clients[i] for i in chosen.tolist()))

    def message(self, state: ServerState, client: str, purpose: Purpose) -> Message:
        """Return the message to `client`: all shared tensors, and the server's tensors for this client.

        An evaluation belongs to the round that is done, training to the next one.
        """
        own = dict(state.by_client.get(client, {}))
        return Message(state.round + (purpose != "evaluate"), purpose, state.shared, own)

    def aggregate(self, state: ServerState, updates: Sequence[Update], *, clients: Mapping[str, int]) -> ServerState:
        """Return the next state from the round's updates.

        Args:
            state: the state before the round.
            updates: the updates of the clients that trained or probed.
            clients: client -> number of training samples, for every client, selected or not.
        """
        return average(state, updates)

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return the working tensors from which a client is trained or evaluated."""
        return dict(message.shared)

    def examine(self, samples: OwnSamples, tensors: Tensors, message: Message, facts: Facts) -> Tensors:
        """Return working tensors that follow from the client's training part before it is trained or evaluated."""
        return {}

    @abstractmethod
    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return the phases of the client's training in this round, in order."""

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return the update to send and the memory to keep, from the working tensors after the last phase.

        If it is empty, the client keeps the memory it had.
        """
        return Update(client, message.purpose, facts.n_train, {name: tensors[name] for name in message.shared}), {}

    @property
    def mixing(self) -> Mixing | None:
        """The solution simplex, once `resolved`; None for a method without one."""
        return None

    def assigned(self, state: ServerState) -> bool:
        """Return whether the clients have got their subregions, so that `place` has a map for others."""
        return False

    def place(self, state: ServerState, signals: torch.Tensor) -> torch.Tensor:
        """Return the centers (k, M) of newcomers with these signals (k, P), once `assigned`."""
        raise NotImplementedError

    def effective(self, shared: Lazy) -> Lazy:
        """Return the global model's parameters from shared tensors; the update variance is measured on them."""
        return shared

    def adapt(self, facts: Facts) -> tuple[Phase, ...]:
        """Return the phases a client trains before its evaluation; the result is not kept."""
        return ()

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return the client's global and personal model from its working tensors."""
        return Models(tensors, tensors)


def average(state: ServerState, updates: Sequence[Update]) -> ServerState:
    """Return the next state: shared tensors become the weighted mean over the clients that trained."""
    trained = [u for u in updates if u.purpose == "train"]
    return replace(state, shared={**state.shared, **weighted_mean(trained)}, round=state.round + 1)


def weighted_mean(updates: Sequence[Update], weights: Sequence[float] | None = None) -> Tensors:
    """Return the mean of the updates' shared tensors, weighted by sample count: `sum_k n_k w_k / sum_k n_k`.

    Other `weights`, one for each update, take the place of n_k. Sums are in float64, in the given order. Integer
    tensors (counters in buffers) come from the first update.
    """
    weights = [u.weight for u in updates] if weights is None else weights
    total = float(sum(weights))
    mean: Tensors = {}
    for name, first in updates[0].shared.items():
        if not first.is_floating_point():
            mean[name] = first.clone()  # not a view of a file
            continue
        acc = torch.zeros(first.shape, dtype=torch.float64)
        for u, weight in zip(updates, weights, strict=True):
            acc.add_(u.shared[name], alpha=weight / total)
        mean[name] = acc.to(first.dtype)
    return mean


def overlay(below: Lazy, above: Lazy) -> Lazy:
    """Return the tensors of both, those `above` where both have one; what is in a file stays there."""
    return ChainMap(above, below)  # type: ignore[arg-type]  # nobody writes to it
