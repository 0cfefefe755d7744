"""The Python interface: train a federation with one call, and look at what came out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from floco.client.fitness import check_model
from floco.client.setup import Setup
from floco.core.algorithm import Algorithm
from floco.core.errors import warn
from floco.core.network import Factory, network
from floco.core.settings import build
from floco.core.values import Row, Training
from floco.data.federation import Federation
from floco.deliver.drift import Drift, drift
from floco.deliver.export import export, export_placed
from floco.deliver.newcomers import Placement, newcomer_rows, place
from floco.deliver.personal import delivered, prediction_table, probabilities
from floco.engines.engine import engine
from floco.runs import session
from floco.runs.checkpoint import run_directory
from floco.runs.config import Config, Data, Model
from floco.runs.config import Run as RunSettings
from floco.runs.machine import device, environment
from floco.server import rounds as loop
from floco.server.evaluation import Evaluation
from floco.server.rounds import Plan, Progress
from floco.storage.memories import Memories
from floco.storage.tables import read_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Run:
    """A federation that was trained, or is on its way: its results and every client's own model."""

    setup: Setup
    progress: Progress
    path: Path | None = None
    """The run directory; None: the run was kept in memory."""
    source: str = session.PYTHON
    """Where the data are from, for the cards of exported models."""
    rows: dict[str, list[Row]] = field(default_factory=dict, repr=False)

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        if self.path is None:
            return pd.DataFrame(self.rows[name])
        return read_table(self.path / f"{name}.csv")

    @property
    def history(self) -> pd.DataFrame:
        """One row per evaluation: accuracies in [0, 1], losses in nats, bytes since the evaluation before."""
        return self._table("history")

    @property
    def clients(self) -> pd.DataFrame:
        """One row per client, from the last evaluation, with its center on the simplex where the method has one."""
        import pandas as pd

        table = self._table("clients")
        if table.empty:
            return table
        last: pd.DataFrame = table[table["round"] == table["round"].max()].reset_index(drop=True)
        known = self.progress.state.by_client
        centers = [known[c]["center"].tolist() if "center" in known.get(c, {}) else None for c in last["client"]]
        return last.assign(center=pd.Series(centers, dtype=object))

    @property
    def failures(self) -> pd.DataFrame:
        """One row for each time a client was left out: round, client, reason."""
        return self._table("failures")

    @property
    def newcomers(self) -> pd.DataFrame:
        """How the held-out clients fare, by client, number of samples and model (docs/models.md); of a run in memory it is worked out at each call."""
        import pandas as pd

        if self.path is None:
            return pd.DataFrame(newcomer_rows(self.setup, self.progress.state))
        return read_table(self.path / "newcomers.csv")

    def personal(self, client: str, *, at: str = "center") -> nn.Module:
        """Return a client's own model: an ordinary module of the user's class, for normalised inputs, in eval mode.

        It is the one that the evaluations are about. With Floco and Floco+, `at="best"` gives that of the best mixture for the
        client's training part instead of its center (docs/models.md).
        """
        return self.setup.network.holding(delivered(self.setup, self.progress, client, at=at)[0])

    def global_model(self) -> nn.Module:
        """Return the global model, as `personal` does a client's."""
        return self.setup.network.holding(delivered(self.setup, self.progress, None)[0])

    def predict(self, x: Any, client: str | None = None, *, at: str = "center", mixtures: int = 0) -> pd.DataFrame:
        """Return label, its probability, and the probabilities of all labels, one row per sample.

        Args:
            x: raw samples (N, ...), as in the data of the run: not normalised, images with their channels last.
            client: whose model (None: the global one).
            at: as in `personal`.
            mixtures: average over this many models of the client's subregion (0: its one model).

        Raises:
            FlocoError: samples that the model cannot take, or a model that is not there.
        """
        raw = self.setup.federation.form.samples(x, "x")
        return prediction_table(probabilities(self.setup, self.progress, client, raw, at=at, mixtures=mixtures), self.setup.federation.names)

    def export(self, path: Path | str, clients: Sequence[str | None] | None = None, *, kind: str | None = None, at: str = "center") -> list[Path]:
        """Write the models of clients (None: the global one) with their cards, and return their files.

        Args:
            path: a file that ends in `.safetensors`, `.pt2` or `.onnx`, or a folder for one file per client.
            clients: whose models, e.g. `["north"]`; None: those of all, and the global one.
            kind: `safetensors`, `pt2` or `onnx` (None: what `path` ends in, or safetensors).
            at: as in `personal`.
        """
        return export(self.setup, self.progress, clients, Path(path), source=self.source, versions=environment(), kind=kind, at=at)

    def place(self, x: Any, y: Any) -> Placement:
        """Return a place on the simplex and a model for a newcomer with raw samples x (N, ...) and labels y (N,), as in the data of the run."""
        return place(self.setup, self.progress.state, *self.setup.federation.form.labelled(x, y))

    def export_placed(self, placed: Placement, y: Any, path: Path | str, name: str = "newcomer", *, source: str = session.PYTHON, kind: str | None = None) -> Path:
        """Write the model of a newcomer called `name` with its card, as `export` does, and return its file; `y` are the labels it was placed with."""
        labels = self.setup.federation.form.classes(y, "y")
        return export_placed(self.setup, self.progress.round, placed, labels, Path(path), name, source=source, versions=environment(), kind=kind)

    def check(self, client: str, x: Any, y: Any) -> Drift:
        """Return whether a client's subregion still fits, from new samples x (N, ...) and labels y (N,)."""
        return drift(self.setup, self.progress, client, *self.setup.federation.form.labelled(x, y))


