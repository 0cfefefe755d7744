"""Runs that go on with other settings: what is allowed, what is noted, which bits come out; and starts that fail."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from torch import nn

from conftest import USUAL, blobs, floco, rows, same, small_net, started, until, write_blobs
from floco.algorithms import ALGORITHMS, FedAvg, Floco, SuPerFed
from floco.analysis import tables
from floco.api import fit, open_run
from floco.core.algorithm import Algorithm
from floco.core.errors import FlocoError, RunFailed
from floco.core.values import Training
from floco.runs import session, trackers
from floco.runs.results import Run
from floco.server import rounds as loop
from test_cli import FLOCO
from test_store import CONTEXT, contents

SETTINGS = {"rounds": 4, "fraction": 0.5, "batch_size": 8, "evaluate_every": 2, "engine": "serial"}
OWN = {
    "floco": {"endpoints": 3, "assign_at": 2},
    "floco+": {"endpoints": 3, "assign_at": 2},
    "superfed": {"start_share": 0.0},
}
"""With these a method does not look at the number of rounds."""


def train(out: Path, algorithm: Algorithm | None = None, **settings: object) -> Run:
    algorithm = algorithm or FedAvg()
    model = USUAL.get(algorithm.name, small_net)
    return fit(model, blobs(), algorithm, out=out, **{**SETTINGS, **settings})


def go_on(out: Path, algorithm: Algorithm | None = None, **settings: object) -> Run:
    algorithm = algorithm or FedAvg()
    model = USUAL.get(algorithm.name, small_net)
    return fit(model, blobs(), algorithm, out=out, resume=True, change=True, **settings)


def models(out: Path) -> dict[str, bytes]:
    """What the last checkpoint says of server and clients."""
    return {name: data for name, data in contents(out).items() if name.endswith(".safetensors")}


def changes(out: Path) -> list[tuple[object, ...]]:
    return list(open_facts(out).itertuples(index=False, name=None))


def open_facts(out: Path):  # type: ignore[no-untyped-def]
    return Run(None, None, out).changes  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run from files, quick to train."""
    folder = tmp_path_factory.mktemp("data")
    data = f"data.source=npz:{write_blobs(folder / 'blobs.npz', test=9)}"
    given = (data, "data.split=natural", "training.rounds=3", "run.evaluate_every=1", "run.engine=serial")
    return [word for text in given for word in ("-s", text)]


@pytest.fixture
def run(base: list[str], tmp_path: Path) -> Path:
    out = tmp_path / "run"
    assert floco("run", *base, "--out", out).exit_code == 0
    return out


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_extended_run_has_the_models_of_one_that_was_as_long_from_the_start(tmp_path: Path, name: str) -> None:
    algorithm = ALGORITHMS[name](**OWN.get(name, {}))
    train(tmp_path / "extended", algorithm)
    go_on(tmp_path / "extended", algorithm, rounds=7)
    train(tmp_path / "whole", algorithm, rounds=7)
    assert models(tmp_path / "extended") == models(tmp_path / "whole")
    assert rows(tmp_path / "extended" / "clients.csv") == rows(tmp_path / "whole" / "clients.csv")


LOOK_AT_THE_ROUNDS = {
    "the assignment in the middle": (Floco(endpoints=3), {}),
    "the personal endpoints' start": (SuPerFed(start_share=0.4), {}),
    "the schedule": (FedAvg(), {"schedule": "cosine"}),
}


@pytest.mark.filterwarnings("ignore:the step size rises")
@pytest.mark.parametrize(("algorithm", "more"), LOOK_AT_THE_ROUNDS.values(), ids=LOOK_AT_THE_ROUNDS)
def test_where_the_number_of_rounds_counts_an_extended_run_is_another(
    tmp_path: Path, algorithm: Algorithm, more: dict[str, object]
) -> None:
    train(tmp_path / "extended", algorithm, **more)
    go_on(tmp_path / "extended", algorithm, rounds=8)
    train(tmp_path / "whole", algorithm, rounds=8, **more)
    assert models(tmp_path / "extended") != models(tmp_path / "whole")


def test_the_assignment_keeps_its_round(tmp_path: Path) -> None:
    train(tmp_path / "run", Floco(endpoints=3))
    extended = go_on(tmp_path / "run", Floco(endpoints=3), rounds=8)
    assert extended.setup.algorithm.assign_at == 2


