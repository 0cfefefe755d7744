"""Modules as people write them: what is said of one is seen in its forward pass, a shortcut never changes a number."""

import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from conftest import blobs, make, same, small_net, train
from floco.algorithms import FedAvg, FedPer, FedRep, FedRoD, Floco
from floco.client.fitness import check_model
from floco.client.input_checks import check_frozen_norms
from floco.client.predict import compute_outputs, compute_outputs_of_each
from floco.client.round import models
from floco.client.setup import Setup, count_batches, split_batches
from floco.core.algorithm import Algorithm
from floco.core.errors import FlocoError
from floco.core.network import build_network
from floco.core.random import global_stream, outside_torch
from floco.engines.engine import Serial, resolve, start_engine
from floco.engines.jobs import Job, perform
from floco.server.rounds import initialize

# -- which layer is the head


class Classifier(nn.Module):
    """Layers that are registered in any order, of which some are used in any way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "registered first":
            self.classifier = nn.Linear(7, 3)
        self.encoder = nn.Linear(5, 7)
        if kind != "registered first":
            self.classifier = nn.Linear(7, 3)
        self.projector = nn.Linear(7, 4)
        self.attention = nn.MultiheadAttention(7, 1, batch_first=True)
        self.scale = nn.Parameter(torch.ones(())) if kind == "a trained scale" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.encoder(x))
        if self.kind == "attention below":
            h = self.attention(h[:, None], h[:, None], h[:, None])[0][:, 0]
        y = self.classifier(h)
        if self.kind == "a projection beside":
            self.projector(h)
        if self.kind == "in place":
            y /= 2
        above = {
            "a temperature": y / 2,
            "a mask": torch.where(x[:, :1] > 99, y - 1e9, y),
            "softmax": y.softmax(1),
            "two heads": y + self.projector(h)[:, :3],
        }
        if self.scale is not None:
            return y * self.scale
        return above.get(self.kind, y)


HEADS = (
    "registered first",
    "registered last",
    "a projection beside",
    "attention below",
    "in place",
    "a temperature",
    "a mask",
    "softmax",
)


@pytest.mark.parametrize("seen", [True, False], ids=["forward pass", "code"])
@pytest.mark.parametrize("kind", HEADS)
def test_the_head_is_the_layer_that_gives_the_logits(kind: str, seen: bool) -> None:
    net = build_network(lambda: Classifier(kind), seed=0, sample=blobs().sample if seen else None)
    assert net.layout.head == ("classifier.weight", "classifier.bias")
    assert net.layout.last == "classifier.weight"


NO_HEAD = {
    "two heads": lambda: Classifier("two heads"),
    "a trained scale": lambda: Classifier("a trained scale"),
    "a convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 3, 5), nn.Flatten()),
    "weight norm": lambda: nn.Sequential(nn.Linear(5, 7), parametrizations.weight_norm(nn.Linear(7, 3))),
    "a norm above": lambda: nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.LayerNorm(3)),
}


@pytest.mark.parametrize("algorithm", [Floco(endpoints=2), FedPer(), FedRep(), FedRoD()], ids=lambda a: a.name)
@pytest.mark.parametrize("name", NO_HEAD)
def test_a_network_without_such_a_layer_is_refused_by_methods_that_need_one(name: str, algorithm: Algorithm) -> None:
    net = build_network(NO_HEAD[name], seed=0, sample=blobs().sample)
    assert net.layout.head == ()
    with pytest.raises(
        FlocoError, match=r"algorithm\.mix" if algorithm.name == "floco" else "nn.Linear that gives the logits"
    ):
        algorithm.resolved(make(FedAvg()).training, net.layout)
    assert train(make(FedAvg(), model=NO_HEAD[name], rounds=1))[-1].evaluation is not None


def test_a_frozen_head_is_seen_and_is_not_trained() -> None:
    def frozen() -> nn.Module:
        net = Classifier("registered first")
        net.classifier.requires_grad_(False)
        return net

    assert build_network(frozen, seed=0, sample=blobs().sample).layout.last is None


@pytest.mark.parametrize("kind", ["registered first", "a projection beside", "attention below"])
def test_personal_heads_are_personal_wherever_the_layer_stands(kind: str) -> None:
    setup = make(FedPer(), model=lambda: Classifier(kind), fraction=1.0, rounds=2)
    last = train(setup)[-1]
    one, two = (
        models(setup, c, setup.algorithm.message(last.state, c, "evaluate"), last.memories[c]).personal
        for c in ("north", "south")
    )
    assert not torch.equal(one["classifier.weight"], two["classifier.weight"])
    assert torch.equal(one["encoder.weight"], two["encoder.weight"])


# -- one body for several heads


class Masked(nn.Module):
    """A mask above the head that only some samples meet: those whose first feature is large."""

    def __init__(self, above: float) -> None:
        super().__init__()
        self.above, self.body, self.head = above, nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(torch.tanh(self.body(x)))
        return y.index_fill(1, torch.tensor([0]), -9.0) if bool((x[:, 0] > self.above).any()) else y


def heads(setup: Setup) -> list[dict[str, torch.Tensor]]:
    one = dict(setup.network.parameters)
    return [one, {**one, **{n: one[n] + 1 for n in setup.network.layout.head}}]


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.999])
def test_a_way_that_only_some_samples_take_is_the_networks_own(quantile: float) -> None:
    federation = blobs(sizes=(40,) * 60)
    above = float(federation.x[:, 0].quantile(quantile))
    setup = make(FedAvg(), model=lambda: Masked(above), federation=federation)
    found = compute_outputs_of_each(setup, heads(setup), federation.x)
    assert all(
        torch.equal(a, compute_outputs(setup, m, federation.x)) for a, m in zip(found, heads(setup), strict=True)
    )


ABOVE = 5.5


class LooksAtItsWeight(nn.Module):
    """The head's output is the network's, and the head's weight has a part in the features of a few samples."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.body(x))
        return self.head(h + (x[:, :1] > ABOVE) * self.head.weight.mean())


