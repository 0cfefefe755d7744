"""Modules of common kinds, as libraries and recipes make them: what is delivered is what was evaluated."""

import multiprocessing
import warnings
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import floco
from conftest import blobs, make, same, small_net, train
from floco.algorithms import FedAvg, FedAvgFT, FedPer, Floco
from floco.client.fitness import check_model
from floco.client.predict import compute_outputs
from floco.core.errors import FlocoError
from floco.core.head import outputs_of
from floco.core.network import build_network
from floco.engines.engine import resolve

Out = namedtuple("Out", "logits aux")


class Wrapped(nn.Module):
    """A network whose output is made into something else."""

    def __init__(self, wrap: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.net, self.wrap = small_net(), wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self, self.net(x))


class Casting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net().double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.double())


def body(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(7, 3))


def pruned(position: int) -> nn.Module:
    net = small_net()
    prune.l1_unstructured(net[position], "weight", 0.3)  # type: ignore[index,no-untyped-call]
    return net


def called(net: nn.Module) -> nn.Module:
    net(torch.ones(2, 5))
    return net


class Adapted(nn.Linear):
    """A linear layer with a low-rank adapter."""

    def __init__(self) -> None:
        super().__init__(7, 3)
        self.a, self.b = nn.Parameter(torch.randn(2, 7) / 3), nn.Parameter(torch.randn(3, 2) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.a.T @ self.b.T


class Doubling(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def headed(head: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), head)


def parametrized(name: str) -> nn.Module:
    head = nn.Linear(7, 3)
    torch.nn.utils.parametrize.register_parametrization(head, name, Doubling())
    return headed(head)


def pruned_bias() -> nn.Module:
    net = small_net()
    prune.l1_unstructured(net[2], "bias", 1)  # type: ignore[index,no-untyped-call]
    return net


KINDS: dict[str, Callable[[], nn.Module]] = {
    "weight norm below": lambda: body(parametrizations.weight_norm(nn.Linear(5, 7))),
    "spectral norm below": lambda: body(parametrizations.spectral_norm(nn.Linear(5, 7))),
    "weight norm by a hook": lambda: body(torch.nn.utils.weight_norm(nn.Linear(5, 7))),
    "pruned below": lambda: pruned(0),
    "spectral norm by a hook, called": lambda: called(body(torch.nn.utils.spectral_norm(nn.Linear(5, 7)))),
    "a head with a parametrized bias": lambda: parametrized("bias"),
    "a head with a pruned bias": pruned_bias,
    "a head with an adapter": lambda: headed(Adapted()),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(7), nn.Tanh(), nn.LazyLinear(3)),
    "lazy with statistics": lambda: nn.Sequential(nn.LazyLinear(7), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(3)),
    "compiled": lambda: torch.compile(small_net(), backend="eager"),  # type: ignore[return-value]
    "data parallel": lambda: nn.DataParallel(small_net()),
    "bfloat16": lambda: small_net().bfloat16(),
    "half": lambda: small_net().half(),
    "double": Casting,
    "a dict": lambda: Wrapped(lambda _, z: {"logits": z, "hidden": z + 1}),
    "a named tuple": lambda: Wrapped(lambda _, z: Out(z, z + 1)),
    "a named tuple in training": lambda: Wrapped(lambda net, z: Out(z, z + 1) if net.training else z),
    "an object": lambda: Wrapped(lambda _, z: SimpleNamespace(loss=None, logits=z)),
}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*(deprecated|performance drop|float32 here|clients train one at a time)"
        )
        yield


@pytest.mark.parametrize("engine", ["serial", "cohort"])
@pytest.mark.parametrize("algorithm", [FedAvg(), FedPer(), Floco(endpoints=2)], ids=lambda a: a.name)
@pytest.mark.parametrize("kind", KINDS)
def test_the_delivered_model_is_the_evaluated_one(kind: str, algorithm: Any, engine: str) -> None:
    federation = blobs()
    run = floco.fit(KINDS[kind], federation, algorithm, rounds=2, fraction=1.0, engine=engine, workers=1, lr=0.1)
    for row in run.clients.to_dict("records"):
        test = federation.client(row["client"]).test
        with torch.no_grad():
            found = outputs_of(run.personal(row["client"])(run.setup.inputs(federation.x[test])))
        assert float((found.argmax(1) == federation.y[test]).double().mean()) == row["accuracy_personal"]
        assert float(nn.functional.cross_entropy(found, federation.y[test])) == pytest.approx(row["loss_personal"])


