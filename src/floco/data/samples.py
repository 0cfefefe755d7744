"""One data set as checked values, and its split into a federation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from floco.core.errors import FlocoError, nearest
from floco.data.arrays import column_names, find_channels, read_inputs
from floco.data.federation import Client, Federation, normalization, sums
from floco.data.holdout import divide, divide_latest, ranks
from floco.data.labels import array, check_labels, client_ids, plain_labels
from floco.data.partition import Natural, Single, Split, cut, partition
from floco.data.schema import Form, Normalization

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
    """Other columns of length N: `client` (ids), `position`, ..."""
    channels: str = "first"
    """Channel position in the source (see `arrays.CHANNELS`)."""
    values: tuple[str, ...] = ()
    """The source's own labels, as text, by class number; (): equal to the names."""
    offset: tuple[float, ...] = ()
    """Subtracted from each channel to keep large numbers precise in float32; (): nothing."""
    features: tuple[str, ...] = ()
    """Feature names, if x is a table with named columns (a DataFrame)."""

    @property
    def form(self) -> Form:
        """The source's form of samples and labels."""
        return self._federation(()).form

    def _federation(self, clients: tuple[Client, ...], **more: Any) -> Federation:
        source = {n: getattr(self, n) for n in ("channels", "values", "offset", "features")}
        return Federation(self.x, torch.from_numpy(self.y), clients, self.names, **source, **more)

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
        """Return the federation: each client's samples, split into a training and a test part.

        Args:
            split: a split of `data.partition`, e.g. `floco.Folds(5)`, or any partitioner of flwr-datasets.
            clients: K; with natural clients the first K (None: all). A partitioner has its own number.
            samples: samples of each client, drawn at random from those assigned to it (None: all of them).
            seed: random seed of the split.
            test_share: share of each client's samples that is its test part, in (0, 1).
            held_out: number of clients, the last ones, that are excluded from training and evaluation.
            normalize: "train" (statistics of all training parts), "none" (raw values), or fixed statistics.
            order: a column of numbers or dates, e.g. "position"; the test part is then a client's latest samples.
        """
        if (clients is not None and clients < 1) or (samples is not None and samples < 2):
            raise FlocoError(f"data.clients must be 1 at least and data.samples 2, got {clients} and {samples}")
        if not 0 < test_share < 1:
            raise FlocoError(f"data.test_share must be above 0 and below 1, got {test_share}")
        if isinstance(split, Single):
            parts = {split.id: cut(np.arange(len(self.y)), samples, split.id, seed)}
        elif isinstance(split, Natural):
            parts = self._natural(clients, samples, seed)
        else:
            parts = self._artificial(split, clients, samples, seed)
        if not 0 <= held_out < len(parts):
            raise FlocoError(f"data.held_out must leave one client at least of {len(parts)}, got {held_out}")
        made = []
        when = None if order is None else ranks(self._column(order), order)
        for name, rows in parts.items():
            if when is None:
                train, test = divide(rows, test_share, name, seed)
            else:
                train, test = divide_latest(rows, when, test_share, name)
            times = None if when is None else torch.from_numpy(when[train])
            made.append(Client(name, torch.from_numpy(train), torch.from_numpy(test), times))
        members, kept = tuple(made[: len(made) - held_out]), tuple(made[len(made) - held_out :])
        y_test = None if self.y_test is None else torch.from_numpy(self.y_test)
        normal = self._normalization(normalize, members)
        return self._federation(members, x_test=self.x_test, y_test=y_test, held_out=kept, normalization=normal)

    def _normalization(self, normalize: str | Normalization, members: tuple[Client, ...]) -> Normalization:
        """Return the statistics of samples minus their offset."""
        if normalize == "train":
            return normalization([sums(self.x, c.train) for c in members])
        given = Normalization() if normalize == "none" else normalize
        if not isinstance(given, Normalization):
            offer = nearest(str(given), ("train", "none"))
            raise FlocoError(
                'data.normalize must be "train", "none", or fixed statistics, Normalization(mean, std), '
                f"got {given!r}{offer}"
            )
        if given.mean and not len(given.mean) == len(given.std) == self.x.shape[1]:
            raise FlocoError(
                f"data.mean and data.std must have one value for each of the {self.x.shape[1]} channels, "
                f"got {len(given.mean)} and {len(given.std)}"
            )
        if not self.offset:
            return given
        mean, std = given.mean or (0.0,) * len(self.offset), given.std or (1.0,) * len(self.offset)
        return Normalization(tuple(m - o for m, o in zip(mean, self.offset, strict=True)), std)

    def _column(self, name: str) -> np.ndarray:
        columns = self.columns or {}
        if name not in columns:
            raise FlocoError(f"the source has no column {name!r}" + (nearest(name, columns) if columns else ""))
        return columns[name]

    def _artificial(
        self, split: Split | Partitioner, clients: int | None, samples: int | None, seed: int
    ) -> dict[str, np.ndarray]:
        if isinstance(split, Split) and clients is None:
            raise FlocoError(f"data.clients must say how many clients the split {split.name} is for")
        return {f"client-{i}": rows for i, rows in enumerate(partition(split, self.y, clients or 1, samples, seed))}

    def _natural(self, clients: int | None, samples: int | None, seed: int) -> dict[str, np.ndarray]:
        """Group rows by client id in one pass; flwr-datasets' natural partitioner reads all rows once per client."""
        if "client" not in (self.columns or {}):
            raise FlocoError('data.split = "natural" needs a source with a column "client"; this one has none')
        ids, which = np.unique(client_ids(self._column("client"), "the column client"), return_inverse=True)
        if clients is not None and clients > len(ids):
            raise FlocoError(f"data.clients must be at most the number of natural clients ({len(ids)}), got {clients}")
        grouped = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])
        return {str(i): cut(rows, samples, str(i), seed) for i, rows in list(zip(ids, grouped, strict=True))[:clients]}


