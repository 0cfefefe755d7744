"""The score of a classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from floco.core.metrics import Score, add, mean

BINS = 15  # equal-width bins of confidence in the expected calibration error


@dataclass(frozen=True)
class ClassificationScore(Score):
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

    def __add__(self, other: ClassificationScore) -> ClassificationScore:
        """Return the score of both parts together; it has counts by label only if both have them."""
        if len(self.counts) == len(other.counts) > 1:
            counts, right = add(self.counts, other.counts), add(self.right, other.right)
        else:
            counts, right = (self.n + other.n,), (sum(self.right) + sum(other.right),)
        losses, squares = self.losses + other.losses, self.squares + other.squares
        return ClassificationScore(counts, right, losses, squares, add(self.gaps, other.gaps))

    @property
    def n(self) -> int:  # type: ignore[override]
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
    def ece(self) -> float:
        """Expected calibration error, in [0, 1]: `sum_b n_b / n |confidence_b - accuracy_b|`.

        Over 15 bins of equal width (Guo et al., ICML 2017).
        """
        return math.fsum(abs(g) for g in self.gaps) / self.n

    @property
    def brier(self) -> float:
        """Brier score, in [0, 2]: mean of `sum_c (p_c - [c = y])^2` (Brier 1950)."""
        return self.squares / self.n

    def details(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the recall of each class in the data, the worst first."""
        found = zip(names, self.counts, self.right, strict=True)
        classes: list[dict[str, Any]] = [{"class": n, "samples": c, "recall": r / c} for n, c, r in found if c]
        return {"classes": sorted(classes, key=lambda row: row["recall"])}

    def coarse(self) -> ClassificationScore:
        """Return the score without its counts by label; the balanced accuracy becomes a number."""
        right = (sum(self.right),)
        return ClassificationScore((self.n,), right, self.losses, self.squares, self.gaps, self.balanced_accuracy)

    def plausible(self, n: int, outputs: int) -> bool:
        """Return whether it can be a score of n samples and this number of classes."""
        counts, right, most = self.counts, self.right, n * (1 + 1e-6)
        if (
            len(counts) != len(right)
            or len(counts) not in (1, outputs)
            or not all(type(v) is int for v in (*counts, *right))
            or self.n != n
        ):
            return False
        whole = len(counts) == outputs
        balanced = self.balanced is None if whole else self.balanced is not None and 0 <= self.balanced <= 1
        gaps = len(self.gaps) == BINS and sum(map(abs, self.gaps)) <= most
        return (
            all(0 <= r <= c for r, c in zip(right, counts, strict=True))
            and balanced
            and gaps
            and 0 <= self.squares <= 2 * most
            and 0 <= self.losses < math.inf
        )