@pytest.mark.parametrize("kind", ["compiled", "data parallel"])
def test_a_wrapper_is_left_out_and_changes_no_bit(kind: str) -> None:
    plain, wrapped = (train(make(FedAvg(), model=model))[-1].state.shared for model in (small_net, KINDS[kind]))
    assert same(plain, wrapped)


LOW = {
    "lazy": lambda: nn.Sequential(nn.LazyLinear(7, dtype=torch.bfloat16), nn.Linear(7, 3, dtype=torch.bfloat16)),
    "beside float64": lambda: MixedPrecision(),
}


class MixedPrecision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7).double(), nn.Linear(7, 3).half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x.double()).to(self.second.weight.dtype))


@pytest.mark.parametrize("case", LOW)
def test_half_precision_is_raised_wherever_it_is(case: str) -> None:
    run = floco.fit(LOW[case], blobs(), FedAvg(), rounds=1, engine="serial")
    assert {t.dtype for t in run.progress.state.shared.values()} <= {torch.float32, torch.float64}


def test_a_network_of_float64_is_refused_with_the_remedy() -> None:
    with pytest.raises(FlocoError, match=r"float64 weights, and inputs are float32: call \.float\(\)"):
        floco.fit(lambda: small_net().double(), blobs(), FedAvg(), rounds=1)


def test_half_precision_weights_are_said_to_be_float32() -> None:
    with pytest.warns(UserWarning, match="float16 weights, .* they are float32 here"):
        net = build_network(KINDS["half"], seed=0)
    assert {t.dtype for t in net.parameters.values()} == {torch.float32}


def test_endpoints_of_lazy_layers_differ_and_are_the_same_again() -> None:
    first, again = (build_network(KINDS["lazy"], seed=0, sample=blobs().sample) for _ in range(2))
    one, two = (first.redraw(["2.weight"], seed=0, draw=draw)["2.weight"] for draw in (1, 2))
    assert not torch.equal(one, two)
    assert not torch.equal(one, first.parameters["2.weight"])
    assert torch.equal(one, again.redraw(["2.weight"], seed=0, draw=1)["2.weight"])


def test_lazy_statistics_have_seen_no_sample_before_training() -> None:
    net = build_network(KINDS["lazy with statistics"], seed=0, sample=blobs().sample)
    assert int(net.buffers["1.num_batches_tracked"]) == 0
    assert torch.equal(net.buffers["1.running_mean"], torch.zeros(7))


