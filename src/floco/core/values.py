"""The values sent between server, client and engine, and the phases and steps of a client's training.

A client trains on *working tensors*, one flat dictionary: the shared network under its own names (`conv1.weight`),
anything else under a prefix (`personal/conv1.weight`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from floco.core.combined import Combined as Combined
from floco.core.inputs import Inputs
from floco.core.task import Task
from floco.core.training import Training as Training

Tensors = dict[str, torch.Tensor]
Lazy = Mapping[str, torch.Tensor]
"""Tensors that may be in a file, and are in memory when they are asked for."""
Predict = Callable[[Mapping[str, torch.Tensor], Inputs], torch.Tensor]
"""`predict(tensors, x)`: the network's outputs (B, ...) for inputs x (B, ...) with these parameters and buffers."""
Purpose = Literal["train", "probe", "evaluate"]
"""What a client is asked to do. A probe trains as usual, but for its signal only: it is not averaged and not kept."""

Row = dict[str, int | float | str | None]
"""One line of a CSV file; None is an empty cell."""


class Batch(NamedTuple):
    """Inputs x (B, ...) and targets y (B, ...) of one step, and their positions (B,) in the client's training part."""

    x: Inputs
    y: torch.Tensor
    at: torch.Tensor | None = None


Loss = Callable[[Predict, Tensors, torch.Tensor | None, Batch], torch.Tensor]
"""`loss(predict, tensors, draw, batch)`: a scalar; `draw` is the batch's row of the phase's random numbers."""


@dataclass(frozen=True)
class Step:
    """One optimiser step on a batch, with g = d loss / d tensors[moves] (+ correction), clipped to `training.clip`."""

    loss: Loss
    moves: tuple[str, ...]
    correction: Callable[[Tensors], Tensors] | None = None
    """Added to the gradient of the tensors it names, e.g. Ditto's `lambda (v - w_t)`."""
    lr: float | None = None
    """None: `training.lr`. A constant: `training.schedule` multiplies it, too, by the round's factor."""
    momentum: float | None = None
    """None: `training.momentum`. A step with one of its own is of SGD: it is refused under another optimiser."""
    weight_decay: float | None = None
    """None: `training.weight_decay`."""
    repeat: int = 1
    coefficients: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Tensors trained by plain steps, `lr` times their gradient, and the range they are clamped to.

    E.g. APFL's mixing weight. There is no momentum, decay or clipping, whatever the optimiser.
    """
    rates: Mapping[str, float] = field(default_factory=dict)
    """Factors of the step size of single tensors: set from `training.head_lr`, whatever the method."""


@dataclass(frozen=True)
class Phase:
    """Some epochs over a client's training part, or some batches of it; `name` keys its random streams."""

    name: str
    steps: tuple[Step, ...]
    epochs: int | None = None
    """None: `training.steps` batches if that is set, else `training.epochs` epochs."""
    draws: Callable[[Tensors, int, torch.Generator], torch.Tensor] | None = None
    """`draws(tensors, n, generator)`: random numbers for all n batches, (n, ...), drawn before the first."""
    batches: int | None = None
    """Number of batches, over as many epochs as that takes; None: `epochs` says."""

    def length(self, training: Training, batches: int) -> int:
        """Return the number of batches that the phase takes, for a client with `batches` per epoch."""
        if self.batches is not None:
            return self.batches
        if self.epochs is not None:
            return self.epochs * batches
        return training.steps or training.epochs * batches


@dataclass(frozen=True)
class Layout:
    """Names of a network's tensors."""

    parameters: tuple[str, ...]
    """Trainable parameters, tied ones once."""
    buffers: tuple[str, ...]
    """Persistent buffers."""
    last: str | None
    """The weight of the linear layer that gives the logits; None if there is none, or if it is not trained."""
    head: tuple[str, ...] = ()
    """The trained ones among weight and bias of that layer."""
    norms: tuple[str, ...] = ()
    """Trained parameters and persistent buffers of normalisation layers."""

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters, then all buffers."""
        return (*self.parameters, *self.buffers)


@dataclass(frozen=True)
class Facts:
    """What an algorithm may know of a client and its federation, apart from tensors."""

    layout: Layout
    training: Training
    """Its `lr` is that of the round; in an evaluation it is as set, without schedule."""
    n_train: int
    """0 where the global model is built, which is no client's; so are label counts and batches."""
    label_counts: tuple[int, ...]
    """Training samples by class; () for a task without classes."""
    batches: int
    """Batches per epoch."""
    task: Task
    """What is learned: its loss, and its metrics."""

    def steps(self, phases: Sequence[Phase]) -> int:
        """Return the client's optimiser steps in some phases."""
        return sum(p.length(self.training, self.batches) * sum(s.repeat for s in p.steps) for p in phases)


