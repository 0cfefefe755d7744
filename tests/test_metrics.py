import math

import pytest
import torch

from floco.evaluation import Counts, client_row, evaluation, pooled
from floco.metrics import Score, mean, score, worst
from floco.training import Scores


def test_scores_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss

    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 4, generator=g), torch.randint(3, (50,), generator=g)  # class 3 never occurs
    guesses = logits.argmax(1)
    got = score(logits, labels)
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


def test_pooling_weights_by_samples() -> None:
    assert pooled([Score(1.0, 1.0, 0.0, 30), Score(0.0, 0.0, 1.0, 10)]) == Score(0.75, 0.75, 0.25, 40)
    assert pooled([]) is None


def test_rows_of_an_evaluation() -> None:
    scores = {"a": Scores(Score(0.5, 0.5, 1.0, 10), Score(0.9, 0.8, 0.1, 10)), "b": Scores(Score(0.7, 0.5, 1.0, 30), Score(0.3, 0.2, 0.3, 30))}
    rows = [client_row(7, c, 40, 1, s) for c, s in scores.items()]
    done = evaluation(7, rows, scores, Score(0.65, 0.5, 1.1, 100), Counts(2, 30, 40))
    h = done.history
    assert (h["round"], h["accuracy_global"], h["clients_failed"], h["bytes_down"], h["bytes_up"]) == (7, 0.65, 2, 30, 40)
    assert h["accuracy_personal"] == pytest.approx(0.6)
    assert h["accuracy_personal_weighted"] == pytest.approx(0.45)
    assert h["accuracy_personal_worst5"] == 0.3
    assert h["accuracy_global_local"] == pytest.approx(0.6)
    assert done.clients[1] == {
        "round": 7, "client": "b", "n_train": 40, "n_test": 30, "participated": 1, "accuracy_personal": 0.3, "accuracy_global_local": 0.7,
        "balanced_accuracy_personal": 0.2, "balanced_accuracy_global_local": 0.5, "loss_personal": 0.3, "loss_global_local": 1.0,
    }  # fmt: skip


def test_a_method_without_global_model_has_empty_cells() -> None:
    scores = {"a": Scores(None, Score(0.9, 0.8, 0.1, 10))}
    h = evaluation(1, [client_row(1, "a", 5, 0, scores["a"])], scores, None, Counts()).history
    assert [h[k] for k in ("accuracy_global", "accuracy_global_local", "loss_global_local", "accuracy_global_local_worst5")] == [None] * 4
    assert not math.isnan(h["accuracy_personal"])
