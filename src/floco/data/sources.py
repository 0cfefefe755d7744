"""Samples from bundled data, files, folders, the Hugging Face hub, or a function of the user's."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from floco.core.errors import FlocoError, nearest, warn
from floco.core.objects import load_object
from floco.core.task import Task
from floco.data.image_folder import read_folder
from floco.data.images import picture_column, read_columns
from floco.data.mapped import read_members
from floco.data.reading import Arrays, read_samples
from floco.data.samples import Samples
from floco.tasks import TASKS

_KINDS, _CHANNELS = ("auto", "images", "features", "ids"), ("auto", "first", "last")


def load(
    source: str | Arrays | tuple[Any, Any],
    *,
    kind: str = "auto",
    labels: Sequence[str] = (),
    channels: str = "auto",
    task: Task | str | None = None,
) -> Samples:
    """Return the samples of a source: `digits`, `npz:PATH`, `idx:DIR`, `folder:DIR`, `hub:NAME`, or `module:function`.

    Args:
        source: name of the source, or the samples themselves: a pair (x, y), a mapping of arrays named as in an npz
            file, or a `datasets.Dataset`. A user's function returns one of these.
        kind: "images" (channels last), "features", "ids" (whole numbers such as tokens, never scaled), or "auto":
            images are uint8 arrays with 3 or 4 dimensions, and other numbers with 4 dimensions of which the last is
            1, 3 or 4; ids are whole numbers of the task tokens, or among several inputs.
        labels: all labels as text, in the order of the classes (empty: those that occur, sorted).
        channels: position of the channels, or features, each of which has its own mean and deviation: "first", (F, T),
            or "last", (T, F). The network gets sequences as they are, and images channels first. "auto": first, except
            for images; raises for arrays that look like (N, T, F).
        task: what is learned, or its word, e.g. "regression" (None: classification).

    Raises:
        FlocoError: no such source, or one that cannot be read.

    >>> load("digits").x.shape
    torch.Size([1797, 1, 8, 8])
    """
    for key, value, choices in (("kind", kind, _KINDS), ("channels", channels, _CHANNELS)):
        if value not in choices:
            raise FlocoError(f"data.{key} must be one of {', '.join(choices)}, got {value!r}")
    if isinstance(task, str):
        if task not in TASKS:
            raise FlocoError(f"task must be one of {', '.join(TASKS)}, or a Task, got {task!r}{nearest(task, TASKS)}")
        task = TASKS[task]()
    if not isinstance(source, str):
        return read_samples(_arrays(source), "the source", kind=kind, labels=labels, channels=channels, task=task)
    scheme, _, rest = source.partition(":")
    if scheme == "folder" and channels != "auto":
        raise FlocoError(
            f"data.channels is for arrays, not for pictures in a folder: leave it at auto, got {channels!r}"
        )
    if scheme in _READERS and (rest or scheme == "digits"):
        arrays = _READERS[scheme](rest)
        if scheme == "folder" and not labels:  # a folder's name never marks a missing label
            labels = sorted(set(np.asarray(arrays.get("y_train", arrays.get("y"))).tolist()))
        return read_samples(arrays, source, kind=kind, labels=labels, channels=channels, task=task)
    if not rest:
        forms = "digits, npz:PATH, idx:DIR, folder:DIR, hub:NAME or module:function"
        raise FlocoError(f"data.source must be {forms}, got {source!r}{nearest(scheme, _READERS)}")
    try:
        given = load_object(source, "data.source")()
    except FlocoError:
        raise
    except Exception as error:
        raise FlocoError(f"data.source: {source} raised {type(error).__name__}: {error}") from error
    return read_samples(_arrays(given), source, kind=kind, labels=labels, channels=channels, task=task)


def _digits(_: str) -> Arrays:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {"x": digits.images.astype(np.uint8), "y": digits.target}


def read_npz(path: str, what: str = "data.source") -> Arrays:
    """Return the arrays of an npz file, large ones memory-mapped; `what` names it in error messages."""
    if not Path(path).is_file():
        raise FlocoError(f"{what}: there is no file {path}")
    try:
        return read_members(Path(path))
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


def _hub(name: str) -> Arrays:
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
    pictures = read_columns(used, f"hub:{name}")  # both parts together, so that they get the same mode
    train, *test = (_arrays(data, pictures.get(part)) for part, data in used.items())
    if not test:
        return train
    named = {(f"{k}_train" if k in ("x", "y") else k): v for k, v in train.items()}
    return {**named, "x_test": test[0]["x"], "y_test": test[0]["y"]}


_Reader = Callable[[str], Arrays]
_READERS: dict[str, _Reader] = {"digits": _digits, "npz": read_npz, "idx": _idx, "folder": read_folder, "hub": _hub}


def _arrays(data: Any, pictures: np.ndarray | None = None) -> Arrays:
    """Return arrays by name from a mapping, a pair (x, y) or a `datasets.Dataset`, whose `pictures` may be given."""
    if isinstance(data, Mapping):
        return data
    if isinstance(data, tuple) and len(data) == 2:
        return {"x": data[0], "y": data[1]}
    if not hasattr(data, "features"):
        raise FlocoError(
            f"a source must give a mapping of arrays, a pair (x, y) or a datasets.Dataset, got {type(data).__name__}"
        )
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
    return {"x": values, "y": np.asarray(data[y]), **others, **names}


def _only(names: Sequence[str]) -> str:
    """Return the only name of a list of columns, "y" if it is empty."""
    if len(names) > 1:
        raise FlocoError(
            f'a data set needs one column of labels: call it "label", or keep one class label of {", ".join(names)}'
        )
    return names[0] if names else "y"
