"""Which model a client takes home, whatever the method: fine-tuned, or chosen on samples that nobody trained on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import floco as package
from conftest import ANY_NETWORK, alone, blobs, floco, make, same, small_net, train, write_blobs
from floco.algorithms import LPFT, FedAvg, FedAvgFT, Floco, FlocoPlus, Local
from floco.analysis import choices
from floco.client.choice import pick
from floco.client.round import find_models
from floco.client.setup import Setup
from floco.core.algorithm import Algorithm
from floco.core.delivery import CANDIDATES, Delivery
from floco.core.errors import FlocoError
from floco.core.values import ClientInfo
from floco.data.federation import Client, Federation
from floco.data.holdout import hold_back
from floco.deliver.newcomers import newcomer_rows
from floco.deliver.personal import deliver
from floco.engines.engine import start_engine
from floco.runs.toml import read
from floco.server.progress import Progress
from floco.storage.files import read_json, read_tensors
from floco.tasks import Classification
from test_store import contents

CHOSEN, TUNED = Delivery(model="chosen", held_back=0.3, local_epochs=2), Delivery(model="finetuned", epochs=1)
METHODS = [name for name, cls in ANY_NETWORK.items() if not cls.distributions]
"""Those whose personal model is one network."""


def delivering(algorithm: Algorithm, delivery: Delivery, **more: Any) -> Setup:
    return replace(make(algorithm, **{"rounds": 2, "fraction": 0.7, **more}), delivery=delivery)


def history(setup: Setup, engine: str = "serial") -> list[Progress]:
    running = start_engine(setup, engine, 2 if engine == "processes" else 1)
    try:
        return train(setup, running)
    finally:
        running.close()


def evaluated(progress: Progress) -> tuple[Any, Any]:
    assert progress.evaluation is not None
    return progress.evaluation.history, progress.evaluation.clients


@pytest.mark.parametrize("prior", ["none", "client"])
@pytest.mark.parametrize(
    ("head", "whole", "method"),
    [(3, 2, LPFT(head_epochs=3, personal_epochs=2)), (0, 2, FedAvgFT(personal_epochs=2)), (None, None, LPFT())],
)
def test_fedavg_fine_tuned_is_lp_ft_to_the_bit(head: int | None, whole: int | None, method: Any, prior: str) -> None:
    more = {"federation": replace(blobs(), task=Classification(prior=prior)), "head_lr": 0.2}
    tuned = delivering(FedAvg(), Delivery(model="finetuned", head_epochs=head, epochs=whole), **more)
    one, other = history(tuned)[-1], history(make(method, rounds=2, fraction=0.7, **more))[-1]
    assert evaluated(one) == evaluated(other)


@pytest.mark.parametrize("method", METHODS)
def test_fine_tuning_changes_what_clients_take_home_and_nothing_else(method: str) -> None:
    plain, tuned = (history(delivering(ANY_NETWORK[method](), d))[-1] for d in (Delivery(), TUNED))
    assert same(plain.state.shared, tuned.state.shared)
    before, after = evaluated(plain)[0], evaluated(tuned)[0]
    assert before["loss_global"] == after["loss_global"]
    assert before["loss_personal"] != after["loss_personal"]
    assert before["steps_adapt"] < after["steps_adapt"]
    assert before.keys() == after.keys()


@pytest.mark.parametrize("method", METHODS)
def test_all_engines_deliver_alike(method: str) -> None:
    setup = delivering(ANY_NETWORK[method](), CHOSEN)
    serial, processes, cohort = (evaluated(history(setup, e)[-1]) for e in ("serial", "processes", "cohort"))
    assert serial == processes
    assert [r["delivered"] for r in serial[1]] == [r["delivered"] for r in cohort[1]]
    for one, other in zip(serial[1], cohort[1], strict=True):
        assert one["loss_personal"] == pytest.approx(other["loss_personal"], rel=1e-4)
    assert serial[0]["steps_adapt"] == cohort[0]["steps_adapt"]


@pytest.mark.parametrize("kind", ["finetuned", "chosen"])
@pytest.mark.parametrize("method", [name for name in ANY_NETWORK if name not in METHODS])
def test_a_model_of_several_networks_is_neither_fine_tuned_nor_chosen(method: str, kind: str) -> None:
    with pytest.raises(FlocoError, match=f'a personal model of {method} is no one network: set deliver.model = "pers'):
        delivering(ANY_NETWORK[method](), Delivery(model=kind))


def spoiled(federation: Federation, setup: Setup) -> Federation:
    """The federation with other inputs and targets where samples are held back."""
    x, y = federation.x.clone(), federation.y.clone()
    for client in federation.ids:
        held = setup.divide(client)[1]
        x[held], y[held] = 100 * x[held], (y[held] + 1) % 3
    return replace(federation, x=x, y=y)


@pytest.mark.parametrize("method", [*METHODS, "own centers"])
def test_nothing_is_trained_on_what_is_held_back(method: str) -> None:
    known = {**ANY_NETWORK, "own centers": lambda: Floco(endpoints=3, centers="own")}
    setup = delivering(known[method](), CHOSEN)
    other = replace(setup, federation=spoiled(setup.federation, setup))
    one, two = history(setup)[-1], history(other)[-1]
    assert same(one.state.shared, two.state.shared)
    assert all(
        same(one.memories.of(c).tensors, two.memories.of(c).tensors) for c in setup.clients if one.memories.of(c)
    )
    chosen = [r["delivered"] for r in evaluated(one)[1]]
    assert chosen != [r["delivered"] for r in evaluated(two)[1]]


def test_a_share_of_the_training_part_is_held_back_and_no_sample_twice() -> None:
    setup = delivering(FedAvg(), Delivery(model="chosen", held_back=0.25))
    for client in setup.federation.clients:
        train, held = setup.divide(client.id)
        assert len(held) == round(0.25 * len(client.train))
        assert sorted([*train.tolist(), *held.tolist()]) == client.train.tolist()
        assert setup.sizes[client.id] == setup.facts(client.id).n_train == len(train)
        assert sum(setup.facts(client.id).label_counts) == len(train)
    assert {r["client"]: r["n_train"] for r in evaluated(history(setup)[-1])[1]} == setup.sizes


@pytest.mark.parametrize(("n", "share", "held"), [(22, 0.2, 4), (7, 0.2, 0), (8, 0.2, 2), (2, 0.9, 0), (3, 0.9, 0)])
def test_one_sample_is_not_enough_to_choose_by_and_all_are_too_many(n: int, share: float, held: int) -> None:
    assert Delivery(model="chosen", held_back=share).hold_back(n) == held
    assert Delivery(model="finetuned", held_back=share).hold_back(n) == 0


@pytest.mark.parametrize(
    ("when", "held"),
    [
        ([*range(20)], 4),
        ([0] * 4 + [1] * 16, 0),  # 16 of one time would be held back in place of 4
        ([0] * 19 + [1], 0),  # and here 1
        ([0] * 15 + [1] * 5, 5),
        ([0] * 20, 0),
    ],
)
def test_samples_of_one_time_stay_together_and_none_is_held_back_if_that_is_far_from_the_share(
    when: list[int], held: int
) -> None:
    client = Client("c", torch.arange(20), torch.arange(0), torch.tensor(when))
    train, rest = hold_back(client, Delivery(model="chosen", held_back=0.2), seed=0)
    assert len(rest) == held
    assert held or len(train) == 20


def test_a_client_of_few_samples_takes_the_global_model_and_trains_on_all_of_them() -> None:
    few = blobs(sizes=(9, 9, 40))  # 5, 5 and 36 to train
    setup = delivering(Floco(endpoints=3, assign_at=1), Delivery(model="chosen"), federation=few)
    found = evaluated(history(setup)[-1])[1]
    assert [r["delivered"] for r in found[:2]] == ["global", "global"]
    assert [r["n_train"] for r in found] == [5, 5, 29]


def test_the_latest_samples_are_held_back_where_samples_have_an_order() -> None:
    federation = blobs(sizes=(24,) * 4)
    turned = [replace(c, when=torch.arange(len(c.train)).flip(0)) for c in federation.clients]
    setup = delivering(FedAvg(), CHOSEN, federation=replace(federation, clients=tuple(turned)))
    for client in turned:
        train, held = setup.divide(client.id)
        assert held.tolist() == client.train[:6].tolist()
        assert set(train.tolist()) < set(client.train[6:].tolist())
        assert setup.sizes[client.id] == len(train)


LEVEL = [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("losses", "taken"),
    [
        ({"global": LEVEL}, "global"),
        ({"global": LEVEL, "personal": LEVEL}, "global"),
        ({"global": LEVEL, "personal": [0.9, 1.9, 2.9, 3.9]}, "personal"),  # the error is 0
        ({"global": LEVEL, "personal": [1.1, 2.1, 3.1, 4.1]}, "global"),
        ({"global": LEVEL, "personal": [0.0, 2.0, 3.0, 4.0]}, "global"),  # gains 1, 0, 0, 0: mean 1/4, error 1/4
        ({"global": LEVEL, "personal": [0.0, 1.9, 3.0, 4.0]}, "personal"),
        ({"global": LEVEL, "personal": [0.5, 1.5, 2.5, 3.5], "finetuned": [0.4, 1.4, 2.4, 3.4]}, "finetuned"),
        ({"global": LEVEL, "personal": [0.5, 1.5, 2.5, 3.5], "finetuned": [0.5, 1.5, 2.5, 3.5]}, "personal"),
        ({"global": LEVEL, "personal": [0.9, 1.9, 2.9, 3.9], "finetuned": [0.0, 0.0, 0.0, 9.0]}, "personal"),
        ({"global": LEVEL, "finetuned": [float("nan")] * 4}, "global"),
        ({"personal": LEVEL, "local": [0.0, 0.0, 0.0, 0.0]}, "local"),
    ],
)
def test_another_model_is_taken_if_it_is_better_by_more_than_a_standard_error(losses: Any, taken: str) -> None:
    assert pick({name: torch.tensor(values) for name, values in losses.items()}) == taken


def candidates(algorithm: Algorithm, delivery: Delivery, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The models that a client chooses among."""
    seen: list[set[str]] = []

    def first(losses: Any) -> str:
        seen.append({*losses})
        return next(iter(losses))

    monkeypatch.setattr("floco.client.choice.pick", first)
    history(delivering(algorithm, delivery, rounds=1))
    assert all(found == seen[0] for found in seen)
    return seen[0]


