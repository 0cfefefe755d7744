"""Newcomers, the best mixtures, and drift."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import floco as package
from conftest import floco, make, rows, same, train, write_blobs
from floco.algorithms import FedAvg, Floco
from floco.client.mixtures import Mixtures
from floco.core.errors import FlocoError
from floco.data.federation import Client
from floco.deliver.newcomers import newcomer_rows, place, try_place
from floco.simplex.optimum import lowest
from floco.tasks.guess import LabelGuess

FOLDS = [
    "-s",
    "data.clients=20",
    "-s",
    "data.held_out=5",
    "-s",
    "training.rounds=40",
    "-s",
    "run.evaluate_every=40",
    "-s",
    "run.engine=serial",
]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in five folds, one client of each held out."""
    path = tmp_path_factory.mktemp("digits") / "run"
    done = floco("run", *FOLDS, "--out", path)
    assert done.exit_code == 0, done.output
    return path


def data_of(run: package.Run, client: str, part: str = "train") -> tuple[np.ndarray, np.ndarray]:
    federation = run.setup.with_samples("a test").federation
    chosen = getattr(federation.client(client), part)
    return federation.x[chosen].squeeze(1).numpy(), federation.y[chosen].numpy()


def everything(run: package.Run) -> tuple[np.ndarray, np.ndarray]:
    """The samples of all participants."""
    x, y = zip(
        *(data_of(run, client, part) for client in run.setup.federation.ids for part in ("train", "test")), strict=True
    )
    return np.concatenate(x), np.concatenate(y)


def recoded(y: np.ndarray, how: str, classes: int = 10) -> np.ndarray:
    """Labels with other numbers: the two commonest exchanged, or all of them shifted by one or by four."""
    code = np.arange(classes)
    if how == "swapped":
        main = np.argsort(-np.bincount(y, minlength=classes), kind="stable")[:2]
        code[main] = main[::-1]
    return {"swapped": code, "shifted": (code + 1) % classes, "far": (code + 4) % classes}[how][y]


def test_the_lowest_point_is_no_higher_than_any_of_a_fine_grid() -> None:
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        corners, y = 3 * torch.randn(3, 12, 4, generator=g, dtype=torch.float64), torch.randint(4, (12,), generator=g)

        def loss(alpha: torch.Tensor, corners: torch.Tensor = corners, y: torch.Tensor = y) -> torch.Tensor:
            return cross_entropy(torch.einsum("m,mnc->nc", alpha, corners), y)

        found = lowest(loss, torch.full((3,), 1 / 3))
        assert float(found.sum()) == pytest.approx(1, abs=1e-12)
        assert float(found.min()) >= 0
        grid = torch.tensor([[i, j, 50 - i - j] for i in range(51) for j in range(51 - i)], dtype=torch.float64) / 50
        mixed = torch.einsum("am,mnc->acn", grid, corners)
        assert (
            float(loss(found))
            <= float(cross_entropy(mixed, y.expand(len(grid), -1), reduction="none").mean(1).min()) + 1e-6
        )


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e308])
def test_a_loss_that_is_not_finite_names_the_step(factor: float) -> None:
    with pytest.raises(FlocoError, match=r"loss of a mixture is not finite.*training\.lr.*algorithm\.step"):
        lowest(lambda a: (a * factor * 10).sum(), torch.full((3,), 1 / 3))


def test_what_cannot_be_minimised_is_an_error() -> None:
    with pytest.raises(FlocoError, match="no lowest mixture was found"):
        lowest(lambda a: 1e9 * (a[0] - 0.123) ** 2 + a[1] ** 4, torch.full((3,), 1 / 3), steps=1)


@pytest.mark.parametrize("mix", ["last", ("0.weight",)])
def test_the_best_mixture_has_no_lower_neighbour(mix: Any) -> None:
    setup = make(Floco(endpoints=3, assign_at=2, mix=mix))
    state = train(setup)[-1].state
    x, y = setup.federation.x, setup.federation.y
    mixtures = Mixtures(setup, setup.algorithm.mixing, state.shared, x)
    assert mixtures.linear == (mix == "last")
    best = mixtures.best(y)

    def objective(alpha: torch.Tensor) -> float:
        return float(cross_entropy(mixtures.outputs(alpha), y) + (alpha - 1 / 3).square().sum() / len(y))

    for other in torch.eye(3, dtype=torch.float64):
        for step in (0.02, 0.2, 1.0):
            assert objective(best) <= objective((1 - step) * best + step * other) + 1e-5


