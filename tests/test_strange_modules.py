"""Modules with a state, a hook or a tensor where nobody looks: the same numbers everywhere, or a refusal in words."""

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import floco
from conftest import blobs, convolution, make, small_net, train
from floco.algorithms import Ditto, FedAvg, FedPer, FedRoD, Floco
from floco.core.errors import FlocoError
from floco.core.network import build_network
from floco.engines.cohort import refusal
from floco.engines.engine import resolve, start_engine


class Around(nn.Module):
    """A small network, and `forward(self, x)` of a case."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], torch.Tensor], **attributes: Any) -> None:
        super().__init__()
        self.net, self.run = small_net(), forward
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


def first_mean(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.mean = x.detach().mean(0) if m.mean is None else m.mean
    return m.net(x - m.mean)


def first_buffer(m: Any, x: torch.Tensor) -> torch.Tensor:
    if not hasattr(m, "shift"):
        m.register_buffer("shift", x.detach().mean(0), persistent=False)
    return m.net(x - m.shift)


def counting(m: Any, x: torch.Tensor) -> torch.Tensor:
    m._steps += m.training
    return m.net(x) / max(0.2, 1 - 0.2 * (m._steps // 8))


def counting_in_a_dict(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.state["step"] += int(m.training)
    return m.net(x) / max(0.2, 1 - 0.2 * (m.state["step"] // 8))


def counting_in_a_tensor(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.step += int(m.training)
    return m.net(x) / max(0.2, 1 - 0.2 * (int(m.step) // 8))


def rarely(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.net(x) * (0.0 if m.training and m.rng.random() < 0.05 else 1.0)


def running_mean(m: Any, x: torch.Tensor) -> torch.Tensor:
    if m.training:
        m.mean.mul_(0.5).add_(x.detach().mean(0), alpha=0.5)
    return m.net(x - m.mean)


class ActNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.ready = small_net(), False
        self.register_buffer("loc", torch.zeros(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and not self.ready:
            self.loc.copy_(x.detach().mean(0))
            self.ready = True
        return self.net(x - self.loc)


STATES: dict[str, Callable[[], nn.Module]] = {
    "the first batch's mean": lambda: Around(first_mean, mean=None),
    "a buffer registered by the first batch": lambda: Around(first_buffer),
    "a private counter": lambda: Around(counting, _steps=0),
    "a counter in a dict": lambda: Around(counting_in_a_dict, state={"step": 0}),
    "a counter in a tensor": lambda: Around(counting_in_a_tensor, step=torch.zeros(())),
    "a generator of its own": lambda: Around(rarely, rng=random.Random(0)),
    "a running mean in a tensor": lambda: Around(running_mean, mean=torch.zeros(5)),
    "initialised by a flag": ActNorm,
}


def losses(model: Any, algorithm: Any, engine: str, federation: Any = None) -> tuple[list[float], list[float]]:
    """Each client's loss as evaluated, and of the model that it gets, on its test part."""
    federation = federation or blobs()
    settings = {"rounds": 2, "fraction": 1.0, "batch_size": 8, "lr": 0.1, "seed": 0, "engine": engine}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "clients train one at a time|.*the whole network|worker processes")
        run = floco.fit(model, federation, algorithm, **settings, workers=2 if engine == "processes" else 1)
        delivered = []
        for client in run.clients["client"]:
            test = federation.client(client).test
            with torch.no_grad():
                logits = run.personal(client)(federation.normalize(federation.x[test]))
            delivered.append(nn.functional.cross_entropy(logits, federation.y[test]).item())
    return list(run.clients["loss_personal"]), delivered


@pytest.mark.parametrize("kind", STATES)
def test_a_hidden_state_is_seen_and_all_engines_give_the_same_numbers(kind: str) -> None:
    assert make(FedAvg(), model=STATES[kind]).hidden_state is not None
    found = [losses(STATES[kind], FedAvg(), engine) for engine in ("serial", "processes", "cohort")]
    for reported, delivered in found:
        assert reported == found[0][0]
        assert reported == pytest.approx(delivered, abs=1e-6)


