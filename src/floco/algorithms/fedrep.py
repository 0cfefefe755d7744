"""A shared body, and a local head that is trained first in each round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from floco.algorithms.own_part import OwnHead
from floco.core.settings import setting
from floco.core.values import Facts, Message, Phase, Step, plain_loss


@dataclass(frozen=True)
class FedRep(OwnHead):
    """FedRep (Collins et al., ICML 2021, algorithm 1): train the head with a fixed body, then the body.

    The head is fixed in the second phase. Only the body is averaged.
    """

    name: ClassVar[str] = "fedrep"
    head_epochs: int | None = setting(
        None,
        "epochs on the head a round, before those on the body "
        "(empty: training.epochs; the paper: 10, with 1 or 5 on the body)",
        low=1,
    )

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return the phase of the head, then that of the body."""
        body = tuple(n for n in facts.layout.parameters if n not in facts.layout.head)
        head = Phase("head", (Step(plain_loss(facts.task), facts.layout.head),), self.head_epochs)
        return head, Phase("shared", (Step(plain_loss(facts.task), body),))
