"""A method of one's own in a file outside the package: `floco run -s algorithm.name=fedbabu:FedBABU`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from floco.core import (
    PERSONAL,
    Algorithm,
    Facts,
    Message,
    Models,
    Phase,
    Step,
    Tensors,
    add_prefix,
    personalize,
    plain_loss,
    setting,
    strip_prefix,
)


@dataclass(frozen=True)
class FedBABU(Algorithm):
    """FedBABU (Oh, Kim, Yun, ICLR 2022): average a body that is trained under a head with its initial values.

    The head of the global model never changes. Before an evaluation, each client trains a copy of the whole network
    for e' epochs, and drops it afterwards.
    """

    name: ClassVar[str] = "fedbabu"
    personal_model: ClassVar[str] = "w after the local epochs"
    personal_epochs: int | None = setting(None, "e': local epochs before an evaluation (empty: training.epochs)", low=1)

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return w twice: shared, and as the start of the copy."""
        return {**message.shared, **add_prefix(message.shared, PERSONAL)}

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return one phase: the body, on the task's loss."""
        body = tuple(n for n in facts.layout.parameters if n not in facts.layout.head)
        return (Phase("shared", (Step(plain_loss(facts.task), body),)),)

    def adapt(self, facts: Facts) -> tuple[Phase, ...]:
        """Return e' epochs on the whole copy."""
        moves = tuple(PERSONAL + n for n in facts.layout.parameters)
        return (Phase("personal", (Step(personalize(plain_loss(facts.task)), moves),), self.personal_epochs),)

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return w, and its fine-tuned copy."""
        return Models(tensors, strip_prefix(tensors, PERSONAL))
