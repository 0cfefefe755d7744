"""Several models, and for each client a mixture of what they predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch

from floco.algorithms.several import start_models
from floco.core.algorithm import Algorithm, OwnSamples
from floco.core.combined import Combined
from floco.core.network import Network
from floco.core.settings import setting
from floco.core.values import (
    Batch,
    Facts,
    Lazy,
    Loss,
    Message,
    Models,
    Phase,
    Predict,
    ServerState,
    Step,
    Tensors,
    Update,
    strip_prefix,
)
from floco.tasks.classification import Classification
from floco.tasks.mixture import MeanPrediction, sample_losses, weighted_loss

SHARES = "at/shares"
"""Name of a client's pi_k, (M,) float64, among working tensors and in its memory."""
RESPONSIBILITIES = "at/responsibilities"
"""Name of q, (n_train, M), in the order of the client's training part."""


@dataclass(frozen=True)
class FedEM(Algorithm):
    """FedEM (Marfoq, Neglia, Bellet, Kameni, Vidal, NeurIPS 2021): M learners, mixed by each client with weights pi_k.

    Before it trains, a client gives each sample s of its training part to the learners as they came:
    q_s(m) ~ pi_km exp(-loss_m(s)), then pi_km = mean_s q_s(m), which it keeps. Learner m trains on the mean of
    q_s(m) loss_m(s), and is averaged by samples. A client predicts sum_m pi_km p_m(y | x): a mean of probabilities. One
    that has never trained finds pi_k in an evaluation, from 1/M. With M = 1 it is FedAvg.
    """

    name: ClassVar[str] = "fedem"
    global_model: ClassVar[str] = "none"
    personal_model: ClassVar[str] = "sum_m pi_km p_m"
    tuned: ClassVar[Mapping[str, tuple[float, float]]] = {"learners": (3, 2)}
    distributions: ClassVar[bool] = True
    learners: int = setting(3, "M: number of learners", low=1)

    def init(self, network: Network, *, seed: int) -> ServerState:
        """Return the learners as stacks (M, ...), the network first."""
        stacks = start_models(network, self.learners, seed=seed, name=self.name, field="algorithm.learners")
        return ServerState({**network.parameters, **network.buffers, **stacks})

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return the learners' tensors under `0/`, `1/`, ..., and pi_k, at first 1/M."""
        each = [
            {f"{m}/{n}": t[m] if t.is_floating_point() else t for n, t in message.shared.items()}
            for m in range(self.learners)
        ]
        shares = torch.full((self.learners,), 1 / self.learners, dtype=torch.float64)
        return {**{n: t for one in each for n, t in one.items()}, SHARES: memory.get(SHARES, shares)}

    def examine(self, samples: OwnSamples, tensors: Tensors, message: Message, facts: Facts) -> Tensors:
        """Return q, and the new pi_k; in an evaluation of a client that has trained, nothing."""
        before = tensors[SHARES]
        known = message.purpose == "evaluate" and not before.eq(1 / self.learners).all()
        if self.learners == 1 or known:
            return {}
        every = samples.whole()
        outputs = every.outputs([self._learner(tensors, m) for m in range(self.learners)])
        losses = torch.stack([sample_losses(z.double(), every.targets) for z in outputs])  # (M, n)
        q = (before.log()[:, None] - losses.nan_to_num(nan=torch.inf)).softmax(dim=0).T
        return {RESPONSIBILITIES: q.float(), SHARES: q.mean(dim=0)}

    def _learner(self, tensors: Tensors, m: int) -> Tensors:
        return strip_prefix(tensors, f"{m}/")

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return one phase, in which all learners move in each step."""
        moves = tuple(f"{m}/{n}" for m in range(self.learners) for n in facts.layout.parameters)
        return (Phase("shared", (Step(self._loss(cast(Classification, facts.task)), moves),)),)

    def _loss(self, task: Classification) -> Loss:
        """Return the sum over learners, so that the gradient of each is that of its own loss."""

        def loss(predict: Predict, tensors: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
            outputs = [predict(self._learner(tensors, m), batch.x) for m in range(self.learners)]
            if len(outputs) == 1:  # q is 1
                return task.loss(outputs[0], batch.y)
            assert batch.at is not None
            q = tensors[RESPONSIBILITIES][batch.at]  # (B, M)
            return torch.stack([weighted_loss(task, z, batch.y, q[:, m]) for m, z in enumerate(outputs)]).sum()

        return loss

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return the learners to send, and pi_k to keep."""
        sent = {}
        for name, t in message.shared.items():
            each = [tensors[f"{m}/{name}"] for m in range(self.learners)]
            sent[name] = torch.stack(each) if t.is_floating_point() else each[0]
        return Update(client, message.purpose, facts.n_train, sent), {SHARES: tensors[SHARES]}

    def effective(self, shared: Lazy) -> Lazy:
        """Return nothing, as there is no global model, unless M = 1."""
        return shared if self.learners == 1 else {}

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return no global model, and the mixture."""
        learners = tuple(self._learner(tensors, m) for m in range(self.learners))
        if self.learners == 1:
            return Models(None, learners[0])
        return Models(None, Combined(learners, MeanPrediction(tuple(tensors[SHARES].tolist()))))
