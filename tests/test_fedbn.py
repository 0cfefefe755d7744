"""FedBN: which layers stay on a client, what is averaged, and FedAvg where nothing stays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import floco
from conftest import UNEQUAL, blobs, layer_normed, make, same, small_net, train
from floco.algorithms import FedAvg, FedBN
from floco.client.round import models
from floco.core.errors import FlocoError
from floco.core.network import build_network
from floco.deliver.network import read_graph, write_graph
from floco.engines.engine import start_engine


def batch_normed() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3))


def frozen() -> nn.Module:
    net = batch_normed()
    net[1].weight.requires_grad_(False)
    return net


def within(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(6, 3))


AFFINE, STATISTICS = ["1.weight", "1.bias"], ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
KINDS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "batch norm": (batch_normed, AFFINE + STATISTICS),
    "without weights": (lambda: within(nn.BatchNorm1d(6, affine=False)), STATISTICS),
    "without statistics": (lambda: within(nn.BatchNorm1d(6, track_running_stats=False)), AFFINE),
    "frozen scale": (frozen, ["1.bias", *STATISTICS]),
    "synchronised": (lambda: within(nn.SyncBatchNorm(6)), AFFINE + STATISTICS),
    "instance norm": (lambda: within(nn.InstanceNorm1d(6, affine=True)), AFFINE),
    "group norm": (lambda: within(nn.GroupNorm(2, 6)), AFFINE),
    "layer norm": (lambda: within(nn.LayerNorm(6)), AFFINE),
    "rms norm": (lambda: within(nn.RMSNorm(6)), AFFINE[:1]),
    "inside a module": (
        lambda: nn.Sequential(nn.Sequential(nn.BatchNorm2d(4)), nn.Linear(6, 3)),
        [n.replace("1.", "0.0.", 1) for n in AFFINE + STATISTICS],
    ),
    "none": (lambda: within(nn.Dropout()), []),
}


@pytest.mark.parametrize(("model", "names"), KINDS.values(), ids=KINDS)
def test_the_layout_knows_the_tensors_of_normalisation_layers(model: Any, names: list[str]) -> None:
    assert list(build_network(model, seed=0).layout.norms) == names


def test_a_graph_of_the_network_knows_them_as_well() -> None:
    setup = make(FedBN(), model=batch_normed)
    assert read_graph(write_graph(setup.network, setup.federation)).layout == setup.network.layout


@pytest.mark.parametrize("options", [{}, {"federation": blobs(sizes=UNEQUAL), "fraction": 0.3}], ids=["six", "unequal"])
@pytest.mark.filterwarnings("default:fedbn keeps")
def test_without_such_layers_it_is_fedavg_to_the_bit_and_warns(options: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="fedbn keeps normalisation layers.*the model has none.*FedAvg's"):
        ours = train(make(FedBN(), model=small_net, **options))
    for a, b in zip(ours, train(make(FedAvg(), **options)), strict=True):
        assert same(a.state.shared, b.state.shared)
        there = {k: v for k, v in a.evaluation.history.items() if "_global" not in k}
        assert there == {k: b.evaluation.history[k] for k in there}


def test_a_federation_of_one_client_is_fedavg_to_the_bit() -> None:
    one, options = blobs(ids=("north",)), {"model": batch_normed, "fraction": 1.0}
    for a, b in zip(
        train(make(FedBN(), federation=one, **options)), train(make(FedAvg(), federation=one, **options)), strict=True
    ):
        assert same({**a.state.shared, **a.memories.get("north")}, b.state.shared)


def test_a_model_of_normalisation_layers_alone_is_refused() -> None:
    with pytest.raises(FlocoError, match="fedbn needs trained layers that are no normalisation layers"):
        make(FedBN(), model=lambda: nn.Sequential(nn.BatchNorm1d(5)))


@pytest.mark.parametrize("model", [batch_normed, layer_normed], ids=lambda m: m.__name__)
def test_two_rounds_are_those_written_out_by_hand(model: Callable[[], nn.Module]) -> None:
    """One batch a round: each client's normalisation goes on from where it was, all else from the mean by samples."""
    setup = make(
        FedBN(), model=model, rounds=2, fraction=1.0, epochs=1, batch_size=1000, momentum=0, weight_decay=0, lr=0.1
    )
    start, clients = {**setup.network.parameters, **setup.network.buffers}, setup.federation.clients
    nets = {c.id: model() for c in clients}
    for net in nets.values():
        net.load_state_dict(start)
    n = {c.id: len(c.train) for c in clients}
    for _ in range(2):
        for client in clients:
            net = nets[client.id].train()
            loss = cross_entropy(net(setup.federation.inputs(client.train)), setup.federation.y[client.train])
            for p, g in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters())), strict=True):
                p.data -= 0.1 * g
        for name in (m for m in start if not m.startswith("1.")):
            mean = sum(n[c] * net.state_dict()[name].double() for c, net in nets.items()) / sum(n.values())
            for net in nets.values():
                net.state_dict()[name].copy_(mean)
    last = train(setup)[-1]
    for client, net in nets.items():
        expected, kept = net.state_dict(), last.memories.get(client)
        assert set(kept) == {m for m in start if m.startswith("1.")}
        found = {**last.state.shared, **kept}
        assert all(torch.allclose(found[m], t, atol=1e-5) for m, t in expected.items())


def test_they_are_never_sent_and_a_client_that_has_not_trained_has_their_initial_values() -> None:
    setup = make(FedBN(), model=batch_normed, rounds=1, fraction=0.3)
    start, last = setup.network.buffers, train(setup)[-1]
    assert set(last.state.shared) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    new = next(c for c in setup.clients if c not in last.memories)
    both = models(setup, new, setup.algorithm.message(last.state, new, "evaluate"), None)
    assert both.global_ is None
    assert torch.equal(both.personal["1.running_mean"], start["1.running_mean"])
    assert torch.equal(both.personal["0.weight"], last.state.shared["0.weight"])
    for mine in last.memories.values():
        assert not torch.equal(mine["1.running_mean"], start["1.running_mean"])


@pytest.mark.parametrize(("model", "kind"), [(batch_normed, "processes"), (layer_normed, "cohort")])
def test_engines_agree(model: Any, kind: str) -> None:
    setup = make(FedBN(), model=model, rounds=3)
    running = start_engine(setup, kind, 2 if kind == "processes" else 1)
    try:
        alone, found = train(setup)[-1], train(setup, running)[-1]
    finally:
        running.close()
    assert set(alone.memories) == set(found.memories)
    pairs = [(alone.state.shared, found.state.shared), *((m, found.memories[c]) for c, m in alone.memories.items())]
    for a, b in pairs:
        assert same(a, b) if kind == "processes" else all(torch.allclose(a[m], b[m], atol=1e-5) for m in a)


def test_a_client_takes_home_its_own_statistics(tmp_path: Path) -> None:
    run = floco.fit(batch_normed, blobs(), FedBN(), rounds=3, fraction=1.0, evaluate_every=3, engine="serial")
    north, south = run.personal("north"), run.personal("south")
    assert torch.equal(north[0].weight, south[0].weight)
    assert not torch.equal(north[1].running_mean, south[1].running_mean)
    with pytest.raises(FlocoError, match="there is no global model: algorithm fedbn has none"):
        run.export(tmp_path, [None])
