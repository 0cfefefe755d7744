"""The view of any unmodified `nn.Module` that the rest of the package works with."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from floco.core.errors import FlocoError, nearest
from floco.core.head import head_layer
from floco.core.random import global_stream
from floco.core.values import Layout, Tensors

Factory = Callable[[], nn.Module]


@dataclass(frozen=True)
class Network:
    """An unmodified module, and its trained tensors by name. The module's own values are never changed."""

    module: nn.Module
    factory: Factory | None = field(default=None, repr=False)
    loaded: frozenset[str] = frozenset()
    """Names whose values were loaded: further draws of the initialiser would not belong to them."""
    sample: torch.Tensor | None = field(default=None, repr=False, compare=False)
    """Inputs (n, ...) on which it is seen which layer gives the logits; None: read from the module's code, where that can be traced."""

    @cached_property
    def parameters(self) -> Tensors:
        """Trainable parameters, tied ones once; frozen ones stay in the module."""
        return {name: p.detach().clone() for name, p in self.module.named_parameters() if p.requires_grad}

    @cached_property
    def buffers(self) -> Tensors:
        """Persistent buffers, e.g. the running statistics of BatchNorm."""
        persistent = self.module.state_dict(keep_vars=True)
        return {name: b.detach().clone() for name, b in self.module.named_buffers() if name in persistent}

    @cached_property
    def layout(self) -> Layout:
        """The names of the tensors; the last linear layer is the one that gives the logits."""
        parameters = self.parameters
        layer = head_layer(self.module, self.sample)
        if layer is None:
            return Layout(tuple(parameters), tuple(self.buffers), None)
        last = self._known_name(f"{layer}.weight".removeprefix("."), parameters)
        head = () if last is None else tuple(n for n in (last, f"{layer}.bias".removeprefix(".")) if n in parameters)
        return Layout(tuple(parameters), tuple(self.buffers), last, head)

    def twin(self, device: torch.device, *, train: bool, own: bool = False) -> nn.Module:
        """Return a copy of the module in training or evaluation mode, to compute with; on the CPU it shares the module's tensors, unless it gets its `own`.

        In training mode, submodules that their owner has put into evaluation mode stay in it, as frozen backbones do; a module
        that is in evaluation mode as a whole, as many libraries load them, is trained as a whole.
        """
        shared = (*self.module.parameters(), *self.module.buffers()) if device.type == "cpu" and not own else ()
        copied = copy.deepcopy(self.module, {id(t): t for t in shared}).to(device).train(train)
        if train and self.module.training:
            for mine, given in zip(copied.modules(), self.module.modules(), strict=True):
                mine.training = mine.training and given.training
        return copied

    def holding(self, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        """Return a copy of the module with these values of its parameters and buffers, in eval mode; other names are left out."""
        module = copy.deepcopy(self.module)
        module.load_state_dict({n: tensors[n] for n in (*self.layout.parameters, *self.layout.buffers)}, strict=False)
        return module.eval()

    def fingerprint(self) -> str:
        """Return a hash of the architecture and of all initial values, frozen ones too."""
        digest = hashlib.blake2b(repr(self.module).encode(), digest_size=16)
        for name, value in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _known_name(self, name: str, parameters: Mapping[str, torch.Tensor]) -> str | None:
        """Return the name under which a parameter is known, if it is tied another one; None for one that is frozen, or computed from others."""
        try:
            wanted = self.module.get_parameter(name)
        except AttributeError:  # a parametrization gives it
            return None
        return next((n for n, p in self.module.named_parameters() if p is wanted and n in parameters), None)

    def redraw(self, names: Sequence[str], *, seed: int, draw: int, strict: bool = True) -> Tensors:
        """Return a further draw of the initialiser of the parameters `names`; `draw` numbers them from 1.

        From a factory, the whole module is built anew; of a module that was given as it is, the layers that own the
        parameters run their own `reset_parameters`. Not `strict`: what cannot be drawn anew keeps its value.

        Raises:
            FlocoError: strict, and values were loaded, there is no initialiser, or it gives the same values every time.
        """
        if not strict:
            names = [n for n in names if n not in self.loaded and (self.factory is not None or _resettable(self.module, n))]
        if loaded := [n for n in names if n in self.loaded]:
            raise FlocoError(f"{loaded[0]!r} has loaded values, which no initialiser redraws; set algorithm.noise (0 is legal) to say how far endpoints start apart")
        with global_stream(seed, "endpoint", draw):
            module = copy.deepcopy(self.module) if self.factory is None else self.factory()
            if self.factory is None:
                for owner in dict.fromkeys(n.rpartition(".")[0] for n in names):
                    _reset(module.get_submodule(owner), owner)
        drawn = {n: module.get_parameter(n).detach().clone() for n in names}
        for name, value in drawn.items():
            if strict and torch.equal(value, self.parameters[name]):
                raise FlocoError(f"the initialiser gives {name!r} the same values every time; do not seed inside the function that builds the model, or set algorithm.noise")
        return drawn


def _resettable(module: nn.Module, name: str) -> bool:
    return callable(getattr(module.get_submodule(name.rpartition(".")[0]), "reset_parameters", None))


def _reset(layer: nn.Module, name: str) -> None:
    reset = getattr(layer, "reset_parameters", None)
    if not callable(reset):
        raise FlocoError(f"endpoints of {name!r} need an initialiser, and {type(layer).__name__} has no reset_parameters(); pass a function that builds the model, or set noise")
    reset()


def network(model: nn.Module | Factory, *, seed: int, weights: Mapping[str, torch.Tensor] | None = None, sample: torch.Tensor | None = None) -> Network:
    """Return the network of a module, or of a function that builds one (under the stream "model" of `seed`).

    Args:
        model: a module is taken with the values it has; a function is called without arguments.
        seed: what the initial weights follow from.
        weights: values to load into the module, e.g. pretrained ones; names must be in its state dict.
        sample: see `Network`.
    """
    factory = None if isinstance(model, nn.Module) else model
    if factory is not None:
        with global_stream(seed, "model"):
            try:
                model = factory()
            except FlocoError:
                raise
            except Exception as error:
                raise FlocoError(f"the function that builds the model raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise FlocoError(f"a model must be an nn.Module or a function that returns one, got {type(model).__name__}")
    if any(isinstance(p, nn.UninitializedParameter | nn.UninitializedBuffer) for p in (*model.parameters(), *model.buffers())):
        raise FlocoError("the model has lazy layers, whose shapes are not known yet: call it once on a batch of inputs, or use layers with shapes")
    if hooked := [n for n, p in model.named_parameters() if p._backward_hooks]:
        raise FlocoError(f"the parameter {hooked[0]!r} has a gradient hook, which floco does not run: put what it does into the forward pass, e.g. a mask of the weight")
    try:
        module = copy.deepcopy(model).cpu()
    except Exception as error:
        raise FlocoError(f"the model cannot be copied ({type(error).__name__}: {error}); keep locks, open files and tensors computed from others out of its attributes") from error
    if weights is not None:
        _load(module, weights)
    if not any(p.requires_grad for p in module.parameters()):
        raise FlocoError("the model has no parameter to train: all are frozen")
    return Network(module, factory, frozenset(weights or ()), sample)


def _load(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    own = module.state_dict()
    for name, value in weights.items():
        if name not in own:
            raise FlocoError(f"model.weights holds {name!r}, which the model does not have{nearest(name, own)}")
        if value.shape != own[name].shape:
            raise FlocoError(f"model.weights: {name!r} must have shape {tuple(own[name].shape)}, got {tuple(value.shape)}; leave a head for other classes out of the file")
    module.load_state_dict(dict(weights), strict=False)
