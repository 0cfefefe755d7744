"""Tuning: a small grid of the same size for every method, evaluated on a part cut from the training data."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from floco.core.errors import FlocoError, RunFailed, WorkerDied
from floco.core.random import stream
from floco.core.settings import names
from floco.core.values import Row
from floco.data.federation import Client, Federation
from floco.data.holdout import cut_part
from floco.runs import session
from floco.runs.config import Config
from floco.server import rounds as loop
from floco.storage.files import csv_text, replace_file

SHARE = 0.25  # share of each client's training part that is cut off
_FACTORS = (0.5, 1.0, 2.0)  # factors of training.lr, each with two values of the method's tuned setting
_FINE = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0)  # factors for methods without one: the same number of trials


def list_trials(config: Config) -> list[dict[str, Any]]:
    """Return the six trials of a method, as settings of `training` and `algorithm` by their keys.

    They are three learning rates with two values of the tuned setting each, or six learning rates; that of the head, if
    it has its own, keeps its ratio.
    """
    rates, grid = {"training.lr": config.training.lr}, config.algorithm.tuned
    if config.training.head_lr is not None:
        rates["training.head_lr"] = config.training.head_lr
    if not grid:
        return [{name: rate * f for name, rate in rates.items()} for f in _FINE]
    if len(grid) > 1 or not grid.keys() <= {*names(type(config.algorithm))}:
        raise FlocoError(f"{config.algorithm.name}: tuned must name one of its settings, got {', '.join(grid)}")
    ((name, usual),) = grid.items()
    given = getattr(config.algorithm, name)
    return [
        {**{key: rate * f for key, rate in rates.items()}, f"algorithm.{name}": value}
        for f in _FACTORS
        for value in (given, next(v for v in usual if v != given))
    ]


def apply_trial(config: Config, trial: dict[str, Any]) -> Config:
    """Return the configuration with a trial's settings."""
    for key, value in trial.items():
        section, _, name = key.partition(".")
        config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
    return config


def cut_validation(federation: Federation, seed: int, *, small: str = "error", least: int = 1) -> Federation:
    """Return the federation with a quarter of each client's training part as its test part, and no global test part.

    No client of it refers to a sample of the original test parts. If samples are ordered in time, the latest quarter is
    cut off, without the samples at the cut, since neighbours share data (as for test parts).

    Clients without a test part, and unless `small` is "error" those too small for two parts, only train.
    """
    clients = tuple(_cut(c, seed, small, least) for c in federation.clients)
    return replace(federation, clients=clients, x_test=None, y_test=None)


def _cut(client: Client, seed: int, small: str, least: int) -> Client:
    whole = replace(client, test=client.train[:0])
    if not len(client.test):
        return whole
    try:
        train, test = cut_part(client, SHARE, stream(seed, "tune", client.id))
        if len(train) >= least and len(test):
            when = None if client.when is None else client.when[torch.isin(client.train, train)]
            return replace(whole, train=train, test=test, when=when)
        few = f'client "{client.id}" has {len(client.train)} training samples, too few for two parts'
    except FlocoError as error:
        few = str(error)
    if small != "error":
        return whole
    raise FlocoError(f"tuning cuts a part from every client's training part: {few}; see data.small")


def try_out(config: Config, federation: Federation, trial: dict[str, Any]) -> Row:
    """Return a trial's primary metric and loss: final personal models on the cut-off parts, mean over clients."""
    config = apply_trial(config, trial)
    cut = cut_validation(federation, config.seed, small=config.data.small, least=config.data.least)
    setup = session.prepare(config, cut)
    settings = replace(config.run, evaluate_every=config.training.rounds, trackers=())
    last = session.advance(setup, settings, None, loop.initialize(setup), lambda progress: None)
    assert last.evaluation is not None
    history = last.evaluation.history
    name = config.task.primary
    return {f"validation_{name}": history[f"{name}_personal"], "validation_loss": history["loss_personal"]}


def tune(file: Path, method: str, config: Config, federation: Federation, tried: Callable[[str], None]) -> Config:
    """Return a method's configuration with the settings of its best trial under the same seed.

    Every seed is tuned separately, since the test samples of one seed are training samples of another. Trials that are
    already in the CSV file are not repeated, unless they failed, which may have had a passing cause.

    Args:
        file: all finished trials, one row each; extended after every trial.
        method: the method's name.
        config: its configuration.
        federation: the data of the configuration's seed.
        tried: called with one line per finished trial.

    Raises:
        RunFailed: every trial failed.
    """
    key, sign = f"validation_{config.task.primary}", 1 if config.task.metrics.higher else -1
    trials, seed = [json.dumps(t) for t in list_trials(config)], config.seed
    rows: list[Row] = list(csv.DictReader(io.StringIO(file.read_text()))) if file.exists() else []
    try:
        rows = [r for r in rows if (r["method"], str(r["seed"])) != (method, str(seed)) or not r["reason"]]
        mine = {str(r["settings"]): r for r in rows if (r["method"], str(r["seed"])) == (method, str(seed))}
        for i, trial in enumerate(trials):
            if trial not in mine:
                mine[trial] = {"method": method, "seed": seed, "settings": trial, **_tried(config, federation, trial)}
                rows.append(mine[trial])
                replace_file(file, csv_text(rows, header=True).encode())
                reached = mine[trial][key]
                tried(f"tuning {method}, seed {seed}, {i + 1}/{len(trials)}: {trial} -> {reached}")
        good = [t for t in trials if mine[t][key] not in (None, "")]
        values = {t: (sign * float(str(mine[t][key])), -float(str(mine[t]["validation_loss"]))) for t in good}
        best = max(good, key=lambda t: values[t], default=None)
    except (KeyError, ValueError) as error:
        if isinstance(error, FlocoError):
            raise
        raise FlocoError(f"{file} was changed: {type(error).__name__} {error}") from error
    if best is None:
        raise RunFailed(f"{method}: every trial of the tuning failed; see {file}")
    return apply_trial(config, json.loads(best))


def _tried(config: Config, federation: Federation, trial: str) -> Row:
    """Return a trial's outcome; a run that diverges has no metrics, but a reason."""
    row: Row = {f"validation_{config.task.primary}": None, "validation_loss": None, "reason": ""}
    try:
        return row | try_out(config, federation, json.loads(trial))
    except WorkerDied:  # not the fault of the settings
        raise
    except RunFailed as error:
        return row | {"reason": str(error)}
