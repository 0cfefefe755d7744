"""The Python interface: train a federation with one call, or open a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import nn

from floco.client.fitness import check_model
from floco.client.setup import Setup
from floco.core.algorithm import Algorithm
from floco.core.delivery import Delivery
from floco.core.errors import FlocoError, warn
from floco.core.network import Factory, build_network
from floco.core.random import with_gradients
from floco.core.settings import build, plain
from floco.core.values import Row, Training
from floco.data.audit import warn_gravely
from floco.data.federation import Federation
from floco.data.partition import Natural
from floco.engines.engine import start_engine
from floco.runs import changes, session, source
from floco.runs.config import Config, Data, Model, RunSettings, check_importable
from floco.runs.machine import find_device
from floco.runs.reading import find_run, read_run
from floco.runs.results import Run
from floco.runs.toml import parse
from floco.server import rounds as loop
from floco.server.evaluation import Evaluation
from floco.server.progress import Plan, Progress
from floco.storage.files import read_json
from floco.storage.memories import Memories


def open_run(path: Path | str, *, data: str | Federation | None = None, device: str | None = None) -> Run:
    """Return a run at its last checkpoint, from a run directory, a bundle or a site's state directory.

    Nothing is written or locked. Neither the data nor the code of the network are needed; what needs samples, e.g. the
    best mixture, loads them, and raises if they are not here.

    Args:
        path: the directory or file.
        data: where the run's data are now, if not where they were: a source, e.g. "csv:hospitals.csv", or the
            federation. They must be the same.
        device: where its models compute, e.g. "cpu" or "cuda". None: the run's device, or the CPU if that is not here.
    """
    directory = find_run(Path(path))
    config, setup, progress = read_run(directory, data, device)
    return Run(setup, progress, directory, source.show_source(config))


def _configured(
    model: nn.Module | Factory, federation: Federation, algorithm: Algorithm, settings: dict[str, Any]
) -> tuple[Config, Setup]:
    """Return configuration and setup from `settings`: keys of `training` and `run`, `deliver` and `seed`."""
    delivery = settings.pop("deliver", None) or Delivery()
    _check_objects(model, federation, algorithm, delivery)
    seed = settings.pop("seed", 0)
    names = {f.name for f in dataclasses.fields(RunSettings)}
    run = build(RunSettings, {k: v for k, v in settings.items() if k in names})
    training = build(Training, {k: v for k, v in settings.items() if k not in names})
    data, named = Data(source=source.PYTHON, split=Natural()), Model(source.PYTHON)
    config = Config(seed, data, federation.task, named, algorithm.resolved(training), training, delivery, run)
    net = build_network(model, seed=config.seed, sample=federation.sample)
    method = algorithm.resolved(training, net.layout)
    where = find_device(config.run.device)
    setup = Setup(federation, net, method, training, config.seed, where, delivery=delivery)
    check_model(setup)
    return session.resolve_engine(config, setup), setup


def _check_objects(model: Any, federation: Any, algorithm: Any, delivery: Any) -> None:
    """Raise if names, classes or samples are given where a model, a federation and an algorithm are needed."""
    if isinstance(model, str):
        raise FlocoError(f"model must be a module or a function that makes one, got {model!r}: see floco.model")
    if not isinstance(federation, Federation):
        split = (
            ": split them first, e.g. samples.split(floco.Folds(5), clients=20)" if hasattr(federation, "split") else ""
        )
        raise FlocoError(f"federation must be a floco.Federation, got {type(federation).__name__}{split}")
    if not isinstance(algorithm, Algorithm):
        got = algorithm.__name__ if isinstance(algorithm, type) else repr(algorithm)
        raise FlocoError(f"algorithm must be an object, e.g. floco.Floco(endpoints=10), got {got}")
    if not isinstance(delivery, Delivery):
        raise FlocoError(f'deliver must be an object, e.g. floco.Delivery(model="chosen"), got {delivery!r}')


def fit(
    model: nn.Module | Factory,
    federation: Federation,
    algorithm: Algorithm,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    change: bool = False,
    watch: session.Watch | None = None,
    **settings: Any,
) -> Run:
    """Train a federation from the first round to the last, and return the run.

    Args:
        model: any `nn.Module`, with its current values, or a function that builds one. If the values are pretrained,
            set Floco's `noise`, the distance between its initial endpoints: floco cannot see that they are.
        federation: the clients and their data, e.g. `floco.load("digits").split(floco.Folds(5), clients=20)`.
        algorithm: e.g. `floco.Floco(endpoints=10)`.
        out: a run directory to write, as `floco run` does; None: keep everything in memory.
        resume: continue the run in `out` if there is one.
        change: with `resume`, let settings that are given hold from the next round on, and note it in the run; all
            others stay. Settings of training and run can change, e.g. `rounds` of a finished run.
        watch: function to call with the `Progress` after every round.
        settings: `seed`, all keys of `training` (`rounds`, `lr`, ...) and `run` (`engine`, `evaluate_every`, ...), and
            `deliver`, a `floco.Delivery`: which model each client takes home.

    Raises:
        FlocoError: settings, data or model do not fit; raised before training starts.
        RunFailed: too many clients failed; the run in `out` can be resumed.
    """
    if change and not (resume and out is not None):
        raise FlocoError("change=True changes a run that is continued: give out and resume=True")
    if change and (Path(str(out)) / "run.json").exists():
        algorithm, settings = _keep(Path(str(out)), algorithm, settings)
    with with_gradients():
        config, setup = _configured(model, federation, algorithm, dict(settings))
        warn_gravely(federation)
        run = _train(config, setup, settings, watch or (lambda progress: None), out, resume, change)
    return _warn_of_failures(run)


def _train(
    config: Config,
    setup: Setup,
    given: dict[str, Any],
    watch: session.Watch,
    out: Path | str | None,
    resume: bool,
    change: bool,
) -> Run:
    """Return the run after its last round; `given` are the settings that were given."""
    if out is None:
        rows: dict[str, list[Row]] = {"history": [], "clients": [], "failures": []}

        def keep(progress: Progress) -> None:
            rows["failures"].extend(f.row for f in progress.failures)
            if progress.evaluation is not None:
                rows["history"].append(progress.evaluation.history)
                rows["clients"] = list(progress.evaluation.clients)
            watch(progress)

        start = loop.initialize(setup, Memories(budget=config.run.memory_budget))
        return Run(setup, session.advance(setup, config.run, None, start, keep), rows=rows)
    path = Path(out)
    check_importable(config)
    if not (resume and (path / "run.json").exists()):
        session.create(config, setup, path)
    return _continue(path, config, setup, given, change, watch)


def _continue(
    path: Path, config: Config, setup: Setup, given: dict[str, Any], change: bool, watch: session.Watch
) -> Run:
    """Return the run in a directory after its last round; `given` are the settings that were given."""
    stored, store = session.reopen(path)
    with closing(store):
        free = () if change else dataclasses.fields(RunSettings)
        not_given = (f.name for f in free if given.get(f.name, "auto") == "auto")
        run = dataclasses.replace(config.run, **{name: getattr(stored.run, name) for name in not_given})
        config = dataclasses.replace(config, run=run)
        if not change:
            session.check_config(stored, config, path)
        session.check(store, setup)
        if change:
            changes.permit(stored, config, store.latest()[0])
            session.note_changes(store, config, store.latest()[0])
        store.rewind()
        start = store.load(run.memory_budget)
        return Run(setup, session.advance(setup, run, store, start, watch), path)


def _keep(out: Path, algorithm: Algorithm, settings: dict[str, Any]) -> tuple[Algorithm, dict[str, Any]]:
    """Return algorithm and settings of a run that goes on with others: those that are not given are the run's own."""
    facts = read_json(out / "run.json")
    stored = parse(facts["config"])
    kept = {"seed": stored.seed, "deliver": stored.deliver, **plain(stored.training), **plain(stored.run)}
    if "engine" in settings:
        kept["workers"] = None  # those of the other engine may not suit this one
    return algorithm.resolved(parse(changes.in_force(facts, 0)).training), {**kept, **settings}


