"""Exact uniform sampling of the simplex and of its subregions, and the released sampler for comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

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
    center = center.double()
    if center.ndim != 1 or not bool((center >= -1e-6).all()) or not abs(float(center.sum()) - 1) <= 1e-6:
        raise FlocoError(f"center must be a point of the simplex (M,), got {center.tolist()}")
    if not radius >= 0:
        raise FlocoError(f"radius must be >= 0, got {radius}")
    center = center.clamp_min(0) / center.clamp_min(0).sum()
    if len(center) == 1 or radius == 0:
        return center.expand(n, -1).clone()
    if radius >= 2:
        return sample_simplex(n, len(center), generator=generator)
    envelope = _Envelope.around(center, radius / 2)
    whole = envelope.log_volume >= -math.lgamma(len(center))
    accepted, found, proposed = [], 0, 0
    size = max(64, 2 * n)
    while found < n:
        if proposed >= _MAX_DRAWS:
            raise FlocoError(
                f"the subregion of radius {radius} around {center.tolist()} is too small to sample: "
                f"{found} of {n} draws in {proposed} proposals; use a larger radius"
            )
        alphas = sample_simplex(size, len(center), generator=generator) if whole else envelope.propose(size, generator)
        inside = (alphas >= 0).all(dim=1) & ((alphas - center).abs().sum(dim=1) <= radius)
        accepted.append(alphas[inside])
        found, proposed, size = found + int(inside.sum()), proposed + size, min(4 * size, 65536)
    return torch.cat(accepted)[:n] if accepted else center.new_empty(0, len(center))


@dataclass(frozen=True)
class _Case:
    """Displacements in which `a` small and `b` large coordinates decrease, and all others increase."""

    a: int
    b: int
    slack: float
    """Upper bound S of the total decrease of the a small ones."""
    log_volume: float


@dataclass(frozen=True)
class _Envelope:
    """A superset of the displacements alpha - beta with ||.||_1 / 2 <= T that is easy to sample uniformly.

    Some of the least coordinates are *small*: their decreases are drawn from U(0, beta_j), and so never leave the
    simplex. Decreases of the *large* ones are drawn regardless of beta_j, and rejected if they exceed it.
    """

    center: torch.Tensor
    half: float
    small: torch.Tensor
    large: torch.Tensor
    esp: torch.Tensor
    """esp[i, a]: elementary symmetric polynomial e_a of the small coordinates from the i-th on."""
    cases: tuple[_Case, ...]

    @property
    def log_volume(self) -> float:
        """Log volume of the envelope, in M - 1 of the coordinates (the whole simplex: -log (M - 1)!)."""
        return float(self._log_volumes.logsumexp(0))

    @property
    def _log_volumes(self) -> torch.Tensor:
        return torch.tensor([c.log_volume for c in self.cases], dtype=torch.float64)

    @staticmethod
    def around(center: torch.Tensor, half: float) -> _Envelope:
        """Return the envelope of least volume over all numbers of small coordinates."""
        return _tightest(tuple(center.tolist()), half)

    @staticmethod
    def with_small(center: torch.Tensor, half: float, k: int) -> _Envelope:
        """Return the envelope in which the k least positive coordinates are small."""
        size, support = len(center), center.argsort(stable=True)[int((center <= 0).sum()) :]
        small, large = support[:k], support[k:]
        values = center[small].tolist()
        esp = torch.zeros(k + 1, k + 1, dtype=torch.float64)
        esp[:, 0] = 1
        for i in reversed(range(k)):
            esp[i, 1:] = esp[i + 1, 1:] + values[i] * esp[i + 1, :-1]
        top = [math.fsum(values[k - a :]) for a in range(k + 1)]
        cases = tuple(
            _Case(a, b, top[a], math.log(float(esp[0, a])) + _log_volume(size, a, b, len(large), top[a], half))
            for a in range(k + 1)
            for b in range(len(large) + 1)
            if 1 <= a + b <= size - 1 and esp[0, a] > 0  # 0: underflow, a negligible probability
        )
        return _Envelope(center, half, small, large, esp, cases)

    def propose(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Return at most n displaced points (k, M), uniform on the envelope (its own rejections are left out)."""
        picks = torch.multinomial(self._log_volumes.softmax(0), n, replacement=True, generator=generator)
        which, numbers = (t.tolist() for t in picks.unique(return_counts=True))
        parts = [self._draw(self.cases[i], number, generator) for i, number in zip(which, numbers, strict=True)]
        points = torch.cat(parts)
        return points[torch.randperm(len(points), generator=generator)]  # shuffled, since callers keep the first n

    def _draw(self, case: _Case, n: int, generator: torch.Generator) -> torch.Tensor:
        size, a, b = len(self.center), case.a, case.b
        uniform = torch.rand(n, 3, generator=generator, dtype=torch.float64)
        chosen = self._subset(a, n, generator)  # (n, a) of the small coordinates
        lost_small = self.center[chosen] * torch.rand(n, a, generator=generator, dtype=torch.float64)
        sum_small = lost_small.sum(dim=1)
        if b == 0:
            moved, accept = sum_small, uniform[:, 1] <= (sum_small / case.slack) ** (size - a - 1)
            lost_large = torch.zeros(n, 0, dtype=torch.float64)
        else:
            power = size - a - 1
            most = self.half + case.slack
            low = (case.slack / most) ** power
            u = most * (low + (1 - low) * uniform[:, 0]) ** (1 / power)  # density ~ u^(power - 1) on [S, T + S]
            sum_large = u - case.slack
            moved = sum_large + sum_small
            accept = uniform[:, 1] <= (moved / u) ** (size - a - b - 1) * (sum_large / u) ** (b - 1)
            lost_large = sample_simplex(n, b, generator=generator) * sum_large[:, None]
        accept &= moved <= self.half
        which = self.large[torch.rand(n, len(self.large), generator=generator).argsort(dim=1)[:, :b]]
        lost = torch.zeros(n, size, dtype=torch.float64)
        lost.scatter_(1, torch.cat([chosen, which], dim=1), torch.cat([lost_small, lost_large], dim=1))
        fixed = torch.zeros(n, size, dtype=torch.bool).scatter_(1, torch.cat([chosen, which], dim=1), True)
        order = fixed.to(torch.uint8).argsort(dim=1, stable=True)[:, : size - a - b]  # the coordinates that increase
        shares = sample_simplex(n, size - a - b, generator=generator)
        gained = torch.zeros_like(lost).scatter_(1, order, shares * moved[:, None])
        return (self.center - lost + gained)[accept]

    def _subset(self, a: int, n: int, generator: torch.Generator) -> torch.Tensor:
        """Return n subsets of `a` small coordinates, (n, a), with probability proportional to their product."""
        left = torch.full((n,), a)
        taken = torch.zeros(n, len(self.small), dtype=torch.bool)
        for i, j in enumerate(self.small):
            with_it = self.center[j] * self.esp[i + 1, (left - 1).clamp_min(0)] / self.esp[i, left]
            taken[:, i] = (left > 0) & (torch.rand(n, generator=generator, dtype=torch.float64) < with_it)
            left -= taken[:, i].long()
        return self.small[taken.nonzero()[:, 1].reshape(n, a)]


@lru_cache(maxsize=4096)  # clients keep their centers for the rest of a run
def _tightest(center: tuple[float, ...], half: float) -> _Envelope:
    point = torch.tensor(center, dtype=torch.float64)
    envelopes = (_Envelope.with_small(point, half, k) for k in range(int((point > 0).sum())))
    return min(envelopes, key=lambda e: e.log_volume)


def _log_volume(size: int, a: int, b: int, large: int, slack: float, half: float) -> float:
    """Return the log volume of one case divided by e_a (docs/method.md gives the integral)."""
    power = size - a - 1
    if b == 0:
        return power * math.log(slack) - math.lgamma(size - a)
    most = half + slack
    choices = math.lgamma(large + 1) - math.lgamma(b + 1) - math.lgamma(large - b + 1)
    log_range = choices + power * math.log(most) + math.log1p(-((slack / most) ** power))
    return log_range - math.lgamma(b) - math.lgamma(size - a - b) - math.log(power)
