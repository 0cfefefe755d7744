"""Federated averaging, then local fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from floco.algorithms.fedavg import FedAvg
from floco.core.algorithm import Algorithm
from floco.core.settings import setting
from floco.core.values import OWN, Facts, Message, Models, Phase, Step, Tensors, personally, plain_loss, prefixed, under


@dataclass(frozen=True)
class FedAvgFT(Algorithm):
    """FedAvg; before evaluation, each client trains a copy of the global model for e' epochs, then discards it.

    The baseline that personalized methods have to beat. Global model: w; personal: w after the local epochs.
    """

    name: ClassVar[str] = "fedavg+ft"
    personal_epochs: int | None = setting(
        None, "e': local epochs from the global model before evaluation (empty: training.epochs)", low=1
    )

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return FedAvg's phase."""
        return FedAvg().phases(message, facts)

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return w twice: shared, and as the copy to train."""
        return {**message.shared, **prefixed(message.shared, OWN)}

    def adapt(self, facts: Facts) -> tuple[Phase, ...]:
        """Return e' epochs on the copy of w."""
        moves = tuple(OWN + n for n in facts.layout.parameters)
        return (Phase("personal", (Step(personally(plain_loss), moves),), self.personal_epochs),)

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return w and its fine-tuned copy."""
        return Models(tensors, under(tensors, OWN))
