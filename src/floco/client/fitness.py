"""Whether a network fits the data, and can be trained by its named tensors: tried before the first round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from floco.client.predict import logits
from floco.client.setup import Setup
from floco.client.trial import some_rows
from floco.core.errors import FlocoError, warn
from floco.core.random import global_stream, one_thread
from floco.core.values import Tensors

_TRIED = 64  # samples on which a network is tried
_FEW = 3  # samples of a batch whose outputs must not depend on the others


def check_model(setup: Setup) -> None:
    """Raise if the network does not give one logit a class for the federation's inputs, in evaluation and in training mode; warn if it gives probabilities."""
    federation, mode = setup.federation, ""
    x = federation.x[some_rows(federation, _TRIED)[:_TRIED]]
    try:
        with one_thread(), torch.no_grad(), global_stream(setup.seed, "trial", device=setup.device):
            found = logits(setup, {**setup.network.parameters, **setup.network.buffers}, x)
            mode = " in training mode"
            trained = setup.predictor(train=True, fresh=True)(setup.initial(), setup.inputs(x))
    except FlocoError:
        raise
    except Exception as error:
        raise FlocoError(f"the model fails{mode} on inputs of shape {tuple(x[:2].shape)}: {error}") from error
    for given, when in ((found, ""), (trained, " in training mode")):
        if given.shape != (len(x), federation.classes):
            few, shape = min(2, len(x)), given[:2].shape if len(given) == len(x) else given.shape
            wanted = (few, federation.classes)
            raise FlocoError(f"for {few} inputs and {federation.classes} classes the model must give logits of shape {wanted}{when}, got {tuple(shape)}")
    with one_thread(), global_stream(setup.seed, "trial", device=setup.device), torch.enable_grad():
        moved = {n: t.requires_grad_() if n in setup.network.layout.parameters else t for n, t in setup.initial().items()}
        last = type(setup.predictor(train=False)(moved, setup.inputs(x[:2])).grad_fn).__name__
    if (end := _ends_in(found, last)) is not None:
        warn(
            f"the model's outputs look like those of a {end}: the loss is the cross-entropy of logits, which applies a softmax itself, so that training is slow and "
            f"the loss is wrong; leave the {end} at the end of the model out"
        )
    _check_tensors(replace(setup, training=replace(setup.training, precision="float32")), setup.inputs(x))


def _ends_in(outputs: torch.Tensor, last: str) -> str | None:
    """Return what outputs (n, C), whose `last` operation autograd names, have passed last: a softmax or sigmoid, None for logits."""
    if outputs.min() < 0 or torch.equal(outputs, outputs[:1].expand_as(outputs)):
        return None
    return "softmax" if torch.allclose(outputs.sum(1), torch.ones(len(outputs)), atol=1e-3) else "sigmoid" if outputs.max() <= 1 and last == "SigmoidBackward0" else None


def _check_tensors(setup: Setup, x: torch.Tensor) -> None:
    """Raise if a network is not a function of its registered parameters and buffers; warn of what makes its numbers less than they seem.

    Its tensors are put in from outside, one client's after the other's. A module that computes with copies of them (a list, a cache,
    weights that are merged in `eval()`), or that re-assigns a buffer, would train one thing, and be evaluated or handed out as another.

    Args:
        setup: what is fixed in the run, with arithmetic in float32.
        x: inputs (n, ...), n >= 2, on the device.
    """
    with one_thread():
        other = _other(setup)
        _check_evaluation(setup, other, x)
        _check_training(setup, other, x)
        _check_ids(setup, x)


def _other(setup: Setup) -> Tensors:
    """Return tensors near the initial ones: none of them is equal by chance."""
    g = torch.Generator().manual_seed(0)

    def moved(t: torch.Tensor, name: str) -> torch.Tensor:
        if not t.is_floating_point():
            return t
        noise = torch.rand(t.shape, generator=g).to(t)
        return t * (1 + 0.2 * noise) if name in setup.network.layout.buffers else t + (noise - 0.5) * (0.2 * t.abs().mean() + 0.02)

    return {n: moved(t, n) for n, t in setup.initial().items()}


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-4, equal_nan=True)


def _copied(tensors: Tensors) -> Tensors:
    return {n: t.clone() for n, t in tensors.items()}


