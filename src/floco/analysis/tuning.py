"""A small grid of equal size for every method, judged on a part cut from the clients' training data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from floco.core.errors import FlocoError
from floco.core.random import stream
from floco.core.values import Row
from floco.data.federation import Client, Federation
from floco.data.holdout import divide_latest
from floco.runs import session
from floco.runs.config import Config
from floco.server import rounds as loop

SHARE = 0.25  # of each client's training part
_FACTORS = (0.5, 1.0, 2.0)  # of training.lr, with two values of the method's strength each
_FINE = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0)  # for methods that have no such setting: as many trials


def grid(config: Config) -> list[dict[str, Any]]:
    """Return the trials of a method: keys of `training` and `algorithm` with their values. Every method has six.

    Three step sizes with the configured strength and one other, or six step sizes.
    """
    lr, tuned = config.training.lr, config.algorithm.tuned
    if not tuned:
        return [{"training.lr": lr * f} for f in _FINE]
    ((name, usual),) = tuned.items()
    given = getattr(config.algorithm, name)
    return [{"training.lr": lr * f, f"algorithm.{name}": value} for f in _FACTORS for value in (given, next(v for v in usual if v != given))]


def changed(config: Config, trial: dict[str, Any]) -> Config:
    """Return the configuration with the settings of a trial."""
    for key, value in trial.items():
        section, _, name = key.partition(".")
        config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
    return config


def for_tuning(federation: Federation, seed: int) -> Federation:
    """Return the federation with a quarter of each client's training part in place of its test part, and no global test part.

    The samples of the test parts are not reachable from it by any client. Where samples are in order of time, the quarter is the
    latest, less the samples at the cut, as for test parts: neighbours share data.
    """
    clients = tuple(_cut(c, seed) if c.when is None else _latest(c, c.when) for c in federation.clients)
    return replace(federation, clients=clients, x_test=None, y_test=None)


def _cut(client: Client, seed: int) -> Client:
    order = torch.randperm(len(client.train), generator=stream(seed, "tune", client.id))
    n = max(1, round(SHARE * len(order)))
    return _parts(client, client.train[order[n:].sort().values], client.train[order[:n].sort().values])


def _latest(client: Client, when: torch.Tensor) -> Client:
    train, test = divide_latest(np.arange(len(when)), when.numpy(), SHARE, client.id)
    return _parts(client, client.train[train], client.train[test])


def _parts(client: Client, train: torch.Tensor, test: torch.Tensor) -> Client:
    if not len(train) or not len(test):
        raise FlocoError(f'tuning cuts a part from every client\'s training part: client "{client.id}" has {len(client.train)} training samples, too few for two parts')
    return Client(client.id, train, test)


def try_out(config: Config, federation: Federation, trial: dict[str, Any]) -> Row:
    """Return what a trial reached after the last round: the personal models on the parts cut off, mean over clients."""
    config = changed(config, trial)
    setup = session.prepare(config, for_tuning(federation, config.seed))
    last = session.advance(setup, replace(config.run, evaluate_every=config.training.rounds, trackers=()), None, loop.begin(setup), lambda progress: None)
    assert last.evaluation is not None
    history = last.evaluation.history
    return {"validation_accuracy": history["accuracy_personal"], "validation_loss": history["loss_personal"]}
