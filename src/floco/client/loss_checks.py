"""Checks of a task's loss and metrics on a network's outputs, before the first round."""

from __future__ import annotations

import math

import torch

from floco.core.errors import FlocoError
from floco.core.task import Task


def check_loss(task: Task, outputs: torch.Tensor, y: torch.Tensor) -> None:
    """Check that the task's loss is a number for these outputs, and its score tells all metrics."""
    if not bool(torch.isfinite(outputs).all()):
        raise FlocoError(
            "the model gives non-finite outputs before any training: write -1e9 instead of -inf if it masks logits, "
            "and look for a division by zero or a logarithm of zero otherwise"
        )
    where = f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(y.shape)}"
    try:
        loss, score = task.loss(outputs, y), task.score(outputs, y)
        values = task.values(score)
        mixed = not loss.ndim and _mixes_samples(task, outputs, y)
    except Exception as error:
        raise FlocoError(f"task {task.name} fails on {where}: {type(error).__name__}: {error}") from error
    if mixed:
        advice = "outputs and targets broadcast; give them one shape, e.g. outputs.reshape(targets.shape)"
        raise FlocoError(
            f"task {task.name}: its loss does not see which target belongs to which output, {where}: {advice}"
        )
    if loss.ndim or score.n < 1 or not all(v is None or isinstance(v, int | float) for v in values.values()):
        wanted = "loss must be a scalar, and all metrics numbers or None"
        raise FlocoError(f"task {task.name}, on {where}: {wanted}, got loss {tuple(loss.shape)} and {values}")


def _mixes_samples(task: Task, outputs: torch.Tensor, y: torch.Tensor) -> bool:
    """Return whether targets in another order give the same loss, though each sample's own loss differs."""
    other = y.flip(0)
    alone = [float(task.losses(outputs, t).mean()) for t in (y, other)]
    together = [float(task.loss(outputs, t)) for t in (y, other)]
    return not math.isclose(*alone, rel_tol=1e-3, abs_tol=1e-6) and math.isclose(*together, rel_tol=1e-5)
