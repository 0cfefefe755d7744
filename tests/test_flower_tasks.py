"""Every task and every kind of input over messages, and sites whose data are not those of the others."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import RecordDict
from torch import nn

import floco as package
from conftest import alone, floco
from floco.client.round import Scores
from floco.core.errors import FlocoError
from floco.core.metrics import Score
from floco.core.task import Labels, Task
from floco.engines.jobs import Result
from floco.flower.checks import Expected, check_answer
from floco.flower.joining import admit
from floco.flower.protocol import FORMAT, Answer, Ask
from floco.flower.scaffold import read_settings
from floco.flower.site import SiteConfig, introduce
from floco.runs.config import Config
from floco.runs.source import resolve_paths
from floco.runs.toml import as_dict, read
from floco.storage.files import read_json
from floco.tasks import Classification, Multilabel, Regression, Segmentation, Tokens
from test_flower import run_config
from test_flower_server import NODES, InProcess, asked_in, assert_same_run, carried, in_flower, told

__all__ = ["in_flower"]

Arrays = dict[str, Any]
SIZES = {"east": 14, "north": 30, "south": 46}


def regression(n: int, g: np.random.Generator) -> Arrays:
    x = g.normal(size=(n, 4)).astype(np.float32)
    return {"x": x, "y": 3e4 + 2e3 * x[:, 0] + n}


def two_numbers(n: int, g: np.random.Generator) -> Arrays:
    made = regression(n, g)
    return {**made, "y": np.stack([made["y"], -made["y"] / 7], 1), "names": np.array(["mass", "size"])}


def multilabel(n: int, g: np.random.Generator) -> Arrays:
    x = g.normal(size=(n, 4)).astype(np.float32)
    return {"x": x, "y": np.stack([x[:, 0] > 0, np.full(n, n < 20)], 1)}


def segmentation(n: int, g: np.random.Generator) -> Arrays:
    x = g.integers(0, 256, size=(n, 6, 6)).astype(np.uint8)
    y = np.where(x > 128, 3, 7 if n > 20 else 3)
    y[:, 0, 0] = 255
    return {"x": x, "y": y}


def tokens(n: int, g: np.random.Generator) -> Arrays:
    x = g.integers(0, 9 if n > 20 else 5, size=(n, 6))
    return {"x": x, "y": np.where(x == 0, -1, x % 3)}


def several(n: int, g: np.random.Generator) -> Arrays:
    made = {"x.image": g.integers(0, 256, size=(n, 5, 5, 3)).astype(np.uint8), "x.age": 40 + 9 * g.normal(size=(n, 2))}
    y = (made["x.age"][:, 0] > 40).astype(int)
    return {**made, "x.ward": g.integers(0, 4, size=n), "y": y}


def pair(n: int, g: np.random.Generator) -> Arrays:
    x = g.normal(size=(n, 3)).astype(np.float32)
    return {"x": (x, np.abs(x[:, :1]) + n), "y": (x[:, 0] > 0).astype(int)}


def pair_of(site: str) -> Arrays:
    return draw(pair)[site]


def pair_east() -> Arrays:
    return pair_of("east")


def pair_north() -> Arrays:
    return pair_of("north")


def pair_south() -> Arrays:
    return pair_of("south")


def pair_all() -> Arrays:
    return join(draw(pair))


def table(n: int, g: np.random.Generator) -> Arrays:
    """Columns of a table with empty cells, and categories of which not all occur at every site."""
    age, ward = 40 + 9 * g.normal(size=n).round(2), g.choice(list("abc" if n > 20 else "ab"), n)
    cells = np.where(g.random(n) < 0.2, "", age.astype(str))
    return {"ward": np.where(g.random(n) < 0.1, "", ward), "age": cells, "y": np.where(age > 40, "ill", "well")}


def full_table(n: int, g: np.random.Generator) -> Arrays:
    made = table(n, g)
    return {**made, "ward": np.where(made["ward"] == "", "a", made["ward"])}


class Both(nn.Module):
    """A network with several inputs, by name or by position."""

    def __init__(self, shape: Any, outputs: int, ids: dict[str, int]) -> None:
        super().__init__()
        shapes = list(shape.values()) if isinstance(shape, dict) else list(shape)
        if "ward" in ids:
            self.wards = nn.Embedding(ids["ward"], 1)
        self.head = nn.Linear(sum(math.prod(s) for s in shapes), outputs)

    def forward(self, *given: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        if "ward" in named:
            named["ward"] = self.wards(named["ward"])
        parts = [t.reshape(len(t), -1).float() for t in (*given, *named.values())]
        found: torch.Tensor = self.head(torch.cat(parts, 1))
        return found


BOTH = f"model.name={__name__}:Both"


@dataclass(frozen=True)
class Kind:
    make: Callable[[int, np.random.Generator], Arrays]
    settings: tuple[str, ...]
    scheme: str = "npz"


TABLE = ("data.target=y", "data.missing=mean", 'data.features=["age","ward"]', 'data.labels=["ill","well"]')
LEVELS = 'data.levels=["ward=a","ward=b","ward=c"]'
KINDS = {
    "regression": Kind(regression, ("task.name=regression", "flower.shape=[4]")),
    "two numbers": Kind(two_numbers, ("task.name=regression", "task.loss=huber", "flower.shape=[4]")),
    "multilabel": Kind(multilabel, ("task.name=multilabel", "flower.shape=[4]", 'data.labels=["hot","wet"]')),
    "segmentation": Kind(
        segmentation,
        (
            "task.name=segmentation",
            "task.ignore=255",
            "model.name=fcn",
            "flower.shape=[6,6]",
            "data.kind=images",
            'data.labels=["3","7"]',
        ),
    ),
    "tokens": Kind(
        tokens,
        (
            "task.name=tokens",
            "task.ignore=-1",
            "model.name=gru",
            "model.ids=[9]",
            "flower.shape=[6]",
            'data.labels=["0","1","2"]',
        ),
    ),
    "several": Kind(several, (BOTH, "model.ids=[5]", 'data.labels=["0","1"]')),
    "pair": Kind(pair, (BOTH, 'data.labels=["0","1"]')),
    "csv": Kind(table, (*TABLE, LEVELS, "flower.shape=[4]"), "csv"),
    "parquet": Kind(table, (*TABLE, LEVELS, "flower.shape=[4]"), "parquet"),
    "with a prior": Kind(
        table, (*TABLE, LEVELS, "flower.shape=[4]", "task.prior=client", "training.head_lr=0.02"), "csv"
    ),
    "own centers": Kind(
        table,
        (
            *TABLE,
            LEVELS,
            "flower.shape=[4]",
            "algorithm.name=floco",
            "algorithm.centers=own",
            "algorithm.step=mixture",
            "algorithm.endpoints=3",
        ),
        "csv",
    ),
    "several by client": Kind(several, (BOTH, "model.ids=[5]", 'data.labels=["0","1"]', "data.normalize=client")),
    "csv by client": Kind(table, (*TABLE, LEVELS, "flower.shape=[4]", "data.normalize=client"), "csv"),
    "ids": Kind(full_table, (*TABLE, LEVELS, "data.categories=ids", BOTH, "model.ids=[3]"), "csv"),
}


def draw(make: Callable[[int, np.random.Generator], Arrays]) -> dict[str, Arrays]:
    return {site: make(n, np.random.default_rng(n)) for site, n in SIZES.items()}


def join(parts: dict[str, Arrays]) -> Arrays:
    """The data of all sites, with the column `client`."""
    joined: Arrays = {"client": np.repeat(list(parts), [len(p["y"]) for p in parts.values()])}
    for name, value in parts["east"].items():
        many = [p[name] for p in parts.values()]
        columns = [np.concatenate(c) for c in zip(*many, strict=True)] if isinstance(value, tuple) else None
        joined[name] = value if name == "names" else np.concatenate(many) if columns is None else tuple(columns)
    return joined


def write(path: Path, arrays: Arrays) -> None:
    """Write arrays to an npz file, or as columns of a table; empty cells are missing in both kinds of tables."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".csv":
        pd.DataFrame(arrays).to_csv(path, index=False)
    else:
        frame = pd.DataFrame(arrays).replace("", None)
        frame.astype({"age": float}).to_parquet(path, index=False)