def test_where_the_cut_disagrees_with_the_network_it_is_not_made_and_said() -> None:
    federation = blobs(sizes=(30,) * 20)
    setup = make(FedAvg(), model=LooksAtItsWeight, federation=federation)
    assert not bool((federation.x[:4, 0] > ABOVE).any())  # the first four of the file do not show it
    assert bool((federation.x[:, 0] > ABOVE).any())
    assert setup.split is None
    with pytest.warns(UserWarning, match="evaluations run the whole network for every model"):
        start_engine(setup, "serial", 1).close()


def test_the_cut_is_tried_on_samples_of_all_clients_and_in_more_than_one_chunk() -> None:
    from floco.client.trial import CHUNK, choose_rows

    for sizes in ((40,) * 60, (400,) * 5, (8,) * 2000):
        federation = blobs(sizes=sizes)
        rows = set(choose_rows(federation, 2 * CHUNK).tolist())
        assert all(rows & {*c.train.tolist(), *c.test.tolist()} for c in federation.clients)
        assert len(rows) > CHUNK


# -- modes


class Backbone(nn.Module):
    def __init__(self, *, frozen: bool, override: bool = False) -> None:
        super().__init__()
        self.override = override
        self.backbone = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(0.5))
        self.head = nn.Linear(7, 3)
        if frozen:
            self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        if self.override:
            self.backbone.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


@pytest.mark.filterwarnings("ignore:some clients train one at a time")
@pytest.mark.parametrize("together", [1, 8], ids=["serial", "cohort"])
@pytest.mark.parametrize(
    "options", [{"frozen": True}, {"frozen": False, "override": True}], ids=["put into eval", "train() overridden"]
)
def test_a_submodule_that_its_owner_put_into_evaluation_mode_stays_in_it(
    options: dict[str, bool], together: int
) -> None:
    setup = make(FedAvg(), model=lambda: Backbone(**options), fraction=1.0)
    last = train(setup, Serial(setup, together))[-1]
    assert same({n: last.state.shared[n] for n in setup.network.layout.buffers}, setup.network.buffers)
    predict, x = setup.predictor(train=True), setup.federation.x[:4]
    assert torch.equal(
        predict(setup.initial(), x), setup.predictor(train=False)(setup.initial(), x)
    )  # no dropout either


def test_a_model_that_was_loaded_in_evaluation_mode_is_trained_as_a_whole() -> None:
    setup = make(FedAvg(), model=lambda: Backbone(frozen=False).eval(), fraction=1.0)
    assert not torch.equal(train(setup)[-1].state.shared["backbone.1.running_mean"], torch.zeros(7))


