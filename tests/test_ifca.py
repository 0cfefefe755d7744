"""IFCA: the choice of a client, the average over those who chose a model, and FedAvg with one model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from conftest import UNEQUAL, blobs, make, same, small_net, train
from floco.algorithms import IFCA, FedAvg
from floco.algorithms.ifca import CHOICE
from floco.client.round import models
from floco.client.setup import Setup
from floco.core.algorithm import Algorithm
from floco.core.errors import FlocoError
from floco.core.network import build_network
from floco.core.task import Task
from floco.core.values import ServerState, Update
from floco.engines.jobs import Job, perform
from floco.tasks import Classification, Regression

TASKS = [Classification(), Classification(prior="client"), Regression()]


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 1, 5)), nn.Conv2d(1, 8, (1, 3)), nn.Flatten(), nn.Linear(24, 3))


def choice(setup: Setup, state: ServerState, client: str) -> tuple[int, Update]:
    result = perform(setup, Job(client, "train", setup.algorithm.message(state, client, "train")))
    assert result.failure is None, result.trace
    assert result.update is not None
    return int(result.update.extra[CHOICE].argmax()), result.update


@pytest.mark.parametrize("model", [small_net, batch_norm, convolution], ids=lambda m: m.__name__)
@pytest.mark.parametrize("task", TASKS[:2], ids=["plain", "prior"])
def test_with_one_model_it_is_fedavg_to_the_bit(task: Task, model: Any) -> None:
    def run(algorithm: Algorithm) -> Any:
        return train(make(algorithm, federation=replace(blobs(sizes=UNEQUAL), task=task), model=model, fraction=0.3))

    for a, b in zip(run(IFCA(clusters=1)), run(FedAvg()), strict=True):
        assert same({n: t.reshape(b.state.shared[n].shape) for n, t in a.state.shared.items()}, b.state.shared)
        there = {k: v for k, v in a.evaluation.history.items() if "_global" not in k}
        assert there == {k: b.evaluation.history[k] for k in there}  # also bytes and update variance


@pytest.mark.parametrize("task", TASKS, ids=["plain", "prior", "regression"])
def test_a_client_trains_the_model_of_least_loss_on_its_training_part_as_fedavg_would(task: Task) -> None:
    federation = blobs(sizes=UNEQUAL)
    if isinstance(task, Regression):
        federation = replace(federation, y=federation.x[:, :3] * (federation.y[:, None] - 1), names=())
    federation = replace(federation, task=task)
    setup = make(IFCA(clusters=4), federation=federation)
    state, chosen = train(setup)[1].state, []
    for client in federation.clients:
        losses = []
        for k in range(4):
            tensors = {n: t[k] for n, t in state.shared.items()}
            outputs = functional_call(small_net(), tensors, (federation.inputs(client.train),))
            losses.append(float(task.loss(outputs, setup.training_targets(client.id, client.train))))
        k, update = choice(setup, state, client.id)
        assert k == min(range(4), key=lambda j: losses[j])  # noqa: B023
        chosen.append(k)
        model = replace(state, shared={n: t[k] for n, t in state.shared.items()})
        plain = make(FedAvg(), federation=federation)
        alone = perform(plain, Job(client.id, "train", plain.algorithm.message(model, client.id, "train"))).update
        assert alone is not None
        assert same(update.shared, alone.shared)
        mine = models(setup, client.id, setup.algorithm.message(state, client.id, "evaluate"), None)
        assert mine.global_ is None
        assert mine.personal is not None
        assert torch.equal(mine.personal["0.weight"], state.shared["0.weight"][k])
    assert len(set(chosen)) > 1  # they do not all choose the same


def test_of_equal_models_the_first_is_chosen_and_one_that_diverged_never_is() -> None:
    setup = make(IFCA(clusters=3))
    start = setup.algorithm.init(setup.network, seed=0)
    same_ones = replace(start, shared={n: t[:1].expand_as(t) for n, t in start.shared.items()})
    assert choice(setup, same_ones, "north")[0] == 0
    broken = replace(same_ones, shared={n: t.clone() for n, t in same_ones.shared.items()})
    broken.shared["2.bias"][0] = torch.nan
    assert choice(setup, broken, "north")[0] == 1


def test_a_model_is_averaged_over_those_who_chose_it_and_else_stays() -> None:
    g = torch.Generator().manual_seed(0)
    before = {"w": torch.randn(3, 4, generator=g), "count": torch.tensor(7)}
    sent, chosen, n = torch.randn(4, 4, generator=g), [2, 0, 2, 1], [10, 20, 30, 5]
    updates = [
        Update(str(i), "probe" if i == 3 else "train", n[i], {"w": sent[i], "count": torch.tensor(8 + i)}, {})
        for i in range(4)
    ]
    updates = [replace(u, extra={CHOICE: torch.eye(3)[k]}) for u, k in zip(updates, chosen, strict=True)]
    after = IFCA(clusters=3).aggregate(ServerState(before, round=4), updates, clients={})
    expected = torch.stack([sent[1], before["w"][1], (10 * sent[0] + 30 * sent[2]) / 40])
    assert torch.allclose(after.shared["w"], expected)
    assert after.shared["count"] == 8
    assert after.round == 5


def test_only_the_chosen_model_is_sent_back() -> None:
    plain, ours = (train(make(a, rounds=1))[0].evaluation.history for a in (FedAvg(), IFCA(clusters=3)))
    assert ours["bytes_down"] == 3 * plain["bytes_down"]
    assert ours["bytes_up"] == plain["bytes_up"] + 3 * 3 * 4  # three clients, a choice of three numbers


@pytest.mark.parametrize("model", [small_net, small_net()], ids=["factory", "module"])
def test_models_start_from_draws_of_their_own_and_the_first_is_the_network(model: Any) -> None:
    setup = make(IFCA(clusters=3), model=model)
    start = setup.algorithm.init(setup.network, seed=0).shared
    assert same({n: t[0] for n, t in start.items()}, setup.network.parameters)
    for t in start.values():
        assert not any(torch.equal(t[i], t[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert not torch.equal(start["0.weight"][1], setup.algorithm.init(setup.network, seed=1).shared["0.weight"][1])


class Fixed(nn.Linear):
    """A layer without random initial values."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def test_models_that_would_stay_equal_are_refused() -> None:
    net = build_network(small_net, seed=0, weights=small_net().state_dict())
    for network in (net, build_network(lambda: Fixed(5, 3), seed=0)):
        with pytest.raises(FlocoError, match=r"start from different values.*algorithm\.clusters = 1"):
            IFCA().init(network, seed=0)
        assert IFCA(clusters=1).init(network, seed=0).shared


