"""A split of one's own in a file outside the package: `floco run -s data.split=power_law:PowerLaw`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from floco.core import FlocoError, setting, stream
from floco.data.split import Split, Table


@dataclass(frozen=True)
class PowerLaw(Split):
    """Client k of K gets a share of the samples proportional to k^-power, at random: few large clients, many small."""

    name: ClassVar[str] = "power-law"
    power: float = setting(1.0, "how fast sizes fall; 0: all equal", low=0)

    def assign(self, table: Table, *, clients: int | None, samples: int | None, seed: int) -> dict[str, np.ndarray]:
        """Return the rows (n_k,) of each client by its id."""
        if clients is None:
            raise FlocoError("data.clients must say how many clients the split power-law is for")
        rows = torch.randperm(len(table.labels), generator=stream(seed, "power-law")).numpy()
        shares = np.arange(1, clients + 1) ** -self.power
        ends = (len(rows) * np.cumsum(shares) / shares.sum()).astype(int)
        return {f"client-{k}": part for k, part in enumerate(np.split(rows, ends[:-1]))}
