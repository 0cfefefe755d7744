"""One data set as checked values, and its split into a federation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from floco.errors import FlocoError, nearest
from floco.federation import Client, Federation, normalization, sums
from floco.form import Form, Normalization, channels_first, finite, plain_labels, writeable
from floco.partition import Natural, Single, Split, cut, divide, divide_latest, partition

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Samples:
    """One data set, not yet split."""

    x: torch.Tensor
    """(N, C, ...) uint8 or float32, channels first."""
    y: np.ndarray
    """(N,) int64 in 0..C-1."""
    names: tuple[str, ...]
    x_test: torch.Tensor | None = None
    y_test: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] | None = None
    """Further columns of length N: `client` (ids), `position`, ..."""
    channels: str = "first"
    """Where the source has the channels: first, last, or none (see `Form`)."""
    values: tuple[str, ...] = ()
    """Labels as the source has them, as text, by class number; empty: the names."""

    @property
    def form(self) -> Form:
        """What samples and labels look like where they come from."""
        return Federation(self.x, torch.from_numpy(self.y), (), self.names, channels=self.channels, values=self.values).form

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
    ) -> Federation:
        """Return the federation: who has which samples, and which of them are for testing.

        Args:
            split: a split of `floco.partition`, or any partitioner of flwr-datasets.
            clients: K; with natural clients the first K (None: all). A partitioner has its own number.
            samples: of each client (None: all there are).
            seed: what the split follows from.
            test_share: part of each client's samples that is its own test part, in (0, 1).
            held_out: the last clients, kept out of training and evaluation.
            normalize: "train" (statistics of all training parts), "none", or fixed statistics.
            order: a column, e.g. "position": the test part is then the latest samples.
        """
        if (clients is not None and clients < 1) or (samples is not None and samples < 2):
            raise FlocoError(f"data.clients must be 1 at least and data.samples 2, got {clients} and {samples}")
        if not 0 < test_share < 1:
            raise FlocoError(f"data.test_share must be above 0 and below 1, got {test_share}")
        if isinstance(split, Single):
            parts = {split.id: cut(np.arange(len(self.y)), samples, split.id)}
        else:
            parts = self._natural(clients, samples) if isinstance(split, Natural) else self._artificial(split, clients, samples, seed)
        if not 0 <= held_out < len(parts):
            raise FlocoError(f"data.held_out must leave one client at least of {len(parts)}, got {held_out}")
        made = []
        for name, rows in parts.items():
            train, test = divide(rows, test_share, name, seed) if order is None else divide_latest(rows, self._column(order), test_share, name)
            made.append(Client(name, torch.from_numpy(train), torch.from_numpy(test)))
        members, kept = tuple(made[: len(made) - held_out]), tuple(made[len(made) - held_out :])
        y_test = None if self.y_test is None else torch.from_numpy(self.y_test)
        return Federation(self.x, torch.from_numpy(self.y), members, self.names, self.x_test, y_test, kept, self._normalization(normalize, members), self.channels, self.values)

    def _normalization(self, normalize: str | Normalization, members: tuple[Client, ...]) -> Normalization:
        if isinstance(normalize, Normalization):
            if normalize.mean and len(normalize.mean) != self.x.shape[1]:
                raise FlocoError(f"data.mean and data.std must have one value for each of the {self.x.shape[1]} channels, got {len(normalize.mean)}")
            return normalize
        return Normalization() if normalize == "none" else normalization([sums(self.x, c.train) for c in members])

    def _column(self, name: str) -> np.ndarray:
        columns = self.columns or {}
        if name not in columns:
            raise FlocoError(f"the source has no column {name!r}" + (nearest(name, columns) if columns else ""))
        return columns[name]

    def _artificial(self, split: Split | Partitioner, clients: int | None, samples: int | None, seed: int) -> dict[str, np.ndarray]:
        if isinstance(split, Split) and clients is None:
            raise FlocoError(f"data.clients must say how many clients the split {split.name} is for")
        return {f"client-{i}": rows for i, rows in enumerate(partition(split, self.y, clients or 1, samples, seed))}

    def _natural(self, clients: int | None, samples: int | None) -> dict[str, np.ndarray]:
        """Group rows by client id in one pass; flwr-datasets' natural partitioner reads all rows once for each client."""
        if "client" not in (self.columns or {}):
            raise FlocoError('data.split = "natural" needs a source with a column "client"; this one has none')
        ids, which = np.unique(self._column("client"), return_inverse=True)
        if clients is not None and clients > len(ids):
            raise FlocoError(f"data.clients must be at most the number of natural clients ({len(ids)}), got {clients}")
        grouped = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])
        return {str(i): cut(rows, samples, str(i)) for i, rows in list(zip(ids, grouped, strict=True))[:clients]}


