"""The Python interface: train a federation with one call, and look at what came out."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from floco import loop, session
from floco.client import models
from floco.config import Config, Data, Model
from floco.config import Run as RunSettings
from floco.contract import Algorithm
from floco.engines import engine, one_thread
from floco.errors import FlocoError
from floco.evaluation import Evaluation, Row
from floco.federation import Federation
from floco.inference import check_model
from floco.loop import Plan, Progress
from floco.memories import Memories
from floco.network import Factory, network
from floco.settings import build
from floco.setup import Setup
from floco.tables import read_table
from floco.values import Training

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Run:
    """A federation that was trained, or is on its way: its results and every client's own model."""

    setup: Setup
    progress: Progress
    path: Path | None = None
    """The run directory; None: the run was kept in memory."""
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

    def personal(self, client: str) -> nn.Module:
        """Return a client's own model: an ordinary module of the user's class, for normalised inputs, in eval mode."""
        algorithm, progress = self.setup.algorithm, self.progress
        self.setup.federation.client(client)  # an unknown one is an error that names those there are
        message = algorithm.message(progress.state, client, "evaluate")
        with one_thread():
            tensors = models(self.setup, client, message, progress.memories.get(client)).personal
        if tensors is None:
            raise FlocoError(f"algorithm {algorithm.name} has no personal models")
        module = copy.deepcopy(self.setup.network.module)
        layout = self.setup.network.layout
        module.load_state_dict({n: tensors[n] for n in (*layout.parameters, *layout.buffers)}, strict=False)
        return module.eval()


def open_run(path: Path | str) -> Run:
    """Return the run in a directory, as its last checkpoint has it."""
    config, store = session.reopen(Path(path))
    with closing(store):
        setup = session.prepare(config)
        session.check(store, setup)
        return Run(setup, store.load(config.run.memory_budget), Path(path))


def _configured(model: nn.Module | Factory, federation: Federation, algorithm: Algorithm, settings: dict[str, Any]) -> tuple[Config, Setup]:
    """Return configuration and setup of a Python call; settings are keys of `training` and `run`, and `seed`."""
    seed = settings.pop("seed", 0)
    names = {f.name for f in dataclasses.fields(RunSettings)}
    run = build(RunSettings, {k: v for k, v in settings.items() if k in names})
    training = build(Training, {k: v for k, v in settings.items() if k not in names})
    config = Config(seed, Data(source=session.PYTHON), Model(session.PYTHON), algorithm.resolved(training), training, run)
    net = network(model, seed=config.seed)
    setup = Setup(federation, net, algorithm.resolved(training, net.layout), training, config.seed, session.device(config.run.device))
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

        return Run(setup, session.advance(setup, config.run, None, loop.begin(setup, Memories(budget=config.run.memory_budget)), keep), rows=rows)
    path = Path(out)
    if not (resume and (path / "run.json").exists()):
        session.create(config, setup, path)
    stored, store = session.reopen(path)
    with closing(store):
        kept = {f.name: getattr(stored.run, f.name) for f in dataclasses.fields(RunSettings) if settings.get(f.name, "auto") == "auto"}
        session.check_config(stored, dataclasses.replace(config, run=dataclasses.replace(config.run, **kept)), path)
        session.check(store, setup)
        store.rewind()
        return Run(setup, session.advance(setup, stored.run, store, store.load(stored.run.memory_budget), watch), path)


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
