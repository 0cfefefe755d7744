"""Which clients can train together as one batched program, and the attempt to do so."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch.func import vmap

from floco.client.setup import Setup
from floco.client.sgd import Work
from floco.core.inputs import columns, each, like, rows
from floco.core.random import one_thread
from floco.core.values import Batch, Predict, Step, Tensors
from floco.engines.stack import Cohort
from floco.engines.tracing import Programs, lasting, step_key


def refusal(setup: Setup) -> str | None:
    """Return why a network's training cannot be batched over clients; None if it can (two clients are tried)."""
    if setup.hidden_state is not None:
        return setup.hidden_state
    device, federation = setup.device, setup.federation
    initial = {**setup.network.parameters, **setup.network.buffers}
    tensors = {n: torch.stack([t, t]).to(device) for n, t in initial.items()}
    x = federation.inputs(federation.clients[0].train[[0, -1]])
    x = each(lambda column: column.expand(2, *column.shape).to(device), x)
    moved = [tensors[n].requires_grad_() for n in setup.network.layout.parameters]

    def gradients(outputs: Callable[[Predict, Tensors], torch.Tensor]) -> list[torch.Tensor]:
        given = {n: t if t.requires_grad else t.clone() for n, t in tensors.items()}  # buffers are changed
        found = outputs(setup.predictor(train=True, fresh=True), given)
        return list(torch.autograd.grad(found.square().sum(), moved, materialize_grads=True))

    try:
        with one_thread():
            batched = gradients(lambda predict, given: vmap(predict)(given, x))
    except Exception as error:  # noqa: BLE001  any error means that it cannot be batched
        return _reason(error)
    with one_thread():
        alone = gradients(lambda predict, given: torch.stack([predict(_one(given, k), rows(x, k)) for k in (0, 1)]))
    tolerance = 2e-2 if setup.training.precision == "bf16" else 1e-3
    pairs = zip(batched, alone, strict=True)
    if any((a - b).nan_to_num().norm() > tolerance * b.nan_to_num().norm() + 1e-5 for a, b in pairs):
        return "its gradients for several clients at once are not those for each alone (hooks on gradients?)"
    return None


def _one(tensors: Tensors, k: int) -> Tensors:
    return {n: t[k] for n, t in tensors.items()}


