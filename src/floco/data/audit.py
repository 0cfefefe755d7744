"""What a federation's data hold that a user may not expect: pure functions from a Federation to findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from floco.core.errors import FlocoError, some, warn
from floco.core.inputs import Inputs, columns, count
from floco.data.describe import channel_name
from floco.data.federation import Federation
from floco.data.holdout import rank
from floco.data.leaks import find_leaks, find_repeated
from floco.data.moments import Moments, find_moments, odd_clients
from floco.data.spelling import find_doubles

BLOCK = 4096
"""Samples that are hashed together: the data are not copied at once."""
_COARSE = 3  # samples are coarse if the distinct ones occur this often on average
_GRAVE = 0.01  # duplicates are grave from this share of the test samples on
_UNEQUAL = 20  # sizes that differ by this factor are said
_LARGE = 2**32  # bytes of data up to which a run looks at them before it starts
_SOME = 200  # samples of a client in which another unit is seen
_TIMES = ("time", "timestamp", "date", "datetime", "day", "when", "position")  # names of columns of time


@dataclass(frozen=True)
class Finding:
    """One thing that a user should know of the data before training."""

    kind: str
    """`duplicates`, `scale`, `constant`, `classes`, `leak`, `repeated`, `order`, `sizes`, `untested`, `spelling` or
    `unchecked`."""
    text: str
    grave: bool = False
    """Whether results would probably be wrong."""


def audit(federation: Federation, others: Mapping[str, np.ndarray] | None = None) -> list[Finding]:
    """Return all findings, the grave ones first; `others` are further columns (N,) of the source."""
    moments = {name: find_moments(x, federation.clients) for name, x in _numbers(federation).items()}
    found = [
        *_duplicates(federation),
        *_scales(federation, moments),
        *_constant(federation, moments),
        *_classes(federation),
        *(Finding("leak", text) for text in find_leaks(federation)),
        *(Finding("repeated", text) for text in find_repeated(federation)),
        *_order(federation, others or {}),
        *_sizes(federation),
        *_spelling(federation),
    ]
    return sorted(found, key=lambda f: not f.grave)


def audit_gravely(federation: Federation) -> list[Finding]:
    """Return the grave findings, at a small part of the cost of `audit`: units are seen in some samples of a client."""
    if (size := sum(x.nbytes for x in columns(federation.x).values())) > _LARGE:
        text = f"data of {size / 2**30:.0f} GB are not searched for repeated samples and other units before a run"
        return [Finding("unchecked", text, True)]
    moments = {name: find_moments(x, federation.clients, _SOME) for name, x in _numbers(federation).items()}
    return [f for f in (*_duplicates(federation), *_scales(federation, moments), *_spelling(federation)) if f.grave]


def warn_gravely(federation: Federation) -> None:
    """Warn of the grave findings."""
    for finding in audit_gravely(federation):
        warn(f"{finding.text} (see floco data)")


def _numbers(federation: Federation) -> dict[str | None, torch.Tensor]:
    """Return the inputs that are numbers, not ids, by name, and as None the targets (N, d) if they are numbers."""
    found: dict[str | None, torch.Tensor] = {n: x for n, x in columns(federation.x).items() if x.dtype != torch.int64}
    y = federation.y
    return {**found, None: y.reshape(len(y), -1)} if y.is_floating_point() else found


def hash_rows(x: Inputs) -> np.ndarray:
    """Return a hash (N,) uint64 of each sample: equal for equal samples, and otherwise almost surely different."""
    found = np.zeros(count(x), np.uint64)
    for i, column in enumerate(columns(x).values()):
        for start in range(0, len(column), BLOCK):
            block = column[start : start + BLOCK]
            block = block + 0.0 if block.is_floating_point() else block  # -0.0 equals 0.0
            raw = block.reshape(len(block), -1).contiguous().numpy().view(np.uint8)
            words = np.pad(raw, ((0, 0), (0, -raw.shape[1] % 8))).view(np.uint64)
            places = np.arange(words.shape[1], dtype=np.uint64) + np.uint64(i << 32)
            found[start : start + BLOCK] += _mixed(words ^ _mixed(places)).sum(1, dtype=np.uint64)
    return found


def _mixed(words: np.ndarray) -> np.ndarray:
    """Return the finalizer of splitmix64 (Steele, Lea, Flood 2014) of each word: every bit depends on every bit."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = words ^ (words >> np.uint64(31))
    return mixed


