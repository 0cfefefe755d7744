"""A run is whole: what reads it needs neither its data nor its code, its place, a lock or permission to write."""

import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from torch import nn

import floco as package
from conftest import blobs, floco, small_net, write_blobs
from floco.core.errors import FlocoError
from floco.core.inputs import arguments, columns
from floco.core.network import build_network
from floco.core.settings import build
from floco.data.federation import Federation
from floco.data.known import Known, describe
from floco.data.partition import Iid, Natural
from floco.deliver.network import read_graph, write_graph
from floco.runs.checkpoint import Store
from floco.storage.files import to_json
from floco.tasks import Regression

pytestmark = pytest.mark.filterwarnings("always::UserWarning")
CODE = """
import torch
from torch import nn
from floco.data.split import Split

class Own(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.body, self.drop, self.out = nn.Linear(shape[0], 6), nn.Dropout(0.2), nn.Linear(6, classes)

    def forward(self, x):
        return self.out(self.drop(torch.tanh(self.body(x))))

class Odd(Own):
    def forward(self, x):
        return super().forward(-x if float(x.sum()) > 1e9 else x)

def build(shape, classes):
    return Own(shape, classes)

def odd(shape, classes):
    return Odd(shape, classes)
"""
SETTINGS = (
    "data.client=hospital",
    "data.target=outcome",
    "data.split=natural",
    "training.rounds=3",
    "training.fraction=1",
    "run.engine=serial",
    "run.evaluate_every=3",
    "algorithm.endpoints=3",
    "algorithm.assign_at=1",
)
HERE = "needs samples that no run directory has, and they are not here: data.source: there is no file"


def table(n: int = 60) -> pd.DataFrame:
    """Patients of four hospitals with a constitution of their own."""
    g, ids = np.random.default_rng(0), ("north", "south", "east", "west")
    x = g.normal(60, 9, size=(4 * n, 3))
    ill = x[:, 0] + g.normal(0, 4, 4 * n) > 60
    made = {"hospital": np.repeat(ids, n), "outcome": np.where(ill, "ill", "well"), "sex": g.choice(["f", "m"], 4 * n)}
    return pd.DataFrame({**made, **{f"value {i}": x[:, i] for i in range(3)}})


@dataclass
class Story:
    """A run in its place, and what the commands give there."""

    home: Path
    run: Path
    expected: dict[str, Any]


