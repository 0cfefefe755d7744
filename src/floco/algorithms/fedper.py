"""A shared body, and a head that stays on the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from floco.algorithms.fedavg import FedAvg
from floco.core.algorithm import Algorithm
from floco.core.errors import FlocoError
from floco.core.network import Network
from floco.core.values import Facts, Layout, Message, Models, Phase, ServerState, Tensors, Training, Update


@dataclass(frozen=True)
class OwnHead(Algorithm):
    """Base of FedPer and FedRep: the last linear layer stays on the client, the body is averaged."""

    global_model: ClassVar[str] = "none"
    personal_model: ClassVar[str] = "the body under the client's own head"

    def resolved(self, training: Training, layout: Layout | None = None) -> Self:
        """Check that there is a head, and a body below it."""
        if layout is not None and not set() < set(layout.head) < set(layout.parameters):
            raise FlocoError(
                f"{self.name} needs a trained nn.Linear that gives the logits, and trained layers below it; "
                f"the trained parameters are {', '.join(layout.parameters)}"
            )
        return self

    def init(self, network: Network, *, seed: int) -> ServerState:
        """Return the body."""
        tensors = {**network.parameters, **network.buffers}
        return ServerState({n: t for n, t in tensors.items() if n not in network.layout.head})

    def start(self, network: Network, *, seed: int) -> Tensors:
        """Return the head of the initial network."""
        return {n: network.parameters[n] for n in network.layout.head}

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return the received body under the client's own head."""
        return {**message.shared, **memory}

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return the body to send, and the head to keep."""
        body = {n: tensors[n] for n in message.shared}
        return Update(client, message.purpose, facts.n_train, body), {n: tensors[n] for n in facts.layout.head}

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return no global model, and the body under the client's own head."""
        return Models(None, tensors)


@dataclass(frozen=True)
class FedPer(OwnHead):
    """FedPer (Arivazhagan et al., arXiv 1912.00818, 2019): train body and head together, average only the body.

    The head is the weight and bias of the last linear layer (the paper's K_P = 1).
    """

    name: ClassVar[str] = "fedper"

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return FedAvg's phase: body and head together."""
        return FedAvg().phases(message, facts)
