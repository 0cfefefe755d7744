"""Tables: CSV, Parquet, JSON and DataFrames give equal samples, and what is not clear is refused in words."""

import datetime
import decimal
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import floco
from conftest import floco as command
from floco.client import predict
from floco.core.errors import FlocoError
from floco.data.describe import describe_schema
from floco.data.normalization import Normalization
from floco.data.samples import Samples
from floco.data.table_files import read_frame
from floco.data.tables import Columns
from floco.flower.joining import admit, agree
from floco.flower.protocol import FORMAT
from floco.flower.scaffold import share_schema
from floco.flower.site import SiteConfig, introduce
from floco.runs import source
from floco.runs.config import Config
from floco.runs.toml import as_dict, read
from floco.tasks.labels import MISSING

N = 40
I = np.arange(N)  # noqa: E741
XYZ = np.array(["x", "y", "z"])[I % 3]


def patients() -> pd.DataFrame:
    """Two wards of 20: numbers, text, booleans, a day, a target that depends on them."""
    g = np.random.default_rng(0)
    age, sex = g.normal(50, 15, N).round(2), np.array(["f", "m"])[g.integers(2, size=N)]
    return pd.DataFrame(
        {
            "age": age,
            "ward": np.repeat(["east", "west"], N // 2),
            "sex": sex,
            "smoker": g.random(N) < 0.5,
            "visits": g.integers(9, size=N),
            "day": pd.date_range("2024-01-01", periods=N).strftime("%Y-%m-%d"),
            "state": np.where((age > 50) ^ (sex == "f"), "ill", "well"),
        }
    )


def write(frame: pd.DataFrame, scheme: str, folder: Path) -> Any:
    """The source of a table in one of its forms."""
    path = folder / f"t.{scheme}"
    if scheme == "frame":
        return frame
    if scheme == "csv":
        frame.to_csv(path, index=False)
    elif scheme == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=scheme == "jsonl", date_format="iso", double_precision=15)
    return f"{'json' if scheme == 'jsonl' else scheme}:{path}"


SOURCES = ("frame", "csv", "parquet", "json", "jsonl")
ROLES: dict[str, Any] = {"target": "state", "client": "ward", "order": "day"}


@pytest.mark.parametrize("scheme", SOURCES[1:])
def test_a_table_gives_the_same_samples_from_each_source(scheme: str, tmp_path: Path) -> None:
    whole = floco.load(patients(), **ROLES)
    found = floco.load(write(patients(), scheme, tmp_path), **ROLES)
    assert found.split(floco.Natural()).fingerprint() == whole.split(floco.Natural()).fingerprint()
    assert whole.x.shape == (N, 6)
    assert whole.names == ("ill", "well")
    assert whole.forms[""].features == ("age", "visits", "sex=f", "sex=m", "smoker=false", "smoker=true")
    assert whole.split(floco.Natural()).clients[0].test.tolist() == [16, 17, 18, 19]  # the latest, by `order` of load


