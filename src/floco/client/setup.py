"""What is fixed during a run, and access to its network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn
from torch.func import functional_call

from floco.client.agreement import check_parts
from floco.client.trial import CHUNK, BodyAndHead, Forward, choose_rows, find_hidden_state, move
from floco.core.algorithm import Algorithm
from floco.core.delivery import Delivery
from floco.core.head import outputs_of
from floco.core.inputs import Inputs, arguments, chunks, each, rows
from floco.core.network import Network
from floco.core.task import Task
from floco.core.values import ClientInfo, Combined, Facts, Models, Predict, Tensors, Training, fast_copy
from floco.data.federation import Federation
from floco.data.holdout import hold_back
from floco.data.known import Known

_REMEMBERED = 2000  # clients with cached facts


@dataclass(frozen=True)
class Setup:
    """What is fixed during a run."""

    federation: Federation
    network: Network
    algorithm: Algorithm
    training: Training
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    remote: tuple[ClientInfo, ...] = ()
    """The clients, where their samples are elsewhere; (): the federation's."""
    delivery: Delivery = field(default_factory=Delivery)
    """Which model each client takes home."""
    _facts: dict[str, Facts] = field(default_factory=dict, init=False, repr=False, compare=False)
    _modules: dict[bool, nn.Module] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def task(self) -> Task:
        """What is learned."""
        return self.federation.task

    @cached_property
    def clients(self) -> dict[str, ClientInfo]:
        """The participating clients by id, in order."""
        return {c.id: self._training(c) for c in self.remote or self.federation.infos}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of training samples of each participating client, n_k."""
        return {c.id: c.n_train for c in self.clients.values()}

    @cached_property
    def evaluated(self) -> tuple[str, ...]:
        """Ids of the participating clients that have a test part."""
        return tuple(c.id for c in self.clients.values() if c.n_test)

    def __post_init__(self) -> None:
        """Raise if method, task, network and settings do not go together."""
        layout, classes = self.network.layout, self.federation.classes
        check_parts(self.algorithm, self.task, layout, self.training, self.delivery, classes=classes)

    @cached_property
    def float32(self) -> Setup:
        """The setup with float32 arithmetic, whatever the precision of training is."""
        if self.training.precision == "float32":
            return self
        return replace(self, training=replace(self.training, precision="float32"))

    def with_samples(self, what: str) -> Setup:
        """Return the setup with the samples of its clients; raises if they are not here, and `what` needs them."""
        return replace(self, federation=self.federation.with_samples(what))

    def facts(self, client: str, round_: int | None = None) -> Facts:
        """Return what the algorithm may know of `client` when it trains in a round; None: in an evaluation."""
        known = self._known(client)
        training = self.training if round_ is None else self.training.at(round_)
        return known if training is self.training else replace(known, training=training)

    def divide(self, client: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the positions of the samples that a client trains on, and of those that are held back."""
        return hold_back(self.federation.client(client), self.delivery, self.seed)

    def _training(self, client: ClientInfo) -> ClientInfo:
        n = client.n_train
        kept = n - self.delivery.hold_back(n) if self.remote else len(self.divide(client.id)[0])
        return client._replace(n_train=kept)

    def training_targets(self, client: str, samples: torch.Tensor) -> torch.Tensor:
        """Return the targets (n, ...) of the training samples at these positions, as the client's loss takes them."""
        return self.task.training_targets(self.federation.y[samples], self.facts(client).label_counts)

    def models(self, tensors: Tensors, facts: Facts) -> Models:
        """Return a client's global and personal model from its working tensors.

        The task's shift, if there is one, is added to the personal model's last bias.
        """
        both = self.algorithm.models(tensors, facts)
        if both.personal is None:
            return both
        if isinstance(both.personal, Combined):
            return both._replace(personal=both.personal.each(lambda one: self.shifted(one, facts.label_counts)))
        return both._replace(personal=self.shifted(both.personal, facts.label_counts))

    def shifted(self, tensors: Tensors, counts: Sequence[int]) -> Tensors:
        """Return a model or a simplex with the task's shift for these training samples by class; often the same."""
        if (shift := self.task.shift(counts)) is None:
            return tensors
        bias = self.network.layout.head[1]
        return {**tensors, bias: tensors[bias] + shift}  # of a simplex with M biases, (M, C), to each: mixtures move

    def _known(self, client: str) -> Facts:
        if client not in self._facts:
            if len(self._facts) >= _REMEMBERED:
                self._facts.clear()
            self._facts[client] = self._facts_of(client)
        return self._facts[client]

    def _facts_of(self, client: str) -> Facts:
        if self.remote:
            n, counts = self.sizes[client], (0,) * self.federation.classes
        else:
            train = self.divide(client)[0]
            n, counts = len(train), self.federation.label_counts(train)
        return Facts(
            self.network.layout, self.training, n, counts, count_batches(n, self.training.batch_size), self.task
        )

    def predictor(self, *, train: bool, fresh: bool = False) -> Predict:
        """Return `predict(tensors, x)` of the network, on a cached copy of its module or on a `fresh` one."""
        known = {} if fresh else self._modules
        if train not in known:
            known[train] = self.network.twin(self.device, train=train)
        return make_predictor(known[train], self._names, self.training, self.device)

    @property
    def _names(self) -> dict[str, str]:
        return {n: n for n in self.network.layout.names}

    def initial(self) -> Tensors:
        """Return copies of the network's initial tensors on the device; they may be written to."""
        return {n: fast_copy(t).to(self.device) for n, t in {**self.network.parameters, **self.network.buffers}.items()}

    def inputs(self, raw: Inputs) -> Inputs:
        """Return raw samples (n, C, ...) as network inputs: normalised, on the device."""
        return each(lambda column: fast_copy(column.to(self.device)), self.federation.normalize(raw))

    @cached_property
    def output_size(self) -> int:
        """How many numbers the network gives for a sample."""
        x = self.inputs(rows(self.federation.x, choose_rows(self.federation, 1)[:1]))
        with torch.no_grad():
            return self.predictor(train=False)(self.initial(), x)[0].numel()

    @cached_property
    def hidden_state(self) -> str | None:
        """Why the forward pass is not a function of tensors and torch's random numbers; None if it is, or not known.

        See `trial.find_hidden_state`. If there is a state, each client trains and is evaluated on its own copy of the
        module, so that all start from the same.
        """
        if isinstance(self.federation, Known) or self.network.traits is not None:  # without samples, or its code
            return None

        def make() -> tuple[nn.Module, Forward]:
            module = self.network.twin(self.device, train=True)
            predict = make_predictor(module, self._names, self.training, self.device)
            return module, lambda x: predict(self.initial(), x)

        x = self.inputs(rows(self.federation.x, choose_rows(self.federation, 4)[:4]))
        return find_hidden_state(make, x, self.seed, self.device)

    @cached_property
    def _cut(self) -> tuple[BodyAndHead | None, bool]:
        head = self.network.layout.head
        if not head or self.network.traits is not None:
            return None, False
        module = self.network.twin(self.device, train=False)
        layer = module.get_submodule(head[0].rpartition(".")[0])
        names = {n.rpartition(".")[2]: n for n in head}
        changing = {n for n, p in layer.named_parameters() if p.requires_grad} | {n for n, _ in layer.named_buffers()}
        if not changing <= {*names}:  # pruned, parametrized, or with an adapter: not the head's tensors alone
            return None, False
        upper = make_predictor(layer, names, self.training, self.device)
        split = BodyAndHead(module, layer, make_predictor(module, self._names, self.training, self.device), upper)
        one, g = move(self.initial(), self.network.layout.buffers), torch.Generator().manual_seed(1)
        other = {**one, **{n: torch.randn(one[n].shape, generator=g).to(self.device) for n in head}}
        if isinstance(self.federation, Known):
            tried = self.federation.schema.made_up(2 * CHUNK)
        else:
            tried = rows(self.federation.x, choose_rows(self.federation, 2 * CHUNK))
        agrees = split.agrees(one, other, [self.inputs(raw) for raw in chunks(tried, CHUNK)])
        return split if agrees else None, agrees is False

    @property
    def split(self) -> BodyAndHead | None:
        """The network as body and head, if samples of all clients give the same logits that way; otherwise None."""
        return self._cut[0]

    @property
    def head_disagrees(self) -> bool:
        """Whether body and head together give other logits than the network; it is then evaluated as a whole."""
        return self._cut[1]

    @property
    def local_buffers(self) -> bool:
        """Whether floating buffers stay on the clients."""
        return self.training.buffers == "local" and bool(self.network.layout.buffers)


def make_predictor(module: nn.Module, names: Mapping[str, str], training: Training, device: torch.device) -> Predict:
    """Return `predict(tensors, x)` for a module in its current mode.

    Args:
        module: a network on the device, or a layer of one.
        names: name of a parameter or buffer in the module -> its name in the tensors.
        training: its `precision` selects the arithmetic.
        device: device of the tensors.
    """
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16")

    def predict(tensors: Mapping[str, torch.Tensor], x: Inputs) -> torch.Tensor:
        with autocast:
            output = functional_call(module, {own: tensors[n] for own, n in names.items()}, *arguments(x))
        return outputs_of(output).float()

    return predict


def count_batches(n: int, batch_size: int) -> int:
    """Return the number of batches per epoch."""
    return max(1, n // batch_size) if n % batch_size == 1 < batch_size else math.ceil(n / batch_size)


def split_batches(n: int, batch_size: int) -> list[int]:
    """Return the batch sizes of one epoch; a single last sample joins the batch before, since BatchNorm needs two."""
    sizes = [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)
    if len(sizes) > 1 and sizes[-1] == 1 < batch_size:
        sizes[-2:] = [batch_size + 1]
    return sizes
