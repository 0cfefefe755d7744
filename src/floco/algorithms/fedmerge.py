"""Several models on the server, merged for each client with weights of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from floco.algorithms.fedavg import FedAvg
from floco.algorithms.several import start_models
from floco.core.algorithm import Algorithm, weighted_mean
from floco.core.network import Network
from floco.core.settings import setting
from floco.core.values import Facts, Lazy, Message, Models, Phase, Purpose, ServerState, Tensors, Update, strip_prefix

LOGITS = "logits"
"""Name of a client's row of logits, (d,) float64, in the server's state; nobody is sent it."""
_PARAMETERS, _BUFFERS = "models/", "buffers/"  # stacks (d, ...) that the server keeps


@dataclass(frozen=True)
class FedMerge(Algorithm):
    """FedMerge (Chen, Zhou, Long, Jiang, Zhang, AAAI 2026, arXiv 2504.06768): d models, merged for each client.

    Client i gets and trains theta_i = sum_j s_ij Theta_j with s_i = softmax(a_i), a_i = 0 at first. With Delta_i =
    theta_i - w_i and sums over those who trained, Theta_j <- Theta_j - sum_i (n_i s_ij / sum_k n_k s_kj) Delta_i and
    a_ij <- a_ij - c g_ij, g_ij = n_i s_ij <Delta_i, Theta_j - theta_i>; c makes the largest step of a round `step`.
    Buffers of model j are averaged with the same weights. With d = 1 it is FedAvg.
    """

    name: ClassVar[str] = "fedmerge"
    global_model: ClassVar[str] = "none"
    personal_model: ClassVar[str] = "theta_i"
    tuned: ClassVar[Mapping[str, tuple[float, float]]] = {"step": (0.1, 1.0)}
    merged: int = setting(5, "d: number of models that are merged", low=1)
    step: float = setting(0.1, "largest change of a logit a_ij in a round (released code: 0.01, in 500 rounds)", low=0)

    def init(self, network: Network, *, seed: int) -> ServerState:
        """Return the models, the network first; what is shared is their mean."""
        stacks = start_models(network, self.merged, seed=seed, name=self.name, field="algorithm.merged")
        kept = {(_PARAMETERS if n in network.parameters else _BUFFERS) + n: t for n, t in stacks.items()}
        return self._with_mean(ServerState({**network.parameters, **network.buffers}, kept))

    def _with_mean(self, state: ServerState) -> ServerState:
        """Return the state with the model of clients that have no weights yet: the mean."""
        return replace(state, shared={**state.shared, **_merge(state, self._weights(state, None))})

    def _weights(self, state: ServerState, client: str | None) -> torch.Tensor:
        """Return a client's weights s_i, (d,) float64."""
        own = state.by_client.get(client, {}) if client is not None else {}
        return own.get(LOGITS, torch.zeros(self.merged, dtype=torch.float64)).softmax(dim=0)

    def message(self, state: ServerState, client: str, purpose: Purpose) -> Message:
        """Return the client's merged model."""
        shared = state.shared
        if client in state.by_client:
            shared = {**shared, **_merge(state, self._weights(state, client))}
        return replace(super().message(state, client, purpose), shared=shared, own={})

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return FedAvg's phase, on the merged model."""
        return FedAvg().phases(message, facts)

    def aggregate(self, state: ServerState, updates: Sequence[Update], *, clients: Mapping[str, int]) -> ServerState:
        """Return the state with the models and the clients' weights moved."""
        trained = [u for u in updates if u.purpose == "train"]
        s = torch.stack([self._weights(state, u.client) for u in trained])  # (K, d)
        weights = s * torch.tensor([[u.weight] for u in trained])
        weights = weights.clamp_min(torch.finfo(torch.float64).tiny)  # models that nobody uses follow all alike
        means = [weighted_mean(trained, column) for column in weights.T.tolist()]
        away = (weights / weights.sum(dim=0)).T @ s  # (d, d): the share of model l in what model j follows
        away = away.sum(dim=1).diag() - away  # 0 with one model, to the bit
        kept = dict(state.kept)
        for key, stack in state.kept.items():
            name = key.removeprefix(_PARAMETERS).removeprefix(_BUFFERS)
            if name not in means[0]:  # a buffer that stays on the client
                continue
            moved = torch.stack([mean[name] for mean in means])
            if key.startswith(_PARAMETERS):  # the mean of w_i, plus Theta_j less the mean of theta_i
                moved = (moved + torch.einsum("jl,l...->j...", away, stack.double())).to(stack.dtype)
            kept[key] = moved
        counters = {name: t for name, t in means[0].items() if not t.is_floating_point()}
        after = replace(state, shared={**state.shared, **counters}, kept=kept, round=state.round + 1)
        return self._with_mean(replace(after, by_client=self._step(state, trained, weights)))

    def _step(self, state: ServerState, trained: Sequence[Update], weights: torch.Tensor) -> dict[str, Tensors]:
        """Return all clients' logits after a gradient step of those who trained; `weights` (K, d) are n_i s_ij."""
        if self.merged == 1:
            return {}
        stacks = strip_prefix(state.kept, _PARAMETERS)
        slopes = torch.zeros_like(weights)
        for row, update in zip(slopes, trained, strict=True):
            sent = _merge(state, self._weights(state, update.client))
            for name, stack in sorted(stacks.items()):  # in one order, also after a file was read
                delta = sent[name].double() - update.shared[name].double()
                row += (stack.double() - sent[name].double()).flatten(1) @ delta.flatten()
        slopes *= weights
        change = self.step * slopes / slopes.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        zero = {LOGITS: torch.zeros(self.merged, dtype=torch.float64)}
        moved = {
            u.client: {LOGITS: state.by_client.get(u.client, zero)[LOGITS] - own}
            for u, own in zip(trained, change, strict=True)
        }
        return {**state.by_client, **moved}

    def effective(self, shared: Lazy) -> Lazy:
        """Return nothing, as there is no global model, unless d = 1."""
        return shared if self.merged == 1 else {}

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return no global model, and the merged one."""
        return Models(None, tensors)


def _merge(state: ServerState, weights: torch.Tensor) -> Tensors:
    """Return the models' mean with weights (d,)."""
    stacks = {**strip_prefix(state.kept, _PARAMETERS), **strip_prefix(state.kept, _BUFFERS)}
    return {n: torch.einsum("d,d...->...", weights.to(t.dtype), t) for n, t in stacks.items()}