KINDS: dict[str, Any] = {
    "int": I % 7,
    "float": I * 0.25 + 0.1,
    "whole float": (I % 3).astype(float),
    "uint8": (I % 4).astype("u1"),
    "bool": I % 3 == 0,
    "text": XYZ,
    "categorical": pd.Series(XYZ).astype("category"),
    "Int64": pd.Series(I % 5).astype("Int64"),
    "boolean": pd.Series(I % 3 == 0).astype("boolean"),
    "string": pd.Series(XYZ).astype("string"),
    "datetime": pd.date_range("2024-01-01", periods=N),
    "zoned": pd.date_range("2024-01-01", periods=N, tz="Europe/Berlin"),
    "date": [datetime.date(2024, 1, 1) + datetime.timedelta(int(k)) for k in I],
    "mixed": [1, "x"] * (N // 2),
    "Decimal": [decimal.Decimal(int(k)) / 4 for k in I],
    "codes": [f"{k % 9:03d}" for k in I],
    "big": 2**60 + I // 2,
    "list": [[1, 2]] * N,
    "holes": pd.Series([None if k % 9 == 0 else k for k in I], dtype="Int64"),
    "NA": ["NA" if k % 9 == 0 else "DE" if k % 2 else "FR" for k in I],
    "nearly": ["?" if k == 3 else str(k) for k in I],
    "comma": [f"{k},5" for k in I],
    "names": [f"id{k}" for k in I],
}
BAD = {  # what is refused, in which role
    "feature": {
        "datetime",
        "zoned",
        "date",
        "mixed",
        "codes",
        "big",
        "list",
        "holes",
        "NA",
        "nearly",
        "comma",
        "names",
    },
    "target": {"float", "datetime", "zoned", "date", "mixed", "Decimal", "list", "holes", "NA", "comma"} | {"nearly"},
    "client": {"float", "datetime", "zoned", "date", "mixed", "Decimal", "list", "holes"},
    "order": {"text", "categorical", "string", "mixed", "list", "holes", "NA", "nearly", "comma", "names"},
}
ONLY_TEXT = {  # what a CSV file cannot tell: these are words there, and JSON has no dates
    ("client", "datetime"),
    ("client", "zoned"),
    ("client", "date"),
    ("client", "mixed"),
    ("client", "list"),
    ("target", "mixed"),
    ("target", "list"),
    ("feature", "list"),
}


@pytest.mark.parametrize("role", BAD)
@pytest.mark.parametrize("kind", KINDS)
def test_each_type_in_each_role_is_right_or_refused(kind: str, role: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": I * 0.5 + 3, "t": np.where(I % 2, "p", "q"), "c": np.repeat(["u", "v"], N // 2)})
    frame["k"] = KINDS[kind]
    roles = {"target": "t", "client": "c", **({role: "k"} if role != "feature" else {})}
    kept = frame if role != "target" else frame.drop(columns="t")
    found: dict[str, Samples] = {}
    for scheme in SOURCES[:4]:
        if kind == "mixed" and scheme == "parquet":
            continue
        try:
            made = floco.load(write(kept, scheme, tmp_path), **roles)  # type: ignore[arg-type]
            if role == "order":
                made.split(floco.Natural())
            found[scheme] = made
        except FlocoError:
            continue
    texts = {"csv", "json"} if (role, kind) in ONLY_TEXT else set()
    if kind in BAD[role]:
        assert not set(found) - texts
        return
    assert set(found) - texts >= {"frame", "parquet"}
    if role == "order" and kind in ("bool", "boolean"):
        del found["json"]  # CSV has words
    first = found["frame"]
    for other in found.values():
        assert torch.equal(first.x, other.x)
        assert (first.y == other.y).all()
        assert first.names == other.names
        assert first.columns.keys() == other.columns.keys()
    if role == "client":
        texts_ = [str(v) for v in np.asarray(KINDS[kind], dtype=object)]
        whole = [str(int(v)) for v in KINDS[kind]] if kind == "whole float" else texts_
        assert first.columns["client"].astype(str).tolist() == whole
    if role == "feature" and kind in ("int", "float", "uint8", "Int64", "Decimal", "whole float"):
        assert first.x[:, 1].tolist() == pytest.approx([float(v) for v in KINDS[kind]])
    if role == "feature" and kind in ("text", "string", "categorical"):
        assert first.x[:, 1:].argmax(1).tolist() == (I % 3).tolist()


FILES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "is empty"),
    "only the names": ("a,y\n", "holds no rows"),
    "one column": ("y\n1\n2\n", "one feature at least"),
    "ragged": ("a,y\n1,2\n1,2,3\n", r"line 3: there are 3 cells, and 2 columns"),
    "twice": ("a,a,y\n1,2,3\n", "several columns have the same name: 'a'"),
    "no names": ("1,2\n3,4\n", "the first line must hold the names"),
    "latin": ("a,y\n1,caf\xe9\n".encode("latin-1"), "is not UTF-8 .* iconv"),
    "an index": (",a,y\n0,1,2\n1,3,4\n", "a column without a name is probably the number of the row"),
    "both separators": ("a;b,y\n1,2,3\n", "separated by commas or semicolons"),
    "a quote": ('a,y\n"1,2\n', "line 2"),
    "thousands": ("a,y\n1 234,2\n5,3\n", "none: '1 234'"),
    "infinite": ("a,y\ninf,2\n5,3\n", "none: 'inf'"),
    "decimal commas": ("a;y\n1,5;2\n2,5;3\n", "none: '1,5', '2,5'"),
    "a blank": ("a,y\nred,1\nred ,2\nblue,1\n", "with and without blanks"),
    "equal": ("a,y\n0,0\n1,1\n0,0\n", "the feature 'a' equals the target 'y'"),
}


@pytest.mark.filterwarnings("ignore:.*columns are separated by semicolons")
@pytest.mark.parametrize("what", FILES)
def test_a_file_that_is_no_clear_table_is_refused(what: str, tmp_path: Path) -> None:
    content, words = FILES[what]
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FlocoError, match=words):
        floco.load(f"csv:{tmp_path / 't.csv'}", target="y")


@pytest.mark.filterwarnings("ignore:.*columns are separated by semicolons")
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("first", ["", "sep=;", "SEP=;", "\ufeffsep=;"])
@pytest.mark.parametrize("last", ["", ";"])
def test_lines_as_spreadsheets_write_them_are_read(first: str, last: str, end: str, tmp_path: Path) -> None:
    path, whole = tmp_path / "a.csv", patients()
    lines = [line + last for line in whole.to_csv(sep=";", index=False).splitlines()]
    path.write_bytes(end.join([first, *lines] if first else lines).encode())
    pd.testing.assert_frame_equal(read_frame(str(path), "csv"), whole.astype(str), check_dtype=False)