REFUSED = {
    "lazy without a sample": (lambda: nn.Sequential(nn.LazyLinear(7), nn.Linear(7, 3)), None, "lazy layers"),
    "lazy statistics as an object": (KINDS["lazy with statistics"](), blobs().sample, "pass a function that builds it"),
    "lazy, of another number of inputs": (
        lambda: nn.Sequential(nn.LazyLinear(7), nn.Linear(8, 3)),
        blobs().sample,
        "fails on inputs of shape",
    ),
    "complex": (lambda: nn.Linear(5, 3, dtype=torch.complex64), None, "complex numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_in_words(case: str) -> None:
    model, sample, says = REFUSED[case]
    with pytest.raises(FlocoError, match=says):
        build_network(model, seed=0, sample=sample)


@pytest.mark.parametrize("wrap", [lambda _, z: (z, z), lambda _, z: {"out": z}, lambda _, z: Out(None, z)])
def test_outputs_without_logits_are_refused_in_words(wrap: Any) -> None:
    with pytest.raises(FlocoError, match="a dict or an object with a tensor `logits`"):
        floco.fit(lambda: Wrapped(wrap), blobs(), FedAvg(), rounds=1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("algorithm", "at"), [(Floco(endpoints=2, centers="own"), "best"), (FedAvgFT(), "center")])
def test_a_callers_mode_changes_nothing(algorithm: Any, at: str, mode: Any) -> None:
    def fit() -> Any:
        run = floco.fit(small_net, blobs(), algorithm, rounds=2, engine="serial")
        return run.progress.state.shared, run.personal("north", at=at).state_dict()

    plain = fit()
    with mode():
        found = fit()
    assert all(same(a, b) for a, b in zip(plain, found, strict=True))


@pytest.mark.parametrize("kind", ["a dict", "a named tuple", "an object"])
def test_a_run_in_a_directory_gives_models_of_any_output(kind: str, tmp_path: Path) -> None:
    run = floco.fit(KINDS[kind], blobs(), FedAvg(), rounds=1, out=tmp_path / "run", engine="serial")
    x = run.setup.inputs(blobs().x[:3])
    again = floco.open_run(tmp_path / "run").personal("north")
    with torch.no_grad():
        assert torch.allclose(outputs_of(again(x)), outputs_of(run.personal("north")(x)), atol=1e-6)


def test_a_callers_default_dtype_is_the_networks() -> None:
    federation = blobs()
    torch.set_default_dtype(torch.float64)
    try:
        run = floco.fit(Casting, federation, Floco(endpoints=2), rounds=2, engine="serial")
        test = federation.client("north").test
        found = run.personal("north")(run.setup.inputs(federation.x[test])).detach()
    finally:
        torch.set_default_dtype(torch.float32)
    row = run.clients.set_index("client").loc["north"]
    assert float(nn.functional.cross_entropy(found.float(), federation.y[test])) == pytest.approx(row["loss_personal"])


def _in_pool(kind: str) -> Any:
    try:
        return resolve(make(FedAvg()), kind, None)
    except FlocoError as error:
        return str(error)


def test_a_worker_of_a_pool_trains_in_its_own_process() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_in_pool, ("auto",)) in (("cohort", 1), ("serial", 1))
        assert "a worker of a multiprocessing.Pool may not" in pool.apply(_in_pool, ("processes",))


def test_a_run_says_what_its_head_is_and_what_is_frozen() -> None:
    def net() -> nn.Module:
        made = small_net()
        made[0].requires_grad_(False)  # type: ignore[index]
        return made

    assert (
        build_network(net, seed=0).describe()
        == "model of 24 parameters in 2 tensors, head: 2 (24 parameters), frozen: 42"
    )
    none = nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3))
    assert build_network(none, seed=0).describe() == "model of 24 parameters in 4 tensors, head: none"


def test_predictions_of_a_dict_are_those_of_its_logits() -> None:
    plain, wrapped = (build_network(model, seed=0) for model in (small_net, KINDS["a dict"]))
    assert wrapped.layout.head == ("net.2.weight", "net.2.bias")
    x = blobs().x
    setups = make(FedAvg()), make(FedAvg(), model=KINDS["a dict"])
    found = [compute_outputs(s, s.initial(), x) for s in setups]
    assert torch.equal(*found)
    assert [t.shape for t in plain.parameters.values()] == [t.shape for t in wrapped.parameters.values()]


def orthogonal() -> nn.Module:
    return body(parametrizations.orthogonal(nn.Linear(5, 7)))


def test_a_parametrization_that_weight_decay_destroys_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"weight decay destroys the model.*set training\.weight_decay = 0"):
        check_model(make(FedAvg(), model=orthogonal))


def deep() -> nn.Module:
    layers = [part for _ in range(60) for part in (nn.Linear(5, 5), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(5, 3, bias=False))


SOUND = {
    "a plain network": (small_net, 0.01),
    "many layers": (deep, 0.01),
    "outputs of zero": (lambda: zeroed(), 0.01),
    "spectral norm": (KINDS["spectral norm below"], 0.01),
    "without weight decay": (orthogonal, 0.0),
}


def zeroed() -> nn.Module:
    net = small_net()
    nn.init.zeros_(net[2].weight)  # type: ignore[index,arg-type]
    nn.init.zeros_(net[2].bias)  # type: ignore[index,arg-type]
    return net


@pytest.mark.parametrize("case", SOUND)
def test_others_are_not(case: str) -> None:
    model, decay = SOUND[case]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="weight decay")
        check_model(make(FedAvg(), model=model, weight_decay=decay))
