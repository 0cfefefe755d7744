"""A federation without its samples: what a run directory knows of its data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any, NoReturn

import torch

from floco.core.errors import FlocoError
from floco.core.inputs import Inputs, columns, like
from floco.core.settings import plain
from floco.core.task import Labels, Task
from floco.data.augment import Augment, find_augment
from floco.data.federation import Client, Federation
from floco.data.groups import Groups
from floco.data.normalization import Normalization
from floco.data.schema import Form, Schema
from floco.data.table_roles import Roles
from floco.data.tables import Columns

_AWAY = 2**40  # added to positions of samples, so that nobody takes them for those in an array
_INPUTS: dict[str, Any] = {"one": None, "tuple": (), "dict": {}}


def describe(federation: Federation) -> dict[str, Any]:
    """Return what can be said of a federation without its samples, as JSON has it; the inverse of `Known`.

    It has the schema with ranges and normalisation, the names of labels and clients, the sizes of the clients' parts,
    how often each label occurs in them, and the names of groups; no sample and no single target.
    """
    schema = federation.schema
    kind = "dict" if isinstance(schema.forms, dict) else "tuple" if isinstance(schema.forms, tuple) else "one"
    table = schema.table
    return {
        "inputs": kind,
        "forms": {name: asdict(form) for name, form in columns(schema.forms).items()},
        "labels": schema.labels._asdict(),
        "task": plain(federation.task),
        "table": None if table is None else {**vars(table), "roles": asdict(table.roles)},
        "augment": federation.augment and federation.augment.name,
        "groups": federation.groups and [federation.groups.column, federation.groups.names],
        "target": list(federation.target),
        "outputs": federation.outputs,
        "clients": _parts(federation, federation.clients),
        "held_out": _parts(federation, federation.held_out),
        "test": federation.tested,
    }


def _parts(federation: Federation, clients: Iterable[Client]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for c in clients:
        own = {} if c.forms is None else {"forms": {name: asdict(form) for name, form in c.forms.items()}}
        sizes = {n: {"n": len(p), "labels": federation.label_counts(p)} for n, p in _both(c)}
        made.append({"id": c.id, **sizes, **own})
    return made


def _both(client: Client) -> tuple[tuple[str, torch.Tensor], ...]:
    return ("train", client.train), ("test", client.test)


class Known(Federation):
    """A federation whose samples are elsewhere; positions in its clients' parts say how many samples there are."""

    def __init__(self, facts: Mapping[str, Any], task: Task, load: Callable[[], Federation]) -> None:
        """Take what `describe` returned, the task with its fitted values, and how to load the samples."""
        told, labels = _tuples(facts), _tuples(facts["labels"])
        forms = _forms(told["forms"])
        table = told["table"] and Columns(**{**told["table"], "roles": Roles(**told["table"]["roles"])})
        ordered: list[int] = []  # the labels of all samples, sorted within each part: of numbers, all are 0
        made = {key: tuple(_client(c, ordered) for c in told[key]) for key in ("clients", "held_out")}
        column, among = told.get("groups") or (None, ())
        groups = None if column is None else Groups(column, among, torch.zeros(0, dtype=torch.int64))
        fields = {"names": labels["names"], "values": labels["values"], "forms": forms, "task": task, "table": table}
        fields["groups"] = groups
        for name, value in {
            **made,
            **fields,
            "augment": _augment(told["augment"]),
            "_told": told,
            "_load": load,
        }.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_labels", torch.tensor(ordered))

    def __repr__(self) -> str:
        """Return the number of clients."""
        return f"Known({len(self.clients)} clients)"

    def _missing(self) -> NoReturn:
        raise FlocoError(
            "a run that was opened has no samples at hand, and made-up positions of them: "
            'setup.with_samples("my question").federation loads them'
        )

    x = property(_missing)
    y = property(_missing)
    x_test = property(_missing)
    y_test = property(_missing)

    @cached_property
    def _loaded(self) -> Federation:
        return self._load()  # type: ignore[attr-defined,no-any-return]

    def with_samples(self, what: str) -> Federation:
        """Return the federation with its samples, loaded; raise with the reason if they are not here."""
        try:
            return self._loaded
        except FlocoError as error:
            raise FlocoError(
                f"{what} needs samples that no run directory has, and they are not here: {error} (if they are "
                "elsewhere, say where: --data SOURCE, or open_run(..., data=...))"
            ) from error

    @property
    def tested(self) -> int | None:
        """Number of samples of the global test set; None: there is none."""
        return self._told["test"]  # type: ignore[attr-defined,no-any-return]

    @property
    def target(self) -> tuple[int, ...]:
        """Shape of one sample's target."""
        return self._told["target"]  # type: ignore[attr-defined,no-any-return]

    @property
    def outputs(self) -> int:
        """Number of outputs that a network needs."""
        return self._told["outputs"]  # type: ignore[attr-defined,no-any-return]

    def label_counts(self, indices: torch.Tensor) -> tuple[int, ...]:
        """Return how many of the samples `indices` have each label, (C,); () for a task without classes."""
        if not self.task.labelled:
            return ()
        labels: torch.Tensor = self._labels[indices - _AWAY]  # type: ignore[attr-defined]
        return tuple(labels.bincount(minlength=self.classes).tolist())

    @cached_property
    def schema(self) -> Schema:
        """What samples and targets look like in their source."""
        forms = like(_INPUTS[self._told["inputs"]], dict(self.forms))  # type: ignore[attr-defined]
        return Schema(forms, Labels(self.names, self.values), self.task, self.table)

    @property
    def sample(self) -> Inputs:
        """Two network inputs, to try out a network; they are made up."""
        return self.normalize(self.schema.made_up(2))


def _forms(told: Mapping[str, Any]) -> dict[str, Form]:
    order = sorted(told, key=lambda name: (len(name), name) if name.isdecimal() else (0, ""))  # "10" is not before "2"
    return {n: Form(**{**told[n], "normalization": Normalization(**told[n]["normalization"])}) for n in order}


def _client(told: Mapping[str, Any], ordered: list[int]) -> Client:
    """Return a client whose positions are the next ones in `ordered`, which gets its labels."""
    parts = []
    for part in (told["train"], told["test"]):
        start = len(ordered)
        ordered += [label for label, n in enumerate(part["labels"]) for _ in range(n)] or [0] * part["n"]
        parts.append(torch.arange(start, len(ordered)) + _AWAY)
    train, test = parts
    return Client(told["id"], train, test, forms=_forms(told["forms"]) if "forms" in told else None)


def _augment(name: str | None) -> Augment | None:
    """Return the change of training batches; one that cannot be imported fails when it is used."""
    try:
        return find_augment(name)
    except FlocoError as error:
        problem = error

    def fail(batch: Inputs, generator: torch.Generator) -> Inputs:
        raise problem

    return Augment(str(name), fail)


def _tuples(value: Any) -> Any:
    """Return a value of JSON with tuples in place of lists."""
    if isinstance(value, Mapping):
        return {name: _tuples(v) for name, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
