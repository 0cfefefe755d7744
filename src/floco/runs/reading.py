"""A run as others read it: without its data, its code, a lock or permission to write."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from floco.client.setup import Setup
from floco.core.errors import FlocoError, warn
from floco.core.network import Network
from floco.core.random import global_stream, one_thread
from floco.core.settings import build
from floco.data.federation import Federation
from floco.data.known import Known
from floco.deliver.network import check_equal, read_graph
from floco.runs import source
from floco.runs.changes import in_force
from floco.runs.checkpoint import Store
from floco.runs.config import Config
from floco.runs.machine import find_device
from floco.runs.session import GRAPH, KNOWN, assemble, check_data
from floco.runs.toml import parse
from floco.server.progress import Progress
from floco.storage.bundles import unpack
from floco.storage.files import read_json


def find_run(path: Path) -> Path:
    """Return the run directory at a path.

    It is the path itself; of a bundle, a temporary folder with its contents, until the process ends; of a Flower site's
    state directory, that of its last run.
    """
    if os.path.isfile(path):  # unlike Path.is_file, False for what may not be read
        return unpack(path)
    current = path / "current"
    return path / current.read_text().strip() if os.path.isfile(current) and not (path / "run.json").exists() else path


def read_run(
    path: Path, data: str | Federation | None = None, where: str | None = None
) -> tuple[Config, Setup, Progress]:
    """Return configuration, setup and last progress of a run directory.

    The setup's federation has no samples, and loads them when something needs them (`Setup.with_samples`): from where
    they were, or from `data`, a source or a federation, where they must be the same. The models compute on the device
    called `where`; None: the run's, or the CPU if that is not available.

    Raises:
        FlocoError: the run cannot be read, or needs code that is not importable here: a method or task of one's own,
            or a network that has no graph.
    """
    with closing(Store(path, read=True)) as store:
        run = store.facts["config"]["run"]
        progress = store.load(run["memory_budget"])
        # as in the last round, but for where it computes; changes for later rounds are not in its models
        raw = {**in_force(store.facts, progress.round), "run": run}
        config = _on_device(read_settings(path, {**store.facts, "config": raw}), where)
        return config, _setup(path, config, store, data), progress


def read_settings(path: Path, facts: dict[str, Any]) -> Config:
    """Return the settings of a run from its run.json; a split of one's own is only needed with the samples."""
    if facts["data"] == source.SITES:
        where = "the data of this run and its models are at its sites"
        raise FlocoError(f"{path}: {where}: use the state directory of a site")
    stored = facts["config"]
    try:
        return parse(stored)
    except FlocoError:
        return parse({**stored, "data": {**stored["data"], "split": {}}})


def _on_device(config: Config, where: str | None) -> Config:
    """Return the configuration for using a run's models on a device."""
    try:
        find_device(config.run.device if where is None else where)
    except FlocoError:
        if where is not None:
            raise
        where = "cpu"
    return config if where is None else replace(config, run=replace(config.run, device=where))


def _setup(path: Path, config: Config, store: Store, data: str | Federation | None) -> Setup:
    def load() -> Federation:
        made = _samples(parse(store.facts["config"]), data)
        check_data(store, made)
        return made

    told = read_json(path / KNOWN)
    known = Known(told, build(type(config.task), told["task"]), load)
    try:
        setup = assemble(config, known)
        problem = _changed(config, setup.network, store) or _computes_otherwise(config, setup, path / GRAPH)
    except FlocoError as error:
        problem = str(error) if config.model.name != source.PYTHON else "it was given in Python, not by name"
    if not problem:
        return setup
    if not (path / GRAPH).is_file():
        why = told.get("no_graph", "it is one of floco's own")
        raise FlocoError(f"{path}: the network of this run is not here: {problem}; nor is its graph: {why}")
    if config.model.name != source.PYTHON:
        warn(f"{problem}; predicting with the graph in its {GRAPH}")
    if config.run.device != "cpu":
        warn(f"the graph in {GRAPH} computes on the CPU, not on {config.run.device}")
    network = _graph(path / GRAPH)
    method = config.algorithm.resolved(config.training, network.layout)
    return Setup(known, network, method, config.training, config.seed, delivery=config.deliver)


def _samples(config: Config, data: str | Federation | None) -> Federation:
    if isinstance(data, Federation):
        return data
    return source.federation(config if data is None else replace(config, data=replace(config.data, source=data)))


def _graph(file: Path) -> Network:
    try:
        return read_graph(file.read_bytes())
    except Exception as error:  # whatever torch.export raises
        raise FlocoError(f"{file} cannot be read as a graph: {type(error).__name__}: {error}") from error


def _computes_otherwise(config: Config, setup: Setup, graph: Path) -> str:
    """Return how a network of one's own differs from its graph in what it computes; "" if it does not."""
    if ":" not in config.model.name or not graph.is_file():
        return ""
    mine, graphs = (n.holding({**n.parameters, **n.buffers}, own=False) for n in (setup.network, _graph(graph)))
    try:
        with one_thread(), global_stream(0, "graph"):
            check_equal(mine, graphs, setup.federation.sample)
    except Exception as error:  # noqa: BLE001  an AssertionError, or whatever the changed code raises
        reason = "other outputs" if isinstance(error, AssertionError) else str(error) or type(error).__name__
        return f"the code of {config.model.name} has changed since the run was started: {reason}"
    return ""


def _changed(config: Config, network: Network, store: Store) -> str:
    """Return how a network differs from the run's; "" if it does not.

    That of a module of one's own must have the same initial values, as some may never be trained.
    """
    own = ":" in config.model.name
    same = network.fingerprint() == store.facts["model"] if own else network.shape_hash() == store.facts["network"]
    return "" if same else f"the model of {store.path} has changed since the run was started (layers or initial values)"
