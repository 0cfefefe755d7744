"""The Python interface as a user meets it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import floco
from conftest import ANY_NETWORK, IDS, blobs, small_net
from floco.core.errors import FlocoError

QUICK = {"rounds": 4, "fraction": 0.5, "batch_size": 8, "lr": 0.1, "evaluate_every": 2, "engine": "serial"}


def test_fit_leaves_tables_and_personal_models() -> None:
    federation = blobs()
    run = floco.fit(small_net, federation, floco.Floco(endpoints=3, assign_at=2), **QUICK)
    assert run.history["round"].tolist() == [2, 4]
    assert run.clients["client"].tolist() == list(IDS)
    assert set(run.clients.columns) >= {
        "n_train",
        "n_test",
        "participated",
        "accuracy_personal",
        "accuracy_global_local",
        "center",
    }
    assert all(sum(c) == pytest.approx(1) for c in run.clients["center"])
    assert len(run.failures) == 0


@pytest.mark.parametrize("name", ANY_NETWORK)
def test_a_personal_model_is_an_ordinary_module_with_the_reported_accuracy(name: str) -> None:
    federation = blobs()
    run = floco.fit(small_net, federation, ANY_NETWORK[name](), **QUICK)
    for client, reported in zip(run.clients["client"], run.clients["accuracy_personal"], strict=True):
        mine = run.personal(client)
        assert type(mine) is nn.Sequential or name in ("fedem", "knn-per")  # no one network
        assert not mine.training
        test = federation.client(client).test
        right = mine(federation.inputs(test)).argmax(1) == federation.y[test]
        assert float(right.double().mean()) == reported


def test_the_users_module_is_left_as_it_was() -> None:
    model = small_net()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    floco.fit(model, blobs(), floco.FedAvg(), **QUICK)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert model.training


def test_rounds_yields_evaluations_while_it_trains() -> None:
    seen = [(e.round, e.history["accuracy_global"]) for e in floco.rounds(small_net, blobs(), floco.FedAvg(), **QUICK)]
    assert seen == list(
        floco.fit(small_net, blobs(), floco.FedAvg(), **QUICK)
        .history[["round", "accuracy_global"]]
        .itertuples(index=False, name=None)
    )


def test_rounds_can_be_left_early() -> None:
    for evaluation in floco.rounds(
        small_net, blobs(), floco.FedAvg(), **{**QUICK, "engine": "processes", "workers": 2}
    ):
        assert evaluation.round == 2
        break


def test_settings_that_do_not_exist_are_named() -> None:
    with pytest.raises(FlocoError, match="unknown key 'rouds'; did you mean 'rounds'"):
        floco.fit(small_net, blobs(), floco.FedAvg(), rouds=3)


def test_an_unknown_client_is_named_with_those_there_are() -> None:
    run = floco.fit(small_net, blobs(), floco.FedAvg(), **QUICK)
    with pytest.raises(FlocoError, match="no client 'nord'; there are north, south"):
        run.personal("nord")


def test_what_is_printed_of_data_and_runs_are_counts_and_never_values() -> None:
    x = np.full((40, 3), 987.5) + np.arange(40)[:, None] / 8
    arrays = {"x_train": x, "y_train": np.array(["secret", "other"] * 20), "client": np.repeat(["n", "s"], 20)}
    samples = floco.load({**arrays, "x_test": x[:9], "y_test": arrays["y_train"][:9]})
    federation = samples.split(floco.Natural())
    with pytest.warns(UserWarning, match="7 of 9 samples of the global test part occur in training parts"):
        run = floco.fit(floco.model("mlp", federation), federation, floco.FedAvg(), **QUICK)
    shown = [repr(v) for v in (samples, federation, federation.clients[0], run)]
    assert shown[0] == "Samples(40 samples (3,), 9 of a test part, task classification, 2 classes, columns client)"
    counts = "2 clients, 32 training and 8 test samples, 9 samples of a global test part"
    assert shown[1] == f"Federation({counts}, task classification, 2 classes, inputs (3,))"
    assert shown[2] == "Client('n', 16 training and 4 test samples)"
    assert shown[3] == f"Run(FedAvg(), round 4 of 4, {shown[1]})"
    for value in (run.setup, run):
        assert not [word for word in ("secret", "987", "tensor(") if word in repr(value)]


@pytest.mark.parametrize("kept", [True, False], ids=["directory", "memory"])
def test_the_table_of_failures_has_its_columns_though_nothing_failed(kept: bool, tmp_path: Path) -> None:
    out = tmp_path / "run" if kept else None
    run = floco.fit(small_net, blobs(), floco.FedAvg(), out=out, **QUICK)
    assert run.failures.columns.tolist() == ["round", "client", "reason"]
    assert not len(run.failures)
    if out is not None:
        assert (out / "failures.csv").read_text() == "round,client,reason\n"


def test_a_failing_client_is_in_the_table_of_failures() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and len(x) == 6:
                raise OSError("disk on fire")
            return self.net(x)

    with pytest.warns(UserWarning, match="clients were left out 4 times"):
        run = floco.fit(Fails, blobs(), floco.FedAvg(), **{**QUICK, "batch_size": 9, "fraction": 1.0})
    assert run.failures.to_dict("records")[0] == {"round": 1, "client": "0", "reason": "OSError: disk on fire"}
    assert run.history["clients_failed"].tolist() == [2, 2]
