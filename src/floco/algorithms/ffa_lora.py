"""LoRA adapters of which only B is trained and averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from floco.core.adapters import lora_matrices, require_lora
from floco.core.algorithm import Algorithm
from floco.core.errors import FlocoError
from floco.core.network import Network
from floco.core.values import Facts, Layout, Message, Phase, ServerState, Step, Tensors, Training, plain_loss


@dataclass(frozen=True)
class FFALoRA(Algorithm):
    """FFA-LoRA (Sun, Li, Li, Ding, ICLR 2024): the matrices A of all adapters keep their initial values.

    The mean of the clients' B A is then the mean of B times A, exactly; FedAvg averages A and B apart, which is not. A
    is never sent: every client has the initial network. A trained head is averaged like B.
    """

    name: ClassVar[str] = "ffa-lora"

    def resolved(self, training: Training, layout: Layout | None = None) -> Self:
        """Check that there are adapters."""
        if layout is not None:
            require_lora(self.name, layout)
        return self

    def init(self, network: Network, *, seed: int) -> ServerState:
        """Return all tensors but the matrices A; raises if one of them is zero."""
        kept = lora_matrices(network.layout)[0]
        for name in kept:
            if not network.parameters[name].any():
                raise FlocoError(
                    f"ffa-lora keeps the matrices A, and {name!r} is zero, as peft starts those of embeddings: B A "
                    "would be zero for ever; leave that layer out of target_modules"
                )
        return ServerState({n: t for n, t in {**network.parameters, **network.buffers}.items() if n not in kept})

    def start(self, network: Network, *, seed: int) -> Tensors:
        """Return the matrices A; a client that keeps nothing gets them again in every round."""
        return {n: network.parameters[n] for n in lora_matrices(network.layout)[0]}

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return what was received, and the matrices A."""
        return {**message.shared, **memory}

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return one phase: all parameters but the matrices A."""
        fixed = lora_matrices(facts.layout)[0]
        moved = tuple(n for n in facts.layout.parameters if n not in fixed)
        return (Phase("shared", (Step(plain_loss(facts.task), moved),)),)
