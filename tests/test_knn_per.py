"""kNN-Per: neighbours among the training samples, probabilities that are mixed, a choice without the test part."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import floco
from conftest import UNEQUAL, batch_norm, blobs, convolution, make, same, small_net, train
from floco.algorithms import FedAvg, KNNPer
from floco.client.round import models
from floco.client.setup import Setup
from floco.core.combined import Combined
from floco.core.errors import FlocoError
from floco.core.values import Models
from floco.engines.engine import Serial, start_engine
from floco.server.progress import Progress
from floco.tasks import Classification, Regression
from floco.tasks.neighbours import Neighbours, choose_mixture


@pytest.mark.parametrize("model", [small_net, batch_norm, convolution], ids=lambda m: m.__name__)
@pytest.mark.parametrize("prior", ["none", "client"])
def test_without_weight_of_the_neighbours_it_is_fedavg_and_with_it_its_global_model_is(model: Any, prior: str) -> None:
    federation = replace(blobs(sizes=UNEQUAL), task=Classification(prior=prior))
    none, some, plain = (
        train(make(m, federation=federation, model=model, fraction=0.3)) for m in (KNNPer(weight=0), KNNPer(), FedAvg())
    )
    for a, b, c in zip(none, some, plain, strict=True):
        assert same(a.state.shared, c.state.shared)
        assert same(b.state.shared, c.state.shared)
        assert a.evaluation.history == c.evaluation.history
        both = {k: v for k, v in b.evaluation.history.items() if "_personal" not in k}
        assert both == {k: c.evaluation.history[k] for k in both}  # also bytes
    assert some[-1].evaluation.history["loss_personal"] != plain[-1].evaluation.history["loss_personal"]


def near(
    x: torch.Tensor, known: torch.Tensor, labels: torch.Tensor, k: int, scale: float, skip: int = -1
) -> list[float]:
    """p_knn of one sample, in plain Python."""
    order = sorted((math.dist(x.tolist(), t.tolist()), i) for i, t in enumerate(known) if i != skip)[:k]
    made = [0.0, 0.0, 0.0]
    for d, i in order:
        made[int(labels[i])] += math.exp(-d / scale)
    return [v / sum(made) for v in made]


@pytest.mark.parametrize("k", [1, 4, 100])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_probabilities_of_neighbours_and_network_are_mixed(weight: float, k: int) -> None:
    """Not the shares of neighbours with raw logits; fewer samples than k are all neighbours."""
    g = torch.Generator().manual_seed(0)
    known, labels = torch.randn(12, 4, generator=g), torch.randint(3, (12,), generator=g)
    x, logits = torch.randn(5, 4, generator=g), 5 * torch.randn(5, 3, generator=g)
    found = Neighbours(known, labels, k, weight, 0.7)([logits, x]).softmax(1)
    for i in range(5):
        shares = torch.tensor(near(x[i], known, labels, k, 0.7))
        assert torch.allclose(found[i], weight * shares + (1 - weight) * logits[i].softmax(0), atol=1e-6)


def test_far_samples_have_neighbours_and_equal_ones_a_finite_scale() -> None:
    known, labels = torch.zeros(4, 2), torch.tensor([0, 1, 1, 1])
    found = Neighbours(known, labels, 10, 1.0, 1e-3)([torch.zeros(1, 2), torch.full((1, 2), 1e4)]).softmax(1)
    assert found[0].tolist() == pytest.approx([0.25, 0.75])
    assert all(map(math.isfinite, choose_mixture(known, labels, torch.zeros(4, 2), 10, None)))


@pytest.mark.parametrize("given", [None, 0.4])
def test_the_choice_is_the_lowest_loss_of_samples_that_are_not_their_own_neighbours(given: float | None) -> None:
    g = torch.Generator().manual_seed(3)
    labels = torch.randint(3, (25,), generator=g)
    features = torch.eye(3)[labels] + 0.9 * torch.randn(25, 3, generator=g)
    logits = torch.eye(3)[labels] + torch.randn(25, 3, generator=g)
    own = range(25)
    distances = torch.cdist(features.double(), features.double()).fill_diagonal_(torch.inf).sort().values[:, :5]
    losses = {}
    for weight in [i / 10 for i in range(11)] if given is None else [given]:
        for scale in (float(distances.mean()) * s for s in (0.1, 0.3, 1, 3, 10)):
            p = [
                weight * near(features[i], features, labels, 5, scale, skip=i)[labels[i]]
                + (1 - weight) * float(logits[i].softmax(0)[labels[i]])
                for i in own
            ]
            losses[weight, scale] = -sum(math.log(max(v, 1e-12)) for v in p) / 25
    best = min(losses, key=lambda at: losses[at])
    assert 0 < best[0] < 1
    assert choose_mixture(features, labels, logits, 5, given) == pytest.approx(best)


@pytest.mark.parametrize("given", [None, 0.4])
@pytest.mark.parametrize("seed", range(5))
def test_rounding_does_not_choose_among_scales_that_are_equally_good(seed: int, given: float | None) -> None:
    """Neighbours of one label have all the weight at any scale."""
    g = torch.Generator().manual_seed(seed)
    features, labels = torch.randn(12, 4, generator=g), torch.zeros(12, dtype=torch.long)
    scale = choose_mixture(features, labels, torch.randn(12, 3, generator=g), 5, given)[1]
    distances = torch.cdist(features.double(), features.double()).fill_diagonal_(torch.inf).sort().values[:, :5]
    assert scale == pytest.approx(0.1 * float(distances.mean()))


def test_labels_without_pattern_give_the_neighbours_no_weight() -> None:
    """A sample that were its own neighbour would always be right."""
    g = torch.Generator().manual_seed(0)
    features, labels = torch.randn(200, 4, generator=g), torch.randint(3, (200,), generator=g)
    assert choose_mixture(features, labels, torch.zeros(200, 3), 1, None)[0] <= 0.2


def evaluated(setup: Setup, last: Progress, client: str) -> Models:
    message = setup.algorithm.message(last.state, client, "evaluate")
    return models(setup, client, message, last.memories.get(client))


def test_the_test_part_chooses_nothing() -> None:
    setup = make(KNNPer(), federation=blobs(sizes=UNEQUAL), rounds=2)
    last, y = train(setup)[-1], setup.federation.y.clone()
    for client in setup.federation.clients:
        y[client.test] = (y[client.test] + 1) % 3
    other = make(KNNPer(), federation=replace(setup.federation, y=y), rounds=2)
    for client in setup.clients:
        a, b = evaluated(setup, last, client).personal, evaluated(other, last, client).personal
        assert isinstance(a, Combined) == isinstance(b, Combined)
        if isinstance(a, Combined) and isinstance(b, Combined):
            assert (a.combine.weight, a.combine.scale) == (b.combine.weight, b.combine.scale)
            assert len(a.combine.labels) == setup.clients[client].n_train


@pytest.mark.parametrize("prior", ["none", "client"])
def test_what_is_reported_predicted_and_taken_home_is_the_mixture(prior: str, tmp_path: Path) -> None:
    federation = replace(blobs(), task=Classification(prior=prior))
    run = floco.fit(small_net, federation, KNNPer(weight=0.5), rounds=3, fraction=1.0, lr=0.1, engine="serial")
    w, setup = run.progress.state.shared, run.setup
    for client, reported in zip(run.clients["client"], run.clients["accuracy_personal"], strict=True):
        part, both = federation.client(client), evaluated(setup, run.progress, client)
        x, body = federation.inputs(part.test), small_net()
        body.load_state_dict(w)
        known, features = body[:2](federation.inputs(part.train)), body[:2](x)
        scale = both.personal.combine.scale
        shift = setup.task.shift(setup.facts(client).label_counts)
        logits = body(x) + (0.0 if shift is None else shift)
        shares = torch.tensor([near(f, known, federation.y[part.train], 10, scale) for f in features])
        expected = (0.5 * shares + 0.5 * logits.softmax(1)).detach()
        assert float((expected.argmax(1) == federation.y[part.test]).double().mean()) == reported
        assert torch.allclose(run.personal(client)(x).softmax(1), expected, atol=1e-5)
        table = run.predict(federation.x[part.test], client)
        assert np.allclose(table.iloc[:, 2:].to_numpy(), expected.numpy(), atol=1e-5)
    with pytest.raises(FlocoError, match="of knn-per is no one network"):
        run.export(tmp_path / "models", ["north"])
    assert run.export(tmp_path / "models", [None])


class Scaled(nn.Module):
    """Something acts after the head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.head(self.body(x).tanh())


