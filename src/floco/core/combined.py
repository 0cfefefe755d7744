"""A model that is several networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch


@dataclass(frozen=True)
class Combined:
    """A personal model whose outputs are made from those of several networks, e.g. the log of a mean of probabilities.

    It can be evaluated and predict, but it is no one network that could be exported.
    """

    networks: tuple[dict[str, torch.Tensor], ...]
    """Parameters and buffers of each; those that they share are best the same objects."""
    combine: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    """The model's outputs (n, ...), from those of each network for the same n samples."""
    features: bool = False
    """Whether `combine` gets the inputs (n, F) of the first network's head as well, as the last in the list."""

    def each(self, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Self:
        """Return the model with all networks changed."""
        return replace(self, networks=tuple(map(change, self.networks)))
