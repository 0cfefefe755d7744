"""A view of any unmodified `nn.Module` that the rest of the package works with."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from floco.core.errors import FlocoError, nearest
from floco.core.head import fixed_buffers, head_layer, norm_tensors, resting
from floco.core.inputs import Inputs
from floco.core.modules import copy_module, frozen, take_over, warn_of_low_precision
from floco.core.random import global_stream
from floco.core.values import Layout, Tensors

Factory = Callable[[], nn.Module]


@dataclass(frozen=True)
class Traits:
    """What a graph does not say of the module that it was traced from."""

    layout: Layout
    text: str
    """The module's layers."""


@dataclass(frozen=True)
class Network:
    """An unmodified module and its tensors by name; the module's own values never change."""

    module: nn.Module
    factory: Factory | None = field(default=None, repr=False)
    loaded: frozenset[str] = frozenset()
    """Names of tensors with loaded values, which the initialiser must not redraw."""
    sample: Inputs | None = field(default=None, repr=False, compare=False)
    """Inputs (n, ...) for the forward pass that finds the head; None: trace the module symbolically, if possible."""
    traits: Traits | None = None
    """Those of the original, if the module is only its graph for evaluation; None: it is the original."""

    @property
    def text(self) -> str:
        """The layers of the module."""
        return str(self.module) if self.traits is None else self.traits.text

    @cached_property
    def parameters(self) -> Tensors:
        """Trainable parameters, tied ones once; frozen ones remain in the module."""
        return {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}

    @cached_property
    def buffers(self) -> Tensors:
        """Persistent buffers, e.g. the running statistics of BatchNorm; those that never change stay in the module."""
        persistent, fixed = nn.Module.state_dict(self.module), fixed_buffers(self.module)
        changing = ((n, b) for n, b in self.module.named_buffers() if n in persistent and id(b) not in fixed)
        return {name: b.detach().clone() for name, b in changing}

    @cached_property
    def layout(self) -> Layout:
        """The names of the tensors; the head is the linear layer that gives the logits."""
        if self.traits is not None:
            return self.traits.layout
        parameters, buffers, layer = self.parameters, tuple(self.buffers), head_layer(self.module, self.sample)
        norms = tuple(n for n in norm_tensors(self.module) if n in {*parameters, *buffers})
        if layer is None:
            return Layout(tuple(parameters), buffers, None, norms=norms)
        last = self._known_name(f"{layer}.weight".removeprefix("."), parameters)
        head = () if last is None else tuple(n for n in (last, f"{layer}.bias".removeprefix(".")) if n in parameters)
        return Layout(tuple(parameters), buffers, last, head, norms)

    def describe(self) -> str:
        """Return in words what is trained, the head, and how much is frozen."""
        trained, head = self.parameters, self.layout.head
        words = f"model of {sum(t.numel() for t in trained.values()):,} parameters in {len(trained)} tensors"
        size = f"({sum(trained[n].numel() for n in head):,} parameters)"
        layer = f"{head[0].rpartition('.')[0] or 'all of it'} {size}" if head else "none"
        fixed = sum(p.numel() for p in self.module.parameters() if not p.requires_grad)
        return f"{words}, head: {layer}{f', frozen: {fixed:,}' if fixed else ''}"

    def twin(self, device: torch.device, *, train: bool, own: bool = False) -> nn.Module:
        """Return a copy of the module to compute with, in evaluation mode, or in training mode but for what rests.

        Args:
            device: where the copy lives.
            train: whether it is in training mode.
            own: whether its trained tensors are its own; otherwise it shares them on the CPU, as it does frozen ones.
        """
        if train:
            self._check_class("training needs")
        tensors = () if own else (*self.module.parameters(), *self.module.buffers())
        shared = {**frozen(self.module), **{id(t): t for t in tensors}}
        copied = copy.deepcopy(self.module, shared if device.type == "cpu" else {}).to(device)
        rest, pairs = resting(self.module), list(zip(copied.modules(), self.module.modules(), strict=True))
        copied.train(train)
        for mine, given in pairs:
            mine.training = mine.training and id(given) not in rest
        return copied

    def _check_class(self, what: str) -> None:
        if self.traits is not None:
            raise FlocoError(
                f"{what} the network as its own code makes it, and here is only its graph for predictions: "
                "use the run where model.name can be imported"
            )

    def holding(self, tensors: Mapping[str, torch.Tensor], *, own: bool = True) -> nn.Module:
        """Return a copy in eval mode with these parameters and buffers, and `own` frozen ones, as to hand it out."""
        module = copy.deepcopy(self.module, {} if own else frozen(self.module))
        nn.Module.load_state_dict(module, {n: tensors[n] for n in self.layout.names}, strict=False)
        module.eval()
        return module

    def fingerprint(self) -> str:
        """Return a hash of the architecture and all initial values, including frozen ones."""
        fixed = set() if self.module.training else fixed_buffers(self.module)
        digest = hashlib.blake2b(repr(self.module).encode(), digest_size=16)
        for name, value in self._state():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        digest.update(" ".join(n for n, b in self.module.named_buffers() if id(b) in fixed).encode())
        return digest.hexdigest()

    def shape_hash(self) -> str:
        """Return a hash of the names and shapes of all tensors."""
        text = "".join(f"{name} {tuple(value.shape)} " for name, value in self._state()).encode()
        return hashlib.blake2b(text, digest_size=8).hexdigest()

    def _state(self) -> list[tuple[str, torch.Tensor]]:
        return sorted((n, t) for n, t in nn.Module.state_dict(self.module).items() if isinstance(t, torch.Tensor))

    def _known_name(self, name: str, parameters: Mapping[str, torch.Tensor]) -> str | None:
        """Return the name in `parameters` of a (perhaps tied) parameter; None if it is frozen or computed."""
        try:
            wanted = self.module.get_parameter(name)
        except AttributeError:  # computed by a parametrization
            return None
        return next((n for n, p in self.module.named_parameters() if p is wanted and n in parameters), None)

    def redraw(self, names: Sequence[str], *, seed: int, draw: int, strict: bool = True) -> Tensors:
        """Return new values of the parameters `names` from their initialiser.

        A factory builds the whole module again; for a module passed as an object, the layers that own the parameters
        run `reset_parameters`.

        Args:
            names: parameters to redraw.
            seed: determines the values, together with `draw`.
            draw: number of the draw, from 1.
            strict: whether every name must be redrawn; otherwise those that cannot be are left out.

        Raises:
            FlocoError: strict, and values were loaded, there is no initialiser, or it gives the same values every time.
        """
        self._check_class("other initial values need")
        if not strict:
            drawable = [n for n in names if self.factory is not None or _resettable(self.module, n)]
            names = [n for n in drawable if n not in self.loaded]
        if loaded := [n for n in names if n in self.loaded]:
            raise FlocoError(
                f"{loaded[0]!r} has loaded values, which no initialiser redraws; "
                "set algorithm.noise (0 is legal) to choose how far apart endpoints start"
            )
        with global_stream(seed, "endpoint", draw):
            again = self.module if self.factory is None else self.factory()
            module = copy_module(again, sample=self.sample, ours=self.factory is not None)
            if self.factory is None:
                for owner in dict.fromkeys(n.rpartition(".")[0] for n in names):
                    _reset(module.get_submodule(owner), owner)
        drawn = {n: module.get_parameter(n).detach().clone() for n in names}
        for name, value in drawn.items():
            if strict and torch.equal(value, self.parameters[name]):
                raise FlocoError(
                    f"the initialiser gives {name!r} the same values every time; "
                    "do not seed inside the function that builds the model, or set algorithm.noise"
                )
        return drawn


