"""What users bring in files of their own: methods, splits, tasks, and networks with several inputs."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from time import sleep
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import floco as package
from conftest import ANY_NETWORK, blobs, floco, make, rows, same, small_net, train
from floco import testing
from floco.algorithms import Ditto, FedAvg, FedRoD, Floco, FlocoPlus
from floco.client.setup import Setup
from floco.core import (
    Algorithm,
    Facts,
    FlocoError,
    Message,
    Metric,
    Metrics,
    Phase,
    Score,
    Step,
    Task,
    objects,
    plain_loss,
)
from floco.core.values import Selection, ServerState, Update
from floco.data.federation import Federation
from floco.data.partition import Folds, Iid
from floco.engines.engine import start_engine
from floco.runs.toml import parse
from floco.server.progress import Progress
from floco.tasks import Classification

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = ["training.rounds=4", "training.epochs=1", "run.evaluate_every=2", "run.engine=serial", "training.lr=0.05"]
OWN = {
    "method": ["algorithm.name=fedavgm:FedAvgM", "algorithm.beta=0.5"],
    "split": ["data.split=power_law:PowerLaw", "data.split.power=0.5", "data.clients=8"],
    "task": ["task.name=quantile:Quantile", "data.source=quantile:diabetes", "data.split=iid", "data.clients=6"],
}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples' files, and nothing of this project: the user stands in it."""
    for name in ("fedavgm", "power_law", "quantile"):
        shutil.copy(EXAMPLES / f"{name}.py", tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def settings(*texts: str) -> list[str]:
    return [part for text in texts for part in ("-s", text)]


def trained(setup: Setup, kind: str) -> Progress:
    """The end of a setup's run in an engine with two workers."""
    with closing(start_engine(setup, kind, 2)) as engine:
        return train(setup, engine)[-1]


@pytest.mark.parametrize("kind", OWN)
def test_what_is_ones_own_runs_and_resumes_from_the_command_line_to_the_same_bits(kind: str, elsewhere: Path) -> None:
    given = settings(*OWN[kind], *QUICK, "training.rounds=15")
    assert floco("run", *given, "--out", "whole").exit_code == 0
    command = [str(Path(sys.executable).with_name("floco")), "run", *given, "--out", "killed"]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        latest = Path("killed/checkpoint/latest")
        while not (latest.exists() and latest.read_text().strip() not in ("", "0")):
            assert process.poll() is None
            sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
    assert package.open_run("killed").progress.round < 15
    assert floco("resume", "killed").exit_code == 0
    for table in ("history.csv", "clients.csv"):
        assert Path("killed", table).read_bytes() == Path("whole", table).read_bytes()
    assert package.open_run("killed").progress.round == 15


def test_an_own_method_is_compared_beside_floco_and_its_settings_are_its_own(elsewhere: Path) -> None:
    given = settings(*QUICK, "fedavgm.beta=0.5", "floco.assign_at=2")
    result = floco("compare", "-a", "floco,fedavgm:FedAvgM,fedavg", "--seeds", "1", *given, "--out", "c", "--json")
    assert result.exit_code == 0, result.output
    assert [m["method"] for m in json.loads(result.stdout)["methods"]] == ["floco", "fedavgm", "fedavg"]
    config = json.loads(Path("c/runs/fedavgm-seed0/run.json").read_text())["config"]
    assert config["algorithm"] == {"name": "fedavgm:FedAvgM", "beta": 0.5}
    assert floco("report", "c").exit_code == 0
    assert "fedavgm" in Path("c/report.html").read_text()


def test_fedavgm_moves_with_momentum_and_without_it_is_fedavg(elsewhere: Path) -> None:
    from fedavgm import FedAvgM  # type: ignore[import-not-found]

    assert same(train(make(FedAvgM(beta=0.0)))[-1].state.shared, train(make(FedAvg()))[-1].state.shared)
    setup = make(FedAvgM(beta=0.5))
    before = replace(setup.algorithm.init(setup.network, seed=0), kept={"w": torch.tensor([2.0])})
    before = replace(before, shared={"w": torch.tensor([10.0])})
    updates = [Update(str(n), "train", n, {"w": torch.tensor([w])}) for n, w in ((1, 6.0), (3, 10.0))]
    after = setup.algorithm.aggregate(before, updates, clients={})  # v = 0.5 * 2 + 10 - 9
    assert (float(after.kept["w"]), float(after.shared["w"])) == (2.0, 8.0)
    testing.check_algorithm(FedAvgM())


def test_a_power_law_split_gives_every_sample_to_one_client_and_sizes_fall(elsewhere: Path) -> None:
    from power_law import PowerLaw  # type: ignore[import-not-found]

    clients = package.load("digits").split(PowerLaw(power=1.0), clients=5, seed=3).clients
    sizes = [len(c.train) + len(c.test) for c in clients]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] / sizes[4] == pytest.approx(5, rel=0.02)
    assert sum(sizes) == 1797


