"""What models are worth on samples: tables of metrics with intervals, metrics by group, and confusions."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from floco.client.measure import Values, confuse, measure, measure_difference, measure_groups, unmeasured
from floco.client.predict import compute_outputs, compute_outputs_of_each
from floco.client.round import models
from floco.client.setup import Setup
from floco.core.errors import FlocoError, warn
from floco.core.inputs import rows
from floco.core.random import derive, one_thread
from floco.core.values import Combined, Row, Tensors
from floco.data.groups import read_groups
from floco.deliver.personal import deliver
from floco.server.progress import Progress


class Measures(NamedTuple):
    """Tables as rows; the first columns say which samples and which model."""

    metrics: list[Row]
    """All metrics, with intervals."""
    groups: list[Row]
    """The same by group; rows without a client are about all clients' samples together."""
    confusion: list[Row]
    """How many samples of a class were taken for which class; pairs without samples have no row."""


class _Judged(NamedTuple):
    """A model's outputs for some samples."""

    outputs: torch.Tensor
    targets: torch.Tensor
    thresholds: torch.Tensor | None
    """Predictions from which each sample counts as positive, (n,)."""
    groups: torch.Tensor | None = None
    """Numbers of the samples' groups, (n,)."""


class Measured(NamedTuple):
    """What a model is worth on some samples."""

    metrics: Values
    """All metrics, with intervals."""
    groups: list[Row]
    """The same by group."""
    confusion: list[Row]
    """As in `Measures`."""


def measure_samples(
    setup: Setup,
    progress: Progress,
    client: str | None,
    outputs: torch.Tensor,
    y: torch.Tensor,
    *,
    group: Any = None,
    at: str = "center",
) -> Measured:
    """Return what a client's model, or (None) the global one, is worth by its outputs for samples with targets y (n,).

    Where a task decides between two answers, the threshold is chosen on the training part of the client, or on those of
    all clients; where these are not here, a warning says so. `group` (n,) are the samples' groups, if any.
    """
    groups = None if group is None else read_groups(group, "group")
    if groups is not None and len(groups.numbers) != len(y):
        raise FlocoError(f"group must have one value for each of {len(y)} samples, got {len(groups.numbers)}")
    thresholds = _thresholds_of(setup, progress, client, at, len(y))
    judged = _Judged(outputs, y, thresholds, None if groups is None else groups.numbers)
    metrics = _measure(setup, judged, client or "")
    metrics |= _decision(setup, judged)
    by = [] if groups is None else _by_group(setup, judged, client or "", groups.names)
    return Measured(metrics, by, _confusion(setup, judged))


def _thresholds_of(setup: Setup, progress: Progress, client: str | None, at: str, n: int) -> torch.Tensor | None:
    if not setup.task.decides(setup.federation.outputs):
        return None
    try:
        setup = setup.with_samples("the threshold, chosen on training parts,")
    except FlocoError as error:
        warn(f"sensitivity and specificity are left out: {error}")
        return None
    tensors = deliver(setup, progress, client, at=at).tensors
    return _thresholds(setup.float32, tensors, setup.federation.ids if client is None else (client,), n)


def measure_clients(setup: Setup, progress: Progress) -> Measures:
    """Return the metrics of each client's own and the global model on the client's test part.

    The models are those of an evaluation; `difference` in a row of the personal model is its primary metric minus that
    of the global one on the same samples. A model that fails has no metrics, and the reason as its `problem`.
    """
    made, pool = Measures([], [], []), dict[str, list[_Judged]]()
    names = () if setup.federation.groups is None else setup.federation.groups.names
    for client in setup.evaluated:
        try:
            with one_thread():
                judged = _judge(setup, progress, client)
                found = [_row(setup, client, which, judged) for which in judged]
        except Exception as error:  # noqa: BLE001  a model that fails must not end a finished run
            problem = f"{type(error).__name__}: {error}"
            found, judged = [{"model": "personal", **_unmeasured(setup), "problem": problem}], {}
        head: Row = {"round": progress.round, "client": client, "n": len(setup.federation.client(client).test)}
        made.metrics.extend({**head, **row} for row in found)
        for which, part in judged.items():
            pool.setdefault(which, []).append(part)
            where: Row = {"round": progress.round, "client": client, "model": which}
            made.groups.extend({**where, **row} for row in _by_group(setup, part, client, names))
            made.confusion.extend({**where, **row} for row in _confusion(setup, part))
    for which, parts in pool.items():
        where = {"round": progress.round, "client": None, "model": which}
        made.groups.extend({**where, **row} for row in _by_group(setup, _join(parts), "", names))
    return made


