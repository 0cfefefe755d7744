"""TensorBoard and MLflow say what history.csv says, also after a kill, and are asked for in time."""

import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import blobs, floco, rows, small_net
from floco import FedAvg, FlocoError, fit

QUICK = [
    "-s",
    "training.rounds=4",
    "-s",
    "training.fraction=0.2",
    "-s",
    "run.evaluate_every=2",
    "-s",
    "run.engine=serial",
    "-s",
    "run.checkpoint_every=3",
]
BOTH = ["-s", 'run.trackers=["tensorboard", "mlflow"]']
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*noload.*", "ignore::ResourceWarning"
)


def tensorboard(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def mlflow(run: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow' / 'mlflow.db'}")
    (only,) = client.search_runs([client.get_experiment_by_name("floco").experiment_id])
    return {
        k: [(m.step, m.value) for m in client.get_metric_history(only.info.run_id, k)] for k in only.data.metrics
    }, only.data.params


def history(run: Path) -> dict[str, list[tuple[int, Any]]]:
    table = rows(run / "history.csv")
    return {
        k: [(int(r["round"]), pytest.approx(float(r[k]), rel=1e-6)) for r in table if r[k]]
        for k in table[0]
        if k != "round" and any(r[k] for r in table)
    }


def test_both_trackers_say_what_the_history_says(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = floco("run", *QUICK, *BOTH, "--out", out)
    assert done.exit_code == 0, done.output
    expected = history(out)
    assert len(expected["accuracy_personal"]) == 2
    assert tensorboard(out) == expected
    metrics, params = mlflow(out)
    assert metrics == expected
    assert (params["training.lr"], params["algorithm.name"], params["seed"]) == ("0.1", "floco", "0")


def test_a_resumed_run_is_not_shown_twice(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def stop(progress: Any) -> None:
        if progress.round == 4:
            raise KeyboardInterrupt

    settings = {
        "rounds": 6,
        "evaluate_every": 2,
        "checkpoint_every": 3,
        "engine": "serial",
        "trackers": ("tensorboard", "mlflow"),
        "out": out,
    }
    with pytest.raises(KeyboardInterrupt):
        fit(small_net, blobs(), FedAvg(), watch=stop, **settings)
    fit(small_net, blobs(), FedAvg(), resume=True, **settings)
    expected = history(out)
    assert [step for step, _ in expected["accuracy_personal"]] == [2, 4, 6]
    assert tensorboard(out) == expected
    assert mlflow(out)[0] == expected


def test_without_a_run_directory_there_is_no_place_for_them() -> None:
    with pytest.raises(FlocoError, match="give one"):
        fit(small_net, blobs(), FedAvg(), rounds=1, engine="serial", trackers=("tensorboard",))


@pytest.mark.parametrize(
    ("name", "module"),
    [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow.tracking"), ("mlflow", "alembic")],
)
def test_a_missing_package_is_named_with_the_way_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    done = floco("run", *QUICK, "-s", f'run.trackers=["{name}"]', "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert f"run.trackers has '{name}', which is not installed" in done.output
    assert "pip install 'floco[tracking]'" in done.output
