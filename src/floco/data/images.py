"""Pictures below a folder, or in a column of a data set, as one array."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from floco.core.errors import FlocoError, warn

if TYPE_CHECKING:
    from PIL.Image import Image

_TRAIN, _TEST = ("train", "training"), ("test", "testing")
_SPLITS = {*_TRAIN, *_TEST, "val", "valid", "validation", "dev", "eval"}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_OF_THE_SYSTEM = {"thumbs.db", "desktop.ini", "__macosx"}
_NOT_DECODED = {"BUFR", "GRIB", "HDF5", "MPEG"}  # Pillow knows these files by their names, and cannot read them
_MODES = {"L": ("grey", 1), "RGB": ("coloured", 3), "RGBA": ("partly transparent", 4), "I": ("16- or 32-bit", 1), "F": ("floating-point", 1)}
"""What a picture of each mode is called, and its channels; each mode before "I" holds what those before it hold."""


class _Unreadable(FlocoError):
    """A picture that Pillow cannot decode."""


@dataclass(frozen=True)
class _Picture:
    name: str
    mode: str
    """One of `_MODES`."""
    pixels: np.ndarray
    """(H, W) or (H, W, C)."""
    size: tuple[int, int]
    """Width and height."""
    shortened: bool
    """Whether the file has 16 bits for each of several channels, of which Pillow reads 8."""


def read_folder(folder: str) -> dict[str, np.ndarray]:
    """Return the pictures below a folder, and the names of the folders that they are in as their labels.

    The layout is CLASS/.../picture, whatever the classes are called, or train/CLASS/.../picture and test/CLASS/.../picture. It is
    the second one only if every folder has the name of a split. Linked folders are followed.

    Returns:
        `x` and `y`, or `x_train`, `y_train`, `x_test` and `y_test`, by class and file name: samples as `stacked` gives them, and
        class names (N,).

    Raises:
        FlocoError: no such folder, no pictures, pictures outside of a class, splits that cannot be used, or see `stacked`.
    """
    from PIL import Image

    root, where = Path(folder), f"folder:{folder}"
    if not root.is_dir():
        raise FlocoError(f"data.source: there is no folder {folder}")
    files, folders = _below(root, where)
    tops = sorted({f.parts[0] for f in files})
    level = int({t.lower() for t in tops} <= _SPLITS)  # of the classes
    if level:
        _check_splits(files, tops, where)
        files.sort(key=lambda f: f.parts[0].lower() in _TEST)
    _warn_of_layout(files, folders, tops, level, where)
    y = np.asarray([f.parts[level] for f in files])
    n = sum(f.parts[0].lower() not in _TEST for f in files) if level else len(files)
    if strange := sorted(set(y[n:].tolist()) - set(y[:n].tolist())):
        raise FlocoError(f"{where}: classes of the test part must be among those of the training part; {_few(strange)} of {files[n].parts[0]} are not in {files[0].parts[0]}")
    x = stacked(((f.as_posix(), partial(Image.open, root / f)) for f in files), where)
    return {"x_train": x[:n], "y_train": y[:n], "x_test": x[n:], "y_test": y[n:]} if n < len(files) else {"x": x, "y": y}


def read_columns(parts: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
    """Return the pictures of each part of a data set, a `datasets.Dataset`, by the part's name ("" if there is only one).

    A part without pictures is left out. An error names a picture by its number in its part, from 0; see `stacked`.
    """
    columns = {p: (data, c) for p, data in parts.items() if (c := picture_column(data)) is not None}
    rows = {p: data.with_format(None).select_columns([c]) for p, (data, c) in columns.items()}
    named = [(f"{p} picture {i}".strip(), partial(_cell, r, i)) for p, r in rows.items() for i in range(len(r))]
    ends = np.cumsum([len(r) for r in rows.values()])
    return dict(zip(rows, np.split(stacked(named, where), ends[:-1]), strict=True)) if named else {}


def picture_column(data: Any) -> str | None:
    """Return the name of a data set's first column of pictures; None if it has none, or the user transforms them."""
    from datasets import Image

    return None if data.format["type"] == "custom" else next((n for n, f in data.features.items() if isinstance(f, Image)), None)


