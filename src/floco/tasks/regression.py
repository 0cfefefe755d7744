"""Numbers for each sample, in the source's own units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch.nn.functional import huber_loss, l1_loss, mse_loss

from floco.core.errors import FlocoError
from floco.core.inputs import array, by_name, headings
from floco.core.metrics import Metric, Metrics, Score, mean
from floco.core.settings import setting
from floco.core.task import Labels, Task
from floco.tasks.endings import batch_of, doubt_positive
from floco.tasks.guess import MeanGuess

_LOSSES: dict[str, Any] = {"mse": mse_loss, "mae": l1_loss, "huber": huber_loss}
_LOST = 1e-3  # rounding to float32 may cost this share of the targets' deviation


@dataclass(frozen=True)
class RegressionScore(Score):
    """Sums of d targets over n samples, in the targets' units."""

    n: int
    losses: float
    """Sum of the losses, of standardised targets."""
    absolute: tuple[float, ...]
    """Sums of absolute errors, (d,)."""
    squares: tuple[float, ...]
    """Sums of squared errors, (d,)."""
    sums: tuple[float, ...]
    """Sums of the targets minus the mean of the training data, (d,)."""
    powers: tuple[float, ...]
    """Sums of their squares, (d,)."""

    @property
    def rmse(self) -> float:
        """Root of the mean squared error, >= 0; of several targets the mean."""
        return mean([math.sqrt(s / self.n) for s in self.squares])

    @property
    def mae(self) -> float:
        """Mean absolute error, >= 0; of several targets the mean."""
        return mean([a / self.n for a in self.absolute])

    @property
    def r2(self) -> float | None:
        """`1 - sum (y - f)^2 / sum (y - mean y)^2`, <= 1; of several targets the mean. None if a target is constant."""
        totals = [p - s * s / self.n for p, s in zip(self.powers, self.sums, strict=True)]
        if any(t <= 1e-12 * p for t, p in zip(totals, self.powers, strict=True)):
            return None
        return mean([1 - s / t for s, t in zip(self.squares, totals, strict=True)])

    def plausible(self, n: int, outputs: int) -> bool:
        """Return whether it can be a score of n samples and this number of targets."""
        sizes = {len(v) for v in (self.absolute, self.squares, self.sums, self.powers)}
        positive = min((self.losses, *self.absolute, *self.squares, *self.powers)) >= 0
        if sizes != {outputs} or not positive or not super().plausible(n, outputs):
            return False
        pairs = zip((*self.absolute, *self.sums), (*self.squares, *self.powers), strict=True)
        return all(_fit(s, q, n) for s, q in pairs)


def _fit(total: float, squares: float, n: int) -> bool:
    """Return whether n numbers can have this sum and this sum of squares, up to rounding."""
    return total * total <= n * squares * (1 + 1e-6)