@torch.no_grad()
def _check_evaluation(setup: Setup, other: Tensors, x: torch.Tensor) -> None:
    predict, before = setup.predictor(train=False, fresh=True), x.clone()
    predict(setup.initial(), x)
    if not torch.equal(x, before):
        raise FlocoError("the model changes its inputs in place, and several models are given the same inputs: write x = x - 1, not x -= 1, at the start of the forward pass")
    found, again = predict(_copied(other), x), predict(_copied(other), x)
    if not _close(found, again):
        warn("the model's outputs in evaluation mode are not the same twice (dropout without training=self.training?): accuracies are those of a random model")
        return
    if not _close(found, setup.network.holding({n: t.cpu() for n, t in other.items()}).to(setup.device)(x).float()):
        raise FlocoError(
            "the model computes with other tensors than its registered parameters and buffers (a list of parameters, a cache of weights, weights merged in eval()): "
            "what is evaluated would not be the model that is handed out; use each parameter by its attribute, and keep no copy of it"
        )
    if len(x) > _FEW and not _close(predict(_copied(other), x[:_FEW]), found[:_FEW]):
        warn(
            "the model's outputs in evaluation mode depend on which samples share a batch (BatchNorm with track_running_stats=False?): accuracies are those of this order and size "
            "of batches, and predictions of single samples differ"
        )


def _check_training(setup: Setup, other: Tensors, x: torch.Tensor) -> None:
    module, tensors = setup.network.twin(torch.device("cpu"), train=True, own=True).to(setup.device), _copied(other)
    layout = setup.network.layout
    with global_stream(setup.seed, "trial", device=setup.device), torch.no_grad():
        module(x)  # the first time, a module may set itself up
    module.load_state_dict(other, strict=False)
    passing = {n: b.clone() for n, b in module.named_buffers() if n not in layout.buffers}
    mine, theirs = [tensors[n].requires_grad_() for n in layout.parameters], dict(module.named_parameters())
    expected, _ = _gradients(setup, lambda: module(x), [theirs[n] for n in layout.parameters])
    predict = setup.predictor(train=True, fresh=True)
    with global_stream(setup.seed, "trial", device=setup.device), torch.no_grad():
        predict(_copied(other), x)
    found, unused = _gradients(setup, lambda: predict(tensors, x), mine)
    after = dict(module.named_buffers())
    if lost := [n for n in layout.buffers if not _close(after[n], tensors[n].detach())]:
        raise FlocoError(f"the model re-assigns its buffer {lost[0]!r} in the forward pass, so that its updates would be lost: change it in place, e.g. by copy_ or mul_")
    if changed := [n for n, b in passing.items() if n in after and not _close(after[n], b)]:
        raise FlocoError(f"the model changes its buffer {changed[0]!r}, which is not persistent and so belongs to no client's model: register it with persistent=True")
    if wrong := [n for n, a, b in zip(layout.parameters, expected, found, strict=True) if not (a - b).norm() <= 1e-2 * a.norm() + 1e-4]:
        raise FlocoError(f"the gradient of {wrong[0]!r} is another one when the tensors are put in from outside (torch.utils.checkpoint?): the model cannot be trained so")
    _check_unused(layout.parameters, unused)


@torch.no_grad()
def _check_ids(setup: Setup, x: torch.Tensor) -> None:
    """Warn if inputs reach an Embedding as ids, and are normalised before: positions and the like do not depend on the inputs."""
    normal, form = setup.federation.normalization, setup.federation.form
    if not normal.mean or (not any(form.mean) and all(s == 1 for s in normal.std)):
        return
    module = setup.network.twin(setup.device, train=False)
    given: list[torch.Tensor] = []
    for m in module.modules():
        if isinstance(m, nn.Embedding | nn.EmbeddingBag):
            m.register_forward_pre_hook(lambda _, args: given.append(args[0].clone()))
    module(x)
    first, given[:] = list(given), []
    module(x.roll(1, 0))
    if any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, given, strict=False)):
        warn("the model looks its inputs up in an Embedding, and they are normalised before: ids that are shifted and scaled are other ids; set data.normalize = none")


def _gradients(setup: Setup, forward: Callable[[], torch.Tensor], parameters: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[bool]]:
    """Return the gradients of a function of the outputs, and which parameters have none."""
    with global_stream(setup.seed, "trial", device=setup.device), torch.enable_grad():
        outputs = forward()
    given: Sequence[torch.Tensor | None] = torch.autograd.grad(outputs.float().log_softmax(1)[:, 0].sum(), list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, given, strict=True)], [g is None for g in given]


def _check_unused(names: Sequence[str], unused: Sequence[bool]) -> None:
    idle = [n for n, nothing in zip(names, unused, strict=True) if nothing]
    if len(idle) == len(names):
        raise FlocoError("no parameter gets a gradient: the model computes with others than it has registered (a function that closes over the module?), or under torch.no_grad()")
    if idle:
        warn(
            f"{len(idle)} parameters get no gradient ({', '.join(idle[:3])}{', ...' if len(idle) > 3 else ''}): nothing trains them, and weight decay would "
            "shrink them all the same; freeze them by requires_grad_(False)"
        )
