"""Which layer gives a network's logits: seen in a forward pass, not guessed from names or places."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from floco.core.errors import FlocoError
from floco.core.random import global_stream, one_thread


def head_layer(module: nn.Module, sample: torch.Tensor | None) -> str | None:
    """Return the name of the `nn.Linear` whose output the logits are computed from, by no other trained tensor; None if there is none.

    Between that layer and the logits may stand what has no parameters: a scale, a mask, a choice of positions.

    Args:
        module: a network; it is not changed.
        sample: inputs (n, ...) for a trial forward pass. None: the module is traced symbolically, without inputs, if it can be.

    Raises:
        FlocoError: the network fails on the sample, or gives something else than a tensor.
    """
    trial = copy.deepcopy(module).eval()
    with one_thread(), global_stream(0, "head"), torch.enable_grad():
        try:
            found = _traced(trial) if sample is None else _seen(trial, sample)
        except FlocoError:
            raise
        except Exception as error:
            if sample is None:  # what cannot be traced shows no head
                return None
            raise FlocoError(f"the model fails on inputs of shape {tuple(sample.shape)}: {error}") from error
    return next(iter(found)) if found is not None and len(found) == 1 else None


def logits_of(output: object) -> torch.Tensor:
    """Return what a network gave, if it is a tensor."""
    if not isinstance(output, torch.Tensor):
        raise FlocoError(f"the model must give a tensor of logits, got {type(output).__name__}; return its logits alone, in training mode too")
    return output


def _seen(module: nn.Module, sample: torch.Tensor) -> set[str] | None:
    """Return the linear layers that the logits of a sample depend on most directly; None if they also depend on a tensor beside them."""
    for p in module.parameters():
        p.requires_grad_(p.is_floating_point())  # a frozen layer is seen too
    nodes: dict[Any, str] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, args, y, name=name: nodes.update({y.grad_fn: name}))
    logits = logits_of(module(sample))
    found, beside = set[str](), False
    todo, known = [logits.grad_fn], set[Any]()
    while todo:
        node = todo.pop()
        if node is None or node in known:
            continue
        known.add(node)
        if node in nodes:
            found.add(nodes[node])
            continue
        beside = beside or hasattr(node, "variable")  # where a gradient would be left: a parameter
        todo += [n for n, _ in node.next_functions]
    return None if beside else found


def _traced(module: nn.Module) -> set[str] | None:
    """Return the same from the module's code."""
    if isinstance(module, nn.Linear):
        return {""}
    graph = torch.fx.symbolic_trace(module)
    found, beside = set[str](), False
    todo, known = [n for n in graph.graph.nodes if n.op == "output"], set[torch.fx.Node]()
    while todo:
        node = todo.pop()
        if node in known:
            continue
        known.add(node)
        called = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(called, nn.Linear):
            found.add(str(node.target))
            continue
        beside = beside or node.op == "get_attr" or (called is not None and _any(called.parameters()))
        todo += node.all_input_nodes
    return None if beside else found


def _any(values: Iterable[object]) -> bool:
    return next(iter(values), None) is not None