def train(home: Path, model: str, name: str) -> str:
    more = [f"data.source=csv:{home / 'patients.csv'}", f"model.name={model}"]
    made = floco("run", *(a for s in (*SETTINGS, *more) for a in ("-s", s)), "--out", home / name)
    assert made.exit_code == 0, made.output
    return made.output


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    home = tmp_path_factory.mktemp("hospital")
    table().to_csv(home / "patients.csv", index=False)
    table().iloc[::9].to_csv(home / "new.csv", index=False)
    (home / "ownnet.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(home)
        train(home, "ownnet:build", "run")
        patch.chdir(home)
        expected = {name: do(home / "run", home / "out") for name, do in COMMANDS.items()}
    sys.modules.pop("ownnet", None)
    return Story(home, home / "run", expected)


def command(*words: str, read: Callable[[Path], Any]) -> Callable[[Path, Path], Any]:
    """Return a function from a run and a place for its output to what the command wrote, or its error."""

    def do(run: Path, out: Path) -> Any:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        found = floco(*(w.format(run=run, out=out) for w in words))
        assert found.exit_code in (0, 2), found.output
        return read(out) if found.exit_code == 0 else found.output

    return do


def predictions(out: Path) -> Any:
    return pd.read_csv(out / "p.csv").drop(columns="label").to_numpy()


def tensors(out: Path) -> Any:
    return {f.name: safetensors.torch.load_file(f) for f in sorted(out.glob("*.safetensors"))}


def cards(out: Path) -> Any:
    """What the cards say but for the metrics that only the test samples tell."""
    found = [json.loads(f.read_text()) for f in sorted(out.glob("*.json"))]
    return [{**c, "tested_on": "", "metrics": {**c["metrics"], "classes": ""}, "versions": ""} for c in found]


def graph(out: Path) -> Any:
    return (out / "g.pt2").stat().st_size > 0


COMMANDS = {
    "predict": command("predict", "{run}", "new.csv", "--client", "north", "-o", "{out}/p.csv", read=predictions),
    "predict --global": command("predict", "{run}", "new.csv", "--global", "-o", "{out}/p.csv", read=predictions),
    "predict --at best": command(
        "predict", "{run}", "new.csv", "--client", "north", "--at", "best", "-o", "{out}/p.csv", read=predictions
    ),
    "predict --mixtures": command(
        "predict", "{run}", "new.csv", "--client", "east", "--mixtures", "3", "-o", "{out}/p.csv", read=predictions
    ),
    "export": command("export", "{run}", "--all", "-o", "{out}", read=lambda out: {"f": tensors(out), "c": cards(out)}),
    "export pt2": command("export", "{run}", "--global", "-o", "{out}/g.pt2", read=graph),
    "place": command("place", "{run}", "new.csv", "-o", "{out}", read=lambda out: len(list(out.iterdir()))),
    "place --check": command("place", "{run}", "new.csv", "--check", "--client", "north", read=lambda out: True),
    "report": command("report", "{run}", "-o", "{out}/r.html", read=lambda out: (out / "r.html").stat().st_size > 9999),
    "bundle": command("bundle", "{run}", "-o", "{out}/b.zip", read=lambda out: zipfile.is_zipfile(out / "b.zip")),
    "resume": command("resume", "{run}", read=lambda out: True),
}
NO_DATA = {"predict --at best": f'client "north" {HERE}', "place --check": HERE, "resume": "data.source: there is no"}
NO_CODE = {"resume": "model.name = 'ownnet:build': No module named 'ownnet'"}
ZIP = {**NO_DATA, "resume": "a bundle is for reading only", "bundle": ""}
SITUATIONS: dict[str, tuple[bool, bool, dict[str, str]]] = {  # data and code are here; what the commands say instead
    "moved": (True, True, {}),
    "no data": (False, True, NO_DATA),
    "no module": (True, False, NO_CODE),
    "zip": (False, False, ZIP),
}


@pytest.fixture(params=SITUATIONS)
def situation(request: pytest.FixtureRequest, story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    data, code, says = SITUATIONS[request.param]
    place = tmp_path / "elsewhere"
    shutil.copytree(story.run, place)
    if request.param == "zip":
        assert floco("bundle", place, "-o", tmp_path / "run.zip").exit_code == 0
        place = tmp_path / "run.zip"
    monkeypatch.chdir(story.home)  # new.csv
    if code:
        monkeypatch.syspath_prepend(story.home)
    else:
        (story.home / "ownnet.py").rename(story.home / "away.py")
        monkeypatch.delitem(sys.modules, "ownnet", raising=False)
    if not data:
        (story.home / "patients.csv").rename(story.home / "away.csv")
    yield place, says
    sys.modules.pop("ownnet", None)
    for here, away in (("ownnet.py", "away.py"), ("patients.csv", "away.csv")):
        if (story.home / away).exists():
            (story.home / away).rename(story.home / here)


def alike(found: Any, expected: Any) -> bool:
    if isinstance(expected, np.ndarray):
        return np.allclose(found, expected, atol=1e-6)
    if isinstance(expected, dict) and all(isinstance(v, torch.Tensor) for v in expected.values()):
        return found.keys() == expected.keys() and all(torch.equal(found[n], t) for n, t in expected.items())
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(alike(found[n], v) for n, v in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(alike, found, expected))
    return bool(found == (pytest.approx(expected) if isinstance(expected, float) else expected))


def test_every_command_is_right_or_says_what_is_missing(situation: Any, story: Story, tmp_path: Path) -> None:
    place, says = situation
    for name, do in COMMANDS.items():
        found = do(place, tmp_path / "out")
        if says.get(name):
            assert isinstance(found, str), name
            assert says[name] in found, name
        else:
            assert alike(found, story.expected[name]), (name, found)
    assert not (place / "network.pt2").exists() or not list(place.glob("*.new"))


@pytest.fixture
def away(story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """A bundle, and the run's data in another place than the run knows."""
    monkeypatch.chdir(story.home)
    monkeypatch.syspath_prepend(story.home)
    assert floco("bundle", story.run, "-o", tmp_path / "run.zip").exit_code == 0
    moved = tmp_path / "elsewhere.csv"
    (story.home / "patients.csv").rename(moved)
    yield tmp_path / "run.zip", moved
    moved.rename(story.home / "patients.csv")
    sys.modules.pop("ownnet", None)


def test_data_that_have_moved_are_named_for_the_questions_that_need_them(
    away: tuple[Path, Path], story: Story, tmp_path: Path
) -> None:
    run, data = away
    words = ("place", run, "new.csv", "--check", "--client", "north", "--data")
    assert floco(*words, f"csv:{data}").exit_code == 0
    best = floco("predict", run, "new.csv", "--client", "north", "--at", "best", "-o", tmp_path / "p.csv",
                 "--data", f"csv:{data}")  # fmt: skip
    assert best.exit_code == 0, best.output
    assert alike(predictions(tmp_path), story.expected["predict --at best"])
    refused = floco(*words, f"csv:{story.home / 'new.csv'}")
    assert refused.exit_code == 2
    assert "have changed since the run was started" in refused.output
    federation = package.load(f"csv:{data}", target="outcome", client="hospital").split(Natural())
    assert package.open_run(run, data=federation).setup.with_samples("this").federation is federation


READ_ONLY = """
import json, sys
from typer.testing import CliRunner
from floco.cli import app
done = {}
for name, words in json.loads(sys.argv[1]).items():
    found = CliRunner().invoke(app, words)
    done[name] = [found.exit_code, found.output]
print(json.dumps(done))
"""


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may write to anything")
def test_a_run_of_another_user_is_read_and_nothing_is_written_into_it(story: Story, tmp_path: Path) -> None:
    place, out = tmp_path / "archive", tmp_path / "out"
    shutil.copytree(story.run, place)
    (place / ".lock").unlink(missing_ok=True)
    out.mkdir()
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*")}
    for path in [*place.rglob("*"), place]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    words = {
        "predict": ["predict", place, story.home / "new.csv", "--client", "north"],
        "best": ["predict", place, story.home / "new.csv", "--client", "north", "--at", "best"],
        "export": ["export", place, "--all", "-o", out / "models"],
        "place": ["place", place, story.home / "new.csv", "-o", out / "placed"],
        "report": ["report", place, "-o", out / "r.html"],
        "bundle": ["bundle", place, "-o", out / "b.zip"],
        "export into it": ["export", place, "--all"],
        "report into it": ["report", place],
        "resume": ["resume", place],
    }
    allowed = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    given = json.dumps({name: list(map(str, w)) for name, w in words.items()})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(story.home), *sys.path])}
    run = [*allowed, sys.executable, "-c", READ_ONLY, given]
    done = json.loads(subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout)
    for name in ("predict", "best", "export", "place", "report", "bundle"):
        assert done[name][0] == 0, done[name]
    for name in ("export into it", "report into it", "resume"):
        assert done[name][0] == 2
        assert f"cannot write {'the report ' * name.startswith('report')}" in done[name][1]
    assert all("-o" in done[name][1] for name in ("export into it", "report into it"))
    for path in [place, *place.rglob("*")]:
        path.chmod(0o755)
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*")} == before


