"""LoRA adapters of which only A is averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from floco.algorithms.fedavg import FedAvg
from floco.algorithms.own_part import OwnPart
from floco.core.adapters import lora_matrices, require_lora
from floco.core.values import Facts, Layout, Message, Phase, Training


@dataclass(frozen=True)
class FedSALoRA(OwnPart):
    """FedSA-LoRA (Guo, Zeng, Wang, Fan, Wang, Qu, ICLR 2025): train A and B of all adapters, average only A.

    B and everything else that is trained, e.g. a head, stay on the client.
    """

    name: ClassVar[str] = "fedsa-lora"
    personal_model: ClassVar[str] = "A with the client's own B"
    needed: ClassVar[str] = "LoRA adapters"

    def own(self, layout: Layout) -> tuple[str, ...]:
        """Return all trained parameters but the matrices A."""
        shared = lora_matrices(layout)[0]
        return tuple(n for n in layout.parameters if n not in shared)

    def resolved(self, training: Training, layout: Layout | None = None) -> Self:
        """Check that there are adapters."""
        if layout is not None:
            require_lora(self.name, layout)
        return super().resolved(training, layout)

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return FedAvg's phase: A, B and whatever else is trained."""
        return FedAvg().phases(message, facts)
