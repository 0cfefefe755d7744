"""Trial runs of a network: whether its forward pass is a pure function, and whether it splits into body and head."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from floco.core.head import outputs_of
from floco.core.inputs import Inputs, each
from floco.core.random import global_stream, one_thread, outside_torch
from floco.core.values import Predict, Tensors
from floco.data.federation import Federation

CHUNK = 500
"""Samples per forward pass in evaluations; fixed, so that results do not depend on the engine."""


def choose_rows(federation: Federation, number: int) -> torch.Tensor:
    """Return positions of about `number` samples, equally many of every client (at least one), test samples first."""
    each = -(-number // max(1, len(federation.clients)))
    return torch.cat([torch.cat([c.test[:each], c.train[:each]])[:each] for c in federation.clients])


Forward = Callable[[Inputs], torch.Tensor]
"""A forward pass of inputs with fixed tensors, on a module of its own."""


def find_hidden_state(
    make: Callable[[], tuple[nn.Module, Forward]], x: Inputs, seed: int, device: torch.device
) -> str | None:
    """Return why a forward pass is not a function of tensors and torch's random numbers; None if it is.

    It runs on two fresh modules, three times on one of them, with equal tensors and streams. Compared are outputs, also
    after other inputs; what the module holds beside its registered tensors, before and after a pass but the first (a
    module may build a cache in it); and the states of numpy's and Python's generators.

    Args:
        make: makes a fresh module, and its forward pass.
        x: inputs (n, ...), n >= 2.
        seed: of the streams.
        device: where the module is.
    """

    def run(forward: Forward, given: Inputs) -> tuple[torch.Tensor, bool]:
        with one_thread(), torch.no_grad(), global_stream(seed, "trial", device=device):
            before = outside_torch()
            found = forward(given)
            return found, outside_torch() != before

    module, forward = make()
    (first, drawn), before = run(forward, x), _held(module)
    second, after = run(forward, x)[0], _held(module)
    if drawn:
        return "its forward pass draws random numbers from numpy or Python's random"
    if not _alike(first, second):
        return "its forward pass is not the same twice: it has a state, or random numbers, of its own"
    if changed := [n for n in (*before, *after) if before.get(n) != after.get(n)]:
        return f"its forward pass changes {changed[0]}"
    forward = make()[1]
    run(forward, each(lambda column: column.flip(0)[1:], x))
    if not _alike(run(forward, x)[0], first):
        return "its forward pass depends on inputs that it had before"
    return None


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


_TORCH = frozenset(vars(nn.Module())) | {"training"}
_DEEP = 4  # levels of containers and objects that are looked into


def _held(module: nn.Module) -> dict[str, object]:
    """Return what modules hold beside torch's own attributes, by name, in a form to compare; and names of buffers."""
    found: dict[str, object] = {}
    for prefix, m in module.named_modules():
        names = [n for n in vars(m) if n not in _TORCH]
        found |= {f"{prefix}.{n}".removeprefix("."): _summary(vars(m)[n], _DEEP) for n in names}
        found |= {f"{prefix}.{n}".removeprefix("."): "buffer" for n in m._buffers}
    return found


def _bytes(t: torch.Tensor) -> str:
    """Return a hash of a tensor's numbers; "" for kinds that have none here, e.g. on `meta`, sparse or quantized."""
    if t.layout != torch.strided or t.is_quantized or t.device.type == "meta":
        return ""
    real = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
    return hashlib.blake2b(real.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _summary(value: Any, deep: int) -> object:
    """Return numbers and text as they are, tensors as hashes, containers and plain objects by their members."""
    if value is None or isinstance(value, int | float | str | bool | bytes):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), str(value.dtype), _bytes(value.detach())
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype), value.tobytes()
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if callable(state := getattr(value, "getstate", None)):  # of Python's random.Random
        return repr(state())
    if isinstance(value, nn.Module) or deep == 0:
        return type(value).__name__
    if isinstance(value, Mapping):
        return [(repr(k)[:99], _summary(v, deep - 1)) for k, v in value.items()]
    if isinstance(value, list | tuple | set | frozenset | deque):
        return [_summary(v, deep - 1) for v in value]
    return type(value).__name__, _summary(getattr(value, "__dict__", {}), deep - 1)


