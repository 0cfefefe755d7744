"""Federated averaging, then the head, then everything on the client's own samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from floco.algorithms.fedavg_ft import FedAvgFT
from floco.core.errors import FlocoError
from floco.core.settings import setting
from floco.core.values import PERSONAL, Facts, Layout, Phase, Step, Training, personalize, plain_loss


@dataclass(frozen=True)
class LPFT(FedAvgFT):
    """LP-FT (linear probing, then fine-tuning: Kumar et al., ICLR 2022; in federations: arXiv 2511.12695): FedAvg.

    Before evaluation, a copy of the global model trains its head alone for e1 epochs, then everything for e'. A head
    that fits already spoils the features less. With e1 = 0 it is FedAvg+FT.
    """

    name: ClassVar[str] = "lp-ft"
    personal_model: ClassVar[str] = "w after the epochs of the head, then of everything"
    tuned: ClassVar[Mapping[str, tuple[float, float]]] = {"head_epochs": (5, 1)}
    head_epochs: int | None = setting(
        None, "e1: epochs of the head alone before those of everything (empty: training.epochs)", low=0
    )

    def resolved(self, training: Training, layout: Layout | None = None) -> LPFT:
        """Check that there is a head."""
        if layout is not None and not layout.head:
            raise FlocoError("lp-ft needs a trained nn.Linear that gives the logits, and the model has none")
        return self

    def adapt(self, facts: Facts) -> tuple[Phase, ...]:
        """Return e1 epochs on the copy's head, then e' on all of it."""
        step = Step(personalize(plain_loss(facts.task)), tuple(PERSONAL + n for n in facts.layout.head))
        probing = () if self.head_epochs == 0 else (Phase("probing", (step,), self.head_epochs),)
        return (*probing, *super().adapt(facts))
