"""What a site says when it joins, of which nothing is taken on trust, and the federation that the server makes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from floco.core.errors import FlocoError
from floco.data.arrays import CHANNELS, channels_first
from floco.data.federation import Client, Federation
from floco.data.schema import Normalization
from floco.flower.protocol import FORMAT
from floco.runs.config import Config

Facts = dict[str, Any]
"""What a site says of itself: its sizes, the type and layout of its samples, and its sums for a common normalisation."""


def introduced(told: Facts, config: Config, known: Mapping[str, Facts]) -> tuple[str, Facts]:
    """Return a site's client id and the facts that it told when it joined, of which nothing is taken on trust.

    Args:
        told: what it said.
        config: the run's configuration.
        known: the facts of the clients that have joined before.

    Raises:
        FlocoError: it cannot take part.
    """
    if why := str(told.get("problem", "")):
        raise FlocoError(why)
    client, sizes = str(told.get("client", "")), [told.get("n_train"), told.get("n_test")]
    if client != client.strip() or not client.isprintable() or not 1 <= len(client) <= 100 or client.startswith("("):
        raise FlocoError("its client-id must have 1 to 100 printable characters, and not begin with a bracket")
    if told.get("format") != FORMAT or told.get("dtype") not in ("uint8", "float32") or told.get("channels") not in CHANNELS:
        raise FlocoError("it has another version of floco")
    if not all(type(n) is int and 1 <= n <= config.flower.most_samples for n in sizes):
        limit = f"each must be at least 1, and at most flower.most_samples = {config.flower.most_samples}"
        raise FlocoError(f"it says that it has {sizes[0]!r} samples to train and {sizes[1]!r} to test: {limit}")
    facts: Facts = {"n_train": sizes[0], "n_test": sizes[1], "dtype": told["dtype"], "channels": told["channels"]}
    before = known.get(client, facts)
    if changed := next((k for k in ("n_train", "n_test") if before[k] != facts[k]), None):
        raise FlocoError(f'the data of client "{client}" have changed since it joined this run: {changed} was {before[changed]}, and is {facts[changed]}')
    for other in (f for c, f in known.items() if c != client):
        if any(facts[k] != other[k] for k in ("dtype", "channels")):
            raise FlocoError(f"its samples are {facts['dtype']} with channels {facts['channels']}, and those of the other sites {other['dtype']} with channels {other['channels']}")
    return client, {**facts, **_sums(told, config)}


def _sums(told: Facts, config: Config) -> Facts:
    """Return the sums for a common normalisation, which must be those of as many numbers as the samples have."""
    if config.data.normalize != "train":
        return {"count": 0, "sum": [], "square": []}
    shape = channels_first(torch.zeros(1, *config.flower.shape), told["channels"]).shape
    count, *both = told.get("count"), *([float(v) for v in told.get(name, ())] for name in ("sum", "square"))
    plausible = count == told["n_train"] * math.prod(shape[2:]) and all(len(v) == shape[1] for v in both)
    if not plausible or not all(abs(a) < 1e30 and 0 <= b < 1e60 for a, b in zip(*both, strict=True)):
        raise FlocoError("its sums for the normalisation are not those of its samples: one a channel, below 1e30, and squares from 0 to 1e60")
    return {"count": count, "sum": both[0], "square": both[1]}


class Sites(Federation):
    """A federation of whose samples only the shape and the numbers are known: nothing that it gives takes memory by these numbers."""

    def label_counts(self, indices: torch.Tensor) -> tuple[int, ...]:
        """Return counts that add up to the number of the samples `indices`, (C,): which labels they have is not known here, and all are counted as the first."""
        return (len(indices), *(0,) * (self.classes - 1))


def sizes_only(config: Config, facts: Mapping[str, Facts], normal: Normalization) -> Sites:
    """Return a federation of whose samples only the shape and the numbers are known."""
    one: dict[str, Any] = next(iter(facts.values()))
    dtype = torch.uint8 if one["dtype"] == "uint8" else torch.float32
    x = channels_first(torch.zeros(4, *config.flower.shape, dtype=dtype), str(one["channels"]))
    place = torch.zeros(1, dtype=torch.int64)
    clients = tuple(Client(c, place.expand(int(facts[c]["n_train"])), place.expand(int(facts[c]["n_test"]))) for c in sorted(facts))
    return Sites(x, torch.zeros(4, dtype=torch.int64), clients, config.data.labels, normalization=normal, channels=str(one["channels"]))
