"""Outputs and metrics of network tensors on raw samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from floco.client.setup import Setup
from floco.client.trial import CHUNK
from floco.core.errors import FlocoError
from floco.core.inputs import Inputs, chunks
from floco.core.metrics import Score
from floco.core.values import Combined, Facts, Message, Tensors, fast_copy

_PARTS = 8  # jobs for the global test part; fixed, so that results do not depend on the engine


def compute_outputs(setup: Setup, model: Tensors | Combined, x: Inputs) -> torch.Tensor:
    """Return the outputs (n, ...) of raw samples x (n, ...) for a model, on the CPU."""
    return compute_outputs_of_each(setup, [model], x)[0]


@torch.no_grad()
def compute_outputs_of_each(setup: Setup, models: Sequence[Tensors | Combined], x: Inputs) -> list[torch.Tensor]:
    """Return the outputs (n, ...) of raw samples x (n, ...) for each of several models, on the CPU."""
    parts = [m.networks if isinstance(m, Combined) else (m,) for m in models]
    found = iter(_compute(setup, [tensors for part in parts for tensors in part], x))
    each = [[next(found) for _ in part] for part in parts]
    for m, own in zip(models, each, strict=True):
        if isinstance(m, Combined) and m.features:
            own.append(compute_features(setup, m.networks[0], x))
    return [m.combine(own) if isinstance(m, Combined) else own[0] for m, own in zip(models, each, strict=True)]


@torch.no_grad()
def compute_features(setup: Setup, tensors: Tensors, x: Inputs) -> torch.Tensor:
    """Return the inputs (n, F) of a network's head for raw samples x (n, ...), on the CPU.

    Raises:
        FlocoError: the head does not give the network's outputs.
    """
    if setup.split is None:
        raise FlocoError(
            "features are the inputs of the last nn.Linear, whose output must be the network's, in the code of the "
            "network itself: this one cannot be split there"
        )
    placed = {n: fast_copy(tensors[n].detach().to(setup.device)) for n in setup.network.layout.names}
    try:
        return torch.cat([setup.split.features(placed, setup.inputs(raw)).cpu() for raw in chunks(x, CHUNK)])
    except NotImplementedError as error:
        raise FlocoError(f"features are the inputs of the last nn.Linear, and for some samples {error}") from error


def _compute(setup: Setup, models: Sequence[Tensors], x: Inputs) -> list[torch.Tensor]:
    """Return the outputs for network tensors.

    Networks that share all tensors (the same objects) except the head share one forward pass through the body.
    """
    layout = setup.network.layout
    names = layout.names
    alike = all(m[n] is models[0][n] for m in models[1:] for n in names if n not in layout.head)
    stateful = setup.hidden_state is not None
    split = setup.split if alike and len(models) > 1 and not stateful else None
    needed = [names if split is None or m is models[0] else layout.head for m in models]
    placed = [{n: fast_copy(m[n].detach().to(setup.device)) for n in ns} for m, ns in zip(models, needed, strict=True)]
    predict = setup.predictor(train=False, fresh=stateful)
    parts = []
    for raw in chunks(x, CHUNK):
        inputs = setup.inputs(raw)
        try:
            found = [predict(m, inputs) for m in placed] if split is None else split(placed, inputs)
        except NotImplementedError:  # for these samples, the network takes another path
            found = [predict({**placed[0], **m}, inputs) for m in placed]
        parts.append(torch.stack(found).cpu())
    return list(torch.cat(parts, dim=1))


def judge(setup: Setup, models: Sequence[Tensors | Combined], x: Inputs, y: torch.Tensor) -> list[Score]:
    """Return the metrics of each of several models on raw samples x and targets y.

    Raises:
        FlocoError: an output is not finite.
    """
    return [score(setup, found, y) for found in compute_outputs_of_each(setup, models, x)]


def score(setup: Setup, outputs: torch.Tensor, y: torch.Tensor) -> Score:
    """Return the metrics of outputs (n, ...) for targets y; raises as `judge` does."""
    if not torch.isfinite(outputs).all():
        raise FlocoError(
            f"the model gives non-finite logits; try a smaller training.lr (got {setup.training.lr}), and -1e9 instead "
            "of -inf if the network masks logits"
        )
    return setup.task.score(outputs, y)


def find_global_model(setup: Setup, message: Message) -> Tensors | None:
    """Return the tensors of the server's global model; None if the method has none or buffers stay local."""
    facts = Facts(setup.network.layout, setup.training, 0, (0,) * setup.federation.classes, 0, setup.task)
    tensors = setup.algorithm.begin(message, setup.algorithm.start(setup.network, seed=setup.seed), facts)
    return None if setup.local_buffers else setup.models(tensors, facts).global_


def split_test_part(setup: Setup) -> list[tuple[int, int]]:
    """Return the ranges of the global test part to evaluate as separate jobs, in multiples of `CHUNK`."""
    n = 0 if setup.federation.y_test is None else len(setup.federation.y_test)
    size = max(1, math.ceil(n / _PARTS / CHUNK)) * CHUNK
    return [(start, min(start + size, n)) for start in range(0, n, size)]
