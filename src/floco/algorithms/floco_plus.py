"""Floco+: Ditto on the solution simplex."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from floco.algorithms.ditto import keep_personal, personal_phase, with_personal
from floco.algorithms.floco import SimplexMethod
from floco.core.settings import setting
from floco.core.values import PERSONAL, Facts, Message, Phase, Tensors, Update


@dataclass(frozen=True)
class FlocoPlus(SimplexMethod):
    """Floco+ (NeurIPS 2024): Floco, and on each client its own simplex v_k with gradient + lambda (v_k - w_t).

    v_k starts from the first message, trains inside R_k for e' epochs a round, and is never sent. The shared simplex
    equals Floco's to the bit.
    """

    name: ClassVar[str] = "floco+"
    personal_model: ClassVar[str] = "v_k at alpha = beta_k"
    prefix: ClassVar[str] = PERSONAL
    pull: float = setting(1.0, "lambda: strength of the pull of the personal simplex towards the received one", low=0)
    personal_epochs: int | None = setting(
        None, "e': epochs of the personal simplex a round (empty: training.epochs)", low=1
    )

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return w, v_k, w_t and the client's center."""
        return {**with_personal(message, memory), **super().begin(message, memory, facts)}

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return Floco's phase, then the personal one; a probe has no personal phase."""
        shared = self.shared_phase(message, facts)
        if message.purpose == "probe":
            return (shared,)
        # v_k is used at beta_k only
        strength, epochs, draws = self.pull, self.personal_epochs, replace(self.sampler_of(message), uniform=0.0)
        loss = self.loss(facts.task, "endpoint" if self.step == "endpoint" else "mixture")  # nobody uses its middle
        return shared, personal_phase(facts, loss, strength=strength, epochs=epochs, draws=draws)

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return Floco's update to send, and v_k to keep, with the center found here."""
        update, kept = super().finish(tensors, message, client, facts)
        return update, {**kept, **keep_personal(tensors)}
