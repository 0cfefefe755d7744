import os
import pickle
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from conftest import blobs, make, same, small_net, train
from floco.algorithms import Ditto, FedAvg, Floco, FlocoPlus
from floco.client.predict import split_test_part
from floco.core.algorithm import Algorithm
from floco.core.errors import FlocoError, RunFailed
from floco.core.values import Message
from floco.engines.engine import Serial, resolve
from floco.engines.jobs import Job
from floco.engines.processes import Processes, _dumps
from floco.engines.units import group_jobs
from floco.server.progress import Plan
from floco.server.rounds import initialize


@pytest.mark.parametrize(
    "algorithm",
    [Floco(endpoints=4, assign_at=3), FlocoPlus(endpoints=4, assign_at=3), FedAvg(), Ditto()],
    ids=lambda a: a.name,
)
def test_serial_and_any_number_of_workers_give_the_same_bits(algorithm: Algorithm) -> None:
    setup = make(algorithm, model=conv_net)
    expected = train(setup, Serial(setup))
    for workers in (1, 2, 3):
        engine = Processes(setup, workers)
        got = train(setup, engine)
        engine.close()
        for a, b in zip(expected, got, strict=True):
            assert same(a.state.shared, b.state.shared)
            assert a.evaluation == b.evaluation
            assert all(same(dict(a.memories[c]), dict(b.memories[c])) for c in a.memories)


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 1, 5)), nn.Conv2d(1, 4, (1, 3)), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(12, 3)
    )


class Fails(nn.Module):
    """Fails on a batch of 6 samples, which one client alone has (see `failing`)."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.how = small_net(), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and len(x) == 6:
            if self.how == "raises":
                raise OSError("disk on fire")
            if self.how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            return self.net(x) * float("nan")
        return self.net(x)


def failing(how: str):  # type: ignore[no-untyped-def]
    """Client sizes 8, 13, 18, 23, 28, 33: batches of 9 leave 6 only for the last, 33 = 3 * 9 + 6."""
    return make(FedAvg(), model=lambda: Fails(how), fraction=1.0, batch_size=9)


class Unknown(nn.Module):
    """Gives no numbers in evaluation mode for the samples of the global test part, which are larger than all others."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) * (float("nan") if float(x.max()) > 1e6 else 1.0)


def test_a_global_model_that_cannot_be_judged_fails_once_however_many_jobs_it_takes() -> None:
    part = torch.full((4000, 5), 1e7), torch.zeros(4000, dtype=torch.long)
    setup = make(FedAvg(), model=Unknown, federation=replace(blobs(), x_test=part[0], y_test=part[1]))
    assert len(split_test_part(setup)) > 1
    last = train(setup, Serial(setup))[-1]
    assert last.evaluation.history["clients_failed"] == 1
    assert len(last.failures) == 1


@pytest.mark.parametrize(("how", "reason"), [("raises", "OSError: disk on fire"), ("is nan", "non-finite")])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_client_is_left_out_named_and_counted(how: str, reason: str, workers: int) -> None:
    setup = failing(how)
    engine = Processes(setup, workers) if workers else Serial(setup)
    progress = train(setup, engine, Plan(evaluate_every=2))
    engine.close()
    for p in progress:
        (failure,) = p.failures
        assert (failure.client, failure.round) == ("0", p.round)
        assert reason in failure.reason
        assert str(failure).startswith(f'round {p.round}, client "0": ')
        assert "Traceback" in failure.trace
        assert all(torch.isfinite(t).all() for t in p.state.shared.values())
    assert [p.evaluation.history["clients_failed"] for p in progress if p.evaluation] == [2, 2, 2]
    assert progress[-1].participated.get("0", 0) == 0


def test_more_failures_than_allowed_end_the_run() -> None:
    setup = failing("raises")
    with pytest.raises(
        RunFailed, match=r'round 1: 1 clients failed.*max_failed = 0.*\n  round 1, client "0": OSError: disk on fire'
    ):
        train(setup, Serial(setup), Plan(max_failed=0))


