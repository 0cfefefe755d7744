"""The model that a client takes home: its further trainings, and the choice among its candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from floco.client.mixtures import find_best
from floco.client.predict import compute_outputs
from floco.client.setup import Setup
from floco.client.sgd import Work, rate_head, train_client
from floco.core.delivery import CANDIDATES
from floco.core.inputs import rows
from floco.core.values import Combined, Models, Tensors


class Delivered(NamedTuple):
    """A client's global model, and the one that it takes home as its personal model."""

    models: Models
    taken: str
    """One of `CANDIDATES`."""
    point: torch.Tensor | None
    """Its point on the simplex, (M,); None: it is at none."""


def list_trainings(setup: Setup, work: Work, tensors: Tensors) -> dict[str, Work]:
    """Return the trainings of further models of a client's own, after its adaptation to `tensors`.

    Their working tensors are the network's. The task's shift is no part of them, as their targets have it.
    """
    trainings = setup.delivery.trainings(work.facts)
    personal = setup.algorithm.models(tensors, work.facts).personal if trainings else None
    if personal is None:
        return {}
    assert not isinstance(personal, Combined)  # refused by `Setup`
    starts = {"finetuned": personal, "local": {**setup.network.parameters, **setup.network.buffers}}
    _, *rest = work.path
    made = {}
    for name, phases in trainings.items():
        start = {n: starts[name][n] for n in setup.network.layout.names}
        first = "adapt" if name == "finetuned" and not work.phases else name  # FedAvg's is then LP-FT, to the bit
        made[name] = Work(
            work.client, work.message, work.facts, start, rate_head(setup, phases), work.samples, (first, *rest)
        )
    return made


def deliver(setup: Setup, work: Work, tensors: Tensors, trained: Mapping[str, Tensors] | None = None) -> Delivered:
    """Return what a client takes home, from its adapted tensors.

    Args:
        setup: the setup of the run.
        work: the client's adaptation.
        tensors: its working tensors after it.
        trained: further models, if they are trained already, by the names of `list_trainings`.
    """
    both, mixing, kind = setup.models(tensors, work.facts), setup.algorithm.mixing, setup.delivery.model
    center = None if mixing is None else mixing.point(tensors)[1]
    if kind == "personal" or both.personal is None:
        return Delivered(both, "personal", center)
    assert not isinstance(both.personal, Combined)  # refused by `Setup`
    known, counts = trained or {}, work.facts.label_counts
    made: dict[str, Tensors | None] = {}
    for name, training in list_trainings(setup, work, tensors).items():
        own = known[name] if name in known else train_client(setup, training)
        made[name] = setup.shifted(own, counts)
    if kind == "finetuned":
        return Delivered(both._replace(personal=made["finetuned"]), "finetuned", None)
    made |= {"global": both.global_, "personal": None if both.personal is both.global_ else both.personal}
    points = {"personal": center}
    if mixing is not None and not mixing.own_centers:  # own centers were found as best mixtures
        own, near = mixing.point(tensors)
        simplex = setup.shifted(own, counts)
        points["best"] = best = find_best(setup, work.client, mixing, simplex, near)
        made["best"] = mixing(simplex, best.float())
    found = {name: model for name in CANDIDATES if (model := made.get(name)) is not None}
    taken = _choose(setup, work.client, found)
    return Delivered(both._replace(personal=found[taken]), taken, points.get(taken))


def _choose(setup: Setup, client: str, candidates: Mapping[str, Tensors]) -> str:
    """Return the name of the candidate that a client takes by its held-back samples."""
    held = setup.divide(client)[1]
    if len(held) < 2 or len(candidates) == 1:
        return next(iter(candidates))
    x, y = rows(setup.federation.x, held), setup.federation.y[held]
    return pick({name: setup.task.losses(compute_outputs(setup, m, x), y) for name, m in candidates.items()})


def pick(losses: Mapping[str, torch.Tensor]) -> str:
    """Return the name of lowest mean loss among those that are better than the first one; if none is, the first.

    Better is a mean of the paired differences above its standard error, s / sqrt(n).

    Args:
        losses: by name, of the same n >= 2 samples, (n,).

    >>> pick({"global": torch.tensor([1.0, 1.0, 3.0]), "personal": torch.tensor([0.5, 0.6, 2.5])})
    'personal'
    >>> pick({"global": torch.tensor([1.0, 1.0, 3.0]), "personal": torch.tensor([0.9, 1.1, 2.8])})
    'global'
    """
    first, better = next(iter(losses)), {}
    for name, own in losses.items():
        gain = losses[first].double() - own.double()
        if float(gain.mean()) > float(gain.std()) / math.sqrt(len(gain)):
            better[name] = float(own.double().mean())
    return min(better, key=lambda name: better[name], default=first)
