"""The test part of a client's rows: a random share, or the latest; and what becomes of clients too small for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from floco.core.delivery import Delivery
from floco.core.errors import FlocoError, some, warn
from floco.core.random import stream

if TYPE_CHECKING:
    import pandas as pd

    from floco.data.federation import Client

SMALL = ("error", "drop", "train-only")
"""What becomes of a client that is too small for a training and a test part."""
_SHOWN = 3  # small clients that a message names
_ZONE = r":\d\d[\d:.]*\s?(?:[zZ]|[+-]\d\d:?(?:\d\d)?)\s*$"  # at the end of a time
# DD.MM and DDMMYYYY, which are numbers, too
_DAYS = r"(0[1-9]|[12]\d|3[01])(\.(0[1-9]|1[0-2])\.?|(0[1-9]|1[0-2])(19|20)\d\d)"
_LONG = 5  # least mean length of recordings: rows in random order go back in time at every other row


class _TooSmall(FlocoError):
    """A client that cannot have both a training and a test part."""


def divide_all(
    parts: Mapping[str, np.ndarray],
    when: np.ndarray | None,
    test_share: float,
    seed: int,
    *,
    small: str = "error",
    least: int = 1,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the training and test part of each client.

    Args:
        parts: each client's rows.
        when: rank in time of every row of the source, for a test part of the latest rows; None: a random one.
        test_share: test part of a client's rows, in (0, 1).
        seed: of random test parts.
        small: what becomes of a client without a row to test or with fewer than `least` to train: "error"; "drop": left
            out; "train-only": all its rows are for training and it has no test part, or, if they are still too few, it
            is left out.
        least: fewest training rows of a client.

    Raises:
        FlocoError: small clients, and `small` is "error"; or no client is left.
    """
    made: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    why: dict[str, str] = {}
    for client, rows in parts.items():
        try:
            train, test = (
                divide(rows, test_share, client, seed)
                if when is None
                else divide_latest(rows, when, test_share, client)
            )
            if len(train) < least:
                raise _TooSmall(f'client "{client}" has {len(train)} training samples; data.least = {least}')
            made[client] = train, test
        except _TooSmall as error:
            why[client] = str(error)
            if small == "train-only" and len(rows) >= least:
                made[client] = np.sort(rows), rows[:0]
    if why:
        _settle(why, len(parts), [c for c in why if c in made], small)
    if not made or (len(parts) > 1 and not any(len(test) for _, test in made.values())):  # a single one may be a site
        gone = "has a test part" if made else "is left"
        raise FlocoError(f"no client {gone}: all are too small; use fewer data.clients, another split or data.least")
    return made


def _settle(why: Mapping[str, str], clients: int, kept: list[str], small: str) -> None:
    """Raise for small clients, or warn of what becomes of them: those `kept` only train."""
    few = f"{len(why)} of {clients} clients {'are' if len(why) > 1 else 'is'} too small for a training and a test part"
    if small == "error":
        shown = "; ".join(list(why.values())[:_SHOWN]) + (
            f"; and {len(why) - _SHOWN} more" if len(why) > _SHOWN else ""
        )
        raise FlocoError(
            f"{few}: {shown}: use fewer data.clients or another split, or set data.small to drop (leave them out) or "
            "train-only (train on all their samples, and do not evaluate them)"
        )
    dropped = [c for c in why if c not in kept]
    told = (
        f"{len(d)} {w}: {some(d)}" for d, w in ((kept, "only train and are not evaluated"), (dropped, "left out")) if d
    )
    warn(f"{few} (data.small = {small}); {'; '.join(told)}")