@dataclass(frozen=True)
class Errors(Score):
    n: int
    losses: float

    @property
    def rmse(self) -> float:
        return math.sqrt(self.losses / self.n)


@dataclass(frozen=True)
class Squares(Task):
    """A toy regression: all that another task than classification needs."""

    name: ClassVar[str] = "squares"
    metrics: ClassVar[Metrics] = Metrics({"rmse": Metric(higher=False)})
    score_type: ClassVar[type[Score]] = Errors

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.squeeze(1) - targets).square().mean()

    def score(self, outputs: torch.Tensor, targets: torch.Tensor) -> Errors:
        return Errors(len(targets), float((outputs.squeeze(1) - targets).double().square().sum()))


def line(n: int = 240, seed: int = 0) -> dict[str, Any]:
    """Samples of a linear function with noise, for eight clients."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, 4)).astype(np.float32)
    y = x @ [1.0, -2.0, 0.5, 0.0] + 0.1 * draw.normal(size=n)
    return {"x": x, "y": y, "client": np.repeat(np.arange(8), n // 8)}


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def regression(n: int = 240) -> Federation:
    return package.load(line(n), task=Squares()).split(package.Natural(), held_out=1)


def test_a_task_of_ones_own_is_learned_and_its_metric_names_the_columns() -> None:
    run = package.fit(linear, regression(), Floco(endpoints=3), rounds=12, epochs=2, lr=0.05, batch_size=8)
    assert {"rmse_personal", "rmse_global", "loss_personal_weighted"} <= set(run.history)
    assert not [c for c in run.history if "accuracy" in c]
    assert run.history["rmse_global"].iloc[-1] < 0.5 < np.std(line()["y"])
    worst, mean = (run.history[f"rmse_personal{w}"].iloc[-1] for w in ("_worst5", ""))
    assert worst > mean  # of errors, the worst are the largest


def test_rmse_is_that_of_the_predictions() -> None:
    federation = regression()
    run = package.fit(linear, federation, FedAvg(), rounds=3, lr=0.05)
    client = federation.clients[2]
    x, y = line()["x"][client.test.numpy()], line()["y"][client.test.numpy()]
    found = run.predict(x, client.id)["prediction"].to_numpy()
    known = run.clients.set_index("client")["rmse_personal"][client.id]
    assert np.sqrt(np.mean((found - y) ** 2)) == pytest.approx(known, rel=1e-5)


@pytest.mark.parametrize("name", [n for n in ANY_NETWORK if n not in ("fedrod", "fedem", "knn-per")])
def test_every_method_learns_a_task_without_classes(name: str) -> None:
    options = {"assign_at": 2} if name.startswith("floco") else {}
    run = package.fit(linear, regression(), ANY_NETWORK[name](**options), rounds=4, lr=0.03, evaluate_every=1)
    assert run.history["rmse_personal"].iloc[-1] < run.history["rmse_personal"].iloc[0]


@pytest.mark.parametrize("method", [Floco(endpoints=3, assign_at=2), FlocoPlus(endpoints=3, assign_at=2), Ditto()])
@pytest.mark.parametrize("kind", ["serial", "processes", "cohort"])
def test_engines_agree_on_a_task_without_padding(method: Algorithm, kind: str) -> None:
    setup = make(method, federation=regression(), model=linear, rounds=3, lr=0.03)
    alone = train(setup)[-1].state.shared
    found = trained(setup, kind).state.shared
    if kind == "cohort":
        assert all(torch.allclose(alone[n], found[n], atol=1e-5) for n in alone)
    else:
        assert same(alone, found)


def test_newcomers_drift_best_mixture_export_and_cards_follow_the_task(tmp_path: Path) -> None:
    run = package.fit(linear, regression(480), Floco(endpoints=3, assign_at=3), rounds=6, lr=0.05)
    new = line(48, seed=1)
    placed = run.place(new["x"], new["y"])
    assert placed.guess is None
    assert placed.chosen.value == pytest.approx(math.sqrt(placed.chosen.loss))
    assert run.check("3", new["x"], new["y"]).verdict in ("fits", "moved", "strange")
    assert set(run.newcomers["model"]) == {"placed", "global", "global+ft", "local"}
    assert run.newcomers["rmse"].notna().all()
    (file,) = run.export(tmp_path / "m.pt2", ["3"], at="best")
    outputs, predictions = torch.export.load(file).module()(torch.from_numpy(new["x"]))
    assert torch.equal(outputs, predictions)
    assert predictions.squeeze(1).tolist() == pytest.approx(
        run.predict(new["x"], "3", at="best")["prediction"].tolist(), abs=1e-5
    )
    assert "rmse" in (tmp_path / "m.pt2.md").read_text()


def test_a_comparison_of_errors_counts_lower_as_better(elsewhere: Path) -> None:
    given = settings(*OWN["task"], *QUICK, "training.rounds=8", "training.lr=0.02")
    result = floco("compare", "-a", "fedavg,local", "--seeds", "2", *given, "--tune", "--out", "c")
    assert result.exit_code == 0, result.output
    (pair,), clients = rows(Path("c/pairs.csv")), rows(Path("c/clients.csv"))
    value = {(r["method"], r["seed"], r["client"]): float(r["pinball_personal"]) for r in clients}
    names = {c for _, _, c in value}
    gaps = [sum(value["fedavg", s, c] - value["local", s, c] for s in "01") for c in names]  # one a client
    assert int(pair["better"]) == sum(gap < 0 for gap in gaps)
    trials = [r for r in rows(Path("c/tuning.csv")) if r["method"] == "local" and r["seed"] == "0"]
    best = min(trials, key=lambda r: float(r["validation_pinball"]))
    lr = json.loads(Path("c/runs/local-seed0/run.json").read_text())["config"]["training"]["lr"]
    assert lr == json.loads(best["settings"])["training.lr"]
    assert floco("report", "c").exit_code == 0
    assert "Personal pinball of every client" in Path("c/report.html").read_text()


def test_what_needs_classes_refuses_another_task_by_name() -> None:
    with pytest.raises(FlocoError, match="fedrod needs class frequencies, and task squares has no classes"):
        package.fit(linear, regression(), FedRoD(), rounds=1)
    with pytest.raises(
        FlocoError, match="minus infinity for a class that a client lacks: set task.label_smoothing = 0"
    ):
        package.fit(small_net, replace(blobs(), task=Classification(label_smoothing=0.1)), FedRoD(), rounds=1)
    with pytest.raises(FlocoError, match="split folds goes by classes, and task squares has none"):
        package.load(line(), task=Squares()).split(Folds(2), clients=4)


def test_a_loss_that_does_not_fit_the_outputs_is_named_before_the_first_round() -> None:
    with pytest.raises(FlocoError, match="task squares fails on outputs of shape"):
        package.fit(lambda: nn.Sequential(nn.Linear(4, 3)), regression(), FedAvg(), rounds=1)


def test_targets_that_are_missing_are_counted() -> None:
    data = line()
    data["y"][[3, 7]] = np.nan
    with pytest.raises(FlocoError, match="2 of 240 are missing or infinite"):
        package.load(data, task=Squares())


class Pair(nn.Module):
    """Takes ids and a measurement, by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.head = nn.Linear(7, 3)

    def forward(self, ids: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.table(ids), measured], dim=1))