@dataclass(frozen=True)
class ServerState:
    """The state of the server after `round` rounds (0: before the first)."""

    shared: Tensors
    """Sent to every client: parameters (stacked endpoints, (M, ...)) and buffers."""
    kept: Tensors = field(default_factory=dict)
    """Never sent, e.g. the map that places late clients."""
    by_client: Mapping[str, Tensors] = field(default_factory=dict)
    """Tensors per client, e.g. its center; sent to that client only."""
    round: int = 0


@dataclass(frozen=True)
class Message:
    """What the server sends to one client in round `round` (counted from 1; for an evaluation, the last one done)."""

    round: int
    purpose: Purpose
    shared: Tensors
    own: Tensors = field(default_factory=dict)
    """The server's tensors for this client, e.g. its center: `ServerState.by_client`."""

    @property
    def task(self) -> Purpose:
        """The same as `purpose`, under the name that methods of the first version use."""
        return self.purpose


@dataclass(frozen=True)
class Update:
    """What a client sends back: new shared tensors, averaged with `weight` (sample count) if the purpose is `train`."""

    client: str
    purpose: Purpose
    weight: int
    shared: Lazy
    extra: Lazy = field(default_factory=dict)
    """For the method's own `aggregate`, e.g. SCAFFOLD's change of c_i."""

    @property
    def task(self) -> Purpose:
        """The same as `purpose`, under the name that methods of the first version use."""
        return self.purpose


class ClientInfo(NamedTuple):
    """What the server knows of a client."""

    id: str
    n_train: int
    n_test: int


class Selection(NamedTuple):
    """The clients that train in a round, and those that only probe: their updates give signals, no average."""

    train: tuple[str, ...]
    probe: tuple[str, ...] = ()


class Models(NamedTuple):
    """Network tensors of the global and the personal model (or several networks); None where a method has none.

    Tensors common to both models are the same objects.
    """

    global_: Tensors | None
    personal: Tensors | Combined | None


def strip_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    """Return the tensors whose names start with `prefix`, with the prefix removed."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def add_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    """Return the tensors with `prefix` added to each name."""
    return {prefix + name: t for name, t in tensors.items()}


def fast_copy(t: torch.Tensor) -> torch.Tensor:
    """Return a copy in the memory format in which convolutions are fastest: channels last for 4-d tensors.

    Every path to a network's weights goes through here: another format selects another kernel, with other bits.
    """
    return t.clone(memory_format=torch.channels_last if t.ndim == 4 else torch.contiguous_format)


PERSONAL = "personal/"
"""Prefix of a second network, which stays on the client."""


def personalize(loss: Loss) -> Loss:
    """Return the loss evaluated on the client's own network, the tensors under `PERSONAL`."""
    return lambda predict, tensors, draw, batch: loss(predict, strip_prefix(tensors, PERSONAL), draw, batch)


RECEIVED = "received/"
"""Prefix of the parameters as received in this round, w_t."""


def pull(names: Sequence[str], strength: float, prefix: str = "") -> Callable[[Tensors], Tensors] | None:
    """Return the correction `strength * (w - w_t)` for the parameters `prefix + names`; None if `strength` is 0.

    The working tensors must contain w_t under `RECEIVED`.
    """
    if not strength:
        return None
    return lambda tensors: {prefix + n: strength * (tensors[prefix + n] - tensors[RECEIVED + n]) for n in names}


def plain_loss(task: Task) -> Loss:
    """Return the task's loss of the shared network."""

    def loss(predict: Predict, tensors: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
        return task.loss(predict(tensors, batch.x), batch.y)

    return loss
