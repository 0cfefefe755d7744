"""The rule of each compared method, against the rule written out by hand, and its identities with FedAvg, to the bit.

By hand: one client whose batch is its whole training part, so that nothing depends on the order of samples.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from conftest import ANY_NETWORK, UNEQUAL, blobs, make, same, small_net, train
from floco.algorithms import (
    APFL,
    LPFT,
    SCAFFOLD,
    FedAvg,
    FedAvgFT,
    FedBABU,
    FedPer,
    FedProx,
    FedRep,
    FedRoD,
    LGFedAvg,
    Local,
    PFedMe,
    SuPerFed,
)
from floco.client.round import models
from floco.client.setup import Setup
from floco.core.algorithm import Algorithm
from floco.core.errors import FlocoError
from floco.core.random import derive, stream
from floco.core.values import PERSONAL, ServerState, Tensors, Update, strip_prefix
from floco.data.federation import Federation
from floco.engines.engine import Serial
from floco.engines.jobs import Job, perform
from floco.server import rounds as loop
from floco.server.progress import Plan, Progress

LR, MOMENTUM, DECAY = 0.1, 0.5, 0.01
BODY, HEAD = ("0.weight", "0.bias"), ("2.weight", "2.bias")


def alone(algorithm: Algorithm, **training: Any) -> Setup:
    """One client, one batch an epoch, two epochs."""
    return make(
        algorithm,
        federation=blobs(ids=("a",)),
        **{"fraction": 1.0, "batch_size": 1000, "momentum": MOMENTUM, "weight_decay": DECAY, **training},
    )


def data(setup: Setup) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = setup.federation.client("a").train
    return setup.federation.inputs(chosen), setup.federation.y[chosen]


def net(tensors: Tensors, x: torch.Tensor) -> torch.Tensor:
    return functional_call(small_net(), tensors, (x,))


def gradient(loss: Callable[[Tensors], torch.Tensor], at: Tensors) -> Tensors:
    leaves = {n: t.detach().clone().requires_grad_() for n, t in at.items()}
    return dict(
        zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values()), materialize_grads=True), strict=True)
    )


class SGD:
    """v <- momentum v + g + decay w; w <- w - lr v."""

    def __init__(self, momentum: float = MOMENTUM, decay: float = DECAY) -> None:
        self.momentum, self.decay, self.velocity = momentum, decay, {}

    def step(self, at: Tensors, g: Tensors) -> Tensors:
        self.velocity = {n: self.momentum * self.velocity.get(n, 0) + g[n] + self.decay * at[n] for n in at}
        return {n: at[n] - LR * self.velocity[n] for n in at}


def close(a: Tensors, b: Tensors) -> bool:
    assert a.keys() == b.keys()
    return all(torch.allclose(a[n], b[n], atol=2e-6) for n in a)


def trained(setup: Setup, state: ServerState, memory: Tensors | None = None) -> tuple[Update, Tensors]:
    result = perform(setup, Job("a", "train", setup.algorithm.message(state, "a", "train"), memory))
    assert result.failure is None, result.trace
    assert result.update is not None
    return result.update, result.memory or {}


def first(setup: Setup) -> ServerState:
    return setup.algorithm.init(setup.network, seed=0)


def test_fedprox_with_no_pull_is_fedavg_and_with_a_pull_is_not() -> None:
    fedavg, none, some = (train(make(a)) for a in (FedAvg(), FedProx(mu=0), FedProx(mu=0.5)))
    assert all(same(a.state.shared, b.state.shared) for a, b in zip(fedavg, none, strict=True))
    assert not same(fedavg[0].state.shared, some[0].state.shared)


def test_fedprox_adds_the_distance_to_what_was_received() -> None:
    setup = alone(FedProx(mu=0.7))
    x, y = data(setup)
    w = start = setup.network.parameters
    sgd = SGD()
    for _ in range(2):
        w = sgd.step(
            w,
            gradient(
                lambda t: cross_entropy(net(t, x), y) + 0.7 / 2 * sum((t[n] - start[n]).square().sum() for n in t), w
            ),
        )
    assert close(trained(setup, first(setup))[0].shared, w)


def test_with_one_client_fedper_is_fedavg() -> None:
    a, b = train(alone(FedPer(), rounds=3)), train(alone(FedAvg(), rounds=3))
    for p, q in zip(a, b, strict=True):
        assert same({**p.state.shared, **p.memories["a"]}, q.state.shared)


@pytest.mark.parametrize("algorithm", [FedPer(), FedRep()], ids=lambda a: a.name)
def test_heads_stay_on_clients_and_bodies_are_averaged(algorithm: Algorithm) -> None:
    setup = make(algorithm, fraction=1.0, rounds=1)
    after = train(setup)[0]
    state = first(setup)
    updates = [
        perform(setup, Job(c, "train", setup.algorithm.message(state, c, "train"))).update for c in setup.federation.ids
    ]
    assert all(tuple(u.shared) == BODY for u in updates)
    n = torch.tensor([float(u.weight) for u in updates])
    for name in BODY:
        expected = sum(k * u.shared[name] for k, u in zip(n / n.sum(), updates, strict=True))
        assert torch.allclose(after.state.shared[name], expected, atol=1e-6)
    heads = [after.memories[c] for c in setup.federation.ids]
    assert all(set(h) == set(HEAD) for h in heads)
    assert not same(heads[0], heads[1])
    personal = models(
        setup, "south", setup.algorithm.message(after.state, "south", "evaluate"), after.memories["south"]
    ).personal
    assert same(personal, {**after.state.shared, **after.memories["south"]})


def test_fedrep_fits_the_head_first_and_then_the_body() -> None:
    setup = alone(FedRep(head_epochs=3))
    x, y = data(setup)
    w = dict(setup.network.parameters)
    for names, epochs in ((HEAD, 3), (BODY, 2)):
        sgd = SGD()
        for _ in range(epochs):
            g = gradient(lambda t: cross_entropy(net(t, x), y), w)
            w |= sgd.step({n: w[n] for n in names}, {n: g[n] for n in names})
    update, memory = trained(setup, first(setup))
    assert close({**update.shared, **memory}, w)


def test_apfls_shared_model_is_fedavgs() -> None:
    for a, b in zip(train(make(APFL())), train(make(FedAvg())), strict=True):
        assert same(a.state.shared, b.state.shared)


def test_apfl_with_nothing_of_its_own_is_fedavg() -> None:
    a, b = (train(make(algorithm))[-1] for algorithm in (APFL(a=0, adaptive=False), FedAvg()))
    rows = [[r["loss_personal"] for r in p.evaluation.clients] for p in (a, b)]
    assert rows[0] == rows[1]


def test_apfl_moves_the_mixture_by_its_gradient_and_w_by_its_own_loss() -> None:
    setup = alone(APFL(a=0.3))
    x, y = data(setup)
    w = v = setup.network.parameters
    v = {n: t + 0.1 for n, t in v.items()}  # apart from w, else a has no gradient
    a = torch.tensor(0.3)
    memory = {**{PERSONAL + n: t for n, t in v.items()}, "mixture/a": a}
    update, after = trained(setup, first(setup), memory)
    sgd_w, sgd_v = SGD(), SGD()
    for _ in range(2):
        g = gradient(lambda t, a=a, v=v, w=w: cross_entropy(net(t, x), y), {n: a * v[n] + (1 - a) * w[n] for n in w})
        slope = sum(((v[n] - w[n]) * g[n]).sum() for n in w)
        v = sgd_v.step(v, {n: a * g[n] for n in g})
        a = (a - LR * slope).clamp(0, 1)
        w = sgd_w.step(w, gradient(lambda t: cross_entropy(net(t, x), y), w))
    assert close(update.shared, w)
    assert close(strip_prefix(after, PERSONAL), v)
    assert after["mixture/a"] == pytest.approx(float(a), abs=1e-5)
    assert abs(float(a) - 0.3) > 1e-3


def test_apfls_mixture_stays_in_its_range() -> None:
    setup = alone(APFL(a=1.0), lr=3.0, epochs=6)
    far = {**{PERSONAL + n: t + 0.5 for n, t in setup.network.parameters.items()}, "mixture/a": torch.tensor(1.0)}
    assert 0 <= float(trained(setup, first(setup), far)[1]["mixture/a"]) <= 1


def test_fedrod_trains_the_body_by_the_balanced_loss_and_its_own_head_on_top_of_the_generic() -> None:
    setup = alone(FedRoD())
    x, y = data(setup)
    counts = torch.bincount(y, minlength=3)
    w, p = dict(setup.network.parameters), {n: torch.zeros_like(setup.network.parameters[n]) for n in HEAD}
    sgd_w, sgd_p = SGD(), SGD()
    for _ in range(2):
        features = torch.tanh(nn.functional.linear(x, w["0.weight"], w["0.bias"]))
        generic = net(w, x)
        g_p = gradient(
            lambda t, f=features, z=generic: cross_entropy(z + nn.functional.linear(f, t["2.weight"], t["2.bias"]), y),
            p,
        )
        w = sgd_w.step(w, gradient(lambda t: cross_entropy(net(t, x) + counts.log(), y), w))
        p = sgd_p.step(p, g_p)
    update, memory = trained(setup, first(setup))
    assert close(update.shared, w)
    assert close(strip_prefix(memory, PERSONAL), p)
    both = models(setup, "a", setup.algorithm.message(ServerState(update.shared, round=1), "a", "evaluate"), memory)
    features = torch.tanh(nn.functional.linear(x, w["0.weight"], w["0.bias"]))
    summed = net(w, x) + nn.functional.linear(features, p["2.weight"], p["2.bias"])
    assert torch.allclose(net({n: both.personal[n] for n in w}, x), summed, atol=1e-5)
    assert close({n: both.global_[n] for n in w}, w)


def test_fedrod_copes_with_a_label_that_a_client_does_not_have() -> None:
    federation = blobs(ids=("a",))
    client = federation.clients[0]
    keep = torch.tensor([i for i in client.train.tolist() if federation.y[i] != 1])
    setup = make(FedRoD(), federation=replace(federation, clients=(replace(client, train=keep),)), fraction=1.0)
    assert setup.facts("a").label_counts[1] == 0
    update, memory = trained(setup, first(setup))
    assert all(torch.isfinite(t).all() for t in (*update.shared.values(), *memory.values()))


def test_superfed_that_never_starts_and_pulls_nowhere_is_fedavg() -> None:
    for a, b in zip(train(make(SuPerFed(start_share=1.0, mu=0, nu=0))), train(make(FedAvg())), strict=True):
        assert same(a.state.shared, b.state.shared)
        assert a.evaluation.history["loss_personal"] == b.evaluation.history["loss_personal"]


def test_superfed_trains_both_endpoints_of_a_random_mixture() -> None:
    setup = alone(SuPerFed(mu=0.3, nu=0.5, start_share=0.0))
    x, y = data(setup)
    start = setup.network.parameters
    own = strip_prefix(setup.algorithm.start(setup.network, seed=derive(0, "start", "a")), PERSONAL)
    w, v = start, own
    draws = torch.rand(2, generator=stream(0, "train", 1, "a", "shared", "draws"), dtype=torch.float64).float()
    sgd_w, sgd_v = SGD(), SGD()

    def loss(t: Tensors, a: torch.Tensor) -> torch.Tensor:
        w, v = strip_prefix(t, "w/"), strip_prefix(t, "v/")
        flat_w, flat_v, flat_start = (torch.cat([q[n].flatten() for n in start]) for q in (w, v, start))
        cosine = flat_w @ flat_v / (flat_w.norm() * flat_v.norm())
        distance = (flat_w - flat_start).norm() if not torch.equal(flat_w, flat_start) else 0.0
        return cross_entropy(net({n: (1 - a) * w[n] + a * v[n] for n in w}, x), y) + 0.3 * distance + 0.5 * cosine**2

    for a in draws:
        g = gradient(
            lambda t, a=a: loss(t, a), {**{"w/" + n: t for n, t in w.items()}, **{"v/" + n: t for n, t in v.items()}}
        )
        w, v = sgd_w.step(w, strip_prefix(g, "w/")), sgd_v.step(v, strip_prefix(g, "v/"))
    update, memory = trained(setup, first(setup))
    assert close(update.shared, w)
    assert close(strip_prefix(memory, PERSONAL), v)
    both = models(setup, "a", setup.algorithm.message(ServerState(update.shared, round=1), "a", "evaluate"), memory)
    assert close({n: both.personal[n] for n in w}, {n: (w[n] + v[n]) / 2 for n in w})
    assert close({n: both.global_[n] for n in w}, w)


def test_superfeds_personal_endpoints_differ_and_serve_only_once_trained() -> None:
    setup = make(SuPerFed(start_share=0.5), rounds=4)
    starts = [setup.algorithm.start(setup.network, seed=derive(0, "start", c)) for c in ("north", "south")]
    assert not torch.equal(starts[0][PERSONAL + "0.weight"], starts[1][PERSONAL + "0.weight"])
    progress = train(setup)
    assert [bool(p.memories) for p in progress] == [False, False, True, True]
    assert all(r["loss_personal"] == r["loss_global_local"] for p in progress[:2] for r in p.evaluation.clients)
    last = progress[-1]
    assert {r["client"] for r in last.evaluation.clients if r["loss_personal"] != r["loss_global_local"]} == set(
        last.memories
    )
    assert set(last.memories) < set(setup.federation.ids)


def test_scaffolds_first_round_is_fedavg_without_momentum() -> None:
    a, b = train(make(SCAFFOLD(), momentum=0.9)), train(make(FedAvg(), momentum=0.0))
    assert same({n: a[0].state.shared[n] for n in b[0].state.shared}, b[0].state.shared)
    assert not same({n: a[1].state.shared[n] for n in b[1].state.shared}, b[1].state.shared)


def test_scaffold_corrects_steps_by_its_variates_and_renews_them() -> None:
    setup = alone(SCAFFOLD())
    x, y = data(setup)
    g = torch.Generator().manual_seed(0)
    w = start = setup.network.parameters
    c, own = ({n: 0.1 * torch.randn(t.shape, generator=g) for n, t in w.items()} for _ in range(2))
    state = ServerState({**start, **{"variate/" + n: t for n, t in c.items()}})
    update, memory = trained(setup, state, {"own variate/" + n: t for n, t in own.items()})
    sgd = SGD(momentum=0)
    for _ in range(2):
        plain = gradient(lambda t: cross_entropy(net(t, x), y), w)
        w = sgd.step(w, {n: plain[n] - own[n] + c[n] for n in w})
    new = {n: own[n] - c[n] + (start[n] - w[n]) / (2 * LR) for n in w}
    assert close(update.shared, w)
    assert close(strip_prefix(memory, "own variate/"), new)
    assert close(strip_prefix(update.extra, "variate/"), {n: new[n] - own[n] for n in w})


def variates_apart(federation: Federation, progress: Progress) -> float:
    """|c - sum_i p_i c_i| / |c|, with p_i = n_i / n over all clients."""
    n, shared = {c.id: len(c.train) for c in federation.clients}, strip_prefix(progress.state.shared, "variate/")
    means = {
        name: sum(n[c] * m["own variate/" + name] for c, m in progress.memories.items()) / sum(n.values())
        for name in shared
    }
    return float(
        torch.stack([(t - means[name]).norm() for name, t in shared.items()]).norm()
        / torch.stack([t.norm() for t in shared.values()]).norm()
    )


@pytest.mark.parametrize("fraction", [0.1, 0.3, 1.0])
def test_scaffolds_server_variate_is_the_mean_of_all_clients_variates_whoever_took_part(fraction: float) -> None:
    """Weighted by samples, as the weights are; else its objective would not be FedAvg's."""
    setup = make(SCAFFOLD(), federation=blobs(sizes=UNEQUAL), rounds=12, fraction=fraction)
    assert max(variates_apart(setup.federation, p) for p in train(setup)) < 1e-5


