"""The contract, for every algorithm of the registry, and the identities between them, to the bit."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from conftest import UNEQUAL, blobs, make, same, small_net, train
from floco.algorithms import (
    ALGORITHMS,
    APFL,
    IFCA,
    LPFT,
    SCAFFOLD,
    Ditto,
    FedAvg,
    FedAvgFT,
    FedBABU,
    FedBN,
    FedEM,
    FedMerge,
    FedPer,
    FedProx,
    FedRep,
    FedRoD,
    FedSALoRA,
    FFALoRA,
    Floco,
    FlocoPlus,
    KNNPer,
    LGFedAvg,
    Local,
    PFedMe,
    SuPerFed,
)
from floco.algorithms.floco import SimplexMethod
from floco.client.round import models
from floco.client.setup import Setup
from floco.core.algorithm import Algorithm
from floco.core.errors import FlocoError
from floco.core.values import ServerState, Tensors, Training
from floco.engines.engine import Serial
from floco.server import rounds as loop
from floco.server.progress import Plan
from floco.simplex import Mixing, assign

TABLE: list[tuple[Algorithm, bool]] = [  # settings, and whether the method has a global model
    (Floco(endpoints=4, assign_at=3), True),
    (FlocoPlus(endpoints=4, assign_at=3, pull=0.5), True),
    (Floco(endpoints=4, assign_at=3, centers="own", step="mixture"), True),
    (FlocoPlus(endpoints=4, assign_at=3, centers="own", average="samples"), True),
    (FedAvg(), True),
    (FedAvgFT(), True),
    (Ditto(), True),
    (Local(), False),
    (FedProx(mu=0.1), True),
    (SCAFFOLD(), True),
    (PFedMe(), True),
    (APFL(), True),
    (FedPer(), False),
    (FedRep(), False),
    (FedRoD(), True),
    (SuPerFed(), True),
    (LPFT(), True),
    (LGFedAvg(), False),
    (FedBABU(), True),
    (IFCA(clusters=3), False),
    (FedBN(), False),
    (FedMerge(merged=3), False),
    (FedEM(learners=3), False),
    (KNNPer(), True),
    (FFALoRA(), True),
    (FedSALoRA(), False),
]


OPTIONS: list[Callable[[], dict[str, Any]]] = [dict, lambda: {"federation": blobs(sizes=UNEQUAL), "fraction": 0.3}]


def test_the_table_has_every_algorithm() -> None:
    assert {a.name for a, _ in TABLE} == set(ALGORITHMS)


@pytest.mark.parametrize(("algorithm", "has_global"), TABLE, ids=lambda v: getattr(v, "name", ""))
def test_contract(algorithm: Algorithm, has_global: bool) -> None:
    setup = make(algorithm)
    start = loop.initialize(setup)
    first = {n: t.clone() for n, t in start.state.shared.items()}
    progress = list(loop.rounds(setup, Serial(setup), Plan(evaluate_every=1), start))
    assert same(first, start.state.shared)  # values are never changed, only replaced
    assert [p.round for p in progress] == [1, 2, 3, 4, 5, 6]
    for p in progress:
        assert p.evaluation is not None
        assert not p.failures
        row = p.evaluation.history
        assert 0 <= row["accuracy_personal"] <= 1
        assert (row["accuracy_global"] is None) == (not has_global)
        assert [r["client"] for r in p.evaluation.clients] == list(setup.federation.ids)
    last = progress[-1]
    assert all(torch.isfinite(t).all() for t in last.state.shared.values())
    assert last.evaluation.history["loss_personal"] < 0.9 * math.log(3)  # it learns
    assert set(last.memories) <= {c for c, n in last.participated.items() if n}
    assert sum(last.participated.values()) == 6 * 3  # three clients a round


@pytest.mark.parametrize(("algorithm", "has_global"), TABLE, ids=lambda v: getattr(v, "name", ""))
def test_contract_with_unequal_clients_few_of_whom_take_part(algorithm: Algorithm, has_global: bool) -> None:
    setup = make(algorithm, federation=blobs(sizes=UNEQUAL), rounds=8, fraction=0.3)
    n = {c.id: len(c.train) for c in setup.federation.clients}
    for p in train(setup):
        assert not p.failures
        row, clients = p.evaluation.history, p.evaluation.clients
        assert [(r["client"], r["n_train"]) for r in clients] == list(n.items())
        for which in ("personal", *(["global_local"] if has_global else [])):
            accuracies = [r[f"accuracy_{which}"] for r in clients]
            assert row[f"accuracy_{which}"] == pytest.approx(sum(accuracies) / len(n))
            weighted = sum(a * r["n_test"] for a, r in zip(accuracies, clients, strict=True)) / sum(
                r["n_test"] for r in clients
            )
            assert row[f"accuracy_{which}_weighted"] == pytest.approx(weighted)
        assert set(p.memories) <= {c for c, times in p.participated.items() if times}
        assert all(own["center"].sum() == pytest.approx(1) for own in p.state.by_client.values() if "center" in own)
    assert row["loss_personal"] < 0.95 * math.log(3)
    assert sum(p.participated.values()) == 8 * round(0.3 * len(n))


@pytest.mark.parametrize(("algorithm", "has_global"), TABLE, ids=lambda v: getattr(v, "name", ""))
def test_a_rounds_shared_tensors_are_the_mean_by_samples_of_those_who_trained(
    algorithm: Algorithm, has_global: bool
) -> None:
    from floco.engines.jobs import Job, perform

    setup = make(algorithm, federation=blobs(sizes=UNEQUAL), rounds=3, fraction=0.3)
    before, after = train(setup)[-2:]
    jobs = loop.round_jobs(setup, before)
    updates = [
        perform(setup, Job(j.client, j.purpose, j.message, j.memory)).update for j in jobs if j.purpose == "train"
    ]
    n = [len(setup.federation.client(u.client).train) for u in updates]
    by_endpoint = () if setup.algorithm.mixing is None or not updates[0].extra else setup.algorithm.mixing.names
    # over those who chose it, or by clients' weights: test_ifca.py, test_fedmerge.py
    by_cluster = updates[0].shared if isinstance(algorithm, IFCA | FedMerge) else ()
    for name in set(updates[0].shared) - {*by_endpoint, *by_cluster}:
        expected = sum(k * u.shared[name].double() for k, u in zip(n, updates, strict=True)) / sum(n)
        assert torch.allclose(after.state.shared[name].double(), expected, atol=1e-6)


@pytest.mark.parametrize(("algorithm", "has_global"), TABLE, ids=lambda v: getattr(v, "name", ""))
def test_rows_say_who_never_trained(algorithm: Algorithm, has_global: bool) -> None:
    last = train(
        make(algorithm, rounds=1, fraction=0.3)
        if not hasattr(algorithm, "assign_at")
        else make(type(algorithm)(assign_at="never"), rounds=1, fraction=0.3)
    )[-1]
    assert sorted(r["participated"] for r in last.evaluation.clients) == [0, 0, 0, 0, 1, 1]
    assert all(r["accuracy_personal"] is not None for r in last.evaluation.clients)


@pytest.mark.parametrize(("algorithm", "has_global"), TABLE, ids=lambda v: getattr(v, "name", ""))
def test_another_seed_is_another_result(algorithm: Algorithm, has_global: bool) -> None:
    a, b = (train(make(algorithm, seed=s, rounds=4))[-1].evaluation.history for s in (0, 1))
    assert a["loss_personal"] != b["loss_personal"]


@pytest.mark.parametrize("options", OPTIONS, ids=["six clients", "unequal"])
def test_floco_with_one_endpoint_is_fedavg(options: Callable[[], dict[str, Any]]) -> None:
    floco, fedavg = train(make(Floco(endpoints=1, assign_at=3), **options())), train(make(FedAvg(), **options()))
    for a, b in zip(floco, fedavg, strict=True):
        assert same({n: t.reshape(b.state.shared[n].shape) for n, t in a.state.shared.items()}, b.state.shared)
        cost = ("steps", "parameters_down", "parameters_up", "bytes_down", "bytes_up")  # the probes of round tau
        assert {k: v for k, v in a.evaluation.history.items() if k not in cost} == {
            k: v for k, v in b.evaluation.history.items() if k not in cost
        }


@pytest.mark.parametrize("options", OPTIONS, ids=["six clients", "unequal"])
def test_dittos_shared_model_is_fedavgs(options: Callable[[], dict[str, Any]]) -> None:
    for a, b in zip(train(make(Ditto(pull=0.3), **options())), train(make(FedAvg(), **options())), strict=True):
        assert same(a.state.shared, b.state.shared)


@pytest.mark.parametrize("options", OPTIONS, ids=["six clients", "unequal"])
def test_fine_tunings_shared_model_is_fedavgs(options: Callable[[], dict[str, Any]]) -> None:
    for a, b in zip(train(make(FedAvgFT(), **options())), train(make(FedAvg(), **options())), strict=True):
        assert same(a.state.shared, b.state.shared)


@pytest.mark.parametrize("options", OPTIONS, ids=["six clients", "unequal"])
def test_floco_plus_shared_simplex_is_flocos(options: Callable[[], dict[str, Any]]) -> None:
    for a, b in zip(
        train(make(FlocoPlus(endpoints=4, assign_at=3), **options())),
        train(make(Floco(endpoints=4, assign_at=3), **options())),
        strict=True,
    ):
        assert same(a.state.shared, b.state.shared)
        assert a.state.by_client.keys() == b.state.by_client.keys()


def test_the_assignment_round_averages_only_the_selected() -> None:
    """Through tau the shared simplex moves as without an assignment; training differs from tau + 1 on."""
    with_, without = train(make(Floco(endpoints=4, assign_at=3))), train(make(Floco(endpoints=4, assign_at="never")))
    assert all(same(a.state.shared, b.state.shared) for a, b in zip(with_[:3], without[:3], strict=True))
    assert not same(with_[3].state.shared, without[3].state.shared)
    assert with_[2].participated == without[2].participated


def test_personal_and_global_model_part_in_the_assignment_round() -> None:
    rows = [p.evaluation.history for p in train(make(Floco(endpoints=4, assign_at=3)))]
    assert all(r["loss_personal"] == r["loss_global_local"] for r in rows[:2])
    assert all(r["loss_personal"] != r["loss_global_local"] for r in rows[2:])


def test_centers_are_the_assignment_of_the_signals() -> None:
    setup = make(Floco(endpoints=3, assign_at=2))
    progress = train(setup)
    before, after = progress[0].state, progress[1].state
    from floco.engines.jobs import Job, perform

    signals = []
    for c in setup.federation.ids:
        message = setup.algorithm.message(before, c, "probe")
        update = perform(setup, Job(c, "probe", message)).update
        signals.append(Mixing(("2.weight",), 4, 0.1).signal(before.shared, update.shared))
    expected = assign(torch.stack(signals), 3).centers
    order = {c: i for i, c in enumerate(setup.federation.ids)}
    for client, own in after.by_client.items():
        assert torch.allclose(own["center"], expected[order[client]], atol=1e-9)


def test_a_client_without_signal_is_placed_when_its_first_comes() -> None:
    class Late(Serial):
        """The client "0" cannot be reached until round 4."""

        def run(self, jobs):  # type: ignore[no-untyped-def]
            results = super().run(jobs)
            return [
                r
                for j, r in zip(jobs, results, strict=True)
                if j.purpose == "evaluate" or j.client != "0" or j.message.round > 4
            ]

    setup = make(Floco(endpoints=3, assign_at=2), fraction=1.0)
    progress = train(setup, Late(setup))
    assert "0" not in progress[3].state.by_client
    assert len(progress[3].state.by_client) == 5
    others = {c: t["center"] for c, t in progress[3].state.by_client.items()}
    after = progress[5].state.by_client
    assert after["0"]["center"].sum() == pytest.approx(1)
    assert all(torch.equal(after[c]["center"], center) for c, center in others.items())


def test_a_client_before_its_center_is_at_the_middle() -> None:
    setup = make(Floco(endpoints=3, assign_at="never"))
    last = train(setup)[-1]
    both = models(setup, "north", setup.algorithm.message(last.state, "north", "evaluate"), None)
    assert torch.allclose(both.personal["2.weight"], last.state.shared["2.weight"].mean(0), atol=1e-6)


def test_radius_zero_trains_at_the_center() -> None:
    setup = make(Floco(endpoints=3, radius=0, assign_at=2))
    state = train(setup)[2].state
    message = setup.algorithm.message(state, "north", "train")
    draws = setup.algorithm.sampler_of(message)(
        setup.algorithm.begin(message, {}, setup.facts("north")), 4, torch.Generator()
    )
    assert torch.equal(draws, state.by_client["north"]["center"].expand(4, -1))


def test_a_pull_of_zero_is_training_alone_and_a_strong_one_stays_near() -> None:
    def distance(pull: float) -> float:
        setup = make(Ditto(pull=pull), rounds=1, fraction=1.0)
        last = train(setup)[-1]
        first = loop.initialize(setup).state.shared
        return sum(float((last.memories["north"]["personal/" + n] - t).norm()) for n, t in first.items())

    assert distance(0) > distance(1) > distance(5) > 0


def test_dittos_pull_is_lambda_times_the_difference() -> None:
    """One step of batch size n: v1 = v0 - lr (g + lambda (v0 - w0)), with v0 != w0 from a round before."""
    setup = make(Ditto(pull=0.7), rounds=2, fraction=1.0, epochs=1, batch_size=100, momentum=0, weight_decay=0, lr=0.1)
    one, two = train(setup)
    w, v = one.state.shared, {n.removeprefix("personal/"): t for n, t in one.memories["east"].items()}
    net = small_net()
    net.load_state_dict(v)
    indices = setup.federation.client("east").train
    nn.functional.cross_entropy(net(setup.federation.inputs(indices)), setup.federation.y[indices]).backward()
    for name, p in net.named_parameters():
        expected = p.detach() - 0.1 * (p.grad + 0.7 * (p.detach() - w[name]))
        assert torch.allclose(two.memories["east"]["personal/" + name], expected, atol=1e-6)


def test_local_is_training_alone() -> None:
    """A federation of one client under FedAvg is that client under Local."""
    alone = blobs(ids=("north",))
    a, b = train(make(Local(), federation=alone))[-1], train(make(FedAvg(), federation=alone))[-1]
    assert a.state.shared == {}
    assert same({n.removeprefix("personal/"): t for n, t in a.memories["north"].items()}, b.state.shared)


def test_weighted_mean_is_by_sample_count() -> None:
    setup = make(FedAvg(), rounds=1, fraction=1.0)
    from floco.engines.jobs import Job, perform

    start = loop.initialize(setup).state
    updates = [
        perform(setup, Job(c, "train", setup.algorithm.message(start, c, "train"))).update for c in setup.federation.ids
    ]
    n = [len(c.train) for c in setup.federation.clients]
    expected = sum(k * u.shared["0.weight"].double() for k, u in zip(n, updates, strict=True)) / sum(n)
    assert torch.allclose(train(setup)[-1].state.shared["0.weight"].double(), expected, atol=1e-7)


def test_endpoint_zero_is_the_networks_own_and_the_rest_are_other_draws() -> None:
    setup = make(Floco(endpoints=3))
    endpoints = loop.initialize(setup).state.shared["2.weight"]
    assert torch.equal(endpoints[0], setup.network.parameters["2.weight"])
    assert not torch.equal(endpoints[1], endpoints[2])
    assert endpoints.std(dim=(1, 2)).max() < 2 * endpoints.std(dim=(1, 2)).min()


def test_mix_all_copies_one_dimensional_parameters() -> None:
    setup = make(Floco(endpoints=3, mix="all"))
    shared = loop.initialize(setup).state.shared
    assert shared["0.weight"].shape == (3, 7, 5)
    assert torch.equal(shared["0.bias"][0], shared["0.bias"][2])
    assert train(setup)[-1].evaluation.history["loss_personal"] < 1


def test_endpoint_gradients_are_alpha_times_the_gradient() -> None:
    mixing, alpha = Mixing(("w",), 3, 0.1), torch.tensor([0.2, 0.5, 0.3])
    w = torch.randn(3, 4, 5, requires_grad=True)
    effective = mixing({"w": w}, alpha)["w"]
    upstream = torch.randn(4, 5)
    (grad,) = torch.autograd.grad(effective, w, upstream)
    assert torch.allclose(grad, alpha[:, None, None] * upstream, atol=1e-6)


@pytest.mark.parametrize("at", [0, -3, 7, "sometimes", 2.5])
def test_assign_at_must_be_a_round(at: object) -> None:
    with pytest.raises(FlocoError, match="assign_at"):
        Floco(assign_at=at).resolved(Training(rounds=6))


def test_the_assignment_is_at_half_of_the_rounds_by_default() -> None:
    assert Floco().resolved(Training(rounds=500)).assign_at == 250
    assert Floco().resolved(Training(rounds=1)).assign_at == 1


@pytest.mark.parametrize("algorithm", [Floco, FlocoPlus])
def test_a_negative_radius_is_refused(algorithm: type[Floco]) -> None:
    with pytest.raises(FlocoError, match=r"radius must be >= 0, got -0.1"):
        algorithm(radius=-0.1)


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 1, 5)),
        nn.Conv2d(1, 8, (1, 3)),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def test_floco_with_one_endpoint_of_everything_is_fedavg_on_convolutions() -> None:
    floco, fedavg = (
        train(make(Floco(endpoints=1, assign_at=3, mix="all"), model=conv_net)),
        train(make(FedAvg(), model=conv_net)),
    )
    for a, b in zip(floco, fedavg, strict=True):
        assert same({n: t[0] for n, t in a.state.shared.items()}, b.state.shared)


def fresh(algorithm: Algorithm, rounds: int = 6) -> tuple[Setup, ServerState, dict[str, Tensors]]:
    setup = make(algorithm, rounds=rounds, fraction=1.0)
    last = train(setup)[-1]
    return setup, last.state, dict(last.memories)


@pytest.mark.parametrize(
    "algorithm",
    [Floco(endpoints=4, assign_at=2, radius=0.05), FlocoPlus(endpoints=4, assign_at=2, radius=0.05)],
    ids=lambda a: a.name,
)
def test_all_phases_draw_their_mixtures_in_the_subregion(algorithm: SimplexMethod) -> None:
    setup, state, memories = fresh(algorithm, 3)
    message, facts = setup.algorithm.message(state, "east", "train"), setup.facts("east")
    tensors = setup.algorithm.begin(message, memories.get("east", {}), facts)
    center = state.by_client["east"]["center"]
    for phase in setup.algorithm.phases(message, facts):
        draws = phase.draws(tensors, 30, torch.Generator().manual_seed(0))
        assert ((draws - center).abs().sum(1) <= 0.05 + 1e-9).all()


def test_floco_plus_personal_model_is_its_own_simplex_at_its_center() -> None:
    setup, state, memories = fresh(FlocoPlus(endpoints=4, assign_at=2))
    both = models(setup, "east", setup.algorithm.message(state, "east", "evaluate"), memories["east"])
    center = state.by_client["east"]["center"].float()
    own = memories["east"]["personal/2.weight"]
    assert torch.allclose(both.personal["2.weight"], torch.einsum("m,mij->ij", center, own))
    assert torch.allclose(both.global_["2.weight"], state.shared["2.weight"].mean(0), atol=1e-6)


def test_flocos_global_model_is_the_middle_and_the_personal_one_the_center() -> None:
    setup, state, _ = fresh(Floco(endpoints=4, assign_at=2))
    both = models(setup, "east", setup.algorithm.message(state, "east", "evaluate"), None)
    center = state.by_client["east"]["center"].float()
    assert torch.allclose(both.global_["2.weight"], state.shared["2.weight"].mean(0), atol=1e-6)
    assert torch.allclose(both.personal["2.weight"], torch.einsum("m,mij->ij", center, state.shared["2.weight"]))


def test_floco_plus_pull_keeps_the_personal_simplex_near_the_received() -> None:
    def distance(pull: float) -> float:
        setup, _, memories = fresh(FlocoPlus(endpoints=3, pull=pull), 1)
        first = loop.initialize(setup).state.shared
        return sum(float((memories["east"]["personal/" + n] - t).norm()) for n, t in first.items())

    assert distance(0) > distance(1) > distance(5) > 0


def test_fine_tuning_is_local_epochs_from_the_global_model() -> None:
    """It equals one round of Ditto's personal phase without a pull, up to the shuffles: with full batches, exactly."""
    options = {"rounds": 1, "fraction": 1.0, "batch_size": 1000}
    tuned = make(FedAvgFT(personal_epochs=3), **options)
    start = loop.initialize(tuned).state
    personal = models(tuned, "east", tuned.algorithm.message(start, "east", "evaluate"), None).personal
    alone = train(make(Ditto(pull=0, personal_epochs=3), **options))[-1].memories["east"]
    assert all(torch.allclose(personal[n], alone["personal/" + n], atol=1e-5) for n in personal)
    assert not torch.equal(personal["0.weight"], start.shared["0.weight"])


