"""Training on one client's data: phases, epochs, batches and steps.

Everything here runs on one thread and depends on its arguments only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from floco.client.optimizer import State, apply_gradients
from floco.client.setup import Setup, split_batches
from floco.core.inputs import Inputs, rows, samples_size
from floco.core.random import global_stream, stream
from floco.core.values import Batch, Facts, Layout, Message, Phase, Predict, Step, Tensors, Training, fast_copy

_ONCE = 2**27  # bytes of a client's inputs that are made at once


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

    def length(self, phase: Phase) -> int:
        """Return the number of batches of a phase."""
        return phase.length(self.facts.training, len(self.sizes))

    @property
    def steps(self) -> int:
        """Optimiser steps of all phases."""
        return sum(self.length(p) * sum(s.repeat for s in p.steps) for p in self.phases)

    def orders(self, phase: Phase, seed: int) -> Iterator[torch.Tensor]:
        """Yield the order of the samples, (n_train,), for each epoch of a phase; the last may not be used up."""
        shuffle = stream(seed, *self.path, phase.name, "shuffle")
        for _ in range(math.ceil(self.length(phase) / len(self.sizes))):
            yield torch.randperm(len(self.samples), generator=shuffle)

    def draws(self, phase: Phase, tensors: Tensors, seed: int) -> torch.Tensor | None:
        """Return the random numbers for all batches of a phase, (batches, ...) float32."""
        if phase.draws is None:
            return None
        generator = stream(seed, *self.path, phase.name, "draws")
        return phase.draws(tensors, self.length(phase), generator).float()

    def changes(self, phase: Phase, seed: int) -> torch.Generator:
        """Return the generator of the random changes of a phase's batches, on the CPU."""
        return stream(seed, *self.path, phase.name, "augment")


def sgd_step(
    step: Step,
    predict: Predict,
    tensors: Tensors,
    state: State,
    draw: torch.Tensor | None,
    batch: Batch,
    training: Training,
) -> None:
    """Update `tensors[step.moves]` in place, from the gradient g = dL + correction.

    SGD: v <- momentum v + g + decay w; w <- w - lr v. AdamW: w <- (1 - lr decay) w - lr m / (sqrt(v) + eps).
    """
    moved = [tensors[n] for n in (*step.moves, *step.coefficients)]
    loss = step.loss(predict, tensors, draw, batch)
    gradients = list(torch.autograd.grad(loss, moved, materialize_grads=True))
    with torch.no_grad():
        if step.correction is not None:
            add_correction(step, gradients, step.correction(tensors))
        apply_gradients(step, tensors, gradients, state, training)


def add_correction(step: Step, gradients: list[torch.Tensor], values: Tensors) -> None:
    """Add a correction to the gradients of the tensors it names."""
    for name, value in values.items():
        i = step.moves.index(name)
        gradients[i] = gradients[i] + value  # not in place: autograd may return shared or expanded tensors


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


def _reader(setup: Setup, samples: torch.Tensor) -> Callable[[torch.Tensor], Inputs]:
    """Return a function from positions in a client's training part to network inputs, on the device.

    Inputs are made once for all, or batch by batch for a client whose samples are many.
    """
    x = setup.federation.x
    if samples_size(x, len(samples)) > _ONCE:
        return lambda chosen: setup.inputs(rows(x, samples[chosen.cpu()]))
    inputs = setup.inputs(rows(x, samples))
    return lambda chosen: rows(inputs, chosen)


def train_client(setup: Setup, work: Work) -> Tensors:
    """Return one client's working tensors after all phases, on the CPU."""
    if not work.phases:  # an evaluation without adaptation
        return work.tensors
    device, federation = setup.device, setup.federation
    tensors = _own_copies(work.tensors, work.phases, setup.network.layout, device)
    read, y = _reader(setup, work.samples), setup.training_targets(work.client, work.samples).to(device)
    predict = setup.predictor(train=True, fresh=setup.hidden_state is not None)
    for phase in work.phases:
        draws = work.draws(phase, tensors, setup.seed)
        draws, generator = None if draws is None else draws.to(device), work.changes(phase, setup.seed)
        states: list[State] = [[] for _ in phase.steps]
        with global_stream(setup.seed, *work.path, phase.name, "dropout", device=device):
            batches = (b for order in work.orders(phase, setup.seed) for b in order.to(device).split(work.sizes))
            for i, chosen in enumerate(islice(batches, work.length(phase))):
                x = read(chosen)
                if federation.augment is not None:
                    x = federation.augment(x, generator)
                batch, draw = Batch(x, y[chosen], chosen), None if draws is None else draws[i]
                for step, state in zip(phase.steps, states, strict=True):
                    for _ in range(step.repeat):
                        sgd_step(step, predict, tensors, state, draw, batch, work.facts.training)
    return {n: t.detach().contiguous().cpu() for n, t in tensors.items()}


def rate_head(setup: Setup, phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """Return phases that train the head, shared or a client's own, with `training.head_lr`."""
    training, head = setup.training, setup.network.layout.head
    if training.head_lr is None:
        return tuple(phases)
    factor, made = training.head_lr / training.lr, []
    for phase in phases:
        rates = [{n: factor for n in s.moves if n.rpartition("/")[2] in head} for s in phase.steps]
        steps = tuple(replace(s, rates=r) for s, r in zip(phase.steps, rates, strict=True))
        made.append(replace(phase, steps=steps))
    return tuple(made)
