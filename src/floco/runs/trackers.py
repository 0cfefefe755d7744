"""TensorBoard and MLflow as mirrors of history.csv, in folders of the run directory. Neither is needed, neither is authoritative."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from floco.core.errors import FlocoError
from floco.core.values import Row


class Tracker(Protocol):
    """Receives every row of the history once."""

    def add(self, row: Row) -> None:
        """Show one evaluation."""

    def close(self) -> None:
        """Write what is pending."""


class TensorBoard:
    """Event files for `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", error) from error
        self._writer: Any = SummaryWriter(str(folder))

    def add(self, row: Row) -> None:
        """Write one scalar a column."""
        for name, value in _numbers(row):
            self._writer.add_scalar(name, value, row["round"])

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


class MLflow:
    """A database for `mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing of a run leaves this machine
        try:
            import alembic  # noqa: F401  MLflow's database needs both
            import sqlalchemy  # noqa: F401
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise _missing("mlflow", error) from error
        folder.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        known = self._client.get_experiment_by_name("floco")
        experiment = known.experiment_id if known else self._client.create_experiment("floco")
        for old in self._client.search_runs([experiment]):  # of the time before a kill; its file may still be open in this process
            self._client.delete_run(old.info.run_id)
        self._run = self._client.create_run(experiment, run_name=folder.parent.name).info.run_id
        for key, value in settings.items():
            self._client.log_param(self._run, key, value)

    def add(self, row: Row) -> None:
        """Write one metric a column."""
        for name, value in _numbers(row):
            self._client.log_metric(self._run, name, value, step=row["round"])

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run)


def _missing(name: str, error: ImportError) -> FlocoError:
    return FlocoError(f"run.trackers has {name!r}, which is not installed ({error}): pip install 'floco[tracking]'")


def _numbers(row: Row) -> list[tuple[str, float]]:
    return [(name, float(value)) for name, value in row.items() if name != "round" and value is not None and value != ""]


def open_trackers(names: Sequence[str], folder: Path, settings: Mapping[str, Any], history: Iterable[Row]) -> list[Tracker]:
    """Return the trackers of a run directory, begun anew with the history so far: after a kill they say what the run says."""
    opened: list[Tracker] = [TensorBoard(folder / name) if name == "tensorboard" else MLflow(folder / name, settings) for name in names]
    for row in history:
        for tracker in opened:
            tracker.add(row)
    return opened
