"""A federation as values: the samples, which client has which, and how raw samples become inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from floco.core.errors import FlocoError, some
from floco.core.inputs import Inputs, columns, count, like, rows, shapes
from floco.core.task import Labels, Task
from floco.core.values import ClientInfo
from floco.data.augment import Augment
from floco.data.groups import Groups
from floco.data.mapped import blocks
from floco.data.normalization import Normalization
from floco.data.schema import Form, Schema
from floco.data.tables import Columns
from floco.tasks import Classification


@dataclass(frozen=True)
class Client:
    """One client's data, as indices into the federation's samples."""

    id: str
    train: torch.Tensor
    """(n_train,) int64."""
    test: torch.Tensor
    """(n_test,) int64; empty: the client trains and is not evaluated."""
    when: torch.Tensor | None = None
    """(n_train,) int64: temporal rank of each training sample; None: no order."""
    forms: Mapping[str, Form] | None = None
    """By column, the form of its samples in the source, with the normalisation by its own training part; None: all
    clients have the federation's."""

    def __repr__(self) -> str:
        """Return id and counts."""
        return f"Client({self.id!r}, {len(self.train)} training and {len(self.test)} test samples)"


@dataclass(frozen=True)
class Federation:
    """All samples, stored once, and the clients as index lists into them."""

    x: Inputs
    """(N, C, ...) raw samples: uint8, int64 (ids) or float32, channels first; or a tuple or dict of such columns."""
    y: torch.Tensor
    """(N, ...) targets; of classification (N,) int64 in [0, C)."""
    clients: tuple[Client, ...]
    names: tuple[str, ...] = ()
    """Label names, by class number."""
    x_test: Inputs | None = None
    """A global test set that belongs to no client."""
    y_test: torch.Tensor | None = None
    held_out: tuple[Client, ...] = ()
    """Clients excluded from training and evaluation, for later use as newcomers."""
    forms: Mapping[str, Form] = field(default_factory=dict)
    """Form of the inputs in their source, by column (`""`: a single one)."""
    values: tuple[str, ...] = ()
    """The source's own labels, as text, by class number; (): equal to the names."""
    task: Task = field(default_factory=Classification)
    """What is learned."""
    augment: Augment | None = None
    """Random changes of the batches that clients train on; None: none."""
    table: Columns | None = None
    """How rows of a table become samples, if the source is one."""
    groups: Groups | None = None
    """The group of each sample, by which metrics are also shown; never an input. None: there are none."""

    def __post_init__(self) -> None:
        """Check that client ids are unique."""
        ids = [c.id for c in (*self.clients, *self.held_out)]
        if len(set(ids)) < len(ids):
            repeated = sorted({i for i in ids if ids.count(i) > 1})
            raise FlocoError(f"each client needs an id of its own, got {some(repeated)} more than once")

    def __repr__(self) -> str:
        """Return counts, and nothing of the data."""
        train, test = (sum(len(getattr(c, part)) for c in self.clients) for part in ("train", "test"))
        held = f" and {len(self.held_out)} held out" if self.held_out else ""
        whole = "" if self.y_test is None else f", {len(self.y_test)} samples of a global test part"
        kinds = f", {self.classes} classes" if self.classes else ""
        sizes = f"{len(self.clients)} clients{held}, {train} training and {test} test samples{whole}"
        return f"Federation({sizes}, task {self.task.name}{kinds}, inputs {shapes(self.x, 1)})"

    @cached_property
    def infos(self) -> tuple[ClientInfo, ...]:
        """What a server may know of the participating clients, in order."""
        return tuple(ClientInfo(c.id, len(c.train), len(c.test)) for c in self.clients)

    @property
    def common_test(self) -> tuple[Inputs, torch.Tensor]:
        """Raw samples and targets of the global test set; without one, the union of the clients' test sets."""
        if self.x_test is not None and self.y_test is not None:
            return self.x_test, self.y_test
        union = torch.cat([c.test for c in self.clients])
        return rows(self.x, union), self.y[union]

    def with_samples(self, what: str) -> Federation:
        """Return the federation with its samples, which are here (see `Known`); `what` needs them."""
        return self

    def around(self, x: Inputs, y: torch.Tensor, clients: Sequence[Client]) -> Federation:
        """Return a federation of other raw samples and targets in the same form."""
        alike = {n: getattr(self, n) for n in ("names", "forms", "values", "task", "augment", "table")}
        return Federation(x, y, tuple(clients), **alike)

    @property
    def tested(self) -> int | None:
        """Number of samples of the global test set; None: there is none."""
        return None if self.y_test is None else len(self.y_test)

    @property
    def target(self) -> tuple[int, ...]:
        """Shape of one sample's target."""
        return tuple(self.y.shape[1:])

    @property
    def shape(self) -> Any:
        """Shape of one network input; of several, a tuple or dict of shapes."""
        one = self.sample
        return like(one, {name: tuple(column.shape[1:]) for name, column in columns(one).items()})

    @property
    def classes(self) -> int:
        """Number of classes; 0 for a task without one class a sample, whose names are those of something else."""
        return len(self.names) if self.task.labelled else 0

    @property
    def outputs(self) -> int:
        """Number of outputs that a network needs."""
        return self.task.outputs(self.y, self.schema.labels)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the participating clients, in order."""
        return tuple(c.id for c in self.clients)

    def client(self, name: str) -> Client:
        """Return the client called `name`."""
        if name not in self._by_id:
            raise FlocoError(f"there is no client {name!r}; there are {some(self.ids)}")
        return self._by_id[name]

    @cached_property
    def _by_id(self) -> dict[str, Client]:
        return {c.id: c for c in (*self.clients, *self.held_out)}

    def label_counts(self, indices: torch.Tensor) -> tuple[int, ...]:
        """Return how many of the samples `indices` have each label, (C,); () for a task without classes."""
        return () if not self.task.labelled else tuple(torch.bincount(self.y[indices], minlength=self.classes).tolist())

    @cached_property
    def schema(self) -> Schema:
        """What samples and targets look like in their source."""
        forms = {name: self.forms.get(name, Form()).seen(column) for name, column in columns(self.x).items()}
        return Schema(like(self.x, forms), Labels(self.names, self.values or self.names), self.task, self.table)

    def schema_of(self, client: str | None) -> Schema:
        """Return the schema of new rows of a client: the common one, unless it has statistics of its own."""
        return self.schema if client is None else self.schema.of_client(self.client(client).forms)

    @property
    def normalization(self) -> Normalization:
        """That of the one input."""
        return self.schema.form.normalization

    def normalize(self, raw: Inputs) -> Inputs:
        """Return network inputs of raw samples."""
        forms = self.forms
        return like(raw, {n: forms.get(n, Form()).normalize(column) for n, column in columns(raw).items()})

    def inputs(self, indices: torch.Tensor) -> Inputs:
        """Return the normalised inputs of the samples `indices`, (n, C, ...)."""
        return self.normalize(rows(self.x, indices))

    @property
    def sample(self) -> Inputs:
        """Two network inputs, to try out a network."""
        return self.inputs(torch.arange(min(2, count(self.x))))

    def fingerprint(self) -> str:
        """Return a hash of all samples, labels, splits, normalisation and augmentation: equal for equal data."""
        digest = hashlib.blake2b(digest_size=16)
        tested = {} if self.x_test is None else columns(self.x_test)
        for tensor in (*columns(self.x).values(), self.y, *tested.values(), self.y_test):
            if tensor is not None:
                digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
                for block in blocks(tensor):
                    digest.update(np.ascontiguousarray(block.numpy()).data)
        for c in (*self.clients, *self.held_out):
            digest.update(c.id.encode() + b"\0" + c.train.numpy().tobytes() + b"\1" + c.test.numpy().tobytes())
        forms = [(name, f.normalization, f.offset) for name, f in self.forms.items()]
        digest.update(repr((self.names, forms, self.task)).encode())
        if (prior := getattr(self.task, "prior", "none")) != "none":  # no part of its text, as earlier runs have none
            digest.update(prior.encode())
        for own in (c.forms for c in (*self.clients, *self.held_out) if c.forms is not None):
            digest.update(repr([(name, f.normalization, f.offset) for name, f in own.items()]).encode())
        if self.groups is not None:
            digest.update(repr(self.groups.names).encode() + self.groups.numbers.numpy().tobytes())
        if self.augment is not None:
            digest.update(self.augment.name.encode())
        if self.table is not None:
            digest.update(repr((self.table, [f.missing for f in self.forms.values()])).encode())
        return digest.hexdigest()
