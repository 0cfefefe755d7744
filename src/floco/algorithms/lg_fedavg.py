"""A body that stays on the client, under a shared head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from floco.algorithms.fedavg import FedAvg
from floco.algorithms.own_part import OwnPart
from floco.core.values import Facts, Layout, Message, Phase


@dataclass(frozen=True)
class LGFedAvg(OwnPart):
    """LG-FedAvg (Liang et al., arXiv 2001.01523, 2020): train body and head together, average only the head.

    The head is the weight and bias of the last linear layer. The paper starts from a model that FedAvg has trained;
    here all start from common initial weights, as every method does (`model.weights` loads others).
    """

    name: ClassVar[str] = "lg-fedavg"
    personal_model: ClassVar[str] = "the client's own body under the head"
    needed: ClassVar[str] = "a trained nn.Linear that gives the logits, and trained layers below it"

    def own(self, layout: Layout) -> tuple[str, ...]:
        """Return all tensors but the head's, buffers as well."""
        return tuple(n for n in layout.names if n not in layout.head) if layout.head else ()

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return FedAvg's phase: body and head together."""
        return FedAvg().phases(message, facts)
