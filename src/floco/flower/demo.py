"""`floco flower demo`: three sites with embedded data, as real processes on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from floco.core.errors import FlocoError, RunFailed
from floco.data.partition import Folds
from floco.data.sources import load
from floco.flower.processes import LocalFederation
from floco.flower.scaffold import write
from floco.runs.config import override, read

SITES = ("east", "north", "south")
_SETTINGS = ("training.rounds=20", "training.fraction=1.0", "algorithm.assign_at=8", "run.evaluate_every=4", "flower.sites=3", "flower.deadline=120")


def demonstrate(out: Path | None, overrides: Sequence[str], say: Callable[[str], None]) -> Path:
    """Return the folder of a federation that has run: `run` is the server's run directory, `sites/ID` the state of each site.

    Raises:
        FlocoError: a folder that is not empty.
        RunFailed: the run did not end well.
    """
    for key, _ in map(override, overrides):
        if key.startswith(("data.", "model.")):
            raise FlocoError(f"the demonstration has its own data and model; change algorithm, training, run or flower, got {key}")
    read(None, [*_SETTINGS, *overrides])  # before a folder is made
    folder = _folder(out)
    source = deal(folder)
    config = read(None, [f"data.source=npz:{source}", "data.split=natural", *_SETTINGS, *overrides])
    write(folder / "app", config)
    say(f"three sites with handwritten digits, a SuperLink and three SuperNodes on this machine; their logs are in {folder / 'logs'}")
    with LocalFederation(folder / "logs") as federation:
        for site in SITES:
            federation.node(site, {"client-id": site, "data": folder / "data" / f"{site}.npz", "state-dir": folder / "sites" / site})
        run = federation.run(folder / "app", "--run-config", f'out="{folder / "run"}"')
        ended = False
        for line in federation.lines(run):
            ended |= line.startswith("the run lies in")
            if line.startswith(("round ", "error")):
                say(line.rstrip())
        run.wait()
    if not ended:
        raise RunFailed(f"the run did not end well: see {folder / 'logs'}")
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
    """Write the digits as one file for each site, most of which are of its own few classes, and one file of all; return that."""
    samples = load("digits")
    federation = samples.split(Folds(3, share=0.8), clients=len(SITES), samples=400, seed=0)
    (folder / "data").mkdir()
    x, y, owner = samples.x.squeeze(1).numpy(), samples.y, np.full(len(samples.y), "", dtype="U10")
    for site, client in zip(SITES, federation.clients, strict=True):
        rows = np.sort(np.concatenate([client.train.numpy(), client.test.numpy()]))
        owner[rows] = site
        np.savez(folder / "data" / f"{site}.npz", x=x[rows], y=y[rows])
    np.savez(folder / "data" / "all.npz", x=x[owner != ""], y=y[owner != ""], client=owner[owner != ""])
    return folder / "data" / "all.npz"
