"""Clients trained as one program, against one at a time."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from conftest import blobs, make, same, small_net, train
from floco.algorithms import Ditto, FedAvg, Floco, FlocoPlus
from floco.client.setup import Setup
from floco.client.sgd import Work
from floco.core.algorithm import Algorithm
from floco.core.values import RECEIVED, Batch, Facts, Message, Phase, Predict, Step, Tensors, add_prefix, strip_prefix
from floco.data.federation import Federation
from floco.engines import tracing as programs
from floco.engines.cohort import Cohorts, refusal
from floco.engines.engine import Serial, start_engine
from floco.engines.processes import Processes
from floco.server import rounds as loop
from floco.server.progress import Plan, Progress
from floco.storage.memories import Memories
from test_algorithms import TABLE


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every client with something to train that was given to a cohort, whether it was trained there."""
    seen: list[bool] = []
    original = Cohorts.run

    def run(self: Cohorts, works: list[Work]) -> list[Tensors | str]:
        found = original(self, works)
        seen.extend(not isinstance(t, str) for t in found)
        return found

    monkeypatch.setattr(Cohorts, "run", run)
    return seen


def close(a: Progress, b: Progress, tolerance: float = 1e-5) -> bool:
    pairs = [(a.state.shared, b.state.shared), *((a.memories[c], b.memories[c]) for c in a.memories)]
    return a.memories.keys() == b.memories.keys() and all(
        torch.allclose(x[n].double(), y[n].double(), rtol=tolerance, atol=tolerance) for x, y in pairs for n in x
    )


def both(setup: Setup) -> tuple[Progress, Progress]:
    return train(setup)[-1], train(setup, Serial(setup, 8))[-1]


@pytest.mark.parametrize("algorithm", [a for a, _ in TABLE if a.name != "fedem"], ids=lambda a: a.name)  # test_fedem.py
def test_a_cohort_of_unequal_clients_agrees_with_one_at_a_time(algorithm: Algorithm, trained: list[bool]) -> None:
    alone, together = both(make(algorithm))
    assert trained
    assert all(trained)
    assert close(alone, together)
    assert alone.evaluation is not None
    assert together.evaluation is not None
    assert alone.evaluation.history["steps"] == together.evaluation.history["steps"]


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3))


def equal_sizes(n: int, step: int = 1) -> Federation:
    whole = blobs()
    return replace(
        whole, clients=tuple(replace(c, train=c.train[: n - step * (i % 2)]) for i, c in enumerate(whole.clients))
    )


@pytest.mark.parametrize("buffers", ["average", "local"])
def test_batch_norm_counts_in_stacked_buffers_among_clients_of_one_size(buffers: str, trained: list[bool]) -> None:
    alone, together = both(
        make(
            FlocoPlus(endpoints=3, assign_at=3),
            model=batch_norm,
            federation=equal_sizes(8),
            fraction=1.0,
            buffers=buffers,
            batch_size=4,
            lr=0.02,
            seed=2,
        )
    )
    assert all(trained)
    # A batch of four, divided by its own deviation, magnifies rounding, and a center that rounding puts onto an edge
    # draws other mixtures.
    assert close(alone, together, 1e-3)
    counter = "1.num_batches_tracked"
    assert torch.equal(alone.state.shared[counter], together.state.shared[counter])


def test_batch_norm_clients_of_other_sizes_train_alone_and_it_is_said(trained: list[bool]) -> None:
    with pytest.warns(UserWarning, match="of one size") as said:
        alone, together = both(make(FedAvg(), model=batch_norm))
    assert len(said) == 1
    assert not any(trained)
    assert same(alone.state.shared, together.state.shared)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(x.unsqueeze(-1))[0][:, -1])


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x if x.sum() > 0 else -x)


@pytest.mark.parametrize(
    ("model", "reason"),
    [(lambda: nn.Sequential(small_net(), nn.Dropout(0.1)), "random"), (Recurrent, "gru"), (Branching, "control flow")],
    ids=["dropout", "recurrent", "branching"],
)
def test_what_cannot_be_batched_is_said_once_and_trained_one_at_a_time(
    model: Callable[[], nn.Module], reason: str
) -> None:
    setup = make(FedAvg(), model=model, rounds=2)
    assert reason in (refusal(setup) or "")
    with pytest.warns(UserWarning, match="one at a time.*network cannot be batched") as said:
        running = start_engine(setup, "cohort", 1)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = train(setup, running)[-1]
    assert same(train(setup)[-1].state.shared, together.state.shared)