@pytest.mark.parametrize(("separator", "words"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
def test_another_separator_is_found_and_said(separator: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    patients().to_csv(path, sep=separator, index=False, encoding="utf-8-sig", lineterminator="\r\n")
    with pytest.warns(UserWarning, match=f"separated by {words}"):
        found = floco.load(f"csv:{path}", **ROLES)
    assert torch.equal(found.x, floco.load(patients(), **ROLES).x)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": "stat"}, "data.target: .* no column 'stat'; did you mean 'state'"),
        ({"target": "state", "client": "wards"}, "data.client: .*did you mean 'ward'"),
        ({"target": "state", "order": "days"}, "data.order: .*did you mean 'day'"),
        ({"target": "state", "order": "x"}, "data.order: .* called 'x'.*rename it"),
        ({"target": "state", "order": "y"}, "data.order: .* called 'y'.*rename it"),
        ({"target": "state", "order": "names"}, "data.order: .* called 'names'.*rename it"),
        ({"target": "state", "order": "x_test"}, "data.order: .* called 'x_test'.*rename it"),
        ({"target": "state", "order": "x.a"}, "data.order: .* called 'x.a'.*rename it"),
        ({"target": "state", "features": ["ages"]}, "data.features: .*did you mean 'age'"),
        ({"target": "state", "leave_out": ["dya"]}, "data.leave_out: .* no column 'dya'; did you mean 'day'"),
        ({"target": "state", "leave_out": "state"}, "data.leave_out must not hold 'state', which has another role"),
        ({"target": "state", "leave_out": ["ward"], "client": "ward"}, "leave_out must not hold 'ward'"),
        ({"target": "state", "leave_out": ["age"], "features": ["age"]}, "leave_out must not hold 'age'"),
        ({"target": "state", "leave_out": ["day"], "order": "day"}, "leave_out must not hold 'day'"),
        ({"target": "state", "leave_out": ["sex"], "group": "sex"}, "leave_out must not hold 'sex'"),
        ({"target": "state", "leave_out": ["sex"], "levels": ["sex=f"]}, "no feature 'sex'"),
        ({"target": "state", "labels": ["home"], "leave_out": "day"}, "labels as the data have them: recode"),
        ({"target": "state", "features": ["age", "state"]}, "must not hold the target 'state'"),
        ({"target": "state", "features": ["age", "age"]}, "name each column once"),
        ({"target": "state", "client": "state"}, "must be different columns"),
        ({"target": "state", "features": ["sex"], "levels": ["sex=f"]}, "'m', which data.levels does not name"),
        ({"target": "state", "features": ["sex"], "levels": ["sexf"]}, "such as sex=f, got 'sexf'"),
        ({"target": "state", "features": ["sex"], "levels": ["se=f"]}, "no feature 'se'; did you mean 'sex'"),
        ({"target": "state", "missing": "mode"}, "data.missing must be one of error, drop, mean"),
        ({"target": "state", "categories": "embed"}, "data.categories must be one of one-hot, ids"),
        ({"target": "state", "kind": "images", "features": ["age"]}, "data.kind is for arrays"),
        ({"target": "state"}, "column 'day' holds dates or times .*: name it in data.leave_out, or in data.order if"),
        ({}, "name the column of its targets in data.target; it has age, "),
    ],
)
def test_a_role_that_does_not_fit_is_refused_with_the_nearest_name(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(FlocoError, match=words):
        floco.load(patients().assign(**dict.fromkeys(("x", "y", "names", "x_test", "x.a"), I)), **settings)


@pytest.mark.parametrize("beside", [False, True], ids=["one table", "x and y"])
def test_a_column_that_is_left_out_is_no_feature_and_later_rows_may_have_it(beside: bool) -> None:
    frame = patients().rename(columns={"smoker": "client"})
    source = (frame.drop(columns="state"), frame["state"]) if beside else frame
    target = {} if beside else {"target": "state"}
    chosen = floco.load(source, leave_out=["day", "client", "ward"], **target)
    listed = floco.load(source, features=["age", "sex", "visits"], client="ward", **target)
    assert chosen.table.features == listed.table.features
    assert torch.equal(chosen.x, listed.x)
    assert "client" not in chosen.columns
    for later in (frame.drop(columns="state"), frame.drop(columns=["state", "day", "ward"])):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(chosen.schema.samples(later, "x"), chosen.x)


def test_only_columns_of_a_table_are_left_out() -> None:
    with pytest.raises(FlocoError, match=r"leave_out, levels and categories are about the columns of a table"):
        floco.load((np.ones((4, 2)), np.arange(4) % 2), leave_out="a")


def test_a_path_without_its_kind_is_answered_with_it() -> None:
    with pytest.raises(FlocoError, match="say what a file is: csv:t.csv"):
        floco.load("t.csv")
    with pytest.raises(FlocoError, match="columns of a table, and digits is none"):
        floco.load("digits", target="y")


def holed() -> pd.DataFrame:
    frame = patients().drop(columns="day")
    frame.loc[[2, 25], "age"] = None
    frame["smoker"] = frame["smoker"].astype("boolean")
    frame.loc[7, "smoker"] = None
    return frame


def split(source: Any, **more: Any) -> floco.Federation:
    return floco.load(source, target="state", client="ward", **more).split(floco.Natural(), seed=0)


@pytest.mark.parametrize("scheme", SOURCES)
def test_missing_values_are_refused_left_out_or_filled_by_the_declared_rule(scheme: str, tmp_path: Path) -> None:
    source = write(holed(), scheme, tmp_path)
    with pytest.raises(FlocoError, match=r"among 40 rows, by column: age \(2\), smoker \(1\); set data.missing"):
        split(source)
    with pytest.warns(UserWarning, match="3 of 40 rows are left out"):
        dropped = split(source, missing="drop")
    whole = split(holed().drop(index=[2, 7, 25]))
    assert torch.equal(dropped.x, whole.x)
    filled = split(source, missing="mean")
    train = torch.cat([c.train for c in filled.clients])
    ages = filled.x[train, 0].double()
    assert filled.normalization.mean[0] == pytest.approx(float(ages.nanmean()))  # of training rows only
    assert filled.normalization.mean[1:] == (filled.normalization.mean[1], 0, 0, 0, 0)  # categories are not scaled
    inputs = filled.inputs(torch.tensor([2, 7]))
    assert inputs[0, 0] == 0  # the mean
    assert inputs[1, 4:].tolist() == [0, 0]
    assert inputs.isfinite().all()


def test_a_missing_target_or_client_is_refused_whatever_the_rule() -> None:
    for column in ("state", "ward"):
        frame = patients().drop(columns="day")
        frame.loc[[1, 2, 3], column] = None
        for rule in ("error", "drop", "mean"):
            with pytest.raises(FlocoError, match=f"'{column}'.*3 of 40 are missing"):
                split(frame, missing=rule)


def test_statistics_are_those_of_training_rows_only() -> None:
    changed, first = holed(), split(holed(), missing="mean")
    tested = torch.cat([c.test for c in first.clients]).tolist()
    changed.loc[tested, "age"] *= 1.5
    assert split(changed, missing="mean").normalization == first.normalization


@pytest.mark.parametrize("missing", ["error", "drop", "mean"])
def test_the_rule_holds_for_arrays(missing: str) -> None:
    x = np.random.default_rng(0).normal(1e6, 1, (60, 3))
    y, holes = np.arange(60) % 3, np.zeros((60, 3), bool)
    holes[[4, 9], [0, 2]] = True
    given = {"x": np.where(holes, np.nan, x), "y": y, "client": np.repeat(list("ab"), 30)}
    if missing == "error":
        with pytest.raises(FlocoError, match="must be finite in float32; sample 4 is not.*data.missing"):
            floco.load(given)
        return
    if missing == "drop":
        with pytest.warns(UserWarning, match="2 of 60 samples of x are left out"):
            made = floco.load(given, missing="drop")
        kept = np.delete(np.arange(60), [4, 9])
        assert (made.y == y[kept]).all()
        assert (made.columns["client"] == given["client"][kept]).all()
        return
    federation = floco.load(given, missing="mean").split(floco.Natural())
    train = torch.cat([c.train for c in federation.clients]).numpy()
    for channel in range(3):
        known = x[train, channel][~holes[train, channel]]
        assert federation.schema.form.mean[channel] == pytest.approx(known.mean(), abs=1e-6)
        assert federation.normalization.std[channel] == pytest.approx(known.std(), rel=1e-3)
    inputs = federation.inputs(torch.arange(60))
    assert (inputs[torch.from_numpy(holes)] == 0).all()
    assert federation.schema.samples(given["x"][:5], "x").isnan().sum() == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table with missing values, from the command line."""
    folder = tmp_path_factory.mktemp("run")
    holed().assign(number=I).to_csv(folder / "t.csv", index=False)
    settings = {
        "data.leave_out": '["number"]',
        "data.source": f"csv:{folder / 't.csv'}",
        "data.target": "state",
        "data.client": "ward",
    }
    settings |= {"data.split": "natural", "data.missing": "mean", "training.rounds": "2", "algorithm.endpoints": "2"}
    settings |= {"algorithm.assign_at": "1", "run.engine": "serial", "data.test_share": "0.5"}
    chosen = [part for key, value in settings.items() for part in ("-s", f"{key}={value}")]
    done = command("run", *chosen, "--out", folder / "run")
    assert done.exit_code == 0, done.output
    return folder / "run"


@pytest.mark.filterwarnings("always:.*left out. further")
@pytest.mark.parametrize("end", [[], ["-o", "p.csv"], ["-o", "p.npz"]], ids=["print", "csv", "npz"])
def test_predictions_metrics_and_arrays_come_from_one_pass_with_one_warning(
    end: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, real = [], predict.compute_outputs_of_each

    def counting(setup: Any, models: Any, x: Any) -> Any:
        sizes.append(len(x))
        return real(setup, models, x)

    monkeypatch.setattr(predict, "compute_outputs_of_each", counting)
    monkeypatch.chdir(tmp_path)
    write(holed().head(12).assign(further=1), "csv", tmp_path)
    done = command("predict", run, "t.csv", "--client", "east", *end)
    assert done.exit_code == 0, done.output
    assert "compared with state: accuracy" in done.output
    assert (sizes.count(12), done.stderr.count("left out: further")) == (1, 1)


@pytest.mark.filterwarnings("always:.*left out. further")
@pytest.mark.parametrize("scheme", SOURCES[1:])
def test_predictions_go_by_the_names_of_columns(scheme: str, run: Path, tmp_path: Path) -> None:
    rows = holed().head(12)
    whole = floco.open_run(run).predict(rows, "east")
    shuffled = rows[["visits", "state", "smoker", "sex", "age"]].assign(further=1, number=2)
    source = write(shuffled, scheme, tmp_path).partition(":")[2]
    with pytest.warns(UserWarning, match="left out: further"):
        pd.testing.assert_frame_equal(floco.open_run(run).predict(shuffled, "east"), whole)
    done = command("predict", run, source, "--client", "east", "--json")
    assert done.exit_code == 0, done.output
    assert "does not use are left out: further\n" in done.stderr
    known = json.loads(done.stdout)["metrics"]["accuracy"]
    assert f"compared with state: accuracy {100 * known:.1f} %, balanced" in done.stderr
    assert known == np.mean(whole["label"].to_numpy() == rows["state"].to_numpy())
    means = command("predict", run, source, "--client", "east", "--mixtures", "2")
    assert "not compared with state: --mixtures averages" in " ".join(means.output.split())
    assert [p["label"] for p in json.loads(done.stdout)["predictions"]] == whole["label"].tolist()
    write(shuffled.drop(columns="visits"), scheme, tmp_path)
    done = command("predict", run, source, "--client", "east")
    assert done.exit_code == 2
    assert "must have the columns visits, as the training data" in done.stderr


def test_later_rows_with_unknown_or_missing_values_are_told_or_filled(run: Path) -> None:
    opened, rows = floco.open_run(run), holed().head(6)
    rows["sex"] = ["f", "m", "d", "f", "x", "d"]
    with pytest.warns(UserWarning, match=r"3 of 6 rows have a category of 'sex' .* none of the known ones: 'd', 'x'"):
        found = opened.predict(rows, "east")
    assert found["probability"].notna().all()
    hollow = rows.assign(age=["NA"] * 6, sex=[f"kind {i}" for i in range(6)])
    with pytest.warns(UserWarning, match="6 of 6 rows have a category"):
        assert opened.predict(hollow, "east")["probability"].notna().all()
    with pytest.raises(FlocoError, match="'age' must hold numbers, as the training data; got 'old': if .* data.levels"):
        opened.predict(rows.assign(age="old"), "east")
    with pytest.warns(UserWarning, match="channel 'age'|'sex'"), pytest.raises(FlocoError, match="in channel 'age'"):
        opened.predict(rows.assign(age=4e4), "east")


def test_place_and_drift_read_tables(run: Path, tmp_path: Path) -> None:
    write(holed(), "csv", tmp_path)
    for more in (["-o", tmp_path / "new.safetensors"], ["--check", "--client", "east"]):
        done = command("place", run, tmp_path / "t.csv", *more)
        assert done.exit_code == 0, done.output
    holed().drop(columns="state").to_csv(tmp_path / "t.csv", index=False)
    done = command("place", run, tmp_path / "t.csv")
    assert done.exit_code == 2
    assert "must hold the targets" in done.stderr


def by_the_recipe(file: Path, x: np.ndarray) -> np.ndarray:
    """Probabilities by the lines of the page for the network of this run; x is not scaled yet."""
    (code,) = re.findall(r"```python\n(.*?safetensors.*?)```", (DOCS / "docs" / "models.md").read_text(), re.S)
    np.save(file.with_name("samples.npy"), x)
    for old, new in {"64, 128": f"{x.shape[1]}, 128", "128, 10": "128, 2"}.items():
        code = code.replace(f"nn.Linear({old})", f"nn.Linear({new})")
    for name in ("north.safetensors.json", "north.safetensors", "samples.npy"):
        code = code.replace(f'"{name}"', repr(str(file.with_name(name.replace("north", "m")))))
    names: dict[str, Any] = {}
    exec(compile(code, "docs/models.md", "exec"), names)
    return names["probabilities"].numpy()


@pytest.mark.parametrize("kind", ["pt2", "onnx", "safetensors"])
def test_exported_models_fill_missing_values(kind: str, run: Path, tmp_path: Path) -> None:
    opened = floco.open_run(run)
    schema = opened.setup.federation.schema
    rows = holed().head(9)
    wanted = opened.predict(rows, "east")["p(ill)"].to_numpy()
    (file,) = opened.export(tmp_path / f"m.{kind}", ["east"])
    raw = schema.samples(rows, "x")
    assert raw.isnan().any()
    if kind == "pt2":
        found = torch.export.load(file).module()(raw)[1].detach().numpy()
    elif kind == "safetensors":
        found = by_the_recipe(file, raw.numpy())
    else:
        import onnxruntime

        session_ = onnxruntime.InferenceSession(file)
        found = session_.run(None, {session_.get_inputs()[0].name: raw.numpy()})[1]
    assert found[:, 0] == pytest.approx(wanted, abs=1e-5)
    card = json.loads(file.with_name(f"{file.name}.json").read_text())
    assert card["input"]["columns"][:3] == ["age", "visits", "sex=f"]
    assert card["input"]["missing"] == "mean"
    text = file.with_name(f"{file.name}.md").read_text()
    assert "NaN stands for a missing value" in text
    assert ("(NaN) replaced by 0, which is the mean" in text) == (kind == "safetensors")


class Embedding(nn.Module):
    def __init__(self, ids: dict[str, int], classes: int) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(n, 3) for name, n in ids.items()})
        self.head = nn.Linear(2 + 3 * len(ids), classes)

    def forward(self, numbers: torch.Tensor, **ids: torch.Tensor) -> torch.Tensor:
        found = [self.tables[name](values) for name, values in ids.items()]
        result: torch.Tensor = self.head(torch.cat([numbers, *found], dim=1))
        return result


def test_categories_as_ids_are_inputs_of_their_own_and_never_scaled() -> None:
    frame = patients().drop(columns="day")
    federation = split(frame, categories="ids")
    assert federation.x["sex"].tolist() == (frame["sex"] == "m").astype(int).tolist()
    assert federation.inputs(torch.arange(N))["sex"].dtype == torch.int64
    model = floco.model("test_tables:Embedding", federation)
    assert [t.num_embeddings for t in model().tables.values()] == [2, 2]
    found = floco.fit(model, federation, floco.FedAvg(), rounds=1, engine="serial")
    assert len(found.predict(frame[["sex", "age", "smoker", "visits"]])) == N
    with pytest.raises(FlocoError, match="'sex' must hold one of f, m, as the training data; got 'd'"):
        found.predict(frame.assign(sex="d"))
    with pytest.raises(FlocoError, match="cannot be an argument of forward"):
        split(frame.rename(columns={"sex": "the sex"}), categories="ids")


@pytest.mark.parametrize("text", sorted(MISSING))
def test_a_text_for_missing_values_is_one_in_features_and_in_targets(text: str) -> None:
    frame = pd.DataFrame({"n": range(40), "c": ["a", "b", text, "b"] * 10, "y": ["yes", "no"] * 20})
    with pytest.raises(FlocoError, match=re.escape(text)):
        floco.load(frame, target="y")
    with pytest.raises(FlocoError, match=f"10 of 40 labels are '{re.escape(text)}'"):
        floco.load(frame[["n", "c"]].rename(columns={"c": "y"}), target="y")


def test_declared_levels_are_categories_though_they_look_like_numbers_or_do_not_occur() -> None:
    frame = pd.DataFrame({"zip": ["10115", "04109"] * 20, "land": ["NA", "DE"] * 20, "y": [0, 1, 1, 0] * 10})
    with pytest.raises(FlocoError, match="'04109'"):
        floco.load(frame, target="y")
    levels = ["zip=04109", "zip=10115", "zip=20095", "land=DE", "land=NA"]
    found = floco.load(frame, target="y", levels=levels)
    assert found.forms[""].features == tuple(levels)
    assert found.x[0].tolist() == [0, 1, 0, 0, 1]
    assert found.table is not None
    assert found.table.encode(frame, "t").tolist() == found.x.tolist()


def test_numbers_as_targets_of_regression_and_several_targets() -> None:
    frame = patients().drop(columns=["day", "state"]).assign(weight=I * 0.5, height=I % 7)
    one = floco.load(frame.astype(str), target="weight", task="regression")
    assert one.y.tolist() == (I * 0.5).tolist()
    both = floco.load(frame, target=("weight", "height"), task="regression")
    assert both.y.shape == (N, 2)
    assert both.names == ("weight", "height")
    with pytest.raises(FlocoError, match="target 'weight' must hold numbers, got 'x'"):
        floco.load(frame.assign(weight=["x", *["1"] * (N - 1)]), target="weight", task="regression")


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_several_targets_go_by_their_names_wherever_they_come_as_a_table(task: str) -> None:
    both = pd.DataFrame({"weight": I % 2, "height": I % 3 > 1}).astype(float)
    x, swapped = np.arange(2.0 * N).reshape(N, 2), both[["height", "weight"]]
    frame = pd.DataFrame(x, columns=["a", "b"]).assign(**both)
    for made in (floco.load((x, both), task=task), floco.load(frame, target=list(both), task=task)):
        assert made.names == ("weight", "height")
        for given in (both, swapped, swapped.assign(more=1), both.to_numpy()):
            assert made.schema.targets(given, "y").numpy().tolist() == both.to_numpy().tolist()
        with pytest.raises(FlocoError, match="y must have the columns weight, height, .*; got weight, size"):
            made.schema.targets(both.set_axis(["weight", "size"], axis=1), "y")
    parts = floco.load({"x_train": x, "y_train": both, "x_test": x, "y_test": swapped}, task=task)
    assert parts.y_test is not None
    assert parts.y_test.tolist() == parts.y.tolist()
    unnamed = pd.DataFrame(both.to_numpy())
    assert floco.load((x, unnamed), task=task).schema.targets(unnamed, "y").shape == (N, 2)


def test_later_targets_are_read_as_those_of_the_training_data() -> None:
    frame = patients().drop(columns=["day", "state"]).assign(weight=I * 0.5)
    table = floco.load(frame, target="weight", task="regression").table
    assert table is not None
    found = table.targets(frame.astype(str), "t")
    assert found is not None
    assert found.dtype == np.float64
    assert table.targets(frame.assign(weight=None), "t") is None
    assert table.targets(frame.drop(columns="weight"), "t") is None


LABELS: dict[str, tuple[Any, Any]] = {  # of two classes, and the labels of another class
    "integers": (I % 2, 5),
    "floats": (I % 2 * 1.0, 5.0),
    "text": ((I % 2).astype(str), "5"),
    "text of floats": ((I % 2 * 1.0).astype(str), "5.0"),
}


@pytest.mark.parametrize("later", LABELS)
@pytest.mark.parametrize("first", LABELS)
def test_a_whole_number_is_one_label_however_a_table_has_it(first: str, later: str) -> None:
    frame = patients().drop(columns=["day", "state"])
    made = floco.load(frame.assign(label=LABELS[first][0]), target="label")
    assert made.names == ("0", "1")
    assert made.table is not None

    def targets(labels: Any) -> Any:
        return made.schema.targets(made.table.targets(frame.assign(label=labels), "t"), "t")

    good, other = LABELS[later]
    assert targets(good).tolist() == (I % 2).tolist()
    with pytest.raises(FlocoError, match="does not know: 5"):
        targets([other] * N)
    words = floco.load(frame.assign(label=np.where(I % 4 > 1, "none", LABELS[first][0].astype(str))), target="label")
    assert words.names == ("0", "1", "none")  # among words, too


@pytest.mark.parametrize("train", ["i8", "f4", "f8"])
@pytest.mark.parametrize("test", ["i8", "f4", "f8"])
def test_whole_floats_of_arrays_are_labels_in_training_and_test_part(train: str, test: str) -> None:
    x, y = np.random.default_rng(0).normal(size=(N, 3)), I % 2
    made = floco.load({"x_train": x, "y_train": y.astype(train), "x_test": x, "y_test": y.astype(test)})
    assert made.names == ("0", "1")
    assert made.y.tolist() == np.asarray(made.y_test).tolist() == y.tolist()


def test_many_whole_numbers_as_labels_are_questioned_and_floats_refused() -> None:
    x = np.arange(300.0)[:, None]
    with pytest.warns(UserWarning, match="y holds 150 different whole numbers, .* set task.name = regression"):
        floco.load((x, np.arange(300) // 2))
    with pytest.raises(FlocoError, match="holds 30 different whole numbers, .* = regression; .* without a point"):
        floco.load((x, np.arange(300) // 10 * 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        floco.load((x, np.arange(300) // 3))
        floco.load((x, np.arange(300) // 2), labels=[str(i) for i in range(150)])
        floco.load((x, np.arange(300) // 10 * 1.0), labels=[str(i) for i in range(30)])


def test_a_series_of_ids_in_another_order_than_the_rows_is_refused() -> None:
    frame = patients().drop(columns=["day", "ward"])
    ids = pd.Series(np.repeat(["a", "b"], N // 2), index=frame.index[::-1])
    with pytest.raises(FlocoError, match=r"index is not that of the rows.*client.loc"):
        floco.load(frame, target="state", client=ids)
    y = frame["state"].iloc[::-1]
    for given in (
        (frame[["age"]], y),
        {"x": frame[["age"]], "y": y},
        {"x": frame[["age"]], "y": frame["state"], "client": ids},
    ):
        with pytest.raises(FlocoError, match="is a Series whose index is not that of the rows"):
            floco.load(given)
    again = floco.load(frame, target="state", client=ids.loc[frame.index]).split(floco.Natural())
    assert set(again.ids) == {"a", "b"}


class Items:
    """A data set whose items are made by a function of their number."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __len__(self) -> int:
        return 30

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.make(i), i % 2


BUFFER = np.zeros(3)


def buffered(i: int) -> np.ndarray:
    BUFFER[:] = i
    return BUFFER


ITEMS: dict[str, Any] = {
    "an array that is used again": buffered,
    "a tensor that is trained": lambda i: torch.full((3,), float(i), requires_grad=True),
    "bfloat16": lambda i: torch.full((3,), float(i), dtype=torch.bfloat16),
    "a list of numbers": lambda i: [float(i)] * 3,
}


@pytest.mark.parametrize("kind", ITEMS)
def test_items_of_a_data_set_are_copied_whatever_they_are(kind: str) -> None:
    samples: Any = floco.load(Items(ITEMS[kind]))
    assert samples.x[:, 0].tolist() == list(range(30))


@pytest.mark.parametrize("kind", [dict, tuple])
def test_items_with_several_inputs_give_several_inputs(kind: Any) -> None:
    def make(i: int) -> Any:
        parts = {"a": torch.tensor([1.0 * i]), "b": torch.tensor([i])}
        return parts if kind is dict else tuple(parts.values())

    x: Any = floco.load(Items(make)).x
    assert type(x) is kind
    assert [c.dtype for c in (x.values() if kind is dict else x)] == [torch.float32, torch.int64]


def test_ids_beside_a_table_or_a_pair_are_its_clients() -> None:
    ids, frame = np.repeat(["a", "b"], N // 2), patients().drop(columns=["day", "ward"])
    for given, more in ((frame, {"target": "state"}), ((frame[["age"]], frame["state"]), {})):
        assert floco.load(given, client=ids, **more).split(floco.Natural()).ids == ("a", "b")
    with pytest.raises(FlocoError, match="one id for each of the 40 rows"):
        floco.load(frame, target="state", client=ids[1:])


BESIDE: dict[str, Any] = {  # a role, given as values beside a table that has them: the source and arguments of load
    "client": lambda t, as_: ((t, {"target": "state", "client": as_(t["ward"])}), "client", "ward"),
    "client of a pair": lambda t, as_: (
        ((t.drop(columns="state"), t["state"]), {"client": as_(t["ward"])}),
        "client",
        "ward",
    ),
    "target": lambda t, as_: (((t, as_(t["state"])), {}), "target", "state"),
    "target of numbers": lambda t, as_: (((t[["age", "visits"]], as_(t["visits"])), {}), "target", "visits"),
    "order": lambda t, as_: (({"x": t, "y": I % 2, "when": as_(t["age"])}, {"order": "when"}), "order", "age"),
}


@pytest.mark.parametrize("as_", [lambda s: s, np.asarray, list], ids=["Series", "array", "list"])
@pytest.mark.parametrize("role", BESIDE)
def test_a_column_that_is_given_beside_its_table_is_no_feature_and_that_is_said(role: str, as_: Any) -> None:
    (source, more), what, name = BESIDE[role](patients().drop(columns="day"), as_)
    with pytest.warns(UserWarning, match=f"the {what} given beside the table is its column '{name}', which is no feat"):
        made = floco.load(source, **more)
    assert not [f for f in made.forms[""].features if f.split("=")[0] == name]
    assert {f.split("=")[0] for f in made.forms[""].features} >= {"age", "visits"} - {name}


def test_a_column_given_as_a_series_is_named_and_a_feature_if_it_is_listed() -> None:
    frame = patients()
    named = floco.load(frame, target="state", client="ward", order="day")
    given = floco.load(frame, target=frame["state"], client="ward", order=frame["day"])  # type: ignore[arg-type]
    assert given.split(floco.Natural()).fingerprint() == named.split(floco.Natural()).fingerprint()
    kept = floco.load(frame, target="state", client=frame["ward"], features=["age", "ward"])
    assert kept.forms[""].features == ("age", "ward=east", "ward=west")
    for role in ("target", "order"):
        with pytest.raises(FlocoError, match=f"{role} must be the name of a column, got a Series that is no column"):
            floco.load(frame, **{"target": "state", role: pd.Series(range(N))})


def test_the_column_client_of_a_table_beside_targets_is_no_feature() -> None:
    frame = patients()[["age", "visits"]].assign(client=N // 2 * [7] + N // 2 * [8])
    y = np.asarray(patients()["state"])
    made = floco.load((frame, y))
    assert made.schema.form.features == ("age", "visits")
    assert made.split(floco.Natural()).ids == ("7", "8")
    assert made.schema.samples(frame, "x").shape == (N, 2)
    named = floco.load((frame, y), features=["age", "client"])
    assert named.schema.form.features == ("age", "client")
    for x in (frame, frame.assign(sex=patients()["sex"])):
        with pytest.raises(FlocoError, match="has a column client already"):
            floco.load((x, y), client=y)
        with pytest.raises(FlocoError, match="x_test must be a table, as x_train"):
            floco.load({"x_train": x, "y_train": y, "x_test": x.to_numpy(), "y_test": y})


def test_a_pair_with_text_columns_is_a_table_and_its_test_part_may_have_unknown_categories() -> None:
    frame = patients()[["age", "sex"]]
    y = np.asarray(patients()["state"])
    test = frame.head(4).assign(sex=["f", "d", *frame["sex"][2:4]])[["sex", "age"]]
    with pytest.warns(UserWarning, match="1 of 4 rows have a category of 'sex'"):
        made = floco.load({"x_train": frame, "y_train": y, "x_test": test, "y_test": y[:4]})
    assert made.x_test is not None
    assert made.x_test[1, 1:].tolist() == [0, 0]
    assert torch.equal(made.x_test[2], made.x[2])


class Mapped:
    """A data set of torch: it has a length and items."""

    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        return self.item(i)


def picture(i: int) -> Any:
    from PIL import Image

    return Image.fromarray(np.full((4, 4), i, np.uint8))


@pytest.mark.parametrize(
    ("item", "shape"),
    [
        (lambda i: (torch.full((3, 8, 8), float(i)), i % 2), (12, 3, 8, 8)),
        (lambda i: (np.full(5, float(i)), np.int64(i % 2)), (12, 5)),
        (lambda i: (picture(i), "ab"[i % 2]), (12, 1, 4, 4)),
    ],
)
def test_a_data_set_of_torch_is_read_once_into_arrays(item: Callable[[int], Any], shape: tuple[int, ...]) -> None:
    made = floco.load(Mapped(item))
    assert made.x.shape == shape
    assert made.x.reshape(12, -1)[:, 0].tolist() == list(range(12))
    assert made.y.tolist() == [0, 1] * 6


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (lambda i: (torch.rand(3), i % 2), "item 0 of the data set differs each time .* data.augment"),
        (lambda i: (torch.zeros(3 + i % 2), i % 2), r"x of one shape, got \(3,\) and \(4,\)"),
        (lambda i: {"x": i}, "must be a pair"),
        (lambda i: (torch.zeros(3), 1 / (i - 3)), "item 3 of the data set cannot be read: ZeroDivisionError"),
    ],
)
def test_a_data_set_of_torch_that_is_none_of_arrays_is_refused(item: Callable[[int], Any], words: str) -> None:
    with pytest.raises(FlocoError, match=words):
        floco.load(Mapped(item))


def test_what_can_only_be_iterated_over_is_refused() -> None:
    class Stream(torch.utils.data.IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter([])

    with pytest.raises(FlocoError, match="can only be iterated over"):
        floco.load(Stream())


def test_a_data_set_of_the_hub_is_a_table_if_a_target_is_named() -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    named = {"colour": ClassLabel(names=["red", "blue"]), "y": ClassLabel(names=["no", "yes"])}
    kinds = Features({"n": Value("int64"), **named})
    data = Dataset.from_dict({"n": list(range(8)), "colour": [0, 1] * 4, "y": [0, 0, 1, 1] * 2}, features=kinds)
    made = floco.load(data, target="y")
    assert made.forms[""].features == ("n", "colour=blue", "colour=red")
    assert made.x[:2].tolist() == [[0, 0, 1], [1, 1, 0]]
    assert made.names == ("no", "yes")


def test_further_arrays_of_another_length_are_left_alone() -> None:
    arrays = {"x": np.zeros((9, 4)), "y": np.arange(9) % 3, "feature_names": np.array(list("abcd"))}
    assert "feature_names" not in floco.load(arrays).columns
    with pytest.raises(FlocoError, match="the column client must have one value"):
        floco.load({**arrays, "client": np.arange(4)})


def site_config(folder: Path, **data: str) -> Config:
    settings = {"data.source": f"csv:{folder / 'north.csv'}", "data.target": "state", "data.missing": "mean", **data}
    chosen = [f"{key}={value}" for key, value in settings.items()]
    return share_schema(read(None, chosen))


def test_sites_agree_on_columns_and_categories_and_fill_in_the_common_mean(tmp_path: Path) -> None:
    frame = holed()
    parts = {"north": frame[frame["ward"] == "east"], "south": frame[frame["ward"] == "west"].sample(frac=1, axis=1)}
    for name, part in parts.items():
        part.drop(columns="ward").to_csv(tmp_path / f"{name}.csv", index=False)
    config = site_config(tmp_path)
    assert config.data.levels == ("sex=f", "sex=m", "smoker=false", "smoker=true")
    text, facts = json.dumps(as_dict(config)), {}
    for name in parts:
        where = {"client-id": name, "data": str(tmp_path / f"{name}.csv"), "state-dir": str(tmp_path / name)}
        report = {"format": FORMAT, "client": name, **introduce(SiteConfig.of(where), text)}
        facts[name] = admit(report, config, facts)[1]
    agreed = agree(config, facts)
    found = Normalization(agreed.data.mean, agreed.data.std)
    assert found.mean[0] < frame["age"].max()
    one = source.federation(SiteConfig.of(where).config(json.dumps(as_dict(agreed))))
    assert one.normalization == Normalization((*found.mean[:2], 0, 0, 0, 0), (*found.std[:2], 1, 1, 1, 1))
    told = {**json.loads(str(report["facts"])), "table": ["another"]}
    with pytest.raises(FlocoError, match="the columns of its table are another, and those of the other sites age, sex"):
        admit({**report, "client": "west", "facts": json.dumps(told)}, config, facts)


def test_paths_of_tables_are_absolute_and_hidden_in_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for scheme in ("csv", "parquet", "json"):
        config = read(None, [f"data.source={scheme}:t.{scheme}"])
        assert source.resolve_paths(config).data.source == f"{scheme}:{tmp_path / f't.{scheme}'}"
        assert source.show_source(source.resolve_paths(config)) == f"{scheme}:t.{scheme}"


def test_the_schema_knows_the_columns() -> None:
    table = split(patients(), order="day").schema.table
    assert isinstance(table, Columns)
    assert table.features == ("age", "sex", "smoker", "visits")
    assert dict(table.levels) == {"sex": ("f", "m"), "smoker": ("false", "true")}
    scaling = {row["name"]: row["scaling"] for row in describe_schema(split(patients(), order="day"))}
    assert [name for name, words in scaling.items() if words == "not scaled"] == list(table.pairs)
    assert "mean 0 " not in scaling["x"]


DOCS = Path(__file__).parents[1]


def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = re.search(r"start:file\](.*?)# --8<-- \[end:file", (DOCS / "examples" / "tables.py").read_text(), re.S)
    assert made is not None
    exec(compile(made[1], "tables.py", "exec"), {"np": np, "pd": pd})
    page = (DOCS / "docs" / "tables.md").read_text()
    (settings,) = re.findall(r"{ .toml }\n(.*?)```", page, re.S)
    Path("patients.toml").write_text(settings)
    lines = re.findall(r"^    floco (.*)$", page, re.M)
    assert len(lines) == 3
    for line in lines:
        done = command(*line.split(), *(["-s", "run.engine=serial"] if line.startswith("run") else []))
        assert done.exit_code == 0, (line, done.output)
    assert len(pd.read_csv("predictions.csv")) == 200
