"""A federation of real processes on this machine: a SuperLink, SuperNodes, and runs of an app. For the demonstration and the tests."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from floco.core.errors import RunFailed

_PATIENCE = 60  # seconds for a server to answer


def free_port() -> int:
    """Return a port of loopback on which nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class LocalFederation:
    """Starts and ends the processes; their logs lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        """Start a SuperLink on loopback."""
        self.folder = folder
        self._port = free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._runs: list[subprocess.Popen[str]] = []
        home = folder / "flwr"
        home.mkdir(parents=True)
        (home / "config.toml").write_text(f'[superlink]\ndefault = "local"\n[superlink.local]\naddress = "127.0.0.1:{self._port}"\ninsecure = true\n')
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self._environment = {**os.environ, "PATH": path, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "PYTHONUNBUFFERED": "1"}
        self._start("superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self._port), "--disable-runtime-dependency-installation")
        try:
            self._await_port()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _start(self, name: str, program: str, *words: str) -> None:
        log: IO[bytes] = (self.folder / f"{name}.log").open("ab")
        with log:
            command = [str(Path(sys.executable).with_name(program)), *words]
            self._processes[name] = subprocess.Popen(command, cwd=self.folder, env=self._environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

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
        words = " ".join(f'{k}="{v}"' if isinstance(v, str | Path) else f"{k}={str(v).lower()}" for k, v in config.items())
        self._start(name, "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self._port}", "--port", str(free_port()), "--node-config", words)

    def kill(self, name: str) -> None:
        """End a process and all that it started, at once."""
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def run(self, app: Path, *words: str) -> subprocess.Popen[str]:
        """Start a run of an app and return the process that shows its log."""
        flwr = str(Path(sys.executable).with_name("flwr"))
        words = ("run", str(app), "local", "--stream", *words)
        self._runs.append(subprocess.Popen([flwr, *words], env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return self._runs[-1]

    @staticmethod
    def lines(run: subprocess.Popen[str]) -> Iterator[str]:
        """Yield the lines of a run's log as they come, without what Flower's logger puts before each."""
        assert run.stdout is not None
        for line in run.stdout:
            yield re.sub(r"^(\x1b\[\d+m)?[A-Z]+ (\x1b\[0m)?: +", "", line)

    def flwr(self, *words: str) -> str:
        """Return what a `flwr` command says."""
        flwr = str(Path(sys.executable).with_name("flwr"))
        return subprocess.run([flwr, *words], env=self._environment, capture_output=True, text=True, check=False).stdout

    def close(self) -> None:
        """End all processes."""
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
