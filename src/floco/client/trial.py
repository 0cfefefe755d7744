"""What is tried out on a network before it is relied on: whether its forward pass is a function, and whether it can be cut above its body."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from floco.core.random import global_stream, one_thread, outside_torch
from floco.core.values import Predict, Tensors
from floco.data.federation import Federation

CHUNK = 500
"""Samples a forward pass in evaluations: fixed, so that results do not depend on the engine."""


def some_rows(federation: Federation, number: int) -> torch.Tensor:
    """Return positions of samples of all clients, test samples first: `number` in all, or more if there are more clients, or fewer if there are fewer samples."""
    each = -(-number // max(1, len(federation.clients)))
    return torch.cat([torch.cat([c.test[:each], c.train[:each]])[:each] for c in federation.clients])


def unsteady(forward: Callable[[], torch.Tensor], module: nn.Module, seed: int, device: torch.device) -> str | None:
    """Return why the forward pass of a module in training mode is no function of tensors and torch's random numbers, None if it is.

    It runs three times (the first time, a module may set itself up) with equal tensors and streams; outputs, attributes, and the
    states of numpy's and Python's generators are compared. What shows later or more rarely is not found.
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
    """Return plain attributes of a module and its submodules, and the sizes of their containers."""
    found: dict[str, Any] = {}
    for prefix, m in module.named_modules():
        for name, value in vars(m).items():
            if not name.startswith("_") and isinstance(value, int | float | str | bool | list | dict | set | tuple):
                found[f"{prefix}.{name}".removeprefix(".")] = value if isinstance(value, int | float | str | bool) else len(value)
    return found


class Split:
    """A network cut in two: what is below the layer that gives its logits runs once for models that have it in common."""

    def __init__(self, module: nn.Module, layer: nn.Module, predict: Predict, upper: Predict) -> None:
        """Hold the parts.

        Args:
            module: the network.
            layer: the linear layer of it that gives the logits.
            predict: the network's.
            upper: that of the layer alone.
        """
        self._module, self._layer, self._predict, self._upper = module, layer, predict, upper

    @torch.no_grad()
    def __call__(self, models: Sequence[Tensors], x: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits (n, C) of inputs x (n, ...) under each model: the first has all tensors, the others their heads.

        Raises:
            NotImplementedError: the layer was not called once, with one argument, or what it gives is not the network's output.
        """
        calls: list[tuple[tuple[Any, ...], Any]] = []
        outputs: list[Any] = []
        hooks = [
            self._layer.register_forward_hook(lambda _, args, y: calls.append((args, y))),
            self._module.register_forward_hook(lambda _, args, y: outputs.append(y)),
        ]
        try:
            first = self._predict(models[0], x)
        finally:
            for hook in hooks:
                hook.remove()
        if len(calls) != 1 or len(calls[0][0]) != 1 or calls[0][1] is not outputs[0]:
            raise NotImplementedError("the last linear layer must be called once, with its input, and give the network's output")
        return [first, *(self._upper(m, calls[0][0][0]) for m in models[1:])]

    def agrees(self, one: Tensors, other: Tensors, chunks: Sequence[torch.Tensor]) -> bool | None:
        """Return whether the parts together are the network, tried on inputs in chunks under two models that differ in the head; None where they do not fit together at all."""
        with one_thread(), torch.no_grad():
            for x in chunks:
                try:
                    found = self([one, other], x)
                except Exception:  # noqa: BLE001  whatever it is, the network cannot be cut there
                    return None
                if not all(torch.equal(a, self._predict(m, x)) for a, m in zip(found, (one, other), strict=True)):
                    return False
        return True
