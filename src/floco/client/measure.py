"""All metrics of a model on some samples, with intervals."""

from __future__ import annotations

import numpy as np
import torch

from floco.core.errors import FlocoError
from floco.core.intervals import UNKNOWN, Interval, percentiles, resample, wilson
from floco.core.metrics import Metrics
from floco.core.task import Task

Values = dict[str, float | None]
"""Metrics by name; None: undefined."""


def all_metrics(task: Task) -> Metrics:
    """Return all metrics of a task: those that are sums over samples, then those that are not."""
    return Metrics({**task.metrics, **task.further})


def bounded(task: Task) -> list[str]:
    """Return the metrics that have an interval: the primary one, and those that are no sums over samples."""
    return list(dict.fromkeys((task.primary, *task.further)))


def unmeasured(task: Task) -> Values:
    """Return what `measure` returns, without values."""
    wanted = bounded(task)
    each = ((m, f"{m}_lower", f"{m}_upper") if m in wanted else (m,) for m in all_metrics(task))
    return dict.fromkeys(name for names in each for name in names)


def measure(
    task: Task, outputs: torch.Tensor, targets: torch.Tensor, *, thresholds: torch.Tensor | None = None, seed: int = 0
) -> Values:
    """Return all metrics of a model, and the ends of 95 % intervals as `NAME_lower` and `NAME_upper`.

    Intervals are Wilson's for shares of independent samples, and otherwise percentiles of resamples (`resample`).

    Args:
        task: names the metrics.
        outputs: of the network for n >= 1 samples, (n, ...).
        targets: their targets, (n, ...).
        thresholds: predictions from which each sample counts as positive, (n,); None: no sensitivity and specificity.
        seed: of the resamples.

    Raises:
        FlocoError: an output is not finite.
    """
    if not bool(torch.isfinite(outputs).all()):
        raise FlocoError(f"outputs must be finite numbers to be measured, and some of {len(outputs)} samples' are not")
    n, statistic = len(targets), task.resampler(outputs, targets)
    shares, whole = task.shares(outputs, targets, thresholds), statistic(np.ones((1, n), dtype=np.int64))
    found = task.values(task.score(outputs, targets))
    found |= {name: float(whole[name][0]) for name in task.further if name in whole}
    found |= {name: hits / of if of else None for name, (hits, of) in shares.items() if name in task.further}
    wanted = bounded(task)
    drawn = {} if {*wanted} <= {*shares} else resample(statistic, n, seed, outputs[0].numel())
    intervals = {name: percentiles(values, n) for name, values in drawn.items()}
    intervals |= {name: wilson(*share) for name, share in shares.items()}
    made = unmeasured(task) | {name: None if v is None or v != v else v for name, v in found.items()}
    for name in wanted:
        made |= ends(name, intervals.get(name, UNKNOWN))
    return made


def ends(name: str, interval: Interval) -> Values:
    """Return the ends of an interval as values; None where they are unknown."""
    return {f"{name}_{end}": None if v != v else v for end, v in interval._asdict().items()}


def measure_difference(
    task: Task, outputs: torch.Tensor, others: torch.Tensor, targets: torch.Tensor, *, seed: int = 0
) -> Values:
    """Return how much two models differ in the primary metric on the same n samples, with a paired interval.

    Args:
        task: names the metric.
        outputs: of the first model, (n, ...).
        others: of the second, which is subtracted, (n, ...).
        targets: (n, ...).
        seed: of the resamples.

    Returns:
        `difference`, `difference_lower` and `difference_upper`.
    """
    pair, n = (outputs, others), len(targets)
    first, second = (
        resample(task.resampler(found, targets, further=False), n, seed, outputs[0].numel())[task.primary]
        for found in pair
    )
    a, b = (task.value(task.score(found, targets)) for found in pair)
    return {"difference": None if a - b != a - b else a - b, **ends("difference", percentiles(first - second, n))}


def measure_groups(
    task: Task,
    outputs: torch.Tensor,
    targets: torch.Tensor,
    groups: torch.Tensor,
    names: tuple[str, ...],
    *,
    thresholds: torch.Tensor | None = None,
    seed: int = 0,
) -> dict[str, Values]:
    """Return `measure` of the samples of each group that occurs; `groups` (n,) are the numbers of their names."""
    made = {}
    for number in groups.unique().tolist():
        own = groups == number
        chosen = None if thresholds is None else thresholds[own]
        found = measure(task, outputs[own], targets[own], thresholds=chosen, seed=seed)
        made[names[number]] = {"n": int(own.sum()), **found}
    return made


def confuse(task: Task, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor | None:
    """Return how many samples of each class are taken for each, (C, C), rows by their class; None: no classes."""
    if (guess := task.classify(outputs)) is None:
        return None
    classes = outputs.shape[1]
    return torch.bincount(targets * classes + guess, minlength=classes * classes).view(classes, classes)


def describe_samples(task: Task, n: int) -> str:
    """Return in words of how many samples the primary metric is, and in which steps a share of so few moves.

    >>> from floco.tasks import Classification
    >>> describe_samples(Classification(), 18)
    'of 18 samples: it moves in steps of 5.6 points'
    """
    steps = f": it moves in steps of {100 / n:.1f} points" if task.labelled and task.metrics[task.primary].share else ""
    return f"of {n} sample{'s' if n != 1 else ''}{steps}"
