"""Pictures as one array: decoded with Pillow, and converted to a mode that holds all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from floco.core.errors import FlocoError, some, warn

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = "pictures"
"""Name beside arrays that says that x holds pictures as files have them, channels last."""

_MODES = {
    "L": ("grey", 1),
    "RGB": ("coloured", 3),
    "RGBA": ("partly transparent", 4),
    "I": ("16- or 32-bit", 1),
    "F": ("floating-point", 1),
}
"""Name and number of channels of each mode; up to RGBA, each mode can hold pictures of those before it."""


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
    """Whether the file has 16 bits for each of several channels; Pillow reads only the upper 8."""


def read_columns(parts: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
    """Return the pictures of each part of a data set (a `datasets.Dataset`), by the part's name ("" for a single part).

    Parts without pictures are skipped. Errors name a picture by its index in its part, from 0; see `stacked`.
    """
    columns = {p: (data, c) for p, data in parts.items() if (c := picture_column(data)) is not None}
    rows = {p: data.with_format(None).select_columns([c]) for p, (data, c) in columns.items()}
    named = [(f"{p} picture {i}".strip(), partial(_cell, r, i)) for p, r in rows.items() for i in range(len(r))]
    ends = np.cumsum([len(r) for r in rows.values()])
    return dict(zip(rows, np.split(stacked(named, where), ends[:-1]), strict=True)) if named else {}


def picture_column(data: Any) -> str | None:
    """Return the name of a data set's first picture column; None if it has none, or a transform of the user's."""
    from datasets import Image

    columns = () if data.format["type"] == "custom" else data.features.items()
    return next((n for n, f in columns if isinstance(f, Image)), None)


def stacked(named: Iterable[tuple[str, Callable[[], Image]]], where: str) -> np.ndarray:
    """Return pictures as one array (N, H, W) or (N, H, W, C).

    Palettes and other colour spaces become RGB, 1-bit pictures grey. The result is RGBA if any picture has a pixel that
    is not opaque, otherwise RGB if any has colour, otherwise grey, (N, H, W). Grey pictures of more than 8 bits keep
    their values as (N, H, W, 1), which distinguishes them from sequences.

    Args:
        named: the name of each picture, and a function that opens it.
        where: name of the source, for error messages.

    Raises:
        FlocoError: pictures that cannot be read, have several frames, or differ in size or scale, by name.
    """
    pictures = _decoded(named, where)
    mode = _common_mode(pictures, where)
    shape = (len(pictures), *pictures[0].pixels.shape[:2], _MODES[mode][1])
    x = np.full(shape, 255, np.result_type(*{p.pixels.dtype for p in pictures}))
    for row, p in zip(x, pictures, strict=True):
        pixels = np.atleast_3d(p.pixels)
        row[..., : max(3, pixels.shape[-1])] = pixels  # repeats grey in each colour; without alpha stays opaque
    return x[..., 0] if mode == "L" else x


def _cell(column: Any, row: int) -> Image:
    image: Image | None = next(iter(column[row].values()))
    if image is None:
        raise ValueError("there is none")
    return image


def _decoded(named: Iterable[tuple[str, Callable[[], Image]]], where: str) -> list[_Picture]:
    """Return the decoded pictures, all of one size."""
    pictures: list[_Picture] = []
    broken: dict[str, _Unreadable] = {}
    for name, opened in named:
        try:
            pictures.append(_picture(name, opened, where))
        except _Unreadable as error:
            broken[name] = error
        if pictures and pictures[-1].size != pictures[0].size:
            shown = " and ".join(f"{p.name} is {p.size[0]} x {p.size[1]}" for p in (pictures[0], pictures[-1]))
            raise FlocoError(f"{where}: all pictures must have one width and height; {shown}: scale or crop them first")
    if broken:
        count, reason = f"{len(broken)} of {len(pictures) + len(broken)}", next(iter(broken.values()))
        raise FlocoError(
            f"{where}: {count} pictures cannot be read: {some(broken)} ({reason}); replace them, or move them away"
        )
    if short := [p.name for p in pictures if p.shortened]:
        warn(
            f"{where}: {len(short)} of {len(pictures)} pictures have 16 bits for each of several channels, "
            f"of which the upper 8 are read: {some(short)}"
        )
    return pictures


def _picture(name: str, opened: Callable[[], Image], where: str) -> _Picture:
    from PIL import ImageOps

    try:
        with opened() as image:
            # MPO: a photo and previews of it, not several frames.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            shortened = ";16" in str(getattr(image, "tile", "")) and not image.mode.startswith("I")
            plain = _plain(ImageOps.exif_transpose(image))
            pixels = np.asarray(plain)
    except Exception as error:
        raise _Unreadable(f"{type(error).__name__}: {error}") from error
    if frames > 1:
        raise FlocoError(
            f"{where}: a picture must be a single one, and {name} holds {frames} frames: save one as a file of its own"
        )
    return _Picture(name, "I" if plain.mode.startswith("I") else plain.mode, pixels, plain.size, shortened)


def _plain(image: Image) -> Image:
    """Return a picture in one of `_MODES`, or a variant of "I" such as "I;16"; RGBA only if a pixel is not opaque."""
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
    """Return the smallest mode that holds all pictures; warn if some are converted to it."""
    count = Counter(p.mode for p in pictures)
    scales = {k: [p.name for p in pictures if (p.mode if p.mode in "IF" else "") == k] for k in ("", "I", "F")}
    if sum(map(bool, scales.values())) > 1:
        shown = ", ".join(f"{_MODES[k][0] if k else '8-bit'} are {some(names)}" for k, names in scales.items() if names)
        raise FlocoError(f"{where}: all pictures must have one scale; {shown}: convert them to one depth first")
    mode = max(count, key=list(_MODES).index)
    if len(count) > 1:
        shown = " and ".join(f"{count[m]} {_MODES[m][0]}" for m in _MODES if count[m])
        warn(f"{where}: {shown} pictures are all read as {mode}, so that they have one form")
    return mode
