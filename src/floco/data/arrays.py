"""From arrays of samples to tensors: channel positions, and offsets that keep large numbers precise in float32."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from floco.core.errors import FlocoError, warn
from floco.data.mapped import every, is_mapped

_LARGE = 2.0**10  # values this many times larger than a channel's range may lose digits in float32
_LOST = 1e-4  # rounding errors above this share of the range count as lost digits
CHANNELS = ("first", "last", "kept", "none")
"""Channel positions in a source's samples.

- `first`: (C, ...).
- `last`: (..., C), moved to the front for the network (images).
- `kept`: (..., C), kept last for the network (sequences).
- `none`: no channel dimension, (H, W).
"""


def check_index(x: object, other: Any, what: str) -> None:
    """Raise if rows are a table and their targets or ids a Series with another index: it would be taken by position."""
    if hasattr(x, "iloc") and hasattr(other, "iloc") and not getattr(x, "index").equals(other.index):  # noqa: B009
        raise FlocoError(
            f"{what} is a Series whose index is not that of the rows, and is taken by position: give it in the order "
            f"of the rows, e.g. {what}.loc[x.index], or as an array"
        )


def column_names(x: object) -> tuple[str, ...]:
    """Return the column names of a table such as a DataFrame, () for anything else."""
    return tuple(map(str, getattr(x, "columns", ())))


def as_in_source(x: torch.Tensor, channels: str) -> torch.Tensor:
    """Return samples (N, C, ...) in their source's channel position: the inverse of `channels_first`."""
    if channels == "none":
        return x.squeeze(1)
    return x.movedim(1, -1) if channels in ("last", "kept") else x


def channels_first(raw: torch.Tensor, channels: str) -> torch.Tensor:
    """Return samples (N, C, ...) from samples with channels in position `channels` (see `CHANNELS`)."""
    if channels == "none":
        return raw.unsqueeze(1)
    return raw.movedim(-1, 1) if channels in ("last", "kept") else raw


def offsets(x: np.ndarray, channels: str) -> tuple[float, ...]:
    """Return the offset to subtract from each channel before the conversion to float32; (): no digits are lost.

    Numbers such as times in milliseconds are large compared with their differences; float32 has only seven digits.
    """
    if x.dtype.kind == "f" and x.dtype.itemsize < 8 or x.dtype.itemsize < 4:
        return ()
    x = np.moveaxis(x, -1, 1) if channels in ("last", "kept") else x[:, None] if channels == "none" else x
    axes = (0, *range(2, x.ndim))
    least, most = x.min(axes), x.max(axes)
    exact_type = object if x.dtype.kind in "iu" else x.dtype  # Python integers do not overflow
    reach = (most.astype(exact_type) - least.astype(exact_type)).astype(np.float64)
    low, size = least.astype(np.float64), np.maximum(abs(least.astype(np.float64)), abs(most.astype(np.float64)))
    large = (reach > 0) & (size > _LARGE * reach)
    if large.any():
        exact = x.astype(np.float64)
        lost = np.abs(exact - exact.astype(np.float32)).max(axes)
        large &= (lost > _LOST * reach) | (size > 2**53)
    return tuple(np.where(large, np.trunc(low + reach / 2), 0.0).tolist()) if large.any() else ()


def float32(x: np.ndarray, where: str, channels: str, offset: tuple[float, ...] = ()) -> torch.Tensor:
    """Return samples (N, C, ...) float32, channels first, minus each channel's offset (subtracted in full precision).

    Raises:
        FlocoError: a value is not finite in float32; the message names its sample.
    """
    if offset:
        exact = np.int64 if x.dtype.kind in "iu" and x.dtype != np.uint64 else np.float64
        x = x.astype(exact) - _per_channel(np.asarray(offset).astype(exact), x.ndim, channels)
    with np.errstate(over="ignore"):
        x = x.astype(np.float32, copy=not is_mapped(x))  # what the user does to an array later changes nothing
    finite = every(x, np.isfinite)
    if not finite.all():
        number = int(finite.argmin())
        hint = ": it lacks a value (NaN); data.missing says what to do" if np.isnan(x[number]).any() else ""
        raise FlocoError(f"{where} must be finite in float32; sample {number} is not{hint}")
    return channels_first(writeable(x), channels)