def configuration(folder: Path, name: str, *more: str) -> Config:
    """Write the data of the sites, and of all together, and return the configuration of their run."""
    kind = KINDS[name]
    (folder / "data").mkdir(exist_ok=True)
    source = f"{__name__}:pair_all"
    if name != "pair":
        parts = draw(kind.make)
        source = f"{kind.scheme}:{folder / 'data' / 'all'}.{kind.scheme}"
        for site, arrays in {**parts, "all": join(parts)}.items():
            write(folder / "data" / f"{site}.{kind.scheme}", arrays)
    base = ["training.rounds=2", "training.fraction=1.0", "run.evaluate_every=1", "run.engine=serial", "flower.sites=3"]
    own = ["algorithm.name=fedavg+ft", "training.batch_size=16", "flower.wait=40", f"data.source={source}"]
    return resolve_paths(read(None, [*own, "data.split=natural", *base, *kind.settings, *more]))


def grid_of(folder: Path, name: str, **more: Any) -> InProcess:
    grid = InProcess(folder, **more)
    for node, site in NODES.items():
        grid.configs[node]["share-labels"] = "true"
        if name == "pair":
            grid.configs[node]["data"] = f"{__name__}:pair_{site}"
        elif (scheme := KINDS[name].scheme) != "npz":
            grid.configs[node]["data"] = str(folder / "data" / f"{site}.{scheme}")
    return grid