@pytest.mark.parametrize("algorithm", [Ditto, FlocoPlus, FedAvgFT])
def test_personal_epochs_count(algorithm: type[Ditto]) -> None:
    few, many = (train(make(algorithm(personal_epochs=e), rounds=1))[-1].evaluation.history for e in (1, 6))
    assert few["loss_personal"] != many["loss_personal"]
    assert few["loss_global_local"] == many["loss_global_local"]


def test_a_late_client_is_placed_by_the_stored_map() -> None:
    setup = make(Floco(endpoints=3, assign_at=1), rounds=2, fraction=1.0)
    from floco.engines.jobs import Job, perform

    algorithm, start = setup.algorithm, loop.initialize(setup).state
    updates = {
        c: perform(setup, Job(c, "train", algorithm.message(start, c, "train"))).update for c in setup.federation.ids
    }
    early = [u for c, u in updates.items() if c != "0"]
    mixing = Mixing(("2.weight",), 4, 0.1)
    expected = assign(torch.stack([mixing.signal(start.shared, u.shared) for u in early]), 3)
    after = algorithm.aggregate(start, early, clients=setup.sizes)
    late = perform(setup, Job("0", "train", algorithm.message(after, "0", "train"))).update
    placed = algorithm.aggregate(after, [late], clients=setup.sizes).by_client["0"]["center"]
    assert torch.allclose(placed, expected.place(mixing.signal(after.shared, late.shared)[None])[0])
    assert not torch.allclose(placed, torch.full((3,), 1 / 3, dtype=torch.float64))


@pytest.mark.parametrize("change", [{"sampler": "released"}, {"normalize": False}, {"radius": 1.0}], ids=str)
def test_settings_of_the_simplex_have_an_effect_after_the_assignment_only(change: dict[str, object]) -> None:
    a, b = train(make(Floco(endpoints=4, assign_at=3))), train(make(Floco(endpoints=4, assign_at=3, **change)))
    assert same(a[2].state.shared, b[2].state.shared)
    assert not same(a[-1].state.shared, b[-1].state.shared)


def test_a_probe_leaves_no_memory() -> None:
    setup = make(FlocoPlus(endpoints=3, assign_at=1), rounds=1, fraction=0.3)
    last = train(setup)[-1]
    assert len(last.memories) == 2
    assert len(last.state.by_client) == 6


def test_a_probe_sends_its_endpoints_only() -> None:
    rows = [p.evaluation.history for p in train(make(Floco(endpoints=4, assign_at=2), rounds=2))]
    endpoints, rest = 4 * 21 * 4, (35 + 7 + 3) * 4  # bytes of float32
    assert rows[0]["bytes_up"] == 3 * (endpoints + rest)
    assert rows[1]["bytes_up"] == 3 * (endpoints + rest) + 3 * endpoints
