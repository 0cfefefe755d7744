"""What `floco status` and `floco doctor` say: of real processes that train, die and are looked at by others."""

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from conftest import floco, started, write_blobs
from floco.runs import doctor
from floco.runs.checkpoint import Store
from test_cli import FLOCO, LONG, on_its_way


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a finished run, a stopped one whose clients failed, and a comparison with a failed run."""
    folder = tmp_path_factory.mktemp("runs")
    data = f"data.source=npz:{write_blobs(folder.parent / 'blobs.npz')}"
    settings = ["training.rounds=4", "run.evaluate_every=2", "run.engine=serial", "data.split=natural", data]
    given = [word for text in settings for word in ("-s", text)]
    assert floco("run", *given, "--out", folder / "done").exit_code == 0
    own = ["-a", "fedavg,ditto", "--seeds", "2", "-s", "ditto.pull=1e30", "-s", "run.max_failed=1"]
    assert floco("compare", *given, *own, "--out", folder / "all").exit_code == 1
    shutil.copytree(folder / "done", folder / "torn")
    changed = json.loads((folder / "torn" / "run.json").read_text())
    changed["config"]["training"]["rounds"] = 8
    (folder / "torn" / "run.json").write_text(json.dumps(changed))
    lines = ['1,north,"OSError: a, b"', "2,north,RuntimeError: c", "2,south,RuntimeError: d", "7,east,later"]
    (folder / "torn" / "failures.csv").write_text("\n".join(["round,client,reason", *lines]) + "\n8,we")
    return folder


def told(*paths: object) -> dict[str, object]:
    done = floco("status", *paths, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_runs_and_comparisons_say_how_far_they_are(made: Path) -> None:
    found = told(made)
    assert {Path(r["run"]).name: (r["state"], r["round"], r["rounds"], r["method"]) for r in found["runs"]} == {
        "done": ("finished", 4, 4, "floco"),
        "torn": ("stopped", 4, 8, "floco"),
    }
    (compared,) = found["comparisons"]
    assert compared["state"] == "finished"
    assert [(Path(r["run"]).name, r["state"]) for r in compared["runs"]] == [
        ("fedavg-seed0", "finished"),
        ("ditto-seed0", "failed"),
        ("fedavg-seed1", "finished"),
        ("ditto-seed1", "failed"),
    ]
    assert "clients failed" in compared["runs"][1]["reason"]


def test_failures_are_counted_by_client_up_to_the_checkpoint(made: Path) -> None:
    (run,) = told(made / "torn")["runs"]
    assert run["failures"] == {"north": 2, "south": 1}
    assert run["reason"] == "round 2, south: RuntimeError: d"


def test_the_pace_is_that_of_the_last_rounds(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "torn", tmp_path / "run")
    (run / "timings.csv").write_text("round,seconds\n1,9.0\n2,1.0\n3,2.0\n4,4.0\n5,99.0\n")
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (now,) = told(run)["runs"]
    assert (now["state"], now["seconds"], now["left"]) == ("running", 4.0, 16.0)


def test_without_a_run_those_under_runs_are_shown(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "runs: No such file or directory" in floco("status").stderr
    shutil.copytree(made, tmp_path / "runs")
    assert len(told()["runs"]) == 2


@pytest.mark.parametrize("columns", [80, 200])
def test_the_table_fits_a_terminal_and_names_what_to_do(made: Path, columns: int) -> None:
    env = {**os.environ, "COLUMNS": str(columns)}
    command = [*FLOCO, "status", "."]
    shown = subprocess.run(command, cwd=made, env=env, capture_output=True, text=True, check=True).stdout
    table = [line for line in shown.splitlines() if set(line) & set("│┃")]
    assert max(map(len, table)) <= 80
    assert "continue with: floco resume torn" in shown
    assert "torn: clients left out: north (2), south (1)" in shown
    assert "all is finished: 2 of 4 runs finished" in shown


def test_a_run_whose_process_died_is_told_from_a_running_one(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = on_its_way("run", *LONG, "--out", out, rounds=2, out=out)
    running = told(out)["runs"][0]
    process.kill()
    process.communicate()
    died = told(out)["runs"][0]
    assert (running["state"], died["state"]) == ("running", "stopped")
    assert running["left"] > 0
    assert died["left"] is None


def test_looking_at_a_run_keeps_nobody_from_using_it(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "done", tmp_path / "run")
    Store(run).close()
    look = f"import pathlib, floco.runs.status as s\nwhile True: s.is_locked(pathlib.Path({str(run)!r}))"
    (run / ".lock").touch()
    process = subprocess.Popen([sys.executable, "-c", look])
    try:
        for _ in range(50):
            Store(run).close()
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_runs_of_others_in_folders_nobody_may_write_to_can_be_looked_at(made: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(made, tmp_path / "runs")
    held = Store(runs / "torn")
    for folder in [*tmp_path.parents][:3] + [tmp_path]:
        folder.chmod(0o755)
    for path in [runs, *runs.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    code = f"""
