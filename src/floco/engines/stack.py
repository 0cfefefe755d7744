"""Training of several clients as one batched program, with their tensors stacked along a new first axis.

The gradient of a step is traced once per shape and replayed: for small models, dispatch takes longer than computing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache, partial
from itertools import cycle, islice
from typing import NamedTuple

import torch
from torch.func import vmap

from floco.client.optimizer import State, apply_gradients, keep_first
from floco.client.setup import Setup
from floco.client.sgd import Work, add_correction
from floco.core.errors import FlocoError
from floco.core.inputs import Inputs, columns, each, like, rows, samples_size
from floco.core.values import Batch, Phase, Predict, Step, Tensors
from floco.engines.tracing import Program, Programs, loss_key

_TOGETHER = 2**29  # bytes of a cohort's inputs, which are made at once


class Cohort:
    """Clients of one kind while they train, sorted by decreasing number of steps.

    The client is the first axis of stacked tensors, inputs, labels and draws.
    """

    def __init__(self, setup: Setup, predict: Predict, works: list[Work], programs: Programs) -> None:
        self._setup, self._predict, self._works, self._programs = setup, predict, works, programs
        first, device, federation = works[0], setup.device, setup.federation
        samples = torch.cat([w.samples for w in works])
        if (size := samples_size(federation.x, len(samples))) > _TOGETHER:
            raise FlocoError(f"their samples, {size / 1e9:.1f} GB, are too many to be in memory at once")
        self._x = each(lambda column: column.to(device), federation.inputs(samples))
        self._y = torch.cat([setup.training_targets(w.client, w.samples) for w in works])
        self._columns = len(columns(federation.x))
        self._starts = [0, *torch.tensor([len(w.samples) for w in works]).cumsum(0).tolist()]
        names = sorted(first.tensors)  # the order of names may differ between clients and cohorts
        changing = {n for p in first.phases for s in p.steps for n in _moving(s)}
        changing |= {n for n in first.tensors if n.rpartition("/")[2] in setup.network.layout.buffers}
        self._stacked = {n for n in names if n in changing or any(w.tensors[n] is not first.tensors[n] for w in works)}
        self._tensors = {
            n: (_stack([w.tensors[n] for w in works]) if n in self._stacked else first.tensors[n]).to(device)
            for n in names
        }

    def run(self) -> list[Tensors]:
        """Return each client's tensors after all phases, on the CPU."""
        for number, phase in enumerate(self._works[0].phases):
            self._phase(number, phase)
        moved = {n: t.cpu() for n, t in self._tensors.items() if n in self._stacked}
        order = torch.contiguous_format  # as from a client alone or a file: the format selects later kernels
        return [
            {n: moved[n][k].clone(memory_format=order) if n in moved else t for n, t in w.tensors.items()}
            for k, w in enumerate(self._works)
        ]

    @torch.no_grad()
    def _phase(self, number: int, phase: Phase) -> None:
        device, seed = self._setup.device, self._setup.seed
        width = max(max(w.sizes) for w in self._works)
        plans = [_plan(tuple(islice(cycle(w.sizes), w.length(phase))), width) for w in self._works]
        lengths = [len(plan.at) for plan in plans]
        steps = max(lengths)
        orders = [torch.cat(list(w.orders(w.phases[number], seed))) for w in self._works]
        positions = [o[plan.at] + start for o, plan, start in zip(orders, plans, self._starts, strict=False)]
        at, real = _stretched(positions, steps), _stretched([plan.real for plan in plans], steps)  # (S, C, B)
        targets = self._targets(at, real).to(device)
        alive = (torch.arange(steps)[:, None] < torch.tensor(lengths)).sum(dim=1).tolist()  # these first clients move
        draws = self._draws(number, steps)
        counts = real.sum(dim=2)
        equal = (counts == counts[:, :1]).all(dim=1)  # no padding where all batches have the same size
        widths = torch.where(equal, counts[:, 0], width).tolist()
        at, whole, held = at.to(device), self._tensors, len(self._works)
        starts = torch.tensor(self._starts[:-1], device=device)[:, None]
        training, augment = self._works[0].facts.training, self._setup.federation.augment
        changes = [] if augment is None else [w.changes(phase, seed) for w in self._works]
        todo: list[tuple[Step, Hashable, State]] = [(step, loss_key(step), []) for step in phase.steps]
        for i in range(steps):
            if alive[i] <= held // 2:  # most clients are done: the others continue without them
                held = alive[i]
                self._tensors = {n: t[:held] if n in self._stacked else t for n, t in whole.items()}
            x = each(partial(_taken, at=at[i, :held, : widths[i]]), self._x)
            if augment is not None:
                self._change(x, at[i], counts[i, : min(alive[i], held)].tolist(), changes)
            batch = Batch(x, targets[i, :held, : widths[i]], at[i, :held, : widths[i]] - starts[:held])
            for step, key, state in todo:
                if state and len(state[0]) > alive[i]:
                    keep_first(state, alive[i])
                for _ in range(step.repeat):
                    gradients = self._gradients(step, key, None if draws is None else draws[i, :held], batch)
                    moving = self._tensors
                    if alive[i] < held:
                        moving = {n: moving[n][: alive[i]] for n in _moving(step)}
                        gradients = [g[: alive[i]] for g in gradients]
                    apply_gradients(step, moving, gradients, state, training, stacked=True)
        self._tensors = whole

    def _change(
        self, x: Inputs, at: torch.Tensor, counts: Sequence[int], generators: Sequence[torch.Generator]
    ) -> None:
        """Change each client's own samples in a batch x (clients, width, ...), as if it trained alone."""
        augment = self._setup.federation.augment
        assert augment is not None
        for k, n in enumerate(counts):
            changed = augment(rows(self._x, at[k, :n]), generators[k])
            for mine, column in zip(columns(x).values(), columns(changed).values(), strict=True):
                mine[k, :n] = column

    def _targets(self, at: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Return the targets (steps, clients, width, ...) at positions; padding where they are not real."""
        targets, padding = self._y[at], self._setup.task.padding
        if padding is None:  # clients of equal sizes
            return targets
        return torch.where(real.view(*real.shape, *(1,) * (targets.ndim - real.ndim)), targets, padding)

    def _draws(self, number: int, steps: int) -> torch.Tensor | None:
        drawn = []
        for k, work in enumerate(self._works):
            tensors = {n: t[k] if n in self._stacked else t for n, t in self._tensors.items()}
            draws = work.draws(work.phases[number], tensors, self._setup.seed)
            if draws is None:
                return None
            drawn.append(draws)
        return _stretched(drawn, steps).to(self._setup.device)

    def _gradients(self, step: Step, key: Hashable, draw: torch.Tensor | None, batch: Batch) -> list[torch.Tensor]:
        """Return the gradients of the tensors that a step moves."""
        names = _moving(step)
        others = [n for n in self._tensors if n not in names]
        inputs = [self._tensors[n] for n in (*names, *others)] + ([] if draw is None else [draw])
        assert batch.at is not None
        inputs += [*columns(batch.x).values(), batch.y, batch.at]
        key = key, names, tuple((n, n in self._stacked) for n in others)
        return self._programs.of(key, self._program(step, others, draw is not None), inputs)(*inputs)

    def _program(self, step: Step, others: Sequence[str], drawn: bool) -> Program:
        """Return the function from moved tensors, others, draw and batch to the gradients of the moved ones."""
        names = _moving(step)
        dims = {n: 0 if n in self._stacked else None for n in others}

        def gradients(*flat: torch.Tensor) -> list[torch.Tensor]:
            moved = [t.detach().requires_grad_() for t in flat[: len(names)]]
            rest = dict(zip(others, flat[len(names) :], strict=False))
            *_, draw = flat[: -self._columns - 2] if drawn else (None,)
            x = like(self._x, dict(zip(columns(self._x), flat[-self._columns - 2 : -2], strict=True)))

            def loss(own: list[torch.Tensor], rest: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
                return step.loss(self._predict, {**rest, **dict(zip(names, own, strict=True))}, draw, batch)

            with torch.enable_grad():
                batch = Batch(x, *flat[-2:])
                losses = vmap(loss, in_dims=(0, dims, 0 if drawn else None, 0))(moved, rest, draw, batch)
                found = list(torch.autograd.grad(losses.sum(), moved, materialize_grads=True))
            if step.correction is not None:
                every = {**rest, **dict(zip(names, flat, strict=False))}
                values = vmap(step.correction, in_dims=({**dims, **dict.fromkeys(names, 0)},))(every)
                add_correction(step, found, values)
            return found

        return gradients


def _moving(step: Step) -> tuple[str, ...]:
    return *step.moves, *step.coefficients


class _Plan(NamedTuple):
    """Positions of the batches of a phase in the order of a client's samples."""

    at: torch.Tensor
    """(steps, width)."""
    real: torch.Tensor
    """(steps, width): False for padding."""


@lru_cache(maxsize=256)
def _plan(sizes: tuple[int, ...], width: int) -> _Plan:
    ends = torch.tensor(sizes).cumsum(0)
    at = (ends - torch.tensor(sizes))[:, None] + torch.arange(width)
    return _Plan(at.clamp_max(sum(sizes) - 1), at < ends[:, None])


def _stretched(parts: Sequence[torch.Tensor], steps: int) -> torch.Tensor:
    """Return clients' tensors (s_k, ...) stacked to (steps, C, ...); shorter ones repeat their last entry."""
    return torch.stack([p if len(p) == steps else p[torch.arange(steps).clamp_max(len(p) - 1)] for p in parts], dim=1)


def _taken(column: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Return column[at], in half the time where rows are contiguous."""
    if not column.is_contiguous():
        return column[at]
    return column.index_select(0, at.flatten()).view(*at.shape, *column.shape[1:])


def _stack(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return clients' tensors stacked; matrices are stored transposed, in the memory order of their gradients."""
    turned = [p.detach().mT if p.ndim == 2 else p.detach() for p in parts]
    alike = all(p is parts[0] for p in parts)
    stacked = turned[0].contiguous().expand(len(parts), *turned[0].shape).contiguous() if alike else torch.stack(turned)
    return stacked.mT if parts[0].ndim == 2 else stacked
