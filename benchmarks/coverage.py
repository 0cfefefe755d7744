"""How often 95 % intervals hold the true value, by number of samples: a table, in about a minute.

python benchmarks/coverage.py
"""

import math

import numpy as np
from scipy.stats import binom, norm

from floco.core.intervals import percentiles, resample, wilson
from floco.tasks.decisions import resample_areas

TIMES = 1000


def accuracy(n: int) -> float:
    """Wilson's, of a share of 0.9: exact."""
    ends = [wilson(k, n) for k in range(n + 1)]
    return sum(binom.pmf(k, n, 0.9) for k, (lower, upper) in enumerate(ends) if lower <= 0.9 <= upper)


def rmse(n: int, rng: np.random.Generator) -> bool:
    """Of errors with a standard normal distribution, whose RMSE is 1."""
    squares = rng.normal(size=n) ** 2
    found = resample(lambda counts: {"rmse": np.sqrt(counts @ squares / n)}, n, int(rng.integers(2**31)))
    lower, upper = percentiles(found["rmse"], n)
    return lower <= 1 <= upper


def auroc(n: int, rng: np.random.Generator) -> bool:
    """Of normal scores, half of them positive and 1.2 standard deviations higher."""
    positive = np.arange(n)[:, None] % 2 == 0
    scores = rng.normal(size=(n, 1)) + 1.2 * positive
    found = resample(lambda counts: resample_areas(scores, positive, counts), n, int(rng.integers(2**31)))
    lower, upper = percentiles(found["auroc"], n)
    return lower <= norm.cdf(1.2 / math.sqrt(2)) <= upper


print("| samples | accuracy (Wilson) | RMSE | AUROC |\n|---|---|---|---|")
for n in (18, 50, 200):
    rng = np.random.default_rng(n)
    shown = [accuracy(n), *(np.mean([one(n, rng) for _ in range(TIMES)]) for one in (rmse, auroc))]
    print(f"| {n} | {' | '.join(f'{100 * s:.0f} %' for s in shown)} |", flush=True)