def checked(
    arrays: Arrays, source: str, kind: str = "auto", known_labels: Sequence[str] = (), channels: str = "auto"
) -> Samples:
    """Return checked copies of arrays `x, y` or `x_train, y_train, x_test, y_test` (and `client`, `position`, `names`).

    The test part must have the form of the training part.

    Args:
        arrays: the arrays by name.
        source: name of the source, for error messages.
        kind: see `sources.load`.
        known_labels: all labels as text, in the order of the classes (empty: those that occur, sorted).
        channels: see `sources.load`.

    Raises:
        FlocoError: an array is missing or does not fit; the message names it.
    """
    suffix = "_train" if "x_train" in arrays else ""
    needed = [f"x{suffix}", f"y{suffix}", *(["x_test", "y_test"] if "x_test" in arrays or "y_test" in arrays else [])]
    for name in needed:
        if name not in arrays:
            names = "x and y, or x_train, y_train, x_test, y_test"
            raise FlocoError(f"{source} must hold {names}; {name} is missing among {', '.join(arrays)}")
    raw = [array(arrays[n], f"{source}: {n}") for n in needed[::2]]
    pairs = zip(needed[1::2], raw, strict=True)
    labels = [_labels(arrays[n], f"{source}: {n}", len(x), known_labels) for n, x in pairs]
    known, encoded, texts = _classes(labels[0], arrays, known_labels, source)
    where = find_channels(raw[0], kind, channels, f"{source}: {needed[0]}")
    x, offset = read_inputs(raw[0], f"{source}: {needed[0]}", where)
    columns = _columns({n: v for n, v in arrays.items() if n not in (*needed, "names")}, len(x), source, needed[0])
    named, values, features = tuple(map(str, texts)), tuple(map(str, known)), column_names(arrays[needed[0]])
    made = Samples(x, encoded, named, None, None, columns, where, values, offset, features)
    if len(raw) == 1:
        return made
    if raw[1].shape[1:] != raw[0].shape[1:]:
        raise FlocoError(
            f"{source}: x_test must have samples of the shape {raw[0].shape[1:]}, as the training part; "
            f"those of {raw[1].shape[1:]} do not fit"
        )
    if strange := sorted(set(labels[1].tolist()) - set(known.tolist()), key=str):
        shown = ", ".join(map(repr, strange[:12]))
        raise FlocoError(f"{source}: y_test must have labels of the training part; {shown} do not fit")
    x_test = made.form.samples(arrays["x_test"], f"{source}: x_test", far=0.5)
    return replace(made, x_test=x_test, y_test=_numbers(labels[1], known, f"{source}: y_test"))


def _labels(values: Any, where: str, samples: int, known: Sequence[str]) -> np.ndarray:
    """Return checked labels; as text if the known classes are given, which are text."""
    y = plain_labels(values, where)
    if y.ndim != 1 or len(y) != samples or y.dtype.kind not in "iubU":
        whole = y.dtype.kind == "f" and (y == np.trunc(y)).all()
        remedy = "; these are whole: convert them with astype(int)" if whole else ""
        raise FlocoError(
            f"{where} must be {samples} whole numbers or strings, one for each sample, "
            f"got shape {y.shape} of {y.dtype}{remedy}"
        )
    check_labels(y, where, known)
    return y.astype(str) if known else y


def _classes(
    y: np.ndarray, arrays: Arrays, known: Sequence[str], source: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct labels (C,), class numbers (N,) int64, and class names (C,)."""
    if known:
        values = names = np.asarray(known)
        encoded = _numbers(y, values, source)
    elif "names" in arrays:
        values, encoded, names = _named(y, np.asarray(arrays["names"]), source)
    else:
        values, encoded = np.unique(y, return_inverse=True)
        names = values
    if len(set(names.tolist())) < len(names):
        raise FlocoError(f"{source}: each label needs a name of its own, got {', '.join(map(str, names))}")
    if len(values) < 2:
        raise FlocoError(f"{source}: labels must be of 2 classes at least, got {len(values)}")
    return values, encoded.astype(np.int64), names


def _columns(arrays: Arrays, samples: int, source: str, x: str) -> dict[str, np.ndarray]:
    """Return copies of the other columns (N,)."""
    columns = {n: v for n, v in arrays.items() if np.ndim(v) == 1}
    for name, column in columns.items():
        if len(column) != samples:
            raise FlocoError(
                f"{source}: the column {name} must have one value for each of the {samples} samples of {x}, "
                f"got {len(column)}"
            )
    return {n: array(v, f"{source}: {n}").copy() for n, v in columns.items()}


def _numbers(y: np.ndarray, known: Sequence[Any] | np.ndarray, source: str) -> np.ndarray:
    """Return class numbers (N,) int64 of labels that must be among the known ones."""
    number = {label: c for c, label in enumerate(known.tolist() if isinstance(known, np.ndarray) else known)}
    if strange := sorted({str(v) for v in y.tolist() if v not in number}):
        raise FlocoError(
            f"{source}: labels {', '.join(strange[:8])} are not among data.labels ({', '.join(map(str, number))})"
        )
    return np.asarray([number[v] for v in y.tolist()], dtype=np.int64)


def _named(y: np.ndarray, names: np.ndarray, source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return classes, class numbers and names for labels that are indices into `names`."""
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= len(names):
        wanted = f"whole numbers from 0 to {len(names) - 1}"
        raise FlocoError(f"{source}: with names, labels must be {wanted}, got {y.min()} to {y.max()}")
    return np.arange(len(names)), y, names
