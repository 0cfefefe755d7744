"""What an algorithm is: a frozen dataclass of hyperparameters with a few methods from values to values.

It never trains, reads, waits or draws from global state: it says what to send, what one client's training consists of,
and how results are combined. `training` carries out the client's part, `loop` the server's, and engines decide where.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch

from floco.core.network import Network
from floco.core.settings import Settings
from floco.core.values import Facts, Layout, Message, Models, Phase, Selection, ServerState, Task, Tensors, Training, Update, averaged


class Algorithm(Settings, ABC):
    """A federated algorithm; the defaults are those of federated averaging, `phases` is always its own.

    Subclasses are frozen dataclasses and final, or abstract.
    """

    name: ClassVar[str]
    """The word by which users choose it."""
    tuned: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """The strength that is worth tuning, and the two values to try."""

    def resolved(self, training: Training, layout: Layout | None = None) -> Self:
        """Return the algorithm with the settings filled in that depend on others, or on the network's names."""
        return self

    def init(self, network: Network, *, seed: int) -> ServerState:
        """Return the state before the first round."""
        return ServerState(shared={**network.parameters, **network.buffers})

    def start(self, network: Network, *, seed: int) -> Tensors:
        """Return the memory of a client that keeps nothing yet; `seed` is the client's own."""
        return {}

    def select(self, state: ServerState, clients: Sequence[str], *, fraction: float, generator: torch.Generator) -> Selection:
        """Return who trains in the coming round: max(1, round(fraction * K)) of the K clients, in federation order."""
        n = max(1, round(fraction * len(clients)))
        chosen = torch.randperm(len(clients), generator=generator)[:n].sort().values
        return Selection(tuple(clients[i] for i in chosen.tolist()))

    def message(self, state: ServerState, client: str, task: Task) -> Message:
        """Return what travels to `client`: all shared tensors, and what the server knows of this client."""
        return Message(state.round + (task != "evaluate"), task, state.shared, dict(state.by_client.get(client, {})))

    def aggregate(self, state: ServerState, updates: Sequence[Update], *, clients: Mapping[str, int]) -> ServerState:
        """Return the next state from the round's updates; `clients` has the number of training samples of every client, selected or not."""
        return averaged(state, updates)

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return the working tensors with which a client starts to train or to be evaluated."""
        return dict(message.shared)

    @abstractmethod
    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return what the client does in this round, in order."""

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return what travels back and what stays on the client, from the working tensors after the last phase."""
        return Update(client, message.task, facts.n_train, {name: tensors[name] for name in message.shared}), {}

    def effective(self, shared: Tensors) -> Tensors:
        """Return the global model's parameters among shared tensors: what the variance of the updates is measured on."""
        return shared

    def adapt(self, facts: Facts) -> tuple[Phase, ...]:
        """Return what a client does before it is evaluated; the result is not kept."""
        return ()

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return the client's global and personal model from its working tensors."""
        return Models(tensors, tensors)
