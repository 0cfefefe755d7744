"""Find the layer that gives a network's logits, from a forward pass, not from names; and normalisation layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from floco.core.errors import FlocoError
from floco.core.inputs import Inputs, arguments, shapes
from floco.core.random import global_stream, one_thread

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # the first: of batch and instance


def norm_tensors(module: nn.Module) -> tuple[str, ...]:
    """Return the names of parameters and buffers of normalisation layers, tied ones once."""
    layers = [m for m in module.modules() if isinstance(m, _NORMS)]
    own = {id(t) for m in layers for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))}
    return tuple(n for n, t in (*module.named_parameters(), *module.named_buffers()) if id(t) in own)


def resting(module: nn.Module) -> set[int]:
    """Return the `id`s of submodules that stay in evaluation mode while the module is trained.

    Of a module in training mode, they are those that its owner put into evaluation mode. A module that is in evaluation
    mode as a whole, as many libraries load it, is trained, but for normalisation layers in what is frozen: batches
    would replace the statistics that belong to its weights.
    """
    if module.training:
        return {id(m) for m in module.modules() if not m.training}
    return frozen_norms(module)


def frozen_norms(module: nn.Module) -> set[int]:
    """Return the `id`s of normalisation layers that are, or are in, a submodule whose parameters are all frozen."""
    frozen = [m for m in module.modules() if (own := [*m.parameters()]) and not any(p.requires_grad for p in own)]
    return {id(m) for one in frozen for m in one.modules() if isinstance(m, _NORMS)}


def fixed_buffers(module: nn.Module) -> set[int]:
    """Return the `id`s of statistics of normalisation layers that rest: nothing changes them."""
    rest = resting(module)
    return {id(b) for m in module.modules() if isinstance(m, _NORMS) and id(m) in rest for b in m.buffers(False)}


def head_layer(module: nn.Module, sample: Inputs | None) -> str | None:
    """Return the name of the `nn.Linear` that gives the logits; None if there is none.

    No other trained tensor may act after that layer. Operations without parameters may: a scale, a mask, a choice of
    positions.

    Args:
        module: a network; it is not changed.
        sample: inputs (n, ...) for a trial forward pass. None: trace the module symbolically, if possible.

    Raises:
        FlocoError: the network fails on the sample, or does not return a tensor.
    """
    own = ((p, p.detach().clone() if p.requires_grad else p.detach()) for p in module.parameters())
    same = {id(p): nn.Parameter(t, requires_grad=t.is_floating_point()) for p, t in own}
    trial = copy.deepcopy(module, same)  # its graph has frozen layers, too, whose numbers are not copied
    trial.eval()
    with one_thread(), global_stream(0, "head"), torch.enable_grad():
        try:
            found = _traced(trial) if sample is None else _seen(trial, sample)
        except FlocoError:
            raise
        except Exception as error:
            if sample is None:  # not traceable: no head is found
                return None
            double = any(p.dtype == torch.float64 for p in module.parameters())
            hint = "; it has float64 weights, and inputs are float32: call .float() on it" if double else ""
            raise FlocoError(f"the model fails on inputs of shape {shapes(sample)}: {error}{hint}") from error
    return next(iter(found)) if found is not None and len(found) == 1 else None


def outputs_of(output: object) -> torch.Tensor:
    """Return a network's output: a tensor, or that called `logits` in a dict or an object."""
    found = _logits(output)
    if not isinstance(found, torch.Tensor):
        raise FlocoError(
            "the model must return a tensor, or a dict or an object with a tensor `logits`, "
            f"got {type(output).__name__}; return the logits alone, in any mode"
        )
    return found


def _logits(output: Any) -> object:
    return output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)


def _seen(module: nn.Module, sample: Inputs) -> set[str] | None:
    """Return the linear layers nearest to the logits in autograd's graph; None if another tensor acts after them."""
    nodes: dict[Any, str] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, args, y, name=name: nodes.update({y.grad_fn: name}))
    args, kwargs = arguments(sample)
    logits = outputs_of(module(*args, **kwargs))
    _check_leaves(module, logits)
    return _nearest(
        [logits.grad_fn],
        nodes.get,
        lambda node: hasattr(node, "variable"),  # an AccumulateGrad node: a parameter
        _earlier,
    )


def _check_leaves(module: nn.Module, logits: torch.Tensor) -> None:
    """Raise if a parameter gives the logits that is none of the module's, which is a copy of the user's."""
    own = {id(p) for p in module.parameters()}
    for node in _walk([logits.grad_fn], _earlier):
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter) and id(leaf) not in own:
            raise FlocoError(
                f"the model computes with a parameter of shape {tuple(leaf.shape)} that is none of its registered "
                "parameters (a plain list of modules, or a function or hook that holds the module itself): it would "
                "neither be sent nor trained; use nn.ModuleList, and self in forward"
            )


def _earlier(node: Any) -> list[Any]:
    """Return the nodes of autograd's graph that give a node's inputs."""
    return [n for n, _ in node.next_functions]


def _traced(module: nn.Module) -> set[str] | None:
    """Return the same from a symbolic trace of the module."""
    if isinstance(module, nn.Linear):
        return {""}
    graph = torch.fx.symbolic_trace(module)
    called = {n: graph.get_submodule(str(n.target)) for n in graph.graph.nodes if n.op == "call_module"}
    linear = {n: str(n.target) for n, layer in called.items() if isinstance(layer, nn.Linear)}
    trained = {n for n, layer in called.items() if next(layer.parameters(), None) is not None}
    return _nearest(
        [_logits(n.args[0]) for n in graph.graph.nodes if n.op == "output"],
        linear.get,
        lambda node: node.op == "get_attr" or node in trained,
        lambda node: node.all_input_nodes,
    )


def _nearest(
    todo: list[Any],
    layer: Callable[[Any], str | None],
    trained: Callable[[Any], bool],
    inputs: Callable[[Any], Iterable[Any]],
) -> set[str] | None:
    """Return the layers first met on the way back from the nodes `todo`; None if a trained tensor is met as well."""
    found = set[str]()
    for node in _walk(todo, lambda node: () if layer(node) is not None else inputs(node)):
        if (name := layer(node)) is not None:
            found.add(name)
        elif trained(node):
            return None
    return found


def _walk(todo: list[Any], inputs: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    """Yield the nodes `todo`, and each node on the way back from them once."""
    known = set[Any]()
    while todo:
        node = todo.pop()
        if node is not None and node not in known:
            known.add(node)
            yield node
            todo += inputs(node)
