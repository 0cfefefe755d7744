"""A run from its configuration: data and network, run directory, rounds, and resumption."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from floco.client.fitness import check_model
from floco.client.setup import Setup
from floco.core.errors import FlocoError, warn
from floco.core.network import build_network
from floco.core.settings import flatten
from floco.core.values import Row
from floco.data.federation import Federation
from floco.data.known import describe as describe_federation
from floco.data.models import MODELS
from floco.data.models import model as named_model
from floco.deliver.measures import measure_clients
from floco.deliver.network import write_graph
from floco.deliver.newcomers import newcomer_rows
from floco.engines.engine import resolve, start_engine
from floco.runs import changes
from floco.runs.checkpoint import Store
from floco.runs.config import Config, RunSettings, describe
from floco.runs.machine import environment, find_device
from floco.runs.source import SITES, federation
from floco.runs.toml import parse, read, to_toml
from floco.runs.trackers import Tracker, check_installed, open_trackers, track
from floco.server import rounds as loop
from floco.server.progress import Plan, Progress
from floco.storage.files import csv_text, read_tensors, replace_file, to_json

KNOWN, GRAPH = "federation.json", "network.pt2"
"""Files of a run directory; see `portrait`."""
Watch = Callable[[Progress], None]
"""Called after every round, e.g. to show progress."""
AFTER = ("newcomers", "metrics", "groups", "confusion")
"""Tables that are written after the last round."""


def prepare(config: Config, made: Federation | None = None) -> Setup:
    """Return the fixed part of a run: the federation (loaded unless given) and a network that is checked on it."""
    made = made or federation(config)
    setup = assemble(config, made)
    check_model(setup)
    return setup


def assemble(config: Config, made: Federation) -> Setup:
    """Return the setup of a configuration and a federation, with a network built for it."""
    weights = None if config.model.weights is None else read_tensors(Path(config.model.weights))
    net = build_network(
        named_model(config.model.name, made, config.model.ids), seed=config.seed, weights=weights, sample=made.sample
    )
    algorithm = config.algorithm.resolved(config.training, net.layout)
    where = find_device(config.run.device)
    return Setup(made, net, algorithm, config.training, config.seed, where, delivery=config.deliver)


def resolve_engine(config: Config, setup: Setup) -> Config:
    """Return the configuration with engine and workers resolved, so that a resumed run uses the same ones."""
    kind, workers = resolve(setup, config.run.engine, config.run.workers)
    return replace(config, run=replace(config.run, engine=kind, workers=workers))


def create(config: Config, setup: Setup, path: Path) -> None:
    """Create the run directory of a configuration, with a checkpoint of round 0."""
    check_installed(config.run.trackers)
    facts: dict[str, Any] = {"config": changes.plain(config), **describe(config), "clients": len(setup.clients)}
    facts |= {"data": setup.federation.fingerprint(), "model": setup.network.fingerprint()}
    facts |= {"network": setup.network.shape_hash()}
    versions = json.dumps(environment(), indent=1, sort_keys=True) + "\n"
    files: dict[str, str | bytes] = {
        "config.toml": to_toml(config),
        "environment.json": versions,
        **portrait(config, setup),
    }
    Store.create(path, files, facts, loop.initialize(setup))


def portrait(config: Config, setup: Setup) -> dict[str, bytes]:
    """Return the files with which a run can be read without its data, and without the code of a network of one's own.

    Warns if there can be no graph of the network.
    """
    known = describe_federation(setup.federation)
    files: dict[str, bytes] = {}
    if config.model.name not in (*MODELS, "gru") or config.model.weights is not None:
        try:
            files[GRAPH] = write_graph(setup.network, setup.federation)
        except FlocoError as error:
            known["no_graph"] = str(error)
            warn(f"this run can be read only where model.name can be imported, as its network has no graph: {error}")
    return {KNOWN: to_json(known), **files}


def reopen(path: Path) -> tuple[Config, Store]:
    """Return the configuration and the locked store of a run; raises if its config.toml was changed."""
    store = Store(path)
    try:
        if store.facts["data"] == SITES:
            where = "the data of this run and its models are at its sites"
            raise FlocoError(f"{path}: {where}: use the state directory of a site")
        stored = parse(store.facts["config"])
        check_config(parse(changes.in_force(store.facts, 0)), read(path / "config.toml"), path)
        return stored, store
    except BaseException:
        store.close()
        raise


def check_config(stored: Config, given: Config, path: Path) -> None:
    """Raise if the given settings differ from those of the run."""
    for key, before, now in changes.differences(stored, given):
        raise FlocoError(
            f"{path} has {key} = {before!r}, and is to be continued with {now!r}: put it back, start a new run, or "
            f"change training and run settings with floco resume {path} -s KEY=VALUE (in Python: change=True)"
        )


def note_changes(store: Store, config: Config, done: int) -> None:
    """Note in a run that other settings hold from round `done` + 1 on; what was computed at its end is out of date."""
    if (store.path.resolve().parents[1] / "comparison.json").is_file():
        raise FlocoError(
            f"{store.path} is part of a comparison, whose methods have equal conditions: start another one"
        )
    check_installed(config.run.trackers)
    if config.training.rounds > done:
        for name in AFTER:
            (store.path / f"{name}.csv").unlink(missing_ok=True)
    store.note(changes.noted(store.facts, config, done))


def check(store: Store, setup: Setup) -> None:
    """Raise if a run's data or model differ from those it was started with."""
    if setup.network.fingerprint() != store.facts["model"]:
        raise FlocoError(
            f"the model of {store.path} has changed since the run was started (layers or initial values): restore it, "
            "or start a new run; pass a function, if its values are random"
        )
    check_data(store, setup.federation)


