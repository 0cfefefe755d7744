"""Several methods on the same data, splits, initial weights, client samples and local budget: a directory of runs, and its tables.

comparison.json             written once, with the directory
tuning.csv                  with --tune: one line a trial, written as it ends
runs/<method>-seed<n>/      one run directory each
failures.csv                runs that failed, and why; tried again by `floco resume`
runs.csv methods.csv pairs.csv history.csv clients.csv   made from the runs whenever one ends
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from floco.algorithms import ALGORITHMS
from floco.analysis import tables, tuning
from floco.analysis.tables import Results
from floco.client.setup import Setup
from floco.core.algorithm import Algorithm
from floco.core.errors import FlocoError, RunFailed, WorkerDied, nearest
from floco.core.settings import build, names
from floco.core.values import Row
from floco.data.federation import Federation
from floco.runs import session
from floco.runs.config import Config, as_dict, parse
from floco.server.rounds import Progress
from floco.storage.files import csv_text, read_json, replace_file, to_json, write_file

FORMAT = 1
Start = Callable[[str, Path, Setup, Progress], session.Watch]
"""Called with a run's title and directory when it starts or goes on; returns what is called after every round."""


@dataclass(frozen=True)
class Comparison:
    """A comparison's settings, and where it lies."""

    path: Path
    configs: Mapping[str, Config]
    """Method -> its configuration under the first seed."""
    seeds: int
    data: Mapping[str, str]
    """Seed -> fingerprint of its federation."""
    tune: bool = False

    @property
    def runs(self) -> dict[tuple[str, int], Path]:
        """(method, seed) -> run directory, one seed after the other."""
        first = next(iter(self.configs.values())).seed
        return {(m, s): self.path / "runs" / f"{m}-seed{s}" for s in range(first, first + self.seeds) for m in self.configs}


def configurations(base: Config, methods: Sequence[str], settings: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Config]:
    """Return a configuration for each method; they differ in `algorithm` only.

    The method that the base configuration names keeps its settings, and so does another one for those that both have
    from the same class (floco and floco+: all of the simplex). Every other method has its defaults.

    Args:
        base: the configuration.
        methods: names from the registry, each once.
        settings: method -> its own settings, which come last.
    """
    for name in [*methods, *(settings or {})]:
        if name not in ALGORITHMS:
            raise FlocoError(f"there is no method {name!r}{nearest(name, ALGORITHMS)}")
    if not methods or len(set(methods)) < len(methods):
        raise FlocoError(f"a comparison needs methods, each once, got {', '.join(methods) or 'none'}")
    for name in settings or {}:
        if name not in methods:
            raise FlocoError(f"settings for {name}, which is not compared: {', '.join(methods)}")
    made = {}
    for name in methods:
        own = {**_inherited(ALGORITHMS[name], base.algorithm), **(settings or {}).get(name, {})}
        try:
            made[name] = replace(base, algorithm=build(ALGORITHMS[name], own).resolved(base.training))
        except FlocoError as error:
            raise FlocoError(f"{name}: {error}") from error
    return made


def _inherited(cls: type[Algorithm], base: Algorithm) -> dict[str, Any]:
    def home(kind: type[Algorithm], field: str) -> type:
        return next(c for c in kind.__mro__ if field in c.__dict__.get("__annotations__", {}))

    known, theirs = names(cls), names(type(base))
    return {n: getattr(base, n) for n in theirs if n in known and home(cls, n) is home(type(base), n)}