def test_held_out_clients_are_reported_against_what_they_could_have_otherwise(digits: Path) -> None:
    table = rows(digits / "newcomers.csv")
    assert {r["client"] for r in table} == {f"client-{i}" for i in range(15, 20)}
    assert {r["model"] for r in table} == {"placed", "global", "global+ft", "local"}
    assert {int(r["samples"]) for r in table} >= {5, 10, 20, 50}

    def mean(model: str, least: int, most: int) -> float:
        return float(
            np.mean([float(r["loss"]) for r in table if r["model"] == model and least <= int(r["samples"]) <= most])
        )

    for least, most in ((5, 5), (10, 10), (20, 20), (51, 1000)):
        assert mean("placed", least, most) < min(mean("global", least, most), mean("local", least, most))


def test_placing_a_newcomer_changes_nobody_else_and_gives_a_model(digits: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in digits.rglob("*") if p.is_file() and p.name != ".lock"}
    run = package.open_run(digits)
    x, y = data_of(run, "client-16")
    np.savez(tmp_path / "new.npz", x=x, y=y)
    done = floco("place", digits, tmp_path / "new.npz", "-o", tmp_path / "new.onnx")
    assert done.exit_code == 0, done.output
    assert {p.name for p in tmp_path.iterdir()} == {"new.npz", "new.onnx", "new.onnx.json", "new.onnx.md"}
    assert {p: p.read_bytes() for p in digits.rglob("*") if p.is_file() and p.name != ".lock"} == before
    placed = run.place(x, y)
    assert [c.rule for c in placed.candidates] == ["global", "signal", "data"]
    assert placed.chosen.loss == min(c.loss for c in placed.candidates)
    assert float(placed.center.sum()) == pytest.approx(1)
    with torch.no_grad():
        found = placed.module(run.setup.federation.normalization(torch.from_numpy(x)[:, None])).softmax(1)
    mixed = run.setup.algorithm.mixing(run.progress.state.shared, placed.center.float())
    assert torch.equal(placed.module.get_parameter("3.weight"), mixed["3.weight"])
    assert (found.argmax(1).numpy() == y).mean() > 0.9


def test_samples_that_are_left_out_do_not_place_anybody() -> None:
    """With labels that are noise, what fits best on samples it has seen is no better on those that were left out."""
    setup = make(Floco(endpoints=4, assign_at=2), model=None)
    state = train(setup)[-1].state
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 5, generator=g), torch.randint(3, (40,), generator=g)
    placed = try_place(setup, state, x, y)
    by_rule = {c.rule: c for c in placed.candidates}
    mixtures = Mixtures(setup, setup.algorithm.mixing, state.shared, x)
    seen = float(cross_entropy(mixtures.outputs(by_rule["data"].alpha), y))
    assert seen < by_rule["data"].loss


@pytest.mark.parametrize(
    ("y", "parts", "accuracy", "likelihood"),
    [
        ([0, 0, 1], [[0], [1], [2]], 2 / 3, (2 / 5) * (2 / 5) * (1 / 5)),
        ([2, 2, 2, 2], [[3, 0], [1, 2]], 1.0, (3 / 5) ** 4),
        ([0, 1, 2, 1], [[1, 2], [3, 0]], 1 / 2, (2 / 5) * (1 / 5) * (2 / 5) * (1 / 5)),
    ],
)
def test_a_guess_is_the_commonest_label_and_the_frequencies_of_those_that_are_not_left_out(
    y: list[int], parts: list[list[int]], accuracy: float, likelihood: float
) -> None:
    guess = LabelGuess.of(torch.tensor(y), [torch.tensor(p) for p in parts], 3)
    assert (guess.samples, guess.accuracy) == (len(y), accuracy)
    assert guess.loss == pytest.approx(-math.log(likelihood) / len(y), abs=1e-12)


