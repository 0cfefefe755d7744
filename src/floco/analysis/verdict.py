"""Which model to deploy: a few sentences, with the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from floco.analysis.harm import values
from floco.analysis.tables import Results
from floco.core.errors import some
from floco.core.intervals import LEVEL, Interval, bound_mean, round_noise
from floco.core.metrics import Metrics

_NAMED = 5  # clients or methods in a sentence


@dataclass(frozen=True)
class Difference:
    """How much better one model is than another for each client, in the primary metric."""

    name: str
    better: pd.Series
    """Client -> difference, mean over common seeds; positive is better, whatever the metric's direction."""
    interval: Interval
    """Of the mean over clients; unknown if there is one client, or if all differ alike."""
    rounds: bool
    """Whether the interval includes how much the mean differs between rounds."""
    left_out: int
    """Number of clients that have one of the two models only."""

    @property
    def mean(self) -> float:
        """Mean over clients."""
        return float(self.better.mean())

    @property
    def harmed(self) -> pd.Series:
        """The clients for which it is worse, worst first."""
        return self.better[self.better < 0].sort_values(kind="stable")


def compare(results: Results, one: tuple[str, str], other: tuple[str, str], level: float = LEVEL) -> Difference | None:
    """Return the paired differences of two models, None if no client has both.

    The interval is `bound_mean` of the clients' differences and of how much their mean differs between evaluations in
    the second half of the rounds (`round_noise`). Training again with another seed or split would add to it.

    Args:
        results: finished runs.
        one: (method, "personal" or "global_local"): the first model.
        other: the second one.
        level: share of the intervals that should hold the mean, in (0, 1).
    """

    def both(table: pd.DataFrame, by: str) -> list[pd.Series]:
        return [values(table, ["seed", by], model, results.metrics) for model in (one, other)]

    (ours, theirs), (curve, base) = both(results.clients, "client"), both(results.history, "round")
    better = (ours - theirs).dropna().round(9).groupby(level="client", sort=False).mean()
    if better.empty:
        return None
    gaps = (curve - base).where(np.isfinite).dropna().reset_index("round", name="gap")
    noise, freedom = round_noise([part.to_numpy().T for _, part in gaps.groupby(level="seed")])
    interval = bound_mean(better.to_numpy(), level, noise, freedom)
    either = (ours.notna() | theirs.notna()).groupby(level="client").any()
    return Difference(one[0], better, interval, freedom > 0, int(either.sum()) - len(better))


def decide(results: Results, absent: Sequence[str] = ()) -> list[str]:
    """Return which model to deploy, in plain sentences; the last one says what they rest on.

    Methods are judged by the primary metric of the clients' personal models, against FedAvg (without it: against the
    first method). The intervals of all pairs of methods hold together (95 %, Bonferroni). A single method's personal
    models are judged against its global model, for the same clients. `absent` are methods of the comparison without a
    finished run.
    """
    if absent:
        left = f"{', '.join(results.names)} only" if len(results.names) == 1 else some(results.names, _NAMED)
        without = f"No run of {some(absent, _NAMED)} is finished, so that this is about {left}."
        return [without, *decide(results)]
    if len(results.names) > 1:
        plain = "fedavg" if "fedavg" in results.names else results.names[0]
        level = 1 - (1 - LEVEL) / math.comb(len(results.names), 2)
        rivals = (compare(results, (n, "personal"), (plain, "personal"), level) for n in results.names if n != plain)
        said = _choose(results, plain, [d for d in rivals if d is not None], level)
    else:
        name = results.names[0]
        said = [_choose_model(results, compare(results, (name, "personal"), (name, "global_local")))]
    return [*said, _basis(results)]


def _choose_model(results: Results, found: Difference | None) -> str:
    """Return whether to take the personal models of a method or its global one."""
    name, metrics = results.names[0], results.metrics
    if found is None:
        return f"{name} has no clients with both a personal and a global model: there is nothing to choose between."
    if not found.better.any():
        return "Take the global model: the personal models are as good for every client, or the same."
    if found.interval.lower > 0:
        return f"Give every client its personal model. Against the global model, {_gain(metrics, found)}."
    if found.interval.upper < 0:
        return f"Take the global model: the personal models are worse by {_amount(metrics, found, -1)}."
    return (
        f"Take the global model: the personal models do not differ from it beyond the interval, "
        f"{_amount(metrics, found)}."
    )


