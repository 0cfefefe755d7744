"""Which model to deploy: the sentences of a comparison and of a single run."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from floco.analysis.tables import Results
from floco.analysis.verdict import compare, decide
from floco.core.metrics import Metrics
from floco.tasks import Classification, Regression

CLIENTS = 12
NOISE = np.random.default_rng(0).normal(size=(6, 2, CLIENTS))


def results(
    shifts: dict[str, float],
    *,
    clients: int = CLIENTS,
    metrics: Metrics = Classification.metrics,
    noise: float = 0.01,
    curves: dict[str, Sequence[float]] | None = None,
) -> Results:
    """Two seeds in which a method's clients are better than their global model by a shift, and some noise.

    `curves` are what the mean of a method's personal models was in the evaluations, after every fifth round of 25: the
    same in all, if nothing is said.
    """
    rows = []
    for i, (method, shift) in enumerate(shifts.items()):
        for seed in range(2):
            for k in range(clients):
                base, gain = 0.7 + 0.01 * k, shift + noise * NOISE[i, seed, k]
                values = {f"{metrics.primary}_personal": base + gain, f"{metrics.primary}_global_local": base}
                rows.append({"method": method, "seed": seed, "client": f"c{k}", "n_test": 20 + k, **values})
    costs = {"floco": 30.0, "ditto": 20.0, "local": 0.0}
    runs = [
        {"method": m, "seed": s, "bytes_up": costs.get(m, 10.0), "bytes_down": 1.0, "seconds": 1.0}
        for m in shifts
        for s in range(2)
    ]
    history = [
        {"method": m, "seed": s, "round": 5 * i, **dict.fromkeys(kinds, value), kinds[1]: 0.7}
        for kinds in [[f"{metrics.primary}_{kind}" for kind in ("personal", "global_local")]]
        for m in shifts
        for s in range(2)
        for i, value in enumerate((curves or {}).get(m, [0.7] * 5), 1)
    ]
    return Results(pd.DataFrame(history), pd.DataFrame(rows), pd.DataFrame(runs), {}, metrics)


@pytest.mark.parametrize(
    ("shifts", "first"),
    [
        ({"floco": 0.05, "fedavg": 0.0, "ditto": 0.02}, "Take floco. Against plain FedAvg, it is better by "),
        ({"fedavg": 0.0, "floco": 0.0, "ditto": -0.05}, "Take plain FedAvg, as the simplest: no method is shown"),
        ({"fedavg": 0.0, "floco": -0.05}, "Take plain FedAvg, as the simplest: no method is shown"),
        ({"floco": 0.0, "local": 0.05}, "Take local. Against floco, it is better by "),
        ({"floco": 0.0, "local": 0.0}, "Take floco, the first: no method is shown"),
        ({"floco": 0.05}, "Give every client its personal model. Against the global model, it is better by "),
        ({"floco": -0.05}, "Take the global model: the personal models are worse by"),
        ({"floco": 0.0}, "Take the global model: the personal models do not differ from it"),
    ],
)
def test_the_first_sentence_says_what_to_take(shifts: dict[str, float], first: str) -> None:
    assert decide(results(shifts))[0].startswith(first)


def test_a_method_with_one_model_for_all_leaves_no_choice() -> None:
    assert decide(results({"fedavg": 0.0}, noise=0.0))[0].startswith("Take the global model")


def test_clients_that_are_harmed_are_named_with_the_harm_the_worst_first() -> None:
    made = results({"fedavg": 0.0, "floco": 0.05}, noise=0.0)
    worse = {"c3": 0.02, "c7": 0.04}  # no noise: the amounts are exact
    for client, loss in worse.items():
        chosen = (made.clients["client"] == client) & (made.clients["method"] == "floco")
        made.clients.loc[chosen, "accuracy_personal"] -= 0.05 + loss
    said = decide(made)[0]
    assert "helps 10 of 12 clients" in said
    assert said.endswith("harms 2: c7 (-4.0), c3 (-2.0).")


def test_the_interval_is_that_of_the_paired_t_test_at_the_corrected_level() -> None:
    made = results({"fedavg": 0.0, "floco": 0.02, "ditto": 0.0})
    table = made.clients.pivot_table(index="client", columns="method", values="accuracy_personal")
    wanted = ttest_rel(table["floco"], table["fedavg"]).confidence_interval(1 - 0.05 / 3)  # three pairs of methods
    told = re.search(r"by ([-\d.]+) points \[([-\d.]+), ([-\d.]+)\]", decide(made)[0])
    assert told is not None
    mean = (table["floco"] - table["fedavg"]).mean()
    assert [float(g) for g in told.groups()] == [round(100 * v, 1) for v in (mean, wanted.low, wanted.high)]


def test_of_methods_that_are_not_told_apart_the_cheapest_is_named() -> None:
    said = decide(results({"fedavg": 0.0, "floco": 0.05, "ditto": 0.049}))
    assert said[1].startswith("Not told apart from")
    assert "The cheapest of them is ditto" in said[1]
    assert decide(results({"fedavg": 0.0, "floco": 0.05, "ditto": 0.01}))[1].startswith("It is better than every other")


def test_lower_is_better_and_no_accuracy_is_spoken_of_where_the_metric_is_an_error() -> None:
    said = decide(results({"fedavg": 0.0, "floco": -0.05}, metrics=Regression.metrics))
    assert said[0].startswith("Take floco. Against plain FedAvg, it is better by 0.0")
    assert " rmse [" in said[0]
    assert "rmse, lower is better" in said[-1]
    assert not re.search("accuracy|points|%, higher", " ".join(said))


def test_small_test_parts_and_the_size_of_their_steps_are_said() -> None:
    assert "own test part of 20 to 31 samples; of 20, one is 5.0 points" in decide(results({"floco": 0.05}))[-1]


def test_one_client_has_no_interval_and_decides_nothing() -> None:
    said = decide(results({"fedavg": 0.0, "floco": 0.05}, clients=1))
    assert said[0].startswith("Take plain FedAvg")
    assert "(no interval)" in said[0]


def test_equal_differences_of_few_steps_decide_nothing() -> None:
    said = decide(results({"fedavg": 0.0, "floco": 0.05}, clients=2, noise=0.0))
    assert said[0].startswith("Take plain FedAvg")
    assert "5.0 points (no interval)" in said[0]


def test_a_method_that_is_surely_better_is_taken_before_one_with_a_higher_but_uncertain_mean() -> None:
    made = results({"fedavg": 0.0, "floco": 0.036, "ditto": 0.0})
    chosen = made.clients["method"] == "ditto"
    made.clients.loc[chosen, "accuracy_personal"] += np.resize([0.3, -0.2], chosen.sum())
    said = decide(made)
    assert said[0].startswith("Take floco.")
    assert "Not told apart from floco: ditto" in said[1]


def test_clients_without_one_of_the_models_are_counted() -> None:
    made = results({"fedavg": 0.0, "floco": 0.05})
    chosen = (made.clients["method"] == "floco") & made.clients["client"].isin(["c0", "c1", "c2"])
    made.clients.loc[chosen, "accuracy_personal"] = math.nan
    assert "it helps 9 of 9 clients and harms none; 3 more have one of the two models only" in decide(made)[0]


def test_clients_of_which_one_model_is_unknown_do_not_count() -> None:
    made = results({"floco": 0.3, "fedavg": 0.0}, clients=2, noise=0.0)
    models = ("floco", "personal"), ("fedavg", "personal")
    chosen = (made.clients["method"] == "floco") & (made.clients["client"] == "c1")
    made.clients.loc[chosen, "accuracy_personal"] = math.nan
    found = compare(made, *models)
    assert found is not None
    assert found.better.to_dict() == pytest.approx({"c0": 0.3})
    made.clients.loc[made.clients["method"] == "floco", "accuracy_personal"] = math.nan
    assert compare(made, *models) is None


def test_methods_without_a_finished_run_are_named_before_the_choice_among_the_others() -> None:
    said = decide(results({"floco": 0.05}), ["fedavg", "ditto"])
    assert said[0] == "No run of fedavg, ditto is finished, so that this is about floco only."
    assert said[1:] == decide(results({"floco": 0.05}))


def test_what_an_interval_cannot_exclude_is_said_where_no_method_is_shown_to_be_better() -> None:
    sentence = decide(results({"fedavg": 0.0, "floco": 0.0}, noise=0.2))[0]
    upper = re.search(r"\[[-\d.]+, ([\d.]+)\], so that a gain of up to ([\d.]+) points cannot be excluded", sentence)
    assert upper is not None, sentence
    assert upper[1] == upper[2]
    assert "excluded" not in decide(results({"fedavg": 0.0, "floco": -0.3}, noise=0.01))[0]


@pytest.mark.parametrize(
    ("curve", "decided"),
    [
        ([0.70, 0.71, 0.72, 0.73, 0.74, 0.75], True),
        ([0.70, 0.71, 0.72, 0.80, 0.81, 0.82], True),
        ([0.90, 0.50, 0.90, 0.75, 0.75, 0.75], True),
        ([0.70, 0.70, 0.70, 0.70, 0.70, 0.70, 0.72, 0.735, 0.745, 0.75, 0.75, 0.75], True),
        ([0.75], True),
        ([0.75, 0.75, 0.75, 0.85, 0.65, 0.75], False),
    ],
    ids=[
        "a steady rise",
        "a jump at half time",
        "restless in the first half",
        "a bend",
        "one evaluation",
        "restless at the end",
    ],
)
def test_no_method_is_better_by_less_than_its_lead_changes_from_round_to_round(
    curve: list[float], decided: bool
) -> None:
    said = decide(results({"fedavg": 0.0, "floco": 0.05}, curves={"floco": curve, "fedavg": [0.7] * len(curve)}))
    assert said[0].startswith("Take floco." if decided else "Take plain FedAvg")


def test_rounds_in_which_all_methods_fall_alike_are_no_noise() -> None:
    shaky = [0.75, 0.75, 0.75, 0.85, 0.65, 0.75]
    curves = {"floco": shaky, "fedavg": [v - 0.05 for v in shaky]}
    assert decide(results({"fedavg": 0.0, "floco": 0.05}, curves=curves))[0].startswith("Take floco.")


@pytest.mark.parametrize(("evaluations", "counted"), [(4, False), (5, True)])
def test_an_interval_without_what_rounds_change_is_marked(evaluations: int, counted: bool) -> None:
    curves = dict.fromkeys(("fedavg", "floco"), [0.7] * evaluations)
    assert ("clients only]" in decide(results({"fedavg": 0.0, "floco": 0.05}, curves=curves))[0]) != counted


@pytest.mark.parametrize("lacks", ["a row", "NaN", "infinity"])
def test_an_evaluation_that_one_method_lacks_leaves_the_others(lacks: str) -> None:
    shaky = [0.75, 0.75, 0.75, 0.85, 0.65, 0.85, 0.65, 0.75]
    made = results({"fedavg": 0.0, "floco": 0.05}, curves={"floco": shaky, "fedavg": [0.7] * 8})
    rows = (made.history["round"] == 40) & (made.history["method"] == "fedavg")
    made.history.loc[rows, "accuracy_personal"] = math.inf if lacks == "infinity" else math.nan
    history = made.history[~rows] if lacks == "a row" else made.history
    first = decide(replace(made, history=history))[0]
    assert first.startswith("Take plain FedAvg")
    assert "clients only" not in first


def test_runs_that_were_evaluated_in_other_rounds_are_compared_in_those_they_share() -> None:
    made = results({"fedavg": 0.0, "floco": 0.05}, curves={"floco": [0.75] * 12, "fedavg": [0.7] * 12})
    thinned = made.history[(made.history["method"] == "floco") | (made.history["round"] % 10 == 0)]
    assert "clients only" not in decide(replace(made, history=thinned))[0]
