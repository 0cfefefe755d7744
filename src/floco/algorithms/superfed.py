"""A federated and a personal endpoint, and the line between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import cosine_similarity

from floco.core.algorithm import Algorithm
from floco.core.network import Network
from floco.core.settings import setting
from floco.core.values import (
    PERSONAL,
    RECEIVED,
    Batch,
    Facts,
    Message,
    Models,
    Phase,
    Predict,
    Step,
    Tensors,
    Training,
    Update,
    add_prefix,
)

_AT = "mixture/personal"  # the mixture of the personal model: 0 until w_l has been trained


def _mixed(tensors: Tensors, names: tuple[str, ...], a: torch.Tensor) -> Tensors:
    """Return the network W(a) = (1 - a) w_f + a w_l."""
    return {**tensors, **{n: (1 - a) * tensors[n] + a * tensors[PERSONAL + n] for n in names}}


def _flat(tensors: Tensors, names: tuple[str, ...], prefix: str = "") -> torch.Tensor:
    return torch.cat([tensors[prefix + n].flatten() for n in names])


@dataclass(frozen=True)
class SuPerFed(Algorithm):
    """SuPerFed (Hahn, Jeong, Lee, KDD 2022, model mixing): W(a) = (1 - a) w_f + a w_l, a ~ U(0, 1) for each batch.

    Loss `CE(W(a)) + mu |w_f - w_t| + nu cos^2(w_f, w_l)`; w_f is averaged, w_l stays on the client. Each client draws
    its own w_l from the initialiser (vectors, loaded values and tensors without a random initialiser are copied); it
    takes part only after a share of the rounds.
    """

    name: ClassVar[str] = "superfed"
    global_model: ClassVar[str] = "a = 0"
    personal_model: ClassVar[str] = "a = 0.5, but w_f itself until the client's w_l has been trained"
    tuned: ClassVar[Mapping[str, tuple[float, float]]] = {"nu": (1.0, 0.1)}
    mu: float = setting(0.01, "mu: strength of the distance to the received parameters", low=0)
    nu: float = setting(1.0, "nu: strength of the squared cosine between the two endpoints", low=0)
    start_share: float = setting(
        0.4, "L: share of the rounds after which the personal endpoint takes part (1: never)", low=0, high=1
    )

    def start(self, network: Network, *, seed: int) -> Tensors:
        """Return the client's own w_l."""
        names = [n for n, t in network.parameters.items() if t.ndim > 1]
        drawn = network.redraw(names, seed=seed, draw=1, strict=False)
        return {**add_prefix({**network.parameters, **drawn}, PERSONAL), _AT: torch.tensor(0.0)}

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return w_f, w_l, w_t and the client's mixture."""
        received = add_prefix({n: message.shared[n] for n in facts.layout.parameters}, RECEIVED)
        return {**message.shared, **memory, **received}

    def refuse_change(self, before: Training, after: Training, done: int) -> str | None:
        """Refuse so many rounds that w_l, already in training, would rest again until its share of them is over."""
        begins = [self._alone(t) + 1 for t in (before, after)]
        if not begins[0] <= done < begins[1] - 1:
            return None
        return (
            f"training.rounds = {after.rounds}: superfed has trained the personal endpoints since round {begins[0]}, "
            f"and would wait with them until round {begins[1]} (algorithm.start_share = {self.start_share:g}): "
            "choose fewer rounds"
        )

    def _alone(self, training: Training) -> int:
        """Return the number of rounds, the first ones, that train w_f alone."""
        return math.floor(self.start_share * training.rounds + 1e-9)  # 0.29 * 100 is 28.999... in floating point

    def _active(self, message: Message, facts: Facts) -> bool:
        return message.round > self._alone(facts.training)

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return one phase: w_f alone in the first share of the rounds, then both endpoints."""
        names, task = facts.layout.parameters, facts.task
        active = self._active(message, facts)

        def loss(predict: Predict, tensors: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
            at = tensors if draw is None else _mixed(tensors, names, draw)
            value = task.loss(predict(at, batch.x), batch.y)
            shared = _flat(tensors, names)
            if self.mu:
                value = value + self.mu * torch.linalg.vector_norm(shared - _flat(tensors, names, RECEIVED))
            if self.nu and active:
                value = value + self.nu * cosine_similarity(shared, _flat(tensors, names, PERSONAL), dim=0).square()
            return value

        step = Step(loss, (*names, *(PERSONAL + n for n in names)) if active else names)
        return (Phase("shared", (step,), draws=_uniform if active else None),)

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return w_f to send, and w_l once it has been trained to keep."""
        update, memory = Algorithm.finish(self, tensors, message, client, facts)
        if self._active(message, facts):
            memory = {**{PERSONAL + n: tensors[PERSONAL + n] for n in facts.layout.parameters}, _AT: torch.tensor(0.5)}
        return update, memory

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return W(0) and the model at the client's mixture."""
        return Models(tensors, _mixed(tensors, facts.layout.parameters, tensors[_AT]))


def _uniform(tensors: Tensors, n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64)
