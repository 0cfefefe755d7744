"""Newcomers: a place on the simplex and a model for clients that took no part in training; nobody trains again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from floco.algorithms import FedAvgFT
from floco.client.mixtures import Mixtures
from floco.client.predict import find_global_model, judge
from floco.client.round import adapt, prepare
from floco.client.setup import Setup
from floco.client.sgd import train_client
from floco.core.delivery import Delivery
from floco.core.errors import FlocoError, warn
from floco.core.inputs import Inputs, rows
from floco.core.metrics import pooled
from floco.core.mixing import Mixing
from floco.core.random import one_thread, stream
from floco.core.settings import plain
from floco.core.values import PERSONAL, Message, Row, ServerState, Tensors, Training, strip_prefix
from floco.data.federation import Client
from floco.data.per_client import schema_of_newcomer
from floco.deliver.placement import Candidate, Placement

_ALL, _FOLDS = 20, 5  # leave-one-out for up to 20 samples, 5-fold cross-validation for more
SIZES = (5, 10, 20, 50)
"""Numbers of samples to evaluate newcomers with, besides all of their samples."""
_NAME = "newcomer"
_Samples = tuple[Inputs, torch.Tensor]
"""Raw samples (n, C, ...) and targets (n, ...)."""
_Maker = Callable[[], tuple[str, Tensors, str]]


def place_newcomer(setup: Setup, state: ServerState, x: Any, y: Any) -> Placement:
    """Return what `place` does for samples x (N, ...) and targets y (N, ...) as in the source of the run's data."""
    schema = schema_of_newcomer(setup.federation, x)
    return replace(place(setup, state, *schema.labelled(x, y)), schema=schema)


def place(setup: Setup, state: ServerState, x: Inputs, y: torch.Tensor) -> Placement:
    """Return a place and a model for a newcomer with raw samples x (n, C, ...) and targets y (n, ...); n >= 2.

    The place is chosen among three rules by cross-validation (leave-one-out for up to 20 samples, otherwise 5 folds):
    the rule with the lowest loss on left-out samples is applied to all samples.

    - `global`: the middle of the simplex.
    - `signal`: the stored map of the assignment, at the signal of one local training.
    - `data`: the best mixture for the samples, argmin of the loss (`Mixtures.best`).

    No other client's model changes. Warns if the model has a lower accuracy or a higher loss than a guess.

    Raises:
        FlocoError: the run has no simplex or no assignment, n < 2, or the model is no better than a guess
            (`Guess.beats`).
    """
    found = try_place(setup, state, x, y)
    if found.refusal:
        raise FlocoError(
            f"{found.refusal}. It must be better in one of the two: check that labels and samples are coded as in the "
            "data of the run (exchanged or shifted labels look like this), train again with such data, or collect more"
        )
    if found.doubtful:
        warn(
            f"these samples do not show that the newcomer's model is better than a guess: {found.compared}; "
            "check the labels, or collect samples of several labels"
        )
    return found


def try_place(setup: Setup, state: ServerState, x: Inputs, y: torch.Tensor) -> Placement:
    """Return the placement of `place` without its refusal and warning."""
    mixing = _simplex(setup, state)
    if len(y) < 2:
        raise FlocoError(
            f"a newcomer needs 2 labelled samples at least, one to place it and one to check, got {len(y)}"
        )
    parts = _left_out(len(y), setup.seed)
    alone = _alone(setup, x, y, parts)
    with one_thread():
        mixtures = Mixtures(setup, mixing, state.shared, x)
        rules: dict[str, Callable[[str], torch.Tensor]] = {
            "global": lambda who: mixtures.middle,
            "signal": lambda who: _by_signal(alone, mixing, state, who),
            "data": lambda who: _best(alone, mixtures, who),
        }
        if mixing.own_centers:  # there is no map
            del rules["signal"]
        candidates, problems = [], {}
        for rule, at in rules.items():
            try:
                candidates.append(_candidate(rule, at, mixtures, alone))
            except Exception as error:  # noqa: BLE001  a rule that fails on these data leaves the others usable
                problems[rule] = f"{type(error).__name__}: {error}"
    if not candidates:
        raise FlocoError(f"all rules fail: {problems}")
    guess = setup.task.guess(y, parts, setup.federation.schema.labels)
    schema = setup.federation.schema
    simplex = alone.shifted(state.shared, alone.facts(_NAME).label_counts)
    return Placement(tuple(candidates), problems, guess, setup.network, simplex, mixing, schema)


def _simplex(setup: Setup, state: ServerState) -> Mixing:
    if (mixing := setup.algorithm.mixing) is None:
        raise FlocoError(
            f"a newcomer is placed on the solution simplex, and algorithm {setup.algorithm.name} has none: "
            "floco and floco+ have one"
        )
    if setup.local_buffers:
        raise FlocoError(
            'a newcomer cannot be placed in a run with training.buffers = "local": '
            "neither the newcomer nor the server has statistics for the buffers"
        )
    if not setup.algorithm.assigned(state):
        raise FlocoError(
            "a newcomer is placed by the map of the assignment, and there was none in this run: "
            f"algorithm.assign_at = {plain(setup.algorithm).get('assign_at')}, after round {state.round}"
        )
    return mixing


def _left_out(n: int, seed: int) -> list[torch.Tensor]:
    return list(torch.randperm(n, generator=stream(seed, "left out")).tensor_split(n if n <= _ALL else _FOLDS))


