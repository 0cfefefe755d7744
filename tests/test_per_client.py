"""data.normalize = "client": each client's samples with mean and deviation of its own training part."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

import floco as package
from conftest import floco
from floco.core.errors import FlocoError
from floco.core.inputs import columns
from floco.data.partition import Natural
from floco.data.per_client import normalize_by_client
from floco.data.schema import Form

N, SITES = 60, ("east", "north", "south")
UNITS = {"east": (1.0, 0.0), "north": (250.0, 3e4), "south": (1e-3, -0.3)}


def measured(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=(3 * N, 4))
    return x, (x[:, 0] + 0.3 * rng.normal(size=len(x)) > 0).astype(int)


def in_units(x: np.ndarray) -> np.ndarray:
    """The same measurements, in each site's own units."""
    factor, shift = (np.repeat([UNITS[s][i] for s in SITES], N)[:, None] for i in (0, 1))
    return x * factor + shift


def split(x: Any, y: np.ndarray, normalize: str = "client", **more: Any) -> Any:
    arrays = {"x": x, "y": y, "client": np.repeat(SITES, N)}
    loaded = package.load(arrays, **more.pop("load", {}))
    return loaded.split(Natural(), normalize=normalize, **more)


def pictures(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, size=(3 * N, 5, 5, 3)).astype(np.uint8)


def holes(rng: np.random.Generator) -> np.ndarray:
    x = in_units(rng.normal(size=(3 * N, 4)))
    return np.where(rng.random(x.shape) < 0.1, np.nan, x)


