import math

import pytest
import torch
from torch import nn

from conftest import IDS, blobs, make, same, small_net, train
from floco.algorithms import Ditto, FedAvg, Floco, FlocoPlus
from floco.client.predict import compute_outputs, find_global_model
from floco.client.round import models
from floco.client.setup import Setup, split_batches
from floco.client.sgd import Work, apply_gradients, sgd_step, train_client
from floco.core.errors import FlocoError
from floco.core.network import Network, build_network
from floco.core.values import Batch, Message, Phase, Step, Tensors, Training, plain_loss
from floco.server import rounds as loop
from floco.tasks import Classification


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.5, 0.01)])
def test_sgd_is_torchs(momentum: float, decay: float) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 5, generator=g), torch.randint(3, (20,), generator=g)
    ours, theirs = small_net(), small_net()
    theirs.load_state_dict(ours.state_dict())
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=momentum, weight_decay=decay, fused=True)
    training = Training(lr=0.1, momentum=momentum, weight_decay=decay)
    tensors = {n: p.detach().clone().requires_grad_() for n, p in ours.named_parameters()}
    step = Step(plain_loss(Classification()), tuple(tensors))
    velocity: list[torch.Tensor] = []
    for _ in range(5):
        sgd_step(
            step,
            lambda t, x: torch.func.functional_call(ours, dict(t), (x,)),
            tensors,
            velocity,
            None,
            Batch(x, y),
            training,
        )
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        optimizer.step()
    for name, p in theirs.named_parameters():
        assert torch.equal(tensors[name], p)


def test_a_step_is_the_same_in_any_memory_order() -> None:
    g = torch.Generator().manual_seed(0)
    shapes = {"conv": (4, 3, 5, 5), "stacked": (3, 6, 7), "plain": (8,)}
    w, dw = ({n: torch.randn(s, generator=g) for n, s in shapes.items()} for _ in range(2))
    step = Step(plain_loss(Classification()), tuple(shapes))
    moved = []
    for order in (
        lambda t: t.clone(),
        lambda t: (
            t.to(memory_format=torch.channels_last) if t.ndim == 4 else t.mT.clone().mT if t.ndim == 3 else t.clone()
        ),
    ):
        for gradient_order in (lambda t: t, order):
            tensors, velocity = {n: order(t) for n, t in w.items()}, []
            for _ in range(3):
                apply_gradients(
                    step,
                    tensors,
                    [gradient_order(dw[n]) for n in shapes],
                    velocity,
                    Training(lr=0.1, momentum=0.5, weight_decay=0.01),
                )
            moved.append(tensors)
    assert all(same(moved[0], other) for other in moved[1:])


def work(setup: Setup, phases: tuple[Phase, ...], tensors: Tensors) -> Work:
    message = Message(1, "train", {})
    return Work("0", message, setup.facts("0"), tensors, phases, torch.arange(8), ("test",))


def test_a_step_repeats_and_has_its_own_rate() -> None:
    setup = make(FedAvg())
    tensors = {**setup.network.parameters, "a": torch.tensor(0.5)}

    def loss(predict, tensors, draw, batch):  # type: ignore[no-untyped-def]
        return 10 * tensors["a"] + 0 * predict(tensors, batch.x).sum()

    step = Step(loss, ("a",), lr=0.02, momentum=0, weight_decay=0, repeat=2)
    after = train_client(setup, work(setup, (Phase("alpha", (step,), epochs=1),), tensors))
    assert after["a"] == pytest.approx(0.1)
    assert same({n: after[n] for n in setup.network.parameters}, setup.network.parameters)


def test_coefficients_move_without_momentum_and_decay_and_stay_in_their_range() -> None:
    setup = make(FedAvg(), momentum=0.9, weight_decay=0.3)
    tensors = {"a": torch.tensor(0.9), "b": torch.tensor(0.5), "c": torch.tensor(0.5), "d": torch.tensor(0.5)}

    def loss(predict, tensors, draw, batch):  # type: ignore[no-untyped-def]
        return 2 * tensors["a"] + 10 * tensors["b"] - 10 * tensors["c"] + 3 * tensors["d"]

    step = Step(loss, ("a",), coefficients={"b": (0.2, 1.0), "c": (0.0, 0.55), "d": (-99.0, 99.0)})
    after = train_client(setup, work(setup, (Phase("alpha", (step,), epochs=1),), tensors))
    assert after["a"] == pytest.approx(0.9 - 0.1 * (2 + 0.3 * 0.9))
    assert (after["b"], after["c"]) == (pytest.approx(0.2), pytest.approx(0.55))
    after = train_client(setup, work(setup, (Phase("alpha", (step,), epochs=3),), tensors))
    assert after["d"] == pytest.approx(0.5 - 3 * 0.1 * 3)