@pytest.mark.parametrize(
    ("guess", "accuracy", "loss", "beaten"),
    [
        (LabelGuess(50, 0.4, 1.6), 0.02, 6.0, True),  # exchanged labels
        (LabelGuess(6, 0.5, 1.87), 1 / 6, 3.5, True),
        (LabelGuess(6, 1 / 3, 2.3), 1 / 3, 3.5, True),  # no better than the commonest label is as bad
        (
            LabelGuess(50, 0.4, 1.6),
            0.42,
            2.0,
            False,
        ),  # a better accuracy is of use, however sure of itself the model is
        (LabelGuess(50, 0.4, 1.6), 0.38, 1.5, False),  # so is a better loss
        (LabelGuess(500, 1.0, 0.02), 0.94, 0.2, False),  # one label: nothing can be better than to name it
        (LabelGuess(500, 0.98, 0.12), 0.93, 0.3, False),
        (LabelGuess(500, 0.98, 0.12), 0.02, 5.0, True),
        (LabelGuess(2, 1.0, 1.7), 0.0, 2.5, False),  # twice unlucky
        (LabelGuess(2, 1.0, 1.7), 0.0, 5.0, True),
    ],
)
def test_a_guess_beats_a_model_that_is_worse_by_both_measures_and_by_more_than_accident(
    guess: LabelGuess, accuracy: float, loss: float, beaten: bool
) -> None:
    assert guess.beats(accuracy, loss) == beaten


@pytest.mark.parametrize("samples", [6, 20, 60])
@pytest.mark.parametrize("how", ["swapped", "shifted", "far"])
def test_a_newcomer_whose_labels_are_coded_otherwise_gets_no_model(
    digits: Path, tmp_path: Path, how: str, samples: int
) -> None:
    run = package.open_run(digits)
    for client in ("client-15", "client-17"):
        x, y = (part[:samples] for part in data_of(run, client))
        assert not try_place(run.setup, run.progress.state, *run.setup.federation.schema.labelled(x, y)).refusal
        wrong = recoded(y, how)
        with pytest.raises(
            FlocoError,
            match=rf"no better than a guess: of {samples} samples.*recognises.*commonest label.*its loss is"
            ".*check that labels and samples are coded",
        ):
            run.place(x, wrong)
    np.savez(tmp_path / "new.npz", x=x, y=wrong)
    done = floco("place", digits, tmp_path / "new.npz", "-o", tmp_path / "new.onnx")
    assert done.exit_code == 2, done.output
    assert "no better than a guess" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["new.npz"]


@pytest.mark.parametrize(
    ("main", "others"),
    [(2, 0), (3, 0), (6, 0), (20, 0), (100, 0), (49, 1), (98, 2), (1, 1), (2, 1)],
    ids=lambda n: str(n),
)
def test_a_newcomer_with_few_samples_or_nearly_one_label_gets_its_model(digits: Path, main: int, others: int) -> None:
    """The model is good, and wrong for some: to name the one label is hard to beat."""
    run = package.open_run(digits)
    x, y = everything(run)
    for label in (1, 8):
        chosen = np.concatenate([np.flatnonzero(y == label)[:main], np.flatnonzero(y == (label + 1) % 10)[:others]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert run.place(x[chosen], y[chosen]).chosen.value >= 0.5


@pytest.mark.filterwarnings("default")
def test_a_model_that_is_only_less_often_right_than_the_commonest_label_comes_with_a_warning(
    digits: Path, tmp_path: Path
) -> None:
    run = package.open_run(digits)
    x, y = everything(run)
    x, y = x[y == 9][:100], y[y == 9][:100]
    with pytest.warns(
        UserWarning,
        match=r"of 100 samples, left out in turn, it recognises 9\d.0 %, and 100.0 % have the commonest label",
    ) as caught:
        placed = run.place(x, y)
    assert caught[0].filename == __file__
    assert placed.chosen.loss < placed.guess.loss
    np.savez(tmp_path / "new.npz", x=x, y=y)
    done = floco("place", digits, tmp_path / "new.npz", "-o", tmp_path / "new.safetensors")
    assert done.exit_code == 3, done.output
    assert "warning: these samples do not show" in done.stderr
    assert "warning" not in done.stdout
    assert (tmp_path / "new.safetensors").exists()
    assert "Not shown to be better than a guess" in (tmp_path / "new.safetensors.md").read_text()


def test_held_out_clients_whose_model_is_refused_are_among_those_of_whom_means_are_taken() -> None:
    setup = make(Floco(endpoints=3, assign_at=2))
    federation = setup.federation
    members, kept = federation.clients[:-1], federation.clients[-1]
    y = federation.y.clone()
    y[kept.train] = (y[kept.train] + 1) % 3
    held = make(
        Floco(endpoints=3, assign_at=2),
        federation=type(federation)(federation.x, y, members, federation.names, held_out=(kept,)),
    )
    table = newcomer_rows(held, train(held)[-1].state)
    refused = [r for r in table if r["model"] == "placed" and r["size"] == "all"]
    assert len(refused) == 1
    assert "no better than a guess" in str(refused[0]["problem"])
    assert refused[0]["rule"] in ("global", "signal", "data")
    assert isinstance(refused[0]["accuracy"], float)
    assert not [r for r in table if r["model"] != "placed" and r["problem"]]


def test_one_sample_and_a_run_without_assignment_are_told(tmp_path: Path) -> None:
    setup = make(Floco(endpoints=3, assign_at=2))
    state = train(setup)[-1].state
    with pytest.raises(FlocoError, match="2 labelled samples at least.*got 1"):
        place(setup, state, torch.randn(1, 5), torch.tensor([0]))
    never = make(Floco(endpoints=3, assign_at="never"))
    with pytest.raises(FlocoError, match="there was none in this run: algorithm.assign_at = never"):
        place(never, train(never)[-1].state, torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))
    plain = make(FedAvg())
    with pytest.raises(FlocoError, match="algorithm fedavg has none"):
        place(plain, train(plain)[-1].state, torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))


