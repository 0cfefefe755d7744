"""Several models, and each client trains the one that fits it best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from floco.algorithms.fedavg import FedAvg
from floco.algorithms.several import start_models
from floco.core.algorithm import Algorithm, OwnSamples, weighted_mean
from floco.core.errors import FlocoError
from floco.core.network import Network
from floco.core.settings import setting
from floco.core.values import Facts, Layout, Lazy, Message, Models, Phase, ServerState, Tensors, Training, Update

CHOICE = "at/choice"
"""Name of a client's choice, (K,): 1 at its model and 0 elsewhere; in working tensors and in `Update.extra`."""


@dataclass(frozen=True)
class IFCA(Algorithm):
    """IFCA (Ghosh, Chung, Yin, Ramchandran, NeurIPS 2020, model averaging): K models, one for each cluster of clients.

    A client gets all models, and trains w_k, k = argmin_j loss(w_j) on its training part (the first of equal ones). A
    model is averaged over those who chose it, and stays as it is if nobody did. Before an evaluation, a client chooses
    again. The other models start from other draws of the initialiser; integer buffers are common to all models. With
    K = 1 it is FedAvg.
    """

    name: ClassVar[str] = "ifca"
    global_model: ClassVar[str] = "none"
    personal_model: ClassVar[str] = "w_k of lowest loss on the client's training part"
    tuned: ClassVar[Mapping[str, tuple[float, float]]] = {"clusters": (4, 2)}
    clusters: int = setting(4, "K: number of models, each for a cluster of clients", low=1)

    def resolved(self, training: Training, layout: Layout | None = None) -> Self:
        """Refuse buffers that stay on the client: it would have those of the model that it trained last."""
        if layout is not None and layout.buffers and training.buffers == "local":
            raise FlocoError(
                f'ifca averages {layout.buffers[0]!r} of each model, and training.buffers = "local" keeps one on a '
                'client: set training.buffers = "average"'
            )
        return self

    def init(self, network: Network, *, seed: int) -> ServerState:
        """Return the models as stacks (K, ...), the network first.

        Raises:
            FlocoError: no initial value is random, so that all models would stay equal.
        """
        stacks = start_models(network, self.clusters, seed=seed, name=self.name, field="algorithm.clusters")
        return ServerState({**network.parameters, **network.buffers, **stacks})

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return the first model."""
        return self._model(message, 0)

    def examine(self, samples: OwnSamples, tensors: Tensors, message: Message, facts: Facts) -> Tensors:
        """Return the model of lowest loss."""
        if self.clusters == 1:
            return {}
        targets = samples.targets
        outputs = samples.outputs([self._model(message, k) for k in range(self.clusters)])
        losses = torch.stack([facts.task.loss(found, targets) for found in outputs])
        return self._model(message, int(losses.nan_to_num(nan=torch.inf).argmin()))

    def _model(self, message: Message, k: int) -> Tensors:
        """Return model k, and the choice of it."""
        model = {n: t[k] if t.is_floating_point() else t for n, t in message.shared.items()}
        return {**model, CHOICE: torch.eye(self.clusters)[k]}

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return FedAvg's phase, on the chosen model."""
        return FedAvg().phases(message, facts)

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return the trained model and its number to send."""
        update, kept = super().finish(tensors, message, client, facts)
        return replace(update, extra={CHOICE: tensors[CHOICE]} if self.clusters > 1 else {}), kept

    def aggregate(self, state: ServerState, updates: Sequence[Update], *, clients: Mapping[str, int]) -> ServerState:
        """Return the state with each model averaged over those who chose it."""
        trained: dict[int, list[Update]] = {}
        for update in (u for u in updates if u.purpose == "train"):
            trained.setdefault(int(update.extra[CHOICE].argmax()) if update.extra else 0, []).append(update)
        means = {k: weighted_mean(chosen) for k, chosen in trained.items()}
        shared = dict(next(iter(means.values())))  # integer buffers are those of the first update
        for name, stack in state.shared.items():
            if stack.is_floating_point():
                shared[name] = torch.stack([means[k][name] if k in means else t for k, t in enumerate(stack)])
        return replace(state, shared=shared, round=state.round + 1)

    def effective(self, shared: Lazy) -> Lazy:
        """Return nothing, as there is no global model, unless K = 1."""
        return shared if self.clusters == 1 else {}

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return no global model, and the chosen one."""
        return Models(None, tensors)
