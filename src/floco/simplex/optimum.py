"""The lowest point of a function on the simplex."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from floco.core.errors import FlocoError

_GAP = 1e-3  # how far the value found may be above the least one


def lowest(objective: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, *, convex: bool = True) -> torch.Tensor:
    """Return the point alpha of the simplex where `objective` is lowest, by sequential quadratic programming (Kraft 1988).

    For a convex objective f the result is certified: f(alpha) - f* <= <grad f(alpha), alpha> - min_m grad f(alpha)_m <= 1e-3
    (Frank and Wolfe 1956). Of another objective it is the point that was reached from `start`.

    Args:
        objective: a differentiable function of a point (M,) float64; a scalar.
        start: where to begin, (M,) on the simplex.
        convex: whether the objective is, so that the result can be certified.

    Raises:
        FlocoError: no such point was found.

    >>> lowest(lambda a: (a - torch.tensor([0.2, 0.9])).square().sum(), torch.tensor([0.5, 0.5])).round(decimals=4)
    tensor([0.1500, 0.8500], dtype=torch.float64)
    """
    from scipy.optimize import minimize  # here: a third of a second to import

    def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        alpha = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        value = objective(alpha)
        return float(value.detach()), torch.autograd.grad(value, alpha)[0].numpy()

    ones = np.ones(len(start))
    on_simplex = {"type": "eq", "fun": lambda a: a.sum() - 1, "jac": lambda a: ones}
    bounds = [(0.0, 1.0)] * len(start)
    found = minimize(value_and_gradient, start.double().numpy(), jac=True, method="SLSQP", bounds=bounds, constraints=on_simplex, options={"maxiter": 500, "ftol": 1e-10})
    point = np.clip(found.x, 0, 1) / np.clip(found.x, 0, 1).sum()
    value, gradient = value_and_gradient(point)
    gap = float(gradient @ point - gradient.min()) if convex else 0.0 if math.isfinite(value) else math.inf
    if not gap <= _GAP:
        raise FlocoError(f"no lowest mixture was found: {found.message} (still {gap:.2g} above the least, at most {_GAP:g} may be); are samples or logits extreme?")
    return torch.from_numpy(point)
