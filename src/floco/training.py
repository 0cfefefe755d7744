"""What one client does in a round: its phases of SGD, and the evaluation of its models.

Everything here runs in one process on one thread and depends on its arguments only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch.func import functional_call

from floco.contract import Algorithm
from floco.errors import FlocoError
from floco.federation import Federation
from floco.metrics import Score, score
from floco.network import Network
from floco.streams import derive, global_stream, stream
from floco.values import Batch, Facts, Layout, Message, Models, Phase, Predict, Step, Tensors, Training, Update, fast_copy, prefixed, under

_CHUNK = 500  # samples a forward pass in evaluation: fixed, so that results do not depend on the engine
_PARTS = 8  # jobs into which the global test part is cut, likewise
_BUFFERS = "buffers/"  # where a client's memory keeps its own buffers


@dataclass(frozen=True)
class Setup:
    """All that is fixed during a run."""

    federation: Federation
    network: Network
    algorithm: Algorithm
    training: Training
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def facts(self, client: str) -> Facts:
        """Return what the algorithm may know of `client`."""
        train = self.federation.client(client).train
        return Facts(self.network.layout, self.training, len(train), self.federation.label_counts(train), len(batch_sizes(len(train), self.training.batch_size)))

    @property
    def local_buffers(self) -> bool:
        """Whether clients keep floating buffers to themselves."""
        return self.training.buffers == "local" and bool(self.network.layout.buffers)


class Scores(NamedTuple):
    """Metrics of a client's two models on its own test part; None where the method has no such model."""

    global_: Score | None
    personal: Score | None


def predictor(network: Network, training: Training, device: torch.device, *, train: bool) -> Predict:
    """Return `predict(tensors, x)` for a network, in training or evaluation mode."""
    names = network.layout.parameters + network.layout.buffers
    module = network.module.to(device).train(train)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16")

    def predict(tensors: Tensors, x: torch.Tensor) -> torch.Tensor:
        with autocast:
            logits: torch.Tensor = functional_call(module, {n: tensors[n] for n in names}, (x,))
        return logits.float()

    return predict  # type: ignore[return-value]


def batch_sizes(n: int, batch_size: int) -> list[int]:
    """Return the sizes of one epoch's batches. A last batch of one sample joins the one before: BatchNorm needs two."""
    sizes = [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)
    if len(sizes) > 1 and sizes[-1] == 1 < batch_size:
        sizes[-2:] = [batch_size + 1]
    return sizes


def optimiser_steps(setup: Setup, client: str, phases: Sequence[Phase]) -> int:
    """Return how many gradient steps the phases take on a client's training part."""
    batches = setup.facts(client).batches
    return sum((setup.training.epochs if p.epochs is None else p.epochs) * batches * sum(s.repeat for s in p.steps) for p in phases)


def sgd_step(step: Step, predict: Predict, tensors: Tensors, velocity: list[torch.Tensor], draw: torch.Tensor | None, batch: Batch, training: Training) -> None:
    """Move `tensors[step.moves]` in place: g <- dL + correction + decay * w; v <- momentum * v + g; w <- w - lr * v."""
    momentum = training.momentum if step.momentum is None else step.momentum
    decay = training.weight_decay if step.weight_decay is None else step.weight_decay
    moved = [tensors[n] for n in step.moves]
    loss = step.loss(predict, tensors, draw, batch)
    found = torch.autograd.grad(loss, moved + [tensors[n] for n in step.coefficients], materialize_grads=True)
    gradients = list(found[: len(moved)])
    lr = training.lr if step.lr is None else step.lr
    with torch.no_grad():
        for (name, (low, high)), gradient in zip(step.coefficients.items(), found[len(moved) :], strict=True):
            tensors[name].sub_(lr * gradient).clamp_(low, high)
        # Nothing is added in place before `velocity`: autograd may return one tensor for two inputs, or an expanded one.
        if step.correction is not None:
            for name, value in step.correction(tensors).items():
                i = step.moves.index(name)
                gradients[i] = gradients[i] + value
        if decay:
            gradients = list(torch._foreach_add(gradients, moved, alpha=decay))
        if momentum:
            if velocity:
                torch._foreach_mul_(velocity, momentum)
                torch._foreach_add_(velocity, gradients)
            else:
                velocity.extend(g.clone() for g in gradients)
            gradients = velocity
        torch._foreach_add_(moved, gradients, alpha=-lr)