def test_scaffolds_server_variate_stays_that_mean_when_a_client_joins() -> None:
    grown = make(SCAFFOLD(), federation=blobs(sizes=UNEQUAL), rounds=6, fraction=0.3)
    fewer = replace(grown, federation=replace(grown.federation, clients=grown.federation.clients[:-4]))
    before = list(islice(loop.rounds(fewer, Serial(fewer), Plan(), loop.initialize(fewer)), 3))[-1]
    after = list(loop.rounds(grown, Serial(grown), Plan(), before))
    assert max(variates_apart(grown.federation, p) for p in after) < 1e-5


def test_pfedme_solves_for_theta_and_moves_w_towards_it() -> None:
    setup = alone(PFedMe(pull=4.0, inner_steps=3, local_epochs=2, outer_lr=0.05))
    x, y = data(setup)
    w = theta = setup.network.parameters
    for _ in range(2):
        for _ in range(3):
            g = gradient(lambda t: cross_entropy(net(t, x), y), theta)
            theta = {n: theta[n] - LR * (g[n] + 4.0 * (theta[n] - w[n]) + DECAY * theta[n]) for n in w}
        w = {n: w[n] - 0.05 * 4.0 * (w[n] - theta[n]) for n in w}
    update, memory = trained(setup, first(setup))
    assert close(update.shared, w)
    assert close(strip_prefix(memory, PERSONAL), theta)
    again, _ = trained(setup, first(setup), memory)
    assert same(again.shared, update.shared)  # theta starts at what was received
    both = models(setup, "a", setup.algorithm.message(ServerState(update.shared, round=1), "a", "evaluate"), memory)
    assert close({n: both.personal[n] for n in w}, theta)