@pytest.mark.parametrize(
    "where", ["the backbone is frozen", "BatchNorm alone is frozen", "without parameters of its own"]
)
@pytest.mark.parametrize("together", [1, 8], ids=["serial", "cohort"])
@pytest.mark.filterwarnings("ignore:some clients train one at a time")
def test_in_a_model_in_evaluation_mode_frozen_normalisation_keeps_its_statistics(where: str, together: int) -> None:
    def model() -> nn.Module:
        made = Backbone(frozen=False)
        if where == "without parameters of its own":
            made.backbone[1] = nn.BatchNorm1d(7, affine=False)
        (made.backbone[1] if where == "BatchNorm alone is frozen" else made.backbone).requires_grad_(False)
        return made.eval()

    setup = make(FedAvg(), model=model, fraction=1.0)
    assert setup.network.layout.buffers == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_model(setup)
    before = {n: b.clone() for n, b in setup.network.module.named_buffers()}
    assert not same(train(setup, Serial(setup, together))[-1].state.shared, setup.initial())
    assert same(dict(setup.network.module.named_buffers()), before)
    predict, x = setup.predictor(train=True), setup.federation.x[:4]
    assert not torch.equal(predict(setup.initial(), x), predict(setup.initial(), x))  # dropout acts
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = predict(setup.initial(), x)
        torch.manual_seed(0)
        assert torch.allclose(predict(setup.initial(), x[:1].repeat(4, 1))[0], whole[0])  # not of the batch


class Narrow(nn.Module):
    """Normalises each sample's features as positions of one channel."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x[:, None])[:, 0]


@pytest.mark.parametrize(
    ("norm", "name"),
    [
        (lambda: nn.BatchNorm1d(7), r"BatchNorm1d in training mode \(backbone\.1\)"),
        (lambda: nn.BatchNorm1d(7, affine=False), r"BatchNorm1d in training mode \(backbone\.1\)"),
        (lambda: Narrow(nn.InstanceNorm1d(1, track_running_stats=True)), r"InstanceNorm1d in training mode"),
    ],
    ids=["BatchNorm", "without parameters of its own", "InstanceNorm"],
)
def test_frozen_normalisation_in_training_mode_is_named_in_a_warning(norm: Any, name: str) -> None:
    def model() -> nn.Module:
        made = Backbone(frozen=False)
        made.backbone[1] = norm()
        made.backbone.requires_grad_(False)
        return made

    with pytest.warns(UserWarning, match=rf"frozen {name}.*call \.eval\(\)"):
        check_model(make(FedAvg(), model=model, fraction=1.0))


@pytest.mark.parametrize("given", ["a trained bias", "put into eval", "no statistics", "LayerNorm"])
def test_other_normalisation_causes_no_warning(given: str) -> None:
    def model() -> nn.Module:
        made = Backbone(frozen=given == "put into eval")
        if given == "no statistics":
            made.backbone[1] = nn.BatchNorm1d(7, track_running_stats=False)
        if given == "LayerNorm":
            made.backbone[1] = nn.LayerNorm(7)
        made.backbone.requires_grad_(False)
        made.backbone[1].bias.requires_grad_(given == "a trained bias")
        return made

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_frozen_norms(make(FedAvg(), model=model, fraction=1.0))


def test_which_statistics_are_fixed_belongs_to_the_fingerprint() -> None:
    """A checkpoint of an earlier version, in which they were trained, must not open with the initial ones."""
    frozen, trained = Backbone(frozen=False), Backbone(frozen=False)
    trained.load_state_dict(frozen.state_dict())
    frozen.backbone.requires_grad_(False)
    assert build_network(frozen, seed=0).fingerprint() == build_network(trained, seed=0).fingerprint()
    assert build_network(frozen.eval(), seed=0).fingerprint() != build_network(trained.eval(), seed=0).fingerprint()


class Growing(nn.Module):
    """Adds a module to itself when its mode is set."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.after = nn.Identity()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("mode", [True, False])
def test_a_module_that_changes_itself_with_its_mode_is_copied(mode: bool) -> None:
    model = Growing()
    model.training = mode
    twin = build_network(model, seed=0).twin(torch.device("cpu"), train=True)
    assert twin.training


