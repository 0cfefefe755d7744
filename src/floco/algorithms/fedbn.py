"""Normalisation layers that stay on the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from floco.algorithms.fedavg import FedAvg
from floco.algorithms.own_part import OwnPart
from floco.core.errors import warn
from floco.core.values import Facts, Layout, Message, Phase, Training


@dataclass(frozen=True)
class FedBN(OwnPart):
    """FedBN (Li, Jiang, Zhang, Kamp, Dou, ICLR 2021): average everything but the normalisation layers.

    Their parameters and statistics stay on the client: of torch's BatchNorm, SyncBatchNorm, InstanceNorm, GroupNorm,
    LayerNorm and RMSNorm. A client that has never trained has their initial values, with which the averaged layers do
    not work well. Without such layers it is FedAvg, and warns.
    """

    name: ClassVar[str] = "fedbn"
    personal_model: ClassVar[str] = "w with the client's own normalisation layers"
    needed: ClassVar[str] = "trained layers that are no normalisation layers"

    def own(self, layout: Layout) -> tuple[str, ...]:
        """Return parameters and buffers of the normalisation layers."""
        return layout.norms

    def resolved(self, training: Training, layout: Layout | None = None) -> Self:
        """Check that there is something trained to send; warn if there is nothing to keep."""
        if layout is None or layout.norms:
            return super().resolved(training, layout)
        warn(
            "fedbn keeps normalisation layers on the client, and the model has none: its personal models are FedAvg's; "
            "compare it on a model with BatchNorm"
        )
        return self

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return FedAvg's phase: all parameters."""
        return FedAvg().phases(message, facts)
