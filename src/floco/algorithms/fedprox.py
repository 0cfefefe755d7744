"""Federated averaging with a proximal term."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from floco.core.algorithm import Algorithm
from floco.core.settings import setting
from floco.core.values import RECEIVED, Facts, Message, Phase, Step, Tensors, add_prefix, plain_loss, pull


@dataclass(frozen=True)
class FedProx(Algorithm):
    """FedProx (Li et al., MLSys 2020, algorithm 2): FedAvg with gradient + mu (w - w_t).

    This is the gradient of the local loss plus mu/2 |w - w_t|^2; w_t are the parameters received in this round.
    With mu = 0 it is FedAvg.
    """

    name: ClassVar[str] = "fedprox"
    tuned: ClassVar[Mapping[str, tuple[float, float]]] = {"mu": (0.01, 0.1)}
    mu: float = setting(0.01, "mu: strength of the proximal term (the paper tries 0.001 to 1)", low=0)

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return w and w_t."""
        return {**message.shared, **add_prefix(message.shared, RECEIVED)}

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return FedAvg's phase with the pull towards w_t."""
        names = facts.layout.parameters
        return (Phase("shared", (Step(plain_loss(facts.task), names, correction=pull(names, self.mu)),)),)
