"""Admission of sites: check what a site reports when it joins, and build the server's federation from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from floco.core.errors import FlocoError
from floco.core.values import ClientInfo
from floco.data.arrays import CHANNELS, channels_first
from floco.data.federation import Federation, fit_normalization
from floco.data.schema import Form, Normalization
from floco.flower.protocol import FORMAT
from floco.runs.config import Config

SiteFacts = dict[str, Any]
"""A site's report: its sizes, the dtype and layout of its samples, and its sums for the common normalisation."""


def admit(report: SiteFacts, config: Config, known: Mapping[str, SiteFacts]) -> tuple[str, SiteFacts]:
    """Return the client id and the validated facts of a site that joins.

    Args:
        report: the site's report.
        config: the run's configuration.
        known: the facts of the clients that joined earlier.

    Raises:
        FlocoError: the site cannot take part.
    """
    if why := str(report.get("problem", "")):
        raise FlocoError(why)
    client, sizes = str(report.get("client", "")), [report.get("n_train"), report.get("n_test")]
    if client != client.strip() or not client.isprintable() or not 1 <= len(client) <= 100 or client.startswith("("):
        raise FlocoError("its client-id must have 1 to 100 printable characters, and not begin with a bracket")
    dtype, channels = report.get("dtype"), report.get("channels")
    if report.get("format") != FORMAT or dtype not in ("uint8", "float32") or channels not in CHANNELS:
        raise FlocoError("it has another version of floco")
    pairs = zip((1, 0), sizes, strict=True)  # a site may have no test part: it is then not evaluated
    if not all(type(n) is int and low <= n <= config.flower.most_samples for low, n in pairs):
        limit = f"the first must be at least 1, and each at most flower.most_samples = {config.flower.most_samples}"
        raise FlocoError(f"it says that it has {sizes[0]!r} samples to train and {sizes[1]!r} to test: {limit}")
    facts: SiteFacts = {"n_train": sizes[0], "n_test": sizes[1], "dtype": dtype, "channels": channels}
    facts |= {"columns": str(report["columns"])[:16]} if report.get("columns") else {}
    before = known.get(client, facts)
    if changed := next((k for k in ("n_train", "n_test") if before[k] != facts[k]), None):
        now = f"{changed} was {before[changed]}, and is {facts[changed]}"
        raise FlocoError(f'the data of client "{client}" have changed since it joined this run: {now}')
    for other in (f for c, f in known.items() if c != client):
        if any(facts[k] != other[k] for k in ("dtype", "channels")):
            others = f"those of the other sites {other['dtype']} with channels {other['channels']}"
            raise FlocoError(f"its samples are {dtype} with channels {channels}, and {others}")
        if facts.get("columns") != other.get("columns"):
            agree = "set data.features and data.levels, as floco flower new does"
            raise FlocoError(f"its table has other columns, or categories, than those of the other sites: {agree}")
    return client, {**facts, **_sums(report, config)}


def _sums(report: SiteFacts, config: Config) -> SiteFacts:
    """Return a site's sums for the common normalisation, checked against its sample counts and channels."""
    if config.data.normalize != "train":
        return {"count": 0, "sum": [], "square": []}
    shape = channels_first(torch.zeros(1, *config.flower.shape), report["channels"]).shape
    count, *both = report.get("count"), *([float(v) for v in report.get(name, ())] for name in ("sum", "square"))
    most, given = report["n_train"] * math.prod(shape[2:]), count if isinstance(count, list) else []
    few = config.data.missing == "mean" and len(given) == shape[1]  # some values may be missing
    known = count == most or (few and all(type(n) is int and 0 <= n <= most for n in given))
    plausible = known and all(len(v) == shape[1] for v in both)
    if not plausible or not all(abs(a) < 1e30 and 0 <= b < 1e60 for a, b in zip(*both, strict=True)):
        wanted = "one a channel, below 1e30, and squares from 0 to 1e60"
        raise FlocoError(f"its sums for the normalisation are not those of its samples: {wanted}")
    return {"count": count, "sum": both[0], "square": both[1]}


def common_normalization(config: Config, facts: Mapping[str, SiteFacts]) -> Normalization:
    """Return the normalisation of all sites, from the configuration or from their sums."""
    if config.data.normalize == "fixed":
        return Normalization(config.data.mean, config.data.std)
    if config.data.normalize == "none":
        return Normalization()
    reports = [facts[c] for c in sorted(facts)]
    return fit_normalization([(_count(f["count"]), tuple(f["sum"]), tuple(f["square"])) for f in reports])


def _count(given: int | list[int]) -> int | tuple[int, ...]:
    return tuple(given) if isinstance(given, list) else int(given)


def schema_only(config: Config, facts: Mapping[str, SiteFacts], normal: Normalization) -> Federation:
    """Return a federation without clients, whose samples have the shape and type of the sites' samples."""
    one: dict[str, Any] = next(iter(facts.values()))
    dtype, channels = torch.uint8 if one["dtype"] == "uint8" else torch.float32, str(one["channels"])
    x = channels_first(torch.zeros(4, *config.flower.shape, dtype=dtype), channels)
    forms = {"": Form(channels, normalization=normal)}
    return Federation(x, torch.zeros(4, dtype=torch.int64), (), config.data.labels, forms=forms, task=config.task)


def client_infos(facts: Mapping[str, SiteFacts]) -> tuple[ClientInfo, ...]:
    """Return what the server knows of each site, in order of their ids."""
    return tuple(ClientInfo(c, int(facts[c]["n_train"]), int(facts[c]["n_test"])) for c in sorted(facts))
