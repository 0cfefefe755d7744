"""A client's label prior: log frequencies that are more than chance, in its training's and its own model's logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def log_prior(counts: Sequence[int]) -> torch.Tensor:
    """Return log((n_c + 1) C / (n + C)), (C,) float32, of n_c training samples of each of C classes, n in all.

    It is smoothed by one sample of each class, and 0, to the bit, where chance explains the counts:
    chi^2 = sum_c (n_c - n / C)^2 / (n / C) <= 2 (C - 1). Samples drawn from equally frequent classes have C - 1 on
    average; above twice that, frequencies are worth their C - 1 numbers (Akaike's criterion, as for centers).

    >>> log_prior((9, 0)).exp()
    tensor([1.8182, 0.1818])
    >>> log_prior((6, 4))
    tensor([0., 0.])
    """
    n, classes = sum(counts), len(counts)
    if sum((c * classes - n) ** 2 for c in counts) <= 2 * (classes - 1) * n * classes:
        return torch.zeros(classes)
    return (torch.tensor([(c + 1) * classes for c in counts], dtype=torch.float64) / (n + classes)).log().float()


def join_prior(targets: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """Return class numbers (n,) and a prior (C,) as one tensor (n, 1 + C) float32, exact up to 2**24 classes.

    So a target carries its client's prior into every engine, also where clients are stacked.
    """
    return torch.cat([targets[:, None].float(), prior.to(targets.device).expand(len(targets), -1)], dim=1)


def add_prior(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (n, C) with the prior that targets carry, if any, and class numbers (n,)."""
    if targets.ndim == 1:
        return outputs, targets
    return outputs + targets[:, 1:].to(outputs.dtype), targets[:, 0].long()
