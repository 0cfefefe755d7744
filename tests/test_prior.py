"""task.prior = "client": label frequencies in the logits of training, and in those of a client's own model."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import floco as package
from conftest import ANY_NETWORK, blobs, floco, make, same, small_net, train
from floco.algorithms import Ditto, FedAvg, FedAvgFT, FedRoD, Floco, FlocoPlus
from floco.client.round import models
from floco.core.errors import FlocoError
from floco.data.federation import Client, Federation
from floco.engines.engine import start_engine
from floco.tasks import Classification
from floco.tasks.prior import add_prior, join_prior, log_prior

PRIOR = Classification(prior="client")
METHODS = {name: cls for name, cls in ANY_NETWORK.items() if cls is not FedRoD}


def balanced(classes: int = 3, each: int = 6, clients: int = 4) -> Federation:
    """Clients whose training parts have every class equally often."""
    g, n = torch.Generator().manual_seed(0), classes * each
    y = torch.arange(classes).repeat(each * clients)
    x = torch.randn(classes, 5, generator=g)[y] + torch.randn(len(y), 5, generator=g)
    spans = [torch.arange(k * n, (k + 1) * n) for k in range(clients)]
    return Federation(x, y, tuple(Client(f"c{k}", s, s) for k, s in enumerate(spans)), tuple("abc"[:classes]))


def skewed() -> Federation:
    """Clients with unequal label frequencies, and of unequal size."""
    return blobs()


def run_of(federation: Federation, algorithm: Any, engine: str = "serial", **training: Any) -> Any:
    setup = make(algorithm, federation=federation, **{"rounds": 3, "fraction": 0.7, "batch_size": 5, **training})
    running = start_engine(setup, engine, 2 if engine == "processes" else 1)
    try:
        return setup, train(setup, running)
    finally:
        running.close()


@pytest.mark.parametrize("method", METHODS)
def test_equal_frequencies_give_the_plain_method_to_the_bit(method: str) -> None:
    plain = run_of(balanced(), METHODS[method]())[1]
    prior = run_of(replace(balanced(), task=PRIOR), METHODS[method]())[1]
    assert same(plain[-1].state.shared, prior[-1].state.shared)
    assert plain[-1].evaluation.history == prior[-1].evaluation.history


@pytest.mark.parametrize("method", METHODS)
def test_unequal_frequencies_change_what_is_learnt(method: str) -> None:
    plain = run_of(skewed(), METHODS[method]())[1]
    prior = run_of(replace(skewed(), task=PRIOR), METHODS[method]())[1]
    assert plain[-1].evaluation.history != prior[-1].evaluation.history


@pytest.mark.parametrize(
    "counts",
    [(7, 7, 7), (), (0, 0), (4,), (5, 4, 3), (3, 1), (0, 2), (14, 6, 6, 7, 7), (4, 6, 2, 4, 4, 4, 2, 4, 6, 4)],
    ids=str,
)
def test_counts_that_chance_explains_have_a_prior_of_zero_to_the_bit(counts: tuple[int, ...]) -> None:
    """chi^2 is 2 of (0, 2), its limit, and 5.75 of (14, 6, 6, 7, 7), whose limit is 8."""
    assert log_prior(counts).tolist() == [0.0] * len(counts)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((0, 3), (0.4, 1.6)),  # chi^2 = 3
        ((9, 0), (20 / 11, 2 / 11)),
        ((6, 0, 0), (21 / 9, 3 / 9, 3 / 9)),  # chi^2 = 12
        ((8000, 1000, 1000), (3 * 8001 / 10003, 3 * 1001 / 10003, 3 * 1001 / 10003)),
    ],
    ids=str,
)
def test_the_prior_of_other_counts_is_their_smoothed_frequency(
    counts: tuple[int, ...], expected: tuple[float, ...]
) -> None:
    assert log_prior(counts).exp().tolist() == pytest.approx(expected)


def test_clients_that_differ_by_chance_rarely_have_a_prior() -> None:
    drawn = torch.randint(10, (500, 40), generator=torch.Generator().manual_seed(0))
    some = [bool(log_prior(torch.bincount(y, minlength=10).tolist()).any()) for y in drawn]
    assert sum(some) < 0.06 * len(some)


def test_a_target_carries_its_clients_prior() -> None:
    prior, y = log_prior((1, 5, 2)), torch.tensor([2, 0])
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    shifted, classes = add_prior(logits, join_prior(y, prior))
    assert torch.equal(classes, y)
    assert torch.equal(shifted, logits + prior)


class Constant(nn.Module):
    """Logits that do not depend on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(0 * x)


