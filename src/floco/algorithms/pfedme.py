"""Personal models as proximal points of the global one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from floco.core.algorithm import Algorithm, average
from floco.core.errors import FlocoError
from floco.core.settings import setting
from floco.core.values import (
    PERSONAL,
    Batch,
    Facts,
    Layout,
    Message,
    Models,
    Phase,
    Predict,
    ServerState,
    Step,
    Tensors,
    Training,
    Update,
    add_prefix,
    personalize,
    plain_loss,
    strip_prefix,
)


@dataclass(frozen=True)
class PFedMe(Algorithm):
    """pFedMe (Dinh, Tran, Nguyen, NeurIPS 2020, algorithm 1): theta = argmin f(theta) + lambda/2 |theta - w|^2.

    On each batch several steps theta <- theta - lr (grad f(theta) + lambda (theta - w)), then one step
    w <- w - eta lambda (w - theta); theta starts at the received parameters. The server takes
    w <- (1 - beta) w + beta mean. There is no momentum.
    """

    name: ClassVar[str] = "pfedme"
    personal_model: ClassVar[str] = "theta after the client's last round"
    tuned: ClassVar[Mapping[str, tuple[float, float]]] = {"pull": (15.0, 1.0)}
    pull: float = setting(
        15.0, "lambda: strength of the pull of theta towards w; eta lambda must be at most 1", above=0
    )
    inner_steps: int = setting(5, "K: steps of theta on each batch", low=1)
    local_epochs: int | None = setting(
        None, "epochs a round (empty: training.epochs, or training.steps, / inner_steps, at least 1)", low=1
    )
    personal_lr: float | None = setting(None, "step size of theta (empty: training.lr)", above=0)
    outer_lr: float = setting(
        0.05, "eta: step size of w (the paper: 0.005, with more batches a round than the budget gives here)", above=0
    )
    server_share: float = setting(
        1.0,
        "beta: how far the server goes to the mean of the clients' w (the paper also goes beyond it)",
        above=0,
        high=1,
    )

    def resolved(self, training: Training, layout: Layout | None = None) -> Self:
        """Check that w does not overshoot theta, and that clients train by plain SGD."""
        training.require_sgd(self.name, "w must move by eta lambda (w - theta), and theta by its own gradient step")
        if self.outer_lr * self.pull > 1:
            raise FlocoError(
                f"outer_lr * pull must be at most 1, else w overshoots theta; got {self.outer_lr} * {self.pull}"
            )
        return self

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return w and theta: w itself for training, the client's last theta for evaluation."""
        theta = memory if memory and message.purpose == "evaluate" else add_prefix(message.shared, PERSONAL)
        return {**message.shared, **theta}

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return one phase of two steps per batch: theta several times, then w towards theta."""
        names = facts.layout.parameters
        moves = tuple(PERSONAL + n for n in names)

        def towards_w(tensors: Tensors) -> Tensors:
            return {PERSONAL + n: self.pull * (tensors[PERSONAL + n] - tensors[n]) for n in names}

        def distance(predict: Predict, tensors: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
            squares = [(tensors[n] - tensors[PERSONAL + n].detach()).square().sum() for n in names]
            return self.pull / 2 * torch.stack(squares).sum()

        loss, repeat = personalize(plain_loss(facts.task)), self.inner_steps
        inner = Step(loss, moves, towards_w, lr=self.personal_lr, momentum=0.0, repeat=repeat)
        outer = Step(distance, names, lr=self.outer_lr, momentum=0.0, weight_decay=0.0)
        if self.local_epochs is None and facts.training.steps is not None:
            return (Phase("shared", (inner, outer), batches=max(1, round(facts.training.steps / self.inner_steps))),)
        epochs = self.local_epochs or max(1, round(facts.training.epochs / self.inner_steps))
        return (Phase("shared", (inner, outer), epochs),)

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return w with the buffers of theta (w itself sees no data) to send, and theta to keep."""
        shared = {n: tensors[PERSONAL + n if n in facts.layout.buffers else n] for n in message.shared}
        theta = {n: t for n, t in tensors.items() if n.startswith(PERSONAL)}
        return Update(client, message.purpose, facts.n_train, shared), theta

    def aggregate(self, state: ServerState, updates: Sequence[Update], *, clients: Mapping[str, int]) -> ServerState:
        """Return (1 - beta) w + beta mean, also for buffers."""
        after = average(state, updates)
        if self.server_share == 1:
            return after
        floating = {n: t for n, t in after.shared.items() if t.is_floating_point()}
        mixed = {n: torch.lerp(state.shared[n], t, self.server_share) for n, t in floating.items()}
        return replace(after, shared={**after.shared, **mixed})

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return w and theta."""
        return Models(tensors, strip_prefix(tensors, PERSONAL))