@dataclass(frozen=True)
class Regression(Task):
    """Regression: a loss of d numbers for each sample, (n,) or (n, d).

    Networks learn standardised targets, (y - mean) / std; predictions and metrics are in the targets' own units.
    """

    name: ClassVar[str] = "regression"
    metrics: ClassVar[Metrics] = Metrics(
        {"rmse": Metric(higher=False), "mae": Metric(higher=False), "r2": Metric(), "loss": Metric(higher=False)}
    )
    score_type: ClassVar[type[Score]] = RegressionScore
    kind: ClassVar[str] = "numbers"
    padding: ClassVar[float] = math.nan
    convex: ClassVar[bool] = True

    criterion: str = setting("mse", "loss of standardised targets", key="loss", choices=tuple(_LOSSES))
    mean: tuple[float, ...] = setting((), "mean of each target (empty: of the training parts)")
    std: tuple[float, ...] = setting((), "standard deviation of each target (empty: of the training parts)", above=0)

    def __post_init__(self) -> None:
        """Check that mean and std belong together."""
        super().__post_init__()
        if len(self.mean) != len(self.std):
            raise FlocoError(f"mean and std must have one value for each target, got {self.mean} and {self.std}")

    def statistics(self, targets: torch.Tensor) -> tuple[float, ...]:
        """Return n, and for each target sum and sum of squares; nothing if mean and std are given."""
        if self.mean:
            return ()
        y = targets.reshape(len(targets), -1).double()
        return float(len(y)), *y.sum(0).tolist(), *y.square().sum(0).tolist()

    def plausible(self, sums: Sequence[float], n: int) -> bool:
        """Return whether n is the first number, and no square is smaller than the mean's."""
        d = (len(sums) - 1) // 2
        pairs = zip(sums[1 : d + 1], sums[d + 1 :], strict=True)
        return sums[:1] in ([], [float(n)]) and all(abs(s) < 1e30 and _fit(s, q, n) and q < 1e60 for s, q in pairs)

    def fitted(self, sums: Sequence[float], labels: Labels) -> Self:
        """Return the task with mean and standard deviation from the sums; a constant target is only centered."""
        if self.mean:
            return self
        n, d = sums[0], (len(sums) - 1) // 2
        means = [s / n for s in sums[1 : d + 1]]
        stds = [math.sqrt(max(0.0, q / n - m * m)) for q, m in zip(sums[d + 1 :], means, strict=True)]
        steady = [s if s > 1e-6 * abs(m) else 1.0 for s, m in zip(stds, means, strict=True)]
        return replace(self, mean=tuple(means), std=tuple(steady))

    def targets(self, values: Any, where: str, labels: Labels) -> torch.Tensor:
        """Return finite targets (N,) or (N, d) float32.

        Raises:
            FlocoError: other shapes, text, missing values, or numbers that float32 cannot tell apart.
        """
        values = by_name(values, labels.names, where)
        y = super().targets(values, where, labels)
        if y.ndim > 2 or not y.numel():
            raise FlocoError(f"{where} must be numbers (N,) or (N, d) for task regression, got shape {tuple(y.shape)}")
        exact = array(values, where).astype(np.float64).reshape(len(y), -1)
        lost = np.abs(exact - y.double().numpy().reshape(len(y), -1)).max(0) > _LOST * exact.std(0)
        if len(y) > 1 and (lost & (exact.std(0) > 0)).any():
            raise FlocoError(
                f"{where} holds numbers up to {np.abs(exact).max():g} that differ by {exact.std(0).min():g} only, "
                "which float32 rounds: subtract a constant first"
            )
        return y.squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else y

    def check(self, outputs: torch.Tensor, targets: torch.Tensor, labels: Labels, when: str) -> None:
        """Raise if outputs are not one number for each target."""
        n, d = len(targets), targets[0].numel()
        if self.mean and len(self.mean) != d:
            raise FlocoError(f"task.mean and task.std must have one value for each of {d} targets, got {self.mean}")
        if tuple(outputs.shape) not in {(n, d), *([(n,)] if d == 1 else [])}:
            got = batch_of(outputs.shape[1:])
            raise FlocoError(f"for {d} targets the model must give outputs of shape (n, {d}){when}, got {got}")

    def _scaled(self, y: torch.Tensor) -> torch.Tensor:
        """Return standardised targets (n, d)."""
        y = y.reshape(len(y), -1)
        return (y - y.new_tensor(self.mean)) / y.new_tensor(self.std) if self.mean else y

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each sample, (n,): the mean over its targets."""
        scaled = self._scaled(targets)
        pair = outputs.reshape(scaled.shape), scaled.to(outputs.dtype)
        each: torch.Tensor = _LOSSES[self.criterion](*pair, reduction="none")
        return each.mean(1)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of standardised targets; padding does not count."""
        real = ~targets.reshape(len(targets), -1)[:, 0].isnan()
        kept = torch.where(real.view(-1, *(1,) * (targets.ndim - 1)), targets, 0.0)  # NaN would spoil the gradient
        return (self.losses(outputs, kept) * real).sum() / real.sum().clamp(min=1)

    def score(self, outputs: torch.Tensor, targets: torch.Tensor) -> RegressionScore:
        """Return the score of outputs (n, d) for targets (n,) or (n, d)."""
        scaled, outputs = self._scaled(targets.double()), outputs.double().reshape(len(targets), -1)
        std = torch.tensor(self.std or (1.0,), dtype=torch.float64)
        error, y = (outputs - scaled) * std, scaled * std
        return RegressionScore(
            len(targets),
            float(self.losses(outputs, targets.double()).sum()),
            *(tuple(v.sum(0).tolist()) for v in (error.abs(), error.square(), y, y.square())),
        )

    def activate(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return predictions (n, d), in the targets' units."""
        flat = outputs if outputs.ndim == 2 else outputs.unsqueeze(1)  # len() would fix N in an exported graph
        return flat * flat.new_tensor(self.std) + flat.new_tensor(self.mean) if self.mean else flat

    def doubt(self, outputs: torch.Tensor, operation: str) -> str:
        """Return a warning if the model can give no negative outputs, and standardised targets are."""
        return "" if self.mean and not any(self.mean) else doubt_positive(operation)

    def labels(self, values: Any, where: str, given: Sequence[str] = (), names: Any = None) -> Labels:
        """Return the names of several targets, if the source has them."""
        shape = np.shape(values)
        several = len(shape) == 2 and shape[1] > 1
        names = headings(values) if names is None and several else names
        if names is None:
            return Labels()
        texts = tuple(map(str, np.asarray(names).tolist()))
        if several and (len(set(texts)) < len(texts) or len(texts) != shape[1]):
            raise FlocoError(f"{where} must have one name for each target, got shape {shape} and {', '.join(texts)}")
        return Labels(texts)

    def guess(self, targets: torch.Tensor, parts: Sequence[torch.Tensor], labels: Labels) -> MeanGuess:
        """Return how well the targets of each part are predicted by the mean of the others."""
        y = targets.reshape(len(targets), -1)
        total, found = y.double().sum(0), torch.empty(y.shape, dtype=torch.float64)
        for part in parts:
            found[part] = (total - y[part].double().sum(0)) / max(1, len(y) - len(part))
        score = self.score(self._scaled(found), targets)
        return MeanGuess(score.n, score.rmse, score.loss)
