"""What users give from Python, as arrays by name: mappings, pairs, and the data sets of torch and of `datasets`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from floco.core.errors import FlocoError
from floco.core.inputs import array, columns, like
from floco.data.arrays import check_index
from floco.data.images import PICTURES, picture_column, read_columns, stacked
from floco.data.reading import Arrays

if TYPE_CHECKING:
    import pandas as pd

_TWICE = 8  # items that are read twice, to see whether they are random


def as_arrays(data: Any, pictures: np.ndarray | None = None) -> Arrays:
    """Return arrays by name from a mapping, a pair (x, y), a data set of torch, or a `datasets.Dataset`.

    Args:
        data: what a user or a user's function gives.
        pictures: those of a `datasets.Dataset`, if they are read already.

    Raises:
        FlocoError: it is none of these, or cannot be read.
    """
    if isinstance(data, tuple) and len(data) == 2:
        data = {"x": data[0], "y": data[1]}
    if isinstance(data, Mapping):
        for part in ("", "_train", "_test"):
            for name in (f"y{part}", *(() if part == "_test" else ("client",))):
                check_index(data.get(f"x{part}"), data.get(name), name)
        return data
    sized = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if sized and not hasattr(data, "features") and not isinstance(data, list | str | tuple | np.ndarray):
        return _read_items(data)
    if not sized or not hasattr(data, "features"):
        kinds = "a mapping of arrays, a pair (x, y), a DataFrame, or a data set with a length and items"
        stream = hasattr(data, "__iter__") and not hasattr(data, "__len__")
        advice = "; what can only be iterated over has no rows to split: read it into arrays" if stream else ""
        raise FlocoError(f"a source must give {kinds}, got {type(data).__name__}{advice}")
    from datasets import ClassLabel, Image

    kinds = data.features
    x = next((n for n, f in kinds.items() if isinstance(f, Image)), "x")
    classes = [n for n, f in kinds.items() if isinstance(f, ClassLabel)]
    y = next((n for n in ("label", "y") if n in kinds), None) or _only(classes)
    if x not in kinds or y not in kinds:
        raise FlocoError(
            f'a data set needs an image column or "x", and a class label or "y"; it has {", ".join(kinds)}'
        )
    if pictures is None and picture_column(data) == x:
        pictures = read_columns({"": data}, "the source").get("")
    try:
        values = np.stack([np.asarray(v) for v in data[x]]) if pictures is None else pictures
    except ValueError as error:
        raise FlocoError(f"all samples must have the same shape: {error}") from error
    others = {n: np.asarray(data[n]) for n in kinds if n not in (x, y)}
    names = {"names": np.asarray(kinds[y].names)} if isinstance(kinds[y], ClassLabel) else {}
    known = {} if pictures is None else {PICTURES: np.True_}
    return {"x": values, "y": np.asarray(data[y]), **others, **names, **known}


def _only(names: Sequence[str]) -> str:
    """Return the only name of a list of columns, "y" if it is empty."""
    if len(names) > 1:
        raise FlocoError(
            f'a data set needs one column of labels: call it "label", or keep one class label of {", ".join(names)}'
        )
    return names[0] if names else "y"


def dataset_frame(data: Any, where: str) -> pd.DataFrame:
    """Return a `datasets.Dataset` as a table, in which class labels have their names."""
    from datasets import ClassLabel

    frame: pd.DataFrame = data.with_format(None).to_pandas()
    for name, kind in data.features.items():
        if isinstance(kind, ClassLabel):
            numbers = frame[name].tolist()
            frame[name] = [None if v is None or v != v or v < 0 else kind.names[int(v)] for v in numbers]
    return frame


def _read_items(data: Any) -> Arrays:
    """Return the arrays of a map-style data set of torch, whose items are pairs (x, y); each is read once.

    Raises:
        FlocoError: other items, of several shapes, or different ones each time they are read.
    """
    if not len(data):
        raise FlocoError("the data set has no items")
    items = [_item(data, i) for i in range(len(data))]
    for i in range(min(_TWICE, len(items))):
        if not all(_equal(a, b) for a, b in zip(items[i], _item(data, i), strict=True)):
            raise FlocoError(
                f"item {i} of the data set differs each time it is read: floco reads it once, so that random "
                "transforms would always give the same; leave them out here, they belong in data.augment"
            )
    x, y = ([item[part] for item in items] for part in (0, 1))
    known = {PICTURES: np.True_} if hasattr(x[0], "getbands") else {}
    masks = [np.asarray(v) if hasattr(v, "getbands") else v for v in y]  # of a palette the numbers, not the colours
    return {"x": _stack_columns(x), "y": _stack(masks, "y"), **known}


def _item(data: Any, i: int) -> tuple[Any, Any]:
    try:
        item = data[i]
    except Exception as error:
        raise FlocoError(f"item {i} of the data set cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(item, tuple | list) or len(item) != 2:
        got = f"{type(item).__name__} of {len(item)}" if isinstance(item, tuple | list) else type(item).__name__
        raise FlocoError(f"an item of a data set must be a pair (x, y), and item {i} is a {got}: write arrays instead")
    return _copied(item[0]), _copied(item[1])


def _copied(value: Any) -> Any:
    """Return a copy of an item's part, whose data set may use its memory again; tensors as arrays."""
    if isinstance(value, dict):
        return {name: _copied(v) for name, v in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_copied, value))
    if isinstance(value, torch.Tensor):
        return array(value, "an item").copy()
    return value.copy() if hasattr(value, "copy") else value  # arrays and pictures


def _stack_columns(values: Sequence[Any]) -> Any:
    """Return the samples of items as one array, or as a tuple or dict of them if each item has several inputs."""
    first = values[0]
    if not isinstance(first, dict | tuple):
        return _stack(values, "x")
    named = [columns(v) if type(v) is type(first) else {} for v in values]
    if any(v.keys() != named[0].keys() for v in named):
        raise FlocoError(f"all items of a data set must have the same inputs, {', '.join(named[0])}")
    return like(first, {name: _stack([v[name] for v in named], f"x {name}") for name in named[0]})


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict | tuple):
        one, other = columns(a), columns(b)
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    first, second = np.asarray(a), np.asarray(b)
    return first.shape == second.shape and bool(((first == second) | ((first != first) & (second != second))).all())


def _stack(values: Sequence[Any], what: str) -> np.ndarray:
    """Return values as one array, and pictures in a mode that holds all of them."""
    from PIL.Image import Image

    if all(isinstance(v, Image) for v in values):
        return stacked([(f"item {i}", v.copy) for i, v in enumerate(values)], "the data set")
    found = [array(v, f"the data set: {what} of item {i}") for i, v in enumerate(values)]
    if shapes := sorted({v.shape for v in found} - {found[0].shape}):
        raise FlocoError(f"all items of a data set must have {what} of one shape, got {found[0].shape} and {shapes[0]}")
    if kinds := {v.dtype.kind for v in found} - {found[0].dtype.kind}:
        raise FlocoError(f"all items of a data set must have {what} of one type, got {found[0].dtype.kind} and {kinds}")
    return np.stack(found)