def copied(tensors: Tensors) -> Tensors:
    """Return copies of tensors."""
    return {n: t.clone() for n, t in tensors.items()}


def move(tensors: Tensors, buffers: Collection[str]) -> Tensors:
    """Return tensors near the given ones, with noise so that none are equal by chance."""
    g = torch.Generator().manual_seed(0)

    def moved(t: torch.Tensor, name: str) -> torch.Tensor:
        if not t.is_floating_point():
            return t
        noise = torch.rand(t.shape, generator=g).to(t)
        if name in buffers:
            return t * (1 + 0.2 * noise)
        return t + (noise - 0.5) * (0.2 * t.abs().mean() + 0.02)

    return {n: moved(t, n) for n, t in tensors.items()}


def _versions(*tensors: torch.Tensor) -> list[int]:
    """Return how often tensors were changed in place."""
    return [t._version for t in tensors]


class BodyAndHead:
    """A network as body and head: the body runs once for models that share it."""

    def __init__(self, module: nn.Module, layer: nn.Module, predict: Predict, upper: Predict) -> None:
        """Store the parts.

        Args:
            module: the network.
            layer: its linear layer that gives the logits.
            predict: `predict` of the network.
            upper: `predict` of the layer alone.
        """
        self._module, self._layer, self._predict, self._upper = module, layer, predict, upper

    @torch.no_grad()
    def __call__(self, models: Sequence[Tensors], x: Inputs) -> list[torch.Tensor]:
        """Return the logits (n, C) of inputs x (n, ...) for each model: the first has all tensors, the others the head.

        Raises:
            NotImplementedError: the layer is not called exactly once with one argument, or does not give the output.
        """
        first, hidden = self._run(models[0], x)
        return [first, *(self._upper(m, hidden) for m in models[1:])]

    @torch.no_grad()
    def features(self, model: Tensors, x: Inputs) -> torch.Tensor:
        """Return what the head gets, (n, F), for inputs x (n, ...); raises as a call does."""
        return self._run(model, x)[1]

    def _run(self, model: Tensors, x: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return outputs and the head's inputs."""
        calls: list[tuple[tuple[Any, ...], Any, list[int]]] = []
        outputs: list[Any] = []
        hooks = [
            self._layer.register_forward_hook(lambda _, args, y: calls.append((args, y, _versions(*args, y)))),
            self._module.register_forward_hook(lambda _, args, y: outputs.append(y)),
        ]
        try:
            first = self._predict(model, x)
        finally:
            for hook in hooks:
                hook.remove()
        if len(calls) != 1 or len(calls[0][0]) != 1 or calls[0][1] is not outputs_of(outputs[0]):
            raise NotImplementedError("the head must be called once, with one input, and give the network's output")
        (hidden,), logits, versions = calls[0]
        if _versions(hidden, logits) != versions:
            raise NotImplementedError("the head's input or output is changed in place afterwards")
        return first, hidden

    def agrees(self, one: Tensors, other: Tensors, chunks: Sequence[Inputs]) -> bool | None:
        """Return whether the split gives the network's logits for two models that differ in the head.

        None if the network cannot be split. `chunks` are the inputs to try, in parts.
        """
        with one_thread(), torch.no_grad():
            for x in chunks:
                try:
                    found = self([one, other], x)
                except Exception:  # noqa: BLE001  any error means that the network cannot be split
                    return None
                if not all(torch.equal(a, self._predict(m, x)) for a, m in zip(found, (one, other), strict=True)):
                    return False
        return True
