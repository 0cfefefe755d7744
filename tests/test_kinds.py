"""Equal numbers are equal inputs, in whatever type, role and source; and values as numpy has them are settings."""

import io
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import floco
from conftest import floco as command
from conftest import write_blobs
from floco.core.errors import FlocoError
from floco.core.settings import checked
from floco.core.values import Training
from floco.data.partition import (
    Dirichlet,
    DirichletSizes,
    Folds,
    Foreign,
    Iid,
    Natural,
    Pathological,
    Single,
)
from floco.data.split import Split, Table
from floco.runs.config import Data, Model, RunSettings

TYPES = ["u1", "i1", "i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8", "g", ">i2", ">i8", ">u4", ">f4", ">f8"]
REFUSED = ["?", "c8", "O", "U", "M8[s]", "m8[s]", "V4"]
G = np.random.default_rng(0)
NUMBERS = G.integers(0, 100, (60, 4))
Y = np.arange(60) % 2


def typed(kind: str, x: np.ndarray = NUMBERS) -> np.ndarray:
    return np.zeros(x.shape, "V4") if kind == "V4" else x.astype(kind)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """A mapping of arrays as one of the sources."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def made(arrays: dict[str, Any]) -> Any:
        if request.param == "mapping":
            return arrays
        np.savez(tmp_path / "a.npz", **arrays)
        if request.param == "npz":
            return f"npz:{tmp_path / 'a.npz'}"
        code = f"import numpy\ndef arrays(): return dict(numpy.load({str(tmp_path / 'a.npz')!r}, allow_pickle=True))\n"
        (tmp_path / "its_arrays.py").write_text(code)
        monkeypatch.delitem(sys.modules, "its_arrays", raising=False)
        return "its_arrays:arrays"

    return made


SOURCES = pytest.mark.parametrize("source", ["mapping", "npz", "function"], indirect=True)


def reference(train: str = "f8") -> floco.Federation:
    return floco.load({"x": typed(train), "y": Y}).split(Iid(), clients=3)


def inputs(federation: floco.Federation, raw: Any) -> torch.Tensor:
    found = federation.normalize(raw)
    assert isinstance(found, torch.Tensor)
    return found


EXPECTED = inputs(reference(), reference().x)


def agree(found: torch.Tensor) -> None:
    assert found.dtype == torch.float32
    assert torch.allclose(found, EXPECTED, rtol=1e-4, atol=1e-5)


@SOURCES
@pytest.mark.parametrize("kind", TYPES)
def test_the_training_part_may_have_any_type_of_numbers(kind: str, source: Callable[[Any], Any]) -> None:
    federation = floco.load(source({"x": typed(kind), "y": Y})).split(Iid(), clients=3)
    agree(inputs(federation, federation.x))


@SOURCES
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("train", ["u1", "f4"])
def test_the_test_part_may_have_any_type_or_is_refused(train: str, kind: str, source: Callable[[Any], Any]) -> None:
    arrays = {"x_train": typed(train), "y_train": Y, "x_test": typed(kind), "y_test": Y}
    if train == "u1" and kind.lstrip(">")[0] in "fg":
        with pytest.raises(FlocoError, match="x_test must be whole numbers from 0 to 255"):
            floco.load(source(arrays))
        return
    federation = floco.load(source(arrays)).split(Iid(), clients=3)
    agree(inputs(federation, federation.x_test))


@SOURCES
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", ["x_train", "x_test"])
def test_what_are_no_numbers_is_refused_by_name(name: str, kind: str, source: Callable[[Any], Any]) -> None:
    arrays = {"x_train": NUMBERS, "y_train": Y, "x_test": NUMBERS, "y_test": Y}
    with pytest.raises(FlocoError, match=f"{name}.* must be numbers|cannot be read as npz|holds Python objects"):
        floco.load(source({**arrays, name: typed(kind)}))


@pytest.fixture(scope="module")
def run() -> floco.Run:
    federation = reference()
    return floco.fit(floco.model("mlp", federation), federation, floco.Floco(endpoints=2), rounds=1, engine="serial")


@pytest.mark.parametrize("kind", TYPES)
def test_newcomers_and_predictions_take_any_type_of_numbers(kind: str, run: floco.Run) -> None:
    federation = run.setup.federation
    agree(inputs(federation, federation.schema.samples(typed(kind), "x")))
    for train in ("u1", "i8", "f4"):
        other = reference(train)
        if train != "u1" or kind.lstrip(">")[0] not in "fg":
            agree(inputs(other, other.schema.samples(typed(kind), "x")))
    found, wanted = (run.predict(x).filter(like="p(").to_numpy() for x in (typed(kind), NUMBERS))
    assert np.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", REFUSED)
def test_newcomers_and_predictions_refuse_what_are_no_numbers(kind: str, run: floco.Run) -> None:
    with pytest.raises(FlocoError, match="x must be numbers"):
        run.predict(typed(kind))


@pytest.mark.parametrize("part", ["x_train", "x_test", "y_train", "y_test", "client"])
@pytest.mark.parametrize("kind", ["u1", "i8", "f4", "f8"])
def test_arrays_that_change_after_loading_change_nothing(part: str, kind: str) -> None:
    arrays = {"x_train": typed(kind), "y_train": Y.copy(), "x_test": typed(kind), "y_test": Y.copy()}
    arrays["client"] = np.arange(60) % 3
    samples = floco.load(arrays)
    before = samples.split(Natural()).fingerprint()
    arrays[part][:] = arrays[part][0]
    assert samples.split(Natural()).fingerprint() == before


# -- settings as numpy and paths have them

SETTINGS: list[tuple[Callable[[Any], Any], Any, Any]] = [
    (lambda v: floco.Floco(endpoints=v).endpoints, np.int64(3), 3),
    (lambda v: floco.Floco(endpoints=v).endpoints, np.uint8(3), 3),
    (lambda v: floco.Floco(endpoints=v).endpoints, np.float32(3), 3),
    (lambda v: floco.Floco(endpoints=v).endpoints, np.array(3), 3),
    (lambda v: Training(lr=v).lr, np.float32(0.5), 0.5),
    (lambda v: Training(lr=v).lr, np.float16(0.5), 0.5),
    (lambda v: Training(lr=v).lr, np.int32(1), 1.0),
    (lambda v: Training(precision=v).precision, np.str_("bf16"), "bf16"),
    (lambda v: RunSettings(workers=v).workers, np.int16(2), 2),
    (lambda v: Data(labels=v).labels, np.array(["a", "b"]), ("a", "b")),
    (lambda v: Data(normalize="fixed", mean=v, std=(1.0, 1.0)).mean, np.array([0.5, 1.5]), (0.5, 1.5)),
    (lambda v: Model(weights=v).weights, PurePosixPath("a/b.safetensors"), "a/b.safetensors"),
]


@pytest.mark.parametrize(("make", "given", "expected"), SETTINGS)
def test_settings_take_values_of_numpy_and_paths(make: Callable[[Any], Any], given: Any, expected: Any) -> None:
    found = make(given)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("given", [np.int64(3), np.float64(3), 3.0, np.array(3)])
def test_arguments_of_a_split_take_them_too(given: Any) -> None:
    samples = floco.load({"x": NUMBERS, "y": Y})
    plain = samples.split(Iid(), clients=3, samples=3, seed=3, held_out=1)
    assert samples.split(Iid(), clients=given, samples=given, seed=given, held_out=np.int8(1)).fingerprint() == (
        plain.fingerprint()
    )


@pytest.mark.parametrize("given", [np.float64(3.5), np.bool_(True), "3", np.array([3]), np.complex64(3)])
def test_what_is_no_whole_number_is_refused(given: Any) -> None:
    with pytest.raises(FlocoError, match="clients must be a whole number, got"):
        checked(given, int, "clients")


# -- objects where names are given, and what splits return


FEDERATION = reference()
HABITS: list[tuple[Callable[[], Any], str]] = [
    (lambda: floco.fit("mlp", FEDERATION, floco.Floco()), "model must be a module .* see floco.model"),  # type: ignore[arg-type]
    (lambda: floco.fit(torch.nn.Linear(4, 2), FEDERATION, "floco"), "algorithm must be an object.*'floco'"),  # type: ignore[arg-type]
    (lambda: floco.fit(torch.nn.Linear(4, 2), FEDERATION, floco.Floco), "algorithm must be an object.* Floco"),  # type: ignore[arg-type]
    (lambda: floco.fit(torch.nn.Linear(4, 2), floco.load("digits"), floco.Floco()), "split them first"),  # type: ignore[arg-type]
    (lambda: floco.load("digits").split("iid", clients=3), "split must be an object.*'iid'"),  # type: ignore[arg-type]
    (lambda: floco.load("digits").split(Iid, clients=3), "split must be an object"),  # type: ignore[arg-type]
    (lambda: floco.load("digits").split(None, clients=3), "split must be an object.*None"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "says"), HABITS, ids=[says for _, says in HABITS])
def test_names_and_classes_in_place_of_objects_are_refused_in_words(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(FlocoError, match=says):
        call()


@dataclass(frozen=True)
class Returns(Split):
    """A split of a user's that returns, or raises, what it was given."""

    name: ClassVar[str] = "theirs"
    found: Any = None

    def assign(self, table: Table, *, clients: int | None, samples: int | None, seed: int) -> dict[str, np.ndarray]:
        if isinstance(self.found, Exception):
            raise self.found
        found: dict[str, np.ndarray] = self.found
        return found


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (None, "must return a dict.*got None"),
        ([[0, 1]], "must return a dict"),
        (np.arange(3), "must return a dict"),
        ({}, "must return a dict, of one client at least"),
        ({"a": None}, r"got 'a': \(\) object"),
        ({"a": "b"}, "got 'a'"),
        ({1: [0, 1]}, "got 1"),
        ({"a": [0, 1], "b": [1, 2]}, "one client at most"),
        ({"a": [0, 999]}, "one client at most"),
        (KeyError("when"), "raised KeyError: 'when'"),
    ],
)
def test_a_split_that_returns_no_clients_is_refused_in_words(found: Any, says: str) -> None:
    with pytest.raises(FlocoError, match=f"split theirs:? .*{says}"):
        floco.load({"x": NUMBERS, "y": Y}).split(Returns(found))