def test_pfedmes_server_goes_part_of_the_way_to_the_mean() -> None:
    whole, part = (train(make(PFedMe(server_share=b), rounds=1, fraction=1.0))[0].state.shared for b in (1.0, 0.25))
    start = make(PFedMe()).network.parameters
    assert close(part, {n: start[n] + 0.25 * (whole[n] - start[n]) for n in start})


@pytest.mark.parametrize(("epochs", "ratio"), [(10, 1.2), (3, 2.0), (1, 6.0)])
def test_pfedme_takes_more_steps_than_others_where_epochs_are_few(epochs: int, ratio: float) -> None:
    steps = [train(make(a, rounds=1, epochs=epochs))[0].evaluation.history["steps"] for a in (PFedMe(), FedAvg())]
    assert steps[0] == pytest.approx(
        ratio * steps[1]
    )  # five of theta and one of w on each batch, of a fifth of the epochs, one at least


def test_pfedme_does_not_overshoot() -> None:
    with pytest.raises(FlocoError, match="outer_lr \\* pull must be at most 1"):
        make(PFedMe(pull=15, outer_lr=0.1))


def headless() -> nn.Module:
    return nn.Conv1d(1, 3, 5)


@pytest.mark.parametrize("name", ["fedper", "fedrep", "fedrod", "lg-fedavg", "lp-ft", "fedbabu", "knn-per"])
def test_a_method_that_splits_off_a_head_says_when_there_is_none(name: str) -> None:
    with pytest.raises(FlocoError, match=f"{name} needs a trained"):
        make(ANY_NETWORK[name](), model=headless)