def pair(form: str) -> Federation:
    draw = np.random.default_rng(0)
    ids, measured = draw.integers(0, 10, 240), draw.normal(5, 3, (240, 3))
    x: Any = (ids, measured) if form == "tuple" else {"measured": measured, "ids": ids}
    return package.load({"x": x, "y": ids % 3, "client": np.repeat(np.arange(8), 30)}).split(package.Natural())


@pytest.mark.parametrize("form", ["tuple", "dict"])
@pytest.mark.parametrize("kind", ["serial", "processes", "cohort"])
def test_a_network_takes_several_inputs_in_every_engine(form: str, kind: str) -> None:
    federation = pair(form)
    setup = make(Floco(endpoints=3, assign_at=2), federation=federation, model=Pair, rounds=10, lr=0.3, fraction=1.0)
    found = trained(setup, kind)
    alone = train(setup)[-1]
    assert not found.failures
    assert found.evaluation.history["accuracy_global"] > 0.9
    close = {n: torch.allclose(t, alone.state.shared[n], atol=1e-5) for n, t in found.state.shared.items()}
    assert all(close.values())
    if kind == "processes":
        assert same(found.state.shared, alone.state.shared)


def test_ids_stay_as_they_are_and_measurements_are_normalised() -> None:
    inputs = pair("dict").inputs(torch.arange(240))
    assert inputs["ids"].dtype == torch.int64
    assert inputs["ids"].max() == 9
    assert abs(float(inputs["measured"].mean())) < 0.1
    assert float(inputs["measured"].std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_several_inputs_are_predicted_exported_and_checked(form: str, tmp_path: Path) -> None:
    run = package.fit(Pair, pair(form), FedAvg(), rounds=3, lr=0.1)
    draw = np.random.default_rng(1)
    ids, measured = draw.integers(0, 10, 20), draw.normal(5, 3, (20, 3))
    x: Any = (ids, measured) if form == "tuple" else {"ids": ids, "measured": measured}
    table = run.predict(x, "3")
    (file,) = run.export(tmp_path / "m.pt2", ["3"])
    order = [torch.from_numpy(ids), torch.from_numpy(measured.astype(np.float32))]
    given = order if form == "tuple" else order[::-1]  # in the order of the training data
    found = torch.export.load(file).module()(*given)[1]
    assert found.max(dim=1).values.tolist() == pytest.approx(table["probability"].tolist(), abs=1e-5)
    wrong: Any = (ids,) if form == "tuple" else {"ids": ids}
    with pytest.raises(FlocoError, match="must have the columns"):
        run.predict(wrong, "3")


@pytest.mark.parametrize("algorithm", [a() for a in ANY_NETWORK.values()], ids=lambda a: a.name)
def test_every_method_of_the_registry_keeps_the_public_contract(algorithm: Algorithm) -> None:
    testing.check_algorithm(algorithm)


@dataclass(frozen=True)
class Broken(Algorithm):
    """FedAvg, with a fault."""

    name: ClassVar[str] = "broken"

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        return (Phase("shared", (Step(plain_loss(facts.task), facts.layout.parameters),)),)


@dataclass(frozen=True)
class Forgetful(Broken):
    name: ClassVar[str] = "forgetful"

    def aggregate(self, state: ServerState, updates: Any, *, clients: Any) -> ServerState:
        return replace(super().aggregate(state, updates, clients=clients), round=state.round)


@dataclass(frozen=True)
class InPlace(Broken):
    name: ClassVar[str] = "inplace"

    def aggregate(self, state: ServerState, updates: Any, *, clients: Any) -> ServerState:
        after = super().aggregate(state, updates, clients=clients)
        for name, tensor in state.shared.items():
            tensor.copy_(after.shared[name])
        return after


@dataclass(frozen=True)
class Idle(Broken):
    name: ClassVar[str] = "idle"

    def select(self, state: ServerState, clients: Any, *, fraction: float, generator: torch.Generator) -> Selection:
        return Selection(())


SEEN: dict[str, int] = {}


@dataclass(frozen=True)
class Stateful(Broken):
    name: ClassVar[str] = "stateful"

    def finish(self, tensors: Any, message: Message, client: str, facts: Facts) -> tuple[Update, Any]:
        SEEN[client] = SEEN.get(client, 0) + 1
        update, memory = super().finish(tensors, message, client, facts)
        return replace(update, shared={n: t + SEEN[client] * 1e-3 for n, t in update.shared.items()}), memory


@dataclass
class Thawed(Algorithm):
    name: ClassVar[str] = "thawed"

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        return ()


class Nameless(Algorithm):
    pass


@pytest.mark.parametrize(
    ("algorithm", "says"),
    [
        (Forgetful(), "aggregate must return the state of round 1"),
        (InPlace(), "replaced, never changed"),
        (Idle(), "round 1: Idle.select must choose at least one client to train"),
        (Stateful(), "two runs with one seed must be equal"),
    ],
    ids=lambda v: getattr(type(v), "__name__", ""),
)
def test_a_method_that_breaks_the_contract_is_told_how(algorithm: Algorithm, says: str) -> None:
    with pytest.raises((AssertionError, FlocoError), match=says):
        testing.check_algorithm(algorithm)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere:Method", "No module named 'nowhere'"),
        ("test_extend:Nothing", "has no 'Nothing'"),
        ("test_extend:line", "must be a class, a subclass of Algorithm"),
        ("test_extend:Nameless", "has no phases"),
        ("test_extend:Thawed", "frozen=True"),
        ("floc", "did you mean 'floco'"),
    ],
)
def test_names_that_lead_nowhere_are_explained(name: str, says: str) -> None:
    with pytest.raises(FlocoError, match=says):
        parse({"algorithm": {"name": name}})