@pytest.mark.parametrize(
    ("n", "batch", "sizes"),
    [(8, 4, [4, 4]), (10, 4, [4, 4, 2]), (9, 4, [4, 5]), (1, 4, [1]), (3, 1, [1, 1, 1]), (3, 10, [3])],
)
def test_batches_cover_an_epoch_and_none_has_one_sample_by_accident(n: int, batch: int, sizes: list[int]) -> None:
    assert split_batches(n, batch) == sizes


def batchnorm_net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


@pytest.mark.parametrize(
    "algorithm",
    [FedAvg(), Ditto(), Floco(endpoints=3, assign_at=3), FlocoPlus(endpoints=3, assign_at=3)],
    ids=lambda a: a.name,
)
def test_batchnorm_buffers_are_averaged_and_never_leak_into_the_module(algorithm: FedAvg) -> None:
    setup = make(algorithm, model=batchnorm_net, batch_size=4)
    before = {n: t.clone() for n, t in setup.network.module.state_dict().items()}
    last = train(setup)[-1]
    assert not torch.equal(last.state.shared["1.running_mean"], before["1.running_mean"])
    assert last.state.shared["1.num_batches_tracked"].dtype == torch.int64
    assert last.state.shared["1.num_batches_tracked"] > 0
    assert same(before, dict(setup.network.module.state_dict()))


def test_local_buffers_stay_on_the_client() -> None:
    setup = make(FedAvg(), model=batchnorm_net, buffers="local")
    progress = train(setup)
    assert torch.equal(progress[-1].state.shared["1.running_mean"], torch.zeros(6))
    kept = progress[-1].memories
    assert {c for c, n in progress[-1].participated.items() if n} == set(kept)
    assert all(not torch.equal(m["buffers/1.running_mean"], torch.zeros(6)) for m in kept.values())
    client = next(iter(kept))
    both = models(setup, client, setup.algorithm.message(progress[-1].state, client, "evaluate"), kept[client])
    assert torch.equal(both.personal["1.running_mean"], kept[client]["buffers/1.running_mean"])
    assert find_global_model(setup, setup.algorithm.message(progress[-1].state, "", "evaluate")) is None


@pytest.mark.parametrize("algorithm", [FedAvg(), Ditto(), Floco(endpoints=2, assign_at=2)], ids=lambda a: a.name)
def test_where_every_client_has_buffers_of_its_own_there_is_no_global_models_accuracy(algorithm: FedAvg) -> None:
    row = train(make(algorithm, model=batchnorm_net, buffers="local"))[-1].evaluation.history
    assert [row[f"{m}_global"] for m in ("accuracy", "balanced_accuracy", "loss", "ece", "brier")] == [None] * 5
    assert row["accuracy_personal"] is not None
    assert train(make(algorithm, model=batchnorm_net))[-1].evaluation.history["accuracy_global"] is not None


def test_frozen_parameters_are_neither_sent_nor_decayed() -> None:
    def frozen() -> nn.Module:
        net = small_net()
        net[0].requires_grad_(False)
        return net

    setup = make(Floco(endpoints=2, assign_at=3), model=frozen)
    last = train(setup)[-1]
    assert set(last.state.shared) == {"2.weight", "2.bias"}
    assert last.evaluation.history["bytes_up"] == 3 * 4 * (2 * 21 + 3)  # 3 clients, float32


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.again = nn.Linear(5, 5)
        self.again.weight = self.inner.weight
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.again(torch.tanh(self.inner(x))))


def test_tied_parameters_travel_once_and_move_together() -> None:
    setup = make(FedAvg(), model=Tied)
    assert "again.weight" not in setup.network.layout.parameters
    last = train(setup)[-1]
    own = Tied()
    own.load_state_dict(last.state.shared, strict=False)
    x = torch.randn(4, 5)
    assert torch.allclose(compute_outputs(setup, last.state.shared, x), own(x), atol=1e-6)


