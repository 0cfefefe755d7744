"""Logits and metrics of network tensors on raw samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from floco.client.setup import Setup
from floco.client.trial import CHUNK
from floco.core.errors import FlocoError
from floco.core.metrics import Score, score
from floco.core.values import Facts, Message, Tensors, fast_copy

_PARTS = 8  # jobs into which the global test part is cut: fixed, so that results do not depend on the engine


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