def test_methods_without_a_simplex_report_newcomers_too() -> None:
    setup = make(FedAvg())
    federation = setup.federation
    members, kept = federation.clients[:-1], federation.clients[-1:]
    held = make(
        FedAvg(), federation=type(federation)(federation.x, federation.y, members, federation.names, held_out=kept)
    )
    table = newcomer_rows(held, train(held)[-1].state)
    assert {r["model"] for r in table} == {"global", "global+ft", "local"}
    assert {r["client"] for r in table} == {kept[0].id}


def test_a_run_that_is_killed_before_its_newcomers_are_written_writes_them_when_resumed(tmp_path: Path) -> None:
    source = write_blobs(tmp_path / "blobs.npz")
    settings = [
        f"data.source=npz:{source}",
        "data.split=natural",
        "data.held_out=2",
        "training.rounds=2",
        "run.engine=serial",
    ]
    assert floco("run", *[w for s in settings for w in ("-s", s)], "--out", tmp_path / "run").exit_code == 0
    written = (tmp_path / "run" / "newcomers.csv").read_bytes()
    (tmp_path / "run" / "newcomers.csv").unlink()
    assert floco("resume", tmp_path / "run").exit_code == 0
    assert (tmp_path / "run" / "newcomers.csv").read_bytes() == written


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """A run of five clients with two main digits each, and for each client samples that came later."""
    folder = tmp_path_factory.mktemp("groups")
    samples = package.load("digits")
    x, y = samples.x.squeeze(1).numpy(), samples.y
    g = np.random.default_rng(0)
    owner = np.where(g.random(len(y)) < 0.9, y // 2, g.integers(5, size=len(y)))
    later = g.random(len(y)) < 0.3
    np.savez(folder / "now.npz", x=x[~later], y=y[~later], client=np.array([f"c{i}" for i in owner[~later]]))
    settings = [
        f"data.source=npz:{folder / 'now.npz'}",
        "data.split=natural",
        "data.test_share=0.4",
        "algorithm.endpoints=5",
        "training.rounds=30",
        "training.fraction=1.0",
    ]
    done = floco(
        "run",
        *[w for s in settings for w in ("-s", s)],
        "-s",
        "run.evaluate_every=30",
        "-s",
        "run.engine=serial",
        "--out",
        folder / "run",
    )
    assert done.exit_code == 0, done.output
    return folder / "run", {f"c{i}": (x[later & (owner == i)], y[later & (owner == i)]) for i in range(5)}


def test_a_subregion_fits_later_data_of_its_client_and_no_other_groups(
    groups: tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]], tmp_path: Path
) -> None:
    path, later = groups
    run = package.open_run(path)
    for client in later:
        assert run.check(client, *later[client]).verdict == "fits"
        found = [run.check(client, *later[other]) for other in later if other != client]
        assert [f.verdict for f in found] == ["moved"] * 4
        assert all(f.loss_best < f.loss_center for f in found)
    noise = np.random.default_rng(0).integers(0, 17, (60, 8, 8)).astype(np.uint8)
    assert run.check("c0", noise, np.arange(60) % 2).verdict == "strange"
    np.savez(tmp_path / "moved.npz", x=later["c3"][0], y=later["c3"][1])
    done = floco("place", path, tmp_path / "moved.npz", "--check", "--client", "c0")
    assert done.exit_code == 3, done.output
    for words in ("its center", "best mixture", "center of c3", "moved: the subregion"):
        assert words in done.output
    assert [p.name for p in tmp_path.iterdir()] == ["moved.npz"]


