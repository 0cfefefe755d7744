"""A shared body, and a head that stays on the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from floco.algorithms.fedavg import FedAvg
from floco.algorithms.own_part import OwnHead
from floco.core.values import Facts, Message, Phase


@dataclass(frozen=True)
class FedPer(OwnHead):
    """FedPer (Arivazhagan et al., arXiv 1912.00818, 2019): train body and head together, average only the body.

    The head is the weight and bias of the last linear layer (the paper's K_P = 1).
    """

    name: ClassVar[str] = "fedper"

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return FedAvg's phase: body and head together."""
        return FedAvg().phases(message, facts)
