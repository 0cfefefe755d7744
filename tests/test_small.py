"""Clients too small for a training and a test part: refused, left out, or trained and not evaluated."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

import floco
from conftest import floco as command
from conftest import rows, same
from floco.analysis import tables
from floco.core.errors import FlocoError
from floco.core.values import ClientInfo
from floco.data.samples import Samples
from floco.flower.answering import answer
from floco.flower.dispatch import Questions
from floco.flower.protocol import Ask
from floco.flower.site import SiteConfig, introduce
from floco.runs import session
from floco.runs.toml import as_dict, read
from floco.server.rounds import initialize

pytestmark = pytest.mark.filterwarnings("ignore:.* too small for a training and:UserWarning")

SIZES = {"a": 20, "b": 1, "c": 12, "d": 2, "e": 25, "f": 1}


def arrays(sizes: dict[str, int] = SIZES, when: Any = None) -> dict[str, Any]:
    g, n = np.random.default_rng(0), sum(sizes.values())
    y = np.arange(n) % 3
    x = g.normal(size=(n, 6)).astype("f4")
    x[np.arange(n), y] += 3
    made = {"x": x, "y": y, "client": np.repeat([*sizes], [*sizes.values()])}
    return made if when is None else {**made, "when": when}


def samples(sizes: dict[str, int] = SIZES) -> Samples:
    return floco.load(arrays(sizes))


def parts(federation: floco.Federation) -> dict[str, tuple[int, int]]:
    return {c.id: (len(c.train), len(c.test)) for c in federation.clients}


ALL = {"a": (16, 4), "c": (10, 2), "d": (1, 1), "e": (20, 5)}
RULES = [
    ({"small": "drop"}, ALL, "2 of 6 .*; 2 left out: b, f"),
    ({"small": "train-only"}, {**ALL, "b": (1, 0), "f": (1, 0)}, "2 of 6 .*; 2 only train and are not evaluated: b, f"),
    ({"small": "drop", "least": 2}, {k: ALL[k] for k in "ace"}, "3 of 6 .*; 3 left out: b, d, f"),
    (
        {"small": "train-only", "least": 2},
        {**{k: ALL[k] for k in "ace"}, "d": (2, 0)},
        "1 only train and are not evaluated: d; 2 left out: b, f",
    ),
]


@pytest.mark.parametrize(("rule", "expected", "says"), RULES, ids=[str(r[0]) for r in RULES])
def test_small_clients_become_what_the_rule_says_and_are_counted(rule: Any, expected: Any, says: str) -> None:
    with pytest.warns(UserWarning, match=says):
        assert parts(samples().split(floco.Natural(), **rule)) == expected


def test_small_clients_are_all_counted_in_an_error_that_names_the_setting() -> None:
    with pytest.raises(FlocoError, match=r'2 of 6 .*"b" has 1 samples.*"f" has 1 .*data\.small to drop'):
        samples().split(floco.Natural())
    with pytest.raises(FlocoError, match=r'3 of 6 .*"d" has 1 training samples; data\.least = 2'):
        samples().split(floco.Natural(), least=2)


@pytest.mark.parametrize("small", ["drop", "train-only"])
@pytest.mark.parametrize("when", [[0, 1, 2, 3, 4, 5, 7, 7, 7], [0, 1, 2, 3, 4, 5, 8, 9]], ids=["one time", "none left"])
def test_clients_without_an_order_are_small_too(when: list[int], small: str) -> None:
    made = floco.load(arrays({"a": 6, "b": len(when) - 6}, np.array(when)))
    with pytest.warns(UserWarning, match="1 of 2 clients is too small"):
        found = parts(made.split(floco.Natural(), order="when", small=small))
    assert found == {"a": (4, 1)} | ({"b": (len(when) - 6, 0)} if small == "train-only" else {})


@pytest.mark.parametrize(
    ("sizes", "rule", "says"),
    [
        ({"a": 1, "b": 1}, {"small": "drop"}, "no client is left"),
        ({"a": 1, "b": 1}, {"small": "train-only"}, "no client has a test part"),
        (SIZES, {"small": "skip"}, "data.small must be one of error, drop, train-only"),
        (SIZES, {"least": 0}, "data.least 1 at least"),
        (SIZES, {"small": "drop", "held_out": 4}, "data.held_out must leave one client at least of 4"),
    ],
)
def test_rules_that_leave_nothing_are_refused(sizes: Any, rule: Any, says: str) -> None:
    warnings.simplefilter("ignore")
    with pytest.raises(FlocoError, match=says):
        samples(sizes).split(floco.Natural(), **rule)


def test_defaults_and_clients_large_enough_are_as_before() -> None:
    large = samples({"a": 20, "b": 30})
    federations = [large.split(floco.Natural(), **rule) for rule in ({}, *(r[0] for r in RULES))]
    assert len({f.fingerprint() for f in federations}) == 1


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods on a federation with clients that only train; the last two clients are held out."""
    path = tmp_path_factory.mktemp("small")
    np.savez(path / "data.npz", **arrays({**SIZES, "g": 30}))
    source = [f"data.source=npz:{path / 'data.npz'}", "data.split=natural", "data.small=train-only", "data.held_out=2"]
    short = [
        "training.rounds=2",
        "training.fraction=1.0",
        "run.engine=serial",
        "floco.assign_at=1",
        "floco.endpoints=2",
    ]
    given = [w for s in [*source, *short] for w in ("-s", s)]
    made = command("compare", "-a", "floco,fedavg", "--seeds", 1, "--tune", *given, "--out", path / "out")
    assert made.exit_code == 0, made.output
    return path / "out"