def test_code_of_a_network_that_has_changed_is_found_and_the_graph_predicts(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers and their initial values are equal; only the forward pass is another."""
    home = tmp_path / "changed"
    home.mkdir()
    (home / "ownnet.py").write_text(CODE.replace("torch.tanh(self.body(x))", "torch.relu(self.body(x))"))
    monkeypatch.syspath_prepend(home)
    sys.modules.pop("ownnet", None)
    frame = pd.read_csv(story.home / "new.csv")
    with pytest.warns(UserWarning, match="the code of ownnet:build has changed since the run was started"):
        run = package.open_run(story.run)
    sys.modules.pop("ownnet")
    expected = pd.DataFrame(story.expected["predict"]).to_numpy()
    np.testing.assert_allclose(run.predict(frame, "north").drop(columns="label").to_numpy(), expected, atol=1e-5)


def test_a_bundle_has_the_headers_of_its_tables_and_a_status(story: Story, tmp_path: Path) -> None:
    assert floco("bundle", story.run, "-o", tmp_path / "run.zip").exit_code == 0
    assert package.open_run(tmp_path / "run.zip").failures.columns.tolist() == ["round", "client", "reason"]
    found = floco("status", tmp_path / "run.zip", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["runs"][0]["state"] == "finished"


def test_a_bundle_holds_nobodys_data(story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(story.home)
    run, secret = tmp_path / "run", "seventy-three"
    shutil.copytree(story.run, run)
    facts = json.loads((path := run / "checkpoint" / "3" / "progress.json").read_text())
    (run / "failures.csv").write_text(f"round,client,reason\n2,north,ValueError: a value of {secret}\n")
    facts["sizes"]["failures"] = (run / "failures.csv").stat().st_size
    path.write_text(json.dumps(facts))
    (run / "newcomers.csv").write_text(f"client,model,accuracy,problem\nx,placed,0.5,{secret}\n")
    for name in ("report.html", "notes.txt", "models/samples.npz", "tensorboard/events"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(secret)
    assert floco("bundle", run, "-o", tmp_path / "run.zip").exit_code == 0
    with zipfile.ZipFile(tmp_path / "run.zip") as file:
        whole = b"".join(file.read(name) for name in file.namelist())
    assert secret.encode() not in whole
    values = table().filter(like="value").to_numpy()
    for kind in ("float32", "float64"):
        assert not any(row.astype(kind).tobytes() in whole for row in values)
    opened = package.open_run(tmp_path / "run.zip")
    assert opened.failures["reason"].tolist() == ["(not in bundles)"]
    assert opened.newcomers["problem"].tolist() == ["(not in bundles)"]


def test_an_exported_graph_holds_nobodys_samples(story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(story.home)
    (file,) = package.open_run(story.run).export(tmp_path / "g.pt2", [None])
    with zipfile.ZipFile(file) as made:
        inside = b"".join(made.read(name) for name in made.namelist() if "sample_inputs" in name)
    assert inside
    assert not any(v.tobytes() in inside for v in table().filter(like="value").to_numpy(dtype="float64").ravel())


def test_what_clients_keep_under_a_method_of_ones_own_is_not_in_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keeper.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\nimport floco\n"
        "@dataclass(frozen=True)\nclass Keeper(floco.Ditto):\n    name: ClassVar[str] = 'keeper'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = write_blobs(tmp_path / "blobs.npz")
    words = [f"data.source=npz:{data}", "data.split=natural", "training.rounds=1", "training.fraction=1"]
    for name, kept in (("keeper:Keeper", False), ("ditto", True)):
        run, out = tmp_path / f"run-{name[:5]}", tmp_path / f"{name[:5]}.zip"
        given = [a for s in (*words, f"algorithm.name={name}", "run.engine=serial") for a in ("-s", s)]
        assert floco("run", *given, "--out", run).exit_code == 0
        assert floco("bundle", run, "-o", out).exit_code == 0
        opened, x = package.open_run(out), np.zeros((2, 5), np.float32)
        assert np.isfinite(opened.predict(x).filter(like="p(").to_numpy()).all()
        if kept:
            assert opened.predict(x, "north").equals(package.open_run(run).predict(x, "north"))
        else:
            with pytest.raises(FlocoError, match='"north" keeps to itself is not in this bundle'):
                opened.predict(x, "north")


def test_a_network_without_a_graph_trains_and_says_once_what_reading_will_miss(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(story.home)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(story.home)
        assert train(story.home, "ownnet:odd", "odd").count("its network has no graph") == 1
        assert floco("predict", "odd", "new.csv", "--global").exit_code == 0
    monkeypatch.delitem(sys.modules, "ownnet")
    (story.home / "ownnet.py").rename(story.home / "away.py")
    found = floco("predict", "odd", "new.csv", "--global")
    (story.home / "away.py").rename(story.home / "ownnet.py")
    assert found.exit_code == 2
    assert "No module named 'ownnet'" in found.output
    assert "nor is its graph: torch.export cannot write it" in found.output


def test_a_run_from_python_is_read(tmp_path: Path) -> None:
    federation, x = blobs(), np.ones((3, 5), np.float32)
    run = package.fit(small_net, federation, package.Ditto(), out=tmp_path / "run", rounds=2, engine="serial")
    opened = package.open_run(tmp_path / "run")
    for client in (None, "north"):
        expected = run.predict(x, client).filter(like="p(").to_numpy()
        assert np.allclose(opened.predict(x, client).filter(like="p(").to_numpy(), expected, atol=1e-6)
    assert list(opened.personal("north").state_dict()) == list(run.personal("north").state_dict())


@pytest.mark.parametrize("made", ["text", "another zip", "nothing"])
def test_what_is_no_run_is_refused_in_words(made: str, tmp_path: Path) -> None:
    path = tmp_path / "run.zip"
    if made == "text":
        path.write_text("hello")
    elif made == "another zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.txt", "hello")
    for words in (("predict", path, tmp_path / "x.csv", "--global"), ("report", path), ("bundle", path)):
        found = floco(*words)
        assert found.exit_code == 2
        assert "run" in found.output


def test_reading_goes_on_while_checkpoints_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run = package.fit(small_net, blobs(), package.Ditto(), out=path, rounds=2, engine="serial", fraction=1.0)
    writer = Store(path)
    writer.load()

    def write() -> None:
        for number in range(3, 40):
            state = replace(run.progress.state, round=number)
            writer.note_changed(run.progress.memories)
            writer.save(replace(run.progress, state=state))

    thread = threading.Thread(target=write)
    thread.start()
    seen = [Store(path, read=True).load().round]
    while thread.is_alive():
        seen.append(Store(path, read=True).load().round)
    thread.join()
    writer.close()
    assert seen == sorted(seen)
    assert len(set(seen)) > 1


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.e = nn.Linear(4, 3), nn.Embedding(5, 3)

    def forward(self, numbers: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        return self.a(numbers) + self.e(kind)


class Everything(nn.Module):
    """BatchNorm, dropout, frozen and tied tensors, a buffer that is not kept and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((5,), 2.0))
        self.norm, self.first, self.second = nn.BatchNorm1d(5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.frozen, self.drop, self.out = nn.Linear(5, 5).requires_grad_(False), nn.Dropout(), nn.Linear(5, 3)
        self.register_buffer("scale", torch.arange(5.0), persistent=False)
        self.shift = torch.ones(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.frozen(self.second(self.first(self.norm(x) * self.weight))) * self.scale + self.shift
        return self.out(self.drop(x))


def several(kind: type) -> Federation:
    g = torch.Generator().manual_seed(0)
    parts = torch.randn(90, 4, generator=g), torch.randint(0, 5, (90,), generator=g)
    x: Any = parts if kind is tuple else dict(zip(("numbers", "kind"), parts, strict=True))
    return package.load((x, np.arange(90) % 3)).split(package.Dirichlet(1.0), clients=3, seed=0)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Federation]]] = {
    "everything": (Everything, blobs),
    "tuple": (Many, lambda: several(tuple)),
    "dict": (Many, lambda: several(dict)),
    "digits": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), lambda: digits()),
}