def batchnorm_net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


@pytest.mark.parametrize(
    ("name", "buffers"),
    [(n, b) for n in ANY_NETWORK for b in ("average", "local") if (n, b) != ("ifca", "local")],  # which is refused
)
def test_every_method_trains_a_network_with_buffers(name: str, buffers: str) -> None:
    first, *_, last = train(make(ANY_NETWORK[name](), model=batchnorm_net, buffers=buffers))
    assert last.evaluation.history["loss_personal"] < first.evaluation.history["loss_personal"]
    shared = last.state.shared
    if buffers == "local":  # every client that trained has statistics of data it saw
        kept = [t for m in last.memories.values() for n, t in m.items() if n.endswith("1.running_mean")]
        assert len(kept) >= len(last.memories)
        assert not any(torch.equal(t, torch.zeros(6)) for t in kept)
    elif name not in ("local", "lg-fedavg", "fedbn"):  # whose buffers stay on the client
        assert shared["1.num_batches_tracked"] > 0
        assert bool((shared["1.running_mean"] != 0).any())


@pytest.mark.parametrize("method", [LGFedAvg, FedPer])
def test_what_stays_on_a_client_is_never_sent(method: type[Algorithm]) -> None:
    for progress in train(make(method())):
        assert set(progress.state.shared) == set(HEAD if method is LGFedAvg else BODY)