def _foreign() -> Foreign:
    from flwr_datasets.partitioner import IidPartitioner

    return Foreign(IidPartitioner(4))


SORTED = np.sort(np.arange(1200) % 3)
SPLITS = [Folds(2), Dirichlet(100.0), DirichletSizes(100.0), Iid(), Pathological(3), Natural(), Single(), _foreign()]


@pytest.mark.parametrize("split", SPLITS, ids=lambda s: s.name)
def test_samples_of_a_file_sorted_by_label_are_drawn_and_not_the_first(split: Split) -> None:
    arrays = {"x": np.arange(1200.0)[:, None], "y": SORTED}
    if split.name == "natural":
        arrays["client"] = np.arange(1200) % 4
    made = floco.load(arrays).split(split, clients=None if split.name in ("natural", "single") else 4, samples=60)
    for client in made.clients:
        rows = torch.cat([client.train, client.test])
        assert len(rows) == 60
        assert min(made.label_counts(rows)) >= (1 if split.name == "folds" else 8)
        within = [rows[made.y[rows] == c].double() for c in range(3)]
        assert all(len(r) < 8 or r.std() > 30 for r in within), "the rows of a label are its first"


@pytest.mark.parametrize(
    ("shape", "kind", "first"),
    [
        ((9, 3, 8, 8), "u1", True),
        ((9, 8, 8, 3), "u1", False),
        ((9, 4, 4, 3), "u1", False),
        ((9, 16, 16, 12), "u1", False),
        ((9, 3, 4, 4), "u1", None),
        ((9, 3, 8, 3), "u1", None),
        ((9, 1, 28, 4), "f4", None),
        ((9, 2, 8, 8), "u1", None),
        ((9, 12, 16, 16), "u1", None),
    ],
)
def test_pictures_that_may_be_either_way_round_are_refused(
    shape: tuple[int, ...], kind: str, first: bool | None
) -> None:
    given = {"x": np.zeros(shape, kind), "y": np.arange(9) % 2}
    moved = (9, shape[-1], *shape[1:-1])
    if first is None:
        with pytest.raises(FlocoError, match=r"data\.channels = first or last"):
            floco.load(given)
        for channels, expected in (("first", shape), ("last", moved)):
            assert floco.load(given, channels=channels).x.shape == expected
    else:
        assert floco.load(given).x.shape == (shape if first else moved)


