"""Models that leave: what is in the files, that they predict as they did here, and what bad input is told."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import nn

import floco as package
from conftest import blobs, floco, small_net, write_blobs
from floco.core.errors import FlocoError
from floco.data.normalization import Normalization
from floco.server.progress import Progress
from floco.storage.files import checksum

FORMATS = ("safetensors", "pt2", "onnx")  # tests/test_adapters.py has the other one, peft
ROOT = Path(__file__).parents[1]
QUICK: dict[str, Any] = {"rounds": 4, "fraction": 1.0, "evaluate_every": 4, "lr": 0.1, "workers": 1, "engine": "serial"}


class Tied(nn.Module):
    """BatchNorm, dropout, a frozen layer, tied weights, and logits that come out of no linear layer's name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.first, self.second, self.head = nn.Linear(4 * 36, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.third = nn.Linear(8, 8)
        self.third.weight = self.second.weight
        self.first.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.drop(self.norm(self.conv(x)).relu().flatten(1))
        h = self.first(h).relu()
        return self.head(self.third(self.second(h).relu()).relu())


def images(kind: str = "colour") -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(0)
    y = np.arange(120) % 3
    shape = (120, 6, 6, 3) if kind == "colour" else (120, 6, 6)
    return np.clip(g.integers(0, 120, shape) + 40 * y.reshape(-1, *[1] * (len(shape) - 1)), 0, 255).astype(np.uint8), y


