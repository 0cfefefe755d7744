"""The label prior of a client: its log frequencies, in the logits that it trains on and in those of its own model."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def log_prior(counts: Sequence[int]) -> torch.Tensor:
    """Return log(1 + s (p_c C - 1)), (C,) float32, of n_c training samples of each of C classes, n in all.

    p_c = (n_c + 1) / (n + C), smoothed by one sample of each class, and s = max(0, 1 - 2 (C - 1) / chi^2) with
    chi^2 = sum_c (n_c - n / C)^2 / (n / C). Samples drawn from equally frequent classes have chi^2 = C - 1 on average;
    above twice that, frequencies are worth their C - 1 numbers (Akaike's criterion). What chance explains is not
    learned: up to there the prior is 0, to the bit, and then it grows from 0 (shrinkage after James and Stein).

    >>> log_prior((120, 4, 4)).exp()
    tensor([2.7373, 0.1314, 0.1314])
    >>> log_prior((5, 4, 3))
    tensor([0., 0., 0.])
    """
    n, classes = sum(counts), len(counts)
    sure = max(0.0, 1 - 2 * (classes - 1) * n * classes / max(1, sum((c * classes - n) ** 2 for c in counts)))
    frequent = torch.tensor([(c + 1) * classes for c in counts], dtype=torch.float64) / (n + classes)
    return (1 + sure * (frequent - 1)).log().float()


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