import os, sys, json
from pathlib import Path
from floco.runs import status
import floco.core.metrics, encodings.idna
os.setuid(65534)
print(json.dumps([[r.path.name, r.state] for g in status.look([Path({str(runs)!r})]) for r in g.runs]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    held.close()
    assert ["torn", "running"] in json.loads(done.stdout)
    assert ["done", "finished"] in json.loads(done.stdout)


DAMAGE = {
    "run.json": b"{",
    "checkpoint/latest": b"none",
    "timings.csv": b"round,seconds\nx,y\n",
    "history.csv": b"\xff\n",
}


@pytest.mark.parametrize("file", DAMAGE)
def test_a_damaged_run_is_unknown_with_the_reason_and_hides_no_other(made: Path, tmp_path: Path, file: str) -> None:
    runs = shutil.copytree(made, tmp_path / "runs")
    (runs / "done" / file).write_bytes(DAMAGE[file])
    found = {Path(r["run"]).name: r for r in told(runs)["runs"]}
    assert found["done"]["state"] == "unknown"
    assert "cannot be read" in found["done"]["reason"]
    assert found["torn"]["state"] == "stopped"
    assert floco("status", runs).exit_code == 0


@pytest.mark.parametrize(("words", "says"), [((".",), "neither a run nor a comparison"), (("x",), "No such file")])
def test_a_place_without_runs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = floco("status", *words)
    assert done.exit_code == 2
    assert says in done.stderr


def test_watch_is_for_a_terminal(made: Path) -> None:
    assert "--watch is for a terminal" in floco("status", made, "--watch").stderr
    assert floco("status", made, "--watch", "--json").stdout == ""


def on_a_terminal(*words: object) -> tuple[subprocess.Popen[bytes], int]:
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = started([*FLOCO, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    return process, ours


def read_until(handle: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        seen += os.read(handle, 4096)
    return seen


@contextmanager
def watched(run: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The display of a run whose lock is held, as if it were running."""
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield on_a_terminal("status", run, "--watch")


def test_the_display_follows_a_run_and_ends_cleanly_with_ctrl_c(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "torn", tmp_path / "run")
    with watched(run) as (process, screen):
        read_until(screen, b"4/8")
        (run / "checkpoint" / "latest").write_text("5\n")
        read_until(screen, b"5/8")
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
        assert b"Traceback" not in os.read(screen, 4096)
        os.close(screen)


def test_the_display_ends_when_nothing_runs_any_more(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "torn", tmp_path / "run")
    with watched(run) as (process, screen):
        read_until(screen, b"running")
    read_until(screen, b"stopped")
    assert process.wait() == 0
    os.close(screen)


def test_status_and_version_need_no_torch() -> None:
    code = "import sys, floco.cli, floco.runs.status, floco.cli.progress_table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert floco("--version").stdout == "floco 0.1.0\n"


def test_doctor_says_what_is_installed_on_one_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(floco("doctor", "--json").stdout)
    assert found["torch"] == torch.__version__
    assert found["devices"]["cpu"] == ""
    assert found["workers"] == len(os.sched_getaffinity(0))
    assert 0 < found["memory"]["available"] <= found["memory"]["total"]
    assert found["extras"].keys() == {"flower", "onnx", "tracking", "bench", "docs"}
    assert found["problems"] == []


def test_doctor_names_what_is_missing_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.version

    def version(name: str) -> str:
        if name == "onnx":
            raise doctor.PackageNotFoundError(name)
        return "0.1" if name in ("flwr", "typer") else real(name)

    monkeypatch.setattr(doctor, "version", version)
    found = json.loads(floco("doctor", "--json").stdout)
    assert found["extras"]["onnx"]["missing"] == ["onnx"]
    assert found["extras"]["flower"]["missing"] == ["flwr 0.1 (needs <2,>=1.41)"]
    assert found["problems"] == ["typer 0.1 (needs <0.21,>=0.15): pip install 'typer<0.21,>=0.15'"]
    monkeypatch.setenv("COLUMNS", "80")
    shown = floco("doctor").stdout.splitlines()
    assert len(shown) <= 24
    assert max(map(len, shown)) <= 80
    assert any("pip install 'floco[onnx]'" in line for line in shown)


def test_durations_are_read_at_a_glance() -> None:
    from floco.cli.progress_table import duration

    given = {0.2: "0 s", 59.6: "1 min", 119: "1 min 59 s", 4000: "1 h 7 min", 200_000: "2 d 8 h", None: ""}
    assert {seconds: duration(seconds) for seconds in given} == given