def test_predictors_for_training_and_evaluation_do_not_share_a_mode() -> None:
    setup = make(FedAvg(), model=lambda: nn.Sequential(nn.Dropout(0.9), nn.Linear(5, 3)))
    training, evaluating = setup.predictor(train=True), setup.predictor(train=False)
    x, tensors = setup.federation.x[:20], setup.initial()
    for _ in range(2):
        assert not torch.equal(training(tensors, x), training(tensors, x))
        assert torch.equal(evaluating(tensors, x), evaluating(tensors, x))
    assert setup.network.module.training  # and the module is as it was given


# -- randomness and state


class Drawing(nn.Module):
    """Draws or counts something in every forward pass of training."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b = kind, nn.Linear(5, 7), nn.Linear(7, 3)
        self.n, self.rng, self.seen = 0, np.random.default_rng(0), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(torch.relu(self.a(x)))
        if not self.training:
            return y
        if self.kind == "counts":
            self.n += 1
            return y / max(0.5, 3 - 0.01 * self.n)
        if self.kind == "counts for later":
            self.seen.append(len(x))
            return y if len(self.seen) < 5 else y / 2
        noise = {
            "numpy": lambda: np.random.normal(),  # noqa: NPY002
            "random": random.random,
            "a generator of its own": self.rng.normal,
        }[self.kind]
        return y + 0.1 * float(noise())


KINDS = {
    "numpy": "draws random numbers from numpy",
    "random": "draws random numbers from numpy",
    "a generator of its own": "not the same twice",
    "counts": "not the same twice",
    "counts for later": "changes seen",
}


@pytest.mark.filterwarnings("ignore:clients train one at a time")
@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_pass_that_is_no_function_is_trained_one_client_at_a_time_to_the_same_bits(kind: str) -> None:
    setup = make(FedAvg(), model=lambda: Drawing(kind), fraction=1.0, rounds=4, epochs=4)
    assert KINDS[kind] in (setup.hidden_state or "")
    assert resolve(setup, "auto", None)[0] != "cohort"
    found = [
        train(make(FedAvg(), model=lambda: Drawing(kind), fraction=1.0, rounds=4, epochs=4), run)[-1]
        for run in (None, None)
    ]
    for running in (start_engine(setup, "cohort", 1), start_engine(setup, "processes", 2)):
        found.append(train(setup, running)[-1])
        running.close()
    assert all(same(found[0].state.shared, f.state.shared) for f in found[1:])
    with pytest.warns(UserWarning, match="clients train one at a time"):
        start_engine(setup, "serial", 1)


@pytest.mark.parametrize(
    "model", [small_net, lambda: nn.Sequential(nn.Dropout(0.3), small_net()), lambda: Backbone(frozen=False)]
)
def test_a_forward_pass_that_is_one_is_not_suspected(model: Any) -> None:
    assert make(FedAvg(), model=model).hidden_state is None
    assert make(FedAvg(), model=Lazy).hidden_state is None


def test_the_seed_reaches_numpy_and_random_inside_a_clients_step_and_nothing_leaks() -> None:
    before = outside_torch()
    with global_stream(0, "a"):
        first = np.random.rand(), random.random()  # noqa: NPY002
    with global_stream(0, "a"):
        again = np.random.rand(), random.random()  # noqa: NPY002
    with global_stream(1, "a"):
        other = np.random.rand(), random.random()  # noqa: NPY002
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]
    assert outside_torch() == before


def test_runs_in_threads_are_the_runs_alone() -> None:
    def last(seed: int) -> dict[str, torch.Tensor]:
        return train(make(FedAvg(), model=lambda: nn.Sequential(nn.Dropout(0.2), small_net()), seed=seed))[
            -1
        ].state.shared

    alone = [last(s) for s in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(last, range(4)))
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


# -- what networks give back


class Ends(nn.Module):
    def __init__(self, end: Any) -> None:
        super().__init__()
        self.net, self.end = small_net(), end

    def forward(self, x: torch.Tensor) -> Any:
        return self.end(self.net(x), self.training)


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (lambda y, _: {"scores": y}, "got dict"),
        (lambda y, _: (y, y), "got tuple"),
        (lambda y, training: SimpleNamespace(scores=y) if training else y, "got SimpleNamespace"),
        (lambda y, training: y[:, :2] if training else y, r"in training mode, got \(2, 2\)"),
        (lambda y, training: y @ torch.ones(9) if training else y, "fails in training mode"),
    ],
)
def test_what_is_no_tensor_of_logits_is_refused_before_the_first_round_in_training_mode_too(
    end: Any, says: str
) -> None:
    with pytest.raises(FlocoError, match=says):
        check_model(make(FedAvg(), model=lambda: Ends(end)))


@pytest.mark.parametrize(
    ("end", "name"), [(lambda y, _: y.softmax(1), "softmax"), (lambda y, _: y.sigmoid(), "sigmoid")]
)
def test_a_network_that_ends_in_probabilities_gets_a_warning_with_the_remedy(end: Any, name: str) -> None:
    with pytest.warns(UserWarning, match=f"leave the {name} at the end"):
        check_model(make(FedAvg(), model=lambda: Ends(end)))


def test_a_deep_network_is_not_taken_for_one_that_ends_in_a_sigmoid() -> None:
    def deep() -> nn.Module:
        layers = [part for _ in range(5) for part in (nn.Linear(5, 5), nn.Tanh())]
        return nn.Sequential(*layers, nn.Linear(5, 3))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(60):
            check_model(make(FedAvg(), model=deep, seed=seed))


@pytest.mark.parametrize(
    "end", [lambda y, _: y, lambda y, _: y.log_softmax(1), lambda y, _: y.relu(), lambda y, _: 0 * y + 0.3]
)
def test_logits_get_none(end: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_model(make(FedAvg(), model=lambda: Ends(end)))


def test_a_simplex_of_everything_with_batch_norm_is_warned_of() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))

    with pytest.warns(UserWarning, match="averages over the mixtures"):
        make(Floco(endpoints=2, mix="all"), model=net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(Floco(endpoints=2), model=net)
        make(Floco(endpoints=2, mix="all"))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: Locked(), "cannot be copied"),
    ],
)
def test_modules_that_cannot_be_used_are_refused_in_words(model: Any, says: str) -> None:
    with pytest.raises(FlocoError, match=says):
        build_network(model, seed=0)


class Locked(nn.Module):
    def __init__(self) -> None:
        import threading

        super().__init__()
        self.net, self.lock = small_net(), threading.Lock()


# -- a function of its registered tensors


class Odd(nn.Module):
    """Computes in a way that does not survive when its tensors are put in from outside."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body, self.head = kind, nn.Linear(5, 7), nn.Linear(7, 3)
        self.kept, self.cached, self.merged = [self.head.weight, self.head.bias], None, False
        self.register_buffer("mean", torch.zeros(5), persistent=kind != "a buffer that is not persistent")

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.cached = None
        if self.kind == "weights merged in eval()" and not mode and not self.merged:
            self.merged, self.kept[0] = True, self.head.weight.detach() * 2
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "inputs changed in place":
            x -= 1
        if self.training and "buffer" in self.kind:
            if self.kind == "a buffer that is assigned":
                self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            else:
                self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        h = torch.relu(self.body(x - self.mean))
        if self.kind == "a cache of weights":
            self.cached = self.head.weight * 1 if self.cached is None or self.training else self.cached
            return nn.functional.linear(h, self.cached, self.head.bias)
        if self.kind in ("a list of parameters", "weights merged in eval()"):
            return nn.functional.linear(h, *self.kept)
        if self.kind == "dropout in evaluation":
            h = nn.functional.dropout(h, 0.5)
        if self.kind == "a batch as a whole":
            h = h - h.mean(0)
        if self.kind == "a body without gradients":
            h = h.detach()
        return self.head(h)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("a buffer that is assigned", "re-assigns its buffer 'mean'"),
        ("a buffer that is not persistent", "'mean', which is in no client's model, as it is not persistent"),
        ("a cache of weights", "other tensors than its registered"),
        ("a list of parameters", "other tensors than its registered"),
        ("weights merged in eval()", "other tensors than its registered"),
        ("inputs changed in place", "changes its inputs in place"),
    ],
)
def test_a_module_that_is_no_function_of_its_registered_tensors_is_refused(kind: str, says: str) -> None:
    with pytest.raises(FlocoError, match=says):
        check_model(make(FedAvg(), model=lambda: Odd(kind)))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("dropout in evaluation", "not the same twice"),
        ("a batch as a whole", "share a batch"),
        ("a body without gradients", r"2 parameters get no gradient \(body.weight, body.bias\)"),
    ],
)
def test_what_makes_a_modules_numbers_less_than_they_seem_is_said(kind: str, says: str) -> None:
    with pytest.warns(UserWarning, match=says):
        check_model(make(FedAvg(), model=lambda: Odd(kind)))


