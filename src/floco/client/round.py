"""One client's part in a round: prepare its training, conclude it, evaluate its models."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch

from floco.client.choice import Delivered, deliver
from floco.client.examine import TrainingPart
from floco.client.predict import judge
from floco.client.setup import Setup
from floco.client.sgd import Work, rate_head, train_client
from floco.core.errors import FlocoError
from floco.core.inputs import rows
from floco.core.metrics import Score
from floco.core.random import derive
from floco.core.values import Facts, Message, Models, Phase, Tensors, Update, add_prefix, strip_prefix

_BUFFERS = "buffers/"  # prefix of local buffers in a client's memory


class Scores(NamedTuple):
    """Metrics of a client's two models on its own test part; None for a model that the method does not have."""

    global_: Score | None
    personal: Score | None


def receive(setup: Setup, client: str, message: Message, memory: Tensors | None) -> tuple[Message, Facts, Tensors]:
    """Return message, facts and working tensors with which a client starts; local buffers come from its memory."""
    stored, facts = memory or {}, setup.facts(client, None if message.purpose == "evaluate" else message.round)
    message = replace(message, shared={**message.shared, **strip_prefix(stored, _BUFFERS)})
    memory = {n: t for n, t in stored.items() if not n.startswith(_BUFFERS)}
    memory = memory or setup.algorithm.start(setup.network, seed=derive(setup.seed, "start", client))
    return message, facts, setup.algorithm.begin(message, memory, facts)


def prepare(setup: Setup, client: str, message: Message, memory: Tensors | None) -> Work:
    """Return a client's training in this round; in an evaluation its adaptation, often without phases."""
    message, facts, tensors = receive(setup, client, message, memory)
    tensors = {**tensors, **setup.algorithm.examine(TrainingPart(setup, client), tensors, message, facts)}
    evaluating = message.purpose == "evaluate"
    if evaluating:
        phases = setup.algorithm.adapt(facts)
    else:
        rate = setup.training.rate(message.round)
        phases = tuple(_scheduled(p, rate) for p in setup.algorithm.phases(message, facts))
    path = ("adapt" if evaluating else "train", message.round, client)
    return Work(client, message, facts, tensors, rate_head(setup, phases), setup.divide(client)[0], path)


def _scheduled(phase: Phase, rate: float) -> Phase:
    """Return a phase whose steps have their own step sizes times the round's factor."""
    if rate == 1 or all(s.lr is None for s in phase.steps):
        return phase
    return replace(phase, steps=tuple(s if s.lr is None else replace(s, lr=s.lr * rate) for s in phase.steps))


def conclude(setup: Setup, client: str, message: Message, facts: Facts, tensors: Tensors) -> tuple[Update, Tensors]:
    """Return a client's update and new memory from its trained tensors; a probe has no memory.

    Raises:
        FlocoError: a tensor is not finite.
    """
    update, memory = setup.algorithm.finish(tensors, message, client, facts)
    if setup.local_buffers and message.purpose == "train":
        sent = update.shared
        floating = [b for b in setup.network.layout.buffers if b in sent and sent[b].is_floating_point()]
        update = replace(update, shared={n: t for n, t in update.shared.items() if n not in floating})
        memory = {**memory, **add_prefix({b: sent[b] for b in floating}, _BUFFERS)}
    made = {n: t for n, t in {**update.shared, **update.extra, **memory}.items() if t.is_floating_point() and t.numel()}
    largest = list(torch._foreach_norm(list(made.values()), float("inf"))) if made else []
    if made and not bool(torch.isfinite(torch.stack(largest)).all()):
        bad = [n for n, size in zip(made, largest, strict=True) if not math.isfinite(size)]
        had = {n: message.shared.get(n.rpartition("/")[2]) for n in bad}  # a mask may hold infinite numbers, as it did
        for name in (n for n, t in had.items() if t is None or not torch.equal(t, made[n])):
            raise FlocoError(f"training gave a non-finite {name}; try a smaller training.lr (got {setup.training.lr})")
    return update, memory if message.purpose == "train" else {}


def adapt(setup: Setup, client: str, message: Message, memory: Tensors | None) -> Tensors:
    """Return a client's working tensors for evaluation, after its adaptation if the method has one."""
    return train_client(setup, prepare(setup, client, message, memory))


def find_models(setup: Setup, client: str, message: Message, memory: Tensors | None) -> Delivered:
    """Return a client's global model, and the one that it takes home as its personal model."""
    work = prepare(setup, client, message, memory)
    return deliver(setup, work, train_client(setup, work))


def models(setup: Setup, client: str, message: Message, memory: Tensors | None) -> Models:
    """Return the network tensors of a client's global and personal model."""
    return find_models(setup, client, message, memory).models


def score(setup: Setup, client: str, both: Models) -> Scores:
    """Return the metrics of a client's two models on its own test part."""
    test = setup.federation.client(client).test
    distinct = {id(m): m for m in both if m is not None}
    scores = judge(setup, list(distinct.values()), rows(setup.federation.x, test), setup.federation.y[test])
    found = dict(zip(distinct, scores, strict=True))
    return Scores(*(found.get(id(m)) for m in both))
