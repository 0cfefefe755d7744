"""Small real parts that the tests share: a federation of a few unequal clients, and an end for what tests start."""

import atexit
import csv
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from floco.algorithms import ALGORITHMS
from floco.cli import app
from floco.client.setup import Setup
from floco.core.algorithm import Algorithm
from floco.core.network import build_network
from floco.core.values import Tensors, Training
from floco.data.federation import Client, Federation
from floco.engines.engine import Engine, Serial
from floco.runs import session
from floco.runs.config import Config
from floco.server import rounds as loop
from floco.server.progress import Plan, Progress

hypothesis.settings.register_profile("calm", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("calm")

PATIENCE = 300.0
"""Seconds after which nobody waits for an event any more: only a failure takes that long."""

GOLDEN = Path(__file__).parent / "golden"
IDS = ("north", "south", "east", "west", "Straße 7/b", "0")


UNEQUAL = (15, 200, 21, 40, 16, 90, 28, 17, 120, 33, 60, 24)
"""Samples of clients as a natural federation has them."""


def blobs(
    ids: tuple[str, ...] = IDS, classes: int = 3, features: int = 5, seed: int = 0, sizes: tuple[int, ...] | None = None
) -> Federation:
    """Classes around random centers.

    Client i has 12 + 5i samples (or those of `sizes`, and a number as its id), mostly of class i mod C.
    """
    if sizes is not None:
        ids = tuple(map(str, range(len(sizes))))
    g = torch.Generator().manual_seed(seed)
    middles = 2 * torch.randn(classes, features, generator=g)
    x, y, clients = [], [], []
    for i, name in enumerate(ids):
        n = 12 + 5 * i if sizes is None else sizes[i]
        labels = torch.where(torch.rand(n, generator=g) < 0.6, i % classes, torch.randint(classes, (n,), generator=g))
        start = sum(len(part) for part in y)
        clients.append(Client(name, torch.arange(start, start + n - 4), torch.arange(start + n - 4, start + n)))
        y.append(labels)
        x.append(middles[labels] + torch.randn(n, features, generator=g))
    return Federation(torch.cat(x), torch.cat(y), tuple(clients), tuple(f"class {c}" for c in range(classes)))


def small_net(features: int = 5, classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(features, 7), nn.Tanh(), nn.Linear(7, classes))


def layer_normed() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3))


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 1, 5)), nn.Conv2d(1, 8, (1, 3)), nn.Flatten(), nn.Linear(24, 3))


