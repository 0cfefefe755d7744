"""All that is fixed during a run, and the ways into its network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from floco.contract import Algorithm
from floco.federation import Federation
from floco.network import Network
from floco.values import Facts, Predict, Tensors, Training, fast_copy

_REMEMBERED = 2000  # clients whose facts are kept at hand


@dataclass(frozen=True)
class Setup:
    """All that is fixed during a run."""

    federation: Federation
    network: Network
    algorithm: Algorithm
    training: Training
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _facts: dict[str, Facts] = field(default_factory=dict, init=False, repr=False, compare=False)

    def facts(self, client: str) -> Facts:
        """Return what the algorithm may know of `client`."""
        if client not in self._facts:
            if len(self._facts) >= _REMEMBERED:
                self._facts.clear()
            self._facts[client] = self._facts_of(client)
        return self._facts[client]

    def _facts_of(self, client: str) -> Facts:
        train = self.federation.client(client).train
        return Facts(self.network.layout, self.training, len(train), self.federation.label_counts(train), len(batch_sizes(len(train), self.training.batch_size)))

    def predictor(self, *, train: bool, module: nn.Module | None = None) -> Predict:
        """Return `predict(tensors, x)` of the whole network, or of a copy of its module."""
        names = {n: n for n in (*self.network.layout.parameters, *self.network.layout.buffers)}
        return predictor(module or self.network.module, names, self.training, self.device, train=train)

    @cached_property
    def split(self) -> Split | None:
        """The network as body and head, if the last linear layer gives its logits and nothing else looks at that layer's weights; tried out."""
        head = self.network.layout.head
        if not head:
            return None
        split = Split(self, head)
        x = fast_copy(self.federation.normalization(self.federation.x[:4]).to(self.device))
        g = torch.Generator().manual_seed(0)
        one = {n: fast_copy(t).to(self.device) for n, t in {**self.network.parameters, **self.network.buffers}.items()}
        other = {**one, **{n: torch.randn(one[n].shape, generator=g).to(self.device) for n in head}}
        try:
            found = split([one, other], x)
        except Exception:  # noqa: BLE001  whatever it is, the network cannot be cut there
            return None
        predict = self.predictor(train=False)
        with torch.no_grad():
            same = torch.equal(found[0], predict(one, x)) and torch.equal(found[1], predict(other, x))
        return split if same else None

    @property
    def local_buffers(self) -> bool:
        """Whether clients keep floating buffers to themselves."""
        return self.training.buffers == "local" and bool(self.network.layout.buffers)


def predictor(module: nn.Module, names: Mapping[str, str], training: Training, device: torch.device, *, train: bool) -> Predict:
    """Return `predict(tensors, x)` for a module, in training or evaluation mode.

    Args:
        module: a network, or a layer of one.
        names: the module's own names of its parameters and buffers -> their names among the tensors.
        training: its `precision` is that of the arithmetic.
        device: where the tensors will be.
        train: mode of dropout and BatchNorm.
    """
    module = module.to(device).train(train)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16")

    def predict(tensors: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        with autocast:
            logits: torch.Tensor = functional_call(module, {own: tensors[n] for own, n in names.items()}, (x,))
        return logits.float()

    return predict


class Split:
    """A network cut in two: what is below its last linear layer runs once for models that have it in common."""

    def __init__(self, setup: Setup, head: Sequence[str]) -> None:
        self._module = setup.network.module
        self._head = self._module.get_submodule(head[0].rpartition(".")[0])
        self._predict = setup.predictor(train=False)
        self._upper = predictor(self._head, {n.rpartition(".")[2]: n for n in head}, setup.training, setup.device, train=False)

    @torch.no_grad()
    def __call__(self, models: Sequence[Tensors], x: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits (n, C) of inputs x (n, ...) under each model: the first has all tensors, the others their heads.

        Raises:
            NotImplementedError: the last layer was not called once, with one argument.
        """
        calls: list[tuple[Any, ...]] = []
        hook = self._head.register_forward_pre_hook(lambda _, args: calls.append(args))
        try:
            first = self._predict(models[0], x)
        finally:
            hook.remove()
        if len(calls) != 1 or len(calls[0]) != 1:
            raise NotImplementedError("the last linear layer must be called once, with its input")
        return [first, *(self._upper(m, calls[0][0]) for m in models[1:])]


def batch_sizes(n: int, batch_size: int) -> list[int]:
    """Return the sizes of one epoch's batches. A last batch of one sample joins the one before: BatchNorm needs two."""
    sizes = [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)
    if len(sizes) > 1 and sizes[-1] == 1 < batch_size:
        sizes[-2:] = [batch_size + 1]
    return sizes