def stacked(named: Iterable[tuple[str, Callable[[], Image]]], where: str) -> np.ndarray:
    """Return pictures (N, H, W) or (N, H, W, C) in a form that all of them can have.

    Palettes and colour spaces become RGB, and 1-bit pictures grey. All are RGBA if one has a pixel that is not opaque, else RGB
    if one is coloured, else grey, (N, H, W). Grey pictures of more than 8 bits keep their numbers; they are (N, H, W, 1), which
    tells them from sequences. `named` is the name of each, and what opens it; `where` is what an error calls them all.

    Raises:
        FlocoError: pictures that cannot be read, have several frames, several sizes or several scales, by name.
    """
    pictures = _decoded(named, where)
    mode = _common_mode(pictures, where)
    shape = (len(pictures), *pictures[0].pixels.shape[:2], _MODES[mode][1])
    x = np.full(shape, 255, np.result_type(*{p.pixels.dtype for p in pictures}))
    for row, p in zip(x, pictures, strict=True):
        pixels = np.atleast_3d(p.pixels)
        row[..., : max(3, pixels.shape[-1])] = pixels  # grey is repeated for each colour, and what has no alpha stays opaque
    return x[..., 0] if mode == "L" else x


def _below(root: Path, where: str) -> tuple[list[Path], list[Path]]:
    """Return the pictures and the folders below a folder, relative to it; warn of other files."""
    from PIL import Image

    try:
        found = [(entry.relative_to(root), is_folder) for entry, is_folder in _walk(root, (root.resolve(),))]
    except OSError as error:
        raise FlocoError(f"{where} cannot be read: {error}") from error
    files = [f for f, is_folder in found if not is_folder]
    if tables := [f.name for f in files if len(f.parts) == 1 and f.name.lower() in _METADATA]:
        raise FlocoError(f"{where}: labels must be the names of folders, and {tables[0]} is not read: move it away, or read it in a function of your own, module:function")
    endings = {e for e, f in Image.registered_extensions().items() if f in {*Image.OPEN, "MPO"} - _NOT_DECODED}
    pictures, others = ([f for f in files if (f.suffix.lower() in endings) is wanted] for wanted in (True, False))
    if not pictures:
        besides = f" among {len(others)} files: {_few(others)}" if others else ""
        raise FlocoError(f"{where} must hold pictures, CLASS/picture.png or train/CLASS/picture.png, and there is none{besides}")
    if loose := [f for f in pictures if len(f.parts) == 1]:
        raise FlocoError(f"{where}: pictures must be in a folder that is named after their class; {_few(loose)} are in none: move them into one, or away")
    if others:
        warn(f"{where}: {len(others)} of {len(files)} files are left out, because their names do not end as those of pictures do: {_few(others)}")
    return pictures, [f for f, is_folder in found if is_folder]


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[tuple[Path, bool]]:
    """Yield what is below a folder by name, and whether it is a folder; nothing hidden, and no link that leads back to one `above`."""
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith(".") and entry.name.lower() not in _OF_THE_SYSTEM:
            is_folder = entry.is_dir()
            yield entry, is_folder
            if is_folder and (real := entry.resolve()) not in above:
                yield from _walk(entry, (*above, real))


def _check_splits(files: Sequence[Path], tops: Sequence[str], where: str) -> None:
    """Raise if there is no training part, two folders of one part, another split, or a picture outside of a class."""
    found = f"all folders have names of splits ({', '.join(tops)})"
    train, test = ([t for t in tops if t.lower() in names] for names in (_TRAIN, _TEST))
    if not train:
        raise FlocoError(f"{where}: {found}, and train is not among them: rename one to train, or all of them if they are classes")
    if others := ", ".join(t for t in tops if t not in (*train, *test)):
        raise FlocoError(f"{where}: {found}, of which train and test are read, and not {others}: rename it, put its pictures into train or test, or move it away")
    if twice := next((same for same in (train, test) if len(same) > 1), None):
        raise FlocoError(f"{where}: there must be one folder for each split, got {' and '.join(twice)}: put their pictures into one")
    if loose := [f for f in files if len(f.parts) == 2]:
        raise FlocoError(f"{where}: {found}, so pictures must be in SPLIT/CLASS, and {_few(loose)} are in no class: move them into one; if the folders are classes, rename one")


