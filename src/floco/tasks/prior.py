"""The label prior of a client: its log frequencies, in the logits that it trains on and in those of its own model."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def log_prior(counts: Sequence[int]) -> torch.Tensor:
    """Return log((n_c + 1) C / (n + C)), (C,) float32, of n_c training samples of each of C classes, n in all.

    It is smoothed by one sample of each class, and 0, to the bit, where all classes are equally frequent.
    """
    n, classes = sum(counts), len(counts)
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
