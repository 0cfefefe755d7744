"""A shared body with a generic and a personal head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from floco.core.algorithm import Algorithm
from floco.core.errors import FlocoError
from floco.core.network import Network
from floco.core.values import (
    PERSONAL,
    Batch,
    Facts,
    Layout,
    Message,
    Models,
    Phase,
    Predict,
    Step,
    Tensors,
    Training,
    Update,
)

_LOG_COUNTS = "log_counts"


@dataclass(frozen=True)
class FedRoD(Algorithm):
    """FedRoD (Chen and Chao, ICLR 2022, section 4, linear personal head): two heads, trained on two losses.

    Body and generic head G train on the balanced softmax, the personal head P on the plain loss. With z = f(x; body, G)
    the loss is `CE(z + log n_c, y) + CE(sg(z) + P h(x), y)`; n_c counts the client's training labels, h(x) are the
    features, and sg stops the gradient: the first term trains body and G, the second only P. Heads are linear, so
    adding logits is adding weights; the body runs twice a step, and its buffers are updated the first time. P starts at
    zero and stays on the client.
    """

    name: ClassVar[str] = "fedrod"
    global_model: ClassVar[str] = "body and G"
    personal_model: ClassVar[str] = "body and G + P"
    labelled: ClassVar[bool] = True

    def resolved(self, training: Training, layout: Layout | None = None) -> Self:
        """Check that there is a head."""
        if layout is not None and not layout.head:
            raise FlocoError("fedrod needs a trained nn.Linear that gives the logits, and the model has none")
        return self

    def start(self, network: Network, *, seed: int) -> Tensors:
        """Return P = 0."""
        return {PERSONAL + n: torch.zeros_like(network.parameters[n]) for n in network.layout.head}

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return body, G, P and log n_c, which is minus infinity for labels that the client does not have."""
        return {**message.shared, **memory, _LOG_COUNTS: torch.tensor(facts.label_counts).log()}

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return one phase: body and G on the balanced loss, P on the plain one."""
        layout, task = facts.layout, facts.task
        head, names, buffers = layout.head, layout.parameters, layout.buffers

        def loss(predict: Predict, tensors: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
            generic = task.loss(predict(tensors, batch.x) + tensors[_LOG_COUNTS], batch.y)
            fixed = {**tensors, **{n: tensors[n].detach() for n in names}, **{b: tensors[b].clone() for b in buffers}}
            return generic + task.loss(predict(_summed(fixed, head), batch.x), batch.y)

        return (Phase("shared", (Step(loss, (*names, *(PERSONAL + n for n in head))),)),)

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return body and G to send, and P to keep."""
        personal = {PERSONAL + n: tensors[PERSONAL + n] for n in facts.layout.head}
        return Algorithm.finish(self, tensors, message, client, facts)[0], personal

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return the network with G, and with G + P."""
        return Models(tensors, _summed(tensors, facts.layout.head))


def _summed(tensors: Tensors, head: tuple[str, ...]) -> Tensors:
    return {**tensors, **{n: tensors[n] + tensors[PERSONAL + n] for n in head}}
