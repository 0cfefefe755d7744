"""Classification of many places of a sample: the pixels of an image, or the tokens of a text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from floco.core.errors import FlocoError
from floco.core.settings import setting
from floco.core.task import Labels, Task
from floco.tasks.endings import batch_of, doubt_probabilities
from floco.tasks.guess import FrequencyGuess
from floco.tasks.labels import check_labels, plain_labels

IGNORED = -100


@dataclass(frozen=True)
class Dense(Task, ABC):
    """Cross-entropy of class numbers (n, ...), one for each place; places with the target -100 do not count."""

    padding: ClassVar[int] = IGNORED
    convex: ClassVar[bool] = True
    named: ClassVar[bool] = True
    graph_names: ClassVar[tuple[str, str]] = ("logits", "probabilities")
    dims: ClassVar[int]
    """Dimensions of a target array, with that of the samples."""

    ignore: int | None = setting(None, "target of places that do not count, e.g. 255 (empty: there are none)")

    @abstractmethod
    def classes_second(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return outputs as (n, C, ...)."""

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each sample, (n,): the mean over its places that count, in nats."""
        each = cross_entropy(self.classes_second(outputs), targets, reduction="none").flatten(1)
        return each.sum(1) / (targets != IGNORED).flatten(1).sum(1).clamp(min=1)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over all places that count, in nats; 0 if there are none."""
        total = cross_entropy(self.classes_second(outputs), targets, reduction="sum")
        return total / (targets != IGNORED).sum().clamp(min=1)

    def activate(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return probabilities, in the shape of the outputs."""
        return outputs.softmax(dim=outputs.ndim - 1 if self.dims == 2 else 1)

    def arrays(self, predictions: torch.Tensor, labels: Labels) -> dict[str, np.ndarray]:
        """Return all probabilities, and `y`: the most probable label of each place, as the data have them."""
        known = np.array(labels.values)
        known = known.astype(np.int64) if all(v.lstrip("-").isdigit() for v in labels.values) else known
        most = predictions.argmax(predictions.ndim - 1 if self.dims == 2 else 1)
        return {**super().arrays(predictions, labels), "y": known[most.numpy()]}

    def labels(self, values: Any, where: str, given: Sequence[str] = (), names: Any = None) -> Labels:
        """Return the classes: those `given`, those that `names` numbers, or the labels that occur, sorted."""
        y = self._read(values, where)
        if numbered := names is not None and not given:
            given = tuple(map(str, np.asarray(names).tolist()))
        elif not given:
            self._check_missing(y, where)
            given = tuple(str(v) for v in np.unique(y).tolist() if v != self.ignore)
        if len(given) < 2 or len(set(given)) < len(given):
            raise FlocoError(f"{where}: labels must be of 2 classes at least, each named once, got {', '.join(given)}")
        return Labels(tuple(given), tuple(map(str, range(len(given)))) if numbered else tuple(given))

    def targets(self, values: Any, where: str, labels: Labels) -> torch.Tensor:
        """Return class numbers (N, ...) int64 of labels; -100 where the label is `ignore`.

        Raises:
            FlocoError: another shape or type, or labels that are not known.
        """
        y = self._read(values, where)
        found, which = np.unique(y, return_inverse=True)
        numbers = {text: i for i, text in enumerate(labels.values)}
        if self.ignore is not None:
            numbers[str(self.ignore)] = IGNORED
        if strange := [str(v) for v in found.tolist() if str(v) not in numbers]:
            raise FlocoError(
                f"{where} holds labels that the model does not know: {', '.join(strange[:8])}; "
                f"it knows {', '.join(labels.values[:20])}; task.ignore names one for places that do not count"
            )
        table = np.array([numbers[str(v)] for v in found.tolist()], dtype=np.int64)
        made = torch.from_numpy(table[which].reshape(y.shape))
        if empty := int((made == IGNORED).flatten(1).all(1).sum()):
            raise FlocoError(f"{where}: in {empty} of {len(made)} samples no place counts: leave these samples out")
        return made

    def _read(self, values: Any, where: str) -> np.ndarray:
        y = plain_labels(values, where)
        if y.ndim != self.dims or y.dtype.kind not in "iubU" or not y.size:
            shape = "(N, H, W)" if self.dims == 3 else "(N, T)"
            raise FlocoError(f"{where} must be labels {shape} for task {self.name}, got shape {y.shape} of {y.dtype}")
        return y

    def _check_missing(self, y: np.ndarray, where: str) -> None:
        known = () if self.ignore is None else (str(self.ignore),)
        bytes_ = y.dtype.kind in "iu" and y.min() >= 0 and y.max() <= 255  # so that 255 is suspected in any type
        try:
            check_labels((y.astype(np.uint8) if bytes_ else y).ravel(), where, known)
        except FlocoError as error:
            raise FlocoError(f"{error}; or set task.ignore to the label of places that do not count") from error

    def doubt(self, outputs: torch.Tensor, operation: str) -> str:
        """Return a warning if outputs look like probabilities: the loss applies a softmax itself."""
        return doubt_probabilities(self.classes_second(outputs), operation, "softmax")

    def frequencies(self, targets: torch.Tensor, labels: int) -> tuple[int, ...]:
        """Return the places of each class."""
        return tuple(targets[targets != IGNORED].bincount(minlength=labels).tolist())

    def outputs(self, targets: torch.Tensor, labels: Labels) -> int:
        """Return the number of classes."""
        return len(labels.names)

    def check(self, outputs: torch.Tensor, targets: torch.Tensor, labels: Labels, when: str) -> None:
        """Raise if outputs do not have the logits of all classes for each place."""
        n, places, classes = len(targets), tuple(targets.shape[1:]), len(labels.names)
        wanted = (n, classes, *places) if self.dims == 3 else (n, *places, classes)
        if outputs.shape != wanted:
            shape, got = batch_of(wanted[1:]), batch_of(outputs.shape[1:])
            raise FlocoError(f"the model must give logits of shape {shape}{when}, got {got}")

    def guess(self, targets: torch.Tensor, parts: Sequence[torch.Tensor], labels: Labels) -> FrequencyGuess:
        """Return how well the labels of each part are predicted by their frequencies in the others."""

        def counts(y: torch.Tensor) -> torch.Tensor:
            return torch.tensor(self.frequencies(y, len(labels.names)), dtype=torch.float64)

        total, losses = counts(targets), 0.0
        for part in parts:
            own = [counts(t) for t in targets[part]]
            others = total - sum(own) + 1
            losses -= sum(float((others / others.sum()).log() @ c / c.sum()) for c in own)
        return FrequencyGuess(len(targets), losses / len(targets))