def _warn_of_layout(files: Sequence[Path], folders: Sequence[Path], tops: Sequence[str], level: int, where: str) -> None:
    """Warn of folders that should be a class, or a split, and hold no picture; and of classes that may have been meant as splits."""
    full = {p for f in files for p in f.parents}
    if empty := [d for d in folders if len(d.parts) <= level + 1 and d not in full]:
        warn(f"{where}: folders that hold no picture are left out: {_few(empty)}")
    flat = {f.parts[0] for f in files if len(f.parts) == 2}
    if not level and (suspects := [t for t in tops if t.lower() in _SPLITS and t not in flat]):
        others = _few(t for t in tops if t.lower() not in _SPLITS)
        warn(f"{where}: {_few(suspects)} is read as a class and not as a split, because there are folders beside it that are no split: {others}")


def _cell(column: Any, row: int) -> Image:
    image: Image | None = next(iter(column[row].values()))
    if image is None:
        raise ValueError("there is none")
    return image


def _decoded(named: Iterable[tuple[str, Callable[[], Image]]], where: str) -> list[_Picture]:
    """Return the pictures, which have one size."""
    pictures: list[_Picture] = []
    broken: dict[str, _Unreadable] = {}
    for name, opened in named:
        try:
            pictures.append(_picture(name, opened, where))
        except _Unreadable as error:
            broken[name] = error
        if pictures and pictures[-1].size != pictures[0].size:
            shown = " and ".join(f"{p.name} is {p.size[0]} x {p.size[1]}" for p in (pictures[0], pictures[-1]))
            raise FlocoError(f"{where}: all pictures must have one width and height; {shown}: scale or crop them before")
    if broken:
        count, reason = f"{len(broken)} of {len(pictures) + len(broken)}", next(iter(broken.values()))
        raise FlocoError(f"{where}: {count} pictures cannot be read: {_few(broken)} ({reason}); replace them, or move them away")
    if short := [p.name for p in pictures if p.shortened]:
        warn(f"{where}: {len(short)} of {len(pictures)} pictures have 16 bits for each of several channels, of which the upper 8 are read: {_few(short)}")
    return pictures


def _picture(name: str, opened: Callable[[], Image], where: str) -> _Picture:
    from PIL import ImageOps

    try:
        with opened() as image:
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: a camera's photo, and previews of it
            shortened = ";16" in str(getattr(image, "tile", "")) and not image.mode.startswith("I")
            plain = _plain(ImageOps.exif_transpose(image))
            pixels = np.asarray(plain)
    except Exception as error:
        raise _Unreadable(f"{type(error).__name__}: {error}") from error
    if frames > 1:
        raise FlocoError(f"{where}: a picture must be a single one, and {name} holds {frames} frames: save the one that is meant as a file of its own")
    return _Picture(name, "I" if plain.mode.startswith("I") else plain.mode, pixels, plain.size, shortened)


def _plain(image: Image) -> Image:
    """Return a picture in one of `_MODES`, or as "I;16" and its like; RGBA only if a pixel is not opaque."""
    if image.mode == "F" or image.mode.startswith("I"):
        return image
    grey = image.mode in ("1", "L", "LA")
    if not image.has_transparency_data:
        return image.convert("L" if grey else "RGB")
    clear = image.convert("RGBA")
    if clear.getchannel("A").getextrema() != (255, 255):
        return clear
    return image.convert("L") if grey else clear.convert("RGB")


def _common_mode(pictures: Sequence[_Picture], where: str) -> str:
    """Return the least mode that holds all pictures; warn if some have another one."""
    count = Counter(p.mode for p in pictures)
    scales = {k: [p.name for p in pictures if (p.mode if p.mode in "IF" else "") == k] for k in ("", "I", "F")}
    if sum(map(bool, scales.values())) > 1:
        shown = ", ".join(f"{_MODES[k][0] if k else '8-bit'} are {_few(names)}" for k, names in scales.items() if names)
        raise FlocoError(f"{where}: all pictures must have one scale; {shown}: convert them to one depth before")
    mode = max(count, key=list(_MODES).index)
    if len(count) > 1:
        shown = " and ".join(f"{count[m]} {_MODES[m][0]}" for m in _MODES if count[m])
        warn(f"{where}: {shown} pictures are all read as {mode}, so that they have one form")
    return mode


def _few(names: Iterable[object]) -> str:
    """Return the first names, and how many more there are."""
    shown = [str(n.as_posix() if isinstance(n, Path) else n) for n in names]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
