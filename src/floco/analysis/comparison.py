"""A comparison: runs of several methods on the same data, splits, initial weights, client samples and local budget.

comparison.json          the settings, written once
tuning.csv               with --tune: one row per finished trial
runs/<method>-seed<n>/   one run directory each
failures.csv             failed runs with the reason; `floco resume` repeats them
runs.csv methods.csv pairs.csv history.csv clients.csv   tables, rewritten after every run
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from floco.algorithms import ALGORITHMS
from floco.analysis import pairs, tables, tuning
from floco.analysis.tables import Results
from floco.client.setup import Setup
from floco.core.algorithm import Algorithm
from floco.core.delivery import Delivery
from floco.core.errors import FlocoError, RunFailed
from floco.core.settings import build, plain, shared
from floco.core.values import Row
from floco.data.audit import warn_gravely
from floco.data.federation import Federation
from floco.runs import session, source
from floco.runs.config import REGISTRIES, SECTIONS, Config
from floco.runs.toml import as_dict, parse
from floco.server.progress import Progress
from floco.storage.files import csv_text, lock_folder, read_json, replace_file, to_json

FORMAT = 1
_DELIVER = "deliver."
Start = Callable[[str, Path, Setup, Progress], session.Watch]
"""Called before a run trains, with title, directory, setup and progress; returns what to call after every round."""


@dataclass(frozen=True)
class Comparison:
    """Settings and directory of a comparison."""

    path: Path
    configs: Mapping[str, Config]
    """Method -> its configuration for the first seed."""
    seeds: int
    data: Mapping[str, str]
    """Seed -> fingerprint of its federation."""
    tune: bool = False

    @property
    def runs(self) -> dict[tuple[str, int], Path]:
        """(method, seed) -> run directory; all methods of one seed, then the next seed."""
        first, runs = next(iter(self.configs.values())).seed, self.path / "runs"
        return {(m, s): runs / f"{m}-seed{s}" for s in range(first, first + self.seeds) for m in self.configs}


def configure(
    base: Config, methods: Sequence[str], settings: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Config]:
    """Return a configuration for each method, by its name in the comparison; they differ in `algorithm` and `deliver`.

    Settings of the base configuration's method also hold for the methods that inherit them from the same class (floco+
    shares those of the simplex with floco). All other settings have their defaults.

    Args:
        base: the common configuration.
        methods: names as `algorithm.name` takes them, without repetition. "NAME=METHOD" is a variant of a method under
            a name of its own, so that one method can be compared with several settings.
        settings: name in the comparison -> its own settings, which override all others; also of the table `deliver`,
            e.g. `deliver.model`.
    """
    words, classes = split_variants(methods)
    if not methods or len({word.lower() for word in words}) < len(words):  # they name folders
        raise FlocoError(f"a comparison needs methods, each once, got {', '.join(words) or 'none'}")
    for name in settings or {}:
        if name not in words:
            raise FlocoError(f"settings for {name}, which is not compared: {', '.join(words)}")
    made = {}
    for name, cls in zip(words, classes, strict=True):
        given = (settings or {}).get(name, {})
        kept = {k: v for k, v in plain(base.algorithm).items() if k in shared(cls, type(base.algorithm))}
        own = {**kept, **{k: v for k, v in given.items() if not k.startswith(_DELIVER)}}
        taken = {k.removeprefix(_DELIVER): v for k, v in given.items() if k.startswith(_DELIVER)}
        try:
            delivery = build(Delivery, {**plain(base.deliver), **taken})
            made[name] = replace(base, algorithm=build(cls, own).resolved(base.training), deliver=delivery)
        except FlocoError as error:
            raise FlocoError(f"{name}: {error}") from error
    return made


def split_variants(methods: Sequence[str]) -> tuple[list[str], list[type[Algorithm]]]:
    """Return the name of each of several methods in a comparison, and its class; "NAME=METHOD" gives it the name."""
    found, registry = [name.rpartition("=") for name in methods], REGISTRIES["algorithm"]
    for name, equals, _ in found:
        taken = {*ALGORITHMS, *REGISTRIES, *SECTIONS, "seed"}  # -s training.lr=0.1 is for all methods
        if equals and (name.lower() in taken or not re.fullmatch(r"[\w+-]+", name, re.ASCII)):
            rule = "a name that no method and no table of settings has, of letters, digits, _, + and -"
            raise FlocoError(f"a variant needs {rule}, got {name!r}")
    classes = [registry.find(method) for _, _, method in found]
    return [name or cls.name for (name, _, _), cls in zip(found, classes, strict=True)], classes


def create(path: Path, configs: Mapping[str, Config], seeds: int, *, tune: bool = False) -> Comparison:
    """Create the directory of a comparison, with fingerprints of every seed's data; check that all methods fit."""
    if seeds < 1:
        raise FlocoError(f"--seeds must be at least 1, got {seeds}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        advice = f"choose another place, or continue the comparison in it: floco resume {path}"
        raise FlocoError(f"--out {path} is not empty; {advice}")
    base = next(iter(configs.values()))
    first = source.federation(base)
    configs = {m: session.resolve_engine(config, session.prepare(config, first)) for m, config in configs.items()}
    warn_gravely(first)
    data = {str(base.seed): first.fingerprint()}
    for seed in range(base.seed + 1, base.seed + seeds):
        data[str(seed)] = source.federation(replace(base, seed=seed)).fingerprint()
    plain = {name: json.loads(json.dumps(as_dict(config))) for name, config in configs.items()}
    facts = {"format": FORMAT, "methods": list(configs), "configs": plain, "seeds": seeds, "tune": tune, "data": data}
    try:
        path.mkdir(parents=True, exist_ok=True)
        replace_file(path / "comparison.json", to_json(facts))
    except OSError as error:
        raise FlocoError(f"cannot make the directory {path}: {error.strerror or error}") from error
    return reopen(path)


def is_comparison(path: Path) -> bool:
    """Return whether a directory holds a comparison."""
    return os.path.isfile(path / "comparison.json")


def find(path: Path) -> Path | None:
    """Return the comparison at a path, or the one that a run directory belongs to; None if there is none."""
    return next((p for p in (path, *path.resolve().parents[1:2]) if is_comparison(p)), None)


def reopen(path: Path) -> Comparison:
    """Return the comparison in a directory."""
    facts = read_json(path / "comparison.json")
    if facts.get("format") != FORMAT:
        raise FlocoError(f"{path} has format {facts.get('format')}, this version of floco reads format {FORMAT}")
    try:
        configs = {m: parse(facts["configs"][m]) for m in facts["methods"]}
        return Comparison(path, configs, facts["seeds"], facts["data"], facts["tune"])
    except (KeyError, TypeError, AttributeError) as error:
        raise FlocoError(f"{path / 'comparison.json'} was changed: {type(error).__name__} {error}") from error


def results(comparison: Comparison) -> Results:
    """Return the results of the finished runs, with the methods in the comparison's order."""
    return tables.load(comparison.runs.values(), tuple(comparison.configs))


def run_all(comparison: Comparison, start: Start, tried: Callable[[str], None]) -> list[Row]:
    """Train all unfinished runs, and return the failed ones as rows of method, seed and reason.

    The others continue when a run fails.

    Args:
        comparison: the comparison.
        start: called for every run.
        tried: called with one line per finished tuning trial.

    Raises:
        FlocoError: the data have changed since the comparison was started.
        RunFailed: the tables cannot be written.
    """
    lock = lock_folder(comparison.path)
    try:
        federations = _Federations(comparison)
        failures: list[Row] = []
        for (method, seed), path in comparison.runs.items():
            federation = federations.of(seed)
            config = replace(comparison.configs[method], seed=seed)
            try:
                if comparison.tune:
                    config = tuning.tune(comparison.path / "tuning.csv", method, config, federation, tried)
                _run(config, federation, path, partial(start, f"{method}, seed {seed}", path))
            except FlocoError as error:
                failures.append({"method": method, "seed": seed, "reason": str(error)})
            try:
                text = csv_text(failures, header=True, columns=("method", "seed", "reason"))
                replace_file(comparison.path / "failures.csv", text.encode())
                pairs.write(results(comparison), comparison.path, next(iter(comparison.configs)))
            except OSError as error:
                raise RunFailed(f"cannot write to {comparison.path}: {error.strerror or error}") from error
        return failures
    finally:
        lock.release()


class _Federations:
    """The federation of each seed; only the last one stays in memory."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._last: tuple[int, Federation] | None = None

    def of(self, seed: int) -> Federation:
        """Return the federation of a seed, or raise if its data have changed since the comparison was started."""
        if self._last is None or self._last[0] != seed:
            made = source.federation(replace(next(iter(self._comparison.configs.values())), seed=seed))
            if made.fingerprint() != self._comparison.data[str(seed)]:
                what = f"samples, labels or splits of seed {seed}"
                problem = f"the data of {self._comparison.path} have changed since it was started ({what})"
                raise FlocoError(f"{problem}; restore them, or start a new comparison")
            self._last = seed, made
        return self._last[1]


def _run(config: Config, federation: Federation, path: Path, start: Callable[[Setup, Progress], session.Watch]) -> None:
    setup = session.prepare(config, federation)
    if (path / "run.json").exists():
        session.check_config(parse(read_json(path / "run.json")["config"]), config, path)
    else:
        session.create(config, setup, path)
    session.continue_run(path, setup, start)