def _per_channel(values: np.ndarray, ndim: int, channels: str) -> np.ndarray:
    """Return one value a channel (C,) in a shape that broadcasts with samples in their source's layout."""
    shape = [1] * ndim
    shape[-1 if channels in ("last", "kept") else 1] = 1 if channels == "none" else len(values)
    return values.reshape(shape)


def fill(x: np.ndarray, holes: np.ndarray, channels: str, values: Sequence[float]) -> np.ndarray:
    """Return samples (N, *shape) with one value a channel where there are holes."""
    return np.where(holes, _per_channel(np.asarray(values, dtype=x.dtype), x.ndim, channels), x)


def has_holes(x: np.ndarray) -> np.ndarray:
    """Return which samples (N, ...) hold NaN, (N,) bool."""
    found: np.ndarray = ~every(x, lambda block: ~np.isnan(block))
    return found


def read_with_holes(x: np.ndarray, where: str, channels: str) -> tuple[torch.Tensor, tuple[float, ...]]:
    """Return what `read_inputs` does, of samples in which NaN stands for a missing value and stays NaN."""
    if x.dtype.kind != "f" or x.ndim < 2 or not len(x) or not (lacking := has_holes(x)).any():
        return read_inputs(x, where, channels)
    if is_mapped(x):
        raise FlocoError(
            f"{where} stays in its file, and {int(lacking.sum())} of its samples lack a value: fill them in the file"
        )
    holes = np.isnan(x)
    by_channel = channels_first(torch.from_numpy(holes), channels)
    if (empty := by_channel.transpose(0, 1).flatten(1).all(1)).any():
        shown = ", ".join(map(str, empty.nonzero().flatten().tolist()[:8]))
        raise FlocoError(f"{where}: no sample has a value in channel {shown}: leave it out")
    axis = {"last": x.ndim - 1, "kept": x.ndim - 1, "first": 1}.get(channels)
    known = np.nanmin(x, axis=tuple(a for a in range(x.ndim) if a != axis))  # the checks look at values that occur
    made, offset = read_inputs(fill(x, holes, channels, np.atleast_1d(known).tolist()), where, channels)
    return made.masked_fill(by_channel, np.nan), offset


