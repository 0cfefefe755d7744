"""Several clients' training as one batched program: their tensors stacked along a new first axis, the loss under `vmap`.

The gradient of a step is traced once for each shape and then replayed: with small models, deciding what to do takes longer than doing it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.func import vmap

from floco.client.setup import Setup
from floco.client.sgd import Work, add_correction, move
from floco.core.random import one_thread
from floco.core.values import PADDED, Batch, Phase, Predict, Step, Tensors
from floco.engines.tracing import Program, Programs, lasting, loss_key, step_key


def refusal(setup: Setup) -> str | None:
    """Return why a network's training cannot be batched over clients, None if it can: tried out on two clients of two samples."""
    if setup.unsteady is not None:
        return setup.unsteady
    tensors = {n: torch.stack([t, t]).to(setup.device) for n, t in {**setup.network.parameters, **setup.network.buffers}.items()}
    x = setup.federation.inputs(setup.federation.clients[0].train[[0, -1]]).expand(2, -1, *setup.federation.shape).to(setup.device)
    moved = {n: tensors[n].requires_grad_() for n in setup.network.layout.parameters}
    try:
        with one_thread():
            found = vmap(setup.predictor(train=True, fresh=True))({**tensors, **moved}, x)
            torch.autograd.grad(found.sum(), list(moved.values()), materialize_grads=True)
    except Exception as error:  # noqa: BLE001  whatever it is, the answer is that it cannot
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Cohorts:
    """Trains clients together where method, network and shapes allow it; keeps the traced programs."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._predict = setup.predictor(train=True, fresh=True)  # batched tensors may be left behind in the module
        self._programs = Programs()
        self._paddable: dict[Hashable, bool] = {}

    def run(self, works: Sequence[Work]) -> list[Tensors | str]:
        """Return every client's tensors after its phases, on the CPU, or why it has to train by itself ("": nobody is like it).

        Sums run in another order than one client at a time, so results agree to the rounding of the arithmetic.
        """
        found: list[Tensors | str] = [""] * len(works)
        groups: dict[tuple[Hashable, ...], list[int]] = {}
        for i, work in enumerate(works):
            groups.setdefault(self._kind(work), []).append(i)
        for kind, members in groups.items():
            members.sort(key=lambda i: -works[i].steps)
            if len(members) == 1 < len(works) and kind[-1] is not None:
                found[members[0]] = "a network with buffers, or a loss that averages by itself, needs clients of one size"
            elif len(members) > 1:
                for i, outcome in zip(members, self._attempt([works[i] for i in members]), strict=True):
                    found[i] = outcome
        alike = {(len(w.samples), frozenset(w.tensors)) for w in works}
        if len(groups) == len(works) > 1 == len(alike):
            return ["no two of them have the same losses (one that closes over values of its client?)"] * len(works)
        return found

    def _kind(self, work: Work) -> tuple[Hashable, ...]:
        """Return what clients must have in common to train together; last their size, None if they can be padded."""
        try:
            keys = [tuple(map(step_key, p.steps)) for p in work.phases]
            phases = tuple((p.name, work.epochs(p), p.draws is None, own) for p, own in zip(work.phases, keys, strict=True))
            shapes = tuple((n, t.shape, t.dtype) for n, t in sorted(work.tensors.items()))
            return phases, shapes, None if self._leaves_padding_out(work, keys) else len(work.samples)
        except Exception:  # noqa: BLE001  a closure that cannot be compared, or a fault that is named when the client trains by itself
            return object(), None

    def _leaves_padding_out(self, work: Work, keys: Sequence[Sequence[Hashable]]) -> bool:
        """Return whether no loss of a client changes if its batch is padded: BatchNorm and losses that average by themselves count the padding."""
        if self._setup.network.layout.buffers:
            return False
        known = dict(self._paddable)
        for phase, own in zip(work.phases, keys, strict=True):
            if new := [(step, key) for step, key in zip(phase.steps, own, strict=True) if key not in known]:
                draws = work.draws(phase, work.tensors, self._setup.seed)
                known |= {key: self._equal_with_padding(work, step, None if draws is None else draws[0]) for step, key in new}
        self._paddable |= {key: equal for key, equal in known.items() if lasting(key)}
        return all(known[key] for own in keys for key in own)

    def _equal_with_padding(self, work: Work, step: Step, draw: torch.Tensor | None) -> bool:
        """Return whether a step's gradients stay the same when its batch is padded, at tensors with noise: where nothing is zero or alike by chance."""
        device, federation, noise = self._setup.device, self._setup.federation, torch.Generator().manual_seed(0)

        def noisy(t: torch.Tensor) -> torch.Tensor:
            return (t.cpu() + 0.05 * torch.randn(t.shape, generator=noise)).to(device, t.dtype) if t.is_floating_point() else t.to(device)

        tensors = {n: noisy(t) for n, t in work.tensors.items()}
        draw = None if draw is None else noisy(draw)
        moved = [tensors[n].requires_grad_() for n in _moving(step)]
        chosen = federation.clients[0].train[:3]
        x, y, padding = noisy(federation.inputs(chosen)), federation.y[chosen].to(device), noisy(federation.inputs(chosen[:2]))
        padded = Batch(torch.cat([x, padding]), torch.cat([y, torch.full_like(y[:2], PADDED)]))
        try:
            plain, other = (
                torch.cat([g.double().flatten() for g in torch.autograd.grad(step.loss(self._predict, tensors, draw, batch), moved, materialize_grads=True)])
                for batch in (Batch(x, y), padded)
            )
        except Exception:  # noqa: BLE001  a loss that cannot have padding
            return False
        return bool((plain - other).norm() <= (2e-2 if self._setup.training.precision == "bf16" else 1e-5) * plain.norm())

    def _attempt(self, works: list[Work]) -> Sequence[Tensors | str]:
        """Return the tensors of clients trained together, or for all why they were not."""
        try:
            return _Cohort(self._setup, self._predict, works, self._programs).run()
        except Exception as error:  # noqa: BLE001  what vmap cannot do, or a fault that is named when the client trains by itself
            return [_reason(error)] * len(works)


