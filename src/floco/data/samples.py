"""One data set as checked values, and its split into a federation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from floco.core.errors import FlocoError, nearest
from floco.core.inputs import Inputs, columns, shapes
from floco.core.random import one_thread
from floco.core.settings import checked
from floco.core.task import Labels, Task, add_statistics
from floco.data.augment import Change, check_augment, find_augment
from floco.data.federation import Client, Federation
from floco.data.groups import read_groups
from floco.data.holdout import SMALL, divide_all, rank
from floco.data.normalization import Normalization, fit_normalization, sum_channels
from floco.data.partition import Foreign
from floco.data.per_client import normalize_by_client
from floco.data.schema import Form, Schema
from floco.data.split import Split, Table, check_parts, cut
from floco.data.tables import Columns
from floco.tasks import Classification

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


Clients = tuple[Client, ...]


@dataclass(frozen=True)
class Samples:
    """One data set, not yet split."""

    x: Inputs
    """(N, C, ...) uint8, int64 or float32, channels first; or a tuple or dict of such columns."""
    y: np.ndarray
    """(N, ...) targets; of classification (N,) int64 in 0..C-1."""
    labels: Labels = Labels()
    x_test: Inputs | None = None
    y_test: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Other columns of length N: `client` (ids), `position`, ..."""
    forms: Mapping[str, Form] = field(default_factory=dict)
    """Form of the inputs in their source, by column (`""`: a single one)."""
    task: Task = field(default_factory=Classification)
    order: str | None = None
    """The column by which `split` orders the samples, unless it is told another one."""
    table: Columns | None = None
    """How rows of a table become samples, if the source is one."""
    group: str | None = None
    """The column by whose values metrics are also shown."""

    def __repr__(self) -> str:
        """Return counts, and nothing of the data."""
        test = "" if self.y_test is None else f", {len(self.y_test)} of a test part"
        kinds = f", {len(self.names)} classes" if self.task.labelled else ""
        further = f", columns {', '.join(self.columns)}" if self.columns else ""
        return f"Samples({len(self.y)} samples {shapes(self.x, 1)}{test}, task {self.task.name}{kinds}{further})"

    @property
    def names(self) -> tuple[str, ...]:
        """Label names, by class number."""
        return self.labels.names

    @property
    def schema(self) -> Schema:
        """What samples and targets look like in their source."""
        return self._federation((), self.forms).schema

    def _federation(self, clients: tuple[Client, ...], forms: Mapping[str, Form], **more: Any) -> Federation:
        more |= {"values": self.labels.values, "task": self.task, "forms": forms, "table": self.table}
        if self.group is not None:
            more["groups"] = read_groups(self._column(self.group, "data.group: "), self.group)
        return Federation(self.x, torch.from_numpy(self.y), clients, self.labels.names, **more)

    def split(
        self,
        split: Split | Partitioner,
        *,
        clients: int | None = None,
        samples: int | None = None,
        seed: int = 0,
        test_share: float = 0.2,
        held_out: int = 0,
        normalize: str | Normalization = "train",
        order: str | None = None,
        augment: str | Change | None = None,
        small: str = "error",
        least: int = 1,
    ) -> Federation:
        """Return the federation: each client's samples, split into a training and a test part.

        Args:
            split: a split of `data.partition`, e.g. `floco.Folds(5)`, or any partitioner of flwr-datasets.
            clients: K; with natural clients the first K (None: all). A partitioner has its own number (None).
            samples: samples of each client, drawn at random from those assigned to it (None: all of them).
            seed: random seed of the split.
            test_share: share of each client's samples that is its test part, in (0, 1).
            held_out: number of clients, the last ones, that are excluded from training and evaluation.
            normalize: "train" (statistics of all training parts), "client" (each client's own), "none" (raw values), or
                fixed statistics.
            order: a column of numbers or dates, e.g. "position"; the test part is then a client's latest samples
                (None: the column that `load` was told, if any).
            augment: "flip" or "flip+crop" (images), `module:function`, or a function `(batch, generator) -> batch`:
                random changes of normalised inputs (B, ...), in training only.
            small: what becomes of clients with fewer than 2 samples, or too few of them to train: "error", "drop"
                (left out), or "train-only" (all their samples are for training, and they are not evaluated).
            least: fewest training samples of a client; one with fewer counts as small.

        Raises:
            FlocoError: the split cannot be made as asked, or, with `small="error"`, there are small clients.
        """
        clients, samples = (
            checked(v, int | None, f"data.{n}") for n, v in (("clients", clients), ("samples", samples))
        )
        wholes = {"seed": seed, "data.held_out": held_out, "data.least": least}
        seed, held_out, least = (checked(v, int, n) for n, v in wholes.items())
        test_share = checked(test_share, float, "data.test_share")
        _check_ranges(clients, samples, test_share, small, least)
        parts = {c: cut(rows, samples, c, seed) for c, rows in self._assign(split, clients, samples, seed).items()}
        order = self.order if order is None else order
        when = None if order is None else rank(self._column(order), order)
        made = []
        for name, (train, test) in divide_all(parts, when, test_share, seed, small=small, least=least).items():
            times = None if when is None else torch.from_numpy(when[train])
            made.append(Client(name, torch.from_numpy(train), torch.from_numpy(test), times))
        if not 0 <= held_out < len(made):
            raise FlocoError(f"data.held_out must leave one client at least of {len(made)}, got {held_out}")
        members, kept = tuple(made[: len(made) - held_out]), tuple(made[len(made) - held_out :])
        y_test = None if self.y_test is None else torch.from_numpy(self.y_test)
        change, tests = find_augment(augment), {"x_test": self.x_test, "y_test": y_test}
        source, members, kept = self._normalize(normalize, members, kept)
        federation = source._federation(members, source.forms, **tests, held_out=kept, augment=change)
        if change is not None:
            channels = source.forms.get("", Form()).channels
            check_augment(change, federation.inputs(members[0].train[:4]), channels, federation.y)
        return replace(federation, task=self._fitted(federation.y, members))

    def _fitted(self, y: torch.Tensor, members: tuple[Client, ...]) -> Task:
        """Return the task with what it takes from the targets of all training parts."""
        with one_thread():
            parts = [self.task.statistics(y[c.train]) for c in members]
        return self.task.fitted(add_statistics(parts), self.labels)

    def _assign(
        self, split: Split | Partitioner, clients: int | None, samples: int | None, seed: int
    ) -> dict[str, np.ndarray]:
        """Return the rows of each client."""
        if not isinstance(split, Split):
            if isinstance(split, str | type) or not hasattr(split, "load_partition"):
                offer = "floco.Folds(5), floco.Natural(), another of floco.data.partition, or one of flwr-datasets"
                raise FlocoError(f"split must be an object: {offer}; got {split!r}")
            split = Foreign(split)
        if split.labelled and not self.task.labelled:
            raise FlocoError(f"split {split.name} goes by classes, and task {self.task.name} has none; iid does not")
        labels = self.y if self.task.labelled else np.zeros(len(self.y), np.int64)
        try:
            found = split.assign(Table(labels, self.columns), clients=clients, samples=samples, seed=seed)
        except FlocoError:
            raise
        except Exception as error:
            raise FlocoError(f"split {split.name} raised {type(error).__name__}: {error}") from error
        parts = check_parts(found, len(self.y), f"split {split.name}")
        if clients not in (None, len(parts)):
            raise FlocoError(
                f"split {split.name} is of {len(parts)} clients, and data.clients = {clients}: leave it out"
            )
        return parts

    def _normalize(
        self, normalize: str | Normalization, members: Clients, kept: Clients
    ) -> tuple[Samples, Clients, Clients]:
        """Return the samples with their forms, and the clients with theirs if each has its own."""
        if normalize != "client":
            return replace(self, forms=self._all_normalized(normalize, members)), members, kept
        if self.x_test is not None:
            raise FlocoError(
                'data.normalize = "client" needs data without a global test part (x_test, y_test), as nothing says how '
                'to normalise it: leave it out, or set "train", "fixed" or "none"'
            )
        x, forms, clients = normalize_by_client(self.forms, self.x, [*members, *kept])
        return replace(self, x=x, forms=forms), clients[: len(members)], clients[len(members) :]

    def _all_normalized(self, normalize: str | Normalization, members: tuple[Client, ...]) -> dict[str, Form]:
        """Return the form of each column with the statistics of its samples."""
        if not isinstance(normalize, Normalization) and normalize not in ("train", "none"):
            offer = nearest(str(normalize), ("train", "client", "none"))
            raise FlocoError(
                'data.normalize must be "train", "client", "none", or fixed statistics, Normalization(mean, std), '
                f"got {normalize!r}{offer}"
            )
        each = columns(self.x)
        given = normalize.by_column(each) if isinstance(normalize, Normalization) else dict.fromkeys(each, normalize)
        return {name: self._normalized(name, given[name], members) for name in each}

    def _normalized(self, name: str, normalize: str | Normalization, members: tuple[Client, ...]) -> Form:
        """Return the form of a column with the statistics of its samples minus their offset."""
        x, form = columns(self.x)[name], self.forms.get(name, Form())
        if x.dtype == torch.int64:
            return form
        if normalize == "train":
            found = fit_normalization([sum_channels(x, c.train) for c in members])
            return replace(form, normalization=form.unscaled(found))
        given = normalize if isinstance(normalize, Normalization) else Normalization()
        if given.mean and len(given.mean) == len(given.std) == x.shape[1] - form.flags:
            given = Normalization(given.mean + (0.0,) * form.flags, given.std + (1.0,) * form.flags)
        if given.mean and not len(given.mean) == len(given.std) == x.shape[1]:
            raise FlocoError(
                f"data.mean and data.std must have one value for each of the {x.shape[1]} channels, "
                f"got {len(given.mean)} and {len(given.std)}"
            )
        if not given.mean and form.missing == "mean":
            if x.isnan().any():
                raise FlocoError('data.missing = "mean" needs a mean: set data.normalize to train or fixed, not none')
            form = replace(form, missing="error")  # later samples may lack no value either
        given = form.unscaled(given)
        if not form.offset:
            return replace(form, normalization=given)
        mean, std = given.mean or (0.0,) * len(form.offset), given.std or (1.0,) * len(form.offset)
        return replace(
            form, normalization=Normalization(tuple(m - o for m, o in zip(mean, form.offset, strict=True)), std)
        )

    def _column(self, name: str, key: str = "") -> np.ndarray:
        if name not in self.columns:
            raise FlocoError(
                f"{key}the source has no column {name!r}" + (nearest(name, self.columns) if self.columns else "")
            )
        return self.columns[name]


def _check_ranges(clients: int | None, samples: int | None, test_share: float, small: str, least: int) -> None:
    if (clients is not None and clients < 1) or (samples is not None and samples < 2):
        raise FlocoError(f"data.clients must be 1 at least and data.samples 2, got {clients} and {samples}")
    if not 0 < test_share < 1:
        raise FlocoError(f"data.test_share must be above 0 and below 1, got {test_share}")
    if small not in SMALL or least < 1:
        rule = f"data.small must be one of {', '.join(SMALL)} and data.least 1 at least"
        raise FlocoError(f"{rule}, got {small!r} and {least}")