def create(path: Path, configs: Mapping[str, Config], seeds: int, *, tune: bool = False) -> Comparison:
    """Make the directory of a comparison, with fingerprints of the data of all seeds; a method that does not fit the model is an error."""
    if seeds < 1:
        raise FlocoError(f"--seeds must be at least 1, got {seeds}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FlocoError(f"--out {path} is not empty; choose another place, or continue the comparison in it: floco resume {path}")
    base = next(iter(configs.values()))
    first = session.federation(base)
    configs = {m: session.placed(config, session.prepare(config, first)) for m, config in configs.items()}  # what does not fit is said before hours are spent
    data = {str(base.seed): first.fingerprint()}
    data |= {str(s): session.federation(replace(base, seed=s)).fingerprint() for s in range(base.seed + 1, base.seed + seeds)}
    plain = {name: json.loads(json.dumps(as_dict(config))) for name, config in configs.items()}
    facts = {"format": FORMAT, "methods": list(configs), "configs": plain, "seeds": seeds, "tune": tune, "data": data}
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_file(path / "comparison.json", to_json(facts))
    except OSError as error:
        raise FlocoError(f"cannot make the directory {path}: {error.strerror or error}") from error
    return reopen(path)


def is_comparison(path: Path) -> bool:
    """Return whether a directory holds a comparison."""
    return (path / "comparison.json").is_file()


def reopen(path: Path) -> Comparison:
    """Return the comparison in a directory."""
    facts = read_json(path / "comparison.json")
    if facts.get("format") != FORMAT:
        raise FlocoError(f"{path} has format {facts.get('format')}, this version of floco reads format {FORMAT}")
    try:
        return Comparison(path, {m: parse(facts["configs"][m]) for m in facts["methods"]}, facts["seeds"], facts["data"], facts["tune"])
    except (KeyError, TypeError, AttributeError) as error:
        raise FlocoError(f"{path / 'comparison.json'} was changed: {type(error).__name__} {error}") from error


def results(comparison: Comparison) -> Results:
    """Return what the finished runs say, methods in the comparison's order."""
    return tables.load(comparison.runs.values(), tuple(comparison.configs))


def carry(comparison: Comparison, start: Start, tried: Callable[[str], None]) -> list[Row]:
    """Do all runs that are not finished, and return those that failed: method, seed and reason.

    A run that fails does not keep the others from theirs.

    Args:
        comparison: what to do.
        start: called for every run.
        tried: called with one line for every finished trial of the tuning.

    Raises:
        FlocoError: the data are no longer those that the comparison was started with.
        RunFailed: the tables cannot be written.
    """
    with _locked(comparison.path):
        federations = _Federations(comparison)
        failures: list[Row] = []
        for (method, seed), path in comparison.runs.items():
            federation = federations.of(seed)
            config = replace(comparison.configs[method], seed=seed)
            try:
                config = _tuned(comparison.path, method, config, federation, tried) if comparison.tune else config
                _run(config, federation, path, partial(start, f"{method}, seed {seed}", path))
            except FlocoError as error:
                failures.append({"method": method, "seed": seed, "reason": str(error)})
            try:
                replace_file(comparison.path / "failures.csv", csv_text(failures, header=True).encode())
                tables.write(results(comparison), comparison.path, next(iter(comparison.configs)))
            except OSError as error:
                raise RunFailed(f"cannot write to {comparison.path}: {error.strerror or error}") from error
        return failures


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FlocoError(f"{path} is in use by another process; wait for it, or stop it first") from error
    except OSError as error:
        raise FlocoError(f"cannot write to {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


class _Federations:
    """The federation of a seed, the same for all methods; only the last one is kept."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._last: tuple[int, Federation] | None = None

    def of(self, seed: int) -> Federation:
        """Return the federation of a seed, which must be what it was when the comparison was made."""
        if self._last is None or self._last[0] != seed:
            made = session.federation(replace(next(iter(self._comparison.configs.values())), seed=seed))
            if made.fingerprint() != self._comparison.data[str(seed)]:
                raise FlocoError(f"the data of {self._comparison.path} have changed since it was started (samples, labels or splits of seed {seed}); restore them, or start anew")
            self._last = seed, made
        return self._last[1]


def _run(config: Config, federation: Federation, path: Path, start: Callable[[Setup, Progress], session.Watch]) -> None:
    setup = session.prepare(config, federation)
    if (path / "run.json").exists():
        session.check_config(parse(read_json(path / "run.json")["config"]), config, path)
    else:
        session.create(config, setup, path)
    session.carry(path, setup, start)


def _tuned(path: Path, method: str, config: Config, federation: Federation, tried: Callable[[str], None]) -> Config:
    """Return a method's configuration with the settings of its best trial under the same seed; trials in tuning.csv are not repeated.

    The test parts of one seed are training data of another: every seed is tuned by itself.
    """
    file = path / "tuning.csv"
    trials = [json.dumps(t) for t in tuning.grid(config)]
    rows: list[Row] = list(csv.DictReader(io.StringIO(file.read_text()))) if file.exists() else []
    try:
        mine = {str(r["settings"]): r for r in rows if (r["method"], str(r["seed"])) == (method, str(config.seed))}
        for i, trial in enumerate(trials):
            if trial in mine:
                continue
            row: Row = {"method": method, "seed": config.seed, "settings": trial, "validation_accuracy": None, "validation_loss": None, "reason": ""}
            try:
                row |= tuning.try_out(config, federation, json.loads(trial))
            except WorkerDied:  # says nothing about the settings
                raise
            except RunFailed as error:  # a step size that diverges is a result
                row |= {"reason": str(error)}
            mine[trial] = row
            rows.append(row)
            replace_file(file, csv_text(rows, header=True).encode())
            tried(f"tuning {method}, seed {config.seed}, {i + 1}/{len(trials)}: {trial} -> {row['validation_accuracy']}")
        good = [t for t in trials if mine[t]["validation_accuracy"] not in (None, "")]
        best = max(good, key=lambda t: (float(str(mine[t]["validation_accuracy"])), -float(str(mine[t]["validation_loss"]))), default=None)
    except (KeyError, ValueError) as error:
        if isinstance(error, FlocoError):
            raise
        raise FlocoError(f"{file} was changed: {type(error).__name__} {error}") from error
    if best is None:
        raise RunFailed(f"{method}: every trial of the tuning failed; see {file}")
    return tuning.changed(config, json.loads(best))
