"""Intervals for what was measured on few samples or few clients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
"""Share of the intervals that should hold the true value."""
RESAMPLES = 1000
"""Resamples of a bootstrap; fewer where n samples of C numbers are many, as their intervals are narrow."""
_FEWEST, _NUMBERS = 100, 2 * 10**7
_BLOCK = 2**22  # numbers in memory at once

Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]
"""From how often each of n rows is drawn, (B, n), to metrics by name, (B,), NaN where undefined."""


class Interval(NamedTuple):
    """The two ends of an interval; NaN if they are unknown."""

    lower: float = math.nan
    upper: float = math.nan


UNKNOWN = Interval()


def wilson(hits: int, n: int) -> Interval:
    """Return the 95 % interval of a share, `hits` of n independent samples (Wilson 1927); unknown for n = 0.

    >>> [round(end, 3) for end in wilson(17, 18)]
    [0.742, 0.99]
    """
    from scipy.stats import binomtest  # on use: slow to import

    return Interval(*map(float, binomtest(hits, n).proportion_ci(LEVEL, method="wilson"))) if n else UNKNOWN


def resample(statistic: Statistic, n: int, seed: int, width: int = 1) -> dict[str, np.ndarray]:
    """Return metrics of B resamples of n rows of `width` numbers, (B,) each: n rows drawn with replacement.

    B is 1,000, or fewer, down to 100, to draw no more than about 20 million numbers.

    Equal n and seed draw equal rows, so the difference of two models' values on one resample is a paired one.
    """
    number = min(RESAMPLES, max(_FEWEST, _NUMBERS // (n * width)))
    parts = [statistic(counts) for counts in _draw(n, seed, number)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _draw(n: int, seed: int, number: int) -> Iterator[np.ndarray]:
    """Yield how often each of n rows is in each resample, (B, n) in blocks."""
    generator, size = np.random.default_rng(seed), max(1, min(number, _BLOCK // n))
    for start in range(0, number, size):
        b = min(size, number - start)
        drawn = generator.integers(n, size=(b, n)) + n * np.arange(b)[:, None]
        yield np.bincount(drawn.ravel(), minlength=b * n).reshape(b, n)


def percentiles(values: np.ndarray, n: int) -> Interval:
    """Return the 95 % interval of a metric from its values in resamples of n rows, (B,); NaN does not count.

    These are percentiles, moved outwards for small n as the t distribution says (Hesterberg 2015). The interval is
    unknown if all resamples give one value, e.g. the AUROC 1: so few rows do not show how far it may be off.
    """
    from scipy.stats import norm, t

    known = values[~np.isnan(values)]
    if n < 2 or len(known) < len(values) / 2 or np.ptp(known) == 0:
        return UNKNOWN
    tail = float(norm.cdf(math.sqrt(n / (n - 1)) * t.ppf((1 - LEVEL) / 2, n - 1)))
    return Interval(*np.quantile(known, [tail, 1 - tail]).tolist())


def bound_mean(values: np.ndarray, level: float = LEVEL, noise: float = 0.0, freedom: float = 0.0) -> Interval:
    """Return Student's interval of the mean of values (n,), such as clients' differences.

    It is unknown for n < 2 and for equal values: steps of few test samples make clients equal by chance. What the mean
    owes to something else is added, with the degrees of freedom of Welch and Satterthwaite.

    Args:
        values: what the mean is taken over.
        level: share of the intervals that should hold the mean, in (0, 1).
        noise: variance of the mean from another source (`round_noise`).
        freedom: degrees of freedom of that variance; 0 if it is unknown.
    """
    from scipy.stats import t

    n = len(values)
    if n < 2 or np.ptp(values) == 0:
        return UNKNOWN
    mean, own = float(values.mean()), float(values.var(ddof=1)) / n
    degrees = (own + noise) ** 2 / (own**2 / (n - 1) + noise**2 / max(1.0, freedom))
    return Interval(*map(float, t.interval(level, degrees, mean, math.sqrt(own + noise))))


def round_noise(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the variance that a mean over seeds owes to the round in which training ended, and degrees of freedom.

    In the second half of the rounds, each evaluation but the first and the last is compared with the line between its
    neighbours, so that a learning curve, rising or bent, is no noise. Evaluations are taken to be independent.

    Args:
        curves: for each seed, the evaluated rounds and what was measured in them, (2, n). With fewer than three in the
            second half nothing is known: 0 degrees of freedom.

    >>> round_noise([np.array([[10, 40, 50, 60], [9.0, 1.0, 2.0, 6.0]])])
    (1.5, 1.0)
    """
    found = [np.zeros(0)]
    for rounds, values in curves:
        n, values = rounds[rounds > rounds[-1] / 2], values[rounds > rounds[-1] / 2]
        share = np.diff(n)[1:] / (n[2:] - n[:-2])
        off = values[1:-1] - share * values[:-2] - (1 - share) * values[2:]
        found.append(off**2 / (1 + share**2 + (1 - share) ** 2))
    freedom = sum(len(f) ** 2 / (2 * len(f) - 1) for f in found if len(f))  # neighbours have evaluations in common
    return (float(np.concatenate(found).mean()) / len(curves), freedom) if freedom else (0.0, 0.0)
