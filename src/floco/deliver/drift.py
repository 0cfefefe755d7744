"""Whether a client's subregion still fits its data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from floco.client.setup import Setup
from floco.core.errors import FlocoError
from floco.core.random import one_thread, stream
from floco.core.values import Row, Tensors
from floco.deliver.mixtures import Mixtures
from floco.deliver.newcomers import Guess
from floco.deliver.personal import own_point
from floco.server.rounds import Progress
from floco.simplex import Mixing

LEVEL = 0.01
"""Nominal chance to see a change where there is none; measured: 5 of 100 (docs/models.md)."""
_LEAST = 10  # samples for a test that could come out at this level
_RESAMPLES = 9_999
_BETTER = 0.9  # share of the center's loss below which another point is worth a remark
_SHOWN = 3  # other clients in the evidence


@dataclass(frozen=True)
class Drift:
    """What new data of a known client say about its subregion."""

    client: str
    verdict: str
    """`moved`: another point of the simplex is better for the new data than its center, by more than for the known ones, and its
    model is one that `floco place` would give; `strange`: the data have changed, in one of the two tests, and there is no such point;
    else `fits`."""
    p_moved: float
    """Chance that the advantage of another point would be so much larger by accident."""
    p_worse: float
    """Chance that the loss at the center would be so much larger by accident."""
    loss_center: float
    """Mean loss of the new data at its center, in nats."""
    loss_best: float
    """At the best mixture, found on the half of the new data that it is not judged on."""
    evidence: tuple[Row, ...]
    """Points of the simplex: their loss on the client's own test part, and on the new data, in nats."""

    @property
    def advice(self) -> str:
        """The verdict in a sentence."""
        better = self.loss_best < _BETTER * self.loss_center
        more = f"; another point was better before, and is so now (loss {self.loss_best:.3f} against {self.loss_center:.3f}): see --at best" if better else ""
        return {
            "fits": f'the subregion of client "{self.client}" fits the new data as it fits the known ones{more}',
            "moved": f'the subregion of client "{self.client}" no longer fits: another point of the simplex is better for the new data; give them a place with floco place',
            "strange": f'the new data of client "{self.client}" are unlike the known ones, and no point of the simplex makes up for it: check data and labels, or train again',
        }[self.verdict]


def drift(setup: Setup, progress: Progress, client: str, x: torch.Tensor, y: torch.Tensor) -> Drift:
    """Return whether a client's subregion still fits, from new raw samples x (n, C, ...) and class numbers y (n,).

    On each half of the new data the best mixture is found, and judged on the other half; the same on the client's own test
    part. Two permutation tests compare new and known samples, each at half of the level: is the advantage of the best mixture
    over the center larger, and is the loss at the center larger? The tests take as many samples of the one as of the other, at
    random: a mixture that is found on more samples is a better one.

    A larger advantage counts only if the best mixture's loss is below the center's. Then the verdict is `moved`, unless a guess without
    a model beats that mixture on the same samples (`newcomers.Guess.beats`): on the half that it was not found on, with label
    frequencies from the other half. Such data are `strange`: so are labels that were exchanged.

    Raises:
        FlocoError: the client has no center, or there are too few samples.
    """
    algorithm, simplex, center = own_point(setup, progress, client)
    centers = {c: own["center"] for c, own in progress.state.by_client.items() if "center" in own}
    if client not in centers:
        raise FlocoError(f'client "{client}" has no center yet, so that there is nothing to check: the clients were not assigned, or it has sent no signal since')
    test = setup.federation.client(client).test
    known = setup.federation.x[test], setup.federation.y[test]
    if min(len(y), len(test)) < _LEAST:
        raise FlocoError(f"a check needs {_LEAST} new samples at least and as many in the client's own test part, got {len(y)} and {len(test)}")
    with one_thread():
        n = min(len(y), len(test))
        ours, theirs = (_Judged(setup, algorithm.mixing, simplex, *samples, center, n) for samples in (known, (x, y)))
        p_moved = _p_larger(theirs.at_center - theirs.at_best, ours.at_center - ours.at_best, setup.seed)
        p_worse = _p_larger(theirs.at_center, ours.at_center, setup.seed)
        others = sorted((theirs.loss(at), c) for c, at in centers.items() if c != client)[:_SHOWN]
        points = {"its center": center, **{f"center of {c}": centers[c] for _, c in others}, "middle": theirs.mixtures.middle}
        evidence: list[Row] = [{"point": name, "loss_known": ours.loss(at), "loss_new": theirs.loss(at)} for name, at in points.items()]
    best: Row = {"point": "best mixture, on the half it has not seen", "loss_known": ours.loss_best, "loss_new": theirs.loss_best}
    guess: Row = {"point": "no model: label frequencies of the other half", "loss_known": ours.guess.loss, "loss_new": theirs.guess.loss}
    better = p_moved < LEVEL / 2 and theirs.loss_best < float(theirs.at_center.mean())
    useless = theirs.guess.beats(theirs.accuracy_best, theirs.loss_best)
    verdict = "moved" if better and not useless else "strange" if better or p_worse < LEVEL / 2 else "fits"
    return Drift(client, verdict, p_moved, p_worse, theirs.loss(center), theirs.loss_best, (evidence[0], best, *evidence[1:], guess))


class _Judged:
    """Losses of single samples at a client's center, and at the best mixture found on the half that they are not in."""

    def __init__(self, setup: Setup, mixing: Mixing, simplex: Tensors, x: torch.Tensor, y: torch.Tensor, center: torch.Tensor, n: int) -> None:
        """Judge n of the samples, at random."""
        self.mixtures, self._y = Mixtures(setup, mixing, simplex, x), y
        chosen = torch.randperm(len(y), generator=stream(setup.seed, "halves"))[:n]
        halves = chosen.tensor_split(2)
        mixed = self._logits(center)
        at_center = self._losses(mixed)
        for mine, other in (halves, halves[::-1]):
            mixed[mine] = self._logits(self.mixtures.best(y, near=center, rows=other))[mine]
        self.at_center, self.at_best = at_center[chosen], self._losses(mixed)[chosen]
        self.loss_best, self.accuracy_best = float(self.at_best.mean()), int((mixed.argmax(1) == y)[chosen].sum()) / n
        self.guess = Guess.of(y[chosen], torch.arange(n).tensor_split(2), setup.federation.classes)

    @torch.no_grad()
    def _logits(self, alpha: torch.Tensor) -> torch.Tensor:
        return self.mixtures.logits(alpha)

    def _losses(self, logits: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, self._y, reduction="none")

    def loss(self, alpha: torch.Tensor) -> float:
        """Return the mean loss at a mixture."""
        return float(self._losses(self._logits(alpha)).mean())


def _p_larger(new: torch.Tensor, known: torch.Tensor, seed: int) -> float:
    """Return the one-sided p value of a permutation test: is the mean of the new values larger?"""
    from scipy.stats import permutation_test  # here: half a second to import

    def difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        found: np.ndarray = a.mean(axis=axis) - b.mean(axis=axis)
        return found

    rng = np.random.default_rng(stream(seed, "permutations").initial_seed())
    found = permutation_test((new.numpy(), known.numpy()), difference, vectorized=True, n_resamples=_RESAMPLES, batch=500, alternative="greater", rng=rng)
    return float(found.pvalue)
