"""One optimiser step on tensors, by torch's own functions; also for tensors that are stacked over clients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from floco.core.errors import FlocoError
from floco.core.values import Step, Tensors, Training

State = list[torch.Tensor]
"""What an optimiser keeps of its steps: of SGD the velocities, of AdamW both moments and a counter of each tensor."""

_sgd = partial(sgd, fused=True, dampening=0.0, nesterov=False, maximize=False)
_adamw = partial(adamw, fused=True, amsgrad=False, beta1=0.9, beta2=0.999, eps=1e-8, maximize=False)


def apply_gradients(
    step: Step,
    tensors: Tensors,
    gradients: Sequence[torch.Tensor],
    state: State,
    training: Training,
    *,
    stacked: bool = False,
) -> None:
    """Apply the gradients of `step.moves` and `step.coefficients` in place.

    Args:
        step: what moves, and its own settings.
        tensors: all that moves.
        gradients: of `step.moves`, then of `step.coefficients`.
        state: an empty list before the first step; it is filled and changed.
        training: the settings of the round.
        stacked: the first axis of all tensors is the client.

    Raises:
        FlocoError: the step has a momentum of its own, and the optimiser has none.
    """
    decay = training.weight_decay if step.weight_decay is None else step.weight_decay
    lr = training.lr if step.lr is None else step.lr
    for (name, (low, high)), gradient in zip(step.coefficients.items(), gradients[len(step.moves) :], strict=True):
        tensors[name].sub_(lr * gradient).clamp_(low, high)
    moved, gradients = [tensors[n] for n in step.moves], gradients[: len(step.moves)]
    if not moved:
        return
    if training.clip is not None:
        gradients = _clipped(gradients, training.clip, stacked=stacked)
    pairs = zip(moved, gradients, strict=True)
    alike = _in_order([g if g.stride() == t.stride() else torch.empty_like(t).copy_(g) for t, g in pairs])
    if training.optimizer == "adamw" and step.momentum is not None:
        raise FlocoError(
            f"a step of this method has a momentum of its own ({step.momentum}), and adamw has none: "
            'use training.optimizer = "sgd"'
        )
    if not state and training.optimizer == "adamw":
        state.extend(map(torch.zeros_like, moved * 2))
        state.extend(torch.zeros((), device=t.device) for t in moved)
    momentum = training.momentum if step.momentum is None else step.momentum
    if not state and momentum:  # without, nothing is kept
        state.extend(map(torch.zeros_like, moved))
    for factor, chosen in _by_rate(step).items():
        more: dict[str, Any] = {"weight_decay": decay, "lr": lr if factor == 1 else lr * factor}
        some, slopes, *kept = ([group[i] for i in chosen] for group in (moved, alike, *_split(state, len(moved))))
        if training.optimizer == "adamw":
            first, second, counters = kept
            _adamw(_in_order(some), slopes, _in_order(first), _in_order(second), [], counters, **more)
        else:
            velocities: list[torch.Tensor | None] = [*_in_order(kept[0])] if kept else [None] * len(some)
            _sgd(_in_order(some), slopes, velocities, momentum=momentum, **more)


def _by_rate(step: Step) -> dict[float, list[int]]:
    """Return the places of the tensors of each factor of the step size."""
    places: dict[float, list[int]] = {}
    for i, name in enumerate(step.moves):
        places.setdefault(step.rates.get(name, 1.0), []).append(i)
    return places


def _split(state: State, n: int) -> list[State]:
    """Return the velocities of n tensors, or their first moments, second moments and counters."""
    return [state[i : i + n] for i in range(0, len(state), n)]


def keep_first(state: State, clients: int) -> None:
    """Cut the state of a step on stacked tensors to the first clients; the others are done."""
    state[:] = [t[:clients] if t.ndim else t for t in state]  # counters of steps are common to all


def _clipped(gradients: Sequence[torch.Tensor], most: float, *, stacked: bool) -> list[torch.Tensor]:
    """Return the gradients, scaled down where their common norm (of each client) exceeds `most`.

    The factor is that of `torch.nn.utils.clip_grad_norm_`.
    """
    clients = len(gradients[0]) if stacked else 1
    norms = torch.stack([torch.linalg.vector_norm(g.reshape(clients, -1), dim=1) for g in gradients])
    factors = (most / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp_max(1.0)
    return [g * factors.view(-1, *(1,) * (g.ndim - 1)) if stacked else g * factors[0] for g in gradients]


def _in_order(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return dense tensors as contiguous views of their memory; the kernels copy others, at three times the cost."""
    return [t if t.is_contiguous() else t.as_strided((t.numel(),), (1,)) for t in tensors]
