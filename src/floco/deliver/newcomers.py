"""Clients that were not there: a place on the simplex and a model for them, without anybody's training again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from floco.algorithms import FedAvgFT
from floco.algorithms.floco import OnSimplex
from floco.client.predict import global_model, judge
from floco.client.round import adapted, prepared
from floco.client.setup import Setup
from floco.client.sgd import run
from floco.core.errors import FlocoError, warn
from floco.core.metrics import METRICS, score
from floco.core.network import Network
from floco.core.random import one_thread, stream
from floco.core.values import OWN, Message, Row, ServerState, Tensors, under
from floco.data.federation import Client
from floco.deliver.mixtures import Mixtures
from floco.simplex import Assignment, Mixing

_ALL = 20  # samples up to which each is left out in turn
_FOLDS = 5  # parts that are left out in turn if there are more
SIZES = (5, 10, 20, 50)
"""Numbers of samples with which newcomers are tried, beside all that they have."""
_NAME = "newcomer"
_EVIDENCE = math.log(5)  # nats by which labels must be likelier without a model, before it is refused: few samples give less


@dataclass(frozen=True)
class Candidate:
    """A place that a newcomer could have."""

    rule: str
    """`global`: 1/M; `signal`: where the assignment's map puts its signal; `data`: the best mixture for its samples."""
    alpha: torch.Tensor
    """(M,) float64."""
    loss: float
    """Mean loss on samples that were left out, in nats."""
    accuracy: float
    """Accuracy on them, in [0, 1]."""


@dataclass(frozen=True)
class Guess:
    """What n labels can be predicted by without a model: the commonest of them, and their frequencies."""

    samples: int
    accuracy: float
    """Share of the commonest label, max_c n_c / n, in (0, 1]."""
    loss: float
    """-1/n sum_i log((m_c + 1) / (m + C)), in nats: of the m samples that are not left out with sample i, m_c have its label."""

    @staticmethod
    def of(y: torch.Tensor, parts: Sequence[torch.Tensor], classes: int) -> Guess:
        """Return the guess of class numbers y (n,), of which each part (indices) is left out in turn, for C classes."""
        counts = y.bincount(minlength=classes)
        others = [(counts - y[part].bincount(minlength=classes) + 1).double() for part in parts]
        losses = sum(float((n.sum() / n).log()[y[part]].sum()) for n, part in zip(others, parts, strict=True))
        return Guess(len(y), int(counts.max()) / len(y), losses / len(y))

    def beats(self, accuracy: float, loss: float) -> bool:
        """Return whether a model of this accuracy and loss on the same samples is to be refused: it is no better than this guess.

        accuracy <= self.accuracy, and accuracy < 1/2: where nearly all samples have one label, good models are below that share.
        n (loss - self.loss) > log 5: the labels are five times likelier by their frequencies; few samples can be wrong by accident.
        """
        return accuracy <= self.accuracy and accuracy < 0.5 and self.samples * (loss - self.loss) > _EVIDENCE


@dataclass(frozen=True)
class Placement:
    """Where a newcomer is on the simplex, and what else it could have been."""

    candidates: tuple[Candidate, ...]
    problems: dict[str, str]
    """Rules that could not be carried out, and why."""
    guess: Guess
    network: Network = field(repr=False)
    simplex: Tensors = field(repr=False)
    """The shared simplex, network tensors with endpoints (M, ...)."""
    mixing: Mixing = field(repr=False)

    @property
    def chosen(self) -> Candidate:
        """The candidate of least loss on left-out samples; of equal ones the first."""
        return min(self.candidates, key=lambda c: c.loss)

    @property
    def center(self) -> torch.Tensor:
        """Its place, (M,) float64."""
        return self.chosen.alpha

    @property
    def refusal(self) -> str:
        """Why `place` does not give its model (`Guess.beats`), or ""."""
        return f"the newcomer's model is no better than a guess: {self.compared}" if self.guess.beats(self.chosen.accuracy, self.chosen.loss) else ""

    @property
    def compared(self) -> str:
        """The model and the guess without one, in numbers."""
        model, guess = self.chosen, self.guess
        right = f"of {guess.samples} samples, left out in turn, it recognises {100 * model.accuracy:.1f} %, and {100 * guess.accuracy:.1f} % have the commonest label"
        return f"{right}; its loss is {model.loss:.3f}, and that of the label frequencies {guess.loss:.3f}"

    @property
    def tensors(self) -> Tensors:
        """Network tensors of its model."""
        return self.mixing(self.simplex, self.center.float())

    @property
    def module(self) -> nn.Module:
        """Its model: an ordinary module of the user's class, for normalised inputs, in eval mode."""
        return self.network.holding(self.tensors)