def _own_copies(tensors: Tensors, phases: Sequence[Phase], layout: Layout, device: torch.device) -> Tensors:
    """Return working tensors in which all that may change (moved parameters, buffers) is copied, the rest shared."""
    moves = {name for phase in phases for step in phase.steps for name in (*step.moves, *step.coefficients)}
    mine = {n: t.to(device) for n, t in tensors.items()}
    for name in mine:
        if name in moves:
            mine[name] = fast_copy(mine[name].detach()).requires_grad_(True)
        elif name.rpartition("/")[2] in layout.buffers:
            mine[name] = mine[name].clone()
    return mine


def run_phases(setup: Setup, phases: Sequence[Phase], tensors: Tensors, indices: torch.Tensor, path: tuple[str | int, ...]) -> Tensors:
    """Return the working tensors after all phases over the samples `indices`; `path` names the random streams."""
    if not phases:
        return tensors
    training, device = setup.training, setup.device
    tensors = _own_copies(tensors, phases, setup.network.layout, device)
    x, y = fast_copy(setup.federation.inputs(indices).to(device)), setup.federation.y[indices].to(device)
    predict = predictor(setup.network, training, device, train=True)
    sizes = batch_sizes(len(y), training.batch_size)
    for phase in phases:
        epochs = training.epochs if phase.epochs is None else phase.epochs
        draws = None if phase.draws is None else phase.draws(tensors, epochs * len(sizes), stream(setup.seed, *path, phase.name, "draws")).float().to(device)
        shuffle = stream(setup.seed, *path, phase.name, "shuffle")
        velocities: list[list[torch.Tensor]] = [[] for _ in phase.steps]
        with global_stream(setup.seed, *path, phase.name, "dropout", device=device):
            for epoch in range(epochs):
                order = torch.randperm(len(y), generator=shuffle).to(device)
                for i, chosen in enumerate(order.split(sizes)):
                    draw = None if draws is None else draws[epoch * len(sizes) + i]
                    batch = Batch(x[chosen], y[chosen])
                    for step, velocity in zip(phase.steps, velocities, strict=True):
                        for _ in range(step.repeat):
                            sgd_step(step, predict, tensors, velocity, draw, batch, training)
    return {n: t.detach().contiguous().cpu() for n, t in tensors.items()}


def _received(setup: Setup, client: str, message: Message, memory: Tensors | None) -> tuple[Message, Tensors]:
    """Return the message and the memory as the algorithm sees them: a client's own buffers in place of the received."""
    memory = memory or {}
    kept = under(memory, _BUFFERS)
    own = {n: t for n, t in memory.items() if not n.startswith(_BUFFERS)}
    return replace(message, shared={**message.shared, **kept}), own or setup.algorithm.start(setup.network, seed=derive(setup.seed, "start", client))


def train(setup: Setup, client: str, message: Message, memory: Tensors | None) -> tuple[Update, Tensors]:
    """Return a client's update and its new memory, given the old one (None: it has never trained); a probe changes none.

    Raises:
        FlocoError: a tensor came out not finite.
    """
    message, memory = _received(setup, client, message, memory)
    facts = setup.facts(client)
    tensors = setup.algorithm.begin(message, memory, facts)
    path = ("train", message.round, client)
    tensors = run_phases(setup, setup.algorithm.phases(message, facts), tensors, setup.federation.client(client).train, path)
    update, memory = setup.algorithm.finish(tensors, message, client, facts)
    if setup.local_buffers and message.task == "train":
        sent = update.shared
        floating = [b for b in setup.network.layout.buffers if b in sent and sent[b].is_floating_point()]
        update = replace(update, shared={n: t for n, t in update.shared.items() if n not in floating})
        memory = {**memory, **prefixed({b: sent[b] for b in floating}, _BUFFERS)}
    for name, tensor in {**update.shared, **update.extra, **memory}.items():
        if not bool(torch.isfinite(tensor).all()):
            raise FlocoError(f"training gave a non-finite {name}; try a smaller training.lr (got {setup.training.lr})")
    return update, memory if message.task == "train" else {}


