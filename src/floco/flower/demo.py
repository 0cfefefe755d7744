"""A federation of real processes on this machine, for `floco flower demo` and the tests."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch

from floco.core.errors import FlocoError, RunFailed
from floco.data.partition import Folds
from floco.data.sources import load
from floco.flower.scaffold import write
from floco.runs.toml import override, read

SITES = ("east", "north", "south")
_BUDGET = ("training.rounds=20", "training.fraction=1.0", "algorithm.assign_at=8", "run.evaluate_every=4")
_SETTINGS = (*_BUDGET, "flower.sites=3", "flower.deadline=120")
_PATIENCE = 60  # seconds to wait for the SuperLink to listen


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def free_port() -> int:
    """Return an unused port of the loopback interface."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class LocalFederation:
    """A SuperLink, SuperNodes and runs of an app as local processes, with their logs in `folder`."""

    def __init__(self, folder: Path) -> None:
        """Start a SuperLink on loopback."""
        self.folder, self._port = folder, free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._runs: list[subprocess.Popen[str]] = []
        home, address = folder / "flwr", f"127.0.0.1:{self._port}"
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "local"\n[superlink.local]\naddress = "{address}"\ninsecure = true\n'
        )
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self._environment = {**os.environ, "PATH": path, "FLWR_HOME": str(home), "PYTHONUNBUFFERED": "1"}
        self._environment |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        words = f"--insecure --host 127.0.0.1 --port {self._port} --disable-runtime-dependency-installation"
        self._start("superlink", "flower-superlink", *words.split())
        try:
            self._await_port()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, name: str, program: str, *words: str) -> None:
        command, home, env = [_program(program), *words], self.folder, self._environment
        with (home / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, cwd=home, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _await_port(self) -> None:
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            if self._processes["superlink"].poll() is not None:
                break
            time.sleep(0.2)
        raise RunFailed(f"the SuperLink does not answer: see {self.folder / 'superlink.log'}")

    def node(self, name: str, config: Mapping[str, object]) -> None:
        """Start a SuperNode called `name`."""
        quoted = {k: f'"{v}"' if isinstance(v, str | Path) else str(v).lower() for k, v in config.items()}
        words = f"--insecure --superlink 127.0.0.1:{self._port} --port {free_port()} --node-config"
        self._start(name, "flower-supernode", *words.split(), " ".join(f"{k}={v}" for k, v in quoted.items()))

    def kill(self, name: str) -> None:
        """Kill a process and its children."""
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def run(self, app: Path, *words: str) -> subprocess.Popen[str]:
        """Start a run of an app and return the process that streams its log."""
        command, output = [_program("flwr"), "run", str(app), "local", "--stream", *words], subprocess.PIPE
        run = subprocess.Popen(command, env=self._environment, stdout=output, stderr=subprocess.STDOUT, text=True)
        self._runs.append(run)
        return run

    @staticmethod
    def lines(run: subprocess.Popen[str]) -> Iterator[str]:
        """Yield the lines of a run's log as they arrive, without the prefix of Flower's logger."""
        assert run.stdout is not None
        for line in run.stdout:
            yield re.sub(r"^(\x1b\[\d+m)?[A-Z]+ (\x1b\[0m)?: +", "", line)

    def flwr(self, *words: str) -> str:
        """Return the output of a `flwr` command."""
        command = [_program("flwr"), *words]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False).stdout

    def close(self) -> None:
        """Stop all processes."""
        for process in self._processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for run in self._runs:
            run.kill()
            run.wait()
            if run.stdout is not None:
                run.stdout.close()
        for process in self._processes.values():
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._processes = {}


def demonstrate(out: Path | None, overrides: Sequence[str], say: Callable[[str], None]) -> Path:
    """Run a federation of three sites with embedded data, and return its folder.

    `run` in that folder is the server's run directory, `sites/ID` the state of each site.

    Raises:
        FlocoError: the folder is not empty.
        RunFailed: the run did not finish.
    """
    for key, _ in map(override, overrides):
        if key.startswith(("data.", "model.")):
            only = "change algorithm, training, run or flower"
            raise FlocoError(f"the demonstration has its own data and model; {only}, got {key}")
    read(None, [*_SETTINGS, *overrides])  # check the settings before creating a folder
    folder = _folder(out)
    logs = folder / "logs"
    data = [f"data.source=npz:{deal(folder)}", "data.split=natural"]
    write(folder / "app", read(None, [*data, *_SETTINGS, *overrides]))
    say(f"three sites with handwritten digits, a SuperLink and three SuperNodes on this machine; logs: {logs}")
    with LocalFederation(logs) as federation:
        for site in SITES:
            data_file, state = folder / "data" / f"{site}.npz", folder / "sites" / site
            federation.node(site, {"client-id": site, "data": data_file, "state-dir": state})
        run = federation.run(folder / "app", "--run-config", f'out="{folder / "run"}"')
        ended = False
        for line in federation.lines(run):
            ended |= line.startswith("the run is in")
            if line.startswith(("round ", "error")):
                say(line.rstrip())
        run.wait()
    if not ended:
        raise RunFailed(f"the run did not finish: see {logs}")
    return folder


def _folder(out: Path | None) -> Path:
    """Return an empty folder."""
    if out is None:
        Path("runs").mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"flower-demo-{time.strftime('%Y%m%d-%H%M%S')}-", dir="runs")).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FlocoError(f"--out {out} is not empty: choose another place")
    out.mkdir(parents=True, exist_ok=True)
    return out.resolve()


def deal(folder: Path) -> Path:
    """Split the digits non-IID over the sites, write `data/SITE.npz` for each, and return the file with all samples."""
    samples = load("digits")
    federation = samples.split(Folds(3, share=0.8), clients=len(SITES), samples=400, seed=0)
    (folder / "data").mkdir()
    assert isinstance(samples.x, torch.Tensor)
    x, y, owner = samples.x.squeeze(1).numpy(), samples.y, np.full(len(samples.y), "", dtype="U10")
    for site, client in zip(SITES, federation.clients, strict=True):
        rows = np.sort(np.concatenate([client.train.numpy(), client.test.numpy()]))
        owner[rows] = site
        np.savez(folder / "data" / f"{site}.npz", x=x[rows], y=y[rows])
    np.savez(folder / "data" / "all.npz", x=x[owner != ""], y=y[owner != ""], client=owner[owner != ""])
    return folder / "data" / "all.npz"
