"""A run as a Python value: its tables, its models, and what can be done with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from floco.client.measure import Values
from floco.client.setup import Setup
from floco.core.values import Row
from floco.deliver.answers import Answer, answer
from floco.deliver.drift import Drift, drift
from floco.deliver.export import export, export_placed
from floco.deliver.measures import measure_clients
from floco.deliver.network import to_module
from floco.deliver.newcomers import newcomer_rows, place_newcomer
from floco.deliver.personal import deliver
from floco.deliver.placement import Placement
from floco.runs.changes import CHANGES, describe
from floco.runs.evaluated import last_metrics, read_changes
from floco.runs.machine import environment
from floco.runs.source import PYTHON
from floco.server.progress import FAILURE, Progress
from floco.storage.tables import read_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Run:
    """A finished or unfinished run: its results and every client's own model."""

    setup: Setup
    progress: Progress
    path: Path | None = None
    """The run directory; None: the run is in memory."""
    source: str = PYTHON
    """Source of the data, for the cards of exported models."""
    rows: dict[str, list[Row]] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        """Return the method, the rounds, the counts of the federation, and the directory."""
        rounds = f"round {self.progress.round} of {self.setup.training.rounds}"
        where = "" if self.path is None else f", {str(self.path)!r}"
        return f"Run({self.setup.algorithm}, {rounds}, {self.setup.federation}{where})"

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        if self.path is None:
            return pd.DataFrame(self.rows[name], columns=None if name != "failures" else FAILURE)
        return read_table(self.path / f"{name}.csv")

    @property
    def history(self) -> pd.DataFrame:
        """One row per evaluation: accuracies in [0, 1], losses in nats, bytes since the previous evaluation."""
        return self._table("history")

    @property
    def clients(self) -> pd.DataFrame:
        """One row per client, from the last evaluation, with its center on the simplex if the method has one."""
        import pandas as pd

        table = self._table("clients")
        if table.empty:
            return table
        last: pd.DataFrame = table[table["round"] == table["round"].max()].reset_index(drop=True)
        mixing = self.setup.algorithm.mixing
        known = {} if mixing is None else self.progress.centers(mixing)
        centers = [known[c].tolist() if c in known else None for c in last["client"]]
        return last.assign(center=pd.Series(centers, dtype=object))

    @property
    def failures(self) -> pd.DataFrame:
        """One row for each time a client was left out of a round: round, client, reason."""
        return self._table("failures")

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per client and model after the last round: all metrics with intervals (docs/metrics.md).

        Computed at each call, as of the last checkpoint, if there is no metrics.csv.
        """
        return self._measures("metrics")

    @property
    def groups(self) -> pd.DataFrame:
        """The same by the values of `data.group`; rows without a client are about all clients' test parts together."""
        return self._measures("groups")

    @property
    def confusion(self) -> pd.DataFrame:
        """How many test samples of each client's classes were taken for which class, by model."""
        return self._measures("confusion")

    def _measures(self, name: str) -> pd.DataFrame:
        import pandas as pd

        if self.path is not None and (self.path / "metrics.csv").is_file():
            return read_table(self.path / f"{name}.csv")
        setup = self.setup.with_samples("what each model is worth on its test part")
        return pd.DataFrame(getattr(measure_clients(setup, self.progress), name))

    @property
    def changes(self) -> pd.DataFrame:
        """One row for each setting that was changed in the run: the first round it holds for, key, before, after."""
        import pandas as pd

        return pd.DataFrame(read_changes(self.path), columns=list(CHANGES), dtype=object)

    @property
    def newcomers(self) -> pd.DataFrame:
        """Results of the held-out clients, by client, number of samples and model (docs/models.md).

        Computed at each call if the run is in memory.
        """
        import pandas as pd

        if self.path is None:
            return pd.DataFrame(newcomer_rows(self.setup, self.progress.state))
        return read_table(self.path / "newcomers.csv")

    def personal(self, client: str, *, at: str = "center") -> nn.Module:
        """Return a client's own model: an ordinary module of the user's class, for normalised inputs, in eval mode.

        Where that class cannot be imported, it is the module of its graph, with the same names of tensors.

        It is the model of the evaluations. With Floco and Floco+, `at="best"` returns the best mixture for the client's
        training part instead of its center (docs/models.md).
        """
        return to_module(self.setup.network, deliver(self.setup, self.progress, client, at=at)[0])

    def global_model(self) -> nn.Module:
        """Return the global model, in the form of `personal`."""
        return to_module(self.setup.network, deliver(self.setup, self.progress, None)[0])

    def predict(self, x: Any, client: str | None = None, *, at: str = "center", mixtures: int = 0) -> pd.DataFrame:
        """Return predictions, one row per sample: for classification label, its probability, and those of all labels.

        Predictions for a DataFrame have its index.

        Args:
            x: raw samples (N, ...), as in the data of the run: not normalised, images channels last.
            client: the client whose model predicts (None: the global model).
            at: as in `personal`.
            mixtures: number of models from the client's subregion to average over (0: its one model).

        Raises:
            FlocoError: samples that do not fit the model, or a missing model.
        """
        table = self.answer(x, client=client, at=at, mixtures=mixtures).table
        return table.set_axis(x.index, axis="index") if hasattr(x, "iloc") else table  # a DataFrame's rows by its index

    def predict_arrays(
        self, x: Any, client: str | None = None, *, at: str = "center", mixtures: int = 0
    ) -> dict[str, np.ndarray]:
        """Return `predictions` (n, ...), e.g. probabilities; for a label at each place also `y`, the labels.

        Arguments are those of `predict`.
        """
        return self.answer(x, client=client, at=at, mixtures=mixtures).arrays

    def evaluate(self, x: Any, y: Any, client: str | None = None, *, at: str = "center") -> Values:
        """Return the metrics of a client's model, or the global one, on other samples; None where undefined.

        Beside those of history.csv there are those of metrics.csv (docs/metrics.md), with the ends of 95 % intervals as
        `NAME_lower` and `NAME_upper`.

        Raw samples x (N, ...) and targets y (N, ...) are as in the data of the run, `client` and `at` as in `predict`.
        """
        measured = self.answer(x, y, client=client, at=at).measured
        return {} if measured is None else measured.metrics

    def answer(
        self,
        x: Any,
        y: Any = None,
        *,
        client: str | None = None,
        group: Any = None,
        at: str = "center",
        mixtures: int = 0,
    ) -> Answer:
        """Return predictions as a table and as arrays, and what they are worth if there are targets y, from one pass.

        Arguments are those of `predict` and `evaluate`; `group` (N,) are the samples' groups, by which metrics are also
        given. Metrics are those of one model, and need `mixtures` to be 0.
        """
        return answer(self.setup, self.progress, x, y, client=client, group=group, at=at, mixtures=mixtures)

    def _about(self) -> dict[str, Any]:
        """Return what the cards say of the run and this machine."""
        return {"versions": environment(), "changes": describe(read_changes(self.path, self.progress.round))}

    def export(
        self,
        path: Path | str,
        clients: Sequence[str | None] | None = None,
        *,
        kind: str | None = None,
        at: str = "center",
    ) -> list[Path]:
        """Write models with their cards, and return the model files.

        Args:
            path: a file that ends in `.safetensors`, `.pt2` or `.onnx`, or a folder for one file per model.
            clients: ids, e.g. `["north"]`, and None among them for the global model; None: all models.
            kind: `safetensors`, `pt2` or `onnx` (None: the ending of `path`, or safetensors).
            at: as in `personal`.
        """
        more: dict[str, Any] = {**self._about(), "source": self.source, "kind": kind, "at": at}
        return export(self.setup, self.progress, clients, Path(path), measured=self._measured, **more)

    def _measured(self, client: str | None) -> dict[str, Any] | None:
        return last_metrics(self.setup, self.progress.round, self.history, self.clients, client)

    def place(self, x: Any, y: Any) -> Placement:
        """Return a place on the simplex and a model for a newcomer.

        Raw samples x (N, ...) and targets y (N, ...) are as in the data of the run.
        """
        return place_newcomer(self.setup, self.progress.state, x, y)

    def export_placed(
        self,
        placed: Placement,
        y: Any,
        path: Path | str,
        name: str = "newcomer",
        *,
        source: str = PYTHON,
        kind: str | None = None,
    ) -> Path:
        """Write the model of a newcomer called `name` with its card, as `export` does, and return its file.

        `y` are the targets (N, ...) that it was placed with.
        """
        targets = self.setup.federation.schema.targets(y, "y")
        more: dict[str, Any] = {**self._about(), "source": source, "kind": kind}
        return export_placed(self.setup, self.progress.round, placed, targets, Path(path), name, **more)

    def check(self, client: str, x: Any, y: Any) -> Drift:
        """Return whether a client's subregion still fits, from new samples x (N, ...) and targets y (N, ...)."""
        return drift(self.setup, self.progress, client, *self.setup.federation.schema_of(client).labelled(x, y))