def masked_in_place(m: Any, x: torch.Tensor) -> torch.Tensor:
    z = m.net(x)
    z[x[:, 0] > 4, 0] = -50.0
    return z


@pytest.mark.parametrize("algorithm", [FedAvg(), FedPer(), FedRoD(), Floco(endpoints=2)], ids=lambda a: a.name)
def test_logits_that_are_changed_in_place_for_rare_samples_are_evaluated_as_delivered(algorithm: Any) -> None:
    federation = blobs(sizes=(900, 900))
    x = federation.x.clone()
    x[:, 0] = 0.0
    for client in federation.clients:
        x[client.test[-5:], 0] = 100.0  # so late that no trial sees them
    changed = federation.around(x, federation.y, federation.clients)
    reported, delivered = losses(lambda: Around(masked_in_place), algorithm, "serial", changed)
    assert reported == pytest.approx(delivered, abs=1e-5)


def reversing(m: Any, x: torch.Tensor) -> torch.Tensor:
    z = m.net[1](m.net[0](x))
    if z.requires_grad:
        z.register_hook(lambda g: -g)
    return m.net[2](z)


def hooked() -> nn.Module:
    net = small_net()
    net[2].register_full_backward_hook(lambda _, given, got: (-given[0],))
    return net


@pytest.mark.parametrize("model", [lambda: Around(reversing), hooked])
def test_hooks_on_gradients_act_in_every_engine(model: Any) -> None:
    setup = make(FedAvg(), model=model)
    assert resolve(setup, "auto", 1)[0] != "cohort"
    ends = [train(setup)[-1].state.shared]
    for engine in ("processes", "cohort"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "engine cohort: clients train one at a time")
            running = start_engine(make(FedAvg(), model=model), engine, 2 if engine == "processes" else 1)
        ends.append(train(make(FedAvg(), model=model), running)[-1].state.shared)
        running.close()
    assert all(torch.equal(ends[0][n], e[n]) for e in ends for n in ends[0])
    plain = train(make(FedAvg()))[-1].state.shared
    assert not any(torch.equal(a, b) for a, b in zip(plain.values(), ends[0].values(), strict=True))


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()
        self.ema = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return self.ema(x)
        for a, b in zip(self.ema.parameters(), self.net.parameters(), strict=True):
            a.data.mul_(0.8).add_(b.detach(), alpha=0.2)
        return self.net(x)


class Closing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.w = nn.Linear(5, 7), nn.Parameter(torch.randn(7, 3))
        self.decode = lambda h: h @ self.w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(torch.tanh(self.body(x)))


class Listing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = [nn.Linear(5, 5)], nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layers[0](x)))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5).requires_grad_(False)

    def __deepcopy__(self, memo: object) -> nn.Module:
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def in_place_in_training(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.net(x.masked_fill_(torch.rand(len(x), 1) < 0.5, 0.0) if m.training else x)


def freezing(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.net[0].requires_grad_(False)
    return m.net(x)


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.bag((x > 0).long()))


class Slashed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.site, self.head = nn.ModuleDict({"a/b": nn.BatchNorm1d(5)}), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.site["a/b"](x))


