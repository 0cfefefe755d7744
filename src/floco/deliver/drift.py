"""Drift: whether a client's subregion still fits its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from floco.client.mixtures import Mixtures
from floco.client.setup import Setup
from floco.core.errors import FlocoError
from floco.core.inputs import Inputs, rows
from floco.core.mixing import Mixing
from floco.core.random import one_thread, stream
from floco.core.values import Row, Tensors
from floco.deliver.personal import find_point
from floco.server.progress import Progress

LEVEL = 0.01
"""False-alarm rate of a check, at most, if new and known samples come from one distribution."""
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

    - `moved`: another point of the simplex suits the new data better than it suits the known ones, has a lower loss on
      them than the center and the middle of the simplex (the global model), and `floco place` would accept its model.
    - `strange`: one of the two tests finds a change, and there is no such point.
    - `fits`: otherwise.
    """
    p_moved: float
    """p value: is the advantage of the new data's best mixture over the center larger for the new data?"""
    p_worse: float
    """p value: is the loss at the center larger for the new data?"""
    loss_center: float
    """Mean loss of the new data at its center, in nats."""
    loss_best: float
    """Mean loss of the new data at their best mixture, fitted and evaluated on different halves, in nats."""
    evidence: tuple[Row, ...]
    """Points of the simplex with their loss on the client's own test part and on the new data, in nats."""
    classes: tuple[Row, ...] = ()
    """For each label in the new data: how many samples have it, the share of them (and of the known ones) that the
    model at the center recognises, and the label that it gives most of the new ones. Empty if targets are no labels."""

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
                "check labels and units first; if they are right, train again"
            )
        losses = f"loss {self.loss_best:.3f} against {self.loss_center:.3f}"
        better = self.loss_best < _BETTER * self.loss_center
        more = f"; another point was better before and still is ({losses}): see --at best" if better else ""
        return f"the subregion {of} fits the new data as it fits the known ones{more}"


def drift(setup: Setup, progress: Progress, client: str, x: Inputs, y: torch.Tensor) -> Drift:
    """Return whether a client's subregion still fits, from new raw samples x (n, C, ...) and targets y (n, ...).

    A best mixture is fitted on each half of the new data. On the other half, and on the client's own test part, it has
    an advantage over the center: the difference of the losses of each sample. Permutation tests compare new and known
    samples: is the advantage larger (two halves, the smaller p value times two), and is the loss at the center larger?
    Each question has half of `LEVEL`. Given the mixture, samples that it was not fitted on can be exchanged if nothing
    has changed, so that both tests are exact.

    A larger advantage counts only if the mixture's loss is below the center's and the middle's. The verdict is then
    `moved`, unless a guess without a model has no higher loss on the same samples or beats the mixture (`Guess.beats`),
    with label frequencies from the half that the mixture was fitted on. Such data are `strange`, e.g. if labels were
    exchanged.

    Raises:
        FlocoError: the client has no center, or there are too few samples.
    """
    mixing, simplex, center = find_point(setup, progress, client)
    centers = progress.centers(mixing)
    if client not in centers:
        raise FlocoError(
            f'client "{client}" has no center yet, so that there is nothing to check: the clients were not assigned, '
            "or it has not trained since"
        )
    setup = setup.with_samples(f'comparing new data with the test part of client "{client}"')
    test = setup.federation.client(client).test
    if min(len(y), len(test)) < _LEAST:
        raise FlocoError(
            f"a check needs {_LEAST} new samples at least and as many in the client's own test part, "
            f"got {len(y)} and {len(test)}"
        )
    with one_thread():
        known = _Samples(setup, mixing, simplex, rows(setup.federation.x, test), setup.federation.y[test])
        return _judge(setup, client, centers, known, _Samples(setup, mixing, simplex, x, y))


class _Samples:
    """A client's known or new samples, and the models of the simplex on them."""

    def __init__(self, setup: Setup, mixing: Mixing, simplex: Tensors, x: Inputs, y: torch.Tensor) -> None:
        self.mixtures, self.y, self._task = Mixtures(setup, mixing, simplex, x), y, setup.task

    @torch.no_grad()
    def outputs(self, alpha: torch.Tensor) -> torch.Tensor:
        """Return the outputs (n, ...) at a mixture."""
        return self.mixtures.outputs(alpha)

    def losses(self, alpha: torch.Tensor) -> torch.Tensor:
        """Return the loss of each sample, (n,), at a mixture."""
        return self._task.losses(self.outputs(alpha), self.y)

    def loss(self, alpha: torch.Tensor) -> float:
        """Return the mean loss at a mixture."""
        return float(self.losses(alpha).mean())


