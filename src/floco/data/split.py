"""What a split is: a rule that assigns samples to clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from floco.core.errors import FlocoError
from floco.core.inputs import array
from floco.core.random import stream
from floco.core.settings import Settings


class Table(NamedTuple):
    """What a split may look at."""

    labels: np.ndarray
    """(N,) class numbers; all 0 for a task without classes."""
    columns: Mapping[str, np.ndarray]
    """Other columns of the source, (N,): `client`, `position`, ..."""


@dataclass(frozen=True)
class Split(Settings, ABC):
    """A rule that assigns samples to clients; subclasses are frozen dataclasses, in this package or outside of it."""

    name: ClassVar[str]
    labelled: ClassVar[bool] = False
    """Whether it needs class numbers."""

    @abstractmethod
    def assign(self, table: Table, *, clients: int | None, samples: int | None, seed: int) -> dict[str, np.ndarray]:
        """Return the rows (n_k,) of each client by its id; no row belongs to two clients.

        Args:
            table: labels and other columns of all N samples.
            clients: `data.clients`, K; None: as many as there are.
            samples: `data.samples`; more rows than that are cut by the caller, each client's at random.
            seed: all that is random follows from it; `floco.core.stream(seed, ...)` gives a generator.
        """


def check_parts(found: Any, samples: int, where: str) -> dict[str, np.ndarray]:
    """Return what a split assigned, the rows (n_k,) of each client.

    Args:
        found: what `Split.assign` returned.
        samples: number of samples of the source.
        where: name of the split, for error messages.

    Raises:
        FlocoError: it does not name clients with rows of the source, or gives a row to several.
    """
    needed = "client ids as text, and for each the positions of its rows (n_k,)"
    if not isinstance(found, Mapping) or not found:
        raise FlocoError(f"{where} must return a dict, of one client at least: {needed}; got {found!r:.80}")
    parts = {client: array(rows, f"{where}: the rows of {client!r}") for client, rows in found.items()}
    parts = {client: rows if rows.size else rows.astype(np.int64) for client, rows in parts.items()}
    for client, rows in parts.items():
        if not isinstance(client, str) or rows.ndim != 1 or rows.dtype.kind not in "iu" or rows.min(initial=0) < 0:
            raise FlocoError(f"{where} must return {needed}, got {client!r}: {rows.shape} {rows.dtype}")
    times = np.bincount(np.concatenate([*parts.values()]), minlength=samples)
    if len(times) > samples or times.max(initial=0) > 1:
        raise FlocoError(f"{where}: each of the {samples} rows may belong to one client at most")
    return parts


def cut(rows: np.ndarray, samples: int | None, client: str, seed: int) -> np.ndarray:
    """Return `samples` of a client's rows (None: all), in order.

    They are drawn at random from the client's own stream, as the first ones may all be of one class or time.

    Raises:
        FlocoError: the client has fewer rows.
    """
    if samples is None or len(rows) == samples:
        return rows
    if len(rows) < samples:
        raise FlocoError(
            f'data.samples = {samples}, and the split gives client "{client}" only {len(rows)}; '
            "use fewer, or leave it empty"
        )
    chosen = torch.randperm(len(rows), generator=stream(seed, "samples", client))[:samples]
    drawn: np.ndarray = rows[chosen.sort().values.numpy()]
    return drawn


def heterogeneity(counts: Sequence[Sequence[int]]) -> float:
    """Return the mean total variation distance between the clients' label distributions and the pooled one, in [0, 1).

    0: all clients have the same label frequencies.
    """
    table = np.asarray(counts, dtype=np.float64)
    pooled = table.sum(axis=0) / table.sum()
    return float(np.abs(table / table.sum(axis=1, keepdims=True) - pooled).sum(axis=1).mean() / 2)
