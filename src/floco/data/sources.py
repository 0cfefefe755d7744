"""Samples from embedded data, files, folders, a hub, or the user's own function."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from floco.core.errors import FlocoError, nearest, warn
from floco.core.objects import load_object
from floco.data.images import picture_column, read_columns, read_folder
from floco.data.samples import Arrays, Samples, checked

_KINDS, _CHANNELS = ("auto", "images", "features"), ("auto", "first", "last")


def load(source: str | Arrays | tuple[Any, Any], *, kind: str = "auto", labels: Sequence[str] = (), channels: str = "auto") -> Samples:
    """Return the samples of a source: `digits`, `npz:PATH`, `idx:DIR`, `folder:DIR`, `hub:NAME`, or `module:function`.

    Args:
        source: where the samples come from, or the samples themselves: a pair (x, y), arrays as an npz file holds them,
            or a `datasets.Dataset`. A function returns one of these.
        kind: "images" (channels last), "features", or "auto": uint8 with 3 or 4 dimensions, and other numbers with 4 of
            which the last is 1, 3 or 4, are images.
        labels: all labels as text, in the order of the classes (none: those that occur, sorted).
        channels: where a sample has its channels, or features, each of which has a mean and deviation of its own: "first", (F, T),
            or "last", (T, F). Sequences stay as they are for the network; images come to it with their channels first. "auto":
            first, except for images; an array that looks like (N, T, F) is refused.

    Raises:
        FlocoError: no such source, or one that cannot be read.

    >>> load("digits").x.shape
    torch.Size([1797, 1, 8, 8])
    """
    for key, value, choices in (("kind", kind, _KINDS), ("channels", channels, _CHANNELS)):
        if value not in choices:
            raise FlocoError(f"data.{key} must be one of {', '.join(choices)}, got {value!r}")
    if not isinstance(source, str):
        return checked(_arrays(source), "the source", kind, labels, channels)
    scheme, _, rest = source.partition(":")
    readers: dict[str, Callable[[str], Arrays]] = {"digits": _digits, "npz": read_npz, "idx": _idx, "folder": read_folder, "hub": _hub}
    if scheme == "folder" and channels != "auto":
        raise FlocoError(f"data.channels says where arrays have their channels, and pictures of a folder are read channels last: leave it at auto, got {channels!r}")
    if scheme in readers and (rest or scheme == "digits"):
        arrays = readers[scheme](rest)
        if scheme == "folder" and not labels:  # no name of a folder is a missing value
            labels = sorted(set(np.asarray(arrays.get("y_train", arrays.get("y"))).tolist()))
        return checked(arrays, source, kind, labels, channels)
    if not rest:
        raise FlocoError(f"data.source must be digits, npz:PATH, idx:DIR, folder:DIR, hub:NAME or module:function, got {source!r}{nearest(scheme, readers)}")
    try:
        given = load_object(source, "data.source")()
    except FlocoError:
        raise
    except Exception as error:
        raise FlocoError(f"data.source: {source} raised {type(error).__name__}: {error}") from error
    return checked(_arrays(given), source, kind, labels, channels)


def _digits(_: str) -> Arrays:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {"x": digits.images.astype(np.uint8), "y": digits.target}


def read_npz(path: str, what: str = "data.source") -> Arrays:
    """Return the arrays of an npz file; `what` is what an error calls it."""
    if not Path(path).is_file():
        raise FlocoError(f"{what}: there is no file {path}")
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:
        raise FlocoError(f"{what}: {path} cannot be read as npz: {error}; it must hold plain arrays") from error


def _idx(folder: str) -> Arrays:
    """Read the four files of MNIST's format, gzipped or not."""
    files = {"x_train": "train-images-idx3-ubyte", "y_train": "train-labels-idx1-ubyte", "x_test": "t10k-images-idx3-ubyte", "y_test": "t10k-labels-idx1-ubyte"}
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
        raise FlocoError(f"hub:{name} must have a split train, and has {', '.join(parts)}: load it in a function of your own, module:function, that returns the split to train on")
    if others := [part for part in parts if part not in ("train", "test")]:
        warn(f"hub:{name}: train and test are read, and further splits are left out: {', '.join(others)}")
    used = {part: parts[part] for part in ("train", "test") if part in parts}
    pictures = read_columns(used, f"hub:{name}")  # of both parts together, so that they have one form
    train, *test = (_arrays(data, pictures.get(part)) for part, data in used.items())
    if not test:
        return train
    return {("x_train" if k == "x" else "y_train" if k == "y" else k): v for k, v in train.items()} | {"x_test": test[0]["x"], "y_test": test[0]["y"]}


def _arrays(data: Any, pictures: np.ndarray | None = None) -> Arrays:
    """Return arrays as an npz file holds them, from a mapping, a pair (x, y) or a `datasets.Dataset`, whose pictures may have been read."""
    if isinstance(data, Mapping):
        return data
    if isinstance(data, tuple) and len(data) == 2:
        return {"x": data[0], "y": data[1]}
    if not hasattr(data, "features"):
        raise FlocoError(f"a source must give a mapping of arrays, a pair (x, y) or a datasets.Dataset, got {type(data).__name__}")
    from datasets import ClassLabel, Image

    kinds = data.features
    x = next((n for n, f in kinds.items() if isinstance(f, Image)), "x")
    y = next((n for n in ("label", "y") if n in kinds), None) or _only([n for n, f in kinds.items() if isinstance(f, ClassLabel)])
    if x not in kinds or y not in kinds:
        raise FlocoError(f'a data set needs an image column or "x", and a class label or "y"; it has {", ".join(kinds)}')
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
    """Return the name of the column of class labels, "y" if there is none."""
    if len(names) > 1:
        raise FlocoError(f'a data set needs one column of labels: call it "label", or keep one class label of {", ".join(names)}')
    return names[0] if names else "y"