def check_data(store: Store, federation: Federation) -> None:
    """Raise if a run's data differ from those it was started with."""
    if federation.fingerprint() != store.facts["data"]:
        raise FlocoError(
            f"the data of {store.path} have changed since the run was started (samples, labels, splits, or the "
            "libraries that split them); restore them, or start a new run"
        )


def advance(setup: Setup, settings: RunSettings, store: Store | None, start: Progress, watch: Watch) -> Progress:
    """Run all remaining rounds, write checkpoints, and return the last progress."""
    progress = start
    plan = Plan(settings.evaluate_every, settings.max_failed)
    with closing(start_engine(setup, settings.engine, settings.workers)) as running, ExitStack() as stack:
        trackers = [stack.enter_context(closing(t)) for t in _trackers(settings, store)]
        clock = time.perf_counter()
        for progress in loop.rounds(setup, running, plan, start):
            if store is not None:
                _record(store, progress, time.perf_counter() - clock)
                if progress.round % settings.checkpoint_every == 0 or progress.round == setup.training.rounds:
                    store.save(progress)
            clock = time.perf_counter()
            watch(progress)
            if progress.evaluation is not None:
                for tracker in list(trackers):
                    track(tracker, progress.evaluation.history, trackers)
    if store is not None:
        conclude(setup, store.path, progress)
    return progress


def conclude(setup: Setup, path: Path, progress: Progress) -> None:
    """Write what a finished run has that is missing: metrics.csv and the tables beside it, and newcomers.csv."""
    if progress.round < setup.training.rounds:
        return
    if not (path / "metrics.csv").exists():  # the last of the three
        for name, rows in reversed(measure_clients(setup, progress)._asdict().items()):
            if rows or name == "metrics":
                replace_file(path / f"{name}.csv", csv_text(rows, header=True).encode())
    if setup.federation.held_out and not (path / "newcomers.csv").exists():
        replace_file(path / "newcomers.csv", csv_text(newcomer_rows(setup, progress.state), header=True).encode())


def _trackers(settings: RunSettings, store: Store | None) -> list[Tracker]:
    if not settings.trackers:
        return []
    if store is None:
        raise FlocoError("run.trackers write into the run directory: give one (out=...)")
    with (store.path / "history.csv").open(newline="") as file:
        rows: list[Row] = [{**row, "round": int(row["round"])} for row in csv.DictReader(file)]
    return open_trackers(settings.trackers, store.path, flatten(store.facts["config"]), rows)


def continue_run(
    path: Path, setup: Setup | None, start: Callable[[Setup, Progress], Watch], overrides: Sequence[str] = ()
) -> Setup:
    """Continue the run of a directory to its last round, and return its setup.

    `start` is called with setup and progress before the first round, and returns the function to call after each round.
    `overrides`, each `key=value`, change settings of the run from its next round on (see `changes.permit`).
    """
    settings, store = reopen(path)
    with closing(store):
        settings = changes.change(settings, overrides, store.latest()[0]) if overrides else settings
        setup = setup or prepare(settings)
        check(store, setup)
        if overrides:
            settings = resolve_engine(settings, setup)
            note_changes(store, settings, store.latest()[0])
        store.rewind()
        progress = store.load(settings.run.memory_budget)
        watch = start(setup, progress)
        if progress.round < setup.training.rounds:
            advance(setup, settings.run, store, progress, watch)
        conclude(setup, path, progress)
    return setup


def _record(store: Store, progress: Progress, seconds: float) -> None:
    store.note_changed(progress.changed)
    store.add("failures", [f.row for f in progress.failures])
    store.add("timings", [{"round": progress.round, "seconds": round(seconds, 4)}])
    if progress.evaluation is not None:
        store.add("history", [progress.evaluation.history])
        store.add("clients", progress.evaluation.clients)