def test_an_installed_package_brings_methods_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("broken", "test_extend:Broken", "floco.algorithms")
    monkeypatch.setattr(objects, "_entry_points", lambda group: {"broken": entry} if "algorithms" in group else {})
    from floco.runs.toml import as_dict

    config = parse({"algorithm": {"name": "broken"}})
    assert type(config.algorithm).__qualname__ == "Broken"
    assert as_dict(config)["algorithm"] == {"name": "broken"}


def test_an_own_class_that_cannot_be_imported_again_is_refused_before_a_directory_is_made(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Here(Broken):
        """Not importable: inside a function."""

    with pytest.raises(FlocoError, match="put it in a module"):
        package.fit(linear, regression(), Here(), rounds=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert len(package.fit(linear, regression(), Here(), rounds=1).history) == 1


def test_a_split_that_gives_a_row_to_two_clients_is_refused() -> None:
    @dataclass(frozen=True)
    class Twice(Iid):
        name: ClassVar[str] = "twice"

        def assign(self, table: Any, **more: Any) -> dict[str, np.ndarray]:
            return {"a": np.arange(10), "b": np.arange(5, 15)}

    with pytest.raises(FlocoError, match="split twice: each of the 1797 rows may belong to one client at most"):
        package.load("digits").split(Twice(), clients=2)


FLAT: list[Callable[[], dict[str, Any]]] = [
    lambda: {"split": "folds", "folds": 3, "share": 0.7},
    lambda: {"split": {"name": "folds", "folds": 3, "share": 0.7}},
]


@pytest.mark.parametrize("data", FLAT, ids=["as in version 0.1", "a table"])
def test_settings_of_a_split_stand_in_its_table_or_beside_it(data: Callable[[], dict[str, Any]]) -> None:
    assert parse({"data": data()}).data.split == Folds(3, share=0.7)
    with pytest.raises(FlocoError, match="unknown key 'alpha'"):
        parse({"data": {**data(), "alpha": 0.3}})
