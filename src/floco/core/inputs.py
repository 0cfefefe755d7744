"""A batch's inputs: one tensor, a tuple (positional arguments), or a dict of tensors (keyword arguments)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from floco.core.errors import FlocoError

Inputs = torch.Tensor | tuple[torch.Tensor, ...] | dict[str, torch.Tensor]
"""Inputs of n samples: every tensor is (n, ...)."""
T = TypeVar("T")


def array(values: Any, where: str) -> np.ndarray:
    """Return values, or a tensor anywhere and of any type, as an array.

    Raises:
        FlocoError: ragged values, or a masked array with masked values.
    """
    if np.ma.isMaskedArray(values) and (hidden := int(np.ma.getmaskarray(values).sum())):
        raise FlocoError(f"{where}: {hidden} values are masked; leave these samples out, or fill the values in")
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values  # NumPy has no such type
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise FlocoError(f"{where} is no array: {error}; all samples must have the same shape") from error


def headings(values: Any) -> tuple[str, ...] | None:
    """Return the names of a table's columns; None if it has none, or is no table."""
    names = tuple(getattr(values, "columns", ()))
    return names if names and all(isinstance(n, str) for n in names) else None


def by_name(values: Any, names: Sequence[str], where: str) -> Any:
    """Return the columns `names` of a table, in this order; what is no table, or has no names, as it is.

    Raises:
        FlocoError: one of several names is no column.
    """
    given = headings(values)
    if given is None or len(names) < 2 or given == tuple(names):
        return values
    if not set(names) <= set(given):
        raise FlocoError(
            f"{where} must have the columns {', '.join(names)}, as the training data; got {', '.join(given)}"
        )
    return values[list(names)]


def columns(inputs: Any) -> dict[str, Any]:
    """Return the columns of inputs by name: `""` for one tensor, the position for a tuple."""
    if isinstance(inputs, dict):
        return dict(inputs)
    return {str(i): column for i, column in enumerate(inputs)} if isinstance(inputs, tuple) else {"": inputs}


def like(inputs: Any, made: dict[str, T]) -> T | tuple[T, ...] | dict[str, T]:
    """Return columns in the form of `inputs`: the inverse of `columns`."""
    if isinstance(inputs, dict):
        return made
    return tuple(made.values()) if isinstance(inputs, tuple) else made[""]


def each(function: Callable[[torch.Tensor], torch.Tensor], inputs: Inputs) -> Inputs:
    """Return inputs with a function applied to every column."""
    return like(inputs, {name: function(column) for name, column in columns(inputs).items()})


def rows(inputs: Inputs, chosen: Any) -> Inputs:
    """Return the samples `chosen` (indices, a slice) of inputs."""
    return each(lambda column: column[chosen], inputs)


def count(inputs: Inputs) -> int:
    """Return the number of samples."""
    return len(next(iter(columns(inputs).values())))


def samples_size(inputs: Inputs, number: int) -> int:
    """Return the bytes that a number of samples have as float32 network inputs."""
    return sum(4 * number * math.prod(column.shape[1:]) for column in columns(inputs).values())


def chunks(inputs: Inputs, size: int) -> Iterator[Inputs]:
    """Yield the samples in order, at most `size` at a time."""
    for start in range(0, count(inputs), size):
        yield rows(inputs, slice(start, start + size))


def arguments(inputs: Inputs) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Return the positional and the keyword arguments with which a network takes inputs."""
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs, {}) if isinstance(inputs, tuple) else ((inputs,), {})


def shapes(inputs: Inputs, first: int = 0) -> str:
    """Return the shapes of inputs, from dimension `first` on, in words."""
    return ", ".join(f"{name} {tuple(c.shape[first:])}".strip() for name, c in columns(inputs).items())