def test_networks_and_tasks_without_features_or_classes_are_refused() -> None:
    whole = blobs()
    with pytest.raises(FlocoError, match="knn-per mixes probabilities.*needs task classification"):
        make(KNNPer(), federation=replace(whole, y=whole.x[:, :3], names=(), task=Regression()))
    setup = make(KNNPer(), model=Scaled)
    with pytest.raises(FlocoError, match=r"the inputs of the last nn\.Linear, whose output must be the network's"):
        evaluated(setup, Progress(setup.algorithm.init(setup.network, seed=0)), "north")


def test_a_client_with_one_training_sample_has_the_global_model() -> None:
    setup = make(KNNPer(), federation=blobs(sizes=(5, 40, 6)), rounds=1, fraction=1.0)
    last = train(setup)[-1]
    assert not last.failures
    both = evaluated(setup, last, "0")
    assert both.personal is both.global_


@pytest.mark.parametrize("kind", ["processes", "cohort"])
def test_engines_agree(kind: str) -> None:
    setup = make(KNNPer(), rounds=3)
    alone = train(setup)[-1]
    running = start_engine(setup, kind, 2) if kind == "processes" else Serial(setup, 8)
    try:
        found = train(setup, running)[-1]
    finally:
        running.close()
    a, b = (p.evaluation.history for p in (alone, found))
    if kind == "processes":
        assert same(alone.state.shared, found.state.shared)
        assert a == b
    else:
        assert all(torch.allclose(t, found.state.shared[n], atol=1e-5) for n, t in alone.state.shared.items())
        assert a["loss_personal"] == pytest.approx(b["loss_personal"], abs=1e-3)
