"""Metrics of a model as sums that add up over disjoint parts of the data, and statistics over clients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeVar

import torch
from torch.nn.functional import cross_entropy

METRICS = ("accuracy", "balanced_accuracy", "loss", "ece", "brier")
BINS = 15  # equal-width bins of confidence in the expected calibration error


@dataclass(frozen=True)
class Score:
    """The metrics of one model on one part of the data; scores of disjoint parts add up."""

    counts: tuple[int, ...]
    """Samples of each class, (C,)."""
    right: tuple[int, ...]
    """Correctly predicted samples of each class, (C,)."""
    losses: float
    """Sum of the cross-entropies, in nats."""
    squares: float
    """Sum over samples of `sum_c (p_c - [c = y])^2`."""
    gaps: tuple[float, ...]
    """Sum of confidence minus correctness in each bin of confidence, (BINS,)."""
    balanced: float | None = None
    """The balanced accuracy as reported by a client that does not disclose its counts by label (C is then 1)."""

    def __add__(self, other: Score) -> Score:
        """Return the score of both parts together; it has counts by label only if both have them."""
        if len(self.counts) == len(other.counts) > 1:
            counts, right = _sum(self.counts, other.counts), _sum(self.right, other.right)
        else:
            counts, right = (self.n + other.n,), (sum(self.right) + sum(other.right),)
        losses, squares = self.losses + other.losses, self.squares + other.squares
        return Score(counts, right, losses, squares, _sum(self.gaps, other.gaps))

    @property
    def n(self) -> int:
        """Number of samples."""
        return sum(self.counts)

    @property
    def accuracy(self) -> float:
        """Share of correct predictions, in [0, 1]."""
        return sum(self.right) / self.n

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean recall over the classes that occur, in [0, 1]; None if unknown."""
        if len(self.counts) == 1:
            return self.balanced
        return mean([r / c for r, c in zip(self.right, self.counts, strict=True) if c])

    @property
    def loss(self) -> float:
        """Negative log-likelihood: mean cross-entropy, in nats."""
        return self.losses / self.n

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1]: `sum_b n_b / n |confidence_b - accuracy_b|`.

        Over 15 bins of equal width (Guo et al., ICML 2017).
        """
        return math.fsum(abs(g) for g in self.gaps) / self.n

    @property
    def brier(self) -> float:
        """Brier score, in [0, 2]: mean of `sum_c (p_c - [c = y])^2` (Brier 1950)."""
        return self.squares / self.n


N = TypeVar("N", int, float)


def _sum(a: tuple[N, ...], b: tuple[N, ...]) -> tuple[N, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def score(logits: torch.Tensor, labels: torch.Tensor) -> Score:
    """Return the metrics of logits (n, C) for labels (n,), n >= 1."""
    classes = logits.shape[1]
    logits = logits.double()
    probabilities = logits.softmax(dim=1)
    confidence, guess = probabilities.max(dim=1)
    right = guess == labels
    squares = (probabilities - torch.eye(classes, dtype=torch.float64)[labels]).square().sum()
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # bins (0, 1/15], (1/15, 2/15], ...
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, confidence - right.double())
    counts, hits = (torch.bincount(y, minlength=classes).tolist() for y in (labels, labels[right]))
    loss = cross_entropy(logits, labels, reduction="sum")
    return Score(tuple(counts), tuple(hits), float(loss), float(squares), tuple(gaps.tolist()))


def pooled(scores: Iterable[Score]) -> Score | None:
    """Return the score of the union of disjoint parts; None if there are no parts."""
    parts = list(scores)
    return reduce(Score.__add__, parts) if parts else None


def worst(values: Sequence[float], share: float) -> float:
    """Return the mean of the ceil(share * K) lowest of K values.

    >>> worst([0.9, 0.5, 0.7], 0.05)
    0.5
    """
    lowest = sorted(values)[: math.ceil(share * len(values))]
    return math.fsum(lowest) / len(lowest)


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Return the mean of K >= 1 values, weighted if weights are given."""
    if weights is None:
        return math.fsum(values) / len(values)
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / math.fsum(weights)


def spread(values: Sequence[float]) -> float:
    """Return the population standard deviation of K >= 1 values (divided by K)."""
    middle = mean(values)
    return math.sqrt(mean([(v - middle) ** 2 for v in values]))