def place(setup: Setup, state: ServerState, x: torch.Tensor, y: torch.Tensor) -> Placement:
    """Return a place and a model for a newcomer with raw samples x (n, C, ...) and class numbers y (n,); n >= 2.

    Three rules are tried: the middle; the stored map of the assignment, at the signal of one local training; and the best
    mixture for the samples, argmin of the loss (`Mixtures.best`). Each sample in turn (of more than 20: a fifth of them) is
    left out, the rules are carried out on the others, and the one with the least loss on those left out is taken, with
    all samples. Nobody else changes. A model that is no better than a guess is refused (`Guess.beats`); with one that is not
    refused, and yet has a lower accuracy or a higher loss than the guess, comes a warning.

    Raises:
        FlocoError: the run has no simplex or no assignment, a newcomer has one sample only, or its model is refused.
    """
    found = tried(setup, state, x, y)
    if found.refusal:
        remedy = "check that labels and samples are coded as in the data of the run (exchanged or shifted labels look like this), train again with such data, or collect more"
        raise FlocoError(f"{found.refusal}. It must be better in one of the two: {remedy}")
    if found.chosen.accuracy < found.guess.accuracy or found.chosen.loss > found.guess.loss:
        warn(f"these samples do not show that the newcomer's model is better than a guess: {found.compared}; check labels, or collect more of several")
    return found


def tried(setup: Setup, state: ServerState, x: torch.Tensor, y: torch.Tensor) -> Placement:
    """Return what `place` would, also where it refuses or warns."""
    algorithm, stored = _assigned(setup, state)
    if len(y) < 2:
        raise FlocoError(f"a newcomer needs 2 labelled samples at least, one to place it and one to check, got {len(y)}")
    parts = _left_out(len(y), setup.seed)
    alone = _alone(setup, x, y, parts)
    with one_thread():
        mixtures = Mixtures(setup, algorithm.mixing, state.shared, x)
        rules: dict[str, Callable[[str], torch.Tensor]] = {
            "global": lambda who: mixtures.middle,
            "signal": lambda who: _by_signal(alone, algorithm, stored, state, who),
            "data": lambda who: mixtures.best(y, rows=alone.federation.client(who).train),
        }
        candidates, problems = [], {}
        for rule, at in rules.items():
            try:
                candidates.append(_candidate(rule, at, mixtures, alone))
            except Exception as error:  # noqa: BLE001  one rule that the newcomer's model or data cannot bear must not take the others from it; it is named
                problems[rule] = f"{type(error).__name__}: {error}"
    if not candidates:
        raise FlocoError(f"none of the rules can be carried out: {problems}")
    return Placement(tuple(candidates), problems, Guess.of(y, parts, setup.federation.classes), setup.network, state.shared, algorithm.mixing)


def _assigned(setup: Setup, state: ServerState) -> tuple[OnSimplex, Assignment]:
    if not isinstance(setup.algorithm, OnSimplex):
        raise FlocoError(f"a newcomer is placed on the solution simplex, and algorithm {setup.algorithm.name} has none: only floco and floco+ have one")
    if setup.local_buffers:
        raise FlocoError('a newcomer cannot be placed in a run with training.buffers = "local": it has no statistics of its own, and the server has none')
    stored = setup.algorithm.assignment(state)
    if stored is None:
        at = setup.algorithm.assign_at
        raise FlocoError(f"a newcomer is placed by the map of the assignment, and there was none in this run: algorithm.assign_at = {at}, after round {state.round}")
    return setup.algorithm, stored


def _left_out(n: int, seed: int) -> list[torch.Tensor]:
    return list(torch.randperm(n, generator=stream(seed, "left out")).tensor_split(n if n <= _ALL else _FOLDS))


def _alone(setup: Setup, x: torch.Tensor, y: torch.Tensor, parts: list[torch.Tensor]) -> Setup:
    """Return the setup of a federation of the newcomer alone: once with all samples, and once without each part."""
    everything = torch.arange(len(y))
    clients = [Client(_NAME, everything, everything)]
    clients += [Client(f"{_NAME}-{i}", everything[~torch.isin(everything, part)], part) for i, part in enumerate(parts)]
    return replace(setup, federation=replace(setup.federation, x=x, y=y, clients=tuple(clients), x_test=None, y_test=None, held_out=()))