def test_a_client_without_a_test_part_trains_and_counts_in_no_mean(compared: Path) -> None:
    run = compared / "runs" / "floco-seed0"
    clients, last = rows(run / "clients.csv"), rows(run / "history.csv")[-1]
    assert {r["client"] for r in clients} == {"a", "c", "d", "e"}
    assert all(r["n_test"] != "0" for r in clients)
    values = [float(r["accuracy_personal"]) for r in clients if r["round"] == "2"]
    assert float(last["accuracy_personal"]) == pytest.approx(np.mean(values))
    assert last["clients_evaluated"] == "4"
    found = tables.load([run]).runs.iloc[0]
    assert found["steps_per_client"] == int(last["steps"]) / 5
    opened = floco.open_run(run)
    assert opened.progress.participated == dict.fromkeys("abcde", 2)
    assert {*opened.newcomers["client"]} == {"g"}


def test_what_comes_after_a_run_bears_clients_without_a_test_part(compared: Path, tmp_path: Path) -> None:
    run = compared / "runs" / "floco-seed0"
    resumed = command("resume", run)
    assert "clients without an evaluation" in resumed.output
    assert "1 of 5" in resumed.output
    assert command("report", run, "-o", tmp_path / "r.html").exit_code == 0
    for at, who in (("center", ["--all"]), ("best", ["--client", "b"])):
        made = command("export", run, "-o", tmp_path / at, "--at", at, *who)
        assert made.exit_code == 0, made.output
        card = json.loads((tmp_path / at / "b.safetensors.json").read_text())
        assert card["metrics"] is None
        assert "Not evaluated" in (tmp_path / at / "b.safetensors.md").read_text()
    np.savez(tmp_path / "new.npz", **{k: v for k, v in arrays({"b": 40}).items() if k != "client"})
    checked = command("place", run, tmp_path / "new.npz", "--check", "--client", "b")
    assert checked.exit_code == 2
    assert "own test part" in checked.output


@pytest.mark.parametrize("engine", ["processes", "cohort"])
def test_engines_agree_on_clients_of_one_sample(engine: str) -> None:
    with pytest.warns(UserWarning, match="only train"):
        federation = samples().split(floco.Natural(), small="train-only")
    one, other = (
        floco.fit(
            lambda: nn.Linear(6, 3), federation, floco.Floco(endpoints=3), rounds=2, engine=e, workers=2, fraction=1.0
        )
        for e in ("serial", engine)
    )
    if engine == "processes":
        assert same(one.progress.state.shared, other.progress.state.shared)
    for name, tensor in one.progress.state.shared.items():
        assert np.allclose(tensor, other.progress.state.shared[name], atol=1e-6), name
    assert one.clients["client"].tolist() == ["a", "c", "d", "e"]


