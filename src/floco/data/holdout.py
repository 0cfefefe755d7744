"""Which of a client's rows are its test part: some at random, or the latest."""

from __future__ import annotations

import numpy as np
import torch

from floco.core.errors import FlocoError
from floco.core.random import stream

_LONG = 5  # samples of a recording at least, in the mean: rows in any order go back at every other one


def divide(rows: np.ndarray, test_share: float, client: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a client's rows as train and test part, at random under its own stream; each gets one at least."""
    if len(rows) < 2:
        raise FlocoError(f'client "{client}" has {len(rows)} samples; it needs 2 at least, one to train and one to test: use fewer data.clients or another split')
    n_test = min(max(1, round(test_share * len(rows))), len(rows) - 1)
    order = torch.randperm(len(rows), generator=stream(seed, "test part", client)).numpy()
    return np.sort(rows[order[n_test:]]), np.sort(rows[order[:n_test]])


def divide_latest(rows: np.ndarray, when: np.ndarray, test_share: float, client: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a client's rows as train and test part: no training sample is later than a test sample.

    Windows of one recording overlap, so the training sample right before the test part is dropped, as it may share data with
    it. A recording is a stretch of rows that do not go back in time; if there are a few long ones, most of which reach across the
    cut (the column is a position within each recording, not a time of day), each of these loses its last training sample.

    Args:
        rows: the client's rows.
        when: for every row of the source, its rank in time (see `ranks`); equal ranks stay together.
        test_share: part that is for testing, as nearly as ties allow, in (0, 1).
        client: what an error calls the client.

    Raises:
        FlocoError: nothing is left to train or to test.
    """
    rows = np.sort(rows)
    ordered = rows[np.argsort(when[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(when[ordered])) + 1  # where a later time begins
    if not len(starts):
        raise FlocoError(f'client "{client}": all {len(rows)} samples have the same value in the column of data.order, so that none is the latest')
    cut = int(starts[np.argmin(np.abs(len(rows) - starts - test_share * len(rows)))])
    train, test = ordered[:cut], ordered[cut:]
    recordings = np.split(rows, np.flatnonzero(np.diff(when[rows]) < 0) + 1)
    last = [r[before][-1] for r in recordings if (before := when[r] < when[test[0]]).any() and not before.all()]
    several = 2 * len(last) > len(recordings) and len(rows) >= _LONG * len(recordings)
    train = train[~np.isin(train, last if several else train[-1:])]
    if not len(train):
        raise FlocoError(f'client "{client}" has {len(rows)} samples, and none is left to train: the latest are its test part, and the one before them is dropped')
    return np.sort(train), np.sort(test)


def ranks(column: np.ndarray, name: str) -> np.ndarray:
    """Return the rank in time (N,) int64 of each value of a column: numbers, dates, or text that is one or the other.

    Raises:
        FlocoError: a value is missing, or has no place in time.
    """
    values = np.asarray(column)
    if values.dtype.kind in "OUS":
        import pandas as pd

        text = pd.Series(values)
        text = text.str.decode("utf-8", errors="replace") if values.dtype.kind == "S" else text
        try:
            found = pd.to_numeric(text)
        except (ValueError, TypeError):
            try:
                found = pd.to_datetime(text, format="ISO8601", utc=True).dt.tz_convert(None)
            except (ValueError, TypeError) as error:
                raise FlocoError(f"data.order: the column {name} must hold numbers or dates such as 2024-01-31T12:00, and {str(error).splitlines()[0]}") from error
        missing, values = found.isna().to_numpy(), found.to_numpy()
    else:
        missing = np.isnat(values) if values.dtype.kind in "mM" else np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)
    if missing.any():
        raise FlocoError(f"data.order: {missing.sum()} of {len(values)} values of the column {name} are missing: without a time a sample is neither early nor late")
    if values.dtype.kind not in "iufbmM":
        raise FlocoError(f"data.order: the column {name} must hold numbers or dates, got {values.dtype}")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
