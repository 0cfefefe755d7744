"""A class for every token of a sequence: tagging, or the next token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy

from floco.core.metrics import Metric, Metrics, Score
from floco.core.task import Labels
from floco.tasks.dense import IGNORED, Dense


@dataclass(frozen=True)
class TokensScore(Score):
    """Sums over the tokens of n sequences; the scores of disjoint parts add up."""

    n: int
    losses: float
    """Sum of the tokens' cross-entropies, in nats."""
    tokens: int
    """Tokens that count."""
    right: int
    """Tokens whose class is predicted."""

    @property
    def places(self) -> int:
        """Tokens that count."""
        return self.tokens

    @property
    def loss(self) -> float:
        """Mean loss of a token, in nats."""
        return self.losses / self.tokens

    @property
    def accuracy(self) -> float:
        """Share of tokens whose class is predicted, in [0, 1]."""
        return self.right / self.tokens

    @property
    def perplexity(self) -> float:
        """Exponential of the loss, >= 1."""
        return math.exp(min(self.loss, 700.0))

    def plausible(self, n: int, outputs: int) -> bool:
        """Return whether it can be a score of n sequences."""
        return 0 <= self.right <= self.tokens > 0 and self.losses >= 0 and super().plausible(n, outputs)


@dataclass(frozen=True)
class Tokens(Dense):
    """Tokens: cross-entropy of logits (n, T, C) for class numbers (n, T), a mean over tokens."""

    name: ClassVar[str] = "tokens"
    metrics: ClassVar[Metrics] = Metrics(
        {"accuracy": Metric(share=True), "perplexity": Metric(higher=False), "loss": Metric(higher=False)}
    )
    score_type: ClassVar[type[Score]] = TokensScore
    kind: ClassVar[str] = "rows of labels"
    ids: ClassVar[bool] = True
    dims: ClassVar[int] = 2
    counted: ClassVar[str] = "tokens"

    def classes_second(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs as (n, C, T)."""
        return outputs.movedim(-1, 1)

    def score(self, outputs: torch.Tensor, targets: torch.Tensor) -> TokensScore:
        """Return the score of logits (n, T, C) for class numbers (n, T)."""
        counted = targets != IGNORED
        logits, real = outputs[counted], targets[counted]
        losses = float(cross_entropy(logits.double(), real, reduction="sum"))
        return TokensScore(len(targets), losses, len(real), int((logits.argmax(1) == real).sum()))

    def present(self, predictions: torch.Tensor, labels: Labels) -> dict[str, Any]:
        """Return the most probable label of each token, in a list, and their mean probability."""
        most, which = predictions.max(dim=-1)
        chosen = [[labels.names[i] for i in row] for row in which.tolist()]
        return {"labels": chosen, "probability": most.mean(1).tolist()}
