"""A newcomer's place on the simplex, and its model there."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from floco.core.network import Network
from floco.core.values import Tensors
from floco.deliver.guess import Guess
from floco.simplex import Mixing


@dataclass(frozen=True)
class Candidate:
    """A possible place of a newcomer on the simplex."""

    rule: str
    """`global`: 1/M; `signal`: where the assignment's map puts its signal; `data`: the best mixture for its samples."""
    alpha: torch.Tensor
    """(M,) float64."""
    loss: float
    """Mean loss on left-out samples, in nats."""
    accuracy: float
    """Accuracy on left-out samples, in [0, 1]."""


@dataclass(frozen=True)
class Placement:
    """A newcomer's place on the simplex, and the candidates it was chosen from."""

    candidates: tuple[Candidate, ...]
    problems: dict[str, str]
    """Reasons why rules failed, by rule."""
    guess: Guess
    network: Network = field(repr=False)
    simplex: Tensors = field(repr=False)
    """The shared simplex, network tensors with endpoints (M, ...)."""
    mixing: Mixing = field(repr=False)

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
        refused = self.guess.beats(self.chosen.accuracy, self.chosen.loss)
        return f"the newcomer's model is no better than a guess: {self.compared}" if refused else ""

    @property
    def compared(self) -> str:
        """Accuracy and loss of the model and of the guess, as text."""
        model, guess = self.chosen, self.guess
        return (
            f"of {guess.samples} samples, left out in turn, it recognises {100 * model.accuracy:.1f} %, and "
            f"{100 * guess.accuracy:.1f} % have the commonest label; its loss is {model.loss:.3f}, "
            f"and that of the label frequencies {guess.loss:.3f}"
        )

    @property
    def tensors(self) -> Tensors:
        """Network tensors of the newcomer's model."""
        return self.mixing(self.simplex, self.center.float())

    @property
    def module(self) -> nn.Module:
        """The newcomer's model: an ordinary module of the user's class, for normalised inputs, in eval mode."""
        return self.network.holding(self.tensors)