def test_two_classes_without_features_have_a_closed_form() -> None:
    """CE(b + log prior) is least where b + log prior = log of the frequencies: b has only the smoothing left."""
    a, b = 30, 10
    y = torch.tensor([0] * a + [1] * b)
    client = Client("one", torch.arange(a + b), torch.arange(a + b))
    federation = Federation(torch.randn(a + b, 2), y, (client,), ("p", "q"), task=PRIOR)
    settings = {"rounds": 300, "fraction": 1.0, "batch_size": a + b, "lr": 2.0, "momentum": 0.0, "weight_decay": 0.0}
    setup = make(FedAvg(), federation=federation, model=Constant(), **settings)
    last = train(setup)[-1]
    both = models(setup, "one", setup.algorithm.message(last.state, "one", "evaluate"), None)
    gap = {which: float(t["out.bias"][0] - t["out.bias"][1]) for which, t in both._asdict().items()}
    assert gap["personal"] == pytest.approx(math.log(a / b), abs=1e-3)
    assert gap["global_"] == pytest.approx(math.log(a / b) - math.log((a + 1) / (b + 1)), abs=1e-3)


def test_the_own_model_of_fedavg_is_the_global_one_with_the_clients_log_prior() -> None:
    setup, passed = run_of(replace(skewed(), task=PRIOR), FedAvg())
    client = setup.federation.clients[0]
    both = models(setup, client.id, setup.algorithm.message(passed[-1].state, client.id, "evaluate"), None)
    counts = setup.federation.label_counts(client.train)
    head = setup.network.layout.head[1]
    assert torch.equal(both.personal[head], both.global_[head] + log_prior(counts))
    assert all(both.personal[n] is both.global_[n] for n in setup.network.layout.names if n != head)


@pytest.mark.parametrize("algorithm", [FedAvg(), FedAvgFT(), Floco(endpoints=3), FlocoPlus(endpoints=3), Ditto()])
def test_engines_agree(algorithm: Any) -> None:
    federation = replace(skewed(), task=PRIOR)
    serial = run_of(federation, algorithm)[1][-1]
    processes = run_of(federation, algorithm, "processes")[1][-1]
    cohort = run_of(federation, algorithm, "cohort")[1][-1]
    assert same(serial.state.shared, processes.state.shared)
    for name, value in serial.state.shared.items():
        assert torch.allclose(value, cohort.state.shared[name], atol=1e-5)