def writeable(x: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor, copied if torch cannot share its memory (read-only, or negative strides).

    A memory-mapped array is never copied.
    """
    if is_mapped(x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of arrays that must not be written to: nothing does
            return torch.from_numpy(x)
    return torch.from_numpy(x if x.flags.writeable and min(x.strides, default=0) >= 0 else x.copy())


def find_channels(x: np.ndarray, kind: str, channels: str, where: str) -> str:
    """Return the channel position of samples, one of `CHANNELS`; `kind` and `channels` are as in `sources.load`.

    Raises:
        FlocoError: the shape does not fit the kind, or does not show where the channels are.
    """
    uint8, color = x.dtype == np.uint8, x.ndim == 4 and x.shape[-1] in (1, 3, 4)
    like_images = (uint8 and x.ndim == 4) or (channels == "auto" and (color or (uint8 and x.ndim == 3)))
    if kind == "images" or (kind == "auto" and like_images):
        if x.ndim not in (3, 4) or (x.ndim == 3 and channels != "auto"):
            raise FlocoError(
                f"{where}: images must be (N, H, W), (N, H, W, C) or, with data.channels = first, (N, C, H, W), "
                f"got {x.shape} with channels {channels}"
            )
        _check_pictures(x.shape, kind, channels, where)
        # A last dimension of 1 to 4 is taken as channels, not as a width.
        first = x.ndim == 4 and x.shape[1] in (1, 3, 4) and x.shape[-1] not in (1, 2, 3, 4)
        return "none" if x.ndim == 3 else "first" if channels == "first" or (channels == "auto" and first) else "last"
    if channels != "auto" and x.ndim > 2:
        return "first" if channels == "first" else "kept"
    grid = x.ndim == 3 and (x.shape[1] > x.shape[2] or x.shape[1] == x.shape[2] > 4)
    if grid or (x.ndim == 4 and x.shape[1] == x.shape[2] > x.shape[3]):
        raise FlocoError(
            f"{where} has shape {x.shape}: are the features of a sample, each with its own mean and deviation, its "
            f"first dimension ({x.shape[1]}) or its last ({x.shape[-1]})? Set data.channels = first or last "
            "(channels=...); for pictures, data.kind = images"
        )
    if x.ndim == 3 and x.shape[1] > 1 and x.dtype.kind in "iuf" and _looks_time_first(x):
        warn(
            f"{where} has shape {x.shape}, and its values differ along the last dimension but hardly along the first: "
            "if a sample is (times, features), set data.channels = last (channels=...), otherwise first"
        )
    return "first"


def _check_pictures(shape: tuple[int, ...], kind: str, channels: str, where: str) -> None:
    """Raise if pictures (N, A, B, C) may be (N, H, W, C) as well as (N, C, H, W)."""
    if len(shape) < 4 or channels != "auto" or shape[1] == shape[2]:
        return
    both = shape[1] in (1, 3, 4) and shape[3] in (1, 3, 4)
    neither = kind == "auto" and shape[1] not in (1, 3, 4) and shape[3] not in (1, 2, 3, 4)
    if both or neither:
        raise FlocoError(
            f"{where} has shape {shape}: are the channels of a picture its first dimension ({shape[1]}) or its last "
            f"({shape[3]})? Set data.channels = first or last (channels=...)"
        )


def _looks_time_first(x: np.ndarray) -> bool:
    """Return whether B of values (N, A, B) may be features: means depend on b but, relative to the spread, not on a."""
    some = x[: 2**20 // max(1, x[0].size) + 2].astype(np.float64)
    means, size = some.mean(0), some.std() or 1.0
    return bool(means.std(1).mean() > 0.3 * size and means.std(0).mean() < 0.03 * size)


def read_inputs(x: np.ndarray, where: str, channels: str) -> tuple[torch.Tensor, tuple[float, ...]]:
    """Return copies of samples (N, C, ...), channels first, and their offsets: uint8 unchanged, others as float32.

    Memory-mapped samples of uint8 and float32 stay in their file.
    """
    if x.dtype.kind not in "iuf" or x.ndim < 2 or 0 in x.shape:
        raise FlocoError(
            f"{where} must be numbers (N, ...) with one dimension at least beside N, got shape {x.shape} of {x.dtype}"
        )
    if x.dtype == np.uint8:
        return channels_first(writeable(x if is_mapped(x) else x.copy()), channels), ()
    offset = offsets(x, channels)
    made = float32(x, where, channels, offset)
    if x.dtype.itemsize > 3 and x.dtype != np.float32 and made.abs().max() > 2**24:
        _warn_of_rounded_ids(x, made, where, channels, offset)
    return made, offset


def _warn_of_rounded_ids(
    x: np.ndarray, made: torch.Tensor, where: str, channels: str, offset: tuple[float, ...]
) -> None:
    """Warn of whole-number features that float32 rounds, so that different values become equal: perhaps ids."""
    exact = channels_first(torch.from_numpy(x.astype(np.float64)), channels)
    given, found = (t.reshape(*t.shape[:2], -1) for t in (exact, made))
    plain = torch.tensor([not o for o in offset] or [True]).expand(given.shape[1])
    rounded = plain & (given == given.trunc()).all(2).all(0) & (given != found).any(2).any(0)
    if rounded.any():
        shown = ", ".join(map(str, rounded.nonzero().flatten().tolist()[:8]))
        warn(
            f"{where}: feature {shown} holds whole numbers beyond 2**24, which float32 rounds: if they are ids, "
            "neighbours have become equal; a client's id belongs in the column client, other ids need an encoding"
        )