def test_labels_that_were_exchanged_are_shown_by_class_and_told_apart_by_the_exit_code(
    groups: tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]], tmp_path: Path
) -> None:
    path, later = groups
    x, y = later["c1"]  # mostly 2 and 3
    exchanged = np.array([3 if n == 2 else 2 if n == 3 else n for n in y.tolist()])
    rows = {r["label"]: r for r in package.open_run(path).check("c1", x, exchanged).classes}
    assert rows["2"]["mostly_taken_for"] == "3"
    assert rows["3"]["mostly_taken_for"] == "2"
    assert max(rows[n]["recognised_new"] for n in "23") < 0.1 < 0.9 < min(rows[n]["recognised_known"] for n in "23")
    assert rows["2"]["samples_new"] == (y == 3).sum()
    np.savez(tmp_path / "new.npz", x=x, y=exchanged)
    np.savez(tmp_path / "own.npz", x=x, y=y)
    done = floco("place", path, tmp_path / "new.npz", "--check", "--client", "c1")
    assert done.exit_code == 4, done.output
    assert "new data mostly taken for" in " ".join(done.output.split())
    done = floco("place", path, tmp_path / "own.npz", "--check", "--client", "c1", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["verdict"] == "fits"


@pytest.mark.parametrize("how", ["swapped", "shifted", "far"])
@pytest.mark.parametrize("samples", [10, 200])
def test_labels_that_are_coded_otherwise_are_strange_to_the_whole_simplex(
    groups: tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]], how: str, samples: int
) -> None:
    run = package.open_run(groups[0])
    for client, (x, y) in groups[1].items():
        found = run.check(client, x[:samples], recoded(y, how)[:samples])
        assert found.verdict == "strange", (client, found)
        assert "check labels and units first" in found.advice
        assert found.evidence[-1]["loss_new"] < found.loss_best  # without a model