def packed(save: Any, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


WRONG: dict[str, tuple[str, Any, str]] = {  # what a file is, and what `floco predict` says of it
    "objects": ("x.npz", lambda p: np.savez(p, x=NUMBERS.astype(object)), "x holds Python objects .*astype"),
    "objects beside": ("x.npz", lambda p: np.savez(p, x=NUMBERS, more=np.array([None])), "more holds Python objects"),
    "a table as npz": ("x.npz", lambda p: p.write_text("a,b\n1,2\n"), "no such file, .* tables end in .csv, .*savez"),
    "an npz as table": (
        "x.csv",
        lambda p: p.write_bytes(packed(np.savez, x=NUMBERS)),
        "no text but a zip archive",
    ),
    "one array": ("x.npy", lambda p: np.save(p, NUMBERS), "cannot be read as npz: .* numpy.savez"),
    "one array as table": (
        "x.csv",
        lambda p: p.write_bytes(packed(np.save, arr=NUMBERS)),
        "no text but one array",
    ),
    "a table of Parquet": ("x.json", lambda p: p.write_bytes(b"PAR1"), "is no text but Parquet"),
    "a table for arrays": ("x.csv", lambda p: p.write_text("a,b\n1,2\n"), "is a table, and the data of .* are arrays"),
}


@pytest.fixture(scope="module")
def of_arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on arrays, from the command line."""
    folder = tmp_path_factory.mktemp("arrays")
    write_blobs(folder / "data.npz")
    chosen = [f"data.source=npz:{folder / 'data.npz'}", "data.split=natural", "training.rounds=1"]
    chosen += ["algorithm.name=fedavg", "run.engine=serial"]
    done = command("run", *(p for c in chosen for p in ("-s", c)), "--out", folder / "run")
    assert done.exit_code == 0, done.output
    return folder / "run"


@pytest.mark.parametrize("kind", WRONG)
def test_predict_says_what_is_wrong_with_a_file_in_our_words(kind: str, of_arrays: Path, tmp_path: Path) -> None:
    name, write, says = WRONG[kind]
    write(tmp_path / name)
    done = command("predict", of_arrays, tmp_path / name, "--global")
    assert done.exit_code == 2
    assert re.search(says, done.stderr)
    assert "pickle" not in done.stderr


FUNCTIONS = [  # a setting that names a function, what is said of the call, and the function's parameters
    ("data.source", "make", r"no arguments, and has make\(path, scale\): missing"),
    ("model.name", "make", r"those of shape, .* of its parameters, and has make\(path, scale\): missing"),
    ("data.augment", "one", r"\(batch, generator\), and has one\(batch\): too many"),
]


@pytest.mark.parametrize(("setting", "name", "says"), FUNCTIONS)
def test_a_function_of_another_signature_hears_what_it_is_called_with(
    setting: str, name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd.py").write_text("def make(path, scale): pass\ndef one(batch): return batch\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd", raising=False)
    done = command("run", "-s", f"{setting}=odd:{name}", "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert re.search(f"{setting} = 'odd:{name}' is called with {says}", done.stderr)


@pytest.mark.parametrize("name", ["x.npy", "x.csv.gz", "x.feather", "x.txt"])
def test_a_file_of_another_format_is_refused_by_what_is_read(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", NUMBERS)
    for other in ("x.csv.gz", "x.feather", "x.txt"):
        (tmp_path / other).write_bytes(b"\x1f\x8b other bytes")
    with pytest.raises(FlocoError, match=r"cannot be read as npz: it is no such file.*\.csv, \.tsv, \.parquet"):
        floco.load(f"npz:{tmp_path / name}")
