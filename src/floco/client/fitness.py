"""Checks before the first round: whether a network fits the data and can be trained through its named tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from floco.client.input_checks import check_frozen_norms, check_ids, check_single
from floco.client.loss_checks import check_loss
from floco.client.setup import Setup
from floco.client.trial import choose_rows, copied, move
from floco.core.errors import FlocoError, warn
from floco.core.head import outputs_of
from floco.core.inputs import Inputs, arguments, columns, count, each, rows, shapes
from floco.core.random import global_stream, one_thread
from floco.core.values import Tensors

_TRIED = 64  # samples for the checks
_FEW = 3  # samples whose outputs must not depend on the rest of the batch


def check_model(setup: Setup) -> None:
    """Check that the network fits the federation and can be trained through its named tensors.

    Its outputs must be those of the task in evaluation and in training mode. Warns, among other things, if it gives
    probabilities instead of logits.

    Raises:
        FlocoError: the network cannot be used.
    """
    chosen = choose_rows(setup.federation, _TRIED)[:_TRIED]
    x, y = rows(setup.federation.x, chosen), setup.federation.y[chosen]
    with one_thread():
        _check_outputs(setup, x, y)
        check_single(setup, setup.inputs(x))
        check_frozen_norms(setup)
        _check_tensors(setup.float32, setup.inputs(x), y)
        _check_decay(setup.float32, setup.inputs(x))


def _check_outputs(setup: Setup, x: Inputs, y: torch.Tensor) -> None:
    """Check the network's outputs for raw samples x with targets y against the task."""
    federation, mode = setup.federation, ""
    try:
        with torch.no_grad(), global_stream(setup.seed, "trial", device=setup.device):
            found = setup.predictor(train=False)(setup.initial(), setup.inputs(x)).cpu()
            mode = " in training mode"
            trained = setup.predictor(train=True, fresh=True)(setup.initial(), setup.inputs(x))
    except FlocoError:
        raise
    except Exception as error:
        raise FlocoError(f"the model fails{mode} on inputs of shape {shapes(rows(x, slice(2)))}: {error}") from error
    for given, when in ((found, ""), (trained.cpu(), " in training mode")):
        setup.task.check(given, y, federation.schema.labels, when)
    check_loss(setup.task, found, y)
    _check_shift(setup, found, x)
    with global_stream(setup.seed, "trial", device=setup.device), torch.enable_grad():
        tensors = setup.initial()
        for name in setup.network.layout.parameters:
            tensors[name].requires_grad_()
        last = type(setup.predictor(train=False)(tensors, setup.inputs(rows(x, slice(2)))).grad_fn).__name__
    if doubt := setup.task.doubt(found, last):
        warn(doubt)


def _check_shift(setup: Setup, outputs: torch.Tensor, x: Inputs) -> None:
    """Check that the outputs, (n, C), move with the last bias, and the loss with them, where a task adds a shift."""
    if (shift := setup.task.shift(counts := range(0, 10 * outputs.shape[-1], 10))) is None:  # more than chance
        return
    try:
        plain = torch.arange(len(outputs)) % outputs.shape[-1]
        given = setup.task.loss(outputs, setup.task.training_targets(plain, counts))
        same = torch.allclose(given, setup.task.loss(outputs + shift, plain), rtol=1e-4)
    except Exception:  # noqa: BLE001  a loss that does not take such targets, whatever it raises
        same = False
    if not same:
        raise FlocoError(
            f'task {setup.task.name}: task.prior = "client" needs a loss that takes targets with a prior: let it begin '
            "with outputs, targets = floco.tasks.prior.add_prior(outputs, targets)"
        )
    tensors, bias = {**setup.network.parameters, **setup.network.buffers}, setup.network.layout.head[1]
    both = ({**tensors, bias: tensors[bias].detach() + by} for by in (0.0, shift))
    before, moved = (setup.float32.predictor(train=False)(given, setup.inputs(x)).cpu() for given in both)
    if not torch.allclose(moved, before + shift, rtol=1e-3, atol=1e-3):
        raise FlocoError(
            'task.prior = "client" adds log frequencies to the last bias, and the model changes its logits after that '
            "(by a scale, or a softmax of its own): return the last layer's outputs as they are"
        )