def test_a_changed_run_has_the_same_bytes_with_any_workers_and_after_any_kill(tmp_path: Path) -> None:
    algorithm = Floco(endpoints=3, assign_at=2)
    for name in ("serial", "workers", "killed"):
        train(tmp_path / name, algorithm)
    go_on(tmp_path / "serial", algorithm, rounds=9, lr=0.01)
    go_on(tmp_path / "workers", algorithm, rounds=9, lr=0.01, engine="processes", workers=2)

    def dies() -> None:
        original = loop.round_jobs

        def killed(setup, before):  # type: ignore[no-untyped-def]
            if before.round == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(setup, before)

        loop.round_jobs = killed
        go_on(tmp_path / "killed", algorithm, rounds=9, lr=0.01)

    process = CONTEXT.Process(target=dies)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    go_on(tmp_path / "killed", algorithm)
    same = {n: d for n, d in contents(tmp_path / "serial").items() if n not in ("run.json", "config.toml")}
    for name in ("workers", "killed"):
        assert {n: d for n, d in contents(tmp_path / name).items() if n in same} == same, name
    assert changes(tmp_path / "killed") == changes(tmp_path / "serial")


def test_a_run_that_diverged_goes_on_with_a_smaller_step_size(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="training gave a non-finite"):
        train(tmp_path / "run", lr=1e30)
    assert go_on(tmp_path / "run", lr=0.05).history["round"].tolist() == [2, 4]
    assert changes(tmp_path / "run") == [(1, "training.lr", 1e30, 0.05)]


def test_what_was_changed_is_in_the_run_the_report_the_card_and_open_run(run: Path, tmp_path: Path) -> None:
    before = (run / "config.toml").read_bytes()
    first = floco("resume", run, "-s", "training.rounds=5")
    second = floco("resume", run, "-s", "training.lr=0.01", "-s", "training.rounds=6", "-s", "run.evaluate_every=3")
    assert (first.exit_code, second.exit_code) == (0, 0), second.output
    assert (run / "config.toml").read_bytes() == before
    opened = open_run(run)
    assert opened.changes.to_dict("split")["data"] == [
        [4, "training.rounds", 3, 5],
        [6, "run.evaluate_every", 1, 3],
        [6, "training.lr", 0.1, 0.01],
        [6, "training.rounds", 5, 6],
    ]
    assert opened.setup.training.lr == 0.01
    assert opened.history["round"].tolist() == [1, 2, 3, 4, 5, 6]
    said = "from round 6: training.lr = 0.01 (before: 0.1)"
    assert said in second.stdout
    assert floco("report", run, "-o", tmp_path / "page.html").exit_code == 0
    assert f"run was changed {said}." in (tmp_path / "page.html").read_text()
    card = opened.export(tmp_path / "model.safetensors", [None])[0].with_name("model.safetensors.md")
    assert f"- Changed {said}." in card.read_text()


def test_a_change_taken_back_before_the_next_round_is_no_change(run: Path) -> None:
    with pytest.raises(RunFailed):
        session.continue_run(run, None, _fails, ["training.rounds=9", "training.lr=0.01"])
    assert [c["key"] for c in json.loads((run / "run.json").read_text())["changes"]] == [
        "training.lr",
        "training.rounds",
    ]
    assert floco("resume", run, "-s", "training.rounds=5", "-s", "training.lr=0.1").exit_code == 0
    assert changes(run) == [(4, "training.rounds", 3, 5)]


@pytest.mark.parametrize("how", ["algorithm.name=fedavg+ft", "deliver.model=finetuned", "deliver.model=chosen"])
def test_models_that_are_trained_at_use_have_the_settings_of_their_round(
    base: list[str], tmp_path: Path, how: str
) -> None:
    """A run that was extended with other settings, and has not trained with them yet."""
    out = tmp_path / "run"
    assert floco("run", *base, "-s", how, "--out", out).exit_code == 0
    before = open_run(out).personal("north").state_dict()
    with pytest.raises(RunFailed):
        session.continue_run(out, None, _fails, ["training.rounds=9", "training.lr=0.5"])
    opened = open_run(out)
    assert same(opened.personal("north").state_dict(), before)
    card = opened.export(tmp_path / "model.safetensors", ["north"])[0].with_name("model.safetensors.md").read_text()
    assert "lr 0.1" in card
    assert "Changed" not in card


def _fails(setup: object, progress: object) -> object:
    raise RunFailed("the power is cut")


