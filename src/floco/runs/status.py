"""How far runs and comparisons are, from their directories: nothing is written, and no torch is imported."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from floco.core.errors import FlocoError
from floco.core.metrics import Metrics
from floco.storage.bundles import unpack

_LATEST = 10  # rounds, at least, whose mean duration is the pace


@dataclass(frozen=True)
class Status:
    """How far one run is. Its numbers are those of its last checkpoint."""

    path: Path
    state: str
    """running, stopped, finished; in a comparison also waiting and failed; unknown if `reason` says why."""
    method: str = ""
    round: int = 0
    """Rounds completed."""
    rounds: int = 0
    seconds: float | None = None
    """Seconds of a round, mean over the last ones, evaluations included."""
    left: float | None = None
    """Seconds that the remaining rounds take at this pace; None if the run neither trains nor waits for its turn."""
    age: float | None = None
    """Seconds since the last checkpoint."""
    evaluation: dict[str, float | None] = field(default_factory=dict)
    """The last row of history.csv."""
    failures: dict[str, int] = field(default_factory=dict)
    """Client -> how often it was left out."""
    reason: str = ""
    """Why the last of them was left out, why the run failed, or why its state is unknown."""
    metrics: Metrics = field(default_factory=Metrics)


@dataclass(frozen=True)
class Group:
    """The runs of a comparison, or a single run (`path` is None)."""

    path: Path | None
    runs: tuple[Status, ...]
    state: str = ""
    """running, stopped or finished."""

    @property
    def left(self) -> float | None:
        """Seconds that all remaining rounds take; None if nothing runs or no pace is known."""
        times = [r.left for r in self.runs if r.left is not None]
        return sum(times) if times and self.state == "running" else None


def look(paths: Sequence[Path]) -> list[Group]:
    """Return the runs and comparisons at some paths, or in the folders that these are.

    Raises:
        FlocoError: there is none at one of the paths.
    """
    found: list[Group] = []
    for path in paths:
        path = unpack(path) if path.is_file() else path
        try:
            inside = [path] if _kind(path) else sorted(p for p in path.iterdir() if p.is_dir() and _kind(p))
        except OSError as error:
            raise FlocoError(f"{path}: {error.strerror or error}; name a run, a comparison, or their folder") from error
        if not inside:
            raise FlocoError(f"{path} is neither a run nor a comparison, and no folder of them: it has no run.json")
        found += map(_group, inside)
    return found


def _kind(path: Path) -> str | None:
    return next((name for name in ("comparison.json", "run.json") if os.path.lexists(path / name)), None)


def _group(path: Path) -> Group:
    if _kind(path) == "run.json":
        return Group(None, (_status(path),))
    try:
        facts = json.loads((path / "comparison.json").read_text())
        configs = {m: facts["configs"][m] for m in facts["methods"]}
        first = next(iter(configs.values()))["seed"]
        seeds = range(first, first + facts["seeds"])
        planned = [(m, s, int(configs[m]["training"]["rounds"])) for s in seeds for m in configs]
        failed = {(r["method"], r["seed"]): r["reason"] for r in _rows(path / "failures.csv")}
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        return Group(path, (Status(path, "unknown", reason=f"comparison.json cannot be read: {error}"),), "unknown")
    runs = [_planned(path / "runs" / f"{m}-seed{s}", m, n, failed.get((m, str(s)))) for m, s, n in planned]
    running = is_locked(path)
    if running:
        runs = _with_waiting_times(runs)
    done = all(r.state in ("finished", "failed") for r in runs)
    return Group(path, tuple(runs), "running" if running else "finished" if done else "stopped")


def _planned(path: Path, method: str, rounds: int, failed: str | None) -> Status:
    found = _status(path) if _kind(path) else Status(path, "waiting", rounds=rounds)
    found = Status(**{**vars(found), "method": method})
    if failed is None or found.state not in ("waiting", "stopped"):
        return found
    return Status(**{**vars(found), "state": "failed", "reason": failed})


def _with_waiting_times(runs: Iterable[Status]) -> list[Status]:
    """Return the runs of a comparison, with the time that those take that have not begun, at the others' pace."""
    runs = list(runs)
    own = {r.method: r.seconds for r in runs if r.seconds is not None}
    usual = sum(own.values()) / len(own) if own else None

    def timed(run: Status) -> Status:
        pace = own.get(run.method, usual)
        waits = run.state in ("waiting", "stopped") and pace is not None
        return Status(**{**vars(run), "left": pace * (run.rounds - run.round)}) if waits and pace else run

    return list(map(timed, runs))


def _status(path: Path) -> Status:
    """Return the status of a run directory; unknown, with the reason, if it cannot be read."""
    try:
        facts = json.loads((path / "run.json").read_text())
        config, latest = facts["config"], path / "checkpoint" / "latest"
        rounds, done = int(config["training"]["rounds"]), int(latest.read_text())
        locked, age = is_locked(path), max(0.0, time.time() - latest.stat().st_mtime)
        timings, history, failures = (
            [r for r in _rows(path / f"{name}.csv") if int(r["round"]) <= done]
            for name in ("timings", "history", "failures")
        )
        last = {k: float(v) if v else None for k, v in history[-1].items()} if history else {}
        method, metrics = str(facts["method"]), Metrics.of(facts["metrics"])
        durations = [float(r["seconds"]) for r in timings[-max(_LATEST, int(config["run"]["evaluate_every"])) :]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Status(path, "unknown", reason=f"the run cannot be read: {type(error).__name__} {error}")
    pace = sum(durations) / len(durations) if durations else None
    state = "finished" if done >= rounds else {True: "running", False: "stopped", None: "unknown"}[locked]
    left = pace * (rounds - done) if state == "running" and pace is not None else None
    counts = dict(Counter(r["client"] for r in failures).most_common())
    reason = f"round {failures[-1]['round']}, {failures[-1]['client']}: {failures[-1]['reason']}" if failures else ""
    if state == "unknown":
        reason = "its lock may not be read, so that nobody can say whether it runs"
    return Status(path, state, method, done, rounds, pace, left, age, last, counts, reason, metrics)


def _rows(path: Path) -> list[dict[str, str]]:
    """Return the whole lines of a table that may be written to at this moment; none if it does not exist."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))


def is_locked(path: Path) -> bool | None:
    """Return whether a process trains in a directory of a run or a comparison; None if that cannot be known.

    The lock of a process that died is free. A shared lock is taken for a moment, which needs no right to write.
    """
    try:
        handle = os.open(path / ".lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False


def as_plain(groups: Sequence[Group]) -> dict[str, Any]:
    """Return groups as values of JSON: `runs`, and `comparisons` with their own."""

    def run(status: Status) -> dict[str, Any]:
        return {**{k: v for k, v in vars(status).items() if k not in ("path", "metrics")}, "run": status.path}

    made = [{"comparison": g.path, "state": g.state, "left": g.left, "runs": list(map(run, g.runs))} for g in groups]
    single = [run(r) for g in groups if g.path is None for r in g.runs]
    return {"runs": single, "comparisons": [m for m in made if m["comparison"] is not None]}
