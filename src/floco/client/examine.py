"""A client's training part as a method may examine it before it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from floco.client.mixtures import Mixtures
from floco.client.predict import compute_features, compute_outputs_of_each
from floco.client.setup import Setup
from floco.core.inputs import rows
from floco.core.mixing import Mixing
from floco.core.values import Tensors

_MOST = 512  # samples that are examined: what is found from them are a few numbers
_LEAST, _NUMBERS = 16, 2**22  # as many outputs are in memory for each model, if that leaves 16 samples


@dataclass(frozen=True)
class TrainingPart:
    """At most 512 samples of a client's training part, evenly spaced, fewer with large outputs; read when asked for."""

    setup: Setup
    client: str
    every: bool = False
    """Whether it is all samples, however many."""

    def whole(self) -> TrainingPart:
        """Return all samples."""
        return replace(self, every=True)

    @cached_property
    def _here(self) -> Setup:
        federation = self.setup.federation.with_samples(f'examining the training part of client "{self.client}"')
        return self.setup if federation is self.setup.federation else replace(self.setup, federation=federation)

    @cached_property
    def _samples(self) -> torch.Tensor:
        train = self._here.divide(self.client)[0]
        if self.every:
            return train
        n = min(_MOST, len(train), max(_LEAST, _NUMBERS // self._here.output_size))
        return train[torch.arange(n) * len(train) // n]

    @property
    def targets(self) -> torch.Tensor:
        """(n, ...), as the client's loss takes them."""
        return self._here.training_targets(self.client, self._samples)

    def outputs(self, models: Sequence[Tensors]) -> torch.Tensor:
        """Return the outputs (K, n, ...) of K models (network tensors), in evaluation mode."""
        return torch.stack(compute_outputs_of_each(self._here, models, rows(self._here.federation.x, self._samples)))

    def mixtures(self, mixing: Mixing, simplex: Tensors) -> Mixtures:
        """Return the models of a simplex (network tensors, the mixed ones hold endpoints) on the samples."""
        return Mixtures(self._here, mixing, simplex, rows(self._here.federation.x, self._samples))

    def features(self, model: Tensors) -> torch.Tensor:
        """Return the inputs (n, F) of a model's head, in evaluation mode."""
        return compute_features(self._here, model, rows(self._here.federation.x, self._samples))