@pytest.fixture(scope="module")
def colour() -> package.Run:
    """Colour images with their channels last, a network with everything in it, Floco after the assignment."""
    federation = package.load(images()).split(package.Dirichlet(1.0), clients=4, seed=0)
    return package.fit(Tied, federation, package.Floco(endpoints=3, assign_at=2), batch_size=8, **QUICK)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory from the command line: natural clients, float features."""
    folder = tmp_path_factory.mktemp("stored")
    source = write_blobs(folder / "blobs.npz")
    settings = [
        f"data.source=npz:{source}",
        "data.split=natural",
        "training.rounds=6",
        "algorithm.assign_at=3",
        "training.batch_size=8",
        "run.engine=serial",
    ]
    done = floco("run", *[w for s in settings for w in ("-s", s)], "--out", folder / "run")
    assert done.exit_code == 0, done.output
    return folder / "run"


def predictions(path: Path, x: np.ndarray, make: Callable[[], nn.Module], normalization: Normalization) -> np.ndarray:
    """Logits from an exported file, by the means of its own world only."""
    if path.suffix == ".onnx":
        return onnxruntime.InferenceSession(path).run(["logits"], {"samples": x})[0]
    with torch.no_grad():
        if path.suffix == ".pt2":
            return torch.export.load(path).module()(torch.from_numpy(x))[0].numpy()
        network = make().eval()
        network.load_state_dict(safetensors.torch.load_file(path))
        return network(normalization(torch.from_numpy(x).permute(0, 3, 1, 2))).numpy()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_predicts_on_raw_samples_what_the_run_does(colour: package.Run, kind: str, tmp_path: Path) -> None:
    x = images()[0][:50]
    files = colour.export(tmp_path / "all", kind=kind)
    assert [f.name for f in files] == [
        f"{n}.{kind}" for n in ("client-0", "client-1", "client-2", "client-3", "global")
    ]
    seen = []
    for file, client in zip(files, ["client-0", "client-1", "client-2", "client-3", None], strict=True):
        module = colour.global_model() if client is None else colour.personal(client)
        with torch.no_grad():
            expected = module(colour.setup.federation.normalization(torch.from_numpy(x).permute(0, 3, 1, 2))).numpy()
        assert np.abs(predictions(file, x, Tied, colour.setup.federation.normalization) - expected).max() <= 1e-5
        assert (
            np.abs(
                colour.predict(x, client).filter(like="p(").to_numpy() - torch.from_numpy(expected).softmax(1).numpy()
            ).max()
            <= 1e-5
        )
        seen.append(expected)
    assert all(
        np.abs(a - b).max() > 1e-3 for i, a in enumerate(seen) for b in seen[:i]
    )  # five models, and not one five times


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_graph_takes_grey_images_as_their_source_has_them(kind: str, tmp_path: Path) -> None:
    x, y = images("grey")
    federation = package.load((x, y)).split(package.Dirichlet(1.0), clients=3, seed=0)
    run = package.fit(package.model("cnn", federation), federation, package.FedAvg(), batch_size=8, **QUICK)
    (file,) = run.export(tmp_path / f"one.{kind}", [None])
    found = predictions(file, x, nn.Identity, federation.normalization)
    assert (
        np.abs(torch.from_numpy(found).softmax(1).numpy() - run.predict(x).filter(like="p(").to_numpy()).max() <= 1e-5
    )


def test_the_card_says_what_the_model_takes_and_how_good_it_is(colour: package.Run, tmp_path: Path) -> None:
    (file,) = colour.export(tmp_path / "mine.safetensors", ["client-2"], at="center")
    card = json.loads((tmp_path / "mine.safetensors.json").read_text())
    assert card["sha256"] == checksum(file.read_bytes())
    assert (card["file"], card["client"], card["round"]) == ("mine.safetensors", "client-2", 4)
    assert card["input"]["shape"] == [6, 6, 3]
    assert card["input"]["mean"] == list(colour.setup.federation.normalization.mean)
    row = colour.clients.set_index("client").loc["client-2"]
    assert card["metrics"]["accuracy"] == pytest.approx(row["accuracy_personal"])
    assert card["metrics"]["loss"] == pytest.approx(row["loss_personal"], rel=1e-5)
    assert (card["at"], card["mixture"]) == ("center", row["center"])
    recalls = [c["recall"] for c in card["metrics"]["classes"]]
    assert recalls == sorted(recalls)
    text = (tmp_path / "mine.safetensors.md").read_text()
    for words in (
        card["sha256"],
        f"{100 * row['accuracy_personal']:.1f} %",
        "Least recognised classes",
        "channels moved to the front, divided by 255",
        "endpoints 3",
    ):
        assert words in text


def test_the_ten_lines_of_the_documentation_run(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in FORMATS:
        assert floco("export", stored, "--client", "north", "-o", tmp_path / f"north.{kind}").exit_code == 0
    monkeypatch.chdir(tmp_path)
    x = np.load(stored.parent / "blobs.npz")["x"][:20]
    np.save("samples.npy", x)
    expected = package.open_run(stored).predict(x, "north").filter(like="p(").to_numpy()
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "models.md").read_text(), re.S)
    assert len([b for b in blocks if "probabilities" in b]) == 3
    for block in blocks:
        assert block.count("\n") <= 12
        if "probabilities" in block:
            assert "floco" not in block
            names: dict[str, Any] = {}
            exec(
                compile(
                    block.replace("nn.Linear(64, 128)", "nn.Linear(5, 128)").replace(
                        "nn.Linear(128, 10)", "nn.Linear(128, 3)"
                    ),
                    "docs/models.md",
                    "exec",
                ),
                names,
            )
            assert np.abs(np.asarray(names["probabilities"]) - expected).max() <= 1e-5


def test_a_hundred_models_and_the_global_one_are_exported_at_once(tmp_path: Path) -> None:
    federation = blobs(tuple(f"c{i}" for i in range(100)))
    run = package.fit(
        small_net, federation, package.Floco(endpoints=3, assign_at=1), **{**QUICK, "rounds": 1, "fraction": 0.05}
    )
    assert len(run.export(tmp_path / "all")) == 101


def test_predict_writes_a_line_for_each_sample(stored: Path, tmp_path: Path) -> None:
    data = np.load(stored.parent / "blobs.npz")
    np.savez(tmp_path / "in.npz", x=data["x"][:30], y=data["y"][:30])
    done = floco("predict", stored, "--client", "Straße 7/b", tmp_path / "in.npz", "-o", tmp_path / "out.csv")
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "label,probability,p(0),p(1),p(2)"
    assert len(lines) == 31
    values = np.array([[float(v) for v in line.split(",")] for line in lines[1:]])
    assert np.allclose(values[:, 2:].sum(1), 1)
    assert (values[:, 2:].argmax(1) == values[:, 0]).all()
    assert f"accuracy {100 * (values[:, 0] == data['y'][:30]).mean():.1f} %" in done.output
    shown = floco("predict", stored, "--global", tmp_path / "in.npz")
    assert "30 in all" in shown.output


def test_models_of_an_unfinished_run_are_called_so(stored: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.round == 2:
            raise KeyboardInterrupt

    given = {"out": tmp_path / "run", "rounds": 9, "engine": "serial", "checkpoint_every": 1, "watch": stop}
    with pytest.raises(KeyboardInterrupt):
        package.fit(package.model("mlp", blobs()), blobs(), package.FedAvg(), **given)
    np.savez(tmp_path / "x.npz", x=np.load(stored.parent / "blobs.npz")["x"][:3])
    for run, said in ((tmp_path / "run", True), (stored, False)):
        done = floco("predict", run, "--global", tmp_path / "x.npz")
        assert done.exit_code == 0, done.output
        assert ("the run is not finished: these are its models of round 2 of 9" in done.output) == said


def test_predict_writes_arrays_into_an_npz_file_and_no_other_formats(stored: Path, tmp_path: Path) -> None:
    x = np.load(stored.parent / "blobs.npz")["x"][:30]
    np.savez(tmp_path / "in.npz", x=x)
    done = floco("predict", stored, "--client", "north", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    assert done.exit_code == 0, done.output
    expected = package.open_run(stored).predict(x, "north").filter(like="p(").to_numpy()
    assert np.array_equal(np.load(tmp_path / "out.npz")["predictions"], expected)
    for name in ("out.parquet", "out.tsv", "out"):
        done = floco("predict", stored, "--client", "north", tmp_path / "in.npz", "-o", tmp_path / name)
        assert done.exit_code == 2
        assert "must end in .csv, or in .npz for arrays" in done.output.replace("\n", " ")
        assert not (tmp_path / name).exists()


def test_mixtures_average_the_models_of_the_subregion(stored: Path) -> None:
    run = package.open_run(stored)
    x = np.load(stored.parent / "blobs.npz")["x"][:20]
    one, many = (run.predict(x, "north", at="center", mixtures=n).filter(like="p(").to_numpy() for n in (0, 50))
    assert np.allclose(many.sum(1), 1)
    assert 1e-6 < np.abs(one - many).max() < 0.1  # the subregion's radius is 0.1
    assert (many == run.predict(x, "north", at="center", mixtures=50).filter(like="p(").to_numpy()).all()


def test_names_of_labels_come_with_predictions() -> None:
    x, y = images("grey")
    federation = package.load({"x": x, "y": np.array(["cat", "dog", "owl"])[y]}).split(
        package.Dirichlet(1.0), clients=3, seed=0
    )
    table = package.fit(package.model("mlp", federation), federation, package.FedAvg(), **QUICK).predict(x)
    assert list(table.columns) == ["label", "probability", "p(cat)", "p(dog)", "p(owl)"]
    assert set(table["label"]) <= {"cat", "dog", "owl"}


BAD = [
    ({"x": np.zeros((4, 6), np.float32)}, r"x must have shape \(N, 5\).*got \(4, 6\)"),
    ({"x": np.full((4, 5), np.nan, np.float32)}, "finite.*sample 0"),
    ({"x": np.full((4, 5), 1e6, np.float32)}, "sample 0 holds 1e.06 in channel 0.*another unit"),
    ({"x": np.array([["a"] * 5])}, "must be numbers"),
    ({"z": np.zeros(3)}, "x is missing among"),
    (
        {"x": np.zeros((4, 5), np.float32), "y": np.array([0, 1, 2, 7])},
        "labels that the model does not know: 7; it knows 0, 1, 2",
    ),
    ({"x": np.zeros((4, 5), np.float32), "y": np.array([0, 1])}, "4 samples and 2 labels"),
]


@pytest.mark.parametrize(("arrays", "words"), BAD, ids=[w[:20] for _, w in BAD])
@pytest.mark.parametrize("command", ["predict", "place"])
def test_input_that_does_not_fit_is_told_and_leaves_nothing(
    command: str, arrays: dict[str, np.ndarray], words: str, stored: Path, tmp_path: Path
) -> None:
    np.savez(
        tmp_path / "in.npz",
        **({"y": np.zeros(len(next(iter(arrays.values()))), int), **arrays} if command == "place" else arrays),
    )
    out = tmp_path / "out.csv" if command == "predict" else tmp_path / "out.safetensors"
    done = floco(
        command, stored, *(["--client", "north"] if command == "predict" else []), tmp_path / "in.npz", "-o", out
    )
    assert done.exit_code == 2
    assert re.search(words, done.output.replace("\n", " ")), done.output
    assert "Traceback" not in done.output
    assert [p.name for p in tmp_path.iterdir()] == ["in.npz"]


def test_bytes_are_no_floats(colour: package.Run) -> None:
    with pytest.raises(FlocoError, match="whole numbers from 0 to 255.*float64 from 0 to 0.78"):
        colour.predict(images()[0] / 255)
    assert colour.predict(images()[0].astype(np.int64)).equals(colour.predict(images()[0]))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["export", "RUN", "--client", "nord"], "no client 'nord'; there are"),
        (["export", "RUN"], "one of --client ID, --global and --all"),
        (["export", "RUN", "--all", "--global"], "one of --client ID, --global and --all"),
        (["export", "RUN", "--global", "--format", "h5"], "--format must be one of safetensors, pt2, onnx"),
        (["export", "RUN", "--global", "-o", "OUT/x.onnx", "--format", "pt2"], "ends in .onnx, and --format is pt2"),
        (["export", "RUN", "--all", "-o", "OUT/x.pt2"], "is one file, and there are"),
        (["export", "RUN", "--client", "north", "--at", "nearest"], "one of center, best"),
        (["export", "RUN", "--global", "--at", "best"], "the global one in the middle"),
        (["export", "RUN", "--global", "-o", "OUT/x.ONNX"], "in small letters"),
        (["export", "OUT/nothing", "--all"], "no run directory"),
        (["predict", "RUN", "--client", "north", "OUT/nothing.npz"], "there is no file"),
        (["predict", "RUN", "OUT/nothing.npz"], "name one of --client ID and --global"),
    ],
)
def test_wrong_use_is_told_and_leaves_nothing(words: list[str], told: str, stored: Path, tmp_path: Path) -> None:
    done = floco(*(w.replace("RUN", str(stored)).replace("OUT", str(tmp_path)) for w in words))
    assert done.exit_code == 2
    assert told in done.output.replace("\n", " ")
    assert not any(tmp_path.iterdir())
    assert not (stored / "models").exists()


def test_a_truncated_file_and_a_changed_checkpoint_are_told(stored: Path, tmp_path: Path) -> None:
    whole = (stored.parent / "blobs.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    done = floco("place", stored, tmp_path / "half.npz", "-o", tmp_path / "new.safetensors")
    assert done.exit_code == 2
    assert "half.npz cannot be read as npz" in done.output
    state = next(stored.glob("checkpoint/*/state.safetensors"))
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    kept = state.read_bytes()
    state.write_bytes(data)
    try:
        done = floco("export", stored, "--all", "-o", tmp_path / "all")
    finally:
        state.write_bytes(kept)
    assert done.exit_code == 2
    assert "state.safetensors was changed after it was written" in done.output
    assert [p.name for p in tmp_path.iterdir()] == ["half.npz"]


def test_nothing_is_overwritten(stored: Path, tmp_path: Path) -> None:
    (tmp_path / "north.safetensors.md").write_text("my notes")
    done = floco("export", stored, "--client", "north", "-o", tmp_path / "north.safetensors")
    assert done.exit_code == 2
    assert "north.safetensors.md exists already" in done.output
    assert [p.read_text() for p in tmp_path.iterdir()] == ["my notes"]


def test_a_network_that_cannot_be_traced_is_told(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) if x.sum() > 0 else self.net(x) * 2

    run = package.fit(Branching, blobs(), package.FedAvg(), **{**QUICK, "rounds": 1})
    with pytest.raises(FlocoError, match="torch.export cannot trace it"):
        run.export(tmp_path / "g.pt2", [None])
    assert not any(tmp_path.iterdir())
    assert run.export(tmp_path / "g.safetensors", [None])[0].exists()


def test_a_held_out_client_has_no_model_of_its_own(tmp_path: Path) -> None:
    federation = package.load("digits").split(package.Dirichlet(1.0), clients=6, seed=0, held_out=1)
    run = package.fit(
        package.model("mlp", federation), federation, package.Floco(endpoints=2, assign_at=1), **{**QUICK, "rounds": 1}
    )
    with pytest.raises(FlocoError, match='client "client-5" was held out.*place'):
        run.personal("client-5")
    with pytest.raises(FlocoError, match="algorithm fedavg has no simplex"):
        package.fit(small_net, blobs(), package.FedAvg(), **{**QUICK, "rounds": 1}).personal("north", at="best")
