"""A task of one's own in a file outside the package, with data and a network to try it on.

floco run -s task.name=regression:Regression -s data.source=regression:diabetes -s data.split=iid -s data.clients=6
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from floco.core import Metric, Metrics, Score, Task


@dataclass(frozen=True)
class Errors(Score):
    """Sums over n samples; sums of disjoint parts add up."""

    n: int
    losses: float
    absolute: float

    @property
    def rmse(self) -> float:
        """Root of the mean squared error."""
        return math.sqrt(self.losses / self.n)

    @property
    def mae(self) -> float:
        """Mean absolute error."""
        return self.absolute / self.n


@dataclass(frozen=True)
class Regression(Task):
    """One number for each sample, by the mean squared error."""

    name: ClassVar[str] = "regression"
    metrics: ClassVar[Metrics] = Metrics({"rmse": Metric(higher=False), "mae": Metric(higher=False)})
    score_type: ClassVar[type[Score]] = Errors

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error of outputs (n, 1) for targets (n,)."""
        return (outputs.squeeze(1) - targets).square().mean()

    def score(self, outputs: torch.Tensor, targets: torch.Tensor) -> Errors:
        """Return the sums of squared and absolute errors."""
        error = (outputs.squeeze(1) - targets).double()
        return Errors(len(targets), float(error.square().sum()), float(error.abs().sum()))


def diabetes() -> dict[str, Any]:
    """Return 442 patients: ten measurements, and the progress of the disease a year later, in units of 100."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    return {"x": x, "y": y / 100}
