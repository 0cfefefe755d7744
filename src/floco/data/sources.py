"""Samples from bundled data, files, folders, the Hugging Face hub, or a function of the user's."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from floco.core.errors import FlocoError, nearest, warn
from floco.core.objects import check_call, load_object
from floco.core.task import Task
from floco.data.given import as_arrays
from floco.data.image_folder import read_folder
from floco.data.images import PICTURES, read_columns
from floco.data.mapped import read_members
from floco.data.reading import Arrays, read_samples
from floco.data.samples import Samples
from floco.data.table_files import SUFFIXES, TABLES, read_frame
from floco.data.table_reading import tabulate
from floco.data.table_roles import CATEGORIES, MISSING, Roles, name_of
from floco.tasks import TASKS

_KINDS, _CHANNELS = ("auto", "images", "features", "ids"), ("auto", "first", "last")
_SCANNERS = 40  # clients of digits:rotated


def load(
    source: Any,
    *,
    kind: str = "auto",
    labels: Sequence[str] = (),
    channels: str = "auto",
    task: Task | str | None = None,
    target: str | Sequence[str] = (),
    client: Any = None,
    features: str | Sequence[str] = (),
    order: str | None = None,
    categories: str = "one-hot",
    levels: str | Sequence[str] = (),
    missing: str = "error",
    group: str | None = None,
    leave_out: str | Sequence[str] = (),
) -> Samples:
    """Return the samples of a source, e.g. `digits`, `npz:PATH`, `csv:PATH`, `folder:DIR`, or `module:function`.

    Args:
        source: name of the source (see the documentation, "Own data"), or the samples themselves: a pair (x, y), a
            mapping of arrays named as in an npz file, a DataFrame, a `datasets.Dataset`, or a data set of torch with
            items (x, y). A user's function returns one of these.
        kind: "images" (channels last), "features", "ids" (whole numbers such as tokens, never scaled), or "auto":
            images are uint8 arrays with 3 or 4 dimensions, and other numbers with 4 dimensions of which the last is
            1, 3 or 4; ids are whole numbers of the task tokens, or among several inputs.
        labels: all labels as text, in the order of the classes (empty: those that occur, sorted).
        channels: position of the channels, or features, each of which has its own mean and deviation: "first", (F, T),
            or "last", (T, F). The network gets sequences as they are, and images channels first. "auto": first, except
            for images; raises for arrays that look like (N, T, F) or (N, H, H).
        task: what is learned, or its word, e.g. "regression" (None: classification).
        target: of a table, the column of the targets, or several.
        client: name of the column of client ids (None: "client", if there is one), or the ids themselves, (N,).
            Of what is given beside a table and is one of its columns, that column is no feature.
        features: of a table, the columns that are features (empty: all others).
        order: the column by which `split` orders the samples; it is no feature unless it is named as one.
        categories: of a table, how text becomes inputs: "one-hot" channels of 0 and 1, or "ids" (N,) beside "numbers".
        levels: categories such as "sex=f", of columns in which not all that exist occur, or which look like numbers.
        group: a column by whose values, such as sex or device, metrics are also shown; no feature unless named as one.
        leave_out: of a table, columns that are neither features nor anything else.
        missing: rows without a value are an "error", left out ("drop"), or filled with the training rows' "mean".

    Raises:
        FlocoError: no such source, or one that cannot be read.

    >>> load("digits").x.shape
    torch.Size([1797, 1, 8, 8])
    """
    task, labels = _task(task), _names(labels)
    target, order = name_of(target, source, "target"), name_of(order, source, "order")
    options = {"kind": kind, "channels": channels, "categories": categories, "missing": missing}
    choices = {"kind": _KINDS, "channels": _CHANNELS, "categories": CATEGORIES, "missing": MISSING}
    for key, value in options.items():
        if value not in choices[key]:
            raise FlocoError(f"data.{key} must be one of {', '.join(choices[key])}, got {value!r}")
    given: dict[str, Any] = {"order": order, "categories": categories, "levels": _names(levels), "missing": missing}
    given |= {"group": group, "leave_out": _names(leave_out)}
    roles = Roles(_names(target), features=_names(features), **given)
    where = source if isinstance(source, str) else "the source"
    data = _open(source, roles, channels) if isinstance(source, str) else source
    if where.startswith("folder:") and not labels:  # a folder's name never marks a missing label
        labels = sorted(set(np.asarray(data.get("y_train", data.get("y"))).tolist()))
    arrays, table = tabulate(data, roles, client, where, task)
    if table is not None and kind not in ("auto", "features"):
        raise FlocoError(f"data.kind is for arrays, and {where} is a table: leave it at auto, got {kind!r}")
    if arrays.get(PICTURES) is np.True_:  # which dimension holds the channels is no question
        kind = "images" if kind == "auto" else kind
        pictures = arrays["x_train" if "x_train" in arrays else "x"]
        channels = "last" if kind == "images" and pictures.ndim == 4 else channels
    more: dict[str, Any] = {"kind": kind, "labels": labels, "channels": channels, "task": task, "table": table}
    return read_samples(arrays, where, **more, order=order, group=group, missing=missing)


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(filter(None, [given])) if isinstance(given, str) else tuple(map(str, given))


def _task(task: Task | str | None) -> Task | None:
    if not isinstance(task, str):
        return task
    if task not in TASKS:
        raise FlocoError(f"task must be one of {', '.join(TASKS)}, or a Task, got {task!r}{nearest(task, TASKS)}")
    return TASKS[task]()


def _open(source: str, roles: Roles, channels: str) -> Any:
    """Return what a source holds: arrays, a table, or what the user's function gives."""
    scheme, _, rest = source.partition(":")
    if scheme == "folder" and channels != "auto":
        raise FlocoError(
            f"data.channels is for arrays, not for pictures in a folder: leave it at auto, got {channels!r}"
        )
    if scheme in TABLES and rest:
        return read_frame(rest, scheme)
    if scheme == "hub" and rest:
        return _hub(rest, roles)
    if scheme in _READERS and (rest or scheme == "digits"):
        return _READERS[scheme](rest)
    if not rest:
        forms = "digits, npz:PATH, csv:PATH, parquet:PATH, json:PATH, idx:DIR, folder:DIR, hub:NAME or module:function"
        known = [*_READERS, *TABLES, "hub"]
        if (kind := {**SUFFIXES, ".npz": "npz"}.get(Path(source).suffix.lower())) is not None:
            raise FlocoError(f"data.source must say what a file is: {kind}:{source}")
        raise FlocoError(f"data.source must be {forms}, got {source!r}{nearest(scheme, known)}")
    check_call(function := load_object(source, "data.source"), source, "data.source", "no arguments")
    try:
        return function()
    except FlocoError:
        raise
    except Exception as error:
        raise FlocoError(f"data.source: {source} raised {type(error).__name__}: {error}") from error