REFUSED = {
    "seed=1": "seed: all random numbers",
    "data.clients=2": "data.clients: the clients",
    "data.split=folds": "data.split: the clients",
    "task.label_smoothing=0.1": "task.label_smoothing: the models",
    "model.name=cnn": "model.name: the trained tensors",
    "algorithm.radius=0.3": "algorithm.radius: what server and clients keep",
    "algorithm.name=fedavg": "algorithm.name: what server and clients keep",
    "deliver.model=chosen": "deliver.model: earlier evaluations are of models",
    "training.buffers=local": "training.buffers: what server and clients keep depends",
    "flower.sites=3": "flower.sites: only runs on Flower",
    "training.rounds=2": "training.rounds = 2: must be above 3, the rounds that are done",
    "training.lr=0.01": "training.rounds = 3: must be above 3, the rounds that are done",
    "training.lr=-1": "training.lr must be > 0, got -1",
    "training.warmup=3": "warmup must be below training.rounds (3)",
    "training.rouds=9": "unknown key 'rouds'; did you mean 'rounds'",
    "run.trackers=['mlfow']": "run.trackers must be one of",
    "run.device=cuda:77": "run.device = 'cuda:77' cannot be used here",
    "nothing.here=1": "unknown key 'nothing'",
    "rounds": "-s needs key=value, got 'rounds'",
}


def test_what_cannot_change_is_refused_in_words_and_leaves_the_run_as_it_was(run: Path) -> None:
    before = contents(run)
    for text, says in REFUSED.items():
        done = floco("resume", run, "-s", text)
        assert done.exit_code == 2, text
        assert says in done.stderr, (text, done.stderr)
    assert contents(run) == before


def test_all_that_is_refused_is_in_one_message(run: Path) -> None:
    several = [t for t in REFUSED if t.partition(".")[0] in ("seed=1", "data", "task", "model", "algorithm", "flower")]
    done = floco("resume", run, *[w for t in (*several, "training.rounds=2") for w in ("-s", t)])
    assert all(REFUSED[t] in done.stderr for t in (*several, "training.rounds=2"))


def test_in_python_what_cannot_change_is_refused_and_without_change_everything_is(tmp_path: Path) -> None:
    train(tmp_path / "run", Floco(endpoints=3))
    with pytest.raises(FlocoError, match=r"algorithm\.radius: what server(.|\n)*training\.buffers: what server"):
        go_on(tmp_path / "run", Floco(endpoints=3, radius=0.3), rounds=9, buffers="local")
    with pytest.raises(FlocoError, match="give out and resume=True"):
        train(tmp_path / "run", change=True)
    with pytest.raises(FlocoError, match=r"training\.rounds = 4, .* continued with 9: .* change=True"):
        fit(
            small_net,
            blobs(),
            Floco(endpoints=3, assign_at=2),
            out=tmp_path / "run",
            resume=True,
            **{**SETTINGS, "rounds": 9},
        )


def test_a_method_can_refuse_a_change_that_it_cannot_bear(tmp_path: Path) -> None:
    train(tmp_path / "run", SuPerFed(start_share=0.4))  # w_l is trained from round 2 on
    with pytest.raises(FlocoError, match=r"since round 2, and would wait with them until round 9 .*choose fewer"):
        go_on(tmp_path / "run", SuPerFed(start_share=0.4), rounds=20)
    go_on(tmp_path / "run", SuPerFed(start_share=0.4), rounds=9)


@pytest.mark.parametrize(
    ("before", "after", "rises"),
    [
        (Training(rounds=4, schedule="cosine"), Training(rounds=8, schedule="cosine"), True),
        (Training(rounds=4, schedule="linear"), Training(rounds=5, schedule="linear"), False),
        (Training(rounds=4, schedule="cosine"), Training(rounds=8, schedule="cosine", lr=0.001), False),
        (Training(rounds=4), Training(rounds=8), False),
    ],
)
def test_a_step_size_that_rises_with_the_rounds_is_said(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, before: Training, after: Training, rises: bool
) -> None:
    train(tmp_path / "run", schedule=before.schedule)
    go_on(tmp_path / "run", rounds=after.rounds, lr=after.lr)
    assert any("the step size rises" in str(w.message) for w in recwarn) == rises


