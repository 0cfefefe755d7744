"""Regression check of results: SHA-256 of histories, client rows and all tensors of small runs of every method.

A change without numerical effect leaves the digests equal, on the same machine with the same versions:

    python benchmarks/digests.py            write benchmarks/results/digests-CPU.json (about 15 minutes)
    python benchmarks/digests.py --check    compare with it, and name the differences

All runs use the command line, in temporary folders: clients of unequal size, half of them per round, with assignment.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn

CPU = torch.backends.cpu.get_cpu_capability()  # other instructions, other bits
RESULTS = Path(__file__).with_name("results") / f"digests-{CPU.lower()}.json"
FLOCO = str(Path(sys.executable).with_name("floco"))
PERSONAL = ["ditto", "pfedme", "apfl", "fedper", "fedrep", "fedrod", "superfed"]
METHODS = ["floco", "floco+", "fedavg", "fedavg+ft", "local", "fedprox", "scaffold", *PERSONAL]
UNEQUAL = ["data.split=dirichlet-sizes", "data.clients=12", "data.held_out=2"]
BUDGET = ["training.rounds=6", "training.fraction=0.5", "training.epochs=1", "training.lr=0.05", "run.evaluate_every=2"]
SERIAL = ["run.engine=serial", "model.name=cnn"]
COHORT = ["run.engine=cohort", "run.workers=2", "model.name=mlp"]
Digests = dict[str, dict[str, str]]


def batch_norm(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a network with floating-point buffers and an integer buffer."""
    first, last = nn.Linear(64, 24), nn.Linear(24, classes)
    return nn.Sequential(nn.Flatten(), first, nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.2), last)


def options(*settings: str) -> list[str]:
    """Return settings as command-line options."""
    return [t for s in settings for t in ("-s", s)]


def settings(method: str, *more: str) -> list[str]:
    """Return the options of a method's run on the unequal clients."""
    simplex = ["algorithm.assign_at=3"] if method.startswith("floco") else []
    return options(*UNEQUAL, *BUDGET, f"algorithm.name={method}", *simplex, *more)