def test_without_epochs_of_the_head_lp_ft_is_fedavg_with_fine_tuning() -> None:
    a, b = (train(make(m, federation=blobs(sizes=UNEQUAL))) for m in (LPFT(head_epochs=0), FedAvgFT()))
    assert [p.evaluation.history for p in a] == [p.evaluation.history for p in b]


def test_lp_ft_trains_the_head_of_a_copy_and_then_all_of_it() -> None:
    setup = alone(LPFT(head_epochs=2, personal_epochs=1), rounds=1)
    state = train(setup)[-1].state
    x, y = data(setup)
    at = dict(state.shared)
    for names, epochs in ((HEAD, 2), ((*BODY, *HEAD), 1)):
        sgd = SGD()
        for _ in range(epochs):
            g = gradient(lambda w, at=at: cross_entropy(net({**at, **w}, x), y), {n: at[n] for n in names})
            at |= sgd.step({n: at[n] for n in names}, g)
    both = models(setup, "a", setup.algorithm.message(state, "a", "evaluate"), None)
    assert same(both.global_, state.shared) or close({n: both.global_[n] for n in at}, state.shared)
    assert close(both.personal, at)


def test_fedbabu_trains_the_body_alone_and_a_copy_of_everything_before_an_evaluation() -> None:
    setup = alone(FedBABU(personal_epochs=1), rounds=1)
    x, y = data(setup)
    at, sgd = dict(setup.network.parameters), SGD()
    for _ in range(2):
        g = gradient(lambda w, at=at: cross_entropy(net({**at, **w}, x), y), {n: at[n] for n in BODY})
        at |= sgd.step({n: at[n] for n in BODY}, g)
    state = train(setup)[-1].state
    assert close(state.shared, at)
    assert same({n: state.shared[n] for n in HEAD}, {n: setup.network.parameters[n] for n in HEAD})
    both = models(setup, "a", setup.algorithm.message(state, "a", "evaluate"), None)
    tuned = SGD().step(at, gradient(lambda w: cross_entropy(net(w, x), y), at))
    assert close({n: both.global_[n] for n in at}, at)
    assert close(both.personal, tuned)


