"""FedMerge: what a client is sent, how models and weights move, and FedAvg with one model."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from conftest import UNEQUAL, batch_norm, blobs, convolution, make, same, small_net, train
from floco.algorithms import FedAvg, FedMerge
from floco.algorithms.fedmerge import LOGITS
from floco.client.round import models
from floco.client.setup import Setup
from floco.core.errors import FlocoError
from floco.core.network import build_network
from floco.core.values import ServerState, Tensors, Update
from floco.engines.engine import start_engine
from floco.tasks import Classification


@pytest.mark.parametrize("model", [small_net, batch_norm, convolution], ids=lambda m: m.__name__)
@pytest.mark.parametrize("prior", ["none", "client"])
def test_with_one_model_it_is_fedavg_to_the_bit(model: Any, prior: str) -> None:
    federation = replace(blobs(sizes=UNEQUAL), task=Classification(prior=prior))
    ours, plain = (train(make(m, federation=federation, model=model, fraction=0.3)) for m in (FedMerge(1), FedAvg()))
    for a, b in zip(ours, plain, strict=True):
        assert same(a.state.shared, b.state.shared)
        assert not a.state.by_client
        there = {k: v for k, v in a.evaluation.history.items() if "_global" not in k}
        assert there == {k: b.evaluation.history[k] for k in there}  # also bytes and update variance


def stacks(state: ServerState) -> Tensors:
    return {n.removeprefix("models/"): t for n, t in state.kept.items() if n.startswith("models/")}


def test_a_round_is_the_formula_written_out() -> None:
    """Three models, of two tensors; four clients of unequal size, two of which have weights of their own already."""
    g, n, step = torch.Generator().manual_seed(0), [10, 20, 5, 40], 0.3
    theta = {"w": torch.randn(3, 4, 2, generator=g).double(), "b": torch.randn(3, 2, generator=g).double()}
    logits = torch.cat([torch.randn(2, 3, generator=g).double(), torch.zeros(2, 3).double()]).requires_grad_()
    s = logits.softmax(1)
    sent = {name: torch.einsum("kd,d...->k...", s, t) for name, t in theta.items()}
    delta = {name: torch.randn(t.shape, generator=g).double() for name, t in sent.items()}
    objective = sum((n[i] * delta[m][i] * sent[m][i]).sum() for m in theta for i in range(4))
    (slopes,) = torch.autograd.grad(objective, [logits])  # Delta_i stands for the gradient of the loss of client i

    state = ServerState(
        {}, {f"models/{m}": t for m, t in theta.items()}, {str(i): {LOGITS: logits[i].detach()} for i in range(2)}, 7
    )
    updates = [Update(str(i), "train", n[i], {m: (sent[m][i] - delta[m][i]).detach() for m in theta}) for i in range(4)]
    updates += [Update("4", "probe", 1000, {m: t[0] for m, t in theta.items()})]
    after = FedMerge(3, step=step).aggregate(state, updates, clients={})

    assert after.round == 8
    for j in range(3):
        share = torch.tensor(n) * s[:, j] / (torch.tensor(n) * s[:, j]).sum()
        for m, t in theta.items():
            expected = t[j] - torch.einsum("k,k...->...", share, delta[m])
            assert torch.allclose(after.kept[f"models/{m}"][j], expected)
    assert set(after.by_client) == {"0", "1", "2", "3"}
    for i in range(4):
        assert torch.allclose(after.by_client[str(i)][LOGITS], (logits - step * slopes / slopes.abs().max())[i])
    assert torch.allclose(after.shared["w"], after.kept["models/w"].mean(0))


def test_a_client_is_sent_one_model_merged_with_its_weights_and_not_the_weights() -> None:
    setup = make(FedMerge(3, step=1.0))
    rows = [p.evaluation.history for p in train(setup)]
    plain = [p.evaluation.history for p in train(make(FedAvg()))]
    for column in ("bytes_down", "bytes_up", "steps"):
        assert [r[column] for r in rows] == [r[column] for r in plain]
    state = train(setup)[-1].state
    for client in setup.clients:
        message = setup.algorithm.message(state, client, "train")
        own = state.by_client.get(client, {LOGITS: torch.zeros(3).double()})[LOGITS].softmax(0).float()
        assert not message.own
        for name, stack in stacks(state).items():
            assert torch.allclose(message.shared[name], torch.einsum("d,d...->...", own, stack), atol=1e-6)
    assert len({tuple(own[LOGITS].tolist()) for own in state.by_client.values()}) == len(state.by_client) > 3


def test_a_client_that_has_not_trained_has_the_mean_of_the_models() -> None:
    setup = make(FedMerge(3), rounds=1, fraction=0.3)
    last = train(setup)[-1]
    new = next(c for c in setup.clients if not last.participated.get(c))
    both = models(setup, new, setup.algorithm.message(last.state, new, "evaluate"), None)
    assert both.global_ is None
    assert all(torch.equal(both.personal[n], last.state.shared[n]) for n in setup.network.layout.names)
    assert torch.allclose(both.personal["0.weight"], stacks(last.state)["0.weight"].mean(0), atol=1e-6)


def test_models_start_from_draws_of_their_own_and_equal_ones_are_refused() -> None:
    setup = make(FedMerge(3))
    start = stacks(setup.algorithm.init(setup.network, seed=0))
    assert same({n: t[0] for n, t in start.items()}, setup.network.parameters)
    assert not any(torch.equal(t[i], t[j]) for t in start.values() for i, j in ((0, 1), (0, 2), (1, 2)))
    loaded = build_network(small_net, seed=0, weights=small_net().state_dict())
    with pytest.raises(FlocoError, match=r"fedmerge needs models.*algorithm\.merged = 1"):
        FedMerge().init(loaded, seed=0)


@pytest.mark.parametrize("buffers", ["average", "local"])
def test_variances_stay_positive_and_counters_are_common(buffers: str) -> None:
    last = train(make(FedMerge(3, step=2.0), model=batch_norm, buffers=buffers))[-1]
    state = last.state
    assert state.kept["buffers/1.running_var"].shape == (3, 6)
    assert bool((state.kept["buffers/1.running_var"] > 0).all())
    if buffers == "average":
        assert state.shared["1.num_batches_tracked"] > 0
    assert not last.failures
    assert last.evaluation.history["loss_personal"] < 1


def test_a_model_that_nobody_uses_does_not_break_the_others() -> None:
    state = FedMerge(2).init(build_network(small_net, seed=0), seed=0)
    only = replace(state, by_client={"a": {LOGITS: torch.tensor([0.0, -2e3]).double()}})
    shared = {n: t[0] for n, t in stacks(state).items()}
    after = FedMerge(2).aggregate(only, [Update("a", "train", 5, shared)], clients={})
    assert all(torch.isfinite(t).all() for t in (*after.kept.values(), after.by_client["a"][LOGITS]))


def ends(setup: Setup, kind: str) -> ServerState:
    running = start_engine(setup, kind, 2 if kind == "processes" else 1)
    try:
        return train(setup, running)[-1].state
    finally:
        running.close()


def test_engines_agree() -> None:
    setup = make(FedMerge(3))
    serial, processes, cohort = (ends(setup, kind) for kind in ("serial", "processes", "cohort"))
    assert same(serial.kept, processes.kept)
    assert all(same(own, processes.by_client[c]) for c, own in serial.by_client.items())
    assert all(torch.allclose(t, cohort.kept[n], atol=1e-5) for n, t in serial.kept.items())


def test_clients_whose_labels_are_confused_alike_get_like_weights() -> None:
    whole = blobs(sizes=(44,) * 8)
    y = whole.y.clone()
    for client in whole.clients[::2]:
        mine = torch.cat([client.train, client.test])
        y[mine] = (y[mine] + 1) % 3
    options: dict[str, Any] = {"federation": replace(whole, y=y), "fraction": 1.0, "rounds": 30}
    ours, plain = (train(make(m, **options))[-1] for m in (FedMerge(2, step=0.5), FedAvg()))
    first = [float(ours.state.by_client[c.id][LOGITS].softmax(0)[0]) for c in whole.clients]
    assert max(first[::2]) < min(first[1::2]) or max(first[1::2]) < min(first[::2])
    losses = [p.evaluation.history["loss_personal"] for p in (ours, plain)]
    assert losses[0] < 0.5 * losses[1]
