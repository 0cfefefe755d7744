"""Step sizes: that of Floco's endpoints, and that of the head."""

from typing import Any

import pytest
import torch
from torch import nn

from conftest import blobs, make, same, small_net, train
from floco.algorithms import ALGORITHMS, APFL, SCAFFOLD, Ditto, FedAvg, FedAvgFT, FedRep, Floco, FlocoPlus, PFedMe
from floco.analysis.tuning import list_trials
from floco.client.optimizer import apply_gradients
from floco.core.errors import FlocoError
from floco.core.mixing import Mixing
from floco.core.values import PERSONAL, Step, Training
from floco.engines.engine import start_engine
from floco.runs.toml import parse

STEPS = ("endpoint", "mixture", "middle")
OTHERS = {name: cls for name, cls in ALGORITHMS.items() if cls not in (SCAFFOLD, PFedMe)}


def ends(algorithm: Any, engine: str = "serial", **options: Any) -> dict[str, torch.Tensor]:
    running = None
    if engine != "serial":
        running = start_engine(make(algorithm, **options), engine, 2 if engine == "processes" else 1)
    try:
        return train(make(algorithm, **options), running)[-1].state.shared
    finally:
        if running is not None:
            running.close()


@pytest.mark.parametrize("draw", [[0.1, 0.2, 0.3, 0.4], [0.25] * 4, [1.0, 0, 0, 0]])
def test_how_far_a_step_moves_the_mixture_and_the_model_in_the_middle(draw: list[float]) -> None:
    """dW(a) = sum_m a_m dW_m, and g = dL/dW: W(alpha) by lr g with "mixture", W(1/M) by lr g with "middle"."""
    g = torch.Generator().manual_seed(0)
    stack, target = torch.randn(4, 3, 5, generator=g).requires_grad_(), torch.randn(3, 5, generator=g)
    mixing, alpha = Mixing(("w",), 4, 0.1), torch.tensor(draw)
    moves = {}
    for step in STEPS:
        at = mixing.stepping({"w": stack}, alpha, step)["w"]
        assert torch.equal(at, mixing({"w": stack}, alpha)["w"])
        (gradient,) = torch.autograd.grad((at * target).sum(), [stack])
        moves[step] = [mixing({"w": gradient}, point)["w"] for point in (alpha, torch.full((4,), 0.25))]
    assert torch.allclose(moves["endpoint"][0], alpha.square().sum() * target)
    assert torch.allclose(moves["endpoint"][1], target / 4)
    assert torch.allclose(moves["mixture"][0], target)
    assert torch.allclose(moves["middle"][1], target)
    assert torch.allclose(moves["middle"][0], 4 * alpha.square().sum() * target)


def test_the_own_simplex_of_floco_plus_takes_steps_of_mixtures() -> None:
    """Nobody uses its middle. In the first round it starts from what was received, with either step."""
    own = []
    for step in ("mixture", "middle"):
        last = train(make(FlocoPlus(endpoints=3, step=step, centers="own"), rounds=1))[-1]
        memory = last.memories.of(next(iter(last.participated)))
        assert memory is not None
        own.append({n: t for n, t in memory.tensors.items() if n.startswith(PERSONAL)})
    assert own[0]
    assert same(*own)


@pytest.mark.parametrize("mixed", ["last", "all"])
@pytest.mark.parametrize("cls", [Floco, FlocoPlus])
def test_with_one_endpoint_all_steps_are_equal_to_the_bit(cls: Any, mixed: str) -> None:
    published, *others = (ends(cls(endpoints=1, mix=mixed, step=step)) for step in STEPS)
    assert all(same(published, other) for other in others)


def test_the_setting_changes_runs_with_several_endpoints() -> None:
    published, mixture, middle = (ends(Floco(endpoints=3, step=step)) for step in STEPS)
    assert not same(published, mixture)
    assert not same(mixture, middle)