SOUND: dict[str, Any] = {
    "a buffer changed in place": lambda: Odd("a buffer changed in place"),
    "batch norm": lambda: Backbone(frozen=False),
    "frozen": lambda: Backbone(frozen=True),
    "layer norm": lambda: nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)),
        nn.InstanceNorm1d(1, affine=True, track_running_stats=True),
        nn.Flatten(),
        nn.Linear(5, 3),
    ),
    "recurrent": lambda: nn.Sequential(nn.Unflatten(1, (5, 1)), Last(), nn.Linear(4, 3)),
    "weight norm": lambda: nn.Sequential(nn.Linear(5, 7), parametrizations.weight_norm(nn.Linear(7, 3))),
    "spectral norm": lambda: nn.Sequential(nn.Linear(5, 7), parametrizations.spectral_norm(nn.Linear(7, 3))),
    "attention": lambda: Classifier("attention below"),
    "positions": lambda: Positions(),
    "a constant made at first": lambda: Lazy(),
}


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(x)[1][-1]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", SOUND)
def test_sound_modules_pass(name: str, precision: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message=".*parameters get no gradient"
        )  # the projector that the classifier has beside it
        check_model(make(FedAvg(), model=SOUND[name], precision=precision))


def test_a_gradient_hook_that_would_not_run_is_refused() -> None:
    def masked() -> nn.Module:
        net = small_net()
        net[0].weight.register_hook(lambda g: 0 * g)
        return net

    with pytest.raises(FlocoError, match="'0.weight' has a gradient hook"):
        build_network(masked, seed=0)


