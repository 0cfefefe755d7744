"""The deal of the fold split: which client gets which samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from floco.core.errors import FlocoError


@dataclass(frozen=True)
class Deal:
    """Client i belongs to fold i mod F, whose primary classes are 1/F of all classes; `share` of its data is from them.

    A client's primary part is spread evenly over its primary classes, the rest over all other classes. Each sample is
    used at most once; with exact sizes that add up to the data set, exactly once.
    """

    sizes: list[int]
    """Samples of each client."""
    folds: int
    """F."""
    share: float
    """Part of a client's data that comes from its fold's classes, in [0, 1]."""
    exact: bool
    """Raise if a client cannot get its size; otherwise it gets fewer samples when its other classes run out."""

    def parts(self, labels: np.ndarray) -> list[list[int]]:
        """Return the rows of every client, in order, from labels in 0..C-1.

        First all primary parts are dealt, then the others, one sample per turn.

        Raises:
            FlocoError: fewer classes than folds, or samples run out.
        """
        classes = int(labels.max()) + 1
        if classes < self.folds:
            raise FlocoError(f"data.split.folds must be at most the number of classes ({classes}), got {self.folds}")
        pools = [np.flatnonzero(labels == c).tolist() for c in range(classes)]
        fold_of = [c * self.folds // classes for c in range(classes)]
        primary = [round(self.share * n) for n in self.sizes]
        rows: list[list[int]] = [[] for _ in self.sizes]
        own = [[c for c in range(classes) if fold_of[c] == i % self.folds] for i in range(len(rows))]
        self._turns(rows, pools, primary, own, exact=True)
        self._turns(rows, pools, self.sizes, [sorted({*range(classes)} - {*mine}) for mine in own], exact=self.exact)
        return [sorted(part) for part in rows]

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
                        f"the fold split runs out of samples: client {i} of fold {i % self.folds} has {len(rows[i])} "
                        f"of {self.sizes[i]}, and no sample of classes {allowed[i]} is left; use fewer data.samples "
                        f"or data.clients, or another data.split.share (got {self.share})"
                    )
            needy = [i for i in needy if len(rows[i]) < wanted[i] and (exact or any(pools[c] for c in allowed[i]))]
