"""SGD on one client's data: phases, epochs and batches.

Everything here runs on one thread and depends on its arguments only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.optim.sgd import sgd

from floco.client.setup import Setup, split_batches
from floco.core.inputs import rows
from floco.core.random import global_stream, stream
from floco.core.values import Batch, Facts, Layout, Message, Phase, Predict, Step, Tensors, Training, fast_copy

_sgd = partial(sgd, fused=True, dampening=0.0, nesterov=False, maximize=False)


@dataclass(frozen=True)
class Work:
    """One client's training, in a round or before an evaluation."""

    client: str
    message: Message
    facts: Facts
    tensors: Tensors
    """Working tensors to start from."""
    phases: tuple[Phase, ...]
    samples: torch.Tensor
    """Positions of the training part, (n_train,)."""
    path: tuple[str | int, ...]
    """Path of the random streams."""

    @property
    def sizes(self) -> list[int]:
        """Batch sizes of one epoch."""
        return split_batches(len(self.samples), self.facts.training.batch_size)

    def epochs(self, phase: Phase) -> int:
        """Return the number of epochs of a phase."""
        return self.facts.training.epochs if phase.epochs is None else phase.epochs

    @property
    def steps(self) -> int:
        """Optimiser steps of all phases."""
        return sum(self.epochs(p) * len(self.sizes) * sum(s.repeat for s in p.steps) for p in self.phases)

    def orders(self, phase: Phase, seed: int) -> Iterator[torch.Tensor]:
        """Yield the order of the samples, (n_train,), for each epoch of a phase."""
        shuffle = stream(seed, *self.path, phase.name, "shuffle")
        for _ in range(self.epochs(phase)):
            yield torch.randperm(len(self.samples), generator=shuffle)

    def draws(self, phase: Phase, tensors: Tensors, seed: int) -> torch.Tensor | None:
        """Return the random numbers for all batches of a phase, (batches, ...) float32."""
        if phase.draws is None:
            return None
        generator = stream(seed, *self.path, phase.name, "draws")
        return phase.draws(tensors, self.epochs(phase) * len(self.sizes), generator).float()


def sgd_step(
    step: Step,
    predict: Predict,
    tensors: Tensors,
    velocity: list[torch.Tensor],
    draw: torch.Tensor | None,
    batch: Batch,
    training: Training,
) -> None:
    """Update `tensors[step.moves]` in place: g <- dL + correction; v <- momentum v + g + decay w; w <- w - lr v."""
    moved = [tensors[n] for n in (*step.moves, *step.coefficients)]
    loss = step.loss(predict, tensors, draw, batch)
    gradients = list(torch.autograd.grad(loss, moved, materialize_grads=True))
    with torch.no_grad():
        if step.correction is not None:
            add_correction(step, gradients, step.correction(tensors))
        apply_gradients(step, tensors, gradients, velocity, training)


def add_correction(step: Step, gradients: list[torch.Tensor], values: Tensors) -> None:
    """Add a correction to the gradients of the tensors it names."""
    for name, value in values.items():
        i = step.moves.index(name)
        gradients[i] = gradients[i] + value  # not in place: autograd may return shared or expanded tensors


def apply_gradients(
    step: Step, tensors: Tensors, gradients: Sequence[torch.Tensor], velocity: list[torch.Tensor], training: Training
) -> None:
    """Apply the gradients of `step.moves` and `step.coefficients` in place; `velocity` starts as an empty list."""
    momentum = training.momentum if step.momentum is None else step.momentum
    decay = training.weight_decay if step.weight_decay is None else step.weight_decay
    lr = training.lr if step.lr is None else step.lr
    for (name, (low, high)), gradient in zip(step.coefficients.items(), gradients[len(step.moves) :], strict=True):
        tensors[name].sub_(lr * gradient).clamp_(low, high)
    moved = [tensors[n] for n in step.moves]
    pairs = zip(moved, gradients, strict=False)  # gradients of coefficients come last
    alike = [g if g.stride() == t.stride() else torch.empty_like(t).copy_(g) for t, g in pairs]
    if not velocity:
        velocity.extend(map(torch.zeros_like, moved))
    _sgd(_in_order(moved), _in_order(alike), [*_in_order(velocity)], weight_decay=decay, momentum=momentum, lr=lr)


def _in_order(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return dense tensors as contiguous views of their memory; SGD's kernel copies others, at three times the cost."""
    return [t if t.is_contiguous() else t.as_strided((t.numel(),), (1,)) for t in tensors]


def _own_copies(tensors: Tensors, phases: Sequence[Phase], layout: Layout, device: torch.device) -> Tensors:
    """Return working tensors with copies of all that may change (trained tensors, buffers); the rest is shared."""
    moves = {name for phase in phases for step in phase.steps for name in (*step.moves, *step.coefficients)}
    mine = {n: t.to(device) for n, t in tensors.items()}
    for name in mine:
        if name in moves:
            mine[name] = fast_copy(mine[name].detach()).requires_grad_(True)
        elif name.rpartition("/")[2] in layout.buffers:
            mine[name] = mine[name].clone()
    return mine


def train_client(setup: Setup, work: Work) -> Tensors:
    """Return one client's working tensors after all phases, on the CPU."""
    if not work.phases:  # an evaluation without adaptation
        return work.tensors
    device, federation = setup.device, setup.federation
    tensors = _own_copies(work.tensors, work.phases, setup.network.layout, device)
    x, y = setup.inputs(rows(federation.x, work.samples)), federation.y[work.samples].to(device)
    predict = setup.predictor(train=True, fresh=setup.hidden_state is not None)
    for phase in work.phases:
        draws = work.draws(phase, tensors, setup.seed)
        draws = None if draws is None else draws.to(device)
        velocities: list[list[torch.Tensor]] = [[] for _ in phase.steps]
        with global_stream(setup.seed, *work.path, phase.name, "dropout", device=device):
            batches = (b for order in work.orders(phase, setup.seed) for b in order.to(device).split(work.sizes))
            for i, chosen in enumerate(batches):
                batch, draw = Batch(rows(x, chosen), y[chosen]), None if draws is None else draws[i]
                for step, velocity in zip(phase.steps, velocities, strict=True):
                    for _ in range(step.repeat):
                        sgd_step(step, predict, tensors, velocity, draw, batch, setup.training)
    return {n: t.detach().contiguous().cpu() for n, t in tensors.items()}
