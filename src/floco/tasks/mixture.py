"""Means of predicted distributions over classes, and training on samples with weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from floco.tasks.classification import Classification
from floco.tasks.prior import add_prior


@dataclass(frozen=True)
class MeanPrediction:
    """The mean of several networks' probabilities, sum_m pi_m softmax(z_m), as logits: its log."""

    weights: tuple[float, ...]
    """pi, which sum to 1."""

    def __call__(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the log of the mean, (n, C), from logits (n, C) of each network."""
        each = torch.stack([z.double().log_softmax(dim=1) for z in outputs])
        weights = torch.tensor(self.weights, dtype=torch.float64).view(-1, 1, 1)
        return (each + weights.log()).logsumexp(dim=0).to(outputs[0].dtype)


def sample_losses(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each sample (n,), for targets with or without a client's prior."""
    outputs, targets = add_prior(outputs, targets)
    return cross_entropy(outputs, targets, reduction="none")


def weighted_loss(
    task: Classification, outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the mean of the samples' training losses times weights (n,); with weights of 1 it is `task.loss`."""
    outputs, targets = add_prior(outputs, targets)
    given = None if isinstance(task.class_weights, str) else outputs.new_tensor(task.class_weights)
    found = cross_entropy(outputs, targets, given, reduction="none", label_smoothing=task.label_smoothing)
    total = len(targets) if given is None else given[targets].sum()
    return (found * weights).sum() / total