def test_fedbabus_global_head_keeps_its_initial_values() -> None:
    setup = make(FedBABU(), federation=blobs(sizes=UNEQUAL), fraction=0.3)
    first, last = setup.network.parameters, train(setup)[-1].state.shared
    assert all(torch.equal(first[n], last[n]) == (n in HEAD) for n in first)


def test_with_one_client_lg_fedavg_is_fedavg_to_the_bit() -> None:
    a, b = train(alone(LGFedAvg(), rounds=3)), train(alone(FedAvg(), rounds=3))
    assert same({**a[-1].state.shared, **a[-1].memories["a"]}, b[-1].state.shared)


def test_lg_fedavg_averages_the_heads_that_clients_train_on_their_own_bodies() -> None:
    options = {"federation": blobs(sizes=UNEQUAL), "rounds": 1, "fraction": 1.0}
    shared, local = train(make(LGFedAvg(), **options))[-1], train(make(Local(), **options))[-1]
    n = {c.id: len(c.train) for c in make(Local(), **options).federation.clients}
    for name in HEAD:
        mean = sum(k * local.memories[c][PERSONAL + name].double() for c, k in n.items()) / sum(n.values())
        assert torch.allclose(shared.state.shared[name].double(), mean, atol=1e-7)
    for client in n:
        assert same(shared.memories[client], {b: local.memories[client][PERSONAL + b] for b in BODY})


def test_fedrods_second_forward_does_not_count_batches_twice() -> None:
    a, b = (
        train(make(m, model=batchnorm_net, rounds=1, fraction=1.0))[0].state.shared["1.num_batches_tracked"]
        for m in (FedRoD(), FedAvg())
    )
    assert a == b


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, 5))
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.shift)


@pytest.mark.parametrize("model", [Constant, Constant()], ids=["factory", "module"])
def test_superfed_copies_what_cannot_be_drawn_anew(model: Any) -> None:
    setup = make(SuPerFed(start_share=0.0), model=model, rounds=2)
    own = strip_prefix(setup.algorithm.start(setup.network, seed=1), PERSONAL)
    assert torch.equal(own["shift"], torch.zeros(1, 5))
    assert not torch.equal(own["head.weight"], setup.network.parameters["head.weight"])
    assert train(setup)[-1].evaluation.history["loss_personal"] < 2
