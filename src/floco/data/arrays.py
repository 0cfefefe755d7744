"""From arrays of samples to tensors: where their channels are, and what is subtracted before numbers lose their digits."""

from __future__ import annotations

import numpy as np
import torch

from floco.core.errors import FlocoError, warn

_LARGE = 2.0**10  # a channel whose numbers are so much larger than their range may lose its digits in float32
_LOST = 1e-4  # and has lost them, if rounding moves a number by so much of the range
CHANNELS = ("first", "last", "kept", "none")
"""Where a source has the channels of a sample: `first`; `last`, and moved to the front for the network (images);
last, where they are `kept` for the network (sequences); or `none`, one that is left out (H, W)."""


def column_names(x: object) -> tuple[str, ...]:
    """Return the names of the columns of a table such as a DataFrame, () of anything else."""
    return tuple(map(str, getattr(x, "columns", ())))


def as_in_source(x: torch.Tensor, channels: str) -> torch.Tensor:
    """Return samples (N, C, ...) with the channels where their source has them: the inverse of `channels_first`."""
    if channels == "none":
        return x.squeeze(1)
    return x.movedim(1, -1) if channels in ("last", "kept") else x


def channels_first(raw: torch.Tensor, channels: str) -> torch.Tensor:
    """Return samples (N, C, ...) of samples whose channels are where `channels` says (see `CHANNELS`)."""
    if channels == "none":
        return raw.unsqueeze(1)
    return raw.movedim(-1, 1) if channels in ("last", "kept") else raw


def offsets(x: np.ndarray, channels: str) -> tuple[float, ...]:
    """Return what to subtract from each channel of samples before they become float32; () where nothing would be lost.

    Numbers such as times in milliseconds are large beside their differences: float32 keeps seven digits, and not these.
    """
    if x.dtype.kind == "f" and x.dtype.itemsize < 8 or x.dtype.itemsize < 4:
        return ()
    x = np.moveaxis(x, -1, 1) if channels in ("last", "kept") else x[:, None] if channels == "none" else x
    axes = (0, *range(2, x.ndim))
    least, most = x.min(axes), x.max(axes)
    reach = (most.astype(object) - least.astype(object)).astype(np.float64) if x.dtype.kind in "iu" else most - least  # exact, and in range
    low, size = least.astype(np.float64), np.maximum(abs(least.astype(np.float64)), abs(most.astype(np.float64)))
    large = (reach > 0) & (size > _LARGE * reach)
    if large.any():
        exact = x.astype(np.float64)
        lost = np.abs(exact - exact.astype(np.float32)).max(axes)
        large &= (lost > _LOST * reach) | (size > 2**53)
    return tuple(np.where(large, np.trunc(low + reach / 2), 0.0).tolist()) if large.any() else ()


def float32(x: np.ndarray, where: str, channels: str, offset: tuple[float, ...] = ()) -> torch.Tensor:
    """Return samples (N, C, ...) float32, channels first, less the offset of each channel, which is subtracted before precision is lost.

    Raises:
        FlocoError: a value that is not finite in float32, named by its sample.
    """
    if offset:
        exact = np.int64 if x.dtype.kind in "iu" and x.dtype != np.uint64 else np.float64
        less = np.asarray(offset).astype(exact)
        shape = [1] * x.ndim
        shape[-1 if channels in ("last", "kept") else 1] = 1 if channels == "none" else len(less)
        x = x.astype(exact) - less.reshape(shape)
    with np.errstate(over="ignore"):
        x = x.astype(np.float32, copy=False)
    if not np.isfinite(x).all():
        raise FlocoError(f"{where} must be finite in float32; sample {int(np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))[0])} is not")
    return channels_first(writeable(x), channels)