@pytest.mark.parametrize(("step", "centers"), [("mixture", "signals"), ("middle", "signals"), ("middle", "own")])
@pytest.mark.parametrize("cls", [Floco, FlocoPlus])
def test_engines_agree_on_steps_of_mixtures(cls: Any, step: str, centers: str) -> None:
    method = cls(endpoints=3, step=step, centers=centers)
    serial, processes, cohort = (ends(method, e) for e in ("serial", "processes", "cohort"))
    assert same(serial, processes)
    assert all(torch.allclose(serial[n], cohort[n], atol=1e-5) for n in serial)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_rate_is_that_of_its_tensor(optimizer: str, stacked: bool) -> None:
    training, g = Training(optimizer=optimizer, lr=0.1, weight_decay=0.01), torch.Generator().manual_seed(0)
    start = {n: torch.randn(2, 3, generator=g) for n in ("body", "head")}
    gradients = [torch.randn(2, 3, generator=g) for _ in start]
    found = {}
    for name, rates, lr in (("both", {"head": 0.3}, 0.1), ("fast", {}, 0.1), ("slow", {}, 0.03)):
        tensors, state = {n: t.clone() for n, t in start.items()}, list[torch.Tensor]()
        step = Step(lambda *_: torch.zeros(()), ("body", "head"), rates=rates, lr=lr)
        for _ in range(3):
            apply_gradients(step, tensors, gradients, state, training, stacked=stacked)
        found[name] = tensors
    assert torch.equal(found["both"]["body"], found["fast"]["body"])
    assert torch.allclose(found["both"]["head"], found["slow"]["head"], atol=1e-7)


@pytest.mark.parametrize("method", OTHERS)
def test_a_head_with_the_step_size_of_all_is_the_plain_run_to_the_bit(method: str) -> None:
    assert same(ends(OTHERS[method](), lr=0.1), ends(OTHERS[method](), lr=0.1, head_lr=0.1))


@pytest.mark.parametrize("algorithm", [FedAvg(), FedAvgFT(), Floco(endpoints=3), Ditto(), APFL(), FedRep()])
def test_engines_agree_on_a_step_size_of_the_head(algorithm: Any) -> None:
    serial, processes, cohort = (ends(algorithm, e, head_lr=0.02) for e in ("serial", "processes", "cohort"))
    assert not same(serial, ends(algorithm)) or isinstance(algorithm, FedRep)
    assert same(serial, processes)
    assert all(torch.allclose(serial[n], cohort[n], atol=1e-5) for n in serial)


def test_a_tiny_step_leaves_the_head_as_it_was() -> None:
    options = {"weight_decay": 0.0, "head_lr": 1e-12, "rounds": 2}
    setup = make(FedAvg(), **options)
    after = train(setup)[-1].state.shared
    head = setup.network.layout.head
    assert all(torch.allclose(after[n], setup.network.parameters[n], atol=1e-8) for n in head)
    assert not same({n: after[n] for n in setup.network.layout.parameters}, setup.network.parameters)


def no_head(shape: Any = None, classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3))


REFUSED = {
    "scaffold": (SCAFFOLD(), small_net, "without clip and head_lr"),
    "pfedme": (PFedMe(), small_net, "without clip and head_lr"),
    "no head": (FedAvg(), no_head, "the model has none that is trained"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_the_head_has_no_step_of_its_own_it_is_refused(case: str) -> None:
    algorithm, model, words = REFUSED[case]
    with pytest.raises(FlocoError, match=words):
        make(algorithm, model=model(), federation=blobs(), head_lr=0.1)


def test_tuning_keeps_the_ratio_of_the_heads_step_size() -> None:
    trials = list_trials(parse({"algorithm": {"name": "fedavg"}, "training": {"lr": 0.1, "head_lr": 0.02}}))
    assert {round(t["training.head_lr"] / t["training.lr"], 6) for t in trials} == {0.2}
    assert len(trials) == 6
