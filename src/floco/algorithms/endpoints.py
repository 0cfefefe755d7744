"""The endpoints of a simplex: which parameters have them, their initial values, and their averages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from floco.core.adapters import lora_matrices
from floco.core.errors import warn
from floco.core.mixing import Mixing
from floco.core.network import Network
from floco.core.random import stream
from floco.core.values import Layout, ServerState, Tensors, Update

WEIGHTS = "endpoints"
"""Name of a client's weights of the endpoints, (M,), among what it sends beside the shared tensors."""


def choose_mixed(layout: Layout, mix: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the mixed parameters; warn where they fit no statistics of the network."""
    names = Mixing.chosen(layout, mix)
    if layout.buffers and not {*names} <= {*layout.head}:
        below = sum(n not in layout.head for n in names)
        warn(
            f"algorithm.mix mixes {below} parameters below the head of a model with buffers ({layout.buffers[0]}, "
            "...): statistics such as BatchNorm's are averages over the mixtures of training, "
            "wrong for any single one, also the global model's; use GroupNorm or LayerNorm, or mix only the head"
        )
    return names


def start_endpoints(network: Network, mixing: Mixing, seed: int, noise: float | None) -> Tensors:
    """Return the mixed parameters as M stacked endpoints (M, ...); endpoint 0 is the network's value."""
    first = {name: network.parameters[name] for name in mixing.names}
    rest = [_draw_endpoint(network, first, seed, m, noise) for m in range(1, mixing.endpoints)]
    return {name: torch.stack([value, *(r[name] for r in rest)]) for name, value in first.items()}


def _draw_endpoint(network: Network, first: Tensors, seed: int, m: int, noise: float | None) -> Tensors:
    """Return endpoint m of all mixed parameters.

    Without `noise`, one-dimensional ones equal endpoint 0, and so do the matrices B of adapters: B A is zero at first,
    so that training starts from the frozen network. Endpoints part by the mixtures that are drawn.
    """
    if noise is None:
        equal = lora_matrices(network.layout)[1]
        drawn = [n for n, t in first.items() if t.ndim > 1 and n not in equal]
        return {**first, **(network.redraw(drawn, seed=seed, draw=m) if drawn else {})}
    endpoint = {}
    for n, t in first.items():
        gaussian = torch.randn(t.shape, generator=stream(seed, "noise", n, m), dtype=torch.float64)
        endpoint[n] = t + (noise * t.double().square().mean().sqrt() * gaussian).to(t.dtype)
    return endpoint


def average_endpoints(names: Sequence[str], after: ServerState, updates: Sequence[Update]) -> ServerState:
    """Return the state with endpoint m averaged by n_k a_km: W_m = sum_k n_k a_km W_km / sum_k n_k a_km.

    a_k are the clients' `WEIGHTS`, made a distribution: nobody counts more than its samples. Both sums are over
    clients, so that a server needs no single a_k. An endpoint that no client gives weight to keeps its plain average.
    """
    trained = [u for u in updates if u.purpose == "train"]
    shares = torch.stack([u.extra[WEIGHTS].double().clamp_min(0) for u in trained])  # (K, M)
    weights = torch.tensor([[u.weight] for u in trained]) * shares / shares.sum(dim=1, keepdim=True)
    weights = weights / weights.sum(dim=0)
    used = weights.isfinite().all(dim=0)
    made: Tensors = {}
    for name in names:
        plain = after.shared[name]
        each = (-1, *(1,) * (plain.ndim - 1))  # the shape in which a number for each endpoint meets the stack
        mean = torch.zeros(plain.shape, dtype=torch.float64)
        for update, own in zip(trained, weights, strict=True):
            mean += own.view(each) * update.shared[name]
        made[name] = torch.where(used.view(each), mean, plain).to(plain.dtype)
    return replace(after, shared={**after.shared, **made})
