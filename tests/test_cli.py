"""The commands: in this process where that is enough, as real ones where a terminal, a signal or a kill is meant."""

import os
import pty
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import PATIENCE, floco, rows, started, until
from floco.core.errors import FlocoError

FLOCO = [str(Path(sys.executable).with_name("floco"))]
QUICK = ["-s", "training.rounds=4", "-s", "training.fraction=0.2", "-s", "run.evaluate_every=2", "-s", "run.workers=2"]


def test_run_leaves_a_run_directory_and_a_table(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = floco("run", *QUICK, "--out", out)
    assert done.exit_code == 0, done.output
    for text in ("global model, all test data", "personal models, worst 5 %", " of 20 ", f"the run is in {out}"):
        assert text in done.output
    assert {p.name for p in out.iterdir()} >= {
        "config.toml",
        "environment.json",
        "history.csv",
        "clients.csv",
        "timings.csv",
        "checkpoint",
    }
    assert [r["round"] for r in rows(out / "history.csv")] == ["2", "4"]
    assert len(rows(out / "clients.csv")) == 40
    again = floco("resume", out)
    assert again.exit_code == 0
    assert "is finished: all 4 rounds are done" in again.output


def test_run_prints_one_line_per_evaluation_without_a_terminal(tmp_path: Path) -> None:
    lines = re.findall(
        r"^round (\d)/4: accuracy global [\d.]+ % personal [\d.]+ %$",
        floco("run", *QUICK, "--out", tmp_path / "run").output,
        re.M,
    )
    assert lines == ["2", "4"]


def test_the_default_place_is_under_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert floco("run", *QUICK, "-s", "algorithm.name=fedavg").exit_code == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"digits-fedavg-\d{8}-\d{6}", made.name)


def test_print_config_can_be_run(tmp_path: Path) -> None:
    text = floco("run", *QUICK, "--print-config").stdout
    (tmp_path / "c.toml").write_text(text)
    assert "assign_at = 2  # tau" in text
    assert floco("run", tmp_path / "c.toml", "--print-config").stdout == text
    assert list(tmp_path.iterdir()) == [tmp_path / "c.toml"]


def test_data_shows_who_has_what_as_table_and_picture(tmp_path: Path) -> None:
    shown = floco("data", "-s", "data.clients=10", "--picture", tmp_path / "who.png")
    assert shown.exit_code == 0, shown.output
    assert "client-9" in shown.output
    assert "heterogeneity of label shares 0." in shown.output
    assert (tmp_path / "who.png").read_bytes().startswith(b"\x89PNG")
    assert floco("data", "--picture", tmp_path / "who.nonsense").exit_code == 2


def small_npz(path: Path) -> Path:
    np.savez(path, x=np.zeros((3, 2)), y=np.array([0, 1, 0]))
    return path


def test_wrong_use_says_what_to_do_with_exit_code_2_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small_npz(tmp_path / "small.npz")
    cases = [
        (["-s", "training.rounds=2.5"], "training.rounds must be a whole number, got 2.5"),
        (["-s", "training.roundz=2"], "did you mean 'rounds'?"),
        (["-s", "algorithm.radius=-1"], "algorithm.radius must be >= 0, got -1"),
        (["-s", "data.source=npz:none.npz"], "/none.npz"),
        (["-s", "data.clients=5000"], "the source has 1797"),
        (["-s", "data.source=npz:small.npz", "-s", "data.split=iid", "-s", "data.clients=3"], "needs 2 at least"),
        (["-s", "model.name=cifar-cnn"], "model cifar-cnn needs images (3, H, W)"),
        (["-s", "run.device=gpu"], "run.device = 'gpu' cannot be used here"),
        (["-s", "algorithm.mix=7.weight"], "no trained parameter"),
        (["-s", "model.weights=none.safetensors"], "none.safetensors"),
        (["missing.toml"], "missing.toml: No such file"),
        (["--out", "/proc/none/run"], "cannot make the run directory"),
    ]
    for args, says in cases:
        done = floco("run", *args)
        assert done.exit_code == 2, (args, done.output)
        assert says in done.stderr.replace("\n", " "), (args, done.stderr)
        assert "Traceback" not in done.output
    assert [p.name for p in tmp_path.iterdir()] == ["small.npz"]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" in floco("run", "-s", "seed=-1", "--debug").stderr