def test_a_client_has_not_moved_to_a_point_that_is_worse_than_its_center(
    groups: tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("floco.deliver.drift.LEVEL", 3.0)  # both tests find a change everywhere
    run = package.open_run(groups[0])
    found = [run.check(client, *later) for client, later in groups[1].items()]
    assert {f.verdict for f in found if f.loss_best >= f.loss_center} == {"strange"}
    assert {f.verdict for f in found if f.loss_best < f.loss_center} == {"moved"}


def test_a_better_point_that_is_still_no_better_than_a_guess_is_strange(
    groups: tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([0.0, 0.0, 1.0])  # the advantage is larger on both halves, and the loss at the center is not
    monkeypatch.setattr("floco.deliver.drift._p_larger", lambda *_: next(answers))
    x, y = groups[1]["c1"]
    assert package.open_run(groups[0]).check("c1", x, recoded(y, "shifted")).verdict == "strange"


def test_a_check_needs_samples_and_a_center(digits: Path) -> None:
    run = package.open_run(digits)
    x, y = data_of(run, "client-0")
    with pytest.raises(FlocoError, match="10 new samples at least.*got 4"):
        run.check("client-0", x[:4], y[:4])
    done = floco("place", digits, "in.npz", "--check")
    assert done.exit_code == 2
    assert "--check and --client ID belong together" in done.output


def test_floco_plus_places_and_finds_the_best_point_on_the_clients_own_simplex() -> None:
    setup = make(package.FlocoPlus(endpoints=3, assign_at=2), fraction=1.0)
    progress = train(setup)[-1]
    run = package.Run(setup, progress)
    shared, own = (
        package.Run(make(a, fraction=1.0), progress)
        for a in (Floco(endpoints=3, assign_at=2), package.FlocoPlus(endpoints=3, assign_at=2))
    )
    assert not same(dict(shared.personal("north").state_dict()), dict(own.personal("north").state_dict()))
    best = run.personal("east", at="best")
    client: Client = setup.federation.client("east")
    inputs, labels = setup.federation.inputs(client.train), setup.federation.y[client.train]
    with torch.no_grad():
        assert float(cross_entropy(best(inputs), labels)) < float(cross_entropy(run.personal("east")(inputs), labels))


def test_a_clients_model_is_at_its_center_or_at_the_best_mixture_for_its_training_part() -> None:
    setup = make(Floco(endpoints=3, assign_at=2), fraction=1.0)
    run = package.Run(setup, train(setup)[-1])
    client, mixing, shared = setup.federation.client("north"), setup.algorithm.mixing, run.progress.state.shared
    best = Mixtures(setup, mixing, shared, setup.federation.x[client.train]).best(
        setup.federation.y[client.train], near=run.progress.state.by_client["north"]["center"]
    )
    assert torch.equal(
        run.personal("north", at="best").get_parameter("2.weight"), mixing(shared, best.float())["2.weight"]
    )
    center = run.progress.state.by_client["north"]["center"]
    assert torch.equal(run.personal("north").get_parameter("2.weight"), mixing(shared, center.float())["2.weight"])
    assert not torch.equal(best, center)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def test_a_rule_that_the_network_cannot_bear_is_named_and_the_others_remain() -> None:
    """BatchNorm cannot train on the one sample that is left of two."""
    setup = make(Floco(endpoints=3, assign_at=2), model=Normed)
    placed = try_place(setup, train(setup)[-1].state, torch.randn(2, 5), torch.tensor([0, 1]))
    assert [c.rule for c in placed.candidates] == ["global", "data"]
    assert "more than 1 value" in placed.problems["signal"]
    federation = setup.federation
    kept = Client("new", torch.tensor([0]), torch.tensor([1, 2, 3]))
    held = make(
        Floco(endpoints=3, assign_at=2),
        model=Normed,
        federation=type(federation)(federation.x, federation.y, federation.clients, federation.names, held_out=(kept,)),
    )
    table = {r["model"]: r for r in newcomer_rows(held, train(held)[-1].state)}
    assert table["global"]["problem"] == ""
    assert table["local"]["accuracy"] is None
    assert "more than 1 value" in str(table["local"]["problem"])


@pytest.mark.parametrize("settings", [{"mix": "all"}, {"precision": "bf16"}])
def test_newcomers_are_placed_in_runs_whose_logits_are_not_linear_or_not_exact(settings: dict[str, str]) -> None:
    algorithm = Floco(endpoints=3, assign_at=2, mix=settings.get("mix", "last"))
    setup = make(algorithm, precision=settings.get("precision", "float32"))
    placed = place(setup, train(setup)[-1].state, setup.federation.x[:30], setup.federation.y[:30])
    assert not placed.problems
    assert len(placed.candidates) == 3


def test_a_check_is_not_more_easily_alarmed_by_more_samples(
    groups: tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]],
) -> None:
    """Data of the client's own kind, many times as many as it has tested: with all, the best mixture would win."""
    run = package.open_run(groups[0])
    x, y = data_of(run, "c1", "test")
    whole = run.setup.with_samples("a test").federation
    few = Client("c1", whole.client("c1").train, whole.client("c1").test[:15])
    federation = replace(whole, clients=tuple(few if c.id == "c1" else c for c in whole.clients))
    small = package.Run(replace(run.setup, federation=federation), run.progress)
    g = np.random.default_rng(0)
    verdicts = [
        small.check("c1", x[chosen], y[chosen]).verdict for chosen in (g.permutation(len(y)) for _ in range(20))
    ]
    assert verdicts.count("fits") >= 18