def accumulating() -> nn.Module:
    net = small_net()
    net[0].weight.register_post_accumulate_grad_hook(lambda p: None)
    return net


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a mean teacher": (Teacher, "changes its frozen parameter 'ema.0.weight'"),
    "a function that holds the module": (Closing, "none of its registered parameters"),
    "a list of modules": (Listing, "none of its registered parameters"),
    "a module that is its own copy": (lambda: nn.Sequential(Shared(), nn.Linear(5, 3)), "returns the module itself"),
    "inputs changed in training": (lambda: Around(in_place_in_training), "changes its inputs in place"),
    "frozen in forward": (lambda: Around(freezing), "changes which parameters are trained"),
    "sparse gradients": (Sparse, "sparse gradients"),
    "a slash in a name": (Slashed, 'has a "/"'),
    "a hook after accumulation": (accumulating, "has a gradient hook"),
    "masked logits": (
        lambda: Around(lambda m, x: m.net(x) + torch.where(x.sum(1, keepdim=True) > 0, -torch.inf, 0.0)),
        "non-finite outputs before any training: write -1e9",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_in_words(case: str) -> None:
    model, words = REFUSED[case]
    with pytest.raises(FlocoError, match=words):
        floco.fit(model, blobs(), FedAvg(), rounds=1)


class Delegating(nn.Module):
    """A wrapper that passes on attributes of a compiled network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(small_net(), backend="eager")
        self.scale = nn.Parameter(torch.tensor(3.0))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) * self.scale


def test_a_wrapper_that_delegates_is_kept() -> None:
    assert "scale" in build_network(Delegating, seed=0).parameters


class Plain(nn.Module):
    """`train` without a return value, a state dict of its own, and an extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small_net()

    def train(self, mode: bool = True) -> Any:
        super().train(mode)

    def state_dict(self) -> Any:  # type: ignore[override]
        return self.model.state_dict()

    def get_extra_state(self) -> Any:
        return {"version": 2}

    def set_extra_state(self, state: Any) -> None:
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def test_methods_that_a_module_overrides_change_nothing(tmp_path: Any) -> None:
    run = floco.fit(Plain, blobs(), FedAvg(), rounds=1, seed=0, out=tmp_path / "run")
    again = floco.fit(Plain, blobs(), FedAvg(), rounds=2, seed=0, out=tmp_path / "run", resume=True, change=True)
    assert list(run.personal("north").model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert again.history["round"].iloc[-1] == 2


@pytest.mark.parametrize(("algorithm", "buffers"), [(FedAvg(), "average"), (FedAvg(), "local"), (Ditto(), "average")])
def test_a_mask_of_infinite_numbers_is_no_failure_of_training(algorithm: Any, buffers: str) -> None:
    def model() -> nn.Module:
        net = Around(lambda m, x: m.net(x + torch.where(m.mask < 0, 0.0, m.mask)))
        net.register_buffer("mask", torch.tensor([0.0, 0, 0, 0, -torch.inf]))
        return net

    run = floco.fit(model, blobs(), algorithm, rounds=2, buffers=buffers)
    assert run.failures.empty


def along_the_input(m: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        x = x.clone().requires_grad_(True)
        energy = m.net(x).square().sum()
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
    return m.net(x + 0.01 * force)


class Bounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 5, max_norm=0.5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table((x > 0).long()).mean(1))


def rotary(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.net(x * m.turn.real)


def frozen_with_a_hole() -> nn.Module:
    net = Around(lambda m, x: m.net(x + torch.nan_to_num(m.extra)))
    net.extra = nn.Parameter(torch.tensor([0.0, 0, torch.nan, 0, 0]), requires_grad=False)
    return net


class SlashedBelow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.ModuleDict({"en/fr": nn.Linear(5, 7).requires_grad_(False)}), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body["en/fr"](x))


SOUND: dict[str, Callable[[], nn.Module]] = {
    "a gradient in the inputs": lambda: Around(along_the_input),
    "an embedding with a bound": Bounded,
    "a complex tensor beside": lambda: Around(rotary, turn=torch.ones(5, dtype=torch.complex64)),
    "a tensor without numbers beside": lambda: Around(lambda m, x: m.net(x), shape=torch.empty(3, device="meta")),
    "a frozen parameter with a hole": frozen_with_a_hole,
    "a slash in a frozen name": SlashedBelow,
}


@pytest.mark.parametrize("kind", SOUND)
def test_what_is_sound_is_trained_and_left_as_it_was(kind: str) -> None:
    setup = make(FedAvg(), model=SOUND[kind])
    assert setup.hidden_state is None
    before = setup.network.fingerprint()
    losses(SOUND[kind], FedAvg(), "serial")
    assert setup.network.layout.parameters
    train(setup)
    assert setup.network.fingerprint() == before


@pytest.mark.parametrize("model", [small_net, convolution])
def test_a_network_in_bf16_is_trained_in_cohorts(model: Any) -> None:
    assert refusal(make(FedAvg(), model=model, precision="bf16")) is None
