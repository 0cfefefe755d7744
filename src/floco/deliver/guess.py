"""The guess that a model has to beat: what a client's labels can be predicted by without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_EVIDENCE = math.log(5)  # log likelihood ratio, in nats, above which a model is refused; few samples stay below it


@dataclass(frozen=True)
class Guess:
    """Accuracy and loss of predicting n labels without a model, by the commonest of them and by their frequencies."""

    samples: int
    accuracy: float
    """Share of the commonest label, max_c n_c / n, in (0, 1]."""
    loss: float
    """-1/n sum_i log((m_c + 1) / (m + C)), in nats: of the m samples not left out with sample i, m_c have its label."""

    @staticmethod
    def of(y: torch.Tensor, parts: Sequence[torch.Tensor], classes: int) -> Guess:
        """Return the guess for class numbers y (n,) of C classes, with each part (indices) left out in turn."""
        counts = y.bincount(minlength=classes)
        others = [(counts - y[part].bincount(minlength=classes) + 1).double() for part in parts]
        losses = sum(float((n.sum() / n).log()[y[part]].sum()) for n, part in zip(others, parts, strict=True))
        return Guess(len(y), int(counts.max()) / len(y), losses / len(y))

    def beats(self, accuracy: float, loss: float) -> bool:
        """Return whether a model with this accuracy and loss on the same samples is to be refused.

        - accuracy <= self.accuracy, and accuracy < 1/2: where nearly all samples have one label, good models may be
          below its share.
        - n (loss - self.loss) > log 5: the frequencies make the labels more than five times likelier than the model
          does; a few samples can be wrong by accident.
        """
        return accuracy <= self.accuracy and accuracy < 0.5 and self.samples * (loss - self.loss) > _EVIDENCE
