"""A body that is trained under a head with its initial values, then everything on the client's own samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from floco.algorithms.fedavg_ft import FedAvgFT
from floco.core.errors import FlocoError
from floco.core.values import Facts, Layout, Message, Phase, Step, Training, plain_loss


@dataclass(frozen=True)
class FedBABU(FedAvgFT):
    """FedBABU (Oh, Kim, Yun, ICLR 2022): average a body that is trained under a head with its initial values.

    The head of the global model never changes. Before an evaluation, each client trains a copy of the whole network
    for e' epochs, and drops it afterwards.
    """

    name: ClassVar[str] = "fedbabu"

    def resolved(self, training: Training, layout: Layout | None = None) -> Self:
        """Check that there are a head and a body."""
        if layout is not None and (not layout.head or set(layout.parameters) <= set(layout.head)):
            raise FlocoError("fedbabu needs a trained nn.Linear that gives the logits, and trained layers below it")
        return self

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return one phase: the body, on the task's loss."""
        body = tuple(n for n in facts.layout.parameters if n not in facts.layout.head)
        return (Phase("shared", (Step(plain_loss(facts.task), body),)),)
