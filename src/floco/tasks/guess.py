"""The guess that a classifier has to beat: what a client's labels can be predicted by without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_EVIDENCE = math.log(5)  # log likelihood ratio, in nats, above which a model is refused; few samples stay below it


@dataclass(frozen=True)
class LabelGuess:
    """Accuracy and loss of predicting n labels without a model, by the commonest of them and by their frequencies."""

    samples: int
    accuracy: float
    """Share of the commonest label, max_c n_c / n, in (0, 1]."""
    loss: float
    """-1/n sum_i log((m_c + 1) / (m + C)), in nats: of the m samples not left out with sample i, m_c have its label."""

    @staticmethod
    def of(y: torch.Tensor, parts: Sequence[torch.Tensor], classes: int) -> LabelGuess:
        """Return the guess for class numbers y (n,) of C classes, with each part (indices) left out in turn."""
        counts = y.bincount(minlength=classes)
        others = [(counts - y[part].bincount(minlength=classes) + 1).double() for part in parts]
        losses = sum(float((n.sum() / n).log()[y[part]].sum()) for n, part in zip(others, parts, strict=True))
        return LabelGuess(len(y), int(counts.max()) / len(y), losses / len(y))

    def beats(self, value: float, loss: float) -> bool:
        """Return whether a model with this accuracy (`value`) and loss on the same samples is to be refused.

        - value <= self.accuracy, and value < 1/2: where nearly all samples have one label, good models may be
          below its share.
        - n (loss - self.loss) > log 5: the frequencies make the labels more than five times likelier than the model
          does; a few samples can be wrong by accident.
        """
        return value <= self.accuracy and value < 0.5 and self.samples * (loss - self.loss) > _EVIDENCE

    def doubts(self, value: float, loss: float) -> bool:
        """Return whether a model has a lower accuracy or a higher loss."""
        return value < self.accuracy or loss > self.loss

    def compare(self, value: float, loss: float) -> str:
        """Return accuracy and loss of the model and of the guess, as text."""
        return (
            f"of {self.samples} samples, left out in turn, it recognises {100 * value:.1f} %, and "
            f"{100 * self.accuracy:.1f} % have the commonest label; its loss is {loss:.3f}, "
            f"and that of the label frequencies {self.loss:.3f}"
        )


@dataclass(frozen=True)
class MeanGuess:
    """Error of predicting n targets by the mean of others."""

    samples: int
    rmse: float
    loss: float

    def beats(self, value: float, loss: float) -> bool:
        """Return whether a model with this RMSE (`value`) is to be refused: n log(value / self.rmse) > log 5.

        For normal errors, the mean then makes the targets more than five times likelier than the model does.
        """
        return value > self.rmse > 0 and self.samples * math.log(value / self.rmse) > _EVIDENCE

    def doubts(self, value: float, loss: float) -> bool:
        """Return whether a model has a larger error."""
        return value > self.rmse

    def compare(self, value: float, loss: float) -> str:
        """Return the errors of the model and of the guess, as text."""
        return (
            f"of {self.samples} samples, left out in turn, its root mean squared error is {value:.4g}, "
            f"and that of the mean of the others {self.rmse:.4g}"
        )


@dataclass(frozen=True)
class FrequencyGuess:
    """Loss of predicting the targets of n samples by the frequencies of others, in nats."""

    samples: int
    loss: float

    def beats(self, value: float, loss: float) -> bool:
        """Return whether a model with this loss is to be refused: n (loss - self.loss) > log 5."""
        return self.samples * (loss - self.loss) > _EVIDENCE

    def doubts(self, value: float, loss: float) -> bool:
        """Return whether a model has a higher loss."""
        return loss > self.loss

    def compare(self, value: float, loss: float) -> str:
        """Return the losses of the model and of the guess, as text."""
        return (
            f"of {self.samples} samples, left out in turn, its loss is {loss:.3f}, "
            f"and that of the frequencies of the others {self.loss:.3f}"
        )
