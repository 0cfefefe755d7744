"""Splits of one data set over clients; most are partitioners of flwr-datasets.

Partitioners get a data set of labels and row numbers only; no sample is copied.
"""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from floco.core.errors import FlocoError
from floco.core.random import derive, stream
from floco.core.settings import setting
from floco.data.folds import Deal
from floco.data.split import Split, Table
from floco.tasks.labels import client_ids

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

_LABEL, _ROW = "label", "row"


@dataclass(frozen=True)
class Dealt(Split):
    """A split that deals shuffled samples to the clients `client-0`, `client-1`, ..."""

    def assign(self, table: Table, *, clients: int | None, samples: int | None, seed: int) -> dict[str, np.ndarray]:
        """Return the rows of each client."""
        if clients is None:
            raise FlocoError(f"data.clients must say how many clients the split {self.name} is for")
        wanted, n = clients * (samples or 1), len(table.labels)
        if wanted > n:
            given = f"data.clients = {clients} with {samples or 'at least 1'} samples each"
            raise FlocoError(f"{given} need {wanted} samples, the source has {n}")
        return _shuffled(table.labels, seed, lambda labels: self.deal(labels, clients, samples, seed))

    @abstractmethod
    def deal(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Sequence[Any]:
        """Return the positions that each client gets of shuffled labels in 0..C-1."""


@dataclass(frozen=True)
class Partitioned(Dealt):
    """A split that a partitioner of flwr-datasets carries out."""

    def deal(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Sequence[Any]:
        """Return the positions that each client gets."""
        made, advice = self.partitioner(labels, clients, samples, derive(seed, "split") % 2**32), self.advice(samples)
        return _partition(made, labels, self.name, advice and f"to {clients} clients: {advice}")

    def advice(self, samples: int | None) -> str:
        """Return why the library could not do it, and what to change; "": it says so itself."""
        return ""

    @abstractmethod
    def partitioner(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Partitioner:
        """Return a partitioner for `clients` clients with `samples` samples each (None: all samples)."""


def _sizes(total: int, clients: int, samples: int | None) -> list[int]:
    """Return equal sizes: `samples` each, or all samples, with sizes that differ by one at most."""
    return [samples if samples is not None else total // clients + (i < total % clients) for i in range(clients)]


@dataclass(frozen=True)
class Folds(Dealt):
    """Client i belongs to fold i mod `folds`; `share` of its samples come from its fold's classes.

    >>> Folds(5, share=0.84).share
    0.84
    """

    name: ClassVar[str] = "folds"
    labelled: ClassVar[bool] = True
    folds: int = setting(5, "number of groups of clients with classes in common", low=2)
    share: float = setting(0.8, "share of a client's samples that is from its fold's classes", low=0, high=1)

    def deal(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Sequence[Any]:
        """Return the positions that each client gets."""
        sizes = _sizes(len(labels), clients, samples)
        return Deal(sizes, self.folds, self.share, exact=samples is not None).parts(labels)


@dataclass(frozen=True)
class Dirichlet(Partitioned):
    """Clients of equal size, each with class frequencies drawn from Dirichlet(alpha)."""

    name: ClassVar[str] = "dirichlet"
    labelled: ClassVar[bool] = True
    alpha: float = setting(0.5, "concentration; smaller is more heterogeneous", above=0)

    def partitioner(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Partitioner:
        """Return flwr-datasets' InnerDirichletPartitioner."""
        from flwr_datasets.partitioner import InnerDirichletPartitioner

        return InnerDirichletPartitioner(_sizes(len(labels), clients, samples), _LABEL, self.alpha, seed=seed)

    def advice(self, samples: int | None) -> str:
        """Return that too few classes have a share above 0 once others are used up."""
        return (
            "the classes that clients drew are used up, as few have a share with so small an alpha: use a larger "
            f"data.split.alpha (got {self.alpha:g}), fewer data.clients or data.samples, or the split pathological"
        )


@dataclass(frozen=True)
class DirichletSizes(Partitioned):
    """Each class is split in proportions drawn from Dirichlet(alpha): clients differ in classes and size."""

    name: ClassVar[str] = "dirichlet-sizes"
    labelled: ClassVar[bool] = True
    alpha: float = setting(0.5, "concentration; smaller is more heterogeneous", above=0)

    def partitioner(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Partitioner:
        """Return flwr-datasets' DirichletPartitioner; each client has `samples` samples at least (None: 10)."""
        from flwr_datasets.partitioner import DirichletPartitioner

        return DirichletPartitioner(clients, _LABEL, self.alpha, min_partition_size=samples or 10, seed=seed)

    def advice(self, samples: int | None) -> str:
        """Return that a client would be too small."""
        return (
            f"each client needs {samples or 10} samples, and ten draws left one with fewer: use a larger "
            f"data.split.alpha (got {self.alpha:g}), fewer data.clients or data.samples"
        )


@dataclass(frozen=True)
class Iid(Partitioned):
    """Clients of equal size, with samples drawn at random."""

    name: ClassVar[str] = "iid"

    def deal(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Sequence[Any]:
        """Return equal parts of all positions, or of as many as are asked for."""
        return super().deal(labels[: clients * samples if samples else None], clients, samples, seed)

    def partitioner(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Partitioner:
        """Return flwr-datasets' IidPartitioner, which does not shuffle."""
        from flwr_datasets.partitioner import IidPartitioner

        return IidPartitioner(clients)


@dataclass(frozen=True)
class Pathological(Partitioned):
    """Each client has samples of `classes` classes only."""

    name: ClassVar[str] = "pathological"
    labelled: ClassVar[bool] = True
    classes: int = setting(2, "classes per client", low=1)

    def partitioner(self, labels: np.ndarray, clients: int, samples: int | None, seed: int) -> Partitioner:
        """Return flwr-datasets' PathologicalPartitioner."""
        from flwr_datasets.partitioner import PathologicalPartitioner

        if self.classes > (known := int(labels.max()) + 1):
            raise FlocoError(f"data.split.classes must be at most the number of classes ({known}), got {self.classes}")
        mode = "first-deterministic"
        return PathologicalPartitioner(clients, _LABEL, self.classes, class_assignment_mode=mode, seed=seed)


@dataclass(frozen=True)
class Natural(Split):
    """The clients that the source itself names, in its column `client`."""

    name: ClassVar[str] = "natural"

    def assign(self, table: Table, *, clients: int | None, samples: int | None, seed: int) -> dict[str, np.ndarray]:
        """Group rows by client id in one pass; flwr-datasets' natural partitioner reads all rows once per client."""
        if "client" not in table.columns:
            raise FlocoError('data.split = "natural" needs a source with a column "client"; this one has none')
        ids, which = np.unique(client_ids(table.columns["client"], "the column client"), return_inverse=True)
        if clients is not None and clients > len(ids):
            raise FlocoError(f"data.clients must be at most the number of natural clients ({len(ids)}), got {clients}")
        grouped = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])
        return {str(i): rows for i, rows in list(zip(ids, grouped, strict=True))[:clients]}


@dataclass(frozen=True)
class Single(Split):
    """One client with all samples: a site of a federation across organisations."""

    name: ClassVar[str] = "single"
    id: str = setting("site", "the client's id")

    def assign(self, table: Table, *, clients: int | None, samples: int | None, seed: int) -> dict[str, np.ndarray]:
        """Return all rows, for the one client."""
        return {self.id: np.arange(len(table.labels))}


@dataclass(frozen=True)
class Foreign(Split):
    """Any partitioner of flwr-datasets, given as an object from Python."""

    name: ClassVar[str] = "foreign"
    partitioner: Any = None

    def assign(self, table: Table, *, clients: int | None, samples: int | None, seed: int) -> dict[str, np.ndarray]:
        """Return the rows of the clients `client-0`, `client-1`, ..., as many as the partitioner has."""
        made, name = copy.deepcopy(self.partitioner), type(self.partitioner).__name__
        return _shuffled(table.labels, seed, lambda labels: _partition(made, labels, name))


_ALL: tuple[type[Split], ...] = (Folds, Dirichlet, DirichletSizes, Iid, Pathological, Natural, Single)
SPLITS: dict[str, type[Split]] = {s.name: s for s in _ALL}


def _shuffled(labels: np.ndarray, seed: int, deal: Callable[[np.ndarray], Sequence[Any]]) -> dict[str, np.ndarray]:
    """Return the rows of each client by what `deal` gives it of labels in random order, by the stream "split"."""
    rows = torch.randperm(len(labels), generator=stream(seed, "split")).numpy()
    return {f"client-{i}": rows[part] for i, part in enumerate(deal(labels[rows]))}


def _partition(partitioner: Partitioner, labels: np.ndarray, name: str, advice: str = "") -> list[np.ndarray]:
    """Return the positions of each partition; `name` and `advice` are for the error if the library fails."""
    from datasets import Dataset

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # partitioners warn of sizes that the user chose, and of retries
            partitioner.dataset = Dataset.from_dict({_LABEL: labels, _ROW: np.arange(len(labels))})
            loaded = (partitioner.load_partition(i)[_ROW] for i in range(partitioner.num_partitions))
            return [np.asarray(part, dtype=np.int64) for part in loaded]
    except Exception as error:
        why = f"{advice} ({error})" if advice else f"as asked: {error}"
        raise FlocoError(f"split {name} cannot assign {len(labels)} samples {why}") from error
