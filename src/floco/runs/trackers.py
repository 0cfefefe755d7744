"""TensorBoard and MLflow as optional mirrors of history.csv, in folders of the run directory."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from floco.core.errors import FlocoError, warn
from floco.core.values import Row


class Tracker(Protocol):
    """A mirror that gets every row of the history once."""

    def add(self, row: Row) -> None:
        """Write one evaluation."""

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
        """Write one scalar per column."""
        for name, value in _numbers(row):
            self._writer.add_scalar(name, value, row["round"])

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


class MLflow:
    """A database for `mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # no data of a run may leave this machine
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
        # Those of before a kill. The file is kept, as it may still be open in this process.
        for old in self._client.search_runs([experiment]):
            self._client.delete_run(old.info.run_id)
        self._run = self._client.create_run(experiment, run_name=folder.parent.name).info.run_id
        for key, value in settings.items():
            self._client.log_param(self._run, key, value)

    def add(self, row: Row) -> None:
        """Write one metric per column."""
        for name, value in _numbers(row):
            self._client.log_metric(self._run, name, value, step=row["round"])

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run)


def check_installed(names: Sequence[str]) -> None:
    """Raise if a tracker lacks its packages, before a run directory depends on it."""
    needed = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "alembic", "sqlalchemy")}
    for name in names:
        for package in needed[name]:
            if importlib.util.find_spec(package) is None:
                raise _missing(name, ImportError(f"no module named {package!r}"))


def _missing(name: str, error: ImportError) -> FlocoError:
    return FlocoError(f"run.trackers has {name!r}, which is not installed ({error}): pip install 'floco[tracking]'")


def _numbers(row: Row) -> list[tuple[str, float]]:
    return [(name, float(v)) for name, v in row.items() if name != "round" and v is not None and v != ""]


def open_trackers(
    names: Sequence[str], folder: Path, settings: Mapping[str, Any], history: Iterable[Row]
) -> list[Tracker]:
    """Return the trackers of a run directory, emptied and filled with the history so far.

    Otherwise they would hold rounds after the last checkpoint twice, once the run is resumed after a kill.
    """
    mirrors = (TensorBoard(folder / n) if n == "tensorboard" else MLflow(folder / n, settings) for n in names)
    opened: list[Tracker] = list(mirrors)
    for row in history:
        for tracker in opened:
            tracker.add(row)
    return opened


def track(tracker: Tracker, row: Row, trackers: list[Tracker]) -> None:
    """Write a row to a tracker; one that fails is removed with a warning, as history.csv has all rows."""
    try:
        tracker.add(row)
    except Exception as error:  # noqa: BLE001  a mirror must not end the run, whatever its library raises
        trackers.remove(tracker)
        warn(
            f"round {row['round']}: {type(tracker).__name__} failed, and is not used until the run is resumed: {error}"
        )