def _choose(results: Results, plain: str, found: Sequence[Difference], level: float) -> list[str]:
    """Return which method's models to take."""
    metrics = results.metrics
    title, why = ("plain FedAvg", "as the simplest") if plain == "fedavg" else (plain, "the first")
    if not found:
        return [f"Nothing can be compared: no client has a model of {title} and of another method under one seed."]
    better = [d for d in found if d.interval.lower > 0]
    best = max(better or found, key=lambda d: d.mean)
    if not better:
        worse = some([d.name for d in found if d.interval.upper < 0], _NAMED)
        return [
            f"Take {title}, {why}: no method is shown to be better. The best, {best.name}, differs by "
            f"{_amount(metrics, best)}{_open(metrics, best)}.",
            *([f"Worse than {title} beyond the interval: {worse}."] if worse else []),
        ]
    gaps = [compare(results, (d.name, "personal"), (best.name, "personal"), level) for d in found if d is not best]
    close = [d for d in gaps if d is not None and not d.interval.upper < 0]
    said = [f"Take {best.name}. Against {title}, {_gain(metrics, best)}."]
    if close:
        cheap = _cheapest(results, [best.name, *(d.name for d in close)])
        names = some([f"{d.name} ({_amount(metrics, d)})" for d in close], _NAMED)
        said.append(f"Not told apart from {best.name}: {names}. The cheapest of them is {cheap}.")
    elif gaps:
        said.append("It is better than every other method, beyond the interval.")
    return said


def _cheapest(results: Results, names: Sequence[str]) -> str:
    """Return the method that sends the fewest bytes, and of equal ones the fastest, with its cost."""
    cost = results.runs.assign(sent=results.runs["bytes_up"] + results.runs["bytes_down"])
    means = cost[cost["method"].isin(names)].groupby("method")[["sent", "seconds"]].mean()
    cheap = means.sort_values(["sent", "seconds"], kind="stable").iloc[0]
    return f"{cheap.name} ({cheap['sent'] / 1e3:,.0f} kB a round, {cheap['seconds']:,.1f} s in all)"


def _gain(metrics: Metrics, found: Difference) -> str:
    """Return whom a model helps and harms, and by how much."""
    harmed, n = found.harmed, len(found.better)
    named = some([f"{client} ({_number(metrics, v)})" for client, v in harmed.items()], _NAMED)
    harm = f"harms {len(harmed)}: {named}" if named else "harms none"
    missing = f"; {found.left_out} more have one of the two models only" if found.left_out else ""
    helped = f"it helps {int((found.better > 0).sum())} of {n} clients and {harm}{missing}"
    return f"it is better by {_amount(metrics, found)} on average over {n} clients: {helped}"


def _open(metrics: Metrics, found: Difference) -> str:
    """Return what a comparison of few clients cannot exclude, as a part of a sentence."""
    if math.isnan(found.interval.upper) or found.interval.upper <= 0:
        return ""
    return f", so that a gain of up to {_number(metrics, found.interval.upper)} {_unit(metrics)} cannot be excluded"


def _unit(metrics: Metrics) -> str:
    return "points" if metrics[metrics.primary].share else metrics.primary.replace("_", " ")


def _number(metrics: Metrics, value: float) -> str:
    return f"{100 * value:.1f}" if metrics[metrics.primary].share else f"{value:.3g}"


def _amount(metrics: Metrics, found: Difference, sign: int = 1) -> str:
    """Return a mean difference and its interval, e.g. `2.1 points [0.9, 3.4]`; with sign -1, how much worse it is."""
    mean = f"{_number(metrics, sign * found.mean)} {_unit(metrics)}"
    ends = sorted(sign * end for end in found.interval)
    told = [*(_number(metrics, v) for v in ends), *([] if found.rounds else ["clients only"])]
    return f"{mean} (no interval)" if math.isnan(ends[0]) else f"{mean} [{', '.join(told)}]"


def _basis(results: Results) -> str:
    """Return what the sentences rest on."""
    metrics, several = results.metrics, len(results.names) > 2
    counts = results.clients["n_test"].astype(int)
    least, most, seeds = int(counts.min()), int(counts.max()), results.runs["seed"].nunique()
    parts = f"{least} to {most}" if most > least else f"{least}"
    counted = metrics.primary == "accuracy" and "balanced_accuracy" in metrics  # of samples, not of their tokens
    step = f"; of {least}, one is {100 / least:.1f} points" if counted else ""
    together = "hold together, and " if several else ""
    return (
        f"Judged by {metrics.reading}, for each client's own test part of {parts} samples{step}. In brackets: 95 % "
        f"intervals of the mean over clients, which {together}include how much it differs between rounds (but for "
        f"'clients only': fewer than three evaluations in the second half); {seeds} seed{'s' if seeds > 1 else ''}."
    )
