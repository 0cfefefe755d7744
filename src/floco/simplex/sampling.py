"""Exact uniform sampling of the simplex and of its subregions, and the released sampler for comparison."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from floco.core.errors import FlocoError

_MAX_DRAWS = 2_000_000  # limit on the proposals of one call


def sample_simplex(n: int, endpoints: int, *, generator: torch.Generator) -> torch.Tensor:
    """Return n mixtures, (n, M) float64, uniform on the simplex: normalised Exp(1) variables."""
    draws = torch.empty(n, endpoints, dtype=torch.float64).exponential_(generator=generator)
    return draws / draws.sum(dim=1, keepdim=True)


def sample_released(center: torch.Tensor, radius: float, n: int, *, generator: torch.Generator) -> torch.Tensor:
    """Return n draws (n, M) of the authors' released sampler: beta + r u / ||u||_1, u ~ U(-1, 1)^M, r ~ U(0, rho).

    For comparison only: draws may leave the simplex (sums differ from 1, coordinates may be negative).
    """
    u = 2 * torch.rand(n, len(center), generator=generator, dtype=torch.float64) - 1
    r = radius * torch.rand(n, 1, generator=generator, dtype=torch.float64)
    return center.double() + r * u / u.abs().sum(dim=1, keepdim=True)


def sample_subregion(center: torch.Tensor, radius: float, n: int, *, generator: torch.Generator) -> torch.Tensor:
    """Return n mixtures, (n, M) float64, uniform on R = {alpha on the simplex : ||alpha - beta||_1 <= rho}.

    Rejection sampling from the smaller of two envelopes: the whole simplex, or a mixture over which coordinates
    decrease (docs/method.md, "Sampling a subregion").

    Args:
        center: beta, (M,), on the simplex up to 1e-6.
        radius: rho >= 0; 0 gives beta itself, 2 or more the whole simplex.
        n: number of draws, >= 0.
        generator: source of randomness.

    Raises:
        FlocoError: beta is not on the simplex, rho is negative, or two million proposals do not suffice.
    """
    if center.ndim != 1:
        raise FlocoError(f"center must be a point of the simplex (M,), got {center.tolist()}")
    center, envelope = _prepared(tuple(center.double().tolist()), radius)
    if len(center) == 1 or radius == 0:
        return center.expand(n, -1).clone()
    if envelope is None:
        return sample_simplex(n, len(center), generator=generator)
    whole = envelope.log_volume >= -math.lgamma(len(center))
    accepted, found, proposed, size = [np.empty((0, len(center)))], 0, 0, max(64, 2 * n)
    while found < n:
        if proposed >= _MAX_DRAWS:
            raise FlocoError(
                f"the subregion of radius {radius} around {center.tolist()} is too small to sample: "
                f"{found} of {n} draws in {proposed} proposals; use a larger radius"
            )
        drawn = sample_simplex(size, len(center), generator=generator) if whole else envelope.propose(size, generator)
        distances, alphas = (drawn - center).abs_().sum(dim=1).numpy(), drawn.numpy()
        accepted.append(alphas[(alphas >= 0).all(axis=1) & (distances <= radius)])
        found, proposed, size = found + len(accepted[-1]), proposed + size, min(4 * size, 65536)
    return torch.from_numpy(np.concatenate(accepted)[:n])


@dataclass(frozen=True)
class _Envelope:
    """A superset of the displacements alpha - beta with ||.||_1 / 2 <= T that is easy to sample uniformly.

    Some of the least coordinates are *small*: their decreases are drawn from U(0, beta_j), and so never leave the
    simplex. Decreases of the *large* ones are drawn regardless of beta_j, and rejected if they exceed it.
    """

    center: np.ndarray
    half: float
    small: np.ndarray
    large: np.ndarray
    esp: np.ndarray
    """esp[i, a]: elementary symmetric polynomial e_a of the small coordinates from the i-th on."""
    cases: np.ndarray
    """(C, 3): a case has `a` small and b large coordinates decrease, and the M - a - b others increase."""
    slack: np.ndarray
    """(C,): upper bound S of the total decrease of the a small ones."""
    log_volumes: torch.Tensor
    """(C,), in M - 1 of the coordinates (the whole simplex: -log (M - 1)!)."""

    @cached_property
    def log_volume(self) -> float:
        """Log volume of the envelope."""
        return float(self.log_volumes.logsumexp(0))

    @cached_property
    def _weights(self) -> torch.Tensor:
        return self.log_volumes.softmax(0)

    @cached_property
    def _chances(self) -> np.ndarray:
        """[i, a]: probability that the i-th small coordinate is one of `a` that are chosen from it on."""
        chances = np.zeros_like(self.esp[:-1])
        with np.errstate(divide="ignore", invalid="ignore"):  # where fewer than `a` are left
            chances[:, 1:] = self.center[self.small][:, None] * self.esp[1:, :-1] / self.esp[:-1, 1:]
        return chances

    @cached_property
    def _ranges(self) -> np.ndarray:
        """(C, 4): S, most, low and root, where u of the docs is most (low + (1 - low) U)^root for U ~ U(0, 1)."""
        ranges = []
        for (a, b, _), slack in zip(self.cases.tolist(), self.slack.tolist(), strict=True):
            power, most = len(self.center) - a - 1, self.half + slack
            ranges.append((slack, most, (slack / most) ** power, 1 / power) if b else (slack, slack, 1, 1))
        return np.array(ranges)

    @staticmethod
    def with_small(center: torch.Tensor, half: float, k: int) -> _Envelope:
        """Return the envelope in which the k least positive coordinates are small."""
        beta, size = center.numpy(), len(center)
        support = beta.argsort(kind="stable")[int((beta <= 0).sum()) :]
        small, large = support[:k], support[k:]
        esp = np.eye(1, k + 1).repeat(k + 1, axis=0)
        for i in reversed(range(k)):
            esp[i, 1:] = esp[i + 1, 1:] + beta[small[i]] * esp[i + 1, :-1]
        cases, slacks, volumes = [], [], []
        for a, choices in enumerate(esp[0].tolist()):
            if choices > 0:  # 0: underflow, a negligible probability
                slack = math.fsum(beta[small[k - a :]])
                for b, volume in _log_volumes(size, a, len(large), slack, half):
                    cases.append((a, b, size - a - b))
                    slacks.append(slack)
                    volumes.append(math.log(choices) + volume)
        parts = np.array(cases), np.array(slacks), torch.tensor(volumes, dtype=torch.float64)
        return _Envelope(beta, half, small, large, esp, *parts)

    def propose(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Return at most n displaced points (k, M), uniform on the envelope (its own rejections are left out)."""
        numbers = np.bincount(torch.multinomial(self._weights, n, replacement=True, generator=generator).numpy())
        which = numbers.nonzero()[0]
        points = self._points(which, numbers[which].tolist(), generator)
        order = torch.randperm(len(points), generator=generator)  # shuffled, since callers keep the first n
        return torch.from_numpy(points[order.numpy()])

    def _points(self, which: np.ndarray, numbers: list[int], generator: torch.Generator) -> np.ndarray:
        """Return displaced points (k, M), at most a number of each of some cases.

        All cases are computed at once, with the bits of one after another.
        """
        n, size = sum(numbers), len(self.center)
        cases, ranges = self.cases[which], self._ranges[which]
        uniform, subset, uniform_small, order, shares = self._draw(cases.tolist(), numbers, generator)
        widths = np.repeat(cases, numbers, axis=0).T.ravel()
        a, b, _ = widths.reshape(3, n)
        slack, most, low, _ = np.repeat(ranges, numbers, axis=0).T
        small = self.small[self._subsets(a, subset).nonzero()[1]]
        lost_small = self.center[small] * uniform_small
        sums = _sums(np.concatenate([lost_small, shares]), widths)
        u = most * _powers(low + (1 - low) * uniform[:, 0], numbers, ranges[:, 3])
        sum_large = u - slack
        moved = sum_large + sums[:n]
        exponents = np.concatenate([cases[:, 2], np.maximum(cases[:, 1], 1)]) - 1
        odds = _powers((np.array([moved, sum_large]) / u).ravel(), numbers * 2, exponents)
        accept = (uniform[:, 1] <= odds[:n] * odds[n:]) & (moved <= self.half)
        totals = np.concatenate([-sum_large, moved])
        moves = np.concatenate([-lost_small, shares / sums[n:].repeat(widths[n:]) * totals.repeat(widths[n:])])
        falling = np.concatenate([small, self.large[order[np.arange(len(self.large)) < b[:, None]]]])
        places = (np.arange(2 * n) % n).repeat(widths[: 2 * n]), falling
        points, rising = np.empty((n, size)), np.ones((n, size), dtype=bool)
        rising[places] = False
        points[places], points[rising] = moves[: len(falling)], moves[len(falling) :]
        return (self.center + points).compress(accept, axis=0)

    def _draw(self, cases: list[list[int]], numbers: list[int], generator: torch.Generator) -> tuple[np.ndarray, ...]:
        """Return the random numbers of n displacements, one case after another; flat where their numbers differ.

        Uniform ones (n, 3), for subsets (#small, n) and for small coordinates (flat); random orders (n, #large); and
        Exp(1) for the large coordinates of all displacements, then for the increasing ones (flat).
        """
        k, uniform, subset, small, falls, keys, rises = len(self.small), [], [], [], [], [], []
        for (a, b, up), n in zip(cases, numbers, strict=True):
            drawn = torch.rand(n * (3 + k + a), generator=generator, dtype=torch.float64).numpy()
            uniform.append(drawn[: 3 * n].reshape(n, 3))
            subset.append(drawn[3 * n : (3 + k) * n].reshape(k, n))
            small.append(drawn[(3 + k) * n :])
            if b:
                falls.append(torch.empty(n * b, dtype=torch.float64).exponential_(generator=generator))
            keys.append(torch.rand(n, len(self.large), generator=generator))
            rises.append(torch.empty(n * up, dtype=torch.float64).exponential_(generator=generator))
        order, shares = torch.cat(keys).argsort(dim=1).numpy(), torch.cat(falls + rises).numpy()
        return np.concatenate(uniform), np.concatenate(subset, axis=1), np.concatenate(small), order, shares

    def _subsets(self, a: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Return subsets of `a` small coordinates, (n, #small), with probability proportional to their product."""
        left, chosen = a.copy(), np.empty((len(a), len(self.small)), dtype=bool)
        for i, chances in enumerate(self._chances):
            chosen[:, i] = uniform[i] < chances[left]
            left -= chosen[:, i]
        return chosen


@lru_cache(maxsize=4096)  # clients keep their centers for the rest of a run
def _prepared(center: tuple[float, ...], radius: float) -> tuple[torch.Tensor, _Envelope | None]:
    """Return the exact point of the simplex, and the envelope of least volume where the ball is within 0 and 2."""
    point = torch.tensor(center, dtype=torch.float64)
    if not bool((point >= -1e-6).all()) or not abs(float(point.sum()) - 1) <= 1e-6:
        raise FlocoError(f"center must be a point of the simplex (M,), got {list(center)}")
    if not radius >= 0:
        raise FlocoError(f"radius must be >= 0, got {radius}")
    point = point.clamp_min(0) / point.clamp_min(0).sum()
    if len(point) == 1 or not 0 < radius < 2:
        return point, None
    envelopes = (_Envelope.with_small(point, radius / 2, k) for k in range(int((point > 0).sum())))
    return point, min(envelopes, key=lambda e: e.log_volume)


def _log_volumes(size: int, a: int, large: int, slack: float, half: float) -> Iterator[tuple[int, float]]:
    """Yield each possible b and the log volume of its case divided by e_a (docs/method.md gives the integral)."""
    power, most = size - a - 1, half + slack
    if a:
        yield 0, power * math.log(slack) - _lgamma(power + 1)
    if power:
        scale, log_power, log_range = power * math.log(most), math.log(power), math.log1p(-((slack / most) ** power))
        for b in range(1, min(large, power) + 1):
            choices = _lgamma(large + 1) - _lgamma(b + 1) - _lgamma(large - b + 1)
            yield b, choices + scale + log_range - _lgamma(b) - _lgamma(power + 1 - b) - log_power


_lgamma = lru_cache(maxsize=None)(math.lgamma)


def _sums(values: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return the sums of rows of given widths that are stored one after another; torch adds in an order of its own."""
    padded = np.zeros((len(widths), int(widths.max())))
    padded[np.arange(padded.shape[1]) < widths[:, None]] = values
    order, parts, end = widths.argsort(kind="stable"), [], 0
    padded, sums = padded[order], np.empty(len(widths))
    for width, number in enumerate(np.bincount(widths).tolist()):
        parts.append(torch.from_numpy(padded[end : end + number, :width]).sum(dim=1))
        end += number
    sums[order] = torch.cat(parts).numpy()
    return sums


def _powers(values: np.ndarray, numbers: list[int], exponents: np.ndarray) -> np.ndarray:
    """Raise the values of each case to its exponent; not at once, since bits depend on an element's place."""
    torch._foreach_pow_(torch.from_numpy(values).split_with_sizes(numbers), exponents.tolist())
    return values
