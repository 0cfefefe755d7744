"""Centers that clients find themselves, and endpoints averaged by how much of each they train."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import floco as package
from conftest import blobs, make, rows, same, train
from floco.algorithms import FedAvg, Floco, FlocoPlus
from floco.algorithms.centers import MixtureSampler, find_center
from floco.algorithms.endpoints import WEIGHTS, average_endpoints
from floco.analysis.landscape import landscape
from floco.client.examine import TrainingPart
from floco.client.round import prepare
from floco.client.trial import BodyAndHead
from floco.core.errors import FlocoError
from floco.core.mixing import CENTER, CENTER_TENSOR, Mixing
from floco.core.values import Message, ServerState, Training, Update
from floco.data.federation import Client, Federation
from floco.deliver.newcomers import try_place
from floco.deliver.personal import outputs
from floco.engines.engine import start_engine
from floco.engines.jobs import Job, perform
from floco.server.rounds import initialize
from floco.simplex.optimum import lowest, with_prior
from floco.tasks import TASKS, Classification, Regression
from floco.testing import check_algorithm

OWN: dict[str, Any] = {"endpoints": 3, "centers": "own", "step": "mixture"}
METHODS = [Floco, FlocoPlus]


class Samples:
    """Targets, and outputs of linear networks y = W x."""

    linear = True

    def __init__(self, x: torch.Tensor, targets: torch.Tensor) -> None:
        self.x, self.targets = x, targets

    def mixtures(self, mixing: Mixing, simplex: Any) -> Any:
        self.mixing, self.simplex = mixing, simplex
        return self

    def outputs(self, alpha: torch.Tensor) -> torch.Tensor:
        return self.x.double() @ self.mixing({n: t.double() for n, t in self.simplex.items()}, alpha)["w"].T


def center_of(ends: torch.Tensor, x: torch.Tensor, y: torch.Tensor, *, checked: bool = False) -> torch.Tensor:
    mixing = Mixing(("w",), len(ends), 0.1, own_centers=True)
    return find_center(
        mixing, Regression(), {"w": ends}, mixing.middle, Samples(x, y), checked=Regression() if checked else None
    )


def test_a_center_is_the_mixture_of_lowest_loss_in_closed_form() -> None:
    """Squared loss, two endpoints: it minimises mean (o2 + alpha (o1 - o2) - y)^2 + 2 (alpha - 1/2)^2 / n."""
    g, n = torch.Generator().manual_seed(0), 60
    x, ends = torch.randn(n, 3, generator=g), torch.randn(2, 1, 3, generator=g)
    y = x @ (0.8 * ends[0] + 0.2 * ends[1]).T + 0.1 * torch.randn(n, 1, generator=g)
    one, two = (x @ e.T for e in ends)
    step = one - two
    alpha = (((y - two) * step).mean() + 1 / n) / (step.square().mean() + 2 / n)
    assert alpha > 0.6
    assert center_of(ends, x, y).tolist() == pytest.approx([float(alpha), 1 - float(alpha)], abs=1e-4)


@pytest.mark.parametrize(("n", "first"), [(1, 0.5), (16, 0.5), (18, 0.725), (1000, 0.75)])
def test_a_checked_center_leaves_the_middle_if_it_gains_more_than_the_numbers_it_fits(n: int, first: float) -> None:
    """One number a = alpha_1 is fitted. The loss, n (a - 3/4)^2, and the prior, 2 (a - 1/2)^2, gain n^2 / (16 (n + 2)).

    That is more than 1 from 18 samples on.
    """
    x, ends = torch.full((n, 1), 0.5), torch.tensor([[[1.0]], [[-1.0]]])
    assert center_of(ends, x, 0.5 * x, checked=True).tolist() == pytest.approx([first, 1 - first], abs=1e-3)
    assert float(center_of(ends, x, 0.5 * x)[0]) > 0.55


@pytest.mark.parametrize("task", [Classification(), Classification(prior="client")], ids=["plain", "prior"])
@pytest.mark.parametrize("mix", ["last", "all"])
@pytest.mark.parametrize("cls", METHODS)
def test_with_one_endpoint_it_is_fedavg_to_the_bit(cls: Any, mix: str, task: Classification) -> None:
    federation = replace(blobs(), task=task)
    own = train(make(cls(endpoints=1, centers="own", mix=mix), federation=federation))[-1]
    plain = train(make(FedAvg(), federation=federation))[-1]
    assert same({n: t.reshape(plain.state.shared[n].shape) for n, t in own.state.shared.items()}, plain.state.shared)


def test_the_personal_simplex_of_floco_plus_trains_inside_its_subregion_only() -> None:
    """Batches from the whole simplex are for the endpoints that clients share."""
    setup = make(FlocoPlus(**OWN), rounds=4)
    message = setup.algorithm.message(initialize(setup).state, setup.evaluated[0], "train")
    shared, personal = setup.algorithm.phases(message, setup.facts(setup.evaluated[0]))
    assert (shared.draws.uniform, personal.draws.uniform, personal.draws.radius) == (0.5, 0.0, 0.1)


@pytest.mark.parametrize("cls", METHODS)
def test_it_keeps_the_contract_and_resumes_to_the_bit(cls: Any) -> None:
    check_algorithm(cls(**OWN, assign_at=2))


@pytest.mark.parametrize(
    ("rounds", "given", "expected"),
    [
        (3, {}, 5),  # after the last round
        (40, {}, 10),
        (42, {}, 10),
        (40, {"assign_at": 20}, 29),
        (40, {"check_at": 2}, 2),
        (40, {"check_at": "never"}, "never"),
        (40, {"centers": "signals"}, "never"),
    ],
)
def test_centers_are_checked_a_quarter_of_the_rounds_after_the_first(
    rounds: int, given: dict[str, Any], expected: int | str
) -> None:
    assert Floco(**{**OWN, **given}).resolved(Training(rounds=rounds)).check_at == expected


def test_only_losses_that_are_log_likelihoods_are_checked() -> None:
    assert [name for name, cls in TASKS.items() if cls().likelihood is not None] == ["classification"]


def test_a_center_is_checked_by_the_likelihood_whatever_the_training_loss() -> None:
    """By the smoothed loss, 40 samples gain less than M - 1."""
    task = Classification(label_smoothing=0.8)
    ends = 2 * torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])[:, :, None]
    x, y = torch.ones(40, 1), torch.zeros(40, dtype=torch.long)
    mixing = Mixing(("w",), 5, 0.1, own_centers=True)
    given = mixing, task, {"w": ends}, mixing.middle, Samples(x, y)
    assert float(find_center(*given, checked=task.likelihood)[0]) > 0.22
    assert torch.equal(find_center(*given, checked=task), mixing.middle)


def test_clients_that_are_alike_stay_in_the_middle_and_those_of_two_kinds_do_not() -> None:
    """From the check on; before it, the former find centers all the same."""
    g = torch.Generator().manual_seed(0)
    x, middles = torch.randn(12 * 40, 5, generator=g), []
    plain = (x @ torch.randn(5, 3, generator=g)).argmax(dim=1)
    for turned in (0, 1):  # every second client exchanges labels
        y = torch.where(torch.arange(len(x)) // 40 % 2 == 1, (plain + turned) % 3, plain)
        parts = [(torch.arange(40 * i, 40 * i + 30), torch.arange(40 * i + 30, 40 * i + 40)) for i in range(12)]
        clients = tuple(Client(str(i), *part) for i, part in enumerate(parts))
        setup = make(Floco(**OWN), federation=Federation(x, y, clients, ("a", "b", "c")), rounds=16)
        mixing = setup.algorithm.mixing
        assert mixing is not None
        states = train(setup)
        found = [states[r - 1].centers(mixing).values() for r in (3, 16)]
        middles.append([sum(bool(c.equal(mixing.middle)) for c in centers) for centers in found])
    assert middles == [[0, 12], [0, 0]]


@pytest.mark.parametrize("mix", ["last", "all"])
@pytest.mark.parametrize("cls", METHODS)
def test_engines_agree(cls: Any, mix: str) -> None:
    found = []
    for engine in ("serial", "processes", "cohort"):
        setup = make(cls(**OWN, mix=mix), rounds=2)
        running = start_engine(setup, engine, 2 if engine == "processes" else 1)
        found.append(train(setup, running)[-1])
        running.close()
    serial, processes, cohort = found
    assert same(serial.state.shared, processes.state.shared)
    assert all(torch.allclose(t, cohort.state.shared[n], atol=1e-3) for n, t in serial.state.shared.items())
    centers = [p.centers(make(cls(**OWN)).algorithm.mixing) for p in found]  # type: ignore[arg-type]
    assert same(centers[0], centers[1])
    assert all(torch.allclose(c, centers[2][k], atol=1e-3) for k, c in centers[0].items())


@pytest.mark.parametrize("cls", METHODS)
def test_no_center_leaves_its_client_where_endpoints_are_averaged_by_samples(cls: Any) -> None:
    setup = make(cls(**OWN, average="samples"))
    before = train(setup)[-2]
    assert not before.state.by_client
    for job in (Job(c, "train", setup.algorithm.message(before.state, c, "train")) for c in setup.federation.ids):
        result = perform(setup, job, None)
        assert result.update is not None
        assert not result.update.extra
        assert CENTER_TENSOR not in result.update.shared
        assert CENTER not in job.message.own
        assert result.memory is not None
        assert result.memory[CENTER_TENSOR].sum() == pytest.approx(1)


def test_endpoints_are_averaged_by_samples_times_weights() -> None:
    g = torch.Generator().manual_seed(0)
    stacks = torch.randn(3, 2, 4, 5, generator=g)  # three clients, two endpoints
    sizes, weights = (10, 20, 30), torch.tensor([[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]])
    updates = [
        Update(f"c{k}", "train", n, {"w": stacks[k]}, {WEIGHTS: weights[k].double()}) for k, n in enumerate(sizes)
    ]
    made = average_endpoints(["w"], ServerState({"w": torch.zeros(2, 4, 5), "b": torch.ones(3)}), updates)
    for m in range(2):
        share = torch.tensor(sizes) * weights[:, m]
        expected = torch.einsum("k,kij->ij", share / share.sum(), stacks[:, m])
        assert torch.allclose(made.shared["w"][m], expected, atol=1e-6)
    assert torch.equal(made.shared["b"], torch.ones(3))


@pytest.mark.parametrize("told", [[1000.0, 1000.0], [-0.3, 0.5], [0.0, 7.0]])
def test_no_client_counts_more_than_its_samples_whatever_weights_it_sends(told: list[float]) -> None:
    updates = [
        Update(name, "train", 5, {"w": torch.full((2, 3), value)}, {WEIGHTS: torch.tensor(sent)})
        for name, value, sent in (("honest", 1.0, [0.5, 0.5]), ("other", 3.0, told))
    ]
    made = average_endpoints(["w"], ServerState({"w": torch.zeros(2, 3)}), updates).shared["w"][:, 0]
    share = torch.tensor(told).clamp_min(0) / torch.tensor(told).clamp_min(0).sum()
    assert torch.allclose(made, (0.5 * 1 + share * 3) / (0.5 + share))


def test_an_endpoint_that_nobody_has_trained_keeps_its_plain_average() -> None:
    alone = Update("c", "train", 5, {"w": torch.ones(2, 3)}, {WEIGHTS: torch.tensor([1.0, 0.0])})
    made = average_endpoints(["w"], ServerState({"w": torch.full((2, 3), 7.0)}), [alone])
    assert made.shared["w"].tolist() == [[1.0] * 3, [7.0] * 3]


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0])
def test_a_share_of_mixtures_is_from_the_whole_simplex_and_weights_are_their_mean(uniform: float) -> None:
    center = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    sampler = MixtureSampler(3, 0.1, released=False, uniform=uniform)
    drawn = sampler({CENTER_TENSOR: center}, 4000, torch.Generator().manual_seed(0))
    near = float(((drawn - center).abs().sum(dim=1) <= 0.1).double().mean())
    assert near == pytest.approx(1 - uniform, abs=0.03)  # the subregion is 0.4 % of the simplex
    assert torch.allclose(drawn.mean(dim=0), sampler.weights(center), atol=0.02)


def test_at_most_512_samples_are_examined_from_all_over_the_training_part() -> None:
    n = 3000
    y = torch.arange(3).repeat_interleave(n // 3)
    everything = torch.arange(n)
    setup = make(
        Floco(),
        federation=Federation(torch.randn(n, 5), y, (Client("a", everything, everything[:9]),), ("a", "b", "c")),
    )
    part = TrainingPart(setup, "a")
    assert torch.bincount(part.targets).tolist() == pytest.approx([512 / 3] * 3, abs=1)
    assert part.outputs([setup.initial()]).shape == (1, 512, 3)


def test_large_outputs_are_examined_on_fewer_samples() -> None:
    n, everything = 60, torch.arange(60)
    federation = Federation(
        torch.randn(n, 1, 2), torch.zeros(n).long(), (Client("a", everything, everything[:9]),), ("a",)
    )
    setup = make(Floco(), federation=federation)
    setup.__dict__["output_size"] = 2**17
    assert len(TrainingPart(setup, "a").targets) == 32
    setup.__dict__["output_size"] = 2**30
    assert len(TrainingPart(setup, "a").targets) == 16


def test_where_whole_networks_are_mixed_a_center_is_of_their_mixtures_and_not_of_their_outputs() -> None:
    setup = make(Floco(**OWN, mix="all", check_at="never"))
    shared, mixing = train(setup)[-1].state.shared, setup.algorithm.mixing
    assert mixing is not None
    for client in setup.federation.ids[:3]:
        part = TrainingPart(setup, client)
        mixtures, corners = part.mixtures(mixing, dict(shared)), torch.eye(3)
        assert not mixtures.linear
        ends = part.outputs([mixing(shared, alpha) for alpha in corners]).double()

        def of_mixture(alpha: torch.Tensor, mixtures: Any = mixtures, y: torch.Tensor = part.targets) -> torch.Tensor:
            return setup.task.loss(mixtures.outputs(alpha), y)

        def of_outputs(alpha: torch.Tensor, ends: torch.Tensor = ends, y: torch.Tensor = part.targets) -> torch.Tensor:
            return setup.task.loss(torch.einsum("m,m...->...", alpha, ends), y)

        n, middle = len(part.targets), mixing.middle
        objective = with_prior(of_mixture, middle, n)
        found = find_center(mixing, setup.task, shared, middle, part)
        other = lowest(with_prior(of_outputs, middle, n), middle, convex=False)
        assert not torch.allclose(found, other, atol=0.02)
        assert objective(found) < objective(other)
        assert objective(found) < objective(middle)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_finding_centers_tries_the_network_once_and_not_for_every_client(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []
    agrees = BodyAndHead.agrees
    monkeypatch.setattr(BodyAndHead, "agrees", lambda *given: tried.append(given[0]) or agrees(*given))
    train(make(Floco(**OWN), rounds=3, precision=precision))
    assert 1 <= len(tried) <= 2  # in float32, and in the precision of training


@pytest.mark.parametrize("cls", METHODS)
def test_before_assign_at_all_train_on_the_whole_simplex_as_with_signals(cls: Any) -> None:
    own, signals = (
        train(make(cls(**{**OWN, "centers": c}, assign_at=6, average="samples"))) for c in ("own", "signals")
    )
    assert same(own[-2].state.shared, signals[-2].state.shared)
    assert not own[-2].centers(own[-2] and make(cls(**OWN)).algorithm.mixing)  # type: ignore[arg-type]
    assert make(cls(**OWN)).algorithm.assign_at == 1


def test_a_client_that_never_trained_finds_its_center_when_it_is_evaluated() -> None:
    setup = make(Floco(**OWN, check_at="never"), fraction=0.2)
    last = train(setup)[1]
    absent = next(c for c in setup.federation.ids if c not in last.participated)
    work = prepare(setup, absent, setup.algorithm.message(last.state, absent, "evaluate"), None)
    mixing = setup.algorithm.mixing
    assert mixing is not None
    expected = find_center(mixing, setup.task, last.state.shared, mixing.middle, TrainingPart(setup, absent))
    assert torch.equal(work.tensors[CENTER_TENSOR], expected)
    assert not torch.allclose(expected, mixing.middle, atol=1e-3)


def test_a_client_that_trained_is_evaluated_at_the_center_it_keeps() -> None:
    setup = make(Floco(**OWN))
    last = train(setup)[-1]
    client = next(iter(last.participated))
    memory = last.memories.of(client)
    assert memory is not None
    message = Message(last.round, "evaluate", last.state.shared)
    work = prepare(setup, client, message, memory.tensors)
    assert torch.equal(work.tensors[CENTER_TENSOR], memory.tensors[CENTER_TENSOR])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    federation = package.load("digits").split(package.Folds(5), clients=10)
    out = tmp_path_factory.mktemp("own") / "run"
    method = Floco(**OWN)
    return package.fit(package.model("mlp", federation), federation, method, out=out, rounds=4, fraction=0.5)


def test_the_model_that_is_handed_out_is_the_one_that_was_evaluated(run: Any) -> None:
    federation = run.setup.federation
    for row in rows(Path(run.path) / "clients.csv")[-6:]:
        test = federation.client(row["client"]).test
        logits = outputs(run.setup, run.progress, row["client"], federation.x[test])
        accuracy = float((logits.argmax(dim=1) == federation.y[test]).float().mean())
        assert accuracy == pytest.approx(float(row["accuracy_personal"]), abs=1e-6)


def test_clients_have_their_centers_in_the_run(run: Any) -> None:
    shown = dict(zip(run.clients["client"], run.clients["center"], strict=True))
    trained = {c for c, times in run.progress.participated.items() if times}
    assert {c for c, center in shown.items() if center is not None} == trained
    assert all(sum(shown[c]) == pytest.approx(1) for c in trained)


def test_a_newcomer_has_no_signal_and_is_placed_by_its_data(run: Any) -> None:
    federation = run.setup.federation
    train = federation.clients[0].train
    found = try_place(run.setup, run.progress.state, federation.x[train], federation.y[train])
    assert [c.rule for c in found.candidates] == ["global", "data"]
    assert not found.problems


def test_the_landscape_shows_the_regions_of_those_who_have_centers(run: Any) -> None:
    found = landscape(run.setup, run.setup.algorithm.mixing, run.progress)
    assert set(found.subregions) == set(run.progress.participated)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampler": "released"}, 'needs a round assign_at, sampler = "subregion"'),
        ({"assign_at": "never"}, "needs a round assign_at"),
        ({"normalize": False}, "normalize = true"),
        ({"uniform": 1.5}, "uniform"),
        ({"average": "alpha"}, "average"),
        ({"centers": "mine"}, "centers"),
        ({"assign_at": 99}, "at most"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(FlocoError, match=words):
        make(Floco(**{**OWN, **settings}))
