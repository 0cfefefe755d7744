"""Doubts about the operation that ends a network: outputs of another kind than the task's loss takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def batch_of(shape: Sequence[int]) -> str:
    """Return the shape of a batch of n samples in words.

    >>> batch_of((3, 8))
    '(n, 3, 8)'
    """
    return f"({', '.join(['n', *map(str, shape)])})"


def doubt_probabilities(outputs: torch.Tensor, operation: str, applied: str) -> str:
    """Return a warning if outputs look like probabilities where a loss takes logits; "" if they do not.

    Args:
        outputs: of the model, (n, C, ...).
        operation: autograd's name of the operation that gives them.
        applied: what the loss applies itself, softmax or sigmoid.
    """
    end = _ends_in(outputs, operation)
    return end and (
        f"the model's outputs look like those of a {end}: the loss is the cross-entropy of logits, which applies a "
        f"{applied} itself: training is slow and the loss wrong; leave the {end} at the end of the model out"
    )


def _ends_in(outputs: torch.Tensor, operation: str) -> str:
    if outputs.min() < 0 or torch.equal(outputs, outputs[:1].expand_as(outputs)):
        return ""
    total = outputs.sum(1)
    if outputs.shape[1] > 1 and torch.allclose(total, torch.ones_like(total), atol=1e-3):
        return "softmax"
    return "sigmoid" if outputs.max() <= 1 and operation == "SigmoidBackward0" else ""


_POSITIVE = {
    "ReluBackward0": "relu",
    "SoftplusBackward0": "softplus",
    "SigmoidBackward0": "sigmoid",
    "ExpBackward0": "exp",
}


def doubt_positive(operation: str) -> str:
    """Return a warning if the operation that gives a regression's outputs gives no negative ones; "" otherwise."""
    end = _POSITIVE.get(operation, "")
    return end and (
        f"the model ends in a {end}, and learns standardised targets, which are below 0 as often as above: it would "
        f"predict nothing below their mean; leave the {end} out, or set task.mean = [0] and task.std = [1]"
    )
