"""Base of methods in which a part of the network stays on the client."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

from floco.core.algorithm import Algorithm
from floco.core.errors import FlocoError
from floco.core.network import Network
from floco.core.values import Facts, Layout, Message, Models, ServerState, Tensors, Training, Update


@dataclass(frozen=True)
class OwnPart(Algorithm):
    """Some tensors are the client's own, from common initial values; all others are averaged."""

    global_model: ClassVar[str] = "none"
    needed: ClassVar[str]
    """What the network must have, for the error message."""

    @abstractmethod
    def own(self, layout: Layout) -> tuple[str, ...]:
        """Return the names of the tensors that stay on the client."""

    def resolved(self, training: Training, layout: Layout | None = None) -> Self:
        """Check that there is something to keep, and something trained to send."""
        if layout is not None:
            own = set(self.own(layout))
            if not own or set(layout.parameters) <= own:
                raise FlocoError(
                    f"{self.name} needs {self.needed}; the trained parameters are {', '.join(layout.parameters)}"
                )
        return self

    def init(self, network: Network, *, seed: int) -> ServerState:
        """Return all other tensors."""
        tensors, own = {**network.parameters, **network.buffers}, self.own(network.layout)
        return ServerState({n: t for n, t in tensors.items() if n not in own})

    def start(self, network: Network, *, seed: int) -> Tensors:
        """Return the client's part of the initial network."""
        tensors = {**network.parameters, **network.buffers}
        return {n: tensors[n] for n in self.own(network.layout)}

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return what was received, and the client's own part."""
        return {**message.shared, **memory}

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return the shared tensors to send, and the client's own to keep."""
        sent = {n: tensors[n] for n in message.shared}
        return Update(client, message.purpose, facts.n_train, sent), {n: tensors[n] for n in self.own(facts.layout)}

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return no global model, and the shared part with the client's own."""
        return Models(None, tensors)


@dataclass(frozen=True)
class OwnHead(OwnPart):
    """The last linear layer stays on the client."""

    personal_model: ClassVar[str] = "the body under the client's own head"
    needed: ClassVar[str] = "a trained nn.Linear that gives the logits, and trained layers below it"

    def own(self, layout: Layout) -> tuple[str, ...]:
        """Return weight and bias of the head."""
        return layout.head