def _judge(setup: Setup, client: str, centers: Mapping[str, torch.Tensor], known: _Samples, new: _Samples) -> Drift:
    center, task = centers[client], setup.task
    first, second = torch.randperm(len(new.y), generator=stream(setup.seed, "halves")).tensor_split(2)
    at_center, p_halves, of_known = new.outputs(center), [], []
    best, before, after = at_center.clone(), known.losses(center), task.losses(at_center, new.y)
    for fitted, half in ((first, second), (second, first)):
        alpha = new.mixtures.best(new.y, near=center, rows=fitted)
        best[half] = new.outputs(alpha)[half]
        of_known.append(known.losses(alpha))
        gain = after[half] - task.losses(best[half], new.y[half])
        p_halves.append(_p_larger(gain, before - of_known[-1], setup.seed))
    p_moved, p_worse = min(1.0, 2 * min(p_halves)), _p_larger(after, before, setup.seed)
    loss_best, middle = float(task.losses(best, new.y).mean()), new.mixtures.middle
    guess = task.guess(new.y, (first, second), setup.federation.schema.labels)
    others = sorted((new.loss(at), c) for c, at in centers.items() if c != client)[:_SHOWN]
    plain = task.shift(setup.facts(client).label_counts) is None
    name = "middle (the global model)" if plain else "middle, with the client's prior (the global model has none)"
    points = {f"center of {c}": centers[c] for _, c in others} | {name: middle}
    evidence = [
        _row("its center", float(before.mean()), float(after.mean())),
        _row("best mixture for the other half of the new data", float(torch.stack(of_known).mean()), loss_best),
        *(_row(name, known.loss(at), new.loss(at)) for name, at in points.items()),
    ]
    if guess is not None:
        evidence.append(_row("no model: label frequencies of the other half", None, guess.loss))
    better = p_moved < LEVEL / 2 and loss_best < float(after.mean())
    value = task.value(task.score(best, new.y))
    useless = guess is not None and (loss_best >= guess.loss or guess.beats(value, loss_best))
    good = loss_best < new.loss(middle) and not useless
    verdict = "moved" if better and good else "strange" if better or p_worse < LEVEL / 2 else "fits"
    classes = _classes(setup, known.outputs(center), known.y, at_center, new.y) if task.labelled else ()
    return Drift(client, verdict, p_moved, p_worse, float(after.mean()), loss_best, tuple(evidence), classes)


def _row(point: str, known: float | None, new: float) -> Row:
    return {"point": point, "loss_known": known, "loss_new": new}


def _classes(
    setup: Setup, known: torch.Tensor, y_known: torch.Tensor, new: torch.Tensor, y_new: torch.Tensor
) -> tuple[Row, ...]:
    """Return what the model at the center makes of each label (`Drift.classes`), from its outputs for both parts."""
    names = setup.federation.schema.labels.names
    table = []
    for label in y_new.unique().tolist():
        before, now = (found[y == label].argmax(dim=1) for found, y in ((known, y_known), (new, y_new)))
        recognised = float((before == label).double().mean()) if len(before) else None
        row = {"label": names[label], "samples_known": len(before), "recognised_known": recognised}
        row |= {"samples_new": len(now), "recognised_new": float((now == label).double().mean())}
        table.append({**row, "mostly_taken_for": names[int(now.mode().values)]})
    return tuple(table)


def _p_larger(new: torch.Tensor, known: torch.Tensor, seed: int) -> float:
    """Return the one-sided p value of a permutation test: is the mean of the new values larger?"""
    from scipy.stats import permutation_test  # on use: half a second to import

    def difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        found: np.ndarray = a.mean(axis=axis) - b.mean(axis=axis)
        return found

    rng = np.random.default_rng(stream(seed, "permutations").initial_seed())
    options = {"n_resamples": _RESAMPLES, "batch": 500, "alternative": "greater", "rng": rng}
    return float(permutation_test((new.numpy(), known.numpy()), difference, vectorized=True, **options).pvalue)
