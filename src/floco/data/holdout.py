"""The test part of a client's rows: a random share, or the latest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from floco.core.errors import FlocoError
from floco.core.random import stream

if TYPE_CHECKING:
    import pandas as pd

_LONG = 5  # least mean length of recordings: rows in random order go back in time at every other row


def divide(rows: np.ndarray, test_share: float, client: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a client's rows as train and test part, at random from the client's own stream; neither is empty."""
    if len(rows) < 2:
        raise FlocoError(
            f'client "{client}" has {len(rows)} samples; it needs 2 at least, one to train and one to test: '
            "use fewer data.clients or another split"
        )
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
        raise FlocoError(
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
        raise FlocoError(
            f'client "{client}" has {len(rows)} samples, and none is left to train: the latest are its test part, '
            "and the one before them is dropped"
        )
    return np.sort(train), np.sort(test)


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

    try:
        return pd.to_numeric(text).to_numpy()
    except (ValueError, TypeError):
        pass
    try:
        return pd.to_datetime(text, format="ISO8601", utc=True).dt.tz_convert(None).to_numpy()
    except (ValueError, TypeError) as error:
        raise FlocoError(
            f"data.order: the column {name} must hold numbers or dates such as 2024-01-31T12:00, "
            f"and {str(error).splitlines()[0]}"
        ) from error
