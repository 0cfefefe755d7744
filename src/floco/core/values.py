"""The values that travel between server, client and engine, and what a client's training consists of.

A client trains on *working tensors*: one flat dictionary. The shared network has its own names in it (`conv1.weight`),
anything else lives under a prefix (`personal/conv1.weight`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch.nn.functional import cross_entropy

from floco.core.settings import Settings, setting

Tensors = dict[str, torch.Tensor]
Predict = Callable[[Mapping[str, torch.Tensor], torch.Tensor], torch.Tensor]
"""`predict(tensors, x)`: the network's logits (B, C) for inputs x (B, ...), with `tensors` in place of its own values."""
Task = Literal["train", "probe", "evaluate"]


Row = dict[str, int | float | str | None]
"""One line of a CSV file; None is an empty cell."""

PADDED = -100
"""The label of a sample that only fills up a batch: `cross_entropy` leaves it out. A loss that would count it is never given one."""


class Batch(NamedTuple):
    """Inputs x (B, ...) and labels y (B,) of one step."""

    x: torch.Tensor
    y: torch.Tensor


Loss = Callable[[Predict, Tensors, torch.Tensor | None, Batch], torch.Tensor]
"""`loss(predict, tensors, draw, batch)`: a scalar; `draw` is this step's row of the phase's random numbers."""


@dataclass(frozen=True)
class Step:
    """One SGD step on a batch: g = d loss / d tensors[moves] (+ correction), then momentum, weight decay and `lr`."""

    loss: Loss
    moves: tuple[str, ...]
    correction: Callable[[Tensors], Tensors] | None = None
    """Added to the gradient of the tensors it names, e.g. Ditto's `lambda (v - w_t)`."""
    lr: float | None = None
    """None: `training.lr`."""
    momentum: float | None = None
    """None: `training.momentum`."""
    weight_decay: float | None = None
    """None: `training.weight_decay`."""
    repeat: int = 1
    coefficients: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Tensors that move along without momentum and decay, and the range in which they stay, e.g. APFL's mixing weight."""


@dataclass(frozen=True)
class Phase:
    """Some epochs over a client's training part; the name keys its random streams."""

    name: str
    steps: tuple[Step, ...]
    epochs: int | None = None
    """None: `training.epochs`."""
    draws: Callable[[Tensors, int, torch.Generator], torch.Tensor] | None = None
    """`draws(tensors, n_steps, generator)`: the random numbers of all steps, (n_steps, ...), made before the first."""


@dataclass(frozen=True)
class Training(Settings):
    """How long and how clients train: the same for every algorithm."""

    rounds: int = setting(100, "communication rounds", low=1)
    fraction: float = setting(0.5, "share of the clients that train in a round", above=0, high=1)
    epochs: int = setting(1, "local epochs a round", low=1)
    batch_size: int = setting(16, "samples a step", low=1)
    lr: float = setting(0.05, "step size of SGD", above=0)
    momentum: float = setting(0.5, "momentum of SGD, fresh each round", low=0, below=1)
    weight_decay: float = setting(0.0005, "L2 decay, added to the gradient of every trained tensor", low=0)
    precision: str = setting("float32", "arithmetic of the network; tensors stay float32", choices=("float32", "bf16"))
    buffers: str = setting("average", "floating buffers (BatchNorm): averaged, or kept on each client", choices=("average", "local"))


@dataclass(frozen=True)
class Layout:
    """Names of a network's tensors: trainable parameters (tied ones once), persistent buffers, and the weight of the linear layer that gives the logits."""

    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    last: str | None
    head: tuple[str, ...] = ()
    """Weight and bias of the linear layer that gives the logits, as far as they are trained."""


@dataclass(frozen=True)
class Facts:
    """What an algorithm may know of a client and its federation besides tensors."""

    layout: Layout
    training: Training
    n_train: int
    label_counts: tuple[int, ...]
    batches: int
    """Steps of an epoch."""


@dataclass(frozen=True)
class ServerState:
    """All that the server knows after `round` rounds (0: none)."""

    shared: Tensors
    """What every client receives: parameters (endpoints stacked, (M, ...)) and buffers."""
    kept: Tensors = field(default_factory=dict)
    """What stays at the server, e.g. the map that places late clients."""
    by_client: Mapping[str, Tensors] = field(default_factory=dict)
    """What the server knows of single clients, e.g. their centers; sent to that client only."""
    round: int = 0


@dataclass(frozen=True)
class Message:
    """What travels to one client in round `round` (counted from 1)."""

    round: int
    task: Task
    shared: Tensors
    own: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """What travels back: new values of shared tensors, averaged with `weight` (sample count) if the task was `train`."""

    client: str
    task: Task
    weight: int
    shared: Tensors
    extra: Tensors = field(default_factory=dict)


class Selection(NamedTuple):
    """The clients that train in a round, and those that only deliver a signal."""

    train: tuple[str, ...]
    probe: tuple[str, ...] = ()


class Models(NamedTuple):
    """Network tensors of the global and of the personal model; None where a method has none.

    Tensors of a body that both share are the same objects.
    """

    global_: Tensors | None
    personal: Tensors | None


def under(tensors: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    """Return the tensors below `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def prefixed(tensors: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    """Return the tensors with `prefix` put before each name."""
    return {prefix + name: t for name, t in tensors.items()}


def fast_copy(t: torch.Tensor) -> torch.Tensor:
    """Return a copy in the memory order in which convolutions are fastest.

    All ways to a network's weights pass here: another order is another kernel, and other bits.
    """
    return t.clone(memory_format=torch.channels_last if t.ndim == 4 else torch.contiguous_format)


OWN = "personal/"
"""Prefix of a second network that a client keeps to itself."""


def personally(loss: Loss) -> Loss:
    """Return the loss of the client's own network, the tensors under `OWN`."""
    return lambda predict, tensors, draw, batch: loss(predict, under(tensors, OWN), draw, batch)


RECEIVED = "received/"
"""Prefix of the parameters as they were received in this round, w_t."""


def pull(names: Sequence[str], strength: float, prefix: str = "") -> Callable[[Tensors], Tensors] | None:
    """Return the correction `strength * (w - w_t)` for the parameters `prefix + names`; None for no strength.

    Working tensors must hold w_t under `RECEIVED`.
    """
    if not strength:
        return None
    return lambda tensors: {prefix + n: strength * (tensors[prefix + n] - tensors[RECEIVED + n]) for n in names}


def weighted_mean(updates: Sequence[Update]) -> Tensors:
    """Return the mean of the updates' shared tensors, weighted by sample count: `sum_k n_k w_k / sum_k n_k`.

    Sums run in float64 in the order given. Integer tensors (counters in buffers) come from the first update.
    """
    total = float(sum(u.weight for u in updates))
    mean: Tensors = {}
    for name, first in updates[0].shared.items():
        if not first.is_floating_point():
            mean[name] = first
            continue
        acc = torch.zeros(first.shape, dtype=torch.float64)
        for u in updates:
            acc.add_(u.shared[name], alpha=u.weight / total)
        mean[name] = acc.to(first.dtype)
    return mean


def plain_loss(predict: Predict, tensors: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
    """Return the cross-entropy of the shared network."""
    return cross_entropy(predict(tensors, batch.x), batch.y)


def averaged(state: ServerState, updates: Sequence[Update]) -> ServerState:
    """Return the state one round on, its shared tensors replaced by the weighted mean of those who trained."""
    trained = [u for u in updates if u.task == "train"]
    return replace(state, shared={**state.shared, **weighted_mean(trained)}, round=state.round + 1)