class Adapted(nn.Linear):
    """A frozen linear layer with a LoRA adapter of rank 2, B zero at first, as peft makes it."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__(features, outputs)
        self.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(2, features) / features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(outputs, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.lora_A.T @ self.lora_B.T


def adapted(features: int = 5, classes: int = 3) -> nn.Module:
    return nn.Sequential(Adapted(features, 7), nn.Tanh(), nn.Linear(7, classes))


USUAL = {"fedbn": layer_normed, "ffa-lora": adapted, "fedsa-lora": adapted}
"""Networks of the methods that need layers of some kind."""
ANY_NETWORK = {name: cls for name, cls in ALGORITHMS.items() if "lora" not in name}


def make(
    algorithm: Algorithm, *, federation: Federation | None = None, model: Any = None, seed: int = 0, **training: Any
) -> Setup:
    """A setup of 6 rounds, half of the clients each, batches of 8."""
    settings = Training(**{"rounds": 6, "fraction": 0.5, "epochs": 2, "batch_size": 8, "lr": 0.1, **training})
    net = build_network(USUAL.get(algorithm.name, small_net) if model is None else model, seed=seed)
    return Setup(
        blobs() if federation is None else federation, net, algorithm.resolved(settings, net.layout), settings, seed
    )


def train(setup: Setup, engine: Engine | None = None, plan: Plan | None = None) -> list[Progress]:
    """All rounds of a setup, one progress each."""
    return list(loop.rounds(setup, engine or Serial(setup), plan or Plan(evaluate_every=1), loop.initialize(setup)))


def same(a: Tensors, b: Tensors) -> bool:
    """Equal names, shapes and bits."""
    return a.keys() == b.keys() and all(a[n].shape == b[n].shape and torch.equal(a[n], b[n]) for n in a)


def floco(*args: object) -> Result:
    """What a command of this process gives."""
    return CliRunner().invoke(app, [str(a) for a in args])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_blobs(path: Path, ids: tuple[str, ...] = IDS, *, test: int = 0, seed: int = 0) -> Path:
    """The blobs as an .npz file with natural clients, 40 samples each, and a global test part of `test` samples."""
    g = np.random.default_rng(seed)
    middles = 2 * g.normal(size=(3, 5))
    y = np.concatenate([np.where(g.random(40) < 0.6, i % 3, g.integers(3, size=40)) for i in range(len(ids))])
    y_test = g.integers(3, size=test)
    x, x_test = ((middles[labels] + g.normal(size=(len(labels), 5))).astype("float32") for labels in (y, y_test))
    client = np.repeat(np.array(ids), 40)
    if test:
        np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test, client=client)
    else:
        np.savez(path, x=x, y=y, client=client)
    return path


@pytest.fixture
def write_toml(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return write


@cache
def _dealt() -> Path:
    from floco.flower.demo import deal

    folder = Path(tempfile.mkdtemp(prefix="floco-dealt-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    deal(folder)
    return folder


def dealt(folder: Path) -> Path:
    """The data of `floco flower demo` in a folder, as `deal` writes them, but drawn once; returns the file of all."""
    shutil.copytree(_dealt() / "data", folder / "data")
    return folder / "data" / "all.npz"


def two_classes_move_west(data: Path) -> None:
    """Give a fourth site all samples of the third's two most frequent classes: nobody else's distribution."""
    south = dict(np.load(data / "south.npz"))
    west = np.isin(south["y"], np.argsort(np.bincount(south["y"]))[-2:])
    for name, rows_ in (("west", west), ("south", ~west)):
        np.savez(data / f"{name}.npz", x=south["x"][rows_], y=south["y"][rows_])


def alone(config: Config, out: Path) -> Path:
    """The run of a configuration in this process, without Flower."""
    setup = session.prepare(config)
    session.create(session.resolve_engine(config, setup), setup, out)
    session.continue_run(out, setup, lambda setup, start: lambda progress: None)
    return out


class Clock:
    """A clock that moves only when somebody sleeps, and then at once: in place of the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def until(happened: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait for an event, which the process is to bring about: that ends only after it."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.01)


_HEARD = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"


def started(command: Sequence[object], **more: Any) -> subprocess.Popen[Any]:
    """A process that hears Ctrl-C, also where this one does not: in the background of a script, it is ignored."""
    return subprocess.Popen([sys.executable, "-c", _HEARD, *map(str, command)], **more)


_SUBREAPER = 36  # of linux/prctl.h: orphans among what comes from this process become its children
if hasattr(ctypes.CDLL(None), "prctl"):
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


_GUARD = """
import os, pathlib, signal, sys
mark = b"FLOCO_TESTS=" + os.environb[b"FLOCO_TESTS"]
sys.stdin.read()
for environ in pathlib.Path("/proc").glob("[0-9]*/environ"):
    try:
        pid = int(environ.parent.name)
        if pid != os.getpid() and mark in environ.read_bytes().split(b"\\0"):
            os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
"""
"""Waits for the end of this process, however it ends, and then ends all that was started from it."""

os.environ["FLOCO_TESTS"] = f"{os.getpid()} {time.time()}"
_guard = subprocess.Popen([sys.executable, "-c", _GUARD], stdin=subprocess.PIPE, start_new_session=True)


def pytest_unconfigure() -> None:
    _guard.communicate()


def _offspring() -> dict[int, int]:
    """All processes that come from this one, and of which child of this one each comes."""
    found = {os.getpid(): 0}
    for parent in (parents := [os.getpid()]):
        for pid in _children(parent):
            found[pid] = found[parent] or pid
            parents.append(pid)
    del found[os.getpid()]
    return found


def _children(parent: int) -> list[int]:
    """The children of all threads of a process; it and its threads may end while this looks, and then have none."""
    found, threads = list[int](), Path(f"/proc/{parent}/task")
    with suppress(OSError):
        for thread in os.listdir(threads):
            with suppress(OSError):
                found += map(int, (threads / thread / "children").read_text().split())
    return found


def _alive(before: dict[int, int]) -> dict[int, str]:
    """The command lines of what has come since and has not ended, save multiprocessing's own tracker."""
    found = {}
    for pid, child in _offspring().items():
        if child not in before:
            with suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return {pid: command for pid, command in found.items() if command and "resource_tracker" not in command}


@contextmanager
def ending() -> Iterator[list[str]]:
    """What starts within ends with it, in whichever session it is; nobody waits where something has failed."""
    before, failed = _offspring(), list[str]()
    try:
        yield failed
    except BaseException as error:
        failed.append(str(error))
        raise
    finally:
        end = time.monotonic() + PATIENCE / 5
        while _alive(before) and not failed and time.monotonic() < end:
            time.sleep(0.02)
        remained = _alive(before)
        while alive := _alive(before):
            for pid in alive:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        for pid in _offspring().keys() - before.keys():
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
    assert failed or not remained, f"left behind: {list(remained.values())}"


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def _ends(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a process behind."""
    with ending() as failed:
        yield
        failed += ["the test"] * request.node.stash.get(_FAILED, False)