@dataclass(frozen=True)
class Scaled(Algorithm):
    """FedAvg with a loss that closes over a number of the client's own."""

    name: ClassVar[str] = "scaled"

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        scale = torch.tensor(1.0 + facts.label_counts[0])

        def loss(predict: Predict, tensors: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
            return cross_entropy(predict(tensors, batch.x), batch.y) / scale

        return (Phase("shared", (Step(loss, facts.layout.parameters),)),)


def test_losses_that_close_over_different_values_share_no_program(trained: list[bool]) -> None:
    setup = make(Scaled(), rounds=2, federation=equal_sizes(8, step=0))
    with pytest.warns(UserWarning, match="closes over values of its client") as said:
        alone, together = both(setup)
    assert len(said) == 1
    assert not any(trained)
    assert same(alone.state.shared, together.state.shared)


@dataclass(frozen=True)
class Defaulted(Algorithm):
    """The same, with the number in a keyword's default."""

    name: ClassVar[str] = "defaulted"

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        def loss(
            predict: Predict,
            tensors: Tensors,
            draw: torch.Tensor | None,
            batch: Batch,
            *,
            scale: float = 1.0 + facts.label_counts[0],
        ) -> torch.Tensor:
            return cross_entropy(predict(tensors, batch.x), batch.y) / scale

        return (Phase("shared", (Step(loss, facts.layout.parameters),)),)


@dataclass(frozen=True)
class Recursive(Algorithm):
    """A loss whose closure leads back to itself."""

    name: ClassVar[str] = "recursive"

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        def loss(predict: Predict, tensors: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
            return cross_entropy(predict(tensors, batch.x), batch.y) if loss else batch.x.sum()

        return (Phase("shared", (Step(loss, facts.layout.parameters),)),)


@dataclass(frozen=True)
class Widening(Algorithm):
    """Draws one number in the first round, two in the second, and so on; the loss is divided by their number."""

    name: ClassVar[str] = "widening"

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        def draws(tensors: Tensors, n: int, generator: torch.Generator) -> torch.Tensor:
            return torch.rand(n, message.round, generator=generator)

        return (Phase("shared", (Step(_by_width, facts.layout.parameters),), draws=draws),)


def _by_width(predict: Predict, tensors: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
    assert draw is not None
    return cross_entropy(predict(tensors, batch.x), batch.y) / draw.shape[0]


@dataclass(frozen=True)
class Penalised(Algorithm):
    """A loss that would count padding."""

    name: ClassVar[str] = "penalised"

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        return (Phase("shared", (Step(_with_penalty, facts.layout.parameters),)),)


def _with_penalty(predict: Predict, tensors: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
    logits = predict(tensors, batch.x)
    return cross_entropy(logits, batch.y) + 0.1 * logits.square().mean()


@pytest.mark.filterwarnings("ignore:some clients train one at a time")
@pytest.mark.parametrize("algorithm", [Defaulted(), Recursive(), Widening(), Penalised()], ids=lambda a: a.name)
def test_losses_of_ones_own_agree_with_one_at_a_time(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_OFTEN", 1)
    assert close(*both(make(algorithm, rounds=4)))


@dataclass(frozen=True)
class Distilled(Algorithm):
    """A loss that counts padding, but not at the start of a round."""

    name: ClassVar[str] = "distilled"

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        return {**message.shared, **add_prefix(message.shared, RECEIVED)}

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        return (Phase("shared", (Step(_distilled, facts.layout.parameters),)),)


def _distilled(predict: Predict, tensors: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
    before = predict({**tensors, **strip_prefix(tensors, RECEIVED)}, batch.x)
    return cross_entropy(predict(tensors, batch.x), batch.y) + 3 * (predict(tensors, batch.x) - before).square().mean()


@dataclass(frozen=True)
class Branchy(Algorithm):
    """A loss that can be batched, and not traced."""

    name: ClassVar[str] = "branchy"
    begin = Distilled.begin

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        return (Phase("shared", (Step(_branchy, facts.layout.parameters),)),)


def _branchy(predict: Predict, tensors: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
    sign = 1 if float(tensors[RECEIVED + "0.bias"].sum()) > 0 else 1.5
    return sign * cross_entropy(predict(tensors, batch.x), batch.y)


@pytest.mark.filterwarnings("ignore:some clients train one at a time")
@pytest.mark.parametrize("algorithm", [Distilled(), Branchy()], ids=lambda a: a.name)
def test_what_fails_late_or_not_by_its_value_agrees_with_one_at_a_time(
    algorithm: Algorithm, trained: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "_OFTEN", 2)
    assert close(*both(make(algorithm, rounds=3)))
    assert all(trained) == (algorithm.name == "branchy")


@dataclass(frozen=True)
class Closing(Algorithm):
    """A loss that closes over what was received."""

    name: ClassVar[str] = "closing"

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        received = message.shared

        def loss(predict: Predict, tensors: Tensors, draw: torch.Tensor | None, batch: Batch) -> torch.Tensor:
            pull = sum((tensors[n] - received[n]).square().sum() for n in facts.layout.parameters)
            return cross_entropy(predict(tensors, batch.x), batch.y) + pull

        return (Phase("shared", (Step(loss, facts.layout.parameters),)),)


@pytest.mark.filterwarnings("ignore:some clients train one at a time")
def test_nothing_is_kept_of_losses_that_close_over_tensors() -> None:
    setup = make(Closing(), rounds=3)
    running = Serial(setup, 8)
    train(setup, running)
    cohorts = running._perform._cohorts
    assert cohorts is not None
    assert not cohorts._paddable
    assert not cohorts._programs._asked


@dataclass(frozen=True)
class Undrawn(Algorithm):
    """Cannot draw for the largest client."""

    name: ClassVar[str] = "undrawn"

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        def draws(tensors: Tensors, n: int, generator: torch.Generator) -> torch.Tensor:
            if facts.n_train > 30:
                raise RuntimeError("no number left")
            return torch.rand(n, 2, generator=generator)

        return (Phase("shared", (Step(_by_width, facts.layout.parameters),), draws=draws),)


def test_a_client_whose_draws_fail_is_left_out_and_named() -> None:
    setup = make(Undrawn(), rounds=1, fraction=1.0)
    for p in both(setup):
        assert [f.reason for f in p.failures] == ["RuntimeError: no number left"]


class Singular(nn.Module):
    """Raises on inputs beyond 100, and only when they are seen."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) + torch.linalg.inv(torch.eye(2) * (x.abs().max() < 100)).sum()


@pytest.mark.filterwarnings("ignore:some clients train one at a time")
def test_one_clients_fault_changes_nothing_for_later_rounds() -> None:
    whole = blobs()
    x = whole.x.clone()
    x[whole.clients[2].train[3]] = 1000.0
    setup = make(FedAvg(), model=Singular, federation=replace(whole, x=x), rounds=6)
    progress = train(setup, Serial(setup, 8))
    assert any(p.failures for p in progress)
    for start in progress[:-1]:
        (*_, resumed) = loop.rounds(setup, Serial(setup, 8), Plan(evaluate_every=1), start)
        assert same(resumed.state.shared, progress[-1].state.shared)


@pytest.mark.filterwarnings("ignore:some clients train one at a time")
def test_padding_is_tried_on_samples_that_differ(trained: list[bool]) -> None:
    whole = blobs()
    x = whole.x.clone()
    x[:] = x[0]  # every statistic of a batch is that of any other

    def mixing() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7, track_running_stats=False), nn.Linear(7, 3))

    both(make(FedAvg(), model=mixing, federation=replace(whole, x=x)))
    assert not any(trained)


def test_memories_are_alike_at_hand_and_in_files() -> None:
    setup = make(
        FlocoPlus(endpoints=10, assign_at="never", mix="all"),
        model=lambda: nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 3)),
    )
    kept = train(setup, Serial(setup, 8))[-1]
    (*_, read) = loop.rounds(
        setup, Serial(setup, 8), Plan(evaluate_every=1), loop.initialize(setup, Memories(budget=0))
    )
    assert kept.evaluation == read.evaluation


@pytest.mark.filterwarnings("ignore:some clients train one at a time")
def test_a_network_that_mixes_samples_sees_no_padding(trained: list[bool]) -> None:
    def mixing() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7, track_running_stats=False), nn.Linear(7, 3))

    assert same(*(p.state.shared for p in both(make(FedAvg(), model=mixing))))
    assert not any(trained)
    assert close(*both(make(FedAvg(), model=mixing, federation=equal_sizes(8), fraction=1.0)), tolerance=1e-3)
    assert any(trained)


class Keeps(nn.Module):
    """Keeps its last features, has a frozen layer and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.frozen, self.head = (
            nn.Linear(5, 5),
            nn.Linear(5, 5),
            nn.Linear(5, 7),
            nn.Linear(7, 3),
        )
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.features = self.frozen(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return self.head(self.features)


def test_a_module_that_keeps_tensors_stays_usable(trained: list[bool]) -> None:
    setup = make(FlocoPlus(endpoints=3, assign_at=3), model=Keeps)
    assert refusal(setup) is None
    assert close(*both(setup))
    assert all(trained)
    assert isinstance(copy.deepcopy(setup.network.module)(torch.zeros(1, 5)), torch.Tensor)


def test_one_long_client_among_short_ones_goes_on_alone(trained: list[bool]) -> None:
    whole = blobs()
    federation = replace(
        whole, clients=tuple(replace(c, train=c.train if i == 5 else c.train[:3]) for i, c in enumerate(whole.clients))
    )
    assert close(*both(make(Floco(endpoints=3, assign_at=3), federation=federation, fraction=1.0, batch_size=2)))
    assert all(trained)


def test_half_precision_in_a_cohort() -> None:
    assert close(*both(make(Floco(endpoints=3, assign_at="never"), precision="bf16", rounds=3)), tolerance=2e-2)


def test_a_cohort_continues_to_the_bits_of_one_that_was_not_stopped() -> None:
    setup = make(FlocoPlus(endpoints=3, assign_at=3))
    whole = train(setup, Serial(setup, 8))
    (*_, resumed) = loop.rounds(setup, Serial(setup, 8), Plan(evaluate_every=1), whole[2])
    assert same(resumed.state.shared, whole[-1].state.shared)
    assert resumed.evaluation == whole[-1].evaluation


@pytest.mark.filterwarnings("error")
def test_newcomers_train_with_clients_whose_tensors_were_read_from_files_to_the_same_bits(trained: list[bool]) -> None:
    setup = make(Ditto(), federation=equal_sizes(8, step=0))
    kept = train(setup, Serial(setup, 8))[-1]
    (*_, read) = loop.rounds(
        setup, Serial(setup, 8), Plan(evaluate_every=1), loop.initialize(setup, Memories(budget=0))
    )
    assert all(trained)
    assert same(kept.state.shared, read.state.shared)
    assert all(same(kept.memories[c], read.memories[c]) for c in setup.federation.ids)


def test_workers_train_cohorts_and_the_parent_tells_once_what_they_cannot() -> None:
    setup = make(FlocoPlus(endpoints=3, assign_at=3))
    running = Processes(setup, 2, 8)
    found = train(setup, running)[-1]
    running.close()
    assert close(train(setup)[-1], found)
    setup = make(Scaled(), rounds=2, federation=equal_sizes(8, step=0), fraction=1.0)
    running = Processes(setup, 2, 8)
    with pytest.warns(UserWarning, match="closes over values") as said:
        found = train(setup, running)[-1]
    running.close()
    assert len(said) == 1
    assert same(train(setup)[-1].state.shared, found.state.shared)


@pytest.mark.parametrize("model", [small_net, batch_norm])
def test_a_traced_program_gives_the_same_bits_and_is_traced_once_for_a_shape(
    model: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[int] = []
    original = programs.make_fx
    monkeypatch.setattr(programs, "make_fx", lambda f: traced.append(1) or original(f))
    setup = make(
        FlocoPlus(endpoints=3, assign_at="never"),
        model=model,
        federation=equal_sizes(8),
        fraction=1.0,
        rounds=4,
        batch_size=4,
    )
    progress = {}
    for often in (1, 3, 1000):
        monkeypatch.setattr(programs, "_OFTEN", often)
        progress[often] = train(setup, Serial(setup, 8), Plan(evaluate_every=4))[-1]
    assert len(traced) == 2 * (
        2 if model is small_net else 4
    )  # two runs, shared and personal phase; with BatchNorm batches of 4 and of 3
    for often in (1, 3):
        assert same(progress[often].state.shared, progress[1000].state.shared)
        assert all(same(progress[often].memories[c], progress[1000].memories[c]) for c in setup.federation.ids)


class Fragile(nn.Module):
    """Not finite on inputs beyond 100."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) + torch.where(x.abs() > 100, torch.nan, 0.0).sum()


def test_a_client_that_fails_in_a_cohort_is_left_out_and_named() -> None:
    whole = blobs()
    x = whole.x.clone()
    x[whole.clients[2].train[0]] = 1000.0
    setup = make(FedAvg(), model=Fragile, federation=replace(whole, x=x), fraction=1.0, rounds=2)
    alone, together = both(setup)
    for p in (alone, together):
        (failure,) = [f for f in p.failures if "non-finite" in f.reason]
        assert failure.client == "east"
    assert close(alone, together)