def _digits(variant: str) -> Arrays:
    """Return scikit-learn's digits; `rotated`: 44 of them for each of 40 clients in four groups of scanners.

    Each group's pictures are rotated by another multiple of 90 degrees, the column `rotation`, in degrees.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = digits.images.astype(np.uint8), digits.target
    if not variant:
        return {"x": x, "y": y}
    if variant != "rotated":
        raise FlocoError(f"data.source must be digits or digits:rotated, got {f'digits:{variant}'!r}")
    client = np.repeat(np.arange(_SCANNERS), len(x) // _SCANNERS)
    chosen = np.random.default_rng(0).permutation(len(x))[: len(client)]
    turned = [np.rot90(picture, int(k % 4)) for picture, k in zip(x[chosen], client, strict=True)]
    return {"x": np.stack(turned), "y": y[chosen], "client": client, "rotation": 90 * (client % 4)}


def read_npz(path: str, what: str = "data.source") -> Arrays:
    """Return the arrays of an npz file, large ones memory-mapped; `what` names it in error messages."""
    if not Path(path).is_file():
        raise FlocoError(f"{what}: there is no file {path}")
    if not zipfile.is_zipfile(path):
        ends = ", ".join(SUFFIXES)
        raise FlocoError(
            f"{what}: {path} cannot be read as npz: it is no such file, or not all of one; tables end in {ends}, and "
            "arrays are written with numpy.savez(path, x=..., y=...)"
        )
    try:
        return read_members(Path(path))
    except FlocoError:
        raise
    except Exception as error:
        raise FlocoError(f"{what}: {path} cannot be read as npz: {error}; it must hold plain arrays") from error


def _idx(folder: str) -> Arrays:
    """Read the four files of a data set in MNIST's format, gzipped or not."""
    parts, kinds = {"train": "train", "test": "t10k"}, {"x": "images-idx3", "y": "labels-idx1"}
    files = {f"{k}_{p}": f"{part}-{kind}-ubyte" for p, part in parts.items() for k, kind in kinds.items()}
    return {key: _idx_array(Path(folder), name) for key, name in files.items()}


def _idx_array(folder: Path, name: str) -> np.ndarray:
    plain, packed = folder / name, folder / f"{name}.gz"
    if not plain.is_file() and not packed.is_file():
        raise FlocoError(f"data.source: idx needs {name} or {name}.gz in {folder}, and neither is there")
    try:
        raw = plain.read_bytes() if plain.is_file() else gzip.decompress(packed.read_bytes())
        shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3]))
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise FlocoError(f"data.source: {folder / name} cannot be read as idx: {error}") from error


def _hub(name: str, roles: Roles) -> Any:
    from datasets import load_dataset

    try:
        parts = load_dataset(name)
    except Exception as error:
        raise FlocoError(f"data.source: {name} cannot be loaded by the datasets library: {error}") from error
    if "train" not in parts:
        raise FlocoError(
            f"hub:{name} must have a split train, and has {', '.join(parts)}: "
            "load it in a function of your own, module:function, that returns the split to train on"
        )
    if others := [part for part in parts if part not in ("train", "test")]:
        warn(f"hub:{name}: train and test are read, and further splits are left out: {', '.join(others)}")
    used = {part: parts[part] for part in ("train", "test") if part in parts}
    if roles.target:
        if len(used) > 1:
            warn(f"hub:{name}: of tables, only the split train is read")
        return used["train"]
    pictures = read_columns(used, f"hub:{name}")  # both parts together, so that they get the same mode
    train, *test = (as_arrays(data, pictures.get(part)) for part, data in used.items())
    if not test:
        return train
    named = {(f"{k}_train" if k in ("x", "y") else k): v for k, v in train.items()}
    return {**named, "x_test": test[0]["x"], "y_test": test[0]["y"]}


_Reader = Callable[[str], Arrays]
_READERS: dict[str, _Reader] = {"digits": _digits, "npz": read_npz, "idx": _idx, "folder": read_folder}
