"""A newcomer's place on the simplex, and its model there."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from floco.core.mixing import Mixing
from floco.core.network import Network
from floco.core.task import Guess
from floco.core.values import Tensors
from floco.data.schema import Schema


@dataclass(frozen=True)
class Candidate:
    """A possible place of a newcomer on the simplex."""

    rule: str
    """`global`: 1/M; `signal`: where the assignment's map puts its signal; `data`: the best mixture for its samples."""
    alpha: torch.Tensor
    """(M,) float64."""
    loss: float
    """Mean loss on left-out samples, in nats."""
    value: float
    """The task's primary metric on them."""


@dataclass(frozen=True)
class Placement:
    """A newcomer's place on the simplex, and the candidates it was chosen from."""

    candidates: tuple[Candidate, ...]
    problems: dict[str, str]
    """Reasons why rules failed, by rule."""
    guess: Guess | None
    """What a model has to beat, if the task knows it."""
    network: Network = field(repr=False)
    simplex: Tensors = field(repr=False)
    """The shared simplex (with the task's shift), network tensors with endpoints (M, ...)."""
    mixing: Mixing = field(repr=False)
    schema: Schema = field(repr=False)
    """Of the newcomer's rows."""

    @property
    def chosen(self) -> Candidate:
        """The candidate with the lowest loss on left-out samples (the first, if equal)."""
        return min(self.candidates, key=lambda c: c.loss)

    @property
    def center(self) -> torch.Tensor:
        """The newcomer's place, (M,) float64."""
        return self.chosen.alpha

    @property
    def refusal(self) -> str:
        """Why `place` refuses the model (`Guess.beats`); "" if it does not."""
        refused = self.guess is not None and self.guess.beats(self.chosen.value, self.chosen.loss)
        return f"the newcomer's model is no better than a guess: {self.compared}" if refused else ""

    @property
    def doubtful(self) -> bool:
        """Whether the newcomer's samples do not show that its model is better than a guess."""
        return self.guess is not None and self.guess.doubts(self.chosen.value, self.chosen.loss)

    @property
    def compared(self) -> str:
        """The model and the guess in numbers, as text."""
        return "" if self.guess is None else self.guess.compare(self.chosen.value, self.chosen.loss)

    @property
    def tensors(self) -> Tensors:
        """Network tensors of the newcomer's model."""
        return self.mixing(self.simplex, self.center.float())

    @property
    def module(self) -> nn.Module:
        """The newcomer's model: an ordinary module of the user's class, for normalised inputs, in eval mode."""
        return self.network.holding(self.tensors)
