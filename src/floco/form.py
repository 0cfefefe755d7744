"""What samples and labels look like where they come from, and how raw samples become a network's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from floco.errors import FlocoError

_FAR = 10  # ranges of a channel by which a value may lie outside of it: beyond is another unit, not another sample


@dataclass(frozen=True)
class Normalization:
    """x -> (x - mean) / std per channel (images, sequences) or feature; uint8 is divided by 255 before."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        """Return inputs (N, C, ...) float32 for raw samples (N, C, ...); no statistics: only the division."""
        x = raw.float().div_(255) if raw.dtype == torch.uint8 else raw.float()
        if not self.mean:
            return x
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return (x - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)


def as_in_source(x: torch.Tensor, channels: str) -> torch.Tensor:
    """Return samples (N, C, ...) as their source has them: the inverse of `channels_first`."""
    if channels == "none":
        return x.squeeze(1)
    return x.permute(0, 2, 3, 1) if channels == "last" else x


def channels_first(raw: torch.Tensor, channels: str) -> torch.Tensor:
    """Return samples (N, C, ...) of samples whose channels come `last`, are one and left out (`none`), or `first` already."""
    if channels == "none":
        return raw.unsqueeze(1)
    return raw.permute(0, 3, 1, 2) if channels == "last" else raw


@dataclass(frozen=True)
class Form:
    """The raw samples that a model takes, and the labels that it gives."""

    shape: tuple[int, ...]
    """Of one sample, as its source has it: (H, W, C), (H, W) or (F, ...)."""
    dtype: str
    """`uint8` or `float32`."""
    channels: str
    """Where a source has the channels: `first`, `last`, or `none` for images (H, W)."""
    names: tuple[str, ...]
    """Label names by class number, (C,)."""
    values: tuple[str, ...]
    """Labels as the source has them, as text, by class number."""
    ranges: tuple[tuple[float, float], ...]
    """Least and largest value of each channel among all samples."""
    normalization: Normalization

    def samples(self, x: Any, where: str) -> torch.Tensor:
        """Return checked samples (N, C, ...), channels first.

        Args:
            x: array (N, *shape).
            where: what an error calls it.

        Raises:
            FlocoError: another shape or type, a value that is not finite, or one far outside of the values that the model knows.
        """
        x = array(x, where)
        if x.ndim == 0 or x.shape[1:] != self.shape or not len(x):
            raise FlocoError(f"{where} must have shape (N, {', '.join(map(str, self.shape))}), N >= 1, as the samples that the model was trained on; got {x.shape}")
        if x.dtype.kind not in "iuf":
            raise FlocoError(f"{where} must be numbers, got {x.dtype}")
        if self.dtype == "uint8" and (x.dtype.kind == "f" or x.min() < 0 or x.max() > 255):
            raise FlocoError(f"{where} must be whole numbers from 0 to 255, as the samples that the model was trained on; got {x.dtype} from {x.min():g} to {x.max():g}")
        x = x.astype(np.uint8) if self.dtype == "uint8" else finite(x, where)
        raw = channels_first(writeable(x), self.channels)
        if self.dtype != "uint8":
            self._check_range(raw, where)
        return raw

    def labelled(self, x: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return checked samples (N, C, ...) and as many class numbers (N,)."""
        samples, classes = self.samples(x, "x"), self.classes(y, "y")
        if len(samples) != len(classes):
            raise FlocoError(f"there must be one label for each sample, got {len(samples)} samples and {len(classes)} labels")
        return samples, classes

    def _check_range(self, raw: torch.Tensor, where: str) -> None:
        for channel, (low, high) in enumerate(self.ranges):
            values = raw[:, channel].reshape(len(raw), -1)
            reach = _FAR * (high - low)
            far = ((values < low - reach) | (values > high + reach)).any(dim=1)
            if reach > 0 and bool(far.any()):
                i = int(far.nonzero()[0])
                worst = max(values[i].tolist(), key=lambda v: max(low - v, v - high))
                raise FlocoError(f"{where}: sample {i} holds {worst:g} in channel {channel}, and the model knows {low:g} to {high:g}: another unit, or another scaling?")

    def classes(self, y: Any, where: str) -> torch.Tensor:
        """Return class numbers (N,) int64 of labels (N,), which are values of the source, or names.

        Raises:
            FlocoError: no labels, or one that the model does not know.
        """
        y = plain_labels(array(y, where))
        if y.ndim != 1 or y.dtype.kind not in "iubU":
            raise FlocoError(f"{where} must be whole numbers or strings (N,), got shape {y.shape} of {y.dtype}")
        given = [str(v) for v in y]
        for known in (self.names, self.values) if y.dtype.kind == "U" else (self.values, self.names):
            if set(given) <= set(known):
                number = {v: c for c, v in enumerate(known)}
                return torch.tensor([number[v] for v in given])
        strange = sorted(set(given) - set(self.values))
        raise FlocoError(f"{where} holds labels that the model does not know: {', '.join(strange[:8])}; it knows {', '.join(self.values[:20])}")


def array(values: Any, where: str) -> np.ndarray:
    """Return values as an array."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise FlocoError(f"{where} is no array: {error}") from error


def finite(x: np.ndarray, where: str) -> np.ndarray:
    """Return numbers as float32; one that is not finite there is an error that names its sample."""
    with np.errstate(over="ignore"):
        x = x.astype(np.float32, copy=False)
    if not np.isfinite(x).all():
        raise FlocoError(f"{where} must be finite in float32; sample {int(np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))[0])} is not")
    return x


def writeable(x: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor, copied if it is read-only: torch wants to be able to write."""
    return torch.from_numpy(x if x.flags.writeable and min(x.strides, default=0) >= 0 else x.copy())


def plain_labels(y: np.ndarray) -> np.ndarray:
    """Return labels as they are; bytes, and objects that are strings, as strings."""
    if y.dtype.kind == "S":
        return np.char.decode(y, "utf-8")
    return y.astype(str) if y.dtype == object and all(isinstance(v, str) for v in y.flat) else y
