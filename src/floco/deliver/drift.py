"""Drift: whether a client's subregion still fits its data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from floco.client.setup import Setup
from floco.core.errors import FlocoError
from floco.core.inputs import Inputs, rows
from floco.core.mixing import CENTER
from floco.core.random import one_thread, stream
from floco.core.values import Row
from floco.deliver.mixtures import Mixtures
from floco.deliver.personal import find_point
from floco.server.progress import Progress

LEVEL = 0.01
"""Nominal false-alarm rate, over both tests; docs/drift.md has the measured one, which is higher."""
_LEAST = 10  # fewest samples with which a test can reach this level
_RESAMPLES = 9_999
_BETTER = 0.9  # a point is worth a remark if its loss is below this share of the center's
_SHOWN = 3  # other clients' centers in the evidence


@dataclass(frozen=True)
class Drift:
    """Result of a drift check: what new data of a known client show about its subregion."""

    client: str
    verdict: str
    """`moved`, `strange` or `fits`.

    - `moved`: another point of the simplex is better for the new data than the center, by more than for the known data,
      and `floco place` would accept its model.
    - `strange`: one of the two tests finds a change, and there is no such point.
    - `fits`: otherwise.
    """
    p_moved: float
    """p value: is the advantage of another point over the center larger for the new data?"""
    p_worse: float
    """p value: is the loss at the center larger for the new data?"""
    loss_center: float
    """Mean loss of the new data at its center, in nats."""
    loss_best: float
    """Mean loss of the new data at the best mixture, fitted and evaluated on different halves, in nats."""
    evidence: tuple[Row, ...]
    """Points of the simplex with their loss on the client's own test part and on the new data, in nats."""

    @property
    def advice(self) -> str:
        """The verdict in a sentence, and what to do."""
        of = f'of client "{self.client}"'
        if self.verdict == "moved":
            return (
                f"the subregion {of} no longer fits: another point of the simplex is better for the new data; "
                "place them with floco place"
            )
        if self.verdict == "strange":
            return (
                f"the new data {of} are unlike the known ones, and no point of the simplex makes up for it: "
                "check data and labels, or train again"
            )
        losses = f"loss {self.loss_best:.3f} against {self.loss_center:.3f}"
        better = self.loss_best < _BETTER * self.loss_center
        more = f"; another point was better before and still is ({losses}): see --at best" if better else ""
        return f"the subregion {of} fits the new data as it fits the known ones{more}"


