"""The normalisation of samples, and the sums over their channels from which it follows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from floco.core.errors import FlocoError
from floco.core.random import one_thread

_ROUNDING = 2.0**-22  # twice the spacing of float32 numbers, relative to their size


@dataclass(frozen=True)
class Normalization:
    """x -> (x - mean) / std per channel (images, sequences) or feature; uint8 is divided by 255 first."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def by_column(self, x: Mapping[str, torch.Tensor]) -> dict[str, Normalization]:
        """Return those of each column of raw samples: of the channels of all in a row, without ids; or all for each."""
        sizes = {name: 0 if column.dtype == torch.int64 else column.shape[1] for name, column in x.items()}
        if len(self.mean) != sum(sizes.values()):
            return dict.fromkeys(sizes, self)
        mean, std = iter(self.mean), iter(self.std)
        return {n: Normalization(tuple(islice(mean, c)), tuple(islice(std, c))) for n, c in sizes.items()}

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        """Return float32 values (N, C, ...) of raw samples (N, C, ...); unscaled without statistics."""
        x = raw.float()
        if self.mean:
            x = x / 255 if raw.dtype == torch.uint8 else x
            shape = (1, -1) + (1,) * (x.ndim - 2)
            x = (x - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)
        return x


Sums = tuple[int | tuple[int, ...], tuple[float, ...], tuple[float, ...]]
"""Number of values in each channel (one number if all are equal), then for each channel the sum and the sum of squared
deviations from their mean."""


def sum_channels(x: torch.Tensor, indices: torch.Tensor) -> Sums:
    """Return the sums of the samples `indices`, in float64; uint8 is divided by 255 first, and NaN does not count.

    Works in blocks, so that the samples are not copied at once, and on one thread, so that the result has the same bits
    on machines with different numbers of cores.
    """
    dims = [0, *range(2, x.ndim)]
    parts: list[Sums] = []
    with one_thread():
        for block in indices.split(_rows(x)):
            values = (x[block].float() / 255 if x.dtype == torch.uint8 else x[block]).double()
            squares = (values - values.mean(dims, keepdim=True)).square()
            count: int | tuple[int, ...] = values.numel() // x.shape[1]
            if (holes := values.isnan()).any():
                count = tuple((~holes).sum(dims).tolist())
                squares = (values - values.nanmean(dims, keepdim=True)).square().nan_to_num(nan=0.0)
                values = values.nan_to_num(nan=0.0)
            parts.append((count, tuple(values.sum(dims).tolist()), tuple(squares.sum(dims).tolist())))
    return join_sums(parts)


def _rows(x: torch.Tensor) -> int:
    """Return how many samples to sum together: 4096, and fewer large ones."""
    return min(4096, max(1, 2**25 // x[0].numel()))


def join_sums(parts: Sequence[Sums]) -> Sums:
    """Return the sums of all parts together.

    Squared deviations are taken about the common mean (Chan, Golub, LeVeque 1979): a large mean costs no digits.
    """
    counts, totals, squares = [], [], []
    for c in range(len(parts[0][1])):
        known = [(n, s[c], q[c]) for m, s, q in parts if (n := m if isinstance(m, int) else m[c])]
        count, total = sum(n for n, _, _ in known), math.fsum(s for _, s, _ in known)
        counts.append(count)
        totals.append(total)
        squares.append(math.fsum(q + n * (s / n - total / count) ** 2 for n, s, q in known))
    return counts[0] if len(set(counts)) == 1 else tuple(counts), tuple(totals), tuple(squares)


def fit_normalization(parts: Sequence[Sums]) -> Normalization:
    """Return mean and standard deviation per channel from the clients' sums; a constant channel is only centered.

    A channel is constant if it varies by no more than float32 rounding at its magnitude; small units are not.
    """
    counts, totals, squares = join_sums(parts)
    count = torch.tensor(counts, dtype=torch.float64)
    if (count == 0).any():
        raise FlocoError("no training sample has a value in one of the channels, as all are missing: leave it out")
    mean = torch.tensor(totals, dtype=torch.float64) / count
    std = (torch.tensor(squares, dtype=torch.float64) / count).sqrt()
    std = torch.where(std > _ROUNDING * mean.abs(), std, torch.ones_like(std))
    return Normalization(tuple(mean.tolist()), tuple(std.tolist()))
