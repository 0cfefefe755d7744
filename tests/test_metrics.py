import math

import pytest
import torch

from conftest import make, train
from floco.algorithms import FedAvgFT, Floco
from floco.client.round import Scores
from floco.client.setup import split_batches
from floco.core.metrics import mean, pooled, worst
from floco.core.values import ClientInfo, Layout
from floco.server.evaluation import Counts, client_row, summarize, update_spread
from floco.server.progress import Plan
from floco.tasks import Classification
from floco.tasks.classification import ClassificationScore as Score


def test_scores_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss

    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 4, generator=g), torch.randint(3, (50,), generator=g)  # class 3 never occurs
    guesses = logits.argmax(1)
    got = Classification().score(logits, labels)
    assert got.accuracy == pytest.approx(accuracy_score(labels, guesses))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert got.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, guesses))
    assert got.loss == pytest.approx(log_loss(labels, logits.double().softmax(1), labels=[0, 1, 2, 3]))
    assert got.n == 50


def test_the_worst_are_the_ceiling_of_the_share() -> None:
    values = [i / 100 for i in range(30)]
    assert worst(values, 0.05) == pytest.approx((0 + 0.01) / 2)
    assert worst(values[:20], 0.05) == 0
    assert worst([0.4], 0.05) == 0.4


def test_means_are_weighted_when_asked() -> None:
    assert mean([1, 0]) == 0.5
    assert mean([1, 0], [3, 1]) == 0.75