def test_a_last_layer_tied_to_another_is_mixed_under_its_known_name() -> None:
    class TiedHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Linear(5, 5, bias=False)
            self.out = nn.Linear(5, 5, bias=False)
            self.out.weight = self.table.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.tanh(self.table(x)))

    setup = make(Floco(endpoints=3, assign_at=2), model=TiedHead, federation=blobs(classes=5))
    assert setup.algorithm.mix == ("table.weight",)
    assert train(setup)[-1].state.shared["table.weight"].shape == (3, 5, 5)


def test_pretrained_values_need_a_stated_noise_and_get_it() -> None:
    values = {n: torch.full_like(t, 0.5) for n, t in small_net().state_dict().items()}
    net = build_network(small_net, seed=0, weights=values)
    with pytest.raises(FlocoError, match="noise"):
        loop.initialize(
            Setup(blobs(), net, Floco(endpoints=3, assign_at=1).resolved(Training(), net.layout), Training())
        )
    exact, noisy = (
        loop.initialize(
            Setup(blobs(), net, Floco(endpoints=3, noise=s).resolved(Training(), net.layout), Training())
        ).state.shared["2.weight"]
        for s in (0.0, 0.1)
    )
    assert (exact == 0.5).all()
    assert torch.equal(noisy[0], exact[0])
    assert 0.01 < float((noisy[1] - 0.5).std()) < 0.1


def test_weights_that_do_not_fit_are_named() -> None:
    with pytest.raises(FlocoError, match=r"'2.wieght'.*did you mean '2.weight'"):
        build_network(small_net, seed=0, weights={"2.wieght": torch.zeros(3, 7)})
    with pytest.raises(FlocoError, match=r"must have shape \(3, 7\), got \(4, 7\)"):
        build_network(small_net, seed=0, weights={"2.weight": torch.zeros(4, 7)})


def test_a_model_without_linear_layer_names_the_key() -> None:
    with pytest.raises(FlocoError, match=r"algorithm\.mix"):
        make(Floco(), model=lambda: nn.Sequential(nn.Conv1d(1, 3, 5), nn.Flatten()))
    with pytest.raises(FlocoError, match="did you mean '2.weight'"):
        make(Floco(mix=("2.wight",)))


def test_a_module_as_it_is_gets_endpoints_of_its_layers_own_initialiser() -> None:
    endpoints = loop.initialize(make(Floco(endpoints=3), model=small_net())).state.shared["2.weight"]
    bound = 1 / math.sqrt(7)
    assert endpoints[1:].abs().max() <= bound
    assert not torch.equal(endpoints[1], endpoints[2])


def test_dropout_follows_the_seed_and_leaves_global_state_alone() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 20), nn.Dropout(0.5), nn.Linear(20, 3))

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a = train(make(FedAvg(), model=net))[-1].state.shared
    assert torch.equal(torch.rand(1), expected)
    assert same(a, train(make(FedAvg(), model=net))[-1].state.shared)


def test_bf16_is_close_to_float32() -> None:
    a, b = (train(make(FedAvg(), precision=p))[-1] for p in ("float32", "bf16"))
    assert a.state.shared["0.weight"].dtype == b.state.shared["0.weight"].dtype == torch.float32
    assert not same(a.state.shared, b.state.shared)
    assert a.evaluation.history["loss_global"] == pytest.approx(b.evaluation.history["loss_global"], rel=0.1)


def test_binary_labels() -> None:
    last = train(
        make(Floco(endpoints=2, assign_at=3), federation=blobs(classes=2), model=lambda: small_net(classes=2))
    )[-1]
    assert last.evaluation.history["accuracy_personal"] > 0.6


def test_unequal_clients_keep_their_ids() -> None:
    rows = train(make(FedAvg()))[-1].evaluation.clients
    assert [(r["client"], r["n_train"], r["n_test"]) for r in rows] == [(c, 8 + 5 * i, 4) for i, c in enumerate(IDS)]


