"""A federation as values: the samples, who has which, and how raw samples become inputs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from floco.errors import FlocoError
from floco.form import Form, Normalization
from floco.streams import one_thread


@dataclass(frozen=True)
class Client:
    """One client's part: positions in the federation's samples."""

    id: str
    train: torch.Tensor
    """(n_train,) int64."""
    test: torch.Tensor
    """(n_test,) int64."""


@dataclass(frozen=True)
class Federation:
    """All samples, once, and the clients as index lists into them."""

    x: torch.Tensor
    """(N, C, ...) raw samples: uint8 or float32, channels first."""
    y: torch.Tensor
    """(N,) int64 in [0, C)."""
    clients: tuple[Client, ...]
    names: tuple[str, ...]
    """Label names, by class number."""
    x_test: torch.Tensor | None = None
    """A global test part that belongs to no client."""
    y_test: torch.Tensor | None = None
    held_out: tuple[Client, ...] = ()
    """Clients kept out of training and evaluation, for later use as newcomers."""
    normalization: Normalization = field(default_factory=Normalization)
    channels: str = "first"
    """Where the source of the samples has their channels: first, last, or none (see `Form`)."""
    values: tuple[str, ...] = ()
    """Labels as their source has them, as text, by class number; empty: the names."""

    def __post_init__(self) -> None:
        """Check that no two clients have one id."""
        ids = [c.id for c in (*self.clients, *self.held_out)]
        if len(set(ids)) < len(ids):
            raise FlocoError(f"each client needs an id of its own, got {_some(sorted({i for i in ids if ids.count(i) > 1}))} more than once")

    @property
    def common_test(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw samples and labels of the global test part; without one, of the clients' test parts together."""
        if self.x_test is not None and self.y_test is not None:
            return self.x_test, self.y_test
        union = torch.cat([c.test for c in self.clients])
        return self.x[union], self.y[union]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.x.shape[1:])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the participating clients, in order."""
        return tuple(c.id for c in self.clients)

    def client(self, name: str) -> Client:
        """Return the client called `name`."""
        if name not in self._by_id:
            raise FlocoError(f"there is no client {name!r}; there are {_some(self.ids)}")
        return self._by_id[name]

    @cached_property
    def _by_id(self) -> dict[str, Client]:
        return {c.id: c for c in (*self.clients, *self.held_out)}

    def label_counts(self, indices: torch.Tensor) -> tuple[int, ...]:
        """Return how many of the samples `indices` have each label, (C,)."""
        return tuple(torch.bincount(self.y[indices], minlength=self.classes).tolist())

    @cached_property
    def form(self) -> Form:
        """What samples and labels look like where they come from."""
        c, *rest = self.shape
        shape = {"none": tuple(rest), "last": (*rest, c)}.get(self.channels, self.shape)
        others = (0, *range(2, self.x.ndim))
        ranges = tuple(zip(self.x.amin(others).float().tolist(), self.x.amax(others).float().tolist(), strict=True))
        return Form(shape, "uint8" if self.x.dtype == torch.uint8 else "float32", self.channels, self.names, self.values or self.names, ranges, self.normalization)

    def inputs(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the normalised inputs of the samples `indices`, (n, C, ...) float32."""
        return self.normalization(self.x[indices])

    def fingerprint(self) -> str:
        """Return a hash of all samples, labels, splits and the normalisation: equal data, equal fingerprint."""
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (self.x, self.y, self.x_test, self.y_test):
            if tensor is not None:
                digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
                for block in tensor.split(4096):
                    digest.update(np.ascontiguousarray(block.numpy()).data)
        for c in (*self.clients, *self.held_out):
            digest.update(c.id.encode() + b"\0" + c.train.numpy().tobytes() + b"\1" + c.test.numpy().tobytes())
        digest.update(repr((self.names, self.normalization)).encode())
        return digest.hexdigest()


def _some(ids: Sequence[str], most: int = 8) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")


Sums = tuple[int, tuple[float, ...], tuple[float, ...]]
"""Number of values of a channel, and for each channel their sum and the sum of their squares."""


def sums(x: torch.Tensor, indices: torch.Tensor) -> Sums:
    """Return the sums of the samples `indices`, in float64, over blocks, so that no second copy of the samples is made.

    On one thread, so that machines with other numbers of cores get the same bits.
    """
    dims = [0, *range(2, x.ndim)]
    count, total, square = 0, torch.zeros(x.shape[1], dtype=torch.float64), torch.zeros(x.shape[1], dtype=torch.float64)
    with one_thread():
        for block in indices.split(4096):
            values = Normalization()(x[block]).double()
            count += values.numel() // x.shape[1]
            total += values.sum(dims)
            square += values.square().sum(dims)
    return count, tuple(total.tolist()), tuple(square.tolist())


def normalization(parts: Sequence[Sums]) -> Normalization:
    """Return mean and standard deviation per channel, from the clients' sums; a constant channel is only centered."""
    count = sum(part[0] for part in parts)
    total, square = (torch.tensor([math.fsum(values) for values in zip(*(part[i] for part in parts), strict=True)], dtype=torch.float64) for i in (1, 2))
    mean = total / count
    std = (square / count - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 1e-6, std, torch.ones_like(std))
    return Normalization(tuple(mean.tolist()), tuple(std.tolist()))