def digits() -> Federation:
    return package.load("digits").split(package.Folds(5), clients=4, samples=40, seed=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_has_the_tensors_and_gives_the_outputs_of_its_network(name: str) -> None:
    build_it, federate = NETWORKS[name]
    federation = federate()
    original = build_network(build_it, seed=0, sample=federation.sample)
    read = read_graph(write_graph(original, federation))
    assert read.layout == original.layout
    assert read.text == str(original.module)
    assert read.shape_hash() == original.shape_hash()
    assert read.parameters.keys() == original.parameters.keys()
    g = torch.Generator().manual_seed(1)
    drawn = {n: torch.randn(t.shape, generator=g) for n, t in original.parameters.items()}
    args, kwargs = arguments(federation.inputs(federation.clients[0].train[:7]))
    models = [n.holding({**drawn, **original.buffers}) for n in (original, read)]
    with torch.no_grad():
        first, second = (m(*args, **kwargs) for m in models)
    assert torch.allclose(first, second, atol=1e-5)
    with pytest.raises(FlocoError, match="only its graph"):
        read.twin(torch.device("cpu"), train=True)


def regression() -> Federation:
    g = np.random.default_rng(0)
    made = package.load((1e9 + g.normal(size=(60, 3)), g.normal(5, 3, size=(60, 2))), task=Regression())
    return made.split(Iid(), clients=3, seed=0)


def patients(categories: str) -> Federation:
    made = package.load(table(), target="outcome", client="hospital", categories=categories)
    return made.split(package.Natural())


FEDERATIONS: dict[str, Callable[[], Federation]] = {
    "numbers": blobs,
    "digits": digits,
    "dict": lambda: several(dict),
    "tuple": lambda: several(tuple),
    "table": lambda: patients("one-hot"),
    "ids": lambda: patients("ids"),
    "regression": regression,
}


@pytest.mark.parametrize("name", FEDERATIONS)
def test_a_federation_is_known_without_its_samples(name: str) -> None:
    made = FEDERATIONS[name]()
    told = json.loads(to_json(describe(made)))
    known = Known(told, build(type(made.task), told["task"]), lambda: made)
    assert known.schema == made.schema
    assert known.infos == made.infos
    assert (known.shape, known.outputs, known.classes, known.target) == (
        made.shape,
        made.outputs,
        made.classes,
        made.target,
    )
    for mine, given in zip((*known.clients, *known.held_out), (*made.clients, *made.held_out), strict=True):
        assert known.label_counts(mine.train) == made.label_counts(given.train)
        assert known.label_counts(mine.test) == made.label_counts(given.test)
    assert describe(known) == describe(made)
    raw = made.schema.made_up(50)
    for name, column in columns(raw).items():
        form, own = columns(made.schema.forms)[name], columns(made.x)[name]
        assert (column.dtype, column.shape[1:]) == (own.dtype, own.shape[1:])
        form.samples(form.restored(column), "made up")
    with pytest.raises(FlocoError, match="has no samples at hand"):
        known.x  # noqa: B018
    assert known.with_samples("this") is made


@pytest.mark.parametrize("names", [("ward", "sex"), ("sex", "age", "ward"), ("smoker", "ward", "sex"), ("a", "b")])
def test_a_reopened_run_reads_columns_as_in_training_whatever_their_order(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    """JSON files keep no order of keys, and categories become channels in the order of the columns."""
    g = np.random.default_rng(0)
    values = {
        n: g.normal(size=80) if n == "age" else g.choice(["u", "v", "w"][: 2 + i], 80) for i, n in enumerate(names)
    }
    table = pd.DataFrame({**values, "client": g.choice(["north", "south"], 80)})
    table["y"] = np.where(table[names[0]] == "u", "sick", "well")
    federation = package.load(table, target="y").split(Natural(), seed=0)
    model = package.model("mlp", federation)
    run = package.fit(
        model, federation, package.FedAvg(), out=tmp_path / "run", rounds=1, engine="serial", fraction=1.0
    )
    opened = package.open_run(tmp_path / "run")
    for client in (None, "north"):
        expected = run.predict(table, client).filter(like="p(").to_numpy()
        assert np.allclose(opened.predict(table, client).filter(like="p(").to_numpy(), expected, atol=1e-6)


def test_what_a_run_knows_of_its_data_is_the_schema_that_it_was_trained_on() -> None:
    """Twelve inputs of other shapes each, whose positions are no words."""
    x = tuple(np.ones((8, 1 + i), np.float32) for i in range(12))
    made = package.load((x, np.arange(8) % 2), client=np.arange(8) % 2).split(Natural(), seed=0)
    known = Known(json.loads(to_json(describe(made))), made.task, lambda: made)
    assert known.schema == made.schema
    assert [t.shape[1] for t in known.sample] == [1 + i for i in range(12)]
