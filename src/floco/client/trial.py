"""Trial runs of a network: whether its forward pass is a pure function, and whether it splits into body and head."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn

from floco.core.head import outputs_of
from floco.core.inputs import Inputs
from floco.core.random import global_stream, one_thread, outside_torch
from floco.core.values import Predict, Tensors
from floco.data.federation import Federation

CHUNK = 500
"""Samples per forward pass in evaluations; fixed, so that results do not depend on the engine."""


def choose_rows(federation: Federation, number: int) -> torch.Tensor:
    """Return positions of about `number` samples, equally many of every client (at least one), test samples first."""
    each = -(-number // max(1, len(federation.clients)))
    return torch.cat([torch.cat([c.test[:each], c.train[:each]])[:each] for c in federation.clients])


def find_hidden_state(
    forward: Callable[[], torch.Tensor], module: nn.Module, seed: int, device: torch.device
) -> str | None:
    """Return why a forward pass is not a function of tensors and torch's random numbers; None if it is.

    It runs in training mode, three times with equal tensors and streams (a module may initialise itself in the first).
    Outputs, attributes, and the states of numpy's and Python's generators are compared. Effects that appear only later
    are not detected.
    """

    def once() -> tuple[torch.Tensor, bool, dict[str, Any]]:
        with one_thread(), torch.no_grad(), global_stream(seed, "trial", device=device):
            before = outside_torch()
            found = forward()
            return found, outside_torch() != before, _attributes(module)

    once()
    (first, drawn, before), (second, _, after) = once(), once()
    if drawn:
        return "its forward pass draws random numbers from numpy or Python's random"
    if first.shape != second.shape or not torch.allclose(first, second, rtol=1e-5, atol=1e-6, equal_nan=True):
        return "its forward pass is not the same twice: it has a state, or random numbers, of its own"
    if changed := [name for name, value in after.items() if repr(before.get(name)) != repr(value)]:
        return f"its forward pass changes {changed[0]}"
    return None


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return plain attributes of a module and its submodules, and the sizes of containers."""
    found: dict[str, Any] = {}
    for prefix, m in module.named_modules():
        for name, value in vars(m).items():
            key = f"{prefix}.{name}".removeprefix(".")
            if not name.startswith("_") and isinstance(value, int | float | str | bool):
                found[key] = value
            elif not name.startswith("_") and isinstance(value, list | dict | set | tuple):
                found[key] = len(value)
    return found


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
        calls: list[tuple[tuple[Any, ...], Any]] = []
        outputs: list[Any] = []
        hooks = [
            self._layer.register_forward_hook(lambda _, args, y: calls.append((args, y))),
            self._module.register_forward_hook(lambda _, args, y: outputs.append(y)),
        ]
        try:
            first = self._predict(model, x)
        finally:
            for hook in hooks:
                hook.remove()
        if len(calls) != 1 or len(calls[0][0]) != 1 or calls[0][1] is not outputs_of(outputs[0]):
            raise NotImplementedError("the head must be called once, with one input, and give the network's output")
        return first, calls[0][0][0]

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
