"""What users bring of their own (methods, splits, tasks, modules, files) is used as meant, or refused in words."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import floco as package
from conftest import blobs, floco, make, train
from floco import testing
from floco.algorithms import Ditto, FedAvg, Floco
from floco.analysis import tables
from floco.analysis.landscape import landscape
from floco.analysis.tuning import list_trials
from floco.core import Algorithm, Facts, FlocoError, Message, Metric, Metrics, Models, Selection, setting
from floco.core.mixing import CENTER
from floco.core.values import ServerState, Tensors, Update
from floco.data.partition import Iid
from floco.data.split import Split, Table
from floco.runs.config import REGISTRIES
from floco.runs.toml import parse
from floco.server import rounds as loop
from test_extend import Pair, Squares, line, pair, regression


def quick(federation: Any = None, algorithm: Algorithm | None = None, **more: Any) -> Any:
    options = {"rounds": 3, "lr": 0.1, "batch_size": 8, "engine": "serial", **more}
    return package.fit(testing.model, federation or testing.federation(), algorithm or FedAvg(), **options)


@dataclass(frozen=True)
class Sharper(Floco):
    """Floco with logits twice as large on the client."""

    name: ClassVar[str] = "sharper"

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        found = super().models(tensors, facts)
        assert found.personal is not None
        head = {n: 2 * found.personal[n] for n in facts.layout.head}
        return Models(found.global_, {**found.personal, **head})


def test_the_delivered_model_is_the_evaluated_one_also_if_a_method_with_a_simplex_changes_it() -> None:
    run = quick(algorithm=Sharper(endpoints=3, assign_at=2))
    federation = run.setup.federation
    client = federation.clients[1]
    found = run.predict(federation.x[client.test].numpy(), client.id)
    right = found.filter(like="p(").to_numpy()[np.arange(len(found)), federation.y[client.test].numpy()]
    known = run.clients.set_index("client")["loss_personal"][client.id]
    assert -np.log(right).mean() == pytest.approx(known, rel=1e-4)


@dataclass(frozen=True)
class Unnamed(FedAvg):
    pass


@dataclass(frozen=True)
class Posing(FedAvg):
    name: ClassVar[str] = "floco"


@dataclass(frozen=True)
class Sloped(FedAvg):
    name: ClassVar[str] = "lab/mine"


@dataclass(frozen=True)
class Dotted(FedAvg):
    name: ClassVar[str] = "mine.2"


@dataclass(frozen=True)
class Bare(FedAvg):
    name: ClassVar[str] = "bare"
    strength: float = 0.5


@dataclass(frozen=True)
class BareSplit(Iid):
    name: ClassVar[str] = "bare-split"
    share: float = 0.5


@pytest.mark.parametrize(
    ("table", "name", "says"),
    [
        ("algorithm", "Unnamed", "class Unnamed needs a name of its own"),
        ("algorithm", "Posing", "'floco' is built in"),
        ("algorithm", "Sloped", "got 'lab/mine'"),
        ("algorithm", "Dotted", "got 'mine.2'"),
        ("algorithm", "Bare", r"Bare.strength needs a description: strength: float = setting\(0.5"),
        ("data.split", "BareSplit", "BareSplit.share needs a description"),
    ],
)
def test_a_class_that_files_and_keys_could_not_name_is_refused(table: str, name: str, says: str) -> None:
    with pytest.raises(FlocoError, match=says):
        REGISTRIES[table].find(f"test_own:{name}")


def test_a_class_of_a_script_makes_no_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sharper, "__module__", "__main__")
    with pytest.raises(FlocoError, match="__main__:Sharper: a run directory needs a class that others can import"):
        quick(algorithm=Sharper(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3))


def test_python_runs_of_other_networks_or_federations_are_not_seeds_of_one_another(tmp_path: Path) -> None:
    small = testing.federation((20, 30, 40, 20))
    quick(out=tmp_path / "a", seed=0)
    quick(out=tmp_path / "b", seed=1)
    package.fit(wide, testing.federation(), FedAvg(), rounds=3, seed=2, out=tmp_path / "c")
    quick(small, out=tmp_path / "d", seed=3)
    found = tables.load([tmp_path / n for n in "abcd"])
    assert sorted(found.paths) == [("fedavg", 0), ("fedavg", 1), ("fedavg (c)", 2), ("fedavg (d)", 3)]
    assert json.loads((tmp_path / "a/run.json").read_text())["config"]["data"]["split"] == {"name": "natural"}


@dataclass(frozen=True)
class Choosing(FedAvg):
    name: ClassVar[str] = "choosing"
    train: tuple[str, ...] = setting((), "who trains")
    probe: tuple[str, ...] = setting((), "who probes")

    def select(self, state: ServerState, clients: Sequence[str], *, fraction: float, generator: Any) -> Selection:
        return Selection(self.train, self.probe)


@pytest.mark.parametrize(
    ("train_", "probe"),
    [((), ()), ((), ("north",)), (("north", "north"), ()), (("north",), ("north",)), (("nobody",), ())],
)
def test_a_selection_names_known_clients_once(train_: tuple[str, ...], probe: tuple[str, ...]) -> None:
    setup = make(Choosing(train=train_, probe=probe))
    with pytest.raises(FlocoError, match="round 1: Choosing.select must choose at least one client to train, each"):
        loop.round_jobs(setup, loop.initialize(setup))


@dataclass(frozen=True)
class Broadcast(Squares):
    """Means of squares between outputs (n, 1) and targets (n,): all pairs of samples."""

    name: ClassVar[str] = "broadcast"

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square().mean()


@dataclass(frozen=True)
class Column(Broadcast):
    """The same, also for each sample."""

    name: ClassVar[str] = "column"

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.stack([mse_loss(o.squeeze(), t) for o, t in zip(outputs, targets, strict=True)])


@pytest.mark.parametrize("task", [Broadcast(), Column()])
def test_a_loss_that_compares_every_output_with_every_target_is_refused(task: Any) -> None:
    federation = package.load(line(), task=task).split(package.Natural())
    with pytest.raises(FlocoError, match="does not see which target belongs to which output"):
        package.fit(lambda: nn.Linear(4, 1), federation, FedAvg(), rounds=1)
    package.fit(lambda: nn.Linear(4, 1), regression(), FedAvg(), rounds=1)


@dataclass(frozen=True)
class Each(Squares):
    """A loss for each sample, where the mean is wanted."""

    name: ClassVar[str] = "each"

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.squeeze(1) - targets).square()


@dataclass(frozen=True)
class Failing(Squares):
    name: ClassVar[str] = "failing"

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no losses")


@pytest.mark.parametrize(
    ("task", "says"),
    [(Each(), r"loss must be a scalar.*got loss \(64,\)"), (Failing(), "task failing fails on .*no losses")],
)
def test_a_loss_of_another_shape_is_refused_in_words(task: Any, says: str) -> None:
    federation = package.load(line(), task=task).split(package.Natural())
    with pytest.raises(FlocoError, match=says):
        package.fit(lambda: nn.Linear(4, 1), federation, FedAvg(), rounds=1)


Assigned = Callable[[int], Mapping[Any, Any]]
WRONG: dict[str, Assigned] = {
    "ids as numbers": lambda n: {0: np.arange(n)},
    "a mask": lambda n: {"a": np.arange(n) % 2 == 0},
    "negative rows": lambda n: {"a": np.array([-1, 0, 1])},
    "a number": lambda n: {"a": 5},
    "a table": lambda n: {"a": np.arange(n)[:, None]},
}


@dataclass(frozen=True)
class Wrong(Split):
    name: ClassVar[str] = "wrong"
    kind: str = setting("", "a key of WRONG")

    def assign(self, table: Table, *, clients: int | None, samples: int | None, seed: int) -> Any:
        return WRONG[self.kind](len(table.labels))


@pytest.mark.parametrize("kind", WRONG)
def test_what_a_split_returns_is_checked(kind: str) -> None:
    with pytest.raises(FlocoError, match="split wrong must return client ids as text, and for each the positions"):
        package.load("digits").split(Wrong(kind=kind))


@dataclass(frozen=True)
class Lists(Split):
    name: ClassVar[str] = "lists"

    def assign(self, table: Table, *, clients: int | None, samples: int | None, seed: int) -> Any:
        return {"a": list(range(900)), "b": list(range(900, 1797))}


@dataclass(frozen=True)
class Ragged(Split):
    name: ClassVar[str] = "ragged"

    def assign(self, table: Table, *, clients: int | None, samples: int | None, seed: int) -> Any:
        return {"a": [[1, 2], [3]]}


def test_rows_of_unequal_lengths_are_refused_in_words() -> None:
    with pytest.raises(FlocoError, match="split ragged: the rows of 'a' is no array"):
        package.load("digits").split(Ragged())


def test_a_split_may_return_lists() -> None:
    found = package.load("digits").split(Lists())
    assert [len(c.train) + len(c.test) for c in found.clients] == [900, 897]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def (", "importing it raised SyntaxError"),
        (
            "import floco\nfloco.nothing",
            "importing it raised AttributeError: module 'floco' has no attribute 'nothing'",
        ),
        ("1 / 0", "importing it raised ZeroDivisionError: division by zero"),
        ("from floco.core import Nothing", "importing it raised ImportError"),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("", "module 'broken' has no 'Mine'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused_with_its_reason(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "broken", raising=False)
    with pytest.raises(FlocoError, match="algorithm.name = 'broken:Mine'.*" + says):
        parse({"algorithm": {"name": "broken:Mine"}})


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(FlocoError, match=r"data.split must be one of folds.*got \['folds'\]"):
        parse({"data": {"split": ["folds"]}})


@dataclass(frozen=True)
class TwoGrids(FedAvg):
    name: ClassVar[str] = "two-grids"
    tuned: ClassVar[Mapping[str, tuple[float, float]]] = {"a": (1.0, 2.0), "b": (1.0, 2.0)}
    a: float = setting(1.0, "one")
    b: float = setting(1.0, "other")


def test_a_tuned_has_one_setting() -> None:
    with pytest.raises(FlocoError, match="two-grids: tuned must name one of its settings, got a, b"):
        list_trials(parse({"algorithm": {"name": "test_own:TwoGrids"}}))


def test_the_settings_are_printed_as_json() -> None:
    result = floco("run", "-s", "training.rounds=7", "--print-config", "--json")
    assert json.loads(result.stdout)["training"]["rounds"] == 7


@dataclass(frozen=True)
class Mood(Floco):
    """Floco whose server keeps something for every client from the start."""

    name: ClassVar[str] = "mood"

    def aggregate(self, state: ServerState, updates: Sequence[Update], *, clients: Mapping[str, int]) -> ServerState:
        after = super().aggregate(state, updates, clients=clients)
        mine = {c: {**after.by_client.get(c, {}), "mood": torch.ones(1)} for c in clients}
        return replace(after, by_client=mine)


def test_servers_tensors_for_a_client_are_no_center() -> None:
    run = quick(algorithm=Mood(endpoints=3, assign_at="never"))
    assert all(CENTER not in own for own in run.progress.state.by_client.values())
    assert landscape(run.setup, run.setup.algorithm.mixing, run.progress).subregions == {}
    with pytest.raises(FlocoError, match='client "client-1" has no subregion'):
        run.predict(np.zeros((2, 5), np.float32), "client-1", mixtures=3)


@dataclass(frozen=True)
class Hits(Squares):
    """Squares, with the share of near predictions first."""

    name: ClassVar[str] = "hits"
    metrics: ClassVar[Metrics] = Metrics({"rmse": Metric(higher=False), "hit": Metric(share=True)})


def test_a_card_shows_shares_in_per_cent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Squares.score_type, "hit", 0.5, raising=False)
    federation = package.load(line(), task=Hits()).split(package.Natural())
    run = package.fit(lambda: nn.Linear(4, 1), federation, FedAvg(), rounds=1)
    run.export(tmp_path / "m.safetensors", ["1"])
    assert "hit 50.0 %" in (tmp_path / "m.safetensors.md").read_text()


def test_several_inputs_are_predicted_from_the_file_that_trained_them(tmp_path: Path) -> None:
    package.fit(Pair, pair("dict"), FedAvg(), rounds=1, out=tmp_path / "python")
    draw = np.random.default_rng(0)
    ids, measured = draw.integers(0, 10, 240), draw.normal(5, 3, (240, 3))
    client = np.repeat(np.arange(8), 30)
    np.savez(tmp_path / "data.npz", **{"x.ids": ids, "x.measured": measured}, y=ids % 3, client=client)
    config = [f"data.source=npz:{tmp_path / 'data.npz'}", "data.split=natural", "model.name=test_extend:Pair"]
    given = [part for text in [*config, "training.rounds=2"] for part in ("-s", text)]
    assert floco("run", *given, "--out", tmp_path / "run").exit_code == 0
    result = floco("predict", tmp_path / "run", "--client", "3", tmp_path / "data.npz", "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["predictions"]) == 240


@dataclass(frozen=True)
class Sometimes(Ditto):
    """Ditto that returns no memory in even rounds."""

    name: ClassVar[str] = "sometimes"

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        update, memory = super().finish(tensors, message, client, facts)
        return update, memory if message.round % 2 else {}


def test_a_client_that_returns_no_memory_keeps_the_one_it_had() -> None:
    one, two = train(make(Sometimes(), federation=blobs(), rounds=2, fraction=1.0))
    assert all(torch.equal(one.memories[c][n], t) for c in two.memories for n, t in two.memories[c].items())


@dataclass(frozen=True)
class FirstWords(Ditto):
    """Ditto in the words of the first version, where a message's purpose was called its task."""

    name: ClassVar[str] = "first-words"

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        update, memory = super().finish(tensors, message, client, facts)
        assert update.task == message.task == message.purpose
        return Update(client, message.task, facts.n_train, update.shared), memory


def test_the_names_of_the_first_contract_stay() -> None:
    testing.check_algorithm(FirstWords())


@dataclass(frozen=True)
class Dividing(FedAvg):
    """FedAvg that divides by the number of samples, which is 0 where the global model is built."""

    name: ClassVar[str] = "dividing"

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        return {**super().begin(message, memory, facts), "weight": torch.tensor(1 / facts.n_train)}


@dataclass(frozen=True)
class Raising(FedAvg):
    name: ClassVar[str] = "raising"

    def phases(self, message: Message, facts: Facts) -> Any:
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("algorithm", "says"),
    [
        (Dividing(), "ZeroDivisionError"),
        (Raising(), "not today"),
        (Floco(assign_at=10), "assign_at must be at most"),
        (Unnamed(), "needs a name of its own"),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_the_contract_test_fails_as_a_test_does(algorithm: Algorithm, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        testing.check_algorithm(algorithm)