@pytest.mark.filterwarnings("default:this run can be read only where model.name can be imported")  # some have no graph
@pytest.mark.parametrize("name", KINDS)
def test_a_run_of_any_kind_over_messages_is_the_run_in_one_process_to_the_bit(name: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, name)
    assert not carried(tmp_path, config, grid_of(tmp_path, name))
    assert_same_run(tmp_path / "run", alone(config, tmp_path / "alone"), 2)


def test_a_site_predicts_in_the_units_of_its_targets_without_the_server(tmp_path: Path) -> None:
    config = configuration(tmp_path, "two numbers")
    assert not carried(tmp_path, config, grid_of(tmp_path, "two numbers"))
    x = np.load(tmp_path / "data" / "north.npz")["x"]
    there = package.open_run(tmp_path / "sites" / "north").predict(x, "north")
    here = package.open_run(alone(config, tmp_path / "alone")).predict(x, "north")
    assert list(there) == ["mass", "size"]
    pd.testing.assert_frame_equal(there, here)
    assert (there["mass"] > 2e4).all()


def test_a_site_that_joins_late_or_a_run_that_fixes_the_numbers_tells_no_sums(tmp_path: Path) -> None:
    def comes(node: int, message: Any, reply: Any) -> Any:
        if asked_in(0, message):
            grid.gone.clear()
        return reply

    config, grid = configuration(tmp_path, "regression", "flower.sites=2"), grid_of(tmp_path, "regression")
    grid.tamper = comes
    grid.gone.add(12)
    assert not carried(tmp_path, config, grid)
    facts = read_json(tmp_path / "run" / "sites.json")["sites"]
    assert [len(facts[s]["statistics"]) for s in SIZES] == [3, 3, 0]
    assert [len(facts[s]["columns"][0]["sum"]) for s in SIZES] == [4, 4, 0]
    fixed = configuration(tmp_path, "regression", "task.mean=[3e4]", "task.std=[2e3]", "data.normalize=none")
    assert [facts_of(tmp_path, fixed)[key] for key in ("statistics", "sum", "square")] == [[], [], []]


def site_of(folder: Path, name: str = "north") -> SiteConfig:
    return SiteConfig(name, f"npz:{folder / 'data' / f'{name}.npz'}", folder / "state" / name)


