"""What a split is: a rule that assigns samples to clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from floco.core.errors import FlocoError
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