def _duplicates(federation: Federation) -> Iterator[Finding]:
    """Yield how many test samples are training samples with the same target, of the same client or of another.

    Where few samples are distinct, as with answers to a few questions, that is no mistake.
    """
    hashes, clients = _hash_pairs(federation.x, federation.y), federation.clients
    train = hashes[torch.cat([c.train for c in clients]).numpy()]
    trained = np.unique(train)
    coarse = _COARSE * len(trained) <= len(train)
    test = [hashes[c.test.numpy()] for c in clients]
    total, both = sum(map(len, test)), int(np.isin(np.concatenate(test), trained).sum())
    own = sum(int(np.isin(t, hashes[c.train.numpy()]).sum()) for t, c in zip(test, clients, strict=True) if both)
    if both:
        parts = [f"{n} of {who}" for n, who in ((own, "their own client"), (both - own, "another client")) if n]
        text = f"{both} of {total} test samples occur in training parts, too: {' and '.join(parts)}"
        advice = (
            f"only {len(trained)} of {len(train)} training samples are distinct, which is usual for few values"
            if coarse
            else "results look better than they are: leave repetitions out"
        )
        yield Finding("duplicates", f"{text}; {advice}", both >= _GRAVE * total and not coarse)
    if federation.x_test is not None and federation.y_test is not None:
        known = int(np.isin(_hash_pairs(federation.x_test, federation.y_test), trained).sum())
        total = count(federation.x_test)
        if known:
            text = f"{known} of {total} samples of the global test part occur in training parts, too"
            yield Finding("duplicates", text, known >= _GRAVE * total and not coarse)


def _hash_pairs(x: Inputs, y: torch.Tensor) -> np.ndarray:
    """Return a hash (N,) uint64 of each sample with its target."""
    return hash_rows((*columns(x).values(), y))


def _scales(federation: Federation, moments: Mapping[str | None, Moments]) -> Iterator[Finding]:
    """Yield the clients whose values have another unit or scaling than those of the others."""
    told: dict[str, str] = {}
    for name, found in moments.items():
        for client, channel, mine, theirs in odd_clients(found):
            where = channel_name(federation, name, channel)
            told.setdefault(
                federation.clients[client].id,
                f"has mean {mine[0]:.4g}, deviation {mine[1]:.4g} in {where}, others {theirs[0]:.4g}, {theirs[1]:.4g}",
            )
    if told:
        shown = "; ".join(f'"{client}" {text}' for client, text in list(told.items())[:2])
        more = f"; and {len(told) - 2} more" if len(told) > 2 else ""
        yield Finding(
            "scale", f"another unit or scaling at {len(told)} of {len(federation.clients)} clients? {shown}{more}", True
        )


def _constant(federation: Federation, moments: Mapping[str | None, Moments]) -> Iterator[Finding]:
    for name, found in moments.items():
        same = np.flatnonzero(np.fmin.reduce(found.low) == np.fmax.reduce(found.high)).tolist()
        if same:
            all_ = found.low.shape[1]
            shown = some([channel_name(federation, name, c) for c in same])
            yield Finding("constant", f"{len(same)} of {all_} channels or features never vary in training: {shown}")


def _classes(federation: Federation) -> Iterator[Finding]:
    if not federation.task.labelled:
        return
    counts = [(federation.label_counts(c.train), federation.label_counts(c.test)) for c in federation.clients]
    sums = np.sum([train for train, _ in counts], axis=0)
    if missing := [federation.names[i] for i in np.flatnonzero(sums == 0)]:
        yield Finding("classes", f"{len(missing)} of {len(sums)} classes have no training sample: {some(missing)}")
    unknown = [any(b and not a for a, b in zip(*both, strict=True)) for both in counts]
    if n := sum(unknown):
        ids = some([c.id for c, is_ in zip(federation.clients, unknown, strict=True) if is_], 3)
        text = f"in {n} of {len(unknown)} clients the test part has classes that the training part has not: {ids}"
        yield Finding("classes", text)


def _order(federation: Federation, others: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    """Yield columns of time by which training samples are later than test samples of their client."""
    if any(c.when is not None for c in federation.clients):
        return
    for name, values in others.items():
        if name.lower() not in _TIMES and np.asarray(values).dtype.kind != "M":
            continue
        try:
            when = rank(values, name)
        except FlocoError:
            continue
        parts = [(when[c.train.numpy()], when[c.test.numpy()]) for c in federation.clients if len(c.test)]
        late = sum(bool(train.max() > test.min()) for train, test in parts)
        if late:
            text = f"by the column {name}, {late} of {len(parts)} clients train on samples later than some they test on"
            yield Finding("order", f"{text}: if that is time, set data.order = {name}")


def _spelling(federation: Federation) -> Iterator[Finding]:
    yield from (Finding("spelling", text, True) for text in find_doubles(federation))


def _sizes(federation: Federation) -> Iterator[Finding]:
    sizes, clients = [len(c.train) for c in federation.clients], federation.clients
    if max(sizes) >= _UNEQUAL * min(sizes):
        text = f"the largest client trains on {max(sizes)} samples, the smallest on {min(sizes)}"
        yield Finding("sizes", f"{text}: it counts as much in means over clients, and its results are noisier")
    if untested := [c.id for c in clients if not len(c.test)]:
        text = f"{len(untested)} of {len(clients)} clients have no test part and are not evaluated: {some(untested)}"
        yield Finding("untested", text)