def _alone(setup: Setup, x: Inputs, y: torch.Tensor, parts: list[torch.Tensor]) -> Setup:
    """Return the setup of a federation of clients that are copies of the newcomer.

    The first has all samples. Each other one leaves out one part, which is its test part. Their step size is as set:
    the schedule is over when newcomers come.
    """
    everything = torch.arange(len(y))
    clients = [Client(_NAME, everything, everything)]
    clients += [Client(f"{_NAME}-{i}", everything[~torch.isin(everything, part)], part) for i, part in enumerate(parts)]
    federation = setup.federation.around(x, y, clients)
    training = replace(setup.training, schedule="constant", warmup=0)
    return replace(setup, federation=federation, training=training, delivery=Delivery())


def _by_signal(alone: Setup, mixing: Mixing, state: ServerState, who: str) -> torch.Tensor:
    """Return a newcomer's place (M,) by the map of the assignment, from one local training on the shared simplex."""
    trained = train_client(alone, prepare(alone, who, Message(state.round + 1, "probe", state.shared), None))
    return alone.algorithm.place(state, mixing.signal(state.shared, trained)[None])[0]


def _best(alone: Setup, mixtures: Mixtures, who: str) -> torch.Tensor:
    train = alone.federation.client(who).train
    return mixtures.best(alone.training_targets(who, torch.arange(len(alone.federation.y))), rows=train)


def _candidate(rule: str, at: Callable[[str], torch.Tensor], mixtures: Mixtures, alone: Setup) -> Candidate:
    everyone, *others = alone.federation.clients
    found = [(_outputs(alone, mixtures, at(c.id), c), alone.federation.y[c.test]) for c in others]
    judged = pooled(alone.task.score(*pair) for pair in found)
    assert judged is not None
    losses = [loss for pair in found for loss in alone.task.losses(*pair).tolist()]  # a sample each, as a guess has it
    return Candidate(rule, at(everyone.id), math.fsum(losses) / len(losses), alone.task.value(judged))


def _outputs(alone: Setup, mixtures: Mixtures, alpha: torch.Tensor, client: Client) -> torch.Tensor:
    """Return outputs for a copy's left-out samples, with the shift by those that are not left out."""
    found, shift = mixtures.outputs(alpha, client.test).double(), alone.task.shift(alone.facts(client.id).label_counts)
    return found if shift is None else found + shift


def newcomer_rows(setup: Setup, state: ServerState) -> list[Row]:
    """Return the results of held-out clients with 5, 10, 20, 50 and all of their training samples, on their test parts.

    One row for each client, number of samples and model:

    - `placed`: the model of `place` (Floco and Floco+, after the assignment), including those that it refuses, so that
      means are over all newcomers.
    - `global`: the global model.
    - `global+ft`: the global model after local epochs.
    - `local`: initial weights, trained for as many epochs (or `training.steps`) as a participant on average.

    Clients without a test part are left out.

    The row of a model that fails has no metrics, and the reason as its `problem`.
    """
    made: list[Row] = []
    for client in (c for c in setup.federation.held_out if len(c.test)):
        order = client.train[torch.randperm(len(client.train), generator=stream(setup.seed, "newcomer", client.id))]
        test = rows(setup.federation.x, client.test), setup.federation.y[client.test]
        for n, size in [*((s, str(s)) for s in SIZES if s < len(order)), (len(order), "all")]:
            few = rows(setup.federation.x, order[:n]), setup.federation.y[order[:n]]
            head: Row = {"client": client.id, "size": size, "samples": n}
            made += [{**head, **judged} for judged in _judged(setup, state, few, test)]
    return made


def _judged(setup: Setup, state: ServerState, few: _Samples, test: _Samples) -> Iterator[Row]:
    """Yield name, rule, metrics and problem of each model that a newcomer could have."""
    makers = _makers(setup, state, few)
    with one_thread():
        for name, make in makers.items():
            try:
                rule, tensors, refusal = make()
                judged = judge(setup, [tensors], *test)[0]
                yield {"model": name, "rule": rule, **setup.task.values(judged), "problem": refusal}
            except Exception as error:  # noqa: BLE001  a model that fails must not end a finished run
                problem = f"{type(error).__name__}: {error}"
                yield {"model": name, "rule": "", **setup.task.values(None), "problem": problem}


def _makers(setup: Setup, state: ServerState, few: _Samples) -> dict[str, _Maker]:
    """Return a function for each model that makes it, and returns its rule, tensors and refusal."""
    network, training = setup.network, setup.training
    in_a_round = max(1, round(training.fraction * len(setup.federation.clients)))
    times = training.rounds * in_a_round / len(setup.federation.clients)
    steps = training.steps and max(1, round(times * training.steps))
    as_long = replace(training, epochs=max(1, round(times * training.epochs)), steps=steps)
    shared = find_global_model(setup, Message(state.round, "evaluate", state.shared))
    middle = {n: shared[n] for n in network.layout.names} if shared is not None else {}
    assigned = setup.algorithm.mixing is not None and setup.algorithm.assigned(state)
    makers: dict[str, _Maker] = {}
    if assigned and not setup.local_buffers:
        makers["placed"] = lambda: ((found := try_place(setup, state, *few)).chosen.rule, found.tensors, found.refusal)
    if middle:
        makers["global"] = lambda: ("", middle, "")
        makers["global+ft"] = lambda: ("", _fine_tuned(setup, middle, few, training), "")
    initial = {**network.parameters, **network.buffers}
    makers["local"] = lambda: ("", _fine_tuned(setup, initial, few, as_long), "")
    return makers


def _fine_tuned(setup: Setup, start: Tensors, few: _Samples, training: Training) -> Tensors:
    """Return network tensors after local training on a newcomer's samples, as long as `training` says for a round."""
    alone = replace(_alone(setup, *few, []), algorithm=FedAvgFT(), training=training)
    found = strip_prefix(adapt(alone, _NAME, Message(setup.training.rounds, "evaluate", start), None), PERSONAL)
    return alone.shifted(found, alone.facts(_NAME).label_counts)
