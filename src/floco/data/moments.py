"""Mean, deviation and range of each client's training part by channel, and clients that stand out by them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from floco.data.federation import Client

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
    """Return the moments of samples (N, C, ...) for each client, from at most `most` samples of its training part."""
    raw, channels = x.numpy(), x.shape[1]
    # over the samples first: over all axes at once, pictures that are stored channels last take ninety times as long
    ends = [f(f(raw, 0).reshape(channels, -1), 1).astype(np.float64) for f in (np.min, np.max)]
    steps = [1 if most is None else -(-len(c.train) // most) for c in clients]
    rows = [_moments_of(raw, c.train.numpy()[::step], ends) for c, step in zip(clients, steps, strict=True)]
    mean, std, low, high, full = (np.stack(column) for column in zip(*rows, strict=True))
    return Moments(np.array([len(c.train) for c in clients]), mean, std, low, high, full)


def _moments_of(raw: np.ndarray, indices: np.ndarray, ends: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    shift = raw[indices[0]].reshape(raw.shape[1], -1).mean(1, dtype=np.float64)  # near the mean: squares keep digits
    n, parts = 0, []
    for start in range(0, len(indices), _BLOCK):
        block = raw[indices[start : start + _BLOCK]]
        values = block.reshape(*block.shape[:2], -1).astype(np.float64, order="C")
        n += values[:, 0].size
        at = [(values == end[:, None]).sum((0, 2)) for end in ends]
        low, high = values.min((0, 2)), values.max((0, 2))
        values -= shift[:, None]
        parts.append((values.sum((0, 2)), np.square(values).sum((0, 2)), *at, low, high))
    total, squares, lowest, highest, low, high = (np.stack(column) for column in zip(*parts, strict=True))
    mean = total.sum(0) / n
    variance = np.maximum(squares.sum(0) / n - np.square(mean), 0)
    full = np.maximum(lowest.sum(0), highest.sum(0)) / n
    return mean + shift, np.sqrt(variance), low.min(0), high.max(0), full


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
    few, many, middle = np.quantile(m.std, 0.25, 0), np.quantile(m.std, 0.75, 0), np.median(m.std, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        known = (m.std > 0) & (few > 0) & (many < _AGREE * few) & (np.maximum(m.full, np.median(m.full, 0)) < 0.5)
        ratio = np.where(known, m.std / middle, 1.0)
    low, high = np.quantile(m.low, 0.25, 0), np.quantile(m.high, 0.75, 0)
    reach = _AWAY * (high - low)
    away = (m.mean - 2 * m.std > high + reach) | (m.mean + 2 * m.std < low - reach)
    odd = (ratio > _FACTOR) | (ratio < 1 / _FACTOR) | (away & (reach > 0))
    odd &= (m.samples >= _LEAST)[:, None]
    for client, channel in np.argwhere(odd).tolist():
        mine = float(m.mean[client, channel]), float(m.std[client, channel])
        yield client, channel, mine, (float(np.median(m.mean[:, channel])), float(middle[channel]))
