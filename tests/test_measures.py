"""Metrics that need single samples, their intervals, thresholds, groups and files."""

import json
import math
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, recall_score, roc_auc_score

import floco
from conftest import floco as command
from conftest import make, small_net, train
from floco.algorithms import FedAvg, Floco
from floco.client.measure import all_metrics, confuse, measure, measure_difference
from floco.core.errors import FlocoError
from floco.core.intervals import bound_mean, percentiles, resample, round_noise, wilson
from floco.core.metrics import Metrics
from floco.core.task import Task
from floco.data.groups import read_groups
from floco.deliver.measures import measure_clients
from floco.tasks import Classification, Multilabel, Regression, Segmentation, Tokens
from floco.tasks.decisions import choose_threshold, resample_areas

RNG = np.random.default_rng(0)


def drawn(n: int, classes: int, levels: int = 0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, on a few levels if that is said so that there are ties, and labels."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=g)
    return (logits * levels).round() if levels else logits, torch.randint(classes, (n,), generator=g)


AWKWARD = {
    "two classes": drawn(60, 2),
    "ties": drawn(60, 2, levels=1),
    "many classes": drawn(80, 5),
    "many classes with ties": drawn(80, 5, levels=2),
    "18 samples": drawn(18, 3),
    "a class that never occurs": (drawn(30, 4)[0], drawn(30, 3)[1]),
    "all scores equal": (torch.zeros(10, 2), torch.arange(10) % 2),
    "one positive": (drawn(12, 2)[0], (torch.arange(12) == 5).long()),
}


@pytest.mark.parametrize("case", AWKWARD)
def test_areas_and_f1_are_scikit_learns(case: str) -> None:
    logits, labels = AWKWARD[case]
    got, scores = measure(Classification(), logits, labels), logits.double().softmax(1).numpy()
    truth = np.eye(logits.shape[1])[labels.numpy()]
    judged = truth.any(0) & ~truth.all(0)
    both = truth[:, judged], scores[:, judged]
    assert got["auroc"] == pytest.approx(roc_auc_score(*both, average="macro"))
    assert got["average_precision"] == pytest.approx(average_precision_score(*both, average="macro"))
    assert got["f1"] == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"))
    assert (
        confuse(Classification(), logits, labels).numpy()
        == confusion_matrix(labels, logits.argmax(1), labels=range(logits.shape[1]))
    ).all()


@pytest.mark.parametrize("n", [1, 7])
def test_samples_of_one_class_have_no_areas_and_no_sensitivity_or_specificity(n: int) -> None:
    got = measure(Classification(), drawn(n, 2)[0], torch.zeros(n).long(), thresholds=torch.full((n,), 0.5))
    names = ("auroc", "average_precision", "sensitivity", "sensitivity_lower", "auroc_upper")
    assert [got[name] for name in names] == [None] * 5
    assert got["specificity"] is not None
    assert got["accuracy_lower"] < got["accuracy"] + 1e-9


@pytest.mark.parametrize("levels", [0, 1])
def test_resampled_areas_are_scikit_learns_with_the_counts_as_weights(levels: int) -> None:
    logits, labels = drawn(40, 3, levels)
    scores, truth = logits.numpy(), np.eye(3)[labels.numpy()] > 0
    counts = RNG.integers(4, size=(5, 40))
    got = resample_areas(scores, truth, counts)
    for i, weights in enumerate(counts):
        each = [(truth[:, c], scores[:, c], weights) for c in range(3)]
        assert got["auroc"][i] == pytest.approx(np.mean([roc_auc_score(y, s, sample_weight=w) for y, s, w in each]))
        wanted = np.mean([average_precision_score(y, s, sample_weight=w) for y, s, w in each])
        assert got["average_precision"][i] == pytest.approx(wanted)


def targets_of(task: Task, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    if isinstance(task, Regression):
        return torch.randn(n, 2, generator=g), torch.randn(n, 2, generator=g)
    if isinstance(task, Multilabel):
        return torch.randn(n, 3, generator=g), (torch.rand(n, 3, generator=g) < 0.4).float()
    if isinstance(task, Segmentation):
        return torch.randn(n, 3, 4, 4, generator=g), torch.randint(3, (n, 4, 4), generator=g)
    if isinstance(task, Tokens):
        return torch.randn(n, 6, 3, generator=g), torch.randint(3, (n, 6), generator=g)
    return drawn(n, 3)


TASKS = [Classification(), Regression(), Multilabel(), Segmentation(), Tokens()]


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_resampling_gives_the_primary_metric_of_the_drawn_samples(task: Task) -> None:
    outputs, targets = targets_of(task, 20)
    counts = RNG.integers(3, size=(4, 20))
    got = task.resampler(outputs, targets)(counts)[task.primary]
    for value, times in zip(got, counts, strict=True):
        chosen = np.repeat(np.arange(20), times)
        # the AUROC of a multilabel score rounds logits; those of resamples are exact
        assert value == pytest.approx(task.value(task.score(outputs[chosen], targets[chosen])), abs=2e-3)


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_the_primary_metric_of_every_task_lies_within_its_interval_and_equal_seeds_give_equal_ones(task: Task) -> None:
    outputs, targets = targets_of(task, 30)
    got = measure(task, outputs, targets, seed=5)
    value, lower, upper = (got[f"{task.primary}{end}"] for end in ("", "_lower", "_upper"))
    assert lower < value < upper
    assert got == measure(task, outputs, targets, seed=5)
    assert list(got)[0] == task.primary
    assert set(all_metrics(task)) <= set(got)
    if not isinstance(task, Classification):  # Wilson's draws nothing
        assert lower != measure(task, outputs, targets, seed=6)[f"{task.primary}_lower"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_outputs_that_are_not_finite_are_refused(task: Task, value: float) -> None:
    outputs, targets = targets_of(task, 5)
    outputs[2] = value
    with pytest.raises(FlocoError, match="must be finite"):
        measure(task, outputs, targets)


@pytest.mark.parametrize(("share", "n"), [(0.5, 18), (0.9, 18), (0.8, 100)])
def test_wilsons_interval_covers_the_share_as_often_as_it_says(share: float, n: int) -> None:
    hits = np.arange(n + 1)
    chances = np.array([math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in hits])
    inside = np.array([lower <= share <= upper for lower, upper in (wilson(int(k), n) for k in hits)])
    assert 0.93 <= chances[inside].sum() <= 0.985


@pytest.mark.parametrize(("n", "least"), [(18, 0.86), (60, 0.91)])
def test_resampled_intervals_cover_the_auroc_about_as_often_as_they_say(n: int, least: float) -> None:
    rng, inside, true = np.random.default_rng(1), [], norm.cdf(1.2 / math.sqrt(2))
    for seed in range(200):
        positive = np.arange(n) % 2 == 0
        scores = (rng.normal(size=n) + 1.2 * positive)[:, None]
        found = resample(lambda counts, s=scores, p=positive: resample_areas(s, p[:, None], counts), n, seed)
        lower, upper = percentiles(found["auroc"], n)
        inside.append(lower <= true <= upper)
    assert least <= np.mean(inside) <= 0.99


@pytest.mark.parametrize("n", [1, 18])
def test_an_interval_is_unknown_where_samples_do_not_show_how_far_a_metric_may_be_off(n: int) -> None:
    labels = torch.arange(n) % 2
    got = measure(Classification(), 9.0 * torch.nn.functional.one_hot(labels, 2), labels)
    assert (got["f1"], got["f1_lower"], got["auroc_upper"]) == (1.0, None, None)
    assert got["accuracy_lower"] < 1  # Wilson's knows


def test_a_paired_interval_is_narrower_than_two_models_that_err_on_the_same_samples_suggest() -> None:
    labels = torch.arange(100) % 2
    one = torch.nn.functional.one_hot(labels, 2) * 2.0 - 1
    one[:30] *= -1
    other = one.clone()
    other[30:40] *= -1  # wrong on ten more
    got = measure_difference(Classification(), one, other, labels)
    assert got["difference"] == pytest.approx(0.1)
    assert 0.03 < got["difference_lower"] < 0.1 < got["difference_upper"] < 0.18
    apart = [wilson(k, 100) for k in (70, 60)]
    assert apart[0].lower < apart[1].upper  # each alone, they overlap
    assert measure_difference(Classification(), one, one, labels)["difference_lower"] is None


def test_the_interval_of_a_mean_over_clients_covers_it() -> None:
    rng = np.random.default_rng(0)
    found = [bound_mean(rng.normal(2.0, 1.0, 6)) for _ in range(1000)]
    assert 0.935 <= np.mean([lower <= 2.0 <= upper for lower, upper in found]) <= 0.965


@pytest.mark.parametrize(("seeds", "spread", "swing"), [(1, 0.1, 1.0), (3, 0.5, 1.0), (3, 1.0, 0.0), (3, 1e-6, 1e-7)])
def test_the_interval_of_a_mean_that_changes_from_round_to_round_holds_the_true_one(
    seeds: int, spread: float, swing: float
) -> None:
    """The mean over 12 clients and some seeds in the last of twelve rounds, on top of a learning curve."""
    rng, held = np.random.default_rng(0), 0
    rounds = np.arange(1, 13)
    rise = swing * (12 - 3 * np.exp(-rounds / 4))
    for _ in range(1000):
        curves = [np.stack([rounds, rise + swing * rng.normal(size=12)]) for _ in range(seeds)]
        clients = np.mean([c[1, -1] for c in curves]) + rng.normal(0.0, spread, 12)
        lower, upper = bound_mean(clients, 0.95, *round_noise(curves))
        held += lower <= rise[-1] <= upper
    assert 925 <= held <= 985


THRESHOLDS = {
    "apart": ([0.1, 0.2, 0.6, 0.7], [0, 0, 1, 1], 0.6),
    "far from a half": ([0.01, 0.02, 0.05, 0.06], [0, 0, 1, 1], 0.05),
    "one class": ([0.1, 0.9], [1, 1], 0.5),
    "no better than chance": ([0.5, 0.5], [0, 1], 0.5),
    "the wrong way round": ([0.9, 0.1], [0, 1], 0.5),
}


@pytest.mark.parametrize("case", THRESHOLDS)
def test_the_threshold_has_the_largest_j_and_is_a_half_without_one(case: str) -> None:
    scores, truth, wanted = THRESHOLDS[case]
    assert choose_threshold(np.array(scores), np.array(truth) == 1) == wanted


def binary(tmp_path: Path) -> Path:
    """A table of four hospitals with rare ill people, a feature, and the sex."""
    rng = np.random.default_rng(0)
    n = 240
    ill = rng.random(n) < 0.25
    sex = np.where(rng.random(n) < 0.5, "f", "m").astype(object)
    sex[:3] = None
    site = np.arange(n) % 4
    frame = pd.DataFrame({"age": rng.normal(50, 9, n) + 9 * ill, "sex": sex, "hospital": site, "ill": ill.astype(int)})
    frame.to_csv(tmp_path / "ill.csv", index=False)
    return tmp_path / "ill.csv"


def settings(source: Path, **more: object) -> list[str]:
    given = {"data.source": f"csv:{source}", "data.target": "ill", "data.client": "hospital", "data.split": "natural"}
    given |= {"algorithm.name": "fedavg", "training.rounds": 3, "run.engine": "serial", **more}
    return [word for key, value in given.items() for word in ("-s", f"{key}={value}")]


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A table, and a run on it with groups; what the run prints is in printed.txt."""
    folder = tmp_path_factory.mktemp("ill")
    source = binary(folder)
    done = command("run", *settings(source, **{"data.group": "sex"}), "--out", folder / "run")
    assert done.exit_code == 0, done.output
    assert "moves in steps of" in " ".join(done.output.split())
    (folder / "printed.txt").write_text(" ".join(done.output.split()))
    return source, folder / "run"


def test_a_finished_run_has_a_row_for_each_client_and_model_with_the_numbers_of_its_last_evaluation(
    ill: tuple[Path, Path],
) -> None:
    run = floco.open_run(ill[1])
    found, clients = run.metrics, run.clients
    for which in ("personal", "global_local"):
        mine = found[found["model"] == which]
        assert mine["client"].tolist() == clients["client"].tolist()
        for metric in Classification.metrics:
            np.testing.assert_array_equal(mine[metric], clients[f"{metric}_{which}"])
    assert (found["accuracy_lower"] < found["accuracy"]).all()
    (ill[1] / "metrics.csv").rename(ill[1] / "aside.csv")
    again = run.metrics.astype(found.dtypes.to_dict())  # computed, as the file is not there
    pd.testing.assert_frame_equal(again, found)
    (ill[1] / "aside.csv").rename(ill[1] / "metrics.csv")


def test_sensitivity_and_specificity_are_those_at_the_threshold(ill: tuple[Path, Path]) -> None:
    run = floco.open_run(ill[1])
    federation = run.setup.with_samples("a test").federation
    for row in run.metrics[run.metrics["model"] == "personal"].to_dict("records"):
        test = federation.client(row["client"]).test
        frame = pd.read_csv(ill[0]).iloc[test.numpy()]
        assert row["positive"] == "1"
        decided = run.predict(frame, row["client"])["p(1)"] >= row["threshold"] - 1e-6
        assert row["sensitivity"] == pytest.approx(recall_score(frame["ill"], decided.to_numpy()))
        assert row["specificity"] == pytest.approx(recall_score(frame["ill"], decided.to_numpy(), pos_label=0))


def test_thresholds_come_from_training_rows_only() -> None:
    g = torch.Generator().manual_seed(0)
    setup = make(FedAvg(), rounds=1, federation=_two_classes(g), model=lambda: small_net(classes=2))
    last = train(setup)[-1]
    before = measure_clients(setup, last).metrics
    federation = setup.federation
    for client in federation.clients:
        federation.y[client.test] = 1 - federation.y[client.test]
    turned = measure_clients(setup, last).metrics
    assert [r["threshold"] for r in turned] == [r["threshold"] for r in before]
    assert [r["accuracy"] for r in turned] != [r["accuracy"] for r in before]
    for client in federation.clients:
        federation.y[client.train] = 1 - federation.y[client.train]
    assert [r["threshold"] for r in measure_clients(setup, last).metrics] != [r["threshold"] for r in before]


def _two_classes(g: torch.Generator) -> floco.Federation:
    from floco.data.federation import Client

    y = torch.randint(2, (120,), generator=g)
    x = torch.randn(120, 5, generator=g) + y[:, None]
    clients = tuple(
        Client(str(i), torch.arange(40 * i, 40 * i + 25), torch.arange(40 * i + 25, 40 * i + 40)) for i in range(3)
    )
    return floco.Federation(x, y, clients, ("no", "yes"))


def test_groups_have_their_counts_and_metrics_and_add_up(ill: tuple[Path, Path]) -> None:
    run = floco.open_run(ill[1])
    found, whole = run.groups, run.metrics
    assert set(found["group"]) == {"f", "m", "(missing)"}
    pooled = found[found["client"].isna() | (found["client"] == "")]
    assert len(pooled) == len(pooled.drop_duplicates(["model", "group"])) >= 4
    for which in ("personal", "global_local"):
        mine, all_ = (t[t["model"] == which] for t in (pooled, whole))
        assert mine["n"].sum() == all_["n"].sum()
        assert (mine["n"] * mine["accuracy"]).sum() == pytest.approx((all_["n"] * all_["accuracy"]).sum())
    assert (ill[1] / "groups.csv").is_file()


def test_a_run_and_its_report_say_the_metric_of_each_group_for_each_kind_of_model(ill: tuple[Path, Path]) -> None:
    text, page = (ill[0].parent / "printed.txt").read_text(), ill[0].parent / "report.html"
    assert command("report", ill[1], "-o", page).exit_code == 0
    found = floco.open_run(ill[1]).groups
    for which, words in {"personal": "personal models", "global_local": "global model"}.items():
        mine = found[(found["client"] == "") & (found["model"] == which)]
        shown = ", ".join(f"{r.group} {100 * r.accuracy:.1f} % of {r.n}" for r in mine.itertuples())
        for shown_in in (text, unescape(page.read_text())):
            assert f"accuracy by sex: {shown} ({words}, all clients' test parts together)" in shown_in


@pytest.mark.parametrize(("features", "used"), [("", ("age",)), ('["age", "sex"]', ("age", "sex"))])
def test_a_group_is_a_feature_only_if_it_is_named_as_one(features: str, used: tuple[str, ...], tmp_path: Path) -> None:
    frame = pd.read_csv(binary(tmp_path)).dropna()
    more = {"features": json.loads(features)} if features else {}
    samples = floco.load(frame, target="ill", client="hospital", group="sex", **more)
    assert samples.table.features == used
    federation = samples.split(floco.Natural())
    names = np.array(federation.groups.names)[federation.groups.numbers]
    assert (names == frame["sex"].to_numpy()).all()
    without = floco.load(frame.drop(columns="sex") if not features else frame, target="ill", client="hospital", **more)
    torch.testing.assert_close(federation.x, without.split(floco.Natural()).x)


def test_an_array_is_a_group_and_runs_without_one_are_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y, group = rng.normal(size=(60, 3)).astype("f4"), rng.integers(2, size=60), np.arange(60) % 3
    arrays = {"x": x, "y": y, "client": np.arange(60) % 2, "device": group}
    plain, grouped = (floco.load(arrays, group=g).split(floco.Natural()) for g in (None, "device"))
    assert grouped.groups.names == ("0", "1", "2")
    assert torch.equal(plain.x, grouped.x)
    assert plain.fingerprint() != grouped.fingerprint()
    run = floco.fit(floco.model("mlp", grouped), grouped, floco.Local(), rounds=1, engine="serial")
    assert run.groups["n"].sum() == 2 * run.metrics["n"].sum()  # by client, and all clients together
    assert floco.fit(floco.model("mlp", plain), plain, floco.Local(), rounds=1, engine="serial").groups.empty


@pytest.mark.parametrize(
    ("group", "message"),
    [("sexx", "data.group.*no column 'sexx'.*sex"), ("age", "50 groups at most.*make bands")],
)
def test_what_cannot_be_a_group_is_refused_by_name(group: str, message: str, tmp_path: Path) -> None:
    frame = pd.read_csv(binary(tmp_path)).dropna().assign(other=1.0 * np.arange(237) ** 2)
    with pytest.raises(FlocoError, match=message):
        floco.load(frame, target="ill", client="hospital", group=group).split(floco.Natural())
    arrays = {"x": frame[["other"]].to_numpy(), "y": frame["ill"].to_numpy(), "client": frame["hospital"].to_numpy()}
    with pytest.raises(FlocoError, match="data.group: the source has no column"):
        floco.load(arrays, group="sexx").split(floco.Natural())


def test_values_that_are_one_group_in_different_types_are_one() -> None:
    found = read_groups([1, 1.0, "1", " 1 ", None, math.nan, ""], "ward")
    assert found.names == ("(missing)", "1")


def test_predict_says_intervals_steps_and_groups_in_words_and_in_json(ill: tuple[Path, Path]) -> None:
    source, run = ill
    frame = pd.read_csv(source).head(18)
    frame.to_csv(source.parent / "new.csv", index=False)
    args = ("predict", run, source.parent / "new.csv", "--client", "0")
    done, as_json = command(*args), command(*args, "--json")
    assert done.exit_code == as_json.exit_code == 0, done.output
    text, found = " ".join(done.output.split()), json.loads(as_json.stdout)
    metrics = found["metrics"]
    assert "of 18 samples: it moves in steps of 5.6 points" in text
    assert f"accuracy {100 * metrics['accuracy']:.1f} % [{100 * metrics['accuracy_lower']:.1f} %," in text
    assert "sensitivity and specificity are of '1'" in text
    assert "chosen on training samples; labels are those of the largest probability, whatever the threshold" in text
    assert "compared with ill: accuracy" in text
    assert sum(row["n"] for row in found["confusion"]) == 18
    assert sum(row["n"] for row in found["groups"]) == 18
    assert metrics == pytest.approx({**floco.open_run(run).evaluate(frame, frame["ill"], "0")}, nan_ok=True)


def test_a_model_that_fails_after_the_last_round_has_its_reason_in_place_of_metrics() -> None:
    setup = make(Floco(endpoints=2), rounds=1)
    last = train(setup)[-1]
    setup.federation.x[setup.federation.clients[0].test[0]] = math.nan
    first, *others = measure_clients(setup, last).metrics
    assert "finite" in first["problem"]
    assert first["accuracy"] is None
    assert all(row["problem"] is None and row["accuracy"] is not None for row in others)


def test_every_task_reads_its_further_metrics() -> None:
    for task in TASKS:
        assert isinstance(all_metrics(task), Metrics)
        assert all_metrics(task).primary == task.primary