def test_results_of_newcomers_are_those_of_the_last_round(base: list[str], tmp_path: Path) -> None:
    settings = [*base, "-s", "data.held_out=1", "-s", "algorithm.assign_at=2"]
    assert floco("run", *settings, "--out", tmp_path / "extended").exit_code == 0
    first = (tmp_path / "extended" / "newcomers.csv").read_bytes()
    assert floco("resume", tmp_path / "extended", "-s", "training.rounds=6").exit_code == 0
    assert floco("run", *settings, "-s", "training.rounds=6", "--out", tmp_path / "whole").exit_code == 0
    assert (
        first
        != (tmp_path / "extended" / "newcomers.csv").read_bytes()
        == (tmp_path / "whole" / "newcomers.csv").read_bytes()
    )


def test_a_changed_run_is_no_seed_of_one_that_had_the_settings_from_the_start(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(tmp_path / f"changed-{seed}", lr=0.1, seed=seed)
        go_on(tmp_path / f"changed-{seed}", rounds=6, lr=0.01)
        train(tmp_path / f"whole-{seed}", rounds=6, lr=0.01, seed=seed)
    loaded = tables.load(sorted(tmp_path.iterdir()))
    kinds = [{path.name[:5] for (m, _), path in loaded.paths.items() if m == name} for name in loaded.names]
    assert kinds == [
        {"chang"},
        {"whole"},
        {"whole"},
    ]  # these have their folders' names


@pytest.mark.parametrize("within", ["", "runs/fedavg-seed0"])
def test_a_comparison_is_not_changed(base: list[str], tmp_path: Path, within: str) -> None:
    out = tmp_path / "all"
    assert floco("compare", *base, "-a", "fedavg", "--seeds", "1", "--out", out).exit_code == 0
    before = contents(out)
    done = floco("resume", out / within, "-s", "training.rounds=9")
    assert done.exit_code == 2
    assert "is a comparison: its methods have the same settings from the first round to the last" in done.stderr
    assert contents(out) == before


class Breaks(nn.Sequential):
    def forward(self, x):  # type: ignore[no-untyped-def]
        raise OSError("no such layer")


def broken() -> nn.Module:
    return Breaks(nn.Linear(5, 3))


STARTS = {
    "no data": ["data.source=npz:nowhere.npz"],
    "a model that raises": ["model.name=test_changes:broken"],
    "no such model": ["model.name=nowhere:net"],
    "weights that are missing": ["model.weights=nowhere.safetensors"],
    "a device that is missing": ["run.device=cuda:77"],
    "a method that does not suit": ["algorithm.name=scaffold", "training.optimizer=adamw"],
    "an assignment after the end": ["algorithm.assign_at=99"],
}


@pytest.mark.parametrize("command", ["run", "compare"])
@pytest.mark.parametrize("given", STARTS.values(), ids=STARTS)
def test_a_start_that_fails_leaves_nothing(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, given: list[str]
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.chdir(tmp_path)
    seeds = ["-a", "floco,scaffold", "--seeds", "1"] if command == "compare" else []
    done = floco(command, *base, *[w for text in given for w in ("-s", text)], *seeds, "--out", "runs/mine")
    assert done.exit_code == 2, done.output
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_is_not_installed_is_seen_before_there_is_a_run(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    done = floco("run", *base, "-s", "run.trackers=['mlflow']", "--out", tmp_path / "run")
    assert "pip install 'floco[tracking]'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_first_round_that_fails_leaves_a_run_that_opens_and_goes_on(base: list[str], tmp_path: Path) -> None:
    done = floco("run", *base, "-s", "training.lr=1e30", "--out", tmp_path / "run")
    assert done.exit_code == 1
    assert open_run(tmp_path / "run").progress.round == 0
    assert floco("resume", tmp_path / "run", "-s", "training.lr=0.1").exit_code == 0


def test_a_folder_that_was_there_stays_empty_if_the_run_cannot_be_moved_into_it(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.rename

    def stopped(self: Path, target: Path) -> Path:
        if self.name == "run.json":
            raise KeyboardInterrupt
        return original(self, target)

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(Path, "rename", stopped)
    floco("run", *base, "--out", tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_ctrl_c_before_the_first_checkpoint_leaves_nothing_or_a_run(base: list[str], tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\ndef net():\n    pathlib.Path('begun').touch()\n    time.sleep(300)\n"
    )
    command = [*FLOCO, "run", *base, "-s", "model.name=slow:net", "--out", "run"]
    process = started(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until((tmp_path / "begun").exists, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode != 0
    assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["begun", "slow.py"]
