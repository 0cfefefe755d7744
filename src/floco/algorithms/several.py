"""Several models of one network, stacked: how they start."""

from __future__ import annotations

import torch

from floco.core.errors import FlocoError
from floco.core.network import Network
from floco.core.values import Tensors


def start_models(network: Network, number: int, *, seed: int, name: str, field: str) -> Tensors:
    """Return the floating tensors of several models as stacks (number, ...): the network, then other draws.

    Buffers are equal. `name` is the method's and `field` its setting of the number, for the error message.

    Raises:
        FlocoError: no initial value is random, so that all models would stay equal.
    """
    first, names = {**network.parameters, **network.buffers}, network.layout.parameters
    draws = [network.redraw(names, seed=seed, draw=k, strict=False) for k in range(1, number)]
    if any(all(value.equal(first[n]) for n, value in drawn.items()) for drawn in draws):
        raise FlocoError(
            f"{name} needs models that start from different values, and this one has none that its initialiser draws: "
            f"leave random layers out of model.weights, give a function that builds the model, or set {field} = 1"
        )
    models = [first, *({**first, **drawn} for drawn in draws)]
    return {n: torch.stack([m[n] for m in models]) for n, t in first.items() if t.is_floating_point()}