def floco(*arguments: str | Path) -> None:
    """Run a floco command, and exit if it fails."""
    done = subprocess.run([FLOCO, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment())
    if done.returncode:
        sys.exit(f"floco {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}")


def environment() -> dict[str, str]:
    """Return the environment of a command, in which this folder is importable."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}


def without_times(file: Path) -> bytes:
    """Return a file; of a table without its columns of seconds, which differ from run to run."""
    raw = file.read_bytes()
    if not raw.splitlines()[0].count(b"seconds"):
        return raw
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    return table[[c for c in table if "seconds" not in c]].to_csv(index=False).encode()


def digest(folder: Path, files: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of files in a folder, and of all checkpoint tensors: names, shapes, dtypes and values."""
    found = {name: hashlib.sha256(without_times(folder / name)).hexdigest() for name in files}
    stored = sorted((folder / "checkpoint").rglob("*.safetensors"))
    if stored:
        all_ = hashlib.sha256()
        for file in stored:
            for name, tensor in sorted(load_file(file).items()):
                key = str(file.relative_to(folder)), name, tuple(tensor.shape), str(tensor.dtype)
                all_.update(repr(key).encode())
                all_.update(
                    tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
                )
        found["tensors"] = all_.hexdigest()
    return found


def one_run(folder: Path, arguments: list[str], *more: str) -> dict[str, str]:
    """Return the digests of a run."""
    floco("run", *arguments, "--out", folder)
    held = ["newcomers.csv"] if (folder / "newcomers.csv").exists() else []
    return digest(folder, ["history.csv", "clients.csv", *held, *more])


def killed(folder: Path, arguments: list[str]) -> dict[str, str]:
    """Return the digests of a run that is killed after at least three rounds and resumed."""
    command = [FLOCO, "run", *arguments, "--out", str(folder)]
    with subprocess.Popen(command, env=environment(), start_new_session=True) as process:
        pointer = folder / "checkpoint" / "latest"
        while process.poll() is None and not (pointer.exists() and int(pointer.read_text().strip() or 0) >= 3):
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
    floco("resume", folder)
    return digest(folder, ["history.csv", "clients.csv"])


def latest(folder: Path) -> dict[str, str]:
    """Return the digests of a run with a global test part, natural clients, and the latest samples as test parts."""
    x, y = load_digits(return_X_y=True)
    draw = np.random.default_rng(0)
    client = np.sort(draw.integers(0, 40, 1400) // np.array(8))
    folder.mkdir(parents=True)
    train, test = {"x_train": x[:1400], "y_train": y[:1400]}, {"x_test": x[1400:], "y_test": y[1400:]}
    np.savez(folder / "digits.npz", **train, **test, client=client, position=draw.integers(0, 90, 1400))
    data = [f"data.source=npz:{folder / 'digits.npz'}", "data.split=natural", "data.order=position"]
    return one_run(folder / "run", options(*data, "algorithm.assign_at=3", *BUDGET, "run.engine=serial"))


def compared(folder: Path) -> dict[str, str]:
    """Return the digests of a tuned comparison and of the measurements in its report."""
    budget = [*BUDGET, "training.rounds=4", "run.engine=serial", "floco.assign_at=2"]
    chosen = options("data.split=dirichlet-sizes", "data.clients=8", *budget)
    floco("compare", "-a", "floco,fedavg,ditto", "--seeds", "2", "--tune", *chosen, "--out", folder)
    floco("report", folder, "-o", folder / "report.html")
    return digest(folder, sorted(p.name for p in folder.glob("*.csv") if p.name != "failures.csv"))


def federation(folder: Path) -> dict[str, str]:
    """Return the digests of a run on Flower."""
    chosen = options("training.rounds=6", "algorithm.assign_at=3", "run.evaluate_every=2")
    floco("flower", "demo", "--out", folder, *chosen)
    return digest(folder / "run", ["history.csv", "clients.csv"])


def cases(folder: Path) -> dict[str, Callable[[], dict[str, str]]]:
    """Return the cases by name."""
    made: dict[str, Callable[[], dict[str, str]]] = {}

    def add(name: str, *arguments: str) -> None:
        made[name] = lambda: one_run(folder / name.replace(" ", "-"), settings(*arguments))

    for method in METHODS:
        add(f"{method} serial", method, *SERIAL)
        add(f"{method} cohort", method, *COHORT)
    add("floco processes", "floco", "run.engine=processes", "run.workers=2", "model.name=cnn")
    mlp, normed = ["run.engine=serial", "model.name=mlp"], ["run.engine=serial", "model.name=digests:batch_norm"]
    add("floco all", "floco", "algorithm.mix=all", *mlp)
    add("floco released", "floco", "algorithm.sampler=released", "algorithm.normalize=false", *mlp)
    for method in ("floco", "fedavg", "ditto"):
        for buffers in ("average", "local"):
            add(f"{method} batch-norm {buffers}", method, f"training.buffers={buffers}", *normed)
    add("fedavg batch-norm cohort", "fedavg", "run.engine=cohort", "run.workers=1", "model.name=digests:batch_norm")
    made["floco latest"] = lambda: latest(folder / "latest")
    made["floco+ killed"] = lambda: killed(folder / "killed", settings("floco+", *SERIAL))
    made["floco,fedavg,ditto compared"] = lambda: compared(folder / "compared")
    made["floco on Flower"] = lambda: federation(folder / "flower")
    return made


def main() -> None:
    """Write the digests, or compare them with the committed ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", default="", help="run only the cases whose name contains this text")
    options = parser.parse_args()
    packages = ("torch", "numpy", "scipy", "scikit-learn", "flwr-datasets")
    versions = {"python": platform.python_version(), **{p: version(p) for p in packages}}
    versions["cpu"] = CPU
    found: Digests = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases(Path(folder)).items():
            if options.only in name:
                started = time.monotonic()
                found[name] = case()
                print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)
    both = [found[name]["tensors"] for name in ("floco+ killed", "floco+ serial") if name in found]
    if len(set(both)) > 1:
        sys.exit("the resumed run is not the uninterrupted one")
    if not options.check:
        RESULTS.write_text(json.dumps({"versions": versions, "digests": found}, indent=1) + "\n")
        return
    if not RESULTS.exists():
        sys.exit(f"there are no digests of a CPU with {CPU}: write them with the code before the change")
    known = json.loads(RESULTS.read_text())
    if known["versions"] != versions:
        print(f"written with other versions, so bits may differ: {known['versions']}")
    wrong = [f"{name} is missing" for name in known["digests"] if name not in found and not options.only]
    for name, files in found.items():
        before = known["digests"].get(name, {})
        wrong += [f"{name}: {file}" for file, value in files.items() if before.get(file) != value]
        wrong += [f"{name}: {file} is missing" for file in before if file not in files]
    sys.exit("\n".join(["differ:", *wrong]) if wrong else f"{len(found)} cases, all digests equal")


if __name__ == "__main__":
    main()