def test_a_network_is_not_a_string() -> None:
    with pytest.raises(FlocoError, match="nn.Module"):
        build_network(lambda: "mlp", seed=0)  # type: ignore[arg-type,return-value]
    with pytest.raises(FlocoError, match="frozen"):
        build_network(nn.Linear(1, 1).requires_grad_(False), seed=0)


def test_the_networks_own_values_are_copies() -> None:
    module = small_net()
    net = build_network(module, seed=0)
    module[0].weight.data.zero_()
    assert isinstance(net, Network)
    assert not (net.parameters["0.weight"] == 0).all()


def test_a_model_that_does_not_fit_the_data_is_named_before_training() -> None:
    from floco.client.fitness import check_model

    with pytest.raises(FlocoError, match=r"must give logits of shape \(2, 3\), got \(2, 4\)"):
        check_model(make(FedAvg(), model=lambda: small_net(classes=4)))
    with pytest.raises(FlocoError, match=r"fails on inputs of shape \(2, 5\)"):
        check_model(make(FedAvg(), model=lambda: small_net(features=6)))
    with pytest.raises(FlocoError, match="builds the model raised ZeroDivisionError"):
        make(FedAvg(), model=lambda: 1 / 0)


def test_sgd_is_torchs_when_tensors_share_a_gradient() -> None:
    """Autograd hands out one tensor as the gradient of both parts of a sum."""
    training = Training(lr=0.1, momentum=0.5, weight_decay=0.5)

    def loss(predict, tensors, draw, batch):  # type: ignore[no-untyped-def]
        return ((tensors["a"] + tensors["b"]) ** 2).sum() + tensors["c"].sum()

    ours = {n: torch.ones(3, requires_grad=True) for n in "abc"}
    theirs = {n: torch.ones(3, requires_grad=True) for n in "abc"}
    optimizer = torch.optim.SGD(theirs.values(), lr=0.1, momentum=0.5, weight_decay=0.5, fused=True)
    velocity: list[torch.Tensor] = []
    step = Step(loss, ("a", "b", "c"), correction=lambda t: {"b": torch.zeros(3)})
    for _ in range(3):
        sgd_step(step, lambda t, x: x, ours, velocity, None, Batch(torch.empty(0), torch.empty(0)), training)
        optimizer.zero_grad()
        loss(None, theirs, None, None).backward()
        optimizer.step()
    assert all(torch.allclose(ours[n], theirs[n]) for n in ours)


def test_a_parameter_may_have_any_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.center, self.personal = nn.Parameter(torch.zeros(5)), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.personal(x - self.center)

    last = train(make(FlocoPlus(endpoints=3, assign_at=2), model=Named))[-1]
    assert not last.failures
    assert last.state.shared["center"].shape == (5,)


def test_an_initialiser_that_repeats_itself_is_refused() -> None:
    def seeded() -> nn.Module:
        torch.manual_seed(3)
        return small_net()

    with pytest.raises(FlocoError, match="same values every time"):
        loop.initialize(make(Floco(endpoints=3), model=seeded))


def test_a_personal_tensor_that_is_not_finite_fails_the_client() -> None:
    from floco.server.progress import Plan

    setup = make(Ditto(pull=1e38), rounds=2, fraction=1.0)
    with pytest.raises(FlocoError, match="non-finite personal/"):
        train(setup, plan=Plan(max_failed=0))


def test_shuffles_follow_the_seed() -> None:
    """Equal initial weights, another seed: other batches, another result; dropout alone likewise."""
    model = small_net()
    a, b = (train(make(FedAvg(), model=model, seed=s, fraction=1.0))[-1].state.shared for s in (0, 1))
    assert not same(a, b)

    torch.manual_seed(0)
    drops = nn.Sequential(nn.Linear(5, 20), nn.Dropout(0.5), nn.Linear(20, 3))
    whole = {"model": drops, "fraction": 1.0, "batch_size": 100, "rounds": 1, "epochs": 1}
    c, d, e = (train(make(FedAvg(), seed=s, **whole))[-1].state.shared for s in (0, 1, 0))
    assert (c["0.weight"] - d["0.weight"]).abs().max() > 1e-4
    assert same(c, e)


def test_buffers_that_are_not_saved_are_not_sent() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()
            self.register_buffer("mask", torch.ones(5), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x * self.mask)

    assert "mask" not in train(make(FedAvg(), model=Masked))[-1].state.shared