KINDS = {
    "features": (lambda g: in_units(g.normal(size=(3 * N, 4))), {}),
    "float32": (lambda g: g.normal(3, 2, size=(3 * N, 4)).astype(np.float32), {}),
    "large offsets": (lambda g: 1.7e9 + g.normal(size=(3 * N, 4)), {}),
    "pictures": (pictures, {}),
    "time first": (lambda g: g.normal(size=(3 * N, 12, 2)), {"channels": "last"}),
    "missing values": (holes, {"missing": "mean"}),
    "several": (lambda g: {"a": g.normal(size=(3 * N, 2)), "ids": g.integers(0, 9, size=(3 * N, 3))}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_training_part_has_mean_zero_and_deviation_one(kind: str) -> None:
    make, load = KINDS[kind]
    rng = np.random.default_rng(0)
    x, y = make(rng), rng.integers(0, 2, size=3 * N)
    federation = split(x, y, load=load)
    for client in federation.clients:
        for name, column in columns(federation.inputs(client.train)).items():
            if name == "ids":
                assert torch.equal(column, torch.from_numpy(x["ids"])[client.train])
                continue
            channels = -1 if kind == "time first" else 1
            values = column.movedim(channels, 0).flatten(1).double()
            assert values.mean(1).abs().max() < 1e-4
            if kind != "missing values":  # they are at the mean, so that the deviation is smaller
                assert torch.allclose(values.std(1, correction=0), torch.ones(len(values)).double(), atol=1e-3)


def test_units_of_a_site_change_nothing_and_do_change_something_with_common_statistics() -> None:
    x, y = measured(np.random.default_rng(1))
    plain, scaled = split(x, y), split(in_units(x), y)
    assert torch.allclose(plain.x, scaled.x, atol=1e-4)
    assert not torch.allclose(split(x, y, "train").inputs(torch.arange(9)), split(in_units(x), y, "train").x[:9])


def test_categories_of_a_table_are_not_scaled() -> None:
    rng = np.random.default_rng(2)
    frame = pd.DataFrame(
        {"site": np.repeat(SITES, N), "age": rng.normal(60, 9, 3 * N), "ward": rng.choice(list("ab"), 3 * N)}
    )
    frame["y"] = np.where(frame.age > 60, "old", "young")
    federation = package.load(frame, target="y", client="site").split(Natural(), normalize="client")
    assert set(federation.x[:, 1:].unique().tolist()) == {0.0, 1.0}
    assert federation.client("east").forms[""].normalization.std[1:] == (1.0, 1.0)


def test_test_parts_and_held_out_clients_use_their_own_training_part() -> None:
    x, y = measured(np.random.default_rng(3))
    federation = split(in_units(x), y, held_out=1)
    for client in (*federation.clients, *federation.held_out):
        mean, std = (getattr(in_units(x)[client.train.numpy()], name)(0) for name in ("mean", "std"))
        expected = (in_units(x)[client.test.numpy()] - mean) / std
        assert np.allclose(federation.x[client.test].numpy(), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("channels", "shape"), [("first", (4,)), ("first", (3, 5)), ("last", (4, 5, 3)), ("none", (4, 5)), ("kept", (6, 2))]
)
def test_samples_of_unknown_range_keep_their_missing_values(channels: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(9, *shape)).astype(np.float32)
    x.flat[::7] = np.nan
    form = Form(channels, missing="mean", shape=shape)
    assert int(form.samples(x, "x").isnan().sum()) == int(np.isnan(x).sum())


def one_sample(x: np.ndarray, y: np.ndarray) -> Any:
    arrays = {"x": x[:42], "y": y[:42], "client": np.array(["a"] * 40 + ["b"] * 2)}
    return package.load(arrays).split(Natural(), normalize="client")


def a_channel_without_values(x: np.ndarray, y: np.ndarray) -> Any:
    x = x.copy()
    x[:N, 2] = np.nan
    return split(x, y, load={"missing": "mean"})


def a_global_test_part(x: np.ndarray, y: np.ndarray) -> Any:
    arrays = {"x": x, "y": y, "client": np.repeat(SITES, N), "x_test": x[:5], "y_test": y[:5]}
    return package.load(arrays).split(Natural(), normalize="client")


REFUSED = {
    one_sample: 'client "b" needs 2 training samples: set data.least = 2',
    a_channel_without_values: 'client "east" needs one value in each channel',
    a_global_test_part: "needs data without a global test part",
    lambda x, y: split(x, y, "clients"): "did you mean 'client'",
}


@pytest.mark.parametrize("refused", REFUSED)
def test_what_cannot_be_normalised_is_refused(refused: Any) -> None:
    with pytest.raises(FlocoError) as found:
        refused(*measured(np.random.default_rng(4)))
    assert REFUSED[refused] in str(found.value)


def test_a_copy_larger_than_half_of_the_memory_is_refused() -> None:
    large = torch.zeros(1, 1).expand(2**40, 4)  # takes no memory
    with pytest.raises(FlocoError, match="more than half of this machine's memory"):
        normalize_by_client({}, large, [])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of sites with other units, its source moved away, and files with new rows."""
    home = tmp_path_factory.mktemp("units")
    x, y = measured(np.random.default_rng(6))
    frame = pd.DataFrame(in_units(x), columns=list("abcd"))
    frame["y"], frame["site"] = np.where(y, "ill", "well"), np.repeat(SITES, N)
    frame.to_csv(home / "all.csv", index=False)
    frame[frame.site == "north"].to_csv(home / "north.csv", index=False)
    placed = frame[frame.site == "south"].assign(a=lambda f: f.a * 1e5, b=lambda f: f.b - 0.01, site="west")
    placed.to_csv(home / "west.csv", index=False)
    settings = ("training.rounds=4", "training.fraction=1", "run.engine=serial", "algorithm.endpoints=3")
    data = (f"data.source=csv:{home / 'all.csv'}", "data.client=site", "data.target=y", "data.split=natural")
    more = ("algorithm.assign_at=2", "data.normalize=client", "model.name=mlp")
    made = floco("run", *(a for s in (*settings, *data, *more) for a in ("-s", s)), "--out", home / "run")
    assert made.exit_code == 0, made.output
    return home


def rows_of(path: Path) -> np.ndarray:
    return pd.read_csv(path)[list("abcd")].to_numpy()


def test_an_opened_run_predicts_as_the_one_in_memory_and_needs_no_data(home: Path, tmp_path: Path) -> None:
    run = package.open_run(home / "run")
    x = rows_of(home / "north.csv")
    expected = run.predict(x, client="north")
    federation = run.setup.with_samples("the test").federation
    client = federation.client("north")
    mean, std = (np.array(getattr(client.forms[""].normalization, n)) for n in ("mean", "std"))
    offset = np.array(client.forms[""].offset or 0.0)
    inputs = torch.from_numpy(((x - offset - mean) / std).astype(np.float32))
    with torch.no_grad():
        own = run.personal("north")(inputs).softmax(1).numpy()
    assert np.allclose(expected.iloc[:, -2:].to_numpy(dtype=float), own, atol=1e-5)
    assert floco("bundle", home / "run", "-o", tmp_path / "run.zip").exit_code == 0
    (home / "all.csv").rename(home / "away.csv")
    try:
        alone = package.open_run(tmp_path / "run.zip").predict(x, client="north")
    finally:
        (home / "away.csv").rename(home / "all.csv")
    pd.testing.assert_frame_equal(alone, expected)


@pytest.mark.parametrize("kind", ["safetensors", "pt2", "onnx"])
def test_an_exported_model_has_the_clients_normalisation(home: Path, tmp_path: Path, kind: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    run, x = package.open_run(home / "run"), rows_of(home / "north.csv")
    expected = run.predict(x, client="north").iloc[:, -2:].to_numpy(dtype=float)
    files = run.export(tmp_path, ["south", "north"], kind=kind)
    card = json.loads(Path(f"{files[1]}.json").read_text())
    if kind == "safetensors":
        given = (x - np.array(card["input"]["mean"])) / np.array(card["input"]["std"])
        network = run.personal("south")
        network.load_state_dict(safetensors.torch.load_file(files[1]))
        with torch.no_grad():
            found = network(torch.from_numpy(given.astype(np.float32))).softmax(1).numpy()
    elif kind == "pt2":
        raw = torch.from_numpy(x.astype(card["input"]["dtype"]))
        found = torch.export.load(files[1]).module()(raw)[1].detach().numpy()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(files[1], providers=["CPUExecutionProvider"])
        found = session.run(None, {"samples": x.astype(card["input"]["dtype"])})[1]
    assert np.allclose(found, expected, atol=1e-4)
    assert card["input"]["mean"] != json.loads(Path(f"{files[0]}.json").read_text())["input"]["mean"]


def test_the_global_model_is_exported_with_words_and_not_as_a_graph(home: Path, tmp_path: Path) -> None:
    run = package.open_run(home / "run")
    run.export(tmp_path / "g.safetensors", [None])
    assert "mean and deviation of the client's own training part" in (tmp_path / "g.safetensors.md").read_text()
    with pytest.raises(FlocoError, match="contains the normalisation"):
        run.export(tmp_path / "g.pt2", [None])
    assert not (tmp_path / "g.pt2").exists()


def test_the_global_model_never_gets_the_normalisation_of_the_client_before_it(home: Path, tmp_path: Path) -> None:
    with pytest.raises(FlocoError, match="contains the normalisation"):
        package.open_run(home / "run").export(tmp_path, ["south", None], kind="pt2")
    assert not list(tmp_path.iterdir())


def test_rows_without_a_client_are_refused(home: Path) -> None:
    run = package.open_run(home / "run")
    with pytest.raises(FlocoError, match="only with the statistics of a client"):
        run.predict(rows_of(home / "north.csv"))
    made = floco("predict", home / "run", home / "north.csv", "--global")
    assert made.exit_code == 2
    assert "Traceback" not in made.output


def test_rows_of_another_sites_units_are_refused(home: Path) -> None:
    run = package.open_run(home / "run")
    with pytest.raises(FlocoError, match="another unit"):
        run.predict(rows_of(home / "north.csv"), client="east")


def test_a_newcomer_has_statistics_of_its_own_rows(home: Path, tmp_path: Path) -> None:
    run, frame = package.open_run(home / "run"), pd.read_csv(home / "west.csv")
    x, y = frame[list("abcd")].to_numpy(), frame.y.to_numpy()
    placed = run.place(x, y)
    assert placed.chosen.value > 0.7
    file = run.export_placed(placed, y, tmp_path / "west.pt2", "west")
    found = torch.export.load(file).module()(torch.from_numpy(x).float())[1].detach()
    assert float((found.argmax(1).numpy() == (y == "well")).mean()) > 0.7
    same = run.place((x - 0.1) * 3, y)
    assert torch.allclose(same.center, placed.center, atol=1e-3)


def test_later_samples_in_the_clients_units_fit(home: Path) -> None:
    run = package.open_run(home / "run")
    x, y = measured(np.random.default_rng(7))
    found = run.check("north", in_units(x)[N : 2 * N], np.where(y[N : 2 * N], "ill", "well"))
    assert found.verdict == "fits"


def test_findings_are_those_of_the_samples_before_the_normalisation(home: Path) -> None:
    frame = pd.read_csv(home / "all.csv")
    frame.loc[frame.site == "north", list("abcdy")] = frame.loc[frame.site == "east", list("abcdy")].to_numpy()
    frame.to_csv(home / "twice.csv", index=False)
    columns = ("data.client=site", "data.target=y", "data.split=natural", "data.normalize=client")
    source = f"data.source=csv:{home / 'twice.csv'}"
    made = floco("data", *(a for s in (source, *columns) for a in ("-s", s)), "--json")
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    assert any(w["kind"] == "duplicates" for w in told["warnings"])
    assert told["schema"][0]["scaling"] == "mean and deviation of each client's own training part"


def test_tuning_keeps_each_clients_statistics(home: Path) -> None:
    from floco.analysis.tuning import cut_validation

    federation = split(*measured(np.random.default_rng(8)))
    assert all(c.forms is not None for c in cut_validation(federation, 0).clients)


def test_data_in_other_units_are_other_data() -> None:
    x, y = measured(np.random.default_rng(9))
    assert split(x, y).fingerprint() == split(x, y).fingerprint()
    assert split(x, y).fingerprint() != split(2 * x, y).fingerprint()


def test_a_channel_that_never_varies_at_a_client_is_nothing_there() -> None:
    x, y = measured(np.random.default_rng(10))
    plain = split(x, y)
    train = plain.client("east").train.numpy()
    x[train, 3], x[plain.client("east").test.numpy()[0], 3] = 7.0, 60000.0
    federation = split(x, y)
    assert federation.x[:N, 3].abs().max() < 1e-6
    assert federation.x[N:, 3].std() == pytest.approx(1, abs=0.1)