def facts_of(folder: Path, config: Config) -> dict[str, Any]:
    found = json.loads(introduce(site_of(folder), json.dumps(as_dict(config)))["facts"])
    return {**found, **found["columns"][0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sites")


def reported(folder: Path, config: Config, site: str) -> RecordDict:
    from flwr.app import ConfigRecord

    said = introduce(site_of(folder, site), json.dumps(as_dict(config)))
    return RecordDict({"answer": ConfigRecord({"format": FORMAT, "client": site, "problem": "", **said})})


def admitted(folder: Path, config: Config, changes: dict[str, Any], known: Sequence[str] = ()) -> dict[str, Any]:
    """The facts of the site `north`, some of them changed, where the sites `known` have joined."""
    facts: dict[str, Any] = {}
    for site in known:
        facts |= [admit(dict(reported(folder, config, site).config_records["answer"]), config, facts)]
    report = reported(folder, config, "north")
    for path, value in changes.items():
        told(report, path, value)
    return admit(dict(report.config_records["answer"]), config, facts)[1]


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("regression", {"statistics": []}, "its sums of the targets are not those of 24 samples: 3 numbers"),
        ("regression", {"statistics.0": 23.0}, "its sums of the targets are not"),
        ("regression", {"statistics.1": NAN}, "its sums of the targets are not"),
        ("regression", {"statistics.1": 1e12}, "its sums of the targets are not"),
        ("regression", {"statistics.2": -1.0}, "its sums of the targets are not"),
        ("regression", {"statistics.2": 1e61}, "its sums of the targets are not"),
        ("regression", {"target.shape": [2**30]}, "a target may have 10000000 values"),
        ("regression", {"target.shape": [10**6]}, "a network of 1000000 outputs; 100000 are the most"),
        (
            "regression",
            {"target.shape": [2], "statistics": [24.0, 1, 1, 1, 1]},
            r"targets are float32 \(2,\), and those",
        ),
        ("regression", {"target.dtype": "int64"}, "its targets are int64"),
        ("regression", {"target.dtype": "object"}, "its targets must be int64 or float32"),
        ("regression", {"target.shape": [1] * 9}, "at most 8 dimensions"),
        ("regression", {"target.names": ["n" * 1001]}, "names of at most 1000 characters"),
        ("regression", {"columns.0.shape": [5]}, r"samples of shape \(4,\), and these have \(5,\)"),
        ("regression", {"columns.0.features": list("abc")}, "one name for each of 4 features"),
        ("regression", {"columns.0.features": list("abcd")}, "the columns of its table are a, b, c, d, and those of"),
        (
            "regression",
            {"table": ["b", "a"]},
            "the columns of its table are b, a, and those of the other sites without",
        ),
        ("regression", {"table": [1]}, "columns and categories of its table must be at most 100000 texts"),
        ("regression", {"columns.0.channels": "middle"}, "channels 'middle'"),
        ("two numbers", {"target.names": ["size", "mass"]}, "called size, mass, and those of .* called mass, size"),
        ("multilabel", {"target.shape": [3]}, r"its targets are float32 \(3,\), and those"),
        ("segmentation", {"target.shape": [5, 6]}, r"its targets are int64 \(5, 6\), and those"),
        ("segmentation", {"statistics": [1.0]}, "its sums of the targets are not"),
        ("tokens", {"columns.0.shape": [2**40]}, "at most 8 dimensions, each from 1 to"),
        ("several", {"columns.0.shape": [5, 5, 4]}, "not those of its samples"),
        ("several", {"columns.0.shape": [2**20, 2**20, 3]}, "samples of several inputs may have 10000000 values"),
        ("several", {"columns.0.dtype": "float32"}, r"image float32 \(5, 5, 3\) with channels last, .* image uint8"),
        ("several", {"columns.0.name": "picture"}, "its samples are picture uint8"),
        ("several", {"columns.1.name": "image"}, "inputs with names of their own, 1000 at most"),
        ("several", {"columns.1.count": 7}, "not those of its samples"),
        ("several", {"columns": []}, "inputs with names of their own, 1000 at most"),
        ("several", {"inputs": "tuple"}, "its samples are positional: image"),
        ("several", {"inputs": "one"}, "inputs with names of their own, 1000 at most"),
    ],
)
def test_a_site_that_says_anything_of_its_columns_and_targets_stays_outside(
    name: str, changes: dict[str, Any], words: str, folder: Path
) -> None:
    config = configuration(folder, name)
    assert admitted(folder, config, {}, ["east"])["n_train"] == 24
    with pytest.raises(FlocoError, match=words):
        admitted(folder, config, changes, ["east"])