def _check_decay(setup: Setup, x: Inputs) -> None:
    """Warn if a hair of weight decay changes outputs altogether: some parametrizations keep signs among parameters."""
    if not setup.training.weight_decay:
        return
    predict, tensors = setup.predictor(train=False), setup.initial()
    with torch.no_grad():
        found, again = predict(tensors, x), predict(tensors, x)
        decayed = predict({**tensors, **{n: tensors[n] * (1 - 1e-4) for n in setup.network.layout.parameters}}, x)
    if _close(found, again) and (found - decayed).norm() > 0.1 * found.norm() + 1e-6:
        warn(
            "weight decay destroys the model: with all parameters 0.01 % smaller its outputs are others "
            "(torch's parametrizations.orthogonal of a layer that is not square?); set training.weight_decay = 0"
        )


def _check_tensors(setup: Setup, x: Inputs, y: torch.Tensor) -> None:
    """Check that a network is a function of its registered parameters and buffers; warn of misleading outputs.

    Clients' tensors are substituted into one module. If the module computes with copies of its tensors (a list, a
    cache, weights merged in `eval()`) or re-assigns a buffer, the trained model is not the evaluated and delivered one.

    Args:
        setup: the setup of the run, with float32 arithmetic.
        x: inputs (n, ...), n >= 2, on the device.
        y: their targets.
    """
    other = move(setup.initial(), setup.network.layout.buffers)
    _check_evaluation(setup, other, x)
    _check_training(setup, other, x, y.to(setup.device))
    check_ids(setup, x)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-4, equal_nan=True)


@torch.no_grad()
def _check_evaluation(setup: Setup, other: Tensors, x: Inputs) -> None:
    predict, before = setup.predictor(train=False, fresh=True), each(torch.clone, x)
    predict(setup.initial(), x)
    _check_inputs(x, before)
    found, again = predict(copied(other), x), predict(copied(other), x)
    if not _close(found, again):
        warn(
            "the model's outputs in evaluation mode are not the same twice (dropout without training=self.training?): "
            "accuracies are those of a random model"
        )
        return
    module, (args, kwargs) = setup.network.twin(setup.device, train=False, own=True), arguments(x)
    nn.Module.load_state_dict(module, other, strict=False)
    if not _close(found, outputs_of(module(*args, **kwargs)).float()):
        raise FlocoError(
            "the model computes with other tensors than its registered parameters and buffers (a list of parameters, "
            "a cache of weights, weights merged in eval()): the evaluated model would not be the delivered one; "
            "use each parameter by its attribute, and keep no copy of it"
        )
    if count(x) > _FEW and not _close(predict(copied(other), rows(x, slice(_FEW))), found[:_FEW]):
        warn(
            "the model's outputs in evaluation mode depend on which samples share a batch (BatchNorm with "
            "track_running_stats=False?): accuracies hold for this order and size of batches only, and predictions of "
            "single samples differ"
        )


def _check_inputs(x: Inputs, before: Inputs) -> None:
    if not all(map(torch.equal, columns(x).values(), columns(before).values())):
        raise FlocoError(
            "the model changes its inputs in place, and several models are given the same inputs: "
            "write x = x - 1, not x -= 1, at the start of the forward pass"
        )


def _check_training(setup: Setup, other: Tensors, x: Inputs, y: torch.Tensor) -> None:
    """Compare the gradients of tensors that are substituted with those of a module of its own; `other` is used up."""
    layout, (expected, after) = setup.network.layout, _train_alone(setup, other, x, y)
    predict = setup.predictor(train=True, fresh=True)
    with global_stream(setup.seed, "trial", device=setup.device), torch.no_grad():
        predict(copied(other), x)
    mine = [other[n].requires_grad_() for n in layout.parameters]
    found, unused = _gradients(setup, lambda: predict(other, x), y, mine)
    if lost := [n for n in layout.buffers if not _close(after[n], other[n].detach())]:
        raise FlocoError(
            f"the model re-assigns its buffer {lost[0]!r} in the forward pass, so that its updates would be lost: "
            "change it in place, e.g. by copy_ or mul_"
        )
    for n, a, b in zip(layout.parameters, expected, found, strict=True):
        if not (a - b).norm() <= 1e-2 * a.norm() + 1e-4:
            raise FlocoError(
                f"the gradient of {n!r} differs when tensors are substituted by functional_call "
                "(torch.utils.checkpoint?): the model cannot be trained this way"
            )
    _check_unused(layout.parameters, unused)


