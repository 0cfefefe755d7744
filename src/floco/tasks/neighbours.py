"""Predictions from the labels of the nearest of some samples, mixed with those of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_ROWS = 1000  # distances of so many samples are in memory at once
_WEIGHTS = tuple(i / 10 for i in range(11))
_SCALES = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the mean distance of neighbours
_LEAST = 1e-12  # of a probability: a label that no neighbour has is not infinitely unlikely, also with a weight of 1


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The prediction weight p_knn + (1 - weight) softmax(logits), as logits: its log."""

    features: torch.Tensor
    """(n, F), of the samples that are looked up."""
    labels: torch.Tensor
    """Their class numbers, (n,)."""
    k: int
    weight: float
    scale: float

    def __call__(self, found: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the log of the mixture (m, C), from logits (m, C) and features (m, F)."""
        logits, features = found
        distances, labels = nearest(features, self.features, self.labels, self.k)
        near = neighbour_shares(distances, labels, self.scale, logits.shape[1])
        return _mix(near, logits, self.weight).log().to(logits.dtype)


def nearest(
    features: torch.Tensor, known: torch.Tensor, labels: torch.Tensor, k: int, *, others: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances (m, k) float64 and labels (m, k) of the k nearest known samples, fewer if there are fewer.

    With `others`, the features are those known themselves, and none is its own neighbour.
    """
    k, parts = min(k, len(known) - others), []
    for start in range(0, len(features), _ROWS):
        some = features[start : start + _ROWS].double()
        far = torch.cdist(some, known.double(), compute_mode="donot_use_mm_for_euclid_dist")
        if others:
            far[torch.arange(len(some)), torch.arange(start, start + len(some))] = torch.inf
        parts.append(far.topk(k, largest=False))
    at = torch.cat([p.indices for p in parts])
    return torch.cat([p.values for p in parts]), labels[at]


def neighbour_shares(distances: torch.Tensor, labels: torch.Tensor, scale: float, classes: int) -> torch.Tensor:
    """Return p_knn (m, C): the shares of the labels (m, k) by exp(-d / scale), for distances (m, k)."""
    weights = (-distances / scale).softmax(dim=1)  # sums to 1, also where all are far
    return weights.new_zeros(len(weights), classes).scatter_add_(1, labels, weights)


def _mix(near: torch.Tensor, logits: torch.Tensor, weight: float) -> torch.Tensor:
    return (weight * near + (1 - weight) * logits.double().softmax(dim=1)).clamp_min(_LEAST)


def choose_mixture(
    features: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor, k: int, weight: float | None
) -> tuple[float, float]:
    """Return weight and scale of the lowest mean loss on samples that are never their own neighbours.

    Args:
        features: (n, F), n >= 2.
        labels: class numbers (n,).
        logits: of the network for the same samples, (n, C).
        k: number of neighbours.
        weight: the weight, if it is given; None: one of 0, 0.1, ..., 1. Of equally good ones, as of scales, it is the
            smallest.
    """
    distances, known = nearest(features, features, labels, k, others=True)
    unit = float(distances.mean()) or 1.0
    best = (torch.inf, 0.0, unit)
    for share in _WEIGHTS if weight is None else (weight,):
        for scale in _SCALES:
            near = neighbour_shares(distances, known, scale * unit, logits.shape[1])
            right = _mix(near, logits, share).gather(1, labels[:, None])
            found = round(float(-right.log().mean()), 9)  # rounding must not decide between equally good ones
            if found < best[0]:
                best = (found, share, scale * unit)
    return best[1:]