def open_run(path: Path | str) -> Run:
    """Return the run in a directory, or in the state directory of a site, as its last checkpoint has it; a run of another device opens on the CPU."""
    directory = run_directory(Path(path))
    config, store = session.reopen(directory)
    with closing(store):
        setup = session.prepare(session.here(config))
        session.check(store, setup)
        return Run(setup, store.load(config.run.memory_budget), directory, session.shown_source(config))


def _configured(model: nn.Module | Factory, federation: Federation, algorithm: Algorithm, settings: dict[str, Any]) -> tuple[Config, Setup]:
    """Return configuration and setup of a Python call; settings are keys of `training` and `run`, and `seed`."""
    seed = settings.pop("seed", 0)
    names = {f.name for f in dataclasses.fields(RunSettings)}
    run = build(RunSettings, {k: v for k, v in settings.items() if k in names})
    training = build(Training, {k: v for k, v in settings.items() if k not in names})
    config = Config(seed, Data(source=session.PYTHON), Model(session.PYTHON), algorithm.resolved(training), training, run)
    net = network(model, seed=config.seed, sample=federation.sample)
    setup = Setup(federation, net, algorithm.resolved(training, net.layout), training, config.seed, device(config.run.device))
    check_model(setup)
    return session.placed(config, setup), setup


def fit(
    model: nn.Module | Factory,
    federation: Federation,
    algorithm: Algorithm,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    watch: session.Watch | None = None,
    **settings: Any,
) -> Run:
    """Return the run of a federation, trained from the first round to the last.

    Args:
        model: any `nn.Module` (taken with the values it has), or a function that builds one. If its values are pretrained,
            say how far Floco's endpoints start apart, with `noise`: that they are cannot be seen from a module.
        federation: who has what, e.g. `floco.load("digits").split(floco.Folds(5), clients=20)`.
        algorithm: e.g. `floco.Floco(endpoints=10)`.
        out: a run directory to write, as `floco run` does; None keeps everything in memory.
        resume: continue the run in `out` if there is one.
        watch: called with the `Progress` after every round.
        settings: `seed`, and all keys of `training` (`rounds`, `lr`, ...) and `run` (`engine`, `evaluate_every`, ...).

    Raises:
        FlocoError: settings, data or model that do not fit, said before anything is trained.
        RunFailed: too many clients failed; what was written can be resumed.
    """
    config, setup = _configured(model, federation, algorithm, dict(settings))
    watch = watch or (lambda progress: None)
    if out is None:
        rows: dict[str, list[Row]] = {"history": [], "clients": [], "failures": []}

        def keep(progress: Progress) -> None:
            rows["failures"].extend(f.row for f in progress.failures)
            if progress.evaluation is not None:
                rows["history"].append(progress.evaluation.history)
                rows["clients"] = list(progress.evaluation.clients)
            watch(progress)

        progress = session.advance(setup, config.run, None, loop.begin(setup, Memories(budget=config.run.memory_budget)), keep)
        return _said(Run(setup, progress, rows=rows))
    path = Path(out)
    if not (resume and (path / "run.json").exists()):
        session.create(config, setup, path)
    stored, store = session.reopen(path)
    with closing(store):
        kept = {f.name: getattr(stored.run, f.name) for f in dataclasses.fields(RunSettings) if settings.get(f.name, "auto") == "auto"}
        session.check_config(stored, dataclasses.replace(config, run=dataclasses.replace(config.run, **kept)), path)
        session.check(store, setup)
        store.rewind()
        return _said(Run(setup, session.advance(setup, stored.run, store, store.load(stored.run.memory_budget), watch), path))


def _said(run: Run) -> Run:
    """Warn of clients that were left out: means are of the others."""
    failures = run.failures
    if len(failures):
        last, now = failures.iloc[-1], len(run.clients)
        missing = f"; {len(run.setup.federation.clients) - now} are missing in the last evaluation" if now < len(run.setup.federation.clients) else ""
        warn(f"clients were left out {len(failures)} times{missing} (run.failures has the reasons; the last: round {last['round']}, client {last['client']!r}: {last['reason']})")
    return run


def rounds(model: nn.Module | Factory, federation: Federation, algorithm: Algorithm, **settings: Any) -> Iterator[Evaluation]:
    """Yield the evaluations of a run while it trains; arguments as in `fit`.

    >>> import floco
    >>> federation = floco.load("digits").split(floco.Folds(5), clients=10)
    >>> for evaluation in floco.rounds(floco.model("mlp", federation), federation, floco.Floco(endpoints=3), rounds=2, evaluate_every=1):
    ...     print(evaluation.round, len(evaluation.clients))
    1 10
    2 10
    """
    config, setup = _configured(model, federation, algorithm, settings)
    with closing(engine(setup, config.run.engine, config.run.workers)) as running:
        for progress in loop.rounds(setup, running, Plan(config.run.evaluate_every, config.run.max_failed), loop.begin(setup, Memories(budget=config.run.memory_budget))):
            if progress.evaluation is not None:
                yield progress.evaluation