def test_resume_refuses_what_is_no_run(tmp_path: Path) -> None:
    done = floco("resume", tmp_path)
    assert done.exit_code == 2
    assert "no run directory" in done.stderr


def test_a_run_that_fails_exits_with_1_and_says_how_to_continue(tmp_path: Path) -> None:
    done = floco("run", *QUICK, "-s", "training.lr=1e30", "--out", tmp_path / "run")
    assert done.exit_code == 1
    assert 'round 1, client "client-' in done.stderr
    assert f"floco resume {tmp_path / 'run'}" in done.stderr


LONG = ["-s", "training.rounds=100000", "-s", "run.workers=2", "-s", "run.evaluate_every=100"]


def on_its_way(command: str, *words: object, rounds: int, out: Path) -> subprocess.Popen[str]:
    """A process that trains, and has trained until this round."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = started([*FLOCO, command, *words], **pipes)
    until(lambda: round_of(out) >= rounds, process)
    return process


def round_of(out: Path) -> int:
    """The last round that a run will not lose."""
    latest = out / "checkpoint" / "latest"
    return int(latest.read_text()) if latest.exists() else 0


def workers_of(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_ctrl_c_says_how_to_resume_and_leaves_a_resumable_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = on_its_way("run", *LONG, "--out", out, rounds=8, out=out)
    children = workers_of(process.pid)
    assert len(children) == 2
    for pid in (process.pid, *children):  # a terminal sends it to the whole group
        os.kill(pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert f"continue with: floco resume {out}" in err
    assert "Traceback" not in err
    assert round_of(out) >= 8


def test_workers_die_with_their_parent_and_the_run_can_be_taken_up(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = on_its_way("run", *LONG, "--out", out, rounds=8, out=out)
    children = workers_of(process.pid)
    assert len(children) == 2
    process.kill()
    process.communicate()
    until(lambda: not any(_alive(c) for c in children))
    again = on_its_way("resume", out, rounds=round_of(out) + 5, out=out)
    second = floco("resume", out)
    again.kill()
    again.communicate()
    assert second.exit_code == 2
    assert "in use by another process" in second.stderr


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_terminal_gets_a_progress_bar_with_both_accuracies(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [*FLOCO, "run", *QUICK, "--out", str(tmp_path / "run")],
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
        env=environment,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the other end is closed: the process has ended
        pass
    assert process.wait() == 0
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode()
    assert re.search(r"round +4/4 .*global +[\d.]+ % personal +[\d.]+ %", text)


@pytest.mark.parametrize(
    ("command", "says"),
    [("run", "the embedded digits"), ("resume", "Directory of a run"), ("predict", "A run directory")],
)
def test_help_explains_the_arguments(command: str, says: str) -> None:
    assert says in " ".join(floco(command, "--help").output.split())


def test_help_names_the_commands_and_imports_no_torch() -> None:
    shown = subprocess.run([*FLOCO, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(f" {command} " in shown for command in ("run", "resume", "data"))
    heavy = ("torch", "datasets", "pandas", "sklearn", "matplotlib")
    code = f"import sys, floco, floco.cli; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_example_draws_the_simplex_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, picture = tmp_path / "run", tmp_path / "simplex.png"
    assert floco("run", *QUICK, "--out", out).exit_code == 0
    script = Path(__file__).parents[1] / "examples" / "simplex_picture.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(out), str(picture)])
    runpy.run_path(str(script))
    assert picture.read_bytes().startswith(b"\x89PNG")
    plain = tmp_path / "plain"
    assert floco("run", *QUICK, "-s", "algorithm.name=fedavg", "--out", plain).exit_code == 0
    monkeypatch.setattr(sys, "argv", [str(script), str(plain), str(picture)])
    with pytest.raises(FlocoError, match="no client has a center"):
        runpy.run_path(str(script))


def test_the_readmes_own_data_line_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = np.random.default_rng(0).random((300, 12), np.float32), np.arange(300) % 3
    np.savez("mine.npz", x=x, y=y, client=np.repeat(["north", "[/south]", "NA"], 100))
    quick = ["-s", "training.rounds=2", "-s", "run.engine=serial"]
    done = floco("run", "-s", "data.source=npz:mine.npz", "-s", "data.split=natural", *quick, "--out", "run")
    assert done.exit_code == 0, done.output
    assert [r["client"] for r in rows(tmp_path / "run" / "clients.csv")] == ["NA", "[/south]", "north"]
    shown = floco("data", "-s", "data.source=npz:mine.npz", "-s", "data.split=natural")
    assert "[/south]" in shown.output
    from floco import open_run

    assert open_run(tmp_path / "run").clients["client"].tolist() == ["NA", "[/south]", "north"]


def test_odd_places_and_values_end_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert floco("run", *QUICK, "--out", ".").exit_code == 0
    monkeypatch.chdir("/")
    (tmp_path / "😀").mkdir()
    np.savez(tmp_path / "😀" / "d.npz", x=np.zeros((40, 2)), y=np.arange(40) % 2)
    odd = floco(
        "run",
        "-s",
        f"data.source=npz:{tmp_path}/😀/d.npz",
        "-s",
        "data.split=iid",
        "-s",
        "data.clients=4",
        *QUICK,
        "--out",
        tmp_path / "odd",
    )
    assert odd.exit_code == 0, odd.output
    for bad in (
        "algorithm.name=[1]",
        "model.name=os:sep",
        "model.name=:f",
        "algorithm.mix=[]",
        'algorithm.mix=["1.weight","1.weight"]',
    ):
        done = floco("run", "-s", bad, "--out", tmp_path / "bad")
        assert (done.exit_code, done.stderr[:7]) == (2, "error: "), (bad, done.output)


def test_it_runs_without_git(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(
        [*FLOCO, "run", *QUICK, "--out", str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("run.json", b"{"),
        ("timings.csv", None),
        ("history.csv", b"x"),
        ("checkpoint/memories", None),
        ("checkpoint/latest", b"x"),
    ],
)
def test_a_damaged_run_is_said_to_be_one(tmp_path: Path, file: str, damage: bytes | None) -> None:
    out = tmp_path / "run"
    assert floco("run", *QUICK, "-s", "algorithm.name=ditto", "--out", out).exit_code == 0
    path = out / file
    if damage is not None:
        path.write_bytes(damage)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    done = floco("resume", out)
    assert (done.exit_code, done.stderr[:7]) == (2, "error: "), done.output


_COMMANDS = """
import sys
from floco.cli import main
given = f"data.source=npz:{sys.argv[1]}/a.npz", "data.split=natural", "training.rounds=1", "run.engine=serial"
source = [word for text in given for word in ("-s", text)]
for words in (
    ["--help"],
    ["data", *source],
    ["compare", *source, "-a", "fedavg", "--seeds", "1", "--out", f"{sys.argv[1]}/both"],
    ["run", *source, "--out", f"{sys.argv[1]}/run"],
    ["run", *source, "-s", 'data.labels=["groß"]', "--print-config"],
    ["data", "-s", "data.source=npz:nicht/größer.npz"],
):
    sys.argv[1:1], kept = words, sys.argv[1:]
    sys.argv = [sys.argv[0], *words]
    try:
        main()
    except SystemExit as end:
        print("exit", end.code)
    sys.argv[1:] = kept
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_that_lacks_characters_shows_escapes_and_not_an_error(encoding: str, tmp_path: Path) -> None:
    y, client = np.array(["groß", "klein", "日本"])[np.arange(90) % 3], np.repeat(["Straße", "b", "日"], 30)
    client[(y == "klein") & (client == "b")] = "日"  # a client without a label
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(90, 3)), y=y, client=client)
    env = {**os.environ, "PYTHONIOENCODING": encoding, "LANG": "C", "LC_ALL": "C", "COLUMNS": "120"}
    made = subprocess.run([sys.executable, "-c", _COMMANDS, tmp_path], env=env, capture_output=True, timeout=PATIENCE)
    text = made.stdout.decode(encoding) + made.stderr.decode(encoding)
    assert made.returncode == 0, text
    assert [line for line in text.splitlines() if line.startswith("exit")] == ["exit 0"] * 5 + ["exit 2"]
    shown = {"ascii": ("Stra\\u00dfe", "\\u65e5"), "cp1252": ("Straße", "\\u65e5")}[encoding]
    assert all(word in text for word in shown)
    assert 'labels = ["gro' in text