def test_a_site_without_a_test_part_trains_and_is_not_asked_for_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"north": 30, "south": 1}
    shared = ['data.labels=["0","1","2"]', "flower.shape=[6]", "data.small=train-only", "data.normalize=none"]
    config = read(None, [*shared, "training.rounds=2", "data.source=sites", "algorithm.name=fedavg"])
    text = json.dumps(as_dict(config))
    sites = []
    for i, (name, n) in enumerate(sizes.items()):
        np.savez(tmp_path / f"{name}.npz", **{k: v for k, v in arrays({name: n}).items() if k != "client"})
        sites.append(SiteConfig(name, f"npz:{tmp_path / f'{name}.npz'}", tmp_path / f"state{i}"))
    with pytest.warns(UserWarning, match="1 of 1 clients is too small"):
        facts = [introduce(site, text) for site in sites]
    assert [(f["n_train"], f["n_test"]) for f in facts] == [(24, 6), (1, 0)]
    setup = session.prepare(sites[0].config(text))
    remote = tuple(ClientInfo(s.client, f["n_train"], f["n_test"]) for s, f in zip(sites, facts, strict=True))
    setup = replace(setup, remote=remote)
    progress = initialize(setup)
    evaluating: dict[int, bool] = {}

    def exchange(asked: dict[int, Message], seconds: float) -> dict[int, Message]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            asks = {n: Ask.of(m.content) for n, m in asked.items()}
            evaluating.update({n: a.evaluate for n, a in asks.items()})
            found = {n: answer(sites[n], ask) for n, ask in asks.items()}
        return {
            n: SimpleNamespace(content=a.records(share_labels=True), has_error=lambda: False) for n, a in found.items()
        }

    nodes: Any = SimpleNamespace(by_client={"north": 0, "south": 1}, exchange=exchange)
    for key in ("_task_id", "_run_id", "_node_id"):  # messages can be made, as in a process of Flower's
        monkeypatch.setattr(TaskIdentity, key, 1, raising=False)
    asker = Questions(nodes, config, "run1", setup.network.fingerprint(), print)
    _, evaluated = asker.ask(setup, progress, [], evaluating=True)
    assert [(r.client, r.failure) for r in evaluated] == [("north", None)]
    assert evaluating == {0: True, 1: False}
    assert all((s.state / "run1" / "run.json").exists() for s in sites)  # the last state is left with both


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize(
    ("sizes", "settings", "says"),
    [
        ({"a": 20, "b": 2, "c": 2}, {}, r"BatchNorm1d needs 2 samples a batch: clients b, c \(2 of 3.*data.least = 2"),
        ({"a": 20, "b": 20}, {"batch_size": 1}, r"clients a, b \(2 of 2 .*batch_size to 2"),
    ],
)
def test_batches_of_one_are_refused_before_the_first_round_if_the_network_cannot(
    sizes: dict[str, int], settings: dict[str, int], says: str
) -> None:
    federation = samples(sizes).split(floco.Natural())
    with pytest.raises(FlocoError, match=says):
        floco.fit(batch_norm, federation, floco.Floco(endpoints=2), rounds=1, engine="serial", **settings)
    run = floco.fit(
        lambda: nn.Linear(6, 3), federation, floco.Floco(endpoints=2), rounds=1, engine="serial", **settings
    )
    assert run.failures.empty


def test_with_two_samples_at_least_a_batch_norm_never_fails() -> None:
    with pytest.warns(UserWarning, match="too small"):
        federation = samples().split(floco.Natural(), small="drop", least=2)
    run = floco.fit(batch_norm, federation, floco.Floco(endpoints=3), rounds=2, engine="serial", fraction=1.0)
    assert run.failures.empty
