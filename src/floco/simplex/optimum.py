"""Minimisation of a function on the simplex."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from floco.core.errors import FlocoError
from floco.core.random import with_gradients

_GAP = 1e-3  # largest accepted distance of the value found from the minimum


def with_prior(
    loss: Callable[[torch.Tensor], torch.Tensor], prior: torch.Tensor, n: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return loss(alpha) + |alpha - prior|^2 / n, for a mean loss over n samples.

    The second term is a Gaussian prior: it dominates if there are few samples, and loses its influence as their number
    grows.
    """
    return lambda alpha: loss(alpha) + (alpha - prior).square().sum() / n


def lowest(
    objective: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, *, convex: bool = True, steps: int = 500
) -> torch.Tensor:
    """Return a minimiser alpha of `objective` on the simplex, by sequential quadratic programming (Kraft 1988).

    For a convex objective f, the duality gap (Frank and Wolfe 1956) certifies the result:
    f(alpha) - f* <= <grad f(alpha), alpha> - min_m grad f(alpha)_m <= 1e-3.
    Otherwise it is the point reached from `start`.

    Args:
        objective: a differentiable function from points (M,) float64 to a scalar.
        start: the first iterate, (M,) on the simplex.
        convex: whether the objective is convex, and the result to be certified.
        steps: iterations at most.

    Raises:
        FlocoError: the gap is larger, or the value is not finite.

    >>> lowest(lambda a: (a - torch.tensor([0.2, 0.9])).square().sum(), torch.tensor([0.5, 0.5])).round(decimals=4)
    tensor([0.1500, 0.8500], dtype=torch.float64)
    """
    from scipy.optimize import minimize  # imported here, since it takes a third of a second

    def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        with with_gradients():
            alpha = torch.tensor(point, dtype=torch.float64, requires_grad=True)
            value = objective(alpha)
            return float(value.detach()), torch.autograd.grad(value, alpha)[0].numpy()

    on_simplex = {"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like}
    limits = {"bounds": [(0, 1)] * len(start), "constraints": on_simplex, "options": {"maxiter": steps, "ftol": 1e-10}}
    found = minimize(value_and_gradient, start.double().numpy(), jac=True, method="SLSQP", **limits)
    point = np.clip(found.x, 0, 1) / np.clip(found.x, 0, 1).sum()
    value, gradient = value_and_gradient(point)
    if not math.isfinite(value):
        raise FlocoError(
            "the loss of a mixture is not finite: the endpoints have probably diverged; try a smaller training.lr, or "
            'algorithm.step = "mixture" in place of "middle"'
        )
    gap = float(gradient @ point - gradient.min()) if convex else 0.0
    if not gap <= _GAP:
        raise FlocoError(
            f"no lowest mixture was found: {found.message} (up to {gap:.2g} above the minimum, allowed: {_GAP:g}); "
            "are samples or logits extreme?"
        )
    return torch.from_numpy(point)
