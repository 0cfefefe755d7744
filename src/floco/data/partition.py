"""Splits of one data set over clients, built on the partitioners of flwr-datasets.

Partitioners get a data set of labels and row numbers only; no sample is copied.
"""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from floco.core.errors import FlocoError
from floco.core.random import derive, stream
from floco.core.settings import Settings, setting

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

_LABEL, _ROW = "label", "row"


@dataclass(frozen=True)
class Split(Settings, ABC):
    """A rule that assigns rows to clients."""

    name: ClassVar[str]

    @abstractmethod
    def partitioner(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Partitioner:
        """Return a partitioner for `clients` clients with `samples` samples each (None: all samples)."""


def _sizes(total: int, clients: int, samples: int | None) -> list[int]:
    """Return equal sizes: `samples` each, or all samples, with sizes that differ by one at most."""
    return [samples if samples is not None else total // clients + (i < total % clients) for i in range(clients)]


@dataclass(frozen=True)
class Folds(Split):
    """Client i belongs to fold i mod `folds`; `share` of its samples come from its fold's classes.

    >>> Folds(5, share=0.84).share
    0.84
    """

    name: ClassVar[str] = "folds"
    folds: int = setting(5, "folds: number of groups of clients with classes in common", low=2)
    share: float = setting(0.8, "folds: share of a client's samples that is from its fold's classes", low=0, high=1)

    def partitioner(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Partitioner:
        """Return floco's own `FoldsPartitioner`."""
        from floco.data.folds import FoldsPartitioner

        sizes = _sizes(len(labels), clients, samples)
        return FoldsPartitioner(sizes, _LABEL, self.folds, self.share, exact=samples is not None)


@dataclass(frozen=True)
class Dirichlet(Split):
    """Clients of equal size, each with class frequencies drawn from Dirichlet(alpha)."""

    name: ClassVar[str] = "dirichlet"
    alpha: float = setting(0.5, "dirichlet, dirichlet-sizes: concentration; smaller is more heterogeneous", above=0)

    def partitioner(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Partitioner:
        """Return flwr-datasets' InnerDirichletPartitioner."""
        from flwr_datasets.partitioner import InnerDirichletPartitioner

        return InnerDirichletPartitioner(_sizes(len(labels), clients, samples), _LABEL, self.alpha, seed=seed)


@dataclass(frozen=True)
class DirichletSizes(Split):
    """Each class is split in proportions drawn from Dirichlet(alpha): clients differ in classes and size."""

    name: ClassVar[str] = "dirichlet-sizes"
    alpha: float = setting(0.5, "dirichlet, dirichlet-sizes: concentration; smaller is more heterogeneous", above=0)

    def partitioner(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Partitioner:
        """Return flwr-datasets' DirichletPartitioner; each client has `samples` samples at least (None: 10)."""
        from flwr_datasets.partitioner import DirichletPartitioner

        return DirichletPartitioner(clients, _LABEL, self.alpha, min_partition_size=samples or 10, seed=seed)


@dataclass(frozen=True)
class Iid(Split):
    """Clients of equal size, with samples drawn at random."""

    name: ClassVar[str] = "iid"

    def partitioner(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Partitioner:
        """Return flwr-datasets' IidPartitioner; `partition` shuffles the rows beforehand."""
        from flwr_datasets.partitioner import IidPartitioner

        return IidPartitioner(clients)


@dataclass(frozen=True)
class Pathological(Split):
    """Each client has samples of `classes` classes only."""

    name: ClassVar[str] = "pathological"
    classes: int = setting(2, "pathological: classes per client", low=1)

    def partitioner(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Partitioner:
        """Return flwr-datasets' PathologicalPartitioner."""
        from flwr_datasets.partitioner import PathologicalPartitioner

        mode = "first-deterministic"
        return PathologicalPartitioner(clients, _LABEL, self.classes, class_assignment_mode=mode, seed=seed)


@dataclass(frozen=True)
class Natural(Split):
    """The clients named by the source's column `client`."""

    name: ClassVar[str] = "natural"

    def partitioner(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Partitioner:
        """Raise: natural clients are grouped, not partitioned."""
        raise FlocoError('data.split = "natural" needs a source with client ids')


@dataclass(frozen=True)
class Single(Split):
    """One client with all samples: a site of a federation across organisations."""

    name: ClassVar[str] = "single"
    id: str = setting("site", "single: the client's id")

    def partitioner(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Partitioner:
        """Raise: a single client is not partitioned."""
        raise FlocoError('data.split = "single" has one client with all samples, and cannot be partitioned')


_ALL: tuple[type[Split], ...] = (Folds, Dirichlet, DirichletSizes, Iid, Pathological, Natural, Single)
SPLITS: dict[str, type[Split]] = {s.name: s for s in _ALL}


def partition(
    split: Split | Partitioner, labels: np.ndarray, clients: int, samples: int | None, seed: int
) -> list[np.ndarray]:
    """Return the rows of each client, from labels (N,) in 0..C-1 and the random stream "split" of `seed`.

    Raises:
        FlocoError: too few samples for the clients, or the split fails for another reason.
    """
    wanted = clients * (samples or 1)
    if isinstance(split, Split) and wanted > len(labels):
        raise FlocoError(
            f"data.clients = {clients} with {samples or 'at least 1'} samples each need {wanted} samples, "
            f"the source has {len(labels)}"
        )
    from datasets import Dataset

    rows = torch.randperm(len(labels), generator=stream(seed, "split")).numpy()
    if samples is not None and isinstance(split, Iid):
        rows = rows[:wanted]
    if isinstance(split, Split):
        partitioner = split.partitioner(labels, clients, samples, derive(seed, "split") % 2**32)
    else:
        partitioner = copy.deepcopy(split)
    try:
        with warnings.catch_warnings():
            # Partitioners warn of sizes that the user chose, and of retries.
            warnings.simplefilter("ignore")
            partitioner.dataset = Dataset.from_dict({_LABEL: labels[rows], _ROW: rows})
            loaded = (partitioner.load_partition(i)[_ROW] for i in range(partitioner.num_partitions))
            parts = [np.asarray(part, dtype=np.int64) for part in loaded]
    except FlocoError:
        raise
    except Exception as error:
        name = split.name if isinstance(split, Split) else type(split).__name__
        raise FlocoError(f"split {name} cannot deal {len(labels)} samples as asked: {error}") from error
    return [cut(part, samples, f"client-{i}", seed) for i, part in enumerate(parts)]


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
