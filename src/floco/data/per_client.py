"""Normalisation client by client: each one's samples with mean and deviation of its own training part."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from floco.core.errors import FlocoError
from floco.core.inputs import Inputs, columns, like
from floco.data.normalization import Normalization, fit_normalization, sum_channels
from floco.data.schema import Form, Schema

if TYPE_CHECKING:
    from floco.data.federation import Client, Federation

_LEAST = 2  # training samples of which a deviation can be taken
_NEVER = 1e30  # the deviation of a channel that never varies
_FINE = 2.0**-14  # differences in float32 that are smaller, relative to the values, are off by 0.1 % or more


def fit_own(forms: Mapping[str, Form], x: Inputs, train: torch.Tensor, client: str) -> dict[str, Form]:
    """Return the forms of a client's samples, with normalisation and ranges of its training part; ids as they are.

    Args:
        forms: those of all clients, by column.
        x: raw samples (N, C, ...).
        train: (n,) int64, the client's training part.
        client: its id, for error messages.

    Raises:
        FlocoError: it has one training sample, or no value in one of the channels.
    """
    rule = f'data.normalize = "client": client "{client}" needs '
    if len(train) < _LEAST:
        raise FlocoError(f'{rule}{_LEAST} training samples: set data.least = {_LEAST} and data.small = "drop"')
    made = {}
    for name, column in columns(x).items():
        form = forms.get(name, Form())
        if column.dtype != torch.int64:
            try:
                found = fit_normalization([sum_channels(column, train)])
            except FlocoError as error:
                raise FlocoError(f"{rule}one value in each channel of its training part: {error}") from error
            form = replace(form, normalization=form.unscaled(found))
        made[name] = form = _without_constant(form.seen(column[train]))
        for channel, (mean, (low, high)) in enumerate(zip(form.normalization.mean, form.ranges, strict=False)):
            if 0 < high - low < _FINE * abs(mean):
                raise FlocoError(
                    f"{rule}values that float32 tells apart, and those of channel {channel} {name}".rstrip()
                    + f" are {mean:g} with differences of {high - low:g} only: subtract a constant from them first"
                )
    return made


def _without_constant(form: Form) -> Form:
    """Return a form that makes 0 of channels that never vary in a client's training part, whatever later values are.

    Their own unit is unknown: a later value minus the mean would reach the network as large as it is.
    """
    numbers = len(form.normalization.std) - form.flags
    fixed = [low == high and i < numbers for i, (low, high) in enumerate(form.ranges)]
    std = tuple(_NEVER if gone else s for gone, s in zip(fixed, form.normalization.std, strict=False))
    return replace(form, normalization=Normalization(form.normalization.mean, std))


def normalize_by_client(
    forms: Mapping[str, Form], x: Inputs, clients: Sequence[Client]
) -> tuple[Inputs, dict[str, Form], tuple[Client, ...]]:
    """Return samples (N, C, ...), normalised client by client, what their forms then are, and the clients with theirs.

    Args:
        forms: the forms of `x`, by column.
        x: raw samples (N, C, ...); those of no client become zeros.
        clients: all clients, without forms.

    Raises:
        FlocoError: a client has too few samples (see `fit_own`), or the result is too large for this machine.
    """
    _check_memory([column for column in columns(x).values() if column.dtype != torch.int64])
    clients = tuple(replace(c, forms=fit_own(forms, x, c.train, c.id)) for c in clients)
    made, scaled = dict(columns(x)), {name: forms.get(name, Form()) for name in columns(x)}
    for name, column in columns(x).items():
        if column.dtype == torch.int64:
            continue
        made[name] = torch.zeros(column.shape)
        for client in clients:
            assert client.forms is not None
            rows = torch.cat([client.train, client.test])
            made[name][rows] = client.forms[name].scale(column[rows])
        scaled[name] = replace(scaled[name], offset=(), normalization=Normalization(), missing="error", own=True)
    return like(x, made), scaled, clients


def _check_memory(given: Sequence[torch.Tensor]) -> None:
    needed, here = 4 * sum(column.numel() for column in given), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > here / 2:
        raise FlocoError(
            f'data.normalize = "client" copies all samples, {needed / 2**30:.1f} GB, which is more than half of '
            f'this machine\'s memory ({here / 2**30:.1f} GB): set "train", "fixed" or "none"'
        )


def schema_of_newcomer(federation: Federation, x: object) -> Schema:
    """Return the schema of a newcomer: the common one, or with statistics of the samples `x` it is placed with.

    These are as in the source. A server that knows no client's forms takes them as float32.
    """
    schema = federation.schema
    common = columns(schema.forms)
    if not any(form.own for form in common.values()):
        return schema
    forms = next((c.forms for c in federation.clients if c.forms), common)
    blank = {n: f if f.dtype == "int64" else replace(f, ranges=(), own=False) for n, f in forms.items()}
    raw = replace(schema, forms=like(schema.forms, blank)).samples(x, "x")
    rows = torch.arange(len(next(iter(columns(raw).values()))))
    return schema.of_client(fit_own(blank, raw, rows, "newcomer"))
