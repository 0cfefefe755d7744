"""Changes of a run's settings between two of its rounds: which are possible, and how they are noted.

run.json has the settings in force, and a list of changes: the first round for which each holds, its key, the value
before and the value after. config.toml stays what the run was started with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from floco.core.errors import FlocoError, warn
from floco.core.settings import flatten
from floco.runs.config import Config
from floco.runs.toml import as_dict, override, parse, put

CHANGES = ("round", "key", "before", "after")
"""What is noted of a change; it holds from `round` on."""
_WHY_NOT = {
    "seed": "all random numbers of the run come from it",
    "data": "the clients, and what they have learned, come from these data",
    "task": "the models and their metrics belong to this task",
    "model": "the trained tensors belong to this network",
    "algorithm": "what server and clients keep was made with the method's settings",
    "deliver": "earlier evaluations are of models that were delivered otherwise, and samples were held back or not",
    "training.buffers": "what server and clients keep depends on it",
    "flower": "only runs on Flower read it, and they take it from their app",
}


def plain(config: Config) -> dict[str, Any]:
    """Return a configuration as values of JSON."""
    made: dict[str, Any] = json.loads(json.dumps(as_dict(config)))
    return made


def differences(before: Config, after: Config) -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted key, value before and value after of every setting that differs."""
    a, b = flatten(plain(before)), flatten(plain(after))
    yield from ((key, a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key))


def in_force(facts: Mapping[str, Any], round_: int) -> dict[str, Any]:
    """Return the settings in force in a round, from run.json, as values of JSON; in round 0, those of the start."""
    raw: dict[str, Any] = json.loads(json.dumps(facts["config"]))
    for change in reversed(facts.get("changes", [])):
        if change["round"] > round_:
            put(raw, change["key"], change["before"], "run.json")
    return raw


def noted(facts: Mapping[str, Any], config: Config, done: int) -> dict[str, Any]:
    """Return the content of run.json with other settings that hold from round `done` + 1 on."""
    earlier = [c for c in facts.get("changes", []) if c["round"] <= done]
    new = [dict(zip(CHANGES, (done + 1, *d), strict=True)) for d in differences(parse(in_force(facts, done)), config)]
    return {**facts, "config": plain(config), "changes": earlier + new}


def describe(changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each change.

    >>> describe([{"round": 101, "key": "training.lr", "before": 0.1, "after": 0.01}])
    ['from round 101: training.lr = 0.01 (before: 0.1)']
    """
    return [f"from round {c['round']}: {c['key']} = {c['after']!r} (before: {c['before']!r})" for c in changes]


def change(stored: Config, overrides: Sequence[str], done: int) -> Config:
    """Return a run's settings with `key=value` overrides, as `permit` allows them after `done` rounds."""
    raw, refused = plain(stored), []
    known, given = flatten(raw), list(map(override, overrides))
    for key, value in given:
        if not _why_not(key):
            put(raw, key, value, f"-s {key}")
        elif key not in known or known[key] != (None if value == "" else value):
            refused.append(key)
    if "run.engine" in dict(given) and "run.workers" not in dict(given):
        raw["run"]["workers"] = None  # those of the other engine may not suit this one
    try:
        made = parse(raw)
    except FlocoError as error:
        raise _error([*map(_refusal, refused), str(error)]) from error
    permit(stored, made, done, refused)
    return made


def permit(before: Config, after: Config, done: int, refused: Sequence[str] = ()) -> None:
    """Raise unless a run can go on with other settings after `done` rounds; warn if its step size rises.

    Raises:
        FlocoError: it cannot; the message names all settings that cannot change, and those in `refused`, and why.
    """
    problems = [*map(_refusal, refused), *(_refusal(key) for key, *_ in differences(before, after) if _why_not(key))]
    rounds = after.training.rounds
    if before.training != after.training and rounds <= done:
        problems.append(
            f"training.rounds = {rounds}: must be above {done}, the rounds that are done, so that one is left"
        )
    if (reason := after.algorithm.refuse_change(before.training, after.training, done)) is not None:
        problems.append(reason)
    if problems:
        raise _error(problems)
    was, now = (c.training.lr * c.training.rate(n) for c, n in ((before, max(1, done)), (after, done + 1)))
    if now > was and before.training.lr == after.training.lr and after.training.schedule != "constant":
        schedule = f"training.schedule = {after.training.schedule!r} over {rounds} rounds"
        warn(f"the step size rises from {was:.3g} to {now:.3g} in round {done + 1}, by {schedule}")


def _why_not(key: str) -> str | None:
    return _WHY_NOT.get(key) or _WHY_NOT.get(key.partition(".")[0])


def _refusal(key: str) -> str:
    return f"{key}: {_why_not(key)}"


def _error(problems: Sequence[str]) -> FlocoError:
    allowed = "training.* (but training.buffers) and run.* can change in a run; for others start a new one"
    return FlocoError("the run cannot be continued with these settings:\n  " + "\n  ".join(problems) + f"\n{allowed}")
