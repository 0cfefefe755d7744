"""Checks of what a network is given: batches of one sample, ids that are normalised, statistics of frozen layers."""

from __future__ import annotations

import torch
from torch import nn

from floco.client.setup import Setup
from floco.core.errors import FlocoError, some, warn
from floco.core.head import frozen_norms
from floco.core.inputs import Inputs, arguments, columns, each, rows
from floco.core.random import global_stream
from floco.data.schema import Form


def check_single(setup: Setup, x: Inputs) -> None:
    """Raise if clients train on batches of one sample, and the network cannot; it is tried only if there are such.

    Args:
        setup: the setup of the run.
        x: inputs (n, ...), n >= 1, on the device.
    """
    size, sizes = setup.training.batch_size, setup.sizes
    single = [client for client, n in sizes.items() if size == 1 or n == 1]
    why = _fails_on_one(setup, rows(x, slice(1))) if single else ""
    if not why:
        return
    few = f"{some(single, 3)} ({len(single)} of {len(sizes)} clients)"
    advice = "set training.batch_size to 2 or more" if size == 1 else "set data.least = 2 and data.small = drop"
    raise FlocoError(
        f"{_norms(setup.network.module)} needs 2 samples a batch: clients {few} have batches of 1, and the model fails "
        f"on them in training mode: {why}; {advice}, or use a norm that does not need a batch, such as GroupNorm"
    )


def _fails_on_one(setup: Setup, x: Inputs) -> str:
    """Return why the network cannot train on one sample, "" if it can."""
    try:
        with torch.no_grad(), global_stream(setup.seed, "trial", device=setup.device):
            found = setup.predictor(train=True, fresh=True)(setup.initial(), x)
    except Exception as error:  # noqa: BLE001  whatever it raises, it would raise in every round
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return "" if bool(torch.isfinite(found).all()) else "its outputs are not finite"


def _norms(module: nn.Module) -> str:
    names = sorted({type(m).__name__ for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)})
    return " and ".join(names) or "the model"


def check_frozen_norms(setup: Setup) -> None:
    """Warn if frozen layers use, and change, the statistics of batches."""
    module = setup.network.twin(torch.device("cpu"), train=True)
    layers = {n: m for n, m in module.named_modules() if id(m) in frozen_norms(module) and m.training}
    moving = {n: type(m).__name__ for n, m in layers.items() if getattr(m, "running_mean", None) is not None}
    if moving:
        warn(
            f"frozen {' and '.join(sorted({*moving.values()}))} in training mode ({some([*moving], 3)}): outputs "
            "depend on the batch, and the statistics of the layers change; call .eval() on what is frozen to keep them"
        )


def _changes(form: Form) -> bool:
    """Return whether the normalisation changes samples."""
    return bool(form.normalization.mean) and (any(form.mean) or any(s != 1 for s in form.normalization.std))


@torch.no_grad()
def check_ids(setup: Setup, x: Inputs) -> None:
    """Warn if an Embedding looks up normalised inputs; other ids, e.g. positions, do not depend on the inputs."""
    forms = columns(setup.federation.schema.forms).values()
    if not any(f.own or _changes(f) for f in forms):
        return
    whole = [column for column in columns(x).values() if column.dtype == torch.int64]
    module = setup.network.twin(setup.device, train=False)
    given: list[torch.Tensor] = []
    for m in module.modules():
        if isinstance(m, nn.Embedding | nn.EmbeddingBag):
            m.register_forward_pre_hook(lambda _, args: given.append(args[0].clone()))
    args, kwargs = arguments(x)
    module(*args, **kwargs)
    first, given[:] = list(given), []
    args, kwargs = arguments(each(lambda column: column.roll(1, 0), x))
    module(*args, **kwargs)
    known = [any(a.shape == c.shape and torch.equal(a, c) for c in whole) for a in first]
    pairs = zip(first, given, known, strict=False)
    if any(a.shape != b.shape or not torch.equal(a, b) for a, b, column in pairs if not column):
        warn(
            "the model looks its inputs up in an Embedding, and they are normalised before: "
            "ids that are shifted and scaled are other ids; set data.normalize = none"
        )