def _train_alone(setup: Setup, other: Tensors, x: Inputs, y: torch.Tensor) -> tuple[list[torch.Tensor], Tensors]:
    """Return the gradients of a module with these tensors of its own, and its buffers after one pass."""
    args, kwargs = arguments(x)
    module, layout = setup.network.twin(setup.device, train=True, own=True), setup.network.layout
    with global_stream(setup.seed, "trial", device=setup.device), torch.no_grad():
        before = each(torch.clone, x)
        module(*args, **kwargs)  # modules may initialise themselves in the first call
        _check_inputs(x, before)
    nn.Module.load_state_dict(module, other, strict=False)
    passing, still = {n: b.clone() for n, b in module.named_buffers() if n not in layout.buffers}, _frozen(module)
    theirs = dict(module.named_parameters())
    found, _ = _gradients(setup, lambda: module(*args, **kwargs), y, [theirs[n] for n in layout.parameters])
    after = dict(module.named_buffers())
    if changed := [n for n, b in passing.items() if n in after and not _close(after[n], b)]:
        raise FlocoError(
            f"the model changes its buffer {changed[0]!r}, which is in no client's model, as it is not persistent or "
            "belongs to a frozen layer: register it with persistent=True, or leave it as it is"
        )
    if changed := [n for n, sums in _frozen(module).items() if sums != still[n]]:
        raise FlocoError(
            f"the model changes its frozen parameter {changed[0]!r} in the forward pass, which is part of no message "
            "and no client's model: register it as a buffer"
        )
    return found, after


def _frozen(module: nn.Module) -> dict[str, str]:
    """Return sums by which a change of frozen parameters is seen, without a copy of them."""
    fixed = {n: p.detach() for n, p in module.named_parameters() if not p.requires_grad}
    return {n: f"{float(p.sum())!r} {float(torch.linalg.vector_norm(p.float()))!r}" for n, p in fixed.items()}


def _gradients(
    setup: Setup, forward: Callable[[], torch.Tensor], y: torch.Tensor, parameters: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], list[bool]]:
    """Return the gradients of the task's loss of the outputs, and which parameters get none."""
    with global_stream(setup.seed, "trial", device=setup.device), torch.enable_grad():
        outputs = forward()
    value = setup.task.loss(outputs_of(outputs).float(), y)
    if not all(p.requires_grad for p in parameters):
        raise FlocoError(
            "the model changes which parameters are trained in its forward pass: freeze them by requires_grad_(False) "
            "before, and use detach() in the forward pass"
        )
    given: Sequence[torch.Tensor | None] = torch.autograd.grad(value, list(parameters), allow_unused=True)
    if any(g is not None and g.is_sparse for g in given):
        raise FlocoError("the model has sparse gradients, which floco does not train: build layers without sparse=True")
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, given, strict=True)]
    return gradients, [g is None for g in given]


def _check_unused(names: Sequence[str], unused: Sequence[bool]) -> None:
    idle = [n for n, nothing in zip(names, unused, strict=True) if nothing]
    if len(idle) == len(names):
        raise FlocoError(
            "no parameter gets a gradient: the model computes with others than it has registered "
            "(a function that closes over the module?), or under torch.no_grad()"
        )
    if idle:
        shown = ", ".join(idle[:3]) + (", ..." if len(idle) > 3 else "")
        warn(
            f"{len(idle)} parameters get no gradient ({shown}): if nothing ever trains them, weight decay shrinks "
            "them all the same: freeze them by requires_grad_(False); if passes leave layers out at random, ignore this"
        )
