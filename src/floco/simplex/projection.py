"""Euclidean projection onto a scaled simplex."""

from __future__ import annotations

import torch

from floco.core.errors import FlocoError


def project(points: torch.Tensor, total: float = 1.0) -> torch.Tensor:
    """Return the nearest point of {b >= 0, sum b = total} to each row.

    b = max(p - theta, 0), with theta such that sum b = total, found by sorting (Duchi et al., ICML 2008, figure 1).

    Args:
        points: (K, M), floating.
        total: the sum z of each result, > 0.

    Returns:
        (K, M), same dtype.

    Raises:
        FlocoError: points are not finite or not of shape (K, M), or total is not positive.

    >>> project(torch.tensor([[0.5, 0.5], [2.0, 0.0]]))
    tensor([[0.5000, 0.5000],
            [1.0000, 0.0000]])
    """
    if points.ndim != 2 or points.shape[1] == 0 or not points.is_floating_point():
        given = f"{tuple(points.shape)} {points.dtype}"
        raise FlocoError(f"points must be floating, of shape (K, M) with M >= 1, got {given}")
    if not bool(torch.isfinite(points).all()):
        raise FlocoError("points must be finite")
    if not total > 0:
        raise FlocoError(f"total must be positive, got {total}")
    points = points - points.max(dim=1, keepdim=True).values  # does not change the result, and keeps sums small
    ordered = points.sort(dim=1, descending=True).values  # (K, M)
    counts = torch.arange(1, points.shape[1] + 1, dtype=points.dtype)
    theta = (ordered.cumsum(dim=1) - total) / counts  # (K, M)
    support = (ordered > theta).sum(dim=1, keepdim=True)  # (K, 1), at least 1
    return (points - theta.gather(1, support - 1)).clamp_min(0)
