"""A user's own network as a graph beside its weights, so that its class need not be importable where it predicts."""

from __future__ import annotations

import inspect
import io
import json
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from floco.core.errors import FlocoError
from floco.core.head import outputs_of
from floco.core.inputs import Inputs, arguments, rows
from floco.core.network import Network, Traits
from floco.core.random import global_stream, one_thread
from floco.core.values import Combined, Layout, Tensors
from floco.data.federation import Federation
from floco.deliver.graph import quiet_exporters

_TRAITS = "traits.json"


def write_graph(network: Network, federation: Federation) -> bytes:
    """Return a network with its initial values as a graph for evaluation, (N, ...) -> (N, ...), on any N.

    Raises:
        FlocoError: torch.export cannot trace it, or the graph gives other outputs than the network.
    """
    inputs = federation.normalize(federation.schema.made_up(3))
    args, kwargs = arguments(inputs)
    module, buffer = network.holding({**network.parameters, **network.buffers}, own=False), io.BytesIO()
    module.register_forward_hook(lambda _, given, output: outputs_of(output))  # a graph cannot return any object
    size = {0: torch.export.Dim("n")}
    traits = {"layout": asdict(network.layout), "text": network.text, "tied": _tied(module)}
    try:
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments  # *args and **kwargs are one each
        sizes: Any = {name: tree_map_only(torch.Tensor, lambda _: size, value) for name, value in given.items()}
        with one_thread(), global_stream(0, "graph"), quiet_exporters():
            made = torch.export.export(module, args, kwargs, dynamic_shapes=sizes)
            torch.export.save(made, buffer, extra_files={_TRAITS: json.dumps(traits)})
            found = read_graph(buffer.getvalue()).module
            for n in (1, 3):
                check_equal(found, module, rows(inputs, slice(n)))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise FlocoError(f"torch.export cannot write it as a graph: {type(error).__name__}: {reason}") from error
    return buffer.getvalue()


class CombinedModule(nn.Module):
    """A model of several networks as a module."""

    def __init__(self, network: Network, model: Combined) -> None:
        """Store the networks."""
        super().__init__()
        self.networks = nn.ModuleList(network.holding(tensors) for tensors in model.networks)
        self._model, self._head = model, network.layout.head[0].rpartition(".")[0] if model.features else ""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the model's outputs (n, ...), for the inputs of one network."""
        found: list[torch.Tensor] = []
        layer = self.networks[0].get_submodule(self._head) if self._model.features else nn.Identity()
        hook = layer.register_forward_pre_hook(lambda _, given: found.append(given[0]))
        try:
            return self._model.combine([*[outputs_of(one(*args, **kwargs)) for one in self.networks], *found])
        finally:
            hook.remove()


def to_module(network: Network, model: Tensors | Combined) -> nn.Module:
    """Return a model as a module in evaluation mode: of the user's class, or of several of these."""
    return CombinedModule(network, model).eval() if isinstance(model, Combined) else network.holding(model)


def check_equal(module: nn.Module, other: nn.Module, inputs: Inputs) -> None:
    """Raise an AssertionError, or what one of them raises, unless two modules give equal outputs up to rounding."""
    args, kwargs = arguments(inputs)
    with torch.no_grad():
        found, wanted = (outputs_of(m(*args, **kwargs)) for m in (module, other))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def _tied(module: nn.Module) -> dict[str, str]:
    """Return the further names of parameters that have several, with their first."""
    first = {id(p): name for name, p in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in every if first[id(p)] != name}


def read_graph(data: bytes) -> Network:
    """Return the network of a graph: its tensors have the names of the module's, and it is never in training mode."""
    extra = {_TRAITS: ""}
    with quiet_exporters():
        traced: Any = torch.export.load(io.BytesIO(data), extra_files=extra).module()
    traits = json.loads(extra[_TRAITS])
    traced.graph.set_codegen(torch.fx.graph.CodeGen())  # inputs and output as they are, not as trees
    for node in list(traced.graph.nodes):
        if node.op == "output":
            (node.args,) = node.args
        elif node.target == "_guards_fn":  # the schema checks samples
            traced.graph.erase_node(node)
    module = torch.fx.GraphModule(traced, traced.graph)
    told: dict[str, Any] = traits["layout"]
    norms = tuple(told["norms"])
    layout = Layout(tuple(told["parameters"]), tuple(told["buffers"]), told["last"], tuple(told["head"]), norms)
    for alias, name in traits["tied"].items():
        owner, _, leaf = alias.rpartition(".")
        setattr(module.get_submodule(owner), leaf, module.get_parameter(name))
    for name, value in list(module.named_buffers()):
        if name not in layout.buffers:  # constants of the graph
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner).register_buffer(leaf, value, persistent=False)
    return Network(module, traits=Traits(layout, traits["text"]))
