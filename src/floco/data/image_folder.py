"""A folder of pictures as arrays: which files are pictures, and which folders are classes or splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from floco.core.errors import FlocoError, some, warn
from floco.data.images import PICTURES, stacked

_TRAIN, _TEST = ("train", "training"), ("test", "testing")
_SPLITS = {*_TRAIN, *_TEST, "val", "valid", "validation", "dev", "eval"}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_OF_THE_SYSTEM = {"thumbs.db", "desktop.ini", "__macosx"}
_NOT_DECODED = {"BUFR", "GRIB", "HDF5", "MPEG"}  # formats that Pillow recognises but cannot decode


def read_folder(folder: str) -> dict[str, Any]:
    """Return the pictures below a folder, labelled by the names of their class folders.

    The layout is CLASS/.../picture or, if all top folders have names of splits, train/CLASS/.../picture and
    test/CLASS/.../picture. Symbolic links to folders are followed.

    Returns:
        `x` and `y`, or `x_train`, `y_train`, `x_test` and `y_test`, ordered by class and file name: pictures as
        `images.stacked` returns them, and class names (N,).

    Raises:
        FlocoError: no such folder, no pictures, pictures outside of a class, or invalid splits; see also `stacked`.
    """
    from PIL import Image

    root, where = Path(folder), f"folder:{folder}"
    if not root.is_dir():
        raise FlocoError(f"data.source: there is no folder {folder}")
    files, folders = _below(root, where)
    tops = sorted({f.parts[0] for f in files})
    level = int({t.lower() for t in tops} <= _SPLITS)  # depth of the class folders
    if level:
        _check_splits(files, tops, where)
        files.sort(key=lambda f: f.parts[0].lower() in _TEST)
    _warn_of_layout(files, folders, tops, level, where)
    y = np.asarray([f.parts[level] for f in files])
    n = sum(f.parts[0].lower() not in _TEST for f in files) if level else len(files)
    if strange := sorted(set(y[n:].tolist()) - set(y[:n].tolist())):
        raise FlocoError(
            f"{where}: classes of the test part must be among those of the training part; "
            f"{some(strange)} of {files[n].parts[0]} are not in {files[0].parts[0]}"
        )
    x = stacked(((f.as_posix(), partial(Image.open, root / f)) for f in files), where)
    one = {"x": x, "y": y}
    two = {"x_train": x[:n], "y_train": y[:n], "x_test": x[n:], "y_test": y[n:]}
    return {**(two if n < len(y) else one), PICTURES: np.True_}


def _below(root: Path, where: str) -> tuple[list[Path], list[Path]]:
    """Return the pictures and the folders below a folder, relative to it; warn of other files."""
    from PIL import Image

    try:
        found = [(entry.relative_to(root), is_folder) for entry, is_folder in _walk(root, (root.resolve(),))]
    except OSError as error:
        raise FlocoError(f"{where} cannot be read: {error}") from error
    files = [f for f, is_folder in found if not is_folder]
    if tables := [f.name for f in files if len(f.parts) == 1 and f.name.lower() in _METADATA]:
        raise FlocoError(
            f"{where}: labels must be the names of folders, and {tables[0]} is not read: move it away, "
            "or read it in a function of your own, module:function"
        )
    endings = {e for e, f in Image.registered_extensions().items() if f in {*Image.OPEN, "MPO"} - _NOT_DECODED}
    pictures, others = ([f for f in files if (f.suffix.lower() in endings) is wanted] for wanted in (True, False))
    if not pictures:
        besides = f" among {len(others)} files: {some(others)}" if others else ""
        raise FlocoError(
            f"{where} must hold pictures, CLASS/picture.png or train/CLASS/picture.png, and there is none{besides}"
        )
    if loose := [f for f in pictures if len(f.parts) == 1]:
        raise FlocoError(
            f"{where}: pictures must be in a folder that is named after their class; {some(loose)} are in none: "
            "move them into one, or away"
        )
    if others:
        warn(
            f"{where}: {len(others)} of {len(files)} files are left out, because they do not have the ending "
            f"of a picture format: {some(others)}"
        )
    return pictures, [f for f, is_folder in found if is_folder]


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[tuple[Path, bool]]:
    """Yield each entry below a folder, sorted, and whether it is a folder; hidden files and link cycles are skipped."""
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith(".") and entry.name.lower() not in _OF_THE_SYSTEM:
            is_folder = entry.is_dir()
            yield entry, is_folder
            if is_folder and (real := entry.resolve()) not in above:
                yield from _walk(entry, (*above, real))


def _check_splits(files: Sequence[Path], tops: Sequence[str], where: str) -> None:
    """Raise if there is no training split, a duplicate or unknown split, or a picture outside of a class folder."""
    found = f"{where}: all folders have names of splits ({', '.join(tops)})"
    train, test = ([t for t in tops if t.lower() in names] for names in (_TRAIN, _TEST))
    if not train:
        raise FlocoError(
            f"{found}, and train is not among them: rename one to train, or all of them if they are classes"
        )
    if others := ", ".join(t for t in tops if t not in (*train, *test)):
        raise FlocoError(
            f"{found}, of which train and test are read, and not {others}: rename it, put its pictures into train or "
            "test, or move it away"
        )
    if twice := next((same for same in (train, test) if len(same) > 1), None):
        raise FlocoError(f"{where}: there must be one folder for each split, got {' and '.join(twice)}: merge them")
    if loose := [f for f in files if len(f.parts) == 2]:
        raise FlocoError(
            f"{found}, so pictures must be in SPLIT/CLASS, and {some(loose)} are in no class: move them into one; "
            "if the folders are classes, rename one"
        )


def _warn_of_layout(
    files: Sequence[Path], folders: Sequence[Path], tops: Sequence[str], level: int, where: str
) -> None:
    """Warn of class or split folders without pictures, and of class folders that have the name of a split."""
    kinds = sorted({f.parts[level] for f in files})
    full = {p for f in files for p in f.parents}
    if empty := [d for d in folders if len(d.parts) <= level + 1 and d not in full]:
        warn(f"{where}: folders that hold no picture are left out: {some(empty)}")
    below = {t: {f.parts[level + 1] for f in files if f.parts[level] == t and len(f.parts) > level + 2} for t in kinds}
    if len(kinds) > 1 and len(common := set.intersection(*below.values())) > 1:
        warn(
            f"{where}: the classes are {some(kinds)}, and each of them has folders {some(sorted(common))}: if those "
            "are the classes, and the outer ones sites, read them by a function of your own (module:function)"
        )
    flat = {f.parts[0] for f in files if len(f.parts) == 2}
    if not level and (suspects := [t for t in tops if t.lower() in _SPLITS and t not in flat]):
        others = some(t for t in tops if t.lower() not in _SPLITS)
        warn(
            f"{where}: {some(suspects)} is read as a class and not as a split, because there are folders beside it "
            f"that are no split: {others}"
        )
