"""Mean, deviation and range of each client's training part by channel, and clients that stand out by them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from floco.data.federation import Client
from floco.data.normalization import sum_channels

_BLOCK = 1024  # samples that are copied at once
_LEAST = 5  # samples from which on a client can stand out
_FACTOR = 10  # deviations that differ by more probably have another unit
_AGREE = 3  # factor within which the middle half of the clients must agree
_AWAY = 2  # ranges of the others, beyond which a client's values probably have another unit


class Moments(NamedTuple):
    """Statistics of the clients' training parts, (K, C) float64 each: raw values, uint8 not divided."""

    samples: np.ndarray
    """(K,) number of samples."""
    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray
    full: np.ndarray
    """Share of values that are the lowest, or the highest, of all clients: near 1 for features that are mostly off."""


def find_moments(x: torch.Tensor, clients: Sequence[Client], most: int | None = None) -> Moments:
    """Return the moments of samples (N, C, ...) for each client, from at most `most` samples of its training part.

    Missing values (NaN) do not count; where a client has no other, its moments are NaN.
    """
    raw, steps = x.numpy(), [1 if most is None else -(-len(c.train) // most) for c in clients]
    ends = _reduced(np.fmin, raw), _reduced(np.fmax, raw)
    rows = [_moments_of(x, c.train[::step], ends) for c, step in zip(clients, steps, strict=True)]
    mean, std, low, high, full = (np.stack(column) for column in zip(*rows, strict=True))
    return Moments(np.array([len(c.train) for c in clients]), mean, std, low, high, full)


def _moments_of(x: torch.Tensor, indices: torch.Tensor, ends: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    counts, *sums = sum_channels(x, indices)
    (total, squares), factor = np.array(sums), 255 if x.dtype == torch.uint8 else 1
    parts = []
    for block in indices.split(_BLOCK):
        values = np.ascontiguousarray(x.numpy()[block.numpy()]).reshape(len(block), x.shape[1], -1)
        at = [(values == end[:, None]).sum((0, 2)) for end in ends]
        parts.append((*at, _reduced(np.fmin, values), _reduced(np.fmax, values)))
    lowest, highest, low, high = (np.stack(column).astype(np.float64) for column in zip(*parts, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, variance, full = np.array([total, squares, np.maximum(lowest.sum(0), highest.sum(0))]) / np.array(counts)
    return factor * mean, factor * np.sqrt(variance), np.fmin.reduce(low), np.fmax.reduce(high), full


def _reduced(function: np.ufunc, values: np.ndarray) -> np.ndarray:
    """Return a function of two values over all values (N, C, ...) of each channel, (C,).

    Over the samples first: over all axes at once, pictures that are stored channels last take ninety times as long.
    """
    found: np.ndarray = function.reduce(function.reduce(values, 0).reshape(values.shape[1], -1), 1)
    return found


def odd_clients(m: Moments) -> Iterator[tuple[int, int, tuple[float, float], tuple[float, float]]]:
    """Yield client, channel, its mean and deviation and those of the median client, where a unit may be another.

    Label skew shifts means and empties sparse features, so that only what it hardly does counts:

    - the middle half of the clients agree on the deviation within a factor of 3, the client's is 10 times smaller or
      larger than the median, and the feature is not mostly off, at the client or at most others;
    - its mean plus and minus two deviations is further from the range of the middle half of the clients than twice the
      width of that range.
    """
    if len(m.mean) < 3:
        return
    few, middle, many = np.nanquantile(m.std, (0.25, 0.5, 0.75), 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        known = (m.std > 0) & (few > 0) & (many < _AGREE * few) & (np.maximum(m.full, np.nanmedian(m.full, 0)) < 0.5)
        ratio = np.where(known, m.std / middle, 1.0)
    low, high = np.nanquantile(m.low, 0.25, 0), np.nanquantile(m.high, 0.75, 0)
    reach = _AWAY * (high - low)
    away = (m.mean - 2 * m.std > high + reach) | (m.mean + 2 * m.std < low - reach)
    odd = (ratio > _FACTOR) | (ratio < 1 / _FACTOR) | (away & (reach > 0))
    odd &= (m.samples >= _LEAST)[:, None]
    for client, channel in np.argwhere(odd).tolist():
        mine = float(m.mean[client, channel]), float(m.std[client, channel])
        yield client, channel, mine, (float(np.nanmedian(m.mean[:, channel])), float(middle[channel]))