def test_statistics_that_stay_on_a_client_are_refused_and_others_belong_to_a_model() -> None:
    with pytest.raises(FlocoError, match=r"ifca averages '1\.running_mean' of each.*training\.buffers = \"average\""):
        make(IFCA(), model=batch_norm, buffers="local")
    assert make(IFCA(), buffers="local")  # there are none
    shared = train(make(IFCA(clusters=2), model=batch_norm, fraction=1.0))[-1].state.shared
    assert shared["1.running_mean"].shape == (2, 6)
    assert shared["1.num_batches_tracked"].shape == ()


def test_clients_whose_labels_are_confused_alike_find_each_other() -> None:
    whole = blobs(sizes=(44,) * 8)
    y = whole.y.clone()
    for client in whole.clients[::2]:  # every second client calls class c by the number c + 1
        mine = torch.cat([client.train, client.test])
        y[mine] = (y[mine] + 1) % 3
    federation = replace(whole, y=y)
    options: dict[str, Any] = {"federation": federation, "fraction": 1.0, "seed": 2}  # not from all initial models
    ours, plain = (train(make(a, **options)) for a in (IFCA(clusters=2), FedAvg()))
    setup = make(IFCA(clusters=2), **options)
    chosen = [choice(setup, ours[-1].state, c.id)[0] for c in federation.clients]
    assert chosen[::2] == 4 * [chosen[0]]
    assert chosen[1::2] == 4 * [1 - chosen[0]]
    losses = [p[-1].evaluation.history["loss_personal"] for p in (ours, plain)]
    assert losses[0] < 0.2 * losses[1]
