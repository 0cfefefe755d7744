"""Comparisons: equal conditions for all methods, tables by hand, failures, tuning, resumption with real processes."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import PATIENCE, blobs, floco, rows, started, until, write_blobs
from floco.algorithms import ALGORITHMS
from floco.analysis import comparison, pairs, tables, tuning
from floco.analysis.tables import Results
from floco.core.errors import FlocoError
from floco.runs.status import look
from floco.runs.toml import read
from floco.storage.tables import read_table

METHODS = ("floco", "fedavg", "fedavg+ft", "local")


def settings(folder: Path, **more: Any) -> list[str]:
    """A federation of six people, quick to train."""
    data = write_blobs(folder / "blobs.npz")
    pairs = {
        "data.source": f"npz:{data}",
        "data.split": "natural",
        "model.name": "mlp",
        "training.rounds": 6,
        "training.fraction": 0.5,
        "run.engine": "serial",
        "run.evaluate_every": 2,
        **more,
    }
    return [part for key, value in pairs.items() for part in ("-s", f"{key}={value}")]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of four methods under two seeds."""
    folder = tmp_path_factory.mktemp("compare")
    result = floco("compare", *settings(folder), "-a", ",".join(METHODS), "--seeds", 2, "--out", folder / "out")
    assert result.exit_code == 0, result.output
    assert "fedavg+ft" in result.output
    assert "personal model is worse" in result.output
    return folder / "out"


