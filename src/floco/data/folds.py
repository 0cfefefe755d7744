"""The fold split as a flwr-datasets partitioner; imported on use, as the library takes seconds to import."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import Partitioner

from floco.core.errors import FlocoError


class FoldsPartitioner(Partitioner):  # type: ignore[misc]
    """Client i belongs to fold i mod F, whose primary classes are 1/F of all classes; `share` of its data is from them.

    A client's primary part is spread evenly over its primary classes, the rest over all other classes. Each sample is
    used at most once; with exact sizes that add up to the data set, exactly once.

    Args:
        sizes: samples of each client.
        exact: raise if a client cannot get its size; otherwise it gets fewer samples when its other classes run out.
        partition_by: the label column; labels are 0..C-1 and C is at least the number of folds.
        folds: F.
        share: part of a client's data that comes from its fold's classes, in [0, 1].
    """

    def __init__(self, sizes: list[int], partition_by: str, folds: int, share: float, *, exact: bool) -> None:
        super().__init__()
        self._sizes, self._by, self._folds, self._share, self._exact = sizes, partition_by, folds, share, exact
        self._indices: list[list[int]] | None = None

    @property
    def num_partitions(self) -> int:
        """Number of clients."""
        return len(self._sizes)

    def load_partition(self, partition_id: int) -> Dataset:
        """Return one client's rows, in the order of the data set."""
        if self._indices is None:
            self._indices = self._deal(np.asarray(self.dataset[self._by]))
        return self.dataset.select(sorted(self._indices[partition_id]))

    def _deal(self, labels: np.ndarray) -> list[list[int]]:
        """Return the rows of every client: first all primary parts, then the others, one sample per turn."""
        classes = int(labels.max()) + 1
        if classes < self._folds:
            raise FlocoError(f"data.split.folds must be at most the number of classes ({classes}), got {self._folds}")
        pools = [np.flatnonzero(labels == c).tolist() for c in range(classes)]
        fold_of = [c * self._folds // classes for c in range(classes)]
        primary = [round(self._share * n) for n in self._sizes]
        rows: list[list[int]] = [[] for _ in self._sizes]
        own = [[c for c in range(classes) if fold_of[c] == i % self._folds] for i in range(len(rows))]
        self._turns(rows, pools, primary, own, exact=True)
        self._turns(rows, pools, self._sizes, [sorted({*range(classes)} - {*mine}) for mine in own], exact=self._exact)
        return rows

    def _turns(
        self, rows: list[list[int]], pools: list[list[int]], wanted: list[int], allowed: list[list[int]], *, exact: bool
    ) -> None:
        """Give each client in turn a sample of the allowed class it has fewest of, until all have as many as wanted."""
        has = [dict.fromkeys(classes, 0) for classes in allowed]
        needy = [i for i in range(len(rows)) if len(rows[i]) < wanted[i]]
        while needy:
            for i in needy:
                left = ((has[i][c], -len(pools[c]), c) for c in allowed[i] if pools[c])
                _, _, chosen = min(left, default=(0, 0, None))
                if chosen is not None:
                    rows[i].append(pools[chosen].pop())
                    has[i][chosen] += 1
                elif exact:
                    raise FlocoError(
                        f"the fold split runs out of samples: client {i} of fold {i % self._folds} has {len(rows[i])} "
                        f"of {self._sizes[i]}, and no sample of classes {allowed[i]} is left; use fewer data.samples "
                        f"or data.clients, or another data.split.share (got {self._share})"
                    )
            needy = [i for i in needy if len(rows[i]) < wanted[i] and (exact or any(pools[c] for c in allowed[i]))]
