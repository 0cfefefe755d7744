"""Federated averaging, whose predictions are mixed with those of the nearest training samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from floco.algorithms.fedavg import FedAvg
from floco.core.algorithm import Algorithm, OwnSamples
from floco.core.combined import Combined
from floco.core.errors import FlocoError
from floco.core.settings import setting
from floco.core.values import Facts, Layout, Message, Models, Phase, Tensors, Training
from floco.tasks.neighbours import Neighbours, choose_mixture
from floco.tasks.prior import add_prior

_FEATURES, _LABELS, _FITTED = "at/features", "at/labels", "at/fitted"  # (n, F), (n,), and lambda and s, (2,)


@dataclass(frozen=True)
class KNNPer(Algorithm):
    """kNN-Per (Marfoq, Neglia, Kameni, Vidal, ICML 2022): FedAvg; a client predicts lambda p_knn + (1 - lambda) p_w.

    p_knn(y | x) ~ sum exp(-d / s) over those of the k nearest training samples that have label y; d is the Euclidean
    distance of features, the inputs of the last linear layer. In each evaluation a client chooses lambda (of 0, 0.1,
    ..., 1) and s (of multiples of the mean distance) by the lowest loss on its training part, each sample predicted
    without itself as a neighbour. Nothing of it is sent. With lambda = 0 it is FedAvg.
    """

    name: ClassVar[str] = "knn-per"
    personal_model: ClassVar[str] = "lambda p_knn + (1 - lambda) p_w"
    tuned: ClassVar[Mapping[str, tuple[float, float]]] = {"weight": (0.5, 0.3)}
    distributions: ClassVar[bool] = True
    neighbours: int = setting(10, "k: number of nearest training samples", low=1)
    weight: float | None = setting(
        None, "lambda: weight of the neighbours (empty: each client's choice on its training part)", low=0, high=1
    )

    def resolved(self, training: Training, layout: Layout | None = None) -> Self:
        """Check that there are features."""
        if layout is not None and not layout.head:
            raise FlocoError("knn-per needs a trained nn.Linear that gives the logits: its inputs are the features")
        return self

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return FedAvg's phase."""
        return FedAvg().phases(message, facts)

    def examine(self, samples: OwnSamples, tensors: Tensors, message: Message, facts: Facts) -> Tensors:
        """Return, in an evaluation, features and labels of the training part, and the choice of lambda and s."""
        if message.purpose != "evaluate" or self.weight == 0 or facts.n_train < 2:
            return {}
        every = samples.whole()
        logits, labels = add_prior(every.outputs([tensors])[0], every.targets)
        features = every.features(tensors)
        fitted = choose_mixture(features, labels, logits, self.neighbours, self.weight)
        return {_FEATURES: features, _LABELS: labels, _FITTED: torch.tensor(fitted, dtype=torch.float64)}

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return w, and w with its neighbours."""
        weight, scale = tensors[_FITTED].tolist() if _FITTED in tensors else (0.0, 1.0)
        if weight == 0:
            return Models(tensors, tensors)
        near = Neighbours(tensors[_FEATURES], tensors[_LABELS], self.neighbours, weight, scale)
        return Models(tensors, Combined((tensors,), near, features=True))
