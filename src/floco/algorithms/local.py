"""Local training without federation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from floco.core.algorithm import Algorithm
from floco.core.network import Network
from floco.core.values import (
    PERSONAL,
    Facts,
    Message,
    Models,
    Phase,
    ServerState,
    Step,
    Tensors,
    Update,
    add_prefix,
    personalize,
    plain_loss,
    strip_prefix,
)


@dataclass(frozen=True)
class Local(Algorithm):
    """Each client trains its own model, from common initial weights, in the rounds in which it is selected.

    Nothing is sent.
    """

    name: ClassVar[str] = "local"
    global_model: ClassVar[str] = "none"
    personal_model: ClassVar[str] = "the client's own"

    def init(self, network: Network, *, seed: int) -> ServerState:
        """Return an empty state."""
        return ServerState(shared={})

    def start(self, network: Network, *, seed: int) -> Tensors:
        """Return the initial network."""
        return add_prefix({**network.parameters, **network.buffers}, PERSONAL)

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return the client's own network."""
        return memory

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return FedAvg's phase, on the client's own network."""
        moves = tuple(PERSONAL + n for n in facts.layout.parameters)
        return (Phase("shared", (Step(personalize(plain_loss(facts.task)), moves),)),)

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return an empty update to send, and the network to keep."""
        return Update(client, message.purpose, facts.n_train, {}), tensors

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return no global model, and the client's own."""
        return Models(None, strip_prefix(tensors, PERSONAL))
