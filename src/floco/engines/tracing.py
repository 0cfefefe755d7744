"""Functions of tensors that are asked for again and again: told apart by code, closures and shapes, traced, and replayed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from floco.core.values import Step

_KEPT = 200  # programs
_OFTEN = 20  # steps after which a program is traced: a fifth of a second, which rare shapes do not earn
Program = Callable[..., list[torch.Tensor]]
"""A function of tensors."""


def warm_up() -> None:
    """Trace something: the first time takes a second and 70 MB, which forked processes then share."""
    make_fx(lambda x: [x + 1])(torch.ones(1))


class Programs:
    """Programs by what they compute. One that is asked for often is traced; the arithmetic, and its bits, stay the same."""

    def __init__(self) -> None:
        self._asked: Counter[Hashable] = Counter()
        self._traced: dict[Hashable, Program] = {}

    def of(self, key: Hashable, program: Program, inputs: Sequence[torch.Tensor]) -> Program:
        """Return `program`, or what was traced of one with an equal key and inputs of the same shapes and kinds."""
        if not lasting(key):
            return program
        key = key, tuple((t.shape, t.dtype, t.device) for t in inputs)
        self._asked[key] += 1
        if self._asked[key] == _OFTEN:
            if len(self._traced) >= _KEPT:
                self._traced.clear()
                self._asked.clear()
            try:
                self._traced[key] = _pruned(make_fx(program)(*[t.clone() for t in inputs]), inputs)  # clones: tracing runs it, and BatchNorm counts
            except Exception:  # noqa: BLE001  what can be batched but not traced goes on as it is, with the same bits
                return program
        return self._traced.get(key, program)


class _Values(torch.fx.Interpreter):
    """Notes the value of every step of a program."""

    def run_node(self, n: torch.fx.Node) -> Any:
        n.meta["value"] = value = super().run_node(n)
        return value


_aten = torch.ops.aten
_VIEWS = (_aten.expand.default, _aten.view.default, _aten._unsafe_view.default)
_CONSTANT = (_aten.scalar_tensor.default, _aten.ones_like.default, _aten.zeros_like.default, _aten.new_zeros.default)
"""What depends on shapes only."""


def _pruned(program: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Program:
    """Return the program without the steps that do nothing, are done twice, or give what is known: each costs as much as one that counts."""
    _Values(program).run(*[t.clone() for t in inputs])
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    pure = not any(isinstance(n.target, torch._ops.OpOverload) and (n.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in n.target.tags) for n in calls)
    first: dict[str, torch.fx.Node] = {}
    for node in calls:
        source = node.args[0] if node.args and isinstance(node.args[0], torch.fx.Node) else None
        unchanged = source is not None and (
            (node.target in _VIEWS and node.meta["value"].shape == source.meta["value"].shape)
            or node.target is _aten.detach.default
            or (pure and node.target is _aten.mul.Scalar and node.args[1] == 1 and node.meta["value"].dtype == source.meta["value"].dtype)
        )
        if unchanged:
            node.replace_all_uses_with(source)
        elif pure and (node.target in _CONSTANT or (node.all_input_nodes and all(n.op == "get_attr" for n in node.all_input_nodes))):
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
    forward: Program = program.forward  # a module's own call looks for hooks
    return forward


def loss_key(step: Step) -> Hashable:
    """Return what two steps have in common if their gradients are one program; closures count."""
    return _key(step.loss), _key(step.correction)


def step_key(step: Step) -> Hashable:
    """Return what two steps have in common if clients can take them together."""
    return loss_key(step), step.moves, step.lr, step.momentum, step.weight_decay, step.repeat, tuple(step.coefficients.items())


class _Identity:
    """Something that equals itself only."""

    def __init__(self, value: object) -> None:
        self._value = value  # kept alive: an address can be used again

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)


def lasting(key: Hashable) -> bool:
    """Return whether another value can equal a key: one that names a tensor would keep it alive, and match nothing in the next round."""
    return all(map(lasting, key)) if isinstance(key, tuple) else not isinstance(key, _Identity)


def _key(value: Any) -> Hashable:
    """Return a key that is equal for functions with equal code and closures, and for equal values; tensors equal themselves only."""
    if isinstance(value, MethodType):
        return _key(value.__func__), _key(value.__self__)
    if isinstance(value, FunctionType):
        return value.__code__, *(_key(cell.cell_contents) for cell in value.__closure__ or ()), _key(value.__defaults__), _key(tuple(sorted((value.__kwdefaults__ or {}).items())))
    if isinstance(value, tuple | list):
        return tuple(map(_key, value))
    try:
        hash(value)
    except TypeError:
        return _Identity(value)
    return _Identity(value) if isinstance(value, torch.Tensor) else (type(value), value)
