"""Tasks beside classification: metrics against scikit-learn, targets, and every step of a run."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from torch import nn

import floco
from conftest import floco as command
from floco.cli import survey
from floco.core.errors import FlocoError
from floco.core.task import Labels, Task, add_statistics
from floco.data.federation import Federation
from floco.runs.toml import parse
from floco.tasks import TASKS, Classification, Multilabel, Regression, Segmentation, Tokens

G = np.random.default_rng(0)
SITES = np.repeat(["a", "b", "c", "d"], [20, 60, 30, 30])
N = len(SITES)


def arrays(name: str) -> dict[str, Any]:
    """Data of a task, learnable within a few rounds."""
    x = G.normal(size=(N, 5)) * [1, 10, 100, 1, 1]
    if name == "regression":
        return {"x": x, "y": 3e4 + 2e3 * x[:, 0] + 50 * x[:, 1] + 100 * G.normal(size=N), "client": SITES}
    if name == "multilabel":
        return {
            "x": x,
            "y": np.stack([x[:, 0] > 0, x[:, 1] > 5], 1),
            "client": SITES,
            "names": np.array(["hot", "wet"]),
        }
    if name == "segmentation":
        images = G.integers(0, 256, size=(N, 6, 6)).astype(np.uint8)
        masks = np.where(images > 128, 7, 3)
        masks[:, 0, 0] = 255
        return {"x": images, "y": masks, "client": SITES}
    ids = G.integers(0, 9, size=(N, 6))
    return {"x": ids, "y": np.where(ids == 0, -1, ids % 3), "client": SITES}


SETTINGS = {
    "regression": Regression(),
    "multilabel": Multilabel(),
    "segmentation": Segmentation(ignore=255),
    "tokens": Tokens(ignore=-1),
}


class Words(nn.Module):
    """A linear layer on the embedding of each token."""

    def __init__(self, ids: int, outputs: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(ids, 8), nn.Linear(8, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.embedding(x))
        return found


MODELS = {"regression": "mlp", "multilabel": "mlp", "segmentation": "fcn", "tokens": "test_tasks:Words"}


def federation(name: str) -> Federation:
    return floco.load(arrays(name), task=SETTINGS[name]).split(floco.Natural())


def scored(task: Task, outputs: Any, targets: Any) -> dict[str, float | None]:
    return task.values(task.score(torch.as_tensor(outputs), torch.as_tensor(targets)))


def test_regression_metrics_are_scikit_learns_in_the_targets_units() -> None:
    y = 1e3 + 50 * G.normal(size=(40, 2))
    task = Regression(mean=(1e3, 990.0), std=(50.0, 40.0))
    outputs = torch.from_numpy(G.normal(size=(40, 2)))
    predicted = task.activate(outputs).numpy()
    found = scored(task, outputs, y)
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(y, predicted))
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(y, predicted))
    assert found["r2"] == pytest.approx(reference.r2_score(y, predicted))
    scaled = (y - [1e3, 990]) / [50, 40]
    assert found["loss"] == pytest.approx(reference.mean_squared_error(scaled, outputs))


@pytest.mark.parametrize(("scale", "level"), [(1e-3, 0), (1, 0), (5, 0), (0.3, -6), (0.01, -3), (2, 3)])
def test_multilabel_metrics_are_scikit_learns_at_every_level_and_scale_of_the_logits(scale: float, level: int) -> None:
    y = G.integers(0, 2, size=(500, 3)).astype(np.float32)
    logits = scale * (G.normal(size=(500, 3)) + 0.7 * y) + level
    found = scored(Multilabel(), logits, y)
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(y, logits), abs=5e-4)
    assert found["f1"] == pytest.approx(reference.f1_score(y, logits >= 0, average="macro", zero_division=0))
    probabilities = 1 / (1 + np.exp(-logits))
    losses = [reference.log_loss(y[:, i], probabilities[:, i]) for i in range(3)]
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-6)


def test_segmentation_metrics_are_scikit_learns_over_the_pixels_that_count() -> None:
    logits = torch.from_numpy(G.normal(size=(5, 4, 6, 6)))
    y = torch.from_numpy(G.integers(0, 3, size=(5, 6, 6)))
    y[:, 2] = -100
    found, counted = scored(Segmentation(), logits, y), (y != -100).numpy()
    real, guess = y.numpy()[counted], logits.argmax(1).numpy()[counted]
    assert found["iou"] == pytest.approx(reference.jaccard_score(real, guess, average="macro"))
    assert found["dice"] == pytest.approx(reference.f1_score(real, guess, average="macro"))
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(real, guess))
    probabilities = logits.softmax(1).movedim(1, -1).numpy()[counted]
    assert found["loss"] == pytest.approx(reference.log_loss(real, probabilities, labels=range(4)))


def test_token_metrics_are_scikit_learns_over_the_tokens_that_count() -> None:
    logits, y = torch.from_numpy(G.normal(size=(7, 5, 4))), torch.from_numpy(G.integers(0, 4, size=(7, 5)))
    y[2:, 3:] = -100
    found, counted = scored(Tokens(), logits, y), (y != -100).numpy()
    probabilities = logits.softmax(-1).numpy()[counted]
    loss = reference.log_loss(y.numpy()[counted], probabilities, labels=range(4))
    assert found["perplexity"] == pytest.approx(math.exp(loss))
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(y.numpy()[counted], probabilities.argmax(1)))


def _random(name: str) -> tuple[Task, torch.Tensor, torch.Tensor]:
    """A task, outputs (12, ...) and targets for them."""
    data = {k: v[:12] if k != "names" else v for k, v in arrays(name).items()}
    task = SETTINGS[name]
    y = task.targets(data["y"], "y", task.labels(data["y"], "y", (), data.get("names")))
    task = task.fitted(task.statistics(y), Labels())
    shapes = {"regression": (12, 1), "multilabel": (12, 2), "segmentation": (12, 2, 6, 6), "tokens": (12, 6, 3)}
    return task, torch.from_numpy(G.normal(size=shapes[name])).float(), y


@pytest.mark.parametrize("name", SETTINGS)
def test_scores_of_disjoint_parts_add_up_to_the_score_of_all(name: str) -> None:
    task, outputs, y = _random(name)
    parts = task.score(outputs[:5], y[:5]) + task.score(outputs[5:], y[5:])
    assert task.values(parts) == pytest.approx(task.values(task.score(outputs, y)), rel=1e-6)
    assert parts.plausible(12, 3 if name == "tokens" else 1 if name == "regression" else 2)
    assert not parts.plausible(11, 2)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_loss_is_that_of_the_score_and_leaves_padding_out(name: str) -> None:
    task, outputs, y = _random(name)
    assert float(task.loss(outputs, y)) == pytest.approx(task.score(outputs, y).loss, rel=1e-5)
    padded = torch.cat([y, torch.full_like(y[:3], task.padding or 0)])
    longer = torch.cat([outputs, torch.full_like(outputs[:3], 7.0)]).requires_grad_()
    loss = task.loss(longer, padded)
    assert float(loss.detach()) == pytest.approx(float(task.loss(outputs, y)), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, longer)
    assert torch.equal(gradient[12:], torch.zeros_like(gradient[12:]))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["multilabel", "segmentation"])
def test_a_coarse_score_tells_the_metrics_and_nothing_of_single_labels(name: str) -> None:
    task, outputs, y = _random(name)
    score = task.score(outputs, y)
    coarse = score.coarse()
    assert task.values(coarse) == pytest.approx(task.values(score))
    assert coarse.plausible(12, 2)
    assert math.isnan(task.value(coarse + coarse))
    assert max(len(v) for v in vars(coarse).values() if isinstance(v, tuple)) <= 2


REFUSED: dict[str, tuple[Task, Any, str]] = {
    "missing number": (Regression(), [1.0, np.nan], "1 of 2 are missing"),
    "text for a number": (Regression(), ["1", "2"], "must be numbers"),
    "numbers that float32 rounds": (Regression(), 1.7e9 + np.arange(9.0), "subtract a constant"),
    "a number beyond float32": (Regression(), [1e300, 1.0], "infinite"),
    "counts for labels": (Multilabel(), [[0, 2], [1, 0]], "0 (absent) and 1 (present) only, got 2"),
    "labels without columns": (Multilabel(), [0, 1], "task.name = classification"),
    "missing among labels": (Multilabel(), [[0, np.nan], [1, 0]], "missing"),
    "255 in a mask": (Segmentation(), [[[0, 1, 2, 255]]], "task.ignore"),
    "one class": (Segmentation(), [[[1, 1]]], "2 classes at least"),
    "a mask of floats": (Segmentation(), [[[0.5, 1.0]]], "must be labels (N, H, W)"),
    "a mask of nothing": (Segmentation(ignore=9), [[[0, 1]], [[9, 9]]], "in 1 of 2 samples no place counts"),
    "-1 among tags": (Tokens(), [[0, 1, 2, -1]], "task.ignore"),
    "flat tags": (Tokens(), [0, 1, 2], "(N, T)"),
    "amounts for classes": (Classification(), [0.5, 1.2], "task.name = regression"),
    "classes in a column": (Classification(), [[0], [1]], "take its one column"),
    "rows for classes": (Classification(), [[0, 1], [1, 0]], "multilabel"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_targets_that_a_task_cannot_mean_are_refused_in_words(kind: str) -> None:
    task, values, words = REFUSED[kind]
    y = np.array(values)
    with pytest.raises(FlocoError) as caught:
        task.targets(y, "y", task.labels(y, "y"))
    assert words in str(caught.value)


@pytest.mark.parametrize("task", [Tokens(), Multilabel(), Regression(), Classification()], ids=lambda t: t.name)
@pytest.mark.parametrize("names", [["a", "a"], ["a"]])
def test_names_of_a_source_that_do_not_fit_its_targets_are_refused(task: Task, names: list[str]) -> None:
    y = np.array([[0, 1], [1, 0]])
    with pytest.raises(FlocoError, match="name|whole numbers from 0 to 0"):
        task.labels(y[0] if task.labelled else y, "y", names=names)


@pytest.mark.parametrize("name", SETTINGS)
def test_engines_agree_and_a_model_at_hand_gives_the_score_of_the_table(name: str) -> None:
    data, last = federation(name), {}
    for engine in ("serial", "processes", "cohort"):
        model = floco.model(MODELS[name], data)
        settings = {"rounds": 4, "lr": 0.1, "engine": engine, "workers": 2, "fraction": 1.0, "evaluate_every": 2}
        run = floco.fit(model, data, floco.Floco(endpoints=3), **settings)
        last[engine] = run.clients
    keys = [k for k in last["serial"] if k.endswith(("_personal", "_global_local"))]
    assert last["serial"][keys].equals(last["processes"][keys])
    assert np.allclose(last["serial"][keys].astype(float), last["cohort"][keys].astype(float), rtol=2e-3, atol=2e-3)
    client, task = data.client("b"), data.task
    with torch.no_grad():
        outputs = run.personal("b")(data.inputs(client.test))
    own = last["cohort"].set_index("client").loc["b"]
    assert task.value(task.score(outputs, data.y[client.test])) == pytest.approx(
        own[f"{task.primary}_personal"], rel=1e-4
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_trained_is_better_than_what_is_not(name: str) -> None:
    data = federation(name)
    settings: dict[str, Any] = {"lr": 0.2, "fraction": 1.0, "engine": "serial", "evaluate_every": 1}
    history = floco.fit(floco.model(MODELS[name], data), data, floco.FedAvg(), rounds=10, **settings).history
    sign = 1 if data.task.metrics.higher else -1
    found = history[f"{data.task.primary}_global"]
    assert sign * found.iloc[-1] > sign * found.iloc[0]


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_an_exported_graph_predicts_in_the_targets_units(kind: str, tmp_path: Path) -> None:
    data = federation("regression")
    run = floco.fit(floco.model("mlp", data), data, floco.Floco(endpoints=3), rounds=4, lr=0.05)
    (file,) = run.export(tmp_path / f"m.{kind}", ["b"])
    x = arrays("regression")["x"][:7].astype(np.float32)
    if kind == "pt2":
        found = torch.export.load(file).module()(torch.from_numpy(x))[1].detach().numpy()
    else:
        import onnxruntime

        found = onnxruntime.InferenceSession(str(file)).run(None, {"samples": x})[1]
    assert found[:, 0] == pytest.approx(run.predict(x, "b")["prediction"].to_numpy(), rel=1e-4)
    assert np.abs(found - 3e4).max() < 3e4


@pytest.mark.parametrize("name", SETTINGS)
def test_models_of_every_task_leave_with_a_card_that_names_their_metrics(name: str, tmp_path: Path) -> None:
    data = federation(name)
    run = floco.fit(floco.model(MODELS[name], data), data, floco.Floco(endpoints=2), rounds=1)
    for file in run.export(tmp_path, ["b", None]):
        card = file.with_name(file.name + ".md").read_text()
        assert data.task.primary.replace("_", " ") in card


ENDS: dict[str, tuple[str, nn.Module, str]] = {
    "sigmoid, multilabel": ("multilabel", nn.Sigmoid(), "those of a sigmoid"),
    "softmax, segmentation": ("segmentation", nn.Softmax(1), "those of a softmax"),
    "softmax, tokens": ("tokens", nn.Softmax(-1), "those of a softmax"),
    "relu, regression": ("regression", nn.ReLU(), "ends in a relu"),
    "softplus, regression": ("regression", nn.Softplus(), "ends in a softplus"),
}


@pytest.mark.parametrize("kind", ENDS)
def test_a_network_that_ends_in_what_the_loss_applies_itself_is_doubted(kind: str) -> None:
    name, end, words = ENDS[kind]
    data = federation(name)
    build = floco.model(MODELS[name], data)
    with pytest.warns(UserWarning, match=words):
        floco.fit(lambda: nn.Sequential(build(), end), data, floco.FedAvg(), rounds=1, engine="serial")


@pytest.mark.parametrize("name", SETTINGS)
def test_predictions_as_arrays_have_a_label_for_every_place(name: str) -> None:
    data = federation(name)
    run = floco.fit(floco.model(MODELS[name], data), data, floco.Floco(endpoints=2), rounds=2, lr=0.1, engine="serial")
    some = data.schema.form.restored(data.x[data.client("b").test])
    found = run.predict_arrays(some.numpy(), "b")
    outputs = run.personal("b")(data.inputs(data.client("b").test)).detach()
    assert np.allclose(found["predictions"], data.task.activate(outputs).reshape(found["predictions"].shape), atol=1e-5)
    if name in ("segmentation", "tokens"):
        classes = outputs.argmax(1 if name == "segmentation" else -1)
        assert found["y"].tolist() == np.array(data.values)[classes].astype(found["y"].dtype).tolist()
        assert found["y"].dtype.kind == "i"
        assert (data.schema.targets(found["y"], "y") == classes).all()
    else:
        assert set(found) == {"predictions"}


@pytest.mark.parametrize("name", ["multilabel", "tokens"])
def test_labels_with_any_characters_are_told_apart_in_predictions(name: str, tmp_path: Path) -> None:
    names = ["a b", 'a", "b', "[]"][: 2 if name == "multilabel" else 3]
    if name == "multilabel":
        data = {**arrays(name), "names": np.array(names)}
    else:
        data = {**arrays(name), "y": np.array(names)[arrays(name)["x"] % 3]}
    np.savez(tmp_path / "d.npz", **data)
    chosen = [f"data.source=npz:{tmp_path / 'd.npz'}", f"task.name={name}", f"model.name={MODELS[name]}"]
    chosen += ["data.split=natural", "training.rounds=1", "run.engine=serial", "algorithm.name=fedavg", "training.lr=1"]
    assert command("run", *(p for c in chosen for p in ("-s", c)), "--out", tmp_path / "run").exit_code == 0
    np.savez(tmp_path / "new.npz", x=data["x"][:9])
    ask = ("predict", tmp_path / "run", tmp_path / "new.npz", "--global")
    assert command(*ask, "-o", tmp_path / "p.csv").exit_code == 0
    shown, made = command(*ask), command(*ask, "--json")
    with (tmp_path / "p.csv").open(newline="") as file:
        written = [json.loads(row["labels"]) for row in csv.DictReader(file)]
    assert written == [row["labels"] for row in json.loads(made.stdout)["predictions"]]
    assert {label for row in written for label in row} <= set(names)
    assert any(written)
    assert json.dumps(written[0]) in shown.stdout


@pytest.mark.parametrize(
    ("task", "shape", "words"),
    [
        (Multilabel(), (4, 2), "logits of shape (n, 3), got (n, 2)"),
        (Multilabel(), (4,), "logits of shape (n, 3), got (n)"),
        (Regression(), (4, 2), "outputs of shape (n, 3), got (n, 2)"),
        (Regression(), (4,), "outputs of shape (n, 3), got (n)"),
        (Tokens(), (4, 2), "logits of shape (n, 3, 2), got (n, 2)"),
    ],
)
def test_outputs_of_another_shape_are_told(task: Task, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(FlocoError, match=re.escape(words)):
        task.check(torch.zeros(shape), torch.zeros(4, 3), Labels(("a", "b")), "")


def test_predictions_for_a_table_have_its_index() -> None:
    import pandas as pd

    x, y = pd.DataFrame(arrays("regression")["x"], columns=list("abcde")), arrays("regression")["y"]
    data = floco.load({"x": x, "y": y, "client": SITES}, task="regression").split(floco.Natural())
    run = floco.fit(floco.model("mlp", data), data, floco.FedAvg(), rounds=1, engine="serial")
    some = x.iloc[[7, 3, 99]]
    table = run.predict(some, "b")
    assert table.index.tolist() == [7, 3, 99]
    assert table.loc[3, "prediction"] == pytest.approx(run.predict(x.iloc[[3]], "b")["prediction"].iloc[0], rel=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_newcomer_is_placed_and_a_client_is_checked(name: str) -> None:
    data = federation(name)
    model = floco.model(MODELS[name], data)
    run = floco.fit(model, data, floco.Floco(endpoints=3), rounds=8, lr=0.5, fraction=1.0, engine="serial")
    new = {k: v[80:120] for k, v in arrays(name).items() if k in ("x", "y")}
    placed = run.place(new["x"], new["y"])
    assert math.isclose(float(placed.center.sum()), 1, abs_tol=1e-5)
    assert run.check("b", new["x"], new["y"]).verdict in ("fits", "moved", "strange")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_is_resumed_to_the_same_bytes_and_reported_by_its_metric(name: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays(name))
    given = {"task.name": name, "data.source": f"npz:{tmp_path}/d.npz", "data.split": "natural"}
    given |= {"model.name": MODELS[name], "training.rounds": 4, "training.lr": 0.1, "run.evaluate_every": 1}
    given |= {"run.engine": "serial", "algorithm.endpoints": 3}
    given |= {} if (ignore := getattr(SETTINGS[name], "ignore", None)) is None else {"task.ignore": ignore}
    settings = [part for key, value in given.items() for part in ("-s", f"{key}={value}")]
    for folder in ("whole", "again"):
        assert command("run", *settings, "--out", str(tmp_path / folder)).exit_code == 0
    tables = [(tmp_path / folder / "clients.csv").read_bytes() for folder in ("whole", "again")]
    assert tables[0] == tables[1]
    shown = command("resume", str(tmp_path / "whole")).stdout
    assert SETTINGS[name].primary.replace("_", " ") in shown
    assert command("report", str(tmp_path / "whole")).exit_code == 0
    page = (tmp_path / "whole" / "report.html").read_text()
    assert f"Judged by {SETTINGS[name].metrics.reading}, for each client" in page
    assert "most frequent label" not in page


@pytest.mark.parametrize("name", SETTINGS)
def test_who_has_what_counts_labels_where_there_are_some(name: str) -> None:
    data, y = federation(name), arrays(name)["y"]
    found = data.task.frequencies(data.y, len(data.names))
    if name == "regression":
        assert found == ()
    elif name == "multilabel":
        assert found == tuple(int((data.y[:, i] == 1).sum()) for i in (0, 1))
    else:
        kept = int((data.y != -100).sum())
        assert sum(found) == kept < y.size
        assert len(found) == len(data.names)
    assert data.classes == 0
    shown = survey.client_table(data, 80)
    assert "label" in str(shown.title) or name == "regression"


def test_targets_are_standardised_with_the_training_parts_of_the_participants_only() -> None:
    data = floco.load(arrays("regression"), task="regression").split(floco.Natural(), held_out=1)
    train = torch.cat([c.train for c in data.clients])
    task: Any = data.task
    assert task.mean[0] == pytest.approx(float(data.y[train].double().mean()))
    assert task.std[0] == pytest.approx(float(data.y[train].double().std(correction=0)))


def test_statistics_of_clients_add_up_in_any_order() -> None:
    parts = [Regression().statistics(torch.from_numpy(G.normal(size=n)).float()) for n in (3, 50, 7)]
    assert add_statistics(parts) == add_statistics(parts[::-1])


def test_balanced_weights_are_those_of_scikit_learn_and_change_the_training_loss_only() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    y = np.array([0] * 50 + [1] * 30 + [2] * 4)
    task = Classification("balanced").fitted(Classification("balanced").statistics(torch.from_numpy(y)), Labels("abc"))
    assert task.class_weights == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=y))
    logits, targets = torch.from_numpy(G.normal(size=(84, 3))), torch.from_numpy(y)
    expected = nn.functional.cross_entropy(logits, targets, torch.tensor(task.class_weights).double())
    assert float(task.loss(logits, targets)) == pytest.approx(float(expected))
    assert task.score(logits, targets) == Classification().score(logits, targets)


def test_class_weights_are_read_from_the_configuration_as_a_word_or_as_numbers() -> None:
    for given in ("balanced", [1.0, 2.0]):
        task: Any = parse({"task": {"class_weights": given}}).task
        assert task.class_weights == (given if isinstance(given, str) else tuple(given))
    with pytest.raises(FlocoError, match=r"class_weights must be"):
        parse({"task": {"class_weights": "even"}})


def test_the_loss_of_a_regression_is_a_setting_called_loss() -> None:
    task: Any = parse({"task": {"name": "regression", "loss": "mae"}}).task
    assert task == Regression("mae")
    assert (
        'loss = "mae"' in command("run", "--print-config", "-s", "task.name=regression", "-s", "task.loss=mae").stdout
    )
    with pytest.raises(FlocoError, match=r"task\.loss must be one of 'mse', 'mae', 'huber', got 'l2'"):
        parse({"task": {"name": "regression", "loss": "l2"}})


@pytest.mark.parametrize("name", [n for n in TASKS if n != "classification"])
def test_what_needs_one_class_a_sample_refuses_other_tasks_by_name(name: str) -> None:
    samples = floco.load(arrays(name), task=SETTINGS[name])
    with pytest.raises(FlocoError, match=f"split folds goes by classes, and task {name} has none"):
        samples.split(floco.Folds(2), clients=2)


@pytest.mark.parametrize(("name", "metric"), [("regression", "r2"), ("multilabel", "auroc")])
def test_means_leave_out_the_clients_for_which_a_metric_is_not_defined(name: str, metric: str) -> None:
    data = arrays(name)
    data["client"] = np.where(np.arange(N) < 2, "tiny", SITES)  # one sample to test: its target is constant
    federation = floco.load(data, task=SETTINGS[name]).split(floco.Natural())
    run = floco.fit(floco.model("mlp", federation), federation, floco.FedAvg(), rounds=1, evaluate_every=1)
    column, last = f"{metric}_personal", run.history.iloc[-1]
    known = run.clients.dropna(subset=column)
    assert len(known) == len(run.clients) - 1
    assert last[column] == pytest.approx(known[column].mean())
    assert last[f"{column}_weighted"] == pytest.approx(np.average(known[column], weights=known["n_test"]))


def test_the_number_of_ids_is_a_setting_of_the_model() -> None:
    samples = floco.load(arrays("tokens"), task=Tokens(ignore=-1))
    federation = samples.split(floco.Natural())
    largest = int(samples.x.max())  # type: ignore[union-attr]
    assert floco.data.models.model("gru", federation, (50,))().embedding.num_embeddings == 50
    with pytest.raises(FlocoError, match=f"ids up to {largest}, and with model.ids = 2 they are from 0 to 1"):
        floco.data.models.model("gru", federation, (2,))()
    numbers = floco.load(arrays("regression"), task="regression").split(floco.Natural())
    with pytest.raises(FlocoError, match=r"one number for each input of ids, got \[9\] and 0 inputs of ids"):
        floco.data.models.model("mlp", numbers, (9,))
