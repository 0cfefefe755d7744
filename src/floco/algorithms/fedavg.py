"""Federated averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from floco.core.algorithm import Algorithm
from floco.core.values import Facts, Message, Phase, Step, plain_loss


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """Federated averaging (McMahan et al., AISTATS 2017, algorithm 1): w <- sum_k n_k w_k / sum_k n_k.

    >>> FedAvg().name
    'fedavg'
    """

    name: ClassVar[str] = "fedavg"

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return one phase: all parameters, on the task's loss."""
        return (Phase("shared", (Step(plain_loss(facts.task), facts.layout.parameters),)),)
