"""Federated averaging, then local fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from floco.algorithms.fedavg import FedAvg
from floco.core.algorithm import Algorithm
from floco.core.settings import setting
from floco.core.values import (
    PERSONAL,
    Facts,
    Message,
    Models,
    Phase,
    Step,
    Tensors,
    add_prefix,
    personalize,
    plain_loss,
    strip_prefix,
)


@dataclass(frozen=True)
class FedAvgFT(Algorithm):
    """FedAvg; before evaluation, each client trains a copy of the global model for e' epochs, then discards it.

    The baseline that personalized methods have to beat.
    """

    name: ClassVar[str] = "fedavg+ft"
    personal_model: ClassVar[str] = "w after the local epochs"
    personal_epochs: int | None = setting(
        None, "e': local epochs from the global model before evaluation (empty: training.epochs)", low=1
    )

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return FedAvg's phase."""
        return FedAvg().phases(message, facts)

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return w twice: shared, and as the copy to train."""
        return {**message.shared, **add_prefix(message.shared, PERSONAL)}

    def adapt(self, facts: Facts) -> tuple[Phase, ...]:
        """Return e' epochs on the copy of w."""
        moves = tuple(PERSONAL + n for n in facts.layout.parameters)
        return (Phase("personal", (Step(personalize(plain_loss(facts.task)), moves),), self.personal_epochs),)

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return w and its fine-tuned copy."""
        return Models(tensors, strip_prefix(tensors, PERSONAL))