def _but_for_size(kind: tuple[Any, ...]) -> Hashable:
    """Return what `Cohorts._kind` gives, without sizes: of the client, and of its tensors."""
    return (kind[0], tuple(n for n, *_ in kind[1]), kind[2]) if len(kind) == 4 else kind


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Cohorts:
    """Trains clients together where method, network and shapes allow it; caches the traced programs."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._predict = setup.predictor(train=True, fresh=True)  # batched tensors may leak into the module
        self._programs = Programs()
        self._paddable: dict[Hashable, bool] = {}

    def run(self, works: Sequence[Work]) -> list[Tensors | str]:
        """Return every client's tensors after its phases, on the CPU, or why it must train alone.

        The reason is "" if no other client matches it. Sums run in another order than for clients trained alone, so
        results agree up to rounding.
        """
        found: list[Tensors | str] = [""] * len(works)
        groups: dict[tuple[Hashable, ...], list[int]] = {}
        for i, work in enumerate(works):
            groups.setdefault(self._kind(work), []).append(i)
        for kind, members in groups.items():
            members.sort(key=lambda i: -works[i].steps)
            others = [k for k in groups if k != kind and _but_for_size(k) == _but_for_size(kind)]
            if len(members) == 1 and others:
                found[members[0]] = (
                    "networks with buffers, losses with a mean of their own, and weights of single samples "
                    "need clients of one size"
                )
            elif len(members) > 1:
                for i, outcome in zip(members, self._attempt([works[i] for i in members]), strict=True):
                    found[i] = outcome
        alike = {(len(w.samples), frozenset(w.tensors)) for w in works}
        if len(groups) == len(works) > 1 == len(alike):
            return ["no two of them have the same losses (one that closes over values of its client?)"] * len(works)
        return found

    def _kind(self, work: Work) -> tuple[Hashable, ...]:
        """Return what clients must have in common to train together; the last entry is their size, or None if any."""
        try:
            keys = [tuple(map(step_key, p.steps)) for p in work.phases]
            pairs = zip(work.phases, keys, strict=True)
            phases = tuple((p.name, p.epochs, p.batches, p.draws is None, own) for p, own in pairs)
            shapes = tuple((n, t.shape, t.dtype) for n, t in sorted(work.tensors.items()))
            size = None if self._leaves_padding_out(work, keys) else len(work.samples)
            return phases, shapes, work.facts.training, size
        except Exception:  # noqa: BLE001  an incomparable closure, or an error to report when the client trains alone
            return object(), None

    def _leaves_padding_out(self, work: Work, keys: Sequence[Sequence[Hashable]]) -> bool:
        """Return whether all losses of a client ignore padding; BatchNorm and losses with their own mean do not."""
        if self._setup.network.layout.buffers or self._setup.task.padding is None:
            return False
        known = dict(self._paddable)
        for phase, own in zip(work.phases, keys, strict=True):
            if new := [(step, key) for step, key in zip(phase.steps, own, strict=True) if key not in known]:
                draws = work.draws(phase, work.tensors, self._setup.seed)
                draw = None if draws is None else draws[0]
                known |= {key: self._equal_with_padding(work, step, draw) for step, key in new}
        self._paddable |= {key: equal for key, equal in known.items() if lasting(key)}
        return all(known[key] for own in keys for key in own)

    def _equal_with_padding(self, work: Work, step: Step, draw: torch.Tensor | None) -> bool:
        """Return whether padding a batch leaves a step's gradients unchanged.

        Tried at tensors with noise, where no value is zero and no two are equal by chance.
        """
        device, federation, noise = self._setup.device, self._setup.federation, torch.Generator().manual_seed(0)

        def noisy(t: torch.Tensor) -> torch.Tensor:
            if not t.is_floating_point():
                return t.to(device)
            return (t.cpu() + 0.05 * torch.randn(t.shape, generator=noise)).to(device, t.dtype)

        tensors = {n: noisy(t) for n, t in work.tensors.items()}
        draw = None if draw is None else noisy(draw)
        moved = [tensors[n].requires_grad_() for n in (*step.moves, *step.coefficients)]
        chosen = federation.clients[0].train[:3]
        x, y = each(noisy, federation.inputs(chosen)), federation.y[chosen].to(device)
        padding = columns(each(noisy, federation.inputs(chosen[:2])))
        longer = like(x, {name: torch.cat([column, padding[name]]) for name, column in columns(x).items()})
        padded = Batch(longer, torch.cat([y, torch.full_like(y[:2], self._setup.task.padding or 0)]))

        def gradients(batch: Batch) -> torch.Tensor:
            loss = step.loss(self._predict, tensors, draw, batch)
            found = torch.autograd.grad(loss, moved, materialize_grads=True)
            return torch.cat([g.double().flatten() for g in found])

        try:
            plain, other = gradients(Batch(x, y)), gradients(padded)
        except Exception:  # noqa: BLE001  a loss that does not accept padding
            return False
        tolerance = 2e-2 if self._setup.training.precision == "bf16" else 1e-5
        return bool((plain - other).norm() <= tolerance * plain.norm())

    def _attempt(self, works: list[Work]) -> Sequence[Tensors | str]:
        """Return the tensors of clients trained together, or for each of them why that failed."""
        try:
            return Cohort(self._setup, self._predict, works, self._programs).run()
        except Exception as error:  # noqa: BLE001  no vmap rule, or an error to report when the client trains alone
            return [_reason(error)] * len(works)
