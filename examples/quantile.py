"""A task of one's own in a file outside the package, with data and a network to try it on.

floco run -s task.name=quantile:Quantile -s data.source=quantile:diabetes -s data.split=iid -s data.clients=6
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from floco.core import Metric, Metrics, Score, Task, setting


@dataclass(frozen=True)
class QuantileScore(Score):
    """Sums over n samples; sums of disjoint parts add up."""

    n: int
    losses: float
    below: int
    """Samples whose target is below the prediction."""

    @property
    def pinball(self) -> float:
        """Mean pinball loss."""
        return self.losses / self.n

    @property
    def coverage(self) -> float:
        """Share of the targets below their prediction: the quantile, if the model is right."""
        return self.below / self.n


@dataclass(frozen=True)
class Quantile(Task):
    """The value below which a share of the targets lies, given the sample, by the pinball loss."""

    name: ClassVar[str] = "quantile"
    metrics: ClassVar[Metrics] = Metrics({"pinball": Metric(higher=False), "coverage": Metric(share=True)})
    score_type: ClassVar[type[Score]] = QuantileScore

    quantile: float = setting(0.9, "share of the targets below the prediction", above=0, below=1)

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the pinball loss of each sample, (n,), of outputs (n, 1) for targets (n,)."""
        error = targets - outputs.squeeze(1)
        return torch.maximum(self.quantile * error, (self.quantile - 1) * error)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean pinball loss."""
        return self.losses(outputs, targets).mean()

    def score(self, outputs: torch.Tensor, targets: torch.Tensor) -> QuantileScore:
        """Return the sum of the losses, and how many targets are below their prediction."""
        losses = self.losses(outputs.double(), targets.double())
        return QuantileScore(len(targets), float(losses.sum()), int((targets < outputs.squeeze(1)).sum()))


def diabetes() -> dict[str, Any]:
    """Return 442 patients: ten measurements, and the progress of the disease a year later, in units of 100."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    return {"x": x, "y": y / 100}
