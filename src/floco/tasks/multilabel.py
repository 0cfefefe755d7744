"""Several labels for each sample, each present or absent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from floco.core.errors import FlocoError
from floco.core.metrics import Metric, Metrics, Score, add, mean
from floco.core.task import Labels, Task
from floco.tasks.guess import FrequencyGuess
from floco.tasks.labels import array

_BINS = 512  # of the logits' histograms, half of them below 0
_SCALE = 1000.0  # logits of 1/1000 and less are told apart as well as large ones to 4 %
_WIDTH = 0.045


@dataclass(frozen=True)
class MultilabelScore(Score):
    """Histograms of the logits of L labels over n samples; the scores of disjoint parts add up."""

    n: int
    losses: float
    """Sum over samples of the mean cross-entropy of the labels, in nats."""
    present: tuple[int, ...]
    """Samples by label and bin of its logit, of those that have the label, (L * 512,)."""
    absent: tuple[int, ...]
    """The same, of those that do not."""
    told: tuple[float, float] | None = None
    """AUROC and F1 as reported by a client that does not disclose its histograms; NaN if undefined."""

    def __add__(self, other: MultilabelScore) -> MultilabelScore:
        """Return the score of both parts together; AUROC and F1 are unknown if one of them has no histograms."""
        n, losses = self.n + other.n, self.losses + other.losses
        if not self.present or not other.present:
            return MultilabelScore(n, losses, (), (), (math.nan, math.nan))
        return MultilabelScore(n, losses, add(self.present, other.present), add(self.absent, other.absent))

    def _histograms(self) -> tuple[np.ndarray, np.ndarray]:
        have, lack = (np.array(v, dtype=np.float64).reshape(-1, _BINS) for v in (self.present, self.absent))
        return have, lack

    @property
    def aurocs(self) -> list[float | None]:
        """Area under the ROC curve of each label, in [0, 1]; None for labels that all samples have, or none."""
        have, lack = self._histograms()
        below = lack.cumsum(1) - lack / 2  # equal logits count half
        pairs = have.sum(1) * lack.sum(1)
        return [float(w / p) if p else None for w, p in zip((have * below).sum(1), pairs, strict=True)]

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
        have, lack = self._histograms()
        right, wrong = have[:, _BINS // 2 :].sum(1), lack[:, _BINS // 2 :].sum(1)
        totals = right + wrong + have.sum(1)
        found = [float(2 * r / t) for r, t in zip(right, totals, strict=True) if t]
        return mean(found) if found else None

    def details(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the AUROC of each label."""
        have = self._histograms()[0].sum(1).astype(int).tolist()
        rows = zip(names, have, self.aurocs, strict=False)
        return {"labels": [{"label": name, "samples": n, "auroc": a} for name, n, a in rows]}

    def coarse(self) -> MultilabelScore:
        """Return the score without histograms; AUROC and F1 become numbers."""
        told = tuple(math.nan if v is None else v for v in (self.auroc, self.f1))
        return MultilabelScore(self.n, self.losses, (), (), told)  # type: ignore[arg-type]

    def plausible(self, n: int, outputs: int) -> bool:
        """Return whether it can be a score of n samples and this number of labels."""
        if self.n != n or not 0 <= self.losses < math.inf:
            return False
        if self.told is not None:
            fits = [not v < 0 and not v > 1 for v in self.told] == [True, True]
            return fits and not self.present and not self.absent
        if {len(self.present), len(self.absent)} != {outputs * _BINS} or min(*self.present, *self.absent) < 0:
            return False
        have, lack = self._histograms()
        return bool((have.sum(1) + lack.sum(1) == n).all())


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class Multilabel(Task):
    """Multilabel: binary cross-entropy of logits (n, L) for targets (n, L) of 0 and 1."""

    name: ClassVar[str] = "multilabel"
    metrics: ClassVar[Metrics] = Metrics(
        {"auroc": Metric(share=True), "f1": Metric(share=True), "loss": Metric(higher=False)}
    )
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
        logits, labels = outputs.double(), outputs.shape[1]
        steps = (torch.asinh(logits * _SCALE) / _WIDTH).floor().long().clamp(-_BINS // 2, _BINS // 2 - 1)
        places = steps + _BINS // 2 + _BINS * torch.arange(labels)  # (n, L)
        both = (torch.bincount(places[targets == v], minlength=labels * _BINS).tolist() for v in (1, 0))
        return MultilabelScore(len(targets), float(self.losses(logits, targets).sum()), *map(tuple, both))

    def activate(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return probabilities (n, L)."""
        return outputs.sigmoid()

    def present(self, predictions: torch.Tensor, labels: Labels) -> dict[str, Any]:
        """Return the labels with a probability of at least 1/2, separated by blanks, and all probabilities."""
        chosen = [" ".join(n for n, p in zip(labels.names, row, strict=True) if p >= 0.5) for row in predictions]
        columns = zip(labels.names, predictions.T, strict=True)
        return {"labels": chosen, **{f"p({name})": column.tolist() for name, column in columns}}

    def labels(self, values: Any, where: str, given: Sequence[str] = (), names: Any = None) -> Labels:
        """Return the labels' names: those `given`, those of the source, or their numbers."""
        y = array(values, where)
        if y.ndim != 2 or y.shape[1] < 1:
            raise FlocoError(f"{where} must be rows of 0 and 1, (N, L) for L labels, got shape {y.shape}")
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

    def frequencies(self, targets: torch.Tensor, labels: int) -> tuple[int, ...]:
        """Return the samples that have each label."""
        return tuple(targets.long().sum(0).tolist())

    def check(self, outputs: torch.Tensor, targets: torch.Tensor, labels: Labels, when: str) -> None:
        """Raise if outputs are not (n, L)."""
        if outputs.shape != targets.shape:
            wanted, got = f"(n, {targets.shape[1]})", f"(n, {', '.join(map(str, outputs.shape[1:]))})"
            raise FlocoError(
                f"for {targets.shape[1]} labels the model must give logits of shape {wanted}{when}, {got=!s}"
            )

    def guess(self, targets: torch.Tensor, parts: Sequence[torch.Tensor], labels: Labels) -> FrequencyGuess:
        """Return how well the labels of each part are predicted by their frequencies in the others."""
        total, losses = targets.double().sum(0), 0.0
        for part in parts:
            rate = (total - targets[part].double().sum(0) + 1) / (len(targets) - len(part) + 2)
            losses += float(self.losses(rate.logit().expand(len(part), -1), targets[part]).sum())
        return FrequencyGuess(len(targets), losses / len(targets))
