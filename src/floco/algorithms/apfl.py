"""A personal model mixed with the global one in weight space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from floco.core.algorithm import Algorithm
from floco.core.settings import setting
from floco.core.values import (
    PERSONAL,
    Batch,
    Facts,
    Message,
    Models,
    Phase,
    Predict,
    Step,
    Tensors,
    Update,
    add_prefix,
    plain_loss,
    strip_prefix,
)

_A = "mixture/a"


def _mixed(tensors: Tensors, names: tuple[str, ...]) -> Tensors:
    """Return the network vbar = a v + (1 - a) w, with the buffers of v."""
    a = tensors[_A]
    return {**strip_prefix(tensors, PERSONAL), **{n: a * tensors[PERSONAL + n] + (1 - a) * tensors[n] for n in names}}


@dataclass(frozen=True)
class APFL(Algorithm):
    """APFL (Deng, Kamani, Mahdavi, arXiv 2003.13461, 2020, algorithm 1): vbar = a v + (1 - a) w.

    On each batch v <- v - lr grad_v f(vbar) and a <- clip(a - lr <v - w, grad f(vbar)>, 0, 1), then
    w <- w - lr grad f(w), with all gradients taken before the updates. w equals FedAvg's to the bit (without dropout).
    """

    name: ClassVar[str] = "apfl"
    personal_model: ClassVar[str] = "vbar"
    tuned: ClassVar[Mapping[str, tuple[float, float]]] = {"a": (0.5, 0.1)}
    a: float = setting(0.5, "a: weight of the personal model in the mixture, at the start", low=0, high=1)
    adaptive: bool = setting(True, "a moves with its gradient, on each client (false: it stays)")

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return w, v (initially the received parameters) and a."""
        fresh = {**add_prefix(message.shared, PERSONAL), _A: torch.tensor(self.a)}
        return {**message.shared, **(memory or fresh)}

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return one phase of two steps per batch: v and a on the loss of vbar, then w on its own loss."""
        names, task = facts.layout.parameters, facts.task

        def loss(predict: Predict, tensors: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
            return task.loss(predict(_mixed(tensors, names), batch.x), batch.y)

        mine = Step(loss, tuple(PERSONAL + n for n in names), coefficients={_A: (0.0, 1.0)} if self.adaptive else {})
        return (Phase("shared", (mine, Step(plain_loss(task), names))),)

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return w to send, and v and a to keep."""
        own = {n: t for n, t in tensors.items() if n not in message.shared}
        return Algorithm.finish(self, tensors, message, client, facts)[0], own

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return w and vbar."""
        return Models(tensors, _mixed(tensors, facts.layout.parameters))