def checked(arrays: Arrays, source: str, kind: str = "auto", known_labels: Sequence[str] = ()) -> Samples:
    """Return checked samples from arrays `x, y` or `x_train, y_train, x_test, y_test` (and `client`, `position`, `names`).

    `known_labels` are all labels as text, in the order of the classes (none: those that occur, sorted).
    """
    suffix = "_train" if "x_train" in arrays else ""
    needed = [f"x{suffix}", f"y{suffix}", *(["x_test", "y_test"] if "x_test" in arrays or "y_test" in arrays else [])]
    for name in needed:
        if name not in arrays:
            raise FlocoError(f"{source} must hold x and y, or x_train, y_train, x_test, y_test; {name} is missing among {', '.join(arrays)}")
    raw = [np.asarray(arrays[n]) for n in needed[::2]]
    channels = _channels(raw[0], kind)
    values = [_inputs(x, f"{source}: {n}", channels) for n, x in zip(needed[::2], raw, strict=True)]
    labels = [plain_labels(np.asarray(arrays[n])) for n in needed[1::2]]
    for name, x, y in zip(needed[1::2], values, labels, strict=True):
        if y.ndim != 1 or len(y) != len(x) or y.dtype.kind not in "iubU":
            raise FlocoError(f"{source}: {name} must be {len(x)} whole numbers or strings, one for each sample, got shape {y.shape} of {y.dtype}")
    if known_labels:
        labels = [y.astype(str) for y in labels]
        known, encoded = np.asarray(known_labels), _numbers(labels[0], known_labels, source)
    else:
        known, encoded = np.unique(labels[0], return_inverse=True)
    names = known
    if "names" in arrays and not known_labels:
        known, encoded, names = _named(labels[0], np.asarray(arrays["names"]), source)
    if len(set(names.tolist())) < len(names):
        raise FlocoError(f"{source}: each label needs a name of its own, got {', '.join(map(str, names))}")
    if len(known) < 2:
        raise FlocoError(f"{source}: labels must be of 2 classes at least, got {len(known)}")
    test = None
    if len(values) == 2:
        if values[1].shape[1:] != values[0].shape[1:] or not np.isin(labels[1], known).all():
            raise FlocoError(
                f"{source}: the test part must have the training part's shape and labels; {tuple(values[1].shape[1:])} and {sorted(set(labels[1].tolist()))[:12]} do not fit"
            )
        test = _numbers(labels[1], known, source)
    columns = {n: np.asarray(v) for n, v in arrays.items() if n not in (*needed, "names") and np.ndim(v) == 1}
    for name, column in columns.items():
        if len(column) != len(values[0]):
            raise FlocoError(f"{source}: the column {name} must have one value for each of the {len(values[0])} samples of {needed[0]}, got {len(column)}")
    texts = tuple(str(n) for n in names), tuple(str(v) for v in known)
    return Samples(values[0], encoded.astype(np.int64), texts[0], values[1] if test is not None else None, test, columns, channels, texts[1])


def _numbers(y: np.ndarray, known: Sequence[Any] | np.ndarray, source: str) -> np.ndarray:
    """Return the class numbers (N,) int64 of labels among the known ones."""
    number = {label: c for c, label in enumerate(known.tolist() if isinstance(known, np.ndarray) else known)}
    if strange := sorted({str(v) for v in y.tolist() if v not in number}):
        raise FlocoError(f"{source}: labels {', '.join(strange[:8])} are not among data.labels ({', '.join(map(str, number))})")
    return np.asarray([number[v] for v in y.tolist()], dtype=np.int64)


def _named(y: np.ndarray, names: np.ndarray, source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return classes, encoded labels and names for labels that are numbers into `names`."""
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= len(names):
        raise FlocoError(f"{source}: with names, labels must be whole numbers from 0 to {len(names) - 1}, got {y.min()} to {y.max()}")
    return np.arange(len(names)), y, names


def _channels(x: np.ndarray, kind: str) -> str:
    """Return where samples of a kind have their channels."""
    image = kind == "images" or (kind == "auto" and ((x.dtype == np.uint8 and x.ndim in (3, 4)) or (x.ndim == 4 and x.shape[-1] in (1, 3, 4))))
    return "first" if not image else "none" if x.ndim == 3 else "last"


def _inputs(x: np.ndarray, where: str, channels: str) -> torch.Tensor:
    """Return samples (N, C, ...), channels first: uint8 as they are, other numbers as float32."""
    if x.dtype.kind not in "iuf" or x.ndim < 2 or 0 in x.shape:
        raise FlocoError(f"{where} must be numbers (N, ...) with one dimension at least beside N, got shape {x.shape} of {x.dtype}")
    if (channels == "last" and x.ndim != 4) or (channels == "none" and x.ndim != 3):
        raise FlocoError(f"{where}: images must be (N, H, W) or (N, H, W, C), got {x.shape}")
    return channels_first(writeable(x if x.dtype == np.uint8 else finite(x, where)), channels)