def swapped(arrays: Arrays) -> Arrays:
    return dict(reversed(arrays.items()))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("regression", lambda a: {**a, "y": a["y"][:, None] * [1, 2]}, r"targets are float32 \(2,\), and those"),
        ("regression", lambda a: {"x.a": a["x"], "x.b": a["x"], "y": a["y"]}, "and these are several"),
        (
            "regression",
            lambda a: {**a, "x": a["x"].astype(float) + 1e12},
            "first subtract a constant that all sites agree on",
        ),
        ("two numbers", lambda a: {**a, "names": a["names"][::-1]}, "called size, mass, and those of the other sites"),
        (
            "multilabel",
            lambda a: {**a, "names": np.array(["wet", "hot"])},
            "names are wet, hot, and data.labels hot, wet",
        ),
        ("multilabel", lambda a: {**a, "y": a["y"][:, :1]}, "has 1 labels, and their names are hot, wet"),
        ("segmentation", lambda a: {**a, "y": a["y"] + 1}, "labels that the model does not know"),
        ("tokens", lambda a: {**a, "x": a["x"] + 3}, r"north.npz: the data have ids up to 11, and with model.ids = 9"),
        ("tokens", lambda a: {**a, "x": a["x"][:, :5]}, r"samples of shape \(6,\), and these have \(5,\)"),
        ("several", lambda a: {**a, "x.ward": a["x.ward"] + 3}, "ids up to 6 in ward, and with model.ids = 5"),
        ("several", swapped, "its samples are ward int64 .*, and those of the other sites image uint8"),
        ("several", lambda a: {"x": a["x.age"], "y": a["y"]}, "one number for each of 0 inputs of ids"),
        ("several", lambda a: {**a, "x.age": a["x.age"][:, :1]}, "its samples are image"),
    ],
)
def test_a_site_with_other_data_than_the_others_is_told_why(
    name: str, change: Callable[[Arrays], Arrays], words: str, tmp_path: Path
) -> None:
    config = configuration(tmp_path, name)
    with np.load(tmp_path / "data" / "north.npz") as file:
        np.savez(tmp_path / "data" / "north.npz", **change(dict(file)))
    with pytest.raises(FlocoError, match=words):
        admitted(tmp_path, config, {}, ["east"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["task.class_weights=balanced", "flower.shape=[4]", 'data.labels=["0","1"]'], "give them as numbers"),
        (["task.name=multilabel", "flower.shape=[4]"], "must name data.labels, which"),
        (["task.name=segmentation", "model.name=fcn"], "must name data.labels and flower.shape, which"),
        (
            ["task.name=tokens", "model.name=gru", "flower.shape=[6]", 'data.labels=["0","1"]'],
            "must name model.ids, which",
        ),
    ],
)
def test_what_sites_must_share_is_asked_for_by_site_and_server(settings: list[str], words: str, tmp_path: Path) -> None:
    configuration(tmp_path, "regression")
    config = read(None, ["data.source=sites", *settings])
    with pytest.raises(FlocoError, match=words):
        introduce(site_of(tmp_path), json.dumps(as_dict(config)))
    with pytest.raises(FlocoError, match=words):
        carried(tmp_path, config, InProcess(tmp_path))


G = torch.Generator().manual_seed(0)
PICTURE = torch.randint(0, 3, (12, 4, 4), generator=G)
SCORED: dict[str, tuple[Task, torch.Tensor, torch.Tensor]] = {
    "classification": (Classification(), torch.randn(12, 3, generator=G), PICTURE[:, 0, 0]),
    "regression": (Regression(mean=(1.0,), std=(2.0,)), torch.randn(12, 1, generator=G), torch.randn(12, generator=G)),
    "multilabel": (Multilabel(), torch.randn(12, 2, generator=G), torch.tensor([[0.0, 1.0], [0.0, 0.0]] * 6)),
    "segmentation": (Segmentation(), torch.randn(12, 3, 4, 4, generator=G), PICTURE),
    "tokens": (Tokens(), torch.randn(12, 4, 3, generator=G), PICTURE[:, 0]),
}