class _Cohort:
    """Clients of one kind while they train, those with most steps first. The first dimension of stacked tensors, inputs, labels and draws is the client."""

    def __init__(self, setup: Setup, predict: Predict, works: list[Work], programs: Programs) -> None:
        self._setup, self._predict, self._works, self._programs = setup, predict, works, programs
        first, device, federation = works[0], setup.device, setup.federation
        samples = torch.cat([w.samples for w in works])
        self._x, self._y = federation.inputs(samples).to(device), federation.y[samples]
        self._starts = [0, *torch.tensor([len(w.samples) for w in works]).cumsum(0).tolist()]
        names = sorted(first.tensors)  # clients' tensors, and those of another cohort, may come in any order
        changing = {n for p in first.phases for s in p.steps for n in (*s.moves, *s.coefficients)}
        changing |= {n for n in first.tensors if n.rpartition("/")[2] in setup.network.layout.buffers}
        self._stacked = {n for n in names if n in changing or any(w.tensors[n] is not first.tensors[n] for w in works)}
        self._tensors = {n: (_stack([w.tensors[n] for w in works]) if n in self._stacked else first.tensors[n]).to(device) for n in names}

    def run(self) -> list[Tensors | str]:
        """Return each client's tensors after all phases, on the CPU."""
        for number, phase in enumerate(self._works[0].phases):
            self._phase(number, phase)
        moved = {n: t.cpu() for n, t in self._tensors.items() if n in self._stacked}
        order = torch.contiguous_format  # as a client by itself gives them, and files: another order is another kernel for whoever uses them
        return [{n: moved[n][k].clone(memory_format=order) if n in moved else t for n, t in w.tensors.items()} for k, w in enumerate(self._works)]

    @torch.no_grad()
    def _phase(self, number: int, phase: Phase) -> None:
        device, seed = self._setup.device, self._setup.seed
        width = max(max(w.sizes) for w in self._works)
        plans = [_plan(tuple(w.sizes) * w.epochs(phase), width) for w in self._works]
        steps = max(len(plan.at) for plan in plans)
        orders = [torch.cat(list(w.orders(w.phases[number], seed))) + start for w, start in zip(self._works, self._starts, strict=False)]
        rows = _stretched([order[plan.at] for order, plan in zip(orders, plans, strict=True)], steps)  # (S, C, B)
        real = _stretched([plan.real for plan in plans], steps)
        labels = torch.where(real, self._y[rows], PADDED).to(device)
        alive = (torch.arange(steps)[:, None] < torch.tensor([len(plan.at) for plan in plans])).sum(dim=1).tolist()  # the first so many clients still move
        draws = self._draws(number, steps)
        counts = real.sum(dim=2)
        widths = torch.where((counts == counts[:, :1]).all(dim=1), counts[:, 0], width).tolist()  # padded only where sizes differ
        rows, whole, held = rows.to(device), self._tensors, len(self._works)
        todo: list[tuple[Step, Hashable, list[torch.Tensor]]] = [(step, loss_key(step), []) for step in phase.steps]
        for i in range(steps):
            if alive[i] <= held // 2:  # most are done: the others go on by themselves
                held = alive[i]
                self._tensors = {n: t[:held] if n in self._stacked else t for n, t in whole.items()}
            batch = Batch(self._x[rows[i, :held, : widths[i]]], labels[i, :held, : widths[i]])
            for step, key, velocity in todo:
                if velocity and len(velocity[0]) > alive[i]:
                    velocity[:] = [v[: alive[i]] for v in velocity]
                for _ in range(step.repeat):
                    gradients = self._gradients(step, key, None if draws is None else draws[i, :held], batch)
                    moving = self._tensors
                    if alive[i] < held:
                        moving, gradients = {n: moving[n][: alive[i]] for n in _moving(step)}, [g[: alive[i]] for g in gradients]
                    move(step, moving, gradients, velocity, self._setup.training)
        self._tensors = whole

    def _draws(self, number: int, steps: int) -> torch.Tensor | None:
        own = [{n: t[k] if n in self._stacked else t for n, t in self._tensors.items()} for k in range(len(self._works))]
        drawn = [w.draws(w.phases[number], tensors, self._setup.seed) for w, tensors in zip(self._works, own, strict=True)]
        return None if drawn[0] is None else _stretched([d for d in drawn if d is not None], steps).to(self._setup.device)

    def _gradients(self, step: Step, key: Hashable, draw: torch.Tensor | None, batch: Batch) -> list[torch.Tensor]:
        """Return the gradients of what a step moves."""
        names = _moving(step)
        others = [n for n in self._tensors if n not in names]
        inputs = [self._tensors[n] for n in (*names, *others)] + ([] if draw is None else [draw]) + [*batch]
        key = key, names, tuple((n, n in self._stacked) for n in others)
        return self._programs.of(key, self._program(step, others, draw is not None), inputs)(*inputs)

    def _program(self, step: Step, others: Sequence[str], drawn: bool) -> Program:
        """Return the function from moved tensors, others, draw, x and y to the gradients of the moved ones."""
        names = _moving(step)
        dims = {n: 0 if n in self._stacked else None for n in others}

        def gradients(*flat: torch.Tensor) -> list[torch.Tensor]:
            moved = [t.detach().requires_grad_() for t in flat[: len(names)]]
            rest = dict(zip(others, flat[len(names) :], strict=False))
            draw, x, y = flat[-3] if drawn else None, flat[-2], flat[-1]

            def loss(own: list[torch.Tensor], rest: Tensors, draw: torch.Tensor | None, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                return step.loss(self._predict, {**rest, **dict(zip(names, own, strict=True))}, draw, Batch(x, y))

            with torch.enable_grad():
                losses = vmap(loss, in_dims=(0, dims, 0 if drawn else None, 0, 0))(moved, rest, draw, x, y)
                found = list(torch.autograd.grad(losses.sum(), moved, materialize_grads=True))
            if step.correction is not None:
                every = {**rest, **dict(zip(names, flat, strict=False))}
                add_correction(step, found, vmap(step.correction, in_dims=({**dims, **dict.fromkeys(names, 0)},))(every))
            return found

        return gradients


def _moving(step: Step) -> tuple[str, ...]:
    return *step.moves, *step.coefficients


class _Plan(NamedTuple):
    """Where in the order of a client's samples the batches of a phase lie."""

    at: torch.Tensor
    """(steps, width)."""
    real: torch.Tensor
    """(steps, width): false for padding."""


@lru_cache(maxsize=256)
def _plan(sizes: tuple[int, ...], width: int) -> _Plan:
    ends = torch.tensor(sizes).cumsum(0)
    at = (ends - torch.tensor(sizes))[:, None] + torch.arange(width)
    return _Plan(at.clamp_max(sum(sizes) - 1), at < ends[:, None])


def _stretched(parts: Sequence[torch.Tensor], steps: int) -> torch.Tensor:
    """Return clients' tensors (s_k, ...) stacked to (steps, C, ...), the last entry of a shorter one repeated."""
    return torch.stack([p if len(p) == steps else p[torch.arange(steps).clamp_max(len(p) - 1)] for p in parts], dim=1)


def _stack(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return clients' tensors stacked; matrices lie transposed, as their gradients come out: sums of both then run through memory in order."""
    turned = [p.detach().mT if p.ndim == 2 else p.detach() for p in parts]
    alike = all(p is parts[0] for p in parts)
    stacked = turned[0].contiguous().expand(len(parts), *turned[0].shape).contiguous() if alike else torch.stack(turned)
    return stacked.mT if parts[0].ndim == 2 else stacked
