"""Metrics of a model as sums that add up over disjoint parts of the data, and statistics over clients."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from floco.core.intervals import Statistic

if TYPE_CHECKING:
    import torch

Number = int | float
_LARGEST = 1e200  # of a sum in a score, so that sums over clients and their squares are finite


class Metric(NamedTuple):
    """How a metric is read."""

    higher: bool = True
    """Whether more is better."""
    share: bool = False
    """Whether it is a share, in [0, 1], shown in per cent."""


class Metrics(dict[str, Metric]):
    """Metrics by name; the first is the primary one, by which models, clients and methods are compared."""

    @property
    def primary(self) -> str:
        """Its name."""
        return next(iter(self))

    @property
    def higher(self) -> bool:
        """Whether more of it is better."""
        return self[self.primary].higher

    @property
    def reading(self) -> str:
        """The primary metric in words, with its unit and direction, e.g. `rmse, lower is better`."""
        return f"{self.scaled(self.primary)[0]}, {'higher' if self.higher else 'lower'} is better"

    def plain(self) -> list[dict[str, Any]]:
        """Return the metrics as JSON has them."""
        return [{"name": name, **metric._asdict()} for name, metric in self.items()]

    @staticmethod
    def of(plain: Sequence[dict[str, Any]]) -> Metrics:
        """Return the metrics that `plain` describes."""
        return Metrics({m["name"]: Metric(m["higher"], m["share"]) for m in plain})

    def scaled(self, name: str) -> tuple[str, float]:
        """Return a metric's name with its unit, and the factor to that unit: shares are shown in per cent."""
        words = name.replace("_", " ")
        return (f"{words}, %", 100.0) if self[name].share else (words, 1.0)

    def text(self, name: str, value: float | None) -> str:
        """Return a value as users read it, "-" if there is none; shares in per cent."""
        if value is None or value != value:
            return "-"
        return f"{100 * value:.1f} %" if self[name].share else f"{value:.4g}"


class Score(ABC):
    """The sums behind the metrics of one model on one part of the data.

    Subclasses are frozen dataclasses of numbers and tuples of numbers, among them `n` and `losses`; every metric of
    their task is an attribute. Scores of disjoint parts add to the score of their union.
    """

    n: int
    """Number of samples."""
    losses: float
    """Sum of the samples' losses."""
    linear: ClassVar[bool] = False
    """Whether an own `__add__` adds all numbers, as the inherited one does; it is then fast to resample."""

    @property
    def places(self) -> int:
        """Number of targets that count: that of the samples, unless a sample has several, such as pixels."""
        return self.n

    @property
    def loss(self) -> float:
        """Mean loss."""
        return self.losses / self.n

    def __add__(self, other: Self) -> Self:
        """Return the score of both parts together."""
        fields = [f.name for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        return type(self)(**{name: add(getattr(self, name), getattr(other, name)) for name in fields})

    def details(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what a model card says beside the metrics; `names` are those of the classes."""
        return {}

    def coarse(self) -> Self:
        """Return a score that says nothing of single labels, for sites that keep label counts to themselves."""
        return self

    def plausible(self, n: int, outputs: int) -> bool:
        """Return whether it can be a score of n samples, for a network with this number of outputs."""
        return self.n == n and all(abs(v) < _LARGEST for v in flat(self))


def add(a: Any, b: Any) -> Any:
    """Return the sum of two numbers, or of two tuples of numbers of equal length, element by element."""
    return tuple(x + y for x, y in zip(a, b, strict=True)) if isinstance(a, tuple) else a + b


def flat(score: Score) -> list[Number]:
    """Return all numbers of a score."""
    values = [getattr(score, f.name) for f in dataclasses.fields(score)]  # type: ignore[arg-type]
    return [n for v in values if v is not None for n in (v if isinstance(v, tuple) else (v,))]


def resample_scores(
    score: Callable[[Any, Any], Score],
    value: Callable[[Score], float],
    name: str,
    outputs: torch.Tensor,
    targets: torch.Tensor,
) -> Statistic:
    """Return the function from the counts (B, n) of resamples of n samples to the `value` of their scores, (B,)."""
    like = score(outputs, targets)
    if not (like.linear or type(like).__add__ is Score.__add__):
        return lambda counts: {name: np.array([value(score(*_drawn(c, outputs, targets))) for c in counts])}
    parts = zip(outputs.split(1), targets.split(1), strict=True)
    table = np.array([flat(score(*part)) for part in parts], dtype=np.float64)  # (n, numbers of a score)
    return lambda counts: {name: np.array([value(_unflat(like, row)) for row in counts @ table])}


def _drawn(counts: np.ndarray, *parts: torch.Tensor) -> list[torch.Tensor]:
    rows = np.repeat(np.arange(len(counts)), counts)
    return [part[rows] for part in parts]


def _unflat(like: Score, numbers: np.ndarray) -> Score:
    """Return the score of these numbers, in the order of `flat`."""
    rest = iter(numbers.tolist())
    given = {f.name: getattr(like, f.name) for f in dataclasses.fields(like)}  # type: ignore[arg-type]
    made = {
        n: tuple(next(rest) for _ in v) if isinstance(v, tuple) else next(rest)
        for n, v in given.items()
        if v is not None
    }
    return type(like)(**made)


def pooled(scores: Iterable[Score]) -> Score | None:
    """Return the score of the union of disjoint parts; None if there are no parts."""
    parts = list(scores)
    return reduce(lambda a, b: a + b, parts) if parts else None


def worst(values: Sequence[float], share: float, *, higher: bool = True) -> float:
    """Return the mean of the ceil(share * K) worst of K values: the lowest, unless lower values are better.

    >>> worst([0.9, 0.5, 0.7], 0.05)
    0.5
    """
    ordered = sorted(values, reverse=not higher)[: math.ceil(share * len(values))]
    return math.fsum(ordered) / len(ordered)


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Return the mean of K >= 1 values, weighted if weights are given."""
    if weights is None:
        return math.fsum(values) / len(values)
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / math.fsum(weights)


def spread(values: Sequence[float]) -> float:
    """Return the population standard deviation of K >= 1 values (divided by K)."""
    middle = mean(values)
    return math.sqrt(mean([(v - middle) ** 2 for v in values]))
