"""FedEM: responsibilities, the weights of samples in shuffled batches, mixed probabilities, FedAvg with one learner."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import floco
from conftest import UNEQUAL, batch_norm, blobs, convolution, make, same, small_net, train
from floco.algorithms import FedAvg, FedEM
from floco.algorithms.fedem import SHARES
from floco.client.round import models, prepare
from floco.client.setup import Setup
from floco.core.combined import Combined
from floco.core.errors import FlocoError
from floco.core.values import ServerState, Tensors
from floco.data.federation import Federation
from floco.engines.cohort import Cohorts
from floco.engines.engine import Serial, start_engine
from floco.engines.jobs import Job, Result, perform
from floco.server.progress import Progress
from floco.tasks import Classification, Regression
from floco.tasks.mixture import MeanPrediction, weighted_loss


@pytest.mark.parametrize("model", [small_net, batch_norm, convolution], ids=lambda m: m.__name__)
@pytest.mark.parametrize("prior", ["none", "client"])
def test_with_one_learner_it_is_fedavg_to_the_bit(model: Any, prior: str) -> None:
    federation = replace(blobs(sizes=UNEQUAL), task=Classification(prior=prior))
    ours, plain = (train(make(m, federation=federation, model=model, fraction=0.3)) for m in (FedEM(1), FedAvg()))
    for a, b in zip(ours, plain, strict=True):
        assert same({n: t.reshape(b.state.shared[n].shape) for n, t in a.state.shared.items()}, b.state.shared)
        there = {k: v for k, v in a.evaluation.history.items() if "_global" not in k}
        assert there == {k: b.evaluation.history[k] for k in there}  # also bytes and update variance


def learner(state: ServerState, m: int) -> Tensors:
    return {n: t[m].clone() for n, t in state.shared.items()}


def trained(setup: Setup, state: ServerState, client: str, memory: Tensors | None = None) -> Result:
    result = perform(setup, Job(client, "train", setup.algorithm.message(state, client, "train"), memory))
    assert result.failure is None, result.trace
    return result


def shift_of(setup: Setup, client: str) -> torch.Tensor | float:
    found = setup.task.shift(setup.facts(client).label_counts)
    return 0.0 if found is None else found


def by_hand(setup: Setup, state: ServerState, client: str, pi: torch.Tensor) -> tuple[list[Tensors], torch.Tensor]:
    """Train the learners one after the other, each sample with its own weight; no momentum, no decay."""
    chosen, settings = setup.federation.client(client).train, setup.training
    x, y, shift = setup.federation.inputs(chosen), setup.federation.y[chosen], shift_of(setup, client)
    learners = [learner(state, m) for m in range(len(pi))]
    likelihood = torch.stack(
        [(functional_call(small_net(), w, (x,)) + shift).softmax(1)[range(len(y)), y] for w in learners]
    )
    q = pi[:, None] * likelihood
    q = q / q.sum(0)
    message = setup.algorithm.message(state, client, "train")
    work = prepare(setup, client, message, {SHARES: pi})
    for m, w in enumerate(learners):
        for order in work.orders(work.phases[0], setup.seed):
            for batch in order.split(settings.batch_size):
                leaves = {n: t.requires_grad_() for n, t in w.items()}
                each = cross_entropy(
                    functional_call(small_net(), leaves, (x[batch],)) + shift, y[batch], reduction="none"
                )
                loss = sum(float(q[m, s]) * each[i] for i, s in enumerate(batch.tolist())) / len(batch)
                slopes = torch.autograd.grad(loss, list(leaves.values()))
                w.update({n: (t - settings.lr * g).detach() for (n, t), g in zip(leaves.items(), slopes, strict=True)})
    return learners, q.mean(1)


@pytest.mark.parametrize("prior", ["none", "client"])
def test_a_client_trains_each_learner_on_the_weights_of_its_samples_in_whatever_order_they_come(prior: str) -> None:
    """27 samples in shuffled batches of 9, two epochs: the weights are those of the samples, not of the places."""
    federation = replace(blobs(sizes=(31, 31)), task=Classification(prior=prior))
    setup = make(FedEM(3), federation=federation, batch_size=9, momentum=0, weight_decay=0, lr=0.3)
    state = setup.algorithm.init(setup.network, seed=0)
    pi = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    found = trained(setup, state, "0", {SHARES: pi})
    learners, shares = by_hand(setup, state, "0", pi)
    for m, w in enumerate(learners):
        for name, t in w.items():
            assert torch.allclose(found.update.shared[name][m], t, atol=1e-5), (m, name)
    assert torch.allclose(found.memory[SHARES], shares.double(), atol=1e-6)
    assert set(found.update.shared) == set(state.shared)
    assert not found.update.extra  # pi stays on the client
    assert sum(found.memory[SHARES].tolist()) == pytest.approx(1)


@pytest.mark.parametrize(
    "task",
    [
        Classification(),
        Classification(class_weights=(1.0, 3.0, 0.5)),
        Classification(label_smoothing=0.2),
        Classification(class_weights=(1.0, 3.0, 0.5), label_smoothing=0.2, prior="client"),
    ],
    ids=["plain", "class weights", "smoothed", "all"],
)
def test_with_weights_of_one_the_loss_is_that_of_the_task(task: Classification) -> None:
    g = torch.Generator().manual_seed(0)
    outputs, y = torch.randn(8, 3, generator=g), torch.randint(3, (8,), generator=g)
    targets = task.training_targets(y, (5, 1, 2))
    assert weighted_loss(task, outputs, targets, torch.ones(8)) == pytest.approx(float(task.loss(outputs, targets)))
    twice = weighted_loss(task, outputs, targets, torch.full((8,), 2.0))
    assert twice == pytest.approx(2 * float(task.loss(outputs, targets)))


def test_probabilities_are_mixed_and_not_logits() -> None:
    """Two sure networks that disagree: the mean of probabilities is split, that of logits is not with unequal sizes."""
    logits = [torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.0, 30.0, 0.0]])]
    mixed = MeanPrediction((0.7, 0.3))(logits).softmax(1)
    assert torch.allclose(mixed, 0.7 * logits[0].softmax(1) + 0.3 * logits[1].softmax(1), atol=1e-6)
    assert mixed.argmax() == 0 != (0.7 * logits[0] + 0.3 * logits[1]).argmax()
    assert torch.allclose(MeanPrediction((1.0, 0.0))(logits).softmax(1), logits[0].softmax(1))


@pytest.mark.parametrize("prior", ["none", "client"])
def test_what_is_reported_predicted_and_taken_home_is_the_mean_of_probabilities(prior: str) -> None:
    federation = replace(blobs(), task=Classification(prior=prior))
    run = floco.fit(small_net, federation, FedEM(2), rounds=4, fraction=1.0, lr=0.1, evaluate_every=4, engine="serial")
    state = run.progress.state
    for client, reported in zip(run.clients["client"], run.clients["accuracy_personal"], strict=True):
        test, pi = federation.client(client).test, run.progress.memories.get(client)[SHARES]
        x = federation.inputs(test)
        shift = shift_of(run.setup, client)
        each = [(functional_call(small_net(), learner(state, m), (x,)) + shift).softmax(1) for m in range(2)]
        expected = float(pi[0]) * each[0] + float(pi[1]) * each[1]
        assert float((expected.argmax(1) == federation.y[test]).double().mean()) == reported
        assert torch.allclose(run.personal(client)(x).softmax(1), expected, atol=1e-5)
        table = run.predict(federation.x[test], client)
        assert np.allclose(table.iloc[:, 2:].to_numpy(), expected.numpy(), atol=1e-5)
    loss = run.history["loss_personal"].iloc[-1]
    assert loss == pytest.approx(run.clients["loss_personal"].mean())


def test_such_a_model_is_not_exported_and_it_is_said(tmp_path: Path) -> None:
    run = floco.fit(small_net, blobs(), FedEM(2), rounds=1, engine="serial")
    with pytest.raises(FlocoError, match=r"of fedem is no one network.*run\.personal"):
        run.export(tmp_path / "models", ["north"])
    assert not list(tmp_path.iterdir())
    with pytest.raises(FlocoError, match="algorithm fedem has none"):
        run.global_model()
    one = floco.fit(small_net, blobs(), FedEM(1), rounds=1, engine="serial")
    assert one.export(tmp_path / "models", ["north"])


def test_a_task_without_one_class_a_sample_is_refused() -> None:
    whole = blobs()
    federation = replace(whole, y=whole.x[:, :3], names=(), task=Regression())
    with pytest.raises(FlocoError, match="fedem mixes probabilities.*needs task classification, and this one is regr"):
        make(FedEM(), federation=federation)


def test_a_client_that_has_not_trained_finds_its_shares_and_one_that_has_keeps_them() -> None:
    setup = make(FedEM(3), rounds=2, fraction=0.3)
    last = train(setup)[-1]
    assert last.memories
    for client in setup.clients:
        memory = last.memories.get(client)
        mine = models(setup, client, setup.algorithm.message(last.state, client, "evaluate"), memory)
        assert mine.global_ is None
        assert isinstance(mine.personal, Combined)
        uniform = torch.full((3,), 1 / 3, dtype=torch.float64)
        expected = memory[SHARES] if memory else by_hand(setup, last.state, client, uniform)[1]
        assert mine.personal.combine.weights == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_shares_are_means_over_all_samples_however_many() -> None:
    setup = make(FedEM(2), federation=blobs(sizes=(700, 20)), rounds=1, fraction=1.0)
    found = trained(setup, setup.algorithm.init(setup.network, seed=0), "0")
    uniform = torch.full((2,), 0.5, dtype=torch.float64)
    shares = by_hand(setup, setup.algorithm.init(setup.network, seed=0), "0", uniform)[1]
    assert torch.allclose(found.memory[SHARES], shares.double(), atol=1e-7)


def ends(setup: Setup, kind: str) -> Progress:
    running = start_engine(setup, kind, 2 if kind == "processes" else 1)
    try:
        return train(setup, running)[-1]
    finally:
        running.close()


def equal() -> Federation:
    return blobs(sizes=(24,) * 6)


@pytest.mark.parametrize(("federation", "kind"), [(blobs, "processes"), (equal, "cohort"), (blobs, "cohort")])
def test_engines_agree(federation: Callable[[], Federation], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a cohort clients of one size train together; the others train alone, and it is said."""
    together: list[bool] = []
    run = Cohorts.run

    def watched(self: Cohorts, works: Any) -> Any:
        found = run(self, works)
        together.extend(isinstance(f, dict) for f in found)
        return found

    monkeypatch.setattr(Cohorts, "run", watched)
    setup = make(FedEM(3), federation=federation(), batch_size=7)
    alone = train(setup)[-1]
    if kind == "cohort" and federation is blobs:
        with pytest.warns(UserWarning, match="weights of single samples need clients of one size"):
            found = train(setup, Serial(setup, 8))[-1]
    else:
        found = ends(setup, kind)
    batched = kind == "cohort" and federation is equal
    assert all(together) if batched else not any(together)
    assert bool(together) == (kind == "cohort")
    pairs = [(alone.state.shared, found.state.shared), *((m, found.memories[c]) for c, m in alone.memories.items())]
    for a, b in pairs:
        assert all(torch.allclose(a[n], b[n], atol=1e-5) for n in a) if batched else same(a, b)


def test_clients_whose_labels_are_confused_alike_find_the_same_learners() -> None:
    whole = blobs(sizes=(44,) * 8)
    y = whole.y.clone()
    for client in whole.clients[::2]:
        mine = torch.cat([client.train, client.test])
        y[mine] = (y[mine] + 1) % 3
    options: dict[str, Any] = {"federation": replace(whole, y=y), "fraction": 1.0, "rounds": 15}
    ours, plain = (train(make(m, **options))[-1] for m in (FedEM(2), FedAvg()))
    first = [float(ours.memories[c.id][SHARES][0]) for c in whole.clients]
    low, high = sorted((first[::2], first[1::2]))
    assert max(low) < 0.5 < min(high)
    losses = [p.evaluation.history["loss_personal"] for p in (ours, plain)]
    assert losses[0] < 0.6 * losses[1]