def writeable(x: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor, copied if it is read-only: torch wants to be able to write."""
    return torch.from_numpy(x if x.flags.writeable and min(x.strides, default=0) >= 0 else x.copy())


def find_channels(x: np.ndarray, kind: str, channels: str, where: str) -> str:
    """Return where samples of a kind have their channels: one of `CHANNELS`.

    Raises:
        FlocoError: sequences or grids that may have them first or last.
    """
    color = x.ndim == 4 and x.shape[-1] in (1, 3, 4)
    if kind == "images" or (kind == "auto" and ((x.dtype == np.uint8 and x.ndim == 4) or (channels == "auto" and (color or (x.dtype == np.uint8 and x.ndim == 3))))):
        if x.ndim not in (3, 4) or (x.ndim == 3 and channels != "auto"):
            raise FlocoError(f"{where}: images must be (N, H, W), (N, H, W, C) or, with data.channels = first, (N, C, H, W), got {x.shape} with channels {channels}")
        first = x.ndim == 4 and x.shape[1] in (1, 3, 4) and x.shape[-1] not in (1, 2, 3, 4)  # pictures four pixels wide are none
        return "none" if x.ndim == 3 else "first" if channels == "first" or (channels == "auto" and first) else "last"
    if channels != "auto" and x.ndim > 2:
        return "first" if channels == "first" else "kept"
    if (x.ndim == 3 and x.shape[1] > x.shape[2]) or (x.ndim == 4 and x.shape[1] == x.shape[2] > x.shape[3]):
        raise FlocoError(
            f"{where} has the shape {x.shape}: are the features of a sample (each with a mean and deviation of its own) its first dimension, {x.shape[1]}, "
            f"or its last, {x.shape[-1]}? Say data.channels = first or last (channels=...); for pictures data.kind = images"
        )
    if x.ndim == 3 and x.shape[1] > 1 and x.dtype.kind in "iuf" and _looks_time_first(x):
        warn(
            f"{where} has the shape {x.shape}, and its values differ along the last dimension and hardly along the first: if a sample is (times, features), say "
            "data.channels = last (channels=...), else first"
        )
    return "first"


def _looks_time_first(x: np.ndarray) -> bool:
    """Return whether the means of values (N, A, B) depend on b, and hardly on a, beside how much the values vary: B may then be features."""
    some = x[: 2**20 // max(1, x[0].size) + 2].astype(np.float64)
    means, size = some.mean(0), some.std() or 1.0
    return bool(means.std(1).mean() > 0.3 * size and means.std(0).mean() < 0.03 * size)


def read_inputs(x: np.ndarray, where: str, channels: str) -> tuple[torch.Tensor, tuple[float, ...]]:
    """Return copies of samples (N, C, ...), channels first, and what was subtracted: uint8 as they are, other numbers as float32."""
    if x.dtype.kind not in "iuf" or x.ndim < 2 or 0 in x.shape:
        raise FlocoError(f"{where} must be numbers (N, ...) with one dimension at least beside N, got shape {x.shape} of {x.dtype}")
    if x.dtype == np.uint8:
        return channels_first(writeable(x.copy()), channels), ()
    offset = offsets(x, channels)
    made = float32(x, where, channels, offset)
    if x.dtype.itemsize > 3 and x.dtype != np.float32 and made.abs().max() > 2**24:
        _warn_of_rounded_ids(x, made, where, channels, offset)
    return (made if offset or x.dtype != np.float32 else made.clone()), offset


def _warn_of_rounded_ids(x: np.ndarray, made: torch.Tensor, where: str, channels: str, offset: tuple[float, ...]) -> None:
    """Warn of features that are whole numbers of which some have become one another in float32: ids, perhaps."""
    given, found = (t.reshape(*t.shape[:2], -1) for t in (channels_first(torch.from_numpy(x.astype(np.float64)), channels), made))
    plain = torch.tensor([not o for o in offset] or [True]).expand(given.shape[1])
    whole = (plain & (given == given.trunc()).all(2).all(0) & (given != found).any(2).any(0)).nonzero().flatten().tolist()
    if whole:
        warn(
            f"{where}: feature {', '.join(map(str, whole[:8]))} holds whole numbers beyond 2**24, which float32 rounds: if they are ids, neighbours have become "
            "equal; a client's id goes into the column client, other ids need an encoding"
        )