def drift(setup: Setup, progress: Progress, client: str, x: Inputs, y: torch.Tensor) -> Drift:
    """Return whether a client's subregion still fits, from new raw samples x (n, C, ...) and targets y (n, ...).

    The best mixture is fitted on each half of the new data and evaluated on the other half; likewise for the client's
    own test part. Two permutation tests compare new and known samples, each at half of `LEVEL`: is the advantage of the
    best mixture over the center larger, and is the loss at the center larger? Both sides are reduced to the same number
    of samples, at random, because a mixture fitted on more samples is better.

    A larger advantage counts only if the best mixture's loss is below the center's. The verdict is then `moved`, unless
    a guess without a model beats the mixture on the same samples (`guess.Guess.beats`), with label frequencies from the
    half that the mixture was fitted on. Such data are `strange`, e.g. if labels were exchanged.

    Raises:
        FlocoError: the client has no center, or there are too few samples.
    """
    mixing, simplex, center = find_point(setup, progress, client)
    centers = {c: own[CENTER] for c, own in progress.state.by_client.items() if CENTER in own}
    if client not in centers:
        raise FlocoError(
            f'client "{client}" has no center yet, so that there is nothing to check: the clients were not assigned, '
            "or it has sent no signal since"
        )
    setup = setup.with_samples(f'comparing new data with the test part of client "{client}"')
    test = setup.federation.client(client).test
    known = rows(setup.federation.x, test), setup.federation.y[test]
    if min(len(y), len(test)) < _LEAST:
        raise FlocoError(
            f"a check needs {_LEAST} new samples at least and as many in the client's own test part, "
            f"got {len(y)} and {len(test)}"
        )
    with one_thread():
        n = min(len(y), len(test))
        ours, theirs = (
            _Judged(setup, Mixtures(setup, mixing, simplex, raw), targets, center, n)
            for raw, targets in (known, (x, y))
        )
        p_moved = _p_larger(theirs.at_center - theirs.at_best, ours.at_center - ours.at_best, setup.seed)
        p_worse = _p_larger(theirs.at_center, ours.at_center, setup.seed)
        others = sorted((theirs.loss(at), c) for c, at in centers.items() if c != client)[:_SHOWN]
        points = {f"center of {c}": centers[c] for _, c in others} | {"middle": theirs.mixtures.middle}
        evidence = (
            _row("its center", ours.loss(center), theirs.loss(center)),
            _row("best mixture, on the half it has not seen", ours.loss_best, theirs.loss_best),
            *(_row(name, ours.loss(at), theirs.loss(at)) for name, at in points.items()),
        )
        if ours.loss_guess is not None and theirs.loss_guess is not None:
            evidence += (_row("no model: label frequencies of the other half", ours.loss_guess, theirs.loss_guess),)
    better = p_moved < LEVEL / 2 and theirs.loss_best < float(theirs.at_center.mean())
    verdict = "moved" if better and not theirs.useless else "strange" if better or p_worse < LEVEL / 2 else "fits"
    return Drift(client, verdict, p_moved, p_worse, theirs.loss(center), theirs.loss_best, evidence)


def _row(point: str, known: float, new: float) -> Row:
    return {"point": point, "loss_known": known, "loss_new": new}


class _Judged:
    """Loss of each sample at a client's center, and at the best mixture fitted on the half without the sample."""

    def __init__(self, setup: Setup, mixtures: Mixtures, y: torch.Tensor, center: torch.Tensor, n: int) -> None:
        """Evaluate n of the samples, chosen at random."""
        self.mixtures, self._y, self._task = mixtures, y, setup.task
        chosen = torch.randperm(len(y), generator=stream(setup.seed, "halves"))[:n]
        halves = chosen.tensor_split(2)
        mixed = self._outputs(center)
        at_center = self._losses(mixed)
        for mine, other in (halves, halves[::-1]):
            mixed[mine] = self._outputs(self.mixtures.best(y, near=center, rows=other))[mine]
        self.at_center, self.at_best = at_center[chosen], self._losses(mixed)[chosen]
        self.loss_best = float(self.at_best.mean())
        value = setup.task.value(setup.task.score(mixed[chosen], y[chosen]))
        guess = setup.task.guess(y[chosen], torch.arange(n).tensor_split(2), setup.federation.schema.labels)
        self.useless = guess is not None and guess.beats(value, self.loss_best)
        self.loss_guess = None if guess is None else guess.loss

    @torch.no_grad()
    def _outputs(self, alpha: torch.Tensor) -> torch.Tensor:
        return self.mixtures.outputs(alpha)

    def _losses(self, outputs: torch.Tensor) -> torch.Tensor:
        return self._task.losses(outputs, self._y)

    def loss(self, alpha: torch.Tensor) -> float:
        """Return the mean loss at a mixture."""
        return float(self._losses(self._outputs(alpha)).mean())


def _p_larger(new: torch.Tensor, known: torch.Tensor, seed: int) -> float:
    """Return the one-sided p value of a permutation test: is the mean of the new values larger?"""
    from scipy.stats import permutation_test  # on use: half a second to import

    def difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        found: np.ndarray = a.mean(axis=axis) - b.mean(axis=axis)
        return found

    rng = np.random.default_rng(stream(seed, "permutations").initial_seed())
    options = {"n_resamples": _RESAMPLES, "batch": 500, "alternative": "greater", "rng": rng}
    return float(permutation_test((new.numpy(), known.numpy()), difference, vectorized=True, **options).pvalue)
