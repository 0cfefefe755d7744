"""One label for each sample, among known classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from floco.core.errors import FlocoError
from floco.core.intervals import Statistic
from floco.core.metrics import Metric, Metrics, Score
from floco.core.settings import setting
from floco.core.task import Labels, Task
from floco.tasks import decisions
from floco.tasks.endings import doubt_probabilities
from floco.tasks.guess import LabelGuess
from floco.tasks.labels import check_labels, doubt_amounts, plain_labels, read_labels
from floco.tasks.prior import add_prior, join_prior, log_prior
from floco.tasks.scores import BINS, ClassificationScore


@dataclass(frozen=True)
class Classification(Task):
    """Classification: cross-entropy of logits (n, C) for class numbers (n,)."""

    name: ClassVar[str] = "classification"
    metrics: ClassVar[Metrics] = Metrics(
        {
            "accuracy": Metric(share=True),
            "balanced_accuracy": Metric(share=True),
            "loss": Metric(higher=False),
            "ece": Metric(higher=False, share=True),
            "brier": Metric(higher=False),
        }
    )
    further: ClassVar[Metrics] = Metrics(
        {name: Metric(share=True) for name in ("f1", "auroc", "average_precision", "sensitivity", "specificity")}
    )
    score_type: ClassVar[type[Score]] = ClassificationScore
    kind: ClassVar[str] = "whole numbers or strings"
    padding: ClassVar[int] = -100
    convex: ClassVar[bool] = True
    labelled: ClassVar[bool] = True
    named: ClassVar[bool] = True
    graph_names: ClassVar[tuple[str, str]] = ("logits", "probabilities")

    class_weights: str | tuple[float, ...] = setting(
        "none",
        "weight of each class in the training loss: none, balanced (inverse to its training samples), or a list",
        choices=("none", "balanced"),
        above=0,
    )
    label_smoothing: float = setting(0.0, "share of each target spread over all classes in training", low=0, below=1)
    prior: str = setting(
        "none",
        "client: log frequencies of a client's labels, if more than chance, are added to logits in its training and in "
        "its own model, not in the global one",
        choices=("none", "client"),
        later=True,
    )

    @property
    def likelihood(self) -> Classification:
        """The task without weights of classes and smoothing."""
        return replace(self, class_weights="none", label_smoothing=0.0)

    def shift(self, counts: Sequence[int]) -> torch.Tensor | None:
        """Return a client's log prior, (C,) float32 (see `log_prior`), if that is set.

        Trained on logits z + shift, a network is free of its clients' label frequencies (balanced softmax: Ren et al.,
        NeurIPS 2020), and z + shift is a client's own model.
        """
        return None if self.prior == "none" else log_prior(counts)

    def training_targets(self, targets: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Return the targets that a client trains on; with a prior, (n, 1 + C), it is part of them."""
        return targets if (shift := self.shift(counts)) is None else join_prior(targets, shift)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy for training, in nats; weighted and smoothed, if that is set."""
        outputs, targets = add_prior(outputs, targets)
        weights = None if isinstance(self.class_weights, str) else outputs.new_tensor(self.class_weights)
        return cross_entropy(outputs, targets, weights, label_smoothing=self.label_smoothing)

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of each sample, (n,)."""
        return cross_entropy(outputs, targets, reduction="none")

    def score(self, outputs: torch.Tensor, targets: torch.Tensor) -> ClassificationScore:
        """Return the score of logits (n, C) for class numbers (n,), n >= 1."""
        logits, classes = outputs.double(), outputs.shape[1]
        probabilities = logits.softmax(dim=1)
        confidence, guess = probabilities.max(dim=1)
        right = guess == targets
        squares = (probabilities - torch.eye(classes, dtype=torch.float64)[targets]).square().sum()
        bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # bins (0, 1/15], (1/15, 2/15], ...
        gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, confidence - right.double())
        counts, hits = (torch.bincount(y, minlength=classes).tolist() for y in (targets, targets[right]))
        loss = float(cross_entropy(logits, targets, reduction="sum"))
        return ClassificationScore(tuple(counts), tuple(hits), loss, float(squares), tuple(gaps.tolist()))

    def decides(self, outputs: int) -> bool:
        """Return whether there are two classes; the second is the positive one."""
        return outputs == 2

    def choose_threshold(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Return the probability of the second class from which a sample counts as positive, by Youden's J."""
        return decisions.choose_threshold(self._probabilities(outputs)[:, 1], targets.numpy() == 1)

    def classify(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the most probable class of each sample, (n,)."""
        return outputs.argmax(1)

    def shares(
        self, outputs: torch.Tensor, targets: torch.Tensor, thresholds: torch.Tensor | None
    ) -> dict[str, tuple[int, int]]:
        """Return accuracy and, with thresholds (n,) of the second class, sensitivity and specificity."""
        made = {"accuracy": (int((self.classify(outputs) == targets).sum()), len(targets))}
        if thresholds is None:
            return made
        decided = self._probabilities(outputs)[:, 1] >= thresholds.numpy()
        return made | decisions.count_decisions(decided, targets.numpy() == 1)

    def resampler(self, outputs: torch.Tensor, targets: torch.Tensor, *, further: bool = True) -> Statistic:
        """Return the function that gives accuracy and macro F1 and, if `further`, the areas of resamples."""
        probabilities, truth = self._probabilities(outputs), _truth(outputs, targets)
        guess = self.classify(outputs).numpy()

        def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
            classes = decisions.resample_classes(targets.numpy(), guess, outputs.shape[1], counts)
            return classes if not further else classes | decisions.resample_areas(probabilities, truth, counts)

        return measure

    def _probabilities(self, outputs: torch.Tensor) -> np.ndarray:
        return outputs.double().softmax(1).numpy()

    def activate(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return probabilities (n, C)."""
        return outputs.softmax(dim=1)

    def present(self, predictions: torch.Tensor, labels: Labels) -> dict[str, Any]:
        """Return the most probable label of each sample, its probability, and the probabilities of all labels."""
        most, which = predictions.max(dim=1)
        all_ = {f"p({name})": column.tolist() for name, column in zip(labels.names, predictions.T, strict=True)}
        return {"label": [labels.names[i] for i in which.tolist()], "probability": most.tolist(), **all_}

    def labels(self, values: Any, where: str, given: Sequence[str] = (), names: Any = None) -> Labels:
        """Return the classes: those `given`, those that `names` numbers, or the labels that occur, sorted."""
        y = read_labels(values, where)
        known: np.ndarray = np.unique(y)
        check_labels(y, where, given)
        if not given and names is None and y.dtype.kind in "iu":
            doubt_amounts(plain_labels(values, where).dtype, len(known), where)
        if given:
            known = np.asarray(given)
            if strange := sorted({str(v) for v in np.unique(y).tolist()} - set(known.tolist())):
                shown = ", ".join(strange[:8])
                raise FlocoError(
                    f"{where}: labels {shown} are not among data.labels ({', '.join(given)}), which must be labels as "
                    "the data have them: recode the data to give them other names"
                )
        elif names is not None:
            if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= len(names):
                wanted = f"whole numbers from 0 to {len(names) - 1}"
                raise FlocoError(f"{where}: with names, labels must be {wanted}, got {known[0]} to {known[-1]}")
            known = np.arange(len(names))
        texts = tuple(map(str, np.asarray(names).tolist() if names is not None and not given else known.tolist()))
        if len(set(texts)) < len(texts):
            raise FlocoError(f"{where}: each label needs a name of its own, got {', '.join(texts)}")
        if len(texts) < 2:
            raise FlocoError(f"{where}: labels must be of 2 classes at least, got {len(texts)}")
        return Labels(texts, tuple(map(str, known.tolist())))

    def targets(self, values: Any, where: str, labels: Labels) -> torch.Tensor:
        """Return class numbers (N,) int64 of labels (N,), which are the source's own labels or label names.

        Raises:
            FlocoError: not an array of labels, a missing label, or one that is not known.
        """
        y = read_labels(values, where)
        check_labels(y, where, {*labels.names, *labels.values})
        found, which = np.unique(y, return_inverse=True)
        given = [str(v) for v in found.tolist()]
        for known in (labels.names, labels.values) if y.dtype.kind == "U" else (labels.values, labels.names):
            if set(given) <= set(known):
                return torch.from_numpy(np.asarray([known.index(v) for v in given], dtype=np.int64)[which])
        strange = [v for v in given if v not in labels.values]
        raise FlocoError(
            f"{where} holds labels that the model does not know: {', '.join(strange[:8])}; "
            f"it knows {', '.join(labels.values[:20])}"
        )

    def frequencies(self, targets: torch.Tensor, labels: int) -> tuple[int, ...]:
        """Return the samples of each class."""
        return tuple(targets.bincount(minlength=labels).tolist())

    def statistics(self, targets: torch.Tensor) -> tuple[float, ...]:
        """Return the samples of each class, if weights are balanced."""
        return tuple(map(float, targets.bincount().tolist())) if self.class_weights == "balanced" else ()

    def fitted(self, sums: Sequence[float], labels: Labels) -> Self:
        """Return the task with balanced weights n / (C n_c) as numbers; a class without samples has weight 1."""
        if self.class_weights != "balanced":
            return self
        total, classes = sum(sums), len(labels.names)
        counts = [*sums, *[0.0] * (classes - len(sums))]
        return replace(self, class_weights=tuple(total / (classes * n) if n else 1.0 for n in counts))

    def outputs(self, targets: torch.Tensor, labels: Labels) -> int:
        """Return the number of classes."""
        return len(labels.names)

    def check(self, outputs: torch.Tensor, targets: torch.Tensor, labels: Labels, when: str) -> None:
        """Raise if outputs are not (n, C)."""
        n, classes = len(targets), len(labels.names)
        if not isinstance(self.class_weights, str) and len(self.class_weights) != classes:
            raise FlocoError(
                f"task.class_weights must have one weight for each of {classes} classes, got {self.class_weights}"
            )
        if outputs.shape != (n, classes):
            few, shape = min(2, n), outputs[:2].shape if len(outputs) == n else outputs.shape
            raise FlocoError(
                f"for {few} inputs and {classes} classes the model must give logits of shape {(few, classes)}{when}, "
                f"got {tuple(shape)}"
            )

    def doubt(self, outputs: torch.Tensor, operation: str) -> str:
        """Return a warning if outputs look like probabilities: the loss applies a softmax itself."""
        return doubt_probabilities(outputs, operation, "softmax")

    def guess(self, targets: torch.Tensor, parts: Sequence[torch.Tensor], labels: Labels) -> LabelGuess:
        """Return how well the labels of each part are predicted by the label frequencies of the others."""
        return LabelGuess.of(targets, parts, len(labels.names))


def _truth(outputs: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """Return which class each sample has, (n, C)."""
    return torch.nn.functional.one_hot(targets, outputs.shape[1]).numpy() > 0
