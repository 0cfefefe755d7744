"""Where on the simplex a client trains, and centers that clients find themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from floco.core.algorithm import OwnSamples
from floco.core.mixing import CENTER_TENSOR, Mixing
from floco.core.task import Task
from floco.core.values import ServerState, Tensors, Update, add_prefix, strip_prefix
from floco.simplex import Assignment, sample_released, sample_simplex, sample_subregion
from floco.simplex.optimum import lowest, with_prior

_MAP = "assignment/"
_STEPS = 5  # where each of them runs the network; a center is found again whenever its client trains
_ITERATIONS = 500
_DECIMALS = 5  # of a center: what engines differ in by rounding must not decide whether a coordinate is zero


@dataclass(frozen=True)
class MixtureSampler:
    """Draws n mixtures (n, M) from the subregion around the center; without radius, from the whole simplex."""

    endpoints: int
    radius: float | None
    released: bool
    uniform: float = 0.0
    """Probability that a mixture is from the whole simplex all the same."""

    def __call__(self, tensors: Tensors, n: int, generator: torch.Generator) -> torch.Tensor:
        """Return n mixtures (n, M)."""
        if self.radius is None:
            return sample_simplex(n, self.endpoints, generator=generator)
        sample = sample_released if self.released else sample_subregion
        inside = sample(tensors[CENTER_TENSOR].cpu(), self.radius, n, generator=generator)
        if not self.uniform:
            return inside
        anywhere = sample_simplex(n, self.endpoints, generator=generator)
        chosen = torch.rand(n, 1, generator=generator, dtype=torch.float64) < self.uniform
        return torch.where(chosen, anywhere, inside)

    def weights(self, center: torch.Tensor) -> torch.Tensor:
        """Return the mean of the mixtures drawn around a center, (M,), taking that of its subregion for the center.

        So it is inside the simplex, and with a small radius nearly so at its border.
        """
        if self.radius is None:
            return torch.full((self.endpoints,), 1 / self.endpoints, dtype=torch.float64)
        return self.uniform / self.endpoints + (1 - self.uniform) * center


def find_center(
    mixing: Mixing,
    task: Task,
    tensors: Mapping[str, torch.Tensor],
    near: torch.Tensor,
    samples: OwnSamples,
    *,
    checked: Task | None = None,
) -> torch.Tensor:
    """Return a client's center (M,) float64, the mixture of lowest loss on its training part.

    beta_k = argmin F(alpha), F(alpha) = sum_i loss(f(x_i; W(alpha)), y_i) + |alpha - 1/M|^2, started from `near`. The
    second term is a Gaussian prior, which dominates if there are few samples. If only the last layer is mixed, outputs
    are linear in alpha, and the problem is convex if the loss is. Otherwise every step runs the network, and few are
    taken.

    `checked`: with F of this task, it is 1/M unless F(1/M) - F(beta_k) > M - 1. By chance, M - 1 fitted numbers gain
    half of that on the samples they are fitted to, and lose the other half on others, if the loss is a negative
    log-likelihood (Akaike).

    Raises:
        FlocoError: the loss is not finite.
    """
    if mixing.endpoints == 1:
        return mixing.middle
    mixtures, targets = samples.mixtures(mixing, dict(tensors)), samples.targets

    def objective(judge: Task) -> Callable[[torch.Tensor], torch.Tensor]:
        return with_prior(lambda a: judge.loss(mixtures.outputs(a), targets), mixing.middle, len(targets))

    best = lowest(objective(task), near, convex=False, steps=_ITERATIONS if mixtures.linear else _STEPS)
    if checked is not None:
        fit = objective(checked)
        if len(targets) * float(fit(mixing.middle) - fit(best)) <= mixing.endpoints - 1:
            return mixing.middle
    rounded = best.round(decimals=_DECIMALS)
    return rounded / rounded.sum()


def gather_signals(mixing: Mixing, state: ServerState, updates: Sequence[Update]) -> torch.Tensor:
    """Return the updates' signals, (k, P)."""
    mixed = [state.shared[n] for n in mixing.names]
    size = sum(t.numel() for t in mixed)
    signals = torch.empty(len(updates), size, dtype=mixed[0].dtype)  # not float64: it holds all clients' signals
    for row, update in zip(signals, updates, strict=True):
        row.copy_(mixing.signal(state.shared, update.shared))
    return signals


def keep_map(made: Assignment) -> Tensors:
    """Return what a server keeps of an assignment to place others later."""
    kept = {"mean": made.mean, "components": made.components, "z": torch.tensor(made.z, dtype=torch.float64)}
    return add_prefix(kept, _MAP)


def has_map(kept: Tensors) -> bool:
    """Return whether a server's tensors hold the map of an assignment."""
    return bool(strip_prefix(kept, _MAP))


def read_map(kept: Tensors, endpoints: int, *, unit: bool) -> Assignment:
    """Return the assignment in a server's tensors, without the centers, which clients have among their own tensors."""
    known = strip_prefix(kept, _MAP)
    return Assignment(
        centers=torch.empty(0, endpoints, dtype=torch.float64),
        z=float(known["z"]),
        log_energy=0.0,  # not kept, and not needed to place
        mean=known["mean"],
        components=known["components"],
        unit=unit,
    )
