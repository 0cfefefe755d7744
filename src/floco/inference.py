"""Logits and metrics of network tensors on raw samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from floco.errors import FlocoError, warn
from floco.fitness import check_tensors
from floco.metrics import Score, score
from floco.setup import Setup
from floco.streams import global_stream, one_thread
from floco.trial import CHUNK, some_rows
from floco.values import Facts, Message, Tensors, fast_copy

_PARTS = 8  # jobs into which the global test part is cut: fixed, so that results do not depend on the engine
_TRIED = 64  # samples on which a network is tried before the first round


def logits(setup: Setup, tensors: Tensors, x: torch.Tensor) -> torch.Tensor:
    """Return the logits (n, C) of raw samples x (n, ...) under the network tensors, on the CPU."""
    return logits_of_each(setup, [tensors], x)[0]


@torch.no_grad()
def logits_of_each(setup: Setup, models: Sequence[Tensors], x: torch.Tensor) -> list[torch.Tensor]:
    """Return the logits (n, C) of raw samples x (n, ...) under each of several models, on the CPU.

    Models that are the same objects but for the last linear layer share one pass through what is below it.
    """
    layout = setup.network.layout
    names = (*layout.parameters, *layout.buffers)
    alike = all(m[n] is models[0][n] for m in models[1:] for n in names if n not in layout.head)
    split = setup.split if alike and len(models) > 1 else None
    placed = [{n: fast_copy(m[n].detach().to(setup.device)) for n in (names if split is None or m is models[0] else layout.head)} for m in models]
    predict = setup.predictor(train=False)
    parts = []
    for raw in x.split(CHUNK):
        inputs = setup.inputs(raw)
        try:
            found = [predict(m, inputs) for m in placed] if split is None else split(placed, inputs)
        except NotImplementedError:  # these samples take another way through the network
            found = [predict({**placed[0], **m}, inputs) for m in placed]
        parts.append(torch.stack(found).cpu())
    return list(torch.cat(parts, dim=1))


def check_model(setup: Setup) -> None:
    """Raise if the network does not give one logit a class for the federation's inputs, in evaluation and in training mode; warn if it gives probabilities."""
    federation, mode = setup.federation, ""
    x = federation.x[some_rows(federation, _TRIED)[:_TRIED]]
    try:
        with one_thread(), torch.no_grad(), global_stream(setup.seed, "trial", device=setup.device):
            found = logits(setup, {**setup.network.parameters, **setup.network.buffers}, x)
            mode = " in training mode"
            trained = setup.predictor(train=True, fresh=True)(setup.initial(), setup.inputs(x))
    except FlocoError:
        raise
    except Exception as error:
        raise FlocoError(f"the model fails{mode} on inputs of shape {tuple(x[:2].shape)}: {error}") from error
    for given, when in ((found, ""), (trained, " in training mode")):
        if given.shape != (len(x), federation.classes):
            few, shape = min(2, len(x)), given[:2].shape if len(given) == len(x) else given.shape
            wanted = (few, federation.classes)
            raise FlocoError(f"for {few} inputs and {federation.classes} classes the model must give logits of shape {wanted}{when}, got {tuple(shape)}")
    with one_thread(), global_stream(setup.seed, "trial", device=setup.device), torch.enable_grad():
        moved = {n: t.requires_grad_() if n in setup.network.layout.parameters else t for n, t in setup.initial().items()}
        last = type(setup.predictor(train=False)(moved, setup.inputs(x[:2])).grad_fn).__name__
    if (end := _ends_in(found, last)) is not None:
        warn(
            f"the model's outputs look like those of a {end}: the loss is the cross-entropy of logits, which applies a softmax itself, so that training is slow and "
            f"the loss is wrong; leave the {end} at the end of the model out"
        )
    check_tensors(replace(setup, training=replace(setup.training, precision="float32")), setup.inputs(x))


def _ends_in(outputs: torch.Tensor, last: str) -> str | None:
    """Return what outputs (n, C), whose `last` operation autograd names, have passed last: a softmax or sigmoid, None for logits."""
    if outputs.min() < 0 or torch.equal(outputs, outputs[:1].expand_as(outputs)):
        return None
    return "softmax" if torch.allclose(outputs.sum(1), torch.ones(len(outputs)), atol=1e-3) else "sigmoid" if outputs.max() <= 1 and last == "SigmoidBackward0" else None


def judge(setup: Setup, models: Sequence[Tensors], x: torch.Tensor, y: torch.Tensor) -> list[Score]:
    """Return the metrics of each of several models on raw samples x and labels y.

    Raises:
        FlocoError: a logit is not finite.
    """
    found = logits_of_each(setup, models, x)
    if not all(bool(torch.isfinite(f).all()) for f in found):
        raise FlocoError(f"the model gives non-finite logits; try a smaller training.lr (got {setup.training.lr})")
    return [score(f, y) for f in found]


def global_model(setup: Setup, message: Message) -> Tensors | None:
    """Return the network tensors of the server's global model, None if the method has none, or if buffers stay local."""
    facts = Facts(setup.network.layout, setup.training, 0, (0,) * setup.federation.classes, 0)
    tensors = setup.algorithm.begin(message, setup.algorithm.start(setup.network, seed=setup.seed), facts)
    return None if setup.local_buffers else setup.algorithm.models(tensors, facts).global_


def global_parts(setup: Setup) -> list[tuple[int, int]]:
    """Return the ranges into which the global test part is cut for evaluation, each a multiple of the chunk."""
    n = 0 if setup.federation.y_test is None else len(setup.federation.y_test)
    size = max(1, math.ceil(n / _PARTS / CHUNK)) * CHUNK
    return [(start, min(start + size, n)) for start in range(0, n, size)]
