"""Modules as people write them, made into copies with ordinary tensors: wrappers, lazy layers, hooks, precision."""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from floco.core.errors import FlocoError, warn
from floco.core.head import fixed_buffers
from floco.core.inputs import Inputs, arguments, shapes
from floco.core.random import one_thread

_LOW = (torch.float16, torch.bfloat16)
_LAZY = (
    "the model has lazy layers, whose shapes are not known yet: call it once on a batch of inputs, "
    "pass a function that builds it, or use layers with shapes"
)


def copy_module(module: nn.Module, *, sample: Inputs | None = None, ours: bool = False) -> nn.Module:
    """Return a copy of a module on the CPU, whose tensors have their shapes and can be trained.

    Wrappers (DataParallel, torch.compile) are left out; lazy layers are initialised by a forward pass of the sample
    (n, ...); half-precision weights become float32.

    Args:
        module: the module.
        sample: inputs for lazy layers. None: they are refused.
        ours: whether a function has just made the module: some lazy layers cannot be copied before they have shapes,
            and frozen parameters are shared until `take_over`.

    Raises:
        FlocoError: it has tensors that cannot be trained by name, or cannot be copied.
    """
    module = _unwrapped(module)
    if ours and _lazy(module):
        _raise_precision(module)
        _initialize(module, sample)
    _check_parameters(module)
    memo: dict[int, object] = {id(t): t.detach().clone() for t in _computed(module)}
    memo |= {i: p for i, p in frozen(module).items() if ours and p.device.type == "cpu" and p.dtype not in _LOW}
    try:
        made = copy.deepcopy(module, memo).cpu()
    except Exception as error:
        if _lazy(module):
            raise FlocoError(_LAZY) from error
        raise FlocoError(
            f"the model cannot be copied ({type(error).__name__}: {error}); "
            "keep locks, open files and tensors computed from others out of its attributes"
        ) from error
    theirs = {id(m) for m in module.modules()}
    if same := [type(m).__name__ for m in made.modules() if id(m) in theirs]:
        raise FlocoError(f"the model cannot be copied: {same[0]}.__deepcopy__ returns the module itself; leave it out")
    _raise_precision(made)
    _initialize(made, sample)
    return made


_Slot = tuple[dict[str, nn.Parameter | None], str]


def take_over(module: nn.Module) -> nn.Module:
    """Return the module with copies of frozen parameters that somebody else holds, too, e.g. a common backbone."""
    slots = _frozen_slots(module)
    if any(map(_is_held_elsewhere, slots)):
        gc.collect()  # a module that nobody needs any more may have cycles
    for places in filter(_is_held_elsewhere, slots):
        owner, name = places[0]
        made = copy.deepcopy(owner[name])
        for owner, name in places:
            owner[name] = made
    return module


def _frozen_slots(module: nn.Module) -> list[list[_Slot]]:
    """Return for each frozen parameter where the module's layers hold it."""
    slots: dict[int, list[_Slot]] = {}
    for layer in module.modules():
        for name, p in layer._parameters.items():
            if p is not None and not p.requires_grad:
                slots.setdefault(id(p), []).append((layer._parameters, name))
    return list(slots.values())


def _is_held_elsewhere(places: list[_Slot]) -> bool:
    owner, name = places[0]
    return sys.getrefcount(owner[name]) > len(places) + 1  # the argument itself counts, too


def frozen(module: nn.Module) -> dict[int, nn.Parameter]:
    """Return a module's frozen parameters by their `id`, as a memo for copies that share them."""
    return {id(p): p for p in module.parameters() if not p.requires_grad}


def warn_of_low_precision(module: nn.Module) -> None:
    """Warn if a module has half-precision tensors, which its copy will have in float32."""
    found = {t.dtype for t in (*module.parameters(), *module.buffers()) if t.dtype in _LOW}
    if found:
        low = ", ".join(sorted(str(d).removeprefix("torch.") for d in found))
        warn(
            f"the model has {low} weights, in which small steps are lost: they are float32 here, also in the models "
            'that are handed out; training.precision = "bf16" computes in bfloat16, and a forward pass that casts its '
            "inputs must cast them to the weights' type"
        )


def _raise_precision(module: nn.Module) -> None:
    """Make half-precision tensors float32; others, e.g. of float64, stay as they are."""
    module._apply(lambda t: t.float() if t.dtype in _LOW else t)


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif (inner := dict(module.named_children()).get("_orig_mod")) is not None:  # of torch.compile
            module = inner
        else:
            return module


def _check_parameters(module: nn.Module) -> None:
    fixed = fixed_buffers(module)
    sent = [n for n, p in module.named_parameters() if p.requires_grad]
    for name in (*sent, *(n for n, b in module.named_buffers() if id(b) not in fixed)):
        if "/" in name:
            raise FlocoError(f'the name {name!r} has a "/", which separates parts of names here: rename its module')
    for name, p in module.named_parameters():
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
            raise FlocoError(
                f"the parameter {name!r} has a gradient hook, which floco does not run: "
                "put what it does into the forward pass, e.g. a mask of the weight"
            )
        if p.is_complex():
            raise FlocoError(
                f"the parameter {name!r} has complex numbers, and average and step are of real ones: "
                "register real and imaginary part as two parameters, and use torch.complex in the forward pass"
            )


def _computed(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield attributes that known hooks compute from parameters before every forward pass."""
    for layer in module.modules():
        for hook in layer._forward_pre_hooks.values():
            name = None
            if isinstance(hook, prune.BasePruningMethod):
                name = hook._tensor_name
            elif isinstance(hook, WeightNorm | SpectralNorm):
                name = hook.name
            if name is not None and isinstance(value := getattr(layer, name), torch.Tensor):
                yield value


def _initialize(module: nn.Module, sample: Inputs | None) -> None:
    """Let lazy layers find their shapes, and draw their values, in a forward pass in evaluation mode."""
    if not _lazy(module):
        return
    if sample is not None:
        modes = {m: m.training for m in module.modules()}
        args, kwargs = arguments(sample)
        try:
            with one_thread(), torch.no_grad():
                module.eval()
                module(*args, **kwargs)
        except Exception as error:
            raise FlocoError(f"the model fails on inputs of shape {shapes(sample)}: {error}") from error
        for m, training in modes.items():
            m.training = training
    if _lazy(module):
        raise FlocoError(_LAZY)


def _lazy(module: nn.Module) -> bool:
    tensors = (*module.parameters(), *module.buffers())
    return any(isinstance(t, nn.UninitializedParameter | nn.UninitializedBuffer) for t in tensors)
