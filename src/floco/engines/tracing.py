"""Tracing and replay of functions of tensors, cached by code, closures and shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from floco.core.values import Step

_KEPT = 200  # programs
_OFTEN = 20  # calls after which a program is traced; tracing takes a fifth of a second
Program = Callable[..., list[torch.Tensor]]
"""A function of tensors."""


def warm_up() -> None:
    """Trace a dummy: the first trace takes a second and 70 MB, which forked processes then share."""
    make_fx(lambda x: [x + 1])(torch.ones(1))


class Programs:
    """A cache of programs by what they compute; frequent ones are traced, with the same arithmetic to the bit."""

    def __init__(self) -> None:
        self._asked: Counter[Hashable] = Counter()
        self._traced: dict[Hashable, Program] = {}

    def of(self, key: Hashable, program: Program, inputs: Sequence[torch.Tensor]) -> Program:
        """Return `program`, or the trace of one with an equal key and inputs of the same shapes, dtypes and devices."""
        plain, key = key, (key, tuple((t.shape, t.dtype, t.device) for t in inputs))
        if (traced := self._traced.get(key)) is not None:
            return traced
        if not lasting(plain):
            return program
        self._asked[key] += 1
        if self._asked[key] == _OFTEN:
            if len(self._traced) >= _KEPT:
                self._traced.clear()
                self._asked.clear()
            try:
                traced = make_fx(program)(*[t.clone() for t in inputs])  # clones: tracing updates BatchNorm's buffers
                self._traced[key] = _pruned(traced, inputs)
            except Exception:  # noqa: BLE001  not traceable: it runs untraced, with the same bits
                return program
        return self._traced.get(key, program)


class _Values(torch.fx.Interpreter):
    """Stores the value of every node of a program."""

    def run_node(self, n: torch.fx.Node) -> Any:
        n.meta["value"] = value = super().run_node(n)
        return value


_aten = torch.ops.aten
_VIEWS = (_aten.expand.default, _aten.view.default, _aten._unsafe_view.default)
_CONSTANT = (_aten.scalar_tensor.default, _aten.ones_like.default, _aten.zeros_like.default, _aten.new_zeros.default)
"""Operations whose results depend on shapes only."""


def _pruned(program: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Program:
    """Return the program without no-ops, repeated operations and constants: each would cost a full dispatch."""
    _Values(program).run(*[t.clone() for t in inputs])
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    pure = not any(
        isinstance(n.target, torch._ops.OpOverload)
        and (n.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in n.target.tags)
        for n in calls
    )
    first: dict[str, torch.fx.Node] = {}
    for node in calls:
        source = node.args[0] if node.args and isinstance(node.args[0], torch.fx.Node) else None
        inputs_known = node.all_input_nodes and all(n.op == "get_attr" for n in node.all_input_nodes)
        if source is not None and _unchanged(node, source, pure):
            node.replace_all_uses_with(source)
        elif pure and (node.target in _CONSTANT or inputs_known):
            program.register_buffer(node.name, node.meta["value"])
            with program.graph.inserting_before(node):
                known = program.graph.get_attr(node.name)
            known.meta["value"] = node.meta["value"]
            node.replace_all_uses_with(known)
        elif pure:
            same = first.setdefault(f"{node.target} {node.args} {node.kwargs}", node)
            if same is not node:
                node.replace_all_uses_with(same)
    program.graph.eliminate_dead_code()
    for node in program.graph.nodes:
        node.meta.clear()
    program.recompile()
    forward: Program = program.forward  # skips the search for hooks in a module's call
    return forward


def _unchanged(node: torch.fx.Node, source: torch.fx.Node, pure: bool) -> bool:
    """Return whether a node gives its first input `source` unchanged."""
    value, given = node.meta["value"], source.meta["value"]
    if node.target in _VIEWS:
        return bool(value.shape == given.shape)
    if node.target in (_aten.mul.Scalar, _aten.div.Scalar):
        return bool(pure and node.args[1] == 1 and value.dtype == given.dtype)
    return node.target is _aten.detach.default


def loss_key(step: Step) -> Hashable:
    """Return a key that is equal for steps whose gradients are the same program, including closures."""
    return _key(step.loss), _key(step.correction)


def step_key(step: Step) -> Hashable:
    """Return a key that is equal for steps that clients can take together."""
    numbers = step.lr, step.momentum, step.weight_decay, step.repeat
    return loss_key(step), step.moves, numbers, tuple(step.coefficients.items()), tuple(step.rates.items())


class _Identity:
    """Wraps an object so that it equals only itself."""

    def __init__(self, value: object) -> None:
        self._value = value  # kept alive, since addresses are reused

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)


def lasting(key: Hashable) -> bool:
    """Return whether a key is worth caching: tensor keys compare by identity, so they pin memory and never match."""
    return all(map(lasting, key)) if isinstance(key, tuple) else not isinstance(key, _Identity)


def _key(value: Any) -> Hashable:
    """Return a key that is equal for equal values and for functions of equal code and closures; tensors by identity."""
    if isinstance(value, MethodType):
        return _key(value.__func__), _key(value.__self__)
    if isinstance(value, FunctionType):
        cells = (_key(cell.cell_contents) for cell in value.__closure__ or ())
        keywords = tuple(sorted((value.__kwdefaults__ or {}).items()))
        return value.__code__, *cells, _key(value.__defaults__), _key(keywords)
    if isinstance(value, tuple | list):
        return tuple(map(_key, value))
    try:
        hash(value)
    except TypeError:
        return _Identity(value)
    return _Identity(value) if isinstance(value, torch.Tensor) else (type(value), value)