def _resettable(module: nn.Module, name: str) -> bool:
    return callable(getattr(module.get_submodule(name.rpartition(".")[0]), "reset_parameters", None))


def _reset(layer: nn.Module, name: str) -> None:
    reset = getattr(layer, "reset_parameters", None)
    if not callable(reset):
        raise FlocoError(
            f"endpoints of {name!r} need an initialiser, and {type(layer).__name__} has no reset_parameters(); "
            "pass a function that builds the model, or set noise"
        )
    reset()


def build_network(
    model: nn.Module | Factory,
    *,
    seed: int,
    weights: Mapping[str, torch.Tensor] | None = None,
    sample: Inputs | None = None,
) -> Network:
    """Return the network of a module, or of a function that builds one.

    Args:
        model: a module, whose current values are used, or a function without arguments that returns one.
        seed: determines the initial weights that a function draws (stream "model").
        weights: values to load into the module, e.g. pretrained ones; names must be in its state dict.
        sample: see `Network`.
    """
    factory = None if isinstance(model, nn.Module) else model
    built = model if isinstance(model, nn.Module) else _built(model, seed)
    warn_of_low_precision(built)
    with global_stream(seed, "lazy"):
        module = copy_module(built, sample=sample, ours=factory is not None)
    del built  # so that what nobody else holds need not be copied
    _load(take_over(module), weights or {})
    if not any(p.requires_grad for p in module.parameters()):
        raise FlocoError("the model has no parameter to train: all are frozen")
    return Network(module, factory, frozenset(weights or ()), sample)


def _built(factory: Factory, seed: int) -> nn.Module:
    with global_stream(seed, "model"):
        try:
            model = factory()
        except FlocoError:
            raise
        except Exception as error:
            raise FlocoError(f"the function that builds the model raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise FlocoError(f"a model must be an nn.Module or a function that returns one, got {type(model).__name__}")
    return model


def _load(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    own = module.state_dict()
    for name, value in weights.items():
        if name not in own:
            raise FlocoError(f"model.weights holds {name!r}, which the model does not have{nearest(name, own)}")
        if value.shape != own[name].shape:
            wanted, got = tuple(own[name].shape), tuple(value.shape)
            raise FlocoError(
                f"model.weights: {name!r} must have shape {wanted}, got {got}; "
                "leave a head for other classes out of the file"
            )
    module.load_state_dict(dict(weights), strict=False)