def divide(rows: np.ndarray, test_share: float, client: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a client's rows as train and test part, at random from the client's own stream; neither is empty."""
    if len(rows) < 2:
        raise _TooSmall(f'client "{client}" has {len(rows)} samples; it needs 2 at least, one to train and one to test')
    n_test = min(max(1, round(test_share * len(rows))), len(rows) - 1)
    order = torch.randperm(len(rows), generator=stream(seed, "test part", client)).numpy()
    return np.sort(rows[order[n_test:]]), np.sort(rows[order[:n_test]])


def divide_latest(rows: np.ndarray, when: np.ndarray, test_share: float, client: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a client's rows as train and test part: no training sample is later than a test sample.

    Windows of one recording overlap, so the training sample right before the test part may share data with it and is
    dropped. A recording is a stretch of rows that do not go back in time. If there are a few long ones and most reach
    across the cut (the column is a position within each recording, not a time of day), each of these loses its last
    training sample.

    Args:
        rows: the client's rows.
        when: rank in time of every row of the source (see `rank`); equal ranks are not separated.
        test_share: test part, as nearly as ties allow, in (0, 1).
        client: the client's id, for error messages.

    Raises:
        FlocoError: the training or the test part would be empty.
    """
    rows = np.sort(rows)
    ordered = rows[np.argsort(when[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(when[ordered])) + 1  # where a later time begins
    if not len(starts):
        raise _TooSmall(
            f'client "{client}": all {len(rows)} samples have the same value in the column of data.order, '
            "so no sample is the latest"
        )
    cut = int(starts[np.argmin(np.abs(len(rows) - starts - test_share * len(rows)))])
    train, test = ordered[:cut], ordered[cut:]
    recordings = np.split(rows, np.flatnonzero(np.diff(when[rows]) < 0) + 1)
    last = [r[before][-1] for r in recordings if (before := when[r] < when[test[0]]).any() and not before.all()]
    several = 2 * len(last) > len(recordings) and len(rows) >= _LONG * len(recordings)
    train = train[~np.isin(train, last if several else train[-1:])]
    if not len(train):
        raise _TooSmall(
            f'client "{client}" has {len(rows)} samples, and none is left to train: the latest are its test part, '
            "and the one before them is dropped"
        )
    return np.sort(train), np.sort(test)


def cut_part(client: Client, share: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a client's training part without a share of it in (0, 1), and that share: at random, or the latest.

    Raises:
        FlocoError: samples are ordered in time, and one of the two would be empty.
    """
    if client.when is not None:
        train, rest = divide_latest(np.arange(len(client.when)), client.when.numpy(), share, client.id)
        return client.train[train], client.train[rest]
    order = torch.randperm(len(client.train), generator=generator)
    n = max(1, round(share * len(order)))
    return client.train[order[n:].sort().values], client.train[order[:n].sort().values]


def hold_back(client: Client, delivery: Delivery, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions (n_train,) of a client's samples to train on, and those (n,) that are held back.

    None is held back of a client with too few samples (see `Delivery.hold_back`), or if samples of one time, which stay
    together, leave 1 or more than twice as many as asked for.
    """
    n = len(client.train)
    if held := delivery.hold_back(n):
        try:
            train, rest = cut_part(client, held / n, stream(seed, "held back", client.id))
        except _TooSmall:  # all its samples are of one time
            return client.train, client.train[:0]
        if 2 <= len(rest) <= 2 * held:
            return train, rest
    return client.train, client.train[:0]


def rank(column: np.ndarray, name: str) -> np.ndarray:
    """Return the rank in time (N,) int64 of each value of a column: numbers, dates, or text that is one or the other.

    Raises:
        FlocoError: a value is missing, or is neither a number nor a date.
    """
    import pandas as pd  # on use: slow to import

    values = np.asarray(column)
    if values.dtype.kind in "OUS":
        text = pd.Series(values)
        values = _parsed(text.str.decode("utf-8", errors="replace") if values.dtype.kind == "S" else text, name)
    missing = pd.isna(values)
    if missing.any():
        raise FlocoError(
            f"data.order: {missing.sum()} of {len(values)} values of the column {name} are missing; each needs one"
        )
    if values.dtype.kind not in "iufbmM":
        raise FlocoError(f"data.order: the column {name} must hold numbers or dates, got {values.dtype}")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _parsed(text: pd.Series[Any], name: str) -> np.ndarray:
    """Return texts or objects as numbers or, if they are not, as dates."""
    import pandas as pd

    known = text.dropna().astype(str)
    if len(known) and known.str.fullmatch(_DAYS).all():
        like = f"such as {known.iloc[0]!r}"
        raise FlocoError(f"data.order: the column {name} holds days that do not sort by time, {like}: write YYYY-MM-DD")
    try:
        return pd.to_numeric(text).to_numpy()
    except (ValueError, TypeError):
        pass
    zoned = text.dropna().astype(str).str.contains(_ZONE)
    if zoned.any() and not zoned.all():
        raise FlocoError(
            f"data.order: {int(zoned.sum())} of {len(zoned)} dates of the column {name} have a time zone: "
            "give one to all of them, or to none"
        )
    try:
        return pd.to_datetime(text, format="ISO8601", utc=True).dt.tz_convert(None).to_numpy()
    except (ValueError, TypeError) as error:
        raise FlocoError(
            f"data.order: the column {name} must hold numbers or dates such as 2024-01-31T12:00, "
            f"and {str(error).partition('. ')[0].splitlines()[0]}"
        ) from error
