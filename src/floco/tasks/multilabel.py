"""Several labels for each sample, each present or absent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from floco.core.errors import FlocoError
from floco.core.inputs import array, headings
from floco.core.intervals import Statistic
from floco.core.metrics import Metric, Metrics, Score, mean
from floco.core.task import Labels, Task
from floco.tasks.decisions import resample_areas
from floco.tasks.endings import batch_of, doubt_probabilities
from floco.tasks.guess import FrequencyGuess

_KEPT = 13  # bits of a float32 that are dropped: logits closer than a thousandth of their size are equal
_LABEL = 2**19  # more than the numbers that are left


@dataclass(frozen=True)
class MultilabelScore(Score):
    """Histograms of the logits of L labels over n samples; the scores of disjoint parts add up."""

    n: int
    losses: float
    """Sum over samples of the mean cross-entropy of the labels, in nats."""
    labels: int
    """L."""
    bins: tuple[int, ...]
    """The bins with samples, in order of the label and then of the logit."""
    present: tuple[int, ...]
    """Samples in each bin that have its label."""
    absent: tuple[int, ...]
    """The others."""
    told: tuple[float, float] | None = None
    """AUROC and F1 as reported by a client that does not disclose its histograms; NaN if undefined."""

    @staticmethod
    def of(logits: torch.Tensor, targets: torch.Tensor, losses: float) -> MultilabelScore:
        """Return the score of logits (n, L) with targets (n, L) and this sum of losses."""
        bits = (logits.float() + 0.0).view(torch.int32)  # + 0.0: -0.0 is 0.0
        ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >> _KEPT
        places = ordered.long() + _LABEL // 2 + _LABEL * torch.arange(logits.shape[1])
        bins, which = places.flatten().unique(return_inverse=True)
        have = torch.bincount(which, weights=targets.flatten().double(), minlength=len(bins)).long()
        lack = torch.bincount(which, minlength=len(bins)) - have
        return MultilabelScore(len(targets), losses, logits.shape[1], *(tuple(t.tolist()) for t in (bins, have, lack)))

    def __add__(self, other: MultilabelScore) -> MultilabelScore:
        """Return the score of both parts together; AUROC and F1 are unknown if one of them has no histograms."""
        n, losses = self.n + other.n, self.losses + other.losses
        if self.told is not None or other.told is not None:
            return MultilabelScore(n, losses, self.labels, (), (), (), (math.nan, math.nan))
        bins, which = np.unique(np.array(self.bins + other.bins, dtype=np.int64), return_inverse=True)
        have, lack = (
            np.bincount(which, weights=np.array(both), minlength=len(bins)).astype(np.int64).tolist()
            for both in (self.present + other.present, self.absent + other.absent)
        )
        return MultilabelScore(n, losses, self.labels, tuple(bins.tolist()), tuple(have), tuple(lack))

    def _histograms(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield for each label which bins are of logits from 0 on, and the samples with and without it by bin."""
        bins, have, lack = (np.array(v, dtype=np.int64) for v in (self.bins, self.present, self.absent))
        for i in range(self.labels):
            own = bins // _LABEL == i
            yield bins[own] % _LABEL >= _LABEL // 2, have[own], lack[own]

    @property
    def aurocs(self) -> list[float | None]:
        """Area under the ROC curve of each label, in [0, 1]; None for labels that all samples have, or none."""
        found: list[float | None] = []
        for _, have, lack in self._histograms():
            below = lack.cumsum() - lack / 2  # equal logits count half
            pairs = int(have.sum()) * int(lack.sum())
            found.append(float((have * below).sum() / pairs) if pairs else None)
        return found

    @property
    def auroc(self) -> float | None:
        """Mean area under the ROC curve over the labels that some samples have and some lack; None without such."""
        if self.told is not None:
            return _known(self.told[0])
        found = [a for a in self.aurocs if a is not None]
        return mean(found) if found else None

    @property
    def f1(self) -> float | None:
        """Mean F1 score at probability 1/2, over the labels that occur or are predicted; None without such."""
        if self.told is not None:
            return _known(self.told[1])
        found = []
        for positive, have, lack in self._histograms():
            right, total = int(have[positive].sum()), int(have.sum() + have[positive].sum() + lack[positive].sum())
            found += [2 * right / total] if total else []
        return mean(found) if found else None

    def details(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the AUROC of each label."""
        have = [int(h.sum()) for _, h, _ in self._histograms()]
        rows = zip(names, have, self.aurocs, strict=False)
        return {"labels": [{"label": name, "samples": n, "auroc": a} for name, n, a in rows]}

    def coarse(self) -> MultilabelScore:
        """Return the score without histograms; AUROC and F1 become numbers."""
        told = tuple(math.nan if v is None else v for v in (self.auroc, self.f1))
        return MultilabelScore(self.n, self.losses, self.labels, (), (), (), told)  # type: ignore[arg-type]

    def plausible(self, n: int, outputs: int) -> bool:
        """Return whether it can be a score of n samples and this number of labels."""
        if self.n != n or not 0 <= self.losses < math.inf:
            return False
        if self.labels != outputs or not len(self.bins) == len(self.present) == len(self.absent) <= n * outputs:
            return False
        if self.told is not None:
            fits = [not v < 0 and not v > 1 for v in self.told] == [True, True]
            return fits and not self.bins
        whole = all(type(v) is int for v in (*self.bins, *self.present, *self.absent))
        ordered = whole and all(a < b for a, b in pairwise((-1, *self.bins, outputs * _LABEL)))
        counts = (*self.present, *self.absent)
        return ordered and min(counts) >= 0 and all(h.sum() + a.sum() == n for _, h, a in self._histograms())


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class Multilabel(Task):
    """Multilabel: binary cross-entropy of logits (n, L) for targets (n, L) of 0 and 1."""

    name: ClassVar[str] = "multilabel"
    metrics: ClassVar[Metrics] = Metrics(
        {"auroc": Metric(share=True), "f1": Metric(share=True), "loss": Metric(higher=False)}
    )
    further: ClassVar[Metrics] = Metrics({"average_precision": Metric(share=True)})
    score_type: ClassVar[type[Score]] = MultilabelScore
    kind: ClassVar[str] = "rows of 0 and 1"
    padding: ClassVar[float] = -1.0
    convex: ClassVar[bool] = True
    named: ClassVar[bool] = True
    graph_names: ClassVar[tuple[str, str]] = ("logits", "probabilities")

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each sample, (n,): the mean over its labels, in nats."""
        return binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none").mean(1)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss, in nats; padding does not count."""
        real = targets[:, 0] >= 0
        return (self.losses(outputs, targets) * real).sum() / real.sum().clamp(min=1)

    def score(self, outputs: torch.Tensor, targets: torch.Tensor) -> MultilabelScore:
        """Return the score of logits (n, L) for targets (n, L)."""
        return MultilabelScore.of(outputs, targets, float(self.losses(outputs.double(), targets).sum()))

    def resampler(self, outputs: torch.Tensor, targets: torch.Tensor, *, further: bool = True) -> Statistic:
        """Return the function that gives AUROC and average precision of resamples."""
        return lambda counts: resample_areas(outputs.numpy(), targets.numpy() > 0, counts)

    def activate(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return probabilities (n, L)."""
        return outputs.sigmoid()

    def present(self, predictions: torch.Tensor, labels: Labels) -> dict[str, Any]:
        """Return the labels with a probability of at least 1/2, in a list, and all probabilities."""
        chosen = [[n for n, p in zip(labels.names, row, strict=True) if p >= 0.5] for row in predictions]
        columns = zip(labels.names, predictions.T, strict=True)
        return {"labels": chosen, **{f"p({name})": column.tolist() for name, column in columns}}

    def labels(self, values: Any, where: str, given: Sequence[str] = (), names: Any = None) -> Labels:
        """Return the labels' names: those `given`, those of the source, or their numbers."""
        y, names = array(values, where), headings(values) if names is None else names
        if y.ndim != 2 or y.shape[1] < 1:
            one = "; one label, present or absent, is a classification of two classes: task.name = classification"
            raise FlocoError(
                f"{where} must be rows of 0 and 1, (N, L) for L labels, in a table a column for each, got shape "
                f"{y.shape}{one if y.ndim == 1 else ''}"
            )
        texts = tuple(map(str, given or (range(y.shape[1]) if names is None else np.asarray(names).tolist())))
        if given and names is not None and tuple(map(str, np.asarray(names).tolist())) != texts:
            shown = ", ".join(map(str, np.asarray(names).tolist()))
            raise FlocoError(
                f"{where}: the source's names are {shown}, and data.labels {', '.join(texts)}: in one order"
            )
        if len(texts) != y.shape[1] or len(set(texts)) < len(texts):
            raise FlocoError(f"{where} has {y.shape[1]} labels, and their names are {', '.join(texts)}: one for each")
        return Labels(texts)

    def targets(self, values: Any, where: str, labels: Labels) -> torch.Tensor:
        """Return targets (N, L) float32 of 0 and 1.

        Raises:
            FlocoError: another shape, or other values.
        """
        y = super().targets(values, where, labels)
        if y.ndim != 2 or y.shape[1] != len(labels.names):
            raise FlocoError(f"{where} must have one column for each of {len(labels.names)} labels, got {(*y.shape,)}")
        if strange := sorted(set(y.unique().tolist()) - {0.0, 1.0}):
            shown = ", ".join(f"{v:g}" for v in strange[:5])
            raise FlocoError(f"{where} must hold 0 (absent) and 1 (present) only, got {shown} as well")
        return y

    def doubt(self, outputs: torch.Tensor, operation: str) -> str:
        """Return a warning if outputs look like probabilities: the loss applies a sigmoid itself."""
        return doubt_probabilities(outputs, operation, "sigmoid")

    def frequencies(self, targets: torch.Tensor, labels: int) -> tuple[int, ...]:
        """Return the samples that have each label."""
        return tuple(targets.long().sum(0).tolist())

    def check(self, outputs: torch.Tensor, targets: torch.Tensor, labels: Labels, when: str) -> None:
        """Raise if outputs are not (n, L)."""
        if outputs.shape != targets.shape:
            wanted, got = batch_of(targets.shape[1:]), batch_of(outputs.shape[1:])
            raise FlocoError(
                f"for {targets.shape[1]} labels the model must give logits of shape {wanted}{when}, got {got}"
            )

    def guess(self, targets: torch.Tensor, parts: Sequence[torch.Tensor], labels: Labels) -> FrequencyGuess:
        """Return how well the labels of each part are predicted by their frequencies in the others."""
        total, losses = targets.double().sum(0), 0.0
        for part in parts:
            rate = (total - targets[part].double().sum(0) + 1) / (len(targets) - len(part) + 2)
            losses += float(self.losses(rate.logit().expand(len(part), -1), targets[part]).sum())
        return FrequencyGuess(len(targets), losses / len(targets))
