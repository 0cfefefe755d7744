"""Assignment of subregion centers from gradient signals, and the map that places latecomers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from floco.core.errors import FlocoError
from floco.simplex.components import Centered, lengths, principal
from floco.simplex.projection import project

_FLOOR = 1e-4  # lower bound of distances, so that coincident centers have a finite energy
_RELEASED = (1e-4, 1.0, 1000)  # scale grid of the released code: first, last, number
_RELATIVE = (1e-3, 50.0, 160)  # our logarithmic grid, in units of the largest score
_REFINE = (4, 24)  # refinements around the best scale, and scales in each
_FIRST = 10_000  # clients in the coarse search; the refinement uses all
_BLOCK = 512  # side of a block of pairwise distances that fits in the cache


def log_energy(centers: torch.Tensor) -> float:
    """Return log mean_{i<j} 1 / max(||beta_i - beta_j||, 1e-4)^2, the log mean Riesz energy (s = 2) of centers (K, M).

    Lower means better spread. Without a pair (0 clients or 1), the energy is 0.
    """
    if len(centers) < 2:
        return 0.0
    centers, pairs = centers.double(), len(centers) * (len(centers) - 1) / 2
    squares = centers.square().sum(dim=1)
    total = 0.0
    for i, first in enumerate(blocks := list(zip(centers.split(_BLOCK), squares.split(_BLOCK), strict=True))):
        for j, second in enumerate(blocks[i:]):
            products = torch.addmm(second[1], first[0], second[0].T, alpha=-2)  # |b|^2 - 2 a b
            energies = products.add_(first[1][:, None]).clamp_min_(_FLOOR**2).reciprocal_()
            total += float(energies.triu_(1).sum() if j == 0 else energies.sum())
    return math.log(total / pairs)


@dataclass(frozen=True)
class Assignment:
    """The centers of all clients, and the map from signals to centers."""

    centers: torch.Tensor
    """beta, (K, M) float64, rows on the simplex."""
    z: float
    """The scale of the projection: beta = project(scores, z) / z; 0 if all signals are equal."""
    log_energy: float
    mean: torch.Tensor
    """(P,) mean signal."""
    components: torch.Tensor
    """(r, P) principal components, r <= M."""
    unit: bool = False
    """Whether signals are first divided by their lengths."""

    @property
    def endpoints(self) -> int:
        """M."""
        return self.centers.shape[1]

    def place(self, signals: torch.Tensor) -> torch.Tensor:
        """Return the centers (k, M) of new signals (k, P) under the same map; other clients keep theirs."""
        if signals.ndim != 2 or signals.shape[1] != len(self.mean):
            wanted = f"(k, {len(self.mean)}), as in the assignment"
            raise FlocoError(f"signals must have shape {wanted}, got {tuple(signals.shape)}")
        signals = signals.double()
        signals = signals / lengths(signals)[:, None] if self.unit else signals
        return _centers((signals - self.mean) @ self.components.T, self.z, self.endpoints)


def _centers(scores: torch.Tensor, z: float, endpoints: int) -> torch.Tensor:
    """Return project(scores, z) / z, zero-padded from r to M columns; the middle of the simplex if z is 0."""
    if z == 0:
        return torch.full((len(scores), endpoints), 1 / endpoints, dtype=torch.float64)
    padding = torch.zeros(len(scores), endpoints - scores.shape[1], dtype=torch.float64)
    return torch.cat([project(scores, z) / z, padding], dim=1)


def _best(scores: torch.Tensor, scales: torch.Tensor) -> int:
    energies = [log_energy(project(scores, float(z)) / z) for z in scales]
    return min(range(len(energies)), key=energies.__getitem__)


def _scale(scores: torch.Tensor, normalize: bool) -> float:
    """Return the z of least energy, on the released grid (not `normalize`) or on the refined relative one."""
    if not normalize:
        scales = torch.linspace(*_RELEASED, dtype=torch.float64)
        return float(scales[_best(scores, scales)])
    low, high, number = _RELATIVE
    unit = float(scores.abs().max())
    scales = unit * torch.logspace(math.log10(low), math.log10(high), number, dtype=torch.float64)
    shuffled = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))  # clients may come in groups
    some = shuffled[:_FIRST]
    best = _best(scores[some] if len(scores) > _FIRST else scores, scales)
    rounds, number = _REFINE
    for _ in range(rounds):
        left, right = float(scales[max(best - 1, 0)]), float(scales[min(best + 1, len(scales) - 1)])
        finer = torch.linspace(left, right, number, dtype=torch.float64)
        scales = torch.unique(torch.cat([finer, scales[best : best + 1]]))
        best = _best(scores, scales)
    return float(scales[best])


def assign(signals: torch.Tensor, endpoints: int, *, normalize: bool = True) -> Assignment:
    """Return the subregion centers of all clients, from their gradient signals.

    kappa = first M principal component scores of the centered signals; beta_k(z) = project(kappa_k, z) / z; z minimises
    `log_energy`. Computed in float64; deterministic for a given linear algebra library.

    Args:
        signals: (K, P), one row per client, finite.
        endpoints: M >= 1.
        normalize: divide each signal by its length, and search z relative to the largest score. Centers then do not
            depend on the size of the updates, overall or of a single client (which grows with its number of steps).
            False: the authors' form, with raw signals and a grid of 1,000 values in [1e-4, 1].

    Returns:
        The assignment; all centers are 1/M if the signals are equal. There may be fewer clients than M.

    Raises:
        FlocoError: a shape is wrong, or a signal is not finite.
    """
    if signals.ndim != 2 or 0 in signals.shape or endpoints < 1:
        given = f"{tuple(signals.shape)} and {endpoints}"
        raise FlocoError(f"assign needs signals (K, P) with K, P >= 1 and endpoints >= 1, got {given}")
    signals = signals if signals.is_floating_point() else signals.double()
    sizes = torch.linalg.vector_norm(signals, ord=torch.inf, dim=1)
    if not bool(torch.isfinite(sizes).all()):
        wrong = (~torch.isfinite(sizes)).nonzero().flatten().tolist()
        raise FlocoError(f"signals must be finite; rows {wrong} are not")
    centered = Centered.of(signals, lengths(signals) if normalize else None)
    mean = centered.mean
    if centered.largest() <= 1e-12 * (1.0 if normalize else float(sizes.max())):
        middle = torch.full((len(signals), endpoints), 1 / endpoints, dtype=torch.float64)
        return Assignment(middle, 0.0, log_energy(middle), mean, mean.new_empty(0, len(mean)), normalize)
    components = principal(centered, endpoints)
    scores = centered @ components.T
    z = _scale(scores, normalize) if scores.shape[1] > 1 else 1.0
    centers = _centers(scores, z, endpoints)
    return Assignment(centers, z, log_energy(centers), mean, components, normalize)