def made(n: int, right: int, losses: float = 0.0) -> Score:
    return Score((n // 2, n - n // 2), (right // 2, right - right // 2), losses, 0.1 * n, (0.02 * n,) + (0.0,) * 14)


def test_scores_of_disjoint_parts_add_to_the_score_of_their_union() -> None:
    g = torch.Generator().manual_seed(1)
    logits, labels = 2 * torch.randn(90, 4, generator=g), torch.randint(4, (90,), generator=g)
    whole, parts = (
        Classification().score(logits, labels),
        pooled(
            [
                Classification().score(logits[:7], labels[:7]),
                Classification().score(logits[7:60], labels[7:60]),
                Classification().score(logits[60:], labels[60:]),
            ]
        ),
    )
    assert parts is not None
    assert parts.n == 90
    for metric in Classification.metrics:
        assert getattr(parts, metric) == pytest.approx(getattr(whole, metric), abs=1e-12)
    assert pooled([]) is None


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_calibration_error_is_that_of_torchmetrics(scale: float) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    g = torch.Generator().manual_seed(2)
    logits, labels = scale * torch.randn(400, 5, generator=g), torch.randint(5, (400,), generator=g)
    expected = float(multiclass_calibration_error(logits.softmax(1), labels, num_classes=5, n_bins=15))
    assert Classification().score(logits, labels).ece == pytest.approx(expected, abs=1e-6)
    assert expected > 0.004


def test_brier_score_is_that_of_scikit_learn_for_two_classes_and_by_hand_for_three() -> None:
    from sklearn.metrics import brier_score_loss

    g = torch.Generator().manual_seed(3)
    logits, labels = torch.randn(60, 2, generator=g), torch.randint(2, (60,), generator=g)
    assert Classification().score(logits, labels).brier == pytest.approx(
        2 * brier_score_loss(labels, logits.double().softmax(1)[:, 1])
    )  # both classes count here
    assert Classification().score(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([2])).brier == pytest.approx(
        0.25 + 0.0625 + 0.5625
    )


def test_rows_of_an_evaluation() -> None:
    scores = {"a": Scores(made(10, 5, 10.0), made(10, 9, 1.0)), "b": Scores(made(30, 21, 30.0), made(30, 9, 9.0))}
    rows = [client_row(Classification(), 7, ClientInfo(c, 40, 10), 1, s) for c, s in scores.items()]
    counts = Counts(2, 2, 12, 5, 6, 30, 40, {"update_variance": 3.0, "update_variance_relative": 1.0})
    done = summarize(Classification(), 7, rows, made(100, 65, 110.0), counts, adapted=8)
    h = done.history
    assert (h["round"], h["accuracy_global"], h["clients_failed"], h["bytes_down"], h["bytes_up"]) == (
        7,
        0.65,
        2,
        30,
        40,
    )
    assert (h["steps"], h["steps_adapt"], h["parameters_down"], h["parameters_up"]) == (12, 8, 5, 6)
    assert (h["update_variance"], h["update_variance_relative"], h["update_variance_head"]) == (1.5, 0.5, None)
    assert h["accuracy_personal"] == pytest.approx(0.6)
    assert h["accuracy_personal_weighted"] == pytest.approx(0.45)
    assert h["accuracy_personal_worst5"] == h["accuracy_personal_worst10"] == 0.3
    assert h["accuracy_personal_std"] == pytest.approx(0.3)
    assert h["accuracy_global_local"] == pytest.approx(0.6)
    assert (h["ece_personal"], h["brier_global"]) == (pytest.approx(0.02), pytest.approx(0.1))
    b = done.clients[1]
    assert (b["round"], b["client"], b["n_train"], b["n_test"], b["participated"]) == (7, "b", 40, 30, 1)
    assert (b["accuracy_personal"], b["accuracy_global_local"], b["loss_personal"], b["loss_global_local"]) == (
        0.3,
        0.7,
        0.3,
        1.0,
    )
    assert (b["balanced_accuracy_personal"], b["ece_personal"], b["brier_personal"]) == (
        pytest.approx((4 + 5) / 30),
        pytest.approx(0.02),
        pytest.approx(0.1),
    )


def test_a_method_without_global_model_has_empty_cells() -> None:
    scores = {"a": Scores(None, made(10, 9))}
    h = summarize(
        Classification(), 1, [client_row(Classification(), 1, ClientInfo("a", 5, 10), 0, scores["a"])], None, Counts()
    ).history
    assert [
        h[k]
        for k in (
            "accuracy_global",
            "ece_global",
            "accuracy_global_local",
            "loss_global_local",
            "accuracy_global_local_worst5",
            "update_variance",
        )
    ] == [None] * 6
    assert not math.isnan(h["accuracy_personal"])


def test_update_variance_by_hand() -> None:
    layout = Layout(("body", "head"), (), "head", ("head",))
    before = {"body": torch.zeros(2), "head": torch.ones(1), "buffer": torch.zeros(1)}
    after = [
        {"body": torch.tensor([1.0, 0.0]), "head": torch.tensor([3.0]), "buffer": torch.ones(1)},
        {"body": torch.tensor([1.0, 4.0]), "head": torch.tensor([3.0])},
    ]
    got = update_spread(before, after, [3, 1], layout)
    # mean step of the body (1, 1); variance 3/4 * 1 + 1/4 * 9 = 3; the head's steps agree
    variances = {"": 3, "_relative": 3 / (2 + 4), "_body": 3, "_body_relative": 1.5, "_head": 0, "_head_relative": 0}
    assert got == pytest.approx({f"update_variance{name}": value for name, value in variances.items()})
    assert set(update_spread({"body": before["body"]}, [{"body": torch.ones(2)}], [1], layout)) == {
        k for k in got if "head" not in k
    }
    assert update_spread({}, [{}], [1], layout) == {}


def test_the_variance_of_a_simplex_is_that_of_the_model_in_its_middle() -> None:
    """Endpoints that move apart by opposite steps leave the middle where it was."""
    setup = make(Floco(endpoints=2))
    name = "2.weight"
    state = setup.algorithm.init(setup.network, seed=0)
    apart = {name: state.shared[name] + torch.stack([torch.ones(3, 7), -torch.ones(3, 7)])}
    effective = setup.algorithm.effective
    got = update_spread(
        effective(state.shared),
        [effective({**state.shared, **apart}), effective(state.shared)],
        [1, 1],
        setup.network.layout,
    )
    assert got["update_variance"] == pytest.approx(0, abs=1e-9)


def test_history_counts_steps_and_what_was_sent() -> None:
    setup = make(FedAvgFT(personal_epochs=3), fraction=1.0, rounds=2)
    row = train(setup, plan=Plan(evaluate_every=2))[-1].evaluation.history
    batches = sum(len(split_batches(len(c.train), 8)) for c in setup.federation.clients)
    assert (row["steps"], row["steps_adapt"]) == (2 * 2 * batches, 3 * batches)  # two rounds of two epochs
    assert (
        row["parameters_down"]
        == row["parameters_up"]
        == 2 * 6 * sum(t.numel() for t in setup.network.parameters.values())
    )
    assert row["bytes_down"] == 4 * row["parameters_down"]
    assert row["update_variance"] > 0
