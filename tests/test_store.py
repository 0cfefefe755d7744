"""Runs that are killed, resumed, changed, shared and starved, with real processes and files."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import torch
from torch import nn

from conftest import ANY_NETWORK, blobs, floco, small_net, write_blobs
from floco.algorithms import FlocoPlus
from floco.api import _configured as configured
from floco.api import fit, open_run
from floco.core.algorithm import Algorithm
from floco.core.errors import FlocoError, RunFailed
from floco.runs import checkpoint as store
from floco.runs import session
from floco.runs.checkpoint import FORMAT, Store
from floco.runs.results import Run
from floco.server import rounds as loop
from floco.server.progress import Progress
from floco.storage import files
from floco.storage.files import read_tensors

ALGORITHM = FlocoPlus(endpoints=3, assign_at=4)
SETTINGS = {"rounds": 10, "fraction": 0.5, "batch_size": 8, "evaluate_every": 3, "engine": "serial"}
CONTEXT = multiprocessing.get_context("fork")


def run(out: Path, log: Path | None = None, algorithm: Algorithm = ALGORITHM, **changes: object) -> Run:
    """Train, or continue, the run in `out`; the log gets a line for every round that begins."""
    original = loop.round_jobs

    def logged(setup, before):  # type: ignore[no-untyped-def]
        if log is not None:
            with log.open("a") as file:
                file.write(f"{before.round + 1}\n")
        return original(setup, before)

    loop.round_jobs = logged
    try:
        return fit(small_net, blobs(), algorithm, out=out, resume=True, **{**SETTINGS, **changes})
    finally:
        loop.round_jobs = original


def in_process(target: Callable[..., object], *args: object) -> multiprocessing.Process:
    process = CONTEXT.Process(target=target, args=args)
    process.start()
    return process


def contents(out: Path) -> dict[str, bytes]:
    """All files of a run whose bytes must not depend on its history."""
    names = [p for p in out.rglob("*") if p.is_file() and p.name not in ("timings.csv", "environment.json", ".lock")]
    return {str(p.relative_to(out)): p.read_bytes() for p in names if p.name != "progress.json"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    process = in_process(run, out)
    process.join()
    assert process.exitcode == 0
    return contents(out)


def rounds_begun(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.soak)])
def test_a_run_killed_at_any_moment_resumes_to_the_same_bytes(tmp_path: Path, kills: int, every: int) -> None:
    """SIGKILL at random moments, spread over all rounds, for each interval of checkpoints."""
    run(tmp_path / "whole", checkpoint_every=every)
    expected = contents(tmp_path / "whole")
    chance = random.Random(every)
    unfinished = 0
    for i in range(kills):
        out, log = tmp_path / f"run-{i}", tmp_path / f"log-{i}"
        begun, later = round(1 + i * (SETTINGS["rounds"] - 2) / (kills - 1)), chance.uniform(0, 0.02)

        def dies(out: Path = out, log: Path = log, begun: int = begun, later: float = later) -> None:
            def watch() -> None:
                while rounds_begun(log) < begun:
                    sleep(0.001)
                sleep(later)
                os.kill(os.getpid(), signal.SIGKILL)

            threading.Thread(target=watch, daemon=True).start()
            run(out, log, checkpoint_every=every)

        process = in_process(dies)
        process.join()
        unfinished += process.exitcode == -signal.SIGKILL
        resumed = in_process(lambda out=out, log=log: run(out, log, checkpoint_every=every))
        resumed.join()
        assert resumed.exitcode == 0
        assert contents(out) == expected
        assert rounds_begun(log) <= SETTINGS["rounds"] + every
    assert unfinished >= kills / 2


@pytest.mark.parametrize("half", [False, True])
def test_a_run_killed_inside_any_write_resumes_to_the_same_bytes(
    tmp_path: Path, undisturbed: dict[str, bytes], half: bool
) -> None:
    """The n-th write of the run directory is the last thing the process does, whole or cut in the middle."""
    for n in [*range(1, 16), 40, 60]:
        out, log = tmp_path / f"run-{n}", tmp_path / f"log-{n}"

        def dies(out: Path = out, log: Path = log, n: int = n) -> None:
            writes, original = iter(range(1, 10**6)), store.write_file

            def write(path: Path, data: bytes) -> None:
                if next(writes) == n:
                    if half:
                        path.write_bytes(data[: len(data) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                original(path, data)

            store.write_file = files.write_file = write
            run(out, log)

        process = in_process(dies)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        resumed = in_process(run, out, log)
        resumed.join()
        assert resumed.exitcode == 0
        assert contents(out) == undisturbed
        assert rounds_begun(log) <= SETTINGS["rounds"] + 1


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "changes",
    [{"engine": "cohort", "workers": 2}, {"memory_budget": 0}, {"engine": "cohort", "memory_budget": 0}],
    ids=str,
)
def test_a_stopped_run_of_cohorts_and_of_memories_in_files_resumes_to_the_same_bytes(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    def stop(progress: Progress) -> None:
        if progress.round == 5:
            raise Stop

    settings = {**SETTINGS, "checkpoint_every": 2, **changes}
    fit(small_net, blobs(), ALGORITHM, out=tmp_path / "whole", **settings)
    with pytest.raises(Stop):
        fit(small_net, blobs(), ALGORITHM, out=tmp_path / "run", watch=stop, **settings)
    fit(small_net, blobs(), ALGORITHM, out=tmp_path / "run", resume=True, **settings)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_run_of_a_version_without_memory_budget_is_continued(tmp_path: Path) -> None:
    out = tmp_path / "run"
    session.create(*configured(small_net, blobs(), ALGORITHM, dict(SETTINGS)), out)
    facts = json.loads((out / "run.json").read_text())
    del facts["config"]["run"]["memory_budget"]
    (out / "run.json").write_text(json.dumps(facts))
    text = (out / "config.toml").read_text()
    (out / "config.toml").write_text(
        "".join(line for line in text.splitlines(keepends=True) if not line.startswith("memory_budget"))
    )
    assert run(out).progress.round == SETTINGS["rounds"]


def test_a_run_is_resumable_before_its_first_round(tmp_path: Path) -> None:
    out = tmp_path / "run"
    session.create(*configured(small_net, blobs(), ALGORITHM, dict(SETTINGS)), out)
    assert (out / "checkpoint" / "latest").read_text() == "0\n"
    assert run(out).progress.round == 10


def test_resuming_a_finished_run_trains_nothing(tmp_path: Path) -> None:
    run(tmp_path / "run")
    before = contents(tmp_path / "run")
    run(tmp_path / "run", tmp_path / "log")
    assert contents(tmp_path / "run") == before
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lr": 0.2}, r"training\.lr = 0\.05.*continued with 0\.2"),
        ({"seed": 1}, "seed = 0"),
        ({"engine": "processes"}, r"run\.engine = 'serial'"),
    ],
)
def test_a_changed_setting_is_refused_by_name(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    run(tmp_path / "run", rounds=2, algorithm=FlocoPlus(endpoints=3))
    with pytest.raises(FlocoError, match=says):
        run(tmp_path / "run", rounds=2, algorithm=FlocoPlus(endpoints=3), **changes)


def test_changed_data_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(FlocoError, match="data of .* have changed"):
        fit(small_net, blobs(seed=1), ALGORITHM, out=tmp_path / "run", resume=True, **SETTINGS)


def test_an_edited_config_file_is_refused_by_key(tmp_path: Path) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run" / "config.toml"
    path.write_text(path.read_text().replace("lr = 0.05", "lr = 0.06"))
    with pytest.raises(FlocoError, match=r"training\.lr"):
        session.reopen(tmp_path / "run")


def test_a_run_of_a_device_that_is_not_here_opens_predicts_and_exports_on_the_cpu(tmp_path: Path) -> None:
    data, out = write_blobs(tmp_path / "blobs.npz"), tmp_path / "run"
    given = [
        "-s",
        f"data.source=npz:{data}",
        "-s",
        "data.split=natural",
        "-s",
        "training.rounds=2",
        "-s",
        "algorithm.endpoints=2",
    ]
    assert floco("run", *given, "--out", out).exit_code == 0
    expected = open_run(out).predict(np.zeros((3, 5), np.float32), "north")
    for path, before, after in (
        ("config.toml", 'device = "cpu"', 'device = "cuda:7"'),
        ("run.json", '"device": "cpu"', '"device": "cuda:7"'),
    ):
        text = (out / path).read_text()
        assert before in text
        (out / path).write_text(text.replace(before, after))
    there = open_run(out)
    assert there.setup.device.type == "cpu"
    assert there.predict(np.zeros((3, 5), np.float32), "north").equals(expected)
    assert there.export(tmp_path / "north.pt2", ["north"])
    assert next(there.personal("north").parameters()).device.type == "cpu"
    resumed = floco("resume", out)
    assert resumed.exit_code == 2
    assert "run.device = 'cuda:7' cannot be used here" in resumed.output


def test_another_format_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace(f'"format": {FORMAT}', '"format": 99'))
    with pytest.raises(FlocoError, match=f"format 99, this version of floco reads format {FORMAT}"):
        Store(tmp_path / "run")


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run")
    held = Store(tmp_path / "run")
    pipe, other = CONTEXT.Pipe()

    def tries() -> None:
        try:
            Store(tmp_path / "run")
            other.send("opened")
        except FlocoError as error:
            other.send(str(error))

    in_process(tries).join()
    assert "in use by another process" in pipe.recv()
    held.close()
    Store(tmp_path / "run").close()


def test_a_place_that_is_not_empty_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FlocoError, match="not empty"):
        fit(small_net, blobs(), ALGORITHM, out=tmp_path, **SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlocoError, match=r"no run directory"):
        session.reopen(tmp_path)


def test_no_room_on_the_disk_leaves_a_resumable_run(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """The kernel refuses to let any file grow past 600 bytes, as a full disk would, once the run is on its way."""
    out = tmp_path / "run"

    def starved() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        def starve(progress: Progress) -> None:
            if progress.round == 5:
                resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))

        try:
            fit(small_net, blobs(), ALGORITHM, out=out, watch=starve, **SETTINGS)
        except RunFailed as error:
            os._exit(7 if "make room" in str(error) and "round 6" in str(error) else 8)
        os._exit(9)

    process = in_process(starved)
    process.join()
    assert process.exitcode == 7
    run(out)
    assert contents(out) == undisturbed


def test_memories_are_kept_in_one_version_each(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(out)
    files = sorted(p.name for p in (out / "checkpoint" / "memories").iterdir())
    assert len(files) == len(done.progress.memories) == 6
    assert any(name.startswith("Stra%C3%9Fe%207%2Fb.") for name in files)
    tensors = read_tensors(out / "checkpoint" / "memories" / files[0])
    assert all(n.startswith("personal/") for n in tensors)


def test_a_stored_run_is_the_run_in_memory(tmp_path: Path) -> None:
    kept, stored = fit(small_net, blobs(), ALGORITHM, **SETTINGS), run(tmp_path / "run")
    assert kept.history.equals(stored.history)
    assert kept.clients.drop(columns="center").equals(stored.clients.drop(columns="center"))
    assert kept.clients["center"].tolist() == stored.clients["center"].tolist()
    assert all(torch.equal(kept.progress.state.shared[n], t) for n, t in stored.progress.state.shared.items())


def test_a_run_that_was_started_from_python_says_how_to_continue(tmp_path: Path) -> None:
    run(tmp_path / "run")
    config, held = session.reopen(tmp_path / "run")
    held.close()
    with pytest.raises(FlocoError, match=r"floco\.fit\(\.\.\., out=\.\.\., resume=True\)"):
        session.prepare(config)


def test_a_checkpoint_that_was_tampered_with_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out)
    state = next((out / "checkpoint").glob("*/state.safetensors"))
    state.write_bytes(state.read_bytes()[:50])
    with pytest.raises(FlocoError, match="cannot be read as safetensors"):
        run(out)
    shutil.rmtree(out / "checkpoint" / "10")
    with pytest.raises(FlocoError, match="no whole checkpoint"):
        run(out)


@pytest.mark.parametrize("name", ANY_NETWORK)
def test_every_algorithm_resumes_to_the_same_bytes(tmp_path: Path, name: str) -> None:
    algorithm = ANY_NETWORK[name]()
    run(tmp_path / "whole", algorithm=algorithm)

    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.round == 6:
            raise Stop

    with pytest.raises(Stop):
        fit(small_net, blobs(), algorithm, out=tmp_path / "stopped", watch=stop, **SETTINGS)
    run(tmp_path / "stopped", algorithm=algorithm)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def other_values() -> nn.Module:
    net = small_net()
    nn.init.zeros_(net[0].bias)
    return net


OTHERS = {
    "activation": lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)),
    "width": lambda: nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3)),
    "values": other_values,
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_changed_model_is_refused(tmp_path: Path, other: Callable[[], nn.Module]) -> None:
    run(tmp_path / "run")
    with pytest.raises(FlocoError, match="model of .* has changed"):
        fit(other, blobs(), ALGORITHM, out=tmp_path / "run", resume=True, **SETTINGS)


def test_settings_that_are_not_given_are_kept_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run started on one number of cores continues on another, as it was."""
    free = {k: v for k, v in SETTINGS.items() if k != "engine"}
    fit(small_net, blobs(), ALGORITHM, out=tmp_path / "run", **free)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3, 4})
    fit(small_net, blobs(), ALGORITHM, out=tmp_path / "run", resume=True, **free)


def test_an_empty_folder_is_a_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert run(tmp_path / "run").progress.round == 10


def test_looking_at_a_run_writes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "run")
    (tmp_path / "run" / "checkpoint" / "latest.new").write_text("left by a kill")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.name != ".lock"}
    _, held = session.reopen(tmp_path / "run")
    held.load()
    held.close()
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.name != ".lock"}


def test_long_client_ids_fit_into_file_names(tmp_path: Path) -> None:
    ids = ("ü" * 200, "ü" * 199 + "x", "c")
    done = fit(small_net, blobs(ids=ids), ALGORITHM, out=tmp_path / "run", **{**SETTINGS, "fraction": 1.0})
    assert set(done.progress.memories) == set(ids)
    assert len(list((tmp_path / "run" / "checkpoint" / "memories").iterdir())) == 3


def test_a_kill_before_old_versions_are_deleted_leaves_none_behind(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "run"

    def dies() -> None:
        forget = Store._forget

        def dying(self: Store, versions: dict[str, int], number: int) -> None:
            if self._round == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            forget(self, versions, number)

        Store._forget = dying
        run(out)

    process = in_process(dies)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run(out)
    assert contents(out) == undisturbed