def _by_signal(alone: Setup, algorithm: OnSimplex, stored: Assignment, state: ServerState, who: str) -> torch.Tensor:
    """Return where the map of the assignment puts a newcomer, from one local training on the shared simplex."""
    trained = run(alone, prepared(alone, who, Message(state.round + 1, "probe", state.shared), None))
    return stored.place(algorithm.mixing.signal(state.shared, trained)[None])[0]


def _candidate(rule: str, at: Callable[[str], torch.Tensor], mixtures: Mixtures, alone: Setup) -> Candidate:
    everyone, *others = alone.federation.clients
    found = [score(mixtures.logits(at(c.id), c.test), alone.federation.y[c.test]) for c in others]
    judged = sum(found[1:], start=found[0])
    return Candidate(rule, at(everyone.id), judged.loss, judged.accuracy)


def newcomer_rows(setup: Setup, state: ServerState) -> list[Row]:
    """Return how the held-out clients fare with 5, 10, 20, 50 and all of their training samples, on their own test parts.

    One row for each client, number of samples and model: `placed` (Floco and Floco+, after the assignment), `global`, `global+ft`
    (the global model after local epochs) and `local` (initial weights, as many epochs as a participant has in the mean). A model
    that cannot be made has a row without metrics, which says why; one that `place` refuses has them: means are of all newcomers.
    """
    rows: list[Row] = []
    for client in setup.federation.held_out:
        order = client.train[torch.randperm(len(client.train), generator=stream(setup.seed, "newcomer", client.id))]
        test = setup.federation.x[client.test], setup.federation.y[client.test]
        for n, size in [*((s, str(s)) for s in SIZES if s < len(order)), (len(order), "all")]:
            few = setup.federation.x[order[:n]], setup.federation.y[order[:n]]
            rows += [{"client": client.id, "size": size, "samples": n, **judged} for judged in _judged(setup, state, few, test)]
    return rows


def _judged(setup: Setup, state: ServerState, few: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor]) -> Iterator[Row]:
    """Yield name, rule, metrics and problem of each model that a newcomer could have."""
    names = (*setup.network.layout.parameters, *setup.network.layout.buffers)
    in_a_round = max(1, round(setup.training.fraction * len(setup.federation.clients)))
    epochs = max(1, round(setup.training.rounds * setup.training.epochs * in_a_round / len(setup.federation.clients)))
    shared = global_model(setup, Message(state.round, "evaluate", state.shared))
    middle = {n: shared[n] for n in names} if shared is not None else {}
    makers: dict[str, Callable[[], tuple[str, Tensors, str]]] = {}
    if isinstance(setup.algorithm, OnSimplex) and setup.algorithm.assignment(state) is not None and not setup.local_buffers:
        makers["placed"] = lambda: ((found := tried(setup, state, *few)).chosen.rule, found.tensors, found.refusal)
    if middle:
        makers |= {"global": lambda: ("", middle, ""), "global+ft": lambda: ("", _fine_tuned(setup, middle, few, None), "")}
    makers["local"] = lambda: ("", _fine_tuned(setup, {**setup.network.parameters, **setup.network.buffers}, few, epochs), "")
    with one_thread():
        for name, make in makers.items():
            try:
                rule, tensors, refusal = make()
                judged = judge(setup, [tensors], *test)[0]
                yield {"model": name, "rule": rule, **{m: getattr(judged, m) for m in METRICS}, "problem": refusal}
            except Exception as error:  # noqa: BLE001  a model that a newcomer's data cannot bear must not end a finished run; the row says why
                yield {"model": name, "rule": "", **dict.fromkeys(METRICS), "problem": f"{type(error).__name__}: {error}"}


def _fine_tuned(setup: Setup, start: Tensors, few: tuple[torch.Tensor, torch.Tensor], epochs: int | None) -> Tensors:
    """Return network tensors after local epochs (None: those of a round) on a newcomer's samples."""
    alone = replace(_alone(setup, *few, []), algorithm=FedAvgFT(personal_epochs=epochs))
    return under(adapted(alone, _NAME, Message(setup.training.rounds, "evaluate", start), None), OWN)
