"""What one client's predictions are worth, and what many clients' numbers are together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class Score:
    """Metrics of one model on one part of the data."""

    accuracy: float
    """Share of correct predictions, in [0, 1]."""
    balanced_accuracy: float
    """Mean recall over the classes that occur, in [0, 1]."""
    loss: float
    """Mean cross-entropy, in nats."""
    n: int


def score(logits: torch.Tensor, labels: torch.Tensor) -> Score:
    """Return the metrics of logits (n, C) for labels (n,), n >= 1."""
    classes = logits.shape[1]
    right = logits.argmax(dim=1) == labels
    counts = torch.bincount(labels, minlength=classes).double()
    recall = torch.bincount(labels[right], minlength=classes).double() / counts
    loss = cross_entropy(logits.double(), labels)
    return Score(float(right.double().mean()), float(recall[counts > 0].mean()), float(loss), len(labels))


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