def test_a_round_without_any_update_ends_the_run() -> None:
    setup = make(FedAvg(), lr=1e30)
    with pytest.raises(RunFailed, match=r"non-finite.*smaller training\.lr"):
        train(setup, Serial(setup), Plan(max_failed=100))


def test_a_dead_worker_is_an_error_that_names_the_client() -> None:
    setup = failing("dies")
    engine = Processes(setup, 2)
    with pytest.raises(RunFailed, match=r'round 1, client "0": worker process \d+ died \(exit code -9\)'):
        train(setup, engine)
    engine.close()


def test_workers_end_with_the_engine() -> None:
    engine = Processes(make(FedAvg()), 2)
    workers = list(engine._workers)
    engine.close()
    assert not any(w.is_alive() for w in workers)


def test_auto_takes_cohorts_for_small_dense_networks_and_processes_else() -> None:
    for setup, expected in (
        (make(FedAvg(), fraction=1.0), "cohort"),
        (make(FedAvg(), fraction=0.5), "processes"),  # three clients a round
        (
            make(
                FedAvg(),
                fraction=1.0,
                model=lambda: nn.Sequential(nn.Linear(5, 200_000 // 8), nn.Linear(200_000 // 8, 3)),
            ),
            "processes",
        ),
        (make(FedAvg(), fraction=1.0, model=conv_net), "processes"),
        (make(FedAvg(), fraction=1.0, model=lambda: nn.Sequential(small_net(), nn.Dropout(0.1))), "processes"),
    ):
        assert resolve(setup, "auto", None)[0] == expected
    assert resolve(make(FedAvg(), fraction=1.0), "auto", 3) == ("cohort", 3)
    assert resolve(make(FedAvg()), "serial", None) == ("serial", 1)


def test_processes_need_the_cpu() -> None:
    setup = replace(make(FedAvg()), device=torch.device("cuda"))
    assert resolve(setup, "auto", None) == ("serial", 1)
    assert resolve(setup, "cohort", None) == ("cohort", 1)
    for kind, workers in (("processes", None), ("cohort", 2)):
        with pytest.raises(FlocoError, match="engine serial or cohort"):
            resolve(setup, kind, workers)


def test_threads_are_restored_after_a_run() -> None:
    torch.set_num_threads(2)
    train(make(FedAvg(), rounds=1))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_jobs(workers: int) -> None:
    setup = make(FedAvg())
    state = initialize(setup).state
    jobs = [Job(c, "train", setup.algorithm.message(state, c, "train")) for c in reversed(setup.federation.ids)]
    engine = Processes(setup, workers) if workers else Serial(setup)
    assert [r.client for r in engine.run(jobs)] == [j.client for j in jobs]
    engine.close()


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.int64,
        torch.uint8,
        torch.bool,
    ],
    ids=str,
)
def test_tensors_of_any_kind_and_layout_travel_whole(dtype: torch.dtype) -> None:
    t = torch.arange(24).view(2, 3, 4).to(dtype)
    for sent in (t, t.mT, t[0, 0, 1], t[:, ::2], t[:0], t[:1].expand(3, 3, 4)):
        got = pickle.loads(_dumps({"t": sent}))["t"]
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
        assert torch.equal(got.double(), sent.double())


def test_units_are_even_and_parts_of_the_global_test_stand_alone() -> None:
    setup = make(FedAvg())
    jobs = [Job(c, "evaluate", Message(1, "evaluate", {})) for c in setup.federation.ids] + [
        Job("all", "test", Message(1, "evaluate", {}))
    ] * 2
    found = group_jobs(setup, jobs, 4, 2)
    assert sorted(map(len, found)) == [1, 1, 3, 3]
    assert sorted(i for unit in found for i in unit) == list(range(8))
