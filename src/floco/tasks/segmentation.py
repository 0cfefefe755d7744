"""A class for every pixel of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy

from floco.core.metrics import Metric, Metrics, Score, add, mean
from floco.core.task import Labels
from floco.tasks.dense import IGNORED, Dense


@dataclass(frozen=True)
class SegmentationScore(Score):
    """Counts of pixels by class over n images; the scores of disjoint parts add up."""

    linear: ClassVar[bool] = True
    n: int
    losses: float
    """Sum of the pixels' cross-entropies, in nats."""
    pixels: int
    """Pixels that count."""
    right: tuple[int, ...]
    """Pixels of each class that are predicted as such, (C,)."""
    real: tuple[int, ...]
    """Pixels of each class, (C,)."""
    predicted: tuple[int, ...]
    """Pixels predicted as each class, (C,)."""
    told: tuple[float, float] | None = None
    """Mean IoU and Dice score as reported by a client that does not disclose its counts (C is then 1)."""

    def __add__(self, other: SegmentationScore) -> SegmentationScore:
        """Return the score of both parts together; IoU and Dice are unknown if one of them has no counts by class."""
        if self.told is not None or other.told is not None:
            a, b = self.coarse(), other.coarse()
            return a._plus(b, (math.nan, math.nan))
        return self._plus(other, None)

    def _plus(self, other: SegmentationScore, told: tuple[float, float] | None) -> SegmentationScore:
        return SegmentationScore(
            self.n + other.n,
            self.losses + other.losses,
            self.pixels + other.pixels,
            add(self.right, other.right),
            add(self.real, other.real),
            add(self.predicted, other.predicted),
            told,
        )

    @property
    def places(self) -> int:
        """Pixels that count."""
        return self.pixels

    @property
    def loss(self) -> float:
        """Mean loss of a pixel, in nats."""
        return self.losses / self.pixels

    @property
    def accuracy(self) -> float:
        """Share of pixels whose class is predicted, in [0, 1]."""
        return sum(self.right) / self.pixels

    def _overlaps(self) -> list[tuple[int, int]]:
        """Return correct pixels, and real plus predicted ones, of each class that occurs or is predicted."""
        found = zip(self.right, self.real, self.predicted, strict=True)
        return [(both, a + b) for both, a, b in found if a + b]

    @property
    def iou(self) -> float | None:
        """Mean over classes of intersection over union, in [0, 1]: those that occur or are predicted. None: unknown."""
        if self.told is not None:
            return None if math.isnan(self.told[0]) else self.told[0]
        return mean([both / (either - both) for both, either in self._overlaps()])

    @property
    def dice(self) -> float | None:
        """Mean over the same classes of `2 |A and B| / (|A| + |B|)`, in [0, 1]. None: unknown."""
        if self.told is not None:
            return None if math.isnan(self.told[1]) else self.told[1]
        return mean([2 * both / either for both, either in self._overlaps()])

    def details(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the IoU of each class in the data, the worst first."""
        found = zip(names, self.right, self.real, self.predicted, strict=False)
        rows = [{"class": name, "pixels": a, "iou": both / (a + b - both)} for name, both, a, b in found if a]
        return {"overlaps": sorted(rows, key=lambda row: float(str(row["iou"])))}

    def coarse(self) -> SegmentationScore:
        """Return the score without counts by class; IoU and Dice become numbers."""
        told = (math.nan if self.iou is None else self.iou, math.nan if self.dice is None else self.dice)
        right, real, predicted = ((sum(v),) for v in (self.right, self.real, self.predicted))
        return SegmentationScore(self.n, self.losses, self.pixels, right, real, predicted, told)

    def plausible(self, n: int, outputs: int) -> bool:
        """Return whether it can be a score of n images and this number of classes."""
        counts = (self.right, self.real, self.predicted)
        wanted = outputs if self.told is None else 1
        if self.n != n or self.pixels < 1 or {len(v) for v in counts} != {wanted} or not 0 <= self.losses < math.inf:
            return False
        fits = all(0 <= a <= min(b, c) for a, b, c in zip(*counts, strict=True))
        told = self.told is None or [not v < 0 and not v > 1 for v in self.told] == [True, True]
        return fits and told and sum(self.real) == sum(self.predicted) == self.pixels


@dataclass(frozen=True)
class Segmentation(Dense):
    """Segmentation: cross-entropy of logits (n, C, H, W) for class numbers (n, H, W), a mean over pixels."""

    name: ClassVar[str] = "segmentation"
    metrics: ClassVar[Metrics] = Metrics(
        {
            "iou": Metric(share=True),
            "dice": Metric(share=True),
            "accuracy": Metric(share=True),
            "loss": Metric(higher=False),
        }
    )
    score_type: ClassVar[type[Score]] = SegmentationScore
    kind: ClassVar[str] = "masks of labels"
    dims: ClassVar[int] = 3
    counted: ClassVar[str] = "pixels"

    def classes_second(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs as they are."""
        return outputs

    def score(self, outputs: torch.Tensor, targets: torch.Tensor) -> SegmentationScore:
        """Return the score of logits (n, C, H, W) for class numbers (n, H, W)."""
        classes, counted = outputs.shape[1], targets != IGNORED
        losses = float(cross_entropy(outputs.double(), targets, reduction="sum"))
        guess, real = outputs.argmax(1)[counted], targets[counted]
        counts = (torch.bincount(v, minlength=classes).tolist() for v in (real[guess == real], real, guess))
        return SegmentationScore(len(targets), losses, len(real), *map(tuple, counts))

    def present(self, predictions: torch.Tensor, labels: Labels) -> dict[str, Any]:
        """Return the share of each image's pixels that each class has."""
        most = predictions.argmax(1)
        shares = {name: (most == c).flatten(1).double().mean(1).tolist() for c, name in enumerate(labels.names)}
        return {f"share({name})": share for name, share in shares.items()}