def test_ids_that_are_normalised_before_an_embedding_are_said() -> None:
    import floco

    x, y = np.random.default_rng(0).integers(0, 50, (60, 6)), np.arange(60) % 3
    net = lambda: nn.Sequential(Whole(), nn.Embedding(50, 4), nn.Flatten(), nn.Linear(24, 3))  # noqa: E731
    with pytest.warns(UserWarning, match="data.normalize = none"):
        floco.fit(
            net, floco.load((x, y)).split(floco.Dirichlet(10.0), clients=2), floco.FedAvg(), rounds=1, engine="serial"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        floco.fit(
            net,
            floco.load((x, y)).split(floco.Dirichlet(10.0), clients=2, normalize="none"),
            floco.FedAvg(),
            rounds=1,
            engine="serial",
        )


class Positions(nn.Module):
    """Adds an embedding of the position, which does not depend on the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.place, self.head = nn.Linear(1, 4), nn.Embedding(5, 4), nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((self.value(x[..., None]) + self.place(torch.arange(5))).flatten(1))


class Lazy(nn.Module):
    """Makes a constant in its first forward pass, and keeps a number that is none yet."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.best = small_net(), float("nan")
        self.register_buffer("mask", torch.zeros(5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.mask.any():
            self.mask = torch.ones(5)
        return self.net(x * self.mask)


class Whole(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.long().clamp(0, 49)


# -- small things that these rest on


@pytest.mark.parametrize("batch", [1, 2, 4, 7])
def test_the_number_of_batches_is_that_of_their_sizes(batch: int) -> None:
    assert all(count_batches(n, batch) == len(split_batches(n, batch)) for n in range(1, 40))


def test_a_trial_leaves_nothing_behind() -> None:
    setup = make(FedAvg(), model=lambda: Backbone(frozen=False))
    before = {n: t.clone() for n, t in setup.network.module.state_dict().items()}
    check_model(setup)
    assert setup.hidden_state is None
    message = setup.algorithm.message(initialize(setup).state, "north", "train")
    assert perform(setup, Job("north", "train", message)).failure is None
    assert same(before, dict(setup.network.module.state_dict()))