def test_variants_of_a_method_are_compared_under_names_of_their_own(tmp_path: Path) -> None:
    words = [*settings(tmp_path, **{"algorithm.endpoints": 3}), "-a", "own=floco,floco,fedavg", "-s", "own.centers=own"]
    result = floco("compare", *words, "--seeds", 1, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [r["method"] for r in rows(tmp_path / "out" / "methods.csv")] == ["own", "floco", "fedavg"]
    found = {
        name: json.loads((tmp_path / "out" / "runs" / f"{name}-seed0" / "run.json").read_text())["config"]["algorithm"]
        for name in ("own", "floco")
    }
    assert {name: f["centers"] for name, f in found.items()} == {"own": "own", "floco": "signals"}
    assert {f["endpoints"] for f in found.values()} == {3}
    implied = ("assign_at", "uniform", "average")  # defaults of each, and not those that the other's settings imply
    assert [[found[name][key] for key in implied] for name in found] == [[1, 0.5, "mixtures"], [3, 0.0, "samples"]]
    resumed = floco("resume", tmp_path / "out")
    assert resumed.exit_code == 0, resumed.output
    (group,) = look([tmp_path / "out"])
    assert [r.method for r in group.runs] == ["own", "floco", "fedavg"]


def test_the_table_of_failures_has_its_header_though_nothing_failed(done: Path) -> None:
    assert (done / "failures.csv").read_text() == "method,seed,reason\n"
    assert {p.read_text() for p in done.glob("runs/*/failures.csv")} == {"round,client,reason\n"}


def test_all_methods_of_a_seed_have_the_same_data_weights_and_client_samples(done: Path) -> None:
    for seed in ("0", "1"):
        facts = [json.loads((done / "runs" / f"{m}-seed{seed}" / "run.json").read_text()) for m in METHODS]
        assert len({f["data"] for f in facts}) == len({f["model"] for f in facts}) == 1
        took_part = [
            [r["participated"] for r in rows(done / "clients.csv") if (r["method"], r["seed"]) == (m, seed)]
            for m in METHODS
        ]
        assert all(t == took_part[0] for t in took_part)
        assert sum(map(int, took_part[0])) == 6 * 3
    assert facts[0]["data"] != json.loads((done / "runs" / "floco-seed0" / "run.json").read_text())["data"]


def test_a_row_of_a_method_is_the_mean_and_spread_of_its_runs(done: Path) -> None:
    runs = [r for r in rows(done / "runs.csv") if r["method"] == "floco"]
    row = next(r for r in rows(done / "methods.csv") if r["method"] == "floco")
    last = [rows(done / "runs" / f"floco-seed{s}" / "history.csv")[-1] for s in (0, 1)]
    for column in ("accuracy_global", "loss_personal", "ece_personal", "accuracy_personal_std"):
        values = [float(r[column]) for r in last]
        assert [float(r[column]) for r in runs] == values
        assert float(row[column]) == pytest.approx(np.mean(values))
        assert float(row[f"{column}_seed_std"]) == pytest.approx(np.std(values, ddof=1))
    assert row["seeds"] == "2"


def test_steps_and_bytes_are_counted_for_every_method(done: Path) -> None:
    found = {r["method"]: r for r in rows(done / "methods.csv")}
    trained = 6 * 3 * 3 * 2 / 6  # rounds, clients a round, epochs, batches of 16 among 32 samples; over six clients
    assert float(found["fedavg"]["steps_per_client"]) == float(found["local"]["steps_per_client"]) == trained
    assert float(found["fedavg+ft"]["steps_per_client"]) == trained + 3 * 2  # the epochs before the last evaluation
    assert float(found["floco"]["steps_per_client"]) == trained + 3 * 3 * 2 / 6  # three of six probe, once
    assert float(found["local"]["bytes_up"]) == 0
    assert float(found["fedavg"]["bytes_up_ratio"]) == 1
    assert float(found["floco"]["bytes_up_ratio"]) > 1


def test_columns_that_do_not_apply_are_empty(done: Path) -> None:
    found = {r["method"]: r for r in rows(done / "methods.csv")}
    assert (
        found["local"]["accuracy_global"]
        == found["local"]["update_variance"]
        == found["local"]["better_than_local"]
        == ""
    )
    assert 0 <= float(found["floco"]["better_than_local"]) <= 1
    assert (found["local"]["harm_local"], found["fedavg"]["harm_global"]) == ("0.0", "0.0")  # the same models
    assert 0 <= float(found["local"]["harm_global"]) <= 1  # against FedAvg's


def results(history: dict[str, Any], clients: dict[str, Any]) -> Results:
    h, c = pd.DataFrame(history), pd.DataFrame({"accuracy_global_local": np.nan, **clients})
    runs = (
        c[["method", "seed"]]
        .drop_duplicates(ignore_index=True)
        .assign(seconds=1.0, steps_per_client=2.0, bytes_down=0.0, bytes_up=4.0)
    )
    return Results(h, c, tables.compare_runs(runs, h, c))


def curves(**accuracy: list[float]) -> dict[str, Any]:
    n = len(next(iter(accuracy.values())))
    flat = [(m, 0, 10 * (i + 1), a, a) for m, values in accuracy.items() for i, a in enumerate(values)]
    assert len(flat) == n * len(accuracy)
    return dict(
        zip(
            ("method", "seed", "round", "accuracy_global", "accuracy_personal"),
            map(list, zip(*flat, strict=True)),
            strict=True,
        )
    )


def one_client(*methods: str) -> dict[str, Any]:
    return {
        "method": list(methods),
        "seed": [0] * len(methods),
        "client": ["a"] * len(methods),
        "accuracy_personal": [0.5] * len(methods),
    }


def test_the_target_is_fedavgs_mean_over_its_last_tenth_and_a_round_that_never_comes_is_empty() -> None:
    quick, slow = [0.1 * i for i in range(20)], [0.05 * i for i in range(20)]
    found = results(curves(fedavg=quick, floco=slow), one_client("fedavg", "floco")).runs
    wanted = (1.9 + 1.8) / 2  # rounds 190 and 200 of 200
    assert found["target_accuracy_global"].tolist() == [pytest.approx(wanted)] * 2
    assert found["first_round_accuracy_global"].iloc[0] == 200
    assert np.isnan(found["first_round_accuracy_global"].iloc[1])
    assert np.isnan(results(curves(floco=slow), one_client("floco")).runs["target_accuracy_global"].iloc[0])


def test_pairs_are_wilcoxons_test_of_the_same_clients_with_holms_correction() -> None:
    from scipy.stats import ttest_1samp, wilcoxon

    g = np.random.default_rng(1)
    a = {
        m: g.uniform(0.5, 0.9, 24) + shift
        for m, shift in (("floco", 0.05), ("fedavg", 0.0), ("local", -0.05), ("ditto", 0.04))
    }
    clients = {
        "method": [m for m in a for _ in range(24)],
        "seed": [s for _ in a for s in (0, 1) for _ in range(12)],
        "client": [str(i) for _ in a for _ in (0, 1) for i in range(12)],
    }
    found = pairs.pairs(
        results(curves(**{m: [0.1] for m in a}), {**clients, "accuracy_personal": np.concatenate(list(a.values()))}),
        "floco",
    ).set_index("method")
    gaps = {m: (a["floco"] - a[m]).reshape(2, 12).mean(axis=0) for m in ("fedavg", "local", "ditto")}  # one a client
    p = {m: wilcoxon(gap).pvalue for m, gap in gaps.items()}
    ordered = sorted(p, key=lambda m: p[m])
    for m, gap in gaps.items():
        assert found.loc[m, "p"] == pytest.approx(p[m])
        assert found.loc[m, "mean_difference"] == pytest.approx(gap.mean())
        assert found.loc[m, ["better", "worse", "clients"]].tolist() == [(gap > 0).sum(), (gap < 0).sum(), 12]
        ends = found.loc[m, ["lower", "upper"]].tolist()
        assert ends == pytest.approx(list(ttest_1samp(gap, 0).confidence_interval()))
        assert found.loc[m, "p_holm"] == pytest.approx(
            max(min(1, p[q] * (3 - i)) for i, q in enumerate(ordered) if i <= ordered.index(m))
        )


def test_equal_gaps_are_equal_to_the_test() -> None:
    from scipy.stats import wilcoxon

    g = np.random.default_rng(2)
    right = g.integers(10, 18, (2, 20))
    clients = {
        "method": ["floco"] * 20 + ["fedavg"] * 20,
        "seed": [0] * 40,
        "client": [str(i) for i in range(20)] * 2,
        "accuracy_personal": (right / 18).ravel(),
    }
    found = pairs.pairs(results(curves(floco=[0.1], fedavg=[0.1]), clients), "floco")
    assert found["p"].iloc[0] == pytest.approx(wilcoxon(right[0] - right[1]).pvalue)


def test_a_number_that_is_none_does_not_break_a_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("client,loss\nnan,nan\n7,0.5\n")
    table = read_table(tmp_path / "t.csv")
    assert table["client"].tolist() == ["nan", "7"]
    assert table["loss"].mean() == 0.5


def test_a_comparison_of_which_every_run_fails_says_why(tmp_path: Path) -> None:
    words = settings(tmp_path, **{"training.lr": 1e30, "training.rounds": 2})
    done = floco("compare", *words, "-a", "fedavg,local", "--seeds", 1, "--out", tmp_path / "out")
    assert done.exit_code == 1, done.output
    assert "2 of 2 runs failed" in done.output
    assert "floco resume" in done.output


def test_equal_methods_are_not_told_apart() -> None:
    table = pairs.pairs(results(curves(floco=[0.1], fedavg=[0.1]), one_client("floco", "fedavg")), "floco")
    assert table[["equal", "p", "p_holm"]].values.tolist() == [[1, 1, 1]]
    assert table[["lower", "upper"]].isna().all(axis=None)  # one client shows no interval


def test_the_share_that_beats_a_rival_counts_strictly_better_clients() -> None:
    clients = {
        "method": ["floco"] * 4 + ["local"] * 4,
        "seed": [0] * 8,
        "client": list("abcd") * 2,
        "accuracy_personal": [0.9, 0.5, 0.7, 0.1, 0.8, 0.5, 0.6, 0.2],
    }
    found = results(curves(floco=[0.1], local=[0.1]), clients).runs.set_index("method")
    assert found.loc["floco", "better_than_local"] == 0.5
    assert np.isnan(found.loc["local", "better_than_local"])
    assert np.isnan(found.loc["floco", "better_than_fedavg_ft"])


def test_clients_that_were_not_evaluated_under_both_methods_are_left_out_and_counted() -> None:
    nan = float("nan")
    clients = {
        "method": ["floco"] * 4 + ["local"] * 3,
        "seed": [0] * 7,
        "client": [*"abcd", *"abx"],
        "accuracy_personal": [0.9, nan, 0.7, 0.9, 0.8, 0.6, 0.1],
    }
    found = results(curves(floco=[0.1], local=[0.1]), clients)
    row = found.runs.set_index("method").loc["floco"]
    assert (
        row["better_than_local"] == 1.0
    )  # of a alone: b has no accuracy under floco, c and d none under local, x none under floco
    assert row["better_than_local_left_out"] == 4
    assert "floco against local 4" in tables.name_left_out(tables.methods(found))
    everybody = results(curves(floco=[0.1], local=[0.1]), one_client("floco", "local"))
    assert tables.name_left_out(tables.methods(everybody)) == ""


def test_runs_of_a_method_are_seeds_of_one_another_only_if_all_else_is_equal(tmp_path: Path) -> None:
    short = ["-s", "training.rounds=1", "-s", "algorithm.name=fedavg", "-s", "run.engine=serial"]
    for folder, more in {
        "a": ["seed=0"],
        "b": ["seed=1"],
        "c": ["seed=2", "training.epochs=2"],
        "d/a": ["seed=0"],
        "e/a": ["seed=0"],
    }.items():
        assert floco("run", *short, *[s for m in more for s in ("-s", m)], "--out", tmp_path / folder).exit_code == 0
    found = tables.load([tmp_path / f for f in ("a", "b", "c", "d/a", "e/a")])
    assert {name: sorted(rows["seed"]) for name, rows in found.runs.groupby("method")} == {
        "fedavg": [0, 1],
        "fedavg (c)": [2],
        "fedavg (a)": [0],
        "fedavg (a 2)": [0],
    }
    assert "training.epochs (3, 2)" in tables.name_differences(found.paths.values())
    assert tables.name_differences([tmp_path / "a", tmp_path / "b"]) == ""


def test_seeds_of_a_comparison_stay_together_though_each_was_tuned_by_itself(tmp_path: Path) -> None:
    for seed, lr in ((0, 0.1), (1, 0.05)):
        given = [
            "-s",
            f"seed={seed}",
            "-s",
            f"training.lr={lr}",
            "-s",
            "training.rounds=1",
            "-s",
            "algorithm.name=fedavg",
            "-s",
            "run.engine=serial",
        ]
        assert floco("run", *given, "--out", tmp_path / "all" / "runs" / f"fedavg-seed{seed}").exit_code == 0
    paths = sorted((tmp_path / "all" / "runs").iterdir())
    assert len(tables.load(paths).names) == 2  # single runs with other settings
    (tmp_path / "all" / "comparison.json").write_text("{}")
    assert tables.methods(tables.load(paths))[["method", "seeds"]].values.tolist() == [["fedavg", 2]]


def test_methods_differ_in_their_algorithm_only_and_share_what_they_inherit() -> None:
    base = read(None, ["algorithm.radius=0.25", "training.rounds=10", "algorithm.assign_at=3"])
    made = comparison.configure(
        base, ["floco", "floco+", "ditto"], {"ditto": {"pull": 0.5}, "floco+": {"endpoints": 7}}
    )
    assert made["floco"].algorithm == base.algorithm
    plus: Any = made["floco+"].algorithm
    assert (plus.radius, plus.assign_at, plus.endpoints, plus.pull) == (0.25, 3, 7, 1.0)
    assert made["ditto"].algorithm.pull == 0.5  # type: ignore[attr-defined]
    assert all(
        (m.training, m.data, m.model, m.run, m.seed) == (base.training, base.data, base.model, base.run, base.seed)
        for m in made.values()
    )
    from_ditto = comparison.configure(read(None, ["algorithm.name=ditto", "algorithm.pull=0.1"]), ["pfedme", "ditto"])
    assert from_ditto["pfedme"].algorithm == ALGORITHMS["pfedme"]()  # another method's pull


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-a", "floco,fedagv"], "did you mean 'fedavg'"),
        (["-a", "floco,floco"], "each once"),
        (["-a", "a=floco,a=fedavg"], "each once"),
        (["-a", "fedavg=floco"], "a name that no method"),
        (["-a", "training=floco"], "no table of settings has"),
        (["-a", "algorithm=floco"], "no table of settings has"),
        (["-a", "a=floco,A=floco"], "each once"),
        (["-a", "../a=floco"], "of letters, digits"),
        (["-a", "=floco"], "of letters, digits"),
        (["-a", "own=flocco"], "did you mean 'floco'"),
        (["-a", "own=floco", "-s", "floco.centers=own"], "settings for floco, which is not compared"),
        (["-a", ""], "got none"),
        (["-a", "floco", "--seeds", "0"], "--seeds must be at least 1"),
        (["-a", "floco", "-s", "ditto.pull=1"], "settings for ditto, which is not compared"),
        (["-a", "ditto", "-s", "ditto.pul=1"], "did you mean 'pull'"),
        (["-a", "ditto", "-s", "ditto.pull=-1"], "ditto: pull must be >= 0, got -1"),
    ],
)
def test_wrong_use_is_said_before_anything_is_written(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = floco("compare", *settings(tmp_path), *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_a_directory_in_use_or_full_is_refused(done: Path) -> None:
    from filelock import FileLock

    assert "not empty" in floco("compare", *settings(done.parent), "--out", done).output
    with FileLock(done / ".lock"):
        result = floco("resume", done)
    assert result.exit_code == 2
    assert "in use by another process" in result.output


def test_data_that_changed_are_refused_and_no_table_mixes_them(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert floco("compare", *settings(tmp_path), "-a", "fedavg,local", "--seeds", 1, "--out", out).exit_code == 0
    shutil.rmtree(out / "runs" / "local-seed0")
    before = (out / "methods.csv").read_bytes()
    write_blobs(tmp_path / "blobs.npz", seed=1)
    refused = floco("resume", out)
    assert refused.exit_code == 2
    assert "the data of" in refused.output
    assert (out / "methods.csv").read_bytes() == before


def test_a_changed_comparison_file_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        floco(
            "compare", *settings(tmp_path, **{"training.rounds": 2}), "-a", "local", "--seeds", 1, "--out", out
        ).exit_code
        == 0
    )
    facts = json.loads((out / "comparison.json").read_text())
    (out / "comparison.json").write_text(json.dumps({**facts, "configs": {}}))
    refused = floco("resume", out)
    assert refused.exit_code == 2
    assert "comparison.json was changed" in refused.output


def test_a_method_that_fails_does_not_lose_the_others(tmp_path: Path) -> None:
    result = floco(
        "compare",
        *settings(tmp_path),
        "-a",
        "fedprox,fedavg,local",
        "--seeds",
        1,
        "-s",
        "fedprox.mu=1e30",
        "--out",
        tmp_path / "out",
    )
    assert result.exit_code == 1
    assert "fedprox, seed 0: round" in result.output
    assert f"floco resume {tmp_path / 'out'}" in result.output
    assert [r["method"] for r in rows(tmp_path / "out" / "methods.csv")] == ["fedavg", "local"]
    assert [(r["method"], r["seed"]) for r in rows(tmp_path / "out" / "failures.csv")] == [("fedprox", "0")]


def tables_of(path: Path) -> dict[str, bytes]:
    """What must be equal: all that is not a time."""
    kept = {name: (path / f"{name}.csv").read_bytes() for name in ("history", "clients", "pairs")}
    timeless = [{k: v for k, v in r.items() if not k.startswith("seconds")} for r in rows(path / "methods.csv")]
    return {**kept, "methods": json.dumps(timeless).encode()}


DYING = """
import os, signal, sys
from pathlib import Path
from floco.cli import main
from floco.runs.checkpoint import Store

out, begun, saves = Path(sys.argv.pop(1)), int(sys.argv.pop(1)), int(sys.argv.pop(1))
save = Store.save

def saved(self, progress):
    global saves
    save(self, progress)
    saves -= len(list(out.glob("runs/*/run.json"))) >= begun
    if not saves:
        os.kill(os.getpid(), signal.SIGKILL)

Store.save = saved
main()
"""
"""The command line, killed in a given run of a comparison after so many of its rounds."""


def test_a_comparison_that_is_killed_again_and_again_ends_with_the_same_tables(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["compare", *settings(tmp_path), "-a", ",".join(METHODS), "--seeds", "2", "--out", str(out)]
    for begun, saves in ((1, 2), (4, 1), (6, 5)):
        dying = [sys.executable, "-c", DYING, out, str(begun), str(saves), *words]
        killed = subprocess.run(dying, stdout=subprocess.DEVNULL, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert len(list(out.glob("runs/*/run.json"))) == begun
        words = ["resume", str(out)]
    subprocess.run([Path(sys.executable).with_name("floco"), *words], stdout=subprocess.DEVNULL, check=True)
    found, expected = tables_of(out), tables_of(done)
    assert found["history"] == expected["history"]
    assert found == expected


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    words = ["compare", *settings(tmp_path, **{"training.rounds": 100_000}), "-a", "fedavg", "--seeds", "1"]
    command = [Path(sys.executable).with_name("floco"), *words, "--out", tmp_path / "out"]
    process = started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    latest = tmp_path / "out" / "runs" / "fedavg-seed0" / "checkpoint" / "latest"
    until(lambda: latest.exists() and int(latest.read_text()) >= 3, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert f"continue with: floco resume {tmp_path / 'out'}" in error


def test_every_method_is_tuned_by_the_same_number_of_trials() -> None:
    base = read(None)
    grids = {name: tuning.list_trials(comparison.configure(base, [name])[name]) for name in ALGORITHMS}
    assert {len(g) for g in grids.values()} == {6}
    for name, grid in grids.items():
        assert len({json.dumps(t) for t in grid}) == 6, name
        made = comparison.configure(base, [name])[name]
        assert made in [tuning.apply_trial(made, t) for t in grid], name  # the defaults are among the trials


def test_tuning_cuts_from_the_training_parts_and_cannot_reach_a_test_part() -> None:
    federation = blobs()
    cut = tuning.cut_validation(federation, 0)
    assert cut.x_test is None
    for before, after in zip(federation.clients, cut.clients, strict=True):
        assert sorted([*after.train.tolist(), *after.test.tolist()]) == before.train.tolist()
        assert len(after.test) == round(0.25 * len(before.train))
        assert not {*after.train.tolist(), *after.test.tolist()} & set(before.test.tolist())
    assert not torch.equal(cut.clients[0].test, tuning.cut_validation(federation, 1).clients[0].test)


def test_where_samples_have_an_order_the_latest_are_cut_and_each_recording_loses_the_one_before() -> None:
    from floco.data.federation import Client

    federation = blobs()
    when = torch.tensor(
        [*range(0, 32, 2), *range(0, 32, 4)]
    )  # two recordings of the same time, one with half as many samples
    one = Client("a", torch.arange(len(when)), torch.tensor([30]), when=when)
    cut = tuning.cut_validation(replace(federation, clients=(one,)), 0).clients[0]
    assert when[cut.train].max() < when[cut.test].min()
    assert cut.test.tolist() == [12, 13, 14, 15, 22, 23]
    assert cut.train.tolist() == [*range(11), *range(16, 21)]


def test_a_worker_that_died_says_nothing_about_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from floco.core.errors import WorkerDied

    def dies(*_: Any) -> Any:
        raise WorkerDied("worker process 7 died")

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "try_out", dies)
        failed = floco("compare", *settings(tmp_path), "-a", "local", "--seeds", 1, "--tune", "--out", tmp_path / "out")
    assert failed.exit_code == 1
    assert "worker process 7 died" in failed.output
    assert not (tmp_path / "out" / "tuning.csv").exists()
    assert floco("resume", tmp_path / "out").exit_code == 0


def test_a_trial_that_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from floco.core.errors import RunFailed

    def fails(*_: Any) -> Any:
        raise RunFailed("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "try_out", fails)
        failed = floco("compare", *settings(tmp_path), "-a", "local", "--seeds", 1, "--tune", "--out", tmp_path / "out")
    assert failed.exit_code == 1
    assert {r["reason"] for r in rows(tmp_path / "out" / "tuning.csv")} == {"no space left on device"}
    assert floco("resume", tmp_path / "out").exit_code == 0
    assert [r["reason"] for r in rows(tmp_path / "out" / "tuning.csv")] == [""] * 6


def test_a_client_with_one_training_sample_cannot_be_tuned_on() -> None:
    federation = blobs()
    small = replace(federation, clients=(replace(federation.clients[0], train=torch.tensor([3])),))
    with pytest.raises(FlocoError, match='client "north" has 1 training samples, too few for two parts'):
        tuning.cut_validation(small, 0)


def test_tuned_runs_use_the_best_trial_and_all_training_data_and_trials_are_not_repeated(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = floco(
        "compare",
        *settings(tmp_path, **{"run.trackers": '["tensorboard"]'}),
        "-a",
        "fedprox,local",
        "--seeds",
        2,
        "--tune",
        "--out",
        out,
    )
    assert result.exit_code == 0, result.output
    assert "tuning fedprox, seed 1, 6/6" in result.output
    for seed in (0, 1):
        trials = [r for r in rows(out / "tuning.csv") if (r["method"], r["seed"]) == ("fedprox", str(seed))]
        best = max(trials, key=lambda r: (float(r["validation_accuracy"]), -float(r["validation_loss"])))
        used = json.loads((out / "runs" / f"fedprox-seed{seed}" / "run.json").read_text())["config"]
        assert {"training.lr": used["training"]["lr"], "algorithm.mu": used["algorithm"]["mu"]} == json.loads(
            best["settings"]
        )
    assert {r["n_train"] for r in rows(out / "clients.csv")} == {"32"}
    changed = (out / "tuning.csv").read_text().replace(best["validation_accuracy"], "0.0")
    (out / "tuning.csv").write_text(changed)
    again = floco("resume", out)
    assert again.exit_code == 1
    assert "is to be continued with" in " ".join(again.output.split())  # settings that are no longer the best
    assert (out / "tuning.csv").read_text() == changed
    (out / "tuning.csv").write_text("a,b\n1,2\n")
    assert "tuning.csv was changed" in floco("resume", out).output


def test_test_parts_do_not_matter_to_tuning(tmp_path: Path) -> None:
    from floco.runs import source

    config = comparison.configure(read(None, settings(tmp_path)[1::2]), ["fedprox"])["fedprox"]
    federation = source.federation(config)
    everything = torch.cat([c.test for c in federation.clients])
    poisoned = replace(
        federation, x=federation.x.index_fill(0, everything, float("nan")), y=federation.y.index_fill(0, everything, 0)
    )
    trial = tuning.list_trials(config)[0]
    assert tuning.try_out(config, federation, trial) == tuning.try_out(config, poisoned, trial)
