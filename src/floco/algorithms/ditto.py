"""A personal model beside the global one, pulled towards it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from floco.algorithms.fedavg import FedAvg
from floco.core.algorithm import Algorithm
from floco.core.settings import setting
from floco.core.values import (
    PERSONAL,
    RECEIVED,
    Facts,
    Loss,
    Message,
    Models,
    Phase,
    Step,
    Tensors,
    Update,
    add_prefix,
    personalize,
    plain_loss,
    pull,
    strip_prefix,
)

Draws = Callable[[Tensors, int, torch.Generator], torch.Tensor]


def with_personal(message: Message, memory: Tensors) -> Tensors:
    """Return the shared tensors w, the client's own v (initially w), and the target w_t of the pull."""
    return {
        **message.shared,
        **(memory or add_prefix(message.shared, PERSONAL)),
        **add_prefix(message.shared, RECEIVED),
    }


def personal_phase(
    facts: Facts, loss: Loss, *, strength: float, epochs: int | None, draws: Draws | None = None
) -> Phase:
    """Return the phase that trains the client's own v on `loss`, with `strength * (v - w_t)` added to the gradient."""
    names = facts.layout.parameters
    step = Step(personalize(loss), tuple(PERSONAL + n for n in names), correction=pull(names, strength, PERSONAL))
    return Phase("personal", (step,), epochs, draws)


def keep_personal(tensors: Tensors) -> Tensors:
    """Return the tensors that stay on the client."""
    return {n: t for n, t in tensors.items() if n.startswith(PERSONAL)}


@dataclass(frozen=True)
class Ditto(Algorithm):
    """Ditto (Li et al., ICML 2021, algorithm 1): FedAvg, and on each client v with gradient + lambda (v - w_t).

    w_t are the parameters received in this round.
    """

    name: ClassVar[str] = "ditto"
    personal_model: ClassVar[str] = "v"
    tuned: ClassVar[Mapping[str, tuple[float, float]]] = {"pull": (1.0, 0.1)}
    pull: float = setting(1.0, "lambda: strength of the pull of the personal model towards the received one", low=0)
    personal_epochs: int | None = setting(
        None, "e': epochs of the personal model a round (empty: training.epochs)", low=1
    )

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return w, v and w_t."""
        return with_personal(message, memory)

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return FedAvg's phase, then the personal one."""
        personal = personal_phase(facts, plain_loss(facts.task), strength=self.pull, epochs=self.personal_epochs)
        return *FedAvg().phases(message, facts), personal

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return FedAvg's update to send, and v to keep."""
        return FedAvg().finish(tensors, message, client, facts)[0], keep_personal(tensors)

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return w and v."""
        return Models(tensors, strip_prefix(tensors, PERSONAL))