REFUSED = {
    "fedrod": (FedRoD(), None, "corrects for class frequencies itself"),
    "no bias": (FedAvg(), nn.Linear(5, 3, bias=False), "give its last layer a bias"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_have_a_prior_is_refused(case: str) -> None:
    algorithm, network, words = REFUSED[case]
    with pytest.raises(FlocoError, match=words):
        make(algorithm, federation=replace(skewed(), task=PRIOR), model=network)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x) / 3


def test_logits_that_are_changed_after_the_last_layer_are_refused() -> None:
    with pytest.raises(FlocoError, match="changes its logits after that"):
        package.fit(Scaled(), replace(skewed(), task=PRIOR), FedAvg(), rounds=1)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of Floco with a prior on clients with few of ten labels each."""
    home = tmp_path_factory.mktemp("prior")
    settings = (
        "data.clients=8",
        "data.split=pathological",
        "data.held_out=1",
        "training.rounds=6",
        "task.prior=client",
    )
    more = ("algorithm.assign_at=3", "algorithm.endpoints=3", "run.engine=serial", "training.fraction=1")
    made = floco("run", *(a for s in (*settings, *more) for a in ("-s", s)), "--out", home / "run")
    assert made.exit_code == 0, made.output
    return home / "run"


def test_delivered_models_are_the_evaluated_ones(shifted: Path) -> None:
    run = package.open_run(shifted)
    federation = run.setup.with_samples("a test").federation
    client = federation.clients[0]
    x = federation.inputs(client.test)
    with torch.no_grad():
        guess = run.personal(client.id)(x).argmax(1)
    table = run.clients
    row = table[(table["client"] == client.id) & (table["round"] == 6)].iloc[0]
    assert float((guess == federation.y[client.test]).float().mean()) == pytest.approx(row["accuracy_personal"])


def test_the_best_mixture_and_a_newcomer_have_priors(shifted: Path) -> None:
    run = package.open_run(shifted)
    federation = run.setup.with_samples("a test").federation
    head = run.setup.network.layout.head[1]
    client = federation.clients[0]
    moved = run.setup.federation.label_counts(run.setup.federation.client(client.id).train)
    best = dict(run.personal(client.id, at="best").named_parameters())[head]
    assert torch.allclose(best, run.progress.state.shared[head] + log_prior(moved), atol=1e-6)
    newcomer = federation.held_out[0]
    x, y = federation.x[newcomer.train], federation.y[newcomer.train]
    shape = federation.schema.form.shape
    placed = run.place(x.reshape(-1, *shape).numpy(), np.array(federation.names)[y.numpy()])
    counts = federation.label_counts(newcomer.train)
    assert torch.allclose(placed.tensors[head], run.progress.state.shared[head] + log_prior(counts), atol=1e-6)


def test_label_shift_is_learnt_without_personal_parameters() -> None:
    plain = blobs(sizes=(84,) * 6)
    clients = tuple(replace(c, train=c.train[:40], test=c.train[40:]) for c in plain.clients)
    plain = replace(plain, clients=clients)
    noise = 3 * torch.randn(plain.x.shape, generator=torch.Generator().manual_seed(1))
    federation, accuracy = replace(plain, x=plain.x + noise), {}
    for task in (Classification(), PRIOR):
        setup = make(FedAvg(), federation=replace(federation, task=task), rounds=15, fraction=1.0, batch_size=5)
        accuracy[task.prior] = train(setup)[-1].evaluation.history["accuracy_personal"]
    assert accuracy["client"] > accuracy["none"]


def test_a_prior_goes_with_bfloat16() -> None:
    """Its rounding is no sign of a model that changes its logits after the last bias."""
    federation = replace(skewed(), task=PRIOR)
    federation = replace(federation, x=10 * federation.x)
    run = package.fit(small_net(), federation, FedAvg(), rounds=1, precision="bf16", engine="serial")
    assert run.history["accuracy_personal"].notna().all()


class Focal(Classification):
    """A loss of one's own, which does not know of targets with a prior."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        p = outputs.softmax(1)[torch.arange(len(outputs)), targets]
        return -((1 - p) * p.log()).mean()


def test_a_loss_that_does_not_take_a_prior_is_refused() -> None:
    with pytest.raises(FlocoError, match="needs a loss that takes targets with a prior"):
        package.fit(small_net(), replace(skewed(), task=Focal(prior="client")), FedAvg(), rounds=1)


def test_fingerprints_of_data_are_those_of_runs_before_the_prior_and_differ_with_one() -> None:
    assert repr(Classification()) == "Classification(class_weights='none', label_smoothing=0.0)"
    assert skewed().fingerprint() != replace(skewed(), task=PRIOR).fingerprint()