def judged(name: str, lies: dict[str, Any], *, share: bool) -> tuple[Task, Score, Answer]:
    """A task, a score of 12 samples, and the answer with it as the server takes it, some of its numbers changed."""
    task, outputs, y = SCORED[name]
    score = task.score(outputs, y)
    sent = Answer("north", None, Result("north", scores=Scores(score, None))).records(share_labels=share)
    sent.metric_records["global_"].update(lies)
    width = task.outputs(y, Labels(("a", "b", "c")))
    expected = Expected(None, frozenset(), frozenset(), (True, False), 12, width, (0, 0), y[0].numel())
    ask = Ask("run", 0, "evaluate", True, {}, {}, 0, "", "")
    return task, score, check_answer(Answer.of(sent, task), ask, expected)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", SCORED)
def test_scores_of_every_task_arrive_as_they_were(name: str, share: bool) -> None:
    task, score, answer = judged(name, {}, share=share)
    assert answer.evaluated is not None
    assert answer.evaluated.scores is not None, answer.evaluated.failure
    assert task.values(answer.evaluated.scores.global_) == task.values(score)
    assert (answer.evaluated.scores.global_ == score) == (share or name in ("regression", "tokens"))


@pytest.mark.parametrize(
    ("name", "lies"),
    [
        ("regression", {"squares": [-1.0]}),
        ("regression", {"squares": [1e-9]}),
        ("regression", {"powers": [NAN]}),
        ("regression", {"absolute": [1e300], "squares": [1e300]}),
        ("regression", {"sums": [1.0, 1.0]}),
        ("regression", {"losses": -1.0}),
        ("multilabel", {"told": [0.5]}),
        ("multilabel", {"told": [0.5, 1.5]}),
        ("multilabel", {"n": 13}),
        ("segmentation", {"told": [0.5, -0.5]}),
        ("segmentation", {"told": [0.5]}),
        ("segmentation", {"pixels": 2**40, "real": [2**40], "predicted": [2**40]}),
        ("segmentation", {"right": [193]}),
        ("tokens", {"tokens": 2**40}),
        ("tokens", {"right": 49}),
        ("tokens", {"losses": math.inf}),
    ],
)
def test_a_score_that_no_site_can_have_is_refused(name: str, lies: dict[str, Any]) -> None:
    evaluated = judged(name, lies, share=False)[2].evaluated
    assert evaluated is not None
    assert "its evaluation is not one of 12 samples" in str(evaluated.failure)


@pytest.mark.parametrize("name", SCORED)
def test_a_loss_above_the_cap_counts_as_the_cap(name: str) -> None:
    answer = judged(name, {"losses": 1e12}, share=False)[2]
    assert answer.evaluated is not None
    assert answer.evaluated.scores is not None
    assert answer.evaluated.scores.global_ is not None
    assert answer.evaluated.scores.global_.loss == 1e6
    assert "and is counted as 1e+06" in answer.notes[0]


@pytest.mark.parametrize(
    ("name", "labels", "shape", "ids"),
    [
        ("two numbers", (), (4,), ()),
        ("multilabel", ("0", "1"), (4,), ()),
        ("tokens", ("0", "1", "2"), (6,), (9,)),
        ("several", ("0", "1"), (), (4,)),
        ("csv", ("ill", "well"), (4,), ()),
        ("ids", ("ill", "well"), (), (3,)),
    ],
)
def test_an_app_names_what_sites_share(
    name: str, labels: tuple[str, ...], shape: tuple[int, ...], ids: tuple[int, ...], tmp_path: Path
) -> None:
    configuration(tmp_path, name)
    kept = [s for s in KINDS[name].settings if not s.startswith(("flower.shape", "data.labels", "model.ids"))]
    scheme = KINDS[name].scheme
    given = [f"data.source={scheme}:{tmp_path / 'data' / 'all'}.{scheme}", "data.split=natural", *kept]
    done = floco("flower", "new", tmp_path / "app", *(part for text in given for part in ("-s", text)))
    assert done.exit_code == 0, done.output
    made = read_settings(run_config(tmp_path / "app"))
    assert (made.data.labels, made.flower.shape, made.model.ids) == (labels, shape, ids)
    says = (tmp_path / "app" / "README.md").read_text()
    words = "x.NAME" if not shape else "`x` (N, ...) of that shape"
    assert ("with the columns `age`, `ward`, `y`" if scheme == "csv" else words) in says
    assert f"/data/north.{scheme}" in says