def _warn_of_failures(run: Run) -> Run:
    """Warn if clients were left out, as means are over the others; return the run."""
    failures = run.failures
    if len(failures):
        last, missing = failures.iloc[-1], len(run.setup.evaluated) - len(run.clients)
        absent = f"; {missing} are missing in the last evaluation" if missing > 0 else ""
        reason = f"round {last['round']}, client {last['client']!r}: {last['reason']}"
        warn(f"clients were left out {len(failures)} times{absent} (see run.failures; the last: {reason})")
    return run


def rounds(
    model: nn.Module | Factory, federation: Federation, algorithm: Algorithm, **settings: Any
) -> Iterator[Evaluation]:
    """Yield the evaluations of a run while it trains, in memory; arguments as in `fit`, but for `out` and `watch`.

    >>> import floco
    >>> federation = floco.load("digits").split(floco.Folds(5), clients=10)
    >>> model, algorithm = floco.model("mlp", federation), floco.Floco(endpoints=3)
    >>> for evaluation in floco.rounds(model, federation, algorithm, rounds=2, evaluate_every=1):
    ...     print(evaluation.round, len(evaluation.clients))
    1 10
    2 10
    """
    config, setup = _configured(model, federation, algorithm, settings)
    plan = Plan(config.run.evaluate_every, config.run.max_failed)
    start = loop.initialize(setup, Memories(budget=config.run.memory_budget))
    with closing(start_engine(setup, config.run.engine, config.run.workers)) as running:
        for progress in loop.rounds(setup, running, plan, start):
            if progress.evaluation is not None:
                yield progress.evaluation
