"""What `floco data` tells of the data before training, and what it does not: false alarms cost trust."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

import floco
from conftest import floco as command
from floco.analysis import comparison
from floco.cli.survey import label_picture
from floco.core.errors import FlocoError
from floco.core.inputs import Inputs
from floco.data.audit import Finding, audit, audit_gravely, hash_rows
from floco.data.partition import Dirichlet, Iid, Natural, Pathological
from floco.runs.toml import read
from floco.tasks import Regression

N = 600
G = np.random.default_rng(0)
Y = G.integers(0, 3, N)
X = G.normal(size=(N, 6))
X[np.arange(N), Y] += 3
CLIENT = np.repeat(list("abcdef"), N // 6)
PICTURES = G.integers(0, 256, (N, 4, 4, 3)).astype("u1")


def changed(rows: slice, by: Any, columns: Any = slice(None), x: np.ndarray = X) -> np.ndarray:
    made = x.astype(float)
    made[rows, columns] = by(made[rows, columns])
    return made


def repeated(values: np.ndarray) -> np.ndarray:
    made = values.copy()
    made[100:130], made[520:540] = made[:30], made[500:520]
    return made


A = slice(100)
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "another unit": ({"x": changed(A, lambda v: v * 1000)}, "scale", r'1 of 6 clients\? "a" has mean 1.*others 1'),
    "a smaller unit": ({"x": changed(A, lambda v: v / 1000)}, "scale", "1 of 6 clients"),
    "kelvin": ({"x": changed(slice(N), lambda v: 20 + 5 * v) + 273.15 * (np.arange(N) < 100)[:, None]}, "scale", '"a"'),
    "bytes among shares": ({"x": changed(A, lambda v: v * 255, x=PICTURES / 255)}, "scale", "1 of 6"),
    "repeated rows": (
        {"x": repeated(X), "y": repeated(Y)},
        "duplicates",
        r"\d+ of 120 test samples .* of their own .* of another client",
    ),
    "repeated pictures": (
        {"x": np.concatenate([PICTURES[:300]] * 2), "y": np.concatenate([Y[:300]] * 2)},
        "duplicates",
        "of another client",
    ),
    "a constant": ({"x": changed(slice(N), lambda v: 0 * v + 4, 1)}, "constant", "1 of 6 .*: channel 1"),
    "the label": ({"x": changed(slice(N), lambda v: 2 * Y + v / 1000, 4)}, "leak", "channel 4 nearly tells the target"),
    "the row": (
        {"x": changed(slice(N), lambda v: np.arange(N), 2)},
        "leak",
        "channel 2 nearly tells the number of the row",
    ),
    "time": ({"position": np.arange(N)}, "order", "6 of 6 clients .* data.order = position"),
    "sizes": ({"client": np.repeat(list("ab"), [580, 20])}, "sizes", "464 samples, the smallest on 16"),
    "a lonely class": ({"y": np.where(CLIENT < "c", 3 + np.arange(N) % 40, Y)}, "classes", "in [12] of 6 clients"),
}


SPELLED = {
    "clients": {"client": np.where(np.arange(N) % 7 == 0, "A b", np.where(np.arange(N) % 2, "a  B", "c"))},
    "labels": {"y": np.array(["Yes", "no", "yes"])[Y]},
    "categories of 'ward'": {"x": {"ward": np.array(["M\u00fcnchen", "Mu\u0308nchen", "Ulm"])[np.arange(N) % 3]}},
}


@pytest.mark.parametrize("what", SPELLED)
def test_names_in_two_spellings_are_a_grave_finding(what: str) -> None:
    arrays = {"x": {"age": X[:, 0]}, "y": Y, "client": CLIENT} | SPELLED[what]
    frame = pd.DataFrame({**arrays["x"], "age": X[:, 0], "y": arrays["y"], "client": arrays["client"]})
    for examine in (audit, audit_gravely):
        found = [f for f in examine(floco.load(frame, target="y").split(Natural())) if f.kind == "spelling"]
        assert [f.text.startswith(f"the {what} ") for f in found] == [True]
        assert found[0].grave


def test_letters_and_numbers_are_not_two_spellings() -> None:
    names = np.array(["a", "A", "1", "01", "a-b", "a_b"])
    made = floco.load({"x": X, "y": names[Y], "client": names[np.arange(N) % 6]})
    words = floco.load(
        {"x": np.tile([0, 1], (N, 3)), "y": np.tile([1, 0], (N, 3)), "names": ["The", "the"]}, task="tokens"
    )
    for federation in (made.split(Natural()), words.split(Iid(), clients=3)):
        assert not [f for f in audit(federation) if f.kind == "spelling"]


def findings(**given: Any) -> list[Finding]:
    arrays = {"x": X, "y": Y, "client": CLIENT, **given}
    samples = floco.load(arrays)
    return audit(samples.split(Natural()), samples.columns)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("name", ["another unit", "a smaller unit", "a constant", "the label", "the row"])
def test_missing_values_hide_nothing(name: str, task: str) -> None:
    given, kind, says = CASES[name]
    x = given["x"].copy()
    x[np.random.default_rng(1).random(x.shape) < 0.05] = np.nan
    x[CLIENT == "b", 0] = np.nan
    samples = floco.load(
        {"x": x, "y": Y.astype(float) if task == "regression" else Y, "client": CLIENT}, task=task, missing="mean"
    )
    found = [f for f in audit(samples.split(Natural())) if f.kind == kind]
    assert re.search(says, found[0].text), found[0].text


def in_table(rows: int = N, **columns: np.ndarray) -> list[Finding]:
    """Findings in a table with some columns beside six features, its rows in random order."""
    frame = pd.DataFrame(X, columns=list("qrstuv")).assign(y=Y, client=CLIENT, **columns)
    samples = floco.load(frame.sample(rows, random_state=3), target="y", missing="mean")
    return [f for f in audit(samples.split(Iid(), clients=2)) if f.kind in ("leak", "repeated")]


ROW = np.arange(N)
IDS = {
    "one after another": ROW + 1,
    "by hospital": ROW % 6 * 10**5 + ROW // 6,
    "in tens": 10 * ROW,
    "large": 10**12 + ROW,
    "with gaps": np.random.default_rng(3).choice(6 * N, N, replace=False),
    "with holes": np.where(ROW % 9, ROW.astype(float), np.nan),
}
OTHER = np.random.default_rng(5).normal(size=N)
MEASURED = {
    "fractions": OTHER * 100,
    "with ties": (OTHER * 100).round(),
    "wide": (2e6 + 5e5 * OTHER).round(),
    "bytes": ROW % 251,
}


@pytest.mark.parametrize("kind", [*IDS, *MEASURED])
def test_whole_numbers_that_differ_in_every_row_are_questioned_as_ids(kind: str) -> None:
    values = {**IDS, **MEASURED}[kind]
    found = [f.text for f in in_table(patient=values) if "patient" in f.text]
    assert len(found) == (kind in IDS), found
    assert all('"patient" holds a whole number that differs in every row: is it an id?' in text for text in found)
    assert all("data.leave_out" in text for text in found)


def test_few_whole_numbers_may_differ_by_chance() -> None:
    assert not in_table(24, patient=ROW)


CREATININE = np.random.default_rng(4).gamma(9, 0.12, N)
TWICE = {
    "another unit": (CREATININE * 88.4, True),
    "rounded": ((CREATININE * 88.4).round(), True),
    "with an offset": (CREATININE * 1.8 + 32, True),
    "with holes": (np.where(ROW % 300, CREATININE * 88.4, np.nan), True),
    "close": (CREATININE + 0.05 * X[:, 0], False),
    "constant": (np.full(N, 3.0), False),
}


@pytest.mark.parametrize("kind", TWICE)
def test_a_column_in_two_units_is_named_with_its_twin(kind: str) -> None:
    values, twin = TWICE[kind]
    found = in_table(creatinine=CREATININE.round(2), umol=values, sex=np.array(["f", "m"])[ROW % 2])
    assert [f.kind for f in found] == ["repeated"] * twin
    assert all('unit: "creatinine" and "umol"; one' in f.text for f in found)


def test_an_input_called_target_is_no_target() -> None:
    g = np.random.default_rng(0)
    x = {"target": g.normal(size=(60, 2)), "other": np.zeros((60, 1))}
    samples = floco.load({"x": x, "y": np.arange(60) % 2, "client": np.repeat(list("abc"), 20)})
    assert not [f for f in audit(samples.split(Natural())) if f.kind == "duplicates"]


def test_repeated_answers_to_a_few_questions_are_no_grave_finding() -> None:
    g = np.random.default_rng(0)
    x = g.integers(0, 2, size=(300, 4)).astype(np.float32)
    federation = floco.load({"x": x, "y": x[:, 0].astype(int), "client": np.repeat(list("abc"), 100)})
    (found,) = [f for f in audit(federation.split(floco.Natural())) if f.kind == "duplicates"]
    assert "training samples are distinct" in found.text
    assert not found.grave


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_with_the_data_is_found_and_nothing_else(name: str) -> None:
    given, kind, says = CASES[name]
    found = [f for f in findings(**given) if f.kind != "classes" or kind == "classes"]
    assert [f.kind for f in found] == [kind]
    assert re.search(says, found[0].text), found[0].text
    assert found[0].grave == (kind in ("scale", "duplicates"))


@pytest.mark.parametrize("names", [(), ("length", "weight")])
@pytest.mark.parametrize(
    ("change", "says"), [(100.0, "another unit or scaling at 1 of 6 clients"), (0.0, "never vary"), (1.0, "")]
)
def test_targets_in_another_unit_and_constant_ones_are_named(change: float, says: str, names: tuple[str, ...]) -> None:
    y = X[:, 3:5] if names else X[:, 4] - X[:, 3]
    y = y.copy()
    y[slice(N) if change == 0 else A] *= change
    arrays = {"x": X[:, :3], "y": y, "client": CLIENT, **({"names": np.array(names)} if names else {})}
    found = [f.text for f in audit(floco.load(arrays, task="regression").split(Natural()))]
    assert len(found) == bool(says)
    assert not says or re.search(f"{says}.*{names and 'target .length' or 'the target'}", found[0])


DIGITS, WINE, CANCER = load_digits(), load_wine(), load_breast_cancer()


@pytest.mark.parametrize("split", [Pathological(2), Dirichlet(0.1), Dirichlet(1.0), Iid(), Pathological(1)], ids=str)
@pytest.mark.parametrize(
    "x", [DIGITS.images.astype("u1"), DIGITS.data, WINE.data, CANCER.data], ids=["pictures", "pixels", "wine", "cells"]
)
def test_label_skew_is_no_other_unit_and_clean_data_have_no_grave_finding(x: np.ndarray, split: Any) -> None:
    y = {1797: DIGITS, 178: WINE, 569: CANCER}[len(x)].target
    made = floco.load({"x": x, "y": y})
    for seed in range(3):
        assert not audit_gravely(made.split(split, clients=8, seed=seed))


def test_a_class_that_nobody_trains_on_is_named() -> None:
    made = floco.load({"x": X, "y": np.where(Y == 2, 1, Y)}, labels=["0", "1", "2"])
    assert "1 of 3 classes have no training sample: 2" in [f.text for f in audit(made.split(Iid(), clients=3))][0]


def test_a_global_test_part_is_compared_too() -> None:
    made = floco.load({"x_train": X, "y_train": Y, "x_test": np.concatenate([X[:30], X[:50] + 1]), "y_test": Y[:80]})
    text = audit_gravely(made.split(Iid(), clients=3))[0].text
    assert text.startswith("2")
    assert "of 80 samples of the global test part" in text


def rows_of(kind: str) -> Inputs:
    x = floco.load({"x": X.astype("f4"), "y": Y}).x
    assert not isinstance(x, tuple | dict)
    x[0], x[1] = 0.0, -0.0  # equal numbers of different bytes
    ints = (x * 2).long()
    return {"floats": x, "whole": ints.float(), "ids": ints, "bytes": ints.byte(), "both": (ints.float(), ints)}[kind]


@pytest.mark.parametrize("kind", ["floats", "whole", "ids", "bytes", "both"])
def test_hashes_of_rows_are_equal_exactly_where_rows_are(kind: str) -> None:
    x = rows_of(kind)
    first = x[0] if isinstance(x, tuple) else x
    assert not isinstance(first, dict)
    hashes = hash_rows(x)
    same = np.unique(first.numpy(), axis=0, return_inverse=True)[1].reshape(-1)
    assert len(np.unique(hashes)) == len(np.unique(same))
    assert len({*zip(hashes.tolist(), same.tolist(), strict=True)}) == len(np.unique(same))


@pytest.fixture
def many(tmp_path: Path) -> list[str]:
    """50 clients and 30 labels with long names, one client in another unit."""
    g = np.random.default_rng(0)
    y = np.array([f"label number {i}" for i in range(30)])[np.arange(2000) % 30]
    client = np.repeat([f"hospital of the city number {i}" for i in range(50)], 40)
    x = g.normal(size=(2000, 3))
    x[:40] *= 1000
    np.savez(tmp_path / "many.npz", x=x, y=y, client=client)
    return [w for s in (f"data.source=npz:{tmp_path / 'many.npz'}", "data.split=natural") for w in ("-s", s)]


def test_tables_of_many_clients_and_labels_fit_a_terminal(many: list[str]) -> None:
    shown = command("data", *many)
    assert shown.exit_code == 0, shown.output
    tables = [line for line in shown.stdout.splitlines() if line[:1] in "┏┃┡│└"]
    assert len(tables) >= 45
    assert max(map(len, tables)) <= 80
    assert "others" in shown.stdout
    assert "and 10 more" in shown.stdout
    assert "another unit or scaling at 1 of 50" in shown.output


def test_schema_and_warnings_are_plain_values_too(many: list[str]) -> None:
    made = json.loads(command("data", *many, "--json").stdout)
    assert {"clients", "heterogeneity", "schema", "warnings", "picture"} == made.keys()
    x, y = made["schema"]
    assert (x["name"], x["role"], x["dtype"], x["shape"], x["layout"]) == ("x", "input", "float32", [3], "")
    assert x["scaling"].startswith("mean ")
    assert x["high"] > 1000
    assert (y["role"], len(y["classes"])) == ("target", 30)
    assert [w["kind"] for w in made["warnings"] if w["grave"]] == ["scale"]


def test_named_features_have_rows_of_their_own() -> None:
    import pandas as pd

    from floco.data.describe import describe_schema

    table = pd.DataFrame({"age": X[:, 0] * 10 + 50, "height": X[:, 1] / 10 + 1.7, "id": 10**12 + np.arange(N)})
    rows = describe_schema(floco.load({"x": table, "y": Y}).split(Iid(), clients=3))
    assert [(r["name"], r["role"]) for r in rows[1:-1]] == [(n, "feature") for n in ("age", "height", "id")]
    assert rows[3]["low"] == pytest.approx(10**12, rel=1e-6)
    assert "mean 1e+12" in rows[3]["scaling"]


@pytest.mark.parametrize("group", ["sex", "band"])
@pytest.mark.parametrize("order", ["day", "date"])
def test_the_columns_of_groups_and_of_order_are_part_of_the_schema(group: str, order: str, tmp_path: Path) -> None:
    dates = pd.date_range("2024-01-01", periods=N).astype(str)
    frame = pd.DataFrame({"age": X[:, 0], "sex": np.array(["f", "m"])[ROW % 2], "band": ROW % 4, "day": ROW})
    frame.assign(date=dates, y=Y, client=CLIENT).to_csv(tmp_path / "t.csv", index=False)
    settings = {"source": f"csv:{tmp_path / 't.csv'}", "target": "y", "split": "natural"}
    settings |= {"group": group, "order": order}
    unused = [name for name in ("sex", "band", "day", "date") if name not in (group, order)]
    settings["leave_out"] = json.dumps(unused)
    done = command("data", *(w for k, v in settings.items() for w in ("-s", f"data.{k}={v}")), "--json")
    assert done.exit_code == 0, done.output
    rows = {r["name"]: r for r in json.loads(done.stdout)["schema"]}
    assert [(name, r["role"]) for name, r in rows.items()][-2:] == [(group, "group"), (order, "order")]
    assert (rows[group]["low"], rows[group]["high"]) == ((None, None) if group == "sex" else (0, 3))
    assert (rows[order]["low"], rows[order]["high"]) == ((0, N - 1) if order == "day" else (None, None))
    assert not {*unused} & {*rows}


def test_targets_without_classes_have_mean_and_spread_by_client(tmp_path: Path) -> None:
    np.savez(tmp_path / "numbers.npz", x=X, y=X[:, 0] + 50)
    given = ["task.name=regression", f"data.source=npz:{tmp_path / 'numbers.npz'}", "data.split=iid", "data.clients=45"]
    flags = [w for s in given for w in ("-s", s)]
    shown = command("data", *flags)
    assert all(word in shown.stdout for word in ("mean", "deviation", "lowest", "highest", "and 5 more")), shown.output
    assert "nearly tells the target" in shown.stderr
    made = json.loads(command("data", *flags, "--json").stdout)
    assert made["heterogeneity"] is None
    assert 45 < made["clients"][0]["targets"]["mean"] < 55
    assert 0 < made["clients"][0]["targets"]["std"] < 5
    assert made["schema"][-1]["high"] == pytest.approx(X[:, 0].max() + 50)


def test_targets_of_several_units_are_told_apart(tmp_path: Path) -> None:
    y = np.stack([X[:, 0] + 50, 1e5 * X[:, 1]], 1)
    np.savez(tmp_path / "two.npz", x=X, y=y, names=["age", "price"])
    given = ["task.name=regression", f"data.source=npz:{tmp_path / 'two.npz'}", "data.split=iid", "data.clients=2"]
    flags = [w for s in given for w in ("-s", s)]
    made = json.loads(command("data", *flags, "--json").stdout)
    age, price = made["schema"][-2:]
    assert (age["name"], age["role"], price["name"], price["role"]) == ("age", "target", "price", "target")
    assert age["high"] == pytest.approx(y[:, 0].max())
    assert price["low"] == pytest.approx(y[:, 1].min())
    assert age["scaling"].startswith("mean 51, deviation")
    first = made["clients"][0]["targets"]
    assert first.keys() == {"age", "price"}
    assert 45 < first["age"]["mean"] < 55
    shown = command("data", *flags).stdout
    assert all(word in shown for word in ("age", "price", "50", "\u00b1")), shown


def test_a_run_says_what_is_grave_and_where_to_look(many: list[str], tmp_path: Path) -> None:
    quick = ["-s", "training.rounds=1", "-s", "algorithm.name=fedavg", "-s", "run.engine=serial"]
    made = command("run", *many, *quick, "--out", tmp_path / "run")
    assert made.exit_code == 0, made.output
    assert made.stderr.count("warning: another unit or scaling") == 1
    assert "(see floco data)" in made.stderr
    assert "never" not in made.stderr


def test_a_comparison_says_what_is_grave(many: list[str], tmp_path: Path) -> None:
    settings = read(None, [s for s in many if s != "-s"])
    with pytest.warns(UserWarning, match="another unit or scaling"):
        comparison.create(tmp_path / "out", comparison.configure(settings, ["fedavg"]), 1)


def test_clients_without_a_test_part_are_counted() -> None:
    made = floco.load({"x": X, "y": Y, "client": np.where(np.arange(N) == 0, "z", CLIENT)})
    with pytest.warns(UserWarning, match="too small"):
        federation = made.split(Natural(), small="train-only")
    kinds = {f.kind: f.text for f in audit(federation)}
    assert kinds["untested"].startswith("1 of 7 clients have no test part")


def test_the_picture_of_who_has_what_needs_labels(tmp_path: Path) -> None:
    federation = floco.load({"x": X, "y": X[:, 0]}, task=Regression()).split(Iid(), clients=3)
    with pytest.raises(FlocoError, match="task regression has none"):
        label_picture(federation, tmp_path / "a.png")