@pytest.mark.parametrize(
    ("algorithm", "others"),
    [
        (FedAvg(), {"global"}),
        (Local(), {"personal"}),
        (FedAvgFT(), {"global", "personal"}),
        (Floco(endpoints=3), {"global", "personal", "best"}),
        (FlocoPlus(endpoints=3), {"global", "personal", "best"}),
        (Floco(endpoints=3, centers="own"), {"global", "personal"}),  # which are the best mixtures
    ],
    ids=lambda a: repr(a) if isinstance(a, Algorithm) else "",
)
def test_what_a_client_chooses_among(algorithm: Algorithm, others: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert candidates(algorithm, CHOSEN, monkeypatch) == {*others, "finetuned", "local"}
    few = Delivery(model="chosen", head_epochs=0, epochs=0)
    assert len(others) == 1 or candidates(algorithm, few, monkeypatch) == others
    assert {*others} <= {*CANDIDATES}


def take(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, clients take a candidate."""
    monkeypatch.setattr("floco.client.choice.pick", lambda losses: name if name in losses else "global")


@pytest.mark.parametrize("taken", CANDIDATES)
def test_what_a_client_takes_home_is_what_its_row_is_about(
    taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(taken, monkeypatch)
    given = [f"data.source=npz:{write_blobs(tmp_path / 'blobs.npz')}", "data.split=natural", "run.engine=serial"]
    own = ["algorithm.name=floco+", "algorithm.assign_at=1", "deliver.model=chosen", "deliver.local_epochs=2"]
    run = package.open_run(alone(read(None, [*given, *own, "training.rounds=2"]), tmp_path / "run"))
    federation = run.setup.with_samples("the test").federation
    for row in run.clients.to_dict("records"):
        assert row["delivered"] == taken
        module, test = run.personal(row["client"]), federation.client(row["client"]).test
        with torch.no_grad():
            outputs = module(federation.inputs(test))
        score = federation.task.score(outputs, federation.y[test])
        assert (score.accuracy, score.loss) == (row["accuracy_personal"], row["loss_personal"])
    losses = run.metrics[run.metrics["model"] == "personal"].set_index("client")["loss"]
    assert losses.to_dict() == run.clients.set_index("client")["loss_personal"].to_dict()
    (file,) = run.export(tmp_path / "north.safetensors", ["north"])
    assert same(read_tensors(file), dict(run.personal("north").state_dict()))
    card = read_json(file.with_name(f"{file.name}.json"))
    assert card["delivered"] == taken
    assert card.get("at") == {"personal": "center", "best": "best"}.get(taken)
    assert f"candidates, this is: {taken}." in file.with_name(f"{file.name}.md").read_text()


def test_the_best_mixture_is_that_of_the_samples_that_a_client_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    take("best", monkeypatch)
    federation = replace(blobs(), task=Classification(prior="client"))
    setup = delivering(Floco(endpoints=3, assign_at="never"), CHOSEN, federation=federation)
    last = history(setup)[-1]
    taken, best = (deliver(setup, last, "east", at=at) for at in ("center", "best"))
    assert same(taken.tensors, best.tensors)
    assert taken.taken == "best"
    assert torch.equal(taken.point, best.point)
    other = replace(setup, federation=spoiled(federation, setup))
    assert same(taken.tensors, deliver(other, last, "east").tensors)


def test_a_run_that_is_continued_delivers_the_same(tmp_path: Path) -> None:
    def go(out: str, rounds: int, **more: Any) -> None:
        settings = {"engine": "serial", "evaluate_every": 1, "out": tmp_path / out, **(more or {"deliver": CHOSEN})}
        package.fit(small_net, blobs(), Floco(endpoints=3, assign_at=1), rounds=rounds, **settings)

    go("whole", 3)
    go("part", 2)
    go("part", 3, resume=True, change=True)
    found = [
        {n: t for n, t in contents(tmp_path / out).items() if n.endswith((".csv", ".safetensors"))}
        for out in ("whole", "part")
    ]
    drop = {n for n in found[0] if "timings" in n}
    assert {n: t for n, t in found[0].items() if n not in drop} == {n: t for n, t in found[1].items() if n not in drop}


def test_newcomers_are_placed_with_all_their_samples() -> None:
    federation = blobs(sizes=(30,) * 6)
    held = replace(federation, clients=federation.clients[:5], held_out=federation.clients[5:])
    plain = make(Floco(endpoints=3, assign_at=1), federation=held, rounds=1)
    state = history(plain)[-1].state
    assert newcomer_rows(plain, state) == newcomer_rows(replace(plain, delivery=CHOSEN), state)


def test_a_cohort_trains_further_models_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def alone(setup: Setup, work: Any) -> Any:
        raise AssertionError(f"{work.client} trains alone")

    monkeypatch.setattr("floco.client.choice.train_client", alone)
    for method in (FedAvg(), FedAvgFT(), Floco(endpoints=3, centers="own")):
        assert evaluated(history(delivering(method, CHOSEN), "cohort")[-1])[0]["clients_failed"] == 0
    with pytest.raises(FlocoError, match="north trains alone"):
        history(delivering(FedAvg(), CHOSEN), "serial")


def headless() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3))


def test_a_network_without_a_head_can_be_fine_tuned_whole() -> None:
    with pytest.raises(FlocoError, match=r"the model has none .* set deliver\.head_epochs = 0"):
        delivering(FedAvg(), TUNED, model=headless)
    setup = delivering(FedAvg(), replace(TUNED, head_epochs=0), model=headless)
    assert evaluated(history(setup)[-1])[0]["steps_adapt"] > 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("deliver.model=best", "deliver.model must be one of 'personal', 'finetuned', 'chosen', got 'best'"),
        ("deliver.held_back=1", "deliver.held_back must be > 0 and < 1, got 1"),
        ("deliver.held_bak=0.1", "deliver: unknown key 'held_bak'; did you mean 'held_back'"),
        ('deliver={model="finetuned", head_epochs=0, epochs=0}', "needs head_epochs or epochs above 0"),
        ("deliver=chosen", "deliver must be a table"),
    ],
)
def test_wrong_settings_are_named(given: str, says: str) -> None:
    with pytest.raises(FlocoError) as error:
        read(None, [given])
    assert says in str(error.value)


def test_what_is_no_delivery_is_refused_in_python() -> None:
    with pytest.raises(FlocoError, match=r'deliver must be an object, e\.g\. floco\.Delivery\(model="chosen"\)'):
        package.fit(small_net, blobs(), FedAvg(), deliver="chosen")


def test_a_comparison_has_variants_that_deliver_otherwise_and_says_what_was_chosen(tmp_path: Path) -> None:
    data = [f"data.source=npz:{write_blobs(tmp_path / 'blobs.npz')}", "data.split=natural", "training.rounds=2"]
    own = [
        "deliver.head_epochs=1",
        "mine.deliver.model=chosen",
        "mine.deliver.held_back=0.3",
        "ft.deliver.model=finetuned",
    ]
    given = [w for text in (*data, *own, "run.engine=serial") for w in ("-s", text)]
    methods = "fedavg,mine=floco,ft=fedavg,lp-ft"
    done = floco(
        "compare", "-a", methods, "--seeds", "1", "--out", tmp_path / "out", *given, "-s", "lp-ft.head_epochs=1"
    )
    assert done.exit_code == 0, done.output
    clients = pd.read_csv(tmp_path / "out" / "clients.csv")
    by_method = clients.set_index("method")
    assert by_method["n_train"].groupby(level=0).unique().map(list).to_dict() == {
        "fedavg": [32],
        "ft": [32],
        "lp-ft": [32],
        "mine": [22],
    }
    assert set(clients[clients["delivered"].notna()]["method"]) == {"mine"}
    assert by_method.loc["ft", "loss_personal"].tolist() == by_method.loc["lp-ft", "loss_personal"].tolist()
    (line,) = choices.describe(clients)
    assert line.startswith("mine: of 6 clients, ")
    assert line in " ".join(done.output.split())
    assert floco("report", tmp_path / "out", "-o", tmp_path / "page.html").exit_code == 0
    assert line in (tmp_path / "page.html").read_text()
    wrong = floco("compare", "-a", "fedavg", "--out", tmp_path / "new", "-s", "fedavg.deliver.modle=chosen")
    assert wrong.exit_code == 2
    assert "fedavg: unknown key 'modle'; did you mean 'model'" in wrong.output


def test_choices_are_counted_in_words() -> None:
    table = pd.DataFrame({"delivered": ["personal"] * 3 + ["global"] * 2 + ["local"]})
    says = "of 6 clients, 2 the global model, 3 their personal model, 1 a local model (deliver.model)"
    assert choices.describe(table) == [says]
    assert choices.describe(table.drop(columns="delivered")) == []


def test_a_server_counts_what_its_sites_train_on() -> None:
    setup = delivering(FedAvg(), CHOSEN)
    there = replace(setup, remote=tuple(ClientInfo(c.id, len(c.train), len(c.test)) for c in setup.federation.clients))
    assert there.sizes == setup.sizes


def test_a_method_without_a_personal_model_delivers_none() -> None:
    class Shared(FedAvg):
        def models(self, tensors: Any, facts: Any) -> Any:
            return super().models(tensors, facts)._replace(personal=None)

    setup = delivering(Shared(), CHOSEN)
    last = history(setup)[-1]
    assert evaluated(last)[0]["loss_personal"] is None
    message = setup.algorithm.message(last.state, "north", "evaluate")
    assert find_models(setup, "north", message, None).models.personal is None