def models(setup: Setup, client: str, message: Message, memory: Tensors | None) -> Models:
    """Return the network tensors of a client's global and personal model, after its adaptation if the method has one."""
    message, memory = _received(setup, client, message, memory)
    facts = setup.facts(client)
    tensors = setup.algorithm.begin(message, memory, facts)
    tensors = run_phases(setup, setup.algorithm.adapt(facts), tensors, setup.federation.client(client).train, ("adapt", message.round, client))
    return setup.algorithm.models(tensors, facts)


def global_model(setup: Setup, message: Message) -> Tensors | None:
    """Return the network tensors of the server's global model, None if the method has none, or if buffers stay local."""
    facts = Facts(setup.network.layout, setup.training, 0, (0,) * setup.federation.classes, 0)
    tensors = setup.algorithm.begin(message, setup.algorithm.start(setup.network, seed=setup.seed), facts)
    return None if setup.local_buffers else setup.algorithm.models(tensors, facts).global_


@torch.no_grad()
def logits(setup: Setup, tensors: Tensors, x: torch.Tensor) -> torch.Tensor:
    """Return the logits (n, C) of raw samples x (n, ...) under the network tensors, on the CPU."""
    predict = predictor(setup.network, setup.training, setup.device, train=False)
    placed = {n: fast_copy(t.detach().to(setup.device)) for n, t in tensors.items()}
    parts = [predict(placed, fast_copy(setup.federation.normalization(part).to(setup.device))).cpu() for part in x.split(_CHUNK)]
    return torch.cat(parts)


def check_model(setup: Setup) -> None:
    """Raise if the network does not give one logit a class for the federation's inputs."""
    federation, network = setup.federation, setup.network
    x = federation.x[:2]
    try:
        found = logits(setup, {**network.parameters, **network.buffers}, x)
    except Exception as error:
        raise FlocoError(f"the model fails on inputs of shape {tuple(x.shape)}: {error}") from error
    if found.shape != (len(x), federation.classes):
        raise FlocoError(f"for {len(x)} inputs and {federation.classes} classes the model must give logits of shape {(len(x), federation.classes)}, got {tuple(found.shape)}")


def evaluate(setup: Setup, client: str, message: Message, memory: Tensors | None) -> Scores:
    """Return the metrics of a client's two models on its own test part."""
    test = setup.federation.client(client).test
    x, y = setup.federation.x[test], setup.federation.y[test]
    both = models(setup, client, message, memory)
    personal = None if both.personal is None else judge(setup, both.personal, x, y)
    if both.global_ is None or both.global_ is both.personal:
        return Scores(None if both.global_ is None else personal, personal)
    return Scores(judge(setup, both.global_, x, y), personal)


def judge(setup: Setup, tensors: Tensors, x: torch.Tensor, y: torch.Tensor) -> Score:
    """Return the metrics of network tensors on raw samples x and labels y.

    Raises:
        FlocoError: a logit is not finite.
    """
    found = logits(setup, tensors, x)
    if not bool(torch.isfinite(found).all()):
        raise FlocoError(f"the model gives non-finite logits; try a smaller training.lr (got {setup.training.lr})")
    return score(found, y)


def global_parts(setup: Setup) -> list[tuple[int, int]]:
    """Return the ranges into which the global test part is cut for evaluation, each a multiple of the chunk."""
    n = 0 if setup.federation.y_test is None else len(setup.federation.y_test)
    size = max(1, math.ceil(n / _PARTS / _CHUNK)) * _CHUNK
    return [(start, min(start + size, n)) for start in range(0, n, size)]
