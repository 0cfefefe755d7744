"""Groups of samples by which metrics are also shown, such as sex, age band or device."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from floco.core.errors import FlocoError
from floco.data.cells import is_missing, to_text

_MOST = 50
MISSING = "(missing)"
"""The group of samples without a value."""


class Groups(NamedTuple):
    """The group of each sample."""

    column: str
    """The column of the source that holds them."""
    names: tuple[str, ...]
    """Their names, sorted."""
    numbers: torch.Tensor
    """(N,) int64: the position of each sample's group in `names`."""


def read_groups(values: Any, name: str) -> Groups:
    """Return the groups that a column (N,) called `name` holds: text, or numbers that are few.

    Raises:
        FlocoError: more than 50 different values.
    """
    texts = np.array([MISSING if is_missing(v) else to_text(v).strip() for v in np.asarray(values).tolist()])
    names, numbers = np.unique(texts, return_inverse=True)
    if len(names) > _MOST:
        raise FlocoError(
            f"data.group: the column {name} must hold {_MOST} groups at most, and holds {len(names)} different values "
            f"({', '.join(names[:3].tolist())}, ...): make bands of it"
        )
    return Groups(name, tuple(names.tolist()), torch.from_numpy(numbers.reshape(-1).astype(np.int64)))