def _judge(setup: Setup, progress: Progress, client: str) -> dict[str, _Judged]:
    """Return the outputs of a client's models for its test part."""
    message = setup.algorithm.message(progress.state, client, "evaluate")
    both = models(setup, client, message, progress.memories.get(client))
    named = {"personal": both.personal, "global_local": both.global_}
    known = {which: tensors for which, tensors in named.items() if tensors is not None}
    test, groups = setup.federation.client(client).test, setup.federation.groups
    found = compute_outputs_of_each(setup, [*known.values()], rows(setup.federation.x, test))
    made = {}
    for (which, tensors), outputs in zip(known.items(), found, strict=True):
        thresholds = _thresholds(setup, tensors, (client,), len(test))
        own = None if groups is None else groups.numbers[test]
        made[which] = _Judged(outputs, setup.federation.y[test], thresholds, own)
    return made


def _row(setup: Setup, client: str, which: str, judged: dict[str, _Judged]) -> Row:
    mine, row = judged[which], {"model": which, **_unmeasured(setup)}
    row |= _measure(setup, mine, client)
    row |= _decision(setup, mine)
    if which == "personal" and (other := judged.get("global_local")) is not None:
        pair = mine.outputs, other.outputs, mine.targets
        row |= measure_difference(setup.task, *pair, seed=_seed(setup, client))
    return row


def _decision(setup: Setup, judged: _Judged) -> dict[str, Any]:
    """Return the threshold, and the class that is decided for at or above it."""
    if judged.thresholds is None:
        return {}
    return {"threshold": float(judged.thresholds[0]), "positive": setup.federation.names[1]}


def _unmeasured(setup: Setup) -> Row:
    further = ("threshold", "positive", "difference", "difference_lower", "difference_upper", "problem")
    return {**unmeasured(setup.task), **dict.fromkeys(further)}


def _thresholds(setup: Setup, tensors: Tensors | Combined, clients: tuple[str, ...], n: int) -> torch.Tensor | None:
    """Return the threshold for each of n samples, chosen on the clients' training parts; None: there is none."""
    federation = setup.federation
    if not setup.task.decides(federation.outputs):
        return None
    train = torch.cat([federation.client(c).train for c in clients])
    outputs = compute_outputs(setup, tensors, rows(federation.x, train))
    if not bool(torch.isfinite(outputs).all()):
        raise FlocoError("no threshold can be chosen, as outputs for training samples are not finite")
    return torch.full((n,), setup.task.choose_threshold(outputs, federation.y[train]), dtype=torch.float64)


def _seed(setup: Setup, client: str) -> int:
    return derive(setup.seed, "resample", client)


def _measure(setup: Setup, judged: _Judged, client: str) -> Values:
    outputs, targets, thresholds, _ = judged
    return measure(setup.task, outputs, targets, thresholds=thresholds, seed=_seed(setup, client))


def _by_group(setup: Setup, judged: _Judged, client: str, names: tuple[str, ...]) -> list[Row]:
    outputs, targets, thresholds, numbers = judged
    if numbers is None:
        return []
    more: dict[str, Any] = {"thresholds": thresholds, "seed": _seed(setup, client)}
    found = measure_groups(setup.task, outputs, targets, numbers, names, **more)
    return [{"group": group, **values} for group, values in found.items()]


def _join(parts: list[_Judged]) -> _Judged:
    made: list[Any] = [None if c[0] is None else torch.cat(c) for c in zip(*parts, strict=True)]
    return _Judged(*made)


def _confusion(setup: Setup, judged: _Judged) -> list[Row]:
    counts, names = confuse(setup.task, judged.outputs, judged.targets), setup.federation.names
    if counts is None:
        return []
    pairs = counts.nonzero().tolist()
    return [{"label": names[i], "predicted": names[j], "n": int(counts[i, j])} for i, j in pairs]
